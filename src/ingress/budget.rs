//! Memory for request bodies: a fixed number of bytes that all bodies share, so that no crowd of senders can fill the machine.
//!
//! Large bodies may together take only half of it, so that they never crowd out ordinary ones. A quarter of either is for connections that
//! brought a new event, and where there is no room, the body that comes slowest gives way.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::{AddAssign, SubAssign};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::registry::{YOUNG, lock};

/// How much of each body counts as ordinary. Every event in SIPSIM's documentation is below 2 KiB; only a transcript can be longer.
pub const ORDINARY_BYTES: usize = 16 * 1024;
/// When bodies have to give way, this part of the budget is made free beyond what is needed, since finding the slowest looks at all of them.
const SPARE_PART: usize = 64;

/// A number of bytes, and how many of them are past the first [`ORDINARY_BYTES`] of their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    bytes: usize,
    large: usize,
}

impl Room {
    /// What one body takes.
    fn of(bytes: usize) -> Self {
        Self { bytes, large: bytes.saturating_sub(ORDINARY_BYTES) }
    }

    fn plus(self, more: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(more.bytes), large: self.large.saturating_add(more.large) }
    }
}

impl AddAssign for Room {
    fn add_assign(&mut self, more: Self) {
        *self = self.plus(more);
    }
}

impl SubAssign for Room {
    fn sub_assign(&mut self, less: Self) {
        *self = Self { bytes: self.bytes - less.bytes, large: self.large - less.large };
    }
}

/// `ingress.buffered_max`, and how much of it is taken.
pub struct Budget {
    max: Room,
    /// For connections that have proved nothing.
    strangers_max: Room,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    next_id: u64,
    all: Room,
    strangers: Room,
    /// Bodies that are not whole yet. Only they can give way: a whole one is about to be judged, or is in the journal's hands.
    reading: HashMap<u64, Reading>,
}

impl Taken {
    fn give_back(&mut self, room: Room, is_proved: bool) {
        self.all -= room;
        if !is_proved {
            self.strangers -= room;
        }
    }
}

struct Reading {
    began: Instant,
    bytes: usize,
    is_proved: bool,
    /// Told when it has to give way; it holds nothing then.
    gave_way: Arc<Notify>,
}

impl Reading {
    /// Smaller gives way earlier: strangers' before those of proved connections, then those that come slowest. What has just begun goes last, the
    /// oldest first: its rate tells more of how busy this machine is than of its sender.
    fn order(&self, now: Instant) -> (bool, bool, f64) {
        let age = now.duration_since(self.began);
        let is_young = age < YOUNG;
        let speed = if is_young { -age.as_secs_f64() } else { self.bytes as f64 / age.as_secs_f64() };
        (self.is_proved, is_young, speed)
    }
}

/// There is no room left. Nothing was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Budget {
    /// `body_max` is at most half of `bytes_max`: one body of that size finds room on any connection while nothing else is there.
    pub fn new(bytes_max: usize, body_max: usize) -> Arc<Self> {
        let max = Room { bytes: bytes_max, large: bytes_max / 2 };
        let strangers_max =
            Room { bytes: max.bytes - max.bytes / 4, large: (max.large - max.large / 4).max(body_max.min(max.large)) };
        Arc::new(Self { max, strangers_max, taken: Mutex::default() })
    }

    /// Begins a body of a connection that is proved or not. It holds nothing yet.
    pub fn reserve(self: &Arc<Self>, is_proved: bool) -> Reservation {
        let gave_way = Arc::new(Notify::new());
        let mut taken = lock(&self.taken);
        taken.next_id += 1;
        let id = taken.next_id;
        let reading = Reading { began: Instant::now(), bytes: 0, is_proved, gave_way: Arc::clone(&gave_way) };
        taken.reading.insert(id, reading);
        drop(taken);
        Reservation { budget: Arc::clone(self), id, is_proved, bytes: 0, gave_way, is_whole: false }
    }

    fn is_within(&self, all: Room, strangers: Room, is_proved: bool) -> bool {
        let fits = |room: Room, max: Room| room.bytes <= max.bytes && room.large <= max.large;
        fits(all, self.max) && (is_proved || fits(strangers, self.strangers_max))
    }

    /// Has the slowest bodies give way until `more` fits for the body `id`. False if that is the slowest itself, or if it would not help.
    fn make_room(&self, taken: &mut Taken, id: u64, is_proved: bool, more: Room) -> bool {
        let now = Instant::now();
        // Strangers' bodies go first, and never one of a proved connection for a stranger's.
        let may_go = |reading: &Reading| reading.bytes > 0 && (is_proved || !reading.is_proved);
        let readings = taken.reading.iter().filter(|(_, reading)| may_go(reading));
        let mut slowest: Vec<_> = readings.map(|(id, reading)| (reading.order(now), *id, reading.bytes)).collect();
        slowest.sort_unstable_by(|a, b| a.0.partial_cmp(&b.0).unwrap_or(Ordering::Equal));
        let spare = Room { bytes: self.max.bytes / SPARE_PART, large: self.max.large / SPARE_PART };
        let (mut all, mut strangers) = (taken.all.plus(more), taken.strangers.plus(more));
        let mut going = Vec::new();
        for ((other_is_proved, is_young, _), other, bytes) in slowest {
            // What has just begun gives way for what is needed, and not for the spare.
            let spare = if is_young { Room::default() } else { spare };
            if self.is_within(all.plus(spare), strangers.plus(spare), is_proved) {
                break;
            }
            if other == id {
                if is_young {
                    continue; // It comes as fast as the others that have just begun.
                }
                break;
            }
            let room = Room::of(bytes);
            let large_is_short = !self.is_within(
                Room { bytes: 0, ..all.plus(spare) },
                Room { bytes: 0, ..strangers.plus(spare) },
                is_proved,
            );
            if large_is_short && room.large == 0 {
                continue;
            }
            all -= room;
            if !other_is_proved {
                strangers -= room;
            }
            going.push(other);
        }
        if !self.is_within(all, strangers, is_proved) {
            return false;
        }
        for reading in going.iter().filter_map(|id| taken.reading.remove(id)).collect::<Vec<_>>() {
            taken.give_back(Room::of(reading.bytes), reading.is_proved);
            reading.gave_way.notify_one();
        }
        true
    }

    /// Bytes in memory now.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        lock(&self.taken).all.bytes
    }
}

/// What one body holds of the budget; given back when dropped, or when it has to give way.
pub struct Reservation {
    budget: Arc<Budget>,
    id: u64,
    is_proved: bool,
    bytes: usize,
    gave_way: Arc<Notify>,
    is_whole: bool,
}

impl Reservation {
    /// Takes room for `arrived` more bytes of this body.
    pub fn grow(&mut self, arrived: usize) -> Result<(), Exhausted> {
        let grown = self.bytes.checked_add(arrived).ok_or(Exhausted)?;
        let mut more = Room::of(grown);
        more -= Room::of(self.bytes);
        let mut taken = lock(&self.budget.taken);
        if !taken.reading.contains_key(&self.id) {
            return Err(Exhausted); // It gave way.
        }
        let (all, strangers) = (taken.all.plus(more), taken.strangers.plus(more));
        if !self.budget.is_within(all, strangers, self.is_proved)
            && !self.budget.make_room(&mut taken, self.id, self.is_proved, more)
        {
            return Err(Exhausted);
        }
        taken.all += more;
        if !self.is_proved {
            taken.strangers += more;
        }
        if let Some(reading) = taken.reading.get_mut(&self.id) {
            reading.bytes = grown;
        }
        self.bytes = grown;
        Ok(())
    }

    /// The body is whole: it no longer gives way. Fails if it had to before.
    pub fn finish(&mut self) -> Result<(), Exhausted> {
        let reading = lock(&self.budget.taken).reading.remove(&self.id);
        self.is_whole = reading.is_some();
        if self.is_whole { Ok(()) } else { Err(Exhausted) }
    }

    /// Whether half of what strangers' bodies may take is taken, by whomever.
    pub fn is_short(&self) -> bool {
        let (all, max) = (lock(&self.budget.taken).all, self.budget.strangers_max);
        all.bytes > max.bytes / 2 || all.large > max.large / 2
    }

    /// Returns once the body has to give way to others.
    pub async fn gave_way(&self) {
        self.gave_way.notified().await;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut taken = lock(&self.budget.taken);
        let is_reading = taken.reading.remove(&self.id).is_some();
        if is_reading || self.is_whole {
            taken.give_back(Room::of(self.bytes), self.is_proved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    fn budget(bytes_max: usize) -> Arc<Budget> {
        Budget::new(bytes_max, bytes_max / 2)
    }

    #[test]
    fn what_a_body_took_is_given_back_when_it_goes() {
        let budget = budget(64 * KIB);
        for is_proved in [false, true] {
            let mut body = budget.reserve(is_proved);
            assert_eq!(body.grow(40 * KIB), Ok(()));
            assert_eq!(budget.taken(), 40 * KIB);
            assert_eq!(body.finish(), Ok(()));
            assert_eq!(budget.taken(), 40 * KIB, "a whole one is still there");
            drop(body);
            let taken = lock(&budget.taken);
            assert_eq!((taken.all, taken.strangers, taken.reading.len()), (Room::default(), Room::default(), 0));
        }
    }

    #[test]
    fn large_bodies_take_half_and_ordinary_ones_still_find_room() {
        let budget = budget(128 * KIB);
        let mut large = budget.reserve(true);
        assert_eq!(large.grow(16 * KIB + 64 * KIB), Ok(()), "half of the budget is for what is past 16 KiB");
        assert_eq!(large.grow(1), Err(Exhausted), "and no more than half");
        assert_eq!(large.finish(), Ok(()));
        let mut ordinary = budget.reserve(true);
        assert_eq!(ordinary.grow(16 * KIB), Ok(()), "the other half is for ordinary bodies");
        assert_eq!(ordinary.grow(1), Err(Exhausted), "of which the 17th KiB is large");
    }

    #[test]
    fn a_refused_growth_takes_nothing() {
        let budget = budget(40 * KIB);
        let mut body = budget.reserve(true);
        assert_eq!(body.grow(16 * KIB), Ok(()));
        assert_eq!(body.finish(), Ok(()));
        assert_eq!(budget.reserve(true).grow(30 * KIB), Err(Exhausted));
        assert_eq!(lock(&budget.taken).all, Room { bytes: 16 * KIB, large: 0 });
    }

    #[test]
    fn a_body_that_grows_in_steps_counts_as_one() {
        let budget = budget(64 * KIB);
        let mut body = budget.reserve(true);
        for _ in 0..48 {
            assert_eq!(body.grow(KIB), Ok(()));
        }
        assert_eq!(body.grow(1), Err(Exhausted), "16 KiB and half of 64 KiB are taken");
    }

    #[test]
    fn a_quarter_is_for_proved_connections() {
        let budget = Budget::new(128 * KIB, 32 * KIB);
        let whole = |is_proved, bytes| {
            let mut body = budget.reserve(is_proved);
            body.grow(bytes).and_then(|()| body.finish()).map(|()| body)
        };
        let strangers: Vec<_> = (0..8).map_while(|_| whole(false, 16 * KIB).ok()).collect();
        assert_eq!(strangers.len(), 6, "three quarters of 128 KiB");
        let proved: Vec<_> = (0..8).map_while(|_| whole(true, 16 * KIB).ok()).collect();
        assert_eq!(proved.len(), 2);
        drop((strangers, proved));
        assert_eq!(whole(false, 16 * KIB + 48 * KIB).map(drop), Ok(()), "three quarters of the large half");
        assert_eq!(whole(false, 16 * KIB + 48 * KIB + 1).map(drop), Err(Exhausted));
    }

    #[tokio::test]
    async fn the_slowest_body_gives_way_a_strangers_first_and_never_a_whole_one() {
        let budget = budget(128 * KIB);
        let begin_with = |is_proved, bytes| {
            let mut body = budget.reserve(is_proved);
            assert_eq!(body.grow(bytes), Ok(()));
            body
        };
        let begin = |is_proved| begin_with(is_proved, 16 * KIB);
        let older = || {
            let mut taken = lock(&budget.taken);
            taken.reading.values_mut().for_each(|reading| reading.began -= YOUNG * 2);
        };
        let mut whole = begin(false);
        assert_eq!(whole.finish(), Ok(()));
        let slow_proved = begin(true);
        older();
        let mut slowest = begin(false);
        older();
        let mut others: Vec<_> = (0..4).map(|_| begin(false)).collect(); // Strangers have their 96 KiB now.
        older();
        let mut newcomer = begin_with(false, 14 * KIB); // And 2 KiB more are made free.
        slowest.gave_way().await;
        assert_eq!(slowest.grow(1), Err(Exhausted));
        assert_eq!(slowest.finish(), Err(Exhausted));
        drop(slowest);
        assert_eq!(budget.taken(), 110 * KIB, "what gave way is not given back twice");
        assert_eq!(others[0].grow(3 * KIB), Err(Exhausted), "one of the slowest does not push out a faster one");
        assert_eq!(newcomer.finish(), Ok(()));
        let _proved = begin(true);
        let mut second = begin(true);
        assert_eq!(others.iter_mut().filter_map(|body| body.finish().err()).count(), 1, "a stranger's, of 128 KiB");
        assert_eq!(second.finish(), Ok(()));
        let _third = begin(true);
        slow_proved.gave_way().await; // There is no stranger's body that is not whole.
    }
}
