//! A thread that moves the log's pages into the file beside the writer. SQLite's checkpoint runs in a commit, and requests wait for it; what
//! was moved by then is no work for it any more. The writer still ends each round: only while nobody writes is all of the log in the file, and
//! only then SQLite syncs the file and begins the log anew.
//!
//! Two that checkpoint exclude each other, and who comes second goes on without. SQLite before 3.51.3 could corrupt the file here (its "WAL-reset
//! bug"); the bundled one is newer.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::file;

/// The part of the log's bound that is worth a round. Smaller ones would copy what every commit writes anew again and again; about as much is
/// left to the writer.
const PART: i64 = 4;
/// A small journal's log is so short that the writer moves it as fast; rounds would only get into its way.
const PAGES_MIN: i64 = 100;

/// Ends its thread when dropped, once a round under way is over.
pub(super) struct Ahead {
    /// Without room: it only ever wakes a thread that waits.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    pages: i64,
}

impl Ahead {
    /// Opens a connection of its own to a journal that is open.
    pub fn start(journal: &Path, log_max: u64) -> rusqlite::Result<Self> {
        let db = file::connect(journal, log_max)?;
        let pages: i64 = db.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0))?;
        let (wake, woken) = sync_channel(0);
        // Without the thread the writer does all of it.
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || run(&db, &woken)).ok();
        Ok(Self { wake: Some(wake), thread, pages: (pages / PART).max(PAGES_MIN) })
    }

    /// After a commit over `writer`: begins a round if it is worth it and none is under way.
    pub fn look(&self, writer: &Connection) {
        // What was committed stands, whatever becomes of this.
        if let Ok((log, moved)) = log_and_moved(writer)
            && log - moved >= self.pages
            && let Some(wake) = &self.wake
        {
            let _ = wake.try_send(()); // It is at it, or there is no thread.
        }
    }
}

/// Pages in the log, and those of them that are in the file. Does nothing else.
fn log_and_moved(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    db.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?.query_row([], |row| Ok((row.get(1)?, row.get(2)?)))
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // After a panic of its there is nothing to do that the writer does not do anyway.
        }
    }
}

fn run(db: &Connection, woken: &Receiver<()>) {
    for () in woken {
        // An error is the disk's: what was not moved stays in the log, and the writer meets the same disk.
        let _ = db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock;

    #[test]
    fn a_part_of_the_log_is_moved_before_the_writer_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let lock = file::lock(&path).unwrap();
        let db = file::open(&path, 1 << 30, &lock, clock::now()).unwrap();
        let ahead = Ahead::start(&path, 1 << 30).unwrap();
        ahead.look(&db);
        let until = Instant::now() + Duration::from_secs(30);
        let log_when_moved = loop {
            let (log, moved) = log_and_moved(&db).unwrap();
            if moved > 0 {
                break log;
            }
            assert!(Instant::now() < until, "{log} pages are in the log, and none was moved");
            if log < ahead.pages {
                let name = format!("{log}{}", "x".repeat(2 * file::PAGE_BYTES as usize));
                db.execute("INSERT INTO accounts (name, last_accepted_at) VALUES (?, 1)", [name]).unwrap();
            }
            ahead.look(&db); // Perhaps the thread did not wait yet.
            std::thread::yield_now();
        };
        assert!(log_when_moved < ahead.pages * PART, "{log_when_moved} pages: it was the writer's own checkpoint");
    }
}
