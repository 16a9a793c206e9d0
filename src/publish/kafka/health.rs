//! Whether a broker can be reached, from librdkafka's signs: its statistics, its errors, and deliveries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::error::RDKafkaErrorCode as Code;
use serde::Deserialize;

use crate::publish::{PublishError, Report};

/// Statistics in a row without a connection that make an outage: 1.5 s. One alone is nothing, since brokers close idle connections and librdkafka
/// opens the next one within a second.
const ABSENCES_MAX: u32 = 3;
/// Statistics in a row that show no broker at all after which a producer counts as stranded: 3 s. A librdkafka that works adds the ones it began
/// with again as soon as it has none left.
const DESERTIONS_MAX: u32 = 6;
/// What librdkafka sends before the first record at the most: versions, credentials, questions for topics.
const CONNECTING_BYTES_MAX: u64 = 8 * 1024;
/// Characters of librdkafka's own words that go into a detail.
const WORDS_MAX: usize = 300;

/// Of a detail that does not say why: librdkafka calls an unknown authority, another host name and an expired certificate the same.
const TLS_FAILED: &str = "TLS with the broker failed: check `security.protocol` and `ca_file`";

/// Turns signs into `Connected` and `Lost`, each said once.
#[derive(Default)]
pub struct Health {
    connected: bool,
    /// There is no producer; what the last one still says counts no more.
    ended: bool,
    absences: u32,
    /// What was said since the last `Connected`; at most one entry a code.
    told: BTreeSet<&'static str>,
    latest: Option<(PublishError, &'static str, String)>,
}

/// librdkafka's statistics, as far as they matter here.
#[derive(Deserialize)]
pub struct Statistics {
    #[serde(default)]
    brokers: BTreeMap<String, Broker>,
}

#[derive(Deserialize)]
struct Broker {
    state: String,
    #[serde(default)]
    source: String,
    /// Connections that the broker had let us use, and that ended.
    #[serde(default)]
    disconnects: i64,
    /// Requests that it had not answered after `socket.timeout.ms`, for which librdkafka itself ends the connection.
    #[serde(default)]
    req_timeouts: u64,
    /// Bytes sent to it.
    #[serde(default)]
    txbytes: u64,
}

/// What statistics show of the brokers, the best last. librdkafka's internal one is always up and does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Brokers {
    /// librdkafka knows none, and so tries nothing.
    Unknown,
    /// librdkafka tries to reach those it knows.
    Away,
    /// One is connected and let us in.
    Up,
}

impl Statistics {
    /// `None` for what is not statistics.
    pub fn read(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub fn state(&self) -> Brokers {
        let real = self.brokers.values().filter(|broker| broker.source != "internal");
        let states = real.map(|broker| if broker.state == "UP" { Brokers::Up } else { Brokers::Away });
        states.max().unwrap_or(Brokers::Unknown)
    }
}

/// Sees connections that a broker ends while records are sent on them.
#[derive(Default)]
pub struct Breaks(BTreeMap<String, Seen>);

/// Of one broker.
#[derive(Default)]
struct Seen {
    disconnects: i64,
    /// Requests that had no answer in time and bytes sent, at the last look and at the one before: a look may come between a cause and its effect.
    last: (u64, u64),
    before: (u64, u64),
    /// Looks for which a connection that broke may still be replaced.
    awaited: u32,
}

impl Breaks {
    /// Whether one has ended that was in use: more was sent on it lately than it takes to connect. The broker must be back before it counts as away,
    /// as one is that hangs up at a request and works otherwise. A connection that librdkafka ended because nothing was answered does not count: that
    /// is silence.
    pub fn any(&mut self, statistics: &Statistics) -> bool {
        let mut any = false;
        for (name, broker) in &statistics.brokers {
            let seen = self.0.entry(name.clone()).or_default();
            let (timeouts, sent) = (broker.req_timeouts, broker.txbytes);
            if sent < seen.last.1 {
                *seen = Seen::default(); // librdkafka dropped it, and has met it anew.
            }
            if broker.disconnects > seen.disconnects {
                any |= seen.awaited > 0; // It was back in between.
                let is_silent = timeouts > seen.before.0;
                let is_in_use = sent.saturating_sub(seen.before.1) > CONNECTING_BYTES_MAX;
                seen.awaited = if is_in_use && !is_silent { ABSENCES_MAX } else { 0 };
            }
            if seen.awaited > 0 && broker.state == "UP" {
                (any, seen.awaited) = (true, 0);
            }
            seen.awaited = seen.awaited.saturating_sub(1);
            seen.disconnects = broker.disconnects;
            seen.before = std::mem::replace(&mut seen.last, (timeouts, sent));
        }
        any
    }
}

/// Sees a producer that will never connect again. A cluster that answers a question for topics without naming a broker, as one does whose brokers
/// are all fenced for a moment, has librdkafka remove every broker it knows. By its source, that answer may also cancel the order to begin again
/// with those it was given, which it believes to be under way from then on. Seen here with 2.12.1; 2.13.0 has it too, 2.11.1 has not:
/// <https://github.com/confluentinc/librdkafka/issues/5301>.
#[derive(Default)]
pub struct Stranding {
    desertions: AtomicU32,
}

impl Stranding {
    pub const DETAIL: &str = "librdkafka has no broker left to try: one answered without naming any, or none of `brokers` could be added; a new producer begins with those";

    pub fn seen(&self, brokers: Brokers) {
        match brokers {
            Brokers::Unknown => drop(self.desertions.fetch_add(1, Ordering::Relaxed)),
            Brokers::Away | Brokers::Up => self.desertions.store(0, Ordering::Relaxed),
        }
    }

    pub fn is_final(&self) -> bool {
        self.desertions.load(Ordering::Relaxed) >= DESERTIONS_MAX
    }
}

impl Health {
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Another producer takes over, which has yet to connect.
    pub fn begin(&mut self) {
        self.absences = 0;
        self.ended = false;
    }

    /// A look at the connections.
    pub fn seen(&mut self, any_up: bool) -> Option<Report> {
        if any_up {
            return self.up();
        }
        self.absences = self.absences.saturating_add(1);
        if !self.connected || self.absences < ABSENCES_MAX {
            return None;
        }
        self.connected = false;
        self.told.clear();
        let (reason, label, detail) =
            self.latest.take().unwrap_or((PublishError::Disconnected, "absent", "no broker is connected".to_owned()));
        self.told.insert(label);
        Some(Report::Lost { reason, detail })
    }

    /// A broker is connected, or confirmed a record.
    pub fn up(&mut self) -> Option<Report> {
        self.absences = 0;
        if self.connected || self.ended {
            return None;
        }
        self.connected = true;
        self.told.clear();
        self.latest = None;
        Some(Report::Connected)
    }

    /// An error that concerns no single record. While nothing is connected, each kind is said once; otherwise it is kept for when the
    /// connections turn out to be gone.
    pub fn trouble(&mut self, code: Code, words: &str) -> Option<Report> {
        let (reason, label, meaning) = explain(code, words)?;
        let detail = format!("{meaning} ({})", one_line(words));
        if self.connected {
            self.latest = Some((reason, label, detail));
            return None;
        }
        self.told.insert(label).then_some(Report::Lost { reason, detail })
    }

    /// The producer failed for good. Nothing is to be sent until the next one is connected.
    pub fn fatal(&mut self, code: Code, words: &str) -> Report {
        let meaning = match explain(code, words) {
            Some((_, _, meaning)) => meaning,
            None => "librdkafka's producer failed for good; a new one sends again what is not confirmed",
        };
        self.unusable(format!("{meaning} ({code:?}: {})", one_line(words)))
    }

    /// There is no producer, as the detail says.
    pub fn unusable(&mut self, detail: String) -> Report {
        self.connected = false;
        self.ended = true;
        self.told.clear();
        self.latest = None;
        Report::Lost { reason: PublishError::Fatal, detail }
    }
}

/// What an operator can make of a code; `None` if it says nothing that the others do not.
fn explain(code: Code, words: &str) -> Option<(PublishError, &'static str, &'static str)> {
    let disconnected = PublishError::Disconnected;
    Some(match code {
        // A handshake that one end breaks off comes as one or the other.
        Code::BrokerTransportFailure | Code::SSL if words.contains("SSL") => (disconnected, "tls", TLS_FAILED),
        Code::BrokerTransportFailure | Code::SSL => {
            (disconnected, "transport", "no connection to the broker: is it running, and is `brokers` its address?")
        }
        Code::Resolve => (disconnected, "resolve", "the broker's host name is not known: check `brokers`"),
        Code::Authentication if words.contains("OAUTHBEARER token") => (
            disconnected,
            "token",
            "no token for the broker: check `security.token_url`, `client_id` and the client's secret",
        ),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (
            disconnected,
            "authentication",
            "the broker does not let us in: check `security.mechanism`, `username` and the password",
        ),
        Code::OperationTimedOut | Code::TimedOutQueue | Code::RequestTimedOut => {
            (PublishError::Timeout, "timeout", "the broker does not answer")
        }
        Code::UnsupportedFeature | Code::UnsupportedVersion => {
            (disconnected, "version", "the broker is too old: Kafka 0.11 or newer is needed")
        }
        Code::ClusterAuthorizationFailed => {
            (PublishError::Forbidden, "cluster", "the cluster does not let us write: grant IdempotentWrite on it")
        }
        // ALL_BROKERS_DOWN only sums up what the errors before it said.
        _ => return None,
    })
}

/// Whose TLS failed without the detail saying why: `HOST:PORT`, out of librdkafka's words (`ssl://HOST:PORT/ID: …`).
pub fn unexplained_tls(report: &Report) -> Option<&str> {
    let Report::Lost { detail, .. } = report else { return None };
    let words = detail.strip_prefix(TLS_FAILED)?;
    words.split_once("ssl://")?.1.split('/').next()
}

/// librdkafka's words on one line, cut. They name addresses and reasons, and come from the broker in part.
fn one_line(words: &str) -> String {
    words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_three_looks_without_a_connection_and_ends_with_the_first_with_one() {
        let mut health = Health::default();
        assert!(matches!(health.seen(true), Some(Report::Connected)));
        assert!(health.seen(false).is_none());
        assert!(health.seen(false).is_none());
        assert!(health.seen(true).is_none(), "an idle connection that was replaced is no outage");
        assert!(health.seen(false).is_none());
        assert!(health.seen(false).is_none());
        assert!(matches!(health.seen(false), Some(Report::Lost { reason: PublishError::Disconnected, .. })));
        assert!(health.seen(false).is_none(), "said once");
        assert!(matches!(health.seen(true), Some(Report::Connected)));
    }

    #[test]
    fn an_outage_says_the_last_trouble_before_it() {
        let mut health = Health::default();
        health.up();
        assert!(health.trouble(Code::SSL, "SSL handshake failed").is_none());
        health.seen(false);
        health.seen(false);
        let Some(Report::Lost { detail, .. }) = health.seen(false) else { panic!("no outage") };
        assert!(detail.starts_with("TLS with the broker failed"), "{detail}");
        assert!(health.trouble(Code::BrokerTransportFailure, "SSL handshake failed").is_none(), "said already");
    }

    #[test]
    fn a_broker_whose_tls_failed_is_known_by_librdkafkas_words() {
        for (protocol, expected) in [("ssl", Some("b.example:9093")), ("sasl_ssl", Some("b.example:9093"))] {
            let words = format!("{protocol}://b.example:9093/bootstrap: SSL handshake failed: error (after 3ms)");
            let said = Health::default().trouble(Code::SSL, &words).unwrap();
            assert_eq!(unexplained_tls(&said), expected, "{said:?}");
        }
        let other = Health::default().trouble(Code::Resolve, "ssl://b.example:9093/bootstrap: no such host").unwrap();
        assert_eq!(unexplained_tls(&other), None);
    }

    #[test]
    fn before_the_first_connection_each_kind_of_trouble_is_said_once() {
        let mut health = Health::default();
        assert!(health.trouble(Code::BrokerTransportFailure, "Connection refused\n(after 0ms)").is_some());
        assert!(health.trouble(Code::BrokerTransportFailure, "Connection refused (after 1ms)").is_none());
        assert!(health.trouble(Code::AllBrokersDown, "1/1 brokers are down").is_none());
        let Some(Report::Lost { detail, .. }) = health.trouble(Code::Authentication, "line\nbroken") else {
            panic!("another kind of trouble")
        };
        assert!(detail.ends_with("(line broken)"), "{detail}");
    }

    #[test]
    fn statistics_show_who_is_up() {
        let seen = |text: &str| Statistics::read(text.as_bytes()).map(|statistics| statistics.state());
        assert_eq!(seen(r#"{"brokers":{"a":{"state":"UP","source":"learned"}}}"#), Some(Brokers::Up));
        assert_eq!(
            seen(r#"{"brokers":{"a":{"state":"DOWN","source":"learned"},"b":{"state":"UP","source":"learned"}}}"#),
            Some(Brokers::Up)
        );
        assert_eq!(
            seen(r#"{"brokers":{"a":{"state":"UP","source":"internal"},"b":{"state":"TRY_CONNECT"}}}"#),
            Some(Brokers::Away)
        );
        assert_eq!(seen(r#"{"brokers":{"a":{"state":"UP","source":"internal"}}}"#), Some(Brokers::Unknown));
        assert_eq!(seen(r#"{"brokers":{}}"#), Some(Brokers::Unknown));
        assert_eq!(seen("no statistics"), None);
    }

    /// What looks at one broker find, each of its state, disconnects, requests not answered in time, and bytes sent.
    fn breaks(looks: &[(&str, i64, u64, u64)]) -> Vec<bool> {
        let mut breaks = Breaks::default();
        let look = |&(state, disconnects, timeouts, sent): &(&str, i64, u64, u64)| {
            let text = format!(
                r#"{{"brokers":{{"a":{{"state":"{state}","disconnects":{disconnects},"req_timeouts":{timeouts},"txbytes":{sent}}}}}}}"#
            );
            breaks.any(&Statistics::read(text.as_bytes()).unwrap())
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn a_connection_that_ends_with_records_on_it_is_a_break() {
        let looks = [("UP", 0, 0, 500_000), ("UP", 1, 0, 700_000), ("UP", 1, 0, 700_200), ("UP", 3, 0, 900_000)];
        assert_eq!(breaks(&looks), [false, true, false, true]);
        let looks = [("UP", 0, 0, 500_000), ("UP", 0, 0, 500_000), ("UP", 1, 0, 500_400)];
        assert_eq!(breaks(&looks), [false; 3], "it was idle, whatever it carried before");
        let looks = [("UP", 5, 0, 900_000), ("UP", 0, 0, 0), ("UP", 0, 0, 100_000), ("UP", 1, 0, 100_000)];
        assert_eq!(breaks(&looks)[1..], [false, false, true], "a broker that librdkafka has met anew");
    }

    #[test]
    fn a_connection_that_librdkafka_ends_for_want_of_an_answer_is_no_break() {
        for counted in [0, 1] {
            let looks = [("UP", 0, 0, 0), ("UP", 0, 0, 100_000), ("UP", 0, counted, 100_000), ("UP", 1, 1, 200_000)];
            assert_eq!(breaks(&looks), [false; 4], "{counted}");
        }
    }

    #[test]
    fn a_broker_that_is_not_back_soon_did_not_only_hang_up() {
        let down = ("TRY_CONNECT", 1, 0, 100_000);
        assert_eq!(breaks(&[("UP", 0, 0, 0), down, ("UP", 1, 0, 100_300)]), [false, false, true]);
        assert_eq!(
            breaks(&[("UP", 0, 0, 0), down, ("DOWN", 2, 0, 200_000)]),
            [false, false, true],
            "back, and gone again"
        );
        let looks = [("UP", 0, 0, 0), down, down, down, ("UP", 1, 0, 100_300), ("UP", 1, 0, 200_000)];
        assert_eq!(breaks(&looks), [false; 6]);
    }

    #[test]
    fn a_producer_is_stranded_once_it_has_had_no_broker_to_try_for_six_looks() {
        let stranding = Stranding::default();
        for _ in 0..2 {
            for _ in 1..DESERTIONS_MAX {
                stranding.seen(Brokers::Unknown);
            }
            assert!(!stranding.is_final(), "the next look may show one that was added again");
            stranding.seen(Brokers::Away);
        }
        for _ in 0..DESERTIONS_MAX {
            stranding.seen(Brokers::Unknown);
        }
        assert!(stranding.is_final());
    }
}
