//! SIPSIM's dialect, read once: [`normalize`] turns a verified request into an [`Event`]. Pure and total: a genuine request has no way to
//! fail here. What cannot be understood is an event named `unknown`, its bytes untouched.

use std::fmt;
use std::sync::Arc;

use arrayvec::ArrayString;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::authenticate::{SignatureText, TimestampText, Verified};
use crate::clock::{Rfc3339, Timestamp, rfc3339_seconds};
use crate::config::AccountName;

pub(crate) mod json;
mod moment;

use json::Fields;

/// Reads a verified request. `extra` are the names of `events.extra`. Never fails and never panics, whatever the bytes; two passes over them and
/// one hash at most.
pub fn normalize(verified: Verified, extra: &[Arc<str>]) -> Event {
    Derived::from_body(&verified.body, extra).event(verified)
}

/// Whether a body is JSON that a consumer's parser can take, as [`normalize`] finds it.
pub fn content_of(body: &[u8]) -> Content {
    json::read(body).0
}

/// What is read out of a body.
pub struct Derived {
    name: EventName,
    subject: Option<String>,
    time: Option<Rfc3339>,
    call_status: Option<CallStatus>,
    content: Content,
}

impl Derived {
    /// The first half of [`normalize`].
    pub fn from_body(body: &[u8], extra: &[Arc<str>]) -> Self {
        let (content, fields) = json::read(body);
        let name = fields.name(extra);
        let call_status = match name.group() {
            Group::Call => fields.call_status(),
            _ => None,
        };
        Self { name, subject: fields.subject(), time: fields.time(), call_status, content }
    }

    /// As if nobody had looked into the body: what is kept if [`Derived::from_body`] should panic after all, so that no genuine event is lost to a
    /// bug of ours.
    pub fn undecoded() -> Self {
        Self { name: EventName::Unknown, subject: None, time: None, call_status: None, content: Content::Opaque }
    }

    /// The second half of [`normalize`]: the event of the request whose body this is.
    pub fn event(self, verified: Verified) -> Event {
        Event {
            id: EventId::of(&verified.account, &verified.body),
            name: self.name,
            subject: self.subject,
            time: self.time.unwrap_or_else(|| rfc3339_seconds(verified.signed_at)),
            call_status: self.call_status,
            content: self.content,
            account: verified.account,
            signed_text: verified.signed_text,
            signed_at: verified.signed_at,
            signature: verified.signature,
            received_at: verified.received_at,
            replayed: false,
            body: verified.body,
        }
    }
}

impl Fields<'_> {
    /// By `event` if it says anything, else by shape: `speech` and `summary` come without (PROTOCOL §4.6, §4.7). A `null` is as good as absent.
    fn name(&self, extra: &[Arc<str>]) -> EventName {
        let by_name = self.event.and_then(json::text_bytes).filter(|name| !name.is_empty());
        if let Some(name) = by_name {
            let Ok(name) = str::from_utf8(&name) else { return EventName::Unknown }; // A lone surrogate: no name of ours.
            let extra = || extra.iter().find(|extra| &***extra == name).cloned();
            return match Known::from_name(name) {
                Some(known) => EventName::Known(known),
                None => extra().map_or(EventName::Unknown, EventName::Extra),
            };
        }
        let given = |field: Option<&str>| field.is_some_and(|raw| raw != "null");
        let starts = |field: Option<&str>, with: char| field.is_some_and(|raw| raw.starts_with(with));
        match given(self.call_id) {
            true if given(self.speech_state) || starts(self.payload, '[') => EventName::Known(Known::Speech),
            true if starts(self.summary, '"') => EventName::Known(Known::Summary),
            _ => EventName::Unknown,
        }
    }

    fn subject(&self) -> Option<String> {
        [self.pbx_id, self.call_id].into_iter().flatten().find_map(subject)
    }

    fn time(&self) -> Option<Rfc3339> {
        [self.time, self.timestamp].into_iter().flatten().find_map(|raw| moment::utc(&json::text_bytes(raw)?))
    }

    fn call_status(&self) -> Option<CallStatus> {
        self.status.and_then(json::text_bytes).map(|text| CallStatus::from_sipsim(&text))
    }
}

/// The most that an id may have to become a subject. Characters.
const SUBJECT_MAX: usize = 128;

/// A non-empty text, or an integer as written, that is short and has no control character. A lone surrogate cannot be written in UTF-8, and putting
/// something else in its place would make one call of two.
fn subject(raw: &str) -> Option<String> {
    let text = match raw.as_bytes().first()? {
        b'"' => json::text(raw)?,
        b'-' | b'0'..=b'9' if !raw.contains(['.', 'e', 'E']) => raw.to_owned(),
        _ => return None,
    };
    let fits = (1..=SUBJECT_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    fits.then_some(text)
}

/// One webhook of SIPSIM, with all that an envelope needs to know of it. Only [`normalize`] makes one from a request; the journal keeps
/// it and gives it back as it was.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub account: AccountName,
    pub id: EventId,
    pub name: EventName,
    pub subject: Option<String>,
    /// RFC 3339 UTC, fraction as sent.
    pub time: Rfc3339,
    pub call_status: Option<CallStatus>,
    pub content: Content,
    /// `X-Webhook-Timestamp` as sent.
    pub signed_text: TimestampText,
    /// The same in seconds since 1970.
    pub signed_at: i64,
    /// `X-Webhook-Signature` as sent.
    pub signature: SignatureText,
    pub received_at: Timestamp,
    /// True only for what `journal import` brought.
    pub replayed: bool,
    /// The request's body, to the byte.
    pub body: Bytes,
}

/// Shows what may be in a log: no body, no signature, no subject.
impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A UUIDv8 over account and body: a redelivery, however signed, has the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub [u8; 16]);

/// An [`EventId`] as text.
pub type IdText = ArrayString<36>;

/// Whether the body is JSON that a consumer's parser can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// RFC 8259 in UTF-8 without BOM, nested at most 128 deep, no number longer than 1,000 characters: `data`, `application/json`.
    Json,
    /// Anything else: `data_base64`, `application/octet-stream`.
    Opaque,
}

/// How a call ended, from either of SIPSIM's spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallStatus {
    Answered,
    Missed,
    Busy,
    NoAnswer,
    Cancelled,
    Unavailable,
    Other,
}

/// The name of an event: one of SIPSIM's fifteen, one that the operator declared in `events.extra`, or `unknown`. Never text from a request
/// that nobody declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventName {
    Known(Known),
    Extra(Arc<str>),
    Unknown,
}

/// What the routing key's `{group}` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    Call,
    Ai,
    Sms,
    Test,
    Extra,
    Unknown,
}

macro_rules! known_events {
    ($($variant:ident = $text:literal, $group:ident;)*) => {
        /// SIPSIM's fifteen events (PROTOCOL §3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Known { $($variant),* }

        impl Known {
            pub const ALL: [Known; 15] = [$(Known::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Known::$variant => $text),* }
            }

            pub const fn group(self) -> Group {
                match self { $(Known::$variant => Group::$group),* }
            }

            pub fn from_name(name: &str) -> Option<Known> {
                match name { $($text => Some(Known::$variant),)* _ => None }
            }
        }
    };
}

known_events! {
    IncomingCallStart = "incoming_call_start", Call;
    IncomingCallStartChainMemberCall = "incoming_call_start_chain_member_call", Call;
    IncomingCallEndChainMemberCall = "incoming_call_end_chain_member_call", Call;
    IncomingCallAnswer = "incoming_call_answer", Call;
    IncomingCallEnd = "incoming_call_end", Call;
    OutgoingCallStart = "outgoing_call_start", Call;
    OutgoingCallAnswer = "outgoing_call_answer", Call;
    OutgoingCallEnd = "outgoing_call_end", Call;
    Voicemail = "voicemail", Call;
    Tags = "tags", Call;
    Speech = "speech", Ai;
    Summary = "summary", Ai;
    Sms = "sms", Sms;
    Rating = "rating", Ai;
    Test = "test", Test;
}

impl EventName {
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(known) => known.as_str(),
            Self::Extra(name) => name,
            Self::Unknown => "unknown",
        }
    }

    pub fn group(&self) -> Group {
        match self {
            Self::Known(known) => known.group(),
            Self::Extra(_) => Group::Extra,
            Self::Unknown => Group::Unknown,
        }
    }

    /// The name that the journal holds as text. One that is neither known nor `unknown` was in `events.extra` when it was accepted.
    pub fn from_stored(text: &str) -> Self {
        match Known::from_name(text) {
            Some(known) => Self::Known(known),
            None if text == "unknown" => Self::Unknown,
            None => Self::Extra(text.into()),
        }
    }
}

impl Group {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Ai => "ai",
            Self::Sms => "sms",
            Self::Test => "test",
            Self::Extra => "extra",
            Self::Unknown => "unknown",
        }
    }
}

impl CallStatus {
    pub const ALL: [CallStatus; 7] =
        [Self::Answered, Self::Missed, Self::Busy, Self::NoAnswer, Self::Cancelled, Self::Unavailable, Self::Other];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Missed => "missed",
            Self::Busy => "busy",
            Self::NoAnswer => "no_answer",
            Self::Cancelled => "cancelled",
            Self::Unavailable => "unavailable",
            Self::Other => "other",
        }
    }
}

impl CallStatus {
    /// From either of SIPSIM's spellings (PROTOCOL §5.1), in whichever case.
    fn from_sipsim(text: &[u8]) -> Self {
        const SPELLINGS: [(&str, CallStatus); 6] = [
            ("answer", CallStatus::Answered),
            ("missed", CallStatus::Missed),
            ("busy", CallStatus::Busy),
            ("noanswer", CallStatus::NoAnswer),
            ("cancel", CallStatus::Cancelled),
            ("unavailable", CallStatus::Unavailable),
        ];
        let known = SPELLINGS.iter().find(|(spelling, _)| text.eq_ignore_ascii_case(spelling.as_bytes()));
        known.map_or(Self::Other, |(_, status)| *status)
    }
}

impl EventId {
    /// The id of what `account` sent as `body`: the first 16 bytes of SHA-256 over the account's name, a zero byte and the body, with the version
    /// and variant of RFC 9562's UUIDv8.
    pub fn of(account: &AccountName, body: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(account.as_str()).chain_update([0]).chain_update(body).finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        id[6] = id[6] & 0x0f | 0x80;
        id[8] = id[8] & 0x3f | 0x80;
        Self(id)
    }

    /// The lower-case hyphenated form of RFC 9562.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        let is_whole = text.len() == 36 && digits.len() == 32; // hex would take "0x" before the digits.
        (is_whole && hex::decode_to_slice(digits, &mut bytes).is_ok()).then_some(Self(bytes))
    }

    /// Lower-case digits in five groups, as RFC 9562 writes a UUID.
    pub fn text(self) -> IdText {
        let mut digits = [0; 32];
        let encoded = hex::encode_to_slice(self.0, &mut digits);
        let mut text = [b'-'; 36];
        for (from, to) in [(0..8, 0..8), (8..12, 9..13), (12..16, 14..18), (16..20, 19..23), (20..32, 24..36)] {
            text[to].copy_from_slice(&digits[from]);
        }
        match IdText::from_byte_string(&text) {
            Ok(text) if encoded.is_ok() => text,
            _ => unreachable!("sixteen bytes make thirty-two digits"),
        }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
