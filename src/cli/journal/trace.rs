//! `journal trace`: the way of a call or an event, from its arrival to each broker, also when its content is long gone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::{Format, notice, print};
use super::events::{At, step};
use super::{TraceArgs, open, open_again, unreadable, words};
use crate::clock::{self, Timestamp};
use crate::config::Config;
use crate::journal::inspect::{Head, TrailEntry, is_held};
use crate::journal::selection::{Selection, State};
use crate::normalize::EventId;
use crate::publish::mend;

/// Entries of the trail read in one transaction: some ten milliseconds.
const STEP: usize = 4096;
/// More events than anybody reads.
const EVENTS_MAX: usize = 10_000;

/// What is known of one event.
struct Way {
    head: Head,
    /// In the order in which they were written.
    trail: Vec<TrailEntry>,
    /// How it stands at each output; empty when its content is gone.
    at: Vec<At>,
    has_content: bool,
}

/// Prints the ways of what is asked for. False if nothing of it is in this journal.
pub fn trace(config: &Config, args: &TraceArgs) -> Result<bool, String> {
    let id = open(config)?.id;
    let selection = args.selection(clock::now());
    let ways = find(config, &id, &selection)?;
    if ways.len() >= EVENTS_MAX {
        notice(format_args!(
            "more than {EVENTS_MAX} events; only the first are shown: narrow it with --call, --id, --since, --until"
        ));
    }
    let view = View { relay_runs: is_held(&config.journal.path), id: &id, config };
    let text = match args.format {
        Format::Json => format!("{:#}\n", ways.iter().map(|way| view.as_json(way)).collect::<Value>()),
        Format::Text => ways.iter().map(|way| view.text(way)).collect(),
    };
    print(text.as_bytes())?;
    if ways.is_empty() {
        notice(format_args!("{}", view.nothing()?));
    }
    Ok(!ways.is_empty())
}

fn find(config: &Config, id: &str, selection: &Selection) -> Result<Vec<Way>, String> {
    let mut ways: BTreeMap<u64, Way> = BTreeMap::new();
    // Nothing is written of an event before it came.
    let mut from = match selection.since {
        Some(since) => open_again(config, id)?.trail_from(Timestamp::from_micros(since)).map_err(unreadable)?,
        None => 0,
    };
    let mut is_whole = true;
    loop {
        let (entries, whole) = open_again(config, id)?.trail(from, STEP).map_err(unreadable)?;
        is_whole &= whole;
        let Some(last) = entries.last() else { break };
        from = last.entry + 1;
        for entry in entries.into_iter().filter(|entry| selection.takes(&entry.head)) {
            let sequence = entry.head.sequence;
            if ways.len() < EVENTS_MAX || ways.contains_key(&sequence) {
                ways.entry(sequence).or_insert_with(|| Way::of(entry.head.clone())).trail.push(entry);
            }
        }
    }
    if !is_whole {
        notice(format_args!("a page of the trail cannot be read: what it says of some events is missing"));
    }
    let inspector = open_again(config, id)?;
    let (outputs, newest) = (inspector.outputs().map_err(unreadable)?, inspector.newest().map_err(unreadable)?);
    drop(inspector);
    let mut after = 0;
    loop {
        let inspector = open_again(config, id)?;
        let (found, last) = step(&inspector, &outputs, selection, None, after, newest).map_err(unreadable)?;
        let Some(last) = last else { break };
        after = last;
        for one in found {
            let sequence = one.sequence;
            let Some(head) = one.head else { continue };
            if ways.len() < EVENTS_MAX || ways.contains_key(&sequence) {
                let way = ways.entry(sequence).or_insert_with(|| Way::of(head));
                (way.at, way.has_content) = (one.at, true);
            }
        }
    }
    Ok(ways.into_values().collect())
}

impl Way {
    fn of(head: Head) -> Self {
        Self { head, trail: Vec::new(), at: Vec::new(), has_content: false }
    }

    fn kept_at(&self) -> Option<Timestamp> {
        self.trail.iter().find_map(|entry| entry.kept_at)
    }

    /// What the trail says last of an output.
    fn last(&self, output: &str) -> Option<&TrailEntry> {
        self.trail.iter().rev().find(|entry| entry.output.as_deref().is_none_or(|name| name == output))
    }
}

struct View<'a> {
    relay_runs: bool,
    id: &'a str,
    config: &'a Config,
}

impl View<'_> {
    fn text(&self, way: &Way) -> String {
        let Head { sequence, received_at, account, id, name, subject } = &way.head;
        let call = subject.as_ref().map_or_else(String::new, |call| format!(", call {}", call));
        let mut text =
            format!("{name} {}{call} (account {account}, number {sequence} of journal {})\n", EventId(*id), self.id);
        let mut line = format!("  received {}", received_at.rfc3339());
        let by_configuration = way.trail.iter().any(|entry| entry.output.is_none());
        match way.kept_at() {
            Some(kept) => line += &format!(", kept {}", later(*received_at, kept)),
            None if by_configuration => {}
            None => line += ", kept",
        }
        for entry in &way.trail {
            line += &format!(", {} {}", entry_text(entry), later(*received_at, entry.at));
        }
        text += &line;
        text.push('\n');
        for at in &way.at {
            if let Some(open) = self.open_text(way, at) {
                text += &format!("  {}: {open}\n", at.output);
            }
        }
        if !way.has_content && !by_configuration {
            text += "  its content is gone from the journal, as journal.retention says\n";
        }
        text
    }

    /// What is still open at an output, and why; `None` where the trail has said all.
    fn open_text(&self, way: &Way, at: &At) -> Option<String> {
        let configured = self.config.outputs.iter().any(|output| output.name.as_str() == at.output);
        let topic = at.topic.as_deref().unwrap_or("?");
        let because = match (configured, self.relay_runs) {
            (false, _) => "; the output was removed from the configuration: put it back, or `journal forget`",
            (true, false) => "; no relay runs on this journal: start it, or publish what it holds with `drain`",
            (true, true) => "",
        };
        match at.state {
            State::Published if way.last(&at.output).is_none() => {
                Some("published; when is known no more, or not yet".to_owned())
            }
            State::Discarded if way.last(&at.output).is_none() => Some("given up; when is known no more".to_owned()),
            State::Published | State::Discarded => None,
            State::Parked => Some(format!(
                "parked for {topic} ({}); it is tried again now and then, or now with `journal requeue --output {}`{because}",
                at.reason.as_deref().unwrap_or("other"),
                at.output
            )),
            State::Held => Some(match &at.reason {
                Some(reason) => format!("held for {topic}, {reason}: {}{because}", mend(reason)),
                None => format!("held for {topic}, behind others or because the broker is away{because}"),
            }),
            State::Pending if because.is_empty() => Some(
                "pending: its broker is away, or others are before it; see output_up and `journal status`".to_owned(),
            ),
            State::Pending => Some(format!("pending{because}")),
        }
    }

    fn as_json(&self, way: &Way) -> Value {
        let head = &way.head;
        let mut outputs: Vec<Value> = way
            .trail
            .iter()
            .map(|entry| {
                json!({
                    "output": entry.output, "state": entry.state, "at": entry.at.rfc3339(),
                    "after_ms": entry.at.since(head.received_at).as_micros() as f64 / 1e3,
                    "topic": entry.lane, "partition": entry.partition, "offset": entry.offset, "reason": entry.reason,
                })
            })
            .collect();
        for at in way.at.iter().filter(|at| self.open_text(way, at).is_some()) {
            outputs.push(json!({
                "output": at.output, "state": at.state.as_str(), "at": null, "after_ms": null,
                "topic": at.topic, "partition": null, "offset": null, "reason": at.reason,
            }));
        }
        json!({
            "sequence": head.sequence, "journal": self.id, "id": EventId(head.id).to_string(), "event": head.name,
            "account": head.account, "call": head.subject, "received": head.received_at.rfc3339(),
            "kept": way.kept_at().map(Timestamp::rfc3339),
            "kept_after_ms": way.kept_at().map(|at| at.since(head.received_at).as_micros() as f64 / 1e3),
            "content": way.has_content, "relay_running": self.relay_runs, "way": outputs,
        })
    }

    fn nothing(&self) -> Result<String, String> {
        let (oldest, _) = open_again(self.config, self.id)?.trail(0, 1).map_err(unreadable)?;
        let oldest = oldest.first().map(|entry| entry.at);
        let from = oldest.map_or_else(|| "nothing yet".to_owned(), |at| format!("events from {} on", at.rfc3339()));
        Ok(format!(
            "nothing of this is in {}, whose trail knows {from}. So it was refused here (the log says when and why; metric webhooks_total), \
             went to another replica (ask its journal), or never reached us. docs/where-did-my-call-go.md goes through these.",
            self.config.journal.path.display()
        ))
    }
}

/// One entry of the trail, as `kafka sipsim.tags[3]@88121`.
fn entry_text(entry: &TrailEntry) -> String {
    let output = entry.output.as_deref().unwrap_or("every output");
    let lane = entry.lane.as_deref().unwrap_or("");
    let reason = entry.reason.as_deref().unwrap_or("");
    let place = match (entry.partition, entry.offset) {
        (Some(partition), Some(offset)) => format!("{lane}[{partition}]@{offset}"),
        _ => format!("{lane} confirmed"),
    };
    match entry.state.as_str() {
        "published" => format!("{output} {place}"),
        "replayed" => format!("{output} {place} again (replay)"),
        "parked" => format!("{output} parked for {lane} ({})", reason.trim_end_matches(": ")),
        state => format!("{output} {state} ({reason})"),
    }
}

fn later(from: Timestamp, to: Timestamp) -> String {
    format!("+{}", words::duration(to.since(from)))
}
