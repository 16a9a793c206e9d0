//! HTTPS in the relay itself, and a certificate that is renewed under it.

use std::path::Path;

use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion, version};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::ingress::registry::{Phase, Registry};
use crate::ingress::tls::Tls;

/// A certificate for `relay.test`, written to the folder as a pair of files.
fn write_pair(folder: &Path) -> CertificateDer<'static> {
    let pair = rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    std::fs::write(folder.join("tls.crt"), pair.cert.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), pair.signing_key.serialize_pem()).unwrap();
    CertificateDer::from_pem_slice(pair.cert.pem().as_bytes()).unwrap()
}

fn files(folder: &Path) -> config::Tls {
    config::Tls { certificate_file: folder.join("tls.crt"), private_key_file: folder.join("tls.key") }
}

/// Connects as somebody who trusts just this certificate.
async fn connect(
    address: SocketAddr,
    trusted: &CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
) -> Option<Peer<TlsStream<TcpStream>>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("relay.test").unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await.ok().map(Peer::new)
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_pair(folder.path());
    let relay = start(|limits| limits.tls = Some(files(folder.path()))).await;
    for (version, expected) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut peer = connect(relay.address, &trusted, &[version]).await.expect("a handshake");
        assert_eq!(peer.stream.get_ref().1.protocol_version(), Some(expected));
        peer.send(post("{}")).await;
        assert_eq!(peer.answer().await.status, 200);
        peer.send(post(vec![b'x'; 1 << 20])).await;
        assert_eq!(peer.answer().await.status, 200, "many records make one body");
    }
    let expiry = relay.metrics.accounts.certificate_expiry.with_label_values(&["ingress"]).get();
    assert!(expiry > clock::now().as_seconds_f64(), "{expiry}");
}

#[tokio::test]
async fn a_handshake_has_the_deadline_too() {
    let folder = tempfile::tempdir().unwrap();
    write_pair(folder.path());
    let relay = start(|limits| {
        limits.tls = Some(files(folder.path()));
        limits.deadline = Duration::from_millis(200);
    })
    .await;
    let mut silent = relay.connect().await;
    assert!(silent.rest().await.is_empty());
    relay.connections(0).await;
}

#[tokio::test]
async fn a_handshake_waits_while_as_many_sign_as_may() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = write_pair(folder.path());
    let metrics = Metrics::new(&configuration());
    let tls = Tls::load(&files(folder.path()), PATIENCE, &metrics).unwrap();
    let listener = crate::ingress::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let registry = Registry::new(1, metrics.ingress.connections.clone(), &metrics.ingress.evicted);
    let admitted = registry.admit(Phase::Handshake).expect("there is room");
    let address = listener.local_addr().unwrap();
    let mut others = Vec::new();
    for _ in 0..tls.signing.at_once {
        others.push(tls.signing.turn(address.ip(), || {}).await);
    }
    let both = async {
        let (stream, _) = listener.accept().await.unwrap();
        tls.shake_hands(stream, &admitted.watched).await.is_ok()
    };
    let versions = [&version::TLS13];
    let mut both = Box::pin(async { tokio::join!(both, connect(address, &trusted, &versions)) });
    // It takes a few milliseconds; while the others sign, it may take for ever.
    assert!(timeout(Duration::from_millis(200), &mut both).await.is_err(), "it signed beside all others");
    drop(others);
    let (shaken, connected) = timeout(PATIENCE, both).await.expect("its turn came");
    assert!(shaken && connected.is_some());
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_and_a_bad_pair_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_pair(folder.path());
    let relay = start(|_| {}).await;
    let tls = Arc::new(Tls::load(&files(folder.path()), PATIENCE, &relay.metrics).unwrap());
    let reloads = || relay.metrics.accounts.last_reload_successful.get();
    // Somebody else's key.
    let key = std::fs::read(folder.path().join("tls.key")).unwrap();
    write_pair(folder.path());
    let second_key = std::fs::read(folder.path().join("tls.key")).unwrap();
    std::fs::write(folder.path().join("tls.key"), key).unwrap();
    tls.look();
    assert_eq!((tls.end_entity(), reloads()), (first.clone(), 0));
    // No key at all.
    std::fs::remove_file(folder.path().join("tls.key")).unwrap();
    tls.look();
    assert_eq!((tls.end_entity(), reloads()), (first.clone(), 0));
    std::fs::write(folder.path().join("tls.key"), second_key).unwrap();
    tls.look();
    assert_ne!(tls.end_entity(), first);
    assert_eq!(reloads(), 1);
    // A good certificate does not hide that a secret cannot be read.
    relay.metrics.accounts.reloaded("secrets", false);
    write_pair(folder.path());
    tls.look();
    assert_eq!(reloads(), 0);
    relay.metrics.accounts.reloaded("secrets", true);
    assert_eq!(reloads(), 1);
}

#[tokio::test]
async fn new_connections_see_a_renewed_certificate_within_ten_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_pair(folder.path());
    let relay = start(|limits| limits.tls = Some(files(folder.path()))).await;
    let mut old = connect(relay.address, &first, &[&version::TLS13]).await.expect("a handshake");
    let second = write_pair(folder.path());
    let renewed = async {
        while connect(relay.address, &second, &[&version::TLS13]).await.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), renewed).await.expect("the new certificate");
    old.send(post("{}")).await;
    assert_eq!(old.answer().await.status, 200, "who was connected stays connected");
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_said_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let relay = start(|_| {}).await;
    let check = |expected: &str| {
        let error = Tls::load(&files(folder.path()), PATIENCE, &relay.metrics).err().expect("unusable").to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    check("tls.crt (ingress.tls.certificate_file): No such file");
    write_pair(folder.path());
    std::fs::write(folder.path().join("tls.crt"), "nothing").unwrap();
    check("tls.crt (ingress.tls.certificate_file): it holds no PEM certificate");
    write_pair(folder.path());
    std::fs::write(folder.path().join("tls.key"), "nothing").unwrap();
    check("tls.key (ingress.tls.private_key_file): ");
}
