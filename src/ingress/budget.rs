//! Memory for request bodies: a fixed number of bytes that all bodies share, so that no crowd of senders can fill the machine.
//!
//! Large bodies may together take only half of it, so that they never crowd out ordinary ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much of each body counts as ordinary. Every event in SIPSIM's documentation is below 2 KiB; only a transcript can be longer.
pub const ORDINARY_BYTES: usize = 16 * 1024;

/// `ingress.buffered_max`, and how much of it is taken.
pub struct Budget {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// What is past the first [`ORDINARY_BYTES`] of a body, at most half of `bytes_max`.
    large_bytes: AtomicUsize,
}

/// There is no room left. Nothing was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Exhausted;

impl Budget {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, bytes: AtomicUsize::new(0), large_bytes: AtomicUsize::new(0) })
    }

    /// Begins a body. It holds nothing yet.
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }

    /// Bytes in memory now.
    #[cfg(test)]
    pub fn taken(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// What one body holds of the budget; given back when dropped.
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    /// Takes room for `arrived` more bytes of this body.
    pub fn grow(&mut self, arrived: usize) -> Result<(), Exhausted> {
        let grown = self.bytes.checked_add(arrived).ok_or(Exhausted)?;
        let more_large = large_part(grown) - large_part(self.bytes);
        take(&self.budget.large_bytes, more_large, self.budget.bytes_max / 2)?;
        if let Err(exhausted) = take(&self.budget.bytes, arrived, self.budget.bytes_max) {
            self.budget.large_bytes.fetch_sub(more_large, Ordering::Relaxed);
            return Err(exhausted);
        }
        self.bytes = grown;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.large_bytes.fetch_sub(large_part(self.bytes), Ordering::Relaxed);
    }
}

fn large_part(bytes: usize) -> usize {
    bytes.saturating_sub(ORDINARY_BYTES)
}

fn take(counter: &AtomicUsize, more: usize, max: usize) -> Result<(), Exhausted> {
    if more == 0 {
        return Ok(());
    }
    let fits = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= max);
    // Relaxed: the number guards no other memory.
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(|_| ()).map_err(|_| Exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn what_a_body_took_is_given_back_when_it_goes() {
        let budget = Budget::new(64 * KIB);
        let mut body = budget.reserve();
        assert_eq!(body.grow(40 * KIB), Ok(()));
        assert_eq!(budget.taken(), 40 * KIB);
        drop(body);
        assert_eq!(budget.taken(), 0);
        assert_eq!(budget.large_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn large_bodies_take_half_and_ordinary_ones_still_find_room() {
        let budget = Budget::new(128 * KIB);
        let mut large = budget.reserve();
        assert_eq!(large.grow(16 * KIB + 64 * KIB), Ok(()), "half of the budget is for what is past 16 KiB");
        assert_eq!(large.grow(1), Err(Exhausted), "and no more than half");
        let mut ordinary = budget.reserve();
        assert_eq!(ordinary.grow(16 * KIB), Ok(()), "the other half is for ordinary bodies");
        assert_eq!(ordinary.grow(1), Err(Exhausted), "of which the 17th KiB is large");
    }

    #[test]
    fn a_refused_growth_takes_nothing() {
        let budget = Budget::new(40 * KIB);
        let mut body = budget.reserve();
        assert_eq!(body.grow(16 * KIB), Ok(()));
        assert_eq!(budget.reserve().grow(30 * KIB), Err(Exhausted));
        assert_eq!(budget.taken(), 16 * KIB);
        assert_eq!(budget.large_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_body_that_grows_in_steps_counts_as_one() {
        let budget = Budget::new(64 * KIB);
        let mut body = budget.reserve();
        for _ in 0..48 {
            assert_eq!(body.grow(KIB), Ok(()));
        }
        assert_eq!(body.grow(1), Err(Exhausted), "16 KiB and half of 64 KiB are taken");
    }
}
