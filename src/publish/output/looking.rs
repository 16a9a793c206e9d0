//! What only time changes, and what people are shown of it: held topics, the age of the oldest event.

use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::super::lane::Lane;
use super::super::{HeldTopic, PublishError, mend};
use super::{LOOK_EVERY, Output};
use crate::clock;
use crate::config::OutputName;
use crate::metrics::Metrics;

impl Output {
    /// Once a second: what only time changes.
    pub(super) fn look(&mut self, now: Instant) {
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
            let held = lane.held(now).filter(|_| self.handover.sink.is_silent_on_faults() || !lane.is_stalled(now));
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
            Some(HeldTopic { topic: lane.topic.to_string(), reason, mend: mend(reason) })
        };
        let held = self.lanes.iter().filter_map(held).collect();
        self.status.update(&self.name, |status| {
            status.oldest_pending_age_seconds = age;
            status.held = held;
        });
    }

    /// A pipe that nobody reads, or a broker that hangs, says nothing of itself.
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
