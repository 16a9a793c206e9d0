//! How often an output reads the journal: as it likes, and less often while requests go short of disk or processors.

use std::time::{Duration, Instant};

/// Of a read that is followed by a rest: small ones disturb less than a few large ones.
const EVENTS: usize = 256;
/// The shortest rest between two reads, and the longest: from 25,000 events a second to 2,500.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_millis(100);
/// So long it rests in all: a burst of requests goes first. What lasts longer is how things stand, a neighbour on the machine perhaps, and then events
/// have to leave all the same.
const PATIENCE: Duration = Duration::from_secs(15);
/// The part of the time without need that is given back to the patience.
const RECOVERS: u32 = 4;

/// The rest between two reads doubles while requests go short, and shrinks by a third at each read when they do not, or have for long: so
/// publishing takes what they leave.
pub(in crate::publish) struct Pace {
    read_at: Instant,
    rest: Duration,
    /// Of the patience.
    spent: Duration,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { read_at: now, rest: Duration::ZERO, spent: Duration::ZERO }
    }

    /// When the journal may be read again, if not now.
    pub fn rests_until(&self, now: Instant) -> Option<Instant> {
        Some(self.read_at + self.rest).filter(|until| *until > now)
    }

    /// How long the rest is, or was, that goes before the next read.
    pub fn rest(&self) -> Duration {
        self.rest
    }

    /// It is read now, and requests go short or do not. Says how many events, of at most so many.
    pub fn read(&mut self, now: Instant, is_pressed: bool, events_max: usize) -> usize {
        let passed = now.duration_since(self.read_at);
        self.read_at = now;
        if !self.rest.is_zero() {
            self.spent += self.rest;
        } else if !is_pressed {
            self.spent = self.spent.saturating_sub(passed / RECOVERS);
        }
        self.rest = match self.rest {
            rest if is_pressed && self.spent < PATIENCE => (rest * 2).clamp(SHORTEST, LONGEST),
            rest => Some(rest * 2 / 3).filter(|rest| *rest >= SHORTEST).unwrap_or_default(),
        };
        if self.rest.is_zero() { events_max } else { events_max.min(EVENTS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_longer_while_requests_go_short_and_then_takes_up_its_pace_again() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut rests = |is_pressed: bool, times: usize| -> Vec<u64> {
            let mut all = Vec::new();
            for _ in 0..times {
                pace.read(now, is_pressed, 512);
                let until = pace.rests_until(now).unwrap_or(now);
                all.push((until - now).as_millis() as u64);
                now = until;
            }
            all
        };
        assert_eq!(rests(false, 2), [0, 0]);
        assert_eq!(rests(true, 6), [10, 20, 40, 80, 100, 100]);
        assert_eq!(rests(false, 7), [66, 44, 29, 19, 13, 0, 0], "and then as it likes");
    }

    #[test]
    fn it_does_not_rest_for_ever() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut rested_within = |is_pressed: bool, seconds: u64| {
            let (mut rested, until) = (Duration::ZERO, now + Duration::from_secs(seconds));
            while now < until {
                pace.read(now, is_pressed, 512);
                rested += pace.rest();
                now += pace.rest() + Duration::from_millis(1);
            }
            rested
        };
        let all = rested_within(true, 60);
        assert!(PATIENCE <= all && all < PATIENCE + Duration::from_secs(1), "{all:?}");
        assert_eq!(rested_within(true, 60), Duration::ZERO, "nor again, as long as it lasts");
        rested_within(false, 4 * PATIENCE.as_secs() + 4);
        assert!(rested_within(true, 60) >= PATIENCE, "but afterwards");
    }

    #[test]
    fn reads_between_rests_are_small() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!([false, true].map(|is_pressed| pace.read(now, is_pressed, 512)), [512, 256]);
        assert_eq!(pace.read(now, true, 7), 7, "no more than there is room for");
    }
}
