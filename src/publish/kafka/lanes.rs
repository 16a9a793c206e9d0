//! Keeps a lane in order across a failure: what the output sends before it has heard of the failure is turned back, and what a broker refused is
//! tried again apart from the rest.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::publish::{Disposition, Record};

/// Numbers of suspects that a lane remembers: the window of an output. Forgetting them costs a producer each, no more.
const SUSPECTS_MAX: usize = 10_000;

/// The lanes that were sent to; as many as configuration names topics.
#[derive(Default)]
pub struct Lanes(HashMap<Arc<str>, Lane>);

#[derive(Default)]
struct Lane {
    /// The highest number that the output handed over, whatever became of it.
    highest: u64,
    /// A record failed, and the output has not begun again.
    closed: bool,
    /// A broker refused the topic, so that it is likely to refuse the next record too.
    refused: bool,
    /// Records that a broker refused, or others of their batch. Parked ones stay in it, until there are too many.
    suspects: BTreeSet<u64>,
    /// The record that tries the lane.
    probe: Option<u64>,
    /// What came after it and waits for what becomes of it; bounded by what the output lets be in flight.
    behind: VecDeque<Record>,
}

/// What to do with a record.
#[derive(Debug)]
pub enum Admission {
    Publish(Record),
    /// Publish it where a refusal stops nothing else.
    Probe(Record),
    /// It waits for the probe before it.
    Kept,
    TurnedBack(Record),
}

impl Lanes {
    /// Whether a record may be published now. After a failure, only from where the output goes back to an earlier record: a later one was
    /// sent before it read the report, and would overtake.
    ///
    /// An output that parks what failed goes on with a later record, which is turned back once and then let through.
    pub fn admit(&mut self, record: Record) -> Admission {
        let lane = match self.0.get_mut(&record.lane) {
            Some(known) => known,
            None => self.0.entry(Arc::clone(&record.lane)).or_default(),
        };
        let later = record.sequence > lane.highest;
        lane.highest = lane.highest.max(record.sequence);
        if lane.closed && later {
            return Admission::TurnedBack(record);
        }
        lane.closed = false;
        if lane.probe.is_some() {
            lane.behind.push_back(record);
            return Admission::Kept;
        }
        if lane.refused || lane.suspects.contains(&record.sequence) {
            lane.probe = Some(record.sequence);
            return Admission::Probe(record);
        }
        Admission::Publish(record)
    }

    pub fn is_closed(&self, lane: &str) -> bool {
        self.0.get(lane).is_some_and(|lane| lane.closed)
    }

    /// A record of this lane failed. Gives what waited behind it.
    pub fn close(&mut self, lane: &str) -> VecDeque<Record> {
        self.0.get_mut(lane).map(Lane::close).unwrap_or_default()
    }

    /// Records failed of which the lanes are not known any more. Gives what waited behind any.
    pub fn close_all(&mut self) -> VecDeque<Record> {
        self.0.values_mut().flat_map(Lane::close).collect()
    }

    /// A broker refused a record of this lane, as `disposition` says for its own sake or for its topic's, and that stopped the producer.
    pub fn suspect(&mut self, lane: &str, sequence: u64, disposition: Disposition) {
        let Some(lane) = self.0.get_mut(lane) else { return };
        if disposition != Disposition::Park {
            lane.refused = true;
            return;
        }
        if lane.suspects.len() >= SUSPECTS_MAX {
            lane.suspects.clear();
        }
        lane.suspects.insert(sequence);
    }

    /// The probe of a lane was delivered. Gives what waited behind it, to be admitted again.
    pub fn delivered(&mut self, lane: &str, sequence: u64) -> VecDeque<Record> {
        let Some(lane) = self.0.get_mut(lane).filter(|lane| lane.probe == Some(sequence)) else {
            return VecDeque::new();
        };
        lane.probe = None;
        lane.refused = false;
        lane.suspects.remove(&sequence);
        std::mem::take(&mut lane.behind)
    }
}

impl Lane {
    fn close(&mut self) -> VecDeque<Record> {
        self.closed = true;
        self.probe = None;
        std::mem::take(&mut self.behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn record(lane: &str, sequence: u64) -> Record {
        Record {
            sequence,
            lane: lane.into(),
            key: String::new(),
            content_type: "text/plain",
            headers: Vec::new(),
            id: String::new(),
            event_type: String::new(),
            received_at: Timestamp::default(),
            payload: Vec::new(),
        }
    }

    /// `p`ublished, `?` as a probe, `k`ept behind one, `t`urned back.
    fn admit(lanes: &mut Lanes, lane: &str, sequences: impl IntoIterator<Item = u64>) -> String {
        let admissions = sequences.into_iter().map(|sequence| lanes.admit(record(lane, sequence)));
        let letter = |admission| match admission {
            Admission::Publish(_) => 'p',
            Admission::Probe(_) => '?',
            Admission::Kept => 'k',
            Admission::TurnedBack(_) => 't',
        };
        admissions.map(letter).collect()
    }

    fn numbers(records: VecDeque<Record>) -> Vec<u64> {
        records.into_iter().map(|record| record.sequence).collect()
    }

    #[test]
    fn after_a_failure_a_lane_opens_only_where_the_output_goes_back() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "one", 1..=2), "pp");
        lanes.close("one");
        assert_eq!(admit(&mut lanes, "one", 3..=4), "tt", "sent before the failure was read");
        assert_eq!(admit(&mut lanes, "other", [5]), "p", "another lane goes on");
        assert_eq!(admit(&mut lanes, "one", 1..=6), "pppppp", "the output began again");
    }

    #[test]
    fn what_comes_after_a_parked_record_passes_at_the_second_try() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", [1]), "p");
        lanes.close("lane");
        assert_eq!(admit(&mut lanes, "lane", [2, 2, 3]), "tpp");
    }

    #[test]
    fn a_refused_topic_is_tried_with_one_record_and_the_rest_waits_for_it() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "ppp");
        lanes.suspect("lane", 1, Disposition::Hold);
        lanes.close("lane");
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "?kk");
        assert_eq!(numbers(lanes.close("lane")), [2, 3], "refused again");
        assert_eq!(admit(&mut lanes, "lane", 1..=4), "?kkk");
        assert!(lanes.delivered("lane", 9).is_empty(), "another one");
        assert_eq!(numbers(lanes.delivered("lane", 1)), [2, 3, 4]);
        assert_eq!(admit(&mut lanes, "lane", 2..=5), "pppp");
    }

    #[test]
    fn of_a_refused_batch_each_record_is_tried_apart_and_no_other() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", 1..=5), "ppppp");
        for suspect in [2, 4] {
            lanes.suspect("lane", suspect, Disposition::Park);
            lanes.close("lane");
        }
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "p?k");
        assert_eq!(numbers(lanes.delivered("lane", 2)), [3]);
        assert_eq!(admit(&mut lanes, "lane", 3..=5), "p?k");
        lanes.close("lane");
        assert_eq!(admit(&mut lanes, "lane", [5]), "p", "4 was parked");
    }
}
