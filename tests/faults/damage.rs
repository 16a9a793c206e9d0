//! A damaged journal: what can be read is saved, the rest reported, and the relay accepts in any case.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
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

/// Takes 10 to 20 s: two or three starts for each destroyed page, and a drain that waits for what it cannot read.
///
/// Every page of a settled journal, or as many as FAULTS_PAGES says, overwritten in turn.
#[test]
fn whichever_page_is_destroyed_the_relay_accepts_and_nothing_is_lost_unreported() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut scene = Alone::prepare("");
    scene.relay.run_with_output_blocked();
    let load = scene.load(4);
    Alone::wait_for_accepted(&load, 150);
    scene.relay.kill9();
    scene.note(load);
    scene.note_pipe();
    let path = scene.relay.path("data/journal.db");
    let db = rusqlite::Connection::open(&path).expect("the journal");
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("nobody else has it");
    drop(db);
    let whole = fs::read(&path).expect("the journal");
    let pages = whole.len() / PAGE;
    let mut chosen: Vec<usize> = (0..pages).collect();
    random.shuffle(&mut chosen);
    chosen.truncate(count("FAULTS_PAGES", 3));
    for page in chosen {
        for entry in fs::read_dir(scene.relay.path("data")).expect("the folder").filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with("journal.db") {
                fs::remove_file(entry.path()).expect("it is the test's");
            }
        }
        fs::write(&path, &whole).expect("the journal");
        let file = OpenOptions::new().write(true).open(&path).expect("the journal");
        file.write_all_at(&[0x5a; PAGE], (page * PAGE) as u64).expect("a page");
        let _ = fs::remove_file(scene.relay.path("stdout"));
        let sent = scene.sent.clone();
        scene.relay.run();
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        // What is settled now may meet the page later.
        let is_settled = |scene: &Alone| {
            let metrics = scene.relay.metrics();
            metrics.get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0 && scene.is_ready()
        };
        wait_until("nothing to be pending", LONG, || is_settled(&scene));
        scene.assert_back();
        wait_until("nothing to be pending", LONG, || is_settled(&scene));
        let metrics = scene.relay.metrics();
        let parked = metrics.get("sipsim_relay_events_parked", &[("output", "console")]) as usize;
        scene.relay.terminate(LONG);
        let aside = set_aside(&scene);
        let drained = aside.as_ref().map(|aside| drain(&scene, aside));
        assert!(!fs::exists(format!("{}.set-aside", path.display())).expect("the folder"));
        let verdict = scene.verdict();
        eprintln!(
            "page {page} of {pages}: {} lost, {parked} parked, set aside {}, drained {drained:?}",
            verdict.lost.len(),
            aside.is_some()
        );
        assert!(verdict.altered.is_empty() && verdict.invented.is_empty(), "page {page}: {verdict}");
        match drained {
            None => assert!(verdict.lost.len() <= parked, "page {page}: {parked} parked, {verdict}"),
            Some((true, _)) => assert!(verdict.lost.is_empty(), "page {page}: drain says that all is out: {verdict}"),
            Some((false, text)) => assert!(!text.is_empty(), "page {page}: it says why"),
        }
        scene.sent = sent;
    }
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
    for destroyed in [["outputs"].as_slice(), &["apart"], &["requests"], &["outputs", "events"]] {
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
