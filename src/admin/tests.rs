//! The admin port on a real socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::cli::healthcheck::healthcheck;
use crate::clock::Rfc3339;
use crate::config::Name;
use crate::ingress::tests::configuration;
use crate::journal::{self, Counts, OutputRow};
use crate::metrics::Metrics;
use crate::publish::{HeldTopic, OutputStatus, Outputs, StuckEvent};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    health: Arc<Health>,
    journal: Arc<Mutex<journal::Health>>,
    metrics: Arc<Metrics>,
    outputs: Outputs,
    rows: Arc<Mutex<Vec<OutputRow>>>,
    serving: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Knobs {
    config: crate::config::Config,
    journal: Arc<Mutex<journal::Health>>,
    rows: Arc<Mutex<Vec<OutputRow>>>,
}

/// What the port reads from, and what a test turns.
fn sources() -> (Sources, Knobs) {
    let mut config = configuration();
    config.admin.hosts = vec!["Status.Example".into()];
    let metrics = Metrics::new(&config);
    let journal = Arc::new(Mutex::new(journal::Health::Ready));
    let health = Health::new({
        let journal = Arc::clone(&journal);
        move || journal.lock().unwrap().clone()
    });
    let rows = Arc::<Mutex<Vec<OutputRow>>>::default();
    let sources = Sources {
        instance: "<relay & co>".into(),
        started_at: clock::now(),
        accounts: config.accounts.iter().map(|account| account.name.clone()).collect(),
        journal_free_min: config.journal.free_min,
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        pace: Pace::default(),
        rows: {
            let rows = Arc::clone(&rows);
            Arc::new(move || rows.lock().unwrap().clone())
        },
        outputs: Outputs::default(),
        last_refused: Arc::new(|| Some(serde_json::json!({"reason": "bad_signature"}))),
        secret_problems: Arc::new(|| vec!["account <a>: the secret in x is empty".to_owned()]),
    };
    (sources, Knobs { config, journal, rows })
}

async fn start() -> Running {
    let (sources, Knobs { config, journal, rows }) = sources();
    let (health, metrics, outputs) =
        (Arc::clone(&sources.health), Arc::clone(&sources.metrics), sources.outputs.clone());
    let admin = Admin::bind(&config.admin, sources).await.expect("a free port");
    Running { address: admin.address(), health, journal, metrics, outputs, rows, serving: tokio::spawn(admin.serve()) }
}

impl Running {
    async fn ask(&self, request: &str) -> String {
        self.send(&format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
    }

    async fn send(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("the port listens");
        stream.write_all(head.as_bytes()).await.expect("it is open");
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it closes").expect("an answer");
        answer
    }

    async fn status(&self, request: &str) -> u16 {
        let answer = self.ask(request).await;
        answer.get(9..12).and_then(|digits| digits.parse().ok()).expect("a status")
    }
}

#[tokio::test]
async fn probes_follow_the_relay_through_its_life() {
    let relay = start().await;
    let check = async |livez, startupz, readyz, why: &str| {
        assert_eq!(relay.status("GET /livez").await, livez, "livez {why}");
        assert_eq!(relay.status("GET /startupz").await, startupz, "startupz {why}");
        assert_eq!(relay.status("GET /readyz").await, readyz, "readyz {why}");
    };
    check(200, 503, 503, "before the public port listens").await;
    relay.health.listening();
    check(200, 200, 200, "once both listen").await;
    for unable in [journal::Health::Opening, journal::Health::Full, journal::Health::Failing("no space".into())] {
        *relay.journal.lock().unwrap() = unable.clone();
        check(200, 200, 503, &format!("with a journal that is {unable:?}")).await;
    }
    *relay.journal.lock().unwrap() = journal::Health::Ready;
    check(200, 200, 200, "once the journal takes events again").await;
    relay.health.stopping();
    check(200, 200, 503, "while it stops").await;
}

#[tokio::test]
async fn readiness_says_why_not() {
    let relay = start().await;
    relay.health.listening();
    *relay.journal.lock().unwrap() = journal::Health::Failing("no space".into());
    let answer = relay.ask("GET /readyz").await;
    assert!(answer.ends_with("\r\n\r\nnot ready: journal: the disk fails: no space\n"), "{answer}");
    let answer = relay.ask("GET /readyz?verbose").await;
    let expected = "\r\n\r\n[+] listening ok\n[+] running ok\n[-] journal: the disk fails: no space\nnot ready\n";
    assert!(answer.ends_with(expected), "{answer}");
}

#[tokio::test]
async fn it_only_reads_and_only_what_there_is() {
    let relay = start().await;
    for path in ["/metrics", "/livez", "/readyz", "/startupz", "/", "/api/v1/status"] {
        let answer = relay.ask(&format!("POST {path}")).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: GET, HEAD\r\n"), "{answer}");
        let answer = relay.ask(&format!("HEAD {path}")).await;
        assert!(answer.ends_with("\r\n\r\n"), "a HEAD has no body: {answer}");
        assert!(answer.contains("\r\ncache-control: no-store\r\n"), "{answer}");
    }
    assert_eq!(relay.status("GET /nothing").await, 404);
    assert_eq!(relay.status("POST /nothing").await, 404);
    assert_eq!(relay.status("OPTIONS *").await, 404);
}

#[tokio::test]
async fn no_name_that_a_web_page_could_have_is_answered() {
    let relay = start().await;
    let own = [
        "127.0.0.1:8081",
        "127.0.0.1",
        "10.1.2.3:80",
        "[::1]",
        "[fe80::1]:8081",
        "localhost",
        "LocalHost:8081",
        "localhost.",
        "",
    ];
    let named = ["status.example", "STATUS.EXAMPLE:8081", "status.example.:8081", "<Relay & co>"];
    let foreign = [
        "attacker.example",
        "attacker.example:8081",
        "localhost.attacker.example",
        "status.example.attacker.example",
        "127.0.0.1.attacker.example",
        "a.status.example",
        "localhost@attacker.example",
        "[::1].attacker.example",
        "[::1",
        "localhost..",
        "localhost:x",
    ];
    let cases = own.iter().chain(&named).map(|host| (host, "200")).chain(foreign.iter().map(|host| (host, "421")));
    for (host, status) in cases {
        for path in ["/", "/api/v1/status", "/metrics", "/livez"] {
            let answer = relay.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(answer.get(9..12), Some(status), "{path} of {host:?}: {answer}");
        }
    }
    for (head, status) in [
        ("GET /livez HTTP/1.0\r\n\r\n", "200"),
        ("GET http://attacker.example/livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "421"),
        ("GET http://localhost/livez HTTP/1.1\r\nHost: attacker.example\r\n\r\n", "421"),
        ("GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: attacker.example\r\n\r\n", "421"),
        ("GET /livez HTTP/1.1\r\nHost: attacker\u{e9}\r\n\r\n", "421"),
    ] {
        let answer = relay.send(head).await;
        assert_eq!(answer.get(9..12), Some(status), "{head:?}: {answer}");
    }
}

#[tokio::test]
async fn a_head_without_an_end_is_refused_at_its_bound() {
    let relay = start().await;
    // Sent to the byte, so that nothing lies unread when it closes.
    let begin = "GET /livez HTTP/1.1\r\nX: ";
    let answer = relay.send(&format!("{begin}{}", "x".repeat(HEAD_MAX - begin.len()))).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let ends = "\r\n\r\n";
    let answer = relay.send(&format!("{begin}{}{ends}", "x".repeat(HEAD_MAX - begin.len() - ends.len() - 1))).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let relay = start().await;
    relay.metrics.ingress.webhooks.with_label_values(&["default", "accepted"]).inc();
    let answer = relay.ask("GET /metrics").await;
    assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4\r\n"), "{answer}");
    let series = "\nsipsim_relay_webhooks_total{account=\"default\",outcome=\"accepted\"} 1\n";
    assert!(answer.contains(series), "{answer}");
}

#[tokio::test]
async fn the_status_is_shown_to_people_and_machines() {
    let relay = start().await;
    relay.health.listening();
    let count = |outcome| relay.metrics.ingress.webhooks.with_label_values(&["default", outcome]);
    count("accepted").inc_by(40);
    count("duplicate").inc_by(2);
    count("bad_signature").inc_by(7);
    relay.metrics.ingress.unavailable.with_label_values(&["memory"]).inc();
    relay.metrics.accounts.last_accepted.with_label_values(&["default"]).set(1_736_937_000.0);
    relay.metrics.journal.bytes.set(256 << 20);
    relay.outputs.update(&Name::new("kafka").unwrap(), |output| {
        *output = OutputStatus {
            kind: "kafka",
            up: false,
            pending: 0,
            parked: 0,
            held: vec![HeldTopic { topic: "sipsim.sms".into(), reason: "topic_missing", mend: "make it" }],
            stuck: vec![StuckEvent {
                topic: "sipsim.rating".into(),
                sequence: 42,
                bytes: 2_048,
                age_seconds: 61,
                reason: "unknown",
            }],
            last_error: Some("no <broker>".into()),
            last_error_at: Some(Rfc3339::from("2025-01-15T10:29:00Z").unwrap()),
            oldest_pending_age_seconds: 61.5,
        };
    });

    relay.metrics.accounts.secret_last_used.with_label_values(&["default", "new & old"]).set(1_736_937_000.0);
    relay.metrics.accounts.secret_last_used.with_label_values(&["default", "other"]);
    relay.metrics.accounts.accepted.with_label_values(&["default", "sms"]).inc_by(3);
    relay.metrics.accounts.arrived("default", "sms", clock::now().minus(Duration::from_secs(90)));
    relay.metrics.accounts.arrived("default", "voicemail", clock::now().minus(Duration::from_secs(7300)));

    // How many wait is the journal's to say, not the publisher's.
    relay.rows.lock().unwrap().push(kafka(Counts { accepted: 15, pending: 12, parked: 3, ..Counts::default() }));

    let answer = relay.ask("GET /api/v1/status").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.contains("\r\ncontent-type: application/json"), "{head}");
    let status: serde_json::Value = serde_json::from_str(body).expect("JSON");
    for (pointer, expected) in [
        ("/version", serde_json::json!(env!("CARGO_PKG_VERSION"))),
        ("/instance", "<relay & co>".into()),
        ("/accepting", true.into()),
        ("/accounts/default/accepted", 42.into()),
        ("/accounts/default/refused", 7.into()),
        ("/accounts/default/answers/bad_signature", 7.into()),
        ("/accounts/default/last_accepted", "2025-01-15T10:30:00Z".into()),
        ("/journal/fill", 0.25.into()),
        ("/unavailable", serde_json::json!({"memory": 1})),
        ("/outputs/kafka/up", false.into()),
        ("/outputs/kafka/type", "kafka".into()),
        ("/outputs/kafka/pending", 12.into()),
        ("/outputs/kafka/parked", 3.into()),
        ("/outputs/kafka/held/0/topic", "sipsim.sms".into()),
        ("/outputs/kafka/stuck/0/sequence", 42.into()),
        ("/outputs/kafka/removed", false.into()),
        ("/outputs/kafka/last_error_at", "2025-01-15T10:29:00Z".into()),
        ("/accounts/default/secrets/0", serde_json::json!({"name": "new & old", "last_used": "2025-01-15T10:30:00Z"})),
        ("/accounts/default/secrets/1", serde_json::json!({"name": "other", "last_used": null})),
        ("/last_events/0/event", "sms".into()),
        ("/last_events/0/count", 3.into()),
        ("/last_events/1/event", "voicemail".into()),
        ("/journal/oldest_pending_age_seconds", 61.5.into()),
        ("/last_refused/reason", "bad_signature".into()),
        ("/secret_problems/0", "account <a>: the secret in x is empty".into()),
    ] {
        assert_eq!(status.pointer(pointer), Some(&expected), "{pointer} in {body}");
    }

    let page = relay.ask("GET /").await;
    assert!(page.contains("\r\ncontent-security-policy: default-src 'none';"), "{page}");
    for shown in [
        "<strong>accepting</strong>",
        "&lt;relay &amp; co&gt;",
        "bad_signature 7",
        "account &lt;a&gt;: the secret in x is empty",
        "held: sipsim.sms (topic_missing): the broker has no such topic",
        "sipsim.rating makes no progress (unknown): its oldest event, 42, of 2.0 KiB, accepted 1 min 1 s ago",
        "1 topic is held, 1 more makes no progress",
        "2025-01-15T10:29:00Z: no &lt;broker&gt;",
        "new &amp; old: 2025-01-15T10:30:00Z, other: not since the start",
        "1 min 30 s ago",
        "2 h 1 min ago",
        "12 pending, the oldest for 1 min 1 s, 3 parked",
        "42",
        "no &lt;broker&gt;",
        "1 min 1 s",
        "256.0 MiB of 1.0 GiB (25.0 %)",
        "Answered 503, which may have lost events: memory 1",
        "http-equiv=\"refresh\"",
    ] {
        assert!(page.contains(shown), "{shown:?} is not in {page}");
    }
    assert!(!page.contains("<script"));
    relay.health.stopping();
    let page = relay.ask("GET /").await;
    assert!(page.contains("<strong>not accepting</strong></p><p>running: the relay is stopping"), "{page}");
}

/// The output `kafka` as the journal has it.
fn kafka(counts: Counts) -> OutputRow {
    OutputRow {
        number: 1,
        name: "kafka".into(),
        cursor: 0,
        progress: 0,
        removed: false,
        routes: String::new(),
        counts,
        spans: Vec::new(),
    }
}

#[tokio::test]
async fn rates_and_the_time_to_full_come_out_of_samples() {
    let (sources, _) = sources();
    let start = std::time::Instant::now();
    let published = |count| kafka(Counts { published: count, pending: 1, ..Counts::default() });
    let (rows, metrics) = (Arc::<Mutex<Vec<OutputRow>>>::default(), Arc::clone(&sources.metrics));
    let shown = Arc::clone(&rows);
    let sources = Sources { rows: Arc::new(move || shown.lock().unwrap().clone()), ..sources };
    metrics.journal.free.set(1 << 40);
    for (second, bytes, count) in [(0, 1 << 20, 0), (60, 61 << 20, 300)] {
        metrics.journal.bytes.set(bytes);
        *rows.lock().unwrap() = vec![published(count)];
        sources.sample(start + Duration::from_secs(second));
    }
    let age = |age| {
        sources.outputs.update(&Name::new("kafka").unwrap(), |output| output.oldest_pending_age_seconds = age);
        sources.status(clock::now())
    };
    let status = age(59.0);
    assert_eq!(status.outputs["kafka"].published_per_second, Some(5.0));
    assert_eq!(status.journal.full_in_seconds, None, "what is on its way fills no journal");
    // 963 MiB are left of 1 GiB, at 1 MiB a second.
    let status = age(61.0);
    assert_eq!(status.journal.full_in_seconds, Some(963.0));
    assert!(page::html(&status).contains("Full in 16 min 3 s at this pace"));
    metrics.journal.free.set(i64::try_from(sources.journal_free_min).unwrap() + (10 << 20));
    assert_eq!(age(61.0).journal.full_in_seconds, Some(10.0), "the disk ends sooner");
}

#[tokio::test]
async fn a_crowd_that_asks_nothing_keeps_no_probe_waiting() {
    let relay = start().await;
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX * 2 {
        crowd.push(TcpStream::connect(relay.address).await.expect("the port listens"));
    }
    let asking = timeout(DEADLINE / 2, relay.status("GET /livez"));
    assert_eq!(asking.await.expect("at once"), 200);
}

#[tokio::test]
async fn who_gives_way_to_a_crowd_had_time_to_ask() {
    let relay = start().await;
    let began = Instant::now();
    let mut first = TcpStream::connect(relay.address).await.expect("the port listens");
    let mut crowd = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        crowd.push(TcpStream::connect(relay.address).await.expect("the port listens"));
    }
    let mut read = [0];
    let closed = timeout(PATIENCE, first.read(&mut read)).await.expect("the oldest gives way");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    assert!(began.elapsed() >= STAY_MIN, "after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_tells_alive_from_ready_from_nobody() {
    let relay = start().await;
    let ask = async |ready| {
        let address = relay.address;
        tokio::task::spawn_blocking(move || healthcheck(address, ready)).await.expect("it ends")
    };
    assert!(ask(false).await);
    assert!(!ask(true).await, "it does not listen yet");
    relay.health.listening();
    assert!(ask(true).await);
    relay.serving.abort();
    wait_until_gone(relay.address).await;
    assert!(!ask(false).await);
}

async fn wait_until_gone(address: SocketAddr) {
    let gone = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(PATIENCE, gone).await.expect("the port is closed");
}
