//! What the status page and `/api/v1/status` show. Numbers are those of `/metrics`; nothing of an event's content is here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use serde::Serialize;

use super::health::Health;
use super::pace::{Pace, Sample};
use crate::clock::{Rfc3339, Timestamp, rfc3339_seconds};
use crate::config::{AccountName, OutputName};
use crate::journal::OutputRow;
use crate::metrics::{Metrics, OUTCOMES, UNAVAILABLE_REASONS};
use crate::publish::{OutputStatus, Outputs};

/// The newest refused request's diagnosis, without its body, and as `earlier` that of each other account and kind of cause; a JSON object, or nothing was refused yet.
pub type LastRefused = Arc<dyn Fn() -> Option<serde_json::Value> + Send + Sync>;

/// All that the admin port reads from. It changes nothing.
pub struct Sources {
    pub instance: String,
    pub started_at: Timestamp,
    pub accounts: Vec<AccountName>,
    /// Bytes on the journal's disk at which accepting stops.
    pub journal_free_min: u64,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    pub pace: Pace,
    /// Each output's place and counts in the journal, all of one moment.
    pub rows: Arc<dyn Fn() -> Vec<OutputRow> + Send + Sync>,
    pub outputs: Outputs,
    pub last_refused: LastRefused,
    /// What is wrong with the accounts' secrets, a line each.
    pub secret_problems: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// Everything on the page, at one moment.
#[derive(Debug, Serialize)]
pub struct Status {
    pub version: &'static str,
    pub instance: String,
    /// RFC 3339 UTC.
    pub now: Rfc3339,
    pub uptime_seconds: u64,
    pub accepting: bool,
    /// Why not, when not.
    pub not_accepting_because: Option<String>,
    pub accounts: BTreeMap<String, AccountStatus>,
    /// Kept within the last minute; `None` in the first seconds.
    pub accepted_per_second: Option<f64>,
    pub journal: JournalStatus,
    pub outputs: BTreeMap<String, Output>,
    /// Each kind of event that came since the start, the newest first.
    pub last_events: Vec<LastEvent>,
    /// Since the start, by reason, those that ever happened.
    pub unavailable: BTreeMap<&'static str, u64>,
    pub connections: i64,
    pub last_refused: Option<serde_json::Value>,
    /// Secrets that cannot be used or are doubtful, a line each. Names files, and nothing in them.
    pub secret_problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct AccountStatus {
    /// Since the start. Answers 200, duplicates among them.
    pub accepted: u64,
    /// Since the start. All other answers.
    pub refused: u64,
    /// Since the start, by outcome.
    pub answers: BTreeMap<&'static str, u64>,
    /// RFC 3339 UTC; kept across restarts. `None`: never.
    pub last_accepted: Option<Rfc3339>,
    pub secrets_loaded: i64,
    /// By name.
    pub secrets: Vec<SecretStatus>,
}

#[derive(Debug, Serialize)]
pub struct SecretStatus {
    pub name: String,
    /// RFC 3339 UTC. `None`: not since the start.
    pub last_used: Option<Rfc3339>,
}

/// The newest event of a kind: what it was and when, and nothing of whom.
#[derive(Debug, Serialize)]
pub struct LastEvent {
    pub account: String,
    pub event: String,
    /// RFC 3339 UTC, of its arrival.
    pub at: Rfc3339,
    pub seconds_ago: u64,
    /// Since the start. Kept, or discarded by configuration.
    pub count: u64,
}

/// An output as its publisher and the journal see it.
#[derive(Debug, Default, Serialize)]
pub struct Output {
    #[serde(flatten)]
    pub status: OutputStatus,
    /// Confirmed by the broker since the journal was made.
    pub published: u64,
    /// Within the last minute; `None` in the first seconds.
    pub published_per_second: Option<f64>,
    /// It is no longer configured; what it is owed stays until `journal forget`.
    pub removed: bool,
}

#[derive(Debug, Serialize)]
pub struct JournalStatus {
    pub bytes: i64,
    pub size_max_bytes: i64,
    /// From 0 to 1, of `size_max_bytes`.
    pub fill: f64,
    pub disk_free_bytes: i64,
    /// Of the oldest event that some output has not confirmed; 0 when there is none.
    pub oldest_pending_age_seconds: f64,
    /// At the pace of the last quarter of an hour, while something waits for longer than a minute and the journal grows. Published events
    /// among its bytes give way, so it may take longer.
    pub full_in_seconds: Option<f64>,
    /// A file that could not be read was set aside at start.
    pub set_aside: bool,
}

/// Events that wait no longer than this are on their way, and no debt that fills a journal.
pub const ON_THEIR_WAY_SECONDS: f64 = 60.0;

impl Sources {
    /// Feeds [`Pace`].
    pub fn sample(&self, at: Instant) {
        let published = (self.rows)().into_iter().map(|row| (row.name, row.counts.published)).collect();
        let accepted = self.metrics.accounts.accepted.collect();
        let accepted =
            accepted.iter().flat_map(|family| family.get_metric()).map(|series| series.get_counter().get_value());
        self.pace.note(Sample {
            at,
            journal_bytes: self.metrics.journal.bytes.get(),
            published,
            accepted: accepted.sum::<f64>() as u64,
        });
    }

    pub fn status(&self, now: Timestamp) -> Status {
        let ready = self.health.ready();
        let outputs = self.outputs();
        let accounts = self.accounts.iter().map(|account| (account.to_string(), self.account(account)));
        let unavailable = UNAVAILABLE_REASONS
            .iter()
            .map(|reason| (*reason, self.metrics.ingress.unavailable.with_label_values(&[*reason]).get()))
            .filter(|(_, count)| *count > 0);
        Status {
            version: env!("CARGO_PKG_VERSION"),
            instance: self.instance.clone(),
            now: rfc3339_seconds(now.as_seconds()),
            uptime_seconds: now.since(self.started_at).as_secs(),
            accepting: ready.is_ok(),
            not_accepting_because: ready.err(),
            accounts: accounts.collect(),
            accepted_per_second: self.pace.accepted(),
            journal: self.journal(&outputs),
            outputs,
            last_events: self.last_events(now),
            unavailable: unavailable.collect(),
            connections: self.metrics.ingress.connections.get(),
            last_refused: (self.last_refused)(),
            secret_problems: (self.secret_problems)(),
        }
    }

    fn outputs(&self) -> BTreeMap<String, Output> {
        let one =
            |(name, status): (OutputName, OutputStatus)| (name.to_string(), Output { status, ..Output::default() });
        let mut shown: BTreeMap<_, _> = self.outputs.all().into_iter().map(one).collect();
        for row in (self.rows)() {
            let rate = self.pace.published(&row.name);
            let output = shown.entry(row.name).or_default(); // A removed output has only its debt.
            output.status.pending = row.counts.pending.max(0) as u64;
            if row.counts.pending <= 0 {
                output.status.oldest_pending_age_seconds = 0.0; // It is looked at once a second, and the counts are of now.
            }
            output.status.parked = row.counts.parked.max(0) as u64;
            output.published = row.counts.published.max(0) as u64;
            output.published_per_second = rate;
            output.removed = row.removed;
        }
        shown
    }

    fn last_events(&self, now: Timestamp) -> Vec<LastEvent> {
        let accounts = &self.metrics.accounts;
        let one = |(account, event, at): (String, String, Timestamp)| {
            let labels = [&*account, &*event];
            LastEvent {
                count: accounts.accepted.with_label_values(&labels).get()
                    + accounts.discarded.with_label_values(&labels).get(),
                at: rfc3339_seconds(at.as_seconds()),
                seconds_ago: now.since(at).as_secs(),
                account,
                event,
            }
        };
        accounts.newest().into_iter().map(one).collect()
    }

    fn account(&self, account: &AccountName) -> AccountStatus {
        let count = |outcome| self.metrics.ingress.webhooks.with_label_values(&[account.as_str(), outcome]).get();
        let answers: BTreeMap<_, _> = OUTCOMES.iter().map(|outcome| (*outcome, count(*outcome))).collect();
        let accepted = count("accepted") + count("duplicate");
        let last_accepted = self.metrics.accounts.last_accepted.with_label_values(&[account.as_str()]).get();
        AccountStatus {
            accepted,
            refused: answers.values().sum::<u64>() - accepted,
            answers,
            last_accepted: (last_accepted > 0.0).then(|| rfc3339_seconds(last_accepted as i64)),
            secrets_loaded: self.metrics.accounts.secrets_loaded.with_label_values(&[account.as_str()]).get(),
            secrets: self.metrics.accounts.secrets(account.as_str()).into_iter().map(secret).collect(),
        }
    }

    fn journal(&self, outputs: &BTreeMap<String, Output>) -> JournalStatus {
        let journal = &self.metrics.journal;
        let (bytes, size_max_bytes, free) = (journal.bytes.get(), journal.size_max.get(), journal.free.get());
        let ages = outputs.values().map(|output| output.status.oldest_pending_age_seconds);
        let oldest = ages.fold(0.0, f64::max);
        let room = (size_max_bytes - bytes).min(free - i64::try_from(self.journal_free_min).unwrap_or(i64::MAX));
        let growth = self.pace.journal_growth().filter(|growth| *growth > 0.0 && oldest > ON_THEIR_WAY_SECONDS);
        JournalStatus {
            bytes,
            size_max_bytes,
            fill: if size_max_bytes > 0 { bytes as f64 / size_max_bytes as f64 } else { 0.0 },
            disk_free_bytes: free,
            oldest_pending_age_seconds: oldest,
            full_in_seconds: growth.map(|growth| room.max(0) as f64 / growth),
            set_aside: journal.set_aside.get() != 0,
        }
    }
}

fn secret((name, used_at): (String, f64)) -> SecretStatus {
    SecretStatus { name, last_used: (used_at > 0.0).then(|| rfc3339_seconds(used_at as i64)) }
}

/// A duration for people, in its two largest units: `3 d 4 h`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, seconds) => format!("{seconds} s"),
        (0, 0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (0, hours, minutes, _) => format!("{hours} h {minutes} min"),
        (days, hours, _, _) => format!("{days} d {hours} h"),
    }
}

/// A size for people: `1.5 GiB`.
pub fn size_in_words(bytes: i64) -> String {
    let mut size = bytes as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if size < 1024.0 {
            return if unit == "bytes" { format!("{bytes} bytes") } else { format!("{size:.1} {unit}") };
        }
        size /= 1024.0;
    }
    format!("{size:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_like_a_person_says_them() {
        assert_eq!(in_words(Duration::from_secs(59)), "59 s");
        assert_eq!(in_words(Duration::from_secs(61)), "1 min 1 s");
        assert_eq!(in_words(Duration::from_secs(7_260)), "2 h 1 min");
        assert_eq!(in_words(Duration::from_secs(273_600)), "3 d 4 h");
        assert_eq!(size_in_words(1023), "1023 bytes");
        assert_eq!(size_in_words(1536), "1.5 KiB");
        assert_eq!(size_in_words(8 << 30), "8.0 GiB");
        assert_eq!(size_in_words(3 << 40), "3.0 TiB");
    }
}
