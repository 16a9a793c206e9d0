//! The envelope's bytes: CloudEvents 1.0 as DESIGN §5 lays it out. Pure: the same event makes the same bytes, today and after a restart.

use std::sync::Arc;

use arrayvec::ArrayString;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Record;
use crate::authenticate::{SIGNATURE_HEADER, TIMESTAMP_HEADER};
use crate::clock::{put_digits, rfc3339_seconds};
use crate::config::Mode;
use crate::journal::Stored;
use crate::normalize::{Content, Event, EventName, Known};

/// Of a structured envelope, on Kafka and RabbitMQ.
pub const STRUCTURED: &str = "application/cloudevents+json; charset=UTF-8";
/// Names, punctuation and values of an envelope, apart from the data and what [`Encoder`] and subject bring, come to some 800 bytes.
const ENVELOPE_BYTES: usize = 1024;

/// Makes records out of stored events. One per output.
#[derive(Clone, Debug)]
pub struct Encoder {
    pub mode: Mode,
    /// CloudEvents `source`, with the placeholder `{account}`.
    pub source: String,
    /// CloudEvents `relay`: the configured instance.
    pub relay: String,
    /// CloudEvents `relayjournal`: the id made with the journal file.
    pub journal_id: String,
}

impl Encoder {
    /// The record for one event. `replayed` is true for what `journal replay` sends; what was imported says so itself.
    pub fn record(&self, lane: Arc<str>, stored: &Stored, replayed: bool) -> Record {
        let mut record = Record::default();
        self.fill(&mut record, lane, stored, replayed);
        record
    }

    /// The same in the memory of a record that is not needed any more, nothing of which stays.
    pub fn fill(&self, record: &mut Record, lane: Arc<str>, stored: &Stored, replayed: bool) {
        let event = &stored.event;
        record.sequence = stored.sequence;
        record.lane = lane;
        record.received_at = event.received_at;
        record.id = event.id.text();
        record.key.clear();
        record.key.push_str(partition_key(event, &record.id));
        record.event_type.clear();
        record.event_type.push_str("com.sipsim.");
        record.event_type.push_str(event.name.as_str());
        self.write_source(&mut record.source, event.account.as_str());
        record.headers.clear();
        record.payload.clear();

        // What the attributes' texts are in, and where they go.
        let Record { id, key, source, event_type, headers, payload, .. } = record;
        let texts = Texts { id, key, source, event_type };
        let replayed = replayed || event.replayed;
        match self.mode {
            Mode::Structured => {
                payload.reserve_exact(self.room(event));
                self.attributes(stored, &texts, replayed, |attribute| attribute.write(payload));
                payload[0] = b'{'; // In place of the first one's comma.
                write_data(payload, event);
                record.content_type = STRUCTURED;
            }
            Mode::Binary => {
                self.attributes(stored, &texts, replayed, |attribute| {
                    // `datacontenttype` is the message's own content type.
                    if attribute.header != CE_DATACONTENTTYPE {
                        headers.push(attribute.header, attribute.value);
                    }
                });
                payload.extend_from_slice(&event.body);
                record.content_type = data_content_type(event.content);
            }
        }
        record.headers.push(SIGNATURE_HEADER.as_str(), &event.signature);
        record.headers.push(TIMESTAMP_HEADER.as_str(), &event.signed_text);
    }

    /// In the order of DESIGN §5's table, which is the order in the envelope. Each is told at once, so that none needs a place of its own.
    fn attributes(&self, stored: &Stored, texts: &Texts<'_>, replayed: bool, mut tell: impl FnMut(Attribute<'_>)) {
        let event = &stored.event;
        macro_rules! tell {
            ($name:literal, $value:expr, quoted: $quoted:literal) => {
                tell(Attribute {
                    header: concat!("ce_", $name),
                    member: concat!(",\"", $name, "\":"),
                    value: $value,
                    quoted: $quoted,
                })
            };
            ($name:literal, $value:expr) => {
                tell!($name, $value, quoted: true)
            };
        }
        tell!("specversion", "1.0");
        tell!("id", texts.id);
        tell!("source", texts.source);
        tell!("type", texts.event_type);
        if let Some(subject) = &event.subject {
            tell!("subject", subject);
        }
        tell!("time", &event.time);
        tell!("datacontenttype", data_content_type(event.content));
        if let EventName::Known(known) = event.name {
            tell!("dataschema", &schema(known));
        }
        tell!("partitionkey", texts.key);
        if let Some(status) = event.call_status {
            tell!("callstatus", status.as_str());
        }
        tell!("signedtime", &rfc3339_seconds(event.signed_at));
        tell!("receivedtime", &event.received_at.rfc3339());
        tell!("relay", &self.relay);
        tell!("relayjournal", &self.journal_id);
        tell!("relaysequence", &twenty_digits(stored.sequence));
        if replayed {
            tell!("replayed", "true", quoted: false);
        }
    }

    /// Memory for a structured envelope. The subject stands in it twice, each character as two if it has to be escaped; control characters, which
    /// take six, it has none.
    fn room(&self, event: &Event) -> usize {
        let subject = event.subject.as_ref().map_or(0, |subject| subject.len() * 4);
        ENVELOPE_BYTES + self.source.len() + self.relay.len() + subject + data_bytes(event)
    }

    fn write_source(&self, source: &mut String, account: &str) {
        const PLACEHOLDER: &str = "{account}";
        source.clear();
        let mut rest = self.source.as_str();
        // By hand: `replace` sets up a search each time, which showed in the profile.
        while let Some(place) = rest.bytes().position(|byte| byte == b'{') {
            let (before, from) = rest.split_at(place);
            source.push_str(before);
            let (put, after) = match from.strip_prefix(PLACEHOLDER) {
                Some(after) => (account, after),
                None => from.split_at(1),
            };
            source.push_str(put);
            rest = after;
        }
        source.push_str(rest);
    }
}

/// Puts a structured payload on one line, in place. JSON has raw line breaks between its tokens only, so no text inside changes.
pub fn on_one_line(payload: &mut [u8]) {
    for byte in payload {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
}

/// Attributes of an event that are made before the others.
struct Texts<'a> {
    id: &'a str,
    key: &'a str,
    source: &'a str,
    event_type: &'a str,
}

struct Attribute<'a> {
    /// Its name as a header in Kafka's binary mode.
    header: &'static str,
    /// Its name as a member of the envelope, between a comma and a colon.
    member: &'static str,
    value: &'a str,
    /// False for the one that is a JSON boolean.
    quoted: bool,
}

const CE_DATACONTENTTYPE: &str = "ce_datacontenttype";

impl Attribute<'_> {
    fn write(&self, json: &mut Vec<u8>) {
        json.extend_from_slice(self.member.as_bytes());
        match self.quoted {
            true => write_text(json, self.value),
            false => json.extend_from_slice(self.value.as_bytes()),
        }
    }
}

/// What the data takes in a structured envelope, at the most.
fn data_bytes(event: &Event) -> usize {
    match event.content {
        Content::Json => event.body.len(),
        Content::Opaque => event.body.len().div_ceil(3) * 4,
    }
}

/// Ends a structured envelope.
fn write_data(json: &mut Vec<u8>, event: &Event) {
    match event.content {
        Content::Json => {
            json.extend_from_slice(b",\"data\":");
            json.extend_from_slice(trim(&event.body));
        }
        Content::Opaque => {
            json.extend_from_slice(b",\"data_base64\":\"");
            let (start, length) = (json.len(), data_bytes(event));
            json.resize(start + length, 0);
            if BASE64.encode_slice(&event.body, &mut json[start..]) != Ok(length) {
                unreachable!("padded base64 is four characters for each three bytes begun");
            }
            json.push(b'"');
        }
    }
    json.push(b'}');
}

/// The one place that escapes: `text` as a JSON string.
fn write_text(json: &mut Vec<u8>, text: &str) {
    if !has_escapes(text.as_bytes()) {
        json.push(b'"');
        json.extend_from_slice(text.as_bytes());
        json.push(b'"');
    } else if serde_json::to_writer(json, text).is_err() {
        unreachable!("a str into memory: neither can fail");
    }
}

/// Nearly no value has. Sixteen bytes at a time, without branches, are a handful of instructions; the last sixteen overlap those before.
fn has_escapes(text: &[u8]) -> bool {
    let any = |bytes: &[u8]| {
        bytes.iter().fold(false, |escapes, byte| escapes | (*byte < b' ') | (*byte == b'"') | (*byte == b'\\'))
    };
    match text.last_chunk::<16>() {
        Some(last) => text.as_chunks::<16>().0.iter().any(|chunk| any(chunk)) || any(last),
        None => any(text),
    }
}

/// Without what RFC 8259 calls white space around; ASCII's form feed, which Rust's `trim_ascii` also takes, is none.
fn trim(body: &[u8]) -> &[u8] {
    let white = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = body.iter().position(|byte| !white(byte)).unwrap_or(body.len());
    let end = body.iter().rposition(|byte| !white(byte)).map_or(start, |last| last + 1);
    &body[start..end]
}

/// CloudEvents `dataschema` of one of SIPSIM's events.
fn schema(known: Known) -> ArrayString<96> {
    let mut schema = ArrayString::new(); // The longest of the fifteen names makes 63 of it.
    for part in ["urn:sipsim-relay:schema:", known.as_str(), ":1"] {
        schema.push_str(part);
    }
    schema
}

/// With zeros before it, so that texts sort as numbers do.
fn twenty_digits(number: u64) -> ArrayString<20> {
    let mut digits = [b'0'; 20];
    put_digits(&mut digits, number);
    match ArrayString::from_byte_string(&digits) {
        Ok(digits) => digits,
        Err(_) => unreachable!("digits are ASCII"),
    }
}

/// The subject, so that what belongs together stays in order; else the id.
fn partition_key<'a>(event: &'a Event, id: &'a str) -> &'a str {
    event.subject.as_deref().unwrap_or(id)
}

const fn data_content_type(content: Content) -> &'static str {
    match content {
        Content::Json => "application/json",
        Content::Opaque => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests;
