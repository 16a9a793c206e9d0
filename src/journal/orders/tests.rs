use super::super::progress::{self, Outcome, Settlement};
use super::super::{About, Kept, ledger, row};
use super::*;
use crate::authenticate::{SignatureText, TimestampText};
use crate::clock::Rfc3339;
use crate::config::Name;
use crate::normalize::{Content, EventId, EventName};
use crate::publish::Place;

/// Output 1, `kafka`, which owes events 1 to `last`; every third is a `tags`, the others are `sms`.
fn journal(last: u64) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(include_str!("../schema.sql")).unwrap();
    db.execute_batch(file::ADDITIONS).unwrap();
    ledger::configure(&db, &[Name::new("kafka").unwrap()], 0, Timestamp::default()).unwrap();
    db.execute("UPDATE outputs SET accepted = ?1, pending = ?1", [last as i64]).unwrap();
    let mut insert = db.prepare_cached(row::INSERT).unwrap();
    for sequence in 1..=last {
        row::insert(&mut insert, sequence, &event(sequence)).unwrap();
    }
    drop(insert);
    db
}

fn event(sequence: u64) -> Event {
    let account = Name::new("default").unwrap();
    let body = sequence.to_string();
    Event {
        id: EventId::of(&account, body.as_bytes()),
        account,
        name: EventName::from_stored(if sequence.is_multiple_of(3) { "tags" } else { "sms" }),
        subject: None,
        time: Rfc3339::new(),
        call_status: None,
        content: Content::Json,
        signed_text: TimestampText::from("1").unwrap(),
        signed_at: 1,
        signature: SignatureText::new(),
        received_at: Timestamp::from_seconds(sequence as i64),
        replayed: false,
        body: body.into(),
    }
}

/// A row of the output's beside its cursor.
fn apart(db: &Connection, state: &str, sequence: u64, reason: &str) {
    let sql =
        "INSERT INTO apart (output, state, lane, sequence, since, reason, next_at) VALUES (1, ?, 'topic', ?, 0, ?, 9)";
    db.execute(sql, params![state, sequence as i64, reason]).unwrap();
}

fn give(db: &Connection, command: &str, selection: &str) {
    let sql = "INSERT INTO orders (given_at, command, output, selection) VALUES (0, ?, 'kafka', ?)";
    db.execute(sql, [command, selection]).unwrap();
}

/// One step of two rows, with nothing in memory but what the file has, as after a crash. What finished, if anything did.
fn one_step(db: &Connection, last: u64) -> Option<Progress> {
    let mut order = next(db, true).unwrap()?;
    let mut outputs = ledger::read(db).unwrap();
    order.look(db, &outputs, last, 2).unwrap();
    let step = carry_out(db, order, &mut outputs, Timestamp::from_seconds(100)).unwrap();
    for row in &outputs {
        progress::save(db, row).unwrap();
    }
    step.finished.map(|(_, progress)| progress)
}

/// Carries the oldest order out, and counts its steps.
fn all_steps(db: &Connection, last: u64) -> (Progress, u32) {
    for steps in 1..100 {
        if let Some(progress) = one_step(db, last) {
            return (progress, steps);
        }
    }
    panic!("it does not end");
}

fn output(db: &Connection) -> OutputRow {
    ledger::read(db).unwrap().remove(0)
}

fn counts(db: &Connection) -> [i64; 5] {
    output(db).counts.by_state()
}

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_discard_counts_each_event_once_however_its_steps_are_cut() {
    let db = journal(9);
    apart(&db, "held", 1, "topic_missing");
    apart(&db, "parked", 2, "too_large");
    db.execute("UPDATE outputs SET cursor = 3, published = 1, pending = 7, parked = 1", []).unwrap();
    give(&db, "discard", "{}");
    // A step that was rolled back was no step.
    db.execute_batch("BEGIN").unwrap();
    one_step(&db, 9);
    db.execute_batch("ROLLBACK").unwrap();
    let (progress, steps) = all_steps(&db, 9);
    assert_eq!((progress.events, progress.problem), (8, None));
    assert!(steps >= 4, "{steps} steps");
    assert_eq!(counts(&db), [9, 1, 0, 0, 8]);
    assert_eq!(number(&db, "SELECT count(*) FROM trail WHERE state = 'discarded' AND reason = 'journal discard'"), 8);
    assert_eq!(number(&db, "SELECT count(*) FROM apart"), 0);
    assert_eq!(output(&db).cursor, 9, "nothing is left to wait for");
    assert!(next(&db, true).unwrap().is_none());
}

#[test]
fn a_discard_of_some_leaves_the_cursor_to_the_output() {
    let db = journal(9);
    give(&db, "discard", r#"{"event":"tags","through":8}"#);
    assert_eq!(all_steps(&db, 9).0.events, 2);
    assert_eq!(counts(&db), [9, 0, 7, 0, 2]);
    assert_eq!(output(&db).cursor, 0);
    // Later the rest goes, and the cursor passes what was given up before.
    give(&db, "discard", r#"{"state":"pending"}"#);
    assert_eq!(all_steps(&db, 9).0.events, 7);
    assert_eq!((counts(&db), output(&db).cursor), ([9, 0, 0, 0, 9], 9));
}

#[test]
fn what_was_on_its_way_when_it_was_given_up_is_not_counted_again() {
    let settled = |sequence, outcome, has_row| Settlement {
        sequence,
        outcome,
        at: Timestamp::default(),
        lane: "topic".into(),
        was_parked: false,
        has_row,
        event: Some(About::of(&super::super::Stored { sequence, event: event(sequence) })),
    };
    let db = journal(6);
    apart(&db, "held", 1, "topic_missing");
    db.execute("UPDATE outputs SET cursor = 1", []).unwrap();
    give(&db, "discard", r#"{"event":"sms"}"#);
    all_steps(&db, 6);
    assert_eq!(counts(&db), [6, 0, 2, 0, 4]);
    let held = super::super::Apart {
        sequence: 5,
        lane: "topic".into(),
        reason: None,
        attempts: 0,
        next_at: Timestamp::default(),
    };
    let parked = Outcome::Parked { reason: "too_large", detail: String::new(), next_at: Timestamp::default() };
    let told = super::super::Progress {
        cursor: 6,
        settled: vec![
            settled(1, Outcome::Published(Place::Confirmed), true),
            settled(2, Outcome::Published(Place::Confirmed), false),
            settled(3, Outcome::Published(Place::Confirmed), false),
            settled(4, parked, false),
        ],
        held: vec![held],
        ..super::super::Progress::new("".into(), 1, 1)
    };
    let mut row = output(&db);
    let kept = Kept { groups: Default::default() };
    progress::apply(&db, &told, &mut row, &kept, Timestamp::default()).unwrap();
    assert_eq!(row.counts.by_state(), [6, 1, 1, 0, 4], "only the tags was the output's to tell of");
    assert_eq!(number(&db, "SELECT count(*) FROM apart"), 0, "neither held nor parked after all");
    assert_eq!(number(&db, "SELECT count(*) FROM trail WHERE sequence = 2"), 2, "the trail tells both");
}

#[test]
fn a_requeue_makes_parked_events_due_and_leaves_corrupt_ones() {
    let db = journal(5);
    for (sequence, reason) in [(1, "too_large"), (2, "corrupt"), (4, "rejected")] {
        apart(&db, "parked", sequence, reason);
    }
    apart(&db, "held", 3, "unroutable");
    give(&db, "requeue", "{}");
    assert_eq!(all_steps(&db, 5).0.events, 2);
    assert_eq!(number(&db, "SELECT sum(sequence) FROM apart WHERE next_at = 0"), 5);
}

#[test]
fn a_replay_takes_published_events_once() {
    let db = journal(9);
    apart(&db, "parked", 2, "too_large");
    db.execute("UPDATE outputs SET cursor = 7, published = 6, pending = 2, parked = 1", []).unwrap();
    db.execute("INSERT INTO given_up (sequence, output) VALUES (4, 1)", []).unwrap();
    let before = counts(&db);
    give(&db, "replay", r#"{"event":"sms"}"#);
    assert_eq!(all_steps(&db, 9).0.events, 3);
    give(&db, "replay", "{}");
    all_steps(&db, 9);
    let rows = "SELECT group_concat(sequence) FROM apart WHERE state = 'replay'";
    assert_eq!(db.query_row(rows, [], |row| row.get::<_, String>(0)).unwrap(), "1,3,5,6,7");
    assert_eq!(counts(&db), before);
}

#[test]
fn what_is_forgotten_was_removed_and_is_in_the_trail() {
    let db = journal(5);
    apart(&db, "held", 1, "topic_missing");
    apart(&db, "replay", 2, "");
    db.execute("UPDATE outputs SET cursor = 2, published = 1, pending = 4", []).unwrap();
    give(&db, "forget", "{}");
    let (progress, _) = all_steps(&db, 5);
    assert!(progress.problem.unwrap().contains("is configured"));
    ledger::configure(&db, &[], 5, Timestamp::default()).unwrap();
    give(&db, "forget", "{}");
    assert_eq!(all_steps(&db, 5).0.events, 4);
    for table in ["outputs", "spans", "apart", "given_up"] {
        assert_eq!(number(&db, &format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    assert_eq!(number(&db, "SELECT count(*) FROM trail WHERE reason = 'journal forget' AND output = 'kafka'"), 4);
}

#[test]
fn what_cannot_be_carried_out_is_done_and_says_why() {
    let db = journal(1);
    for (command, selection, says) in [
        ("swallow", "{}", "does not know the command"),
        ("discard", "{\"since\":\"noon\"}", "selection cannot be read"),
    ] {
        give(&db, command, selection);
        let progress = one_step(&db, 1).unwrap();
        assert!(progress.problem.as_ref().is_some_and(|why| why.contains(says)), "{progress:?}");
    }
    db.execute("DELETE FROM outputs", []).unwrap();
    give(&db, "discard", "{}");
    let order = next(&db, true).unwrap().unwrap();
    let step = carry_out(&db, order, &mut Vec::new(), Timestamp::default()).unwrap();
    assert!(step.finished.unwrap().1.problem.unwrap().contains("no such output"));
}

#[test]
fn while_no_event_is_taken_an_order_that_makes_room_passes_an_import() {
    let db = journal(1);
    db.execute("INSERT INTO orders (given_at, command, selection) VALUES (0, 'import', '')", []).unwrap();
    give(&db, "discard", "{}");
    assert_eq!(next(&db, false).unwrap().unwrap().command, Some(Command::Discard));
    assert_eq!(next(&db, true).unwrap().unwrap().command, Some(Command::Import));
}
