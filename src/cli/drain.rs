//! `drain`: publishes what a journal still holds, without taking anything in: for a volume whose relay is gone.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::journal::words;
use super::{interrupted, logging, notice, print, run};
use crate::clock;
use crate::config::{Config, OutputKind};
use crate::journal::inspect::Inspector;
use crate::journal::orders::{self, Command};
use crate::journal::selection::Selection;
use crate::journal::{Health, Journal, Options, OutputRow};
use crate::metrics::Metrics;
use crate::publish::{Publisher, Stream};
use crate::stderr;

/// How often is looked at what is left.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// For outputs to end and the journal to close once all is done.
const END_MAX: Duration = Duration::from_secs(2);

/// Why the waiting ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    AllPublished,
    /// What is left is not for any configured output, or never to be published.
    NothingMoves,
    TimedOut,
    Interrupted,
}

/// True only when nothing is pending or parked; `timeout` is how long it waits without any progress.
pub fn drain(file: Option<&Path>, timeout: Duration) -> Result<bool, String> {
    stderr::start();
    let loaded = run::load(file)?;
    let config = loaded.config;
    logging::start(&config.log);
    run::warn_of(&loaded.warnings, &config);
    // One that is not there would be made, and one that cannot be read set aside for a new one: neither is what was asked for.
    Inspector::open(&config.journal.path).map_err(|problem| format!("journal.path: {problem}"))?;
    let metrics = Metrics::new(&config);
    let (journal, writer) =
        Journal::open(options(&config), Arc::clone(&metrics)).map_err(|error| format!("journal.path: {error}"))?;
    let console = Stream::stdout(&config.journal.path).map_err(|error| format!("standard output: {error}"))?;
    let statuses = Default::default();
    let publisher = Publisher::start(&config, &journal, &metrics, &statuses, &console)
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the asynchronous runtime: {error}"))?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = wait(&config, &journal, timeout) => ended,
            () = interrupted() => Ended::Interrupted,
        }
    });
    let finish = move || {
        publisher.stop(END_MAX);
        console.close();
        let rows = journal.outputs();
        writer.stop();
        let (text, nothing_left) = report(&config, &journal, &rows, &ended, timeout);
        // With console output stdout is the events'.
        match config.outputs.iter().any(|output| matches!(output.kind, OutputKind::Console)) {
            true => notice(format_args!("{}", text.trim_end())),
            false => _ = print(text.as_bytes())?,
        }
        Ok(nothing_left)
    };
    // The first signal only ended the waiting; a disk or a stdout that hangs must not keep the second from ending the process.
    let finished = runtime.block_on(async {
        tokio::select! {
            finished = tokio::task::spawn_blocking(finish) => finished.map_err(|error| error.to_string())?,
            () = interrupted() => Ok(false),
        }
    });
    runtime.shutdown_background();
    finished
}

fn options(config: &Config) -> Options {
    Options {
        config: config.journal.clone(),
        outputs: config.outputs.iter().map(|output| output.name.clone()).collect(),
        accounts: Vec::new(), // No event is taken.
        discard: config.events.discard.clone(),
        tolerance_max: config.accounts.iter().map(|account| account.tolerance).max().unwrap_or_default(),
        set_aside: false,
    }
}

async fn wait(config: &Config, journal: &Journal, timeout: Duration) -> Ended {
    let mut health = journal.health_changes();
    let mut moved_at = Instant::now();
    let mut before = None;
    let mut requeued = false;
    loop {
        let rows = journal.outputs();
        // Until the file is open nothing is known of it.
        let open = *health.borrow_and_update() != Health::Opening && !rows.is_empty();
        if open && !requeued {
            requeued = true;
            requeue(config, journal, &rows);
        }
        if open {
            let orders = Inspector::open(journal.path())
                .map(|inspector| (inspector.orders_waiting().unwrap_or(1), replays(&inspector)));
            let busy = orders.as_ref().map_or(1, |(orders, replays)| orders + replays);
            let now = (left(&rows), busy);
            if now == (0, 0) {
                return Ended::AllPublished;
            }
            if busy == 0 && !can_move(&rows, journal) {
                return Ended::NothingMoves;
            }
            let moved = Some((rows.iter().map(|row| (row.cursor, row.counts)).collect::<Vec<_>>(), busy));
            if moved != before {
                (before, moved_at) = (moved, Instant::now());
            }
        }
        if moved_at.elapsed() >= timeout {
            return Ended::TimedOut;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Parked ones are tried at once: whoever drains has perhaps mended what they were parked for.
fn requeue(config: &Config, journal: &Journal, rows: &[OutputRow]) {
    for row in rows.iter().filter(|row| !row.removed && row.counts.parked > 0) {
        if config.outputs.iter().any(|output| output.name.as_str() == row.name) {
            // Where it cannot be written they are tried at their own time.
            let _ =
                orders::give(journal.path(), Command::Requeue, Some(&row.name), &Selection::default(), clock::now());
        }
    }
}

fn replays(inspector: &Inspector) -> u64 {
    let counts = inspector.apart_counts().unwrap_or_default();
    counts.iter().filter(|one| one.state == "replay").map(|one| one.count).sum()
}

fn left(rows: &[OutputRow]) -> i64 {
    rows.iter().map(|row| row.counts.pending + row.counts.parked).sum()
}

/// Whether anything is left that a configured output may still publish: not what a removed one owes, and not what is corrupt.
fn can_move(rows: &[OutputRow], journal: &Journal) -> bool {
    let Ok(counts) =
        Inspector::open(journal.path()).map_err(drop).and_then(|inspector| inspector.apart_counts().map_err(drop))
    else {
        return true; // Nobody knows; the time will tell.
    };
    rows.iter().filter(|row| !row.removed).any(|row| {
        let corrupt = counts.iter().filter(|one| one.output == row.number && one.reason.as_deref() == Some("corrupt"));
        row.counts.pending + row.counts.parked > corrupt.map(|one| one.count as i64).sum()
    })
}

/// What is left and what to do about it, and whether nothing is.
fn report(config: &Config, journal: &Journal, rows: &[OutputRow], ended: &Ended, timeout: Duration) -> (String, bool) {
    let path = journal.path().display();
    if rows.is_empty() {
        return (format!("{path}: it could not be opened: {:?}\n", journal.health()), false);
    }
    if left(rows) == 0 {
        return (format!("{path}: nothing is pending or parked any more\n"), true);
    }
    let why = match ended {
        Ended::AllPublished | Ended::NothingMoves => "nothing more can be published".to_owned(),
        Ended::TimedOut => format!("no progress for {}", words::duration(timeout)),
        Ended::Interrupted => "interrupted".to_owned(),
    };
    let mut text = format!("{path}: {why}; left are\n");
    if let Health::Failing(how) = journal.health() {
        text = format!("{how}\n{text}");
    }
    for row in rows.iter().filter(|row| row.counts.pending + row.counts.parked > 0) {
        let configured = config.outputs.iter().any(|output| output.name.as_str() == row.name);
        let what = match configured {
            true => "see `journal status`; `journal discard` gives them up",
            false => "the output is not configured: put it back, or `journal forget`",
        };
        text += &format!("  {}: {} pending, {} parked ({what})\n", row.name, row.counts.pending, row.counts.parked);
    }
    (text, false)
}
