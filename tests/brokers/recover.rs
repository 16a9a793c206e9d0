//! What was answered 2xx survives crashes of the relay and outages of the brokers, in order, as an oracle outside the process sees it. Longer
//! forms of these stand in `tests/faults`.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::oracle::{self, KINDS};
use crate::support::scene::{self, Scene, assert_all_accepted_in_time};
use crate::support::{Brokers, Load, wait_until};

const LONG: Duration = Duration::from_secs(90);
const BOTH: [&str; 2] = ["kafka", "rabbitmq"];

/// Takes half a minute: twenty starts, and half of the kills wait until Kafka is connected again.
#[test]
fn twenty_kills_under_load_lose_alter_and_reorder_nothing() {
    scene::kills("kills", 20, 20);
}

/// Takes half a minute: Kafka starts twice, and hangs.
#[test]
fn a_kafka_that_stops_dies_or_hangs_under_load_delays_its_events_and_nothing_else() {
    outages("kafka");
}

/// Takes half a minute: RabbitMQ starts twice, 7 s each, and hangs.
#[test]
fn a_rabbitmq_that_stops_dies_or_hangs_under_load_delays_its_events_and_nothing_else() {
    outages("rabbitmq");
}

fn outages(broker: &str) {
    let scene = Scene::start(Brokers::own(), "outages", "");
    let load = scene.load_paced(8, Duration::from_millis(10));
    let more = || {
        let more = load.accepted() + 300;
        wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
    };
    more();
    scene.brokers.stop_one(broker);
    more();
    scene.brokers.start_one(broker);
    more();
    scene.brokers.kill_one(broker);
    more();
    scene.brokers.start_one(broker);
    more();
    scene.brokers.signal(broker, Signal::STOP);
    more();
    scene.brokers.signal(broker, Signal::CONT);
    // Some more while the backlog drains.
    more();
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.drained(&BOTH, LONG);
    // Each outage may repeat what was in flight.
    scene.judge(&sent, 3);
}

/// Takes 10 s: what is held is tried again after pauses that grow.
#[test]
fn unroutable_events_wait_for_their_binding_while_the_routed_go_on() {
    let scene = Scene::prepare(Brokers::shared(), "unroutable", "");
    let (routed, unrouted) = (["tags", "incoming_call_start"], "outgoing_call_end");
    for kind in KINDS {
        scene.make_topic(kind, &[]);
        scene.make_queue(kind, "{}");
    }
    for kind in routed {
        scene.bind(kind, kind);
    }
    let (proxy, outputs) = scene.rabbitmq_proxied(&scene.both());
    scene.configure(&outputs, "");
    let scene = scene.up();
    // In one go, so that a thousand and more are in flight together.
    proxy.freeze(true);
    let load = scene.load(16);
    wait_until("a backlog", LONG, || load.accepted() >= 3_000);
    proxy.freeze(false);
    let more = load.accepted() + 500;
    wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
    let mut sent = load.stop();
    assert_all_accepted_in_time(&sent);
    let unroutable = sent.iter().filter(|one| one.body.contains(unrouted)).count();
    wait_until("only the unroutable to be pending", LONG, || scene.pending("rabbitmq") == unroutable as f64);
    scene.held("rabbitmq", unrouted, "unroutable");
    let published = |event| {
        scene.relay.metrics().get("sipsim_relay_events_published_total", &[("output", "rabbitmq"), ("event", event)])
    };
    assert_eq!(published(unrouted), 0.0, "what no queue took is not published");

    scene.bind(unrouted, unrouted);
    let newer = scene.load_from(4, 1_200_000);
    wait_until("newer events", LONG, || newer.accepted() >= 200);
    sent.extend(newer.stop());
    scene.drained(&BOTH, LONG);
    scene.judge(&sent, 1);
}

/// Takes 10 s: what is held is tried again after pauses that grow.
#[test]
fn events_that_a_full_queue_refuses_wait_until_it_has_room() {
    let scene = Scene::prepare(Brokers::shared(), "nack", "");
    let kinds = ["tags", "incoming_call_start"];
    for kind in kinds {
        // A classic one: a quorum queue took over 10 s to hear of a changed limit.
        scene.make_queue(kind, r#"{"x-queue-type":"classic"}"#);
        scene.bind(kind, kind);
    }
    scene.limit_queue("tags", Some(100));
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let load = Load::start(&scene.relay, 4, move |client, number| oracle::body_of(kinds[number % 2], client, number));
    wait_until("a backlog", LONG, || load.accepted() >= 1_500);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.held("rabbitmq", "tags", "nack");
    let others = sent.iter().filter(|one| one.body.contains("incoming_call_start")).count();
    wait_until("the other one's to be out", LONG, || {
        scene.metric("events_published_total", &[("output", "rabbitmq"), ("event", "incoming_call_start")])
            == others as f64
    });
    scene.limit_queue("tags", None);
    scene.drained(&["rabbitmq"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_rabbitmq(&kinds, sent.len()));
    verdict.assert_kept(0);
    scene.assert_ledger("rabbitmq", &verdict, 0);
}

/// Takes 10 s: what is held is tried again after pauses that grow.
#[test]
fn a_topic_made_late_gets_its_events_in_order_and_held_up_no_other() {
    let scene = Scene::prepare(Brokers::shared(), "late", "");
    let (made, late) = (["tags", "incoming_call_start"], "outgoing_call_end");
    for kind in made {
        scene.make_topic(kind, &[]);
    }
    scene.configure(&scene.kafka_output("{event}"), "");
    let mut scene = scene.up();
    let load = scene.load(8);
    wait_until("a backlog", LONG, || load.accepted() >= 2_000);
    let mut sent = load.stop();
    let held = sent.iter().filter(|one| one.is_accepted() && one.body.contains(late)).count();
    wait_until("only those of the missing topic to be pending", LONG, || scene.pending("kafka") == held as f64);
    scene.held("kafka", late, "topic_missing");
    // They are not forgotten by a restart either, and what comes afterwards stays behind them.
    scene.relay.restart();
    let newer = scene.load_from(8, 1_200_000);
    wait_until("newer events", LONG, || newer.accepted() >= 300);
    scene.make_topic(late, &[]);
    let more = newer.accepted() + 300;
    wait_until("some more events to be accepted", LONG, || newer.accepted() >= more);
    sent.extend(newer.stop());
    scene.drained(&["kafka"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_kafka(&KINDS));
    verdict.assert_kept(scene::WINDOW);
    scene.assert_ledger("kafka", &verdict, 0);
}

#[test]
fn a_record_too_large_for_its_topic_is_parked_alone() {
    let scene = Scene::prepare(Brokers::own(), "large", "");
    scene.make_topic("tags", &[("max.message.bytes", "20000")]);
    scene.configure(&scene.kafka_output("{event}"), "");
    let scene = scene.up();
    // All of them in one batch.
    scene.brokers.signal("kafka", Signal::STOP);
    let load = Load::start(&scene.relay, 1, |client, number| {
        let body = oracle::body_of("tags", client, number);
        if number == 50 { body.replace("  ", &" ".repeat(30_000)) } else { body }
    });
    wait_until("a backlog", LONG, || load.accepted() >= 100);
    let sent = load.stop();
    scene.brokers.signal("kafka", Signal::CONT);
    scene.drained(&["kafka"], LONG);
    assert_eq!(scene.metric("events_parked_total", &[("output", "kafka"), ("reason", "too_large")]), 1.0);
    let (large, small): (Vec<_>, Vec<_>) = sent.into_iter().partition(|one| one.body.len() > 20_000);
    assert_eq!(large.len(), 1);
    let verdict = oracle::judge(&small, &scene.in_kafka(&["tags"]));
    verdict.assert_kept(0);
    scene.assert_ledger("kafka", &verdict, 1);
}

#[test]
fn one_output_goes_on_without_the_other_and_a_removed_one_pays_its_old_debt() {
    let mut scene = Scene::start(Brokers::shared(), "removed", "");
    let (mut proxy, both) = scene.rabbitmq_proxied(&scene.both());
    scene.configure(&both, "");
    scene.relay.restart();
    proxy.refuse();
    let load = scene.load(8);
    wait_until("a backlog", LONG, || load.accepted() >= 1_000);
    let owed = load.stop();
    assert_all_accepted_in_time(&owed);
    scene.drained(&["kafka"], LONG);
    assert_eq!(scene.pending("rabbitmq"), owed.len() as f64);

    scene.configure(&scene.kafka_output("{event}"), "");
    scene.relay.restart();
    let load = scene.load_from(8, 1_200_000);
    wait_until("events in the gap", LONG, || load.accepted() >= 500);
    let gap = load.stop();
    scene.drained(&["kafka"], LONG);

    proxy.restore();
    scene.configure(&both, "");
    scene.relay.restart();
    let load = scene.load_from(8, 2_400_000);
    wait_until("events after it", LONG, || load.accepted() >= 500);
    let after = load.stop();
    scene.drained(&BOTH, LONG);

    let all = [owed.clone(), gap, after.clone()].concat();
    oracle::judge(&all, &scene.in_kafka(&KINDS)).assert_kept(2 * scene::WINDOW);
    let debt = [owed, after].concat();
    let verdict = oracle::judge(&debt, &scene.in_rabbitmq(&KINDS, debt.len()));
    // An event of the gap would be an invention here.
    verdict.assert_kept(0);
    scene.assert_ledger("rabbitmq", &verdict, 0);
}

#[test]
fn without_retention_the_numbers_go_on_after_a_restart() {
    let mut scene = Scene::start(Brokers::shared(), "retention", "[journal]\nretention = \"0s\"\n");
    let load = scene.load(2);
    wait_until("some events", LONG, || load.accepted() >= 100);
    let mut sent = load.stop();
    scene.drained(&BOTH, LONG);
    // All are gone from the journal by the time of the restart: the writer cleans up within a second.
    let journal = scene.relay.path("data/journal.db");
    wait_until("the journal to be empty", LONG, || {
        let db = rusqlite::Connection::open_with_flags(&journal, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE);
        let db = db.expect("the journal opens");
        db.query_row("SELECT count(*) FROM events", [], |row| row.get::<_, i64>(0)).expect("it counts") == 0
    });
    scene.relay.restart();
    let load = scene.load_from(1, 1_200_000);
    wait_until("one more", LONG, || load.accepted() >= 1);
    sent.extend(load.stop());
    scene.drained(&BOTH, LONG);
    let arrived = scene.in_kafka(&KINDS);
    let mut numbers: Vec<String> = arrived
        .iter()
        .map(|one| serde_json::from_str::<serde_json::Value>(&one.payload).expect("JSON")["relaysequence"].to_string())
        .collect();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "no number is used twice");
    scene.judge(&sent, 1);
}

/// Takes 10 to 20 s: Kafka stops and starts while events wait.
#[test]
fn what_waits_goes_to_the_new_topic_when_the_template_changes() {
    let scene = Scene::prepare(Brokers::own(), "renamed", "");
    // Held ones, of topics that nobody made, and pending ones, while the broker was away.
    scene.configure(&scene.kafka_output("old.{event}"), "");
    let mut scene = scene.up();
    let load = scene.load(4);
    wait_until("some events", LONG, || load.accepted() >= 300);
    let mut sent = load.stop();
    scene.held("kafka", "old.tags", "topic_missing");
    scene.brokers.stop_one("kafka");
    let load = scene.load_from(4, 1_200_000);
    wait_until("some events", LONG, || load.accepted() >= 300);
    sent.extend(load.stop());
    scene.relay.kill9();
    scene.brokers.start_one("kafka");
    scene.make_topic("new", &[]);
    scene.configure(&scene.kafka_output("new"), "");
    scene.relay.run();
    scene.drained(&["kafka"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_kafka(&["new"]));
    verdict.assert_kept(0);
    scene.assert_ledger("kafka", &verdict, 0);
}

#[test]
fn a_corrupt_journal_is_set_aside_at_the_start_and_events_are_accepted() {
    for (what, at) in [("its header", 0), ("its second page and all behind", 4096)] {
        let mut scene = Scene::start(Brokers::shared(), "corrupt", "");
        assert_eq!(scene.relay.post(oracle::body(0, 0).as_bytes()).status, 200);
        scene.relay.terminate(LONG);
        let path = scene.relay.path("data/journal.db");
        scribble(&path, at);
        scene.relay.run();
        wait_until("events to be accepted", Duration::from_secs(10), || {
            scene.relay.post(oracle::body(0, 1).as_bytes()).status == 200
        });
        assert_eq!(scene.metric("journal_set_aside", &[]), 1.0, "{what}");
        scene.drained(&BOTH, LONG);
        let aside = fs::read_dir(scene.relay.path("data")).expect("the folder").filter_map(Result::ok).find(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.starts_with("journal.db.set-aside-") && !name.ends_with("-wal") && !name.ends_with("-shm")
        });
        let aside = aside.unwrap_or_else(|| panic!("{what}: the file is kept"));
        let kept = fs::read(aside.path()).expect("it can be read");
        assert!(kept.windows(4096).any(|bytes| bytes.iter().all(|byte| *byte == 0x5a)), "{what}: it is that file");
    }
}

/// Overwrites a file from there on.
fn scribble(path: &Path, at: u64) {
    let mut file = fs::OpenOptions::new().write(true).open(path).expect("the journal");
    let length = file.metadata().expect("its length").len();
    file.seek(SeekFrom::Start(at)).expect("it is long enough");
    file.write_all(&vec![0x5a; usize::try_from(length - at).expect("it is small")]).expect("it is ours");
}

/// Takes half a minute: 20,000 events are taken in, and leave through two proxies.
#[test]
fn a_relay_that_starts_with_a_backlog_is_ready_at_once_and_drains_in_order_while_it_accepts() {
    scene::backlog("backlog", 20_000);
}
