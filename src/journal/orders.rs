//! Orders: what other commands ask of the journal's writer. They leave a row in the table `orders`; the writer of the running relay, or of the next
//! one, carries it out in steps inside its own transactions. A step and the note of how far it came are one transaction, so that no order is
//! carried out twice.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::inspect::{Head, head};
use super::selection::{Selection, State};
use super::{OutputRow, export, file};
use crate::clock::Timestamp;
use crate::normalize::Event;

/// Orders that are done stay this many orders long, for whoever waits for their result.
const DONE_KEPT: i64 = 1_000;

/// What can be ordered. Their names are those of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Published events are sent again to one output.
    Replay,
    /// Parked events are tried now.
    Requeue,
    /// Pending and parked events are given up.
    Discard,
    /// A removed output is given up, with all that it owes.
    Forget,
    /// Events of an export are accepted anew.
    Import,
}

impl Command {
    const ALL: [Self; 5] = [Self::Replay, Self::Requeue, Self::Discard, Self::Forget, Self::Import];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Requeue => "requeue",
            Self::Discard => "discard",
            Self::Forget => "forget",
            Self::Import => "import",
        }
    }

    /// Whether events that stand so are meant.
    pub fn takes(self, state: State) -> bool {
        match self {
            Self::Replay => state == State::Published,
            Self::Requeue => state == State::Parked,
            Self::Discard | Self::Forget => matches!(state, State::Pending | State::Held | State::Parked),
            Self::Import => false,
        }
    }
}

/// How far an order came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Events that it changed.
    pub events: u64,
    /// Why it was not carried out, or not wholly.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
    /// Rows apart are looked through first, then what waits behind the cursor.
    #[serde(default)]
    second_pass: bool,
    /// Looked through in this pass.
    #[serde(default)]
    position: u64,
}

/// What becomes of an order that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub done: bool,
    pub progress: Progress,
}

/// Leaves an order in the journal, synced, and gives its number.
///
/// # Errors
/// The journal cannot be written: one line for a person.
pub fn give(
    journal: &Path,
    command: Command,
    output: Option<&str>,
    selection: &Selection,
    now: Timestamp,
) -> Result<i64, String> {
    let selection = serde_json::to_string(selection).map_err(|error| error.to_string())?;
    insert(journal, command, output, &selection, now)
}

/// The same for events to be imported, given as lines of [`export`].
///
/// # Errors
/// As of [`give`].
pub fn give_import(journal: &Path, lines: &[String], now: Timestamp) -> Result<i64, String> {
    insert(journal, Command::Import, None, &lines.join("\n"), now)
}

fn insert(
    journal: &Path,
    command: Command,
    output: Option<&str>,
    selection: &str,
    now: Timestamp,
) -> Result<i64, String> {
    let say = |error: rusqlite::Error| format!("{}: the order cannot be written: {error}", journal.display());
    let db = file::open_beside(journal).map_err(say)?;
    db.execute(
        "INSERT INTO orders (given_at, command, output, selection) VALUES (?, ?, ?, ?)",
        params![now.as_micros(), command.as_str(), output, selection],
    )
    .map_err(say)?;
    Ok(db.last_insert_rowid())
}

/// What became of an order; `None` if the journal knows none of this number (any more).
pub fn outcome(journal: &Path, number: i64) -> rusqlite::Result<Option<Outcome>> {
    let db = file::open_reader(journal)?;
    let sql = "SELECT done_at IS NOT NULL, result FROM orders WHERE number = ?";
    db.query_row(sql, [number], |row| Ok(Outcome { done: row.get(0)?, progress: parse(row.get(1)?) })).optional()
}

fn parse(result: Option<String>) -> Progress {
    result.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// An order that is not carried out yet.
pub(super) struct Waiting {
    number: i64,
    command: Option<Command>,
    output: Option<String>,
    selection: String,
    progress: Progress,
}

/// What one step did, for those that have things in memory.
#[derive(Default)]
pub(super) struct Step {
    /// Output and event: not to be sent any more.
    pub given_up: Vec<(u32, u64)>,
    /// An output whose row is gone.
    pub forgotten: Option<String>,
    /// The order is done: its command, for the log, and what came of it.
    pub finished: Option<(String, Progress)>,
}

/// The next order. While the journal takes no events none of those that bring some, so that one behind it can make room.
pub(super) fn next(db: &Connection, takes_events: bool) -> rusqlite::Result<Option<Waiting>> {
    let mut select = db.prepare_cached(
        "SELECT number, command, output, selection, result FROM orders WHERE done_at IS NULL AND (? OR command <> 'import') \
         ORDER BY number LIMIT 1",
    )?;
    select
        .query_row([takes_events], |row| {
            let command: String = row.get(1)?;
            Ok(Waiting {
                number: row.get(0)?,
                command: Command::ALL.into_iter().find(|known| known.as_str() == command),
                output: row.get(2)?,
                selection: row.get(3)?,
                progress: parse(row.get(4)?),
            })
        })
        .optional()
}

impl Waiting {
    /// The events that it brings.
    pub fn events(&self) -> Vec<Event> {
        if self.command != Some(Command::Import) {
            return Vec::new();
        }
        // The command that left the order has read each line in the same way, unless it was another version's.
        self.selection.lines().filter_map(|line| export::read(line).ok()).collect()
    }
}

/// One step of an order, looking at about `rows` events, in the transaction under way. `last` is the last sequence given.
pub(super) fn carry_out(
    db: &Connection,
    order: Waiting,
    outputs: &mut Vec<OutputRow>,
    last: u64,
    rows: usize,
    now: Timestamp,
) -> rusqlite::Result<Step> {
    let mut step = Step::default();
    let mut progress = order.progress.clone();
    let done = match order.command {
        None => refuse(&mut progress, "this version of the relay does not know the command"),
        Some(Command::Import) => {
            progress.events = order.events().len() as u64;
            true
        }
        Some(command) => {
            let name = order.output.as_deref().unwrap_or_default();
            match (outputs.iter_mut().find(|row| row.name == name), serde_json::from_str::<Selection>(&order.selection))
            {
                (None, _) => refuse(&mut progress, "the journal knows no such output"),
                (_, Err(_)) => refuse(&mut progress, "its selection cannot be read"),
                (Some(row), _) if row.removed && matches!(command, Command::Replay | Command::Requeue) => {
                    refuse(&mut progress, "the output is no longer configured")
                }
                (Some(row), _) if !row.removed && command == Command::Forget => refuse(
                    &mut progress,
                    "the output is configured; take it out of the configuration and restart the relay first",
                ),
                (Some(row), Ok(selection)) => {
                    let mut work = Work { db, command, row, selection, now, rows, given_up: &mut step.given_up };
                    work.step(&mut progress, last)?
                }
            }
        }
    };
    if done {
        if order.command == Some(Command::Forget) && progress.problem.is_none() {
            step.forgotten = drop_output(db, outputs, order.output.as_deref().unwrap_or_default())?;
        }
        step.finished = Some((order.command.map_or("unknown", Command::as_str).to_owned(), progress.clone()));
        db.execute("DELETE FROM orders WHERE done_at IS NOT NULL AND number <= ?", [order.number - DONE_KEPT])?;
    }
    // What an import brought is among the events now, and stays nowhere else.
    let cleared = done && order.command == Some(Command::Import);
    let mut update = db.prepare_cached(
        "UPDATE orders SET result = ?, done_at = iif(?, ?, NULL), selection = iif(?, '{}', selection) WHERE number = ?",
    )?;
    let result = serde_json::to_string(&progress).unwrap_or_default(); // Numbers and texts into memory: it cannot fail.
    update.execute(params![result, done, now.as_micros(), cleared, order.number])?;
    Ok(step)
}

fn refuse(progress: &mut Progress, why: &str) -> bool {
    progress.problem = Some(why.to_owned());
    true
}

/// One order's step at one output.
struct Work<'a> {
    db: &'a Connection,
    command: Command,
    row: &'a mut OutputRow,
    selection: Selection,
    now: Timestamp,
    rows: usize,
    given_up: &'a mut Vec<(u32, u64)>,
}

/// A row that stands apart.
struct Apart {
    sequence: u64,
    state: State,
    lane: String,
    corrupt: bool,
}

impl Work<'_> {
    /// True when all is done.
    fn step(&mut self, progress: &mut Progress, last: u64) -> rusqlite::Result<bool> {
        let through = self.selection.through.unwrap_or(last);
        if progress.position == 0 {
            progress.position = self.selection.after.unwrap_or(0);
        }
        if self.command != Command::Replay && !progress.second_pass {
            let rows = self.apart(progress.position, through)?;
            for row in &rows {
                progress.position = row.sequence;
                progress.events += u64::from(self.take_apart(row)?);
            }
            if rows.len() == self.rows {
                return Ok(false);
            }
            (progress.second_pass, progress.position) = (true, self.selection.after.unwrap_or(0));
            return Ok(self.command == Command::Requeue);
        }
        match self.command {
            Command::Replay => self.replay(progress, through.min(self.row.cursor)),
            _ => self.give_up_pending(progress, through),
        }
    }

    /// The next held and parked rows of the output.
    fn apart(&self, after: u64, through: u64) -> rusqlite::Result<Vec<Apart>> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, state, lane, reason FROM apart INDEXED BY apart_by_sequence \
             WHERE sequence > ? AND sequence <= ? AND output = ? AND state <> 'replay' ORDER BY sequence LIMIT ?",
        )?;
        let rows = select.query_map(params![after as i64, through as i64, self.row.number, self.rows], |row| {
            Ok(Apart {
                sequence: row.get::<_, i64>(0)? as u64,
                state: if row.get_ref(1)?.as_str()? == "parked" { State::Parked } else { State::Held },
                lane: row.get(2)?,
                corrupt: row.get_ref(3)?.as_str_or_null()? == Some("corrupt"),
            })
        })?;
        rows.collect()
    }

    fn head(&self, sequence: u64) -> rusqlite::Result<Option<Head>> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, received_at, account, id, name, subject FROM events WHERE sequence = ?",
        )?;
        select.query_row([sequence as i64], |row| head(row, 0)).optional()
    }

    /// True if this row is meant, and was changed.
    fn take_apart(&mut self, apart: &Apart) -> rusqlite::Result<bool> {
        let head = self.head(apart.sequence)?;
        let meant = match &head {
            Some(head) => self.selection.takes(head),
            None => self.command == Command::Forget, // Nobody can say what it was.
        };
        if !meant || !self.command.takes(apart.state) || !self.selection.takes_state(apart.state) {
            return Ok(false);
        }
        let key = params![self.row.number, apart.state.as_str(), apart.lane, apart.sequence as i64];
        const KEY: &str = "output = ?1 AND state = ?2 AND lane = ?3 AND sequence = ?4";
        if self.command == Command::Requeue {
            if apart.corrupt {
                return Ok(false); // It will not heal.
            }
            self.db.prepare_cached(&format!("UPDATE apart SET next_at = 0 WHERE {KEY}"))?.execute(key)?;
            return Ok(true);
        }
        self.db.prepare_cached(&format!("DELETE FROM apart WHERE {KEY}"))?.execute(key)?;
        *(if apart.state == State::Parked { &mut self.row.counts.parked } else { &mut self.row.counts.pending }) -= 1;
        self.give_up(apart.sequence, head.as_ref(), &apart.lane)?;
        Ok(true)
    }

    /// What waits behind the cursor. Where nothing is left to wait for, the cursor follows.
    fn give_up_pending(&mut self, progress: &mut Progress, through: u64) -> rusqlite::Result<bool> {
        let from = progress.position.max(self.row.cursor);
        let Some((after, span_through)) = self.row.owed_after(from) else { return Ok(true) };
        if after >= through {
            return Ok(true);
        }
        let heads = self.heads(after, through.min(span_through))?;
        let mut whole = self.row.owed_after(self.row.cursor).is_none_or(|(cursor, _)| cursor == after);
        for head in &heads {
            progress.position = head.sequence;
            let (apart, given_up) = self.stands(head.sequence)?;
            if !apart && !given_up {
                if self.selection.takes(head) && self.selection.takes_state(State::Pending) {
                    self.row.counts.pending -= 1;
                    self.give_up(head.sequence, Some(head), "")?;
                    progress.events += 1;
                } else {
                    whole = false;
                }
            }
            if whole {
                self.row.cursor = self.row.cursor.max(head.sequence);
            }
        }
        if heads.len() < self.rows {
            progress.position = through.min(span_through);
        }
        Ok(progress.position >= through)
    }

    /// Published events that still have their content get a row by which the output finds them.
    fn replay(&mut self, progress: &mut Progress, through: u64) -> rusqlite::Result<bool> {
        let heads = self.heads(progress.position, through)?;
        for head in &heads {
            progress.position = head.sequence;
            let owed = |span: &super::Span| {
                span.after < head.sequence && span.through.is_none_or(|through| head.sequence <= through)
            };
            let (apart, given_up) = self.stands(head.sequence)?;
            if apart || given_up || !self.row.spans.iter().any(owed) || !self.selection.takes(head) {
                continue;
            }
            let mut insert = self.db.prepare_cached(
                "INSERT OR IGNORE INTO apart (output, state, lane, sequence, since) VALUES (?, 'replay', '', ?, ?)",
            )?;
            insert.execute(params![self.row.number, head.sequence as i64, self.now.as_micros()])?;
            progress.events += 1;
        }
        Ok(heads.len() < self.rows)
    }

    fn heads(&self, after: u64, through: u64) -> rusqlite::Result<Vec<Head>> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, received_at, account, id, name, subject FROM events WHERE sequence > ? AND sequence <= ? \
             ORDER BY sequence LIMIT ?",
        )?;
        let through = i64::try_from(through).unwrap_or(i64::MAX);
        select.query_map(params![after as i64, through, self.rows], |row| head(row, 0))?.collect()
    }

    /// Whether an event is held or parked here, and whether it was given up.
    fn stands(&self, sequence: u64) -> rusqlite::Result<(bool, bool)> {
        let mut select = self.db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM apart INDEXED BY apart_by_sequence WHERE sequence = ?1 AND output = ?2 AND state <> 'replay'), \
             EXISTS (SELECT 1 FROM given_up WHERE sequence = ?1 AND output = ?2)",
        )?;
        select.query_row(params![sequence as i64, self.row.number], |row| Ok((row.get(0)?, row.get(1)?)))
    }

    /// Into ledger and trail, and never to be sent again.
    fn give_up(&mut self, sequence: u64, head: Option<&Head>, lane: &str) -> rusqlite::Result<()> {
        self.row.counts.discarded += 1;
        // A removed output sends nothing, and has no row to tell it by soon.
        if self.command != Command::Forget {
            self.given_up.push((self.row.number, sequence));
            let mut insert =
                self.db.prepare_cached("INSERT OR IGNORE INTO given_up (sequence, output) VALUES (?, ?)")?;
            insert.execute(params![sequence as i64, self.row.number])?;
        }
        let Some(head) = head else { return Ok(()) };
        let mut insert = self.db.prepare_cached(
            "INSERT INTO trail (at, sequence, output, state, account, id, name, subject, received_at, lane, reason) \
             VALUES (?, ?, ?, 'discarded', ?, ?, ?, ?, ?, nullif(?, ''), ?)",
        )?;
        insert.execute(params![
            self.now.as_micros(),
            sequence as i64,
            self.row.name,
            head.account,
            &head.id[..],
            head.name,
            head.subject,
            head.received_at.as_micros(),
            lane,
            format!("journal {}", self.command.as_str())
        ])?;
        Ok(())
    }
}

/// Drops a removed output that owes nothing any more: its name.
fn drop_output(db: &Connection, outputs: &mut Vec<OutputRow>, name: &str) -> rusqlite::Result<Option<String>> {
    let Some(place) = outputs.iter().position(|row| row.name == name) else { return Ok(None) };
    let row = outputs.remove(place);
    for table in ["apart", "given_up", "spans"] {
        db.execute(&format!("DELETE FROM {table} WHERE output = ?"), [row.number])?;
    }
    db.execute("DELETE FROM outputs WHERE number = ?", [row.number])?;
    Ok(Some(row.name))
}

#[cfg(test)]
mod tests;
