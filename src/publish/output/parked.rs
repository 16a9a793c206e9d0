//! Parked events that are due: in batches, each behind the one before and a turn of the others, so that they hold up nobody. Where the broker takes a
//! batch the next one is twice as large, and where it does not, the next one is a single event: so what is wrong with one of them shows on it alone.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::super::books::PARKED_AGAIN_MAX;
use super::super::lane::Item;
use super::reading::tell_corrupt;
use super::{BYTES_MAX, EVENTS_MAX, LOOK_EVERY, Output, READ_BYTES, READ_EVENTS};
use crate::clock;
use crate::journal::{Due, Read};

/// Failures in a second, at the most: each of them goes over the line again.
const FAILURES_MAX: u32 = 10;
/// How often those are looked at whose topic is held.
const HELD_AGAIN: Duration = Duration::from_secs(5);

pub(in crate::publish) struct Parked {
    /// Everything due before this was looked at in this walk.
    position: Due,
    /// The next walk.
    not_before: Instant,
    /// This walk is not at its end.
    active: bool,
    /// Events of the next batch.
    batch: usize,
    /// The lanes had a turn since the last batch ended.
    may_go: bool,
    /// Not all of the last batch was taken.
    refused: bool,
    failures: u32,
    failures_since: Instant,
    /// This walk left some whose topic is held.
    left: bool,
}

impl Parked {
    pub fn new(now: Instant) -> Self {
        Self {
            position: Due::default(),
            not_before: now,
            active: false,
            batch: 1,
            may_go: true,
            refused: false,
            failures: 0,
            failures_since: now,
            left: false,
        }
    }

    /// How many events the others may have in memory beside a batch.
    pub fn leaves(&self) -> usize {
        EVENTS_MAX - if self.active { self.batch } else { 0 }
    }

    /// One was refused for its own sake.
    pub fn failed(&mut self, now: Instant) {
        if now.duration_since(self.failures_since) >= LOOK_EVERY {
            (self.failures, self.failures_since) = (0, now);
        }
        self.failures += 1;
        self.refused = true;
    }

    /// One came back that is not to blame, and is due as before.
    pub fn came_back(&mut self, now: Instant, broker_is_away: bool) {
        (self.refused, self.position) = (true, Due::default());
        if broker_is_away {
            self.not_before = now + LOOK_EVERY;
        }
    }
}

impl Output {
    /// Gives the next batch of parked events that are due to their lanes. True if there is more to do at once.
    pub(super) fn take_up_parked(&mut self, now: Instant, most: usize) -> rusqlite::Result<bool> {
        let parked = &mut self.parked;
        if parked.failures >= FAILURES_MAX && now.duration_since(parked.failures_since) < LOOK_EVERY {
            return Ok(false);
        }
        let room = EVENTS_MAX.saturating_sub(self.in_memory);
        let is_full = room == 0 || self.bytes_in_memory >= BYTES_MAX || self.books.are_any_again();
        if now < parked.not_before || is_full || !parked.may_go || self.stop.borrow().is_some() {
            return Ok(false);
        }
        let most = parked.batch.min(room).min(most);
        let left = Cell::new(false);
        let wants = |topic: &str, sequence| {
            let is_held = self.lanes.iter().any(|lane| *lane.topic == *topic && lane.is_stuck(now));
            left.set(left.get() || is_held);
            !is_held && !self.books.is_settled(sequence)
        };
        let limits = (READ_EVENTS, most, READ_BYTES);
        let (due, position) =
            self.reader.parked_due(self.number, (clock::now(), PARKED_AGAIN_MAX), parked.position, limits, wants)?;
        parked.left |= left.get();
        let found = !due.is_empty();
        let together = most > 1;
        for row in due {
            let Read::Event(stored) = row.read else {
                self.books.never_again(row.read.sequence(), row.attempts);
                tell_corrupt(&self.name, &self.metrics, row.read.sequence());
                continue;
            };
            let topic = self.router.route(&stored.event.account, &stored.event.name);
            let lane = self.lane(&topic, now);
            // Perhaps it was parked for another topic.
            if self.lanes[lane].is_stuck(now) {
                self.parked.left = true;
                continue;
            }
            self.books.begin_again(stored.sequence);
            let item = Item::parked(stored, row.attempts, together);
            self.in_memory += 1;
            self.bytes_in_memory += item.bytes;
            self.lanes[lane].push(item);
        }
        let parked = &mut self.parked;
        if self.books.are_any_again() {
            parked.may_go = false;
        }
        parked.active = position.is_some();
        match position {
            Some(position) => parked.position = position,
            None => {
                parked.position = Due::default();
                parked.not_before = now + if std::mem::take(&mut parked.left) { HELD_AGAIN } else { LOOK_EVERY };
            }
        }
        Ok(found || parked.active)
    }

    /// Behind a turn of the lanes: whether the next batch of parked events may go.
    pub(super) fn end_turn(&mut self) -> bool {
        let parked = &mut self.parked;
        if parked.may_go || self.books.are_any_again() {
            return false;
        }
        parked.may_go = true;
        parked.batch = if std::mem::take(&mut parked.refused) { 1 } else { (parked.batch * 2).min(READ_EVENTS) };
        true
    }
}
