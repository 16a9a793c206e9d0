//! Input that anybody may write, mutated and random, for what reads it: framing, headers and verification, normalizing, configuration, journal
//! import.
//! Nothing may panic, nothing unsigned may come in, and what comes in must come out as it went in.
//!
//! In one process, without coverage guidance. FUZZ_INPUTS (default 20,000) is how many over all; `make fuzz` gives a hundred million, in a release
//! build. FUZZ_SEED repeats a run, FUZZ_FROM goes on with one that was broken off; a failure prints its input.

mod framing;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use fastrand::Rng;
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde::de::IgnoredAny;
use sha2::Sha256;
use sipsim_relay::authenticate::{Accounts, Verified};
use sipsim_relay::clock::Timestamp;
use sipsim_relay::config::{self, Mode, inspect};
use sipsim_relay::journal::{Stored, export};
use sipsim_relay::metrics::Metrics;
use sipsim_relay::normalize::{Content, Event, content_of, normalize};
use sipsim_relay::publish::Record;
use sipsim_relay::publish::encode::Encoder;

const SECRET: &str = "a secret of this test, long enough";
const NOW: i64 = 1_736_937_000;
/// Bytes of one input. What is longer is the siege's.
const INPUT_MAX: usize = 1200;
const JOURNAL: &str = "ab12";
/// Inputs that a thread feeds before it takes its next.
const ROUND: u64 = 10_000;

type Target = fn(&Fixture, &mut Rng, &[u8]);

/// Each with its share of all inputs, in thousandths: configuration goes through a file, and import through base64 and JSON.
const TARGETS: [(&str, u64, Target, &[&str]); 5] = [
    (
        "headers and verification",
        600,
        verification,
        &["1736937000", "01736937299", "f00", "{\"event\":\"sms\"}", "0x1", "+1"],
    ),
    ("normalize", 289, normalizing, BODIES),
    ("framing", 100, framing::framing, framing::SEEDS),
    ("journal import", 10, import, &[]),
    (
        "configuration",
        1,
        configuration,
        &[include_str!("../../relay.toml"), "[outputs.kafka.properties]\nlinger.ms = 5\n"],
    ),
];

const BODIES: &[&str] = &[
    include_str!("../payloads/incoming_call_end.answered.json"),
    include_str!("../payloads/speech.json"),
    include_str!("../payloads/summary.json"),
    include_str!("../payloads/sms.inbound.json"),
    include_str!("../payloads/test.json"),
    r#"{"event":"sms","event":"tags","time":"2025-01-15 10:30:00+0200","pbx_id":-0,"a":[[[{"\ud800":1e999}]]]}"#,
];

struct Fixture {
    accounts: Accounts,
    folder: tempfile::TempDir,
    lines: Vec<String>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::TempDir::new().expect("a folder");
        let variable = ("RELAY_ACCOUNTS__DEFAULT__SECRET".into(), SECRET.into());
        let loaded = config::load(None, [variable].into_iter()).unwrap_or_else(|error| panic!("{error}"));
        let metrics = Metrics::new(&loaded.config);
        let accounts = Accounts::open(&loaded.config, metrics).expect("it has a secret");
        let mut fixture = Self { accounts, folder, lines: Vec::new() };
        let line = |body: &str| {
            let event = normalize(genuine(&fixture, body.as_bytes()), &[]);
            export::write(&Stored { sequence: 7, event }, JOURNAL)
        };
        fixture.lines = BODIES.iter().map(|body| line(body)).chain([line("\u{feff}{}")]).collect();
        fixture
    }
}

fn sign(timestamp: &[u8], body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(timestamp);
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// What the account makes of it. `None`: it is refused, or is no header at all.
fn verified(fixture: &Fixture, timestamp: &[u8], signature: &[u8], body: &[u8]) -> Option<Verified> {
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-webhook-timestamp", timestamp), ("x-webhook-signature", signature)] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?);
    }
    let account = fixture.accounts.by_path("/webhooks/sipsim").expect("the default one");
    let now = Timestamp::from_seconds(NOW);
    account.claims(&headers).ok()?.with_body(Bytes::copy_from_slice(body), now).verify().ok()
}

fn genuine(fixture: &Fixture, body: &[u8]) -> Verified {
    let timestamp = NOW.to_string();
    let signature = sign(timestamp.as_bytes(), body);
    verified(fixture, timestamp.as_bytes(), signature.as_bytes(), body).expect("it is genuine")
}

fn verification(fixture: &Fixture, rng: &mut Rng, input: &[u8]) {
    let (timestamp, rest) = input.split_at(rng.usize(..=input.len().min(16)));
    let genuine = sign(timestamp, rest).into_bytes();
    let mut signature = genuine.clone();
    match rng.u8(..4) {
        0 => {}
        1 => signature[rng.usize(..64)] ^= 1 << rng.u8(..7),
        2 => signature = mutated(rng, &genuine),
        _ => signature = rest.iter().copied().take(64).collect(),
    }
    let is_signed = signature.eq_ignore_ascii_case(&genuine);
    let digits = !timestamp.is_empty() && timestamp.len() <= 12 && timestamp.iter().all(u8::is_ascii_digit);
    let is_fresh = digits && {
        let at: i64 = str::from_utf8(timestamp).expect("digits").parse().expect("a number");
        (at - NOW).abs() <= 300
    };
    let verified = verified(fixture, timestamp, &signature, rest);
    assert_eq!(verified.is_some(), is_signed && is_fresh, "signed: {is_signed}, fresh: {is_fresh}");
}

fn normalizing(fixture: &Fixture, _: &mut Rng, input: &[u8]) {
    let event = normalize(genuine(fixture, input), &[Arc::from("fax_received")]);
    assert_eq!(&event.body[..], input);
    let stored = Stored { sequence: 7, event };
    let structured = envelope(Mode::Structured, &stored);
    if stored.event.content == Content::Json {
        let data = structured.payload.strip_suffix(b"}").expect("it is an object");
        assert!(data.ends_with(input.trim_ascii()), "the data stand last in the envelope, as they came");
    }
    let binary = envelope(Mode::Binary, &stored);
    assert_eq!(binary.payload, input);
    for (_, value) in structured.headers.iter().chain(binary.headers.iter()) {
        assert!(!value.contains(char::is_control), "{value:?} is no header");
    }
    let again = imported(&export::write(&stored, JOURNAL)).expect("what was exported can be imported");
    assert_eq!(again.body, stored.event.body);
}

fn envelope(mode: Mode, stored: &Stored) -> Record {
    let encoder = Encoder { mode, source: "/{account}".into(), relay: "r".into(), journal_id: JOURNAL.into() };
    let record = encoder.record("lane".into(), stored, false);
    if mode == Mode::Structured {
        serde_json::from_slice::<IgnoredAny>(&record.payload).expect("an envelope is JSON");
    }
    record
}

fn import(_: &Fixture, _: &mut Rng, input: &[u8]) {
    if let Ok(text) = str::from_utf8(input) {
        imported(text);
    }
}

/// The event of a line. What was taken once goes out and comes in again the same.
fn imported(text: &str) -> Option<Event> {
    let stored = Stored { sequence: 7, event: export::read(text).ok()? };
    if content_of(&stored.event.body) != stored.event.content {
        return None; // `journal import` looks at it too, and writes the line anew.
    }
    envelope(Mode::Structured, &stored);
    let line = export::write(&stored, JOURNAL);
    let again = export::read(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
    assert_eq!(export::write(&Stored { sequence: 7, event: again }, JOURNAL), line);
    Some(stored.event)
}

fn configuration(fixture: &Fixture, _: &mut Rng, input: &[u8]) {
    let file = fixture.folder.path().join("relay.toml");
    std::fs::write(&file, input).expect("a file");
    let found = inspect(Some(&file), std::iter::empty(), true);
    for problem in &found.problems {
        assert!(!problem.to_string().is_empty());
    }
}

/// One to eight changes: bits, bytes, pieces cut, doubled, moved, and words that parsers trip over.
fn mutated(rng: &mut Rng, seed: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 18] = [
        b"\"",
        b"{",
        b"[",
        b"\\u",
        b"\\ud800",
        b"\0",
        b"\xff",
        b"1e999",
        b"-0",
        b"\r\n",
        b"event",
        b"pbx_id",
        b"\xe2\x80\xa8",
        b"null",
        b"\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"chunked, ",
    ];
    let start = if seed.len() > INPUT_MAX { rng.usize(..seed.len() - INPUT_MAX) } else { 0 };
    let mut bytes: Vec<u8> = seed[start..].iter().copied().take(INPUT_MAX).collect();
    for _ in 0..rng.usize(1..=8) {
        let at = rng.usize(..=bytes.len());
        let end = rng.usize(at..=bytes.len().min(at + 32));
        match rng.u8(..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                let to = rng.usize(..=bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => drop(bytes.splice(at..at, WORDS[rng.usize(..WORDS.len())].iter().copied())),
        }
    }
    bytes
}

#[test]
fn no_input_is_too_odd() {
    let number = |name: &str, default: u64| -> u64 {
        std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
    };
    let rounds = number("FUZZ_INPUTS", 20_000).div_ceil(ROUND);
    let (seed, from) = (number("FUZZ_SEED", fastrand::u64(..)), number("FUZZ_FROM", 0));
    let threads = thread::available_parallelism().map_or(1, usize::from);
    eprintln!("FUZZ_SEED={seed}, rounds {from} to {rounds} of {ROUND} inputs, {threads} threads");
    std::panic::set_hook(Box::new(|_| {})); // What panicked is shown with its input.
    let next = AtomicU64::new(from);
    let fed = AtomicU64::new(0);
    let work = || {
        let fixture = Fixture::new();
        loop {
            let round = next.fetch_add(1, Ordering::Relaxed);
            if round >= rounds {
                return;
            }
            fed.fetch_add(feed(&fixture, Rng::with_seed(seed.wrapping_add(round))), Ordering::Relaxed);
            if round % 100 == 99 {
                // Whoever goes on from here does again what the other threads have under way.
                let resume = (round + 1).saturating_sub(threads as u64);
                eprintln!("{} inputs; to go on: FUZZ_SEED={seed} FUZZ_FROM={resume}", fed.load(Ordering::Relaxed));
            }
        }
    };
    thread::scope(|scope| {
        let working: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in working {
            thread.join().unwrap_or_else(|error| std::panic::resume_unwind(error));
        }
    });
    eprintln!("{} inputs, FUZZ_SEED={seed}, {threads} threads", fed.load(Ordering::Relaxed));
}

/// One round. Each has a seed of its own, so that it is the same whichever thread feeds it, and a run can go on where one was broken off.
fn feed(fixture: &Fixture, mut rng: Rng) -> u64 {
    let mut fed = 0;
    for (name, share, target, seeds) in TARGETS {
        let lines: Vec<&str> = fixture.lines.iter().map(String::as_str).collect();
        let seeds = if seeds.is_empty() { &lines[..] } else { seeds };
        for _ in 0..ROUND * share / 1000 {
            let seed = seeds[rng.usize(..seeds.len())];
            let input = match rng.u8(..16) {
                0 => (0..rng.usize(..64)).map(|_| rng.u8(..)).collect(),
                1 => seed.as_bytes().to_vec(),
                _ => mutated(&mut rng, seed.as_bytes()),
            };
            let went_well = catch_unwind(AssertUnwindSafe(|| target(fixture, &mut rng, &input)));
            if let Err(panic) = went_well {
                let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                let _ = std::panic::take_hook();
                panic!("{name}: {why}; input {:?} ({})", String::from_utf8_lossy(&input), hex::encode(&input));
            }
            fed += 1;
        }
    }
    fed
}
