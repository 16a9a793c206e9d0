//! `sign`: the two header lines that SIPSIM would send with a body.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::authenticate;
use crate::clock::Timestamp;
use crate::secret::Secret;

/// Far above `ingress.body_max`'s default; what is larger is the wrong file. Bytes.
const BODY_MAX: u64 = 256 << 20;

/// The header lines for this body, timestamp first. `timestamp` is signed as it is written; without one, `now`.
///
/// # Errors
/// One line that names the file that cannot be read, is empty where a secret is wanted, or the timestamp that no relay would take.
pub fn sign(secret_file: &Path, body: &Path, timestamp: Option<&str>, now: Timestamp) -> Result<String, String> {
    let timestamp = timestamp.map_or_else(|| now.as_seconds().to_string(), str::to_owned);
    if !(1..=12).contains(&timestamp.len()) || !timestamp.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("--timestamp {timestamp}: give Unix time in seconds, 1 to 12 digits"));
    }
    let secret = read_secret(secret_file)?;
    let body = read_body(body)?;
    let signature = authenticate::sign(&secret, &timestamp, &body);
    Ok(format!("X-Webhook-Timestamp: {timestamp}\nX-Webhook-Signature: {signature}\n"))
}

/// A secret's file, white space around it trimmed as the relay does.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    let secret = Secret::read(path).map_err(|error| format!("the secret file {}: {error}", path.display()))?;
    match secret.is_empty() {
        true => Err(format!("the secret file {} is empty; write the signing secret into it", path.display())),
        false => Ok(secret),
    }
}

/// A body to the byte, from a file or, as `-`, from stdin.
pub fn read_body(path: &Path) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(BODY_MAX + 1).read_to_end(&mut body),
        false => File::open(path).and_then(|file| file.take(BODY_MAX + 1).read_to_end(&mut body)),
    };
    match read {
        Ok(bytes) if bytes as u64 > BODY_MAX => {
            Err(format!("the body {} is larger than {} MiB; no webhook is", path.display(), BODY_MAX >> 20))
        }
        Ok(_) => Ok(body),
        Err(error) => Err(format!("the body {}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_prints_the_two_headers_of_the_protocols_vector() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, body) = (folder.path().join("secret"), folder.path().join("body"));
        std::fs::write(&secret, "example-secret\n").unwrap();
        std::fs::write(&body, r#"{"event":"test","pbx_id":"test_000000"}"#).unwrap();
        let lines = "X-Webhook-Timestamp: 1736937000\n\
                     X-Webhook-Signature: c7f86e4e9314998cde8f1113e20ce9cd37ba170778263fffe81b7c6d6e1dde92\n";
        assert_eq!(sign(&secret, &body, Some("1736937000"), Timestamp::from_seconds(7)), Ok(lines.to_owned()));
        assert_eq!(sign(&secret, &body, None, Timestamp::from_micros(1_736_937_000_999_999)), Ok(lines.to_owned()));
    }

    #[test]
    fn what_cannot_be_signed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, absent) = (folder.path().join("empty"), folder.path().join("absent"));
        std::fs::write(&empty, "\n").unwrap();
        let check = |secret: &Path, body: &Path, timestamp, says: &str| {
            let error = sign(secret, body, timestamp, Timestamp::from_seconds(7)).unwrap_err();
            assert!(error.contains(says), "{error}");
        };
        check(&absent, &empty, None, "absent: No such file");
        check(&empty, &empty, None, "empty; write the signing secret");
        check(&empty, &empty, Some("-5"), "--timestamp -5: give Unix time in seconds");
        check(&empty, &empty, Some("1736937000000"), "1 to 12 digits");
    }
}
