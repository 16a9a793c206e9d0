//! So many requests a second: a thread that says when the next are due, and the senders that wait for its word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Between two looks at the clock: a runtime's own timers are no finer than a millisecond.
const LOOK_EVERY: Duration = Duration::from_micros(250);
/// For what is due and not yet sent when the time is up.
const LATE_MAX: Duration = Duration::from_secs(10);

/// What the senders share.
pub struct Pace {
    began: Instant,
    per_second: f64,
    /// One permit for each request that is due and that no sender has taken.
    due: Semaphore,
    taken: AtomicU64,
    ended: AtomicBool,
}

impl Pace {
    /// Waits until the next request is due, and says since when it is. `None` at the end.
    pub async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        Some(self.began + Duration::from_secs_f64(number as f64 / self.per_second))
    }
}

pub struct Pacer {
    pace: Arc<Pace>,
    thread: std::thread::JoinHandle<()>,
}

impl Pacer {
    pub fn start(per_second: f64) -> Self {
        let pace = Arc::new(Pace {
            began: Instant::now(),
            per_second,
            due: Semaphore::new(0),
            taken: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let shared = Arc::clone(&pace);
        let thread = std::thread::spawn(move || {
            let mut told = 0;
            while !shared.ended.load(Ordering::Relaxed) {
                let due = (shared.began.elapsed().as_secs_f64() * per_second) as u64;
                if due > told {
                    shared.due.add_permits((due - told) as usize);
                    told = due;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Self { pace, thread }
    }

    pub fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }

    /// No more is due. Waits until what was due is on its way, and gives how many never were.
    pub async fn finish(self) -> u64 {
        self.pace.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.join(); // Within a quarter of a millisecond.
        let until = Instant::now() + LATE_MAX;
        while self.pace.due.available_permits() > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let never = self.pace.due.available_permits() as u64;
        self.pace.due.close();
        never
    }
}
