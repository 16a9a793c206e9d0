//! Which events a command means, and how each of them stands at an output.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::inspect::{ApartEntry, Head};
use super::{OutputRow, Stored};
use crate::normalize::EventId;

/// What an event has to be to be meant; what is absent does not matter. As an order keeps it, in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub event: Option<String>,
    /// The subject: SIPSIM's id of the call.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub call: Option<String>,
    /// As [`EventId`] writes itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// Received at this moment or later, microseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<i64>,
    /// Received before this moment, microseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<State>,
    /// Sequences behind this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<u64>,
    /// Sequences up to this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub through: Option<u64>,
}

/// How an event stands at one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not published yet; held ones are pending too
    Pending,
    /// Waits for its topic to be mended, or stands behind one that does
    Held,
    /// Put aside, as the broker does not take it
    Parked,
    /// Confirmed by the broker
    Published,
    /// Given up on purpose
    Discarded,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Parked => "parked",
            Self::Published => "published",
            Self::Discarded => "discarded",
        }
    }

    /// `wanted` as a person means it: held events are pending.
    pub fn is(self, wanted: Self) -> bool {
        self == wanted || wanted == Self::Pending && self == Self::Held
    }
}

impl Selection {
    /// Whether this event is meant, whatever its state.
    pub fn takes(&self, head: &Head) -> bool {
        let at = head.received_at.as_micros();
        self.event.as_ref().is_none_or(|name| *name == head.name)
            && self.call.as_ref().is_none_or(|call| head.subject.as_ref() == Some(call))
            && self.id.as_ref().is_none_or(|id| *id == EventId(head.id).to_string())
            && self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at < until)
            && self.after.is_none_or(|after| head.sequence > after)
            && self.through.is_none_or(|through| head.sequence <= through)
    }

    /// Whether an event is meant of which nothing can be read, whatever its state: only where nothing is asked of it, for nobody can tell.
    pub fn takes_unread(&self) -> bool {
        self.event.is_none() && self.call.is_none() && self.id.is_none() && self.since.is_none() && self.until.is_none()
    }

    pub fn takes_state(&self, state: State) -> bool {
        self.state.is_none_or(|wanted| state.is(wanted))
    }
}

/// What stands apart among some events, for telling how each stands.
#[derive(Default)]
pub struct Standings {
    apart: HashMap<(u32, u64), ApartEntry>,
    given_up: HashSet<(u32, u64)>,
}

impl Standings {
    pub fn new(apart: Vec<ApartEntry>, given_up: Vec<(u32, u64)>) -> Self {
        let apart = apart.into_iter().filter(|row| row.state == "held" || row.state == "parked");
        Self {
            apart: apart.map(|row| ((row.output, row.sequence), row)).collect(),
            given_up: given_up.into_iter().collect(),
        }
    }

    /// How an event stands at an output; `None` if it was accepted while this output was not configured.
    pub fn of(&self, output: &OutputRow, sequence: u64) -> Option<State> {
        if let Some(row) = self.row(output, sequence) {
            return Some(if row.state == "held" { State::Held } else { State::Parked });
        }
        if self.given_up.contains(&(output.number, sequence)) {
            return Some(State::Discarded);
        }
        let owed = |span: &super::Span| span.after < sequence && span.through.is_none_or(|through| sequence <= through);
        if !output.spans.iter().any(owed) {
            return None;
        }
        Some(if sequence > output.cursor { State::Pending } else { State::Published })
    }

    /// Its row, if it is held or parked.
    pub fn row(&self, output: &OutputRow, sequence: u64) -> Option<&ApartEntry> {
        self.apart.get(&(output.number, sequence))
    }
}

impl From<&Stored> for Head {
    fn from(stored: &Stored) -> Self {
        let event = &stored.event;
        Self {
            sequence: stored.sequence,
            received_at: event.received_at,
            account: event.account.as_str().to_owned(),
            id: event.id.0,
            name: event.name.as_str().to_owned(),
            subject: event.subject.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Counts, Span};
    use super::*;
    use crate::clock::Timestamp;

    fn head() -> Head {
        Head {
            sequence: 7,
            received_at: Timestamp::from_seconds(100),
            account: "default".into(),
            id: [0x80; 16],
            name: "sms".into(),
            subject: Some("call_1".into()),
        }
    }

    #[test]
    fn a_selection_takes_what_fits_all_that_it_says() {
        let id = EventId([0x80; 16]).to_string();
        let check = |json: &str, takes: bool| {
            let selection: Selection = serde_json::from_str(json).unwrap();
            assert_eq!(selection.takes(&head()), takes, "{json}");
        };
        check("{}", true);
        check(r#"{"event":"sms","call":"call_1","since":100000000,"until":100000001}"#, true);
        check(&format!(r#"{{"id":"{id}"}}"#), true);
        check(r#"{"event":"tags"}"#, false);
        check(r#"{"event":"sms","call":"call_2"}"#, false);
        check(r#"{"since":100000001}"#, false);
        check(r#"{"until":100000000}"#, false);
        check(r#"{"id":"00000000-0000-0000-0000-000000000000"}"#, false);
    }

    #[test]
    fn an_event_stands_as_rows_spans_and_cursor_say() {
        let output = OutputRow {
            number: 1,
            name: "kafka".into(),
            cursor: 10,
            progress: 0,
            removed: false,
            routes: String::new(),
            counts: Counts::default(),
            spans: vec![Span { after: 4, through: Some(12) }, Span { after: 20, through: None }],
        };
        let apart = |state: &str, sequence| ApartEntry {
            output: 1,
            state: state.into(),
            lane: String::new(),
            sequence,
            since: Timestamp::default(),
            reason: None,
            attempts: 0,
            next_at: Timestamp::default(),
        };
        let standings =
            Standings::new(vec![apart("held", 6), apart("parked", 11), apart("replay", 7)], vec![(1, 8), (2, 9)]);
        let of = |sequence| standings.of(&output, sequence).map(State::as_str);
        let expected = [None, Some("published"), Some("held"), Some("published"), Some("discarded"), Some("published")];
        assert_eq!([4, 5, 6, 7, 8, 9].map(of), expected);
        assert_eq!(of(10), Some("published"), "the cursor's own");
        assert_eq!([11, 12, 13, 20, 21].map(of), [Some("parked"), Some("pending"), None, None, Some("pending")]);
        assert!(State::Held.is(State::Pending) && !State::Pending.is(State::Held));
    }
}
