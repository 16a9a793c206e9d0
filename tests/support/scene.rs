//! A relay with both brokers, and the oracle's view of them: topics and queues of its own, so that scenes share brokers without seeing each other.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::oracle::{self, Arrived, KINDS, Verdict};
use super::{Brokers, Load, Metrics, Proxy, Relay, Sent, free_address, wait_until, whole};

/// What may arrive twice for each crash or lost connection, an output: what may be in flight (10,000), and the cursor's lag (1,000). DESIGN §7.
pub const WINDOW: usize = 11_000;
/// Partitions of each topic.
const PARTITIONS: i32 = 3;

/// One relay, its topics and queues.
pub struct Scene {
    pub name: String,
    pub relay: Relay,
    pub brokers: Brokers,
}

impl Scene {
    /// Makes the topics and queues and starts a relay with both outputs. `config` is added to its configuration.
    pub fn start(brokers: Brokers, name: &str, config: &str) -> Self {
        let scene = Self::prepare(brokers, name, config);
        scene.make_all();
        scene.up()
    }

    /// As [`Scene::start`] with brokers of its own, both behind proxies: Kafka's and RabbitMQ's. Only one test can stand in the place where Kafka says that
    /// it is to be found.
    pub fn start_proxied(name: &str) -> (Self, [Proxy; 2]) {
        let scene = Self::prepare(Brokers::own(), name, "");
        let advertised = scene.brokers.address("KAFKA_PROXIED_ADVERTISED");
        let kafka = Proxy::start(advertised, scene.brokers.address("KAFKA_PROXIED"));
        let outputs = scene.both().replace(scene.brokers.kafka(), &advertised.to_string());
        let (rabbitmq, outputs) = scene.rabbitmq_proxied(&outputs);
        scene.configure(&outputs, "");
        scene.make_all();
        (scene.up(), [kafka, rabbitmq])
    }

    /// A proxy before RabbitMQ, and the outputs as they have to be to go by it.
    pub fn rabbitmq_proxied(&self, outputs: &str) -> (Proxy, String) {
        let address = self.brokers.rabbitmq_address();
        let proxy = Proxy::start(free_address(), address);
        let outputs = outputs.replace(&address.to_string(), &proxy.address.to_string());
        (proxy, outputs)
    }

    /// With neither topics nor queues, and the relay not started.
    pub fn prepare(brokers: Brokers, name: &str, config: &str) -> Self {
        // Brokers keep what an earlier test or run left in them.
        let name = format!("{name}-{:08x}", fastrand::u32(..));
        let relay = Relay::prepare("");
        let scene = Self { name, relay, brokers };
        scene.make_exchange();
        scene.configure(&scene.both(), config);
        scene
    }

    /// Topics, and queues with their bindings, of all kinds.
    fn make_all(&self) {
        for kind in KINDS {
            self.make_topic(kind, &[]);
            self.make_queue(kind, "{}");
            self.bind(kind, kind);
        }
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
        self.make_exchange_of("topic");
    }

    /// The scene's exchange, of this type.
    pub fn make_exchange_of(&self, kind: &str) {
        let path = format!("/api/exchanges/%2f/{}", self.name);
        self.brokers.ask("PUT", &path, &serde_json::json!({ "type": kind, "durable": true }).to_string());
    }

    pub fn delete_exchange(&self) {
        self.brokers.ask("DELETE", &format!("/api/exchanges/%2f/{}", self.name), "");
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

    /// As [`Scene::load_from`], each client pausing so long before each request.
    pub fn load_paced(&self, clients: usize, pause: Duration) -> Load {
        Load::start(&self.relay, clients, move |client, number| {
            std::thread::sleep(pause);
            oracle::body(client, number)
        })
    }

    /// As [`Scene::load_from`] and [`Scene::load_paced`] at once.
    pub fn load_paced_from(&self, clients: usize, pause: Duration, first: usize) -> Load {
        let first = first - first % 12;
        Load::start(&self.relay, clients, move |client, number| {
            std::thread::sleep(pause);
            oracle::body(client, first + number)
        })
    }

    pub fn is_ready(&self) -> bool {
        self.relay.get("/readyz").is_some_and(|answer| answer.status == 200)
    }

    /// Waits until a topic or routing key is shown as held for this reason.
    pub fn held(&self, output: &str, kind: &str, reason: &str) {
        let topic = self.of(kind);
        wait_until(&format!("{topic} to be shown as held, {reason}"), Duration::from_secs(60), || {
            let labels = [("output", output), ("topic", &*topic), ("reason", reason)];
            self.relay.metrics().find("sipsim_relay_topic_held", &labels) == Some(1.0)
        });
    }

    /// Lets the queue of a kind hold so many messages, and refuse (nack) what comes then; `None`: any number again.
    pub fn limit_queue(&self, kind: &str, messages: Option<usize>) {
        let path = format!("/api/policies/%2f/{}", self.of(kind));
        let Some(messages) = messages else {
            self.brokers.ask("DELETE", &path, "");
            return;
        };
        let definition = serde_json::json!({ "max-length": messages, "overflow": "reject-publish" });
        let policy = serde_json::json!({ "pattern": format!("^{}$", self.of(kind)), "definition": definition, "apply-to": "queues" });
        self.brokers.ask("PUT", &path, &policy.to_string());
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
        // Before the journal is open, nothing is known to be pending.
        wait_until("the relay to be ready", limit, || self.is_ready());
        wait_until(&format!("nothing to be pending at {outputs:?}"), limit, || {
            outputs.iter().all(|output| self.pending(output) == 0.0)
        });
        eprintln!("{outputs:?} drained after {:?}", start.elapsed());
    }

    /// Waits until no output has more than so many pending: all but nothing, under load.
    pub fn drained_to(&self, pending: f64, limit: Duration) {
        let start = Instant::now();
        wait_until("the backlog to be drained", limit, || {
            ["kafka", "rabbitmq"].iter().all(|output| self.pending(output) <= pending)
        });
        eprintln!("the backlog drained after {:?}", start.elapsed());
    }

    /// Everything in the topics of these kinds.
    pub fn in_kafka(&self, kinds: &[&str]) -> Vec<Arrived> {
        let topics: Vec<String> = kinds.iter().map(|kind| self.of(kind)).collect();
        whole::read_topics(self.brokers.kafka(), &topics)
    }

    /// Takes everything out of the queues of these kinds: at least so many messages.
    pub fn in_rabbitmq(&self, kinds: &[&str], at_least: usize) -> Vec<Arrived> {
        let queues: Vec<String> = kinds.iter().map(|kind| self.of(kind)).collect();
        whole::read_queues(self.brokers.rabbitmq(), &queues, at_least)
    }

    /// Both outputs against what was sent, after everything has left: nothing lost, altered, invented or out of order, at most
    /// `windows` windows of duplicates each, and the ledger counts each event once.
    pub fn judge(&self, sent: &[Sent], windows: usize) {
        let accepted = sent.iter().filter(|one| one.is_accepted()).count();
        assert!(accepted > 0, "nothing was accepted");
        let slowest = sent.iter().filter(|one| one.is_accepted()).map(|one| one.latency).max().unwrap_or_default();
        eprintln!("{} sent, {accepted} accepted, the slowest 2xx after {slowest:?}", sent.len());
        for (output, verdict) in [
            ("kafka", oracle::judge(sent, &self.in_kafka(&KINDS))),
            ("rabbitmq", oracle::judge(sent, &self.in_rabbitmq(&KINDS, accepted))),
        ] {
            eprintln!("-- {output}");
            verdict.assert_kept(windows * WINDOW);
            self.assert_ledger(output, &verdict, 0);
        }
        // Last, so that on a machine at its limit the rest is known.
        assert!(slowest < Duration::from_secs(2), "a 2xx took {slowest:?}, and SIPSIM gives two seconds");
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
    let mut scene = Scene::start(Brokers::shared(), name, "");
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

/// So many faults one after another under load, as the seed decides: brokers stop, die, hang and come back, and the relay is killed amid it.
pub fn faults(name: &str, count: usize, seed: u64) {
    eprintln!("{count} faults, seed {seed}");
    let mut scene = Scene::start(Brokers::own(), name, "");
    let load = scene.load_paced(8, Duration::from_millis(2));
    let mut random = fastrand::Rng::with_seed(seed);
    // What is to be undone before the end, by broker.
    let mut down = [None, None];
    let mut kills = 0;
    for fault in 0..count {
        let broker = random.usize(0..2);
        let name = ["kafka", "rabbitmq"][broker];
        match (random.u8(0..3), down[broker].take()) {
            (0, undo) => {
                down[broker] = undo;
                kills += 1;
                eprintln!("fault {fault}: the relay is killed");
                scene.relay.restart();
            }
            (_, Some("hang")) => {
                eprintln!("fault {fault}: {name} goes on");
                scene.brokers.signal(name, Signal::CONT);
            }
            (_, Some(_)) => {
                eprintln!("fault {fault}: {name} starts");
                scene.brokers.start_one(name);
            }
            (_, None) => {
                let how = random.choice(["stop", "kill", "hang"]).expect("there are three");
                eprintln!("fault {fault}: {name}, {how}");
                match how {
                    "stop" => scene.brokers.stop_one(name),
                    "kill" => scene.brokers.kill_one(name),
                    _ => scene.brokers.signal(name, Signal::STOP),
                }
                down[broker] = Some(how);
            }
        }
        let more = load.accepted() + random.u64(1..3_000);
        wait_until("some more events to be accepted", Duration::from_secs(60), || load.accepted() >= more);
    }
    for (name, undo) in ["kafka", "rabbitmq"].into_iter().zip(down) {
        match undo {
            Some("hang") => scene.brokers.signal(name, Signal::CONT),
            Some(_) => scene.brokers.start_one(name),
            None => {}
        }
    }
    let sent = load.stop();
    // What found nobody listening was the kills' doing; what was answered was answered well, whatever the brokers did.
    let answered: Vec<Sent> = sent.iter().filter(|one| one.status.is_some()).cloned().collect();
    assert_all_accepted_in_time(&answered);
    scene.drained(&["kafka", "rabbitmq"], Duration::from_secs(300));
    scene.judge(&sent, kills + count);
}

/// A relay that starts with so many pending events is ready at once, and drains them in order while it accepts.
pub fn backlog(name: &str, events: u64) {
    let (mut scene, mut proxies) = Scene::start_proxied(name);
    proxies.iter_mut().for_each(Proxy::refuse);
    let load = scene.load(32);
    wait_until("the backlog", Duration::from_secs(600), || load.accepted() >= events);
    let mut sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.relay.kill9();
    proxies.iter_mut().for_each(Proxy::restore);
    let start = Instant::now();
    scene.relay.run();
    wait_until("the relay to be ready", Duration::from_secs(5), || scene.is_ready());
    eprintln!("ready after {:?} with {} pending", start.elapsed(), scene.pending("kafka"));
    let load = scene.load_from(8, 12_000_000);
    scene.drained_to(500.0, Duration::from_secs(1800));
    let memory = scene.relay.memory_max();
    eprintln!("{} MB of memory at the most", memory / 1_000_000);
    assert!(memory < 150_000_000, "{memory} bytes of memory while it drained");
    let newer = load.stop();
    assert_all_accepted_in_time(&newer);
    assert!(newer.len() > 100, "it accepted only {} while it drained", newer.len());
    sent.extend(newer);
    scene.drained(&["kafka", "rabbitmq"], Duration::from_secs(60));
    scene.judge(&sent, 1);
}

/// Every answer was a 2xx, within the two seconds that SIPSIM gives; or a 503 within them, while the disk of this machine stood still.
///
/// Gives how many were accepted: of what was refused while the disk stood still nobody knows whether it was kept.
pub fn assert_all_accepted_in_time(sent: &[Sent]) -> usize {
    let refused: Vec<&Sent> = sent.iter().filter(|one| !one.is_accepted() && !one.stalled).collect();
    let stalled = sent.iter().filter(|one| one.stalled).count();
    if stalled > 0 {
        eprintln!("{stalled} of {} were refused while the disk stood still", sent.len());
    }
    let late = sent.iter().filter(|one| one.latency >= Duration::from_secs(2)).count();
    let slowest = sent.iter().map(|one| one.latency).max().unwrap_or_default();
    assert!(
        refused.is_empty() && late == 0,
        "of {} answers {} were no 2xx (such as {:?}) and {late} late; the slowest took {slowest:?}",
        sent.len(),
        refused.len(),
        refused.first()
    );
    sent.len() - stalled
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
