//! Whether requests go short of disk or processors. The writer finds out, and outputs ask: their work can wait, and a broker that gets less leaves
//! more of a machine that both share.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request that waited so long for its receipt, a tenth of the two seconds that it has, shows that processors or disk are short, also where a
/// sync takes some ten milliseconds.
const LONG: Duration = Duration::from_millis(200);
/// The part of the time in which the writer, through whose hands every request goes, was ready to run and got no processor. On two processors that
/// relay and load share, it is 0.1 to 0.2 while all is answered in milliseconds, and over 0.5 once requests queue up (docs/performance.md).
const SOME: f64 = 0.3;
const MUCH: f64 = 0.5;
/// Requests that wait for the journal, or for a processor after it, on average: with fewer that is no matter, since none waits long. And where
/// few senders send as fast as they are answered, processors are always short, and a backlog would never end.
const MANY: usize = 16;
/// The least time over which that is told. Over 20 ms a single read of an output's, and what the broker makes of it, would show already.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For how long it is believed: a little longer than to the next look.
const FOR: Duration = Duration::from_millis(150);

/// How short requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Felt {
    /// They are not to be spared: room is short, and comes back by publishing.
    Hurry,
    Nothing,
    /// They are answered in time, and would not be with much more beside them.
    Some,
    Much,
}

/// How short requests went when that was last told.
#[derive(Default)]
pub(super) struct Pressure(Mutex<Option<(Instant, Felt)>>);

impl Pressure {
    pub fn felt(&self) -> Felt {
        let told = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.filter(|(at, _)| at.elapsed() < FOR).map_or(Felt::Nothing, |(_, felt)| felt)
    }

    fn set(&self, at: Instant, felt: Felt) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, felt));
    }

    #[cfg(test)]
    pub fn feel_for_test(&self) {
        self.set(Instant::now() + FOR * 600, Felt::Much);
    }
}

/// The writer's, on its own thread.
pub(super) struct Gauge {
    turns: Option<Turns>,
    /// Since the last look at those.
    commits: usize,
    /// The sum of how many requests were under way at each.
    under_way: usize,
}

/// What Linux counts of a thread: how long it was ready to run and did not. Elsewhere only the requests' own waiting tells.
struct Turns {
    file: File,
    looked_at: Instant,
    waited: Duration,
}

impl Gauge {
    /// For the thread that calls this.
    pub fn new() -> Self {
        let turns = || {
            let file = File::open("/proc/thread-self/schedstat").ok()?;
            let waited = waited(&file)?;
            Some(Turns { file, looked_at: Instant::now(), waited })
        };
        Self { turns: turns(), commits: 0, under_way: 0 }
    }

    /// After a commit whose first request has waited since `oldest`, with so many under way.
    pub fn look(&mut self, oldest: Instant, under_way: usize, room_is_short: bool, pressure: &Pressure) {
        (self.commits, self.under_way) = (self.commits + 1, self.under_way + under_way);
        let part = self.turns.as_mut().and_then(Turns::part_without);
        let are_many = self.under_way >= MANY * self.commits;
        if part.is_some() {
            (self.commits, self.under_way) = (0, 0);
        }
        let felt = match part {
            _ if room_is_short => Felt::Hurry,
            _ if oldest.elapsed() >= LONG => Felt::Much,
            Some(part) if are_many && part >= MUCH => Felt::Much,
            Some(part) if are_many && part >= SOME => Felt::Some,
            Some(_) | None => return,
        };
        pressure.set(Instant::now(), felt);
    }
}

impl Turns {
    /// The part of the time since the last look, if that is long enough ago to tell.
    fn part_without(&mut self) -> Option<f64> {
        let passed = self.looked_at.elapsed();
        if passed < LOOK_EVERY {
            return None;
        }
        let waited = waited(&self.file)?;
        let part = waited.saturating_sub(self.waited).as_secs_f64() / passed.as_secs_f64();
        (self.looked_at, self.waited) = (Instant::now(), waited);
        Some(part)
    }
}

/// The second of three numbers, nanoseconds: <https://docs.kernel.org/scheduler/sched-stats.html>.
fn waited(file: &File) -> Option<Duration> {
    let mut text = [0; 64];
    let length = file.read_at(&mut text, 0).ok()?;
    let nanoseconds = str::from_utf8(&text[..length]).ok()?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn requests_go_short_where_processors_do_and_many_are_under_way() {
        let done = AtomicBool::new(false);
        let others = 4 * std::thread::available_parallelism().unwrap().get();
        std::thread::scope(|scope| {
            let (mut with_few, pressure_with_few) = (Gauge::new(), Pressure::default());
            let (mut gauge, pressure) = (Gauge::new(), Pressure::default());
            if gauge.turns.is_none() {
                return eprintln!("skipped: this kernel does not say how long a thread waits");
            }
            for _ in 0..others {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let until = Instant::now() + Duration::from_secs(30);
            while pressure.felt() != Felt::Much && Instant::now() < until {
                with_few.look(until, MANY - 1, false, &pressure_with_few); // Always looks before the other does.
                gauge.look(until, MANY, false, &pressure);
            }
            done.store(true, Ordering::Relaxed);
            assert!(Instant::now() < until, "it waited {:?} in all", gauge.turns.map(|turns| turns.waited));
            assert_eq!(pressure_with_few.felt(), Felt::Nothing);
        });
    }

    #[test]
    fn a_request_that_waits_long_shows_it_alone_unless_room_is_short() {
        let felt = |oldest, room_is_short| {
            let (mut gauge, pressure) = (Gauge::new(), Pressure::default());
            gauge.look(oldest, 1, room_is_short, &pressure);
            pressure.felt()
        };
        let now = Instant::now();
        assert_eq!(felt(now + LONG, false), Felt::Nothing);
        assert_eq!(felt(now - LONG, false), Felt::Much);
        assert_eq!(felt(now - LONG, true), Felt::Hurry);
    }
}
