//! What an output has to tell the journal: gathered here, handed over about every second or every few hundred events, and again if the
//! journal could not keep it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Place;
use super::lane::Item;
use crate::clock::{self, Timestamp};
use crate::journal::{About, Apart, AppendError, Journal, NEVER, Outcome, OutputRow, Progress, Settlement, Stored};

/// Settled events by which the cursor may lag (DESIGN §7): what a crash sends twice beside what was in flight.
pub(super) const UNSAVED_MAX: usize = 1_000;
/// From so many on they are handed over at once. Fewer would make more commits, each with its sync.
const SAVE_AT: usize = 500;
/// The same for bytes in memory: what is published makes room on a small disk only once the journal has heard of it.
const SAVE_AT_BYTES: usize = 4 << 20;
const SAVE_EVERY: Duration = Duration::from_secs(1);
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// Parked events are tried again after 30 s, then twice as long each time, at most an hour: an operator who raised the broker's limit need
/// not do more, and a thousand of them do not storm it.
const PARKED_AGAIN_MIN: Duration = Duration::from_secs(30);
pub(super) const PARKED_AGAIN_MAX: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saved {
    Kept,
    Failed,
}

pub(super) struct Books {
    next: Progress,
    /// The last progress that the journal has.
    kept: u64,
    saved_cursor: u64,
    saved_at: Instant,
    /// Bytes of the items settled since then.
    bytes_settled: usize,
    saving: Option<Saving>,
    /// Settled events that the cursor has not passed yet. They are told together with a cursor that has: after a crash everything behind
    /// the cursor is sent again, and what was counted before would be counted twice.
    beyond: BTreeMap<u64, Box<Settlement>>,
    /// Events with a row that were settled or tried in vain, of which the journal does not know yet: it still shows their rows.
    unkept: HashSet<u64>,
    /// Parked events that are on their way again.
    again: HashSet<u64>,
}

struct Saving {
    progress: Arc<Progress>,
    /// `None` after a failure, until `again_at`.
    done: Option<oneshot::Receiver<Result<(), AppendError>>>,
    again_at: Instant,
}

impl Books {
    pub fn new(journal: Arc<str>, row: &OutputRow, now: Instant) -> Self {
        Self {
            next: Progress::new(journal, row.number, row.progress + 1),
            kept: row.progress,
            saved_cursor: row.cursor,
            saved_at: now,
            bytes_settled: 0,
            saving: None,
            beyond: BTreeMap::new(),
            unkept: HashSet::new(),
            again: HashSet::new(),
        }
    }

    /// This event needs no more sending, whatever row of it the journal still shows.
    pub fn is_settled(&self, sequence: u64) -> bool {
        self.unkept.contains(&sequence)
    }

    /// Events wait here for the cursor to pass them.
    pub fn awaits_cursor(&self) -> bool {
        !self.beyond.is_empty()
    }

    /// What the cursor has passed may be told now.
    pub fn passed(&mut self, cursor: u64) {
        // One by one: to split it would count all that stays.
        while let Some(first) = self.beyond.first_entry().filter(|first| *first.key() <= cursor) {
            self.next.settled.push(*first.remove());
        }
    }

    /// The progress in which what is noted now will go.
    pub fn number(&self) -> u64 {
        self.next.number
    }

    /// The progress with which all that was noted so far is kept.
    pub fn due(&self) -> u64 {
        if self.next.is_empty() { self.next.number - 1 } else { self.next.number }
    }

    /// The last progress that the journal has.
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Gives a pending event a row of its own.
    pub fn hold(&mut self, item: &mut Item, lane: &str, reason: Option<&'static str>) {
        item.row = true;
        let sequence = item.sequence();
        self.next.held.push(Apart {
            sequence,
            lane: lane.to_owned(),
            reason,
            attempts: 0,
            next_at: Timestamp::default(),
        });
    }

    pub fn published(&mut self, item: Item, lane: &Arc<str>, place: Place, at: Timestamp) {
        self.settle(item, lane, Outcome::Published(place), at);
    }

    pub fn park(&mut self, item: Item, lane: &Arc<str>, reason: &'static str, detail: String) {
        let at = clock::now();
        self.settle(item, lane, Outcome::Parked { reason, detail, next_at: at.plus(parked_for(0)) }, at);
    }

    fn settle(&mut self, item: Item, lane: &Arc<str>, outcome: Outcome, at: Timestamp) {
        let Item { stored, row, parked, bytes, .. } = item;
        self.bytes_settled += bytes;
        let Stored { sequence, event } = *stored;
        if parked.is_some() {
            self.again.remove(&sequence);
        }
        self.note(Settlement {
            sequence,
            outcome,
            at,
            lane: Arc::clone(lane),
            was_parked: parked.is_some(),
            has_row: row,
            event: Some(About {
                account: event.account,
                id: event.id,
                name: event.name,
                subject: event.subject,
                received_at: event.received_at,
                body_bytes: event.body.len(),
            }),
        });
    }

    fn note(&mut self, settlement: Settlement) {
        if settlement.has_row {
            self.unkept.insert(settlement.sequence);
        }
        self.beyond.insert(settlement.sequence, Box::new(settlement));
    }

    /// Sent again by order. None of the ledger's, and the cursor has passed it long ago.
    pub fn replayed(&mut self, stored: &Stored, lane: &str, outcome: Outcome) {
        self.next.settled.push(Settlement {
            sequence: stored.sequence,
            outcome,
            at: clock::now(),
            lane: lane.into(),
            was_parked: false,
            has_row: true,
            event: Some(About::of(stored)),
        });
    }

    /// Sent again by order, and its content is corrupt.
    pub fn not_replayed(&mut self, sequence: u64) {
        self.next.settled.push(Settlement {
            sequence,
            outcome: Outcome::NotReplayed { reason: "corrupt" },
            at: clock::now(),
            lane: "".into(),
            was_parked: false,
            has_row: true,
            event: None,
        });
    }

    /// If it was a parked one, it is not on its way any more.
    pub fn let_go(&mut self, sequence: u64) {
        self.again.remove(&sequence);
    }

    /// A row that does not hold what was written.
    pub fn corrupt(&mut self, sequence: u64, has_row: bool) {
        self.note(Settlement {
            sequence,
            outcome: Outcome::Parked { reason: "corrupt", detail: String::new(), next_at: NEVER },
            at: clock::now(),
            lane: "".into(),
            was_parked: false,
            has_row,
            event: None,
        });
    }

    /// A parked event is on its way again.
    pub fn begin_again(&mut self, sequence: u64) {
        self.again.insert(sequence);
    }

    pub fn are_any_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// A parked event failed again.
    pub fn parked_again(&mut self, item: &Item) {
        self.again.remove(&item.sequence());
        self.unkept.insert(item.sequence());
        let attempts = item.parked.unwrap_or(0) + 1;
        self.next.retried.push(Apart {
            sequence: item.sequence(),
            lane: String::new(),
            reason: None,
            attempts,
            next_at: clock::now().plus(parked_for(attempts)),
        });
    }

    /// A parked event whose row became corrupt is not tried again.
    pub fn never_again(&mut self, sequence: u64, attempts: u32) {
        self.unkept.insert(sequence);
        let reason = Some("corrupt");
        self.next.retried.push(Apart { sequence, lane: String::new(), reason, attempts, next_at: NEVER });
    }

    pub fn rename(&mut self, sequence: u64, lane: &str) {
        self.next.renamed.push((sequence, lane.to_owned()));
    }

    pub fn routes(&mut self, routes: &str) {
        self.next.routes = Some(routes.to_owned());
    }

    /// Settled events that the journal does not have yet.
    pub fn unsaved(&self) -> usize {
        self.next.settled.len() + self.saving.as_ref().map_or(0, |saving| saving.progress.settled.len())
    }

    /// Whether more events may be given rows: the work of one commit is bounded, since requests wait for it.
    pub fn has_room(&self) -> bool {
        self.next.held.len() < UNSAVED_MAX
    }

    pub fn save_if_due(&mut self, journal: &Journal, cursor: u64, now: Instant) {
        self.passed(cursor);
        match &mut self.saving {
            Some(saving) if saving.done.is_none() && now >= saving.again_at => {
                saving.done = Some(journal.record(Arc::clone(&saving.progress)));
            }
            Some(_) => {}
            None => {
                let many = self.next.settled.len() >= SAVE_AT || !self.next.held.is_empty();
                let many = many || self.bytes_settled >= SAVE_AT_BYTES;
                let some = !self.next.is_empty() || cursor > self.saved_cursor;
                if some && (many || now.duration_since(self.saved_at) >= SAVE_EVERY) {
                    self.save(journal, cursor, now);
                }
            }
        }
    }

    fn save(&mut self, journal: &Journal, cursor: u64, now: Instant) {
        let mut following = Progress::new(Arc::clone(&self.next.journal), self.next.output, self.next.number + 1);
        following.settled.reserve(self.next.settled.len()); // Likely as many again.
        let mut progress = std::mem::replace(&mut self.next, following);
        progress.cursor = cursor;
        self.saved_cursor = cursor;
        self.saved_at = now;
        self.bytes_settled = 0;
        let progress = Arc::new(progress);
        let done = Some(journal.record(Arc::clone(&progress)));
        self.saving = Some(Saving { progress, done, again_at: now });
    }

    /// The end of the save under way; for ever, if there is none.
    pub async fn saved(&mut self) -> Saved {
        let Some(done) = self.saving.as_mut().and_then(|saving| saving.done.as_mut()) else {
            return std::future::pending().await;
        };
        let result = done.await.unwrap_or(Err(AppendError::ShuttingDown));
        match (result, &mut self.saving) {
            (Err(_), Some(saving)) => {
                saving.done = None;
                saving.again_at = Instant::now() + SAVE_AGAIN;
                Saved::Failed
            }
            (_, saving) => {
                if let Some(Saving { progress, .. }) = saving.take() {
                    let rows = progress.settled.iter().filter(|settlement| settlement.has_row);
                    let settled = rows.map(|settlement| settlement.sequence);
                    for sequence in settled.chain(progress.retried.iter().map(|apart| apart.sequence)) {
                        self.unkept.remove(&sequence);
                    }
                }
                self.kept = self.next.number - 1;
                Saved::Kept
            }
        }
    }

    /// Saves all that there is and waits for it.
    ///
    /// # Errors
    /// The journal did not keep it; it is still here.
    pub async fn save_now(&mut self, journal: &Journal, cursor: u64) -> Result<(), String> {
        self.passed(cursor);
        for _ in 0..2 {
            if let Some(saving) = &mut self.saving
                && saving.done.is_none()
            {
                saving.done = Some(journal.record(Arc::clone(&saving.progress)));
            }
            if self.saving.is_some() && self.saved().await == Saved::Failed {
                return Err("the journal does not take writes".into());
            }
            if self.next.is_empty() && cursor <= self.saved_cursor {
                break;
            }
            self.save(journal, cursor, Instant::now());
        }
        if self.saving.is_some() && self.saved().await == Saved::Failed {
            return Err("the journal does not take writes".into());
        }
        Ok(())
    }

    pub fn wakes_at(&self) -> Option<Instant> {
        match &self.saving {
            Some(saving) => saving.done.is_none().then_some(saving.again_at),
            None => (!self.next.is_empty()).then(|| self.saved_at + SAVE_EVERY),
        }
    }
}

/// How long a parked event waits after so many tries.
fn parked_for(attempts: u32) -> Duration {
    PARKED_AGAIN_MIN.saturating_mul(1 << attempts.min(10)).min(PARKED_AGAIN_MAX)
}
