//! Journals of other versions: the one before opens and loses nothing, one from the future is set aside and can be drained.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::damage::{drain, set_aside};
use crate::support::alone::Alone;
use crate::support::scene::Ledger;
use crate::support::wait_until;

const LONG: Duration = Duration::from_secs(60);
/// Written by the version before `additions.sql`: twelve events accepted, five of them published, one the same twice; killed.
const BEFORE: &str = "tests/fixtures/journal-before-additions.db";

fn fixture() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(BEFORE)
}

#[test]
fn a_journal_of_the_version_before_opens_and_loses_nothing() {
    let mut scene = Alone::prepare("");
    fs::copy(fixture(), scene.relay.path("data/journal.db")).expect("the fixture");
    let before = ledger(&scene.relay.path("data/journal.db"));
    let owed: Vec<(i64, Vec<u8>)> = {
        let db = Connection::open(scene.relay.path("data/journal.db")).expect("it opens");
        let mut select = db
            .prepare(
                "SELECT sequence, body FROM events WHERE sequence > (SELECT cursor FROM outputs) ORDER BY sequence",
            )
            .expect("its tables");
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("its rows");
        rows.collect::<Result<_, _>>().expect("its rows")
    };
    assert!(!owed.is_empty());
    scene.relay.run();
    scene.assert_back();
    scene.drained();
    let envelopes = scene.relay.envelopes();
    assert_eq!(envelopes.len(), owed.len() + 1, "what it owed, and one more");
    for ((sequence, body), envelope) in owed.iter().zip(&envelopes) {
        assert_eq!(envelope["relaysequence"], format!("{sequence:020}"));
        let data: serde_json::Value = serde_json::from_slice(body).expect("the fixture's are JSON");
        assert_eq!(envelope["data"], data);
    }
    let ledger = Ledger::read(&scene.relay.metrics(), "console");
    assert_eq!((ledger.accepted, ledger.published), (before + 1.0, before + 1.0));
    assert_eq!(scene.relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 0.0);
}

fn ledger(path: &Path) -> f64 {
    let db = Connection::open(path).expect("it opens");
    db.query_row("SELECT accepted FROM outputs", [], |row| row.get::<_, i64>(0)).expect("its ledger") as f64
}

/// The version before can read ours: its tables are there as it made them, and the file says that it may.
#[test]
fn the_version_before_finds_its_tables_in_ours() {
    let mut scene = Alone::prepare("");
    scene.relay.run();
    scene.assert_back();
    scene.relay.terminate(LONG);
    let tables = |path: &Path| -> Vec<(String, Option<String>)> {
        let db = Connection::open(path).expect("it opens");
        let mut select = db.prepare("SELECT name, sql FROM sqlite_schema ORDER BY name").expect("its schema");
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("its schema");
        rows.collect::<Result<_, _>>().expect("its schema")
    };
    // In a copy, since opening the fixture in place would leave files beside it.
    let copy = scene.relay.path("before.db");
    fs::copy(fixture(), &copy).expect("the fixture");
    let ours = tables(&scene.relay.path("data/journal.db"));
    for table in tables(&copy) {
        assert!(ours.contains(&table), "{} is no more as it was: {:?}", table.0, table.1);
    }
    let readable_by = |path: &Path| -> String {
        let db = Connection::open(path).expect("it opens");
        db.query_row("SELECT value FROM meta WHERE name = 'readable_by'", [], |row| row.get(0)).expect("it says")
    };
    assert_eq!(readable_by(&scene.relay.path("data/journal.db")), readable_by(&copy));
}

#[test]
fn a_file_from_the_future_is_set_aside_whole_and_drained_by_who_can_read_it() {
    let mut scene = Alone::prepare("");
    scene.relay.run_with_output_blocked();
    let load = scene.load(4);
    Alone::wait_for_accepted(&load, 100);
    scene.relay.kill9();
    scene.note(load);
    scene.note_pipe();
    let mark = |path: &Path, format: &str, version: &str| {
        let db = Connection::open(path).expect("the journal");
        let mut update = db.prepare("UPDATE meta SET value = ? WHERE name = ?").expect("its facts");
        update.execute([format, "readable_by"]).expect("it is written");
        update.execute([version, "written_by"]).expect("it is written");
    };
    mark(&scene.relay.path("data/journal.db"), "99", "9.9.9");
    scene.relay.run();
    scene.assert_back();
    assert_eq!(scene.relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 1.0);
    scene.relay.logged(&["it was written by 9.9.9, which this version cannot read"]);
    scene.drained();
    let aside = set_aside(&scene).expect("it is kept");
    // While the relay runs, and by this version: no.
    let (done, text) = drain(&scene, &aside);
    assert!(!done && text.contains("9.9.9"), "{text}");
    assert!(aside.exists(), "it is still there");
    // By a version that can.
    mark(&aside, "1", "9.9.9");
    let (done, text) = drain(&scene, &aside);
    assert!(done, "{text}");
    wait_until("everything to be out", LONG, || scene.verdict().lost.is_empty());
    let verdict = scene.verdict();
    assert!(verdict.altered.is_empty() && verdict.invented.is_empty(), "{verdict}");
    assert_eq!(scene.relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 1.0, "it stays until it is removed");
}
