//! A lane: one topic (or routing key) of one output. It decides what may be sent now, and what a failure means for what is behind it.
//!
//! First deliveries leave in order. So nothing is sent past a failure until everything in flight was reported (the lane settles); then the
//! oldest goes first again. A lane opens with one record, and goes on only when that is confirmed: what is wrong with a topic shows on the first.
//! Pure: time and reports are arguments, sending is the caller's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::in_flight::InFlight;
use super::sequences::SequenceSet;
use super::{Disposition, PublishError};
use crate::journal::Stored;

/// Half of what an output may have in memory (DESIGN §7), so that no lane takes it all.
pub(super) const LANE_EVENTS_MAX: usize = 1_000;
pub(super) const LANE_BYTES_MAX: usize = 16 << 20;
/// The longest wait between two probes of a held lane, or two tries after a failure (DESIGN §7).
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// librdkafka never reports that a topic has too few replicas, it tries again by itself: silence for so long counts as that (DESIGN §7).
const STALLED_AFTER: Duration = Duration::from_secs(10);
/// After a nack so many records go one at a time. A queue that is full and read gives room for one record or another of those in flight, and takes
/// them out of order; one alone cannot be overtaken, and it is the queue's reader who decides how fast it goes.
const CAREFUL_RECORDS: usize = LANE_EVENTS_MAX;
/// After three tries in vain (about a second) a lane no longer keeps its events in memory.
const STUCK_AFTER_ATTEMPTS: u32 = 3;

/// An event on its way through a lane.
#[derive(Debug)]
pub(super) struct Item {
    pub stored: Box<Stored>,
    /// In memory, roughly: the body twice (once more as envelope) and what is around it.
    pub bytes: usize,
    /// It has a row of its own in the journal; the cursor has passed it or may.
    pub row: bool,
    /// It is a parked event that is tried again, for the so-manieth time.
    pub parked: Option<u32>,
    pub sent_at: Option<Instant>,
    /// Nothing else of the lane was in flight with it, so its failure is its own.
    alone: bool,
}

impl Item {
    pub fn new(stored: Box<Stored>, row: bool, parked: Option<u32>) -> Self {
        let bytes = stored.event.body.len() * 2 + 1024;
        Self { stored, bytes, row, parked, sent_at: None, alone: false }
    }

    pub fn sequence(&self) -> u64 {
        self.stored.sequence
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// A record failed; the others in flight are awaited.
    Settling,
    /// Not before that moment again.
    Waiting(Instant),
    /// The topic is faulty; the oldest probes at that moment.
    Held(&'static str, Instant),
}

#[derive(Debug)]
pub(super) struct Lane {
    pub topic: Arc<str>,
    mode: Mode,
    /// To be sent, in order.
    queue: VecDeque<Item>,
    queue_bytes: usize,
    open: InFlight,
    /// Failed while the lane settles.
    failed: Vec<Item>,
    /// The gravest failure of those.
    cause: Option<PublishError>,
    /// One record was confirmed since the lane opened.
    proven: bool,
    /// Records up to this one go one at a time.
    alone_through: u64,
    /// So many more, too, since one was nacked.
    careful: usize,
    attempts: u32,
    last_report: Instant,
    /// More of this lane waits in the journal as rows, behind `taken_through`.
    pub rows: bool,
    pub taken_through: u64,
    /// The progress that carries this lane's newest row: until it is kept, finding no more rows does not mean that there are none.
    pub rows_in: u64,
    /// The progress that must be kept before rows may be read, since it carries older ones than the journal has.
    barrier: u64,
    /// The metric shows this reason.
    pub shown: Option<&'static str>,
}

/// What became of a failed record.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The lane keeps it and sends it again.
    Again,
    /// It failed alone and will always fail.
    Park(Box<Item>, PublishError),
    /// A parked one failed again.
    StillParked(Box<Item>),
}

impl Lane {
    pub fn new(topic: Arc<str>, now: Instant) -> Self {
        Self {
            topic,
            mode: Mode::Open,
            queue: VecDeque::new(),
            queue_bytes: 0,
            open: InFlight::default(),
            failed: Vec::new(),
            cause: None,
            proven: false,
            alone_through: 0,
            careful: 0,
            attempts: 0,
            last_report: now,
            rows: false,
            taken_through: 0,
            rows_in: 0,
            barrier: 0,
            shown: None,
        }
    }

    /// Events in memory.
    pub fn len(&self) -> usize {
        self.queue.len() + self.open.len() + self.failed.len()
    }

    /// Nothing in memory, nothing in rows.
    pub fn is_idle(&self) -> bool {
        self.len() == 0 && !self.rows
    }

    pub fn has_room(&self) -> bool {
        self.len() < LANE_EVENTS_MAX && self.queue_bytes + self.open.bytes() < LANE_BYTES_MAX
    }

    /// Behind everything that is in memory already. Parked ones that are tried again are older than all else and go by themselves.
    pub fn push(&mut self, item: Item) {
        self.queue_bytes += item.bytes;
        if item.parked.is_some() {
            self.alone_through = self.alone_through.max(item.sequence());
            let place = self.queue.partition_point(|other| other.sequence() < item.sequence());
            self.queue.insert(place, item);
        } else {
            self.taken_through = self.taken_through.max(item.sequence());
            self.queue.push_back(item);
        }
    }

    /// The next record that may be sent now; it counts as in flight from here on.
    pub fn next(&mut self, now: Instant) -> Option<&Item> {
        match self.mode {
            Mode::Settling => return None,
            Mode::Waiting(until) | Mode::Held(_, until) if now < until => return None,
            _ => {}
        }
        if self.open.len() >= LANE_EVENTS_MAX || self.open.bytes() >= LANE_BYTES_MAX || self.is_stalled(now) {
            return None;
        }
        let first = self.queue.front()?.sequence();
        let one_at_a_time = !self.proven || self.careful > 0 || first <= self.alone_through;
        let behind_one = self.open.oldest().is_some_and(|item| item.alone);
        if (one_at_a_time || behind_one) && !self.open.is_empty() {
            return None;
        }
        let mut item = self.queue.pop_front()?;
        self.queue_bytes -= item.bytes;
        item.alone = one_at_a_time;
        item.sent_at = Some(now);
        if self.open.is_empty() {
            self.last_report = now;
        }
        self.open.push(item)
    }

    pub fn delivered(&mut self, sequence: u64, now: Instant) -> Option<Item> {
        let item = self.open.take(sequence)?;
        self.last_report = now;
        self.attempts = 0;
        self.proven = true;
        self.careful = self.careful.saturating_sub(1);
        if !matches!(self.mode, Mode::Settling) {
            self.mode = Mode::Open;
        }
        self.settle(now);
        Some(item)
    }

    /// Notes a failure. `None` if that record is not in flight here.
    pub fn failed(&mut self, sequence: u64, error: PublishError, now: Instant) -> Option<Verdict> {
        let item = self.open.take(sequence)?;
        self.last_report = now;
        if item.parked.is_some() && error != PublishError::Withdrawn {
            self.settle(now);
            return Some(Verdict::StillParked(Box::new(item)));
        }
        if error.disposition() == Disposition::Park && item.alone {
            self.attempts = 0;
            self.settle(now);
            return Some(Verdict::Park(Box::new(item), error));
        }
        if matches!(error.disposition(), Disposition::Park | Disposition::RetryAlone) {
            self.alone_through = self.alone_through.max(item.sequence());
        }
        if self.cause.as_ref().is_none_or(|cause| gravity(cause) < gravity(&error)) {
            self.cause = Some(error);
        }
        self.failed.push(item);
        self.mode = Mode::Settling;
        self.settle(now);
        Some(Verdict::Again)
    }

    /// Once nothing is in flight any more: what failed goes back to the front, and the cause says when.
    fn settle(&mut self, now: Instant) {
        if !self.open.is_empty() || !matches!(self.mode, Mode::Settling) {
            return;
        }
        for item in self.failed.drain(..) {
            self.queue_bytes += item.bytes;
            self.queue.push_back(item);
        }
        self.queue.make_contiguous().sort_by_key(Item::sequence);
        let Some(cause) = self.cause.take() else { return };
        self.mode = match cause.disposition() {
            Disposition::Hold => {
                if cause == PublishError::Nack {
                    self.careful = CAREFUL_RECORDS;
                }
                self.proven = false;
                Mode::Held(cause.reason(), now + self.backoff())
            }
            Disposition::Park | Disposition::RetryAlone => Mode::Open,
            Disposition::Retry if cause == PublishError::Withdrawn => Mode::Open,
            Disposition::Retry => Mode::Waiting(now + self.backoff()),
        };
    }

    /// The connection is new: what is wrong with the topic may show again, and waiting has no reason any more.
    pub fn reconnected(&mut self) {
        self.proven = false;
        self.attempts = 0;
        if matches!(self.mode, Mode::Waiting(_)) {
            self.mode = Mode::Open;
        }
    }

    fn backoff(&mut self) -> Duration {
        let exponential = BACKOFF_MIN.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MAX);
        self.attempts += 1;
        // Between half and all of it, so that lanes that failed together do not come back together.
        exponential / 2 + exponential.mul_f64(fastrand::f64() / 2.0)
    }

    /// When something may be sent that may not be now. While a probe is under way, it is a report that is waited for.
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.mode {
            Mode::Waiting(until) | Mode::Held(_, until) if self.open.is_empty() && (self.len() > 0 || self.rows) => {
                Some(until)
            }
            _ => None,
        }
    }

    /// Something is in flight, and nothing was reported for ten seconds.
    pub fn is_stalled(&self, now: Instant) -> bool {
        !self.open.is_empty() && now.duration_since(self.last_report) >= STALLED_AFTER
    }

    /// Nothing was reported for so long, though something is in flight.
    pub fn is_silent(&self, now: Instant, for_at_least: Duration) -> bool {
        !self.open.is_empty() && now.duration_since(self.last_report) >= for_at_least
    }

    /// Why the topic's events wait, if they do.
    pub fn held(&self, now: Instant) -> Option<&'static str> {
        match self.mode {
            Mode::Held(reason, _) => Some(reason),
            _ if self.is_stalled(now) => Some(PublishError::NotEnoughReplicas.reason()),
            _ => None,
        }
    }

    /// It does not go on by itself soon: what comes for it is better given rows than waited for.
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.held(now).is_some() || matches!(self.mode, Mode::Waiting(_)) && self.attempts >= STUCK_AFTER_ATTEMPTS
    }

    /// Nothing counts as silence while the broker is away.
    pub fn excuse_silence(&mut self, now: Instant) {
        self.last_report = now;
    }

    /// Whether rows may be read into the queue now, if the journal has kept this progress.
    pub fn wants_rows(&self, now: Instant, kept: u64) -> bool {
        let held = matches!(self.mode, Mode::Held(..)) || !self.proven;
        self.rows
            && self.barrier <= kept
            && !matches!(self.mode, Mode::Settling)
            && self.wakes_at().is_none_or(|at| now >= at)
            && !self.is_stalled(now)
            && if held { self.len() == 0 } else { self.queue.is_empty() && self.has_room() }
    }

    /// One of a faulty lane is enough to probe with.
    pub fn rows_wanted(&self) -> usize {
        if self.proven { 512.min(LANE_EVENTS_MAX - self.len().min(LANE_EVENTS_MAX)) } else { 1 }
    }

    /// Older events than the journal has rows of were given rows with this progress.
    pub fn await_rows(&mut self, progress: u64) {
        self.rows_in = progress;
        self.barrier = progress;
    }

    /// Gives up the queue to rows, so that a faulty lane holds neither memory nor the cursor: what has to get a row, oldest first. Parked ones
    /// that were to be tried again come back apart.
    pub fn unload(&mut self) -> (Vec<Item>, Vec<Item>) {
        let (parked, rest): (Vec<Item>, Vec<Item>) = self.queue.drain(..).partition(|item| item.parked.is_some());
        self.queue_bytes = 0;
        if let Some(first) = rest.first() {
            self.taken_through = first.sequence() - 1;
            self.rows = true;
        }
        (rest, parked)
    }

    /// Items in flight that have no row yet, and those that failed and wait for them: a lane may wait long.
    pub fn open_without_row(&mut self) -> impl Iterator<Item = &mut Item> {
        let all = self.open.iter_mut().chain(&mut self.failed);
        all.filter(|item| !item.row && item.parked.is_none())
    }

    /// Takes out those that were given up, as far as they are not in flight.
    pub fn give_up(&mut self, given_up: &SequenceSet) -> Vec<Item> {
        let mut out: Vec<Item> = self.failed.extract_if(.., |item| given_up.contains(&item.sequence())).collect();
        let (gone, rest): (Vec<Item>, Vec<Item>) =
            self.queue.drain(..).partition(|item| given_up.contains(&item.sequence()));
        self.queue = rest.into();
        self.queue_bytes -= gone.iter().map(|item| item.bytes).sum::<usize>();
        out.extend(gone);
        out
    }

    /// Whether this event is in flight.
    pub fn is_open(&self, sequence: u64) -> bool {
        self.open.contains(sequence)
    }

    /// All in memory that have no row yet.
    pub fn all_without_row(&mut self) -> impl Iterator<Item = &mut Item> {
        let all = self.open.iter_mut().chain(&mut self.failed).chain(&mut self.queue);
        all.filter(|item| !item.row && item.parked.is_none())
    }
}

/// Which of several failures decides: the topic's, then the record's, then the line's.
fn gravity(error: &PublishError) -> u8 {
    match (error.disposition(), error) {
        (Disposition::Hold, _) => 4,
        (Disposition::Retry, PublishError::Withdrawn) => 0,
        (Disposition::Retry, _) => 3,
        (Disposition::Park, _) => 2,
        (Disposition::RetryAlone, _) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authenticate::Verified;
    use crate::normalize::normalize;

    #[test]
    fn a_failed_event_does_not_keep_the_cursor_while_its_lane_waits_for_the_others() {
        let start = Instant::now();
        let mut lane = Lane::new("topic".into(), start);
        lane.proven = true;
        for sequence in [1, 2] {
            let event = normalize(Verified::for_test("default", 1_736_937_000, b"{}"), &[]);
            lane.push(Item::new(Box::new(Stored { sequence, event }), false, None));
            assert!(lane.next(start).is_some());
        }
        assert!(matches!(lane.failed(2, PublishError::Nack, start), Some(Verdict::Again)));
        // Nothing is heard of 1 any more.
        assert!(lane.is_stuck(start + STALLED_AFTER));
        assert_eq!(lane.open_without_row().map(|item| item.sequence()).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn after_a_nack_records_go_one_at_a_time_until_the_queue_has_taken_many() {
        let start = Instant::now();
        let mut lane = Lane::new("topic".into(), start);
        lane.proven = true;
        let mut pushed = 0;
        let mut push = |lane: &mut Lane, count| {
            for _ in 0..count {
                pushed += 1;
                let event = normalize(Verified::for_test("default", 1_736_937_000, b"{}"), &[]);
                lane.push(Item::new(Box::new(Stored { sequence: pushed, event }), false, None));
            }
        };
        push(&mut lane, 3);
        assert!(lane.next(start).is_some() && lane.next(start).is_some());
        // A reader of the queue made room between the two; it may again.
        assert!(lane.failed(1, PublishError::Nack, start).is_some() && lane.delivered(2, start).is_some());
        let later = start + BACKOFF_MAX;
        for taken in 0..CAREFUL_RECORDS as u64 {
            push(&mut lane, 1);
            let sequence = lane.next(later).map(Item::sequence).unwrap();
            assert_eq!(sequence, if taken == 0 { 1 } else { taken + 2 });
            assert!(lane.next(later).is_none(), "one at a time");
            assert!(lane.delivered(sequence, later).is_some());
        }
        assert!(lane.next(later).is_some() && lane.next(later).is_some(), "and then as ever");
    }
}
