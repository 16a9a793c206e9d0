//! Brokers in trouble under load, one trouble a function: the short ones are in `make test`, the long ones in `make faults`. Each ends with the
//! oracle's verdict and the ledger.

use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rustix::process::Signal;

use super::oracle::{self, KINDS};
use super::scene::{Scene, WINDOW, assert_all_accepted_in_time};
use super::{Brokers, Load, Metrics, RABBITMQ_MESSAGE_MAX, Relay, Sent, finish, wait_until, whole};

const LONG: Duration = Duration::from_secs(120);
const BOTH: [&str; 2] = ["kafka", "rabbitmq"];

/// Some more events are accepted, whatever the brokers do.
fn more(load: &Load, count: u64) {
    let more = load.accepted() + count;
    wait_until("some more events to be accepted", LONG, || load.accepted() >= more);
}

fn paced(scene: &Scene) -> Load {
    scene.load_paced(4, Duration::from_millis(5))
}

fn is_up(scene: &Scene, output: &str) -> bool {
    scene.metric("output_up", &[("output", output)]) == 1.0
}

/// Waits until the relay shows an output as away, and says after how long.
fn away(scene: &Scene, output: &str, limit: Duration) {
    let start = Instant::now();
    wait_until(&format!("{output} to be shown as away"), limit, || !is_up(scene, output));
    eprintln!("{output} was shown as away after {:?}", start.elapsed());
}

/// Lines that are cut in the middle of requests, cut at any time, slowed, and refused.
pub fn lines_cut_slowed_and_refused(name: &str, cuts: usize) {
    let (scene, mut proxies) = Scene::start_proxied(name);
    let load = paced(&scene);
    for output in BOTH {
        wait_until("it to be up", LONG, || is_up(&scene, output));
    }
    for cut in 0..cuts {
        for proxy in &proxies {
            proxy.cut_after(fastrand::i64(1..20_000));
        }
        wait_until("both lines to be cut within a request", LONG, || proxies.iter().all(|proxy| !proxy.will_cut()));
        if cut % 3 == 2 {
            proxies.iter().for_each(super::Proxy::cut);
        }
        more(&load, 50);
    }
    for proxy in &proxies {
        proxy.slow(20_000); // 50 KiB a second.
    }
    more(&load, 300);
    for proxy in &mut proxies {
        proxy.slow(0);
        proxy.refuse();
    }
    for output in BOTH {
        away(&scene, output, LONG);
    }
    more(&load, 100);
    proxies.iter_mut().for_each(super::Proxy::restore);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.drained(&BOTH, LONG);
    scene.judge(&sent, 2 * cuts + 2);
}

/// Half-open lines: both ends think that they stand, and nothing comes. Longer than every timeout.
pub fn lines_half_open(name: &str) {
    let (scene, proxies) = Scene::start_proxied(name);
    let load = scene.load_paced(2, Duration::from_millis(50));
    more(&load, 50);
    proxies.iter().for_each(|proxy| proxy.freeze(true));
    for output in BOTH {
        away(&scene, output, LONG);
    }
    more(&load, 50);
    for proxy in &proxies {
        proxy.cut(); // As the kernel of a host that came back would.
        proxy.freeze(false);
    }
    more(&load, 50);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.drained(&BOTH, LONG);
    scene.judge(&sent, 3);
}

/// Brokers that hang, with their sockets open, longer than every timeout.
pub fn brokers_hung(name: &str, time: Duration) {
    let scene = Scene::start(Brokers::own(), name, "");
    let load = scene.load_paced(2, Duration::from_millis(50));
    more(&load, 50);
    let start = Instant::now();
    for broker in BOTH {
        scene.brokers.signal(broker, Signal::STOP);
    }
    for output in BOTH {
        away(&scene, output, LONG);
    }
    wait_until("the time to pass", LONG, || start.elapsed() >= time);
    for broker in BOTH {
        scene.brokers.signal(broker, Signal::CONT);
    }
    more(&load, 50);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.drained(&BOTH, LONG);
    scene.judge(&sent, 2);
}

/// A topic that is deleted while events go to it, and made again.
pub fn topic_deleted(name: &str) {
    let scene = Scene::prepare(Brokers::shared(), name, "");
    for kind in KINDS {
        scene.make_topic(kind, &[]);
    }
    scene.configure(&scene.kafka_output("{event}"), "");
    let scene = scene.up();
    let load = paced(&scene);
    more(&load, 300);
    let mut sent = load.stop();
    scene.drained(&["kafka"], LONG);
    // What the topic had goes with it: that is Kafka's. What comes later waits.
    let deleted = KINDS[0];
    let mut arrived = scene.in_kafka(&[deleted]);
    scene.brokers.delete_topics(&[&scene.of(deleted)]);
    // A broker goes on confirming for a topic that it is about to remove (for seconds on a busy machine), and that goes with it too.
    let load = scene.load_paced_from(4, Duration::from_millis(10), 1_200_000);
    scene.held("kafka", deleted, "topic_missing");
    // Not by our own count: what lies in the deleted topic's files is what Kafka took.
    let into_the_old = scene.brokers.deleted_topic(&scene.of(deleted));
    assert!(arrived.iter().all(|one| into_the_old.contains(&one.payload)), "all of the topic is in those files");
    more(&load, 100);
    scene.make_topic(deleted, &[]);
    more(&load, 100);
    sent.extend(load.stop());
    assert_all_accepted_in_time(&sent);
    scene.drained(&["kafka"], LONG);
    arrived.extend(scene.in_kafka(&KINDS));
    let mut verdict = oracle::judge(&sent, &arrived);
    eprintln!("{} were confirmed by the topic that was being deleted", verdict.lost.len());
    for body in &verdict.lost {
        assert!(into_the_old.contains(body), "Kafka never had it: {body}; {verdict}");
    }
    verdict.delivered += verdict.lost.drain(..).count();
    verdict.assert_kept(WINDOW);
    scene.assert_ledger("kafka", &verdict, 0);
}

/// A cluster of three that loses one node after the other, each time with the leaders that it had: one topic goes on with two replicas in sync,
/// the others want all of theirs and wait.
pub fn leaders_change_and_replicas_are_missing(name: &str) {
    let cluster = Brokers::start("kafka", &["--kafka-nodes", "3"]);
    let topics = KINDS.map(|kind| format!("{name}.{kind}"));
    for (topic, in_sync) in topics.iter().zip(["3", "2", "2"]) {
        cluster.create_replicated_topic(topic, 3, 3, &[("min.insync.replicas", in_sync)]);
    }
    let brokers = cluster.kafka();
    let relay = Relay::start(&format!("[outputs.kafka]\nbrokers = \"{brokers}\"\ntopic = \"{name}.{{event}}\"\n"));
    let load = Load::start(&relay, 4, |client, number| {
        std::thread::sleep(Duration::from_millis(20));
        oracle::body(client, number)
    });
    let get = |metric: &str, labels: &[(&str, &str)]| relay.metrics().get(&format!("sipsim_relay_{metric}"), labels);
    let published = |kind| get("events_published_total", &[("output", "kafka"), ("event", kind)]);
    for node in ["kafka", "kafka-2", "kafka-3"] {
        more(&load, 100);
        cluster.kill_one(node);
        let held = [("output", "kafka"), ("topic", &*topics[0]), ("reason", "not_enough_replicas")];
        wait_until("the strict topic to be held", LONG, || {
            relay.metrics().find("sipsim_relay_topic_held", &held) == Some(1.0)
        });
        let before = published(KINDS[1]);
        wait_until("the others to go on", LONG, || published(KINDS[1]) > before + 20.0);
        cluster.start_one(node);
        wait_until("the strict topic to go on", LONG, || {
            relay.metrics().find("sipsim_relay_topic_held", &held) != Some(1.0)
        });
    }
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    wait_until("nothing to be pending", LONG, || get("events_pending", &[("output", "kafka")]) == 0.0);
    let verdict = oracle::judge(&sent, &whole::read_topics(brokers, &topics));
    verdict.assert_kept(3 * WINDOW);
}

/// A user without the right to write one topic, which is granted later.
pub fn kafka_forbids(name: &str) {
    let mut scene = Scene::prepare(Brokers::shared(), name, "");
    for kind in KINDS {
        scene.make_topic(kind, &[]);
    }
    let topics = KINDS.map(|kind| scene.of(kind));
    let [forbidden, allowed @ ..] = topics.each_ref().map(String::as_str);
    scene.brokers.kafka_right("allow", "relay", "write", &allowed);
    let password = ("RELAY_OUTPUTS__KAFKA__SECURITY__PASSWORD", "password");
    scene.relay.set_environment(password.0, password.1);
    let output =
        scene.kafka_output("{event}").replace(scene.brokers.kafka(), &scene.brokers.address("KAFKA_SASL").to_string());
    let security = "security = { protocol = \"SASL_PLAINTEXT\", mechanism = \"PLAIN\", username = \"relay\" }\n";
    scene.configure(&(output + security), "");
    let scene = scene.up();
    let load = paced(&scene);
    more(&load, 600);
    scene.held("kafka", KINDS[0], "forbidden");
    let told = finish(scene.relay.command(&["check", "--live"]).env(password.0, password.1), LONG);
    let told = (told.status.code(), String::from_utf8_lossy(&told.stdout).into_owned());
    assert_eq!(told.0, Some(1), "{}", told.1);
    let command = told.1.lines().find(|line| line.contains("--operation Write --operation Describe"));
    assert!(command.is_some_and(|line| line.contains(&format!("--topic {forbidden}"))), "{}", told.1);
    scene.brokers.kafka_right("allow", "relay", "write", &[forbidden]);
    more(&load, 100);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    scene.drained(&["kafka"], LONG);
    let verdict = oracle::judge(&sent, &scene.in_kafka(&KINDS));
    verdict.assert_kept(WINDOW);
    scene.assert_ledger("kafka", &verdict, 0);
}

/// Errors after which librdkafka gives its producer up. No real broker can be made to give one, so this is librdkafka's own mock cluster.
pub fn fatal_errors(name: &str, count: usize) {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    let topics = KINDS.map(|kind| format!("{name}.{kind}"));
    for topic in &topics {
        cluster.create_topic(topic, 1, 1).expect("a topic");
    }
    let brokers = cluster.bootstrap_servers();
    let relay = Relay::start(&format!("[outputs.kafka]\nbrokers = \"{brokers}\"\ntopic = \"{name}.{{event}}\"\n"));
    let load = Load::start(&relay, 2, |client, number| {
        std::thread::sleep(Duration::from_millis(10));
        oracle::body(client, number)
    });
    let failures = |metrics: &Metrics| {
        metrics.get("sipsim_relay_publish_failures_total", &[("output", "kafka"), ("reason", "fatal")])
    };
    for _ in 0..count {
        more(&load, 50);
        let before = failures(&relay.metrics());
        // For the oldest request it means that broker and producer disagree on what was written.
        cluster.request_errors(
            RDKafkaApiKey::Produce,
            &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER; 5],
        );
        wait_until("a fatal error", LONG, || failures(&relay.metrics()) > before);
        // The first is enough; one that the next producer meets before it delivered anything doubles the pause before yet another.
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        let published = |metrics: &Metrics| metrics.sum("sipsim_relay_events_published_total", &[("output", "kafka")]);
        let before = published(&relay.metrics());
        wait_until("its successor to deliver", LONG, || published(&relay.metrics()) > before);
    }
    more(&load, 50);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    wait_until("nothing to be pending", LONG, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "kafka")]) == 0.0
    });
    let verdict = oracle::judge(&sent, &whole::read_topics(&brokers, &topics));
    verdict.assert_kept(count * WINDOW);
}

/// A Kafka that loses touch with its controller again and again, and is fenced each time: it answers, and names no broker. librdkafka then removes
/// all it knows, and sooner or later one producer has none left to try. That is a race within librdkafka, so several outputs take part in it.
/// Waits in vain once librdkafka is mended: `health::Stranding` may go then, and this too.
pub fn fenced(name: &str) {
    let outputs: Vec<String> = (0..8).map(|number| format!("kafka-{number}")).collect();
    let topics: Vec<String> = outputs.iter().map(|output| format!("{name}.{output}")).collect();
    let brokers = Brokers::start("kafka", &[]);
    brokers.create_topics(&topics.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    let sections = outputs.iter().zip(&topics).map(|(output, topic)| {
        format!("[outputs.{output}]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic = \"{topic}\"\n", brokers.kafka())
    });
    let relay = Relay::start(&sections.collect::<String>());
    let up = |output: &String| relay.metrics().get("sipsim_relay_output_up", &[("output", output)]) == 1.0;
    wait_until("all to be up", LONG, || outputs.iter().all(up));
    // After 1.5 s without a heartbeat a broker is fenced, and stays so until the next one.
    brokers.restart_kafka_with(&["broker.session.timeout.ms=1500", "broker.heartbeat.interval.ms=3500"]);
    let load = Load::start(&relay, 2, |client, number| {
        std::thread::sleep(Duration::from_millis(50));
        oracle::body(client, number)
    });
    wait_until("a producer without any broker to be replaced", LONG * 2, || {
        relay.stderr().contains("no broker left to try")
    });
    more(&load, 100);
    brokers.restart_kafka_with(&["broker.session.timeout.ms=9000", "broker.heartbeat.interval.ms=500"]);
    let sent = load.stop();
    assert_all_accepted_in_time(&sent);
    wait_until("nothing to be pending", LONG, || relay.metrics().sum("sipsim_relay_events_pending", &[]) == 0.0);
    for topic in topics {
        let verdict = oracle::judge(&sent, &whole::read_topics(brokers.kafka(), &[topic]));
        // A replacement may repeat what was in flight, and that is more than was sent.
        verdict.assert_kept(usize::MAX);
    }
}

/// RabbitMQ's memory and disk alarms: it takes nothing until they end.
pub fn alarms(name: &str) {
    let scene = with_queues(Brokers::own(), name);
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let load = paced(&scene);
    for (alarm, end) in [
        (
            ["set_vm_memory_high_watermark", "absolute", "1MB"].as_slice(),
            ["set_vm_memory_high_watermark", "absolute", "1GB"].as_slice(),
        ),
        (&["set_disk_free_limit", "100000GB"], &["set_disk_free_limit", "50MB"]),
    ] {
        wait_until("it to be up", LONG, || is_up(&scene, "rabbitmq"));
        more(&load, 100);
        scene.brokers.rabbitmqctl(alarm);
        away(&scene, "rabbitmq", LONG);
        assert!(scene.metric("publish_failures_total", &[("output", "rabbitmq"), ("reason", "blocked")]) > 0.0);
        more(&load, 100);
        scene.brokers.rabbitmqctl(end);
    }
    let sent = load.stop();
    judge_rabbitmq(&scene, &sent, 0, 0);
}

/// A queue for each kind, bound by its name.
fn with_queues(brokers: Brokers, name: &str) -> Scene {
    let scene = Scene::prepare(brokers, name, "");
    for kind in KINDS {
        scene.make_queue(kind, "{}");
        scene.bind(kind, kind);
    }
    scene
}

/// An exchange that is deleted under load, made anew as another type, and at last as it should be.
pub fn exchange_gone_and_of_another_type(name: &str) {
    let scene = with_queues(Brokers::shared(), name);
    let output = scene.rabbitmq_output("{event}") + "declare = false\n";
    scene.configure(&output, "");
    let scene = scene.up();
    let load = paced(&scene);
    more(&load, 100);
    scene.delete_exchange();
    more(&load, 100);
    scene.held("rabbitmq", KINDS[0], "topic_missing");
    // Headers are what this one goes by, and ours match nothing.
    scene.make_exchange_of("headers");
    more(&load, 100);
    scene.held("rabbitmq", KINDS[0], "unroutable");
    scene.delete_exchange();
    scene.make_exchange_of("topic");
    for kind in KINDS {
        scene.bind(kind, kind);
    }
    more(&load, 100);
    let sent = load.stop();
    judge_rabbitmq(&scene, &sent, 1, 0);
}

/// One routing key that the user may not publish with, until it may; and connections that an operator closes meanwhile.
pub fn rabbitmq_forbids(name: &str) {
    let scene = with_queues(Brokers::shared(), name);
    let user = &scene.name;
    scene.brokers.ask("PUT", &format!("/api/users/{user}"), r#"{"password":"password","tags":"monitoring"}"#);
    let rights = r#"{"configure":"","write":".*","read":""}"#;
    scene.brokers.ask("PUT", &format!("/api/permissions/%2f/{user}"), rights);
    let by_topic = |write: &str| {
        let rights = serde_json::json!({ "exchange": scene.name, "write": write, "read": "" });
        scene.brokers.ask("PUT", &format!("/api/topic-permissions/%2f/{user}"), &rights.to_string());
    };
    by_topic(r"\.(incoming_call_start|outgoing_call_end)$");
    std::fs::write(scene.relay.path("password"), "password").expect("a file");
    let more_keys = format!(
        "username = \"{user}\"\npassword_file = \"password\"\nmanagement_url = \"{}\"\n",
        scene.brokers.management()
    );
    scene.configure(&(scene.rabbitmq_output("{event}") + &more_keys), "");
    let scene = scene.up();
    let load = paced(&scene);
    more(&load, 300);
    scene.held("rabbitmq", "tags", "forbidden");
    let told = scene.relay.finish(&["check", "--live"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert_eq!(told.status.code(), Some(1), "{text}");
    assert!(text.contains("set_topic_permissions"), "{text}");
    let rights = serde_json::json!({ "exchange": scene.name, "write": ".*", "read": "" });
    scene.brokers.ask("PUT", &format!("/api/topic-permissions/%2f/{}", scene.name), &rights.to_string());
    more(&load, 100);
    scene.brokers.rabbitmqctl(&["close_all_user_connections", &scene.name, "the operator's"]);
    more(&load, 100);
    let sent = load.stop();
    judge_rabbitmq(&scene, &sent, 2, 0);
}

/// A record over the broker's `max_message_size` among small ones of one go.
pub fn too_large_for_rabbitmq(name: &str) {
    let scene = Scene::prepare(Brokers::shared(), name, "");
    scene.make_queue("tags", "{}");
    scene.bind("tags", "tags");
    let (proxy, output) = scene.rabbitmq_proxied(&scene.rabbitmq_output("{event}"));
    scene.configure(&output, "");
    let scene = scene.up();
    proxy.freeze(true);
    let load = Load::start(&scene.relay, 1, |client, number| {
        let body = oracle::body_of("tags", client, number);
        if number == 50 { body.replace("  ", &" ".repeat(RABBITMQ_MESSAGE_MAX + 1)) } else { body }
    });
    wait_until("a backlog", LONG, || load.accepted() >= 200);
    let sent = load.stop();
    proxy.freeze(false);
    assert_all_accepted_in_time(&sent);
    scene.drained(&["rabbitmq"], LONG);
    assert_eq!(scene.metric("events_parked_total", &[("output", "rabbitmq"), ("reason", "too_large")]), 1.0);
    let (large, small): (Vec<_>, Vec<_>) = sent.into_iter().partition(|one| one.body.len() > RABBITMQ_MESSAGE_MAX);
    assert_eq!(large.len(), 1);
    let verdict = oracle::judge(&small, &scene.in_rabbitmq(&["tags"], small.len()));
    verdict.assert_kept(WINDOW);
    scene.assert_ledger("rabbitmq", &verdict, 1);
}

/// The node's applications stop and start; the process and its port's listener go and come.
pub fn node_restarted(name: &str) {
    let scene = with_queues(Brokers::own(), name);
    scene.configure(&scene.rabbitmq_output("{event}"), "");
    let scene = scene.up();
    let load = paced(&scene);
    more(&load, 100);
    scene.brokers.rabbitmqctl(&["stop_app"]);
    away(&scene, "rabbitmq", LONG);
    more(&load, 100);
    scene.brokers.rabbitmqctl(&["start_app"]);
    more(&load, 100);
    let sent = load.stop();
    judge_rabbitmq(&scene, &sent, 1, 0);
}

/// A thousand events of a topic that nobody made, and as many unroutable: a probe now and then, and nothing else.
pub fn held_events_do_not_storm(name: &str, time: Duration) {
    let scene = Scene::prepare(Brokers::shared(), name, "").up();
    let load = Load::start(&scene.relay, 8, |client, number| oracle::body_of("tags", client, number));
    wait_until("a thousand", LONG, || load.accepted() >= 1_000);
    load.stop();
    scene.held("kafka", "tags", "topic_missing");
    scene.held("rabbitmq", "tags", "unroutable");
    let tries = |output, reason| scene.metric("publish_failures_total", &[("output", output), ("reason", reason)]);
    let before = [tries("kafka", "topic_missing"), tries("rabbitmq", "unroutable")];
    let start = Instant::now();
    wait_until("the time to pass", LONG, || start.elapsed() >= time);
    let tried = [tries("kafka", "topic_missing") - before[0], tries("rabbitmq", "unroutable") - before[1]];
    eprintln!("{} events held at each: {tried:?} tries within {time:?}", scene.pending("kafka"));
    // From 0.1 s on each pause is at least half of double the last: 20 s have room for about ten, and the longest is 30 s.
    assert!(tried.iter().all(|tried| *tried <= 10.0), "a storm: {tried:?}");
}

/// All was accepted in time, and what was is in the queues, in order, and counted once.
fn judge_rabbitmq(scene: &Scene, sent: &[Sent], windows: usize, parked: usize) {
    scene.drained(&["rabbitmq"], LONG);
    let accepted = assert_all_accepted_in_time(sent);
    let verdict = oracle::judge(sent, &scene.in_rabbitmq(&KINDS, accepted));
    verdict.assert_kept(windows * WINDOW);
    scene.assert_ledger("rabbitmq", &verdict, parked);
}
