//! Calls as SIPSIM tells of them: which events, in which order, when. Nothing here is sent; see [`super::line`].
//!
//! The sequences are those of PROTOCOL §4.2. Every body is distinct, within a simulation and across simulations, since each has a seed and each
//! call a number.

mod bodies;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::normalize::Known;
use bodies::Call;

/// One event of a call: what happens, and how many seconds into the call.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: i64,
    beat: Beat,
}

/// What happens. Members are counted from 0.
#[derive(Clone, Copy, Debug)]
enum Beat {
    IncomingStart,
    Ring {
        member: usize,
    },
    RingEnd {
        member: usize,
        status: &'static str,
    },
    IncomingAnswer {
        member: usize,
    },
    IncomingEnd(Ending),
    OutgoingStart,
    OutgoingAnswer,
    OutgoingEnd(Ending),
    Voicemail {
        duration: u32,
    },
    /// All tags that are now on the call, as a JSON array.
    Tags(&'static str),
    Speech,
    Summary,
    Rating,
    Sms {
        direction: &'static str,
    },
    Test,
}

#[derive(Clone, Copy, Debug)]
struct Ending {
    status: &'static str,
    /// Seconds; 0 when nobody answered.
    duration: u32,
}

const fn step(at: i64, beat: Beat) -> Step {
    Step { at, beat }
}

const fn ending(status: &'static str, duration: u32) -> Ending {
    Ending { status, duration }
}

/// Each kind of call, once. Between them they have all fifteen events.
static KINDS: [&[Step]; 9] = [
    // The first member lets it ring, the second answers.
    &[
        step(0, Beat::IncomingStart),
        step(2, Beat::Ring { member: 0 }),
        step(14, Beat::RingEnd { member: 0, status: "noanswer" }),
        step(14, Beat::Ring { member: 1 }),
        step(19, Beat::IncomingAnswer { member: 1 }),
        step(304, Beat::IncomingEnd(ending("ANSWER", 285))),
        step(350, Beat::Tags(r#"["sales","follow-up"]"#)),
        step(352, Beat::Speech),
        step(358, Beat::Summary),
        step(361, Beat::Rating),
        step(400, Beat::Tags(r#"["sales","follow-up","vip"]"#)),
    ],
    // Two ring at once, nobody answers, the caller leaves a message.
    &[
        step(0, Beat::IncomingStart),
        step(2, Beat::Ring { member: 0 }),
        step(2, Beat::Ring { member: 1 }),
        step(30, Beat::RingEnd { member: 0, status: "noanswer" }),
        step(30, Beat::RingEnd { member: 1, status: "unavailable" }),
        step(30, Beat::IncomingEnd(ending("MISSED", 0))),
        step(60, Beat::Voicemail { duration: 15 }),
        step(68, Beat::Speech),
    ],
    // A phone rings, and the caller hangs up.
    &[
        step(0, Beat::IncomingStart),
        step(1, Beat::Ring { member: 0 }),
        step(9, Beat::RingEnd { member: 0, status: "cancel" }),
        step(9, Beat::IncomingEnd(ending("NOANSWER", 0))),
    ],
    &[
        step(0, Beat::IncomingStart),
        step(1, Beat::Ring { member: 0 }),
        step(2, Beat::RingEnd { member: 0, status: "busy" }),
        step(2, Beat::IncomingEnd(ending("BUSY", 0))),
    ],
    &[
        step(0, Beat::OutgoingStart),
        step(8, Beat::OutgoingAnswer),
        step(130, Beat::OutgoingEnd(ending("ANSWER", 122))),
        step(150, Beat::Tags("[]")), // The last tag was taken off.
        step(153, Beat::Speech),
        step(158, Beat::Summary),
        step(160, Beat::Rating),
    ],
    &[step(0, Beat::OutgoingStart), step(30, Beat::OutgoingEnd(ending("NOANSWER", 0)))],
    &[step(0, Beat::OutgoingStart), step(3, Beat::OutgoingEnd(ending("BUSY", 0)))],
    &[step(0, Beat::Sms { direction: "inbound" }), step(75, Beat::Sms { direction: "outbound" })],
    &[step(0, Beat::Test)],
];

impl Beat {
    const fn event(self) -> Known {
        match self {
            Self::IncomingStart => Known::IncomingCallStart,
            Self::Ring { .. } => Known::IncomingCallStartChainMemberCall,
            Self::RingEnd { .. } => Known::IncomingCallEndChainMemberCall,
            Self::IncomingAnswer { .. } => Known::IncomingCallAnswer,
            Self::IncomingEnd(_) => Known::IncomingCallEnd,
            Self::OutgoingStart => Known::OutgoingCallStart,
            Self::OutgoingAnswer => Known::OutgoingCallAnswer,
            Self::OutgoingEnd(_) => Known::OutgoingCallEnd,
            Self::Voicemail { .. } => Known::Voicemail,
            Self::Tags(_) => Known::Tags,
            Self::Speech => Known::Speech,
            Self::Summary => Known::Summary,
            Self::Rating => Known::Rating,
            Self::Sms { .. } => Known::Sms,
            Self::Test => Known::Test,
        }
    }
}

/// The first of all calls' events that has this name, by itself.
fn alone(event: Known) -> &'static [Step] {
    let places = KINDS.iter().flat_map(|steps| steps.chunks(1));
    places.into_iter().find(|step| step[0].beat.event() == event).unwrap_or(&[])
}

/// What to play.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Each kind of call once, then nothing more.
    EachKindOnce,
    /// All kinds of calls in turn, without end.
    Calls,
    /// This event alone, without end.
    Only(Known),
}

/// All calls of one simulation, shared by those who play them.
#[derive(Debug)]
pub struct Calls {
    plan: Plan,
    seed: u32,
    begun: AtomicU64,
}

impl Calls {
    /// Two simulations with different seeds have no body in common.
    pub fn new(plan: Plan, seed: u32) -> Arc<Self> {
        Arc::new(Self { plan, seed, begun: AtomicU64::new(0) })
    }

    /// Somebody who plays one call after the other, each whole and in order. Several players share the calls out among them.
    pub fn player(self: &Arc<Self>) -> Player {
        Player { calls: Arc::clone(self), call: Call::default(), steps: &[] }
    }

    /// The next call's number and its steps; `None` when all are begun.
    fn begin(&self) -> Option<(u64, &'static [Step])> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let kinds = KINDS.len() as u64;
        match self.plan {
            Plan::EachKindOnce if number >= kinds => None,
            Plan::EachKindOnce | Plan::Calls => Some((number, KINDS[(number % kinds) as usize])),
            Plan::Only(event) => Some((number, alone(event))),
        }
    }
}

/// Plays whole calls, one event at a time.
#[derive(Debug)]
pub struct Player {
    calls: Arc<Calls>,
    call: Call,
    steps: &'static [Step],
}

impl Player {
    /// Appends the next event's body to `body`. `now` is seconds since 1970: a call that begins now is told of as one whose last event is now.
    /// `None`, and nothing appended, when the plan is at its end.
    pub fn next(&mut self, now: i64, body: &mut Vec<u8>) -> Option<Known> {
        if self.steps.is_empty() {
            let (number, steps) = self.calls.begin()?;
            let length = steps.last().map_or(0, |step| step.at);
            self.call = Call { seed: self.calls.seed, number, began: now - length };
            self.steps = steps;
        }
        let (step, rest) = self.steps.split_first()?; // Every kind of call has an event, and every event has a call: see the tests.
        self.steps = rest;
        self.call.write(*step, body);
        Some(step.beat.event())
    }

    /// Whether the next event begins a call.
    pub fn is_between_calls(&self) -> bool {
        self.steps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::*;
    use serde_json::Value;

    const NOW: i64 = 1_736_937_000;

    fn play(plan: Plan, seed: u32, at_most: usize) -> Vec<(Known, Vec<u8>)> {
        let mut player = Calls::new(plan, seed).player();
        let mut events = Vec::new();
        let mut body = Vec::new();
        while events.len() < at_most {
            body.clear();
            match player.next(NOW, &mut body) {
                Some(event) => events.push((event, body.clone())),
                None => break,
            }
        }
        events
    }

    fn json(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(body)))
    }

    #[test]
    fn each_kind_of_call_once_has_all_fifteen_events_and_ends() {
        let events = play(Plan::EachKindOnce, 1, 1000);
        assert!(events.len() < 100);
        let names: BTreeSet<_> = events.iter().map(|(event, _)| event.as_str()).collect();
        assert_eq!(names.len(), Known::ALL.len());
    }

    #[test]
    fn every_body_is_distinct_also_from_those_of_another_simulation() {
        for plan in [Plan::Calls].into_iter().chain(Known::ALL.map(Plan::Only)) {
            let mut bodies = HashSet::new();
            // Past where the numbers of callers, lines and sentences come round together.
            let many = if plan == Plan::Only(Known::Sms) { 80_000 } else { 12_000 };
            for (event, body) in play(plan, 1, many) {
                assert!(bodies.insert(body.clone()), "{event:?} twice: {}", String::from_utf8_lossy(&body));
            }
        }
        let first: HashSet<_> = play(Plan::Calls, 1, 30_000).into_iter().map(|(_, body)| body).collect();
        assert!(play(Plan::Calls, 2, 30_000).iter().all(|(_, body)| !first.contains(body)));
    }

    /// The documented fields, in the documented order, with values of the documented types; see PROTOCOL §4.
    #[test]
    fn bodies_have_the_fields_of_the_documented_examples() {
        let mut covered = BTreeSet::new();
        for (event, body) in play(Plan::EachKindOnce, 7, 1000).into_iter().chain(play(Plan::Calls, 8, 500)) {
            let body = json(&body);
            let example = match (
                event,
                body.get("status").and_then(Value::as_str),
                body.get("direction").and_then(Value::as_str),
            ) {
                // No documented body exists: the common fields and a status.
                (Known::IncomingCallEndChainMemberCall, Some("noanswer" | "busy" | "cancel" | "unavailable"), _) => {
                    assert_eq!(
                        keys(&body),
                        BTreeSet::from(["event", "caller", "receiver", "time", "pbx_id", "status"])
                    );
                    continue;
                }
                (Known::IncomingCallEnd, Some("ANSWER"), _) => "incoming_call_end.answered",
                (Known::IncomingCallEnd, Some("MISSED" | "BUSY" | "NOANSWER"), _) => "incoming_call_end.missed",
                (Known::OutgoingCallEnd, Some("ANSWER"), _) => "outgoing_call_end.answered",
                (Known::OutgoingCallEnd, Some("BUSY" | "NOANSWER"), _) => "outgoing_call_end.unanswered",
                (Known::Sms, _, Some("inbound")) => "sms.inbound",
                (Known::Sms, _, Some("outbound")) => "sms.outbound",
                (Known::IncomingCallEnd | Known::OutgoingCallEnd | Known::Sms, ..) => panic!("{body}"),
                (other, ..) => other.as_str(),
            };
            let path = format!("{}/tests/payloads/{example}.json", env!("CARGO_MANIFEST_DIR"));
            same_shape(&json(&std::fs::read(path).unwrap()), &body, example);
            covered.insert(example.to_owned());
        }
        assert_eq!(covered.len(), 17, "{covered:?}"); // As many as there are documented examples.
    }

    fn keys(object: &Value) -> BTreeSet<&str> {
        object.as_object().unwrap().keys().map(String::as_str).collect()
    }

    fn same_shape(example: &Value, body: &Value, at: &str) {
        match (example, body) {
            (Value::Object(_), Value::Object(_)) => {
                assert_eq!(keys(example), keys(body), "{at}");
                for (key, value) in example.as_object().unwrap() {
                    same_shape(value, &body[key], &format!("{at}.{key}"));
                }
                if let Some(event) = example.get("event") {
                    assert_eq!(Some(event), body.get("event"), "{at}");
                }
            }
            (Value::Array(examples), Value::Array(values)) => {
                values.iter().for_each(|value| same_shape(&examples[0], value, at));
            }
            (Value::Number(a), Value::Number(b)) => assert_eq!(a.is_f64(), b.is_f64(), "{at}"),
            (a, b) => assert_eq!(std::mem::discriminant(a), std::mem::discriminant(b), "{at}: {b}"),
        }
    }

    #[test]
    fn the_keys_stand_in_the_documented_order() {
        let (_, body) = play(Plan::Only(Known::IncomingCallEnd), 1, 1).remove(0);
        let text = String::from_utf8(body).unwrap();
        let order = ["event", "caller", "receiver", "time", "pbx_id", "duration", "audio_path", "status"];
        let places = order.map(|key| text.find(&format!("\"{key}\":")).unwrap());
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn a_call_has_one_pbx_id_and_its_times_run_forward_to_now() {
        let events = play(Plan::EachKindOnce, 1, 11);
        let bodies: Vec<_> = events.iter().map(|(_, body)| json(body)).collect();
        let ids: BTreeSet<_> = bodies.iter().filter_map(|body| body["pbx_id"].as_str()).collect();
        assert_eq!(ids.len(), 1);
        let times: Vec<_> = bodies.iter().filter_map(|body| body["time"].as_str()).collect();
        assert!(times.is_sorted());
        assert_eq!(times.last(), Some(&"2025-01-15T10:30:00Z"));
    }

    #[test]
    fn players_share_the_calls_out_whole() {
        let calls = Calls::new(Plan::Calls, 1);
        let (mut one, mut other) = (calls.player(), calls.player());
        let mut pbx_ids = [HashSet::new(), HashSet::new()];
        for _ in 0..500 {
            for (player, seen) in [&mut one, &mut other].into_iter().zip(&mut pbx_ids) {
                let mut body = Vec::new();
                player.next(NOW, &mut body).unwrap();
                if let Some(id) = json(&body)["pbx_id"].as_str().filter(|id| *id != "test_000000") {
                    seen.insert(id.to_owned());
                }
            }
        }
        assert!(pbx_ids[0].is_disjoint(&pbx_ids[1]));
    }
}
