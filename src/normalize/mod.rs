//! SIPSIM's dialect, read once: [`normalize`] turns a verified request into an [`Event`]. Pure and total: a genuine request has no way to
//! fail here. What cannot be understood is an event named `unknown`, its bytes untouched.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::authenticate::Verified;
use crate::clock::Timestamp;
use crate::config::AccountName;

/// One webhook of SIPSIM, with all that an envelope needs to know of it. Only [`normalize`] makes one from a request; the journal keeps
/// it and gives it back as it was.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub account: AccountName,
    pub id: EventId,
    pub name: EventName,
    pub subject: Option<String>,
    /// RFC 3339 UTC, fraction as sent.
    pub time: String,
    pub call_status: Option<CallStatus>,
    pub content: Content,
    /// `X-Webhook-Timestamp` as sent.
    pub signed_text: String,
    /// The same in seconds since 1970.
    pub signed_at: i64,
    /// `X-Webhook-Signature` as sent.
    pub signature: String,
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

/// Whether the body is JSON that a consumer's parser can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// RFC 8259 in UTF-8 without BOM, nested at most 128 deep: `data`, `application/json`.
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
    pub const ALL: [CallStatus; 7] = [
        Self::Answered,
        Self::Missed,
        Self::Busy,
        Self::NoAnswer,
        Self::Cancelled,
        Self::Unavailable,
        Self::Other,
    ];

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

impl EventId {
    /// The lower-case hyphenated form of RFC 9562.
    pub fn from_text(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        (text.len() == 36 && hex::decode_to_slice(digits, &mut bytes).is_ok()).then_some(Self(bytes))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        let text = std::str::from_utf8(&digits).map_err(|_| fmt::Error)?;
        write!(f, "{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..])
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A stand-in until the room is written.
pub fn normalize(verified: Verified, _extra: &[Arc<str>]) -> Event {
    Event {
        account: verified.account,
        id: EventId([7; 16]),
        name: EventName::Unknown,
        subject: None,
        time: verified.received_at.rfc3339(),
        call_status: None,
        content: Content::Opaque,
        signed_text: verified.signed_text,
        signed_at: verified.signed_at,
        signature: verified.signature,
        received_at: verified.received_at,
        replayed: false,
        body: verified.body,
    }
}
