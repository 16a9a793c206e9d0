//! What only time changes, and what people are shown of it: held topics, the age of the oldest event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::super::lane::Lane;
use super::super::{HeldTopic, PublishError, StuckEvent, mend};
use super::{ANSWER_AFTER, LOOK_EVERY, Output};
use crate::clock;
use crate::config::OutputName;
use crate::metrics::Metrics;

impl Output {
    /// Once a second: what only time changes.
    pub(super) fn look(&mut self, now: Instant) {
        if now.duration_since(self.looked_at) < LOOK_EVERY {
            return;
        }
        // As long as it was since the last look, however late this one is.
        let passed = now.duration_since(std::mem::replace(&mut self.looked_at, now));
        self.give_up();
        if !self.connected {
            self.replays.excuse_silence(now);
        }
        for lane in 0..self.lanes.len() {
            if self.connected {
                self.unload_if_stuck(lane, now);
            } else {
                self.lanes[lane].excuse_silence(now);
            }
            let lane = &mut self.lanes[lane];
            lane.watch_front(if self.connected { passed } else { Duration::ZERO });
            // A broker's silence means the topic's; the console's is its own, and shown as such.
            let held = lane.held(now).filter(|_| self.handover.sink.is_silent_on_faults() || !lane.is_stalled(now));
            if held != lane.shown {
                show_held(&self.metrics, &self.name, lane, held);
            }
        }
        self.show_stuck(now);
        if self.connected && self.handover.sink.is_silent_on_faults() {
            self.stop_waiting(now);
        }
        self.look_for_silence(now);
        self.slide_past_old_ones(now);
        let age = match self.reader.oldest_pending(self.number) {
            Ok(oldest) => Some(oldest.map_or(0.0, |at| clock::now().since(at).as_secs_f64())),
            Err(error) => {
                self.cannot_read(&error, now);
                None // It is shown as it was.
            }
        };
        if let Some(age) = age {
            self.metrics.publish.oldest_pending_age.with_label_values(&[self.name.as_str()]).set(age);
        }
        let held = |lane: &Lane| {
            let reason = lane.shown?;
            Some(HeldTopic { topic: lane.topic.to_string(), reason, mend: mend(reason) })
        };
        let held = self.lanes.iter().filter_map(held).collect();
        self.status.update(&self.name, |status| {
            status.oldest_pending_age_seconds = age.unwrap_or(status.oldest_pending_age_seconds);
            status.held = held;
        });
    }

    /// Takes back what the broker has not answered for long, though it is connected: a confirm may be lost, and then none comes.
    fn stop_waiting(&mut self, now: Instant) {
        let longest = ANSWER_AFTER + Duration::from_secs((self.bytes_in_memory >> 20) as u64).min(ANSWER_AFTER);
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            let Some(oldest) = lane.hears_nothing_of(now, longest) else { continue };
            let topic = Arc::clone(&lane.topic);
            let waited = lane.patience(longest);
            lane.stop_waiting();
            warn!(
                output = %self.name, topic = %topic, event.sequence = oldest, reason = "timeout",
                "the broker has not answered event {oldest} of {topic} for {} s or more; what is unanswered is taken back, and sent again from that one on",
                waited.as_secs()
            );
            self.count_failure(&PublishError::Timeout);
            self.handover.sink.take_back(&topic, oldest);
        }
        self.stop_waiting_for_replays(now, longest);
    }

    /// Names the events that do not get through, so that an operator need not guess which it is.
    fn show_stuck(&mut self, now: Instant) {
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            let (topic, reason) = (Arc::clone(&lane.topic), lane.why_stuck(now));
            let metrics = &self.metrics.publish;
            let Some(front) = lane.stuck() else {
                if std::mem::take(&mut lane.shown_stuck) {
                    metrics.show_stuck(self.name.as_str(), &topic, [0, 0, 0]);
                }
                continue;
            };
            let age = clock::now().since(front.received_at).as_secs();
            metrics.show_stuck(self.name.as_str(), &topic, [front.sequence, front.bytes as u64, age]);
            if !std::mem::replace(&mut front.said, true) {
                warn!(
                    output = %self.name, topic = %topic, event.sequence = front.sequence, event.bytes = front.bytes, reason,
                    "{topic} makes no progress: its oldest event, {}, of {} bytes, was accepted {age} s ago and does not get through", front.sequence, front.bytes
                );
            }
            let (sequence, bytes) = (front.sequence, front.bytes);
            lane.shown_stuck = true;
            all.push(StuckEvent { topic: topic.to_string(), sequence, bytes, age_seconds: age, reason });
        }
        self.status.update(&self.name, |status| status.stuck = all);
    }

    /// A pipe that nobody reads says nothing of itself.
    fn look_for_silence(&mut self, now: Instant) {
        let stalled = self.connected
            && !self.handover.sink.is_silent_on_faults()
            && self.lanes.iter().any(|lane| lane.is_stalled(now));
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
}

fn show_held(metrics: &Metrics, output: &OutputName, lane: &mut Lane, held: Option<&'static str>) {
    let topic = Arc::clone(&lane.topic);
    if let Some(was) = lane.shown {
        metrics.publish.held.with_label_values(&[output.as_str(), &topic, was]).set(0);
    }
    match held {
        Some(reason) => {
            metrics.publish.held.with_label_values(&[output.as_str(), &topic, reason]).set(1);
            warn!(output = %output, topic = %topic, reason, "{} is held: {}", topic, mend(reason));
        }
        None => info!(output = %output, topic = %topic, "{topic} goes on"),
    }
    lane.shown = held;
}
