//! What a broker refuses, hangs up at, or never answers costs its own event or its own topic, and is shown by name. Three of these last half a
//! minute and more, since that is how long the relay waits for an answer that does not come.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::oracle::{self, KINDS};
use crate::support::scene::{Ledger, Scene, WINDOW, assert_all_accepted_in_time};
use crate::support::{Brokers, Load, Relay, Sent, free_address, wait_until, whole};

const LONG: Duration = Duration::from_secs(120);

/// Bytes of a request past which the Kafka of a test closes the connection.
const REQUEST_MAX: usize = 300_000;

/// A body with so many bytes more.
fn larger(body: &str, by: usize) -> String {
    body.replace("  ", &" ".repeat(by))
}

fn published(scene: &Scene, output: &str, kind: &str) -> f64 {
    scene.metric("events_published_total", &[("output", output), ("event", kind)])
}

fn parked(scene: &Scene, reason: &str) -> f64 {
    scene.metric("events_parked_total", &[("output", "kafka"), ("reason", reason)])
}

/// The journal hears of what was published and parked with a second's delay.
fn pending_settles_at(scene: &Scene, expected: f64) {
    wait_until(&format!("{expected} to be pending"), LONG, || scene.pending("kafka") == expected);
}

/// Posts so many events of a kind, numbered from `first` on, one after the other.
fn post(scene: &Scene, kind: &str, first: usize, count: usize, more_bytes: usize) -> Vec<Sent> {
    let one = |number| {
        let body = larger(&oracle::body_of(kind, 0, number), more_bytes);
        let answer = scene.relay.post(body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let id = answer.json()["id"].as_str().map(str::to_owned);
        Sent { body, status: Some(200), id, latency: Duration::ZERO, stalled: false }
    };
    (first..first + count).map(one).collect()
}

#[test]
fn a_record_at_which_kafka_hangs_up_is_parked_and_the_others_go_on() {
    let brokers = Brokers::start("kafka", &["--kafka-property", &format!("socket.request.max.bytes={REQUEST_MAX}")]);
    let topics = KINDS.map(|kind| format!("hang-up.{kind}"));
    for topic in &topics {
        brokers.create_topic_with(topic, 3, &[("max.message.bytes", "10000000")]);
    }
    let config = format!("[outputs.kafka]\nbrokers = \"{}\"\ntopic = \"hang-up.{{event}}\"\n", brokers.kafka());
    let mut relay = Relay::start(&config);
    let parked = |relay: &Relay| {
        let labels = [("output", "kafka"), ("reason", "too_large")];
        relay.metrics().get("sipsim_relay_events_parked_total", &labels)
    };
    let load = Load::start(&relay, 2, |client, number| {
        thread::sleep(Duration::from_millis(20));
        let body = oracle::body(client, number);
        if client == 0 && [60, 90].contains(&number) { larger(&body, REQUEST_MAX) } else { body }
    });
    wait_until("the large ones to be accepted", LONG, || load.accepted() >= 200);
    let start = Instant::now();
    wait_until("both to be parked", Duration::from_secs(60), || parked(&relay) == 2.0);
    eprintln!("both were parked after {:?}", start.elapsed());
    let more = load.accepted() + 100;
    wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    wait_until("nothing to be pending", LONG, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "kafka")]) == 0.0
    });
    assert_eq!(Ledger::read(&relay.metrics(), "kafka").parked, 2.0);
    relay.logged(&["closes the connection at it"]);
    let (large, small): (Vec<_>, Vec<_>) = sent.into_iter().partition(|one| one.body.len() > REQUEST_MAX);
    assert_eq!(large.len(), 2);
    oracle::judge(&small, &whole::read_topics(brokers.kafka(), &topics)).assert_kept(2 * WINDOW);

    let live = |relay: &Relay| String::from_utf8_lossy(&relay.finish(&["check", "--live"]).stdout).into_owned();
    let told = live(&relay);
    assert!(told.contains(&format!("socket.request.max.bytes is {REQUEST_MAX}")), "{told}");
    // What is known to be too large is not even tried.
    relay.configure(&(config + "record_max = \"250 kB\"\n"));
    relay.restart();
    let breaks = |relay: &Relay| relay.stderr().matches("the connection breaks").count();
    let before = breaks(&relay);
    assert_eq!(relay.post(larger(&oracle::body(0, 1_200_000), REQUEST_MAX).as_bytes()).status, 200);
    wait_until("it to be parked", LONG, || parked(&relay) == 1.0);
    relay.logged(&["larger than `record_max`"]);
    assert_eq!(breaks(&relay), before);
    let told = live(&relay);
    assert!(!told.contains("socket.request.max.bytes"), "{told}");
}

#[test]
fn a_topic_that_refuses_every_timestamp_is_held_and_parks_nothing() {
    let scene = Scene::prepare(Brokers::shared(), "stamps", "");
    let (refused, taken) = ("tags", "incoming_call_start");
    for kind in [refused, taken] {
        scene.make_topic(kind, &[]);
    }
    // Older by the time that it takes to get there.
    let setting = "message.timestamp.before.max.ms";
    scene.brokers.set_topic(&scene.of(refused), (setting, "0"));
    scene.configure(&scene.kafka_output("{event}"), "");
    let mut scene = scene.up();
    let mut sent = post(&scene, refused, 0, 25, 2);
    sent.extend(post(&scene, taken, 0, 25, 2));
    scene.held("kafka", refused, "rejected");
    wait_until("the other topic's to be out", LONG, || published(&scene, "kafka", taken) == 25.0);
    pending_settles_at(&scene, 25.0);
    assert_eq!(parked(&scene, "rejected"), 0.0);
    scene.relay.restart();
    scene.held("kafka", refused, "rejected");
    stuck(&scene, "kafka", refused, "rejected");
    assert_eq!((parked(&scene, "rejected"), scene.pending("kafka")), (0.0, 25.0));
    scene.brokers.set_topic(&scene.of(refused), (setting, "3600000"));
    scene.drained(&["kafka"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_kafka(&[refused, taken]));
    verdict.assert_kept(WINDOW);
    scene.assert_ledger("kafka", &verdict, 0);
}

/// Waits until the oldest event of a topic is named in status, metrics and log.
fn stuck(scene: &Scene, output: &str, kind: &str, reason: &str) {
    let topic = scene.of(kind);
    let labels = [("output", output), ("topic", &*topic)];
    let limit = Duration::from_secs(60);
    wait_until(&format!("{topic} to be shown as stuck"), limit, || scene.metric("topic_stuck_sequence", &labels) > 0.0);
    let number = scene.metric("topic_stuck_sequence", &labels);
    assert!(scene.metric("topic_stuck_bytes", &labels) > 500.0);
    assert!((10.0..100.0).contains(&scene.metric("topic_stuck_age_seconds", &labels)));
    let status = scene.relay.get("/api/v1/status").expect("the admin port answers").json();
    let shown = status["outputs"][output]["stuck"].as_array().expect("a list");
    let shown = shown.iter().find(|one| one["topic"] == topic.as_str()).expect("it is shown");
    assert_eq!((shown["sequence"].as_f64(), shown["reason"].as_str()), (Some(number), Some(reason)), "{shown}");
    scene.relay.logged(&[&format!("{topic} makes no progress: its oldest event, {number}")]);
}

#[test]
fn a_limit_that_was_set_too_small_holds_its_topic_and_large_records_are_parked_each() {
    let scene = Scene::prepare(Brokers::shared(), "limits", "");
    let [limited, strict, segmented] = KINDS;
    scene.make_topic(limited, &[]);
    scene.make_topic(strict, &[("max.message.bytes", "140000")]);
    // Kafka's smallest, since version 4.
    scene.make_topic(segmented, &[("max.message.bytes", "5000000"), ("segment.bytes", "1048576")]);
    scene.configure(&scene.kafka_output("{event}"), "");
    let mut scene = scene.up();
    let mut sent = post(&scene, limited, 0, 20, 200);
    scene.drained(&["kafka"], LONG);

    scene.brokers.set_topic(&scene.of(limited), ("max.message.bytes", "20"));
    sent.extend(post(&scene, limited, 100, 30, 100));
    scene.held("kafka", limited, "too_large");
    pending_settles_at(&scene, 29.0);
    assert_eq!(parked(&scene, "too_large"), 1.0, "the first, which might be to blame");
    scene.relay.restart();
    scene.held("kafka", limited, "too_large");
    pending_settles_at(&scene, 29.0);
    assert_eq!(parked(&scene, "too_large"), 0.0);

    // Long transcripts, two in a row, and one that no segment of its topic can hold: each is itself at fault.
    let mut other = post(&scene, strict, 0, 3, 2);
    let large = post(&scene, strict, 3, 2, 150_000);
    other.extend(post(&scene, strict, 5, 3, 2));
    other.extend(post(&scene, segmented, 0, 3, 2));
    let large = [large, post(&scene, segmented, 3, 1, 2_000_000)].concat();
    other.extend(post(&scene, segmented, 4, 3, 2));
    wait_until("the large ones to be parked", LONG, || parked(&scene, "too_large") == 3.0);
    wait_until("the others to be out", LONG, || {
        published(&scene, "kafka", strict) == 6.0 && published(&scene, "kafka", segmented) == 6.0
    });
    oracle::judge(&other, &scene.in_kafka(&[strict, segmented])).assert_kept(WINDOW);
    scene.held("kafka", limited, "too_large");

    scene.brokers.set_topic(&scene.of(limited), ("max.message.bytes", "1000000"));
    scene.drained(&["kafka"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_kafka(&[limited]));
    assert!(verdict.reordered.is_empty() && verdict.lost.len() <= 1, "{verdict}");
    let requeued = scene.relay.finish(&["journal", "requeue", "--output", "kafka", "--yes"]);
    assert!(requeued.status.success(), "{requeued:?}");
    wait_until("what was parked with no fault of its own to be out", LONG, || {
        scene.metric("events_parked", &[("output", "kafka")]) == large.len() as f64
    });
    let verdict = oracle::judge(&sent, &scene.in_kafka(&[limited]));
    assert!(verdict.lost.is_empty() && verdict.duplicates == 0, "{verdict}");
}

/// A line to RabbitMQ on which confirms can be lost.
struct Line {
    address: SocketAddr,
    /// So many more of the broker's `basic.ack` are dropped.
    to_lose: Arc<AtomicI64>,
}

/// A `basic.ack`: class 60, method 80, at the beginning of a method's frame.
const ACK: [u8; 4] = [0, 60, 0, 80];
const FRAME_METHOD: u8 = 1;

impl Line {
    /// For as long as the test's process lives.
    fn start(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind(free_address()).expect("the port is free");
        let (address, to_lose) = (listener.local_addr().expect("it listens"), Arc::<AtomicI64>::default());
        let losing = Arc::clone(&to_lose);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(broker) else { continue };
                let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
                let (mut from_near, mut to_far) = (copy(&near), copy(&far));
                thread::spawn(move || std::io::copy(&mut from_near, &mut to_far));
                let losing = Arc::clone(&losing);
                thread::spawn(move || carry_frames(far, near, &losing));
            }
        });
        Self { address, to_lose }
    }

    fn lose(&self, acks: i64) {
        self.to_lose.store(acks, Ordering::SeqCst);
    }

    fn has_lost_all(&self) -> bool {
        self.to_lose.load(Ordering::SeqCst) <= 0
    }
}

/// Frames are a type, a channel of two bytes, a length of four, so many bytes, and one that ends them.
fn carry_frames(mut from: TcpStream, mut to: TcpStream, to_lose: &AtomicI64) -> std::io::Result<()> {
    loop {
        let mut frame = vec![0; 7];
        from.read_exact(&mut frame)?;
        let length = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(7 + length + 1, 0);
        from.read_exact(&mut frame[7..])?;
        let is_ack = frame[0] == FRAME_METHOD && frame[7..].starts_with(&ACK);
        if is_ack && to_lose.fetch_sub(1, Ordering::SeqCst) > 0 {
            continue;
        }
        to.write_all(&frame)?;
    }
}

/// Lasts half a minute, for which the relay waits for the confirm.
#[test]
fn a_confirm_that_is_lost_delays_its_topic_by_a_minute_at_most() {
    let scene = Scene::prepare(Brokers::shared(), "lost-ack", "");
    for kind in KINDS {
        scene.make_queue(kind, "{}");
        scene.bind(kind, kind);
    }
    let at = scene.brokers.rabbitmq()["amqp://".len()..].split('/').next().map(str::to_owned).expect("an address");
    let line = Line::start(at.parse().expect("an address"));
    scene.configure(&scene.rabbitmq_output("{event}").replace(&at, &line.address.to_string()), "");
    let scene = scene.up();
    let mut sent: Vec<Sent> = KINDS.iter().flat_map(|kind| post(&scene, kind, 0, 1, 2)).collect();
    scene.drained(&["rabbitmq"], LONG);

    line.lose(1);
    sent.extend(post(&scene, "tags", 1, 1, 2));
    wait_until("a confirm to be lost", LONG, || line.has_lost_all());
    let start = Instant::now();
    let mut number = 1;
    wait_until("the topic to be held", Duration::from_secs(30), || {
        number += 1;
        sent.extend(post(&scene, KINDS[1], number, 1, 2));
        let labels = [("output", "rabbitmq"), ("topic", &*scene.of("tags")), ("reason", "not_enough_replicas")];
        scene.relay.metrics().find("sipsim_relay_topic_held", &labels) == Some(1.0)
    });
    // These wait behind it.
    sent.extend(post(&scene, "tags", 2, 10, 2));
    wait_until("the other topic's to be out", LONG, || published(&scene, "rabbitmq", KINDS[1]) == number as f64);
    assert_eq!(scene.metric("output_up", &[("output", "rabbitmq")]), 1.0);
    wait_until("only those to be pending", LONG, || scene.pending("rabbitmq") == 11.0);
    scene.drained(&["rabbitmq"], Duration::from_secs(70));
    let taken = start.elapsed();
    eprintln!("the topic went on after {taken:?}");
    assert!((Duration::from_secs(25)..Duration::from_secs(75)).contains(&taken), "{taken:?}");
    let timeouts = [("output", "rabbitmq"), ("reason", "timeout")];
    assert_eq!(scene.metric("publish_failures_total", &timeouts), 1.0);
    let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&KINDS, sent.len() + 1));
    verdict.assert_kept(1);
    scene.assert_ledger("rabbitmq", &verdict, 0);
}

/// A replay whose confirm is lost is sent again too. Lasts half a minute.
#[test]
fn a_replay_whose_confirm_is_lost_is_sent_again() {
    let scene = Scene::prepare(Brokers::shared(), "lost-replay", "");
    scene.make_queue("tags", "{}");
    scene.bind("tags", "tags");
    let at = scene.brokers.rabbitmq()["amqp://".len()..].split('/').next().map(str::to_owned).expect("an address");
    let line = Line::start(at.parse().expect("an address"));
    scene.configure(&scene.rabbitmq_output("{event}").replace(&at, &line.address.to_string()), "");
    let scene = scene.up();
    let sent = post(&scene, "tags", 0, 1, 2);
    scene.drained(&["rabbitmq"], LONG);
    line.lose(1);
    let ordered = scene.relay.finish(&["journal", "replay", "--output", "rabbitmq", "--since", "1h", "--yes"]);
    assert!(ordered.status.success(), "{ordered:?}");
    wait_until("a confirm to be lost", LONG, || line.has_lost_all());
    wait_until("the replay to be confirmed", Duration::from_secs(90), || {
        scene.metric("events_replayed_total", &[("output", "rabbitmq")]) == 1.0
    });
    let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&["tags"], 3));
    assert!(verdict.lost.is_empty() && verdict.duplicates == 2, "{verdict}");
}

/// Stops a quorum queue's leader, for as long as the process lives that does so.
fn suspend(scene: &Scene, kind: &str) {
    let queue = scene.of(kind);
    let order = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), {{Name, _}} = amqqueue:get_pid(Q), \
         Pid = whereis(Name), \
         register(suspender, spawn(fun() -> erlang:suspend_process(Pid), receive resume -> ok end end))."
    );
    scene.brokers.rabbitmqctl(&["eval", &order]);
}

fn resume(scene: &Scene) {
    scene.brokers.rabbitmqctl(&["eval", "suspender ! resume."]);
}

/// A quorum queue whose leader does nothing is one that has lost its majority: RabbitMQ takes what is sent to it, and confirms nothing. Lasts more
/// than a minute: longer than two waits for an answer.
#[test]
fn a_queue_that_confirms_nothing_is_its_topics_fault() {
    let scene = Scene::prepare(Brokers::shared(), "no-majority", "");
    for kind in KINDS {
        scene.make_queue(kind, "{}");
        scene.bind(kind, kind);
    }
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let mut sent: Vec<Sent> = KINDS.iter().flat_map(|kind| post(&scene, kind, 0, 1, 2)).collect();
    scene.drained(&["rabbitmq"], LONG);
    let queue = scene.of("tags");
    suspend(&scene, "tags");
    let (start, mut number) = (Instant::now(), 0);
    let held = [("output", "rabbitmq"), ("topic", &*queue), ("reason", "not_enough_replicas")];
    let mut held_after = None;
    while start.elapsed() < Duration::from_secs(80) {
        number += 1;
        let others = published(&scene, "rabbitmq", KINDS[1]);
        for kind in KINDS {
            sent.extend(post(&scene, kind, number, 1, 2));
        }
        wait_until("the others to go on", Duration::from_secs(10), || published(&scene, "rabbitmq", KINDS[1]) > others);
        let metrics = scene.relay.metrics();
        assert_eq!(metrics.get("sipsim_relay_output_up", &[("output", "rabbitmq")]), 1.0, "it is the topic's fault");
        let is_held = metrics.find("sipsim_relay_topic_held", &held) == Some(1.0);
        if is_held {
            held_after.get_or_insert(start.elapsed());
        }
        assert_eq!(is_held, held_after.is_some(), "once held, it is until it takes something");
    }
    eprintln!("held after {held_after:?}; {number} events of each kind");
    assert!(held_after.is_some_and(|after| after < Duration::from_secs(30)), "{held_after:?}");
    stuck(&scene, "rabbitmq", "tags", "not_enough_replicas");
    resume(&scene);
    scene.drained(&["rabbitmq"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&KINDS, sent.len()));
    // What was in flight when the queue stopped confirming is sent again, and the oldest now and then: at most what one topic may have in flight.
    verdict.assert_kept(1_000);
    scene.assert_ledger("rabbitmq", &verdict, 0);
}
