//! HTTPS in the relay itself: a certificate that is replaced under load refuses and cuts off nobody.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::support::{PATH, Relay, SECRET, now, sign};

/// Changed files are taken up within 10 s; the rest is for a machine under load.
const PATIENCE: Duration = Duration::from_secs(30);

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut wanted = CertificateParams::new([]).expect("no names");
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(wanted, KeyPair::generate().expect("a key")).expect("it is signed")
}

/// Puts another pair where the relay reads it, the key a moment before the certificate, as no two files change at once. Gives the certificate.
fn renew(relay: &Relay, authority: &Authority) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let wanted = CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
    let certificate = wanted.signed_by(&key, authority).expect("it is signed");
    fs::write(relay.path("tls.key"), key.serialize_pem()).expect("a file");
    std::thread::sleep(Duration::from_millis(50));
    fs::write(relay.path("tls.crt"), certificate.pem()).expect("a file");
    certificate.der().to_vec()
}

struct Sender(StreamOwned<ClientConnection, TcpStream>);

impl Sender {
    fn connect(relay: &Relay, authority: &Authority, version: &'static SupportedProtocolVersion) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).expect("a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version that there is")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "127.0.0.1".try_into().expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        let stream = TcpStream::connect(relay.ingress).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket takes it");
        Self(StreamOwned::new(connection, stream))
    }

    /// 200, or 503 from a machine whose disk is late.
    fn post(&mut self, number: usize) {
        let body = format!(r#"{{"event":"sms","text":"{number}"}}"#);
        let timestamp = now().to_string();
        let signature = sign(SECRET, &timestamp, body.as_bytes());
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {signature}\r\n\r\n",
            body.len()
        );
        self.0.write_all((head + &body).as_bytes()).expect("it is taken");
        let mut answer = [0; 1024];
        let count = self.0.read(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 200 ") || answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    fn certificate(&self) -> Vec<u8> {
        self.0.conn.peer_certificates().and_then(|chain| chain.first()).expect("it showed one").to_vec()
    }
}

#[test]
fn a_certificate_is_swapped_under_load_and_every_sender_is_served() {
    let mut relay = Relay::prepare("[ingress.tls]\ncertificate_file = \"tls.crt\"\nprivate_key_file = \"tls.key\"\n");
    let authority = authority();
    let mut shown = renew(&relay, &authority);
    relay.run();
    let mut kept = Sender::connect(&relay, &authority, &TLS13);
    let mut number = 0;
    for _ in 0..2 {
        let next = renew(&relay, &authority);
        let swapped_at = Instant::now();
        loop {
            number += 1;
            kept.post(2 * number);
            let mut new = Sender::connect(&relay, &authority, if number % 2 == 0 { &TLS12 } else { &TLS13 });
            new.post(2 * number + 1);
            if new.certificate() == next {
                break;
            }
            assert_eq!(new.certificate(), shown, "the one before, or the next");
            assert!(swapped_at.elapsed() < PATIENCE, "the next one is never shown");
        }
        shown = next;
    }
    let (accepted, answered) = (relay.metrics().sum("sipsim_relay_webhooks_total", &[]), 2.0 * number as f64);
    assert_eq!(accepted, answered, "each was answered");
    // What cannot be used changes nothing, and is told.
    fs::write(relay.path("tls.crt"), "no certificate").expect("a file");
    crate::support::wait_until("the unusable file to be told", PATIENCE, || {
        relay.metrics().sum("sipsim_relay_last_reload_successful", &[]) == 0.0
    });
    let mut last = Sender::connect(&relay, &authority, &TLS13);
    last.post(0);
    assert_eq!(last.certificate(), shown);
}
