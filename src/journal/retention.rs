//! What goes: published events past `journal.retention` or when room is needed, the trail past `journal.trail`. In small steps inside the
//! group's commit, where they cost nothing that can be measured; never an event that an output still owes. What cannot be read or deleted, because a
//! page is damaged, stays, and is told.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{Connection, params};
use tracing::warn;

use super::fetch::TIMES;
use super::{OutputRow, file, ledger};
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
    /// Old ones that are to go.
    old: Vec<u64>,
    /// Old ones that cannot, as a page is damaged.
    stuck: HashSet<u64>,
    /// How many of those were told.
    told: usize,
    /// How many go at once, where each failure has its own transaction.
    at_once: usize,
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
        Self {
            position: 0,
            walk_began_at: Timestamp::default(),
            skipped: false,
            ended: false,
            old: Vec::new(),
            stuck: HashSet::new(),
            told: 0,
            at_once: usize::MAX,
        }
    }

    /// Looks at the next events, and takes up those that are old enough. To be called outside of a transaction: in one that met a damaged page SQLite
    /// writes nothing more.
    pub fn look(&mut self, db: &Connection, limits: &Limits<'_>, now: Timestamp) -> rusqlite::Result<()> {
        if !self.old.is_empty() {
            return Ok(());
        }
        // Only after a walk has come to its end: else one would never get past very many events that stand apart.
        if self.skipped && self.ended && self.walk_began_at.abs_diff(now) > WALK_EVERY {
            (self.position, self.walk_began_at, self.skipped, self.ended) = (0, now, false, false);
        }
        let free_after = |position| ledger::free_after(limits.outputs, position, limits.last);
        let Some((after, through)) = free_after(self.position) else {
            self.ended = true;
            return Ok(());
        };
        self.skipped |= after > self.position; // What a removed output owes.
        self.position = after;
        let is_young = |time: Timestamp| !limits.pressure && now.since(time) < limits.retention;
        // Nearly always the first is too young, and so is what comes behind it.
        let mut looked = TIMES.between(db, after, through, 1, usize::MAX)?;
        if !looked.iter().any(|(_, time)| time.is_some_and(is_young)) {
            looked = TIMES.between(db, after, through, limits.rows, usize::MAX)?;
        }
        let mut young = false;
        if looked.len() < limits.rows {
            self.position = through;
        }
        for (sequence, time) in looked {
            young = time.is_some_and(is_young);
            self.position = if young { sequence - 1 } else { self.position.max(sequence) };
            match time {
                _ if young => break,
                None if is_apart(db, sequence)? => self.skipped = true,
                None => _ = self.stuck.insert(sequence),
                Some(_) if self.stuck.contains(&sequence) => {}
                Some(_) => self.old.push(sequence),
            }
        }
        self.ended = young || free_after(self.position).is_none();
        Ok(())
    }

    /// Deletes what was taken up, but for what stands apart, in the transaction under way.
    pub fn delete(&mut self, db: &Connection) -> rusqlite::Result<Step> {
        let floor = self.delete_first(db, self.old.len())?;
        self.old.clear();
        self.tell_stuck();
        Ok(Step { more: !self.ended, floor })
    }

    /// The same where a page is damaged: a few at a time, in a transaction of their own in which `note` keeps the highest. What cannot be deleted stays.
    pub fn delete_carefully(
        &mut self,
        db: &Connection,
        note: impl FnOnce(u64) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<Step> {
        let count = self.old.len().min(self.at_once);
        if count == 0 {
            self.tell_stuck();
            return Ok(Step { more: !self.ended, floor: 0 });
        }
        let transaction = db.unchecked_transaction()?;
        let floor = self.delete_first(db, count).and_then(|floor| {
            note(floor)?;
            transaction.commit()?;
            Ok(floor)
        });
        let floor = match floor {
            Ok(floor) => {
                self.old.drain(..count);
                self.at_once = (count * 2).max(1);
                floor
            }
            Err(error) if !file::is_corrupt(&error) => return Err(error),
            Err(_) => {
                if count == 1 {
                    self.stuck.extend(self.old.drain(..1));
                }
                self.at_once = count / 8 + 1;
                0
            }
        };
        self.tell_stuck();
        Ok(Step { more: !self.old.is_empty() || !self.ended, floor })
    }

    /// At the end of a walk, if there are more than at the end of the last.
    fn tell_stuck(&mut self) {
        if self.ended && self.old.is_empty() && self.told < self.stuck.len() {
            self.told = self.stuck.len();
            let (first, last) = (self.stuck.iter().min().unwrap_or(&0), self.stuck.iter().max().unwrap_or(&0));
            warn!(
                events = self.told,
                "{} published events between numbers {first} and {last} cannot be deleted, since pages of the journal's file are damaged; they stay in it",
                self.told
            );
        }
    }

    /// The highest that was deleted; 0 if none was.
    fn delete_first(&mut self, db: &Connection, count: usize) -> rusqlite::Result<u64> {
        let mut delete = db.prepare_cached(
            "DELETE FROM events WHERE sequence = ?1 \
             AND NOT EXISTS (SELECT 1 FROM apart INDEXED BY apart_by_sequence WHERE apart.sequence = ?1)",
        )?;
        let mut delete_given_up = db.prepare_cached("DELETE FROM given_up WHERE sequence = ?")?;
        let mut floor = 0;
        for sequence in &self.old[..count] {
            if delete.execute([*sequence as i64])? == 0 {
                self.skipped = true; // Its turn comes in a later walk.
                continue;
            }
            delete_given_up.execute([*sequence as i64])?;
            floor = *sequence;
        }
        Ok(floor)
    }
}

fn is_apart(db: &Connection, sequence: u64) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM apart INDEXED BY apart_by_sequence WHERE sequence = ?)";
    db.prepare_cached(sql)?.query_row([sequence as i64], |row| row.get(0))
}

/// Deletes a few entries of the trail, the oldest first. True if there may be more.
pub(super) fn trail(db: &Connection, limits: &Limits<'_>, now: Timestamp) -> rusqlite::Result<bool> {
    let most = limits.rows * limits.outputs.len().max(1);
    let mut ends = db.prepare_cached("SELECT (SELECT min(entry) FROM trail), (SELECT max(entry) FROM trail)")?;
    let ends: (Option<i64>, Option<i64>) = ends.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let (Some(first), Some(last)) = ends else { return Ok(false) };
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
    Ok(count >= most)
}
