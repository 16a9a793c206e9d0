//! What the commands beside a relay read: the journal as a second reader sees it, in short transactions, whether a relay runs or not.
//!
//! Nothing here reads an event's content; that is [`super::Reader`]'s, behind its CRC.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::fetch::{self, HEADS, TIMES};
pub use super::file::{is_held, is_opened_anew};
use super::{OutputRow, file, ledger};
use crate::clock::Timestamp;

/// A second connection to a journal that is there.
pub struct Inspector {
    path: PathBuf,
    db: Connection,
    /// Made with the file: tells this journal from others.
    pub id: String,
    /// The version of the relay that wrote it last.
    pub written_by: String,
    /// Files of earlier versions have no table `given_up`.
    has_given_up: bool,
}

/// How often a long read looks whether a relay runs by now.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Bytes, as the metrics of the same names have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Live data and write-ahead log.
    pub bytes: u64,
    pub log_bytes: u64,
    /// Of the disk; `None` if it does not say.
    pub free_bytes: Option<u64>,
}

/// The numbers of the oldest and the newest event that still have their content, and how many rows the trail has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub oldest: Option<u64>,
    pub newest: Option<u64>,
    pub trail_rows: u64,
}

/// An event's row without its content. Not covered by a check of the CRC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub sequence: u64,
    pub received_at: Timestamp,
    pub account: String,
    /// As the answer 200 gave it.
    pub id: [u8; 16],
    pub name: String,
    pub subject: Option<String>,
}

/// A row of `apart`: held, parked, or waiting to be sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApartEntry {
    pub output: u32,
    pub state: String,
    pub lane: String,
    pub sequence: u64,
    pub since: Timestamp,
    pub reason: Option<String>,
    pub attempts: u32,
    pub next_at: Timestamp,
}

/// Rows of `apart` that share output, topic, state and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApartCount {
    pub output: u32,
    pub state: String,
    pub lane: String,
    pub reason: Option<String>,
    pub count: u64,
}

/// A row of `trail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrailEntry {
    pub entry: i64,
    pub at: Timestamp,
    pub head: Head,
    /// `None`: discarded by configuration, for every output.
    pub output: Option<String>,
    /// published, replayed, parked or discarded.
    pub state: String,
    pub kept_at: Option<Timestamp>,
    pub lane: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub reason: Option<String>,
}

/// The file's content is wrong there, and no waiting mends it.
pub fn is_damaged(error: &rusqlite::Error) -> bool {
    file::is_corrupt(error)
}

impl Inspector {
    /// Opens the journal beside whoever writes it.
    ///
    /// # Errors
    /// One line that says what is not there or cannot be read, and what to do.
    pub fn open(journal: &Path) -> Result<Self, String> {
        if !journal.exists() {
            return Err(format!(
                "there is no journal at {}: nothing was ever kept there, or this is another configuration or working directory than the relay's \
                 (--config FILE; relative paths begin at the working directory)",
                journal.display()
            ));
        }
        let say = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                format!("{}: it is corrupt, or no journal at all ({error})", journal.display())
            }
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::PermissionDenied) => format!(
                "{}: it cannot be opened ({error}); run this as the relay's user, on a volume that can be written",
                journal.display()
            ),
            _ => format!("{}: {error}", journal.display()),
        };
        let db = file::open_reader(journal).map_err(say)?;
        let table = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
        let has = |name: &str| db.query_row(table, [name], |row| row.get::<_, bool>(0));
        if !has("meta").map_err(say)? || !has("orders").map_err(say)? {
            return Err(format!("{}: it is no journal of a relay; look at journal.path", journal.display()));
        }
        let fact = |name: &str| {
            let sql = "SELECT value FROM meta WHERE name = ?";
            db.query_row(sql, [name], |row| row.get::<_, String>(0)).optional().map(Option::unwrap_or_default)
        };
        let (id, written_by) = (fact("journal_id").map_err(say)?, fact("written_by").map_err(say)?);
        let readable_by = fact("readable_by").map_err(say)?;
        if readable_by.parse::<i64>().is_ok_and(|format| format > file::FORMAT) {
            return Err(format!(
                "{}: it was written by version {written_by}, which this version ({}) cannot read; use that one",
                journal.display(),
                env!("CARGO_PKG_VERSION")
            ));
        }
        let has_given_up = has("given_up").map_err(say)?;
        Ok(Self { path: journal.to_owned(), id, written_by, has_given_up, db })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn sizes(&self) -> rusqlite::Result<Sizes> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        let log_bytes = std::fs::metadata(file::with_suffix(&self.path, "-wal")).map_or(0, |file| file.len());
        let free_bytes = rustix::fs::statvfs(file::folder(&self.path)).ok().map(|disk| disk.f_bavail * disk.f_frsize);
        Ok(Sizes { bytes: (pages * pragma("page_size")?).max(0) as u64 + log_bytes, log_bytes, free_bytes })
    }

    /// Every output as it stands in the file, all of one moment.
    pub fn outputs(&self) -> rusqlite::Result<Vec<OutputRow>> {
        self.in_one_transaction(ledger::read)
    }

    /// The outputs and what stands apart, all of one moment.
    pub fn outputs_and_apart(&self) -> rusqlite::Result<(Vec<OutputRow>, Vec<ApartCount>)> {
        let transaction = self.db.unchecked_transaction()?;
        let outputs = ledger::read(&transaction)?;
        Ok((outputs, self.apart_counts()?))
    }

    fn in_one_transaction<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let transaction = self.db.unchecked_transaction()?; // The connection is ours alone.
        read(&transaction)
    }

    pub fn extent(&self) -> rusqlite::Result<Extent> {
        let number = |sql: &str| self.db.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
        let first = number("SELECT min(entry) FROM trail")?;
        let last = number("SELECT max(entry) FROM trail")?;
        Ok(Extent {
            oldest: TIMES.between(&self.db, 0, self.newest()?, 1, usize::MAX)?.first().map(|(oldest, _)| *oldest),
            newest: fetch::newest(&self.db)?,
            trail_rows: first.zip(last).map_or(0, |(first, last)| (last - first + 1) as u64),
        })
    }

    /// Up to `limit` events behind `after` and up to `through`, in order, each with what could be read of it. `through` must be a number that was given:
    /// [`Inspector::newest`].
    pub fn heads(&self, after: u64, through: u64, limit: usize) -> rusqlite::Result<Vec<(u64, Option<Head>)>> {
        HEADS.between(&self.db, after, through, limit, usize::MAX)
    }

    /// The number of the newest event; 0 if there is none. Where its page cannot be read, the highest that it can have.
    pub fn newest(&self) -> rusqlite::Result<u64> {
        Ok(fetch::newest(&self.db)?.unwrap_or(0))
    }

    /// What stands apart of the events behind `after` and up to `through`.
    pub fn apart(&self, after: u64, through: u64) -> rusqlite::Result<Vec<ApartEntry>> {
        let mut select = self.db.prepare_cached(
            "SELECT output, state, lane, sequence, since, reason, attempts, next_at FROM apart INDEXED BY apart_by_sequence \
             WHERE sequence > ? AND sequence <= ? ORDER BY sequence, output",
        )?;
        let rows = select.query_map(params![after as i64, number(through)], |row| {
            Ok(ApartEntry {
                output: row.get(0)?,
                state: row.get(1)?,
                lane: row.get(2)?,
                sequence: row.get::<_, i64>(3)? as u64,
                since: Timestamp::from_micros(row.get(4)?),
                reason: row.get(5)?,
                attempts: row.get(6)?,
                next_at: Timestamp::from_micros(row.get(7)?),
            })
        })?;
        rows.collect()
    }

    /// How much stands apart, by output, topic, state and reason.
    pub fn apart_counts(&self) -> rusqlite::Result<Vec<ApartCount>> {
        let mut select = self.db.prepare_cached(
            "SELECT output, state, lane, reason, count(*) FROM apart GROUP BY output, state, lane, reason",
        )?;
        let rows = select.query_map([], |row| {
            Ok(ApartCount {
                output: row.get(0)?,
                state: row.get(1)?,
                lane: row.get(2)?,
                reason: row.get(3)?,
                count: row.get::<_, i64>(4)? as u64,
            })
        })?;
        rows.collect()
    }

    /// Output and sequence of what `journal discard` gave up, behind `after` and up to `through`.
    pub fn given_up(&self, after: u64, through: u64) -> rusqlite::Result<Vec<(u32, u64)>> {
        if !self.has_given_up {
            return Ok(Vec::new());
        }
        let mut select =
            self.db.prepare_cached("SELECT output, sequence FROM given_up WHERE sequence > ? AND sequence <= ?")?;
        let rows = select
            .query_map(params![after as i64, number(through)], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64)))?;
        rows.collect()
    }

    /// When the oldest event that this output has neither published nor parked came in.
    pub fn oldest_pending(&self, output: u32) -> rusqlite::Result<Option<Timestamp>> {
        super::Reader::new(&self.path).oldest_pending(output)
    }

    /// The first entry of the trail written at `since` or later, as far as the clock only went forward.
    pub fn trail_from(&self, since: Timestamp) -> rusqlite::Result<i64> {
        let ends = "SELECT (SELECT min(entry) FROM trail), (SELECT max(entry) FROM trail)";
        let ends: (Option<i64>, Option<i64>) = self.db.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let (Some(mut low), Some(last)) = ends else { return Ok(0) };
        let mut high = last + 1;
        let mut at = self.db.prepare_cached("SELECT at FROM trail WHERE entry >= ? ORDER BY entry LIMIT 1")?;
        while low < high {
            let middle = low + (high - low) / 2;
            let then: Option<i64> = at.query_row([middle], |row| row.get(0)).optional()?;
            match then {
                Some(then) if then < since.as_micros() => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Up to `limit` entries of the trail from this one on; false: what cannot be read between them is left out.
    pub fn trail(&self, from: i64, limit: usize) -> rusqlite::Result<(Vec<TrailEntry>, bool)> {
        let (mut position, mut is_whole) = (from, true);
        loop {
            match self.trail_at_once(position, limit) {
                Err(error) if is_damaged(&error) && limit > 1 => {
                    // Short steps come close to the page, and the last one over it.
                    let short = self.trail(position, limit / 4)?;
                    return Ok((short.0, short.1 && is_whole));
                }
                Err(error) if is_damaged(&error) => {}
                entries => return Ok((entries?, is_whole)),
            }
            let end = self.db.query_row("SELECT max(entry) FROM trail", [], |row| row.get::<_, Option<i64>>(0));
            let end = match end {
                Err(error) if is_damaged(&error) => return Ok((Vec::new(), false)),
                end => end?.unwrap_or(0),
            };
            let mut one = self.db.prepare_cached("SELECT at FROM trail WHERE entry = ?")?;
            let before = (position - 1).max(0) as u64;
            let damaged = fetch::damaged(before, end as u64, |entry| one.query([entry])?.next().map(|_| ()))?;
            (position, is_whole) = (damaged as i64 + 1, false);
        }
    }

    fn trail_at_once(&self, from: i64, limit: usize) -> rusqlite::Result<Vec<TrailEntry>> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, received_at, account, id, name, subject, entry, at, output, state, kept_at, lane, \"partition\", \
             \"offset\", reason FROM trail WHERE entry >= ? ORDER BY entry LIMIT ?",
        )?;
        let rows = select.query_map(params![from, limit], |row| {
            Ok(TrailEntry {
                head: head(row, 0)?,
                entry: row.get(6)?,
                at: Timestamp::from_micros(row.get(7)?),
                output: row.get(8)?,
                state: row.get(9)?,
                kept_at: row.get::<_, Option<i64>>(10)?.map(Timestamp::from_micros),
                lane: row.get(11)?,
                partition: row.get(12)?,
                offset: row.get(13)?,
                reason: row.get(14)?,
            })
        })?;
        rows.collect()
    }

    /// Earlier files of this journal that were set aside and still lie beside it.
    pub fn set_aside(&self) -> usize {
        file::count_set_aside(&self.path)
    }

    /// How many orders wait for a relay.
    pub fn orders_waiting(&self) -> rusqlite::Result<u64> {
        self.db
            .query_row("SELECT count(*) FROM orders WHERE done_at IS NULL", [], |row| row.get::<_, i64>(0))
            .map(|n| n as u64)
    }

    /// What SQLite finds wrong with the file as a whole, at most 20 lines; empty if nothing. One long read, during which the log of a relay would grow:
    /// `None` if one began to run meanwhile.
    pub fn check_file(&self) -> rusqlite::Result<Option<Vec<String>>> {
        let (interrupt, path, (done, is_done)) = (self.db.get_interrupt_handle(), &self.path, channel::<()>());
        let lines = thread::scope(|scope| {
            scope.spawn(move || {
                while is_done.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if is_held(path) {
                        interrupt.interrupt();
                    }
                }
            });
            let lines = || -> rusqlite::Result<Vec<String>> {
                let mut check = self.db.prepare("PRAGMA integrity_check(20)")?;
                check.query_map([], |row| row.get(0))?.collect()
            };
            let lines = lines();
            drop(done);
            lines
        });
        match lines {
            Ok(lines) => Ok(Some(lines.into_iter().filter(|line| line != "ok").collect())),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The columns `sequence, received_at, account, id, name, subject` from `first` on. What a damaged row says of itself is shown as it is.
pub(super) fn head(row: &Row<'_>, first: usize) -> rusqlite::Result<Head> {
    let blob = row.get_ref(first + 3)?.as_blob_or_null().unwrap_or_default().unwrap_or_default();
    let mut id = [0; 16];
    let known = blob.len().min(16);
    id[..known].copy_from_slice(&blob[..known]);
    let text = |at: usize| row.get_ref(at).map(|value| value.as_str_or_null().ok().flatten().map(str::to_owned));
    Ok(Head {
        sequence: row.get::<_, i64>(first)? as u64,
        received_at: Timestamp::from_micros(row.get(first + 1).unwrap_or_default()),
        account: text(first + 2)?.unwrap_or_default(),
        id,
        name: text(first + 4)?.unwrap_or_default(),
        subject: text(first + 5)?,
    })
}

/// SQLite's numbers end at 2^63.
fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
