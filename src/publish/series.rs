//! An output's metrics that move with each event, looked up once: to find a series by its labels costs more than to count.

use std::sync::Arc;

use prometheus::{Counter, Histogram, IntCounter};

use crate::config::OutputName;
use crate::metrics::Metrics;
use crate::normalize::EventName;

pub(super) struct Series {
    output: OutputName,
    metrics: Arc<Metrics>,
    /// By event: as few as event names, so a look through them is as quick as a map.
    published: Vec<(EventName, IntCounter)>,
    /// From arrival to confirmation.
    pub delay: Histogram,
    /// From handing over to confirmation.
    pub duration: Histogram,
    pub rests: Counter,
}

impl Series {
    pub fn new(output: &OutputName, metrics: &Arc<Metrics>) -> Self {
        Self {
            output: output.clone(),
            published: Vec::new(),
            delay: metrics.publish.delay.with_label_values(&[output.as_str()]),
            duration: metrics.publish.duration.with_label_values(&[output.as_str()]),
            rests: metrics.publish.rests.with_label_values(&[output.as_str()]),
            metrics: Arc::clone(metrics),
        }
    }

    pub fn published(&mut self, event: &EventName) -> &IntCounter {
        let index = self.published.iter().position(|(name, _)| name == event).unwrap_or_else(|| {
            let counter = self.metrics.publish.published.with_label_values(&[self.output.as_str(), event.as_str()]);
            self.published.push((event.clone(), counter));
            self.published.len() - 1
        });
        &self.published[index].1
    }
}
