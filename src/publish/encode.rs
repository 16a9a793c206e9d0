//! The envelope's bytes: CloudEvents 1.0 as DESIGN §5 lays it out. Pure: the same event makes the same bytes, today and after a restart.

use std::borrow::Cow;
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
        let attributes = self.attributes(stored, &id, &event_type, replayed || event.replayed);
        let mut headers = Vec::with_capacity(2 + attributes.0.len());
        let (content_type, payload) = match self.mode {
            Mode::Structured => (STRUCTURED, structured(&attributes, event)),
            Mode::Binary => {
                headers.extend(attributes.headers());
                (data_content_type(event.content), event.body.to_vec())
            }
        };
        headers.push((SIGNATURE_HEADER, event.signature.clone()));
        headers.push((TIMESTAMP_HEADER, event.signed_text.clone()));
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

    /// In the order of DESIGN §5's table, which is the order in the envelope.
    fn attributes<'a>(
        &'a self,
        stored: &'a Stored,
        id: &'a str,
        event_type: &'a str,
        replayed: bool,
    ) -> Attributes<'a> {
        let event = &stored.event;
        let mut all = Attributes(Vec::with_capacity(17));
        all.text("specversion", "ce_specversion", "1.0");
        all.text("id", "ce_id", id);
        all.text("source", "ce_source", self.source.replace("{account}", event.account.as_str()));
        all.text("type", "ce_type", event_type);
        if let Some(subject) = &event.subject {
            all.text("subject", "ce_subject", subject);
        }
        all.text("time", "ce_time", &event.time);
        all.text("datacontenttype", CONTENT_TYPE, data_content_type(event.content));
        if let EventName::Known(known) = event.name {
            all.text("dataschema", "ce_dataschema", format!("urn:sipsim-relay:schema:{}:1", known.as_str()));
        }
        all.text("partitionkey", "ce_partitionkey", partition_key(event, id));
        if let Some(status) = event.call_status {
            all.text("callstatus", "ce_callstatus", status.as_str());
        }
        all.text("signedtime", "ce_signedtime", rfc3339_seconds(event.signed_at));
        all.text("receivedtime", "ce_receivedtime", event.received_at.rfc3339());
        all.text("relay", "ce_relay", &self.relay);
        all.text("relayjournal", "ce_relayjournal", &self.journal_id);
        all.text("relaysequence", "ce_relaysequence", format!("{:020}", stored.sequence));
        if replayed {
            all.0.push(Attribute { name: "replayed", header: "ce_replayed", value: "true".into(), quoted: false });
        }
        all
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

/// Where binary mode puts `datacontenttype`: no `ce_` header, but the message's own content type.
const CONTENT_TYPE: &str = "content-type";

struct Attributes<'a>(Vec<Attribute<'a>>);

struct Attribute<'a> {
    name: &'static str,
    /// Its name as a header in Kafka's binary mode.
    header: &'static str,
    value: Cow<'a, str>,
    /// False for the one that is a JSON boolean.
    quoted: bool,
}

impl<'a> Attributes<'a> {
    fn text(&mut self, name: &'static str, header: &'static str, value: impl Into<Cow<'a, str>>) {
        self.0.push(Attribute { name, header, value: value.into(), quoted: true });
    }

    fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let own = self.0.iter().filter(|attribute| attribute.header != CONTENT_TYPE);
        own.map(|attribute| (attribute.header, attribute.value.clone().into_owned()))
    }
}

fn structured(attributes: &Attributes, event: &Event) -> Vec<u8> {
    let given: usize = attributes.0.iter().map(|attribute| attribute.value.len()).sum();
    let data = match event.content {
        Content::Json => event.body.len(),
        Content::Opaque => event.body.len().div_ceil(3) * 4,
    };
    let mut json = Vec::with_capacity(ENVELOPE_BYTES + given + data);
    for attribute in &attributes.0 {
        json.extend_from_slice(if json.is_empty() { b"{\"" } else { b",\"" });
        json.extend_from_slice(attribute.name.as_bytes()); // Lower-case letters, all of them.
        json.extend_from_slice(b"\":");
        match attribute.quoted {
            true => write_text(&mut json, &attribute.value),
            false => json.extend_from_slice(attribute.value.as_bytes()),
        }
    }
    match event.content {
        Content::Json => {
            json.extend_from_slice(b",\"data\":");
            json.extend_from_slice(trim(&event.body));
        }
        Content::Opaque => {
            json.extend_from_slice(b",\"data_base64\":\"");
            let start = json.len();
            json.resize(start + data, 0);
            if BASE64.encode_slice(&event.body, &mut json[start..]) != Ok(data) {
                unreachable!("padded base64 is four characters for each three bytes begun");
            }
            json.push(b'"');
        }
    }
    json.push(b'}');
    json
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
    format!("com.sipsim.{}", name.as_str())
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
