//! The envelope's bytes: CloudEvents 1.0 as DESIGN §5 lays it out. Pure: the same event makes the same bytes, today and after a restart.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Record;
use crate::authenticate::{SIGNATURE_HEADER, TIMESTAMP_HEADER};
use crate::clock::rfc3339_seconds;
use crate::config::Mode;
use crate::journal::Stored;
use crate::normalize::{Content, Event, EventName};

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
        let event = &stored.event;
        let (id, event_type) = (event.id.to_string(), event_type(&event.name));
        let replayed = replayed || event.replayed;
        let mut headers = Vec::with_capacity(if self.mode == Mode::Binary { 2 + ATTRIBUTES_MAX } else { 2 });
        let (content_type, payload) = match self.mode {
            Mode::Structured => {
                let mut json = Vec::with_capacity(self.room(event));
                self.attributes(stored, &id, &event_type, replayed, |attribute| attribute.write(&mut json));
                write_data(&mut json, event);
                (STRUCTURED, json)
            }
            Mode::Binary => {
                self.attributes(stored, &id, &event_type, replayed, |attribute| {
                    // `datacontenttype` is the message's own content type.
                    if let Some(header) = attribute.header {
                        headers.push((header, attribute.value.to_owned()));
                    }
                });
                (data_content_type(event.content), event.body.to_vec())
            }
        };
        headers.push((SIGNATURE_HEADER.as_str(), event.signature.clone()));
        headers.push((TIMESTAMP_HEADER.as_str(), event.signed_text.clone()));
        let key = partition_key(event, &id).to_owned();
        Record {
            sequence: stored.sequence,
            lane,
            key,
            content_type,
            headers,
            id,
            event_type,
            received_at: event.received_at,
            payload,
        }
    }

    /// In the order of DESIGN §5's table, which is the order in the envelope. Each is told at once, so that none needs a place of its own.
    fn attributes(
        &self,
        stored: &Stored,
        id: &str,
        event_type: &str,
        replayed: bool,
        mut tell: impl FnMut(Attribute<'_>),
    ) {
        let event = &stored.event;
        let mut text = |name, header, value: &str| tell(Attribute { name, header: Some(header), value, quoted: true });
        text("specversion", "ce_specversion", "1.0");
        text("id", "ce_id", id);
        text("source", "ce_source", &self.source(event.account.as_str()));
        text("type", "ce_type", event_type);
        if let Some(subject) = &event.subject {
            text("subject", "ce_subject", subject);
        }
        text("time", "ce_time", &event.time);
        let content_type = data_content_type(event.content);
        tell(Attribute { name: "datacontenttype", header: None, value: content_type, quoted: true });
        let mut text = |name, header, value: &str| tell(Attribute { name, header: Some(header), value, quoted: true });
        if let EventName::Known(known) = event.name {
            text("dataschema", "ce_dataschema", &["urn:sipsim-relay:schema:", known.as_str(), ":1"].concat());
        }
        text("partitionkey", "ce_partitionkey", partition_key(event, id));
        if let Some(status) = event.call_status {
            text("callstatus", "ce_callstatus", status.as_str());
        }
        text("signedtime", "ce_signedtime", &rfc3339_seconds(event.signed_at));
        text("receivedtime", "ce_receivedtime", &event.received_at.rfc3339());
        text("relay", "ce_relay", &self.relay);
        text("relayjournal", "ce_relayjournal", &self.journal_id);
        text("relaysequence", "ce_relaysequence", &format!("{:020}", stored.sequence));
        if replayed {
            tell(Attribute { name: "replayed", header: Some("ce_replayed"), value: "true", quoted: false });
        }
    }

    /// Memory for a structured envelope. The subject stands in it twice, each character as two if it has to be escaped; control characters, which
    /// take six, it has none.
    fn room(&self, event: &Event) -> usize {
        let subject = event.subject.as_ref().map_or(0, |subject| subject.len() * 4);
        ENVELOPE_BYTES + self.source.len() + self.relay.len() + subject + data_bytes(event)
    }

    fn source(&self, account: &str) -> String {
        const PLACEHOLDER: &str = "{account}";
        let mut source = String::with_capacity(self.source.len() + account.len());
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
        source + rest
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

/// In DESIGN §5's table, `data` apart.
const ATTRIBUTES_MAX: usize = 16;

struct Attribute<'a> {
    name: &'static str,
    /// Its name as a header in Kafka's binary mode, if it is one there.
    header: Option<&'static str>,
    value: &'a str,
    /// False for the one that is a JSON boolean.
    quoted: bool,
}

impl Attribute<'_> {
    fn write(&self, json: &mut Vec<u8>) {
        json.extend_from_slice(if json.is_empty() { b"{\"" } else { b",\"" });
        json.extend_from_slice(self.name.as_bytes()); // Lower-case letters, all of them.
        json.extend_from_slice(b"\":");
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
    // Nearly every value has nothing to escape, which is seen in one pass without branches.
    if !text.bytes().fold(false, |escapes, byte| escapes | (byte < b' ') | (byte == b'"') | (byte == b'\\')) {
        json.push(b'"');
        json.extend_from_slice(text.as_bytes());
        json.push(b'"');
    } else if serde_json::to_writer(json, text).is_err() {
        unreachable!("a str into memory: neither can fail");
    }
}

/// Without what RFC 8259 calls white space around; ASCII's form feed, which Rust's `trim_ascii` also takes, is none.
fn trim(body: &[u8]) -> &[u8] {
    let white = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = body.iter().position(|byte| !white(byte)).unwrap_or(body.len());
    let end = body.iter().rposition(|byte| !white(byte)).map_or(start, |last| last + 1);
    &body[start..end]
}

fn event_type(name: &EventName) -> String {
    ["com.sipsim.", name.as_str()].concat()
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
