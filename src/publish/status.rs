//! What an output shows of itself on the status page, beside its metrics.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Timestamp;
use crate::config::OutputName;

/// The state of one output, without anything of an event.
#[derive(Clone, Debug)]
pub struct OutputStatus {
    pub name: OutputName,
    /// `kafka`, `rabbitmq` or `console`.
    pub kind: &'static str,
    pub up: bool,
    /// Topics whose events wait, and why.
    pub held: Vec<(String, &'static str)>,
    /// The newest reason why the broker was away, and when.
    pub last_error: Option<(Timestamp, String)>,
    /// Seconds; 0 when nothing is pending.
    pub oldest_pending_age: f64,
}

/// An output's status, shared between the output that writes it and the page that reads it.
#[derive(Clone, Debug)]
pub struct StatusCell(Arc<Mutex<OutputStatus>>);

impl StatusCell {
    pub fn new(name: OutputName, kind: &'static str) -> Self {
        let status = OutputStatus { name, kind, up: false, held: Vec::new(), last_error: None, oldest_pending_age: 0.0 };
        Self(Arc::new(Mutex::new(status)))
    }

    pub fn get(&self) -> OutputStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut OutputStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
