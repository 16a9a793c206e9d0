use std::fs;
use std::path::Path;

use super::*;

mod any;

/// Signed at 2025-01-15T10:30:00Z.
fn event_of(body: impl AsRef<[u8]>) -> Event {
    normalize(Verified::for_test("default", 1_736_937_000, body.as_ref()), &["transfer".into()])
}

fn name_of(body: &str) -> String {
    event_of(body).name.as_str().to_owned()
}

/// An object nested this deep, the outer one counted.
fn nested(depth: usize) -> String {
    format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))
}

#[test]
fn sipsims_examples_are_read_as_their_pages_say() {
    /// File, name, subject, time, call status.
    type Expected = (&'static str, &'static str, Option<&'static str>, &'static str, Option<&'static str>);
    let expected: [Expected; 17] = [
        ("incoming_call_answer", "incoming_call_answer", Some("call_abc123"), "2025-01-15T10:30:05Z", None),
        (
            "incoming_call_end.answered",
            "incoming_call_end",
            Some("call_abc123"),
            "2025-01-15T10:35:00Z",
            Some("answered"),
        ),
        ("incoming_call_end.missed", "incoming_call_end", Some("call_abc123"), "2025-01-15T10:30:30Z", Some("missed")),
        ("incoming_call_start", "incoming_call_start", Some("call_abc123"), "2025-01-15T10:30:00Z", None),
        (
            "incoming_call_start_chain_member_call",
            "incoming_call_start_chain_member_call",
            Some("call_abc123"),
            "2025-01-15T10:30:02Z",
            None,
        ),
        ("outgoing_call_answer", "outgoing_call_answer", Some("call_def456"), "2025-01-15T14:00:08Z", None),
        (
            "outgoing_call_end.answered",
            "outgoing_call_end",
            Some("call_def456"),
            "2025-01-15T14:05:00Z",
            Some("answered"),
        ),
        (
            "outgoing_call_end.unanswered",
            "outgoing_call_end",
            Some("call_def456"),
            "2025-01-15T14:00:30Z",
            Some("no_answer"),
        ),
        ("outgoing_call_start", "outgoing_call_start", Some("call_def456"), "2025-01-15T14:00:00Z", None),
        ("rating", "rating", Some("12345"), "2025-01-15T10:30:00Z", None),
        ("sms.inbound", "sms", None, "2025-01-15T11:00:00Z", None),
        ("sms.outbound", "sms", None, "2025-01-15T11:05:00Z", None),
        ("speech", "speech", Some("12345"), "2025-01-15T10:30:00Z", None),
        ("summary", "summary", Some("12345"), "2025-01-15T10:30:00Z", None),
        ("tags", "tags", Some("call_abc123"), "2025-01-15T10:36:00Z", None),
        ("test", "test", Some("test_000000"), "2025-01-15T10:30:00Z", None),
        ("voicemail", "voicemail", Some("call_abc123"), "2025-01-15T10:31:00Z", None),
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), expected.len());
    for (file, name, subject, time, status) in expected {
        let body = fs::read(folder.join(file).with_added_extension("json")).unwrap();
        let event = event_of(&body);
        assert_eq!(event.name.as_str(), name, "{file}");
        assert_eq!(event.subject.as_deref(), subject, "{file}");
        assert_eq!(event.time.as_str(), time, "{file}");
        assert_eq!(event.call_status.map(CallStatus::as_str), status, "{file}");
        assert_eq!(event.content, Content::Json, "{file}");
        assert_eq!(event.body, body, "{file}");
    }
}

#[test]
fn what_came_is_kept_as_it_came() {
    let event = event_of(r#"{"event":"sms"}"#);
    assert_eq!(event.account.as_str(), "default");
    assert_eq!((event.signed_text.as_str(), event.signed_at), ("1736937000", 1_736_937_000));
    assert_eq!(*event.signature, "0123456789abcdef".repeat(4));
    assert_eq!(event.received_at, Timestamp::from_micros(1_736_937_000_500_000));
    assert!(!event.replayed);
}

#[test]
fn an_event_is_named_by_its_field_or_else_its_shape() {
    let check = |body: &str, name: &str| assert_eq!(name_of(body), name, "{body}");
    for known in Known::ALL {
        check(&format!(r#"{{"event":"{}"}}"#, known.as_str()), known.as_str());
    }
    assert_eq!(event_of(r#"{"event":"transfer"}"#).name, EventName::Extra("transfer".into()));
    check(r#"{"event":"transfers"}"#, "unknown");
    check(r#"{"event":"SMS"}"#, "unknown");
    check(r#"{"event":" sms"}"#, "unknown");
    check(r#"{"event":"unknown"}"#, "unknown");
    check(r#"{"Event":"sms"}"#, "unknown");
    check(r#"{"data":{"event":"sms"}}"#, "unknown");
    check(r#"{"\u0065vent":"\u0073ms"}"#, "sms");
    // A name that says something goes before any shape.
    check(r#"{"event":"new","call_id":1,"summary":"x"}"#, "unknown");
    check(r#"{"event":"\ud800","call_id":1,"summary":"x"}"#, "unknown");
    check(r#"{"event":"rating","call_id":1,"summary":"x"}"#, "rating");
    for nothing in [r#""""#, "null", "5", "true", r#"["sms"]"#, r#"{"event":"sms"}"#] {
        check(&format!(r#"{{"event":{nothing},"call_id":1,"summary":"x"}}"#), "summary");
        check(&format!(r#"{{"event":{nothing}}}"#), "unknown");
    }
    // Shapes.
    check(r#"{"call_id":1,"speech_state":"speech_stored"}"#, "speech");
    check(r#"{"call_id":1,"payload":[]}"#, "speech");
    check(r#"{"call_id":"call_1","payload":[],"summary":"x"}"#, "speech");
    check(r#"{"call_id":1,"payload":{},"summary":"x"}"#, "summary");
    check(r#"{"call_id":1,"summary":""}"#, "summary");
    check(r#"{"call_id":1,"summary":null}"#, "unknown");
    check(r#"{"call_id":1,"summary":["x"]}"#, "unknown");
    check(r#"{"call_id":1}"#, "unknown");
    check(r#"{"speech_state":"speech_stored","payload":[],"summary":"x"}"#, "unknown");
    check(r#"{"call_id":null,"payload":[]}"#, "unknown");
    check(r#"{"call_id":1,"speech_state":null}"#, "unknown");
}

#[test]
fn of_doubled_keys_the_last_counts() {
    assert_eq!(name_of(r#"{"event":"sms","event":"tags"}"#), "tags");
    assert_eq!(name_of(r#"{"event":"sms","\u0065vent":"tags"}"#), "tags");
    assert_eq!(name_of(r#"{"event":"sms","event":null}"#), "unknown");
    let event = event_of(r#"{"pbx_id":"a","pbx_id":"b","time":"2025-01-01T00:00:00Z","time":5}"#);
    assert_eq!((event.subject.as_deref(), event.time.as_str()), (Some("b"), "2025-01-15T10:30:00Z"));
}

#[test]
fn the_subject_is_the_first_usable_of_pbx_id_and_call_id() {
    let check = |body: &str, subject: Option<&str>| assert_eq!(event_of(body).subject.as_deref(), subject, "{body}");
    check(r#"{"pbx_id":"a","call_id":1}"#, Some("a"));
    check(r#"{"call_id":1,"pbx_id":"a"}"#, Some("a"));
    check(r#"{"pbx_id":7,"call_id":1}"#, Some("7"));
    check(r#"{"call_id":"c"}"#, Some("c"));
    for unusable in
        [r#""""#, "null", "true", "1.0", "1e5", "1E5", "[1]", r#"{"a":1}"#, r#""a\nb""#, r#""\u0000""#, r#""\u0085""#]
    {
        check(&format!(r#"{{"pbx_id":{unusable},"call_id":1}}"#), Some("1"));
        check(&format!(r#"{{"pbx_id":{unusable}}}"#), None);
    }
    check(r#"{"pbx_id":"\ud800","call_id":1}"#, Some("1"));
    check(r#"{"pbx_id":"\ud83d\ude00"}"#, Some("😀"));
    check(r#"{"pbx_id":"a b\/\"é"}"#, Some("a b/\"é"));
    check(r#"{"pbx_id":" "}"#, Some(" "));
    // Digits as written, of any size.
    check(r#"{"call_id":-5}"#, Some("-5"));
    check(r#"{"call_id":0}"#, Some("0"));
    check(r#"{"call_id":-0}"#, Some("-0"));
    check(r#"{"call_id":12345678901234567890123456789}"#, Some("12345678901234567890123456789"));
    let (fits, too_long) = ("9".repeat(128), "9".repeat(129));
    check(&format!(r#"{{"call_id":{fits}}}"#), Some(&fits));
    check(&format!(r#"{{"call_id":{too_long}}}"#), None);
    // Characters, not bytes.
    let (fits, too_long) = ("é".repeat(128), "é".repeat(129));
    check(&format!(r#"{{"pbx_id":"{fits}"}}"#), Some(&fits));
    check(&format!(r#"{{"pbx_id":"{too_long}"}}"#), None);
}

#[test]
fn the_time_is_the_events_own_in_utc_or_that_of_signing() {
    let check = |body: &str, time: &str| assert_eq!(event_of(body).time.as_str(), time, "{body}");
    const SIGNED: &str = "2025-01-15T10:30:00Z";
    check(r#"{"time":"2024-02-29T23:59:59Z"}"#, "2024-02-29T23:59:59Z");
    check(r#"{"timestamp":"2024-02-29T23:59:59Z"}"#, "2024-02-29T23:59:59Z");
    check(r#"{"timestamp":"2024-01-01T00:00:00Z","time":"2023-01-01T00:00:00Z"}"#, "2023-01-01T00:00:00Z");
    check(r#"{"timestamp":"2024-01-01T00:00:00Z","time":"yesterday"}"#, "2024-01-01T00:00:00Z");
    check(r#"{"timestamp":"2024-01-01T00:00:00Z","time":1704067200}"#, "2024-01-01T00:00:00Z");
    check(r#"{"time":null}"#, SIGNED);
    check(r#"{"time":1704067200}"#, SIGNED);
    check(r#"{"time":"2024-01-01T00:00:00Z\ud800"}"#, SIGNED);
    check(r#"{"time":"2024-01-01T00\u003a00:00Z"}"#, "2024-01-01T00:00:00Z");
    check("{}", SIGNED);
    check("[]", SIGNED);
}

#[test]
fn moments_with_an_offset_are_told_in_utc() {
    let check = |text: &str, utc: Option<&str>| assert_eq!(moment::utc(text.as_bytes()).as_deref(), utc, "{text}");
    check("2025-01-15T10:30:00Z", Some("2025-01-15T10:30:00Z"));
    check("2025-01-15t10:30:00z", Some("2025-01-15T10:30:00Z"));
    check("2025-01-15 10:30:00Z", Some("2025-01-15T10:30:00Z"));
    check("2025-01-15T10:30:00+02:00", Some("2025-01-15T08:30:00Z"));
    check("2025-01-15T10:30:00+0200", Some("2025-01-15T08:30:00Z"));
    check("2025-01-15T10:30:00-00:00", Some("2025-01-15T10:30:00Z"));
    check("2024-12-31T23:30:00-05:45", Some("2025-01-01T05:15:00Z"));
    check("2024-03-01T01:00:00+14:00", Some("2024-02-29T11:00:00Z"));
    check("2025-01-15T10:30:00+23:59", Some("2025-01-14T10:31:00Z"));
    // The fraction as sent, to nine digits.
    check("2025-01-15T10:30:00.5Z", Some("2025-01-15T10:30:00.5Z"));
    check("2025-01-15T10:30:00.500+01:00", Some("2025-01-15T09:30:00.500Z"));
    check("2025-01-15T10:30:00.000Z", Some("2025-01-15T10:30:00.000Z"));
    check("2025-01-15T10:30:00.123456789Z", Some("2025-01-15T10:30:00.123456789Z"));
    check("2025-01-15T10:30:00.9999999999Z", Some("2025-01-15T10:30:00.999999999Z"));
    check(&format!("2025-01-15T10:30:00.{}Z", "1".repeat(5000)), Some("2025-01-15T10:30:00.111111111Z"));
    // The years that RFC 3339 can write.
    check("0001-01-01T00:00:00Z", Some("0001-01-01T00:00:00Z"));
    check("9999-12-31T23:59:59Z", Some("9999-12-31T23:59:59Z"));
    check("0001-01-01T00:00:00+00:01", None);
    check("9999-12-31T23:59:59-00:01", None);
    check("0000-12-31T23:59:59-00:01", None);
    check("0000-01-01T00:00:00Z", None);
    check("10000-01-01T00:00:00Z", None);
    check("-2025-01-15T10:30:00Z", None);
    // A leap second is the second after it, and only where one can be.
    check("2016-12-31T23:59:60Z", Some("2017-01-01T00:00:00Z"));
    check("2017-01-01T01:59:60.5+02:00", Some("2017-01-01T00:00:00.5Z"));
    check("2016-12-31T22:59:60Z", None);
    check("9999-12-31T23:59:60Z", None);
    for text in [
        "",
        "Z",
        "2025-01-15",
        "2025-01-15T10:30:00",
        "2025-01-15T10:30Z",
        "2025-01-15T10:30:00 +0200",
        "2025-01-15T10:30:00+02",
        "2025-01-15T10:30:00+2:00",
        "2025-01-15T10:30:00+24:00",
        "2025-01-15T10:30:00+02:60",
        "2025-01-15T10:30:00UTC",
        "2025-01-15T10:30:00.Z",
        "2025-01-15T10:30:00,5Z",
        "2025-01-15T10:30:00ZZ",
        " 2025-01-15T10:30:00Z",
        "2025-01-15T10:30:00Z ",
        "2025-02-29T10:30:00Z",
        "2025-13-01T10:30:00Z",
        "2025-00-01T10:30:00Z",
        "2025-01-00T10:30:00Z",
        "2025-01-15T24:00:00Z",
        "2025-01-15T10:60:00Z",
        "2025-01-15T10:30:61Z",
        "2025-01-15_10:30:00Z",
        "20250115T103000Z",
        "25-01-15T10:30:00Z",
        "2025-1-15T10:30:00Z",
        "+025-01-15T10:30:00Z",
        "２025-01-15T10:30:00Z",
        "2025-01-15T10:30:00é",
    ] {
        check(text, None);
    }
}

#[test]
fn a_call_status_is_read_in_both_spellings_and_only_of_calls() {
    let check = |event: &str, status: &str, expected: Option<&str>| {
        let status_read = event_of(format!(r#"{{"event":"{event}","status":{status}}}"#)).call_status;
        assert_eq!(status_read.map(CallStatus::as_str), expected, "{event} {status}");
    };
    for (sent, read) in [
        ("ANSWER", "answered"),
        ("MISSED", "missed"),
        ("BUSY", "busy"),
        ("NOANSWER", "no_answer"),
        ("answer", "answered"),
        ("noanswer", "no_answer"),
        ("busy", "busy"),
        ("cancel", "cancelled"),
        ("unavailable", "unavailable"),
        ("other", "other"),
        ("Answer", "answered"),
        ("voicemail", "other"),
        (" answer", "other"),
        ("", "other"),
        ("\\ud800", "other"),
        ("\\u0061nswer", "answered"),
    ] {
        for event in
            ["incoming_call_end", "outgoing_call_end", "incoming_call_end_chain_member_call", "voicemail", "tags"]
        {
            check(event, &format!("\"{sent}\""), Some(read));
        }
        for event in ["sms", "rating", "test", "transfer", "strange"] {
            check(event, &format!("\"{sent}\""), None);
        }
    }
    for no_text in ["null", "1", "true", r#"["ANSWER"]"#] {
        check("incoming_call_end", no_text, None);
    }
    assert_eq!(event_of(r#"{"event":"incoming_call_end"}"#).call_status, None);
}

#[test]
fn json_is_what_rfc_8259_says_and_everything_else_is_opaque() {
    let check = |body: &[u8], content: Content, name: &str| {
        let event = event_of(body);
        let shown = String::from_utf8_lossy(body);
        let shown: String = shown.chars().take(60).collect();
        assert_eq!((event.content, event.name.as_str()), (content, name), "{shown}");
        assert_eq!(event.body, body, "{shown}");
    };
    for json in [
        &b"0"[..],
        b"null",
        b"true",
        b"\"text\"",
        b"[]",
        b"{}",
        b"[1,2,3]",
        b" \t\r\n{} \t\r\n",
        b"-0.0e-0",
        b"1e999999",
        b"123456789012345678901234567890123456789012345678901234567890.5E+1",
        b"\"\\ud800\"",
        b"\"\\udc00\\ud800\"",
        b"{\"\\ud800\":1}",
        b"{\"\":1}",
        b"\"\xef\xbf\xbe\"",
        b"\"\x7f\"",
        b"\"\\/\\b\\f\\u0000\"",
    ] {
        check(json, Content::Json, "unknown");
    }
    // What cannot be text elsewhere must not keep a name from being found.
    check(br#"{"\ud800":"\udfff","event":"sms","x":"\ud800x"}"#, Content::Json, "sms");
    check(br#"{"event":"sms","n":1e400,"m":-123456789012345678901234567890}"#, Content::Json, "sms");
    for opaque in [
        &b""[..],
        b" ",
        b"\n",
        b"\0",
        b"hello",
        b"event=sms&caller=1",
        b"<event>sms</event>",
        b"\xef\xbb\xbf{\"event\":\"sms\"}",
        b"\xff\xfe{\0}\0",
        b"{\"event\":\"sms\",\"x\":\"\xff\"}",
        b"{\"event\":\"sms\",\"\xc3\":1}",
        b"{\"event\":\"sms\",\"x\":\"\xed\xa0\x80\"}",
        b"{\"event\":\"sms\"",
        b"{\"event\":\"sms\"}}",
        b"{\"event\":\"sms\"} {\"event\":\"sms\"}",
        b"{\"event\":\"sms\",}",
        b"{\"event\":\"sms\" \"x\":1}",
        b"{'event':'sms'}",
        b"{event:\"sms\"}",
        b"{\"event\":\"sms\"} // x",
        b"{\"event\":\"sms\",\"x\":\"a\nb\"}",
        b"{\"event\":\"sms\",\"a\nb\":1}",
        b"{\"event\":\"sms\",\"x\":\"\\x\"}",
        b"{\"event\":\"sms\",\"x\":\"\\u12g4\"}",
        b"{\"event\":\"sms\",\"x\":01}",
        b"{\"event\":\"sms\",\"x\":+1}",
        b"{\"event\":\"sms\",\"x\":.5}",
        b"{\"event\":\"sms\",\"x\":1.}",
        b"{\"event\":\"sms\",\"x\":-}",
        b"{\"event\":\"sms\",\"x\":NaN}",
        b"{\"event\":\"sms\"}\0",
        b"{\"event\":\"sms\"}\x0c",
        b"\xc2\xa0{}",
        b"\x1f\x8b\x08\0",
    ] {
        check(opaque, Content::Opaque, "unknown");
    }
}

#[test]
fn nesting_past_128_is_opaque_and_no_depth_overflows() {
    let check = |body: &str, content| assert_eq!(event_of(body).content, content, "{} bytes", body.len());
    check(&nested(128), Content::Json);
    check(&nested(129), Content::Opaque);
    check(&format!("{}{}", "[".repeat(128), "]".repeat(128)), Content::Json);
    check(&format!("{}{}", "[".repeat(129), "]".repeat(129)), Content::Opaque);
    check(&format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)), Content::Opaque);
    check(&format!("{}{}", "[".repeat(4_000_000), "]".repeat(4_000_000)), Content::Opaque);
    check(&nested(1_000_000), Content::Opaque);
    check(&"[".repeat(8_000_000), Content::Opaque);
    check(&"{\"a\":".repeat(1_000_000), Content::Opaque);
    // Many, but not deep.
    check(&format!("[{}[]]", "[],".repeat(1000)), Content::Json);
    check(&format!("[{}[]]", nested(127).replace('1', "[]") + ","), Content::Opaque);
    // Brackets within texts are none.
    check(&format!(r#"{{"a\"{0}\\":"\"{0}\\"}}"#, "[".repeat(200)), Content::Json);
    check(&format!(r#"["\\",{}{}]"#, "[".repeat(128), "]".repeat(128)), Content::Opaque);
    // It is still the event that it says it is.
    let deep = format!(r#"{{"event":"sms","pbx_id":"a","x":{},"time":"2024-01-01T00:00:00Z"}}"#, nested(10_000));
    let event = event_of(&deep);
    assert_eq!((event.name.as_str(), event.content), ("sms", Content::Opaque));
    assert_eq!((event.subject.as_deref(), event.time.as_str()), (Some("a"), "2024-01-01T00:00:00Z"));
}

#[test]
fn a_number_past_1000_characters_is_opaque_wherever_it_stands() {
    let check = |body: &str, content| assert_eq!(event_of(body).content, content, "{} bytes: {body:.40}", body.len());
    let digits = "7".repeat(1001);
    for (most, over) in [
        (&digits[1..], &*digits),
        (&format!("-{}", &digits[2..]), &format!("-{}", &digits[1..])),
        (&format!("0.{}", &digits[3..]), &format!("0.{}", &digits[2..])),
        (&format!("1e-{}", &digits[4..]), &format!("1E+{}", &digits[3..])),
        (&format!("1e{}1", "0".repeat(997)), &format!("1e{}1", "0".repeat(998))),
    ] {
        // At each place within the distance at which it is looked for.
        for before in (0..1100).step_by(7).chain([2500]) {
            let around = |number: &str| format!("[{}{number},true]", " ".repeat(before));
            check(&around(most), Content::Json);
            check(&around(over), Content::Opaque);
        }
        check(over, Content::Opaque);
        check(most, Content::Json);
    }
    // Digits within texts and keys are none, nor are many numbers one.
    check(&format!(r#"{{"{digits}":"\"{digits}","n":[{}1]}}"#, "1,".repeat(5000)), Content::Json);
    check(&format!(r#"["{}\\",{digits}]"#, "e".repeat(3000)), Content::Opaque);
    // It is still the event that it says it is.
    let event = event_of(format!(r#"{{"event":"sms","pbx_id":"a","call_id":{digits}}}"#));
    assert_eq!((event.name.as_str(), event.subject.as_deref(), event.content), ("sms", Some("a"), Content::Opaque));
}

#[test]
fn ids_are_a_digest_that_anybody_can_compute() {
    // printf 'default\0{"event":"test","pbx_id":"test_000000"}' | sha256sum
    // 4f4e7e108d56a5814c18cf576f5d94af75284803cd21dbcae64a4bf7d05cdc26
    let body = br#"{"event":"test","pbx_id":"test_000000"}"#;
    assert_eq!(event_of(body).id.to_string(), "4f4e7e10-8d56-8581-8c18-cf576f5d94af");
    let other = normalize(Verified::for_test("lyon", 1, body), &[]).id;
    assert_ne!(other, event_of(body).id);
    assert_eq!(other, normalize(Verified::for_test("lyon", 2, body), &[]).id);
}

#[test]
fn an_undecoded_event_is_unknown_and_whole() {
    let verified = Verified::for_test("default", 1_736_937_000, br#"{"event":"sms","pbx_id":"a"}"#);
    let event = Derived::undecoded().event(verified);
    assert_eq!((event.name, event.subject, event.content), (EventName::Unknown, None, Content::Opaque));
    assert_eq!((event.time.as_str(), event.body), ("2025-01-15T10:30:00Z", r#"{"event":"sms","pbx_id":"a"}"#.into()));
}

#[test]
fn an_id_is_read_as_it_is_written_and_in_no_other_form() {
    let written = EventId([0x2c; 16]).to_string();
    assert_eq!(EventId::from_text(&written), Some(EventId([0x2c; 16])));
    for other in [&written[1..], "2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c2c", "0x2c2c2c2c2c2c2c2c-2c2c2c2c2c2c2c2c-"] {
        assert_eq!(EventId::from_text(other), None, "{other}");
    }
}
