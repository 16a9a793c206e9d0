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
use super::suspect::{BREAKS_MAX, Suspect};
use super::{Disposition, PublishError};
use crate::clock::Timestamp;
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

/// For which a topic is held that refuses whatever it is sent.
pub(super) const REFUSALS: [&str; 2] = ["rejected", "too_large"];
/// The broker may owe an answer for 2^4 times as long as at first, which is 8 to 16 minutes.
const SILENCES_DOUBLED_MAX: u32 = 4;
/// An oldest event that was tried for so long without any success is shown by its number.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// An event on its way through a lane.
#[derive(Debug)]
pub(super) struct Item {
    pub stored: Box<Stored>,
    /// In memory, roughly: the body twice (once more as envelope) and what is around it.
    pub bytes: usize,
    /// Of its record at the broker; 0 until it was sent.
    pub record_bytes: usize,
    /// It has a row of its own in the journal; the cursor has passed it or may.
    pub row: bool,
    /// It is a parked event that is tried again; how often it was before.
    pub parked: Option<u32>,
    /// As a parked event, with others.
    together: bool,
    pub sent_at: Option<Instant>,
    /// Nothing else of the lane was in flight with it, so its failure is its own.
    alone: bool,
}

impl Item {
    pub fn new(stored: Box<Stored>, row: bool) -> Self {
        let bytes = stored.event.body.len() * 2 + 1024;
        Self { stored, bytes, record_bytes: 0, row, parked: None, together: false, sent_at: None, alone: false }
    }

    /// A parked event that was tried so often before; `together`: others that are parked may be in flight with it.
    pub fn parked(stored: Box<Stored>, attempts: u32, together: bool) -> Self {
        Self { parked: Some(attempts), together, ..Self::new(stored, true) }
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
    /// The oldest in flight, and since when the broker owes its answer.
    awaited: Option<(u64, Instant)>,
    /// How often in a row the broker owed it for too long.
    silences: u32,
    /// Why the last record was refused, if none was confirmed since.
    refused: Option<&'static str>,
    /// Why this topic refuses whatever it is sent, until it takes a record again. It outlives a restart, by the reason of the lane's held rows.
    pub topic_refuses: Option<&'static str>,
    /// Bytes of the largest record that was confirmed.
    confirmed_bytes_max: usize,
    suspect: Option<Suspect>,
    /// Why a record failed last, if none was confirmed since.
    last_failure: Option<&'static str>,
    front: Option<Front>,
    /// More of this lane waits in the journal as rows, behind `taken_through`.
    pub rows: bool,
    pub taken_through: u64,
    /// The progress that carries this lane's newest row: until it is kept, finding no more rows does not mean that there are none.
    pub rows_in: u64,
    /// The progress that must be kept before rows may be read, since it carries older ones than the journal has.
    barrier: u64,
    /// The metric shows this reason.
    pub shown: Option<&'static str>,
    /// The metric shows its oldest event.
    pub shown_stuck: bool,
}

/// The oldest event of a lane, for as long as it is that: what an operator has to know of a lane that makes no progress.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Front {
    pub sequence: u64,
    /// Of its record, or of its body while it was not sent.
    pub bytes: usize,
    pub received_at: Timestamp,
    /// For how long the broker could have taken it.
    tried: Duration,
    /// How often a connection was lost with it in flight.
    breaks: u32,
    pub said: bool,
}

impl Front {
    fn of(item: &Item) -> Self {
        Self {
            sequence: item.sequence(),
            bytes: item.record_bytes.max(item.stored.event.body.len()),
            received_at: item.stored.event.received_at,
            tried: Duration::ZERO,
            breaks: 0,
            said: false,
        }
    }

    pub fn is_stuck(&self) -> bool {
        self.tried >= STUCK_AFTER || self.breaks >= BREAKS_MAX
    }
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
    /// A parked one came back, and whether it would be taken by itself is not known; true: because the broker is away.
    Untried(Box<Item>, bool),
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
            awaited: None,
            silences: 0,
            refused: None,
            topic_refuses: None,
            confirmed_bytes_max: 0,
            suspect: None,
            last_failure: None,
            front: None,
            rows: false,
            taken_through: 0,
            rows_in: 0,
            barrier: 0,
            shown: None,
            shown_stuck: false,
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

    /// Behind everything that is in memory already; parked ones that are tried again before all that are not.
    pub fn push(&mut self, item: Item) {
        self.queue_bytes += item.bytes;
        if item.parked.is_some() {
            let place = self.queue.partition_point(|other| order(other) < order(&item));
            self.queue.insert(place, item);
        } else {
            self.taken_through = self.taken_through.max(item.sequence());
            self.queue.push_back(item);
        }
    }

    /// The next record that may be sent now; it counts as in flight from here on.
    pub fn next(&mut self, now: Instant) -> Option<&mut Item> {
        match self.mode {
            Mode::Settling => return None,
            Mode::Waiting(until) | Mode::Held(_, until) if now < until => return None,
            _ => {}
        }
        if self.open.len() >= LANE_EVENTS_MAX || self.open.bytes() >= LANE_BYTES_MAX || self.is_stalled(now) {
            return None;
        }
        let first = self.queue.front()?;
        let is_suspect = first.sequence() <= self.alone_through || first.parked.is_some() && !first.together;
        let one_at_a_time = !self.proven || self.careful > 0 || is_suspect;
        // What is parked may be refused again, and others that are in flight with it may go the same way.
        let must_wait = |open: &Item| one_at_a_time || open.alone || open.parked.is_some() != first.parked.is_some();
        if self.open.oldest().is_some_and(must_wait) {
            return None;
        }
        let mut item = self.queue.pop_front()?;
        self.queue_bytes -= item.bytes;
        item.alone = one_at_a_time;
        item.sent_at = Some(now);
        if self.open.is_empty() {
            self.last_report = now;
        }
        let first = item.sequence();
        if let Some(suspect) = self.suspect.as_mut().filter(|suspect| suspect.sequence == first) {
            suspect.is_alone = suspect.is_certain();
        }
        if self.front.as_ref().is_none_or(|front| first < front.sequence) {
            self.front = Some(Front::of(&item)); // A probe may be gone again by the next look.
        }
        self.open.push(item)
    }

    /// Whether the next record is one at which the broker may hang up, which no other such one may accompany.
    pub fn is_about_to_try_a_suspect(&self) -> bool {
        let next = self.queue.front().map(Item::sequence);
        self.suspect.as_ref().is_some_and(|suspect| suspect.is_certain() && Some(suspect.sequence) == next)
    }

    /// Whether such a one is in flight. Those of other lanes do not wait for one that is merely not answered.
    pub fn tries_a_suspect(&self, now: Instant) -> bool {
        let is_open = |suspect: &Suspect| suspect.is_alone && self.open.contains(suspect.sequence);
        self.suspect.as_ref().is_some_and(is_open) && !self.is_stalled(now)
    }

    pub fn delivered(&mut self, sequence: u64, now: Instant) -> Option<Item> {
        let item = self.open.take(sequence)?;
        self.last_report = now;
        self.attempts = 0;
        self.silences = 0;
        self.refused = None;
        self.last_failure = None;
        self.topic_refuses = None;
        self.confirmed_bytes_max = self.confirmed_bytes_max.max(item.record_bytes);
        self.suspect.take_if(|suspect| suspect.sequence == sequence);
        self.front.take_if(|front| front.sequence == sequence);
        self.proven = true;
        self.careful = self.careful.saturating_sub(1);
        if !matches!(self.mode, Mode::Settling) {
            self.mode = Mode::Open;
        }
        self.settle(now);
        Some(item)
    }

    /// Notes a failure. `None` if that record is not in flight here.
    pub fn failed(&mut self, sequence: u64, mut error: PublishError, now: Instant) -> Option<Verdict> {
        let item = self.open.take(sequence)?;
        self.last_report = now;
        if self.suspect.take_if(|suspect| suspect.sequence == sequence && suspect.is_guilty).is_some() {
            error = PublishError::HungUp;
        }
        if let Some(front) = self.front.as_mut().filter(|front| front.sequence == sequence) {
            front.breaks += u32::from(error == PublishError::Disconnected);
            front.bytes = front.bytes.max(item.record_bytes);
        }
        if item.parked.is_some() {
            // It was alone when the broker did not answer: it waits longer for its next try, as after a refusal.
            let is_silent = error == PublishError::Withdrawn && self.cause == Some(PublishError::NotEnoughReplicas);
            // The others of its batch are awaited.
            if !self.open.is_empty() {
                self.cause.get_or_insert(PublishError::Withdrawn);
                self.mode = Mode::Settling;
            }
            self.settle(now);
            let is_own = item.alone && (is_silent || !error.is_of_the_line());
            let item = Box::new(item);
            return Some(if is_own {
                Verdict::StillParked(item)
            } else {
                Verdict::Untried(item, error.is_of_the_line())
            });
        }
        if error.disposition() == Disposition::Park && (item.alone || error.is_ours()) {
            match self.is_topics(&error, &item).then(|| error.of_topic()).flatten() {
                Some(topics) => error = topics,
                None => {
                    if error.of_topic().is_some() {
                        self.refused = Some(error.reason());
                    }
                    self.attempts = 0;
                    self.front.take_if(|front| front.sequence == sequence);
                    self.settle(now);
                    return Some(Verdict::Park(Box::new(item), error));
                }
            }
        }
        if matches!(error.disposition(), Disposition::Park | Disposition::RetryAlone) {
            self.alone_through = self.alone_through.max(item.sequence());
        }
        if error != PublishError::Withdrawn {
            self.last_failure = Some(error.reason());
        }
        if self.cause.as_ref().is_none_or(|cause| gravity(cause) < gravity(&error)) {
            self.cause = Some(error);
        }
        self.failed.push(item);
        self.mode = Mode::Settling;
        self.settle(now);
        Some(Verdict::Again)
    }

    /// Whether a refusal is the topic's rather than this record's: the second in a row for the same reason, though the topic took one as large; or
    /// the topic was found to refuse all, and has taken none since.
    fn is_topics(&self, error: &PublishError, item: &Item) -> bool {
        let reason = Some(error.reason());
        self.topic_refuses == reason || self.refused == reason && item.record_bytes <= self.confirmed_bytes_max
    }

    /// Once nothing is in flight any more: what failed goes back to the front, and the cause says when.
    fn settle(&mut self, now: Instant) {
        if !self.open.is_empty() || !matches!(self.mode, Mode::Settling) {
            return;
        }
        if self.failed.is_empty() {
            self.cause = None;
        }
        for item in self.failed.drain(..) {
            self.queue_bytes += item.bytes;
            self.queue.push_back(item);
        }
        self.queue.make_contiguous().sort_by_key(order);
        let Some(cause) = self.cause.take() else {
            self.mode = Mode::Open; // All was delivered while it was to be taken back.
            return;
        };
        // Another fault in between does not mean that the topic takes anything.
        if cause.disposition() == Disposition::Hold
            && let Some(reason) = REFUSALS.into_iter().find(|reason| *reason == cause.reason())
        {
            self.topic_refuses = Some(reason);
        }
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
            _ if self.is_stalled(now) || self.silences > 0 => Some(PublishError::NotEnoughReplicas.reason()),
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
        self.awaited = None;
    }

    /// The oldest in flight, if the broker has owed its answer for `longest`, or for longer where it was silent before: a record that takes long on
    /// a slow line gets through in the end.
    pub fn hears_nothing_of(&mut self, now: Instant, longest: Duration) -> Option<u64> {
        let oldest = self.open.oldest().map(Item::sequence);
        if oldest != self.awaited.map(|(sequence, _)| sequence) {
            self.awaited = oldest.map(|sequence| (sequence, now));
        }
        let (sequence, since) = self.awaited?;
        (now.duration_since(since) >= self.patience(longest)).then_some(sequence)
    }

    /// How long the broker may owe an answer, if that is `longest` the first time.
    pub fn patience(&self, longest: Duration) -> Duration {
        longest * (1 << self.silences.saturating_sub(1).min(SILENCES_DOUBLED_MAX))
    }

    /// What is in flight is being taken back, since the broker does not answer. Then the oldest goes again, alone, and the rest once that is
    /// confirmed.
    pub fn stop_waiting(&mut self) {
        self.awaited = None;
        self.silences += 1;
        self.mode = Mode::Settling;
        self.cause = Some(PublishError::NotEnoughReplicas);
    }

    /// A connection broke while these were open on it. Gives the lane's oldest if it has to be taken back: to go alone, or, with `true`, because the
    /// connection broke even then.
    pub fn broke(&mut self, large: &[u64], now: Instant) -> Option<(u64, bool)> {
        let oldest = self.open.oldest().filter(|oldest| large.contains(&oldest.sequence()))?;
        let (sequence, is_alone) = (oldest.sequence(), oldest.alone && oldest.parked.is_some());
        if let Some(front) = self.front.as_mut().filter(|front| front.sequence == sequence) {
            front.breaks += 1;
        }
        let is_only = large.len() == 1;
        if !Suspect::broke(&mut self.suspect, sequence, (is_alone, is_only), now) {
            return None;
        }
        self.alone_through = self.alone_through.max(sequence);
        self.mode = Mode::Settling;
        Some((sequence, self.suspect.as_ref().is_some_and(|suspect| suspect.is_guilty)))
    }

    /// Notes which event is the oldest, and for how much longer the broker could have taken it.
    pub fn watch_front(&mut self, passed: Duration) {
        let all = self.open.oldest().into_iter().chain(self.failed.iter()).chain(self.queue.front());
        match all.min_by_key(|item| item.sequence()) {
            Some(item) => match &mut self.front {
                Some(front) if front.sequence == item.sequence() => {
                    front.tried += passed;
                    front.bytes = front.bytes.max(item.record_bytes);
                }
                front => *front = Some(Front::of(item)),
            },
            // It waits as a row until it is tried again.
            None => match &mut self.front {
                Some(front) if self.rows => front.tried += passed,
                front => *front = None,
            },
        }
    }

    /// The oldest event, if it was tried for long in vain.
    pub fn stuck(&mut self) -> Option<&mut Front> {
        self.front.as_mut().filter(|front| front.is_stuck())
    }

    /// Why the oldest does not get through, as far as it is known.
    pub fn why_stuck(&self, now: Instant) -> &'static str {
        let is_front = |suspect: &&Suspect| self.front.as_ref().is_some_and(|front| front.sequence == suspect.sequence);
        match self.suspect.as_ref().filter(is_front) {
            Some(_) => PublishError::Disconnected.reason(),
            None => self.held(now).or(self.last_failure).unwrap_or("unknown"),
        }
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
    /// that were to be tried again come back beside them.
    pub fn unload(&mut self) -> (Vec<Item>, Vec<Item>) {
        let (parked, rest): (Vec<Item>, Vec<Item>) = self.queue.drain(..).partition(|item| item.parked.is_some());
        self.queue_bytes = 0;
        if rest.is_empty() && !self.rows && self.open.is_empty() && self.failed.is_empty() {
            // Nothing is left here that could probe: the next that comes does.
            (self.mode, self.proven, self.silences) = (Mode::Open, false, 0);
        }
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
        self.front.take_if(|front| given_up.contains(&front.sequence));
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

/// Parked ones first, and each kind by its numbers: so those of a kind are in flight in the order of their numbers.
fn order(item: &Item) -> (bool, u64) {
    (item.parked.is_none(), item.sequence())
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
            lane.push(Item::new(Box::new(Stored { sequence, event }), false));
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
                lane.push(Item::new(Box::new(Stored { sequence: pushed, event }), false));
            }
        };
        push(&mut lane, 3);
        assert!(lane.next(start).is_some() && lane.next(start).is_some());
        // A reader of the queue made room between the two; it may again.
        assert!(lane.failed(1, PublishError::Nack, start).is_some() && lane.delivered(2, start).is_some());
        let later = start + BACKOFF_MAX;
        for taken in 0..CAREFUL_RECORDS as u64 {
            push(&mut lane, 1);
            let sequence = lane.next(later).map(|item| item.sequence()).unwrap();
            assert_eq!(sequence, if taken == 0 { 1 } else { taken + 2 });
            assert!(lane.next(later).is_none(), "one at a time");
            assert!(lane.delivered(sequence, later).is_some());
        }
        assert!(lane.next(later).is_some() && lane.next(later).is_some(), "and then as ever");
    }

    /// A lane that is open to this many events.
    fn lane_of(events: u64, now: Instant) -> Lane {
        let mut lane = Lane::new("topic".into(), now);
        for sequence in 1..=events {
            let event = normalize(Verified::for_test("default", 1_736_937_000, b"{}"), &[]);
            lane.push(Item::new(Box::new(Stored { sequence, event }), false));
        }
        lane
    }

    /// Sends the next record, of so many bytes.
    fn send(lane: &mut Lane, bytes: usize, now: Instant) -> Option<u64> {
        let item = lane.next(now)?;
        item.record_bytes = bytes;
        Some(item.sequence())
    }

    /// What becomes of the next record, of so many bytes, that the broker refuses: `parked`, `again`, or `held` for a reason.
    fn refuse(lane: &mut Lane, bytes: usize, error: &PublishError, now: Instant) -> String {
        let sequence = send(lane, bytes, now).unwrap();
        match (lane.failed(sequence, error.clone(), now).unwrap(), lane.held(now)) {
            (Verdict::Park(..), None) => "parked".into(),
            (Verdict::Again, None) => "again".into(),
            (Verdict::Again, Some(reason)) => format!("held {reason}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_second_refusal_in_a_row_of_what_the_topic_took_before_holds_it() {
        let mut now = Instant::now();
        for (error, held) in
            [(PublishError::TooLarge, "held too_large"), (PublishError::Rejected("code".into()), "held rejected")]
        {
            let mut lane = lane_of(9, now);
            assert_eq!(send(&mut lane, 1_000, now), Some(1));
            assert!(lane.delivered(1, now).is_some());
            assert_eq!(refuse(&mut lane, 900, &error, now), "again", "it was not alone");
            assert_eq!(refuse(&mut lane, 900, &error, now), "parked", "the first may be to blame itself");
            lane.alone_through = 9;
            for _ in 0..3 {
                assert_eq!(refuse(&mut lane, 1_000, &error, now), held);
                now += BACKOFF_MAX;
            }
            assert_eq!(send(&mut lane, 1_000, now), Some(3), "the same one probes");
            assert!(lane.delivered(3, now).is_some());
            assert_eq!(lane.held(now), None);
            assert_eq!(refuse(&mut lane, 900, &error, now), "parked", "since then it takes records again");
        }
    }

    #[test]
    fn records_in_a_row_that_are_larger_than_any_before_are_parked_each() {
        let now = Instant::now();
        let mut lane = lane_of(9, now);
        lane.alone_through = 9;
        assert_eq!(send(&mut lane, 1_000, now), Some(1));
        assert!(lane.delivered(1, now).is_some());
        for _ in 0..3 {
            assert_eq!(refuse(&mut lane, 2_000, &PublishError::TooLarge, now), "parked");
        }
        assert_eq!(refuse(&mut lane, 900, &PublishError::Rejected("code".into()), now), "parked", "for another reason");
        // What no broker saw says nothing of the topic.
        for _ in 0..2 {
            assert_eq!(refuse(&mut lane, 900, &PublishError::OverMax, now), "parked");
        }
    }

    #[test]
    fn a_topic_that_was_held_for_its_refusals_is_held_after_a_restart_too() {
        let now = Instant::now();
        let mut lane = lane_of(2, now);
        lane.topic_refuses = Some("rejected");
        // Nor does another fault that comes between open it, such as a silence while a broker is rolled.
        assert_eq!(refuse(&mut lane, 900, &PublishError::TopicMissing, now), "held topic_missing");
        let later = now + BACKOFF_MAX;
        assert_eq!(refuse(&mut lane, 900, &PublishError::Rejected("code".into()), later), "held rejected");
    }

    #[test]
    fn what_is_not_answered_is_taken_back_and_then_the_oldest_goes_alone() {
        const LONGEST: Duration = Duration::from_secs(30);
        let start = Instant::now();
        let mut lane = lane_of(4, start);
        lane.proven = true;
        assert!((1..=3).all(|sequence| send(&mut lane, 100, start) == Some(sequence)));
        assert_eq!(lane.hears_nothing_of(start, LONGEST), None);
        let mut now = start + Duration::from_secs(20);
        assert!(lane.delivered(2, now).is_some(), "others are answered");
        assert_eq!(lane.hears_nothing_of(now, LONGEST), None);
        now = start + LONGEST;
        assert_eq!(lane.hears_nothing_of(now, LONGEST), Some(1));
        lane.stop_waiting();
        assert_eq!(send(&mut lane, 100, now), None, "until all are back");
        assert!(lane.delivered(3, now).is_some(), "one was late");
        assert!(matches!(lane.failed(1, PublishError::Withdrawn, now), Some(Verdict::Again)));
        assert_eq!(lane.held(now), Some("not_enough_replicas"));
        now += BACKOFF_MAX;
        assert_eq!((send(&mut lane, 100, now), send(&mut lane, 100, now)), (Some(1), None));
        // Longer each time, as it may be a large one on a slow line; but never for ever.
        for factor in [1, 1, 2, 4, 8, 16, 16] {
            assert_eq!(lane.hears_nothing_of(now, LONGEST), None);
            assert_eq!(lane.hears_nothing_of(now + LONGEST * factor - BACKOFF_MIN, LONGEST), None, "{factor}");
            now += LONGEST * factor;
            assert_eq!(lane.hears_nothing_of(now, LONGEST), Some(1), "{factor}");
            lane.stop_waiting();
            assert!(lane.failed(1, PublishError::Withdrawn, now).is_some());
            now += BACKOFF_MAX;
            assert_eq!(send(&mut lane, 100, now), Some(1));
        }
        assert!(lane.delivered(1, now).is_some());
        assert_eq!((lane.held(now), send(&mut lane, 100, now)), (None, Some(4)));
    }

    #[test]
    fn all_that_was_delivered_after_all_leaves_a_lane_open() {
        let now = Instant::now();
        let mut lane = lane_of(2, now);
        assert_eq!(send(&mut lane, 100, now), Some(1));
        lane.stop_waiting();
        assert!(lane.delivered(1, now).is_some());
        assert_eq!((lane.held(now), send(&mut lane, 100, now)), (None, Some(2)));
    }

    #[test]
    fn a_record_at_which_the_connection_breaks_goes_alone_and_is_parked_if_it_breaks_again() {
        let now = Instant::now();
        let mut lane = lane_of(3, now);
        lane.proven = true;
        assert_eq!((send(&mut lane, 90, now), send(&mut lane, 90_000, now)), (Some(1), Some(2)));
        for _ in 0..5 {
            assert_eq!(lane.broke(&[2], now), None, "a small one is the oldest");
        }
        assert!(lane.delivered(1, now).is_some());
        assert_eq!([(); 3].map(|()| lane.broke(&[2, 77], now)), [None, None, Some((2, false))]);
        assert_eq!(lane.broke(&[2], now), None, "on its way back");
        assert!(matches!(lane.failed(2, PublishError::Withdrawn, now), Some(Verdict::Again)));
        assert!(lane.is_about_to_try_a_suspect() && !lane.tries_a_suspect(now));
        assert_eq!((send(&mut lane, 90_000, now), send(&mut lane, 90, now)), (Some(2), None));
        assert!(lane.tries_a_suspect(now));
        assert!(!lane.tries_a_suspect(now + STALLED_AFTER), "silence is another fault");
        assert_eq!(lane.broke(&[77], now), None, "another connection");
        assert_eq!(lane.broke(&[2, 77], now), None, "it may be the other one");
        assert_eq!(lane.broke(&[2], now), Some((2, true)));
        let Some(Verdict::Park(item, error)) = lane.failed(2, PublishError::Withdrawn, now) else {
            panic!("not parked")
        };
        assert_eq!((item.sequence(), error), (2, PublishError::HungUp));
        assert!(!lane.tries_a_suspect(now));
        assert_eq!((lane.held(now), send(&mut lane, 90, now)), (None, Some(3)));
    }

    /// A lane with one parked event in flight, of so many bytes, tried for the second time.
    fn lane_that_tries_a_parked_one(bytes: usize, now: Instant) -> Lane {
        let mut lane = lane_of(0, now);
        let event = normalize(Verified::for_test("default", 1_736_937_000, b"{}"), &[]);
        lane.push(Item::parked(Box::new(Stored { sequence: 1, event }), 1, false));
        assert_eq!(send(&mut lane, bytes, now), Some(1));
        lane
    }

    #[test]
    fn a_parked_event_at_which_the_broker_hangs_up_again_breaks_one_connection() {
        let now = Instant::now();
        let mut lane = lane_that_tries_a_parked_one(90_000, now);
        assert_eq!(lane.broke(&[1, 77], now), None, "it may be the other one");
        assert_eq!(lane.broke(&[1], now), Some((1, true)));
        assert!(matches!(lane.failed(1, PublishError::Withdrawn, now), Some(Verdict::StillParked(_))));
    }

    #[test]
    fn a_parked_event_that_is_not_answered_waits_longer_for_its_next_try() {
        let now = Instant::now();
        let mut lane = lane_that_tries_a_parked_one(100, now);
        lane.stop_waiting();
        assert!(matches!(lane.failed(1, PublishError::Withdrawn, now), Some(Verdict::StillParked(_))));
        // It says nothing of the event if the line is gone, or the producer.
        for error in [PublishError::Withdrawn, PublishError::Disconnected] {
            let mut lane = lane_that_tries_a_parked_one(100, now);
            assert!(matches!(lane.failed(1, error, now), Some(Verdict::Untried(..))));
        }
    }

    #[test]
    fn a_suspect_that_is_no_longer_the_oldest_does_not_explain_why_its_lane_is_stuck() {
        let now = Instant::now();
        let mut lane = lane_of(2, now);
        assert_eq!(send(&mut lane, 90_000, now), Some(1));
        assert_eq!(lane.broke(&[1], now), None);
        assert_eq!(lane.why_stuck(now), "disconnected");
        assert!(lane.failed(1, PublishError::NoEnvelope, now).is_some());
        assert_eq!(send(&mut lane, 500, now), Some(2));
        assert!(lane.failed(2, PublishError::TopicMissing, now).is_some());
        assert_eq!(lane.why_stuck(now), "topic_missing");
    }

    #[test]
    fn an_oldest_event_that_does_not_get_through_is_known_by_its_number_wherever_it_waits() {
        let now = Instant::now();
        let mut lane = lane_of(2, now);
        let half = STUCK_AFTER / 2;
        lane.watch_front(half);
        assert_eq!(send(&mut lane, 500, now), Some(1));
        assert!(lane.failed(1, PublishError::TopicMissing, now).is_some());
        lane.watch_front(half);
        assert_eq!(lane.stuck().map(|front| front.sequence), None);
        lane.unload();
        lane.watch_front(Duration::ZERO); // While the broker is away.
        assert_eq!(lane.stuck().map(|front| front.sequence), None);
        lane.watch_front(half);
        assert_eq!(lane.stuck().map(|front| (front.sequence, front.bytes)), Some((1, 500)));
        assert_eq!(lane.why_stuck(now), "topic_missing");
        lane.give_up(&SequenceSet::from_iter([1]));
        assert_eq!(lane.stuck(), None);
    }

    #[test]
    fn a_record_that_loses_its_connection_again_and_again_is_stuck_however_short_the_connections_are() {
        let mut now = Instant::now();
        let mut lane = lane_of(1, now);
        lane.watch_front(Duration::ZERO);
        for _ in 0..3 {
            assert_eq!(lane.stuck(), None);
            assert_eq!(send(&mut lane, 500, now), Some(1));
            assert!(lane.failed(1, PublishError::Disconnected, now).is_some());
            now += BACKOFF_MAX;
        }
        assert_eq!(lane.stuck().map(|front| front.sequence), Some(1));
        assert_eq!(lane.why_stuck(now), "disconnected");
    }
}
