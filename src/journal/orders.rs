//! Orders: what other commands ask of the journal's writer. They leave a row in the table `orders`; the writer of the running relay, or of the next
//! one, carries it out in steps inside its own transactions. A step and the note of how far it came are one transaction, so that no order is
//! carried out twice.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::fetch::{Found, HEADS};
use super::inspect::Head;
use super::selection::{Selection, State};
use super::{OutputRow, export, file};
use crate::clock::Timestamp;
use crate::normalize::Event;

/// Orders that are done stay this many orders long, for whoever waits for their result.
const DONE_KEPT: i64 = 1_000;

/// Carried out at the start alone: what is in flight has the id of the journal that it was read from.
const NEW_ID: &str = "new-id";

/// What can be ordered of a relay at work. Their names are those of the commands.
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
    record(journal, command.as_str(), output, &selection, now)
}

/// The same for events to be imported, given as lines of [`export`].
///
/// # Errors
/// As of [`give`].
pub fn give_import(journal: &Path, lines: &[String], now: Timestamp) -> Result<i64, String> {
    record(journal, Command::Import.as_str(), None, &lines.join("\n"), now)
}

fn record(journal: &Path, command: &str, output: Option<&str>, selection: &str, now: Timestamp) -> Result<i64, String> {
    let say = |error: rusqlite::Error| format!("{}: the order cannot be written: {error}", journal.display());
    let db = file::open_beside(journal).map_err(say)?;
    db.execute(
        "INSERT INTO orders (given_at, command, output, selection) VALUES (?, ?, ?, ?)",
        params![now.as_micros(), command, output, selection],
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
    looked: Looked,
}

/// What a step works on, read before its transaction: in one that met a damaged page SQLite writes nothing more.
#[derive(Default)]
struct Looked {
    /// Events behind the first of these, up to the second.
    span: (u64, u64),
    /// That was all of this pass.
    is_end: bool,
    apart: Vec<Apart>,
    heads: Vec<Found<Head>>,
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

/// Leaves the order that the next start goes on with another id; its number.
///
/// # Errors
/// As of [`give`].
pub fn give_new_id(journal: &Path, now: Timestamp) -> Result<i64, String> {
    record(journal, NEW_ID, None, "{}", now)
}

/// The last order of that kind that is not carried out.
pub(super) fn next_new_id(db: &Connection) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT max(number) FROM orders WHERE command = ? AND done_at IS NULL", [NEW_ID], |row| row.get(0))
}

/// It is carried out, and so are those before it.
pub(super) fn new_id_done(db: &Connection, number: i64, now: Timestamp) -> rusqlite::Result<()> {
    let sql = "UPDATE orders SET done_at = ? WHERE command = ? AND done_at IS NULL AND number <= ?";
    db.execute(sql, params![now.as_micros(), NEW_ID, number]).map(drop)
}

/// The next order. While the journal takes no events none of those that bring some, so that one behind it can make room.
pub(super) fn next(db: &Connection, takes_events: bool) -> rusqlite::Result<Option<Waiting>> {
    let mut select = db.prepare_cached(
        "SELECT number, command, output, selection, result FROM orders \
         WHERE done_at IS NULL AND (? OR command <> 'import') AND command <> 'new-id' ORDER BY number LIMIT 1",
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
                looked: Looked::default(),
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

    /// The events that the next step may give up.
    pub fn looked_at(&self) -> impl Iterator<Item = u64> {
        self.looked.heads.iter().map(|(sequence, _)| *sequence)
    }

    /// Looks at the next events, at most so many, for the step that follows. `last` is the last sequence given.
    pub fn look(&mut self, db: &Connection, outputs: &[OutputRow], last: u64, rows: usize) -> rusqlite::Result<()> {
        let row = outputs.iter().find(|row| Some(&row.name) == self.output.as_ref());
        let (Some(row), Ok(selection)) = (row, serde_json::from_str::<Selection>(&self.selection)) else {
            return Ok(());
        };
        let after = self.progress.position.max(selection.after.unwrap_or(0));
        let through = selection.through.unwrap_or(last).min(last);
        if self.command != Some(Command::Replay) && !self.progress.second_pass {
            let apart = apart(db, row.number, after, through, rows)?;
            let is_end = apart.len() < rows;
            let through = apart.last().filter(|_| !is_end).map_or(through, |last| last.sequence);
            let heads = HEADS.of(db, apart.iter().map(|apart| apart.sequence), usize::MAX)?;
            self.looked = Looked { span: (after, through), is_end, apart, heads };
            return Ok(());
        }
        // Published ones, or the next stretch of those that wait behind the cursor.
        let (after, end) = match self.command {
            Some(Command::Replay) => (after, through.min(row.cursor)),
            _ => row.owed_after(after.max(row.cursor)).unwrap_or((through, through)),
        };
        let heads = HEADS.between(db, after, end.min(through), rows, usize::MAX)?;
        let is_whole = heads.len() < rows;
        let is_end = is_whole && (end >= through || self.command == Some(Command::Replay));
        let through = heads.last().filter(|_| !is_whole).map_or(end.min(through), |(last, _)| *last);
        self.looked = Looked { span: (after, through), is_end, apart: Vec::new(), heads };
        Ok(())
    }
}

/// The next held and parked rows of an output.
fn apart(db: &Connection, output: u32, after: u64, through: u64, rows: usize) -> rusqlite::Result<Vec<Apart>> {
    let mut select = db.prepare_cached(
        "SELECT sequence, state, lane FROM apart INDEXED BY apart_by_sequence \
         WHERE sequence > ? AND sequence <= ? AND output = ? AND state <> 'replay' ORDER BY sequence LIMIT ?",
    )?;
    let rows = select.query_map(params![after as i64, through as i64, output, rows], |row| {
        Ok(Apart {
            sequence: row.get::<_, i64>(0)? as u64,
            state: if row.get_ref(1)?.as_str()? == "parked" { State::Parked } else { State::Held },
            lane: row.get(2)?,
        })
    })?;
    rows.collect()
}

/// One step of an order, in the transaction under way.
pub(super) fn carry_out(
    db: &Connection,
    order: Waiting,
    outputs: &mut Vec<OutputRow>,
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
                    let mut work = Work { db, command, row, selection, now, given_up: &mut step.given_up };
                    work.step(&mut progress, &order.looked)?
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
    given_up: &'a mut Vec<(u32, u64)>,
}

/// A row that stands apart.
struct Apart {
    sequence: u64,
    state: State,
    lane: String,
}

impl Work<'_> {
    /// True when all is done.
    fn step(&mut self, progress: &mut Progress, looked: &Looked) -> rusqlite::Result<bool> {
        progress.position = looked.span.1;
        if self.command == Command::Replay {
            progress.events += self.replay(&looked.heads)?;
            return Ok(looked.is_end);
        }
        if progress.second_pass {
            progress.events += self.give_up_pending(looked)?;
            return Ok(looked.is_end);
        }
        for (apart, (_, head)) in looked.apart.iter().zip(&looked.heads) {
            progress.events += u64::from(self.take_apart(apart, head.as_ref())?);
        }
        if looked.is_end {
            (progress.second_pass, progress.position) = (true, 0);
        }
        Ok(looked.is_end && self.command == Command::Requeue)
    }

    /// One that cannot be read is meant where nothing is asked of what it was.
    fn means(&self, head: Option<&Head>) -> bool {
        head.map_or(self.selection.takes_unread(), |head| self.selection.takes(head))
    }

    /// True if this row is meant, and was changed.
    fn take_apart(&mut self, apart: &Apart, head: Option<&Head>) -> rusqlite::Result<bool> {
        if !self.means(head) || !self.command.takes(apart.state) || !self.selection.takes_state(apart.state) {
            return Ok(false);
        }
        let key = params![self.row.number, apart.state.as_str(), apart.lane, apart.sequence as i64];
        const KEY: &str = "output = ?1 AND state = ?2 AND lane = ?3 AND sequence = ?4";
        // No row is left where the output settled it since it was looked at.
        if self.command == Command::Requeue {
            // A corrupt one will not heal. Asked here: the output may have found that out since the row was looked at.
            let sql = format!("UPDATE apart SET next_at = 0 WHERE {KEY} AND reason IS NOT 'corrupt'");
            return Ok(self.db.prepare_cached(&sql)?.execute(key)? > 0);
        }
        if self.db.prepare_cached(&format!("DELETE FROM apart WHERE {KEY}"))?.execute(key)? == 0 {
            return Ok(false);
        }
        *(if apart.state == State::Parked { &mut self.row.counts.parked } else { &mut self.row.counts.pending }) -= 1;
        self.give_up(apart.sequence, head, &apart.lane)?;
        Ok(true)
    }

    /// What waits behind the cursor: how many. Where nothing is left to wait for, the cursor follows.
    fn give_up_pending(&mut self, looked: &Looked) -> rusqlite::Result<u64> {
        let mut count = 0;
        let mut whole = self.row.owed_after(self.row.cursor).is_none_or(|(next, _)| next >= looked.span.0);
        for (sequence, head) in &looked.heads {
            // The output may have come past it since it was looked at.
            let (apart, given_up) = self.stands(*sequence)?;
            if *sequence > self.row.cursor && !apart && !given_up {
                if self.means(head.as_ref()) && self.selection.takes_state(State::Pending) {
                    self.row.counts.pending -= 1;
                    self.give_up(*sequence, head.as_ref(), "")?;
                    count += 1;
                } else {
                    whole = false;
                }
            }
            if whole {
                self.row.cursor = self.row.cursor.max(*sequence);
            }
        }
        Ok(count)
    }

    /// Published events that still have their content get a row by which the output finds them: how many.
    fn replay(&mut self, heads: &[Found<Head>]) -> rusqlite::Result<u64> {
        let mut count = 0;
        for (sequence, head) in heads {
            let Some(head) = head else { continue };
            let (apart, given_up) = self.stands(*sequence)?;
            if apart
                || given_up
                || !self.row.spans.iter().any(|span| span.has(*sequence))
                || !self.selection.takes(head)
            {
                continue;
            }
            let mut insert = self.db.prepare_cached(
                "INSERT OR IGNORE INTO apart (output, state, lane, sequence, since) VALUES (?, 'replay', '', ?, ?)",
            )?;
            insert.execute(params![self.row.number, *sequence as i64, self.now.as_micros()])?;
            count += 1;
        }
        Ok(count)
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
        self.given_up.push((self.row.number, sequence));
        // A removed output sends nothing, and has no row to tell it by soon.
        if self.command != Command::Forget {
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
