//! It ends in order and in time, and does not start where it could not keep its promise.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Client, PATH, Relay, SECRET, finish, now, sign, wait_for, wait_until};

const BODY: &[u8] = br#"{"event":"sms","message":"stop"}"#;
/// What the stop may take beside `shutdown.delay` and `shutdown.drain`.
const SLACK: Duration = Duration::from_secs(2);

/// An address at which a broker is awaited in vain: nobody accepts, so that a client waits instead of hearing of it at once.
fn silent_broker() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    (listener, address)
}

fn ready(relay: &Relay) -> Option<u16> {
    relay.get("/readyz").map(|answer| answer.status)
}

/// What waits for an output, once the journal is open.
fn pending(relay: &Relay, output: &str) -> f64 {
    wait_until("/readyz to say 200", Duration::from_secs(10), || ready(relay) == Some(200));
    relay.metrics().get("sipsim_relay_events_pending", &[("output", output)])
}

#[test]
fn sigterm_while_the_brokers_are_away_ends_in_time_and_keeps_what_is_pending() {
    let (_kafka, kafka) = silent_broker();
    let (_rabbitmq, rabbitmq) = silent_broker();
    let config = format!(
        "[outputs.kafka]\nbrokers = \"{kafka}\"\n[outputs.rabbitmq]\nurls = [\"amqp://{rabbitmq}/%2f\"]\n\
         [shutdown]\ndelay = \"0s\"\ndrain = \"1s\"\n"
    );
    let mut relay = Relay::start(&config);
    assert_eq!(ready(&relay), Some(200), "the broker's health does not decide");
    assert_eq!(relay.post(BODY).status, 200);
    let start = Instant::now();
    let status = relay.terminate(Duration::from_secs(1) + SLACK);
    assert_eq!(status.code(), Some(0), "after {:?}", start.elapsed());
    let log = relay.stderr();
    for output in ["kafka", "rabbitmq"] {
        assert!(log.contains(&format!("{output}: 1 events stay pending")), "the log says what stays: {log}");
    }
    relay.run();
    for output in ["kafka", "rabbitmq"] {
        assert_eq!(pending(&relay, output), 1.0, "{output}");
    }
}

#[test]
fn a_second_sigterm_ends_it_at_once() {
    let (_kafka, kafka) = silent_broker();
    let mut relay = Relay::start(&format!("[outputs.kafka]\nbrokers = \"{kafka}\"\n[shutdown]\ndelay = \"30s\"\n"));
    assert_eq!(relay.post(BODY).status, 200);
    relay.signal(Signal::TERM);
    wait_until("/readyz to say 503", Duration::from_secs(5), || ready(&relay) == Some(503));
    let status = relay.terminate(SLACK);
    assert_eq!(status.code(), Some(0));
    relay.run();
    assert_eq!(pending(&relay, "kafka"), 1.0);
}

#[test]
fn during_the_delay_it_is_unready_and_still_accepts_and_then_ends() {
    let mut relay = Relay::start("[shutdown]\ndelay = \"2s\"\ndrain = \"5s\"\n");
    let mut kept_alive = Client::connect(relay.ingress).expect("a connection");
    let mut post = |number: u32| {
        let body = format!(r#"{{"event":"sms","message":"{number}"}}"#);
        let timestamp = now().to_string();
        let signature = sign(SECRET, &timestamp, body.as_bytes());
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        kept_alive.request("POST", PATH, &headers, body.as_bytes()).expect("an answer")
    };
    let answer = post(1);
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    let start = Instant::now();
    relay.signal(Signal::TERM);
    let verbose = wait_for("/readyz to say 503", Duration::from_secs(1), || {
        relay.get("/readyz?verbose").filter(|answer| answer.status == 503)
    });
    assert!(verbose.text().contains("running: the relay is stopping"), "{}", verbose.text());
    assert_eq!(relay.get("/livez").map(|answer| answer.status), Some(200), "alive until the end");
    let answer = post(2);
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(relay.post(b"3").status, 200, "new connections are taken too");
    let unknown = Client::connect(relay.ingress).and_then(|mut client| client.get("/")).expect("an answer");
    assert_eq!((unknown.status, unknown.header("connection")), (404, Some("close")), "on every answer");
    let status = wait_for("the end", Duration::from_secs(9), || relay.try_wait());
    assert_eq!(status.code(), Some(0));
    assert!(start.elapsed() >= Duration::from_secs(2), "it did not wait for shutdown.delay");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "nothing was pending, so the drain takes no time: {:?}",
        start.elapsed()
    );
    assert_eq!(relay.envelopes().len(), 3, "all that was accepted is published");
}

#[test]
fn what_is_pending_is_published_before_the_end() {
    let relay = Relay::prepare("");
    let mut child = relay
        .command(&["run"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    wait_until("/readyz to say 200", Duration::from_secs(30), || ready(&relay) == Some(200));
    // More than a pipe holds, and nobody reads it yet.
    for number in 0..400 {
        assert_eq!(relay.post(format!(r#"{{"event":"sms","message":"{number}"}}"#).as_bytes()).status, 200);
    }
    assert!(pending(&relay, "console") >= 100.0, "a pipe of 64 KiB cannot hold 400 envelopes");
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("it can be signalled");
    let refused = || Client::connect(relay.ingress).is_err();
    wait_until("the public port to be closed", Duration::from_secs(5), refused);
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let envelopes: Vec<serde_json::Value> =
        lines.map(|line| serde_json::from_str(&line.expect("text")).expect("a whole envelope")).collect();
    let status = wait_for("the end", SLACK, || child.try_wait().expect("it can be waited for"));
    assert_eq!(status.code(), Some(0));
    let messages: Vec<&str> = envelopes.iter().filter_map(|one| one["data"]["message"].as_str()).collect();
    let expected: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    assert_eq!(messages, expected, "all of them, once and in order");
}

#[test]
fn what_was_read_whole_is_answered_and_what_was_not_does_not_hold_up_the_end() {
    let mut relay = Relay::start("");
    let mut half = Client::connect(relay.ingress).expect("a connection");
    half.send(format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: 100\r\n").as_bytes())
        .expect("half a head");
    let load = crate::support::Load::start(&relay, 4, |client, number| {
        format!(r#"{{"event":"sms","message":"{client} {number}"}}"#)
    });
    wait_until("some to be accepted", Duration::from_secs(10), || load.accepted() > 200);
    assert_eq!(relay.terminate(Duration::from_secs(20) + SLACK).code(), Some(0));
    let sent = load.stop();
    let out = relay.envelopes();
    let messages: std::collections::BTreeSet<&str> =
        out.iter().filter_map(|one| one["data"]["message"].as_str()).collect();
    for one in sent.iter().filter(|one| one.is_accepted()) {
        let body: serde_json::Value = serde_json::from_str(&one.body).expect("JSON");
        assert!(
            messages.contains(body["message"].as_str().expect("a text")),
            "{} was answered 200 and is not out",
            one.body
        );
    }
    // An answer is a 200, or a 503 at the very end; never anything else.
    assert!(sent.iter().all(|one| matches!(one.status, Some(200 | 503) | None)));
}

#[test]
fn a_second_relay_on_one_journal_ends_with_1_and_says_who_has_it() {
    let relay = Relay::start("");
    let mut second = relay.command(&["run"]);
    second.env("RELAY_INGRESS__LISTEN", "127.0.0.1:0").env("RELAY_ADMIN__LISTEN", "127.0.0.1:0");
    let output = finish(&mut second, Duration::from_secs(10));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("journal.path") && said.contains("data/journal") && said.contains("another"), "{said}");
    assert_eq!(relay.post(BODY).status, 200, "the first is not disturbed");
}

#[test]
fn without_a_secret_and_with_a_broker_it_does_not_start_and_says_what_to_do() {
    for broker in
        ["[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n", "[outputs.rabbitmq]\nurls = [\"amqp://127.0.0.1:1/%2f\"]\n"]
    {
        let relay = Relay::prepare(broker);
        std::fs::remove_file(relay.path("data/secrets/sipsim")).expect("the secret goes");
        let output = relay.finish(&["run"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in ["default", "data/secrets", "RELAY_ACCOUNTS__DEFAULT__SECRET"] {
            assert!(said.contains(word), "it does not say {word}: {said}");
        }
        assert!(!relay.path("data/secrets/sipsim").exists(), "towards a broker nothing is made up");
    }
}

#[test]
fn on_the_console_alone_a_secret_is_made_and_never_shown() {
    let mut relay = Relay::prepare("");
    std::fs::remove_dir_all(relay.path("data")).expect("all goes");
    relay.run();
    let secret = std::fs::read_to_string(relay.path("data/secrets/sipsim")).expect("a secret was made");
    let secret = secret.trim();
    assert!(
        secret.len() == 64 && secret.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')),
        "64 hex digits"
    );
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &str| std::fs::metadata(relay.path(path)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode("data/secrets"), mode("data/secrets/sipsim")), (0o700, 0o600));
    assert_eq!((mode("data"), mode("data/journal.db")), (0o700, 0o600));
    let log = relay.logged(&["data/secrets/sipsim", "simulate --to http://"]);
    assert!(!log.contains(secret), "{log}");
    let timestamp = now().to_string();
    let signature = sign(secret, &timestamp, BODY);
    let answer = relay.post_with(&[("X-Webhook-Timestamp", &timestamp), ("X-Webhook-Signature", &signature)], BODY);
    assert_eq!(answer.status, 200);
}

#[test]
fn a_closed_standard_output_is_an_error_of_that_output_and_no_panic() {
    let relay = Relay::prepare("[shutdown]\ndrain = \"1s\"\n");
    let mut child = relay
        .command(&["run"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let errors = BufReader::new(child.stderr.take().expect("it is piped"));
    let log = thread::spawn(move || errors.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    drop(child.stdout.take()); // `| head -0`
    wait_until("/startupz to say 200", Duration::from_secs(30), || {
        relay.get("/startupz").is_some_and(|answer| answer.status == 200)
    });
    assert_eq!(relay.post(BODY).status, 200);
    wait_until("the output to be down", Duration::from_secs(10), || {
        let failures = [("output", "console"), ("reason", "disconnected")];
        relay.metrics().get("sipsim_relay_publish_failures_total", &failures) >= 1.0
    });
    assert_eq!(relay.post(b"{}").status, 200, "accepting goes on");
    assert_eq!(ready(&relay), Some(200));
    assert_eq!(relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]), 2.0, "events wait");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it can be signalled");
    let status =
        wait_for("the end", Duration::from_secs(1) + SLACK, || child.try_wait().expect("it can be waited for"));
    assert_eq!(status.code(), Some(0));
    let log = log.join().expect("the log");
    assert!(!log.contains("panic") && log.contains("console"), "{log}");

    let mut relay = relay; // With an output that is open they come out.
    relay.run();
    wait_until("both to come out", Duration::from_secs(10), || relay.envelopes().len() == 2);
}
