//! Which flights have news, in the order in which they got it.
//!
//! lapin completes confirms one after another on its own thread and wakes each one's waker before it completes the next. So whoever sees a
//! completed confirm finds those that completed before it in this list, and has seen them all once the list was found empty afterwards. That
//! is what [`super::window`] builds on, and why no ready-made collection of futures serves: those may pause with news left over.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Ready {
    /// Lane and tag. Bounded by what is in flight: a flight is woken twice, when it is written and when it is confirmed.
    woken: Mutex<Vec<(usize, u64)>>,
    notify: Notify,
}

struct Flag {
    lane: usize,
    tag: u64,
    ready: Arc<Ready>,
}

impl Ready {
    pub fn waker(self: &Arc<Self>, lane: usize, tag: u64) -> Waker {
        Waker::from(Arc::new(Flag { lane, tag, ready: self.clone() }))
    }

    /// Returns when there may be news.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Moves the news into `batch`, which has to be empty.
    pub fn take(&self, batch: &mut Vec<(usize, u64)>) {
        std::mem::swap(batch, &mut self.woken.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn add(&self, lane: usize, tag: u64) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.push((lane, tag));
        let first = woken.len() == 1;
        drop(woken);
        if first {
            self.notify.notify_one();
        }
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.ready.add(self.lane, self.tag);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.add(self.lane, self.tag);
    }
}
