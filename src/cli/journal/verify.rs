//! `journal verify`: whether every row holds what was written, and whether the ledger adds up.

use super::super::{notice, print};
use super::{open, unreadable, words};
use crate::config::Config;
use crate::journal::inspect::{Inspector, is_held};
use crate::journal::{OutputRow, Read, Reader};

/// Events and bytes read in one transaction: some ten milliseconds.
const STEP_EVENTS: usize = 512;
const STEP_BYTES: usize = 4 << 20;

/// Says what was looked at and what was found. False if anything is not in order.
pub fn verify(config: &Config) -> Result<bool, String> {
    let inspector = open(config)?;
    let running = is_held(inspector.path());
    let mut problems = Vec::new();
    let rows = rows(&inspector, &mut problems)?;
    let outputs = ledger(&inspector, running, &mut problems).map_err(unreadable)?;
    if !running {
        problems
            .extend(inspector.check_file().map_err(unreadable)?.into_iter().map(|line| format!("the file: {line}")));
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
        inspector.path().display(),
        words::events(rows)
    );
    print(text.as_bytes())?;
    Ok(problems.is_empty())
}

/// Reads every event, which checks its CRC: how many.
fn rows(inspector: &Inspector, problems: &mut Vec<String>) -> Result<u64, String> {
    let mut reader = Reader::new(inspector.path());
    let (mut count, mut after) = (0, 0);
    loop {
        let reads = reader
            .events(after, u64::MAX, STEP_EVENTS, STEP_BYTES)
            .map_err(|error| format!("behind event {after}: {}", unreadable(error)))?;
        let Some(last) = reads.last() else { return Ok(count) };
        after = last.sequence();
        count += reads.len() as u64;
        for read in reads {
            if let Read::Corrupt { sequence } = read {
                problems.push(format!("event number {sequence}: its row does not hold what was written; it is parked as corrupt, never published"));
            }
        }
    }
}

/// Checks each output's counts against each other and against the rows: how many outputs.
fn ledger(inspector: &Inspector, running: bool, problems: &mut Vec<String>) -> rusqlite::Result<usize> {
    let (outputs, apart) = inspector.outputs_and_apart()?;
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
            let pending = held + waiting(inspector, row)?;
            if c.pending != pending {
                wrong(format!("the ledger says {} pending, there are {pending}", c.pending));
            }
        }
    }
    Ok(outputs.len())
}

/// Events behind the cursor that the output owes and that have no row of their own.
fn waiting(inspector: &Inspector, row: &OutputRow) -> rusqlite::Result<i64> {
    let mut count = 0;
    let mut position = row.cursor;
    while let Some((after, through)) = row.owed_after(position) {
        let heads = inspector.heads(after, through, STEP_EVENTS)?;
        let Some(last) = heads.last() else {
            if through == i64::MAX as u64 {
                break;
            }
            position = through;
            continue;
        };
        position = last.sequence;
        let apart = inspector.apart(after, position)?;
        let apart = apart.iter().filter(|one| one.output == row.number && one.state != "replay").count();
        let given_up = inspector.given_up(after, position)?.iter().filter(|(output, _)| *output == row.number).count();
        count += heads.len() as i64 - apart as i64 - given_up as i64;
    }
    Ok(count)
}
