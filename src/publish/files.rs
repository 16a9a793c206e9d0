//! Watches the files that outputs name, for the metrics: when their certificates end, and whether all of them can be used.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tracing::warn;

use super::aside::Aside;
use super::tls;
use crate::certificate;
use crate::config::{Output, OutputKind};
use crate::metrics::Metrics;
use crate::secret::PasswordSource;

/// How often they are read.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long that may take before they count as unusable.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Looks until the other end of `stop` is dropped. Blocks.
pub(super) fn watch(outputs: &[Output], metrics: &Arc<Metrics>, stop: &Receiver<()>) {
    let mut looks: Vec<_> = outputs.iter().map(|output| (output, Aside::default(), None)).collect();
    loop {
        for (output, under_way, said) in &mut looks {
            let (of, shown) = (output.clone(), Arc::clone(metrics));
            let trouble = match under_way.ask(LOOK_MAX, move || look(&of, &shown)) {
                Some(looked) => looked.err(),
                None => Some(
                    "reading them takes longer than 5 s, or could not begin; is one on a network mount that hangs?"
                        .to_owned(),
                ),
            };
            metrics.accounts.reloaded(&format!("outputs.{}", output.name), trouble.is_none());
            // Once for each trouble; what it does to the output, the output says.
            if let Some(detail) = trouble.as_ref().filter(|detail| said.as_ref() != Some(*detail)) {
                warn!(output = %output.name, "a file of this output cannot be used: {detail}");
            }
            *said = trouble;
        }
        if stop.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// The error names key and file.
fn look(output: &Output, metrics: &Metrics) -> Result<(), String> {
    let (section, certificate, private_key, ca, secrets): (&str, _, _, _, Vec<(&str, &PasswordSource)>) =
        match &output.kind {
            OutputKind::Kafka(kafka) => {
                let security = &kafka.security;
                let secrets = vec![
                    ("security.password_file", &security.password),
                    ("security.client_secret_file", &security.client_secret),
                ];
                let section = "security.";
                (section, &security.certificate_file, &security.private_key_file, &security.ca_file, secrets)
            }
            OutputKind::RabbitMq(rabbit) => {
                let secrets = vec![("password_file", &rabbit.password)];
                ("", &rabbit.certificate_file, &rabbit.private_key_file, &rabbit.ca_file, secrets)
            }
            OutputKind::Console => return Ok(()),
        };
    if let Some(path) = certificate {
        let expiry = expiry(path).map_err(|why| format!("{section}certificate_file {}: {why}", path.display()))?;
        metrics.accounts.certificate_expiry.with_label_values(&[output.name.as_str()]).set(expiry as f64);
    }
    if certificate.is_some() || ca.is_some() {
        tls::client(&tls::Files {
            section: if section.is_empty() { "" } else { "security." },
            ca: ca.as_deref(),
            certificate: certificate.as_deref(),
            private_key: private_key.as_deref(),
        })?;
    }
    for (key, secret) in secrets {
        let read = secret.read().map_err(|error| format!("{key} cannot be read: {error}"))?;
        if read.is_some_and(|secret| secret.is_empty()) {
            return Err(format!("{key} is empty"));
        }
    }
    Ok(())
}

/// When a file's first certificate ends, in seconds since 1970.
fn expiry(path: &Path) -> Result<i64, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let first = CertificateDer::pem_slice_iter(&bytes).next().ok_or("it holds no certificate in PEM")?;
    let first = first.map_err(|error| error.to_string())?;
    certificate::end(&first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Name;
    use crate::publish::topology::tests::{config, rabbit};

    #[test]
    fn the_end_of_a_certificate_shows_and_so_does_a_file_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (folder.path().join("certificate.pem"), folder.path().join("key.pem"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut settings = rabbit("k", &[]);
        (settings.certificate_file, settings.private_key_file) = (Some(certificate.clone()), Some(key.clone()));
        settings.ca_file = Some(certificate);
        let output = Output { name: Name::new("out").unwrap(), kind: OutputKind::RabbitMq(settings) };
        let metrics = Metrics::new(&config(&["default"], &[], vec![]));
        look(&output, &metrics).unwrap();
        // rcgen's default end, the first second of the year 4096.
        assert_eq!(metrics.accounts.certificate_expiry.with_label_values(&["out"]).get(), 67_090_118_400.0);
        std::fs::write(&key, "no key").unwrap();
        let error = look(&output, &metrics).unwrap_err();
        assert!(error.contains("private_key_file"), "{error}");
    }
}
