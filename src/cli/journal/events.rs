//! `journal list`, `show` and `export`: the events that still have their content, in order of acceptance.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use serde_json::{Value, json};

use super::super::{Format, notice};
use super::{SelectArgs, open, open_again, unreadable};
use crate::config::Config;
use crate::journal::inspect::{self, Head, Inspector};
use crate::journal::selection::{Selection, Standings, State};
use crate::journal::{OutputRow, Read, Reader, Stored, export};
use crate::normalize::EventId;
use crate::{clock, printable};

/// Events read in one transaction: some ten milliseconds.
const STEP: usize = 2048;
/// Bytes of content read at a time, and printed before more is read.
const STEP_BYTES: usize = 4 << 20;

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
    pub sequence: u64,
    /// `None` where it cannot be read.
    pub head: Option<Head>,
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
    let mut inspector = open(config)?;
    let (id, path) = (inspector.id.clone(), inspector.path().to_owned());
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
    let mut stdout = printable::stdout();
    let (mut count, mut corrupt) = (0, 0);
    let (mut after, newest) = (0, inspector.newest().map_err(unreadable)?);
    let written = loop {
        let heads = inspector.heads(after, newest, STEP).map_err(unreadable)?;
        let Some((last, _)) = heads.last() else { break Ok(()) };
        let last = *last;
        let standings = match standings(&inspector, after, last) {
            Err(error) if saves && inspect::is_damaged(&error) => {
                damaged = true;
                Standings::default()
            }
            standings => standings.map_err(unreadable)?,
        };
        drop(inspector); // Whoever reads what is printed may take his time.
        // Nobody can say whether these are meant.
        let mut left_out: Vec<u64> = match selection.takes_unread() {
            true => Vec::new(),
            false => heads.iter().filter(|(_, head)| head.is_none()).map(|(sequence, _)| *sequence).collect(),
        };
        let found = select_of(heads, &standings, &outputs, &selection, select.output.as_deref());
        count += found.len();
        let written = match what {
            What::List(format) => {
                corrupt += found.iter().filter(|one| one.head.is_none()).count();
                let lines: String = found.iter().map(|one| list_line(one, format) + "\n").collect();
                stdout.write_all(lines.as_bytes())
            }
            What::Show(_) | What::Export => {
                let text = |one: &Found, stored: &Stored| match what {
                    What::Show(format) => show(one, stored, &id, format == Format::Json),
                    _ => export::write(stored, &id),
                };
                write_content(&path, &found, &mut stdout, text, &mut left_out).map_err(unreadable)?
            }
        };
        corrupt += left_out.len();
        report_left_out(left_out);
        if written.is_err() {
            break written;
        }
        after = last;
        inspector = open_again(config, &id)?;
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
            path.display()
        ));
    }
    Ok(corrupt == 0 && !damaged)
}

/// Writes what was found, with its content, a few MiB of it at a time; the journal is not open while it writes. What cannot be read is added to
/// `left_out`.
fn write_content(
    path: &Path,
    mut found: &[Found],
    stdout: &mut impl Write,
    text: impl Fn(&Found, &Stored) -> String,
    left_out: &mut Vec<u64>,
) -> rusqlite::Result<io::Result<()>> {
    while !found.is_empty() {
        let sequences: Vec<u64> = found.iter().map(|one| one.sequence).collect();
        let reads = Reader::new(path).events_of(&sequences, STEP_BYTES)?;
        let mut lines = String::new();
        for (one, read) in found.iter().zip(&reads) {
            match read {
                Read::Event(stored) => lines += &(text(one, stored) + "\n"),
                Read::Corrupt { sequence } => left_out.push(*sequence),
            }
        }
        let written = stdout.write_all(lines.as_bytes());
        if written.is_err() {
            return Ok(written);
        }
        found = &found[reads.len()..];
    }
    Ok(Ok(()))
}

fn report_left_out(mut numbers: Vec<u64>) {
    numbers.sort_unstable();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        match run {
            [number] => notice(format_args!(
                "event number {number} cannot be read, or its row does not hold what was written; it is left out"
            )),
            _ => notice(format_args!(
                "events number {} to {} cannot be read; they are left out",
                run[0],
                run[run.len() - 1]
            )),
        }
    }
}

pub fn no_such_output(name: &str, outputs: &[OutputRow]) -> String {
    let known: Vec<_> = outputs.iter().map(|row| row.name.as_str()).collect();
    format!("--output {name}: the journal knows no such output; it knows {}", known.join(", "))
}

/// Those of the next events up to `newest` that can be read and are selected, and the last one looked at; `None` at the end.
pub fn step(
    inspector: &Inspector,
    outputs: &[OutputRow],
    selection: &Selection,
    output: Option<&str>,
    after: u64,
    newest: u64,
) -> rusqlite::Result<(Vec<Found>, Option<u64>)> {
    let heads = inspector.heads(after, newest, STEP)?;
    let Some(last) = heads.last().map(|(last, _)| *last) else { return Ok((Vec::new(), None)) };
    let standings = standings(inspector, after, last)?;
    Ok((select_of(heads, &standings, outputs, selection, output), Some(last)))
}

fn standings(inspector: &Inspector, after: u64, through: u64) -> rusqlite::Result<Standings> {
    Ok(Standings::new(inspector.apart(after, through)?, inspector.given_up(after, through)?))
}

/// Those of these events that are selected.
fn select_of(
    heads: Vec<(u64, Option<Head>)>,
    standings: &Standings,
    outputs: &[OutputRow],
    selection: &Selection,
    output: Option<&str>,
) -> Vec<Found> {
    let mut found = Vec::new();
    let takes = |head: &Option<Head>| head.as_ref().map_or(selection.takes_unread(), |head| selection.takes(head));
    for (sequence, head) in heads.into_iter().filter(|(_, head)| takes(head)) {
        let at = |row: &OutputRow| {
            let state = standings.of(row, sequence)?;
            let apart = standings.row(row, sequence);
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
            found.push(Found { sequence, head, at });
        }
    }
    found
}

fn at_json(found: &Found) -> Value {
    let at =
        |at: &At| json!({ "output": at.output, "state": at.state.as_str(), "topic": at.topic, "reason": at.reason });
    found.at.iter().map(at).collect()
}

fn list_line(found: &Found, format: Format) -> String {
    let sequence = found.sequence;
    let head = found.head.as_ref();
    if format == Format::Json {
        return json!({
            "sequence": sequence, "id": head.map(|head| EventId(head.id).to_string()), "event": head.map(|head| &head.name),
            "account": head.map(|head| &head.account), "call": head.and_then(|head| head.subject.as_ref()),
            "received": head.map(|head| head.received_at.rfc3339()), "outputs": at_json(found),
        })
        .to_string();
    }
    let at = |at: &At| match &at.reason {
        Some(reason) => format!("{}: {} ({reason})", at.output, at.state.as_str()),
        None => format!("{}: {}", at.output, at.state.as_str()),
    };
    let at: Vec<String> = found.at.iter().map(at).collect();
    let about = match head {
        Some(Head { received_at, id, name, subject, .. }) => {
            let call = subject.as_deref().unwrap_or("-");
            format!("{}  {}  {name}  {call}", received_at.rfc3339(), EventId(*id))
        }
        None => "(it cannot be read)".to_owned(),
    };
    format!("{sequence}  {about}  {}", at.join(", "))
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
