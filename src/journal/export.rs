//! An event as a line of JSON, content included, and back: what `journal export` writes and `journal import` takes.

use arrayvec::ArrayString;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::Stored;
use crate::clock::Timestamp;
use crate::config::Name;
use crate::normalize::{CallStatus, Content, Event, EventId, EventName};

/// One event as it is written out. Where it came from stands first and is not read back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    journal: String,
    #[serde(default)]
    sequence: u64,
    id: String,
    account: String,
    event: String,
    call: Option<String>,
    /// RFC 3339, as in the envelope.
    time: String,
    call_status: Option<String>,
    /// Microseconds since 1970, and the same for people.
    received_at_micros: i64,
    #[serde(default)]
    received: String,
    timestamp: String,
    signature: String,
    #[serde(default)]
    replayed: bool,
    /// JSON that a consumer's parser can take.
    json: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    body: Option<String>,
    /// In place of `body` where that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    body_base64: Option<String>,
}

/// The event as one line, without a line's end.
pub fn write(stored: &Stored, journal: &str) -> String {
    let event = &stored.event;
    let (body, body_base64) = match str::from_utf8(&event.body) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(&event.body))),
    };
    let line = Line {
        journal: journal.to_owned(),
        sequence: stored.sequence,
        id: event.id.to_string(),
        account: event.account.as_str().to_owned(),
        event: event.name.as_str().to_owned(),
        call: event.subject.clone(),
        time: event.time.to_string(),
        call_status: event.call_status.map(|status| status.as_str().to_owned()),
        received_at_micros: event.received_at.as_micros(),
        received: event.received_at.rfc3339().to_string(),
        timestamp: event.signed_text.to_string(),
        signature: event.signature.to_string(),
        replayed: event.replayed,
        json: event.content == Content::Json,
        body,
        body_base64,
    };
    serde_json::to_string(&line).unwrap_or_default() // Texts and numbers into memory: it cannot fail.
}

/// The event of a line, marked as replayed.
///
/// # Errors
/// What is wrong with the line, without any of its content.
pub fn read(text: &str) -> Result<Event, String> {
    // serde's own message may quote a value.
    let line: Line = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => format!(
            "not a line of `journal export` (a key is missing, unknown or of another type, at column {})",
            error.column()
        ),
        _ => format!("not JSON, at column {}", error.column()),
    })?;
    let body = match (line.body, line.body_base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(text)) => BASE64.decode(text).map_err(|_| "body_base64 is not base64".to_owned())?,
        _ => return Err("it must have one of body and body_base64".to_owned()),
    };
    let account = Name::new(&line.account).ok_or("account is not a name")?;
    let id = EventId::of(&account, &body);
    if id.to_string() != line.id {
        return Err(format!(
            "the body is not the one that was exported: its id would be {id}, the line says {}",
            line.id
        ));
    }
    let status = |text: String| {
        CallStatus::ALL.into_iter().find(|status| status.as_str() == text).ok_or("call_status is not known")
    };
    Ok(Event {
        id,
        name: EventName::from_stored(&line.event),
        subject: line.call,
        time: bounded(&line.time, "time")?,
        call_status: line.call_status.map(status).transpose()?,
        content: if line.json { Content::Json } else { Content::Opaque },
        signed_at: line.timestamp.parse().map_err(|_| "timestamp is not a number of seconds")?,
        signed_text: bounded(&line.timestamp, "timestamp")?,
        signature: bounded(&line.signature, "signature")?,
        received_at: Timestamp::from_micros(line.received_at_micros),
        replayed: true,
        account,
        body: body.into(),
    })
}

/// What came as a webhook always fits.
fn bounded<const MAX: usize>(text: &str, key: &str) -> Result<ArrayString<MAX>, String> {
    ArrayString::from(text).map_err(|_| format!("{key} is longer than {MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(body: &[u8]) -> Stored {
        let account = Name::new("default").unwrap();
        let event = Event {
            id: EventId::of(&account, body),
            account,
            name: EventName::from_stored("incoming_call_end"),
            subject: Some("call_1".into()),
            time: ArrayString::from("2025-01-15T10:30:00Z").unwrap(),
            call_status: Some(CallStatus::NoAnswer),
            content: Content::Opaque,
            signed_text: ArrayString::from("001736937000").unwrap(),
            signed_at: 1_736_937_000,
            signature: ArrayString::from("Ab").unwrap(),
            received_at: Timestamp::from_micros(1_736_937_000_000_042),
            replayed: false,
            body: body.to_vec().into(),
        };
        Stored { sequence: 9, event }
    }

    #[test]
    fn a_line_becomes_the_same_event_to_the_byte_and_is_marked() {
        for body in [&b"{ \"a\" :\n1}"[..], b"\xff\x00", b""] {
            let stored = stored(body);
            let line = write(&stored, "ab12");
            assert!(!line.contains('\n'), "{line}");
            let event = read(&line).unwrap();
            assert!(event.replayed);
            let again = write(&Stored { sequence: 9, event: Event { replayed: false, ..event } }, "ab12");
            assert_eq!(again, line);
        }
    }

    #[test]
    fn what_is_no_line_of_an_export_is_refused_without_quoting_it() {
        let line = write(&stored(b"secret words"), "ab12");
        for (line, says) in [
            (line.replace("secret words", "other words"), "not the one that was exported"),
            (line.replace("\"body\"", "\"boddy\""), "not a line of `journal export`"),
            (line.replace("default", "No Name"), "account is not a name"),
            (line[..40].to_owned(), "not JSON, at column 40"),
            (line.replace("no_answer", "gone"), "call_status is not known"),
            (line.replace("001736937000", "0001736937000"), "timestamp is longer than 12 bytes"),
        ] {
            let error = read(&line).unwrap_err();
            assert!(error.contains(says) && !error.contains("words"), "{error}");
        }
    }
}
