//! What goes: published events past `journal.retention` or when room is needed, the trail past `journal.trail`. In small steps inside the
//! group's commit, where they cost nothing that can be measured (DESIGN §8); never an event that an output still owes.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::{OutputRow, ledger};
use crate::clock::Timestamp;

/// A new walk from the oldest event, for those that stood apart when the last one passed, begins at most this often.
const WALK_EVERY: Duration = Duration::from_secs(60);
/// A trail row with its share of the tree, seen at 140 to 190 bytes.
const TRAIL_ROW_BYTES: u64 = 200;
/// The trail takes at most this part of `journal.size_max`.
const TRAIL_PART: u64 = 10;

pub(super) struct Retention {
    /// Everything up to here was looked at in this walk.
    position: u64,
    walk_began_at: Timestamp,
    /// This walk passed events because they stand apart.
    skipped: bool,
    /// This walk has come to what is owed or too young.
    ended: bool,
}

/// What a step did.
pub(super) struct Step {
    /// There may be more to do at once.
    pub more: bool,
    /// The highest sequence that was deleted; 0 if none was.
    pub floor: u64,
}

pub(super) struct Limits<'a> {
    pub retention: Duration,
    pub trail: Duration,
    pub size_max: u64,
    /// Past 80 % of `size_max`: published events go whatever their age.
    pub pressure: bool,
    /// Rows to look at.
    pub rows: usize,
    /// No event that one of them owes may go, and each leaves a row in the trail for an event.
    pub outputs: &'a [OutputRow],
    /// The last sequence given.
    pub last: u64,
}

impl Retention {
    pub fn new() -> Self {
        Self { position: 0, walk_began_at: Timestamp::default(), skipped: false, ended: false }
    }

    /// One step in the transaction under way.
    pub fn step(&mut self, db: &Connection, limits: &Limits<'_>, now: Timestamp) -> rusqlite::Result<Step> {
        let step = self.events(db, limits, now)?;
        let rows = limits.rows * limits.outputs.len().max(1);
        Ok(Step { more: step.more | (trail(db, limits, rows, now)? >= rows), floor: step.floor })
    }

    fn events(&mut self, db: &Connection, limits: &Limits<'_>, now: Timestamp) -> rusqlite::Result<Step> {
        // Only after a walk has come to its end: else one would never get past very many events that stand apart.
        if self.skipped && self.ended && self.walk_began_at.abs_diff(now) > WALK_EVERY {
            *self = Self { position: 0, walk_began_at: now, skipped: false, ended: false };
        }
        let free_after = |position| ledger::free_after(limits.outputs, position, limits.last);
        let Some((after, through)) = free_after(self.position) else {
            self.ended = true;
            return Ok(Step { more: false, floor: 0 });
        };
        self.skipped |= after > self.position; // What a removed output owes.
        self.position = after;
        let mut select = db.prepare_cached(
            "SELECT sequence, received_at, EXISTS (SELECT 1 FROM apart INDEXED BY apart_by_sequence WHERE apart.sequence = events.sequence) FROM events \
             WHERE sequence > ? AND sequence <= ? ORDER BY sequence LIMIT ?",
        )?;
        let (mut old, mut looked, mut young) = (Vec::new(), 0, false);
        let mut rows = select.query(params![after as i64, through as i64, limits.rows])?;
        while let Some(row) = rows.next()? {
            let sequence: i64 = row.get(0)?;
            // A row that is damaged since it was published everywhere counts as old: what it says is checked nowhere else, and must not stop this.
            let received_at = Timestamp::from_micros(row.get(1).unwrap_or_default());
            looked += 1;
            if row.get(2)? {
                self.skipped = true;
            } else if limits.pressure || now.since(received_at) >= limits.retention {
                old.push(sequence);
            } else {
                young = true; // What comes behind it is younger still.
                break;
            }
            self.position = sequence as u64;
        }
        drop(rows);
        if looked < limits.rows && !young {
            self.position = through;
        }
        self.ended = young || free_after(self.position).is_none();
        let mut delete = db.prepare_cached("DELETE FROM events WHERE sequence = ?")?;
        let mut delete_given_up = db.prepare_cached("DELETE FROM given_up WHERE sequence = ?")?;
        for sequence in &old {
            delete.execute([sequence])?;
            delete_given_up.execute([sequence])?;
        }
        Ok(Step { more: !self.ended, floor: old.last().map_or(0, |last| *last as u64) })
    }
}

/// Deletes up to `most` entries, the oldest first; how many.
fn trail(db: &Connection, limits: &Limits<'_>, most: usize, now: Timestamp) -> rusqlite::Result<usize> {
    let mut ends = db.prepare_cached("SELECT (SELECT min(entry) FROM trail), (SELECT max(entry) FROM trail)")?;
    let ends: (Option<i64>, Option<i64>) = ends.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)) = ends else { return Ok(0) };
    let rows_max = i64::try_from(limits.size_max / TRAIL_PART / TRAIL_ROW_BYTES).unwrap_or(i64::MAX);
    // Only entries before this may go for their number; any may go for its age.
    let too_many_before = last - rows_max + 1;
    let mut select = db.prepare_cached("SELECT entry, at FROM trail WHERE entry >= ? ORDER BY entry LIMIT ?")?;
    let mut rows = select.query(params![first, most])?;
    let mut old = None;
    let mut count = 0;
    while let Some(row) = rows.next()? {
        let entry: i64 = row.get(0)?;
        let age = now.since(Timestamp::from_micros(row.get(1).unwrap_or_default()));
        if entry >= too_many_before && age < limits.trail {
            break;
        }
        old = Some(entry);
        count += 1;
    }
    drop(rows);
    if let Some(old) = old {
        db.prepare_cached("DELETE FROM trail WHERE entry <= ?")?.execute([old])?;
    }
    Ok(count)
}
