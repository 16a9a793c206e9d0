//! Genuine but odd bodies in real topics and queues, to the byte, and nothing of what was forged.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::value::RawValue;

use super::contract::{SIGNED, SIGNED_TIME, TOLERANCE, nothing_pending, outputs, read};
use crate::support::{Brokers, EXTRA, Message, Odd, Relay, SECRET, event_id, forged, odd_bodies, sign};

/// An envelope's members, each as the JSON text that stands there: other parsers would refuse the deepest.
type Raw = BTreeMap<String, Box<RawValue>>;

fn key(odd: &Odd) -> String {
    odd.subject.clone().unwrap_or_else(|| event_id("default", &odd.body))
}

/// What DESIGN §5 says of it, in the order of names.
fn attributes(odd: &Odd) -> BTreeMap<&'static str, String> {
    let content = if odd.data.is_some() { "application/json" } else { "application/octet-stream" };
    let mut all = BTreeMap::from([
        ("specversion", "1.0".to_owned()),
        ("id", event_id("default", &odd.body)),
        ("source", "/sipsim/default".into()),
        ("type", format!("com.sipsim.{}", odd.event)),
        ("time", odd.time.unwrap_or(SIGNED_TIME).into()),
        ("datacontenttype", content.into()),
        ("partitionkey", key(odd)),
        ("signedtime", SIGNED_TIME.into()),
    ]);
    all.extend(odd.subject.clone().map(|subject| ("subject", subject)));
    all.extend(odd.call_status.map(|status| ("callstatus", status.to_owned())));
    if !matches!(odd.group, "unknown" | "extra") {
        all.insert("dataschema", format!("urn:sipsim-relay:schema:{}:1", odd.event));
    }
    all
}

const VARYING: [&str; 4] = ["receivedtime", "relay", "relayjournal", "relaysequence"];

fn check_structured(odd: &Odd, message: &Message) {
    let what = odd.what;
    let raw: Raw = serde_json::from_str(message.text()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let text = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).expect("attributes are texts");
    let given: BTreeMap<&str, String> = raw
        .iter()
        .filter(|(name, _)| !VARYING.contains(&name.as_str()) && *name != "data" && *name != "data_base64")
        .map(|(name, raw)| (name.as_str(), text(raw)))
        .collect();
    let expected = attributes(odd);
    assert_eq!(given, expected, "{what}");
    let data = raw.get("data").map(|raw| raw.get().as_bytes());
    assert!(data == odd.data.as_deref(), "{what}: data is not as sent");
    if let Some(data) = &odd.data {
        let end = [&b",\"data\":"[..], data, b"}"].concat();
        assert!(message.text().as_bytes().ends_with(&end), "{what}: there is white space around data");
    }
    let base64 = raw.get("data_base64").map(|raw| STANDARD.decode(text(raw)).expect("base64"));
    assert!(base64.as_deref() == odd.data.is_none().then_some(&odd.body[..]), "{what}: data_base64 is not as sent");
    assert_eq!(message.cloudevent["mode"], "structured", "{what}");
}

fn check_binary(odd: &Odd, message: &Message) {
    let what = odd.what;
    assert!(message.value.as_ref() == Some(&odd.body), "{what}: the value is the body itself, and never null");
    let mut expected: BTreeMap<String, String> =
        attributes(odd).into_iter().map(|(name, value)| (format!("ce_{name}"), value)).collect();
    let content_type = expected.remove("ce_datacontenttype").expect("it is among them");
    expected.insert("content-type".into(), content_type);
    expected.insert("x-webhook-timestamp".into(), SIGNED.into());
    expected.insert("x-webhook-signature".into(), sign(SECRET, SIGNED, &odd.body));
    let varying = |name: &str| VARYING.iter().any(|one| name.strip_prefix("ce_") == Some(one));
    let given: BTreeMap<String, String> = message.headers.iter().filter(|(name, _)| !varying(name)).cloned().collect();
    assert_eq!(given, expected, "{what}");
    assert_eq!(message.cloudevent["mode"], "binary", "{what}");
}

/// Takes 10 s: clients in Python read and judge every message, and their packages take seconds to load.
#[test]
fn odd_bodies_arrive_to_the_byte_in_order_and_forged_ones_nowhere() {
    let brokers = Brokers::shared();
    brokers.create_topics(&["odd", "odd.binary"], 1);
    brokers.bind("odd", &["odd"]);
    let relay = Relay::start(&format!("{TOLERANCE}{EXTRA}{}", outputs(&brokers, "odd", "odd.binary", "odd")));
    // As in production: the default tolerance.
    let strict = Relay::start(&outputs(&brokers, "odd", "odd.binary", "odd"));
    let bodies = odd_bodies();
    for odd in &bodies {
        let headers = [("X-Webhook-Timestamp", SIGNED), ("X-Webhook-Signature", &*sign(SECRET, SIGNED, &odd.body))];
        assert_eq!(relay.post_with(&headers, &odd.body).status, 200, "{}", odd.what);
    }
    for forged in forged(b"{\"event\":\"sms\",\"message\":\"forged\"}") {
        let headers: Vec<(&str, &str)> = forged.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let answer = strict.post_with(&headers, b"{\"event\":\"sms\",\"message\":\"forged\"}");
        assert_eq!(answer.status, 401, "{}", forged.what);
    }
    // Its last word: whatever else it let in would be in front of it.
    assert_eq!(strict.post(b"\"the last\"").status, 200);
    nothing_pending(&strict, &["kafka", "binary", "rabbitmq"]);
    nothing_pending(&relay, &["kafka", "binary", "rabbitmq"]);
    for output in ["kafka", "binary", "rabbitmq"] {
        assert_eq!(relay.metrics().get("sipsim_relay_events_parked", &[("output", output)]), 0.0, "{output}");
    }

    let all = bodies.len() + 1;
    let read = read(&brokers, &["odd"], &["odd.binary"], &["odd"], all);
    for (place, messages) in read.iter().enumerate() {
        assert_eq!(messages.len(), all, "and nothing that was forged");
        let last = |message: &&Message| {
            message.value.as_deref().is_some_and(|value| value.windows(8).any(|w| w == b"the last"))
        };
        assert_eq!(messages.iter().filter(last).count(), 1);
        let ours: Vec<&Message> = messages.iter().filter(|message| !last(message)).collect();
        // In the order in which they were accepted, whatever they are.
        for (odd, message) in bodies.iter().zip(ours) {
            if place == 1 {
                check_binary(odd, message)
            } else {
                check_structured(odd, message)
            }
            match place {
                2 => assert_eq!(message.properties["message_id"], event_id("default", &odd.body)),
                _ => assert_eq!(message.key.as_deref(), Some(&*key(odd)), "{}", odd.what),
            }
        }
    }
}
