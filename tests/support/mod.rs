//! What the tests that run the real program have in common: the program itself ([`Relay`]), a client of its ports ([`Client`]), a SIPSIM that
//! remembers every answer ([`Load`]), and real brokers ([`Brokers`]).
//!
//! Nothing here calls the product's own code: what a test expects must not be computed by what it tests.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

pub mod alone;
mod brokers;
pub mod disk;
pub mod fates;
mod forged;
mod http;
mod load;
mod metrics;
mod odd;
pub mod oracle;
mod proxy;
mod relay;
pub mod scene;
pub mod shim;
pub mod smuggle;
pub mod stall;
pub mod troubles;
pub mod whole;

pub use brokers::{Brokers, Message, RABBITMQ_MESSAGE_MAX};
pub use forged::forged;
pub use http::{Answer, Client};
pub use load::{Load, Sent};
pub use metrics::Metrics;
pub use odd::{EXTRA, Odd, odd_bodies};
pub use proxy::Proxy;
pub use relay::{PATH, Relay, SECRET, free_address, program};

/// The fifteen names that SIPSIM documents.
pub const EVENTS: [&str; 15] = [
    "incoming_call_start",
    "incoming_call_start_chain_member_call",
    "incoming_call_end_chain_member_call",
    "incoming_call_answer",
    "incoming_call_end",
    "outgoing_call_start",
    "outgoing_call_answer",
    "outgoing_call_end",
    "voicemail",
    "tags",
    "speech",
    "summary",
    "sms",
    "rating",
    "test",
];

/// What SIPSIM puts into `X-Webhook-Signature` (PROTOCOL §1.1), in lower case.
pub fn sign(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// DESIGN §5's `id` of what an account sent: the first 16 bytes of SHA-256 over its name, a zero byte and the body, marked as a UUIDv8.
pub fn event_id(account: &str, body: &[u8]) -> String {
    let mut id: [u8; 16] =
        Sha256::digest([account.as_bytes(), b"\0", body].concat())[..16].try_into().expect("16 bytes");
    id[6] = id[6] & 0x0f | 0x80;
    id[8] = id[8] & 0x3f | 0x80;
    let digits = hex::encode(id);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_secs()).expect("the clock is sane")
}

/// Asks again and again until `condition` gives something, and hands that over. Panics, saying `what` it waited for, after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        let value = condition();
        let waited = start.elapsed();
        if let Some(value) = value {
            if waited > Duration::from_secs(1) {
                eprintln!("waited {waited:.1?} for: {what}");
            }
            return value;
        }
        assert!(waited < limit, "waited {limit:?} in vain for: {what}");
        // Whoever has waited long already asks less often, as most ask the relay, and tests run side by side.
        thread::sleep((waited / 20).clamp(Duration::from_millis(5), Duration::from_millis(50)));
    }
}

/// As [`wait_for`], for a condition that gives nothing.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Runs a command to its end with nothing on its standard input, and returns all that it printed. Kills it and panics after `limit`.
pub fn finish(command: &mut Command, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let drain = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes); // What could be read is what a test can judge.
            bytes
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("it is piped")));
    let stderr = drain(Box::new(child.stderr.take().expect("it is piped")));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            panic!("{command:?} did not end within {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: stdout.join().expect("reading"), stderr: stderr.join().expect("reading") }
}

/// Like [`finish`], and its standard output as text; panics with its standard error unless it succeeds.
pub fn succeed(command: &mut Command, limit: Duration) -> String {
    let output = finish(command, limit);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}
