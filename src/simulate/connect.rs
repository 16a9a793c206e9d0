//! Connections to the target, plain or TLS, and what stands in the way of one, in words.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Target;
use super::http::Connection;
use crate::certificate;

/// A plain or a TLS stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Seconds since 1970; 0 until a certificate was seen.
    certificate_ends: AtomicI64,
}

impl Connector {
    /// Reads the certificates to trust, from `ca_file` or the system; the error names the file, or the option to give. Connects nowhere yet.
    pub fn new(target: &Target, ca_file: Option<&Path>) -> Result<Self, String> {
        let tls = match target.tls {
            true => Some((TlsConnector::from(Arc::new(client_config(ca_file)?)), server_name(&target.host)?)),
            false => None,
        };
        Ok(Self { host: target.host.clone(), port: target.port, tls, certificate_ends: AtomicI64::new(0) })
    }

    /// One connection, ready for requests. The caller sets the deadline. The error is one line, with what to do about it where that is known.
    pub async fn connect(&self) -> Result<Connection<Box<dyn Stream>>, String> {
        let plain =
            TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| self.no_connection(&error))?;
        // Else the kernel may hold a request's last packet back for an acknowledgement.
        plain.set_nodelay(true).map_err(|error| self.no_connection(&error))?;
        let Some((connector, name)) = &self.tls else {
            return Ok(Connection::new(Box::new(plain)));
        };
        let stream = connector.connect(name.clone(), plain).await.map_err(|error| self.no_tls(&error))?;
        let ends = stream.get_ref().1.peer_certificates().and_then(|chain| certificate::end(chain.first()?).ok());
        self.certificate_ends.store(ends.unwrap_or(0), Ordering::Relaxed);
        Ok(Connection::new(Box::new(stream)))
    }

    /// When the server's certificate ends, in seconds since 1970; `None` without TLS, or before a first connection.
    pub fn certificate_ends(&self) -> Option<i64> {
        Some(self.certificate_ends.load(Ordering::Relaxed)).filter(|ends| *ends != 0)
    }

    fn no_connection(&self, error: &io::Error) -> String {
        let place = format!("{}:{}", self.host, self.port);
        match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("cannot connect to {place}: nothing listens there (is the relay running?)")
            }
            _ => format!("cannot connect to {place}: {error}"),
        }
    }

    fn no_tls(&self, error: &io::Error) -> String {
        use rustls::Error::{InvalidCertificate, InvalidMessage};
        let host = &self.host;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            // A bad signature: an authority of the same name as a trusted one, as when a test authority was made anew.
            Some(InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => format!(
                "{host}'s certificate comes from nobody who is trusted here; if it is your own, give its authority with --ca-file (SIPSIM would refuse it)"
            ),
            Some(InvalidCertificate(why)) => format!("SIPSIM would refuse {host}'s certificate: {why}"),
            Some(InvalidMessage(_)) => {
                format!("{host}:{} does not speak TLS; is it http:// rather than https://?", self.port)
            }
            _ => format!("no TLS with {host}:{}: {error}", self.port),
        }
    }
}

fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let unusable = |error: &dyn std::fmt::Display| format!("--ca-file {}: {error}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))? {
                let certificate = certificate.map_err(|error| unusable(&error))?;
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it holds no certificate in PEM"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "this system has no trusted certificates: install ca-certificates, or give --ca-file".to_owned()
                );
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is neither a host name nor an address"))
}
