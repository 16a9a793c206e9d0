//! Why refused requests were refused: looked into in the background, at most one a second, and shown on the status page, in the log, and by `verify --last`.
//! Never a byte of a body, a signature or a secret.
//!
//! Strangers choose most of what is looked into here, so that one account's or one cause's requests displace only each other: a request that one of our
//! secrets has to do with keeps its place beside any number of forged ones.

use std::collections::{HashMap, VecDeque};
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

/// Larger bodies are not searched.
const BODY_MAX: usize = 64 << 10;
/// Bytes that are hashed for one request: three secrets' worth of a body of `BODY_MAX`, each with all changes that are tried.
pub(super) const WORK_MAX: usize = 16 << 20;
/// Between two looks, so that a flood costs one a second.
const PAUSE: Duration = Duration::from_secs(1);
/// A cause that goes on is logged again after this time.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// What is known of one refused request.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub account: AccountName,
    pub at: Timestamp,
    pub reason: Refused,
    /// The kind of cause, of a closed set.
    pub kind: &'static str,
    /// What is wrong, the plainest first.
    pub causes: Vec<String>,
}

#[derive(Default)]
pub(super) struct Explainer {
    /// Of each account and reason the newest request that was not looked into yet; those whose account and reason came first are the next.
    waiting: Mutex<VecDeque<Request>>,
    came: Notify,
    /// Of each account and kind of cause the newest one, the newest first.
    explained: Mutex<Vec<Explanation>>,
    /// When each account's kind of cause was logged last.
    logged: Mutex<HashMap<(AccountName, &'static str), Timestamp>>,
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
    /// Has a refused request looked into when its turn comes, unless a newer one of its account and reason comes before that. Returns at once.
    pub fn explain(
        self: &Arc<Self>,
        account: &Arc<Account>,
        headers: &HeaderMap,
        body: Option<Bytes>,
        reason: Refused,
        now: Timestamp,
    ) {
        // A copy: the body itself counts in `ingress.buffered_max` until it is gone, and what waits here must not take that from genuine events.
        let body = body.filter(|body| body.len() <= BODY_MAX).map(|body| Bytes::copy_from_slice(&body));
        let (account, headers) = (Arc::clone(account), headers.clone());
        let request = Request { account, headers, body, reason, at: now };
        let mut waiting = lock(&self.explainer.waiting);
        match waiting.iter_mut().find(|other| Arc::ptr_eq(&other.account, &request.account) && other.reason == reason) {
            Some(older) => *older = request,
            None => waiting.push_back(request),
        }
        drop(waiting);
        self.explainer.came.notify_one();
    }

    /// Looks into what [`Accounts::explain`] is given, without end.
    pub async fn look_into_refused(self: Arc<Self>) {
        loop {
            let accounts = Arc::clone(&self);
            // A look that panicked has no result; the next request gets its own.
            match tokio::task::spawn_blocking(move || accounts.look_into_next()).await {
                Ok(false) => self.explainer.came.notified().await,
                Ok(true) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Of each account and kind of cause the newest refused request that was looked into, the newest first.
    pub fn explanations(&self) -> Vec<Explanation> {
        lock(&self.explainer.explained).clone()
    }

    /// False if no request waits.
    pub(super) fn look_into_next(&self) -> bool {
        let next = lock(&self.explainer.waiting).pop_front();
        next.map(|request| self.look_into(request)).is_some()
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
        let evidence = Evidence::of(&headers, body.as_deref().unwrap_or_default(), at);
        let mut diagnosis = diagnose(&evidence, &candidates, WORK_MAX);
        if body.is_none() {
            // Without its body nothing can be said of a request but what its headers show.
            diagnosis.findings.retain(|finding| !finding.is_unexplained() && *finding != Finding::BodyEmpty);
        }
        let findings = &diagnosis.findings;
        // Anybody can make a request with a cause in its headers, so that this is the kind only of one that a secret has to do with.
        let kind = findings.iter().find(|finding| finding.is_unexplained()).or(findings.first()).map(Finding::kind);
        let (kind, causes) = match kind {
            Some(kind) => (kind, findings.iter().map(ToString::to_string).collect()),
            None => {
                let (kind, cause) = unseen(diagnosis.signed_with);
                (kind, vec![cause])
            }
        };
        let explanation = Explanation { account: account.name.clone(), at, reason, kind, causes };
        if reason == Refused::BadSignature && diagnosis.fresh {
            self.log_cause(&explanation);
        }
        let mut explained = lock(&self.explainer.explained);
        explained.retain(|other| other.account != account.name || other.kind != kind);
        explained.insert(0, explanation);
    }

    /// Each kind of cause is logged once a minute an account.
    fn log_cause(&self, explanation: &Explanation) {
        let Explanation { account, at, kind, causes, .. } = explanation;
        let mut logged = lock(&self.explainer.logged);
        if logged.get(&(account.clone(), *kind)).is_some_and(|before| before.abs_diff(*at) < LOG_AGAIN) {
            return;
        }
        logged.insert((account.clone(), *kind), *at);
        drop(logged);
        warn!(account.name = %account, cause = *kind, "a signature of account {account} is wrong; the likely cause: {}", causes.join(" "));
    }
}

/// What is to be said of a request that shows nothing wrong: the files have a secret that was not in force when it came, or its body would
/// have to be looked at.
fn unseen(signed_with: Option<String>) -> (&'static str, String) {
    match signed_with {
        Some(name) => (
            "secret_not_read_yet",
            format!(
                "It is signed with the {name}, which the relay had not read yet. Nothing is to be done: it does within seconds, and tries what it refused again (keep_refused)."
            ),
        ),
        None => (
            "body_not_searched",
            format!(
                "The two headers look right, and bodies over {} KiB are not searched here: give this one to `sipsim-relay verify`.",
                BODY_MAX >> 10
            ),
        ),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
