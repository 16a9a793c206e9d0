//! TLS in the relay itself: 1.2 and 1.3, with a certificate that may be renewed under it. A new pair that cannot be used never takes the place
//! of a good one.

use std::future::poll_fn;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;
use std::thread::available_parallelism;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::connection::Malformed;
use super::registry::{Phase, Watched};
use super::signing::Turns;
use crate::certificate;
use crate::config;
use crate::metrics::Metrics;

/// The contract says 10 s. Certificate and key are two files: who looks between the two writes needs a second look.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A look that has taken longer is reported: a new certificate is not taken up meanwhile.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// Under this name that counts in `last_reload_successful`, beside what a look that came to its end found.
const HANGS: &str = "ingress.tls does not answer";
/// A chain of certificates is a few KiB. More than this is some other file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The certificate in force, and the files it came from.
pub struct Tls {
    server: Arc<ServerConfig>,
    /// Half of the processors sign, and the others go on serving whoever is connected.
    pub signing: Arc<Turns>,
    files: config::Tls,
    in_force: Arc<InForce>,
    metrics: Arc<Metrics>,
    /// Digest of the pair that was last tried, whether it could be used or not; [`UNREADABLE`] if the files could not be read.
    tried: RwLock<[u8; 32]>,
}

#[derive(Debug)]
struct InForce(RwLock<Arc<CertifiedKey>>);

const UNREADABLE: [u8; 32] = [0; 32];

impl ResolvesServerCert for InForce {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// Reads certificate and key. The error names the file and the key of the configuration.
    pub fn load(files: &config::Tls, deadline: Duration, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let pair = Pair::read(files)?;
        let (certified, expiry) = pair.certified(files)?;
        let in_force = Arc::new(InForce(RwLock::new(Arc::new(certified))));
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&in_force) as Arc<dyn ResolvesServerCert>);
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = Self {
            server: Arc::new(server),
            signing: Turns::new((available_parallelism().map_or(1, NonZeroUsize::get) / 2).max(1), deadline),
            files: files.clone(),
            in_force,
            metrics: Arc::clone(metrics),
            tried: RwLock::new(pair.digest()),
        };
        tls.show_expiry(expiry);
        Ok(tls)
    }

    /// `Err` if the handshake fails, or the connection is told to go meanwhile: with what is to be counted, if anything.
    pub async fn shake_hands(
        &self,
        stream: TcpStream,
        watched: &Watched,
    ) -> Result<TlsStream<TcpStream>, Option<Malformed>> {
        let peer = stream.peer_addr().map_err(|_gone| None)?.ip();
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let hello = unless_ordered(hello, watched).await?.map_err(malformed)?;
        // A resumed handshake needs no signature, but nobody can tell before it goes on.
        let dropped = || self.metrics.ingress.evicted.with_label_values(&["handshake"]).inc();
        let turn = unless_ordered(self.signing.turn(peer, dropped), watched).await?.ok_or(None)?;
        let handshake = hello.into_stream(Arc::clone(&self.server)); // In here it signs, not when it is awaited.
        drop(turn);
        let stream = unless_ordered(handshake, watched).await?.map_err(malformed)?;
        watched.enter(Phase::Silent);
        Ok(stream)
    }

    /// Looks at the files every 3 s and takes a new pair into force. Ends never.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let this = Arc::clone(&self);
            // Reading may block for long on a network filesystem.
            let mut look = spawn_blocking(move || this.look());
            let looked = match timeout(LOOK_MAX, &mut look).await {
                Ok(looked) => looked,
                Err(_) => {
                    let file = self.files.certificate_file.display();
                    warn!("{file} does not answer; the certificate in force stays");
                    self.metrics.accounts.reloaded(HANGS, false);
                    let looked = look.await;
                    self.metrics.accounts.reloaded(HANGS, true);
                    looked
                }
            };
            if looked.is_err() {
                warn!(
                    "looking at {} failed by a fault in the relay itself; please report it",
                    self.files.certificate_file.display()
                );
            }
        }
    }

    /// Takes the pair in the files into force if it is another than last time and can be used.
    pub fn look(&self) {
        let looked = Pair::read(&self.files);
        // Files that cannot be read are tried again each time, and spoken of once.
        let digest = looked.as_ref().map_or(UNREADABLE, Pair::digest);
        if *self.tried.read().unwrap_or_else(PoisonError::into_inner) == digest {
            return;
        }
        let taken = looked.and_then(|pair| pair.certified(&self.files));
        let is_usable = taken.is_ok();
        match taken {
            Ok((certified, expiry)) => {
                *self.in_force.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
                self.show_expiry(expiry);
                info!("the certificate of the public port is renewed from {}", self.files.certificate_file.display());
            }
            Err(error) => warn!("{error}; the certificate before it stays in force"),
        }
        *self.tried.write().unwrap_or_else(PoisonError::into_inner) = digest;
        self.metrics.accounts.reloaded("ingress.tls", is_usable);
    }

    /// The certificate in force.
    #[cfg(test)]
    pub fn end_entity(&self) -> CertificateDer<'static> {
        self.in_force.0.read().unwrap_or_else(PoisonError::into_inner).cert[0].clone()
    }

    fn show_expiry(&self, expiry: i64) {
        self.metrics.accounts.certificate_expiry.with_label_values(&["ingress"]).set(expiry as f64);
    }
}

/// What `work` gives, unless the connection is told to go before.
async fn unless_ordered<T>(work: impl Future<Output = T>, watched: &Watched) -> Result<T, Option<Malformed>> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => watched.poll_order(cx).map(|_| Err(None)),
    })
    .await
}

/// Who connects and goes, as a balancer's probe does, has done nothing wrong.
fn malformed(error: io::Error) -> Option<Malformed> {
    error.get_ref().is_some_and(|error| error.is::<rustls::Error>()).then_some(Malformed::NotTls)
}

/// The two files as they were read.
struct Pair {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Pair {
    fn read(files: &config::Tls) -> io::Result<Self> {
        let certificate =
            read(&files.certificate_file).map_err(|error| about("certificate_file", &files.certificate_file, error))?;
        let key =
            read(&files.private_key_file).map_err(|error| about("private_key_file", &files.private_key_file, error))?;
        Ok(Self { certificate, key: Zeroizing::new(key) })
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::new().chain_update(&self.certificate).chain_update([0]).chain_update(&*self.key).finalize().into()
    }

    /// The pair as rustls wants it, and when its certificate ends, in seconds since 1970. Fails unless the key belongs to the certificate.
    fn certified(&self, files: &config::Tls) -> io::Result<(CertifiedKey, i64)> {
        let of_certificate = |error: String| about("certificate_file", &files.certificate_file, error);
        let of_key = |error: String| about("private_key_file", &files.private_key_file, error);
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| of_certificate(error.to_string()))?;
        let first = chain.first().ok_or_else(|| of_certificate("it holds no PEM certificate".into()))?;
        let expiry = certificate::end(first).map_err(of_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| of_key(error.to_string()))?;
        let certified =
            CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| of_key(error.to_string()))?;
        Ok((certified, expiry))
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut content)?;
    Ok(content)
}

fn about(key: &str, path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("cannot use {} (ingress.tls.{key}): {error}", path.display()))
}
