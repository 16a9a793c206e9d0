//! What only time changes, and what people are shown of it: held topics, the age of the oldest event.

use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::super::lane::Lane;
use super::super::{HeldTopic, mend};
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
            let held = lane.held(now);
            if held != lane.shown {
                show_held(&self.metrics, &self.name, lane, held);
            }
        }
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
        let held = |lane: &Lane| Some(HeldTopic { topic: lane.topic.to_string(), reason: lane.shown? });
        let held = self.lanes.iter().filter_map(held).collect();
        self.status.update(&self.name, |status| {
            status.oldest_pending_age_seconds = age;
            status.held = held;
        });
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
