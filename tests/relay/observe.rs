//! What an operator sees of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::{Client, Load, Metrics, PATH, Relay, SECRET, now, sign, wait_until};

/// A broker where nobody listens, and two outputs beside each other.
const TWO_OUTPUTS: &str = "[outputs.console]\n[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n";

#[test]
fn promtool_is_content_with_the_metrics() {
    let relay = Relay::start(TWO_OUTPUTS);
    assert_eq!(relay.post(b"{}").status, 200);
    let page = relay.get("/metrics").expect("the admin port answers");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4"));
    std::fs::write(relay.path("metrics"), page.body).expect("a file");
    let output = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(File::open(relay.path("metrics")).expect("the file"))
        .output()
        .expect("promtool runs: `make test` installs it, as Debian's package prometheus");
    // It exits 0 with mere advice too, and 3 with complaints.
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// DESIGN §6: name without prefix, type, labels, and how many series there are from the start with two outputs, one account and one secret.
#[rustfmt::skip] // A line is a metric.
const METRICS: [(&str, &str, &[&str], usize); 46] = [
    ("webhooks_total", "counter", &["account", "outcome"], 9),
    ("unavailable_total", "counter", &["reason"], 8),
    ("http_refused_total", "counter", &["reason"], 4),
    ("http_connections", "gauge", &[], 1),
    ("connections_evicted_total", "counter", &["kind"], 5),
    ("webhook_duration_seconds", "histogram", &[], 1),
    ("webhooks_recovered_total", "counter", &["account"], 1),
    ("clock_skew_seconds", "gauge", &[], 1),
    ("last_accepted_timestamp_seconds", "gauge", &["account"], 1),
    ("events_accepted_total", "counter", &["account", "event"], 17),
    ("events_discarded_total", "counter", &["account", "event"], 17),
    ("events_published_total", "counter", &["output", "event"], 34),
    ("events_replayed_total", "counter", &["output"], 2),
    ("events_parked_total", "counter", &["output", "reason"], 8),
    ("events_pending", "gauge", &["output"], 2),
    ("events_parked", "gauge", &["output"], 2),
    ("topic_held", "gauge", &["output", "topic", "reason"], 119),
    ("topic_stuck_sequence", "gauge", &["output", "topic"], 17),
    ("topic_stuck_bytes", "gauge", &["output", "topic"], 17),
    ("topic_stuck_age_seconds", "gauge", &["output", "topic"], 17),
    ("ledger_events", "gauge", &["output", "state"], 10),
    ("oldest_pending_age_seconds", "gauge", &["output"], 2),
    ("publish_failures_total", "counter", &["output", "reason"], 24),
    ("publish_duration_seconds", "histogram", &["output"], 2),
    ("publish_rest_seconds_total", "counter", &["output"], 2),
    ("delivery_delay_seconds", "histogram", &["output"], 2),
    ("output_up", "gauge", &["output"], 2),
    ("journal_bytes", "gauge", &[], 1),
    ("journal_size_max_bytes", "gauge", &[], 1),
    ("journal_free_bytes", "gauge", &[], 1),
    ("journal_account_bytes", "gauge", &["account"], 1),
    ("journal_commit_duration_seconds", "histogram", &[], 1),
    ("journal_commit_events", "histogram", &[], 1),
    ("journal_set_aside", "gauge", &[], 1),
    ("journal_gone", "gauge", &[], 1),
    ("secret_last_used_timestamp_seconds", "gauge", &["account", "secret"], 1),
    ("secrets_loaded", "gauge", &["account"], 1),
    ("certificate_expiry_timestamp_seconds", "gauge", &["where"], 1),
    ("last_reload_successful", "gauge", &[], 1),
    ("log_lines_dropped_total", "counter", &[], 1),
    ("build_info", "gauge", &["version"], 1),
    // Without the prefix.
    ("process_cpu_seconds_total", "counter", &[], 1),
    ("process_open_fds", "gauge", &[], 1),
    ("process_max_fds", "gauge", &[], 1),
    ("process_resident_memory_bytes", "gauge", &[], 1),
    ("process_start_time_seconds", "gauge", &[], 1),
];

/// A certificate and its key for the public port.
fn certificate(relay: &Relay) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    std::fs::write(relay.path("tls.crt"), made.cert.pem()).expect("a file");
    std::fs::write(relay.path("tls.key"), made.signing_key.serialize_pem()).expect("a file");
}

#[test]
fn every_metric_is_there_from_the_start_with_its_type_and_labels() {
    let mut relay = Relay::prepare(&format!(
        "{TWO_OUTPUTS}[events]\nextra = [\"fax_received\"]\n\
         [ingress.tls]\ncertificate_file = \"tls.crt\"\nprivate_key_file = \"tls.key\"\n"
    ));
    certificate(&relay);
    relay.run();
    let text = relay.get("/metrics").expect("the admin port answers").text();
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut problems = Vec::new();
    let mut names = BTreeSet::new();
    for (name, kind, labels, count) in METRICS {
        let full = if name.starts_with("process_") { name.to_owned() } else { format!("sipsim_relay_{name}") };
        let series = if kind == "histogram" { format!("{full}_count") } else { full.clone() };
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.strip_prefix(&*series).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .collect();
        let has_labels = |line: &&str| {
            let inside =
                line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inside, _)| inside);
            let mut found: Vec<&str> =
                inside.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0)).collect();
            let mut expected = labels.to_vec();
            found.sort_unstable();
            expected.sort_unstable();
            found == expected
        };
        if types.get(&*full) != Some(&kind) || lines.len() != count || !lines.iter().all(has_labels) {
            problems.push(format!(
                "{full}: {:?} instead of {kind}, {} series instead of {count}: {lines:?}",
                types.get(&*full),
                lines.len()
            ));
        }
        names.insert(full);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    let unknown: Vec<_> =
        types.keys().filter(|name| !names.contains(**name) && !name.starts_with("process_")).collect();
    assert!(unknown.is_empty(), "not in the contract: {unknown:?}");
    for bound in ["1.8", "2"] {
        assert!(text.contains(&format!("sipsim_relay_webhook_duration_seconds_bucket{{le=\"{bound}\"}}")), "{bound}");
    }
    // Its label is the version; and what is not 0 from the start says so.
    let metrics = Metrics::parse(&text);
    assert_eq!(metrics.get("sipsim_relay_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(metrics.get("sipsim_relay_journal_size_max_bytes", &[]), 8.0 * 1024.0 * 1024.0 * 1024.0);
    assert!(metrics.get("sipsim_relay_journal_free_bytes", &[]) > 0.0);
    assert!(metrics.get("sipsim_relay_journal_bytes", &[]) > 0.0);
    assert_eq!(metrics.get("sipsim_relay_secrets_loaded", &[("account", "default")]), 1.0);
    assert_eq!(metrics.get("sipsim_relay_last_reload_successful", &[]), 1.0);
    assert!(metrics.get("sipsim_relay_certificate_expiry_timestamp_seconds", &[("where", "ingress")]) > now() as f64);
    assert_eq!(metrics.sum("sipsim_relay_topic_held", &[]), 0.0);
}

/// The ledger of each output at one moment.
fn check_ledger(metrics: &Metrics, discarded_at_least: f64) {
    for output in ["console", "kafka"] {
        let state = |state| metrics.get("sipsim_relay_ledger_events", &[("output", output), ("state", state)]);
        let [accepted, published, pending, parked, discarded] =
            ["accepted", "published", "pending", "parked", "discarded"].map(state);
        assert_eq!(
            accepted,
            published + pending + parked + discarded,
            "{output}: {published} {pending} {parked} {discarded}"
        );
        assert!(discarded >= discarded_at_least, "{output}: {discarded} discarded");
        assert_eq!(metrics.get("sipsim_relay_events_pending", &[("output", output)]), pending);
        assert_eq!(metrics.get("sipsim_relay_events_parked", &[("output", output)]), parked);
        if output == "kafka" {
            assert_eq!(published, 0.0, "nobody is there");
        }
    }
}

#[test]
fn the_ledger_adds_up_at_any_moment_and_goes_on_over_restarts() {
    let mut relay = Relay::start(&format!("{TWO_OUTPUTS}[events]\ndiscard = [\"test\"]\n[shutdown]\ndrain = \"0s\"\n"));
    let load = Load::start(&relay, 8, |client, number| {
        let event = ["sms", "tags", "test", "unheard_of"][number % 4];
        format!(r#"{{"event":"{event}","message":"{client} {number}"}}"#)
    });
    let mut before = 0.0;
    for round in 0..3 {
        let from = load.accepted();
        let mut scrapes = 0;
        while scrapes <= 20 || load.accepted() < from + 200 {
            let metrics = relay.metrics();
            check_ledger(&metrics, 0.0);
            let accepted = metrics.get("sipsim_relay_ledger_events", &[("output", "kafka"), ("state", "accepted")]);
            assert!(accepted >= before, "it went back from {before} to {accepted}");
            before = accepted;
            scrapes += 1;
        }
        if round == 0 {
            relay.restart(); // By kill -9.
        } else if round == 1 {
            assert!(relay.terminate(Duration::from_secs(2)).success());
            relay.run();
        }
    }
    let sent = load.stop();
    let answered = sent.iter().filter(|one| one.is_accepted()).count() as f64;
    wait_until("the console's to be published", Duration::from_secs(30), || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let metrics = relay.metrics();
    check_ledger(&metrics, 100.0);
    // What was killed between the commit and the answer is in the ledger without an answer; eight clients had one request each, twice.
    let accepted = metrics.get("sipsim_relay_ledger_events", &[("output", "kafka"), ("state", "accepted")]);
    assert!((answered..=answered + 16.0).contains(&accepted), "{answered} were answered 200, {accepted} accepted");
    assert_eq!(metrics.get("sipsim_relay_oldest_pending_age_seconds", &[("output", "console")]), 0.0);
    assert!(metrics.get("sipsim_relay_oldest_pending_age_seconds", &[("output", "kafka")]) > 0.0);
    assert!((now() as f64 - metrics.get("sipsim_relay_last_accepted_timestamp_seconds", &[])).abs() < 60.0);

    relay.restart();
    let kept = relay.metrics();
    assert_eq!(kept.get("sipsim_relay_ledger_events", &[("output", "kafka"), ("state", "accepted")]), accepted);
    assert_eq!(kept.sum("sipsim_relay_events_accepted_total", &[]), 0.0, "counters begin at 0");
    let last = "sipsim_relay_last_accepted_timestamp_seconds";
    assert!((kept.get(last, &[]) - metrics.get(last, &[])).abs() < 2.0, "kept in the journal");
}

#[test]
fn ten_thousand_paths_methods_and_names_add_no_series() {
    let relay = Relay::start(TWO_OUTPUTS);
    let before = relay.metrics().ids();
    let timestamp = now().to_string();
    let word = |length: usize| (0..length).map(|_| fastrand::alphanumeric()).collect::<String>();
    // By several clients, as the events of all that wait go to the disk together.
    let ask = |number: usize, client: &mut Client| {
        let body = format!(r#"{{"event":"{}","pbx_id":"{}","status":"{}"}}"#, word(8), word(12), word(5));
        let signature = sign(SECRET, &timestamp, body.as_bytes());
        let headers =
            [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature), ("User-Agent", &*word(9))];
        let (method, path) = match number % 4 {
            0 => ("POST".into(), PATH.into()),
            1 => ("POST".into(), format!("{PATH}?{}", word(6))),
            2 => ("POST".into(), format!("/{}", word(10))),
            _ => (word(6).to_uppercase(), PATH.into()),
        };
        let status = client.request(&method, &path, &headers, body.as_bytes()).expect("an answer").status;
        if status != 200 {
            *client = Client::connect(relay.ingress).expect("a connection"); // The relay closed the other one.
        }
        status
    };
    let statuses = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(relay.ingress).expect("a connection");
                    (0..1_250).map(|number| ask(number, &mut client)).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
        for status in clients.into_iter().flat_map(|client| client.join().expect("it does not panic")) {
            *statuses.entry(status).or_default() += 1;
        }
        statuses
    });
    // A client's 1,250 are 313 of each of the first two kinds and 312 of the others.
    assert_eq!(statuses, BTreeMap::from([(200, 8 * 626), (404, 8 * 312), (405, 8 * 312)]));
    let mut admin = BTreeSet::new();
    for _ in 0..100 {
        admin.insert(relay.get(&format!("/{}", word(7))).expect("an answer").status);
    }
    assert_eq!(admin, BTreeSet::from([404]));
    let after = relay.metrics();
    let new: Vec<_> = after.ids().difference(&before).cloned().collect();
    assert!(new.is_empty(), "{new:?}");
    assert_eq!(after.get("sipsim_relay_events_accepted_total", &[("event", "unknown")]), 8.0 * 626.0);
}

#[test]
fn the_probes_say_what_is_asked() {
    let relay = Relay::start(TWO_OUTPUTS);
    for (path, text) in [
        ("/livez", "ok\n"),
        ("/readyz", "ok\n"),
        ("/startupz", "ok\n"),
        ("/readyz?verbose", "[+] listening ok\n[+] running ok\n[+] journal ok\nready\n"),
    ] {
        let answer = relay.get(path).expect("an answer");
        assert_eq!((answer.status, &*answer.text()), (200, text), "{path}: and no broker is there");
    }
    assert_eq!(relay.get("/nowhere").expect("an answer").status, 404);
    for path in ["/livez", "/readyz", "/metrics", "/", "/api/v1/status"] {
        let mut client = Client::connect(relay.admin).expect("a connection");
        assert_eq!(client.request("POST", path, &[], b"").expect("an answer").status, 405, "{path}: read-only");
    }
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        assert_eq!(relay.finish(arguments).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn nothing_personal_is_in_log_metrics_or_status() {
    let relay = Relay::start(&format!("{TWO_OUTPUTS}[log]\nlevel = \"trace\"\n"));
    let body = br#"{"event":"incoming_call_end","pbx_id":"call_7f3e","caller":"+33612345678","receiver":"+33198765432","status":"ANSWER"}"#;
    let timestamp = now().to_string();
    let signature = sign(SECRET, &timestamp, body);
    let post = |signature: &str| {
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", signature)];
        relay.post_with(&headers, body).status
    };
    assert_eq!(post(&signature), 200);
    assert_eq!(post(&"0".repeat(64)), 401);
    wait_until("the console's to be published", Duration::from_secs(30), || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let pages = ["/metrics", "/", "/api/v1/status", "/readyz?verbose"];
    let mut seen: Vec<(&str, String)> =
        pages.map(|path| (path, relay.get(path).expect("an answer").text())).into_iter().collect();
    seen.push(("the log", relay.stderr()));
    for (place, text) in seen {
        for personal in ["call_7f3e", "33612345678", "33198765432", &signature, SECRET] {
            assert!(!text.contains(personal), "{place} shows {personal}");
        }
    }
}

#[test]
fn one_event_is_followed_through_the_log_by_its_id() {
    let relay = Relay::start("[outputs.console]\n[log]\nformat = \"json\"\nlevel = \"debug\"\n");
    let body = br#"{"event":"sms","message":"follow me"}"#;
    let answer = relay.post(body);
    assert_eq!(answer.status, 200);
    assert_eq!(relay.post(br#"{"event":"sms","message":"and not me"}"#).status, 200);
    let id = crate::support::event_id("default", body);
    assert!(answer.text().contains(&id), "{}", answer.text());
    let lines = || -> Vec<serde_json::Value> {
        let log = relay.stderr();
        let whole = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let json = whole.filter(|line| line.starts_with('{')); // What the greeting prints for people is not the log.
        let lines = json.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
        lines.filter(|line: &serde_json::Value| line["event.id"] == *id).collect()
    };
    wait_until("both ends of its way to be logged", Duration::from_secs(30), || lines().len() >= 2);
    let lines = lines();
    assert_eq!(lines.len(), 2, "two lines of one event: {lines:?}");
    // In either order: once it is synced, the answer and the output go their ways at the same time.
    let with =
        |field| lines.iter().find(|line| line.get(field).is_some()).unwrap_or_else(|| panic!("{field}: {lines:?}"));
    let (kept, published) = (with("outcome"), with("output"));
    assert_eq!((&kept["outcome"], &kept["account.name"]), (&"accepted".into(), &"default".into()), "{kept}");
    assert_eq!((&published["output"], &published["topic"]), (&"console".into(), &"console".into()), "{published}");
    assert!(published["event.sequence"].as_u64().is_some(), "{published}");
    for line in [kept, published] {
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
        }
        assert!(!line.to_string().contains("follow me"), "no content: {line}");
    }
}
