//! How often an output reads the journal: as it likes, and less often while requests go short of disk or processors.

use std::time::{Duration, Instant};

use crate::journal::Felt;

/// Of a read that is followed by a rest: small ones disturb less than a few large ones.
const EVENTS: usize = 128;
/// The first rest once requests go short, and the longest: from 12,800 events a second to 1,280, fewer where they are
/// larger than 16 KiB, since a read's bytes are bounded too. So many leave however long requests go short: answers go first, and a backlog waits in
/// the journal until they do not, or until its room is short.
const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(100);
/// Shorter ones are none: 128,000 events a second are more than a broker takes.
const SHORTEST: Duration = Duration::from_millis(1);
/// How often the rest may double: for so long the journal's word counts, and one word doubles it once.
const GROWS_EVERY: Duration = Duration::from_millis(150);
/// How often it may shrink by a third. What is taken up too fast takes the processors away again before that is told.
const SHRINKS_EVERY: Duration = Duration::from_millis(250);
/// The rest between two reads grows while requests go short, and shrinks slowly when they do not: so publishing takes what they leave.
pub(in crate::publish) struct Pace {
    read_at: Instant,
    rest: Duration,
    changed_at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { read_at: now, rest: Duration::ZERO, changed_at: now }
    }

    /// How many events may be read now, of at most so many, while requests go short or do not. Or else from when on.
    pub fn may_read(&mut self, now: Instant, pressure: Felt, events_max: usize) -> Result<usize, Instant> {
        let until = self.read_at + self.rest;
        if until > now && pressure != Felt::Hurry {
            return Err(until);
        }
        let rest = match pressure {
            Felt::Hurry => Duration::ZERO,
            Felt::Nothing => self.shrunk(now),
            Felt::Some => self.rest,
            Felt::Much => self.grown(now),
        };
        if rest != self.rest {
            (self.rest, self.changed_at) = (rest, now);
        }
        Ok(if self.rest.is_zero() { events_max } else { events_max.min(EVENTS) })
    }

    /// Some were read. Gives how long it rests now.
    pub fn has_read(&mut self, now: Instant) -> Duration {
        self.read_at = now;
        self.rest
    }

    fn grown(&self, now: Instant) -> Duration {
        let may_grow = self.rest.is_zero() || now.duration_since(self.changed_at) >= GROWS_EVERY;
        if may_grow { (self.rest * 2).clamp(FIRST, LONGEST) } else { self.rest }
    }

    fn shrunk(&self, now: Instant) -> Duration {
        let may_shrink = now.duration_since(self.changed_at) >= SHRINKS_EVERY;
        let shorter = if may_shrink { self.rest * 2 / 3 } else { self.rest };
        Some(shorter).filter(|rest| *rest >= SHORTEST).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Reads as often as it may for so long, and gives each length of its rests, in milliseconds, as it changes.
    fn rests(pace: &mut Pace, now: &mut Instant, pressure: Felt, length: Duration) -> Vec<u128> {
        let (mut rests, until) = (Vec::new(), *now + length);
        while *now < until {
            if let Err(until) = pace.may_read(*now, pressure, 512) {
                *now = until;
                continue;
            }
            rests.push(pace.has_read(*now).as_millis());
            *now += MILLISECOND;
        }
        rests.dedup();
        rests
    }

    #[test]
    fn it_rests_longer_while_requests_go_short_and_then_slowly_takes_up_its_pace_again() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut rests = |pressure, milliseconds| rests(&mut pace, &mut now, pressure, milliseconds * MILLISECOND);
        assert_eq!(rests(Felt::Nothing, 500), [0]);
        assert_eq!(rests(Felt::Some, 500), [0]);
        assert_eq!(rests(Felt::Much, 149), [10], "one word of the journal's counts once");
        assert_eq!(rests(Felt::Much, 600), [20, 40, 80, 100]);
        assert_eq!(rests(Felt::Some, 500), [100], "it is in time, and would not be with more beside it");
        assert_eq!(rests(Felt::Nothing, 200), [66]);
        assert_eq!(rests(Felt::Nothing, 4_000), [44, 29, 19, 13, 8, 5, 3, 2, 1, 0], "and then as it likes");
        rests(Felt::Much, 1_000);
        assert_eq!(rests(Felt::Hurry, 10), [0], "at once, where publishing goes first");
    }

    #[test]
    fn some_events_leave_however_long_requests_go_short() {
        let began = Instant::now();
        let (mut pace, mut now, mut read) = (Pace::new(began), began, 0);
        while now < began + Duration::from_secs(600) {
            match pace.may_read(now, Felt::Much, 512) {
                Ok(most) => {
                    read += most;
                    pace.has_read(now);
                }
                Err(until) => now = until,
            }
        }
        assert!((1_280..1_300).contains(&(read / 600)), "{read} in ten minutes");
    }

    #[test]
    fn reads_between_rests_are_small() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!([Felt::Nothing, Felt::Much].map(|pressure| pace.may_read(now, pressure, 512)), [Ok(512), Ok(128)]);
        assert_eq!(Pace::new(now).may_read(now, Felt::Much, 7), Ok(7), "no more than there is room for");
    }
}
