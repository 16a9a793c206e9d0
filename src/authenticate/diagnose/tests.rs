use super::*;
use crate::authenticate::sign;

const NOW: Timestamp = Timestamp::from_seconds(1_736_937_000);
const TOLERANCE: Duration = Duration::from_secs(300);

/// What is found with the one secret `secret`, called `secret a`.
fn findings(secret: &str, timestamp: &str, signature: &str, body: &[u8]) -> Vec<Finding> {
    diagnosis(&[(secret, true)], timestamp, signature, body).findings
}

fn diagnosis(secrets: &[(&str, bool)], timestamp: &str, signature: &str, body: &[u8]) -> Diagnosis {
    let secrets: Vec<_> =
        secrets.iter().map(|(text, counts)| (Secret::new(text.as_bytes().to_vec()), *counts)).collect();
    let candidates: Vec<_> = secrets
        .iter()
        .zip(["secret a", "secret b", "secret c"])
        .map(|((secret, counts), name)| Candidate { name: name.into(), secret, tolerance: TOLERANCE, counts: *counts })
        .collect();
    let evidence = Evidence {
        timestamps: vec![timestamp.as_bytes()],
        signatures: vec![signature.as_bytes()],
        body,
        received_at: NOW,
    };
    diagnose(&evidence, &candidates, usize::MAX)
}

fn signed(secret: &str, timestamp: &str, body: &[u8]) -> String {
    sign(&Secret::new(secret.as_bytes().to_vec()), timestamp, body)
}

const T: &str = "1736937000";

#[test]
fn a_right_signature_has_no_findings_and_names_its_secret() {
    let diagnosis = diagnosis(&[("x", true), ("s", true)], T, &signed("s", T, b"{}"), b"{}");
    assert_eq!(diagnosis.signed_with.as_deref(), Some("secret b"));
    assert!(diagnosis.fresh && diagnosis.findings.is_empty());
    assert_eq!(
        diagnosis.to_string(),
        "The signature is right: secret b.\nIt says it was signed at 2025-01-15T10:30:00Z, 0 s ago.\n"
    );
}

#[test]
fn a_header_that_is_not_there_empty_or_doubled_is_named() {
    let check = |timestamps: &[&'static str], signatures: &[&'static str], expected: &[Finding]| {
        let bytes = |values: &[&'static str]| values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
        let (timestamps, signatures) = (bytes(timestamps), bytes(signatures));
        let evidence = Evidence { timestamps, signatures, body: b"{}", received_at: NOW };
        assert_eq!(diagnose(&evidence, &[], usize::MAX).findings, expected);
    };
    use Header::{Signature, Timestamp};
    check(&[], &[], &[Finding::Missing(Timestamp), Finding::Missing(Signature)]);
    check(&[" "], &[""], &[Finding::Empty(Timestamp), Finding::Empty(Signature)]);
    check(&["1736937000", "1736937000"], &["", ""], &[Finding::Doubled(Timestamp), Finding::Doubled(Signature)]);
}

#[test]
fn a_malformed_signature_is_told_apart() {
    let right = signed("s", T, b"{}");
    let check = |signature: &str, expected: &[Finding]| {
        let diagnosis = diagnosis(&[("s", true)], T, signature, b"{}");
        assert_eq!((diagnosis.findings.as_slice(), diagnosis.signed_with), (expected, None), "{signature}");
    };
    check(&right[..63], &[Finding::SignatureLength(63)]);
    check(&right[..40], &[Finding::SignatureLength(40)]);
    check(&format!("{}z", &right[..63]), &[Finding::SignatureNotHex]);
    for decorated in [format!("sha256={right}"), format!("\"{right}\""), format!(" {right}"), format!("v1:{right}")] {
        check(&decorated, &[Finding::SignatureDecorated]);
    }
    let bytes = hex::decode(&right).unwrap();
    for alphabet in [&alphabet::STANDARD, &alphabet::URL_SAFE] {
        let base64 = GeneralPurpose::new(alphabet, GeneralPurposeConfig::new()).encode(&bytes);
        check(&base64, &[Finding::SignatureBase64]);
        check(base64.trim_end_matches('='), &[Finding::SignatureBase64]);
    }
}

#[test]
fn a_wrong_clock_is_measured() {
    let check = |timestamp: &str, expected: &[Finding], counts: bool| {
        let diagnosis = diagnosis(&[("s", true)], timestamp, &signed("s", timestamp, b"{}"), b"{}");
        assert_eq!((diagnosis.findings.as_slice(), diagnosis.signed_with.is_some()), (expected, counts), "{timestamp}");
    };
    check("1736936700", &[], true);
    check("1736936699", &[Finding::OutsideTolerance(-301, TOLERANCE)], true);
    check("1736940600", &[Finding::OutsideTolerance(3600, TOLERANCE)], true);
    check("1736937000123", &[Finding::TimestampMilliseconds], false);
    check("1736930000123", &[Finding::TimestampMilliseconds, Finding::OutsideTolerance(-7000, TOLERANCE)], false);
    check("2025-01-15T10:30:00Z", &[Finding::TimestampNotSeconds], false);
    check("1736937000.5", &[Finding::TimestampNotSeconds], false);
    let seconds_signed = signed("s", T, b"{}");
    assert_eq!(
        findings("s", "1736937000123", &seconds_signed, b"{}"),
        [Finding::TimestampMilliseconds, Finding::SignedOtherUnit]
    );
    let milliseconds_signed = signed("s", "1736937000000", b"{}");
    assert_eq!(findings("s", T, &milliseconds_signed, b"{}"), [Finding::SignedOtherUnit]);
}

#[test]
fn a_secret_that_was_spoilt_on_its_way_is_found() {
    // Theirs, ours.
    for (theirs, ours) in [
        ("secret", "\"secret\""),
        ("secret", "'secret'"),
        ("secret", "\u{feff}secret"),
        ("secret", "SIPSIM_SECRET=secret"),
        ("secret", "SIPSIM_SECRET=\"secret\""),
        ("secret", "secret\\n"),
        ("secret", "secret # of SIPSIM"),
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        ("\"secret\"", "secret"),
        ("secret", "736563726574"),
        ("secret", "c2VjcmV0"),
        ("secret", "SECRET"),
        ("secret", "secret\u{a0}"),
        ("secret", "\u{200b}se\u{2060}cret\u{3000}"),
        ("secret", "\u{feff}\u{a0}secret"),
        ("secret", "s\0e\0c\0r\0e\0t\0\r\0\n\0"),
        ("secret", "\0s\0e\0c\0r\0e\0t\0"),
    ] {
        let found = findings(ours, T, &signed(theirs, T, b"{}"), b"{}");
        assert!(matches!(&found[..], [Finding::SecretSpoilt(name, _)] if name == "secret a"), "{ours}: {found:?}");
    }
    let ours = Secret::new(b"\xff\xfes\0e\0c\0r\0e\0t\0".to_vec());
    let signature = signed("secret", T, b"{}");
    let candidates = [Candidate { name: "secret a".into(), secret: &ours, tolerance: TOLERANCE, counts: true }];
    let evidence = Evidence {
        timestamps: vec![T.as_bytes()],
        signatures: vec![signature.as_bytes()],
        body: b"{}",
        received_at: NOW,
    };
    let found = diagnose(&evidence, &candidates, usize::MAX).findings;
    assert!(matches!(&found[..], [Finding::SecretSpoilt(..)]), "{found:?}");
}

#[test]
fn a_signature_of_something_else_is_found() {
    let mac = |content: &[u8]| {
        use hmac::Mac;
        let mut mac = crate::authenticate::keys::signer(&Secret::new(b"s".to_vec()));
        mac.update(content);
        hex::encode(mac.finalize().into_bytes())
    };
    for content in ["{}", "1736937000{}", "{}.1736937000", "1736937000:{}", "1736937000."] {
        let found = findings("s", T, &mac(content.as_bytes()), b"{}");
        assert!(matches!(&found[..], [Finding::SignedOtherwise(_)]), "{content}: {found:?}");
    }
}

#[test]
fn a_body_that_was_written_anew_is_found() {
    let check = |signed_body: &str, body: &str, how: &str| {
        let found = findings("s", T, &signed("s", T, signed_body.as_bytes()), body.as_bytes());
        assert_eq!(found, [Finding::BodyRewritten(how.to_owned())], "{body:?}");
    };
    let compact = "written compactly, without spaces between its parts";
    let python = "written on one line with a space behind each comma and colon, as Python does";
    check(r#"{"a":1,"b":[1,{}],"c":[]}"#, "{ \"a\": 1,\r\n\"b\" : [ 1, { } ], \"c\": [\n] }", compact);
    check("{\"a\":1}\n", "{\"a\": 1}", &format!("{compact}, with a line end behind it"));
    check(r#"{"a": 1, "b": [1, {"c": 2}]}"#, r#"{"a":1,"b":[1,{"c":2}]}"#, python);
    let pretty = "{\n  \"a\": 1,\n  \"b\": [\n    1,\n    {}\n  ],\n  \"c\": []\n}";
    check(pretty, r#"{"a":1,"b":[1,{}],"c":[]}"#, "written indented by two spaces");
    check(&pretty.replace("  ", "    "), pretty, "written indented by four spaces");
    check(r#"{"b":1,"a":2}"#, "{\"b\": 1, \"a\": 2}", compact);
    check(r#"{"a":{"c":1,"d":2},"b":1}"#, r#"{"b":1,"a":{"d":2,"c":1}}"#, &format!("{compact}, its keys sorted"));
    check(r#"{"a":2,"b":1}"#, r#"{"b":1,"a":1,"a":2}"#, &format!("{compact}, its keys sorted"));
    check("\"é😀\"", r#""\u00e9\ud83d\ude00""#, &format!("{compact}, characters as they are instead of \\u escapes"));
    check(r#""\u00e9\ud83d\ude00""#, "\"é😀\"", &format!("{compact}, characters beyond ASCII as \\u escapes"));
    check(r#""\/""#, "\"/\"", &format!("{compact}, slashes as \\/"));
    check(
        r#""\/\u00e9""#,
        "\"/é\"",
        &format!("{compact}, characters beyond ASCII as \\u escapes and slashes as \\/, as PHP does"),
    );
    check(r#""\u003cé\u0026""#, "\"<é&\"", &format!("{compact}, <, > and & as \\u escapes"));
    check("[6,1.5]", "[6.0,1.5]", &format!("{compact}, 6.0 as 6, as JavaScript does"));
    // What is not JSON has line ends too.
    check("a\nb", "a\nb\n", "without the line end behind it");
    check("a\nb", "a\nb\r\n", "without the line end behind it");
    check("a\nb\n", "a\nb", "with a line end behind it");
    check("a\nb\r\n", "a\nb", "with a carriage return and line end behind it");
    check("a\nb", "a\r\nb", "with LF as line ends");
    check("a\r\nb", "a\nb", "with CR LF as line ends");
    check("a", "\u{feff}a", "without the byte order mark before it");
    check("a", " a\n\n", "without the white space around it");
}

#[test]
fn a_transcript_is_recognised_when_line_ends_or_javascript_changed_it() {
    let speech = include_str!("../../../tests/payloads/speech.json");
    let rewritten = speech.replace("\n", "").replace("  ", "").replace("\": ", "\":").replace("6.0", "6");
    let found = findings("s", T, &signed("s", T, speech.as_bytes()), speech.replace('\n', "\r\n").as_bytes());
    assert!(matches!(&found[..], [Finding::BodyRewritten(how)] if how == "with LF as line ends"), "{found:?}");
    let found = findings("s", T, &signed("s", T, rewritten.as_bytes()), speech.as_bytes());
    assert!(matches!(&found[..], [Finding::BodyRewritten(how)] if how.ends_with("as JavaScript does")), "{found:?}");
}

#[test]
fn another_secret_is_named_unless_one_that_counts_is_the_same() {
    let both = diagnosis(&[("s", false), ("s", true)], T, &signed("s", T, b"{}"), b"{}");
    assert_eq!((both.findings, both.signed_with.as_deref()), (vec![], Some("secret b")));
    let found = diagnosis(&[("x", true), ("s", false)], T, &signed("s", T, b"{}"), b"{}");
    assert_eq!((found.findings, found.signed_with), (vec![Finding::OtherSecret("secret b".into())], None));
}

#[test]
fn what_nothing_explains_says_what_was_tried() {
    let none = Finding::NoSecretFits(vec!["secret a".into()]);
    let zeros = "0".repeat(64);
    assert_eq!(findings("s", T, &zeros, b"{}"), std::slice::from_ref(&none));
    assert_eq!(findings("s", T, &zeros, b""), [Finding::BodyEmpty, none.clone()]);
    assert_eq!(findings("s", T, &signed("s", T, b""), b""), []);
    assert_eq!(findings("s", T, &zeros, b"\x1f\x8b\x08"), [Finding::BodyCompressed, none.clone()]);
    assert_eq!(findings("s", "1736930000", &zeros, b"{}"), [none.clone(), Finding::OutsideTolerance(-7000, TOLERANCE)]);
    // Nothing to write anew, and no depth overflows.
    for body in [
        "[".repeat(100_000),
        format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
        "{\"\\ud800\":\"\\ud800\"}".into(),
    ] {
        assert_eq!(findings("s", T, &zeros, body.as_bytes()), std::slice::from_ref(&none));
    }
}

#[test]
fn no_word_of_it_gives_anything_away() {
    let body = "{\"message\":\"Dupont\"}";
    let wrong = diagnosis(&[("hunter2", true)], T, &signed("x", T, body.as_bytes()), body.as_bytes());
    let spoilt = diagnosis(&[("\"hunter2\"", true)], T, &signed("hunter2", T, body.as_bytes()), body.as_bytes());
    for diagnosis in [wrong, spoilt] {
        for text in [diagnosis.to_string(), format!("{diagnosis:?}")] {
            assert!(!text.contains("hunter2") && !text.contains("Dupont"), "{text}");
            assert!(!text.contains(&signed("x", T, body.as_bytes())), "{text}");
        }
    }
}

#[test]
fn spans_are_told_in_their_two_largest_units() {
    for (seconds, text) in [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (301, "5 min 1 s"),
        (3600, "1 h"),
        (86399, "23 h 59 min"),
        (90000, "1 d 1 h"),
    ] {
        assert_eq!(Span(seconds).to_string(), text);
    }
}

/// A body of this many bytes that costs the most to write anew: as deep as is written, with short values, of which each gets a line of its own.
fn deepest(bytes: usize) -> Vec<u8> {
    let (open, close) = ("[".repeat(127), "]".repeat(127));
    let values = "[],".repeat((bytes - open.len() - close.len()) / 3 - 1);
    format!("{open}{values}[]{close}").into_bytes()
}

#[test]
fn the_dearest_body_costs_a_bounded_search_whatever_the_number_of_secrets() {
    let body = deepest(64 << 10);
    let zeros = "0".repeat(64);
    for count in [1, 10] {
        let secrets: Vec<_> = (0..count).map(|n| Secret::new(format!("a secret of some length {n}").into())).collect();
        let candidate = |secret| Candidate { name: "secret".into(), secret, tolerance: TOLERANCE, counts: true };
        let candidates: Vec<_> = secrets.iter().map(candidate).collect();
        let evidence = Evidence {
            timestamps: vec![T.as_bytes()],
            signatures: vec![zeros.as_bytes()],
            body: &body,
            received_at: NOW,
        };
        let begun = std::time::Instant::now();
        let whole = diagnose(&evidence, &candidates, usize::MAX);
        println!("{count} secrets, searched to the end: {:?}", begun.elapsed());
        assert!(matches!(whole.findings[..], [Finding::NoSecretFits(_)]), "{whole:?}");
        let begun = std::time::Instant::now();
        let diagnosis = diagnose(&evidence, &candidates, crate::authenticate::explain::WORK_MAX);
        println!("{count} secrets, searched as the relay does: {:?}", begun.elapsed());
        let is_whole = matches!(diagnosis.findings[..], [Finding::NoSecretFits(_)]);
        let is_cut = diagnosis.findings == [Finding::SearchCutShort];
        assert!(if count == 1 { is_whole } else { is_cut }, "{count}: {diagnosis:?}");
    }
}

#[test]
fn what_would_grow_past_a_small_multiple_is_not_written() {
    let body = deepest(8 << 10);
    let mut longest = 0;
    let found = rewrite::rewritten(&body, |bytes, _| {
        longest = longest.max(bytes.len());
        Ok::<_, ()>(None::<()>)
    });
    assert!(found == Ok(None) && longest <= 4 * body.len() + 1, "{longest} of {}", body.len());
}

#[test]
fn changes_are_tried_only_with_secrets_that_count() {
    let compact = signed("s", T, b"[1,2]");
    let found = diagnosis(&[("x", true), ("s", false)], T, &compact, b"[1, 2]").findings;
    assert!(matches!(found[..], [Finding::NoSecretFits(_)]), "{found:?}");
}

#[test]
fn the_text_does_not_grow_with_the_number_of_secrets() {
    let tried = |count| Finding::NoSecretFits(vec!["secret a".into(); count]).to_string();
    assert!(tried(4).starts_with("No secret fits (secret a, secret a, secret a, secret a): "));
    assert!(tried(70).starts_with("No secret fits (secret a, secret a, secret a, secret a and 66 more): "));
    assert!(tried(70).len() < tried(4).len() + 20);
}
