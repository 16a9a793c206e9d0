//! One output: reads the journal in order, hands events to their lanes, lanes' records to the sink, and what came of them back to the journal.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::books::Books;
use super::encode::Encoder;
use super::lane::{Item, Lane, Verdict};
use super::replay::Replays;
use super::routes::Router;
use super::sequences::SequenceMap;
use super::series::Series;
use super::window::Window;
use super::{HeldTopic, Outputs, Place, PublishError, Report, Sink};
use crate::clock;
use crate::config::OutputName;
use crate::journal::{Journal, OutputRow, Read, Reader};
use crate::metrics::Metrics;

/// In memory at one output, in flight or about to be (DESIGN §7).
const EVENTS_MAX: usize = 10_000;
const BYTES_MAX: usize = 32 << 20;
/// Events and bytes of one read of the journal, so that a read transaction lasts some milliseconds.
const READ_EVENTS: usize = 512;
const READ_BYTES: usize = 2 << 20;
/// A lane that has reported nothing for so long gets rows for what comes, rather than keeping the others waiting.
const SILENT_AFTER: Duration = Duration::from_secs(1);
/// How often the age of the oldest event, the held topics and the parked events that are due are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PARKED_AT_A_TIME: usize = 10;
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
    pub encoder: Encoder,
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
    pub(super) sink: Box<dyn Sink>,
    reports: UnboundedReceiver<Report>,
    pub(super) journal: Journal,
    journal_id: Arc<str>,
    pub(super) reader: Reader,
    pub(super) encoder: Encoder,
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
    rows_beyond: HashSet<u64>,
    pub(super) books: Books,
    /// Given up by order: behind the reading, ahead, or in flight.
    pub(super) given_up: HashSet<u64>,
    pub(super) replays: Replays,
    looked_at: Instant,
    read_again_at: Option<Instant>,
}

impl Output {
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        let Parts { name, row, sink, reports, journal, encoder, router, metrics, status, stop } = parts;
        Self {
            number: row.number,
            journal_id: journal.id(),
            reader: Reader::new(journal.path()),
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
            rows_beyond: HashSet::new(),
            books: Books::new(journal.id(), &row, now),
            given_up: HashSet::new(),
            replays: Replays::default(),
            looked_at: now.checked_sub(LOOK_EVERY).unwrap_or(now),
            read_again_at: None,
            series: Series::new(&name, &metrics),
            name,
            row,
            sink,
            reports,
            journal,
            encoder,
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
            if *self.journal.id() != *self.journal_id {
                return Ended::JournalReplaced;
            }
            while let Ok(report) = self.reports.try_recv() {
                self.report(report, now);
            }
            self.books.passed(self.window.cursor());
            self.look(now);
            committed.mark_unchanged();
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
                Ok(()) = committed.changed(), if self.connected && self.ahead.is_empty() => {}
                _ = self.books.saved() => {} // A failure is the journal's to tell; the same goes again in a second.
                Ok(()) = stop.changed() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    /// Moves everything on that can be: rows and new events into lanes, lanes' records into the sink. True if anything moved.
    fn advance(&mut self, now: Instant) -> bool {
        let mut worked = false;
        if self.read_again_at.is_none_or(|at| now >= at) {
            self.read_again_at = None;
            let read = self.read_rows(now).and_then(|rows| Ok(rows | self.read_on()?));
            match read {
                Ok(any) => worked |= any,
                Err(error) => {
                    warn!(output = %self.name, "the journal cannot be read: {error}; trying again");
                    self.journal.unreadable(&error);
                    self.read_again_at = Some(now + READ_AGAIN);
                }
            }
        }
        worked |= self.distribute(now);
        for lane in 0..self.lanes.len() {
            worked |= self.send(lane, now);
        }
        worked |= self.replay(now);
        worked
    }

    fn has_room(&self) -> bool {
        self.in_memory < EVENTS_MAX && self.bytes_in_memory < BYTES_MAX
    }

    /// Reads the next events of the journal, if none are waiting to be distributed.
    fn read_on(&mut self) -> rusqlite::Result<bool> {
        if !self.ahead.is_empty() || !self.has_room() || self.window.len() >= EVENTS_MAX || !self.books.has_room() {
            return Ok(false);
        }
        let Some((after, through)) = self.row.owed_after(self.read_through) else { return Ok(false) };
        // Read before the events: so whatever it counts is among them.
        let committed = *self.journal.committed().borrow();
        let reads = self.reader.events(after, through, READ_EVENTS.min(EVENTS_MAX - self.window.len()), READ_BYTES)?;
        if reads.is_empty() {
            // A closed span that is read to its end leads to the next one.
            if self.row.spans.iter().any(|span| span.through == Some(through)) {
                self.read_through = through;
                return Ok(true);
            }
            // Numbers whose events were discarded, or never kept: nothing of them is owed.
            self.read_through = self.read_through.max(committed);
            return Ok(false);
        }
        self.read_through = reads.last().map_or(after, Read::sequence);
        self.given_up.extend(self.reader.given_up(self.number, after, self.read_through)?);
        self.ahead.extend(reads);
        Ok(true)
    }

    /// Gives the events that were read to their lanes, in order, as far as these have room.
    fn distribute(&mut self, now: Instant) -> bool {
        let mut worked = false;
        while let Some(read) = self.ahead.front() {
            let sequence = read.sequence();
            if self.given_up.remove(&sequence) {
                self.walked_through = sequence;
                self.window.read(sequence);
                self.window.pass(sequence);
                self.ahead.pop_front();
                worked = true;
                continue;
            }
            let Read::Event(stored) = read else {
                self.walked_through = sequence;
                self.window.read(sequence);
                self.window.pass(sequence);
                self.books.corrupt(sequence, false);
                error!(output = %self.name, event.sequence = sequence, "an event's row in the journal is corrupt; it is parked");
                self.metrics.publish.parked_total.with_label_values(&[self.name.as_str(), "corrupt"]).inc();
                self.ahead.pop_front();
                continue;
            };
            let topic = self.router.route(&stored.event.account, &stored.event.name);
            let lane = self.lane(&topic, now);
            let lane = &mut self.lanes[lane];
            let to_rows = lane.rows
                || self.rows_beyond.contains(&sequence)
                || lane.is_stuck(now)
                || (!lane.has_room() && lane.is_silent(now, SILENT_AFTER));
            if !to_rows && (!lane.has_room() || self.in_memory >= EVENTS_MAX || self.bytes_in_memory >= BYTES_MAX) {
                break;
            }
            if to_rows && !self.books.has_room() {
                break;
            }
            worked = true;
            self.rows_beyond.remove(&sequence);
            self.walked_through = sequence;
            self.window.read(sequence);
            let Some(Read::Event(stored)) = self.ahead.pop_front() else { break };
            let mut item = Item::new(stored, false, None);
            if to_rows {
                lane.rows = true;
                lane.rows_in = self.books.number();
                self.books.hold(&mut item, &lane.topic, lane.held(now));
                self.window.pass(sequence);
            } else {
                self.in_memory += 1;
                self.bytes_in_memory += item.bytes;
                lane.push(item);
            }
        }
        worked
    }

    /// Fetches held events of lanes that can go on.
    fn read_rows(&mut self, now: Instant) -> rusqlite::Result<bool> {
        let mut worked = false;
        for lane in &mut self.lanes {
            if !lane.wants_rows(now, self.books.kept())
                || self.in_memory >= EVENTS_MAX
                || self.bytes_in_memory >= BYTES_MAX
            {
                continue;
            }
            let wanted = lane.rows_wanted();
            let span = (lane.taken_through, self.walked_through);
            let reads = self.reader.held(self.number, &lane.topic, span, wanted, READ_BYTES)?;
            if reads.is_empty() && lane.rows_in <= self.books.kept() {
                lane.rows = false;
            }
            for read in reads {
                worked = true;
                if self.books.is_settled(read.sequence()) {
                    lane.taken_through = read.sequence(); // The journal has yet to hear of it.
                    continue;
                }
                match read {
                    Read::Event(stored) => {
                        let item = Item::new(stored, true, None);
                        self.in_memory += 1;
                        self.bytes_in_memory += item.bytes;
                        lane.push(item);
                    }
                    Read::Corrupt { sequence } => {
                        lane.taken_through = sequence;
                        self.books.corrupt(sequence, true);
                        self.metrics.publish.parked_total.with_label_values(&[self.name.as_str(), "corrupt"]).inc();
                    }
                }
            }
        }
        Ok(worked)
    }

    /// Hands a lane's next records to the sink.
    fn send(&mut self, lane: usize, now: Instant) -> bool {
        let mut worked = false;
        let topic = Arc::clone(&self.lanes[lane].topic);
        while self.connected && self.books.has_room() {
            let Some(item) = self.lanes[lane].next(now) else { break };
            let sequence = item.sequence();
            // Pure work on one event: what is wrong with it must not stop the others.
            let record =
                catch_unwind(AssertUnwindSafe(|| self.encoder.record(Arc::clone(&topic), &item.stored, false)));
            worked = true;
            self.open.insert(sequence, lane);
            match record {
                Ok(record) => self.sink.send(record),
                Err(_) => self.failed(sequence, PublishError::Rejected("the envelope could not be made".into()), now),
            }
        }
        worked
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

    fn delivered(&mut self, sequence: u64, place: Place, now: Instant) {
        if self.replays.is_open(sequence) {
            return self.replay_ended(sequence, Ok(place), now);
        }
        let Some(lane) = self.open.remove(&sequence) else { return };
        let lane = &mut self.lanes[lane];
        let Some(item) = lane.delivered(sequence, now) else { return };
        self.in_memory -= 1;
        self.bytes_in_memory -= item.bytes;
        self.window.pass(sequence);
        let at = clock::now();
        let event = &item.stored.event;
        self.series.published(&event.name).inc();
        self.series.delay.observe(at.since(event.received_at).as_secs_f64());
        if let Some(sent_at) = item.sent_at {
            self.series.duration.observe(now.duration_since(sent_at).as_secs_f64());
        }
        let (partition, offset) = match place {
            Place::Kafka { partition, offset } => (Some(partition), Some(offset)),
            Place::Confirmed => (None, None),
        };
        debug!(
            output = %self.name, topic = %lane.topic, event.id = %event.id, event.sequence = sequence,
            kafka.partition = partition, kafka.offset = offset, "an event is published to {}", lane.topic
        );
        self.books.published(item, &lane.topic, place, at);
    }

    fn failed(&mut self, sequence: u64, error: PublishError, now: Instant) {
        if self.replays.is_open(sequence) {
            return self.replay_ended(sequence, Err(error), now);
        }
        let Some(lane) = self.open.remove(&sequence) else { return };
        self.count_failure(&error);
        if let PublishError::Unknown(code) | PublishError::Suspect(code) = &error {
            warn!(output = %self.name, topic = %self.lanes[lane].topic, event.sequence = sequence, "a record was not published: {code}; trying again");
        }
        let Some(verdict) = self.lanes[lane].failed(sequence, error, now) else { return };
        match verdict {
            Verdict::Again => {}
            Verdict::Park(item, error) => self.park(lane, *item, &error),
            Verdict::StillParked(item) => {
                self.in_memory -= 1;
                self.bytes_in_memory -= item.bytes;
                self.books.parked_again(&item);
            }
        }
        self.unload_if_stuck(lane, now);
    }

    fn park(&mut self, lane: usize, item: Item, error: &PublishError) {
        let (reason, detail) = match error {
            PublishError::Rejected(text) => ("rejected", text.clone()),
            error => (error.reason(), String::new()),
        };
        let lane = &self.lanes[lane];
        error!(
            output = %self.name, topic = %lane.topic, event.id = %item.stored.event.id, event.sequence = item.sequence(), reason,
            "an event is parked, the broker does not take it: {detail}"
        );
        self.metrics.publish.parked_total.with_label_values(&[self.name.as_str(), reason]).inc();
        let seen = format!("an event of {} is parked, {reason}: {detail}", lane.topic);
        self.status.update(&self.name, |status| status.failed(seen.trim_end_matches(": ").to_owned(), clock::now()));
        self.in_memory -= 1;
        self.bytes_in_memory -= item.bytes;
        self.window.pass(item.sequence());
        self.books.park(item, &lane.topic, reason, detail);
    }

    pub(super) fn count_failure(&self, error: &PublishError) {
        if *error != PublishError::Withdrawn {
            self.metrics.publish.failures.with_label_values(&[self.name.as_str(), error.reason()]).inc();
        }
    }

    /// A lane that does not go on by itself keeps nothing in memory, and nothing of it keeps the cursor.
    fn unload_if_stuck(&mut self, lane: usize, now: Instant) {
        let lane = &mut self.lanes[lane];
        if !lane.is_stuck(now) {
            return;
        }
        let reason = lane.held(now);
        let (items, parked) = lane.unload();
        for mut item in items {
            self.in_memory -= 1;
            self.bytes_in_memory -= item.bytes;
            if !item.row {
                self.books.hold(&mut item, &lane.topic, reason);
                self.window.pass(item.sequence());
            }
            // Also one that has a row already: the journal may not have heard of it yet.
            lane.await_rows(self.books.due());
        }
        for item in parked {
            self.in_memory -= 1;
            self.bytes_in_memory -= item.bytes;
            self.books.parked_again(&item);
        }
        let topic = Arc::clone(&lane.topic);
        let books = &mut self.books;
        for item in lane.open_without_row() {
            books.hold(item, &topic, reason);
            self.window.pass(item.sequence());
        }
    }

    /// Once a second: what only time changes.
    fn look(&mut self, now: Instant) {
        if now.duration_since(self.looked_at) < LOOK_EVERY {
            return;
        }
        self.looked_at = now;
        self.give_up();
        for lane in 0..self.lanes.len() {
            if self.connected {
                self.unload_if_stuck(lane, now);
            } else {
                self.lanes[lane].excuse_silence(now);
            }
            let lane = &mut self.lanes[lane];
            // Only Kafka's silence means the topic's; of another broker it is the broker's own, and shown as such.
            let held = lane.held(now).filter(|_| self.sink.is_silent_on_faults() || !lane.is_stalled(now));
            if held != lane.shown {
                show_held(&self.metrics, &self.name, lane, held);
            }
        }
        self.look_for_silence(now);
        self.slide_past_old_ones(now);
        if self.connected && self.read_again_at.is_none() {
            self.take_up_parked(now);
        }
        let oldest = match self.reader.oldest_pending(self.number) {
            Ok(oldest) => oldest,
            Err(_) => return, // The journal's own state says it.
        };
        let age = oldest.map_or(0.0, |at| clock::now().since(at).as_secs_f64());
        self.metrics.publish.oldest_pending_age.with_label_values(&[self.name.as_str()]).set(age);
        let held = |lane: &Lane| {
            let reason = lane.shown?;
            Some(HeldTopic { topic: lane.topic.to_string(), reason, mend: super::mend(reason) })
        };
        let held = self.lanes.iter().filter_map(held).collect();
        self.status.update(&self.name, |status| {
            status.oldest_pending_age_seconds = age;
            status.held = held;
        });
    }

    /// A pipe that nobody reads, or a broker that hangs, says nothing of itself.
    fn look_for_silence(&mut self, now: Instant) {
        let stalled =
            self.connected && !self.sink.is_silent_on_faults() && self.lanes.iter().any(|lane| lane.is_stalled(now));
        if stalled == self.stalled {
            return;
        }
        self.stalled = stalled;
        if stalled {
            const DETAIL: &str = "it has taken nothing for 10 s: it hangs, or nobody reads it";
            warn!(output = %self.name, reason = "timeout", "{DETAIL}; events wait in the journal");
            self.count_failure(&PublishError::Timeout);
            self.status.update(&self.name, |status| status.last_error = Some(DETAIL.to_owned()));
        } else if self.connected {
            info!(output = %self.name, "it takes events again");
        }
        let up = self.connected && !stalled;
        self.metrics.publish.up.with_label_values(&[self.name.as_str()]).set(i64::from(up));
        self.status.update(&self.name, |status| status.up = up);
    }

    /// Events long in flight get a row each when others wait for the cursor to pass them, so that the journal hears of those, and a crash
    /// repeats no more than a window.
    fn slide_past_old_ones(&mut self, now: Instant) {
        if self.window.len() < EVENTS_MAX && !self.books.awaits_cursor() {
            return;
        }
        for lane in &mut self.lanes {
            if self.connected && !lane.is_silent(now, SILENT_AFTER) {
                continue;
            }
            let topic = Arc::clone(&lane.topic);
            for item in lane.open_without_row() {
                self.books.hold(item, &topic, None);
                self.window.pass(item.sequence());
            }
        }
    }

    /// At an orderly end: what is confirmed is not to be sent again because something before it is not. That gets rows.
    fn let_the_cursor_pass(&mut self) {
        self.books.passed(self.window.cursor());
        if !self.books.awaits_cursor() {
            return;
        }
        for lane in &mut self.lanes {
            let topic = Arc::clone(&lane.topic);
            for item in lane.all_without_row() {
                self.books.hold(item, &topic, None);
                self.window.pass(item.sequence());
            }
        }
    }

    fn take_up_parked(&mut self, now: Instant) {
        let Ok(due) = self.reader.parked_due(self.number, clock::now(), PARKED_AT_A_TIME) else { return };
        for row in due {
            let Read::Event(stored) = row.read else {
                self.books.give_up(row.read.sequence(), row.attempts);
                continue;
            };
            if !self.books.begin_again(stored.sequence) {
                continue; // On its way already.
            }
            let topic = self.router.route(&stored.event.account, &stored.event.name);
            let lane = self.lane(&topic, now);
            let item = Item::new(stored, true, Some(row.attempts));
            if self.lanes[lane].is_stuck(now) {
                self.books.parked_again(&item);
                continue;
            }
            self.in_memory += 1;
            self.bytes_in_memory += item.bytes;
            self.lanes[lane].push(item);
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

    /// Gives held rows the names that their topics have now, and makes a lane of each. False if it was told to stop before, or the journal was replaced.
    async fn name_lanes_anew(&mut self) -> bool {
        let routes = self.router.fingerprint();
        loop {
            match self.try_name_lanes(&routes).await {
                Ok(()) => return true,
                Err(error) => {
                    warn!(output = %self.name, "the journal cannot be read: {error}; trying again");
                    tokio::time::sleep(READ_AGAIN).await;
                    if self.stop.borrow().is_some() || *self.journal.id() != *self.journal_id {
                        return false;
                    }
                }
            }
        }
    }

    async fn try_name_lanes(&mut self, routes: &str) -> Result<(), String> {
        let journal = self.journal.clone();
        let text = |error: rusqlite::Error| {
            journal.unreadable(&error);
            error.to_string()
        };
        if self.row.routes != routes {
            let mut after = 0;
            loop {
                let held = self.reader.held_after(self.number, after, 1_000).map_err(text)?;
                let Some((_, last)) = held.last() else { break };
                after = last.sequence();
                for (lane, read) in &held {
                    let Read::Event(stored) = read else { continue };
                    let topic = self.router.route(&stored.event.account, &stored.event.name);
                    if **lane != *topic {
                        self.books.rename(stored.sequence, &topic);
                    }
                }
                self.books.save_now(&self.journal, self.window.cursor()).await?;
            }
            self.books.routes(routes);
            self.books.save_now(&self.journal, self.window.cursor()).await?;
            self.row.routes = routes.to_owned();
        }
        self.rows_beyond =
            self.reader.held_behind(self.number, self.window.cursor()).map_err(text)?.into_iter().collect();
        for topic in self.reader.held_lanes(self.number).map_err(text)? {
            let lane = self.lane(&topic.into(), Instant::now());
            self.lanes[lane].rows = true;
        }
        Ok(())
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
        // A moment ahead at least: what is due now was tried just now, and waits for something else.
        all.min().unwrap_or(look).max(now + Duration::from_millis(10))
    }
}

/// What was shown of its topics ends with it; another one begins anew.
impl Drop for Output {
    fn drop(&mut self) {
        for lane in &self.lanes {
            if let Some(reason) = lane.shown {
                let _ = self.metrics.publish.held.remove_label_values(&[self.name.as_str(), &lane.topic, reason]);
            }
        }
    }
}

fn show_held(metrics: &Metrics, output: &OutputName, lane: &mut Lane, held: Option<&'static str>) {
    let topic = Arc::clone(&lane.topic);
    if let Some(was) = lane.shown {
        metrics.publish.held.with_label_values(&[output.as_str(), &topic, was]).set(0);
    }
    match held {
        Some(reason) => {
            metrics.publish.held.with_label_values(&[output.as_str(), &topic, reason]).set(1);
            warn!(output = %output, topic = %topic, reason, "{} is held: {}", topic, super::mend(reason));
        }
        None => info!(output = %output, topic = %topic, "{topic} goes on"),
    }
    lane.shown = held;
}
