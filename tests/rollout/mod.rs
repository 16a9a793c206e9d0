//! Three relays behind a real HAProxy, a real broker, and a SIPSIM at 300 events a second that never tries twice: restarted one by one, one killed and
//! brought back, the secret rotated, three scaled to two, while the broker is away. No answer but 2xx, except inside a process at its kill -9; no event
//! lost. `make rollout` is the long form (ROLLOUT_ROUNDS, ROLLOUT_DELAY).

mod balancer;
mod load;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::oracle::{self, Arrived, KINDS};
use crate::support::{self, Brokers, Relay, Sent, finish, wait_until, whole};
use balancer::Balancer;
use load::{Load, Once};

const RATE: u32 = 300;
const NEXT_SECRET: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
/// Which relay is killed; the balancer's name for it is `relay-1`.
const KILLED: usize = 1;
/// After which HAProxy has seen that the connections of a killed process are closed, also on a busy machine.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);
/// What may arrive twice for each crash or lost connection (DESIGN §7).
const WINDOW: usize = 11_000;

/// Takes half a minute: four relays end with their `shutdown.delay`, one after another, and the balancer checks each before it is used again.
#[test]
fn nothing_is_refused_or_lost_while_relays_roll_and_kafka_is_away() {
    rollout("kafka");
}

/// As long as with Kafka, for the same reasons.
#[test]
fn nothing_is_refused_or_lost_while_relays_roll_and_rabbitmq_is_away() {
    rollout("rabbitmq");
}

#[test]
fn the_documentation_shows_the_balancer_that_is_tested() {
    let shown = include_str!("../../docs/load-balancer.md");
    assert!(
        shown.contains(include_str!("haproxy.cfg")),
        "docs/load-balancer.md differs from tests/rollout/haproxy.cfg"
    );
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} wants a whole number, not {text:?}")),
        Err(_) => otherwise,
    }
}

fn rollout(broker: &str) {
    let rounds = from_environment("ROLLOUT_ROUNDS", 1);
    let delay = from_environment("ROLLOUT_DELAY", 1);
    let brokers = Brokers::own();
    let name = format!("rollout-{:08x}", fastrand::u32(..));
    let mut fleet = Fleet::start(broker, &brokers, &name, delay);
    let balancer = Balancer::start(&fleet.relays);
    let load = Load::start(balancer.address, RATE);
    fleet.all_at_work();
    let mut kills = Vec::new();
    for round in 0..rounds {
        eprintln!("{broker}, round {round}: the broker goes away");
        // Stopped, not killed: RabbitMQ that is killed within seconds of declaring a quorum queue may come back without it, and nacks.
        brokers.stop_one(broker);
        for number in (0..3).rev() {
            fleet.roll(number);
        }
        let (old, new) = if round % 2 == 0 { ("sipsim", "next") } else { ("next", "sipsim") };
        let secret = if round % 2 == 0 { NEXT_SECRET } else { support::SECRET };
        fleet.rotate(&load, (old, new), secret);
        let before = Instant::now();
        fleet.relays[KILLED].kill9();
        kills.push((before, Instant::now()));
        fleet.relays[KILLED].run();
        fleet.at_work(KILLED);
        if round + 1 < rounds {
            brokers.start_one(broker);
            fleet.caught_up(Duration::from_secs(120));
        }
    }
    // Three to two, the broker still away: the last relay ends, and what its volume holds waits for the drain.
    eprintln!("{broker}: three to two");
    let limit = fleet.grace();
    assert!(fleet.relays[2].terminate(limit).success(), "exit code 0 on SIGTERM");
    brokers.start_one(broker);
    let out = finish(&mut fleet.relays[2].command(&["drain", "--timeout", "60s"]), Duration::from_secs(180));
    assert!(out.status.success(), "drain: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    let more = load.sent() + u64::from(RATE);
    wait_until("some more events to be sent", Duration::from_secs(30), || load.sent() >= more);
    let sent = load.stop();
    fleet.drained(0..2, Duration::from_secs(120));
    judge(broker, &brokers, &name, &sent, &kills);
}

struct Fleet {
    relays: Vec<Relay>,
    /// `shutdown.delay` and `shutdown.drain`, each, in seconds.
    delay: u64,
}

impl Fleet {
    fn start(broker: &str, brokers: &Brokers, name: &str, delay: u64) -> Self {
        let output = match broker {
            "kafka" => {
                let topics = KINDS.map(|kind| topic(name, kind));
                brokers.create_topics(&topics.each_ref().map(String::as_str), 3);
                format!("[outputs.kafka]\nbrokers = \"{}\"\ntopic = \"{name}.{{event}}\"\n", brokers.kafka())
            }
            _ => {
                for kind in KINDS {
                    let queue = topic(name, kind);
                    let order = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
                    brokers.ask("PUT", &format!("/api/queues/%2f/{queue}"), order);
                }
                brokers.ask("PUT", &format!("/api/exchanges/%2f/{name}"), r#"{"type":"topic","durable":true}"#);
                for kind in KINDS {
                    let queue = topic(name, kind);
                    let order = format!(r#"{{"routing_key":"{queue}"}}"#);
                    brokers.ask("POST", &format!("/api/bindings/%2f/e/{name}/q/{queue}"), &order);
                }
                format!(
                    "[outputs.rabbitmq]\nurls = [\"{}\"]\nexchange = \"{name}\"\nrouting_key = \"{name}.{{event}}\"\n",
                    brokers.rabbitmq()
                )
            }
        };
        let relays = (0..3)
            .map(|number| {
                Relay::start(&format!(
                    "instance = \"relay-{number}\"\n[shutdown]\ndelay = \"{delay}s\"\ndrain = \"{delay}s\"\n{output}"
                ))
            })
            .collect();
        Self { relays, delay }
    }

    /// How long a relay may take to end (DESIGN §4): both parts and 2 s.
    fn grace(&self) -> Duration {
        Duration::from_secs(2 * self.delay + 2)
    }

    /// As a StatefulSet does it: SIGTERM, the end, the start on the same volume, readiness.
    fn roll(&mut self, number: usize) {
        let limit = self.grace();
        let status = self.relays[number].terminate(limit);
        assert!(status.success(), "relay {number} ended with {status} on SIGTERM");
        self.relays[number].run();
        self.at_work(number);
    }

    /// Until the balancer sends it webhooks.
    fn at_work(&self, number: usize) {
        let accepted = || self.relays[number].metrics().sum("sipsim_relay_webhooks_total", &[("outcome", "accepted")]);
        wait_until("the balancer to use the relay", Duration::from_secs(30), || accepted() > 0.0);
    }

    fn all_at_work(&self) {
        (0..self.relays.len()).for_each(|number| self.at_work(number));
    }

    /// As docs/operations.md says: the new secret beside the old one everywhere, then SIPSIM changes, then the old one goes.
    fn rotate(&self, load: &Load, (old, new): (&str, &str), secret: &str) {
        let loaded = |count: f64| {
            wait_until("the secrets to be taken up", Duration::from_secs(20), || {
                self.relays.iter().all(|one| one.metrics().sum("sipsim_relay_secrets_loaded", &[]) == count)
            });
        };
        self.relays.iter().for_each(|one| one.write_secret(new, secret));
        loaded(2.0);
        load.rotate(secret);
        // What was signed with the old one has arrived once as many again were sent as there are connections, and the 2 s are over.
        let more = load.sent() + u64::from(RATE) * 2;
        wait_until("SIPSIM to sign with the new secret", Duration::from_secs(30), || load.sent() >= more);
        for one in &self.relays {
            std::fs::remove_file(one.path("data/secrets").join(old)).expect("it was there");
        }
        loaded(1.0);
    }

    /// Nothing that waits is older than a few seconds. At 300 events a second something always waits: the journal hears within 1 s what arrived.
    fn caught_up(&self, limit: Duration) {
        for relay in &self.relays {
            wait_until("the backlog to be gone", limit, || {
                relay.metrics().sum("sipsim_relay_oldest_pending_age_seconds", &[]) < 5.0
            });
        }
    }

    fn drained(&self, numbers: std::ops::Range<usize>, limit: Duration) {
        for relay in &self.relays[numbers] {
            wait_until("nothing to be pending", limit, || {
                relay.metrics().sum("sipsim_relay_events_pending", &[]) == 0.0
            });
        }
    }
}

fn topic(name: &str, kind: &str) -> String {
    format!("{name}.{kind}")
}

fn judge(broker: &str, brokers: &Brokers, name: &str, sent: &[Once], kills: &[(Instant, Instant)]) {
    let refused: Vec<&Once> = sent.iter().filter(|one| !one.sent.is_accepted() && !one.sent.stalled).collect();
    // Inside the process at its kill -9: begun before it was gone, and without an answer by then. HAProxy had sent it to that relay, and answers 502 (503
    // would be one that no relay took), or closes the connection without a word if both it and the relay's had carried a request before.
    let killed = format!("relay-{KILLED}");
    let inside = |one: &Once| {
        (one.sent.status.is_none() || (one.sent.status == Some(502) && one.server.as_deref() == Some(&killed)))
            && kills
                .iter()
                .any(|(before, after)| one.start <= *after + NOTICED_WITHIN && one.start + one.sent.latency >= *before)
    };
    let excused = refused.iter().filter(|one| inside(one)).count();
    let slowest = sent.iter().filter(|one| one.sent.is_accepted()).map(|one| one.sent.latency).max();
    eprintln!(
        "{broker}: {} sent, {} without a 2xx, of them {excused} inside a process at its kill -9; the slowest 2xx after {:?}",
        sent.len(),
        refused.len(),
        slowest.unwrap_or_default()
    );
    if let Some(one) = refused.iter().find(|one| !inside(one)) {
        let since: Vec<_> = kills.iter().map(|(_, after)| one.start.saturating_duration_since(*after)).collect();
        panic!(
            "{} of {} got no 2xx, the first, at {:?}, {since:?} after the kills: {:?}",
            refused.len() - excused,
            sent.len(),
            one.server,
            one.sent
        );
    }
    assert!(
        slowest.is_some_and(|slowest| slowest < Duration::from_secs(2)),
        "a 2xx came after SIPSIM's 2 s: {slowest:?}"
    );
    let accepted = sent.iter().filter(|one| one.sent.is_accepted()).count();
    let places: Vec<String> = KINDS.iter().map(|kind| topic(name, kind)).collect();
    let arrived = match broker {
        "kafka" => whole::read_topics(brokers.kafka(), &places),
        _ => whole::read_queues(brokers.rabbitmq(), &places, accepted),
    };
    let sent: Vec<Sent> = sent.iter().map(|one| one.sent.clone()).collect();
    let mut verdict = oracle::judge(&sent, &arrived);
    // Several relays interleave; each one's order is what is promised.
    verdict.reordered = out_of_order(&arrived);
    verdict.assert_kept((2 * kills.len() + 1) * 3 * WINDOW);
}

/// First deliveries of one relay and key in one place that came in another order than that relay accepted them.
fn out_of_order(arrived: &[Arrived]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let mut last: BTreeMap<(&str, String, String), String> = BTreeMap::new();
    let mut found = Vec::new();
    for one in arrived {
        let envelope: serde_json::Value = serde_json::from_str(&one.payload).expect("an envelope");
        let text = |name: &str| envelope[name].as_str().expect("the attribute is there").to_owned();
        if !seen.insert((text("relay"), text("relaysequence"))) {
            continue;
        }
        let sequence = text("relaysequence");
        let before = last.insert((&one.place, text("relay"), text("partitionkey")), sequence.clone());
        if let Some(before) = before.filter(|before| *before > sequence) {
            found.push(format!("{}: {}'s {sequence} came behind {before}", one.place, text("relay")));
        }
    }
    found
}
