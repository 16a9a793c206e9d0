//! The judge outside the process under test: what was answered 2xx, beside what lies in every topic and queue in the end.
//!
//! Bodies carry the oracle's own numbers: which client sent it on its one connection, and as which of its requests. So what arrives
//! can be compared to the byte, and its order with the order of the answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::Sent;

/// Kinds of events that [`body`] makes; each has a topic of its own under a template with `{event}`.
pub const KINDS: [&str; 3] = ["tags", "incoming_call_start", "outgoing_call_end"];
/// Calls, and so keys, that each client mixes.
const KEYS: usize = 4;

/// The body of a client's request: its kind and key go round, so that neighbours go to different topics and partitions.
pub fn body(client: usize, number: usize) -> String {
    body_of(KINDS[number % KINDS.len()], client, number)
}

/// The same of one kind.
pub fn body_of(kind: &str, client: usize, number: usize) -> String {
    let key = number / KINDS.len() % KEYS;
    format!(r#"{{"event":"{kind}","pbx_id":"call_{client}_{key}",  "oracle":[{client},{number}]}}"#)
}

/// One envelope as it lay in a topic or queue.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// Topic and partition, or queue: within one of them the order is the broker's.
    pub place: String,
    pub payload: String,
}

/// What came of all that was sent.
#[derive(Debug, Default)]
pub struct Verdict {
    pub accepted: usize,
    /// Distinct events.
    pub delivered: usize,
    /// Answered 2xx and nowhere.
    pub lost: Vec<String>,
    /// The data are not what was sent, or the id is not the one that was answered.
    pub altered: Vec<String>,
    /// Nobody sent it.
    pub invented: Vec<String>,
    /// First deliveries of one client's key in one place that came in another order than they were sent.
    pub reordered: Vec<String>,
    pub duplicates: usize,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, delivered, duplicates, .. } = self;
        write!(f, "accepted {accepted}, delivered {delivered}, duplicates {duplicates}")?;
        for (what, those) in [
            ("lost", &self.lost),
            ("altered", &self.altered),
            ("invented", &self.invented),
            ("reordered", &self.reordered),
        ] {
            write!(f, ", {what} {}", those.len())?;
            if let Some(first) = those.first() {
                write!(f, " (the first: {first})")?;
            }
        }
        Ok(())
    }
}

impl Verdict {
    /// Panics, with all of it, unless everything accepted arrived, unaltered and in order, with no more duplicates than that.
    pub fn assert_kept(&self, duplicates_max: usize) {
        eprintln!("the oracle: {self}");
        assert!(
            self.lost.is_empty() && self.altered.is_empty() && self.invented.is_empty() && self.reordered.is_empty(),
            "{self}"
        );
        assert!(self.duplicates <= duplicates_max, "more than {duplicates_max} duplicates: {self}");
    }
}

/// Compares. `arrived` is everything of one output, each place's in its order.
pub fn judge(sent: &[Sent], arrived: &[Arrived]) -> Verdict {
    let by_body: HashMap<&str, &Sent> = sent.iter().map(|one| (one.body.as_str(), one)).collect();
    assert_eq!(by_body.len(), sent.len(), "the oracle's own bodies differ");
    let mut verdict = Verdict { accepted: sent.iter().filter(|one| one.is_accepted()).count(), ..Verdict::default() };
    let mut seen: HashSet<&str> = HashSet::new();
    let mut last: BTreeMap<(&str, u64, String), u64> = BTreeMap::new();
    for one in arrived {
        let Some(data) = data(&one.payload) else {
            verdict.altered.push(format!("{}: {}", one.place, one.payload));
            continue;
        };
        let Some((body, one_sent)) = by_body.get_key_value(data) else {
            // Somebody's number with another text is an alteration; no number at all is an invention.
            let known = serde_json::from_str::<serde_json::Value>(data).is_ok_and(|value| value["oracle"].is_array());
            let list = if known { &mut verdict.altered } else { &mut verdict.invented };
            list.push(format!("{}: {data}", one.place));
            continue;
        };
        let envelope: serde_json::Value = serde_json::from_str(&one.payload).expect("it has data, so it is JSON");
        if let Some(id) = &one_sent.id
            && envelope["id"] != id.as_str()
        {
            verdict.altered.push(format!("{}: {data} has id {}, answered was {id}", one.place, envelope["id"]));
        }
        if !seen.insert(body) {
            verdict.duplicates += 1;
            continue;
        }
        let client = envelope["data"]["oracle"][0].as_u64().expect("the oracle's own");
        let number = envelope["data"]["oracle"][1].as_u64().expect("the oracle's own");
        let key = (one.place.as_str(), client, envelope["data"]["pbx_id"].to_string());
        let before = last.insert(key, number);
        if let Some(before) = before
            && before > number
        {
            verdict.reordered.push(format!("{}: client {client}'s {number} came behind {before}", one.place));
        }
    }
    verdict.delivered = seen.len();
    verdict.lost = sent
        .iter()
        .filter(|one| one.is_accepted() && !seen.contains(one.body.as_str()))
        .map(|one| one.body.clone())
        .collect();
    verdict
}

/// The envelope's `data` as text, to the byte: it stands last.
fn data(payload: &str) -> Option<&str> {
    let whole = serde_json::from_str::<serde_json::Value>(payload).is_ok();
    whole.then(|| payload.split_once(r#","data":"#)?.1.strip_suffix('}')).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sent(number: usize, status: Option<u16>) -> Sent {
        let id = status.map(|_| format!("id-{number}"));
        Sent { body: body(1, number * 12), status, id, latency: Duration::ZERO, stalled: false }
    }

    fn arrived(number: usize) -> Arrived {
        let payload = format!(r#"{{"id":"id-{number}","data":{}}}"#, body(1, number * 12));
        Arrived { place: "topic".into(), payload }
    }

    #[test]
    fn the_oracle_sees_each_way_in_which_a_promise_breaks() {
        let all = [sent(1, Some(200)), sent(2, Some(200)), sent(3, None), sent(4, Some(200))];
        let verdict = |those: &[Arrived]| {
            let v = judge(&all, those);
            (v.lost.len(), v.altered.len(), v.invented.len(), v.reordered.len(), v.duplicates)
        };
        assert_eq!(verdict(&[arrived(1), arrived(2), arrived(4)]), (0, 0, 0, 0, 0), "3 was promised to nobody");
        assert_eq!(verdict(&[arrived(1), arrived(2), arrived(3), arrived(4)]), (0, 0, 0, 0, 0), "and may arrive");
        assert_eq!(verdict(&[arrived(1), arrived(4)]), (1, 0, 0, 0, 0));
        assert_eq!(verdict(&[arrived(1), arrived(4), arrived(2)]), (0, 0, 0, 1, 0));
        assert_eq!(verdict(&[arrived(1), arrived(2), arrived(1), arrived(2), arrived(4)]), (0, 0, 0, 0, 2));
        let mut spaces = arrived(2);
        spaces.payload = spaces.payload.replace(",  ", ", ");
        assert_eq!(verdict(&[arrived(1), spaces, arrived(4)]), (1, 1, 0, 0, 0), "two spaces became one");
        let mut other_id = arrived(2);
        other_id.payload = other_id.payload.replace("id-2", "id-9");
        assert_eq!(verdict(&[arrived(1), other_id, arrived(4)]), (0, 1, 0, 0, 0));
        let alien = Arrived { place: "topic".into(), payload: r#"{"id":"x","data":{"event":"tags"}}"#.into() };
        assert_eq!(verdict(&[arrived(1), arrived(2), arrived(4), alien]), (0, 0, 1, 0, 0));
        // Another place is another order.
        let mut elsewhere = arrived(1);
        elsewhere.place = "other topic".into();
        assert_eq!(verdict(&[arrived(2), elsewhere, arrived(4)]), (0, 0, 0, 0, 0));
    }
}
