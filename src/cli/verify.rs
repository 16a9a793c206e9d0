//! `verify`: whether a signature is right, and if not, why.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::sign::{read_body, read_secret};
use super::{healthcheck, print};
use crate::authenticate::diagnose::{Candidate, Evidence, diagnose};
use crate::authenticate::{NamedSecret, load_secrets};
use crate::clock::Timestamp;
use crate::config::Config;

/// For a secret that no account has: `accounts.NAME.tolerance`'s default.
const TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// What is asked: `--body`, `--timestamp`, `--signature`, `--secret-file`, `--fresh`, and the configuration if there is one.
pub struct Question<'a> {
    /// `-` is stdin.
    pub body: &'a Path,
    pub timestamp: &'a str,
    pub signature: &'a str,
    /// Then only this secret counts, and the configured ones only help to explain.
    pub secret_file: Option<&'a Path>,
    pub config: Option<&'a Config>,
    pub fresh: bool,
}

/// What to say to a person.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Lines for stdout.
    pub text: String,
    /// Lines for stderr: secrets that could not be used.
    pub notices: Vec<String>,
    /// Exit code 0: the signature matches, and if `fresh` was asked for, the timestamp is within the tolerance.
    pub right: bool,
}

/// Answers with the age of a right signature, or with all that is found to be wrong.
///
/// # Errors
/// One line that says which file cannot be read, or that there is no secret to try.
pub fn verify(question: &Question, now: Timestamp) -> Result<Answer, String> {
    let body = read_body(question.body)?;
    let given = question.secret_file.map(|path| read_secret(path).map(|secret| (path, secret))).transpose()?;
    let accounts = question.config.map_or(&[][..], |config| &config.accounts);
    let loaded: Vec<_> = accounts.iter().map(|account| (account, load_secrets(account))).collect();

    let mut candidates = Vec::new();
    if let Some((path, secret)) = &given {
        let name = format!("secret in {}", path.display());
        candidates.push(Candidate { name, secret, tolerance: TOLERANCE, counts: true });
    }
    for (account, (secrets, _)) in &loaded {
        for NamedSecret { label, secret } in secrets {
            let name = format!("secret {label} of account {}", account.name);
            candidates.push(Candidate { name, secret, tolerance: account.tolerance, counts: given.is_none() });
        }
    }
    // Where a secret was asked for by name, what is wrong with others is beside the point.
    let reports = loaded.iter().filter(|_| given.is_none()).flat_map(|(_, (_, reports))| reports);
    let notices: Vec<String> = reports.map(ToString::to_string).collect();
    if candidates.is_empty() {
        let mut problem = "there is no secret to verify with: give --secret-file FILE".to_owned();
        notices.iter().for_each(|notice| problem.extend(["\n", notice]));
        return Err(problem);
    }

    let evidence = Evidence {
        timestamps: vec![question.timestamp.trim().as_bytes()], // HTTP takes white space off as well.
        signatures: vec![question.signature.trim().as_bytes()],
        body: &body,
        received_at: now,
    };
    let diagnosis = diagnose(&evidence, &candidates, usize::MAX);
    let right = diagnosis.signed_with.is_some() && (diagnosis.fresh || !question.fresh);
    Ok(Answer { text: diagnosis.to_string(), notices, right })
}

/// Prints what the running relay knows of its newest refused request, and of the newest of each other account and kind of cause: the diagnosis, never a body.
/// False if there is one.
///
/// # Errors
/// The relay's admin port does not answer, or not as this version does.
pub fn last(admin: SocketAddr) -> Result<bool, String> {
    let status = healthcheck::status(admin)?;
    let Some(refused) = status.get("last_refused").filter(|refused| refused.is_object()) else {
        print(b"The running relay has refused no webhook since its start.\n")?;
        return Ok(true);
    };
    let earlier = refused["earlier"].as_array().into_iter().flatten();
    let mut lines = String::new();
    for refused in std::iter::once(refused).chain(earlier) {
        let text = |key: &str| refused[key].as_str().unwrap_or("?");
        let separator = if lines.is_empty() { "" } else { "\n" };
        lines += &format!("{separator}{} {} {}\n", text("at"), text("account"), text("reason"));
        for cause in refused["diagnosis"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            lines.push_str(cause);
            lines.push('\n');
        }
    }
    print(lines.as_bytes())?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config;

    const BODY: &str = r#"{"event":"test","pbx_id":"test_000000"}"#;
    const SIGNATURE: &str = "c7f86e4e9314998cde8f1113e20ce9cd37ba170778263fffe81b7c6d6e1dde92";

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, content).unwrap();
            path
        }

        fn config(&self) -> Config {
            let account = |name: &str, tolerance| config::Account {
                name: config::Name::new(name).unwrap(),
                path: format!("/{name}"),
                secrets: Some(self.0.path().join(name)),
                environment_secret: None,
                tolerance: Duration::from_secs(tolerance),
                journal_max: None,
                keep_refused: 0,
            };
            crate::authenticate::config_for_test(vec![account("lyon", 600), account("paris", 60)])
        }
    }

    fn at(seconds_after_signing: i64) -> Timestamp {
        Timestamp::from_seconds(1_736_937_000 + seconds_after_signing)
    }

    #[test]
    fn a_signature_is_right_whatever_its_age_unless_it_is_to_be_fresh() {
        let files = Files::new();
        let (body, secret) = (files.write("body", BODY), files.write("secret", "example-secret\n"));
        let check = |fresh, now, right, says: &str| {
            let question = Question {
                body: &body,
                timestamp: " 1736937000",
                signature: SIGNATURE,
                secret_file: Some(&secret),
                config: None,
                fresh,
            };
            let answer = verify(&question, now).unwrap();
            assert_eq!(answer.right, right, "{answer:?}");
            assert!(
                answer.text.contains("The signature is right: secret in ") && answer.text.contains(says),
                "{answer:?}"
            );
        };
        check(true, at(42), true, "signed at 2025-01-15T10:30:00Z, 42 s ago.");
        check(false, at(3 * 86400), true, "3 d ago.");
        check(true, at(3 * 86400), false, "outside the tolerance of 5 min, 3 d ago");
        check(true, at(-301), false, "5 min 1 s ahead");
    }

    #[test]
    fn the_configured_secrets_are_tried_with_their_own_tolerance() {
        let files = Files::new();
        let body = files.write("body", BODY);
        files.write("lyon/sipsim", "other");
        files.write("lyon/empty", "");
        files.write("paris/new", "example-secret");
        let config = files.config();
        let ask = |signature: &str, secret_file: Option<&Path>, now| {
            let question = Question {
                body: &body,
                timestamp: "1736937000",
                signature,
                secret_file,
                config: Some(&config),
                fresh: true,
            };
            verify(&question, now).unwrap()
        };
        let answer = ask(SIGNATURE, None, at(60));
        assert!(answer.right && answer.text.contains("right: secret new of account paris."), "{answer:?}");
        assert!(answer.notices.iter().any(|notice| notice.contains("lyon/empty is empty")), "{answer:?}");
        assert!(!ask(SIGNATURE, None, at(61)).right);

        let answer = ask(&"0".repeat(64), None, at(0));
        assert!(
            !answer.right
                && answer.text.contains("No secret fits (secret sipsim of account lyon, secret new of account paris)"),
            "{answer:?}"
        );

        // Asked for one, the others only explain.
        let other = files.0.path().join("lyon/sipsim");
        let answer = ask(SIGNATURE, Some(&other), at(0));
        assert!(!answer.right && answer.text.contains("signed with the secret new of account paris"), "{answer:?}");
        assert_eq!(answer.notices, [""; 0]);
    }

    #[test]
    fn what_cannot_be_asked_is_said() {
        let files = Files::new();
        let body = files.write("body", BODY);
        let ask = |body: &Path, secret_file: Option<&Path>, config: Option<&Config>| {
            let question = Question { body, timestamp: "1", signature: "x", secret_file, config, fresh: false };
            verify(&question, at(0)).unwrap_err()
        };
        assert_eq!(ask(&body, None, None), "there is no secret to verify with: give --secret-file FILE");
        assert!(ask(&body, None, Some(&files.config())).contains("/lyon cannot be read"));
        assert!(ask(&files.0.path().join("absent"), None, None).contains("the body "));
        assert!(ask(&body, Some(&files.0.path().join("absent")), None).contains("the secret file "));
    }
}
