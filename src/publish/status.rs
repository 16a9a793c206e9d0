//! What each output shows of itself on the status page, beside its metrics. Nothing of an event's content is here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::clock::{Rfc3339, Timestamp, rfc3339_seconds};
use crate::config::OutputName;

/// An output as its publisher sees it now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OutputStatus {
    /// `kafka`, `rabbitmq` or `console`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The broker answers.
    pub up: bool,
    pub pending: u64,
    pub parked: u64,
    /// Topics or routing keys whose events wait until somebody mends them.
    pub held: Vec<HeldTopic>,
    /// The oldest event of each topic or routing key that makes no progress while the broker answers.
    pub stuck: Vec<StuckEvent>,
    /// One line, without any content of events or secrets.
    pub last_error: Option<String>,
    /// RFC 3339 UTC.
    pub last_error_at: Option<Rfc3339>,
    /// Of the oldest pending event; 0 when there is none.
    pub oldest_pending_age_seconds: f64,
}

impl OutputStatus {
    /// Notes what went wrong last: one line, without any content of events or secrets.
    pub fn failed(&mut self, detail: String, now: Timestamp) {
        self.last_error = Some(detail);
        self.last_error_at = Some(rfc3339_seconds(now.as_seconds()));
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HeldTopic {
    pub topic: String,
    /// As in the metric `topic_held`.
    pub reason: &'static str,
    /// What to do about it, with the command if there is one.
    pub mend: &'static str,
}

/// An event that does not get through, and holds up what is behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StuckEvent {
    pub topic: String,
    /// The envelope's `relaysequence`, as a number.
    pub sequence: u64,
    /// Of its record.
    pub bytes: usize,
    /// Since it was accepted.
    pub age_seconds: u64,
    /// As in the metric `publish_failures_total`.
    pub reason: &'static str,
}

/// Where each output keeps its [`OutputStatus`] for others to see. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outputs(Arc<Mutex<BTreeMap<OutputName, OutputStatus>>>);

impl Outputs {
    /// Changes what is shown of one output, which is shown from then on. `change` must not block.
    pub fn update(&self, output: &OutputName, change: impl FnOnce(&mut OutputStatus)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(output.clone()).or_default());
    }

    pub fn all(&self) -> BTreeMap<OutputName, OutputStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
