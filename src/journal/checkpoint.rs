//! Moves the pages of SQLite's log into the file. A thread moves most of them beside the writer; what is left the writer moves between two commits,
//! and only while nobody writes is all of the log in the file: only then SQLite syncs the file and begins the log anew. Two that checkpoint
//! exclude each other, and who comes second goes on without.
//!
//! A fault here is final the first time it is seen. Where Linux cannot write a page back it counts the page as clean, and says so once, at the next
//! sync of the file; and SQLite remembers the pages of earlier rounds as moved, which were not synced then. To try again would sync what is left,
//! and begin the log anew, which alone still has those that were dropped. So the writer closes everything, and the log is moved again from its
//! beginning; see `Writer::reopen`.
//!
//! SQLite before 3.51.3 could corrupt the file here (its "WAL-reset bug"); the bundled one is newer.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tracing::warn;

use super::file;

/// The part of the log's bound that is worth a round. Smaller ones would copy what every commit writes anew again and again; about as much is
/// left to the writer.
const PART: i64 = 4;
/// A small journal's log is so short that the writer moves it as fast; rounds would only get into its way.
const PAGES_MIN: i64 = 100;
/// So many times the log's bound, which only a long read leaves, are the thread's alone: requests would wait for it.
const MUCH: i64 = 2;
/// How long the log may grow before it is looked at again: some commits, of ten pages each. SQLite compiles that question anew each time, which takes
/// longer than to insert an event.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Ends its thread when dropped, once a round under way is over.
pub(super) struct Checkpoints {
    /// Pages of the log from which on all of it is to get into the file.
    log_pages: i64,
    round_pages: i64,
    beside: Option<Beside>,
    fault: Fault,
    looked_at: Instant,
}

/// What the thread is asked to do.
enum Work {
    /// To move what can be moved.
    Round,
    /// To copy all that this journal holds beside it, and to say how that ended.
    Save(PathBuf, Sender<Result<(), String>>),
}

/// What a round ended with. The thread holds it as long as it is at a round, so that nobody checkpoints between a fault and its being told.
type Fault = Arc<Mutex<Option<rusqlite::Error>>>;

struct Beside {
    /// Without room: it only ever wakes a thread that waits.
    wake: SyncSender<Work>,
    thread: JoinHandle<()>,
}

impl Checkpoints {
    /// Beside the writer of a journal that is open. Without its thread the writer does all of it.
    pub fn start(journal: &Path, log_max: u64, writer: &Connection) -> rusqlite::Result<Self> {
        let log_pages = file::log_pages(writer, log_max)?;
        let fault = Fault::default();
        let beside = start(journal, log_max, &fault)
            .inspect_err(|problem| {
                warn!(journal.path = %journal.display(), "requests wait for each checkpoint of the journal: {problem}");
            })
            .ok();
        Ok(Self { log_pages, round_pages: (log_pages / PART).max(PAGES_MIN), beside, fault, looked_at: Instant::now() })
    }

    /// Between two commits over `writer`: moves what it is time to move. `is_idle`: nobody waits; then nothing stays half moved, and not synced.
    ///
    /// # Errors
    /// The disk's, here or in a round beside. Nothing may be written over this connection any more, or what the disk dropped is lost.
    pub fn advance(&mut self, writer: &Connection, is_idle: bool) -> rusqlite::Result<()> {
        let mut fault = match self.fault.try_lock() {
            Ok(fault) => fault,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()), // A round is under way.
        };
        if let Some(fault) = fault.take() {
            return Err(fault);
        }
        // A small journal's log is at its bound within that time.
        if !is_idle && self.log_pages > PAGES_MIN && self.looked_at.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at = Instant::now();
        let Some((log, moved)) = log_and_moved(writer)? else { return Ok(()) };
        let left = log - moved;
        if log >= self.log_pages || (is_idle && moved > 0 && left > 0) {
            let is_much = left >= self.round_pages.max(self.log_pages * MUCH);
            if !is_much || !self.beside.as_ref().is_some_and(Beside::wake) {
                move_all(writer)?;
            }
        } else if left >= self.round_pages
            && let Some(beside) = &self.beside
        {
            beside.wake();
        }
        Ok(())
    }

    /// Moves all of the log into the file and syncs it, if no reader and no round is in the way. True if nothing is left.
    ///
    /// # Errors
    /// As of [`Checkpoints::advance`].
    pub fn finish(&mut self, writer: &Connection) -> rusqlite::Result<bool> {
        self.looked_at = Instant::now().checked_sub(LOOK_EVERY).unwrap_or(self.looked_at);
        self.advance(writer, false)?; // A fault of a round is told first.
        move_all(writer)?;
        Ok(log_and_moved(writer)?.is_some_and(|(log, moved)| log == moved))
    }

    /// Begins to copy all that the journal holds ([`file::begin_saving`]): beside the writer, and also when the journal has no name any more, since the
    /// connection is open. Gives where to hear how that ended; `None` while a round or another copy is under way.
    ///
    /// # Errors
    /// There is no thread that could.
    pub fn save(&self, journal: &Path) -> Result<Option<Receiver<Result<(), String>>>, String> {
        let (said, saved) = channel();
        let beside = self.beside.as_ref().ok_or("the thread that copies is gone")?;
        match beside.wake.try_send(Work::Save(journal.to_owned(), said)) {
            Ok(()) => Ok(Some(saved)),
            Err(TrySendError::Full(_)) => Ok(None),
            Err(TrySendError::Disconnected(_)) => Err("the thread that copies is gone".to_owned()),
        }
    }

    /// Whether a round has failed and nobody was told.
    pub fn has_failed(&self) -> bool {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the thread, once a round under way is over.
    pub fn stop(&mut self) {
        if let Some(Beside { wake, thread }) = self.beside.take() {
            drop(wake);
            let _ = thread.join(); // After a panic of its there is nothing to do that the writer does not do anyway.
        }
    }
}

impl Beside {
    /// False if there is no thread any more.
    fn wake(&self) -> bool {
        !matches!(self.wake.try_send(Work::Round), Err(TrySendError::Disconnected(_))) // Full: it has not come to wait yet.
    }
}

fn start(journal: &Path, log_max: u64, fault: &Fault) -> Result<Beside, String> {
    let db = file::connect(journal, log_max).map_err(|error| error.to_string())?;
    let (wake, woken) = sync_channel(0);
    let fault = Arc::clone(fault);
    let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(move || run(&db, &woken, &fault));
    thread.map(|thread| Beside { wake, thread }).map_err(|error| format!("no thread: {error}"))
}

fn run(db: &Connection, woken: &Receiver<Work>, fault: &Mutex<Option<rusqlite::Error>>) {
    for work in woken {
        if let Work::Save(journal, said) = work {
            let _ = said.send(save(db, &journal)); // The journal may be back, and nobody wait any more.
            continue;
        }
        let mut fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = move_all(db) {
            *fault = Some(error);
            return;
        }
    }
}

/// What is in the log is copied too, and what was deleted is not.
fn save(db: &Connection, journal: &Path) -> Result<(), String> {
    let to = file::begin_saving(journal).map_err(|error| error.to_string())?;
    db.execute("VACUUM INTO ?", [to.to_str().ok_or("its path is not UTF-8")?]).map_err(|error| error.to_string())?;
    let synced = File::open(&to).and_then(|copy| copy.sync_all());
    synced.and_then(|()| file::finish_saving(journal)).map_err(|error| error.to_string())
}

/// Moves what can be moved, which is nothing while another moves.
fn move_all(db: &Connection) -> rusqlite::Result<()> {
    db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |_| Ok(()))
}

/// Pages in the log, and those of them that are in the file. Does nothing else. `None` if that cannot be told now, while another process writes.
pub(super) fn log_and_moved(db: &Connection) -> rusqlite::Result<Option<(i64, i64)>> {
    let mut ask = db.prepare_cached("PRAGMA wal_checkpoint(NOOP)")?;
    let (busy, log, moved): (i64, i64, i64) = ask.query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok((busy == 0 && moved >= 0).then_some((log, moved)))
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        // A writer that panicked ends the process, and may not wait for a round that hangs in the disk.
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const LOG_MAX: u64 = 1 << 30;

    fn journal(folder: &Path) -> (std::path::PathBuf, file::Lock, Connection) {
        let path = folder.join("journal.db");
        let lock = file::lock(&path).unwrap();
        let db = file::open(&path, LOG_MAX, &lock, clock::now()).unwrap();
        (path, lock, db)
    }

    /// A commit of some two pages.
    fn commit(db: &Connection) {
        let (log, _) = log_and_moved(db).unwrap().unwrap();
        let name = format!("{log}{}", "x".repeat(2 * file::PAGE_BYTES as usize));
        db.execute("INSERT OR REPLACE INTO accounts (name, last_accepted_at) VALUES (?, 1)", [name]).unwrap();
    }

    #[test]
    fn a_part_of_the_log_is_moved_beside_the_writer() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _lock, db) = journal(folder.path());
        let mut checkpoints = Checkpoints::start(&path, LOG_MAX, &db).unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        let log_when_moved = loop {
            let (log, moved) = log_and_moved(&db).unwrap().unwrap();
            if moved > 0 {
                break log;
            }
            assert!(Instant::now() < until, "{log} pages are in the log, and none was moved");
            if log < checkpoints.round_pages {
                commit(&db);
            }
            checkpoints.advance(&db, false).unwrap(); // Perhaps the thread did not wait yet.
            std::thread::yield_now();
        };
        assert!(log_when_moved < checkpoints.log_pages, "{log_when_moved} pages: it was the writer");
    }

    #[test]
    fn without_the_thread_the_writer_moves_all_and_the_log_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _lock, db) = journal(folder.path());
        let mut checkpoints = Checkpoints::start(&path, LOG_MAX, &db).unwrap();
        checkpoints.beside = None;
        let mut most = 0;
        loop {
            commit(&db);
            let (log, _) = log_and_moved(&db).unwrap().unwrap();
            if log < most {
                break;
            }
            most = log;
            assert!(most < checkpoints.log_pages * 2, "{most} pages");
            checkpoints.advance(&db, false).unwrap();
        }
    }

    #[test]
    fn while_nobody_waits_nothing_stays_half_moved() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _lock, db) = journal(folder.path());
        let mut checkpoints = Checkpoints::start(&path, LOG_MAX, &db).unwrap();
        let told = || log_and_moved(&db).unwrap().unwrap();
        let reader = file::open_reader(&path).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        reader.query_row("SELECT count(*) FROM accounts", [], |_| Ok(())).unwrap();
        commit(&db);
        move_all(&db).unwrap();
        reader.execute_batch("COMMIT").unwrap();
        let (log, moved) = told();
        assert!(0 < moved && moved < log, "{moved} of {log} pages");
        checkpoints.looked_at = Instant::now() - LOOK_EVERY;
        checkpoints.advance(&db, false).unwrap();
        assert_eq!(told(), (log, moved));
        checkpoints.advance(&db, true).unwrap();
        assert_eq!(told(), (log, log));
    }

    #[test]
    fn a_fault_of_a_round_is_the_writer_s() {
        let folder = tempfile::tempdir().unwrap();
        let (path, _lock, db) = journal(folder.path());
        let mut checkpoints = Checkpoints::start(&path, LOG_MAX, &db).unwrap();
        let fault = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC), None);
        *checkpoints.fault.lock().unwrap() = Some(fault);
        assert!(checkpoints.has_failed());
        assert!(checkpoints.advance(&db, false).is_err());
    }
}
