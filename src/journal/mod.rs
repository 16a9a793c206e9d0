//! The promise on disk: [`Journal::append`] gives a [`Receipt`] only after the event is synced. What is published is read back from here.

use crate::normalize::{Event, EventId};

/// Proof that an event is synced to disk. Only [`Journal::append`] makes one.
#[must_use]
#[derive(Clone, Debug)]
pub struct Receipt {
    pub id: EventId,
    /// The very same request was accepted before; it is not forwarded again.
    pub duplicate: bool,
    _seal: (),
}

#[cfg(test)]
impl Receipt {
    /// For tests of what comes after a receipt.
    pub fn for_test(id: EventId, duplicate: bool) -> Self {
        Self { id, duplicate, _seal: () }
    }
}

/// Why an event could not be promised. Nothing is known of whether it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Pending and parked events fill `journal.size_max`, or the disk is down to `journal.free_min`.
    Full,
    /// The disk fails, or the journal is not open (yet).
    Disk,
    /// As many appends wait as may.
    QueueFull,
    ShuttingDown,
    /// The writer panicked on this event.
    Panic,
}

/// Whether the journal can take events now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Not opened yet.
    Opening,
    /// Pending and parked events fill it.
    Full,
    /// The disk fails; the text says how.
    Failing(String),
}

/// An event with its number in this journal.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sequence: u64,
    pub event: Event,
}

/// The handle by which everybody reaches the journal's writer thread. Cheap to clone.
#[derive(Clone)]
pub struct Journal {}

impl Journal {
    /// Keeps one event and returns once it is synced, or once the very same request that came before it is.
    pub async fn append(&self, _event: Event) -> Result<Receipt, AppendError> {
        todo!()
    }

    /// Whether events are accepted now, and why not.
    pub fn health(&self) -> Health {
        todo!()
    }
}
