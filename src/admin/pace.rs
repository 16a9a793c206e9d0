//! How fast things move, for people: samples of the last quarter of an hour, out of which the status page tells rates and when the journal is full.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_secs(5);
/// The journal's log grows and shrinks by megabytes within seconds; over a quarter of an hour that does not count.
const GROWTH_OVER: Duration = Duration::from_secs(15 * 60);
/// What a person calls "now".
const RATE_OVER: Duration = Duration::from_secs(60);
/// Two samples nearer than this tell nothing.
const SPAN_MIN: Duration = Duration::from_secs(4);
/// A quarter of an hour of them, and the one before it.
const SAMPLES_MAX: usize = (GROWTH_OVER.as_secs() / EVERY.as_secs()) as usize + 1;

/// Counts at one moment.
pub struct Sample {
    pub at: Instant,
    pub journal_bytes: i64,
    /// By output.
    pub published: BTreeMap<String, i64>,
    /// Rows written, over all accounts.
    pub accepted: u64,
}

/// The newest samples, oldest first.
#[derive(Default)]
pub struct Pace(Mutex<VecDeque<Sample>>);

impl Pace {
    pub fn note(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= SAMPLES_MAX {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Events a second that this output's broker confirmed within the last minute. `None` until that is known.
    pub fn published(&self, output: &str) -> Option<f64> {
        self.rate(RATE_OVER, |sample| sample.published.get(output).map(|count| *count as f64))
    }

    /// Events a second that were kept within the last minute. `None` until that is known.
    pub fn accepted(&self) -> Option<f64> {
        self.rate(RATE_OVER, |sample| Some(sample.accepted as f64))
    }

    /// Bytes a second by which the journal grew within the last quarter of an hour, or since the start if that is less; negative if it shrank.
    pub fn journal_growth(&self) -> Option<f64> {
        self.rate(GROWTH_OVER, |sample| Some(sample.journal_bytes as f64))
    }

    fn rate(&self, over: Duration, value: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = samples.back()?;
        let oldest = samples.iter().find(|sample| newest.at.duration_since(sample.at) <= over)?;
        let span = newest.at.duration_since(oldest.at);
        (span >= SPAN_MIN).then_some(())?;
        Some((value(newest)? - value(oldest)?) / span.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paced(minutes: u64) -> Pace {
        let (pace, start) = (Pace::default(), Instant::now());
        for second in (0..=minutes * 60).step_by(5) {
            let steady = second as i64;
            pace.note(Sample {
                at: start + Duration::from_secs(second),
                journal_bytes: 100 * steady,
                // Twice as fast in the last minute.
                published: BTreeMap::from([("kafka".into(), steady + (steady - minutes as i64 * 60 + 60).max(0))]),
                accepted: 3 * second,
            });
        }
        pace
    }

    #[test]
    fn rates_are_of_the_last_minute_and_growth_of_the_last_quarter_of_an_hour() {
        let pace = paced(20);
        assert_eq!(pace.published("kafka"), Some(2.0));
        assert_eq!(pace.accepted(), Some(3.0));
        assert_eq!(pace.journal_growth(), Some(100.0));
        assert_eq!(pace.published("rabbitmq"), None);
        assert_eq!(pace.0.lock().unwrap().len(), SAMPLES_MAX);
    }

    #[test]
    fn one_sample_tells_no_rate() {
        assert_eq!(paced(0).accepted(), None);
        assert_eq!(Pace::default().journal_growth(), None);
    }
}
