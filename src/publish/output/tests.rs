//! An output between a real journal and a broker that takes all it is given.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::authenticate::Verified;
use crate::config::{self, Config, Mode, Routes};
use crate::journal::{Felt, Options, Stored, Writer};
use crate::normalize::normalize;
use crate::publish::encode::Encoder;
use crate::publish::{Place, Record};

/// A journal for the one output `console`, once it is open.
pub(in crate::publish) async fn journal(folder: &Path) -> (Journal, Writer) {
    open(config::Journal { path: folder.join("journal.db"), ..Config::defaults().journal }).await
}

async fn open(config: config::Journal) -> (Journal, Writer) {
    let options = Options {
        config,
        outputs: vec![OutputName::new("console").unwrap()],
        accounts: Vec::new(),
        discard: Vec::new(),
        tolerance_max: Duration::from_secs(300),
        set_aside: false,
    };
    let (journal, writer) = Journal::open(options, Metrics::new(&Config::defaults())).unwrap();
    journal.health_changes().wait_for(|health| *health == crate::journal::Health::Ready).await.unwrap();
    (journal, writer)
}

/// Keeps an event for each body, in this order: they are numbered from 1.
pub(in crate::publish) async fn take_in(journal: &Journal, bodies: &[&str]) {
    for body in bodies {
        let event = normalize(Verified::for_test("default", 1_736_937_000, body.as_bytes()), &[]);
        let _ = journal.append(Box::new(event)).await.unwrap();
    }
}

/// Takes each record, notes its payload, and confirms it.
struct Broker {
    reports: UnboundedSender<Report>,
    taken: UnboundedSender<String>,
}

impl Sink for Broker {
    fn send(&mut self, record: &mut Record) {
        self.taken.send(String::from_utf8(record.payload.clone()).unwrap()).unwrap();
        self.reports.send(Report::Delivered { sequence: record.sequence, place: Place::Confirmed }).unwrap();
    }
}

/// An output of the journal that is to end once all is published, and what the broker gets from it.
fn output(journal: &Journal, encode: Encode) -> (Output, UnboundedReceiver<String>) {
    let (reports, inbox) = unbounded_channel();
    let (taken, payloads) = unbounded_channel();
    reports.send(Report::Connected).unwrap();
    let (_, stopped) = watch::channel(Some(Instant::now() + Duration::from_secs(60)));
    let output = Output::new(Parts {
        name: OutputName::new("console").unwrap(),
        row: journal.outputs().remove(0),
        sink: Box::new(Broker { reports, taken }),
        reports: inbox,
        journal: journal.clone(),
        journal_id: journal.id(),
        encode,
        record_max: None,
        router: Router::new(Routes { template: "console".into(), by_event: Default::default() }),
        metrics: Metrics::new(&Config::defaults()),
        status: Outputs::default(),
        stop: stopped,
    });
    (output, payloads)
}

fn encode(encoded: impl Fn(&Stored) + Send + 'static) -> Encode {
    let encoder =
        Encoder { mode: Mode::Binary, source: String::new(), relay: String::new(), journal_id: String::new() };
    Box::new(move |record, lane, stored, replayed| {
        encoder.fill(record, lane, stored, replayed);
        encoded(stored);
    })
}

/// Publishes what is in the journal, and gives what the broker got.
async fn publish(journal: &Journal, encode: Encode) -> Vec<String> {
    let (output, mut payloads) = output(journal, encode);
    assert_eq!(output.run().await, Ended::Stopped);
    let mut all = Vec::new();
    while let Ok(payload) = payloads.try_recv() {
        all.push(payload);
    }
    all
}

#[tokio::test]
async fn an_event_whose_encoding_panics_is_parked_and_the_others_are_published() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, writer) = journal(folder.path()).await;
    take_in(&journal, &["one", "two", "three", "four", "five"]).await;
    let encode = encode(|stored| assert_ne!(&stored.event.body[..], b"three", "on purpose, by a test"));
    assert_eq!(publish(&journal, encode).await, ["one", "two", "four", "five"]);
    let row = journal.outputs().remove(0);
    assert_eq!((row.cursor, row.counts.published, row.counts.pending, row.counts.parked), (5, 4, 0, 1));
    writer.stop();
    let db = rusqlite::Connection::open(journal.path()).unwrap();
    let parked: (i64, String) = db
        .query_row("SELECT sequence, reason FROM apart WHERE state = 'parked'", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(parked, (3, "other".to_owned()));
}

#[tokio::test]
async fn while_requests_wait_the_journal_is_read_less_often_for_replays_too() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, writer) = journal(folder.path()).await;
    take_in(&journal, &["one"]).await;
    let (mut output, _payloads) = output(&journal, encode(|_| {}));
    output.stop = watch::channel(None).1;
    let now = Instant::now();
    journal.press_for_test();
    assert!(output.read(now).unwrap());
    output.ahead.clear();
    take_in(&journal, &["two"]).await;
    assert!(!output.read(now).unwrap());
    assert!(output.ahead.is_empty());
    let again_at = output.wake_at(now, None);
    assert_eq!(Some(again_at), output.rests_until, "it goes on by itself");
    assert!(output.read(again_at).unwrap());
    assert_eq!(output.ahead.len(), 1);

    let db = rusqlite::Connection::open(journal.path()).unwrap();
    db.execute(
        "INSERT INTO apart (output, state, lane, sequence, since) VALUES (?, 'replay', '', 1, 0)",
        [output.number],
    )
    .unwrap();
    output.connected = true;
    assert!(!output.read(again_at).unwrap());
    assert!(!output.replays.is_open(1));
    assert!(output.read(output.rests_until.unwrap()).unwrap());
    assert!(output.replays.is_open(1));
    writer.stop();
}

#[tokio::test]
async fn a_request_that_waited_long_presses_the_journal_for_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, writer) = journal(folder.path()).await;
    assert_eq!(journal.pressure(), Felt::Nothing);
    let db = rusqlite::Connection::open(journal.path()).unwrap();
    // The moment may be over by the time that this thread has its turn.
    for time in 0.. {
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        let event = normalize(Verified::for_test("default", 1_736_937_000, format!("{time}").as_bytes()), &[]);
        let mut waiting = Box::pin(journal.append(Box::new(event)));
        assert!(tokio::time::timeout(Duration::from_millis(210), &mut waiting).await.is_err());
        db.execute_batch("ROLLBACK").unwrap();
        let _ = waiting.await.unwrap();
        if journal.pressure() == Felt::Much {
            break;
        }
        assert!(time < 20, "never pressed");
    }
    let mut looks = 0;
    while journal.pressure() != Felt::Nothing {
        tokio::time::sleep(Duration::from_millis(10)).await;
        looks += 1;
        assert!(looks < 1_000, "for ever");
    }
    writer.stop();
}

#[tokio::test]
async fn a_journal_that_is_nearly_full_is_read_as_fast_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let (journal, writer) = open(config::Journal { path, size_max: 24 << 20, ..Config::defaults().journal }).await;
    for number in 0..350 {
        take_in(&journal, &[&format!("{number:60000}")]).await; // 20 MiB in all.
    }
    let (mut output, _) = output(&journal, encode(|_| {}));
    output.stop = watch::channel(None).1;
    journal.press_for_test();
    let now = Instant::now();
    assert!(output.read(now).unwrap());
    output.ahead.clear();
    assert!(!output.read(now).unwrap(), "it rests");
    let until = now + Duration::from_secs(30);
    while journal.pressure() != Felt::Hurry {
        assert!(Instant::now() < until, "outputs still spare the requests, and no room comes back");
        take_in(&journal, &["one more"]).await;
    }
    for time in 0..2 {
        output.ahead.clear();
        assert!(output.read(now).unwrap(), "it rests on, time {time}");
    }
    writer.stop();
}
