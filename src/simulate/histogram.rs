//! Latencies, counted in buckets that are at most 1 % wide: constant memory, however many there are.

use std::time::Duration;

/// Buckets to each doubling: 1/128 is the error.
const PARTS: u64 = 128;
const PARTS_BITS: u32 = PARTS.trailing_zeros();
/// Doublings above the exact first `PARTS` microseconds; the last ends at 2^32 µs, over an hour.
const DOUBLINGS: usize = 25;

/// How often which latency was seen, to 1 % (and to a microsecond).
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max_micros: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; PARTS as usize * (DOUBLINGS + 1)], total: 0, max_micros: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[bucket(micros).min(last)] += 1;
        self.total += 1;
        self.max_micros = self.max_micros.max(micros);
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max_micros = self.max_micros.max(other.max_micros);
    }

    /// The latency that this share of all did not exceed, rounded up to its bucket's end, never above `max`. `None` if there is none at all.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        let index = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_micros(end(index).min(self.max_micros)))
    }

    /// Exact.
    pub fn max(&self) -> Option<Duration> {
        (self.total > 0).then_some(Duration::from_micros(self.max_micros))
    }
}

fn bucket(micros: u64) -> usize {
    if micros < PARTS {
        return micros as usize;
    }
    let doubling = micros.ilog2() - PARTS_BITS;
    let part = (micros >> doubling) - PARTS;
    ((u64::from(doubling) + 1) * PARTS + part) as usize
}

/// The largest number of microseconds in a bucket.
fn end(index: usize) -> u64 {
    let (index, parts) = (index as u64, PARTS);
    if index < parts {
        return index;
    }
    let doubling = index / parts - 1;
    ((index % parts + parts + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_falls_in_a_bucket_that_ends_within_one_percent_above_it() {
        for micros in (0..100_000).chain((100_000..3_000_000_000).step_by(999_983)) {
            let end = end(bucket(micros));
            assert!(end >= micros && end - micros <= micros / 100, "{micros}: {end}");
            assert!(micros == 0 || bucket(micros) - bucket(micros - 1) <= 1, "{micros}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_numbers() {
        let (mut even, mut odd) = (Histogram::default(), Histogram::default());
        for micros in 1..=10_000 {
            if micros % 2 == 0 { &mut even } else { &mut odd }.record(Duration::from_micros(micros));
        }
        even.add(&odd);
        for (share, micros) in [(0.5, 5000), (0.99, 9900), (0.999, 9990), (0.0001, 1)] {
            let found = even.quantile(share).unwrap().as_micros() as i64;
            assert!((found - micros).abs() <= micros / 100, "{share}: {found}");
        }
        assert_eq!(even.max(), Some(Duration::from_micros(10_000)));
    }

    #[test]
    fn none_gives_none_and_an_age_is_not_lost() {
        assert_eq!((Histogram::default().quantile(0.5), Histogram::default().max()), (None, None));
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_secs(1_000_000));
        assert_eq!(histogram.max(), Some(Duration::from_secs(1_000_000)));
        assert!(histogram.quantile(0.5).unwrap() >= Duration::from_secs(3600));
    }
}
