//! Keeps a lane in order across a failure: what the output sends before it has heard of the failure is turned back.

use std::collections::HashMap;
use std::sync::Arc;

/// The lanes that were sent to; as many as configuration names topics.
#[derive(Default)]
pub struct Lanes(HashMap<Arc<str>, Lane>);

#[derive(Default)]
struct Lane {
    /// The highest number that the output handed over, whatever became of it.
    highest: u64,
    /// A record failed, and the output has not begun again.
    closed: bool,
}

impl Lanes {
    /// Whether a record may be published now. After a failure, only from where the output goes back to an earlier record: a later one was
    /// sent before it read the report, and would overtake.
    ///
    /// An output that parks what failed goes on with a later record, which is turned back once and then let through.
    pub fn admit(&mut self, lane: &Arc<str>, sequence: u64) -> bool {
        let lane = match self.0.get_mut(lane) {
            Some(known) => known,
            None => self.0.entry(Arc::clone(lane)).or_default(),
        };
        if lane.closed && sequence > lane.highest {
            lane.highest = sequence;
            return false;
        }
        lane.closed = false;
        lane.highest = lane.highest.max(sequence);
        true
    }

    pub fn is_closed(&self, lane: &str) -> bool {
        self.0.get(lane).is_some_and(|lane| lane.closed)
    }

    /// A record of this lane was reported as failed.
    pub fn close(&mut self, lane: &str) {
        if let Some(lane) = self.0.get_mut(lane) {
            lane.closed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_a_lane_opens_only_where_the_output_goes_back() {
        let mut lanes = Lanes::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        assert!(lanes.admit(&one, 1));
        assert!(lanes.admit(&one, 2));
        lanes.close("one");
        assert!(!lanes.admit(&one, 3), "sent before the failure was read");
        assert!(!lanes.admit(&one, 4));
        assert!(lanes.admit(&other, 5), "another lane goes on");
        assert!(lanes.admit(&one, 1), "the output begins again");
        for sequence in 2..6 {
            assert!(lanes.admit(&one, sequence));
        }
    }

    #[test]
    fn what_comes_after_a_parked_record_passes_at_the_second_try() {
        let mut lanes = Lanes::default();
        let lane: Arc<str> = "lane".into();
        assert!(lanes.admit(&lane, 1));
        lanes.close("lane");
        assert!(!lanes.admit(&lane, 2));
        lanes.close("lane");
        assert!(lanes.admit(&lane, 2));
        assert!(lanes.admit(&lane, 3));
    }
}
