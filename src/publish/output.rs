//! One output: reads the journal in order, hands events to their lanes, lanes' records to the sink, and what came of them back to the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tracing::{info, warn};

mod handover;
mod looking;
mod outcomes;
mod pace;
mod parked;
mod reading;

pub(super) use self::handover::Encode;
use self::handover::Handover;
use self::pace::Pace;
use self::parked::Parked;
use super::books::{Books, UNSAVED_MAX};
use super::lane::Lane;
use super::replay::Replays;
use super::routes::Router;
use super::sequences::{SequenceMap, SequenceSet};
use super::series::Series;
use super::window::Window;
use super::{Outputs, Report, Sink};
use crate::clock;
use crate::config::OutputName;
use crate::journal::{Journal, OutputRow, Read, Reader};
use crate::metrics::Metrics;

/// In memory at one output, in flight or about to be. DESIGN §7 allows 10,000; with a fifth of that the records stay in the processor's
/// caches until they are confirmed, which drains a backlog faster and takes half the memory (docs/performance.md).
const EVENTS_MAX: usize = 2_000;
/// From the cursor to the last event read, whatever stands between them already published.
const WINDOW_MAX: usize = 10_000;
const BYTES_MAX: usize = 32 << 20;
/// Events and bytes of one read of the journal, so that a read transaction lasts some milliseconds.
const READ_EVENTS: usize = 512;
const READ_BYTES: usize = 2 << 20;
/// A lane that has reported nothing for so long gets rows for what comes, rather than keeping the others waiting.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How often the age of the oldest event, the held topics and the parked events that are due are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A broker that has not answered for so long has lost the record or its confirm; and a second more for each MiB in memory, at most as long again,
/// since all of it may have to go over the line before (DESIGN §7: 30 to 60 s).
const ANSWER_AFTER: Duration = Duration::from_secs(30);
/// How soon a journal that could not be read is tried again.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// Why [`Output::run`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Told to; everything that could be is published, or the time was up.
    Stopped,
    /// The sink has ended by a fault of its own; what was open is sent again.
    SinkGone,
    /// The journal's file is another one now: nothing that is in memory means anything in it.
    JournalReplaced,
}

/// What an output is made of.
pub(super) struct Parts {
    pub name: OutputName,
    pub row: OutputRow,
    pub sink: Box<dyn Sink>,
    pub reports: UnboundedReceiver<Report>,
    pub journal: Journal,
    /// Of the journal that `row` is of.
    pub journal_id: Arc<str>,
    pub encode: Encode,
    /// Bytes of the largest record that is sent at all.
    pub record_max: Option<usize>,
    pub router: Router,
    pub metrics: Arc<Metrics>,
    pub status: Outputs,
    /// `Some(deadline)`: publish what is pending until then, and end.
    pub stop: watch::Receiver<Option<Instant>>,
}

pub(super) struct Output {
    pub(super) name: OutputName,
    pub(super) number: u32,
    row: OutputRow,
    pub(super) handover: Handover,
    reports: UnboundedReceiver<Report>,
    pub(super) journal: Journal,
    journal_id: Arc<str>,
    pub(super) reader: Reader,
    pub(super) router: Router,
    pub(super) metrics: Arc<Metrics>,
    series: Series,
    status: Outputs,
    pub(super) stop: watch::Receiver<Option<Instant>>,
    pub(super) connected: bool,
    /// Connected, and nothing is taken: shown as not up.
    stalled: bool,
    pub(super) lanes: Vec<Lane>,
    /// In flight: sequence to lane.
    pub(super) open: SequenceMap<usize>,
    pub(super) in_memory: usize,
    pub(super) bytes_in_memory: usize,
    pub(super) window: Window,
    read_through: u64,
    /// Read, and not yet given to a lane.
    pub(super) ahead: VecDeque<Read>,
    /// The last event that was given to a lane. Rows behind it are a crash's, and wait until their turn comes.
    walked_through: u64,
    /// Events behind the cursor that the last process gave a row.
    rows_beyond: SequenceSet,
    pub(super) books: Books,
    /// Given up by order: behind the reading, ahead, or in flight.
    pub(super) given_up: SequenceSet,
    pub(super) replays: Replays,
    looked_at: Instant,
    read_again_at: Option<Instant>,
    /// The last try to read failed, which was said.
    could_not_read: bool,
    parked: Parked,
    pace: Pace,
    /// Until then what may be read waits for requests to be answered.
    rests_until: Option<Instant>,
}

impl Output {
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let Parts { name, row, sink, reports, journal, journal_id, encode, record_max, router, metrics, status, stop } =
            parts;
        Self {
            number: row.number,
            reader: journal.reader(),
            connected: false,
            stalled: false,
            lanes: Vec::new(),
            open: SequenceMap::default(),
            in_memory: 0,
            bytes_in_memory: 0,
            window: Window::new(row.cursor),
            read_through: row.cursor,
            ahead: VecDeque::new(),
            walked_through: row.cursor,
            rows_beyond: SequenceSet::default(),
            books: Books::new(Arc::clone(&journal_id), &row, now),
            journal_id,
            given_up: SequenceSet::default(),
            replays: Replays::default(),
            looked_at: now.checked_sub(LOOK_EVERY).unwrap_or(now),
            read_again_at: None,
            could_not_read: false,
            parked: Parked::new(now),
            pace: Pace::new(now),
            rests_until: None,
            series: Series::new(&name, &metrics),
            name,
            row,
            handover: Handover::new(encode, sink, record_max),
            reports,
            journal,
            router,
            metrics,
            status,
            stop,
        }
    }

    /// Publishes until told to stop.
    pub async fn run(mut self) -> Ended {
        let mut committed = self.journal.committed();
        let mut stop = self.stop.clone();
        self.journal.given_up(self.number); // From here on they are told; what was before, the journal's reader knows.
        if !self.name_lanes_anew().await {
            return if self.stop.borrow().is_some() { Ended::Stopped } else { Ended::JournalReplaced };
        }
        loop {
            let now = Instant::now();
            if !Arc::ptr_eq(&self.journal.id(), &self.journal_id) {
                return Ended::JournalReplaced;
            }
            while let Ok(report) = self.reports.try_recv() {
                self.report(report, now);
            }
            self.books.passed(self.window.cursor());
            self.look(now);
            committed.mark_unchanged();
            self.rests_until = None;
            let worked = self.connected && self.advance(now);
            self.books.save_if_due(&self.journal, self.window.cursor(), now);
            let deadline = *stop.borrow_and_update();
            if let Some(deadline) = deadline
                && (now >= deadline || self.is_done(now, *committed.borrow()))
            {
                self.let_the_cursor_pass();
                // What is not kept is sent again by the next start.
                let _ = self.books.save_now(&self.journal, self.window.cursor()).await;
                return Ended::Stopped;
            }
            if worked {
                tokio::task::yield_now().await; // The sink's own tasks and the saving go on.
                continue;
            }
            let wake_at = self.wake_at(now, deadline);
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) => self.report(report, Instant::now()),
                    None => return Ended::SinkGone,
                },
                Ok(()) = committed.changed(), if self.connected && self.ahead.is_empty() && self.rests_until.is_none() => {}
                _ = self.books.saved() => {} // A failure is the journal's to tell; the same goes again in a second.
                Ok(()) = stop.changed() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Moves everything on that can be: rows and new events into lanes, lanes' records and replays into the sink. True if anything moved.
    fn advance(&mut self, now: Instant) -> bool {
        let mut worked = false;
        if self.read_again_at.is_none_or(|at| now >= at) {
            self.read_again_at = None;
            match self.read(now) {
                Ok(any) => {
                    self.could_not_read = false;
                    worked |= any;
                }
                Err(error) => self.cannot_read(&error, now),
            }
        }
        worked |= self.distribute(now);
        for lane in 0..self.lanes.len() {
            worked |= self.send(lane, now);
        }
        worked | self.end_turn()
    }

    fn cannot_read(&mut self, error: &rusqlite::Error, now: Instant) {
        if !std::mem::replace(&mut self.could_not_read, true) {
            warn!(output = %self.name, "the journal cannot be read: {error}; trying again");
        }
        self.journal.unreadable(&self.journal_id, error);
        self.read_again_at = Some(now + READ_AGAIN);
    }

    fn has_room(&self) -> bool {
        self.in_memory < self.parked.leaves() && self.bytes_in_memory < BYTES_MAX
    }

    /// What a crash would send twice is bounded: what is in flight, or published and not yet kept. As one sum, so that a journal which is
    /// slow to keep it makes nobody wait while little is in flight.
    fn may_send(&self) -> bool {
        self.open.len() + self.books.unsaved() < WINDOW_MAX + UNSAVED_MAX
    }

    /// Hands a lane's next records to the sink.
    fn send(&mut self, lane: usize, now: Instant) -> bool {
        let mut worked = false;
        let topic = Arc::clone(&self.lanes[lane].topic);
        while self.connected && self.may_send() {
            // Two of them at once, and nobody knows at which of them the broker hangs up.
            let is_another_tried =
                || self.lanes.iter().any(|lane| lane.tries_a_suspect(now)) || self.replays.tries_a_suspect();
            if self.lanes[lane].is_about_to_try_a_suspect() && is_another_tried() {
                break;
            }
            let Some(item) = self.lanes[lane].next(now) else { break };
            let sequence = item.sequence();
            worked = true;
            self.open.insert(sequence, lane);
            match self.handover.send(Arc::clone(&topic), &item.stored, false) {
                Ok(bytes) => item.record_bytes = bytes,
                Err(error) => self.failed(sequence, error, now),
            }
        }
        worked
    }

    /// A connection broke while these large records were open on it.
    fn broken(&mut self, large: &[u64], now: Instant) {
        for index in 0..self.lanes.len() {
            let Some((oldest, is_guilty)) = self.lanes[index].broke(large, now) else { continue };
            let topic = Arc::clone(&self.lanes[index].topic);
            if !is_guilty {
                warn!(
                    output = %self.name, topic = %topic, event.sequence = oldest,
                    "the connection breaks each time when event {oldest} of {topic} is sent; it is tried apart from all others, and parked if the connection breaks even then"
                );
            }
            self.handover.sink.take_back(&topic, oldest);
        }
        self.replays_broken(large, now);
    }

    fn report(&mut self, report: Report, now: Instant) {
        match report {
            Report::Delivered { sequence, place } => self.delivered(sequence, place, now),
            Report::Failed { sequence, error } => self.failed(sequence, error, now),
            Report::Connected => {
                if !self.connected {
                    info!(output = %self.name, "the broker answers");
                }
                self.connected = true;
                self.metrics.publish.up.with_label_values(&[self.name.as_str()]).set(1);
                self.status.update(&self.name, |status| status.up = true);
                for lane in &mut self.lanes {
                    lane.reconnected();
                    lane.excuse_silence(now);
                }
            }
            Report::Broken { large } => self.broken(&large, now),
            Report::Lost { reason, detail } => {
                warn!(output = %self.name, reason = reason.reason(), "the broker is away: {detail}; events wait in the journal");
                self.connected = false;
                self.count_failure(&reason);
                self.metrics.publish.up.with_label_values(&[self.name.as_str()]).set(0);
                self.status.update(&self.name, |status| {
                    status.up = false;
                    status.failed(detail, clock::now());
                });
            }
        }
    }

    fn lane(&mut self, topic: &Arc<str>, now: Instant) -> usize {
        // At most as many as events, extras and accounts make: a look through them is as quick as a map.
        match self.lanes.iter().position(|lane| Arc::ptr_eq(&lane.topic, topic) || lane.topic == *topic) {
            Some(lane) => lane,
            None => {
                self.lanes.push(Lane::new(Arc::clone(topic), now));
                self.lanes.len() - 1
            }
        }
    }

    /// All is published that can be without an operator.
    fn is_done(&self, now: Instant, committed: u64) -> bool {
        let owed = self.row.owed_after(self.read_through).is_some_and(|(after, _)| after < committed);
        self.replays.is_idle()
            && self.ahead.is_empty()
            && !owed
            && self.lanes.iter().all(|lane| lane.is_idle() || lane.is_stuck(now))
    }

    fn wake_at(&self, now: Instant, deadline: Option<Instant>) -> Instant {
        let lanes = self.lanes.iter().filter(|_| self.connected).filter_map(Lane::wakes_at);
        let look = self.looked_at + LOOK_EVERY;
        let all = lanes.chain(deadline).chain(self.read_again_at).chain(self.books.wakes_at()).chain([look]);
        // A moment ahead at least: what is due now was tried just now, and waits for something else. A rest is always ahead.
        let wake_at = all.min().unwrap_or(look).max(now + Duration::from_millis(10));
        self.rests_until.map_or(wake_at, |until| until.min(wake_at))
    }
}

/// What was shown of its topics ends with it; another one begins anew.
impl Drop for Output {
    fn drop(&mut self) {
        for lane in &self.lanes {
            if let Some(reason) = lane.shown {
                let _ = self.metrics.publish.held.remove_label_values(&[self.name.as_str(), &lane.topic, reason]);
            }
            if lane.shown_stuck {
                self.metrics.publish.show_stuck(self.name.as_str(), &lane.topic, [0; 3]);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
