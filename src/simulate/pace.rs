//! When each event is sent: on a fixed schedule that waits for no answer, or as soon as a connection is free.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// The schedule that all connections take their turns from.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    /// Events a second.
    rate: Option<f64>,
    count: Option<u64>,
    end: Option<Instant>,
    taken: AtomicU64,
}

/// Leave to send one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What its latency counts from. On a schedule that is its time there, so that a slow answer also shows on those that had to wait for it.
    pub since: Instant,
    /// How long after its time on the schedule it begins, for want of a free connection.
    pub late_by: Duration,
}

impl Pace {
    /// Begins now. Without a rate, turns come at once; without a count or duration, without end.
    pub fn new(rate: Option<f64>, count: Option<u64>, duration: Option<Duration>) -> Self {
        let begun = Instant::now();
        // A duration beyond what an Instant holds is without end.
        let end = duration.and_then(|duration| begun.checked_add(duration));
        Self { begun, rate, count, end, taken: AtomicU64::new(0) }
    }

    pub fn begun(&self) -> Instant {
        self.begun
    }

    /// The next turn, when it has come; `None` at the end. A turn that is waited for and given up (dropped) is not taken by anyone else.
    pub async fn turn(&self) -> Option<Turn> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if self.count.is_some_and(|count| number >= count) {
            return None;
        }
        let now = Instant::now();
        let Some(rate) = self.rate else {
            return self.before_end(now).then_some(Turn { since: now, late_by: Duration::ZERO });
        };
        let scheduled = self.begun + Duration::try_from_secs_f64(number as f64 / rate).ok()?;
        if !self.before_end(scheduled) {
            return None;
        }
        if scheduled <= now {
            return Some(Turn { since: scheduled, late_by: now - scheduled });
        }
        sleep_until(scheduled).await;
        // The timer's own millisecond is not the target's.
        Some(Turn { since: Instant::now(), late_by: Duration::ZERO })
    }

    fn before_end(&self, moment: Instant) -> bool {
        self.end.is_none_or(|end| moment < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_count_ends_it() {
        let pace = Pace::new(None, Some(2), None);
        assert!(pace.turn().await.is_some() && pace.turn().await.is_some());
        assert_eq!(pace.turn().await, None);
    }

    #[tokio::test]
    async fn a_duration_ends_it() {
        let pace = Pace::new(Some(100.0), None, Some(Duration::from_millis(95)));
        let mut turns = 0;
        while pace.turn().await.is_some() {
            turns += 1;
        }
        assert_eq!(turns, 10);
        assert!((85..2000).contains(&pace.begun().elapsed().as_millis()));
        let pace = Pace::new(None, None, Some(Duration::from_nanos(1)));
        sleep_until(pace.begun() + Duration::from_millis(1)).await;
        assert_eq!(pace.turn().await, None);
    }

    #[tokio::test]
    async fn a_schedule_does_not_wait_for_answers() {
        let pace = Pace::new(Some(1000.0), None, None);
        sleep_until(pace.begun() + Duration::from_millis(20)).await; // As if the first answer took so long.
        for number in 0..10 {
            let turn = pace.turn().await.unwrap();
            assert_eq!(turn.since, pace.begun() + Duration::from_millis(number));
            assert!(turn.late_by >= Duration::from_millis(10));
        }
    }
}
