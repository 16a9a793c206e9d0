//! What becomes of a record that was sent: confirmed, parked, to be sent again, or given a row in the journal so that the cursor can pass it.

use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, error, warn};

use super::super::lane::{Item, Verdict};
use super::super::{Place, PublishError};
use super::{Output, SILENT_AFTER, WINDOW_MAX};
use crate::clock;

impl Output {
    pub(super) fn delivered(&mut self, sequence: u64, place: Place, now: Instant) {
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

    pub(super) fn failed(&mut self, sequence: u64, error: PublishError, now: Instant) {
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
                self.parked.failed(now);
            }
            Verdict::Untried(item, broker_is_away) => {
                self.in_memory -= 1;
                self.bytes_in_memory -= item.bytes;
                self.books.let_go(item.sequence());
                self.parked.came_back(now, broker_is_away);
            }
        }
        self.unload_if_stuck(lane, now);
    }

    fn park(&mut self, lane: usize, item: Item, error: &PublishError) {
        let reason = error.reason();
        let requeue = format!("`sipsim-relay journal requeue --output {}`", self.name);
        let (why, detail) = match error {
            PublishError::Rejected(text) => ("the broker does not take it: ".to_owned(), text.clone()),
            PublishError::NoEnvelope => (
                "its envelope cannot be made: ".to_owned(),
                "a fault in the relay itself; please report it".to_owned(),
            ),
            PublishError::HungUp => (
                "the broker closes the connection at it, without a reason, as it does past its `socket.request.max.bytes` (Azure Event Hubs: 1 MB): ".to_owned(),
                format!(
                    "a record of {} bytes; raise that limit, then {requeue}, or set `outputs.{}.record_max` below it, so that such events cost nothing else",
                    item.record_bytes, self.name
                ),
            ),
            PublishError::OverMax => (
                format!("its record is larger than `record_max` of this output; raise it, then {requeue}"),
                String::new(),
            ),
            _ => (format!("the broker takes none so large; raise its limit, then {requeue}"), String::new()),
        };
        let lane = &self.lanes[lane];
        error!(
            output = %self.name, topic = %lane.topic, event.id = %item.stored.event.id, event.sequence = item.sequence(), reason,
            "an event is parked, {why}{detail}"
        );
        self.metrics.publish.parked_total.with_label_values(&[self.name.as_str(), reason]).inc();
        let seen = format!("an event of {} is parked, {reason}: {detail}", lane.topic);
        self.status.update(&self.name, |status| status.failed(seen.trim_end_matches(": ").to_owned(), clock::now()));
        self.in_memory -= 1;
        self.bytes_in_memory -= item.bytes;
        self.window.pass(item.sequence());
        self.books.park(item, &lane.topic, reason, detail);
    }

    pub(in crate::publish) fn count_failure(&self, error: &PublishError) {
        if *error != PublishError::Withdrawn && !error.is_ours() {
            self.metrics.publish.failures.with_label_values(&[self.name.as_str(), error.reason()]).inc();
        }
    }

    /// A lane that does not go on by itself keeps nothing in memory, and nothing of it keeps the cursor.
    pub(super) fn unload_if_stuck(&mut self, lane: usize, now: Instant) {
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
            self.books.let_go(item.sequence());
            self.parked.came_back(now, false);
        }
        let topic = Arc::clone(&lane.topic);
        let books = &mut self.books;
        for item in lane.open_without_row() {
            books.hold(item, &topic, reason);
            self.window.pass(item.sequence());
        }
    }

    /// Events long in flight get a row each when others wait for the cursor to pass them, so that the journal hears of those, and a crash
    /// repeats no more than a window.
    pub(super) fn slide_past_old_ones(&mut self, now: Instant) {
        if self.window.len() < WINDOW_MAX && !self.books.awaits_cursor() {
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
    pub(super) fn let_the_cursor_pass(&mut self) {
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
}
