//! The same request again, and what configuration discards: answered 200, and not forwarded.

use std::thread;
use std::time::Duration;

use crate::support::{Answer, PATH, Relay, SECRET, event_id, now, sign, wait_until};

const BODY: &[u8] = br#"{"event":"tags","pbx_id":"call_again","tags":[]}"#;

fn post(relay: &Relay, timestamp: i64, body: &[u8]) -> Answer {
    let timestamp = timestamp.to_string();
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*sign(SECRET, &timestamp, body))];
    relay.post_with(&headers, body)
}

fn accepted(relay: &Relay, timestamp: i64, body: &[u8]) {
    let answer = post(relay, timestamp, body);
    assert_eq!((answer.status, answer.text()), (200, format!(r#"{{"id":"{}"}}"#, event_id("default", body))));
}

fn ledger(relay: &Relay) -> [f64; 5] {
    let metrics = relay.metrics();
    ["accepted", "published", "pending", "parked", "discarded"]
        .map(|state| metrics.get("sipsim_relay_ledger_events", &[("output", "console"), ("state", state)]))
}

/// Waits until so many events are noted as published: what a kill -9 after that cannot send again.
fn published(relay: &Relay, count: f64) {
    wait_until("the ledger to say that all is published", Duration::from_secs(10), || {
        let [_, published, pending, ..] = ledger(relay);
        (published, pending) == (count, 0.0)
    });
}

#[test]
fn the_very_same_request_is_forwarded_once_over_restarts_and_kills() {
    let mut relay = Relay::start("");
    let signed = now();
    accepted(&relay, signed, BODY);
    accepted(&relay, signed, BODY);
    published(&relay, 1.0);
    let outcome = |relay: &Relay, outcome| relay.metrics().get("sipsim_relay_webhooks_total", &[("outcome", outcome)]);
    assert_eq!((outcome(&relay, "accepted"), outcome(&relay, "duplicate")), (1.0, 1.0));

    relay.restart(); // By kill -9.
    accepted(&relay, signed, BODY);
    assert_eq!((outcome(&relay, "accepted"), outcome(&relay, "duplicate")), (0.0, 1.0), "counters begin at 0");
    assert!(relay.terminate(Duration::from_secs(22)).success());
    relay.run();
    accepted(&relay, signed, BODY);

    // The same words, signed anew: sent again on purpose, for all that we know.
    accepted(&relay, signed + 1, BODY);
    published(&relay, 2.0);
    assert_eq!(ledger(&relay), [2.0, 2.0, 0.0, 0.0, 0.0]);
    let seen: Vec<_> = relay.envelopes();
    assert_eq!(seen.len(), 2);
    assert_eq!(
        (&seen[0]["id"], &seen[0]["data"]),
        (&seen[1]["id"], &seen[1]["data"]),
        "one id, so the consumer can tell"
    );
    assert_ne!(seen[0]["signedtime"], seen[1]["signedtime"]);
    assert_eq!(seen[0]["relaysequence"], "00000000000000000001");
    assert!(seen[0]["relaysequence"].as_str() < seen[1]["relaysequence"].as_str());
    assert_eq!(seen[0]["relayjournal"], seen[1]["relayjournal"]);
}

#[test]
fn sixteen_at_once_are_one() {
    let relay = Relay::start("");
    let signed = now();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| accepted(&relay, signed, BODY));
        }
    });
    published(&relay, 1.0);
    let metrics = relay.metrics();
    assert_eq!(metrics.get("sipsim_relay_events_accepted_total", &[("event", "tags")]), 1.0);
    assert_eq!(metrics.get("sipsim_relay_webhooks_total", &[("outcome", "duplicate")]), 15.0);
    assert_eq!(relay.envelopes().len(), 1);
}

#[test]
fn accounts_have_ids_paths_and_secrets_of_their_own() {
    let relay = Relay::prepare(
        "[accounts.paris]\npath = \"/paris\"\nsecrets = \"paris\"\n[accounts.nice]\npath = \"/nice\"\nsecrets = \"nice\"\n",
    );
    for name in ["paris", "nice"] {
        std::fs::write(relay.path(name), format!("secret of {name}, long enough for anybody")).expect("a secret");
    }
    let mut relay = relay;
    relay.run();
    let timestamp = now().to_string();
    let post = |path: &str, account: &str| {
        let signature = sign(&format!("secret of {account}, long enough for anybody"), &timestamp, BODY);
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        let mut client = crate::support::Client::connect(relay.ingress).expect("a connection");
        client.request("POST", path, &headers, BODY).expect("an answer")
    };
    for name in ["paris", "nice"] {
        assert_eq!(post(&format!("/{name}"), name).text(), format!(r#"{{"id":"{}"}}"#, event_id(name, BODY)));
    }
    assert_eq!(post("/paris", "nice").status, 401);
    assert_eq!(post(PATH, "paris").status, 404, "`default` is there only while no account is named");
    published(&relay, 2.0);
    let sources: Vec<_> = relay.envelopes().iter().map(|envelope| envelope["source"].clone()).collect();
    assert_eq!(sources, ["/sipsim/paris", "/sipsim/nice"]);
}

#[test]
fn what_configuration_discards_is_answered_and_counted_and_not_forwarded() {
    let mut relay = Relay::start("[events]\ndiscard = [\"tags\", \"unknown\"]\n");
    let signed = now();
    accepted(&relay, signed, BODY);
    accepted(&relay, signed, b"no JSON");
    accepted(&relay, signed, b"{\"event\":\"sms\"}");
    accepted(&relay, signed, BODY);
    published(&relay, 1.0);
    assert_eq!(ledger(&relay), [3.0, 1.0, 0.0, 0.0, 2.0]);
    let metrics = relay.metrics();
    let discarded =
        |event| metrics.get("sipsim_relay_events_discarded_total", &[("account", "default"), ("event", event)]);
    assert_eq!((discarded("tags"), discarded("unknown"), discarded("sms")), (1.0, 1.0, 0.0));
    assert_eq!(metrics.get("sipsim_relay_webhooks_total", &[("outcome", "accepted")]), 3.0);
    assert_eq!(metrics.get("sipsim_relay_webhooks_total", &[("outcome", "duplicate")]), 1.0);

    relay.restart();
    accepted(&relay, signed, BODY);
    assert_eq!(ledger(&relay), [3.0, 1.0, 0.0, 0.0, 2.0], "kept in the journal");
    let types: Vec<_> = relay.envelopes().iter().map(|envelope| envelope["type"].clone()).collect();
    assert_eq!(types, ["com.sipsim.sms"]);
}
