//! Whatever is genuine is accepted, and comes out to the byte.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::support::{EXTRA, Odd, Relay, SECRET, event_id, odd_bodies, sign, wait_for, wait_until};

/// The requests are as old as they say.
const TOLERANCE: &str = "[accounts.default]\ntolerance = \"36500d\"\n";
const SIGNED: &str = "1736942400";
const SIGNED_TIME: &str = "2025-01-15T12:00:00Z";

/// An envelope's members, each as the JSON text that stands there.
type Line = BTreeMap<String, Box<RawValue>>;

/// What the console printed, by id.
fn lines(relay: &Relay) -> BTreeMap<String, Line> {
    let stdout = relay.stdout();
    let whole = stdout.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let parse = |line: &str| serde_json::from_str::<Line>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    whole.map(parse).map(|line| (text(&line, "id").expect("an id"), line)).collect()
}

fn text(line: &Line, name: &str) -> Option<String> {
    line.get(name).map(|raw| serde_json::from_str(raw.get()).expect("a text"))
}

fn check(odd: &Odd, line: &Line) {
    let what = format!("{}: {}", odd.what, String::from_utf8_lossy(&odd.body[..odd.body.len().min(200)]));
    let id = event_id("default", &odd.body);
    let some = |text: &str| Some(text.to_owned());
    let content = if odd.data.is_some() { "application/json" } else { "application/octet-stream" };
    let known = !matches!(odd.group, "unknown" | "extra");
    let expected = [
        ("specversion", some("1.0")),
        ("id", some(&id)),
        ("source", some("/sipsim/default")),
        ("type", some(&format!("com.sipsim.{}", odd.event))),
        ("subject", odd.subject.clone()),
        ("time", some(odd.time.unwrap_or(SIGNED_TIME))),
        ("datacontenttype", some(content)),
        ("dataschema", known.then(|| format!("urn:sipsim-relay:schema:{}:1", odd.event))),
        ("partitionkey", some(odd.subject.as_deref().unwrap_or(&id))),
        ("callstatus", odd.call_status.map(str::to_owned)),
        ("signedtime", some(SIGNED_TIME)),
        ("replayed", None),
    ];
    for (name, value) in expected {
        assert_eq!(text(line, name), value, "{name} of {what}");
    }
    let raw = |name: &str| line.get(name).map(|raw| raw.get().as_bytes().to_vec());
    match &odd.data {
        Some(data) => {
            // The console alone makes spaces of line breaks between tokens; within texts JSON has none.
            let on_one_line: Vec<u8> =
                data.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect();
            assert!(raw("data") == Some(on_one_line), "data of {what}");
            assert_eq!(raw("data_base64"), None, "{what}");
        }
        None => {
            let data = STANDARD.decode(text(line, "data_base64").unwrap_or_else(|| panic!("no data_base64: {what}")));
            assert!(data.as_ref() == Ok(&odd.body), "data_base64 of {what}");
            assert_eq!(raw("data"), None, "{what}");
        }
    }
}

fn all_out(relay: &Relay) {
    wait_until("nothing to be pending", Duration::from_secs(30), || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
}

#[test]
fn odd_but_genuine_bodies_are_accepted_and_come_out_to_the_byte() {
    let relay = Relay::start(&format!("{TOLERANCE}{EXTRA}"));
    let bodies = odd_bodies();
    for odd in &bodies {
        let headers = [("X-Webhook-Timestamp", SIGNED), ("X-Webhook-Signature", &*sign(SECRET, SIGNED, &odd.body))];
        let answer = relay.post_with(&headers, &odd.body);
        let expected = format!(r#"{{"id":"{}"}}"#, event_id("default", &odd.body));
        assert_eq!((answer.status, answer.text()), (200, expected), "{}", odd.what);
    }
    all_out(&relay);
    let lines = lines(&relay);
    assert_eq!(relay.stdout().lines().count(), bodies.len(), "each once, on one line");
    for odd in &bodies {
        check(
            odd,
            lines.get(&event_id("default", &odd.body)).unwrap_or_else(|| panic!("{} did not come out", odd.what)),
        );
    }
    for (event, count) in [("fax_received", 1.0), ("summary", 4.0), ("speech", 3.0)] {
        assert_eq!(relay.metrics().get("sipsim_relay_events_accepted_total", &[("event", event)]), count, "{event}");
    }
    // Of personal data nothing is in the log, and nothing of what a request says.
    let log = relay.stderr();
    for secret in ["call_1", "fax", "123456789012345678901234567890", "passwd", SECRET] {
        assert!(!log.contains(secret), "the log says {secret}:\n{log}");
    }
}

/// Bodies of a shape that SIPSIM or a careless proxy might make, and bytes of no shape at all.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let keys = prop_oneof![
        Just("event".to_owned()),
        Just("pbx_id".to_owned()),
        Just("call_id".to_owned()),
        Just("time".to_owned()),
        Just("status".to_owned()),
        Just("payload".to_owned()),
        ".{0,6}"
    ];
    let leaf = prop_oneof![
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from), // What is no number in JSON becomes null.
        ".{0,40}".prop_map(serde_json::Value::String),
        prop_oneof!["sms", "tags", "test", "speech"].prop_map(serde_json::Value::String),
        any::<bool>().prop_map(serde_json::Value::Bool),
        Just(serde_json::Value::Null)
    ];
    let json = leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(serde_json::Value::Array),
            vec((keys.clone(), inner), 0..5).prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect()))
        ]
    });
    let json = (json, any::<bool>()).prop_map(|(value, pretty)| {
        if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.expect("JSON")
    });
    // JSON with one byte changed: most is none any more, and some of it still is.
    let broken = (json.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut json, at, byte)| {
        let at = at.index(json.len());
        json[at] = byte;
        json
    });
    prop_oneof![
        json,
        broken,
        vec(any::<u8>(), 0..600),
        r#"[\[\]{}",:0-9a-z \\\n\r\t]{0,40}"#.prop_map(String::into_bytes)
    ]
}

#[test]
fn any_bytes_that_are_signed_are_accepted_and_come_out_the_same() {
    let relay = Relay::start(TOLERANCE);
    let config = Config { cases: 300, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    TestRunner::new(config)
        .run(&any_body(), |body| {
            let headers = [("X-Webhook-Timestamp", SIGNED), ("X-Webhook-Signature", &*sign(SECRET, SIGNED, &body))];
            let answer = relay.post_with(&headers, &body);
            let id = event_id("default", &body);
            prop_assert_eq!((answer.status, answer.text()), (200, format!(r#"{{"id":"{id}"}}"#)));
            let line = wait_for("it to come out", Duration::from_secs(10), || lines(&relay).remove(&id));
            let white = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
            match line.get("data") {
                Some(raw) => {
                    let start = body.iter().position(|byte| !white(byte)).unwrap_or(0);
                    let end = body.iter().rposition(|byte| !white(byte)).map_or(0, |last| last + 1);
                    let mut data = body[start..end].to_vec();
                    data.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
                    prop_assert!(raw.get().as_bytes() == data, "data was altered: {}", raw.get());
                }
                None => {
                    let data = text(&line, "data_base64").expect("data or data_base64");
                    prop_assert_eq!(STANDARD.decode(data).expect("base64"), body.clone());
                    let is_json = |text| serde_json::from_str::<IgnoredAny>(text).is_ok();
                    prop_assert!(!str::from_utf8(&body).is_ok_and(is_json), "JSON goes as data");
                }
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
