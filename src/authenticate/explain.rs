//! Why the newest refused request was refused: tried in the background, at most once a second, and shown on the status page, in the log, and
//! by `verify --last`. Never a byte of a body, a signature or a secret.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use tokio::sync::Notify;
use tracing::warn;

use super::accounts::{Account, Accounts};
use super::diagnose::{Candidate, Evidence, Finding, diagnose};
use super::{NamedSecret, Refused, load_secrets};
use crate::clock::Timestamp;
use crate::config::AccountName;

/// Larger bodies are not searched: some two hundred hashes of this are a few hundredths of a second.
const BODY_MAX: usize = 64 << 10;
/// Between two looks, so that a flood costs one a second.
const PAUSE: Duration = Duration::from_secs(1);

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
    /// The newest request that nobody has looked into yet; a newer one takes its place, so that the last word is on the last request.
    waiting: Mutex<Option<Request>>,
    came: Notify,
    newest: Mutex<Option<Explanation>>,
    logged: Mutex<Option<String>>,
}

/// What was refused, as much of it as is looked at.
struct Request {
    account: Arc<Account>,
    headers: HeaderMap,
    /// `None` if it was not read, or is too large to be searched.
    body: Option<Bytes>,
    reason: Refused,
    at: Timestamp,
}

impl Accounts {
    /// Has a refused request looked into: at once, or a second after the look before if no newer one comes until then. Returns at once.
    pub fn explain(
        self: &Arc<Self>,
        account: &Arc<Account>,
        headers: &HeaderMap,
        body: Option<Bytes>,
        reason: Refused,
        now: Timestamp,
    ) {
        let body = body.filter(|body| body.len() <= BODY_MAX);
        let (account, headers) = (Arc::clone(account), headers.clone());
        *lock(&self.explainer.waiting) = Some(Request { account, headers, body, reason, at: now });
        self.explainer.came.notify_one();
    }

    /// Looks into what [`Accounts::explain`] is given, without end.
    pub async fn look_into_refused(self: Arc<Self>) {
        loop {
            self.explainer.came.notified().await;
            let Some(request) = lock(&self.explainer.waiting).take() else { continue };
            let accounts = Arc::clone(&self);
            // A look that panicked has no result; the next request gets its own.
            let _ = tokio::task::spawn_blocking(move || accounts.look_into(request)).await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The newest refused request that was looked into, if any was refused.
    pub fn newest_explanation(&self) -> Option<Explanation> {
        lock(&self.explainer.newest).clone()
    }

    fn look_into(&self, request: Request) {
        let Request { account, headers, body, reason, at } = request;
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
        let diagnosis = diagnose(&Evidence::of(&headers, body.as_deref().unwrap_or_default(), at), &candidates);
        // Without its body nothing can be said of a request but what its headers show.
        let of_headers =
            |finding: &&Finding| body.is_some() || !matches!(finding, Finding::BodyEmpty | Finding::NoSecretFits(_));
        let mut causes: Vec<String> = diagnosis.findings.iter().filter(of_headers).map(ToString::to_string).collect();
        if causes.is_empty() {
            causes.push(unseen(diagnosis.signed_with));
        }
        if reason == Refused::BadSignature && diagnosis.fresh {
            self.log_cause(&account.name, &causes);
        }
        let explanation = Explanation { account: account.name.clone(), at, reason, causes };
        *lock(&self.explainer.newest) = Some(explanation);
    }

    /// The same cause is logged once, until there is another.
    fn log_cause(&self, account: &AccountName, causes: &[String]) {
        let text = causes.join(" ");
        let mut logged = lock(&self.explainer.logged);
        if logged.as_ref() != Some(&text) {
            warn!(account.name = %account, "a signature of account {account} is wrong; the likely cause: {text}");
            *logged = Some(text);
        }
    }
}

/// What is to be said of a request that shows nothing wrong: the files have a secret that was not in force when it came, or its body would
/// have to be looked at.
fn unseen(signed_with: Option<String>) -> String {
    match signed_with {
        Some(name) => format!(
            "It is signed with the {name}, which the relay had not read yet. Nothing is to be done: it does within seconds, and tries what it refused again (keep_refused)."
        ),
        None => format!(
            "The two headers look right, and bodies over {} KiB are not searched here: give this one to `sipsim-relay verify`.",
            BODY_MAX >> 10
        ),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
