//! What an output tells the journal, and how the tables take it: rows, cursor, trail and ledger move in one transaction.

use std::sync::Arc;

use rusqlite::{CachedStatement, Connection, params};

use super::fetch::Size;
use super::{Kept, OutputRow, Stored};
use crate::clock::Timestamp;
use crate::config::AccountName;
use crate::normalize::{EventId, EventName};
use crate::publish::Place;

/// What happened at one output since it last said so.
#[derive(Debug)]
pub struct Progress {
    /// The id of the journal that it was read from ([`super::Journal::id`]): what is said of one file is never noted in another.
    pub journal: Arc<str>,
    /// The output's number.
    pub output: u32,
    /// Counts up from the last one that the journal has of this output ([`OutputRow::progress`]).
    pub number: u64,
    /// Where its cursor may stand now.
    pub cursor: u64,
    /// Events that need no more sending.
    pub settled: Vec<Settlement>,
    /// Pending events that get a row of their own, so that the cursor can pass them.
    pub held: Vec<Apart>,
    /// Parked events that failed again: when to try next, and the reason if that is another one now.
    pub retried: Vec<Apart>,
    /// Held rows whose topic has another name now: sequence and new lane.
    pub renamed: Vec<(u64, String)>,
    /// By which routes the lanes are named now, if that changed.
    pub routes: Option<String>,
}

/// When an event is tried again whose content is corrupt: it will not heal.
pub const NEVER: Timestamp = Timestamp::from_micros(i64::MAX);

/// One event that stands apart from the cursor.
#[derive(Clone, Debug)]
pub struct Apart {
    pub sequence: u64,
    pub lane: String,
    pub reason: Option<&'static str>,
    pub attempts: u32,
    pub next_at: Timestamp,
}

/// The end of one event at one output, with what the trail keeps of it.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub sequence: u64,
    pub outcome: Outcome,
    pub at: Timestamp,
    pub lane: Arc<str>,
    /// Was parked before, so that its place in the ledger is not `pending`.
    pub was_parked: bool,
    /// Has a row in `apart`, to be deleted.
    pub has_row: bool,
    /// `None` for a row whose content is corrupt: then nothing is known of the event.
    pub event: Option<About>,
}

/// What the trail keeps of an event: no content.
#[derive(Clone, Debug)]
pub struct About {
    pub account: AccountName,
    pub id: EventId,
    pub name: EventName,
    pub subject: Option<String>,
    pub received_at: Timestamp,
    pub body_bytes: usize,
}

impl About {
    pub fn of(stored: &Stored) -> Self {
        let event = &stored.event;
        Self {
            account: event.account.clone(),
            id: event.id,
            name: event.name.clone(),
            subject: event.subject.clone(),
            received_at: event.received_at,
            body_bytes: event.body.len(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Published(Place),
    /// With the reason of `events_parked_total`, and when to try again.
    Parked {
        reason: &'static str,
        detail: String,
        next_at: Timestamp,
    },
    /// By order of `journal replay`; not in the ledger.
    Replayed(Place),
    /// The broker does not take it again.
    NotReplayed {
        reason: &'static str,
    },
}

impl Progress {
    /// Nothing yet.
    pub fn new(journal: Arc<str>, output: u32, number: u64) -> Self {
        Self {
            journal,
            output,
            number,
            cursor: 0,
            settled: Vec::new(),
            held: Vec::new(),
            retried: Vec::new(),
            renamed: Vec::new(),
            routes: None,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.settled.is_empty()
            && self.held.is_empty()
            && self.retried.is_empty()
            && self.renamed.is_empty()
            && self.routes.is_none()
    }
}

// Left to itself, SQLite looks for the output's rows and walks all of them: with ten thousand apart, a commit took minutes.
const DELETE_APART: &str =
    "DELETE FROM apart INDEXED BY apart_by_sequence WHERE sequence = ? AND output = ? AND state <> 'replay'";

/// Writes one output's progress into the transaction under way, and its new counts into `row`. Gives what it published for the first time.
pub(super) fn apply(
    db: &Connection,
    progress: &Progress,
    row: &mut OutputRow,
    kept: &Kept,
    now: Timestamp,
) -> rusqlite::Result<Vec<(u64, Size)>> {
    let any_given_up = any_given_up(db, progress)?;
    let mut published = Vec::new();
    hold(db, progress, any_given_up, row.cursor, now)?;
    let mut insert = db.prepare_cached(TRAIL)?;
    for settlement in &progress.settled {
        let is_published = settle(db, progress.output, settlement, any_given_up, row, now)?;
        if let Some(about) = settlement.event.as_ref().filter(|_| is_published) {
            published.push((settlement.sequence, (about.account.clone(), about.body_bytes)));
        }
        trail(&mut insert, settlement, &row.name, kept)?;
    }
    let mut retry = db.prepare_cached(
        "UPDATE apart INDEXED BY apart_by_sequence SET attempts = ?, next_at = ?, reason = ifnull(?, reason) \
         WHERE output = ? AND sequence = ? AND state = 'parked'",
    )?;
    for apart in &progress.retried {
        let next_at = apart.next_at.as_micros();
        retry.execute(params![apart.attempts, next_at, apart.reason, progress.output, apart.sequence as i64])?;
    }
    let mut rename = db.prepare_cached(
        "UPDATE apart INDEXED BY apart_by_sequence SET lane = ? WHERE output = ? AND sequence = ? AND state = 'held'",
    )?;
    for (sequence, lane) in &progress.renamed {
        rename.execute(params![lane, progress.output, *sequence as i64])?;
    }
    if let Some(routes) = &progress.routes {
        db.execute("UPDATE outputs SET routes = ? WHERE number = ?", params![routes, progress.output])?;
        row.routes.clone_from(routes);
    }
    row.cursor = row.cursor.max(progress.cursor);
    row.progress = progress.number;
    Ok(published)
}

/// Writes the place and the counts of an output.
pub(super) fn save(db: &Connection, row: &OutputRow) -> rusqlite::Result<()> {
    let mut update = db.prepare_cached(
        "UPDATE outputs SET cursor = ?, accepted = ?, published = ?, pending = ?, parked = ?, discarded = ?, progress = ? \
         WHERE number = ?",
    )?;
    let c = &row.counts;
    update.execute(params![
        row.cursor as i64,
        c.accepted,
        c.published,
        c.pending,
        c.parked,
        c.discarded,
        row.progress as i64,
        row.number
    ])?;
    Ok(())
}

fn hold(db: &Connection, progress: &Progress, any_given_up: bool, cursor: u64, now: Timestamp) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT OR REPLACE INTO apart (output, state, lane, sequence, since, reason, attempts, next_at) \
         VALUES (?, 'held', ?, ?, ?, ?, 0, 0)",
    )?;
    for apart in &progress.held {
        // What the cursor has passed already, an order gave up, and its event may be gone.
        if apart.sequence <= cursor || any_given_up && is_given_up(db, progress.output, apart.sequence)? {
            continue;
        }
        insert.execute(params![progress.output, apart.lane, apart.sequence as i64, now.as_micros(), apart.reason])?;
    }
    Ok(())
}

/// True if the event was published for the first time.
fn settle(
    db: &Connection,
    output: u32,
    settlement: &Settlement,
    any_given_up: bool,
    row: &mut OutputRow,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    if matches!(settlement.outcome, Outcome::Replayed(_) | Outcome::NotReplayed { .. }) {
        let mut delete = db
            .prepare_cached("DELETE FROM apart WHERE output = ? AND state = 'replay' AND lane = '' AND sequence = ?")?;
        delete.execute(params![output, settlement.sequence as i64])?;
        return Ok(false);
    }
    // An order gave it up while it was on its way: the ledger has it as discarded, and what became of it only the trail tells.
    let is_given_up = any_given_up && is_given_up(db, output, settlement.sequence)?;
    if is_given_up || !settlement.has_row && settlement.sequence <= row.cursor {
        return Ok(false);
    }
    if settlement.has_row {
        let mut delete = db.prepare_cached(DELETE_APART)?;
        if delete.execute(params![settlement.sequence as i64, output])? == 0 {
            return Ok(false);
        }
    }
    *(if settlement.was_parked { &mut row.counts.parked } else { &mut row.counts.pending }) -= 1;
    match &settlement.outcome {
        Outcome::Published(_) => row.counts.published += 1,
        Outcome::Parked { reason, next_at, .. } => {
            row.counts.parked += 1;
            let mut insert = db.prepare_cached(
                "INSERT OR REPLACE INTO apart (output, state, lane, sequence, since, reason, attempts, next_at) \
                 VALUES (?, 'parked', ?, ?, ?, ?, 1, ?)",
            )?;
            insert.execute(params![
                output,
                &*settlement.lane,
                settlement.sequence as i64,
                now.as_micros(),
                reason,
                next_at.as_micros()
            ])?;
        }
        Outcome::Replayed(_) | Outcome::NotReplayed { .. } => {} // Above.
    }
    Ok(matches!(settlement.outcome, Outcome::Published(_)))
}

/// Whether any order gave up one between the first and the last event of this progress. Nearly always none did, and one look spares one an event.
fn any_given_up(db: &Connection, progress: &Progress) -> rusqlite::Result<bool> {
    let settled = progress.settled.iter().map(|settlement| settlement.sequence);
    let all = settled.chain(progress.held.iter().map(|apart| apart.sequence));
    let (first, last) = all.fold((u64::MAX, 0), |(first, last), sequence| (first.min(sequence), last.max(sequence)));
    if first > last {
        return Ok(false);
    }
    let mut select = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM given_up WHERE sequence BETWEEN ? AND ?)")?;
    select.query_row(params![first as i64, last as i64], |row| row.get(0))
}

fn is_given_up(db: &Connection, output: u32, sequence: u64) -> rusqlite::Result<bool> {
    let mut select = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM given_up WHERE sequence = ? AND output = ?)")?;
    select.query_row(params![sequence as i64, output], |row| row.get(0))
}

const TRAIL: &str = "INSERT INTO trail (at, sequence, output, state, account, id, name, subject, received_at, kept_at, lane, \"partition\", \
     \"offset\", reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

fn trail(insert: &mut CachedStatement<'_>, settlement: &Settlement, output: &str, kept: &Kept) -> rusqlite::Result<()> {
    let Some(about) = &settlement.event else { return Ok(()) };
    let place = |place: &Place| match place {
        Place::Kafka { partition, offset } => (Some(*partition), Some(*offset)),
        Place::Confirmed => (None, None),
    };
    let (state, (partition, offset), reason) = match &settlement.outcome {
        Outcome::Published(at) => ("published", place(at), None),
        Outcome::Replayed(at) => ("replayed", place(at), None),
        Outcome::NotReplayed { reason } => ("not replayed", (None, None), Some((*reason).to_owned())),
        Outcome::Parked { reason, detail, .. } => ("parked", (None, None), Some(format!("{reason}: {detail}"))),
    };
    insert.execute(params![
        settlement.at.as_micros(),
        settlement.sequence as i64,
        output,
        state,
        about.account.as_str(),
        &about.id.0[..],
        about.name.as_str(),
        about.subject,
        about.received_at.as_micros(),
        kept.at(settlement.sequence).map(Timestamp::as_micros),
        &*settlement.lane,
        partition,
        offset,
        reason
    ])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_apart_is_looked_up_by_its_number() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("schema.sql")).unwrap();
        let mut explain = db.prepare(&format!("EXPLAIN QUERY PLAN {DELETE_APART}")).unwrap();
        let plan: String = explain.query_row(params![1, 1], |row| row.get("detail")).unwrap();
        assert!(plan.contains("apart_by_sequence (sequence=? AND output=?"), "{plan}");
    }
}
