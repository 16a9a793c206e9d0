//! `verify`: whether a signature is right, and if not, why.

use std::path::Path;
use std::time::Duration;

use super::sign::{read_body, read_secret};
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
    let diagnosis = diagnose(&evidence, &candidates);
    let right = diagnosis.signed_with.is_some() && (diagnosis.fresh || !question.fresh);
    Ok(Answer { text: diagnosis.to_string(), notices, right })
}
