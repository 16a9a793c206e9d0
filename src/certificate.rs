//! When a certificate ends. rustls keeps the date to itself until it refuses the certificate for it, and so is asked about a time past them all.

use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};
use rustls_pki_types::{CertificateDer, UnixTime};

/// The last second in which it is valid, in seconds since 1970. The error says why it cannot be read.
pub fn end(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let never = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    // The time is checked before the issuer, so that no authority has to be known.
    let verdict = ParsedCertificate::try_from(certificate).and_then(|parsed| {
        verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], never, &[])
    });
    match verdict {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            i64::try_from(not_after.as_secs()).map_err(|_| "its end is out of range".to_owned())
        }
        Err(Error::InvalidCertificate(why)) => Err(format!("it is no usable X.509 certificate: {why}")),
        Err(error) => Err(error.to_string()),
        Ok(()) => Err("it has no end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_read_in_either_form_of_a_date_and_whoever_signed_it() {
        // Years before 2050 are written with two digits.
        for (year, seconds) in
            [(1999, 915_148_800), (2049, 2_493_072_000), (2050, 2_524_608_000), (4096, 67_090_118_400)]
        {
            let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            parameters.not_before = rcgen::date_time_ymd(1990, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
            let made = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            assert_eq!(end(made.der()), Ok(seconds), "{year}");
        }
        let broken = end(&CertificateDer::from_slice(b"no certificate")).unwrap_err();
        assert!(broken.starts_with("it is no usable X.509 certificate"), "{broken}");
    }
}
