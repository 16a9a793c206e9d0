//! The work that every program under test is given: distinct signed webhooks of a chosen size.

use arrayvec::ArrayString;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sipsim_relay::clock::Timestamp;
use sipsim_relay::config::AccountName;
use sipsim_relay::normalize::{CallStatus, Content, Event, EventId, EventName, Group, Known};

/// Signs every webhook of the benchmark. Secret to nobody.
pub const SECRET: &[u8] = b"the benchmark's signing secret: it protects nothing";
pub const PATH: &str = "/webhooks/sipsim";
/// Names in turn, so that topics and routing keys are as many as in the traffic of a small exchange.
const NAMES: [&str; 8] = [
    "incoming_call_start",
    "incoming_call_start_chain_member_call",
    "incoming_call_answer",
    "incoming_call_end",
    "outgoing_call_start",
    "outgoing_call_end",
    "tags",
    "sms",
];

/// Of those events: the queues that they end up in.
pub const GROUPS: [&str; 2] = ["call", "sms"];

/// Makes one request after the other. Two makers with different `maker` numbers make no request that is the same.
pub struct Work {
    signer: Hmac<Sha256>,
    maker: u64,
    made: u64,
    body_bytes: usize,
    subject: String,
    body: Vec<u8>,
    request: Vec<u8>,
}

impl Work {
    /// Bodies come to `body_bytes`, but to no less than their 250 or so bytes of fields.
    pub fn new(maker: u64, body_bytes: usize) -> Self {
        // Any length of key will do for HMAC; this one is a constant.
        let Ok(signer) = Hmac::new_from_slice(SECRET) else { unreachable!("HMAC takes keys of every length") };
        Self { signer, maker, made: 0, body_bytes, subject: String::new(), body: Vec::new(), request: Vec::new() }
    }

    /// The next request, whole, signed at `now` (seconds since 1970).
    pub fn next(&mut self, now: i64) -> &[u8] {
        use std::io::Write;
        let (_, timestamp, signature) = self.sign_next(now);
        self.request.clear();
        // Writing into memory cannot fail.
        let _ = write!(
            self.request,
            "POST {PATH} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nX-Webhook-Timestamp: {timestamp}\r\n\
             X-Webhook-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
            self.body.len()
        );
        self.request.extend_from_slice(&self.body);
        &self.request
    }

    /// The same as the event that the relay makes of it, for a journal that is filled without HTTP.
    pub fn next_event(&mut self, now: Timestamp, account: &AccountName) -> Event {
        let (name, signed_text, signature) = self.sign_next(now.as_seconds());
        let known = Known::from_name(name);
        Event {
            account: account.clone(),
            id: EventId::of(account, &self.body),
            name: known.map_or(EventName::Unknown, EventName::Known),
            subject: Some(self.subject.clone()),
            time: in_place("2025-01-15T08:30:00Z"),
            call_status: (known.map(Known::group) == Some(Group::Call)).then_some(CallStatus::Answered),
            content: Content::Json,
            signed_at: now.as_seconds(),
            signed_text: in_place(&signed_text),
            signature: in_place(&signature),
            received_at: now,
            replayed: false,
            body: Bytes::copy_from_slice(&self.body),
        }
    }

    /// Makes the next body; gives the event's name, the timestamp and the signature.
    fn sign_next(&mut self, now: i64) -> (&'static str, String, String) {
        use std::io::Write;
        let name = NAMES[(self.made % NAMES.len() as u64) as usize];
        // Four events to a call, so that records of one key meet.
        self.subject = format!("{:08x}-{:012x}", self.maker, self.made / 4);
        self.body.clear();
        // Writing into memory cannot fail.
        let _ = write!(
            self.body,
            "{{\"event\":\"{name}\",\"pbx_id\":\"{}\",\"call_id\":\"{:08x}-{:012x}\",\"time\":\"2025-01-15T10:30:00+02:00\",\
             \"status\":\"ANSWER\",\"from\":\"+380441234567\",\"to\":\"+380671234567\",\"duration\":285,\"note\":\"",
            self.subject, self.maker, self.made,
        );
        let rest = self.body_bytes.saturating_sub(self.body.len() + 2);
        self.body.extend((0..rest).map(|place| b"abcdefghijklmnopqrstuvwxyz 012345"[place % 33]));
        self.body.extend_from_slice(b"\"}");
        self.made += 1;
        let mut mac = self.signer.clone();
        let timestamp = now.to_string();
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(&self.body);
        (name, timestamp, hex::encode(mac.finalize().into_bytes()))
    }
}

fn in_place<const MAX: usize>(text: &str) -> ArrayString<MAX> {
    let Ok(text) = ArrayString::from(text) else { unreachable!("it fits") };
    text
}
