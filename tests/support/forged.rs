//! Requests that are not proved to be from SIPSIM: every kind that DESIGN §4 answers 401.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{SECRET, now, sign};

/// What is wrong with a request, under which outcome it counts, and its headers.
pub struct Forged {
    pub what: &'static str,
    pub outcome: &'static str,
    pub headers: Vec<(&'static str, String)>,
}

const TIMESTAMP: &str = "X-Webhook-Timestamp";
const SIGNATURE: &str = "X-Webhook-Signature";

/// All for this body, on a relay whose tolerance is the default.
pub fn forged(body: &[u8]) -> Vec<Forged> {
    let now = now();
    let timestamp = now.to_string();
    let genuine = sign(SECRET, &timestamp, body);
    let mut all = Vec::new();
    let mut add = |what, outcome, headers: &[(&'static str, &str)]| {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        all.push(Forged { what, outcome, headers });
    };

    let missing = "missing_header";
    add("no headers", missing, &[]);
    add("no signature", missing, &[(TIMESTAMP, &timestamp)]);
    add("no timestamp", missing, &[(SIGNATURE, &genuine)]);
    add("a timestamp under another name", missing, &[("X-Timestamp", &timestamp), (SIGNATURE, &genuine)]);

    let malformed = "malformed_header";
    let once = [(TIMESTAMP, &*timestamp), (SIGNATURE, &*genuine)];
    add("the signature twice", malformed, &[once[0], once[1], once[1]]);
    add("the timestamp twice", malformed, &[once[0], once[0], once[1]]);
    for (what, signature) in [
        ("an empty signature", String::new()),
        ("63 digits", genuine[1..].into()),
        ("65 digits", format!("{genuine}0")),
        ("a letter that is no digit", format!("g{}", &genuine[1..])),
        ("a prefix", format!("sha256={genuine}")),
        ("base64", STANDARD.encode(hex::decode(&genuine).expect("hex"))),
        ("a blank within", format!("{} {}", &genuine[..32], &genuine[33..])),
        ("two in one", format!("{genuine},{genuine}")),
    ] {
        add(what, malformed, &[(TIMESTAMP, &timestamp), (SIGNATURE, &signature)]);
    }
    // Each is correctly signed, so that its form alone speaks against it.
    for (what, timestamp) in [
        ("an empty timestamp", String::new()),
        ("13 digits, milliseconds", format!("{timestamp}000")),
        ("a sign", format!("+{timestamp}")),
        ("a negative one", format!("-{timestamp}")),
        ("a fraction", format!("{timestamp}.0")),
        ("a date", "2025-01-15T10:30:00Z".into()),
        ("hexadecimal", format!("{now:#x}")),
        ("digits that are not ASCII", "١٧٣٦٩٣٧٠٠٠".into()),
        ("a blank within", format!("{} {}", &timestamp[..4], &timestamp[4..])),
    ] {
        add(what, malformed, &[(TIMESTAMP, &timestamp), (SIGNATURE, &sign(SECRET, &timestamp, body))]);
    }

    let bad = "bad_signature";
    let other_time = (now + 1).to_string();
    for (what, signature) in [
        ("another secret", sign("another secret, which nobody configured", &timestamp, body)),
        ("an empty secret", sign("", &timestamp, body)),
        ("the secret's bytes instead of its characters", {
            sign(&String::from_utf8_lossy(&hex::decode(SECRET).expect("hex")), &timestamp, body)
        }),
        ("the secret with its line break", sign(&format!("{SECRET}\n"), &timestamp, body)),
        ("another body's", sign(SECRET, &timestamp, &[body, b" "].concat())),
        ("another time's", sign(SECRET, &other_time, body)),
        ("without the time", sign(SECRET, "", body)),
        ("all zeros", "0".repeat(64)),
    ] {
        add(what, bad, &[(TIMESTAMP, &timestamp), (SIGNATURE, &signature)]);
    }

    let outside = "outside_tolerance";
    for (what, timestamp) in [
        ("too old", (now - 310).to_string()),
        ("too far ahead", (now + 320).to_string()),
        ("of 1970", "0".into()),
        ("of the year 33658", "999999999999".into()),
    ] {
        add(what, outside, &[(TIMESTAMP, &timestamp), (SIGNATURE, &sign(SECRET, &timestamp, body))]);
    }
    all
}
