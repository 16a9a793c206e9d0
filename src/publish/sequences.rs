//! Maps and sets by an event's number. The numbers are the journal's own, one after the other, so a multiplication spreads them as well as the
//! standard hash, which guards against keys that somebody chose and showed in the profile.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

pub(super) type SequenceMap<V> = HashMap<u64, V, BuildHasherDefault<Spread>>;
pub(super) type SequenceSet = HashSet<u64, BuildHasherDefault<Spread>>;

#[derive(Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn write_u64(&mut self, number: u64) {
        // 2^64 over the golden ratio. The product's upper half is well mixed, and the map takes its place from the lower bits.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    /// For the trait: numbers come by `write_u64`.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_are_told_apart_by_the_bits_that_a_map_looks_at() {
        let hash = |number: u64| {
            let mut hasher = Spread::default();
            hasher.write_u64(number);
            hasher.finish()
        };
        let places: HashSet<u64> = (1..=4096).map(|number| hash(number) & 4095).collect();
        assert!(places.len() > 2048, "{} of 4096 places", places.len());
    }
}
