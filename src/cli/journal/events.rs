//! `journal list`, `show` and `export`: the events that still have their content, in order of acceptance.

use std::io::{self, Write};

use base64::Engine;
use serde_json::{Value, json};

use super::super::{Format, notice};
use super::{SelectArgs, open, unreadable};
use crate::clock;
use crate::config::Config;
use crate::journal::inspect::{self, Head, Inspector};
use crate::journal::selection::{Selection, Standings, State};
use crate::journal::{OutputRow, Read, Reader, Stored, export};
use crate::normalize::EventId;

/// Events read in one transaction: some ten milliseconds.
const STEP: usize = 2048;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// No content.
    List(Format),
    /// With content.
    Show(Format),
    /// With content, as `import` takes it.
    Export,
}

/// An event and how it stands at each output.
pub struct Found {
    pub head: Head,
    pub at: Vec<At>,
}

/// An event at one output.
pub struct At {
    pub output: String,
    pub state: State,
    /// Of one that is held or parked.
    pub topic: Option<String>,
    pub reason: Option<String>,
}

/// Prints what is selected. False if something that may have been selected cannot be read.
pub fn events(config: &Config, select: &SelectArgs, what: What) -> Result<bool, String> {
    let inspector = open(config)?;
    let selection = select.selection(clock::now());
    // What is saved from a damaged file is not to depend on how it stands where.
    let saves = what == What::Export && select.output.is_none() && selection.state.is_none();
    let mut damaged = false;
    let outputs = match inspector.outputs() {
        Err(error) if saves && inspect::is_damaged(&error) => {
            damaged = true;
            notice(format_args!(
                "how the events stand at the outputs cannot be read: published ones are among what follows"
            ));
            Vec::new()
        }
        outputs => outputs.map_err(unreadable)?,
    };
    if let Some(name) = &select.output
        && outputs.iter().all(|row| row.name != *name)
    {
        return Err(no_such_output(name, &outputs));
    }
    let mut reader = Reader::new(inspector.path());
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let (mut count, mut corrupt) = (0_u64, 0_u64);
    let mut after = 0;
    let written = loop {
        let saved = inspector.heads_that_can_be_read(after, STEP).map_err(unreadable)?;
        report_unreadable(&saved);
        corrupt += saved.unreadable.len() as u64;
        let last = saved.looked_through;
        let standings = match standings(&inspector, after, last) {
            Err(error) if saves && inspect::is_damaged(&error) => {
                damaged = true;
                Standings::new(Vec::new(), Vec::new())
            }
            standings => standings.map_err(unreadable)?,
        };
        let found = select_of(saved.heads, &standings, &outputs, &selection, select.output.as_deref());
        let mut written = Ok(());
        for one in &found {
            count += 1;
            let text = match what {
                What::List(format) => list_line(one, format),
                What::Show(_) | What::Export => match content(&mut reader, one.head.sequence)? {
                    Some(stored) if what == What::Export => export::write(&stored, &inspector.id),
                    Some(stored) => show(one, &stored, &inspector.id, what == What::Show(Format::Json)),
                    None => {
                        corrupt += 1;
                        notice(format_args!(
                            "event number {}: its row does not hold what was written; it is left out",
                            one.head.sequence
                        ));
                        continue;
                    }
                },
            };
            written = writeln!(stdout, "{text}");
            if written.is_err() {
                break;
            }
        }
        match last {
            Some(last) if written.is_ok() => after = last,
            _ => break written,
        }
    };
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(format!("cannot write to stdout: {error}"));
        }
        _ => {}
    }
    if count == 0 {
        notice(format_args!(
            "no event in {} is of this kind; published ones go after journal.retention, and then `journal trace` still knows their way",
            inspector.path().display()
        ));
    }
    Ok(corrupt == 0 && !damaged)
}

fn report_unreadable(saved: &inspect::Saved) {
    let mut numbers = saved.unreadable.iter().copied().peekable();
    while let Some(first) = numbers.next() {
        let mut last = first;
        while let Some(next) = numbers.next_if_eq(&(last + 1)) {
            last = next;
        }
        match saved.looked_through {
            None => notice(format_args!("from event number {first} on nothing can be read")),
            Some(_) => notice(format_args!("events number {first} to {last} cannot be read; they are left out")),
        }
    }
}

pub fn no_such_output(name: &str, outputs: &[OutputRow]) -> String {
    let known: Vec<_> = outputs.iter().map(|row| row.name.as_str()).collect();
    format!("--output {name}: the journal knows no such output; it knows {}", known.join(", "))
}

/// Those of the next events that are selected, and the last one looked at; `None` at the end.
pub fn step(
    inspector: &Inspector,
    outputs: &[OutputRow],
    selection: &Selection,
    output: Option<&str>,
    after: u64,
) -> rusqlite::Result<(Vec<Found>, Option<u64>)> {
    let heads = inspector.heads(after, u64::MAX, STEP)?;
    let last = heads.last().map(|head| head.sequence);
    let standings = standings(inspector, after, last)?;
    Ok((select_of(heads, &standings, outputs, selection, output), last))
}

fn standings(inspector: &Inspector, after: u64, through: Option<u64>) -> rusqlite::Result<Standings> {
    let through = through.unwrap_or(after);
    Ok(Standings::new(inspector.apart(after, through)?, inspector.given_up(after, through)?))
}

/// Those of these events that are selected.
fn select_of(
    heads: Vec<Head>,
    standings: &Standings,
    outputs: &[OutputRow],
    selection: &Selection,
    output: Option<&str>,
) -> Vec<Found> {
    let mut found = Vec::new();
    for head in heads.into_iter().filter(|head| selection.takes(head)) {
        let at = |row: &OutputRow| {
            let state = standings.of(row, head.sequence)?;
            let apart = standings.row(row, head.sequence);
            Some(At {
                output: row.name.clone(),
                state,
                topic: apart.map(|row| row.lane.clone()),
                reason: apart.and_then(|row| row.reason.clone()),
            })
        };
        let at: Vec<At> =
            outputs.iter().filter(|row| output.is_none_or(|name| row.name == name)).filter_map(at).collect();
        let wanted = at.iter().any(|at| selection.takes_state(at.state));
        if wanted || at.is_empty() && selection.state.is_none() && output.is_none() {
            found.push(Found { head, at });
        }
    }
    found
}

fn content(reader: &mut Reader, sequence: u64) -> Result<Option<Stored>, String> {
    let reads = reader.events(sequence - 1, sequence, 1, usize::MAX).map_err(unreadable)?;
    Ok(match reads.into_iter().next() {
        Some(Read::Event(stored)) => Some(*stored),
        _ => None, // Corrupt, or just deleted by retention.
    })
}

fn at_json(found: &Found) -> Value {
    let at =
        |at: &At| json!({ "output": at.output, "state": at.state.as_str(), "topic": at.topic, "reason": at.reason });
    found.at.iter().map(at).collect()
}

fn list_line(found: &Found, format: Format) -> String {
    let Head { sequence, received_at, account, id, name, subject } = &found.head;
    let id = EventId(*id);
    if format == Format::Json {
        return json!({
            "sequence": sequence, "id": id.to_string(), "event": name, "account": account, "call": subject,
            "received": received_at.rfc3339(), "outputs": at_json(found),
        })
        .to_string();
    }
    let at = |at: &At| match &at.reason {
        Some(reason) => format!("{}: {} ({reason})", at.output, at.state.as_str()),
        None => format!("{}: {}", at.output, at.state.as_str()),
    };
    let at: Vec<String> = found.at.iter().map(at).collect();
    let call = subject.as_deref().unwrap_or("-").escape_debug();
    format!("{sequence}  {}  {id}  {name}  {call}  {}", received_at.rfc3339(), at.join(", "))
}

fn show(found: &Found, stored: &Stored, journal: &str, as_json: bool) -> String {
    let event = &stored.event;
    if as_json {
        let line: Value = serde_json::from_str(&export::write(stored, journal)).unwrap_or_default();
        let Value::Object(mut line) = line else { return String::new() };
        line.insert("outputs".into(), at_json(found));
        return Value::Object(line).to_string();
    }
    let body = match str::from_utf8(&event.body) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("(not UTF-8, in base64) {}", base64::engine::general_purpose::STANDARD.encode(&event.body)),
    };
    format!(
        "{}\n  account {}, signed {} with {}{}\n{body}\n",
        list_line(found, Format::Text),
        event.account,
        event.signed_text,
        event.signature,
        if event.replayed { ", imported" } else { "" }
    )
}
