//! `journal verify`: whether every row holds what was written, and whether the ledger adds up.

use super::super::{notice, print};
use super::{open, open_again, unreadable, words};
use crate::config::Config;
use crate::journal::inspect::is_held;
use crate::journal::{OutputRow, Read, Reader};

/// Events and bytes read in one transaction: some ten milliseconds.
const STEP_EVENTS: usize = 512;
const STEP_BYTES: usize = 4 << 20;

/// Says what was looked at and what was found. False if anything is not in order.
pub fn verify(config: &Config) -> Result<bool, String> {
    let id = open(config)?.id;
    let mut running = is_held(&config.journal.path);
    let mut problems = Vec::new();
    let rows = rows(config, &id, &mut problems)?;
    let outputs = ledger(config, &id, running, &mut problems)?;
    if !running {
        match open_again(config, &id)?.check_file() {
            Ok(Some(lines)) => problems.extend(lines.into_iter().map(|line| format!("the file: {line}"))),
            Ok(None) => running = true,
            Err(error) => problems.push(format!("the file: {error}")),
        }
    }
    for problem in &problems {
        notice(format_args!("{problem}"));
    }
    let file = match running {
        true => "not the file as a whole, since a relay runs on it",
        false => "and the file as a whole, since no relay runs on it",
    };
    let verdict = match problems.len() {
        0 => "all in order".to_owned(),
        count => format!("{count} problem(s), named above"),
    };
    let text = format!(
        "{}: looked at the rows of {} and the ledger of {outputs} output(s), {file}: {verdict}\n",
        config.journal.path.display(),
        words::events(rows)
    );
    print(text.as_bytes())?;
    Ok(problems.is_empty())
}

/// Reads every event, which checks its CRC: how many.
fn rows(config: &Config, id: &str, problems: &mut Vec<String>) -> Result<u64, String> {
    let newest = open_again(config, id)?.newest().map_err(unreadable)?;
    let (mut count, mut after) = (0, 0);
    loop {
        let inspector = open_again(config, id)?;
        let reads = Reader::new(inspector.path())
            .events(after, newest, STEP_EVENTS, STEP_BYTES)
            .map_err(|error| format!("behind event {after}: {}", unreadable(error)))?;
        let Some(last) = reads.last() else { return Ok(count) };
        after = last.sequence();
        count += reads.len() as u64;
        for read in reads {
            if let Read::Corrupt { sequence } = read {
                problems.push(format!("event number {sequence}: it cannot be read, or its row does not hold what was written; it is parked as corrupt, never published"));
            }
        }
    }
}

/// Checks each output's counts against each other and against the rows: how many outputs.
fn ledger(config: &Config, id: &str, running: bool, problems: &mut Vec<String>) -> Result<usize, String> {
    let (outputs, apart) = open_again(config, id)?.outputs_and_apart().map_err(unreadable)?;
    for row in &outputs {
        let standing = |state: &str| {
            apart.iter().filter(|one| one.output == row.number && one.state == state).map(|one| one.count).sum::<u64>()
                as i64
        };
        let (held, parked) = (standing("held"), standing("parked"));
        let c = &row.counts;
        let mut wrong = |what: String| problems.push(format!("output {}: {what}", row.name));
        if c.accepted != c.published + c.pending + c.parked + c.discarded {
            wrong(format!(
                "accepted {} is not published {} + pending {} + parked {} + discarded {}",
                c.accepted, c.published, c.pending, c.parked, c.discarded
            ));
        }
        if c.by_state().iter().any(|count| *count < 0) {
            wrong("a count is below zero".to_owned());
        }
        if c.parked != parked {
            wrong(format!("the ledger says {} parked, there are {parked}", c.parked));
        }
        // Beside a relay more events come while they are counted.
        if !running {
            let pending = held + waiting(config, id, row)?;
            if c.pending != pending {
                wrong(format!("the ledger says {} pending, there are {pending}", c.pending));
            }
        }
    }
    Ok(outputs.len())
}

/// Events behind the cursor that the output owes and that have no row of their own.
fn waiting(config: &Config, id: &str, row: &OutputRow) -> Result<i64, String> {
    let newest = open_again(config, id)?.newest().map_err(unreadable)?;
    let mut count = 0;
    let mut position = row.cursor;
    while let Some((after, through)) = row.owed_after(position) {
        let inspector = open_again(config, id)?;
        let heads = inspector.heads(after, through.min(newest), STEP_EVENTS).map_err(unreadable)?;
        let Some((last, _)) = heads.last() else {
            if through == i64::MAX as u64 {
                break;
            }
            position = through;
            continue;
        };
        position = *last;
        let apart = inspector.apart(after, position).map_err(unreadable)?;
        let apart = apart.iter().filter(|one| one.output == row.number && one.state != "replay").count();
        let given_up = inspector.given_up(after, position).map_err(unreadable)?;
        let given_up = given_up.iter().filter(|(output, _)| *output == row.number).count();
        count += heads.len() as i64 - apart as i64 - given_up as i64;
    }
    Ok(count)
}
