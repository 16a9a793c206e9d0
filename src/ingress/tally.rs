//! What is counted of each answer, and what the log says of refusals: the first of a kind at once, then how many a minute, so that no
//! sender can fill a log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::IntCounter;
use tracing::{debug, warn};

use super::connection::Malformed;
use super::refusal::Refusal;
use super::registry::lock;
use crate::config::AccountName;
use crate::journal::Receipt;
use crate::metrics::{EVICTED_KINDS, Metrics, OUTCOMES};

pub struct Tally {
    metrics: Arc<Metrics>,
    /// Looked up once: finding a series by its labels for every answer would cost more than counting.
    accounts: HashMap<AccountName, Outcomes>,
    /// By account and reason: how many since the log last spoke of them. Both are closed sets.
    unlogged: Mutex<HashMap<(Option<AccountName>, &'static str), Refused>>,
    /// Evicted connections of which the log has spoken, in the order of [`EVICTED_KINDS`].
    evicted_logged: Mutex<[u64; EVICTED_KINDS.len()]>,
}

/// An account's counters, in the order of [`OUTCOMES`].
struct Outcomes([IntCounter; OUTCOMES.len()]);

impl Outcomes {
    fn count(&self, outcome: &str) {
        if let Some(at) = OUTCOMES.iter().position(|name| *name == outcome) {
            self.0[at].inc();
        }
    }
}

struct Refused {
    count: u64,
    advice: &'static str,
}

impl Tally {
    pub fn new(metrics: Arc<Metrics>, accounts: impl IntoIterator<Item = AccountName>) -> Self {
        let counters = |account: &AccountName| {
            Outcomes(OUTCOMES.map(|outcome| metrics.ingress.webhooks.with_label_values(&[account.as_str(), outcome])))
        };
        let accounts = accounts.into_iter().map(|account| (account.clone(), counters(&account))).collect();
        Self { metrics, accounts, unlogged: Mutex::default(), evicted_logged: Mutex::default() }
    }

    /// Counts one answer. `account` is `None` for what is no webhook.
    pub fn count(&self, account: Option<&AccountName>, taken_in: &Result<Receipt, Refusal>, duration: Duration) {
        let outcome = match taken_in {
            Ok(receipt) if receipt.duplicate => "duplicate",
            Ok(_) => "accepted",
            Err(Refusal::Unavailable(unavailable)) => {
                self.metrics.ingress.unavailable.with_label_values(&[unavailable.reason()]).inc();
                "unavailable"
            }
            Err(refusal @ (Refusal::NotFound | Refusal::Method | Refusal::BadRequest)) => {
                self.metrics.ingress.http_refused.with_label_values(&[refusal.reason()]).inc();
                self.log(account, refusal.reason(), refusal.advice());
                return;
            }
            Err(refusal @ (Refusal::Unproved(_) | Refusal::TooLarge | Refusal::TooSlow)) => refusal.reason(),
        };
        if let Some(outcomes) = account.and_then(|account| self.accounts.get(account)) {
            outcomes.count(outcome);
        }
        self.metrics.ingress.duration.observe(duration.as_secs_f64());
        match (taken_in, account) {
            (Ok(receipt), Some(account)) => {
                debug!(account.name = %account, event.id = %receipt.id, outcome, "answered 200 to a webhook for {account}: {outcome}");
            }
            (Err(refusal), _) => self.log(account, refusal.reason(), refusal.advice()),
            (Ok(_), None) => {} // Only an account accepts.
        }
    }

    /// Counts what never became a request.
    pub fn count_malformed(&self, malformed: Malformed) {
        let (reason, advice) = match malformed {
            Malformed::HeadTooLarge => ("headers", "its headers are over ingress.headers_max, or more than 100"),
            Malformed::NotHttp => {
                ("bad_request", "it is not HTTP/1.1; HTTPS or HTTP/2 sent to a plain port looks like this")
            }
            // No HTTP, so no metric of HTTP.
            Malformed::NotTls => {
                let advice = "its TLS handshake failed: the peer does not trust ingress.tls.certificate_file, or speaks no TLS 1.2 or 1.3";
                return self.log(None, "tls", advice);
            }
        };
        self.metrics.ingress.http_refused.with_label_values(&[reason]).inc();
        self.log(None, reason, advice);
    }

    fn log(&self, account: Option<&AccountName>, reason: &'static str, advice: &'static str) {
        let mut unlogged = lock(&self.unlogged);
        if let Some(refused) = unlogged.get_mut(&(account.cloned(), reason)) {
            refused.count += 1;
            return;
        }
        unlogged.insert((account.cloned(), reason), Refused { count: 0, advice });
        drop(unlogged);
        match account {
            Some(account) => {
                warn!(account.name = %account, reason, "refused a webhook for {account}: {reason}: {advice}; more of these are counted by the minute");
            }
            None => warn!(reason, "refused a request: {reason}: {advice}; more of these are counted by the minute"),
        }
    }

    /// Says what the last minute refused beyond what was logged at once. To be called once a minute.
    pub fn log_minute(&self) {
        // A kind that did not come again is forgotten, so that its next one is logged at once.
        let mut unlogged = lock(&self.unlogged);
        unlogged.retain(|_, refused| refused.count > 0);
        let minute: Vec<_> = unlogged
            .iter_mut()
            .map(|((account, reason), refused)| {
                (account.clone(), *reason, refused.advice, std::mem::take(&mut refused.count))
            })
            .collect();
        drop(unlogged);
        for (account, reason, advice, count) in minute {
            let account = account.as_ref().map_or("-", AccountName::as_str);
            warn!(
                account.name = account,
                reason, count, "refused {count} more within a minute (account {account}): {reason}: {advice}"
            );
        }
    }

    /// Says how many connections were closed in the last minute to make room, by what they were doing. To be called once a minute, with how many
    /// there were so far.
    pub fn log_evicted(&self, evicted: [u64; EVICTED_KINDS.len()]) {
        let before = std::mem::replace(&mut *lock(&self.evicted_logged), evicted);
        let closed = std::array::from_fn(|kind| evicted[kind].saturating_sub(before[kind]));
        let [silent, idle, head, body, handshake]: [u64; EVICTED_KINDS.len()] = closed;
        let count: u64 = closed.iter().sum();
        if count > 0 {
            warn!(
                count,
                silent,
                idle,
                head,
                body,
                handshake,
                "closed {count} connections within a minute to make room for new ones (silent {silent}, idle {idle}, head {head}, body {body}, \
                 handshake {handshake}); if they are not an attack, raise ingress.connections_max and the limit of open files"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::ingress::refusal::Unproved;
    use crate::ingress::tests::configuration;

    /// What was logged since the last look.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn lines(&self) -> Vec<String> {
            String::from_utf8(std::mem::take(&mut *lock(&self.0))).unwrap().lines().map(str::to_owned).collect()
        }
    }

    /// Lets a tally with the account `default` do something, and look at what it logged.
    fn with_tally(work: impl FnOnce(&Tally, &AccountName, &Log)) {
        let config = configuration();
        let account = config.accounts[0].name.clone();
        let tally = Tally::new(Metrics::new(&config), [account.clone()]);
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || work(&tally, &account, &log));
    }

    #[test]
    fn handshakes_that_fail_are_logged_like_refusals_and_are_none_of_http() {
        with_tally(|tally, _, log| {
            (0..1000).for_each(|_| tally.count_malformed(Malformed::NotTls));
            tally.log_minute();
            let lines = log.lines();
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(lines[0].contains("refused a request: tls: its TLS handshake failed"), "{lines:?}");
            assert!(lines[1].contains("refused 999 more within a minute (account -): tls"), "{lines:?}");
            let series = String::from_utf8(tally.metrics.text([])).unwrap();
            assert!(!series.contains("reason=\"tls\""), "{series}");
        });
    }

    #[test]
    fn evictions_are_said_once_a_minute_by_kind() {
        with_tally(|tally, _, log| {
            tally.log_evicted([0; 5]);
            assert!(log.lines().is_empty());
            tally.log_evicted([7, 1, 0, 0, 2]);
            tally.log_evicted([7, 1, 0, 0, 2]);
            tally.log_evicted([8, 1, 0, 0, 2]);
            let lines = log.lines();
            assert_eq!(lines.len(), 2, "{lines:?}");
            let first = "closed 10 connections within a minute to make room for new ones (silent 7, idle 1, head 0, body 0, handshake 2)";
            assert!(lines[0].contains(first), "{lines:?}");
            assert!(lines[1].contains("closed 1 connections within a minute"), "{lines:?}");
        });
    }

    #[test]
    fn a_flood_of_refusals_is_a_line_at_once_and_a_line_a_minute() {
        with_tally(|tally, account, log| {
            let refuse = |refusal| tally.count(Some(account), &Err(refusal), Duration::ZERO);
            let bad_signature = Refusal::Unproved(Unproved::BadSignature);
            (0..1000).for_each(|_| refuse(bad_signature));
            refuse(Refusal::TooLarge);
            let lines = log.lines();
            assert_eq!(lines.len(), 2, "{lines:?}");
            assert!(lines[0].contains("refused a webhook for default: bad_signature: "), "{lines:?}");
            assert!(lines[1].contains("too_large"), "{lines:?}");
            tally.log_minute();
            let lines = log.lines();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(
                lines[0].contains("refused 999 more within a minute (account default): bad_signature"),
                "{lines:?}"
            );
            tally.log_minute();
            assert!(log.lines().is_empty(), "nothing more was refused");
            refuse(bad_signature);
            assert_eq!(log.lines().len(), 1, "after a quiet minute the next one is news again");
            assert_eq!(tally.metrics.ingress.webhooks.with_label_values(&["default", "bad_signature"]).get(), 1001);
        });
    }
}
