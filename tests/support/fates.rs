//! Outputs whose topics and queues fare differently, and what a broker does with what it took: one fate a function, each ending with the oracle's
//! verdict and the ledger. `tests/brokers` runs the short ones, `tests/faults` all.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::oracle::{self, KINDS};
use super::scene::{Ledger, Scene, WINDOW, assert_all_accepted_in_time};
use super::{Brokers, Load, Sent, wait_until};

const LONG: Duration = Duration::from_secs(120);
const BOTH: [&str; 2] = ["kafka", "rabbitmq"];
/// The contract does not say how soon; `docs/reliability.md` says what was seen, and this is what a machine at its limit may need.
const AWAY_WITHIN: Duration = Duration::from_secs(10);

/// Bytes that a strict topic takes: more than a batch of the relay's (128 KiB), as otherwise Kafka refuses whole batches of small ones.
const TOPIC_MAX: &str = "140000";
/// Of a body that is more.
const TOO_LARGE: usize = 150_000;

fn more(load: &Load, count: u64) {
    let more = load.accepted() + count;
    wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
}

fn published(scene: &Scene, output: &str, kind: &str) -> f64 {
    scene.metric("events_published_total", &[("output", output), ("event", kind)])
}

/// A queue that drops its oldest when it is full, RabbitMQ's default: it confirms all, keeps the newest, and nothing here can see that.
pub fn full_queue_that_drops(name: &str) {
    const KEPT: usize = 50;
    let scene = Scene::prepare(Brokers::shared(), name, "");
    scene.make_queue("tags", &format!(r#"{{"x-queue-type":"classic","x-max-length":{KEPT}}}"#));
    scene.bind("tags", "tags");
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let load = Load::start(&scene.relay, 1, |client, number| oracle::body_of("tags", client, number));
    more(&load, 300);
    let sent = load.stop();
    let accepted = assert_all_accepted_in_time(&sent);
    scene.drained(&["rabbitmq"], LONG);
    let ledger = Ledger::read(&scene.relay.metrics(), "rabbitmq");
    let is_all = (accepted..=sent.len()).contains(&(ledger.published as usize)) && ledger.parked == 0.0;
    assert!(is_all, "all of {accepted} was confirmed: {ledger:?}");
    let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&["tags"], KEPT));
    eprintln!("{verdict}");
    assert_eq!(verdict.delivered, KEPT, "{verdict}");
    assert!(verdict.altered.is_empty() && verdict.invented.is_empty() && verdict.reordered.is_empty(), "{verdict}");
    let kept: Vec<&String> = sent.iter().filter(|one| one.is_accepted()).map(|one| &one.body).collect();
    assert_eq!(verdict.lost.iter().collect::<Vec<_>>(), kept[..accepted - KEPT], "the oldest are what it dropped");
}

/// Two queues with one routing key, of which one is full and refuses: the key is held, and the other queue gets things twice.
pub fn one_of_two_queues_full(name: &str) {
    let scene = Scene::prepare(Brokers::shared(), name, "");
    for queue in ["tags", "full"] {
        scene.make_queue(queue, r#"{"x-queue-type":"classic"}"#);
        scene.bind(queue, "tags");
    }
    scene.limit_queue("full", Some(100));
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let load = Load::start(&scene.relay, 2, |client, number| oracle::body_of("tags", client, number));
    more(&load, 600);
    let sent = load.stop();
    let accepted = assert_all_accepted_in_time(&sent);
    scene.held("rabbitmq", "tags", "nack");
    scene.limit_queue("full", None);
    scene.drained(&["rabbitmq"], LONG);
    for (queue, twice) in [("tags", true), ("full", false)] {
        let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&[queue], accepted));
        eprintln!("-- {queue}");
        verdict.assert_kept(WINDOW);
        assert_eq!(verdict.duplicates > 0, twice, "{queue}: {verdict}");
        scene.assert_ledger("rabbitmq", &verdict, 0);
    }
}

/// Many parked events: what goes over the line while they are tried again, and that others of their topic pass meanwhile. Each refusal costs half a
/// second, as librdkafka begins its producer's epoch anew: a thousand are parked after eight minutes.
pub fn parked_events_do_not_storm(name: &str, events: u64, time: Duration) {
    const TRIES_A_SECOND: u64 = 10;
    let (scene, proxies) = Scene::start_proxied(name);
    let outputs = scene.kafka_output("{event}").replace(scene.brokers.kafka(), &proxies[0].address.to_string());
    scene.configure(&outputs, "");
    scene.brokers.set_topic(&scene.of("tags"), ("max.message.bytes", TOPIC_MAX));
    let mut scene = scene;
    scene.relay.restart();
    let load = Load::start(&scene.relay, 4, |client, number| {
        oracle::body_of("tags", client, number).replace("  ", &" ".repeat(TOO_LARGE))
    });
    more(&load, events);
    let mut sent = load.stop();
    let start = Instant::now();
    let parked = || scene.metric("events_parked", &[("output", "kafka")]);
    let accepted = assert_all_accepted_in_time(&sent);
    wait_until("all to be parked", Duration::from_secs(1_200), || parked() >= accepted as f64);
    let large = parked();
    assert!(large <= sent.len() as f64, "{large} parked of {}", sent.len());
    eprintln!("{large} parked after {:?}", start.elapsed());

    let (start, before) = (Instant::now(), proxies[0].bytes_to_broker());
    let small = Load::start(&scene.relay, 1, |client, number| {
        std::thread::sleep(Duration::from_millis(100));
        oracle::body_of("tags", client, 1_200_000 + number)
    });
    wait_until("the time to pass", time + LONG, || start.elapsed() >= time);
    let small = small.stop();
    let through = published(&scene, "kafka", "tags");
    let bytes = proxies[0].bytes_to_broker() - before;
    // A second more for what the limit of each second lets through at both ends.
    // And each event by itself: after 30 s, a minute and two, so at most three times in two minutes.
    let tries = (TRIES_A_SECOND * (start.elapsed().as_secs() + 1)).min(3 * large as u64);
    // Each try carries its event; a small one is well below 1.5 KB with all that is around it.
    let most = tries * (TOO_LARGE as u64 + 1_500) + small.len() as u64 * 1_500;
    eprintln!("{bytes} bytes went to Kafka within {:?}, {} small events among them", start.elapsed(), small.len());
    assert!(bytes <= most, "a storm: {bytes} bytes, and {most} are what {tries} tries make");
    assert!(through >= small.len() as f64 - 20.0, "of {} small events {through} passed", small.len());
    assert_eq!(parked(), large, "still parked");

    scene.brokers.set_topic(&scene.of("tags"), ("max.message.bytes", "1000000"));
    let requeued = scene.relay.finish(&["journal", "requeue", "--output", "kafka", "--yes"]);
    assert!(requeued.status.success(), "{requeued:?}");
    wait_until("the parked ones to be out", Duration::from_secs(600), || parked() == 0.0);
    sent.extend(small);
    assert_all_accepted_in_time(&sent);
    scene.drained(&["kafka"], LONG);
    let mut verdict = oracle::judge(&sent, &scene.in_kafka(&["tags"]));
    verdict.reordered.clear(); // Events parked singly are exempt.
    verdict.assert_kept(0);
    scene.assert_ledger("kafka", &verdict, 0);
}

/// Each output with troubles of its own, at the same time: a missing topic and a record too large at Kafka, a missing binding at RabbitMQ; then
/// RabbitMQ dies, then the relay, then Kafka. What the one suffers from the other does not notice.
pub fn outputs_of_different_fates(name: &str) {
    let [missing, strict, unbound] = KINDS;
    let scene = Scene::prepare(Brokers::own(), name, "");
    for kind in KINDS {
        scene.make_queue(kind, "{}");
    }
    scene.bind(missing, missing);
    scene.bind(strict, strict);
    scene.make_topic(strict, &[("max.message.bytes", TOPIC_MAX)]);
    scene.make_topic(unbound, &[]);
    let mut scene = scene.up();
    // One of them is large, and of the strict kind.
    let load = Load::start(&scene.relay, 4, |client, number| {
        std::thread::sleep(Duration::from_millis(5));
        let body = oracle::body(client, number);
        if client == 0 && number == 31 { body.replace("  ", &" ".repeat(TOO_LARGE)) } else { body }
    });
    more(&load, 300);
    scene.held("kafka", missing, "topic_missing");
    scene.held("rabbitmq", unbound, "unroutable");
    wait_until("the large one to be parked", LONG, || scene.metric("events_parked", &[("output", "kafka")]) == 1.0);
    for (dies, lives, kind) in [("rabbitmq", "kafka", unbound), ("kafka", "rabbitmq", missing)] {
        let start = Instant::now();
        scene.brokers.signal(dies, Signal::KILL);
        wait_until("it to be shown as away", AWAY_WITHIN, || scene.metric("output_up", &[("output", dies)]) == 0.0);
        eprintln!("{dies} was shown as away after {:?}", start.elapsed());
        let before = published(&scene, lives, kind);
        wait_until("the other to go on", LONG, || published(&scene, lives, kind) > before + 50.0);
        if dies == "rabbitmq" {
            scene.relay.restart();
            more(&load, 100);
        }
        scene.brokers.kill_one(dies); // Only to clear its place.
        scene.brokers.start_one(dies);
        wait_until("it to be back", LONG, || scene.metric("output_up", &[("output", dies)]) == 1.0);
    }
    scene.make_topic(missing, &[]);
    scene.bind(unbound, unbound);
    more(&load, 100);
    // The relay was killed in between: what has no answer was promised to nobody, and may arrive all the same.
    let sent = load.stop();
    let answered: Vec<Sent> = sent.iter().filter(|one| one.status.is_some()).cloned().collect();
    assert_all_accepted_in_time(&answered);
    scene.drained(&BOTH, LONG);
    let (large, small): (Vec<Sent>, Vec<Sent>) = sent.iter().cloned().partition(|one| one.body.len() > TOO_LARGE);
    assert_eq!(large.len(), 1);
    for (output, sent, arrived, parked) in [
        ("kafka", &small, scene.in_kafka(&KINDS), 1),
        ("rabbitmq", &sent, scene.in_rabbitmq(&KINDS, answered.len()), 0),
    ] {
        eprintln!("-- {output}");
        let verdict = oracle::judge(sent, &arrived);
        verdict.assert_kept(3 * WINDOW);
        scene.assert_ledger(output, &verdict, parked);
    }
}

/// Topics and routing keys get other names while events wait, some held and some pending, at both outputs.
pub fn routes_changed(name: &str) {
    let mut scene = Scene::prepare(Brokers::own(), name, "");
    let both = |scene: &Scene, route: &str| scene.kafka_output(route) + &scene.rabbitmq_output(route);
    scene.configure(&both(&scene, "old.{event}"), "");
    scene = scene.up();
    let load = scene.load(4);
    more(&load, 300);
    let mut sent = load.stop();
    scene.held("kafka", "old.tags", "topic_missing");
    scene.held("rabbitmq", "old.tags", "unroutable");
    for broker in BOTH {
        scene.brokers.stop_one(broker);
    }
    let load = scene.load_from(4, 1_200_000);
    more(&load, 300);
    sent.extend(load.stop());
    scene.relay.kill9();
    for broker in BOTH {
        scene.brokers.start_one(broker);
    }
    scene.make_topic("new", &[]);
    scene.make_queue("new", "{}");
    scene.bind("new", "new");
    scene.configure(&both(&scene, "new"), "");
    scene.relay.run();
    let accepted = assert_all_accepted_in_time(&sent);
    scene.drained(&BOTH, LONG);
    for (output, arrived) in [("kafka", scene.in_kafka(&["new"])), ("rabbitmq", scene.in_rabbitmq(&["new"], accepted))]
    {
        eprintln!("-- {output}");
        let verdict = oracle::judge(&sent, &arrived);
        verdict.assert_kept(0);
        scene.assert_ledger(output, &verdict, 0);
    }
}
