//! A relay with both brokers, and the oracle's view of them: topics and queues of its own, so that scenes share two brokers without
//! seeing each other. Scenes take turns, since some stop a broker.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::oracle::{self, Arrived, KINDS, Verdict};
use super::{Brokers, Load, Metrics, Relay, Sent, wait_for, wait_until, whole};

/// What may arrive twice for each crash or lost connection, an output: what was in flight (10,000), and the cursor's lag (1,000). DESIGN §7.
pub const WINDOW: usize = 11_000;
/// Partitions of each topic.
const PARTITIONS: i32 = 3;

/// Both brokers, for one at a time.
pub fn brokers() -> MutexGuard<'static, Brokers> {
    static BROKERS: OnceLock<Mutex<Brokers>> = OnceLock::new();
    // Never dropped; `scripts/brokers` ends them with this process.
    let brokers = BROKERS.get_or_init(|| Mutex::new(Brokers::start("all", &[])));
    let brokers = brokers.lock().unwrap_or_else(PoisonError::into_inner);
    for broker in ["kafka", "rabbitmq"] {
        // A scene that failed may have left one hung or stopped.
        match try_signal(&brokers, broker, Signal::CONT) {
            true => {}
            false => brokers.start_one(broker),
        }
    }
    brokers
}

/// Sends a signal to a broker's process.
pub fn signal(brokers: &Brokers, broker: &str, signal: Signal) {
    assert!(try_signal(brokers, broker, signal), "{broker} runs");
}

fn try_signal(brokers: &Brokers, broker: &str, signal: Signal) -> bool {
    let pid = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| brokers.pid(broker))).ok();
    let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
}

/// One relay, its topics and queues.
pub struct Scene {
    name: String,
    pub relay: Relay,
    pub brokers: MutexGuard<'static, Brokers>,
}

impl Scene {
    /// Makes the topics and queues and starts a relay with both outputs. `config` is added to its configuration.
    pub fn start(name: &str, config: &str) -> Self {
        let scene = Self::prepare(name, config);
        for kind in KINDS {
            scene.make_topic(kind, &[]);
            scene.make_queue(kind, "{}");
            scene.bind(kind, kind);
        }
        scene.up()
    }

    /// With neither topics nor queues, and the relay not started.
    pub fn prepare(name: &str, config: &str) -> Self {
        let brokers = brokers();
        // Brokers that the environment gave keep what an earlier run left.
        let name = format!("{name}-{:08x}", fastrand::u32(..));
        let relay = Relay::prepare("");
        let scene = Self { name, relay, brokers };
        scene.make_exchange();
        scene.configure(&scene.both(), config);
        scene
    }

    pub fn up(mut self) -> Self {
        self.relay.run();
        self
    }

    pub fn configure(&self, outputs: &str, config: &str) {
        self.relay.configure(&format!("{config}\n{outputs}"));
    }

    pub fn both(&self) -> String {
        self.kafka_output("{event}") + &self.rabbitmq_output("{event}")
    }

    /// The section of the output `kafka`, with a topic under this scene's name.
    pub fn kafka_output(&self, topic: &str) -> String {
        format!("[outputs.kafka]\nbrokers = \"{}\"\ntopic = \"{}.{topic}\"\n", self.brokers.kafka(), self.name)
    }

    pub fn rabbitmq_output(&self, key: &str) -> String {
        let (url, name) = (self.brokers.rabbitmq(), &self.name);
        format!("[outputs.rabbitmq]\nurls = [\"{url}\"]\nexchange = \"{name}\"\nrouting_key = \"{name}.{key}\"\n")
    }

    /// The topic, queue or routing key of a kind.
    pub fn of(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }

    pub fn make_topic(&self, kind: &str, settings: &[(&str, &str)]) {
        self.brokers.create_topic_with(&self.of(kind), PARTITIONS, settings);
    }

    fn make_exchange(&self) {
        let path = format!("/api/exchanges/%2f/{}", self.name);
        self.brokers.ask("PUT", &path, r#"{"type":"topic","durable":true}"#);
    }

    /// A quorum queue, with further arguments in JSON.
    pub fn make_queue(&self, kind: &str, arguments: &str) {
        let mut all: serde_json::Value = serde_json::from_str(arguments).expect("the test's JSON");
        all["x-queue-type"] = all.get("x-queue-type").cloned().unwrap_or("quorum".into());
        let order = serde_json::json!({ "durable": true, "arguments": all });
        self.brokers.ask("PUT", &format!("/api/queues/%2f/{}", self.of(kind)), &order.to_string());
    }

    /// Binds a kind's queue to a kind's routing key.
    pub fn bind(&self, queue: &str, key: &str) {
        let path = format!("/api/bindings/%2f/e/{}/q/{}", self.name, self.of(queue));
        self.brokers.ask("POST", &path, &serde_json::json!({ "routing_key": self.of(key) }).to_string());
    }

    pub fn load(&self, clients: usize) -> Load {
        Load::start(&self.relay, clients, oracle::body)
    }

    /// Numbers begin at `first` (a multiple of 12, so that kinds and keys stay with them), for a second load that must not repeat the first.
    pub fn load_from(&self, clients: usize, first: usize) -> Load {
        let first = first - first % 12;
        Load::start(&self.relay, clients, move |client, number| oracle::body(client, first + number))
    }

    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.relay.metrics().get(&format!("sipsim_relay_{name}"), labels)
    }

    pub fn pending(&self, output: &str) -> f64 {
        self.metric("events_pending", &[("output", output)])
    }

    /// Waits until these outputs have nothing pending.
    pub fn drained(&self, outputs: &[&str], limit: Duration) {
        let start = Instant::now();
        wait_until(&format!("nothing to be pending at {outputs:?}"), limit, || {
            outputs.iter().all(|output| self.pending(output) == 0.0)
        });
        eprintln!("{outputs:?} drained after {:?}", start.elapsed());
    }

    /// Everything in the topics of these kinds.
    pub fn in_kafka(&self, kinds: &[&str]) -> Vec<Arrived> {
        let topics: Vec<String> = kinds.iter().map(|kind| self.of(kind)).collect();
        whole::read_topics(self.brokers.kafka(), &topics)
    }

    /// Takes everything out of the queues of these kinds, once there are at least so many messages in them.
    pub fn in_rabbitmq(&self, kinds: &[&str], at_least: usize) -> Vec<Arrived> {
        let queues: Vec<String> = kinds.iter().map(|kind| self.of(kind)).collect();
        let mut counts = Vec::new();
        wait_for("the queues to show what they have", Duration::from_secs(60), || {
            counts = queues.iter().map(|queue| self.messages(queue)).collect();
            (counts.iter().sum::<u64>() >= at_least as u64).then_some(())
        });
        whole::read_queues(self.brokers.rabbitmq(), &queues)
    }

    fn messages(&self, queue: &str) -> u64 {
        self.brokers.ask("GET", &format!("/api/queues/%2f/{queue}"), "").json()["messages"].as_u64().unwrap_or(0)
    }

    /// Both outputs against what was sent, after everything has left: nothing lost, altered, invented or out of order, at most
    /// `windows` windows of duplicates each, and the ledger counts each event once.
    pub fn judge(&self, sent: &[Sent], windows: usize) {
        let accepted = sent.iter().filter(|one| one.is_accepted()).count();
        assert!(accepted > 0, "nothing was accepted");
        let slowest = sent.iter().filter(|one| one.is_accepted()).map(|one| one.latency).max().unwrap_or_default();
        eprintln!("{} sent, {accepted} accepted, the slowest 2xx after {slowest:?}", sent.len());
        assert!(slowest < Duration::from_secs(2), "a 2xx took {slowest:?}, and SIPSIM gives two seconds");
        for (output, verdict) in [
            ("kafka", oracle::judge(sent, &self.in_kafka(&KINDS))),
            ("rabbitmq", oracle::judge(sent, &self.in_rabbitmq(&KINDS, accepted))),
        ] {
            eprintln!("-- {output}");
            verdict.assert_kept(windows * WINDOW);
            self.assert_ledger(output, &verdict, 0);
        }
    }

    /// The ledger of an output that has nothing pending: each event counted once.
    pub fn assert_ledger(&self, output: &str, verdict: &Verdict, parked: usize) {
        let ledger = Ledger::read(&self.relay.metrics(), output);
        let expected = Ledger {
            accepted: (verdict.delivered + parked) as f64,
            published: verdict.delivered as f64,
            pending: 0.0,
            parked: parked as f64,
            discarded: 0.0,
        };
        assert_eq!(ledger, expected, "the ledger of {output}: {verdict}");
    }
}

/// So many kill -9 under load, at moments that the seed decides: from a relay's first milliseconds to well into its work.
pub fn kills(name: &str, count: usize, seed: u64) {
    eprintln!("{count} kills, seed {seed}");
    let mut scene = Scene::start(name, "");
    let load = scene.load(8);
    let mut random = fastrand::Rng::with_seed(seed);
    for kill in 0..count {
        let more = load.accepted() + random.u64(1..400);
        wait_until("some more events to be accepted", Duration::from_secs(60), || load.accepted() >= more);
        // Kafka connects later than RabbitMQ; half of the kills are to hit it at work too.
        if kill % 2 == 0 {
            let output = ("output", "kafka");
            wait_until("Kafka to be at work", Duration::from_secs(60), || {
                scene.relay.metrics().sum("sipsim_relay_events_published_total", &[output]) > 0.0
            });
            let more = load.accepted() + random.u64(1..400);
            wait_until("some more events to be accepted", Duration::from_secs(60), || load.accepted() >= more);
        }
        scene.relay.restart();
    }
    let sent = load.stop();
    scene.drained(&["kafka", "rabbitmq"], Duration::from_secs(120));
    scene.judge(&sent, count);
}

/// Every answer was a 2xx, within the two seconds that SIPSIM gives.
pub fn assert_all_accepted_in_time(sent: &[Sent]) {
    let refused: Vec<&Sent> = sent.iter().filter(|one| !one.is_accepted()).collect();
    let late = sent.iter().filter(|one| one.latency >= Duration::from_secs(2)).count();
    let slowest = sent.iter().map(|one| one.latency).max().unwrap_or_default();
    assert!(
        refused.is_empty() && late == 0,
        "of {} answers {} were no 2xx (such as {:?}) and {late} late; the slowest took {slowest:?}",
        sent.len(),
        refused.len(),
        refused.first()
    );
}

/// One output's line of the ledger (DESIGN §6).
#[derive(Debug, PartialEq)]
pub struct Ledger {
    pub accepted: f64,
    pub published: f64,
    pub pending: f64,
    pub parked: f64,
    pub discarded: f64,
}

impl Ledger {
    pub fn read(metrics: &Metrics, output: &str) -> Self {
        let of = |state| metrics.get("sipsim_relay_ledger_events", &[("output", output), ("state", state)]);
        let ledger = Self {
            accepted: of("accepted"),
            published: of("published"),
            pending: of("pending"),
            parked: of("parked"),
            discarded: of("discarded"),
        };
        let sum = ledger.published + ledger.pending + ledger.parked + ledger.discarded;
        assert_eq!(ledger.accepted, sum, "the ledger of {output} adds up: {ledger:?}");
        ledger
    }
}
