//! Events by their numbers: the only place that reads their rows. A page that SQLite cannot read costs the events on it: these come without a
//! value, and what stands behind them is read as ever. Which events wait where, other tables say.

use std::collections::BTreeSet;

use rusqlite::{CachedStatement, Connection, Params, Row, params};

use super::inspect::{Head, head};
use super::{OutputRow, Span, Stored, file, ledger, row};
use crate::clock::Timestamp;
use crate::config::AccountName;

/// What is read of an event's row, and how.
pub(super) struct Part<T> {
    columns: &'static str,
    /// `None`: the row does not hold what was written.
    read: fn(&Row<'_>) -> rusqlite::Result<Option<T>>,
    /// What counts against the bound of a read.
    bytes: fn(&T) -> usize,
}

/// An event's number, and what could be read of it.
pub(super) type Found<T> = (u64, Option<T>);

/// All of an event, checked by its CRC.
pub(super) const CONTENT: Part<Box<Stored>> =
    Part { columns: row::COLUMNS, read: row::read, bytes: |stored| stored.event.body.len() };

/// All but its content, not checked. Pages that only a body needs are not read.
pub(super) const HEADS: Part<Head> = Part {
    columns: "sequence, received_at, account, id, name, subject",
    read: |row| head(row, 0).map(Some),
    bytes: |_| 0,
};

/// When it was received. What a damaged row says is long ago.
pub(super) const TIMES: Part<Timestamp> = Part {
    columns: "sequence, received_at",
    read: |row| Ok(Some(Timestamp::from_micros(row.get(1).unwrap_or_default()))),
    bytes: |_| 0,
};

/// Whose event it is, and the bytes of its body.
pub(super) type Size = (AccountName, usize);

/// Not checked. The body itself is not read, only its length.
pub(super) const SIZES: Part<Size> = Part {
    columns: "sequence, account, length(body)",
    read: |row| {
        let account = row.get_ref(1)?.as_str().ok().and_then(AccountName::new);
        Ok(account.zip(row.get(2).ok()))
    },
    bytes: |_| 0,
};

/// What a read has so far, and what it may still take.
struct Batch<T> {
    found: Vec<Found<T>>,
    most: usize,
    bytes_left: usize,
}

impl<T> Batch<T> {
    fn new(most: usize, bytes: usize) -> Self {
        Self { found: Vec::new(), most, bytes_left: bytes }
    }

    fn is_full(&self) -> bool {
        self.found.len() >= self.most || self.bytes_left == 0
    }

    fn push(&mut self, sequence: u64, value: Option<T>, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.found.push((sequence, value));
    }
}

impl<T> Part<T> {
    /// Up to `most` events behind `after` and up to `through`, in order, of at most `bytes` unless the last of them is larger. `through` must be a number
    /// that was given: what cannot be read is told by its number, up to there.
    ///
    /// # Errors
    /// SQLite's, also where pages are destroyed by which the table is walked.
    pub fn between(
        &self,
        db: &Connection,
        after: u64,
        through: u64,
        most: usize,
        bytes: usize,
    ) -> rusqlite::Result<Vec<Found<T>>> {
        let sql = format!(
            "SELECT {} FROM events WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
            self.columns
        );
        let mut in_bulk = db.prepare_cached(&sql)?;
        let mut one = self.one(db)?;
        let mut batch = Batch::new(most, bytes);
        let mut position = after;
        let mut kept = None;
        while !batch.is_full() && position < through {
            let limit = most - batch.found.len();
            match self.take(&mut in_bulk, params![number(position), number(through), limit], &mut batch) {
                Err(error) if file::is_corrupt(&error) && (kept.is_some() || can_be_walked(db)?) => {}
                result => return result.map(|()| batch.found),
            }
            position = batch.found.last().map_or(position, |(sequence, _)| position.max(*sequence));
            if position >= through {
                break; // SQLite looked for more than was asked for.
            }
            // One by one through what cannot be read. A page of old events may stand for many numbers, of which most are deleted.
            let damaged = damaged(position, through, |number| one.query([number])?.next().map(|_| ()))?;
            let kept = match &kept {
                Some(kept) => kept,
                None => kept.insert(Kept::read(db)?),
            };
            let sequences = match damaged > position {
                true => kept.between(db, position, damaged)?,
                false => [position + 1].into(), // The first behind the page; in bulk SQLite would seek it from the page.
            };
            for sequence in sequences {
                if batch.is_full() {
                    break;
                }
                match self.take(&mut one, params![number(sequence)], &mut batch) {
                    Err(error) if file::is_corrupt(&error) => batch.push(sequence, None, 0),
                    result => result?,
                }
            }
            position = damaged.max(position + 1);
        }
        Ok(batch.found)
    }

    /// The first of these events, in their order, of at most `bytes` unless the last of them is larger. One that is not there counts as one that cannot
    /// be read.
    pub fn of(
        &self,
        db: &Connection,
        sequences: impl IntoIterator<Item = u64>,
        bytes: usize,
    ) -> rusqlite::Result<Vec<Found<T>>> {
        let mut one = self.one(db)?;
        let mut batch = Batch::new(usize::MAX, bytes);
        for sequence in sequences {
            if batch.is_full() {
                break;
            }
            let before = batch.found.len();
            match self.take(&mut one, params![number(sequence)], &mut batch) {
                Err(error) if !file::is_corrupt(&error) => return Err(error),
                _ if batch.found.len() == before => batch.push(sequence, None, 0),
                _ => {}
            }
        }
        Ok(batch.found)
    }

    fn one<'a>(&self, db: &'a Connection) -> rusqlite::Result<CachedStatement<'a>> {
        db.prepare_cached(&format!("SELECT {} FROM events WHERE sequence = ?", self.columns))
    }

    /// What was read before an error stays.
    fn take(
        &self,
        select: &mut CachedStatement<'_>,
        params: impl Params,
        batch: &mut Batch<T>,
    ) -> rusqlite::Result<()> {
        let mut rows = select.query(params)?;
        while !batch.is_full()
            && let Some(row) = rows.next()?
        {
            let value = (self.read)(row)?;
            let bytes = value.as_ref().map_or(0, self.bytes);
            batch.push(row.get::<_, i64>(0)? as u64, value, bytes);
        }
        Ok(())
    }
}

/// A row's number up to which nothing behind `after` seems to be readable, as `read` finds it; `after`, if the next one is. The steps grow, so that old
/// pages, which stand for many numbers, take few.
pub(super) fn damaged(
    after: u64,
    through: u64,
    mut read: impl FnMut(i64) -> rusqlite::Result<()>,
) -> rusqlite::Result<u64> {
    let (mut damaged, mut step) = (after, 1);
    while damaged < through {
        let next = (damaged + step).min(through);
        match read(number(next)) {
            Err(error) if file::is_corrupt(&error) => (damaged, step) = (next, step * 2),
            result => return result.map(|()| damaged),
        }
    }
    Ok(damaged)
}

/// Which numbers have an event, as far as other tables say: those above all that were deleted, those that an output owes, and those that stand apart.
struct Kept {
    floor: u64,
    owed: Vec<Span>,
}

impl Kept {
    /// Where those tables are damaged, too, each number may have been an event's.
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let floor = "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'sequence_floor'";
        let floor = db.query_row(floor, [], |row| row.get::<_, i64>(0))? as u64;
        match ledger::read(db) {
            Ok(outputs) => Ok(Self { floor, owed: outputs.iter().flat_map(OutputRow::owed).collect() }),
            Err(error) if file::is_corrupt(&error) => Ok(Self { floor: 0, owed: Vec::new() }),
            Err(error) => Err(error),
        }
    }

    fn between(&self, db: &Connection, after: u64, through: u64) -> rusqlite::Result<BTreeSet<u64>> {
        let mut apart = db.prepare_cached(
            "SELECT sequence FROM apart INDEXED BY apart_by_sequence WHERE sequence > ? AND sequence <= ?",
        )?;
        let apart = apart.query_map(params![number(after), number(through)], |row| row.get::<_, i64>(0))?;
        let mut kept =
            match apart.map(|row| row.map(|sequence| sequence as u64)).collect::<rusqlite::Result<BTreeSet<_>>>() {
                Err(error) if file::is_corrupt(&error) => return Ok((after + 1..=through).collect()),
                apart => apart?,
            };
        let above = Span { after: self.floor, through: None };
        for span in self.owed.iter().chain([&above]) {
            kept.extend(after.max(span.after) + 1..=through.min(span.through.unwrap_or(u64::MAX)));
        }
        Ok(kept)
    }
}

/// The number of the newest event. Where its page cannot be read, the highest that other tables know of or may mean.
pub(super) fn newest(db: &Connection) -> rusqlite::Result<Option<u64>> {
    let ask = |what: &str| db.query_row(&format!("SELECT max({what}"), [], |row| row.get::<_, Option<i64>>(0));
    let mut newest = match ask("sequence) FROM events") {
        Err(error) if file::is_corrupt(&error) && can_be_walked(db)? => 0,
        newest => return newest.map(|newest| newest.map(|newest| newest as u64)),
    };
    for what in ["cursor + pending) FROM outputs", "sequence) FROM apart", "sequence) FROM requests"] {
        match ask(what) {
            Err(error) if file::is_corrupt(&error) => {}
            number => newest = newest.max(number?.unwrap_or(0)),
        }
    }
    Ok(Some(newest as u64))
}

/// Whether the events of a damaged file can be found at all: by the page that leads to all others of theirs.
fn can_be_walked(db: &Connection) -> rusqlite::Result<bool> {
    let root = "SELECT data FROM sqlite_dbpage WHERE pgno = (SELECT rootpage FROM sqlite_schema WHERE name = 'events')";
    // The first byte says that it leads to others, or holds rows (SQLite's file format, 1.6).
    db.query_row(root, [], |row| Ok(matches!(row.get_ref(0)?.as_blob()?.first(), Some(5 | 13))))
}

/// SQLite's numbers end at 2^63.
fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}
