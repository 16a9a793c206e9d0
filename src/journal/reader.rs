//! Reading back: short transactions over a connection of one's own, so that the log can always be checkpointed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::row::{self, Read};
use super::{file, ledger};
use crate::clock::Timestamp;

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
}

impl Readers {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends them away, or lets them in.
    pub fn send_away_if(&self, away: bool) {
        self.state().away = away;
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
pub struct ApartRow {
    pub lane: String,
    pub attempts: u32,
    pub read: Read,
}

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
                Open { db: file::open_reader(&self.path)?, _counted: counted }
            }
        };
        let result = read(&open.db)?;
        self.open = Some(open); // Not after an error: the next use opens anew.
        Ok(result)
    }

    /// Up to `limit` events behind `after` and up to `through`, in order, of at most `bytes` unless the first alone is larger. Those that lie on
    /// a page which SQLite cannot read come as [`Read::Corrupt`], and what is behind them as ever.
    pub fn events(&mut self, after: u64, through: u64, limit: usize, bytes: usize) -> rusqlite::Result<Vec<Read>> {
        match self.events_at_once(after, through, limit, bytes) {
            Err(error) if file::is_corrupt(&error) => self.events_one_by_one(after, through, limit),
            result => result,
        }
    }

    fn events_one_by_one(&mut self, after: u64, through: u64, limit: usize) -> rusqlite::Result<Vec<Read>> {
        let last =
            self.with(|db| db.query_row("SELECT max(sequence) FROM events", [], |row| row.get::<_, Option<i64>>(0)))?;
        let mut reads = Vec::new();
        for sequence in after + 1..=through.min(last.unwrap_or(0) as u64) {
            match self.events_at_once(sequence - 1, sequence, 1, 0) {
                Ok(read) => reads.extend(read),
                Err(error) if file::is_corrupt(&error) => reads.push(Read::Corrupt { sequence }),
                Err(error) => return Err(error),
            }
            if reads.len() == limit {
                break;
            }
        }
        Ok(reads)
    }

    fn events_at_once(&mut self, after: u64, through: u64, limit: usize, bytes: usize) -> rusqlite::Result<Vec<Read>> {
        self.with(|db| {
            let sql = format!(
                "SELECT {} FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
                row::COLUMNS
            );
            let mut select = db.prepare_cached(&sql)?;
            let through = i64::try_from(through).unwrap_or(i64::MAX);
            take(select.query(params![after as i64, through, limit])?, bytes)
        })
    }

    /// The lanes of an output that have held events.
    pub fn held_lanes(&mut self, output: u32) -> rusqlite::Result<Vec<String>> {
        self.with(|db| {
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
        })
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
        self.with(|db| {
            let columns = row::COLUMNS.replacen("sequence", "events.sequence", 1);
            let sql = format!(
                "SELECT {columns} FROM apart JOIN events ON events.sequence = apart.sequence \
                 WHERE output = ? AND state = 'held' AND lane = ? AND apart.sequence > ? AND apart.sequence <= ? \
                 ORDER BY apart.sequence LIMIT ?"
            );
            let mut select = db.prepare_cached(&sql)?;
            let (after, through) = (span.0 as i64, i64::try_from(span.1).unwrap_or(i64::MAX));
            take(select.query(params![output, lane, after, through, limit])?, bytes)
        })
    }

    /// Parked events whose time to be tried again has come.
    pub fn parked_due(&mut self, output: u32, now: Timestamp, limit: usize) -> rusqlite::Result<Vec<ApartRow>> {
        self.with(|db| {
            let columns = row::COLUMNS.replacen("sequence", "events.sequence", 1);
            let sql = format!(
                "SELECT {columns}, lane, attempts FROM apart JOIN events ON events.sequence = apart.sequence \
                 WHERE output = ? AND state = 'parked' AND next_at <= ? ORDER BY next_at LIMIT ?"
            );
            let mut select = db.prepare_cached(&sql)?;
            let rows = select.query_map(params![output, now.as_micros(), limit], |row| {
                Ok(ApartRow { read: row::read(row)?, lane: row.get("lane")?, attempts: row.get("attempts")? })
            })?;
            rows.collect()
        })
    }

    /// When the oldest event that is neither confirmed nor parked came in.
    pub fn oldest_pending(&mut self, output: u32) -> rusqlite::Result<Option<Timestamp>> {
        let lanes = self.held_lanes(output)?;
        self.with(|db| {
            let Some(row) = ledger::read(db)?.into_iter().find(|row| row.number == output) else { return Ok(None) };
            let mut oldest = None;
            if let Some((after, through)) = row.owed_after(row.cursor) {
                let mut select = db.prepare_cached(
                    "SELECT received_at FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT 1",
                )?;
                oldest =
                    select.query_row(params![after as i64, through as i64], |row| row.get::<_, i64>(0)).optional()?;
            }
            let mut select = db.prepare_cached(
                "SELECT received_at FROM apart JOIN events ON events.sequence = apart.sequence \
                 WHERE output = ? AND state = 'held' AND lane = ? ORDER BY apart.sequence LIMIT 1",
            )?;
            for lane in lanes {
                let held: Option<i64> = select.query_row(params![output, lane], |row| row.get(0)).optional()?;
                oldest = [oldest, held].into_iter().flatten().min();
            }
            Ok(oldest.map(Timestamp::from_micros))
        })
    }

    /// Held rows of an output in steps: lane and event behind a sequence, for naming the lanes anew.
    pub fn held_after(&mut self, output: u32, after: u64, limit: usize) -> rusqlite::Result<Vec<(String, Read)>> {
        self.with(|db| {
            let columns = row::COLUMNS.replacen("sequence", "events.sequence", 1);
            let sql = format!(
                "SELECT {columns}, lane FROM apart INDEXED BY apart_by_sequence JOIN events ON events.sequence = apart.sequence \
                 WHERE output = ? AND state = 'held' AND apart.sequence > ? ORDER BY apart.sequence LIMIT ?"
            );
            let mut select = db.prepare_cached(&sql)?;
            let rows = select.query_map(params![output, after as i64, limit], |row| Ok((row.get("lane")?, row::read(row)?)))?;
            rows.collect()
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
        self.with(|db| {
            let columns = row::COLUMNS.replacen("sequence", "events.sequence", 1);
            let sql = format!(
                "SELECT {columns} FROM apart JOIN events ON events.sequence = apart.sequence \
                 WHERE output = ? AND state = 'replay' AND lane = '' AND apart.sequence > ? ORDER BY apart.sequence LIMIT ?"
            );
            let mut select = db.prepare_cached(&sql)?;
            take(select.query(params![output, after as i64, limit])?, bytes)
        })
    }

    /// Every output as it stands in the file.
    pub fn outputs(&mut self) -> rusqlite::Result<Vec<ledger::OutputRow>> {
        self.with(ledger::read)
    }
}

fn take(mut rows: rusqlite::Rows<'_>, bytes: usize) -> rusqlite::Result<Vec<Read>> {
    let mut reads = Vec::new();
    let mut left = bytes;
    while let Some(row) = rows.next()? {
        let read = row::read(row)?;
        let size = match &read {
            Read::Event(stored) => stored.event.body.len(),
            Read::Corrupt { .. } => 0,
        };
        reads.push(read);
        if size >= left {
            break;
        }
        left -= size;
    }
    Ok(reads)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

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
            let reads = reader.events(after, u64::MAX, 50, 1 << 20).unwrap();
            let Some(last) = reads.last() else { break };
            after = last.sequence();
            corrupt += reads.iter().filter(|read| matches!(read, Read::Corrupt { .. })).count();
            whole += reads.iter().filter(|read| matches!(read, Read::Event(_))).count();
        }
        assert_eq!((after, whole + corrupt), (200, 200));
        assert!((1..=10).contains(&corrupt), "{corrupt} of a page's");
    }
}
