//! Every metric, declared once, with the rise that means trouble in its comment. Labels come from closed sets and configured names, never from
//! a request, and every series that can be known exists from the start.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::clock::Timestamp;
use crate::config::{Config, OutputKind};
use crate::normalize::Known;
use crate::publish::topology;
use crate::stderr;

/// The values of the label `outcome` of `webhooks_total`.
pub const OUTCOMES: [&str; 9] = [
    "accepted",
    "duplicate",
    "missing_header",
    "malformed_header",
    "bad_signature",
    "outside_tolerance",
    "too_large",
    "too_slow",
    "unavailable",
];
/// The values of the label `reason` of `unavailable_total`.
pub const UNAVAILABLE_REASONS: [&str; 8] =
    ["journal_full", "account_full", "disk", "deadline", "queue_full", "memory", "shutting_down", "panic"];
/// The values of the label `reason` of `http_refused_total`.
pub const HTTP_REFUSED_REASONS: [&str; 4] = ["not_found", "method", "headers", "bad_request"];
/// The values of the label `kind` of `connections_evicted_total`: what a connection was doing when it was closed to make room.
pub const EVICTED_KINDS: [&str; 5] = ["silent", "idle", "head", "body", "handshake"];
/// The values of the label `reason` of `events_parked_total`.
pub const PARKED_REASONS: [&str; 4] = ["too_large", "rejected", "corrupt", "other"];
/// The values of the label `reason` of `topic_held`.
pub const HELD_REASONS: [&str; 7] =
    ["topic_missing", "forbidden", "unroutable", "not_enough_replicas", "nack", "rejected", "too_large"];
/// The values of the label `reason` of `publish_failures_total`.
pub const FAILURE_REASONS: [&str; 12] = [
    "topic_missing",
    "forbidden",
    "unroutable",
    "not_enough_replicas",
    "nack",
    "too_large",
    "rejected",
    "disconnected",
    "timeout",
    "blocked",
    "fatal",
    "unknown",
];
/// The values of the label `state` of `ledger_events`.
pub const LEDGER_STATES: [&str; 5] = ["accepted", "published", "pending", "parked", "discarded"];

/// All metrics, and the registry that writes them.
pub struct Metrics {
    registry: Registry,
    writing: Mutex<()>,
    pub ingress: IngressMetrics,
    pub accounts: AccountMetrics,
    pub journal: JournalMetrics,
    pub publish: PublishMetrics,
    /// Rises: nobody reads stderr, or it fails. As [`stderr::lines_dropped`] counts.
    log_lines_dropped: IntCounter,
}

/// The way in.
pub struct IngressMetrics {
    /// By account and outcome. `bad_signature` rises: a secret was changed at SIPSIM, or somebody knocks. `unavailable` rises: events are lost.
    pub webhooks: IntCounterVec,
    /// By reason: why we said 503.
    pub unavailable: IntCounterVec,
    /// By reason: requests that are no webhooks. Rises with scanners; `not_found` alone: a wrong URL at SIPSIM.
    pub http_refused: IntCounterVec,
    /// At `ingress.connections_max` idle ones are closed first.
    pub connections: IntGauge,
    /// By what they were doing: connections closed to make room. Rises: more connections than `ingress.connections_max`, or an attack.
    pub evicted: IntCounterVec,
    /// From a request's first byte to its answer, seconds. SIPSIM gives up at 2.
    pub duration: Histogram,
}

/// Per account: who sends, and with which secret.
pub struct AccountMetrics {
    /// Accepted after all, since the secret came to be known (`keep_refused`).
    pub recovered: IntCounterVec,
    /// Signing time of the newest correctly signed request less our clock; far from 0: a clock is wrong.
    pub clock_skew: Gauge,
    /// Stops: SIPSIM sends nothing, or nothing reaches us.
    pub last_accepted: GaugeVec,
    /// Rows written, by account and event.
    pub accepted: IntCounterVec,
    /// By `events.discard`.
    pub discarded: IntCounterVec,
    /// When the old secret stops moving, it can go.
    pub secret_last_used: GaugeVec,
    pub secrets_loaded: IntGaugeVec,
    /// By account and event: when the newest one arrived that was kept or discarded. For the status page only.
    newest: Mutex<BTreeMap<(String, String), Timestamp>>,
    /// 0 while a secret or certificate file is reported as unusable. Set by [`AccountMetrics::reloaded`].
    pub last_reload_successful: IntGauge,
    /// Whose files cannot be used now.
    failing_reloads: Mutex<BTreeSet<String>>,
    /// By where: `ingress`, or an output's name. Days left: subtract `time()`.
    pub certificate_expiry: GaugeVec,
}

/// The promise on disk.
pub struct JournalMetrics {
    /// Live data and WAL. At 80 % of `journal_size_max_bytes` history gives way; at 100 % of debt alone we answer 503.
    pub bytes: IntGauge,
    pub size_max: IntGauge,
    /// By account: of what some output has not delivered.
    account_bytes: IntGaugeVec,
    /// Of the disk. At `journal.free_min` we answer 503.
    pub free: IntGauge,
    /// One group's commit with its sync, seconds. Rises: the disk is slow.
    pub commit_duration: Histogram,
    /// Events in one commit.
    pub commit_events: Histogram,
    /// 1: a corrupt or newer file, or the copy of one that was gone, lies beside the journal.
    pub set_aside: IntGauge,
    /// 1: what is open is no longer what stands at `journal.path`; we answer 503 until a new one is begun.
    pub gone: IntGauge,
}

/// The way out, per output.
pub struct PublishMetrics {
    /// By output and event: first deliveries confirmed by the broker.
    pub published: IntCounterVec,
    pub replayed: IntCounterVec,
    /// By output and reason. Rises: somebody must look at `journal list --state parked`.
    pub parked_total: IntCounterVec,
    pub pending: IntGaugeVec,
    pub parked: IntGaugeVec,
    /// 1 for a topic that waits to be mended. By output, topic and reason.
    pub held: IntGaugeVec,
    /// The oldest event of a topic that makes no progress while the broker answers, by output and topic; 0 while there is none.
    pub stuck_sequence: IntGaugeVec,
    /// Of its record.
    pub stuck_bytes: IntGaugeVec,
    /// Seconds since it was accepted.
    pub stuck_age: IntGaugeVec,
    /// Kept in the journal: accepted = published + pending + parked + discarded.
    pub ledger: IntGaugeVec,
    /// Seconds; 0 when nothing is pending.
    pub oldest_pending_age: GaugeVec,
    pub failures: IntCounterVec,
    /// From handing a record to the client to its confirmation, seconds.
    pub duration: HistogramVec,
    /// From arrival to confirmation, seconds.
    pub delay: HistogramVec,
    /// Seconds.
    pub rests: CounterVec,
    pub up: IntGaugeVec,
}

impl Metrics {
    /// Every metric at its start for this configuration.
    pub fn new(config: &Config) -> Arc<Self> {
        let r = Registry::new();
        let metrics = Self {
            ingress: IngressMetrics::new(&r),
            accounts: AccountMetrics::new(&r),
            journal: JournalMetrics::new(&r),
            publish: PublishMetrics::new(&r),
            log_lines_dropped: int_counter(&r, "log_lines_dropped_total", "Log lines that stderr did not take."),
            registry: r,
            writing: Mutex::default(),
        };
        let build = int_gauge_vec(&metrics.registry, "build_info", "Which version runs.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        metrics.create_series(config);
        Arc::new(metrics)
    }

    /// The Prometheus text of all series, with each output's counts in the order of [`LEDGER_STATES`]: all of one moment, so that the ledger
    /// adds up.
    pub fn text<'a>(&self, outputs: impl IntoIterator<Item = (&'a str, [i64; LEDGER_STATES.len()])>) -> Vec<u8> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for (output, counts) in outputs {
            for (state, count) in LEDGER_STATES.into_iter().zip(counts) {
                self.publish.ledger.with_label_values(&[output, state]).set(count);
            }
            let [_, _, pending, parked, _] = counts;
            self.publish.pending.with_label_values(&[output]).set(pending);
            self.publish.parked.with_label_values(&[output]).set(parked);
            if pending == 0 {
                self.publish.oldest_pending_age.with_label_values(&[output]).set(0.0);
            }
        }
        self.log_lines_dropped.inc_by(stderr::lines_dropped() - self.log_lines_dropped.get());
        let mut text = String::with_capacity(64 * 1024);
        process::write(&mut text);
        // Writing to memory cannot fail, and every family has the type that it was registered with.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text.into_bytes()
    }

    fn create_series(&self, config: &Config) {
        let events: Vec<&str> = Known::ALL
            .iter()
            .map(|known| known.as_str())
            .chain(config.events.extra.iter().map(|name| &**name))
            .chain(["unknown"])
            .collect();
        for reason in UNAVAILABLE_REASONS {
            self.ingress.unavailable.with_label_values(&[reason]);
        }
        for reason in HTTP_REFUSED_REASONS {
            self.ingress.http_refused.with_label_values(&[reason]);
        }
        for kind in EVICTED_KINDS {
            self.ingress.evicted.with_label_values(&[kind]);
        }
        for account in &config.accounts {
            let account = account.name.as_str();
            for outcome in OUTCOMES {
                self.ingress.webhooks.with_label_values(&[account, outcome]);
            }
            self.accounts.recovered.with_label_values(&[account]);
            self.accounts.last_accepted.with_label_values(&[account]);
            self.accounts.secrets_loaded.with_label_values(&[account]);
            self.journal.account(account);
            for event in &events {
                self.accounts.accepted.with_label_values(&[account, event]);
                self.accounts.discarded.with_label_values(&[account, event]);
            }
        }
        for output in &config.outputs {
            let topics = match &output.kind {
                OutputKind::Kafka(kafka) => topology::destinations(config, &kafka.topics),
                OutputKind::RabbitMq(rabbitmq) => topology::destinations(config, &rabbitmq.routing_keys),
                OutputKind::Console => Vec::new(), // It has no topics that could be faulty.
            };
            let output = output.name.as_str();
            for (topic, reason) in topics.iter().flat_map(|topic| HELD_REASONS.map(|reason| (topic, reason))) {
                self.publish.held.with_label_values(&[output, topic, reason]);
            }
            for topic in &topics {
                self.publish.show_stuck(output, topic, [0; 3]);
            }
            for event in &events {
                self.publish.published.with_label_values(&[output, event]);
            }
            for reason in PARKED_REASONS {
                self.publish.parked_total.with_label_values(&[output, reason]);
            }
            for reason in FAILURE_REASONS {
                self.publish.failures.with_label_values(&[output, reason]);
            }
            for state in LEDGER_STATES {
                self.publish.ledger.with_label_values(&[output, state]);
            }
            self.publish.replayed.with_label_values(&[output]);
            self.publish.pending.with_label_values(&[output]);
            self.publish.parked.with_label_values(&[output]);
            self.publish.oldest_pending_age.with_label_values(&[output]);
            self.publish.duration.with_label_values(&[output]);
            self.publish.delay.with_label_values(&[output]);
            self.publish.rests.with_label_values(&[output]);
            self.publish.up.with_label_values(&[output]);
        }
        self.accounts.last_reload_successful.set(1);
        self.journal.size_max.set(i64::try_from(config.journal.size_max).unwrap_or(i64::MAX));
    }
}

impl IngressMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            webhooks: int_counter_vec(r, "webhooks_total", "Answers to webhooks, by outcome.", &["account", "outcome"]),
            unavailable: int_counter_vec(r, "unavailable_total", "Answers 503, by reason.", &["reason"]),
            http_refused: int_counter_vec(r, "http_refused_total", "Requests that are no webhooks.", &["reason"]),
            connections: int_gauge(r, "http_connections", "Open connections to the public port."),
            evicted: int_counter_vec(
                r,
                "connections_evicted_total",
                "Connections closed to make room, by what they were doing.",
                &["kind"],
            ),
            duration: histogram(
                r,
                "webhook_duration_seconds",
                "From a webhook's first byte to its answer.",
                &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.8, 2.0, 5.0],
            ),
        }
    }
}

impl AccountMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            recovered: int_counter_vec(
                r,
                "webhooks_recovered_total",
                "Refused webhooks that a secret which came later proved genuine.",
                &["account"],
            ),
            clock_skew: gauge(
                r,
                "clock_skew_seconds",
                "Signing time of the newest correctly signed webhook less the relay's clock.",
            ),
            last_accepted: gauge_vec(
                r,
                "last_accepted_timestamp_seconds",
                "When a webhook was last accepted; kept across restarts.",
                &["account"],
            ),
            accepted: int_counter_vec(
                r,
                "events_accepted_total",
                "Events written to the journal.",
                &["account", "event"],
            ),
            discarded: int_counter_vec(
                r,
                "events_discarded_total",
                "Events that configuration discards.",
                &["account", "event"],
            ),
            secret_last_used: gauge_vec(
                r,
                "secret_last_used_timestamp_seconds",
                "When a webhook was last verified with this secret.",
                &["account", "secret"],
            ),
            secrets_loaded: int_gauge_vec(r, "secrets_loaded", "Secrets in force.", &["account"]),
            last_reload_successful: int_gauge(
                r,
                "last_reload_successful",
                "0 while a secret or certificate file cannot be used.",
            ),
            newest: Mutex::default(),
            failing_reloads: Mutex::default(),
            certificate_expiry: gauge_vec(
                r,
                "certificate_expiry_timestamp_seconds",
                "When a certificate ends.",
                &["where"],
            ),
        }
    }
}

impl AccountMetrics {
    /// Notes the arrival of an account's newest event of a kind. As many are remembered as accounts and known names make.
    pub fn arrived(&self, account: &str, event: &str, at: Timestamp) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.insert((account.to_owned(), event.to_owned()), at);
    }

    /// Account, event and arrival of the newest event of each kind since the start, the newest first.
    pub fn newest(&self) -> Vec<(String, String, Timestamp)> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            newest.iter().map(|((account, event), at)| (account.clone(), event.clone(), *at)).collect();
        all.sort_by_key(|(.., at)| std::cmp::Reverse(*at));
        all
    }

    /// Each secret in force with when it was last used, seconds since 1970; 0: not since the start.
    pub fn secrets(&self, account: &str) -> Vec<(String, f64)> {
        let mut secrets = Vec::new();
        for metric in self.secret_last_used.collect().iter().flat_map(|family| family.get_metric()) {
            let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name).map(|l| l.value());
            if let (Some(of), Some(secret)) = (label("account"), label("secret"))
                && of == account
            {
                secrets.push((secret.to_owned(), metric.get_gauge().get_value()));
            }
        }
        secrets.sort_by(|(a, _), (b, _)| a.cmp(b));
        secrets
    }

    /// Says whether the files of `what` (a key of the configuration, like `ingress.tls`) could be used when they were last read. The metric is 1
    /// only while everybody's can.
    pub fn reloaded(&self, what: &str, is_usable: bool) {
        let mut failing = self.failing_reloads.lock().unwrap_or_else(PoisonError::into_inner);
        if is_usable {
            failing.remove(what);
        } else {
            failing.insert(what.to_owned());
        }
        self.last_reload_successful.set(i64::from(failing.is_empty()));
    }
}

impl JournalMetrics {
    fn new(r: &Registry) -> Self {
        Self {
            bytes: int_gauge(r, "journal_bytes", "Live data and write-ahead log of the journal."),
            size_max: int_gauge(r, "journal_size_max_bytes", "The configured journal.size_max."),
            account_bytes: int_gauge_vec(
                r,
                "journal_account_bytes",
                "What undelivered events of the account take in the journal.",
                &["account"],
            ),
            free: int_gauge(r, "journal_free_bytes", "Free space on the journal's disk."),
            commit_duration: histogram(
                r,
                "journal_commit_duration_seconds",
                "One commit with its sync.",
                &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5],
            ),
            commit_events: histogram(
                r,
                "journal_commit_events",
                "Events that shared one commit.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0],
            ),
            set_aside: int_gauge(
                r,
                "journal_set_aside",
                "1 while a journal that could not be read, or was saved after its file had gone, lies beside this one.",
            ),
            gone: int_gauge(r, "journal_gone", "1 while the journal's file is no longer at its path."),
        }
    }

    /// What undelivered events of the account take, bytes.
    pub fn account(&self, account: &str) -> IntGauge {
        self.account_bytes.with_label_values(&[account])
    }
}

impl PublishMetrics {
    /// Shows number, bytes and age of the event at which a topic makes no progress; zeros: it does.
    pub fn show_stuck(&self, output: &str, topic: &str, values: [u64; 3]) {
        for (metric, value) in [&self.stuck_sequence, &self.stuck_bytes, &self.stuck_age].into_iter().zip(values) {
            metric.with_label_values(&[output, topic]).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Takes away what the page shows of an output that the journal knew and now knows no more.
    pub fn forget(&self, output: &str) {
        // An error only says that there was no such series.
        for state in LEDGER_STATES {
            let _ = self.ledger.remove_label_values(&[output, state]);
        }
        let _ = self.pending.remove_label_values(&[output]);
        let _ = self.parked.remove_label_values(&[output]);
        let _ = self.oldest_pending_age.remove_label_values(&[output]);
    }

    fn new(r: &Registry) -> Self {
        let seconds: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];
        Self {
            published: int_counter_vec(
                r,
                "events_published_total",
                "Events confirmed by the broker.",
                &["output", "event"],
            ),
            replayed: int_counter_vec(r, "events_replayed_total", "Events sent again by journal replay.", &["output"]),
            parked_total: int_counter_vec(r, "events_parked_total", "Events parked.", &["output", "reason"]),
            pending: int_gauge_vec(r, "events_pending", "Events accepted and not yet confirmed.", &["output"]),
            parked: int_gauge_vec(r, "events_parked", "Events that wait for an operator.", &["output"]),
            held: int_gauge_vec(
                r,
                "topic_held",
                "1 for a topic whose events wait until it is mended.",
                &["output", "topic", "reason"],
            ),
            stuck_sequence: int_gauge_vec(
                r,
                "topic_stuck_sequence",
                "The number of the oldest event of a topic that makes no progress while the broker answers; 0: none.",
                &["output", "topic"],
            ),
            stuck_bytes: int_gauge_vec(r, "topic_stuck_bytes", "Bytes of that event's record.", &["output", "topic"]),
            stuck_age: int_gauge_vec(
                r,
                "topic_stuck_age_seconds",
                "How long ago that event was accepted.",
                &["output", "topic"],
            ),
            ledger: int_gauge_vec(
                r,
                "ledger_events",
                "Events by state, kept in the journal: accepted = published + pending + parked + discarded.",
                &["output", "state"],
            ),
            oldest_pending_age: gauge_vec(
                r,
                "oldest_pending_age_seconds",
                "Age of the oldest event not yet confirmed.",
                &["output"],
            ),
            failures: int_counter_vec(r, "publish_failures_total", "Failures to publish.", &["output", "reason"]),
            duration: histogram_vec(
                r,
                "publish_duration_seconds",
                "From handing a record to the client to its confirmation.",
                &["output"],
                seconds,
            ),
            delay: histogram_vec(
                r,
                "delivery_delay_seconds",
                "From an event's arrival to its confirmation.",
                &["output"],
                seconds,
            ),
            rests: counter_vec(
                r,
                "publish_rest_seconds_total",
                "Seconds in which an output left disk and processors to requests.",
                &["output"],
            ),
            up: int_gauge_vec(r, "output_up", "1 while the broker answers.", &["output"]),
        }
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("sipsim_relay_{name}"), help)
}

/// Names and labels are the literals of this file, which the tests of `/metrics` read whole; registering one twice cannot pass them.
fn register<C: Collector + 'static>(registry: &Registry, collector: C) {
    if let Err(error) = registry.register(Box::new(collector)) {
        unreachable!("a metric is declared twice: {error}");
    }
}

macro_rules! makers {
    ($($maker:ident($($argument:ident: $type:ty),*) -> $metric:ty { $make:expr })*) => {
        $(fn $maker(registry: &Registry, name: &str, help: &str $(, $argument: $type)*) -> $metric {
            let make: fn(Opts $(, $type)*) -> prometheus::Result<$metric> = $make;
            match make(opts(name, help) $(, $argument)*) {
                Ok(metric) => {
                    register(registry, metric.clone());
                    metric
                }
                Err(error) => unreachable!("the metric {name} is not well formed: {error}"),
            }
        })*
    };
}

makers! {
    counter_vec(labels: &[&str]) -> CounterVec { CounterVec::new }
    gauge() -> Gauge { Gauge::with_opts }
    gauge_vec(labels: &[&str]) -> GaugeVec { GaugeVec::new }
    int_counter() -> IntCounter { IntCounter::with_opts }
    int_gauge() -> IntGauge { IntGauge::with_opts }
    int_gauge_vec(labels: &[&str]) -> IntGaugeVec { IntGaugeVec::new }
    int_counter_vec(labels: &[&str]) -> IntCounterVec { IntCounterVec::new }
    histogram(buckets: &[f64]) -> Histogram {
        |opts, buckets| Histogram::with_opts(HistogramOpts::from(opts).buckets(buckets.to_vec()))
    }
    histogram_vec(labels: &[&str], buckets: &[f64]) -> HistogramVec {
        |opts, labels, buckets| HistogramVec::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels)
    }
}
