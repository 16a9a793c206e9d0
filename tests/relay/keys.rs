//! Every key of relay.toml does what the manual says of it, seen from outside: by which test, and the tests of those that nothing else tries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::mocking::MockCluster;
use serde_json::Value;

use crate::support::{Client, PATH, Relay, SECRET, free_address, now, sign, wait_until};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// The file under `tests`, the test, and the keys whose effect it sees.
const SEEN: &[(&str, &str, &[&str])] = &[
    (
        "relay/keys.rs",
        "brokers_see_the_instance_and_what_the_environment_gives",
        &[
            "instance",
            "outputs.kafka.security.client_secret",
            "outputs.kafka.security.scope",
            "outputs.rabbitmq.password",
        ],
    ),
    (
        "relay/keys.rs",
        "the_bounds_of_the_public_port_are_those_that_are_configured",
        &[
            "ingress.headers_max",
            "ingress.buffered_max",
            "ingress.deadline",
            "ingress.idle_timeout",
            "ingress.connections_max",
        ],
    ),
    (
        "relay/keys.rs",
        "what_an_account_says_holds_for_it_alone",
        &["accounts.default.secret", "accounts.default.tolerance", "accounts.default.keep_refused", "envelope.source"],
    ),
    (
        "relay/keys.rs",
        "one_event_goes_where_its_own_key_says",
        &["outputs.kafka.topics.test", "outputs.rabbitmq.routing_keys.test"],
    ),
    ("relay/keys.rs", "a_property_reaches_librdkafka", &["outputs.kafka.properties"]),
    (
        "brokers/stuck.rs",
        "a_record_at_which_kafka_hangs_up_is_parked_and_the_others_go_on",
        &["outputs.kafka.record_max"],
    ),
    ("relay/keys.rs", "the_trail_goes_when_it_is_older_than_configured", &["journal.trail"]),
    ("relay/refuse.rs", "what_is_over_a_size_is_413_431_or_414_and_no_http_is_400", &["ingress.body_max"]),
    (
        "relay/tls.rs",
        "a_certificate_is_swapped_under_load_and_every_sender_is_served",
        &["ingress.tls.certificate_file", "ingress.tls.private_key_file"],
    ),
    (
        "relay/again.rs",
        "accounts_have_ids_paths_and_secrets_of_their_own",
        &["accounts.default.path", "accounts.default.secrets"],
    ),
    ("relay/again.rs", "what_configuration_discards_is_answered_and_counted_and_not_forwarded", &["events.discard"]),
    ("relay/bodies.rs", "odd_but_genuine_bodies_are_accepted_and_come_out_to_the_byte", &["events.extra"]),
    (
        "brokers/recover_disk.rs",
        "short_of_room_the_relay_says_503_and_comes_back_by_itself",
        &["journal.path", "journal.free_min"],
    ),
    ("faults/disk.rs", "only_debt_fills_the_journal_and_the_output_s_return_empties_it", &["journal.size_max"]),
    ("relay/journal.rs", "trace_tells_the_way_also_when_the_content_is_gone", &["journal.retention"]),
    (
        "brokers/contract.rs",
        "every_payload_arrives_as_written_down_in_kafka_in_both_modes_and_in_rabbitmq",
        &[
            "outputs.kafka.type",
            "outputs.kafka.brokers",
            "outputs.kafka.topic",
            "outputs.kafka.mode",
            "outputs.rabbitmq.urls",
            "outputs.rabbitmq.routing_key",
        ],
    ),
    (
        "brokers/secure.rs",
        "secured_brokers_let_the_relay_in_or_it_says_why_not_and_changed_files_need_no_restart",
        &[
            "outputs.kafka.security.protocol",
            "outputs.kafka.security.mechanism",
            "outputs.kafka.security.username",
            "outputs.kafka.security.password_file",
            "outputs.kafka.security.ca_file",
            "outputs.kafka.security.certificate_file",
            "outputs.kafka.security.private_key_file",
            "outputs.kafka.security.client_id",
            "outputs.kafka.security.client_secret_file",
            "outputs.kafka.security.token_url",
            "outputs.rabbitmq.type",
            "outputs.rabbitmq.username",
            "outputs.rabbitmq.password_file",
            "outputs.rabbitmq.ca_file",
            "outputs.rabbitmq.certificate_file",
            "outputs.rabbitmq.private_key_file",
        ],
    ),
    (
        "brokers/troubles.rs",
        "a_topic_that_kafka_forbids_is_held_until_the_right_is_granted",
        &["outputs.kafka.security.password"],
    ),
    (
        "brokers/troubles.rs",
        "a_missing_exchange_and_one_of_another_type_hold_events",
        &["outputs.rabbitmq.exchange", "outputs.rabbitmq.declare"],
    ),
    (
        "brokers/live.rs",
        "check_live_names_what_is_missing_with_its_command_and_then_finds_all_in_order",
        &["outputs.rabbitmq.management_url"],
    ),
    (
        "relay/journal.rs",
        "status_tells_of_each_output_and_topic_beside_a_relay_and_after_it",
        &["outputs.console.type"],
    ),
    (
        "relay/stop.rs",
        "during_the_delay_it_is_unready_and_still_accepts_and_then_ends",
        &["ingress.listen", "admin.listen", "shutdown.delay"],
    ),
    ("relay/keys.rs", "a_full_account_is_refused_alone", &["accounts.default.journal_max"]),
    ("relay/keys.rs", "the_admin_port_answers_only_under_names_that_it_knows", &["admin.hosts"]),
    ("relay/stop.rs", "sigterm_while_the_brokers_are_away_ends_in_time_and_keeps_what_is_pending", &["shutdown.drain"]),
    ("relay/observe.rs", "one_event_is_followed_through_the_log_by_its_id", &["log.format", "log.level"]),
];

/// Those that only the environment gives, and the manual names by their variables.
const ENVIRONMENT_ONLY: [&str; 4] = [
    "accounts.default.secret",
    "outputs.kafka.security.client_secret",
    "outputs.kafka.security.password",
    "outputs.rabbitmq.password",
];

/// The dotted name of each key of the manual, also of those that are off.
fn manual(table: &toml::Table, prefix: &str, keys: &mut BTreeSet<String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => manual(inner, &format!("{prefix}{key}."), keys),
            _ => drop(keys.insert(format!("{prefix}{key}"))),
        }
    }
}

#[test]
fn every_key_of_the_manual_is_seen_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("relay.toml")).expect("relay.toml");
    let on = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    let table: toml::Table = text.lines().map(on).collect::<String>().parse().expect("TOML");
    let mut keys: BTreeSet<String> = ENVIRONMENT_ONLY.map(str::to_owned).into();
    manual(&table, "", &mut keys);
    let mut seen = BTreeSet::new();
    for (file, test, of) in SEEN {
        let source =
            fs::read_to_string(root.join("tests").join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {test}()")), "{file} has no test {test}");
        for key in *of {
            assert!(seen.insert((*key).to_owned()), "{key} twice");
        }
    }
    assert_eq!(keys, seen);
}

/// What a listening port was told first, connection by connection.
type Heard = Arc<Mutex<Vec<String>>>;

/// Listens for as long as the process runs, and lets `hear` have each connection.
fn listen(hear: fn(&mut TcpStream) -> io::Result<String>) -> (SocketAddr, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    let heard = Heard::default();
    let into = Arc::clone(&heard);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(LONG));
            if let Ok(said) = hear(&mut stream) {
                into.lock().expect("nobody panics with it").push(said);
            }
        }
    });
    (address, heard)
}

/// The client's id in the first request of a Kafka client.
fn client_id(stream: &mut TcpStream) -> io::Result<String> {
    let request = piece(stream, 4)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (length, id) = request.get(8..).unwrap_or_default().split_at_checked(2).unwrap_or_default();
    Ok(text(&id[..length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))]))
}

/// What a RabbitMQ client says of itself when it is greeted: AMQP's Start-Ok.
fn start_ok(stream: &mut TcpStream) -> io::Result<String> {
    stream.read_exact(&mut [0; 8])?;
    // Method Start of version 0.9, no properties, PLAIN, en_US.
    let start = b"\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05en_US";
    stream.write_all(&[b"\x01\0\0\0\0\0", &[start.len() as u8][..], start, b"\xce"].concat())?;
    stream.read_exact(&mut [0; 3])?;
    Ok(String::from_utf8_lossy(&piece(stream, 4)?).into_owned())
}

/// What comes behind its own length of so many bytes.
fn piece(stream: &mut TcpStream, digits: usize) -> io::Result<Vec<u8>> {
    let mut length = vec![0; digits];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A request for a token, which is refused.
fn token_request(stream: &mut TcpStream) -> io::Result<String> {
    let mut request = Vec::new();
    while !String::from_utf8_lossy(&request).contains("grant_type=") {
        let mut part = [0; 4096];
        match stream.read(&mut part)? {
            0 => break,
            count => request.extend_from_slice(&part[..count]),
        }
    }
    stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")?;
    Ok(String::from_utf8_lossy(&request).into_owned())
}

#[test]
fn brokers_see_the_instance_and_what_the_environment_gives() {
    let (kafka, clients) = listen(client_id);
    let (rabbitmq, starts) = listen(start_ok);
    let (tokens, requests) = listen(token_request);
    let mut relay = Relay::prepare(&format!(
        "instance = \"relay-7\"\n[outputs.kafka]\nbrokers = \"{kafka}\"\n\
         [outputs.rabbitmq]\nurls = [\"amqp://{rabbitmq}/%2f\"]\nusername = \"relay\"\n\
         [outputs.token]\ntype = \"kafka\"\nbrokers = \"{}\"\n[outputs.token.security]\nprotocol = \"SASL_PLAINTEXT\"\n\
         mechanism = \"OAUTHBEARER\"\nclient_id = \"client\"\ntoken_url = \"http://{tokens}/token\"\nscope = \"a b\"\n",
        free_address()
    ));
    relay.set_environment("RELAY_OUTPUTS__RABBITMQ__PASSWORD", "p:1");
    relay.set_environment("RELAY_OUTPUTS__TOKEN__SECURITY__CLIENT_SECRET", "s");
    let heard = |heard: &Heard| heard.lock().expect("nobody panics with it").clone();
    for command in [&["run"][..], &["check", "--live"], &["topics", "--create", "--yes"]] {
        clients.lock().expect("nobody panics with it").clear();
        starts.lock().expect("nobody panics with it").clear();
        relay.spawn_command(command);
        // Only the relay itself asks for a token before a broker answers.
        wait_until(&format!("{command:?} to come to all"), LONG, || {
            [&clients, &starts, &requests].iter().all(|one| !heard(one).is_empty())
        });
        relay.kill9_if_alive();
        let clients = heard(&clients);
        assert!(clients.iter().all(|id| id == "relay-7"), "{command:?}: {clients:?}");
        for start in heard(&starts) {
            assert!(start.contains("connection_nameS\0\0\0\x07relay-7"), "{command:?}: {start:?}");
            assert!(start.contains("\0relay\0p:1"), "{command:?}: {start:?}");
        }
    }
    let credentials = format!("Basic {}", STANDARD.encode("client:s"));
    for request in heard(&requests) {
        assert!(request.contains(&credentials) && request.contains("&scope=a%20b"), "{request}");
    }
}

#[test]
fn the_bounds_of_the_public_port_are_those_that_are_configured() {
    let patient = "deadline = \"60s\"\n";
    let relay = Relay::start(&format!(
        "[ingress]\nbody_max = \"32 KiB\"\nbuffered_max = \"96 KiB\"\nheaders_max = \"32 KiB\"\nconnections_max = 4\n{patient}"
    ));
    let connect = |relay: &Relay| Client::connect(relay.ingress).expect("a connection");
    for (size, status) in [(24, 404), (40, 431)] {
        let mut client = connect(&relay);
        let head = format!("GET / HTTP/1.1\r\nHost: relay\r\nX: {}\r\n\r\n", "x".repeat(size << 10));
        let _ = client.send(head.as_bytes()); // It may answer before it has read everything.
        assert_eq!(client.answer().expect("an answer").status, status, "{size} KiB of headers");
    }
    // Of 96 KiB, connections that proved nothing may take 72 KiB: two bodies of 32 KiB; for a third one of them gives way.
    let body = vec![b'1'; 32 << 10];
    let timestamp = now().to_string();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {}\r\n\r\n",
        body.len(),
        sign(SECRET, &timestamp, &body)
    );
    let mut all = [(); 3].map(|()| connect(&relay));
    let (first, last) = body.split_at(body.len() - 1);
    for client in &mut all {
        client.send(&[head.as_bytes(), first].concat()).expect("all but a byte");
    }
    let refused = || relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "memory")]);
    wait_until("one to give way", LONG, || refused() == 1.0);
    let statuses = all.map(|mut client| {
        let _ = client.send(last);
        client.answer().map_or(0, |answer| answer.status)
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 1, "{statuses:?}");
    // Of five that say nothing, the fifth takes the place of the first.
    let mut silent: Vec<Client> = (0..5).map(|_| connect(&relay)).collect();
    assert!(silent[0].is_closed_within(LONG), "it made room");
    assert!(!silent[4].is_closed_within(Duration::from_millis(10)));

    let relay = Relay::start("[ingress]\ndeadline = \"200ms\"\nidle_timeout = \"1s\"\n");
    let (mut half, mut idle) = (connect(&relay), connect(&relay));
    assert_eq!(idle.get("/").expect("an answer").status, 404);
    let start = Instant::now();
    half.send(&head.as_bytes()[..50]).expect("a part of the head");
    assert!(half.is_closed_within(LONG));
    let took = start.elapsed().as_secs_f64();
    assert!((0.2..1.5).contains(&took), "the head was waited for {took} s, and by default it is 1.8");
    assert!(idle.is_closed_within(LONG), "by default it may rest for 620 s");
}

#[test]
fn what_an_account_says_holds_for_it_alone() {
    const LATE: &str = "fedcba9876543210fedcba9876543210";
    const FROM_ENVIRONMENT: &str = "0f1e2d3c4b5a69780f1e2d3c4b5a6978";
    // Two share a folder of secrets, so that both are read at one time, `a` before `c`.
    let shared = "secrets = \"data/secrets\"\n";
    let mut relay = Relay::prepare(&format!(
        "[accounts.a]\npath = \"/a\"\n{shared}keep_refused = 0\n[accounts.b]\npath = \"/b\"\ntolerance = \"30s\"\n\
         [accounts.c]\npath = \"/c\"\n{shared}[envelope]\nsource = \"/calls/{{account}}/x\"\n"
    ));
    relay.set_environment("RELAY_ACCOUNTS__B__SECRET", FROM_ENVIRONMENT);
    relay.run();
    let post = |path: &str, secret: &str, age: i64| {
        let timestamp = (now() - age).to_string();
        // Each its own: the very same one would be a duplicate, whoever signed it.
        let body = format!("\"{secret} {age}\"").into_bytes();
        let signature = sign(secret, &timestamp, &body);
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        let mut client = Client::connect(relay.ingress).expect("a connection");
        client.request("POST", path, &headers, &body).expect("an answer").status
    };
    let cases = [("/a", SECRET, 0, 200), ("/b", SECRET, 0, 401), ("/b", FROM_ENVIRONMENT, 0, 200)];
    // Of one minute: within five, the default, and past half of one.
    let of_a_minute = [("/a", SECRET, 60, 200), ("/b", FROM_ENVIRONMENT, 60, 401)];
    for (path, secret, age, status) in cases.into_iter().chain(of_a_minute) {
        assert_eq!(post(path, secret, age), status, "{path} {secret} {age}");
    }
    for path in ["/a", "/c"] {
        assert_eq!(post(path, LATE, 0), 401);
    }
    relay.write_secret("late", LATE);
    let recovered = |account| relay.metrics().get("sipsim_relay_webhooks_recovered_total", &[("account", account)]);
    wait_until("the one of c to be recovered", LONG, || recovered("c") == 1.0);
    assert_eq!(recovered("a"), 0.0, "keep_refused is 0");
    wait_until("all to leave", LONG, || relay.envelopes().len() == 4);
    let sources: Vec<_> = relay.envelopes().iter().map(|envelope| envelope["source"].clone()).collect();
    assert_eq!(sources, ["/calls/a/x", "/calls/b/x", "/calls/a/x", "/calls/c/x"]);
}

#[test]
fn a_full_account_is_refused_alone() {
    const LATE: &str = "fedcba9876543210fedcba9876543210";
    let mut relay = Relay::start(
        "[accounts.a]\npath = \"/a\"\nsecrets = \"data/secrets\"\njournal_max = \"1 MiB\"\n\
         [accounts.b]\npath = \"/b\"\nsecrets = \"data/secrets\"\n\
         [outputs.kafka]\nbrokers = \"127.0.0.1:9\"\n",
    );
    let post = |relay: &Relay, path: &str, secret: &str, body: &str| {
        let timestamp = now().to_string();
        let signature = sign(secret, &timestamp, body.as_bytes());
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        let mut client = Client::connect(relay.ingress).expect("a connection");
        client.request("POST", path, &headers, body.as_bytes()).expect("an answer")
    };
    let large = |number: u32| format!("\"{number}{}\"", "x".repeat(200 << 10));
    let timestamp = now().to_string();
    let signature = sign(SECRET, &timestamp, large(1).as_bytes());
    let first = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    let deliver_first = |relay: &Relay| {
        let mut client = Client::connect(relay.ingress).expect("a connection");
        client.request("POST", "/a", &first, large(1).as_bytes()).expect("an answer").status
    };
    assert_eq!(deliver_first(&relay), 200);
    for number in 2..=5 {
        assert_eq!(post(&relay, "/a", SECRET, &large(number)).status, 200, "{number}");
    }
    let bytes =
        |relay: &Relay, account| relay.metrics().get("sipsim_relay_journal_account_bytes", &[("account", account)]);
    let five = bytes(&relay, "a");
    assert!((1_000.0 * 1024.0..1_048_576.0).contains(&five), "{five}");
    let check = |relay: &Relay, when: &str| {
        let refused = post(relay, "/a", SECRET, &large(6));
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")), "{when}");
        assert_eq!(relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "account_full")]), 1.0, "{when}");
        assert_eq!(deliver_first(relay), 200, "a duplicate takes no room, {when}");
        assert_eq!(post(relay, "/b", SECRET, &large(7)).status, 200, "{when}");
        assert_eq!(relay.get("/readyz").expect("an answer").status, 200, "{when}");
        assert_eq!(bytes(relay, "a"), five, "{when}");
    };
    check(&relay, "at first");
    relay.logged(&["account_full", "accounts.NAME.journal_max"]);
    relay.restart();
    check(&relay, "after a kill");
    // Those that a new secret proves late: the full account's wait, the other's do not wait behind them.
    for path in ["/a", "/b"] {
        assert_eq!(post(&relay, path, LATE, &large(8)).status, 401);
    }
    relay.write_secret("late", LATE);
    let recovered = |account| relay.metrics().get("sipsim_relay_webhooks_recovered_total", &[("account", account)]);
    wait_until("b's to be recovered", LONG, || recovered("b") == 1.0);
    relay.logged(&["which takes none of account a now"]);
    assert_eq!(recovered("a"), 0.0);
    let given_up = relay.finish(&["journal", "discard", "--output", "kafka", "--yes"]);
    assert!(given_up.status.success(), "{given_up:?}");
    wait_until("a's to be recovered", LONG, || recovered("a") == 1.0);
    let one = five / 5.0;
    assert_eq!((bytes(&relay, "a") / one).round(), 1.0, "what was given up takes nothing");
    assert_eq!(post(&relay, "/a", SECRET, &large(9)).status, 200);
}

#[test]
fn the_admin_port_answers_only_under_names_that_it_knows() {
    let relay = Relay::start("instance = \"relay-7\"\n[admin]\nhosts = [\"status.example\"]\n");
    let ask = |host: &str| {
        let mut client = Client::connect(relay.admin).expect("a connection");
        client.send(format!("GET /livez HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).expect("a request");
        client.answer().expect("an answer").status
    };
    let known = ["relay-7", "status.example:8081", "localhost", &relay.admin.to_string()];
    assert_eq!(known.map(ask), [200; 4]);
    assert_eq!(["attacker.example", "another.example"].map(ask), [421; 2]);
    let log = relay.logged(&["add it to admin.hosts"]);
    assert_eq!(log.matches("admin.hosts").count(), 1, "once a minute: {log}");
}

#[test]
fn one_event_goes_where_its_own_key_says() {
    let relay = Relay::start(&format!(
        "[outputs.kafka]\nbrokers = \"{}\"\ntopics.test = \"tests\"\n[outputs.rabbitmq]\nurls = [\"amqp://{}/%2f\"]\nrouting_keys.test = \"for.tests\"\n",
        free_address(),
        free_address()
    ));
    for event in ["test", "sms"] {
        assert_eq!(relay.post(format!(r#"{{"event":"{event}"}}"#).as_bytes()).status, 200);
    }
    let status = relay.finish(&["journal", "status", "--format", "json"]).stdout;
    let status: Value = serde_json::from_slice(&status).expect("JSON");
    let pending = |output: &str| -> BTreeMap<String, Value> {
        let outputs = status["outputs"].as_array().expect("outputs");
        let found = outputs.iter().find(|one| one["output"] == output).expect("the output");
        let topics = found["topics"].as_array().expect("topics").iter();
        topics.map(|one| (one["topic"].as_str().expect("a name").to_owned(), one["pending"].clone())).collect()
    };
    assert_eq!(pending("kafka"), [("sipsim.sms".into(), 1.into()), ("tests".into(), 1.into())].into());
    assert_eq!(pending("rabbitmq"), [("for.tests".into(), 1.into()), ("sipsim.sms.sms".into(), 1.into())].into());
}

#[test]
fn a_property_reaches_librdkafka() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    let relay = Relay::start(&format!(
        "[outputs.kafka]\nbrokers = \"{}\"\ntopic = \"t\"\nproperties.\"linger.ms\" = 1000\n",
        cluster.bootstrap_servers()
    ));
    assert_eq!(relay.post(b"{}").status, 200);
    let of = |name: &str| relay.metrics().sum(&format!("sipsim_relay_{name}"), &[("output", "kafka")]);
    wait_until("it to be published", LONG, || of("events_published_total") == 1.0);
    let took = of("publish_duration_seconds_sum");
    assert!(took > 0.9, "it lingered for {took} s, and by default it is 0.005");
}

#[test]
fn the_trail_goes_when_it_is_older_than_configured() {
    let relay = Relay::start("[journal]\ntrail = \"1s\"\nretention = 0\n");
    let id = relay.post(b"{}").json()["id"].as_str().expect("an id").to_owned();
    wait_until("it to be published", LONG, || relay.envelopes().len() == 1);
    wait_until("its trail to go", LONG, || {
        let output = relay.finish(&["journal", "trace", "--id", &id]);
        output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("never reached us")
    });
}
