//! A test: one byte of the file is not what was written. Whichever it is, events are accepted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::orders::{self, Command};
use super::selection::Selection;
use super::*;
use crate::authenticate::Verified;
use crate::clock;
use crate::normalize::normalize;
use crate::publish::Place;

const EVENTS: u64 = 40;

fn options(folder: &Path) -> Options {
    let mut config = config::Config::defaults().journal;
    config.path = folder.join("journal.db");
    config.retention = Duration::ZERO;
    Options {
        config,
        outputs: vec![OutputName::new("console").unwrap()],
        accounts: Vec::new(),
        discard: Vec::new(),
        tolerance_max: Duration::from_secs(300),
        set_aside: true,
    }
}

fn event(number: u64) -> Event {
    let body = format!(r#"{{"event":"incoming_call_end","pbx_id":"call_{number}","status":"ANSWER"}}"#);
    normalize(Verified::for_test("default", clock::now().as_seconds(), body.as_bytes()), &[])
}

/// Some are published, some pending, one is held and two are parked.
async fn fill(folder: &Path) {
    let mut options = options(folder);
    options.config.retention = Duration::from_secs(86_400);
    let (journal, writer) = Journal::open(options, Metrics::new(&config::Config::defaults())).unwrap();
    journal.health_changes().wait_for(|health| *health == Health::Ready).await.unwrap();
    for number in 0..EVENTS {
        let _ = journal.append(Box::new(event(number))).await.unwrap();
    }
    let row = journal.outputs().remove(0);
    let mut progress = Progress::new(journal.id(), row.number, row.progress + 1);
    progress.cursor = EVENTS / 2;
    let about = About::of(&Stored { sequence: 1, event: event(0) });
    progress.settled = (1..=EVENTS / 2)
        .map(|sequence| Settlement {
            sequence,
            outcome: match sequence % 8 {
                0 => Outcome::Parked { reason: "too_large", detail: String::new(), next_at: clock::now() },
                _ => Outcome::Published(Place::Kafka { partition: 3, offset: 88_121 }),
            },
            at: clock::now(),
            lane: "sipsim.call".into(),
            was_parked: false,
            has_row: false,
            event: Some(about.clone()),
        })
        .collect();
    progress.held = vec![Apart {
        sequence: EVENTS / 2 + 1,
        lane: "sipsim.call".into(),
        reason: Some("forbidden"),
        attempts: 0,
        next_at: Timestamp::default(),
    }];
    journal.record(Arc::new(progress)).await.unwrap().unwrap();
    writer.stop();
}

/// Bytes beside those named: FLIPS says how many, FLIPS_SEED which.
fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// In a file of which this byte is another: what the journal said of itself if it takes no events within some seconds.
async fn refused_for_good(whole: &[u8], at: usize, to: u8) -> Option<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    let path = options.config.path.clone();
    let mut bytes = whole.to_vec();
    bytes[at] = to;
    std::fs::write(&path, bytes).unwrap();
    let (journal, writer) = Journal::open(options, Metrics::new(&config::Config::defaults())).unwrap();
    // It looks at each event; where the file cannot be read it cannot be given.
    let _ = orders::give(&path, Command::Discard, Some("console"), &Selection::default(), clock::now());
    let (mut in_a_row, mut said) = (0, Vec::new());
    let until = Instant::now() + Duration::from_secs(6);
    while in_a_row < 20 && Instant::now() < until {
        match tokio::time::timeout(Duration::from_secs(2), journal.append(Box::new(event(1_000 + in_a_row)))).await {
            Ok(Ok(_)) => in_a_row += 1,
            _ => {
                in_a_row = 0;
                said.push(format!("{:?}", journal.health()));
                said.dedup();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    writer.stop();
    (in_a_row < 20).then_some(said)
}

#[tokio::test]
async fn whichever_byte_is_flipped_events_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path()).await;
    let path = folder.path().join("journal.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let bytes = std::fs::read(&path).unwrap();
    // A column's name, a fact's, and what says of a row that its second value, when it was received, takes eight bytes and is no null.
    let named = [&b"signature TEXT"[..], b"selection TEXT", b"journal_id", b"\x06\x1b\x2c"];
    let find = |text: &[u8]| (0..bytes.len()).rev().find(|at| bytes[*at..].starts_with(text)).unwrap();
    let mut random = fastrand::Rng::with_seed(from_environment("FLIPS_SEED", 1));
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect(); // Of the rest nearly all is empty.
    let others = (0..from_environment("FLIPS", 8)).map(|_| (places[random.usize(..places.len())], random.u8(1..)));
    let others: Vec<(usize, u8)> = others.collect();
    for (at, by) in named.iter().map(|text| (find(text), 0x06)).chain(others) {
        let said = refused_for_good(&bytes, at, bytes[at] ^ by).await;
        assert_eq!(said, None, "byte {at} flipped by {by:#x}");
    }
}
