//! `journal replay|requeue|discard|forget|import`: shows what an order means, leaves it for the relay, and waits a little for what comes of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::super::{notice, print};
use super::events::no_such_output;
use super::{OrderArgs, SelectArgs, open, open_again, unreadable, words};
use crate::clock::{self, Timestamp};
use crate::config::Config;
use crate::journal::inspect::is_held;
use crate::journal::orders::{self, Command, Outcome};
use crate::journal::selection::{Selection, Standings, State};
use crate::journal::{OutputRow, Stored, export};
use crate::normalize::{Event, EventName, content_of};

/// Events read in one transaction: some ten milliseconds.
const STEP: usize = 2048;
/// How long a running relay is waited for. It looks at its orders every second.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events and bytes of one order to import: one commit of the relay.
const IMPORT_EVENTS: usize = 256;
const IMPORT_BYTES: usize = 4 << 20;
/// A line of an export: the largest body that `ingress.body_max` sensibly allows, each byte escaped, and what stands around it.
const LINE_BYTES_MAX: u64 = 1 << 30;

/// What an order would do to the events at one output.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extent {
    by_state: BTreeMap<State, u64>,
    first: u64,
    last: u64,
    oldest: Option<Timestamp>,
    newest: Option<Timestamp>,
}

impl Extent {
    fn count(&self) -> u64 {
        self.by_state.values().sum()
    }
}

/// Gives one order for one output, or shows what it would do.
pub fn order(config: &Config, command: Command, args: &OrderArgs) -> Result<bool, String> {
    let select = SelectArgs { output: Some(args.output.clone()), ..args.select() };
    let inspector = open(config)?;
    let outputs = inspector.outputs().map_err(unreadable)?;
    let (id, journal) = (inspector.id.clone(), &config.journal.path);
    drop(inspector);
    let row =
        outputs.iter().find(|row| row.name == args.output).ok_or_else(|| no_such_output(&args.output, &outputs))?;
    let running = is_held(journal);
    check_output(config, command, row, running)?;
    let mut selection = select.selection(clock::now());
    let extent = look(config, &id, row, command, &selection)?;
    let mut text = plan(command, row, &extent);
    if extent.count() == 0 && command != Command::Forget {
        return print(format!("{text}\n").as_bytes());
    }
    if !args.yes && command != Command::Requeue {
        text += "\nnothing was done: --yes does it";
        return print(format!("{text}\n").as_bytes());
    }
    if command != Command::Forget {
        // What was shown is what is done: nothing that came meanwhile.
        (selection.after, selection.through) = (Some(extent.first - 1), Some(extent.last));
    }
    let number = orders::give(journal, command, Some(&args.output), &selection, clock::now())?;
    if !running {
        text += &format!(
            "\nrecorded as order {number}: no relay runs on this journal, the next `run` or `drain` carries it out"
        );
        return print(format!("{text}\n").as_bytes());
    }
    match wait(journal, number)? {
        Some(outcome) => {
            if let Some(problem) = outcome.progress.problem {
                return Err(format!("order {number} was not carried out: {problem}"));
            }
            text += &format!("\n{}", done(command, &args.output, outcome.progress.events));
        }
        None => text += &format!("\norder {number} is given and under way; `journal status` shows what is left"),
    }
    print(format!("{text}\n").as_bytes())
}

fn check_output(config: &Config, command: Command, row: &OutputRow, running: bool) -> Result<(), String> {
    let configured = config.outputs.iter().any(|output| output.name.as_str() == row.name);
    match command {
        Command::Forget if configured => Err(format!(
            "output {} is configured; `forget` is for one that was taken out of the configuration (to give up events of this one: `journal discard`)",
            row.name
        )),
        Command::Forget if running && !row.removed => Err(format!(
            "the running relay still publishes to {}; restart it with the configuration that has it no more",
            row.name
        )),
        Command::Replay | Command::Requeue if !configured => {
            Err(format!("output {} was taken out of the configuration; put it back first", row.name))
        }
        _ => Ok(()),
    }
}

/// Counts what an order means, in short steps.
fn look(config: &Config, id: &str, row: &OutputRow, command: Command, selection: &Selection) -> Result<Extent, String> {
    let mut extent = Extent::default();
    let (mut after, newest) = (0, open_again(config, id)?.newest().map_err(unreadable)?);
    loop {
        let inspector = open_again(config, id)?;
        let heads = inspector.heads(after, newest, STEP).map_err(unreadable)?;
        let Some((last, _)) = heads.last() else { return Ok(extent) };
        let last = *last;
        let apart = inspector.apart(after, last).map_err(unreadable)?;
        let standings = Standings::new(apart, inspector.given_up(after, last).map_err(unreadable)?);
        for (sequence, head) in heads {
            let Some(state) = standings.of(row, sequence) else { continue };
            // What cannot be read cannot be sent again.
            let is_meant = match &head {
                Some(head) => selection.takes(head),
                None => selection.takes_unread() && command != Command::Replay,
            };
            if !is_meant || !command.takes(state) || !selection.takes_state(state) {
                continue;
            }
            *extent.by_state.entry(state).or_default() += 1;
            if extent.first == 0 {
                extent.first = sequence;
            }
            extent.last = sequence;
            let received_at = head.map(|head| head.received_at);
            extent.oldest = extent.oldest.into_iter().chain(received_at).min();
            extent.newest = extent.newest.max(received_at);
        }
        after = last;
    }
}

fn plan(command: Command, row: &OutputRow, extent: &Extent) -> String {
    let name = &row.name;
    let count = words::events(extent.count());
    let between = match (extent.oldest, extent.newest) {
        (Some(oldest), Some(newest)) if extent.count() > 1 => {
            format!(", received from {} to {}", oldest.rfc3339(), newest.rfc3339())
        }
        (Some(oldest), _) => format!(", received {}", oldest.rfc3339()),
        _ => String::new(),
    };
    let states: Vec<_> = extent.by_state.iter().map(|(state, count)| format!("{count} {}", state.as_str())).collect();
    let states = if states.is_empty() { String::new() } else { format!(" ({})", states.join(", ")) };
    match command {
        Command::Replay => format!("replay: sends {count} again to {name}, marked as replayed{between}"),
        Command::Requeue => format!("requeue: tries {count} parked at {name} now{between}"),
        Command::Discard => format!("discard: gives {count} up{states} at {name}; they are never sent there{between}"),
        Command::Forget => {
            format!("forget: gives the removed output {name} up, with all that it owes: {count}{states}{between}")
        }
        Command::Import => String::new(), // It has no output.
    }
}

fn done(command: Command, output: &str, events: u64) -> String {
    let count = words::events(events);
    match command {
        Command::Replay => format!(
            "done: {count} on the way to {output} again; events_replayed_total counts them as they are confirmed"
        ),
        Command::Requeue => {
            format!("done: {count} tried at {output} now; `journal list --state parked` shows what stays")
        }
        Command::Discard => {
            format!("done: {count} given up at {output}; what was in flight at that moment may still arrive")
        }
        Command::Forget => format!("done: {output} is forgotten, {count} given up"),
        Command::Import => format!("done: {count} accepted"),
    }
}

/// Waits for a running relay to carry the order out; `None` if that takes longer than [`PATIENCE`] without any progress.
fn wait(journal: &Path, number: i64) -> Result<Option<Outcome>, String> {
    let mut last = None;
    let mut since = Instant::now();
    loop {
        let outcome = orders::outcome(journal, number).map_err(unreadable)?;
        match &outcome {
            Some(outcome) if outcome.done => return Ok(Some(outcome.clone())),
            None => return Err(format!("order {number} is gone from the journal")),
            Some(_) => {}
        }
        if outcome != last {
            (last, since) = (outcome, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Leaves the lines of an export as orders, each waited for where a relay runs, so that the journal never holds many of them twice.
pub fn import(config: &Config, file: &Path) -> Result<bool, String> {
    drop(open(config)?); // It is there, and a journal.
    let journal = &config.journal.path;
    let lines = read_lines(file, config)?;
    let mut numbers = Vec::new();
    let mut accepted = 0;
    let mut begin = 0;
    while begin < lines.len() {
        let mut bytes = 0;
        let fits = |line: &&String| {
            bytes += line.len();
            bytes <= IMPORT_BYTES
        };
        let count = lines[begin..].iter().take(IMPORT_EVENTS).take_while(fits).count().max(1);
        let number = orders::give_import(journal, &lines[begin..begin + count], clock::now())?;
        numbers.push(number);
        begin += count;
        if is_held(journal)
            && let Some(outcome) = wait(journal, number)?
        {
            if let Some(problem) = outcome.progress.problem {
                return Err(format!("order {number} was not carried out: {problem}"));
            }
            accepted += outcome.progress.events;
        }
    }
    let left = lines.len() as u64 - accepted;
    let mut text =
        format!("import: {} of {} accepted, marked as replayed", accepted, words::events(lines.len() as u64));
    if left > 0 {
        let who = match is_held(journal) {
            true => "the running relay takes them as soon as its journal takes events",
            false => "no relay runs on this journal, the next `run` or `drain` takes them",
        };
        text += &format!("; {left} recorded: {who}");
    }
    print(format!("{text}\n").as_bytes())
}

/// Orders another id from the next start on.
pub fn new_id(config: &Config) -> Result<bool, String> {
    drop(open(config)?);
    let journal = &config.journal.path;
    let number = orders::give_new_id(journal, clock::now())?;
    let when = match is_held(journal) {
        true => {
            "a relay runs on this journal, and publishes under the old one until it is started again: restart it now"
        }
        false => "the next `run` or `drain` on this journal carries it out",
    };
    print(
        format!("new-id: recorded as order {number}: the journal goes on with another id (relayjournal); {when}\n")
            .as_bytes(),
    )
}

/// Every line, checked before any is imported.
fn read_lines(file: &Path, config: &Config) -> Result<Vec<String>, String> {
    let name = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let cannot = |error: io::Error| format!("{name} cannot be read: {error}");
    let mut reader: Box<dyn BufRead> = match file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(BufReader::new(File::open(file).map_err(cannot)?)),
    };
    let mut lines = Vec::new();
    for number in 1.. {
        let mut line = String::new();
        let read = io::Read::take(&mut reader, LINE_BYTES_MAX).read_line(&mut line).map_err(cannot)?;
        if read == 0 {
            break;
        }
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            continue;
        }
        let event =
            check_line(line, config).map_err(|problem| format!("{name}:{number}: {problem}; nothing was imported"))?;
        // What breaks consumers' parsers may be better known than when the line was written.
        lines.push(match content_of(&event.body) {
            content if content == event.content => line.to_owned(),
            content => export::write(&Stored { sequence: 0, event: Event { content, ..event } }, ""),
        });
    }
    if lines.is_empty() {
        notice(format_args!("{name} holds no events"));
    }
    Ok(lines)
}

fn check_line(line: &str, config: &Config) -> Result<Event, String> {
    let event = export::read(line)?;
    if config.accounts.iter().all(|account| account.name != event.account) {
        return Err(format!("account {} is not configured", event.account));
    }
    if let EventName::Extra(name) = &event.name
        && !config.events.extra.contains(name)
    {
        return Err("its event is none of SIPSIM's and not in events.extra".to_owned());
    }
    Ok(event)
}
