//! Keeps a lane in order across a failure: what the output sends before it has heard of the failure is turned back, and what a broker refused is
//! tried again apart from the rest.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::publish::{Disposition, Record};

/// Numbers of suspects that a lane remembers: the window of an output. Forgetting them costs a producer each, no more.
const SUSPECTS_MAX: usize = 10_000;

/// The lanes that were sent to; as many as configuration names topics.
#[derive(Default)]
pub struct Lanes(HashMap<Arc<str>, Lane>);

#[derive(Default)]
struct Lane {
    /// After a failure, until the output begins again: every record that was given back to it since. Bounded by what it lets be in flight.
    handed_back: Option<HashSet<u64>>,
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
    Publish,
    /// Publish it where a refusal stops nothing else.
    Probe,
    /// It was taken, and waits for the probe before it.
    Kept,
    TurnedBack,
}

impl Lanes {
    /// Whether a record may be published now. After a failure, only once the output sends one again that was given back to it: until then it
    /// has not read the report, and what it sends would overtake. It sends none again before all are reported, and then the oldest first.
    ///
    /// An output that parks what failed goes on with a record that is new here, which is turned back once and then let through.
    pub fn admit(&mut self, record: &mut Record) -> Admission {
        let lane = match self.0.get_mut(&record.lane) {
            Some(known) => known,
            None => self.0.entry(Arc::clone(&record.lane)).or_default(),
        };
        if let Some(handed_back) = &mut lane.handed_back {
            if handed_back.insert(record.sequence) {
                return Admission::TurnedBack;
            }
            lane.handed_back = None;
        }
        if lane.probe.is_some() {
            lane.behind.push_back(std::mem::take(record));
            return Admission::Kept;
        }
        if lane.refused || lane.suspects.contains(&record.sequence) {
            lane.probe = Some(record.sequence);
            return Admission::Probe;
        }
        Admission::Publish
    }

    pub fn is_closed(&self, lane: &str) -> bool {
        self.0.get(lane).is_some_and(|lane| lane.handed_back.is_some())
    }

    /// This record of the lane failed. Gives what waited behind it.
    pub fn close(&mut self, lane: &str, sequence: u64) -> VecDeque<Record> {
        let behind = self.0.get_mut(lane).map(Lane::close).unwrap_or_default();
        self.hand_back(lane, sequence);
        behind
    }

    /// This record of a closed lane is given back to the output.
    pub fn hand_back(&mut self, lane: &str, sequence: u64) {
        if let Some(handed_back) = self.0.get_mut(lane).and_then(|lane| lane.handed_back.as_mut()) {
            handed_back.insert(sequence);
        }
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

    /// A record of the lane is apart from the others.
    pub fn is_probed(&self, lane: &str) -> bool {
        self.0.get(lane).is_some_and(|lane| lane.probe.is_some())
    }

    /// The broker says nothing of this lane's records, or hangs up at the oldest of them: that one is to be tried apart, whenever it comes again.
    pub fn set_apart(&mut self, lane: &str, oldest: u64) {
        self.suspect(lane, oldest, Disposition::Park);
        self.suspect(lane, oldest, Disposition::Hold);
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
        self.probe = None;
        let behind = std::mem::take(&mut self.behind);
        self.handed_back.get_or_insert_default().extend(behind.iter().map(|record| record.sequence));
        behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(lane: &str, sequence: u64) -> Record {
        Record { sequence, lane: lane.into(), ..Record::default() }
    }

    /// `p`ublished, `?` as a probe, `k`ept behind one, `t`urned back.
    fn admit(lanes: &mut Lanes, lane: &str, sequences: impl IntoIterator<Item = u64>) -> String {
        let admissions = sequences.into_iter().map(|sequence| lanes.admit(&mut record(lane, sequence)));
        let letter = |admission| match admission {
            Admission::Publish => 'p',
            Admission::Probe => '?',
            Admission::Kept => 'k',
            Admission::TurnedBack => 't',
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
        lanes.close("one", 1);
        assert_eq!(admit(&mut lanes, "one", 3..=4), "tt", "sent before the failure was read");
        assert_eq!(admit(&mut lanes, "other", [5]), "p", "another lane goes on");
        assert_eq!(admit(&mut lanes, "one", 1..=6), "pppppp", "the output began again");
    }

    #[test]
    fn a_second_failure_while_the_output_sends_again_turns_back_what_is_behind_it() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", 1..=6), "pppppp");
        for failed in 1..=6 {
            lanes.close("lane", failed);
        }
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "ppp");
        lanes.close("lane", 2);
        assert_eq!(admit(&mut lanes, "lane", 4..=6), "ttt", "sent before the second failure was read");
        assert_eq!(admit(&mut lanes, "lane", 2..=6), "ppppp");
    }

    #[test]
    fn what_comes_after_a_parked_record_passes_at_the_second_try() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", [1]), "p");
        lanes.close("lane", 1);
        assert_eq!(admit(&mut lanes, "lane", [2, 2, 3]), "tpp");
    }

    #[test]
    fn a_refused_topic_is_tried_with_one_record_and_the_rest_waits_for_it() {
        let mut lanes = Lanes::default();
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "ppp");
        lanes.suspect("lane", 1, Disposition::Hold);
        lanes.close("lane", 1);
        assert_eq!(admit(&mut lanes, "lane", 1..=3), "?kk");
        assert_eq!(numbers(lanes.close("lane", 1)), [2, 3], "refused again");
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
            lanes.close("lane", suspect);
        }
        assert_eq!(admit(&mut lanes, "lane", 2..=3), "?k");
        assert_eq!(numbers(lanes.delivered("lane", 2)), [3]);
        assert_eq!(admit(&mut lanes, "lane", 3..=5), "p?k");
        lanes.close("lane", 4);
        assert_eq!(admit(&mut lanes, "lane", [5]), "p", "4 was parked");
    }
}
