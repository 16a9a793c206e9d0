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
