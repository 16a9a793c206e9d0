//! What each account's undelivered events take in the journal: those that some output still owes, pending or parked. Counted in memory with each commit,
//! and saved in `meta` beside the sums of the ledger that they belong to. Where these differ from the ledger (an older version wrote in between, an
//! output was forgotten), the events are counted anew, which reads a row of each that is owed.

use std::collections::BTreeMap;

use prometheus::IntGauge;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::fetch::{SIZES, Size};
use super::room::ROW_BYTES;
use super::{OutputRow, Span, file};
use crate::config::AccountName;

/// Events that are read at a time when all are counted.
const COUNTED_AT_ONCE: usize = 4096;

const IS_APART: &str = "SELECT EXISTS (SELECT 1 FROM apart INDEXED BY apart_by_sequence \
     WHERE sequence = ? AND output = ? AND state <> 'replay')";

/// Sums of the ledger that only grow. No event becomes owed, or is no longer, without a change of one of them.
type Sums = [i64; 3];

pub(super) struct Undelivered {
    bytes: BTreeMap<AccountName, u64>,
    /// Of those accounts that are configured.
    gauges: Vec<(AccountName, IntGauge)>,
    /// As of the last time that it was saved; zeros: never.
    saved_at: Sums,
}

/// As `meta` has it.
#[derive(Serialize, Deserialize)]
struct Saved {
    sums: Sums,
    bytes: BTreeMap<String, u64>,
}

impl Undelivered {
    /// `last`: the last sequence given.
    pub fn load(
        db: &Connection,
        outputs: &[OutputRow],
        last: u64,
        is_damaged: bool,
        gauges: Vec<(AccountName, IntGauge)>,
    ) -> rusqlite::Result<Self> {
        let mut loaded = Self { bytes: BTreeMap::new(), gauges, saved_at: [0; 3] };
        let mut select = db.prepare_cached("SELECT value FROM meta WHERE name = 'undelivered'")?;
        let saved: Option<String> = select.query_row([], |row| row.get(0)).optional()?;
        let saved: Option<Saved> = saved.and_then(|saved| serde_json::from_str(&saved).ok());
        match saved.filter(|saved| saved.sums == sums(outputs) && !is_damaged) {
            Some(saved) => {
                let named =
                    saved.bytes.iter().filter_map(|(account, bytes)| Some((AccountName::new(account)?, *bytes)));
                (loaded.bytes, loaded.saved_at) = (named.collect(), saved.sums);
            }
            None => loaded.count(db, outputs, last)?,
        }
        Ok(loaded)
    }

    /// Counts anew: reads a row of each event that is owed. To be called outside of a transaction, as what reads events. Where a damaged page ends it, what
    /// was counted so far stands: a smaller number costs less than the journal.
    pub fn count(&mut self, db: &Connection, outputs: &[OutputRow], last: u64) -> rusqlite::Result<()> {
        match self.count_rows(db, outputs, last) {
            Err(error) if file::is_corrupt(&error) => {
                warn!(
                    "what each account's undelivered events take in the journal cannot be counted to the end: {error}"
                );
                Ok(())
            }
            result => result,
        }
    }

    fn count_rows(&mut self, db: &Connection, outputs: &[OutputRow], last: u64) -> rusqlite::Result<()> {
        (self.bytes, self.saved_at) = (BTreeMap::new(), [0; 3]);
        let any_given_up: bool = db.query_row("SELECT EXISTS (SELECT 1 FROM given_up)", [], |row| row.get(0))?;
        let mut waiting: Vec<Span> = outputs.iter().flat_map(OutputRow::owed).collect();
        waiting.sort_by_key(|span| span.after);
        let mut position = 0;
        for span in &waiting {
            position = position.max(span.after);
            let through = span.through.unwrap_or(last).min(last);
            while position < through {
                let found = SIZES.between(db, position, through, COUNTED_AT_ONCE, usize::MAX)?;
                position = found.last().filter(|_| found.len() == COUNTED_AT_ONCE).map_or(through, |found| found.0);
                for (sequence, event) in found {
                    if !any_given_up || is_owed(db, outputs.iter(), sequence)? {
                        self.add(event);
                    }
                }
            }
        }
        let mut select = db.prepare(
            "SELECT DISTINCT sequence FROM apart INDEXED BY apart_by_sequence WHERE sequence > ? AND state <> 'replay' ORDER BY sequence LIMIT ?",
        )?;
        let is_counted = |sequence| waiting.iter().any(|span| span.has(sequence));
        let mut position = 0_i64;
        loop {
            let apart = select.query_map(params![position, COUNTED_AT_ONCE], |row| row.get::<_, i64>(0))?;
            let apart: Vec<i64> = apart.collect::<rusqlite::Result<_>>()?;
            let Some(last) = apart.last() else { return Ok(()) };
            position = *last;
            let apart = apart.into_iter().map(|sequence| sequence as u64).filter(|sequence| !is_counted(*sequence));
            for (_, event) in SIZES.of(db, apart, usize::MAX)? {
                self.add(event);
            }
        }
    }

    fn add(&mut self, event: Option<Size>) {
        if let Some((account, body_bytes)) = event {
            *self.bytes.entry(account).or_default() += cost(body_bytes);
        }
    }

    pub fn accepted(&mut self, account: &AccountName, body_bytes: usize) {
        self.add(Some((account.clone(), body_bytes)));
    }

    /// This output has published the event or given it up. Takes it off, unless another output owes it still.
    pub fn delivered(
        &mut self,
        db: &Connection,
        outputs: &[OutputRow],
        output: u32,
        sequence: u64,
        (account, body_bytes): &Size,
    ) -> rusqlite::Result<()> {
        // Most relays have one output, and nothing to ask then.
        if is_owed(db, outputs.iter().filter(|other| other.number != output), sequence)? {
            return Ok(());
        }
        if let Some(bytes) = self.bytes.get_mut(account) {
            *bytes = bytes.saturating_sub(cost(*body_bytes));
        }
        Ok(())
    }

    /// Into the transaction under way, if anything changed since the last one.
    pub fn save(&mut self, db: &Connection, outputs: &[OutputRow]) -> rusqlite::Result<()> {
        let sums = sums(outputs);
        if sums == self.saved_at {
            return Ok(());
        }
        self.saved_at = sums;
        let bytes = self.bytes.iter().map(|(account, bytes)| (account.to_string(), *bytes)).collect();
        let saved = serde_json::to_string(&Saved { sums, bytes }).unwrap_or_default(); // What cannot be read is counted anew.
        let mut replace = db.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES ('undelivered', ?)")?;
        replace.execute([saved])?;
        Ok(())
    }

    pub fn of(&self, account: &AccountName) -> u64 {
        self.bytes.get(account).copied().unwrap_or_default()
    }

    pub fn show(&self) {
        for (account, gauge) in &self.gauges {
            gauge.set(self.of(account) as i64);
        }
    }
}

/// What an event with a body of so many bytes takes.
pub(super) fn cost(body_bytes: usize) -> u64 {
    (body_bytes + ROW_BYTES) as u64
}

fn sums(outputs: &[OutputRow]) -> Sums {
    outputs.iter().fold([0; 3], |[accepted, published, discarded], OutputRow { counts, .. }| {
        [accepted + counts.accepted, published + counts.published, discarded + counts.discarded]
    })
}

/// Whether the event is pending or parked at any of these outputs.
fn is_owed<'a>(db: &Connection, outputs: impl Iterator<Item = &'a OutputRow>, sequence: u64) -> rusqlite::Result<bool> {
    for output in outputs {
        let ask = |sql: &str| {
            let mut select = db.prepare_cached(sql)?;
            select.query_row(params![sequence as i64, output.number], |row| row.get::<_, bool>(0))
        };
        let is_waiting = output.owed().any(|span| span.has(sequence));
        if is_waiting && !ask("SELECT EXISTS (SELECT 1 FROM given_up WHERE sequence = ? AND output = ?)")?
            || ask(IS_APART)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::super::progress::{self, About, Apart, Outcome, Progress, Settlement};
    use super::super::{Kept, Stored, file, ledger, row};
    use super::*;
    use crate::authenticate::Verified;
    use crate::clock::{self, Timestamp};
    use crate::config::Name;
    use crate::normalize::{Event, normalize};
    use crate::publish::Place;

    const EVENTS: u64 = 300;

    fn event(sequence: u64) -> Event {
        let account = if sequence.is_multiple_of(3) { "sales" } else { "default" };
        normalize(Verified::for_test(account, 1, &vec![b'x'; sequence as usize]), &[])
    }

    fn journal() -> Connection {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch(include_str!("schema.sql")).unwrap();
        db.execute_batch(file::ADDITIONS).unwrap();
        let outputs = ["console", "kafka"].map(|name| Name::new(name).unwrap());
        ledger::configure(&db, &outputs, 0, Timestamp::default()).unwrap();
        let mut insert = db.prepare_cached(row::INSERT).unwrap();
        for sequence in 1..=EVENTS {
            row::insert(&mut insert, sequence, &event(sequence)).unwrap();
        }
        db.execute("UPDATE outputs SET accepted = ?1, pending = ?1", [EVENTS as i64]).unwrap();
        drop(insert);
        db
    }

    fn load(db: &Connection, outputs: &[OutputRow]) -> BTreeMap<AccountName, u64> {
        let mut bytes = Undelivered::load(db, outputs, EVENTS, false, Vec::new()).unwrap().bytes;
        bytes.retain(|_, bytes| *bytes > 0);
        bytes
    }

    /// Whatever two outputs do, what is taken off one by one is what a count finds, and it is nothing when both have published all.
    #[test]
    fn an_event_counts_until_the_last_output_has_delivered_it() {
        let db = journal();
        let mut outputs = ledger::read(&db).unwrap();
        let mut undelivered = Undelivered::load(&db, &outputs, EVENTS, false, Vec::new()).unwrap();
        let all: u64 = (1..=EVENTS).map(|bytes| cost(bytes as usize)).sum();
        assert_eq!(undelivered.bytes.values().sum::<u64>(), all);
        let kept = Kept { groups: Default::default() };
        let mut random = fastrand::Rng::with_seed(7);
        let mut rows: [Vec<(u64, bool)>; 2] = Default::default(); // Held and parked ones.
        for round in 0.. {
            let output = random.usize(..2);
            let row = &mut outputs[output];
            let mut progress = Progress::new("".into(), row.number, row.progress + 1);
            let settled = |sequence, outcome, was_parked, has_row| Settlement {
                sequence,
                outcome,
                at: clock::now(),
                lane: "t".into(),
                was_parked,
                has_row,
                event: Some(About::of(&Stored { sequence, event: event(sequence) })),
            };
            let parked = || Outcome::Parked { reason: "other", detail: String::new(), next_at: Timestamp::default() };
            let is_end = round > 400;
            if !rows[output].is_empty() && random.bool() {
                let (sequence, was_parked) = rows[output].swap_remove(random.usize(..rows[output].len()));
                let outcome = if random.bool() || is_end { Outcome::Published(Place::Confirmed) } else { parked() };
                if outcome != Outcome::Published(Place::Confirmed) {
                    rows[output].push((sequence, true));
                }
                progress.settled.push(settled(sequence, outcome, was_parked, true));
            }
            progress.cursor = (row.cursor + random.u64(..4)).min(EVENTS);
            for sequence in row.cursor + 1..=progress.cursor {
                match random.u8(..4) {
                    0 => {
                        rows[output].push((sequence, true));
                        progress.settled.push(settled(sequence, parked(), false, false));
                    }
                    1 => {
                        rows[output].push((sequence, false));
                        let next_at = Timestamp::default();
                        progress.held.push(Apart { sequence, lane: "t".into(), reason: None, attempts: 0, next_at });
                    }
                    _ => progress.settled.push(settled(sequence, Outcome::Published(Place::Confirmed), false, false)),
                }
            }
            for (sequence, size) in progress::apply(&db, &progress, row, &kept, clock::now()).unwrap() {
                undelivered.delivered(&db, &outputs, progress.output, sequence, &size).unwrap();
            }
            undelivered.bytes.retain(|_, bytes| *bytes > 0);
            assert_eq!(undelivered.bytes, load(&db, &outputs), "round {round}");
            if outputs.iter().all(|row| row.cursor == EVENTS) && rows.iter().all(Vec::is_empty) {
                break;
            }
        }
        assert_eq!(undelivered.bytes, BTreeMap::new());
    }

    #[test]
    fn what_is_saved_is_believed_only_beside_its_own_ledger() {
        let db = journal();
        let mut outputs = ledger::read(&db).unwrap();
        let mut undelivered = Undelivered::load(&db, &outputs, EVENTS, false, Vec::new()).unwrap();
        let counted = load(&db, &outputs);
        let account = AccountName::new("sales").unwrap();
        undelivered.bytes.insert(account.clone(), 1);
        undelivered.save(&db, &outputs).unwrap();
        assert_eq!(load(&db, &outputs)[&account], 1, "it is not counted at each start");
        let damaged = Undelivered::load(&db, &outputs, EVENTS, true, Vec::new()).unwrap();
        assert_eq!(damaged.bytes, counted, "but where a page was lost");
        outputs[1].counts.published += 1;
        assert_eq!(load(&db, &outputs), counted, "and where another version published");
    }
}
