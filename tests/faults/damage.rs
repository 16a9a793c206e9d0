//! A damaged journal: what can be read is saved, the rest reported, and the relay accepts in any case.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{count, disk, seed};
use crate::support::alone::Alone;
use crate::support::shim::journal_files;
use crate::support::{finish, wait_until};

const LONG: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;

/// The file that was set aside, if one was.
pub fn set_aside(scene: &Alone) -> Option<PathBuf> {
    journal_files(&scene.relay.path("data")).into_iter().find(|path| {
        let name = path.to_string_lossy();
        name.contains(".set-aside-") && !name.ends_with("-wal")
    })
}

/// `drain` over a file that was set aside: whether it says that nothing is left, and all that it printed beside events.
pub fn drain(scene: &Alone, aside: &std::path::Path) -> (bool, String) {
    fs::write(scene.relay.path("aside.toml"), format!("[journal]\npath = \"{}\"\n", aside.display())).expect("a file");
    let mut command = crate::support::program(&scene.relay.path(""));
    let output = finish(command.args(["drain", "--timeout", "3s", "--config", "aside.toml"]), LONG);
    let mut printed = fs::read(scene.relay.path("stdout")).unwrap_or_default();
    printed.extend(&output.stdout);
    fs::write(scene.relay.path("stdout"), printed).expect("a file");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Events of [`journal`], and the last that an output is done with.
const EVENTS: u64 = 300;
const CURSOR: u64 = 160;

/// How the events of [`journal`] stand: those that are still to be published, and those that are to be sent again.
fn is_owed(sequence: u64) -> bool {
    sequence > CURSOR || matches!(sequence % 10, 1 | 2)
}

fn is_replay(sequence: u64) -> bool {
    sequence <= CURSOR && sequence % 10 == 3
}

/// A journal as one file with published, held, parked, replayed and pending events, some of them larger than a page, a trail, and pages that are free.
fn journal(scene: &mut Alone) -> Vec<u8> {
    scene.relay.run_with_output_blocked();
    for number in 1..=EVENTS {
        let padding = "x".repeat(if number % 25 == 0 { 9_000 } else { 150 });
        let body = format!(r#"{{"event":"incoming_call_end","pbx_id":"call_{number}","padding":"{padding}"}}"#);
        assert_eq!(scene.relay.post(body.as_bytes()).status, 200);
    }
    scene.relay.kill9();
    scene.relay.read_pipe();
    let path = scene.relay.path("data/journal.db");
    let db = rusqlite::Connection::open(&path).expect("the journal");
    db.execute_batch(&format!(
        "DELETE FROM apart; DELETE FROM trail;
         INSERT INTO apart (output, state, lane, sequence, since, reason)
           SELECT 1, iif(sequence % 10 = 1, 'held', iif(sequence % 10 = 2, 'parked', 'replay')), iif(sequence % 10 = 3, '', 'console'), sequence, 0,
             iif(sequence % 10 = 2, 'too_large', NULL) FROM events WHERE sequence <= {CURSOR} AND sequence % 10 IN (1, 2, 3);
         INSERT INTO trail (at, sequence, output, state, account, id, name, received_at)
           SELECT received_at, sequence, 'console', 'published', account, id, name, received_at FROM events WHERE sequence <= {CURSOR};
         UPDATE outputs SET cursor = {CURSOR}, progress = 0, pending = {EVENTS} - {CURSOR} + 16, parked = 16, published = {CURSOR} - 32;
         INSERT INTO orders (given_at, command, selection, done_at) VALUES (0, 'discard', '{{}}', 0);
         CREATE TABLE free (bytes BLOB); INSERT INTO free VALUES (zeroblob(100000)); DROP TABLE free;"
    ))
    .expect("its tables");
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else has it");
    drop(db);
    fs::read(&path).expect("the journal")
}

/// Waits until all of the log of a running relay's journal is in the file.
fn empty_log(journal: &Path) {
    let db = rusqlite::Connection::open(journal).expect("the journal");
    let moved = || db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(1)).ok() == Some(0);
    wait_until("all of the log to be in the file", LONG, moved);
}

/// Each page of a journal with what it is of: a table or an index, and its kind there.
fn pages(path: &Path, count: usize) -> Vec<(usize, String)> {
    let db = rusqlite::Connection::open(path).expect("the journal");
    let mut select =
        db.prepare("SELECT pageno - 1, name || ' ' || pagetype FROM dbstat ORDER BY name, path").expect("dbstat");
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("its pages");
    let mut pages: Vec<(usize, String)> = rows.collect::<Result<_, _>>().expect("its pages");
    let used: Vec<usize> = pages.iter().map(|(page, _)| *page).collect();
    pages.extend((0..count).filter(|page| !used.contains(page)).map(|page| (page, "free".to_owned())));
    pages
}

/// Puts the journal in place, with a page of it overwritten. Gives the events that can still be read.
fn place(scene: &Alone, whole: &[u8], page: usize) -> BTreeSet<u64> {
    for entry in fs::read_dir(scene.relay.path("data")).expect("the folder").filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("journal.db") {
            fs::remove_file(entry.path()).expect("it is the test's");
        }
    }
    let (path, copy) = (scene.relay.path("data/journal.db"), scene.relay.path("copy.db"));
    for path in [&path, &copy] {
        let mut bytes = whole.to_vec();
        bytes[page * PAGE..][..PAGE].fill(0x5a);
        fs::write(path, bytes).expect("the journal");
    }
    for name in ["stdout", "stderr"] {
        let _ = fs::remove_file(scene.relay.path(name));
    }
    let Ok(db) = rusqlite::Connection::open(&copy) else { return BTreeSet::new() };
    let reads = |sequence: &u64| {
        let sql = "SELECT json_valid(body) FROM events WHERE sequence = ?";
        db.query_row(sql, [*sequence as i64], |row| row.get(0)).unwrap_or(false)
    };
    (1..=EVENTS).filter(reads).collect()
}

/// The numbers of what was printed: of first deliveries, and of what was sent again by order.
fn printed(scene: &Alone) -> (Vec<u64>, Vec<u64>) {
    let envelopes = scene.relay.envelopes();
    let number = |envelope: &serde_json::Value| {
        envelope["relaysequence"].as_str().expect("it has one").parse().expect("a number")
    };
    let (again, first): (Vec<_>, Vec<_>) = envelopes.iter().partition(|envelope| envelope["replayed"] == true);
    (first.into_iter().map(number).collect(), again.into_iter().map(number).collect())
}

fn metric(scene: &Alone, name: &str) -> f64 {
    scene.relay.metrics().get(&format!("sipsim_relay_{name}"), &[("output", "console")])
}

/// All that can be read is published, in order and once, and the rest is named, once.
fn assert_published(scene: &Alone, readable: &BTreeSet<u64>, what: &str) {
    let (first, mut again) = printed(scene);
    let first: Vec<u64> = first.into_iter().filter(|sequence| *sequence <= EVENTS).collect();
    let owed = |sequence: &u64| is_owed(*sequence) && readable.contains(sequence);
    let expected: BTreeSet<u64> = (1..=EVENTS).filter(owed).collect();
    assert_eq!(first.iter().copied().collect::<BTreeSet<_>>(), expected, "{what}");
    assert_eq!(first.len(), expected.len(), "{what}: some twice");
    assert!(first.iter().filter(|sequence| **sequence > CURSOR).is_sorted(), "{what}: {first:?}");
    again.sort_unstable();
    let replays = (1..=EVENTS).filter(|sequence| is_replay(*sequence) && readable.contains(sequence));
    assert_eq!(again, replays.collect::<Vec<_>>(), "{what}: sent again");
    let log = scene.relay.stderr();
    for sequence in (1..=EVENTS).filter(|sequence| is_owed(*sequence)) {
        let named = format!("event.sequence={sequence}");
        let named = log
            .lines()
            .filter(|line| line.contains("is corrupt; it is parked") && line.split(' ').any(|word| word == named));
        assert_eq!(named.count(), usize::from(!readable.contains(&sequence)), "{what}: event {sequence}");
    }
}

/// Takes 1 to 2 minutes: a life of the relay for each destroyed page, three to five seconds each.
///
/// A page of each kind and, of events with their content, the first, the last and one between; FAULTS_PAGES (0) says how many others.
#[test]
fn whichever_page_is_destroyed_the_relay_accepts_and_all_that_can_be_read_is_published() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut scene = Alone::prepare("[journal]\nretention = \"1h\"\n");
    let whole = journal(&mut scene);
    // Not before: on a busy machine to make the journal takes longer than that.
    let config = fs::read_to_string(scene.relay.path("relay.toml")).expect("the configuration");
    fs::write(scene.relay.path("relay.toml"), config.replace("\"1h\"", "\"1s\"")).expect("it is the test's");
    let all = pages(&scene.relay.path("data/journal.db"), whole.len() / PAGE);
    let leaves: Vec<usize> = all.iter().filter(|(_, kind)| kind == "events leaf").map(|(page, _)| *page).collect();
    assert!(leaves.len() > 10, "{all:?}");
    let mut chosen = vec![leaves[0], leaves[leaves.len() / 2], leaves[leaves.len() - 1]];
    for (place, (page, kind)) in all.iter().enumerate() {
        if kind != "events leaf" && all[..place].iter().all(|(_, other)| other != kind) {
            chosen.push(*page);
        }
    }
    let mut others: Vec<usize> = all.iter().map(|(page, _)| *page).filter(|page| !chosen.contains(page)).collect();
    random.shuffle(&mut others);
    chosen.extend(others.into_iter().take(count("FAULTS_PAGES", 0)));
    for page in chosen {
        let kind = &all.iter().find(|(one, _)| *one == page).expect("it is among them").1;
        let what = format!("page {page}, {kind}");
        eprintln!("-- {what}");
        let readable = place(&scene, &whole, page);
        let parked = (1..=EVENTS).filter(|sequence| is_owed(*sequence) && !readable.contains(sequence)).count();
        scene.relay.run();
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        scene.assert_back();
        let may_be_set_aside = ["sqlite_schema", "meta", "outputs", "spans", "apart"];
        let is_index = kind.starts_with("apart_by_sequence") || kind.starts_with("apart_parked");
        let may_be_set_aside =
            may_be_set_aside.iter().any(|table| kind.starts_with(table)) && !is_index || kind == "events internal";
        wait_until("nothing to be pending", LONG, || metric(&scene, "events_pending") == 0.0);
        if let Some(aside) = set_aside(&scene) {
            assert!(may_be_set_aside, "{what}: set aside\n{}", scene.relay.stderr());
            scene.relay.terminate(LONG);
            let (drained, text) = drain(&scene, &aside);
            eprintln!("{what}: set aside; drained {drained}: {text}");
            continue;
        }
        wait_until("what is parked to be tried", LONG, || metric(&scene, "events_parked") == parked as f64);
        let apart = || {
            printed(&scene).1.len()
                >= (1..=EVENTS).filter(|sequence| is_replay(*sequence) && readable.contains(sequence)).count()
        };
        wait_until("what is to be sent again", LONG, apart);
        // Of a damaged page and its neighbours nothing can be deleted, and what stood apart, as what was held for a moment, goes a minute later.
        let listed = |state: &str| {
            let list = scene.relay.finish(&["journal", "list", "--state", state, "--format", "json"]);
            let text = String::from_utf8_lossy(&list.stdout).into_owned();
            assert!(!String::from_utf8_lossy(&list.stderr).contains("malformed"), "{what}: {list:?}");
            text.lines()
                .map(|line| {
                    serde_json::from_str::<serde_json::Value>(line).expect("JSON")["sequence"]
                        .as_u64()
                        .expect("a number")
                })
                .collect::<Vec<u64>>()
        };
        wait_until("most of the published to be deleted", LONG, || listed("published").len() < 200);
        let corrupt: Vec<u64> =
            (1..=EVENTS).filter(|sequence| is_owed(*sequence) && !readable.contains(sequence)).collect();
        assert_eq!(listed("parked"), corrupt, "{what}");
        assert_published(&scene, &readable, &what);
        for order in ["requeue", "discard"] {
            let done = scene.relay.finish(&["journal", order, "--output", "console", "--state", "parked", "--yes"]);
            assert!(done.status.success(), "{what}: {order}: {done:?}");
        }
        wait_until("what was parked to be given up", LONG, || metric(&scene, "events_parked") == 0.0);
        let exported = scene.relay.finish(&["journal", "export"]);
        assert!(!String::from_utf8_lossy(&exported.stderr).contains("malformed"), "{what}: {exported:?}");
        scene.assert_back();
        wait_until("nothing to be pending", LONG, || metric(&scene, "events_pending") == 0.0);
        assert!(set_aside(&scene).is_none(), "{what}: set aside later");
        scene.relay.terminate(LONG);
        eprintln!("{what}: {} of {EVENTS} readable, {parked} parked", readable.len());
    }
}

/// Takes 5 to 10 s.
///
/// The first and the last page of events, and the last two: neither end of the table can be read.
#[test]
fn both_ends_of_the_events_destroyed_cost_their_events() {
    let mut scene = Alone::prepare("");
    let whole = journal(&mut scene);
    let all = pages(&scene.relay.path("data/journal.db"), whole.len() / PAGE);
    let leaves: Vec<usize> = all.iter().filter(|(_, kind)| kind == "events leaf").map(|(page, _)| *page).collect();
    for other in [leaves[0], leaves[leaves.len() - 2]] {
        let mut damaged = whole.clone();
        damaged[other * PAGE..][..PAGE].fill(0x5a);
        let readable = place(&scene, &damaged, leaves[leaves.len() - 1]);
        scene.relay.run();
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        scene.assert_back();
        wait_until("nothing to be pending", LONG, || metric(&scene, "events_pending") == 0.0);
        let corrupt = (1..=EVENTS).filter(|sequence| is_owed(*sequence) && !readable.contains(sequence)).count();
        wait_until("what is parked to be tried", LONG, || metric(&scene, "events_parked") == corrupt as f64);
        assert!(set_aside(&scene).is_none(), "{}", scene.relay.stderr());
        assert_published(&scene, &readable, &format!("the last page of events and page {other}"));
        scene.relay.terminate(LONG);
    }
}

/// Takes 5 to 10 s.
#[test]
fn drain_publishes_all_but_a_page_of_events_once_and_says_what_is_left() {
    let mut scene = Alone::prepare("");
    let whole = journal(&mut scene);
    let all = pages(&scene.relay.path("data/journal.db"), whole.len() / PAGE);
    let leaves: Vec<usize> = all.iter().filter(|(_, kind)| kind == "events leaf").map(|(page, _)| *page).collect();
    for page in [leaves[0], leaves[leaves.len() / 2], leaves[leaves.len() - 1]] {
        let readable = place(&scene, &whole, page);
        let start = std::time::Instant::now();
        scene.relay.spawn_command(&["drain", "--timeout", "50s"]);
        let status = crate::support::wait_for("drain to end", LONG, || scene.relay.try_wait());
        scene.relay.kill9_if_alive();
        assert!(start.elapsed() < Duration::from_secs(30), "it waits for nothing that may still come");
        assert_eq!(status.code(), Some(1), "{}", scene.relay.stderr());
        assert!(scene.relay.stderr().contains("left are"), "{}", scene.relay.stderr());
        assert_published(&scene, &readable, &format!("page {page}"));
    }
}

/// Takes 5 to 10 s.
#[test]
fn a_page_of_published_events_that_is_destroyed_under_the_relay_stays_and_is_told() {
    let mut scene = Alone::prepare("[journal]\nretention = \"3s\"\n");
    scene.relay.run();
    for number in 1..=EVENTS {
        let body =
            format!(r#"{{"event":"incoming_call_end","pbx_id":"call_{number}","padding":"{}"}}"#, "x".repeat(150));
        assert_eq!(scene.relay.post(body.as_bytes()).status, 200);
    }
    scene.drained();
    let path = scene.relay.path("data/journal.db");
    empty_log(&path);
    // Not the first, which may be half empty by now.
    let events = pages(&path, 0).into_iter().filter(|(_, kind)| kind == "events leaf").map(|(page, _)| page);
    let page = events.collect::<Vec<_>>()[5];
    let file = OpenOptions::new().write(true).open(&path).expect("the journal");
    file.write_all_at(&[0x5a; PAGE], (page * PAGE) as u64).expect("a page");
    scene.relay.logged(&["cannot be deleted, since pages of the journal's file are damaged"]);
    scene.assert_back();
    assert!(set_aside(&scene).is_none(), "{}", scene.relay.stderr());
    scene.drained();
    scene.relay.restart();
    wait_until("the relay to be ready", LONG, || scene.is_ready());
    scene.assert_back();
    scene.drained();
    assert!(set_aside(&scene).is_none(), "{}", scene.relay.stderr());
    scene.relay.terminate(LONG);
    let verified = scene.relay.finish(&["journal", "verify"]);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.code() == Some(1) && said.contains("the file: "), "{said}");
}

/// Takes 5 s.
#[test]
fn a_journal_whose_structure_is_destroyed_is_set_aside_and_the_next_one_published() {
    let mut scene = Alone::prepare("");
    scene.relay.run();
    (0..20).for_each(|_| scene.assert_back());
    scene.drained();
    let path = scene.relay.path("data/journal.db");
    empty_log(&path);
    let page = page_of(&path, "meta");
    let file = OpenOptions::new().write(true).open(&path).expect("the journal");
    file.write_all_at(&[0x5a; PAGE], (page * PAGE) as u64).expect("a page");
    // The writer has the page in memory; whoever opens the file anew has not.
    scene.relay.restart();
    wait_until("the journal to be set aside", LONG, || set_aside(&scene).is_some());
    let printed = scene.relay.envelopes().len();
    (0..20).for_each(|_| scene.assert_back());
    wait_until("the new one's events to come", LONG, || scene.relay.envelopes().len() >= printed + 20);
}

/// Takes 5 to 10 s.
///
/// Several outputs meet the page at once, and the file was mended for the first of them.
#[test]
fn a_destroyed_index_is_made_anew_however_many_outputs_read_it() {
    let mut scene =
        Alone::prepare("[outputs.console]\n[outputs.x]\ntype = \"console\"\n[outputs.y]\ntype = \"console\"\n");
    let whole = journal(&mut scene);
    let all = pages(&scene.relay.path("data/journal.db"), whole.len() / PAGE);
    for index in ["apart_parked leaf", "apart_by_sequence leaf"] {
        let page = all.iter().find(|(_, kind)| kind == index).expect("the index has a page").0;
        place(&scene, &whole, page);
        scene.relay.run();
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        wait_until("nothing to be parked", LONG, || metric(&scene, "events_parked") == 0.0);
        wait_until("nothing to be pending", LONG, || metric(&scene, "events_pending") == 0.0);
        assert!(set_aside(&scene).is_none(), "{index}: {}", scene.relay.stderr());
        scene.relay.logged(&["the index is made anew"]);
        scene.relay.terminate(LONG);
    }
}

/// Takes half a minute: three times it is tried in vain to save what cannot be read.
#[test]
fn a_journal_that_is_gone_and_cannot_be_saved_does_not_stop_accepting_for_ever() {
    let mut scene = Alone::prepare("");
    let whole = journal(&mut scene);
    let all = pages(&scene.relay.path("data/journal.db"), whole.len() / PAGE);
    let leaves: Vec<usize> = all.iter().filter(|(_, kind)| kind == "events leaf").map(|(page, _)| *page).collect();
    place(&scene, &whole, leaves[leaves.len() / 2]);
    scene.relay.run();
    wait_until("nothing to be pending", LONG, || metric(&scene, "events_pending") == 0.0);
    assert!(metric(&scene, "events_parked") > 0.0, "what cannot be read is parked");
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        fs::remove_file(scene.relay.path("data").join(name)).expect("it is there");
    }
    scene.relay.logged(&["cannot be saved"]);
    wait_until("events to be accepted again", LONG, || scene.is_ready());
    scene.assert_back();
    scene.relay.logged(&["parked events are lost"]);
}

/// The first page of a table, counted from 0, and a page of events in the middle of them.
fn page_of(journal: &std::path::Path, table: &str) -> usize {
    let db = rusqlite::Connection::open(journal).expect("the journal");
    let root = "SELECT rootpage FROM sqlite_schema WHERE name = ?";
    let root: i64 = db.query_row(root, [table], |row| row.get(0)).expect("the table");
    let page = usize::try_from(root).expect("a page") - 1;
    match table {
        // Its first page only leads to others: the right-most of them stands at 8 to 11 of its head, any other in its cells.
        "events" => {
            let bytes = fs::read(journal).expect("the journal");
            let head = &bytes[page * PAGE..][..PAGE];
            assert_eq!(head[0], 5, "300 events are more than a page");
            let cell = usize::from(u16::from_be_bytes([head[16], head[17]]));
            u32::from_be_bytes(head[cell..cell + 4].try_into().expect("four")) as usize - 1
        }
        _ => page,
    }
}

/// Takes 10 to 20 s: four journals are filled, destroyed, set aside, exported and imported.
///
/// Without a table by which the relay finds its way it sets the file aside, and `drain` can do nothing with it: `export` saves every event that
/// can be read, `import` takes it, and what cannot be read is named.
#[test]
fn export_saves_what_can_be_read_of_a_file_that_was_set_aside() {
    for destroyed in [["outputs"].as_slice(), &["apart"], &["outputs", "events"]] {
        let mut scene = Alone::prepare("");
        disk::pending(&mut scene, true);
        let path = scene.relay.path("data/journal.db");
        let pages: Vec<usize> = destroyed.iter().map(|table| page_of(&path, table)).collect();
        let file = OpenOptions::new().write(true).open(&path).expect("the journal");
        pages.iter().for_each(|page| file.write_all_at(&[0x5a; PAGE], (page * PAGE) as u64).expect("a page"));
        scene.relay.run();
        // Of some it shows while the relay cleans up, a moment after it was ready.
        wait_until("the journal to be set aside", LONG, || set_aside(&scene).is_some());
        scene.assert_back();
        let aside = set_aside(&scene).expect("it was there just now");
        fs::write(scene.relay.path("aside.toml"), format!("[journal]\npath = \"{}\"\n", aside.display()))
            .expect("a file");
        let mut export = crate::support::program(&scene.relay.path(""));
        let exported = finish(export.args(["journal", "export", "--config", "aside.toml"]), LONG);
        let notices = String::from_utf8_lossy(&exported.stderr).into_owned();
        fs::write(scene.relay.path("lines"), &exported.stdout).expect("a file");
        let imported = scene.relay.finish(&["journal", "import", "lines"]);
        assert!(imported.status.success(), "{destroyed:?}: {}", String::from_utf8_lossy(&imported.stderr));
        scene.drained();
        let verdict = scene.verdict();
        eprintln!("{destroyed:?}: {verdict}\n{notices}");
        assert!(verdict.altered.is_empty() && verdict.invented.is_empty(), "{destroyed:?}: {verdict}");
        // Exit code 0 would say that nothing is missing.
        match destroyed.contains(&"events") {
            false => assert!(verdict.lost.is_empty(), "{destroyed:?}: {verdict}"),
            true => {
                assert!(!exported.status.success() && notices.contains("cannot be read"), "{notices}");
                assert!((1..60).contains(&verdict.lost.len()), "a page of events, and no more: {verdict}");
            }
        }
    }
}
