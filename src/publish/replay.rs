//! What orders ask of an output: not to send what was given up, and to send again what was published. Replays go beside the lanes, in batches
//! that wait for their end: they are no debt, so they hold up nothing, count in no ledger, and keep no order among new events.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::output::Output;
use super::sequences::SequenceSet;
use super::suspect::Suspect;
use super::{Disposition, Place, PublishError};
use crate::journal::{Outcome, Read, Stored};

/// Of events that are on their way again at once, at the most.
const BATCH_BYTES: usize = 2 << 20;
/// How often rows of replays are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a failure.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Replays {
    open: HashMap<u64, (Box<Stored>, Arc<str>)>,
    /// The progress by which the journal hears of the last batch.
    told_in: u64,
    /// Everything up to it was looked at in this walk through the rows.
    position: u64,
    not_before: Option<Instant>,
    /// When a batch was sent, or the broker last said something of it, or could not.
    heard_at: Option<Instant>,
    suspect: Option<Suspect>,
}

impl Replays {
    pub fn is_open(&self, sequence: u64) -> bool {
        self.open.contains_key(&sequence)
    }

    pub fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether one at which the broker may hang up is on its way.
    pub fn tries_a_suspect(&self) -> bool {
        self.suspect.as_ref().is_some_and(|suspect| suspect.is_alone && self.is_open(suspect.sequence))
    }

    /// Nothing counts as silence while the broker is away.
    pub fn excuse_silence(&mut self, now: Instant) {
        self.heard_at = Some(now);
    }
}

impl Output {
    /// Sends a batch of at most so many replays, if none is on its way and rows of some are there. True if there were any.
    pub(super) fn replay(&mut self, now: Instant, most: usize) -> rusqlite::Result<bool> {
        let replays = &self.replays;
        let waits = replays.not_before.is_some_and(|at| now < at) || self.books.kept() < replays.told_in;
        if waits || !replays.open.is_empty() || !self.connected || self.stop.borrow().is_some() {
            return Ok(false);
        }
        let reads = self.reader.to_replay(self.number, replays.position, most, BATCH_BYTES)?;
        if reads.is_empty() {
            self.replays.position = 0;
            self.replays.not_before = Some(now + LOOK_EVERY);
            return Ok(false);
        }
        let mut sent = false;
        for read in reads {
            self.replays.position = read.sequence();
            let Read::Event(stored) = read else {
                let sequence = read.sequence();
                self.books.not_replayed(sequence);
                self.replays.told_in = self.books.number();
                warn!(output = %self.name, event.sequence = sequence, reason = "corrupt", "an event is not sent again, it can never be");
                sent = true;
                continue;
            };
            let topic = self.router.route(&stored.event.account, &stored.event.name);
            let held = self.lanes.iter().any(|lane| lane.topic == topic && lane.is_stuck(now));
            if held || self.open.contains_key(&stored.sequence) {
                continue; // The next walk finds it again.
            }
            let sequence = stored.sequence;
            if let Some(suspect) = self.replays.suspect.as_mut().filter(|suspect| suspect.sequence == sequence) {
                if suspect.is_certain() && self.lanes.iter().any(|lane| lane.tries_a_suspect(now)) {
                    continue; // As two suspects of lanes do not go at once.
                }
                suspect.is_alone = suspect.is_certain();
            }
            let handed_over = self.handover.send(Arc::clone(&topic), &stored, true);
            self.replays.open.insert(sequence, (stored, topic));
            if let Err(error) = handed_over {
                self.replay_ended(sequence, Err(error), now);
            }
            sent = true;
        }
        self.replays.heard_at = Some(now);
        Ok(sent)
    }

    /// Takes back a batch of which the broker has said nothing for so long.
    pub(super) fn stop_waiting_for_replays(&mut self, now: Instant, longest: Duration) {
        let replays = &mut self.replays;
        if replays.is_idle() || replays.heard_at.is_some_and(|at| now.duration_since(at) < longest) {
            return;
        }
        replays.heard_at = Some(now);
        warn!(output = %self.name, reason = "timeout", "the broker does not answer {} events that are sent again by order; they are tried later", replays.open.len());
        let mut oldest: HashMap<&Arc<str>, u64> = HashMap::new();
        for (sequence, (_, topic)) in &replays.open {
            oldest.entry(topic).and_modify(|oldest| *oldest = (*oldest).min(*sequence)).or_insert(*sequence);
        }
        for (topic, oldest) in oldest {
            self.handover.sink.take_back(topic, oldest);
        }
        self.count_failure(&PublishError::Timeout);
    }

    /// A connection broke while these large records were open on it.
    pub(super) fn replays_broken(&mut self, large: &[u64], now: Instant) {
        let replays = &mut self.replays;
        let open = large.iter().copied().filter(|sequence| replays.open.contains_key(sequence)).min();
        let Some((oldest, topic)) = open.and_then(|oldest| Some((oldest, &replays.open.get(&oldest)?.1))) else {
            return;
        };
        if Suspect::broke(&mut replays.suspect, oldest, (false, large.len() == 1), now) {
            self.handover.sink.take_back(topic, oldest);
        }
    }

    /// A replay was confirmed, or failed.
    pub(super) fn replay_ended(&mut self, sequence: u64, mut result: Result<Place, PublishError>, now: Instant) {
        let Some((stored, topic)) = self.replays.open.remove(&sequence) else { return };
        self.replays.heard_at = Some(now);
        let guilty =
            self.replays.suspect.take_if(|suspect| suspect.sequence == sequence && suspect.is_guilty).is_some();
        if guilty && result.is_err() {
            result = Err(PublishError::HungUp);
        }
        match result {
            Ok(place) => {
                self.metrics.publish.replayed.with_label_values(&[self.name.as_str()]).inc();
                self.books.replayed(&stored, &topic, Outcome::Replayed(place));
            }
            Err(error) if error.disposition() == Disposition::Park => {
                self.count_failure(&error);
                let reason = error.reason();
                warn!(output = %self.name, topic = %topic, event.sequence = sequence, reason, "an event is not sent again, it can never be");
                self.books.replayed(&stored, &topic, Outcome::NotReplayed { reason });
            }
            Err(error) => {
                self.count_failure(&error);
                self.replays.not_before = Some(now + AGAIN_AFTER);
            }
        }
        self.replays.told_in = self.books.due(); // Of a failure there is nothing to tell.
    }

    /// Takes out of memory what orders gave up, as far as it is not in flight.
    pub(super) fn give_up(&mut self) {
        self.given_up.extend(self.journal.given_up(self.number));
        if self.given_up.is_empty() {
            return;
        }
        for lane in &mut self.lanes {
            for item in lane.give_up(&self.given_up) {
                self.in_memory -= 1;
                self.bytes_in_memory -= item.bytes;
                self.books.let_go(item.sequence());
                if !item.row {
                    self.window.pass(item.sequence());
                }
            }
        }
        // What was read and not yet given to a lane is passed over there, and what is not read yet, when it is; what is in flight may come back.
        let ahead: SequenceSet = self.ahead.iter().map(Read::sequence).collect();
        let lanes = &self.lanes;
        self.given_up.retain(|sequence| ahead.contains(sequence) || lanes.iter().any(|lane| lane.is_open(*sequence)));
    }
}
