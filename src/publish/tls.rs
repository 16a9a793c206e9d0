//! How our own clients (not librdkafka) speak TLS: whom they trust, the certificate that they show, and what their errors mean.

use std::io::{self, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::one_line;
use crate::config;
use crate::secret::Secret;

/// For connecting, and for each part of the handshake, where one is tried only to learn why it fails.
const TRY_MAX: Duration = Duration::from_secs(2);

/// The files that a configuration names.
pub(crate) struct Files<'a> {
    /// What stands before the keys' names in messages: `security.`, or nothing.
    pub section: &'static str,
    pub ca: Option<&'a Path>,
    pub certificate: Option<&'a Path>,
    pub private_key: Option<&'a Path>,
}

/// Trusts the authorities of `ca`, or else the system's, and shows the certificate if there is one. The error names key and file.
pub(crate) fn client(files: &Files<'_>) -> Result<ClientConfig, String> {
    let section = files.section;
    let mut roots = RootCertStore::empty();
    match files.ca {
        Some(path) => {
            for certificate in certificates(section, "ca_file", path)? {
                roots.add(certificate).map_err(|error| format!("{section}ca_file {}: {error}", path.display()))?;
            }
        }
        None => {
            let system = rustls_native_certs::load_native_certs();
            // Some systems carry certificates that rustls cannot read; the others serve.
            let (usable, _) = roots.add_parsable_certificates(system.certs);
            if usable == 0 {
                return Err(format!("this system has no usable CA certificates; set {section}ca_file"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots);
    match (files.certificate, files.private_key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(section, "certificate_file", certificate)?;
            let bytes = Secret::read(key)
                .map_err(|error| format!("{section}private_key_file {} cannot be read: {error}", config::shown(key)))?;
            let private = PrivateKeyDer::from_pem_slice(bytes.expose())
                .map_err(|_| format!("{section}private_key_file {} holds no private key in PEM", key.display()))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| {
                let (certificate, key) = (certificate.display(), key.display());
                format!("{section}certificate_file {certificate} and {section}private_key_file {key}: {error}")
            })
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(_), None) => Err(format!("{section}certificate_file needs {section}private_key_file beside it")),
        (None, Some(_)) => Err(format!("{section}private_key_file needs {section}certificate_file beside it")),
    }
}

fn certificates(section: &str, key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("{section}{key} {} cannot be read: {error}", path.display()))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{section}{key} {} is not PEM: {error}", path.display()))?;
    if certificates.is_empty() {
        return Err(format!("{section}{key} {} holds no certificate in PEM", path.display()));
    }
    Ok(certificates)
}

/// What is wrong, and what to do.
pub(crate) fn explain(error: &rustls::Error) -> String {
    use rustls::CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext, UnknownIssuer,
    };
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage};
    match error {
        // A bad signature: the authority that is trusted has the right name and another key.
        InvalidCertificate(UnknownIssuer | BadSignature) => {
            "its certificate comes from an authority that is not trusted here; set ca_file to that authority's".into()
        }
        InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "its certificate is for another host name than the configured one".into()
        }
        InvalidCertificate(Expired | ExpiredContext { .. }) => "its certificate has expired".into(),
        InvalidMessage(_) => "no TLS is spoken there; is it the broker's TLS port?".into(),
        AlertReceived(alert) => format!("it refused TLS ({alert:?}); it may want a client certificate"),
        _ => format!("TLS failed: {}", one_line(&error.to_string())),
    }
}

/// As [`explain`], if that is what the error is.
pub(crate) fn explain_io(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(explain)
}

/// Shakes hands with `HOST:PORT` and says nothing after it: why that fails. `None` if it does not, or not by TLS. Blocks, for some seconds at most.
pub(crate) fn try_handshake(address: &str, files: &Files<'_>) -> Option<String> {
    let config = match client(files) {
        Ok(config) => config,
        Err(detail) => return Some(detail),
    };
    let host = address.rsplit_once(':')?.0.trim_matches(['[', ']']).to_owned();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(host).ok()?).ok()?;
    let to = address.to_socket_addrs().ok()?.next()?;
    let stream = TcpStream::connect_timeout(&to, TRY_MAX).ok()?;
    stream.set_read_timeout(Some(TRY_MAX)).ok()?;
    stream.set_write_timeout(Some(TRY_MAX)).ok()?;
    // In TLS 1.3 a certificate of ours that the other side misses or does not like shows only when we read.
    StreamOwned::new(connection, stream).read(&mut [0]).err().as_ref().and_then(explain_io)
}
