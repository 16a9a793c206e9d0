//! Envelopes written down by hand (ids by Python), compared whole.

use std::sync::Arc;

use super::*;
use crate::authenticate::Verified;
use crate::normalize::normalize;

fn encoder(mode: Mode) -> Encoder {
    Encoder { mode, source: "/sipsim/{account}".into(), relay: "relay-1".into(), journal_id: "0194-j".into() }
}

/// Signed at 2025-01-15T10:30:00Z, received half a second later, 42nd in the journal.
fn stored(body: &[u8]) -> Stored {
    let verified = Verified::for_test("default", 1_736_937_000, body);
    Stored { sequence: 42, event: normalize(verified, &["transfer".into()]) }
}

fn record(mode: Mode, body: &[u8]) -> Record {
    encoder(mode).record("a.topic".into(), &stored(body), false)
}

fn envelope(body: &[u8]) -> String {
    String::from_utf8(record(Mode::Structured, body).payload).unwrap()
}

const CALL_END: &[u8] = include_bytes!("../../../tests/payloads/incoming_call_end.answered.json");

#[test]
fn a_call_event_is_enveloped_as_the_table_says() {
    let expected = r#"{"specversion":"1.0","id":"e35ff2d3-0f28-80bd-a037-8bb7aaa3a0e5","source":"/sipsim/default","type":"com.sipsim.incoming_call_end","subject":"call_abc123","time":"2025-01-15T10:35:00Z","datacontenttype":"application/json","dataschema":"urn:sipsim-relay:schema:incoming_call_end:1","partitionkey":"call_abc123","callstatus":"answered","signedtime":"2025-01-15T10:30:00Z","receivedtime":"2025-01-15T10:30:00.500000Z","relay":"relay-1","relayjournal":"0194-j","relaysequence":"00000000000000000042","data":{
  "event": "incoming_call_end",
  "caller": "+33612345678",
  "receiver": "+33198765432",
  "time": "2025-01-15T10:35:00Z",
  "pbx_id": "call_abc123",
  "duration": 285,
  "audio_path": "https://app.sipsim.com/recordings/call_abc123.mp3",
  "status": "ANSWER"
}}"#;
    assert_eq!(envelope(CALL_END), expected);
    let record = record(Mode::Structured, CALL_END);
    assert_eq!(record.sequence, 42);
    assert_eq!(&*record.lane, "a.topic");
    assert_eq!(record.key, "call_abc123");
    assert_eq!(record.content_type, "application/cloudevents+json; charset=UTF-8");
    assert_eq!(record.id.as_str(), "e35ff2d3-0f28-80bd-a037-8bb7aaa3a0e5");
    assert_eq!(record.event_type, "com.sipsim.incoming_call_end");
    assert_eq!(record.received_at.rfc3339().as_str(), "2025-01-15T10:30:00.500000Z");
    // No `ce_` beside these: some SDKs take any of them for binary mode.
    let signature = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let headers: Vec<_> = record.headers.iter().collect();
    assert_eq!(headers, [("x-webhook-signature", signature), ("x-webhook-timestamp", "1736937000")]);
}

#[test]
fn an_event_without_name_subject_or_time_has_the_relays_instead() {
    // Neither `dataschema` for what is none of the fifteen, nor `subject`, nor `callstatus`; the key is the id. White space around goes, that
    // within stays.
    let expected = concat!(
        r#"{"specversion":"1.0","id":"7197e897-35a9-8483-98a2-27818642e8e7","source":"/sipsim/default","type":"com.sipsim.unknown","#,
        r#""time":"2025-01-15T10:30:00Z","datacontenttype":"application/json","partitionkey":"7197e897-35a9-8483-98a2-27818642e8e7","#,
        r#""signedtime":"2025-01-15T10:30:00Z","receivedtime":"2025-01-15T10:30:00.500000Z","relay":"relay-1","relayjournal":"0194-j","#,
        r#""relaysequence":"00000000000000000042","data":["#,
        "\r\n1,\n\"a\\nb\"\n]}",
    );
    assert_eq!(envelope(b"[\r\n1,\n\"a\\nb\"\n]\n"), expected);
    assert_eq!(record(Mode::Structured, b"[\r\n1,\n\"a\\nb\"\n]\n").key, "7197e897-35a9-8483-98a2-27818642e8e7");
}

#[test]
fn what_is_no_json_goes_as_base64() {
    let check = |body: &[u8], id: &str, data: &str| {
        let expected = format!(
            concat!(
                r#"{{"specversion":"1.0","id":"{id}","source":"/sipsim/default","type":"com.sipsim.unknown","time":"2025-01-15T10:30:00Z","#,
                r#""datacontenttype":"application/octet-stream","partitionkey":"{id}","signedtime":"2025-01-15T10:30:00Z","#,
                r#""receivedtime":"2025-01-15T10:30:00.500000Z","relay":"relay-1","relayjournal":"0194-j","#,
                r#""relaysequence":"00000000000000000042","data_base64":"{data}"}}"#
            ),
            id = id,
            data = data
        );
        assert_eq!(envelope(body), expected);
    };
    check(b"\xff\n", "656e3eca-5a01-8ce6-926e-287826033b47", "/wo=");
    check(b"", "bb9a03f3-423c-8a64-8548-ee5be69db77f", "");
}

#[test]
fn attributes_are_escaped_and_data_is_not() {
    let body = "{\"event\":\"transfer\",\"pbx_id\":\"a\\\"bé\"}";
    let expected = concat!(
        r#"{"specversion":"1.0","id":"3cd28e1c-ebc7-85ac-95bb-c7f838c751e8","source":"/sipsim/default","type":"com.sipsim.transfer","#,
        r#""subject":"a\"bé","time":"2025-01-15T10:30:00Z","datacontenttype":"application/json","partitionkey":"a\"bé","#,
        r#""signedtime":"2025-01-15T10:30:00Z","receivedtime":"2025-01-15T10:30:00.500000Z","relay":"relay-1","relayjournal":"0194-j","#,
        r#""relaysequence":"00000000000000000042","data":{"event":"transfer","pbx_id":"a\"bé"}}"#,
    );
    assert_eq!(envelope(body.as_bytes()), expected);
    // Numbers, escapes and doubled keys stay as they are.
    let odd = r#"{"a":1.0,"a":1e999,"b":"\ud800\/","n":123456789012345678901234567890}"#;
    assert!(envelope(odd.as_bytes()).ends_with(&format!("\"data\":{odd}}}")));
}

#[test]
fn binary_mode_carries_the_raw_body_and_the_attributes_as_headers() {
    let record = record(Mode::Binary, CALL_END);
    assert_eq!(record.payload, CALL_END);
    assert_eq!(record.key, "call_abc123");
    assert_eq!(record.content_type, "application/json");
    let headers: Vec<_> = record.headers.iter().collect();
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "e35ff2d3-0f28-80bd-a037-8bb7aaa3a0e5"),
        ("ce_source", "/sipsim/default"),
        ("ce_type", "com.sipsim.incoming_call_end"),
        ("ce_subject", "call_abc123"),
        ("ce_time", "2025-01-15T10:35:00Z"),
        ("ce_dataschema", "urn:sipsim-relay:schema:incoming_call_end:1"),
        ("ce_partitionkey", "call_abc123"),
        ("ce_callstatus", "answered"),
        ("ce_signedtime", "2025-01-15T10:30:00Z"),
        ("ce_receivedtime", "2025-01-15T10:30:00.500000Z"),
        ("ce_relay", "relay-1"),
        ("ce_relayjournal", "0194-j"),
        ("ce_relaysequence", "00000000000000000042"),
        ("x-webhook-signature", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
        ("x-webhook-timestamp", "1736937000"),
    ];
    assert_eq!(headers, expected);
}

#[test]
fn binary_mode_takes_nothing_off_a_body() {
    let check = |body: &[u8], content_type: &str, headers: usize| {
        let record = record(Mode::Binary, body);
        assert_eq!(
            (record.payload.as_slice(), record.content_type, record.headers.len()),
            (body, content_type, headers)
        );
    };
    // Without subject, schema and status.
    check(b" [1]\n", "application/json", 13);
    check(b"", "application/octet-stream", 13);
    check(b"\xff\n", "application/octet-stream", 13);
}

#[test]
fn only_what_is_sent_again_says_so() {
    assert!(!envelope(b"1").contains("replayed"));
    let (mut imported, again) = (stored(b"1"), stored(b"1"));
    imported.event.replayed = true;
    for (stored, replayed) in [(&imported, false), (&again, true)] {
        let lane = || Arc::from("a.topic");
        let structured = encoder(Mode::Structured).record(lane(), stored, replayed);
        let payload = String::from_utf8(structured.payload).unwrap();
        assert!(payload.ends_with(r#""relaysequence":"00000000000000000042","replayed":true,"data":1}"#), "{payload}");
        let binary = encoder(Mode::Binary).record(lane(), stored, replayed);
        assert!(binary.headers.iter().any(|header| header == ("ce_replayed", "true")));
    }
}

#[test]
fn what_must_be_escaped_is_seen_wherever_it_stands() {
    for length in 0..70 {
        let plain = "\u{7f}é~!".chars().cycle().take(length).collect::<String>();
        let mut json = Vec::new();
        write_text(&mut json, &plain);
        assert_eq!(json, format!("\"{plain}\"").into_bytes());
        for (place, escaped) in (0..length).flat_map(|place| ['"', '\\', '\0', '\x1f'].map(|escaped| (place, escaped)))
        {
            let text: String = plain.chars().enumerate().map(|(at, c)| if at == place { escaped } else { c }).collect();
            let mut json = Vec::new();
            write_text(&mut json, &text);
            assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
        }
    }
}

#[test]
fn nothing_of_a_record_stays_in_the_next() {
    let odd = stored(b"\xff");
    for mode in [Mode::Structured, Mode::Binary] {
        let encoder = encoder(mode);
        let mut again = encoder.record("another.topic".into(), &stored(CALL_END), true);
        encoder.fill(&mut again, "a.topic".into(), &odd, false);
        assert_eq!(format!("{again:?}"), format!("{:?}", encoder.record("a.topic".into(), &odd, false)));
    }
}

#[test]
fn on_one_line_only_breaks_between_tokens_become_spaces() {
    let mut payload = record(Mode::Structured, b"[\r\n1,\n\"a\\nb \xe2\x80\xa8\"\n]\n").payload;
    let before: serde_json::Value = serde_json::from_slice(&payload).unwrap();
    on_one_line(&mut payload);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&payload).unwrap(), before);
    let line = String::from_utf8(payload).unwrap();
    assert!(line.ends_with("\"data\":[  1, \"a\\nb \u{2028}\" ]}"), "{line}");
}

#[test]
fn an_envelope_fits_the_memory_set_aside_for_it() {
    let subject = "\\\"".repeat(128);
    for body in [CALL_END, b"\xff", format!("{{\"pbx_id\":\"{subject}\"}}").as_bytes()] {
        let (encoder, stored) = (encoder(Mode::Structured), stored(body));
        let payload = record(Mode::Structured, body).payload;
        let room = encoder.room(&stored.event);
        assert!(payload.len() <= room, "{} in {room}", payload.len());
    }
}
