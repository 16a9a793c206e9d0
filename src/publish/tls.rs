//! How our own clients (not librdkafka) speak TLS: whom they trust, and the certificate that they show.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::secret::Secret;

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
                .map_err(|error| format!("{section}private_key_file {} cannot be read: {error}", key.display()))?;
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
