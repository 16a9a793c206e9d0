//! The commands that look into a journal and give orders to its relay.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Relay, free_address, wait_until};

/// A console that works, and a Kafka where nobody listens.
fn two_outputs() -> Relay {
    Relay::start(&format!(
        "[outputs.console]\n[outputs.kafka]\nbrokers = \"{}\"\n[shutdown]\ndrain = \"0s\"\n[log]\nlevel = \"error\"",
        free_address()
    ))
}

/// A command's JSON; panics with what it said unless it exits 0.
fn ask(relay: &Relay, args: &[&str]) -> Value {
    let output = relay.finish(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}"))
}

fn status(relay: &Relay) -> Value {
    ask(relay, &["journal", "status", "--format", "json"])
}

/// The ledger of one output: accepted, published, pending, parked, discarded.
fn ledger(relay: &Relay, output: &str) -> [i64; 5] {
    let status = status(relay);
    let outputs = status["outputs"].as_array().expect("outputs");
    let found = outputs.iter().find(|one| one["output"] == output).unwrap_or_else(|| panic!("no {output} in {status}"));
    ["accepted", "published", "pending", "parked", "discarded"]
        .map(|state| found["ledger"][state].as_i64().expect("a count"))
}

fn post(relay: &Relay, body: &str) -> String {
    let answer = relay.post(body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["id"].as_str().expect("an id").to_owned()
}

fn wait_for_ledger(relay: &Relay, output: &str, expected: [i64; 5]) {
    wait_until(&format!("the ledger of {output} to be {expected:?}"), Duration::from_secs(20), || {
        ledger(relay, output) == expected
    });
}

#[test]
fn status_tells_of_each_output_and_topic_beside_a_relay_and_after_it() {
    let mut relay = two_outputs();
    for body in [r#"{"event":"sms","n":1}"#, r#"{"event":"sms","n":2}"#, r#"{"event":"tags","pbx_id":"call_1"}"#] {
        post(&relay, body);
    }
    wait_for_ledger(&relay, "console", [3, 3, 0, 0, 0]);
    assert_eq!(ledger(&relay, "kafka"), [3, 0, 3, 0, 0]);
    let expect = |status: &Value, running: bool| {
        assert_eq!((&status["relay_running"], &status["newest_sequence"]), (&json!(running), &json!(3)), "{status}");
        let kafka = &status["outputs"].as_array().expect("outputs")[1];
        let topics: Vec<_> =
            kafka["topics"].as_array().expect("topics").iter().map(|one| (&one["topic"], &one["pending"])).collect();
        assert_eq!(topics, [(&json!("sipsim.sms"), &json!(2)), (&json!("sipsim.tags"), &json!(1))], "{status}");
        assert!(kafka["oldest_pending_age_seconds"].as_f64().expect("seconds") > 0.0, "{status}");
    };
    expect(&status(&relay), true);
    relay.kill9();
    expect(&status(&relay), false);
    relay.configure("[outputs.console]");
    let output = relay.finish(&["journal", "status"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("no relay runs on it") && text.contains("output kafka (removed from"), "{text}");
    assert!(text.contains("accepted 3 = published 0 + pending 3 + parked 0 + discarded 0"), "{text}");
}

#[test]
fn a_journal_that_is_not_there_is_said_to_be_not_there() {
    let relay = Relay::prepare("");
    let output = relay.finish(&["journal", "status"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("journal.path: there is no journal at data/journal.db"),
        "{said}"
    );
}

/// Runs a command that must succeed, and gives what it printed.
fn told(relay: &Relay, args: &[&str]) -> String {
    let output = relay.finish(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The states of one output's events in `journal list`, by sequence.
fn states(relay: &Relay, output: &str) -> Vec<(u64, String)> {
    let lines = told(relay, &["journal", "list", "--output", output, "--format", "json"]);
    let state = |line: &str| {
        let event: Value = serde_json::from_str(line).expect("JSON");
        (
            event["sequence"].as_u64().expect("a number"),
            event["outputs"][0]["state"].as_str().expect("a state").to_owned(),
        )
    };
    lines.lines().map(state).collect()
}

fn database(relay: &Relay) -> rusqlite::Connection {
    rusqlite::Connection::open(relay.path("data/journal.db")).expect("the journal opens")
}

/// Ready means that the journal is open, and knows which outputs are configured.
fn run_until_ready(relay: &mut Relay) {
    relay.run();
    wait_until("/readyz to say 200", Duration::from_secs(20), || {
        relay.get("/readyz").is_some_and(|answer| answer.status == 200)
    });
}

fn verify(relay: &Relay) {
    let said = told(relay, &["journal", "verify"]);
    assert!(said.contains("all in order"), "{said}");
}

#[test]
fn list_shows_no_content_and_show_does() {
    let relay = two_outputs();
    let id = post(&relay, r#"{"event":"sms","pbx_id":"call_1","text":"secret words"}"#);
    post(&relay, r#"{"event":"tags","pbx_id":"call_2"}"#);
    wait_for_ledger(&relay, "console", [2, 2, 0, 0, 0]);
    for format in ["text", "json"] {
        let list = told(&relay, &["journal", "list", "--event", "sms", "--since", "10m", "--format", format]);
        assert!(list.contains(&id) && list.contains("published") && list.contains("pending"), "{list}");
        assert!(list.lines().count() == 1 && !list.contains("secret words"), "{list}");
        let show = told(&relay, &["journal", "show", "--call", "call_1", "--format", format]);
        assert!(show.contains("secret words") && !show.contains("call_2"), "{show}");
    }
    assert_eq!(told(&relay, &["journal", "list", "--output", "console", "--state", "pending"]), "");
    assert_eq!(told(&relay, &["journal", "list", "--until", "10m"]), "");
    assert_eq!(told(&relay, &["journal", "list", "--state", "pending"]).lines().count(), 2);
    let output = relay.finish(&["journal", "list", "--output", "kafak"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("it knows console, kafka"), "{output:?}");
}

#[test]
fn trace_tells_the_way_also_when_the_content_is_gone() {
    let mut relay = two_outputs();
    let id = post(&relay, r#"{"event":"sms","pbx_id":"call_1"}"#);
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
    let text = told(&relay, &["journal", "trace", "--call", "call_1"]);
    assert!(text.contains(&id) && text.contains("received ") && text.contains(", kept +"), "{text}");
    assert!(
        text.contains("console console confirmed +") && text.contains("kafka: pending: its broker is away"),
        "{text}"
    );
    relay.kill9();
    let text = told(&relay, &["journal", "trace", "--id", &id]);
    assert!(text.contains("no relay runs on this journal"), "{text}");
    relay.configure("[outputs.console]\n[journal]\nretention = \"0s\"");
    run_until_ready(&mut relay);
    told(&relay, &["journal", "forget", "--output", "kafka", "--yes"]);
    wait_until("the content to go", Duration::from_secs(10), || told(&relay, &["journal", "list"]).is_empty());
    let ways = ask(&relay, &["journal", "trace", "--since", "1h", "--format", "json"]);
    let way: Vec<_> =
        ways[0]["way"].as_array().expect("a way").iter().map(|one| (&one["output"], &one["state"])).collect();
    assert_eq!(way, [(&json!("console"), &json!("published")), (&json!("kafka"), &json!("discarded"))], "{ways}");
    assert!(ways[0]["kept_after_ms"].as_f64().is_some_and(|ms| (0.0..2000.0).contains(&ms)), "{ways}");
    let output = relay.finish(&["journal", "trace", "--call", "call_9"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("never reached us"), "{said}");
}

#[test]
fn discard_gives_up_what_is_pending_once_and_nothing_else() {
    let mut relay = two_outputs();
    for number in 1..=4 {
        post(&relay, &format!(r#"{{"event":"{}","n":{number}}}"#, if number < 3 { "sms" } else { "tags" }));
    }
    wait_for_ledger(&relay, "console", [4, 4, 0, 0, 0]);
    let order = ["journal", "discard", "--output", "kafka", "--event", "sms"];
    let said = told(&relay, &order);
    assert!(said.contains("gives 2 events up (2 pending)") && said.contains("--yes"), "{said}");
    assert_eq!(ledger(&relay, "kafka"), [4, 0, 4, 0, 0]);
    let said = told(&relay, &[&order[..], &["--yes"]].concat());
    assert!(said.contains("done: 2 events given up"), "{said}");
    assert_eq!(ledger(&relay, "kafka"), [4, 0, 2, 0, 2]);
    let expected =
        [(1, "discarded"), (2, "discarded"), (3, "pending"), (4, "pending")].map(|(n, state)| (n, state.to_owned()));
    assert_eq!(states(&relay, "kafka"), expected);
    verify(&relay);
    // Without a relay the order waits for the next one, which carries it out once, and not again after a kill.
    relay.kill9();
    let said = told(&relay, &["journal", "discard", "--output", "kafka", "--yes"]);
    assert!(said.contains("recorded as order 2: no relay runs on this journal"), "{said}");
    assert_eq!(ledger(&relay, "kafka"), [4, 0, 2, 0, 2]);
    verify(&relay);
    relay.run();
    wait_for_ledger(&relay, "kafka", [4, 0, 0, 0, 4]);
    relay.restart();
    post(&relay, r#"{"event":"sms","n":5}"#);
    wait_for_ledger(&relay, "kafka", [5, 0, 1, 0, 4]);
    assert_eq!(status(&relay)["orders_waiting"], 0);
    wait_for_ledger(&relay, "console", [5, 5, 0, 0, 0]);
    relay.kill9();
    verify(&relay);
}

#[test]
fn replay_sends_again_to_one_output_and_leaves_the_ledger() {
    let relay = two_outputs();
    let id = post(&relay, r#"{"event":"sms","n":1}"#);
    post(&relay, r#"{"event":"tags","n":2}"#);
    wait_for_ledger(&relay, "console", [2, 2, 0, 0, 0]);
    let order = ["journal", "replay", "--output", "console", "--event", "sms"];
    let said = told(&relay, &order);
    assert!(said.contains("sends 1 event again to console") && said.contains("nothing was done"), "{said}");
    let said = told(&relay, &[&order[..], &["--yes"]].concat());
    assert!(said.contains("done: 1 event on the way to console again"), "{said}");
    wait_until("the envelope to come again", Duration::from_secs(10), || relay.envelopes().len() == 3);
    let envelope = relay.envelopes().remove(2);
    assert_eq!((&envelope["id"], &envelope["replayed"]), (&json!(id), &json!(true)));
    assert_eq!(relay.metrics().get("sipsim_relay_events_replayed_total", &[("output", "console")]), 1.0);
    assert_eq!(ledger(&relay, "console"), [2, 2, 0, 0, 0]);
    wait_until("the trail to tell of it", Duration::from_secs(10), || {
        told(&relay, &["journal", "trace", "--id", &id]).contains("console console confirmed again (replay) +")
    });
    assert_eq!(states(&relay, "console"), [(1, "published".to_owned()), (2, "published".to_owned())]);
    assert_eq!(relay.envelopes().len(), 3);
}

/// A relay with one event that is parked until then (SQL).
fn with_a_parked_event(next_at: &str) -> Relay {
    let mut relay = Relay::start("[shutdown]\ndrain = \"0s\"");
    post(&relay, r#"{"event":"sms","n":1}"#);
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
    relay.kill9();
    // As if the broker had not taken it.
    database(&relay)
        .execute_batch(&format!(
            "UPDATE outputs SET published = 0, parked = 1; \
             INSERT INTO apart (output, state, lane, sequence, since, reason, attempts, next_at) \
             VALUES (1, 'parked', 'console', 1, 0, 'too_large', 1, {next_at})"
        ))
        .expect("a parked event");
    relay.run();
    relay
}

#[test]
fn requeue_tries_what_is_parked_now() {
    let relay = with_a_parked_event("(unixepoch() + 1800) * 1000000");
    assert_eq!(ledger(&relay, "console"), [1, 0, 0, 1, 0]);
    assert!(told(&relay, &["journal", "list", "--state", "parked"]).contains("parked (too_large)"));
    let said = told(&relay, &["journal", "requeue", "--output", "console"]);
    assert!(said.contains("done: 1 event tried"), "{said}");
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
    assert_eq!(relay.envelopes().len(), 2);
}

/// No event is parked for longer than an hour: what says so was parked by a clock that was wrong.
#[test]
fn what_was_parked_while_the_clock_was_a_year_ahead_is_tried_all_the_same() {
    let relay = with_a_parked_event("(unixepoch() + 365 * 86400) * 1000000");
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
}

#[test]
fn a_removed_output_is_forgotten_and_no_number_is_given_again() {
    let mut relay = two_outputs();
    post(&relay, r#"{"event":"sms","n":1}"#);
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
    let output = relay.finish(&["journal", "forget", "--output", "kafka", "--yes"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("output kafka is configured"), "{output:?}");
    relay.kill9();
    relay.configure("[outputs.console]\n[shutdown]\ndrain = \"0s\"\n[journal]\nretention = \"0s\"");
    run_until_ready(&mut relay);
    let said = told(&relay, &["journal", "forget", "--output", "kafka"]);
    assert!(said.contains("gives the removed output kafka up, with all that it owes: 1 event (1 pending)"), "{said}");
    let said = told(&relay, &["journal", "forget", "--output", "kafka", "--yes"]);
    assert!(said.contains("done: kafka is forgotten, 1 event given up"), "{said}");
    let status = status(&relay);
    assert_eq!(status["outputs"].as_array().expect("outputs").len(), 1, "{status}");
    assert_eq!(relay.metrics().find("sipsim_relay_ledger_events", &[("output", "kafka"), ("state", "pending")]), None);
    relay.restart();
    post(&relay, r#"{"event":"sms","n":2}"#);
    wait_until("the second envelope", Duration::from_secs(10), || relay.envelopes().len() == 2);
    assert_eq!(relay.envelopes()[1]["relaysequence"], "00000000000000000002");
}

#[test]
fn what_one_journal_exports_another_imports() {
    let from = Relay::start("");
    let long = format!(r#"{{"event":"test","n":{}}}"#, "1".repeat(1001));
    let bodies = [r#"{ "event" : "sms", "text":"é"}"#, "not JSON", r#"{"event":"tags","pbx_id":"call_1"}"#, &long];
    let ids: Vec<String> = bodies.iter().map(|body| post(&from, body)).collect();
    wait_for_ledger(&from, "console", [4, 4, 0, 0, 0]);
    let lines = told(&from, &["journal", "export"]);
    // A version that did not know yet what breaks consumers' parsers said otherwise of the last.
    let (first, last) = lines.split_once(r#""event":"test""#).expect("its line is the last");
    let lines = format!(r#"{first}"event":"test"{}"#, last.replace(r#""json":false"#, r#""json":true"#));
    assert_eq!(lines.lines().count(), 4);

    let mut to = Relay::start("");
    std::fs::write(to.path("events.jsonl"), &lines).expect("a file");
    let said = told(&to, &["journal", "import", "events.jsonl"]);
    assert!(said.contains("import: 4 of 4 events accepted"), "{said}");
    wait_for_ledger(&to, "console", [4, 4, 0, 0, 0]);
    let envelopes = to.envelopes();
    assert!(envelopes.iter().all(|envelope| envelope["replayed"] == true), "{envelopes:?}");
    assert_eq!(envelopes.iter().map(|envelope| envelope["id"].as_str().expect("an id")).collect::<Vec<_>>(), ids);
    assert_eq!(envelopes[3]["datacontenttype"], "application/octet-stream");
    assert_eq!(to.metrics().sum("sipsim_relay_events_accepted_total", &[]), 4.0);
    assert_eq!(
        database(&to).query_row("SELECT selection FROM orders", [], |row| row.get::<_, String>(0)).expect("the order"),
        "{}"
    );

    std::fs::write(to.path("events.jsonl"), lines.replace("call_1", "call_2")).expect("a file");
    let output = to.finish(&["journal", "import", "events.jsonl"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("events.jsonl:3: the body is not the one"), "{said}");

    // Without a relay it is recorded; drain accepts and publishes it.
    to.kill9();
    std::fs::write(to.path("events.jsonl"), &lines).expect("a file");
    let said = told(&to, &["journal", "import", "events.jsonl"]);
    assert!(said.contains("import: 0 of 4 events accepted") && said.contains("4 recorded: no relay runs"), "{said}");
    let output = to.finish(&["drain", "--timeout", "10s"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("nothing is pending or parked any more"), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
    assert_eq!(ledger(&to, "console"), [8, 8, 0, 0, 0]);
}

#[test]
fn drain_says_what_is_left_and_refuses_beside_a_relay() {
    let mut relay = two_outputs();
    post(&relay, r#"{"event":"sms","n":1}"#);
    wait_for_ledger(&relay, "console", [1, 1, 0, 0, 0]);
    let output = relay.finish(&["drain"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("another relay or drain holds this journal"), "{said}");
    relay.kill9();
    let output = relay.finish(&["drain", "--timeout", "1s"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("no progress for 1 s"), "{said}");
    assert!(said.contains("kafka: 1 pending, 0 parked"), "{said}");
    // What no configured output will ever publish is not waited for.
    relay.configure("[outputs.console]");
    let output = relay.finish(&["drain"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("put it back, or `journal forget`"), "{said}");
    told(&relay, &["journal", "forget", "--output", "kafka", "--yes"]);
    assert!(relay.finish(&["drain"]).status.success());
    let empty = Relay::prepare("");
    let output = empty.finish(&["drain"]);
    assert!(output.status.code() == Some(1) && !empty.path("data/journal.db").exists(), "{output:?}");
}

#[test]
fn verify_finds_a_flipped_bit_and_a_ledger_that_does_not_add_up() {
    let mut relay = Relay::start("");
    for number in 1..=3 {
        post(&relay, &format!(r#"{{"event":"sms","n":{number}}}"#));
    }
    wait_for_ledger(&relay, "console", [3, 3, 0, 0, 0]);
    let said = told(&relay, &["journal", "verify"]);
    assert!(
        said.contains("the rows of 3 events") && said.contains("not the file as a whole, since a relay runs"),
        "{said}"
    );
    relay.kill9();
    let said = told(&relay, &["journal", "verify"]);
    assert!(said.contains("and the file as a whole, since no relay runs"), "{said}");
    database(&relay)
        .execute_batch("UPDATE events SET body = CAST(replace(body, 'sms', 'smt') AS BLOB) WHERE sequence = 2; UPDATE outputs SET pending = 1")
        .expect("damage");
    let output = relay.finish(&["journal", "verify"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("event number 2: it cannot be read, or its row does not hold"), "{said}");
    assert!(
        said.contains("accepted 3 is not published 3 + pending 1") && said.contains("1 pending, there are 0"),
        "{said}"
    );
}

/// What a command prints where its output is a terminal.
fn at_a_terminal(relay: &Relay, args: &[&str]) -> String {
    let command = relay.command(args);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    let mut script = std::process::Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(std::process::Stdio::null());
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = script.current_dir(command.get_current_dir().expect("a folder")).output().expect("script(1)");
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

#[test]
fn an_event_commands_no_terminal_and_pipes_get_it_exactly() {
    let relay = Relay::start("");
    let body = "{\"event\":\"sms\",\"message\":\"\u{9b}31m\u{7f}é\"}";
    for body in [body, "\u{1b}[2J\u{1b}]0;title\u{7}"] {
        post(&relay, body);
    }
    let piped = String::from_utf8(relay.finish(&["journal", "show"]).stdout).expect("UTF-8");
    assert!(piped.contains(body) && piped.contains("\u{1b}[2J\u{1b}]0;title\u{7}"), "{piped:?}");
    let shown = at_a_terminal(&relay, &["journal", "show"]);
    let is_command = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    assert!(!shown.contains(is_command), "{shown:?}");
    assert!(shown.contains("\\u009b31m\\u007fé") && shown.contains("\\u001b[2J"), "{shown:?}");
    for args in [&["journal", "show", "--format", "json"][..], &["journal", "export"]] {
        let at_a_terminal = at_a_terminal(&relay, args);
        assert!(!at_a_terminal.contains(is_command), "{at_a_terminal:?}");
        let piped = String::from_utf8(relay.finish(args).stdout).expect("UTF-8");
        let values =
            |text: &str| text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect::<Vec<Value>>();
        assert_eq!(values(&at_a_terminal), values(&piped));
    }
}
