//! Reading back: short transactions over a connection of one's own, so that the log can always be checkpointed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, params};

use super::fetch::{self, CONTENT, Found, HEADS, TIMES};
use super::file::FileId;
use super::inspect::Head;
use super::progress::NEVER;
use super::row::Read;
use super::{Stored, file, ledger};
use crate::clock::Timestamp;
use crate::config::{AccountName, Name};
use crate::normalize::EventName;

/// A held event's number, its lane, and its account and name where they can be read.
pub type HeldRow = (u64, String, Option<(AccountName, EventName)>);

/// A second connection to the journal, for one thread. It opens when it is first used and again after an error.
pub struct Reader {
    path: PathBuf,
    open: Option<Open>,
    readers: Arc<Readers>,
}

/// Fields go in their order: it is counted until it is closed.
struct Open {
    db: Connection,
    _counted: Counted,
}

/// Those of this process that have the journal open to read it. A writer that has to be alone sends them away: each closes it the next time it would
/// read, and reads nothing until they are let in again.
#[derive(Default)]
pub(super) struct Readers(Mutex<State>);

#[derive(Default)]
struct State {
    open: usize,
    away: bool,
    /// The file that the writer has open: another one under its name is not to be read in its place.
    file: Option<FileId>,
}

impl Readers {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends them away, or lets them in.
    pub fn send_away_if(&self, away: bool) {
        self.state().away = away;
    }

    /// From now on they read this file.
    pub fn read_from(&self, file: Option<FileId>) {
        self.state().file = file;
    }

    /// Fails if what was opened at this path a moment ago is not the file that the writer has.
    fn check(&self, path: &Path) -> rusqlite::Result<()> {
        let file = self.state().file;
        if file.is_none() || file::file_at(path).is_ok_and(|there| there == file) {
            return Ok(());
        }
        let cannot_open = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        Err(rusqlite::Error::SqliteFailure(cannot_open, Some("its file is no longer at its path".into())))
    }

    /// They were sent away, and one has not closed it yet.
    pub fn is_awaited(&self) -> bool {
        let state = self.state();
        state.away && state.open > 0
    }

    fn are_away(&self) -> bool {
        self.state().away
    }

    /// Before it opens.
    fn enter(self: &Arc<Self>) -> rusqlite::Result<Counted> {
        let mut state = self.state();
        if state.away {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(
                busy,
                Some("it is opened anew, after a fault of its disk".into()),
            ));
        }
        state.open += 1;
        Ok(Counted(Arc::clone(self)))
    }
}

struct Counted(Arc<Readers>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.state().open -= 1;
    }
}

/// A parked event that is due to be tried again.
#[derive(Debug)]
pub struct Parked {
    pub attempts: u32,
    pub read: Read,
}

/// The place of a parked event in the order in which they are due: when, in microseconds, and its number.
pub type Due = (i64, i64);

impl Reader {
    /// Of a journal that another process may have. In the relay: [`super::Journal::reader`].
    pub fn new(path: &Path) -> Self {
        Self::of(path, Arc::default())
    }

    pub(super) fn of(path: &Path, readers: Arc<Readers>) -> Self {
        Self { path: path.to_owned(), open: None, readers }
    }

    fn with<T>(&mut self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let open = match self.open.take().filter(|_| !self.readers.are_away()) {
            Some(open) => open,
            None => {
                let counted = self.readers.enter()?;
                let open = Open { db: file::open_reader(&self.path)?, _counted: counted };
                self.readers.check(&self.path)?;
                open
            }
        };
        let result = read(&open.db)?;
        self.open = Some(open); // Not after an error: the next use opens anew.
        Ok(result)
    }

    /// The same where keys and what they lead to must be of one moment.
    fn with_transaction<T>(&mut self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        self.with(|db| read(&*db.unchecked_transaction()?)) // The connection is ours alone.
    }

    /// Up to `limit` events behind `after` and up to `through`, in order, of at most `bytes` unless the last of them is larger. `through` must be a
    /// number that was given.
    pub fn events(&mut self, after: u64, through: u64, limit: usize, bytes: usize) -> rusqlite::Result<Vec<Read>> {
        self.with(|db| CONTENT.between(db, after, through, limit, bytes).map(reads))
    }

    /// The first of these events, in their order, of at most `bytes` unless the last of them is larger.
    pub fn events_of(&mut self, sequences: &[u64], bytes: usize) -> rusqlite::Result<Vec<Read>> {
        self.with(|db| CONTENT.of(db, sequences.iter().copied(), bytes).map(reads))
    }

    /// The lanes of an output that have held events.
    pub fn held_lanes(&mut self, output: u32) -> rusqlite::Result<Vec<String>> {
        self.with(|db| held_lanes(db, output))
    }

    /// Of these reasons the one for which a lane's events are held, if any of them is.
    pub fn held_for(&mut self, output: u32, lane: &str, reasons: [&str; 2]) -> rusqlite::Result<Option<String>> {
        self.with(|db| {
            let mut select = db.prepare_cached(
                "SELECT reason FROM apart WHERE output = ? AND state = 'held' AND lane = ? AND reason IN (?, ?) LIMIT 1",
            )?;
            select.query_row(params![output, lane, reasons[0], reasons[1]], |row| row.get(0)).optional()
        })
    }

    /// Which events behind `after` have a row as held ones.
    pub fn held_behind(&mut self, output: u32, after: u64) -> rusqlite::Result<Vec<u64>> {
        self.with(|db| {
            let mut select = db.prepare_cached(
                "SELECT sequence FROM apart INDEXED BY apart_by_sequence WHERE output = ? AND state = 'held' AND sequence > ?",
            )?;
            select.query_map(params![output, after as i64], |row| row.get::<_, i64>(0).map(|n| n as u64))?.collect()
        })
    }

    /// Up to `limit` held events of a lane, in order: those after the first number of `span`, up to the second.
    pub fn held(
        &mut self,
        output: u32,
        lane: &str,
        span: (u64, u64),
        limit: usize,
        bytes: usize,
    ) -> rusqlite::Result<Vec<Read>> {
        self.with_transaction(|db| {
            let mut select = db.prepare_cached(
                "SELECT sequence FROM apart WHERE output = ? AND state = 'held' AND lane = ? AND sequence > ? AND sequence <= ? \
                 ORDER BY sequence LIMIT ?",
            )?;
            let (after, through) = (span.0 as i64, i64::try_from(span.1).unwrap_or(i64::MAX));
            let held = sequences(&mut select, params![output, lane, after, through, limit])?;
            CONTENT.of(db, held, bytes).map(reads)
        })
    }

    /// Parked events whose time to be tried again has come, behind `position` in the order of that time, as far as `wants` takes them by lane and number.
    /// At most so many rows are looked at, so many events are read, and of them so many bytes unless the last is larger. Gives also where to go on,
    /// or `None` when that was all.
    ///
    /// A time that is further away than the longest wait was set by a clock that was wrong, and has come.
    pub fn parked_due(
        &mut self,
        output: u32,
        (now, wait_max): (Timestamp, Duration),
        position: Due,
        (rows_max, events_max, bytes): (usize, usize, usize),
        wants: impl Fn(&str, u64) -> bool,
    ) -> rusqlite::Result<(Vec<Parked>, Option<Due>)> {
        self.with_transaction(|db| {
            let mut select = db.prepare_cached(
                "SELECT next_at, sequence, lane, attempts FROM apart INDEXED BY apart_parked \
                 WHERE output = ? AND state = 'parked' AND (next_at, sequence) > (?, ?) AND next_at <= ? \
                 ORDER BY next_at, sequence LIMIT ?",
            )?;
            // Rows that were looked at, and of those that are wanted which one of them it is.
            let (mut looked_at, mut due) = (Vec::new(), Vec::new());
            let far = now.plus(wait_max).as_micros();
            for (behind, up_to) in [(i64::MIN, now.as_micros()), (far, NEVER.as_micros() - 1)] {
                let (next_at, sequence) = position.max((behind, i64::MAX));
                let mut rows = select.query(params![output, next_at, sequence, up_to, rows_max - looked_at.len()])?;
                while due.len() < events_max
                    && let Some(row) = rows.next()?
                {
                    looked_at.push((row.get(0)?, row.get(1)?));
                    let (sequence, lane, attempts) =
                        (row.get::<_, i64>(1)? as u64, row.get::<_, String>(2)?, row.get(3)?);
                    if wants(&lane, sequence) {
                        due.push((looked_at.len(), sequence, attempts));
                    }
                }
            }
            let reads = CONTENT.of(db, due.iter().map(|(_, sequence, _)| *sequence), bytes).map(reads)?;
            // Where their bytes end the read, the next one begins behind the last that was read.
            let is_whole = reads.len() == due.len();
            let last = if is_whole { looked_at.len() } else { due[reads.len() - 1].0 };
            let is_all = is_whole && due.len() < events_max && looked_at.len() < rows_max;
            let go_on = last.checked_sub(1).map(|last| looked_at[last]).filter(|_| !is_all);
            let parked = reads.into_iter().zip(due).map(|(read, (_, _, attempts))| Parked { attempts, read });
            Ok((parked.collect(), go_on))
        })
    }

    /// When the oldest event that is neither confirmed nor parked came in. One that cannot be read is parked soon, and does not count.
    pub fn oldest_pending(&mut self, output: u32) -> rusqlite::Result<Option<Timestamp>> {
        self.with_transaction(|db| {
            let Some(row) = ledger::read(db)?.into_iter().find(|row| row.number == output) else { return Ok(None) };
            let mut oldest = None;
            let newest = fetch::newest(db)?.unwrap_or(0);
            if let Some((after, through)) = row.owed_after(row.cursor) {
                // The first one, nearly always.
                for most in [1, 1_000] {
                    let times = TIMES.between(db, after, through.min(newest), most, usize::MAX)?;
                    oldest = times.into_iter().find_map(|(_, time)| time);
                    if oldest.is_some() {
                        break;
                    }
                }
            }
            let mut select = db.prepare_cached(
                "SELECT sequence, since FROM apart WHERE output = ? AND state = 'held' AND lane = ? ORDER BY sequence LIMIT 1",
            )?;
            for lane in held_lanes(db, output)? {
                let (sequence, since) =
                    select.query_row(params![output, lane], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))?;
                let time = TIMES.of(db, [sequence], usize::MAX)?.pop().and_then(|(_, time)| time);
                let held = time.unwrap_or(Timestamp::from_micros(since));
                oldest = Some(oldest.map_or(held, |oldest| held.min(oldest)));
            }
            Ok(oldest)
        })
    }

    /// Held rows of an output in steps, for naming the lanes anew.
    pub fn held_after(&mut self, output: u32, after: u64, limit: usize) -> rusqlite::Result<Vec<HeldRow>> {
        self.with_transaction(|db| {
            let mut select = db.prepare_cached(
                "SELECT sequence, lane FROM apart INDEXED BY apart_by_sequence \
                 WHERE output = ? AND state = 'held' AND sequence > ? ORDER BY sequence LIMIT ?",
            )?;
            let rows = select.query_map(params![output, after as i64, limit], |row| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, String>(1)?))
            })?;
            let rows: Vec<(u64, String)> = rows.collect::<rusqlite::Result<_>>()?;
            let heads = HEADS.of(db, rows.iter().map(|(sequence, _)| *sequence), usize::MAX)?;
            let kind = |head: Head| Some((Name::new(&head.account)?, EventName::from_stored(&head.name)));
            let named = rows.into_iter().zip(heads);
            Ok(named.map(|((sequence, lane), (_, head))| (sequence, lane, head.and_then(kind))).collect())
        })
    }

    /// Events behind `after` and up to `through` that an order gave up.
    pub fn given_up(&mut self, output: u32, after: u64, through: u64) -> rusqlite::Result<Vec<u64>> {
        self.with(|db| {
            let mut select =
                db.prepare_cached("SELECT sequence FROM given_up WHERE sequence > ? AND sequence <= ? AND output = ?")?;
            let rows = select.query_map(params![after as i64, through as i64, output], |row| row.get::<_, i64>(0))?;
            rows.map(|sequence| sequence.map(|sequence| sequence as u64)).collect()
        })
    }

    /// Up to `limit` events behind `after` that are to be sent again, in order.
    pub fn to_replay(&mut self, output: u32, after: u64, limit: usize, bytes: usize) -> rusqlite::Result<Vec<Read>> {
        self.with_transaction(|db| {
            let mut select = db.prepare_cached(
                "SELECT sequence FROM apart WHERE output = ? AND state = 'replay' AND lane = '' AND sequence > ? \
                 ORDER BY sequence LIMIT ?",
            )?;
            let replays = sequences(&mut select, params![output, after as i64, limit])?;
            CONTENT.of(db, replays, bytes).map(reads)
        })
    }

    /// Every output as it stands in the file.
    pub fn outputs(&mut self) -> rusqlite::Result<Vec<ledger::OutputRow>> {
        self.with(ledger::read)
    }
}

fn held_lanes(db: &Connection, output: u32) -> rusqlite::Result<Vec<String>> {
    // One look-up a lane, however many events each holds.
    let mut select =
        db.prepare_cached("SELECT min(lane) FROM apart WHERE output = ? AND state = 'held' AND lane > ?")?;
    let mut lanes = Vec::new();
    let mut last = String::new();
    while let Some(lane) = select.query_row(params![output, last], |row| row.get::<_, Option<String>>(0))? {
        last.clone_from(&lane);
        lanes.push(lane);
    }
    Ok(lanes)
}

fn reads(found: Vec<Found<Box<Stored>>>) -> Vec<Read> {
    found.into_iter().map(Read::from).collect()
}

fn sequences(select: &mut CachedStatement<'_>, params: impl Params) -> rusqlite::Result<Vec<u64>> {
    select.query_map(params, |row| row.get::<_, i64>(0).map(|sequence| sequence as u64))?.collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::super::row;
    use super::*;
    use crate::authenticate::Verified;
    use crate::clock;
    use crate::normalize::normalize;

    #[test]
    fn a_page_that_cannot_be_read_costs_its_own_events_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let lock = file::lock(&path).unwrap();
        let db = file::open(&path, 1 << 30, &lock, clock::now()).unwrap();
        let event = normalize(Verified::for_test("default", 1_736_937_000, &[b'x'; 1000]), &[]);
        for sequence in 1..=200 {
            row::insert(&mut db.prepare_cached(row::INSERT).unwrap(), sequence, &event).unwrap();
        }
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(db);
        // The file's last pages but a few hold events; the first bytes of a page say what it is.
        let pages = std::fs::metadata(&path).unwrap().len() / u64::from(file::PAGE_BYTES);
        let mut damaged = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        damaged.seek(SeekFrom::Start((pages - 5) * u64::from(file::PAGE_BYTES))).unwrap();
        damaged.write_all(&[0xff; 64]).unwrap();
        drop(damaged);
        let (mut whole, mut corrupt, mut after) = (0, 0, 0);
        let mut reader = Reader::new(&path);
        loop {
            let reads = reader.events(after, 200, 50, 1 << 20).unwrap();
            let Some(last) = reads.last() else { break };
            after = last.sequence();
            corrupt += reads.iter().filter(|read| matches!(read, Read::Corrupt { .. })).count();
            whole += reads.iter().filter(|read| matches!(read, Read::Event(_))).count();
        }
        assert_eq!((after, whole + corrupt), (200, 200));
        assert!((1..=10).contains(&corrupt), "{corrupt} of a page's");
    }
}
