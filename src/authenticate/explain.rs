//! Why the newest refused request was refused: tried in the background, at most once a second, and shown on the status page, in the log, and
//! by `verify --last`. Never a byte of a body, a signature or a secret.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::HeaderMap;
use tracing::warn;

use super::accounts::{Account, Accounts};
use super::diagnose::{Candidate, Evidence, Finding, diagnose};
use super::{NamedSecret, Refused, load_secrets};
use crate::clock::Timestamp;
use crate::config::AccountName;

/// Larger bodies are not searched: some two hundred hashes of this are a few hundredths of a second.
const BODY_MAX: usize = 64 << 10;

/// What is known of the newest refused request that was looked into.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub account: AccountName,
    pub at: Timestamp,
    pub reason: Refused,
    /// What is wrong, the plainest first.
    pub causes: Vec<String>,
}

#[derive(Default)]
pub(super) struct Explainer {
    /// The second of the newest look, so that a flood costs one a second.
    looked_at: AtomicI64,
    newest: Mutex<Option<Explanation>>,
    logged: Mutex<Option<String>>,
}

impl Accounts {
    /// Looks into a refused request, unless another one was within the same second. Returns at once.
    pub fn explain(
        self: &Arc<Self>,
        account: &Arc<Account>,
        headers: &HeaderMap,
        body: Option<Bytes>,
        reason: Refused,
        now: Timestamp,
    ) {
        if self.explainer.looked_at.swap(now.as_seconds(), Ordering::Relaxed) == now.as_seconds() {
            return;
        }
        let (accounts, account, headers) = (Arc::clone(self), Arc::clone(account), headers.clone());
        tokio::task::spawn_blocking(move || accounts.look_into(&account, &headers, body.as_deref(), reason, now));
    }

    /// The newest refused request that was looked into, if any was refused.
    pub fn newest_explanation(&self) -> Option<Explanation> {
        self.explainer.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look_into(&self, account: &Account, headers: &HeaderMap, body: Option<&[u8]>, reason: Refused, now: Timestamp) {
        let loaded: Vec<_> = self.all().iter().map(|account| (account, load_secrets(account.config()).0)).collect();
        let mut candidates = Vec::new();
        // One's own secrets first: what they explain is the likelier cause.
        for own in [true, false] {
            for (other, secrets) in loaded.iter().filter(|(other, _)| (other.name == account.name) == own) {
                candidates.extend(secrets.iter().map(|NamedSecret { label, secret }| Candidate {
                    name: format!("secret {label} of account {}", other.name),
                    secret,
                    tolerance: other.tolerance,
                    counts: own,
                }));
            }
        }
        let searched = body.filter(|body| body.len() <= BODY_MAX);
        let diagnosis = diagnose(&Evidence::of(headers, searched.unwrap_or_default(), now), &candidates);
        // Without its body nothing can be said of a request but what its headers show.
        let of_headers = |finding: &&Finding| {
            searched.is_some() || !matches!(finding, Finding::BodyEmpty | Finding::NoSecretFits(_))
        };
        let causes: Vec<String> = diagnosis.findings.iter().filter(of_headers).map(ToString::to_string).collect();
        if reason == Refused::BadSignature && diagnosis.fresh {
            self.log_cause(&account.name, &causes);
        }
        let explanation = Explanation { account: account.name.clone(), at: now, reason, causes };
        *self.explainer.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(explanation);
    }

    /// The same cause is logged once, until there is another.
    fn log_cause(&self, account: &AccountName, causes: &[String]) {
        let text = causes.join(" ");
        let mut logged = self.explainer.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.as_ref() != Some(&text) {
            warn!(account.name = %account, "a signature of account {account} is wrong; the likely cause: {text}");
            *logged = Some(text);
        }
    }
}
