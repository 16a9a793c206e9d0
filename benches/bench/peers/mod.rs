//! `make bench-peers`: the relay beside Bento doing its job, with the same brokers, load and minutes. How fast, at what cost, and what is refused
//! and lost when the program is killed and when the broker is away. `benches/peers/README.md` has the settings; `docs/performance.md` the figures.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod arrived;
mod offered;
mod program;
mod verdict;

use crate::load::{self, Load, Until};
use crate::process::Usage;
use crate::report::{self, Group, Report};
use crate::{Brokers, MB};
use arrived::Broker;
use offered::{Offered, Sent};
use program::{Installed, PROGRAMS, Program, Started};
use verdict::{Faults, Verdict};

#[derive(clap::Args)]
pub struct Arguments {
    /// Bento's program; `benches/peers/build-bento` prints it
    #[arg(long)]
    bento: PathBuf,
    /// Of each program, interleaved
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// That each run at full speed is measured for
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of each body
    #[arg(long, default_value_t = 500)]
    body: usize,
    /// At full speed
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Events a second while something fails: less than the slowest can do
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// That the broker is away for
    #[arg(long, default_value_t = 20)]
    away: u64,
    /// Only this part
    #[arg(long)]
    only: Option<Part>,
    /// Only into this broker
    #[arg(long)]
    broker: Option<Broker>,
    /// Only programs whose names have this in them
    #[arg(long, default_value = "")]
    program: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Speed,
    Kill,
    Outage,
}

/// After the broker is back, and before it goes.
const AFTERWARDS: Duration = Duration::from_secs(20);
const BEFORE: Duration = Duration::from_secs(5);
const KILLS: u32 = 3;

pub fn measure(arguments: &Arguments) -> Result<(), String> {
    // On the disk of the build, since /tmp may be memory, where a sync costs nothing.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: report::machine(folder.path()),
        settings: vec![format!("bodies of {} bytes, each distinct", arguments.body)],
        groups: Vec::new(),
    };
    let brokers = Brokers::start()?;
    let programs: Vec<_> = PROGRAMS
        .iter()
        .filter(|program| arguments.broker.is_none_or(|broker| program.broker == broker))
        .filter(|program| program.name.contains(&arguments.program))
        .map(|program| (program, folder.path().join(program.broker.name()).join(program.name)))
        .collect();
    for (program, home) in &programs {
        // Topics, exchange and queues are made once, for all.
        let config = crate::relay::configure(&home.join("topics"), &program.output(&brokers))?;
        crate::relay::command(&["topics", "--create", "--yes"], &config)?;
    }
    let wants = |part| arguments.only.is_none_or(|only| only == part);
    let mut faults = Vec::new();
    if wants(Part::Speed) {
        report.groups = speed(arguments, &programs, &brokers)?;
    }
    if wants(Part::Kill) {
        let mut kills = Faults::new(format!("Killed (-9) and started again {KILLS} times, {}/s", arguments.rate));
        for (program, home) in &programs {
            let installed = program.install(&arguments.bento, &brokers, home)?;
            kills.add(program, kill(arguments, program, &installed, &brokers)?);
        }
        faults.push(kills);
    }
    if wants(Part::Outage) {
        let mut outages = Faults::new(format!("Broker away for {} s, {}/s", arguments.away, arguments.rate));
        for (program, home) in &programs {
            let installed = program.install(&arguments.bento, &brokers, home)?;
            outages.add(program, outage(arguments, program, &installed, &brokers)?);
        }
        faults.push(outages);
    }
    print!("{}", report.text());
    faults.iter().for_each(|faults| print!("{}", faults.text()));
    Ok(())
}

/// As many requests as 64 connections get answered; CPU and memory until all of them are at the broker.
fn speed(arguments: &Arguments, programs: &[(&Program, PathBuf)], brokers: &Brokers) -> Result<Vec<Group>, String> {
    let group = |broker: Broker| {
        let name =
            format!("Into {}, {} connections, {} s each", broker.name(), arguments.connections, arguments.seconds);
        Group::new(name, "relay", "requests/s")
    };
    let mut groups = [(Broker::Kafka, group(Broker::Kafka)), (Broker::Rabbitmq, group(Broker::Rabbitmq))];
    let load = |length| Load {
        connections: arguments.connections,
        body_bytes: arguments.body,
        warm_up: Duration::ZERO,
        length: Until::Passed(Duration::from_secs(length)),
    };
    for run in 1..=arguments.runs {
        eprintln!("full speed, run {run} of {}", arguments.runs);
        for (program, home) in programs {
            let Started { running, address } = program.install(&arguments.bento, brokers, home)?.start()?;
            let warm_up = program.broker.mark(brokers)?;
            let first = load::run(address, running.pid(), load(1))?;
            program.broker.wait_for(brokers, &warm_up, first.answered - first.refused)?;

            let mark = program.broker.mark(brokers)?;
            let before = Usage::of(running.pid()).cpu_seconds;
            let outcome = load::run(address, running.pid(), load(arguments.seconds))?;
            let answered = Instant::now();
            program.broker.wait_for(brokers, &mark, outcome.answered - outcome.refused)?;
            let (behind, after) = (answered.elapsed().as_secs_f64(), Usage::of(running.pid()));
            running.stop();

            let milliseconds =
                |share| outcome.latency.quantile(share).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3);
            let values = [
                ("per second", (outcome.answered - outcome.refused) as f64 / outcome.seconds),
                ("p50 ms", milliseconds(0.5)),
                ("p99 ms", milliseconds(0.99)),
                ("max ms", milliseconds(1.0)),
                ("refused", outcome.refused as f64),
                ("CPU s / 10,000", (after.cpu_seconds - before) / outcome.answered as f64 * 1e4),
                ("s until all published", behind),
                ("MB at most", after.resident_max_bytes as f64 / MB),
            ];
            if let Some((_, group)) = groups.iter_mut().find(|(broker, _)| *broker == program.broker) {
                group.add(program.name, &values);
            }
        }
    }
    Ok(groups.into_iter().map(|(_, group)| group).filter(|group| !group.programs.is_empty()).collect())
}

/// kill -9 under load, several times.
fn kill(
    arguments: &Arguments,
    program: &Program,
    installed: &Installed<'_>,
    brokers: &Brokers,
) -> Result<Verdict, String> {
    let mark = program.broker.mark(brokers)?;
    let mut started = installed.start()?;
    let offered = Offered::start(started.address, arguments.rate, arguments.body);
    for _ in 0..KILLS {
        std::thread::sleep(BEFORE);
        drop(started); // Kills it.
        started = installed.start()?;
    }
    std::thread::sleep(BEFORE);
    let sent = offered.stop()?;
    let verdict = judge(program, &sent, brokers, &mark, vec![("all along", sent.iter().collect())]);
    started.running.stop();
    verdict
}

/// The broker is stopped, and started again, as for an upgrade.
fn outage(
    arguments: &Arguments,
    program: &Program,
    installed: &Installed<'_>,
    brokers: &Brokers,
) -> Result<Verdict, String> {
    let mark = program.broker.mark(brokers)?;
    let started = installed.start()?;
    let offered = Offered::start(started.address, arguments.rate, arguments.body);
    std::thread::sleep(BEFORE);
    let gone = Instant::now();
    brokers.order("stop-one", program.broker.name())?;
    std::thread::sleep(Duration::from_secs(arguments.away));
    brokers.order("start-one", program.broker.name())?;
    let back = Instant::now();
    std::thread::sleep(AFTERWARDS);
    let sent = offered.stop()?;
    let part = |within: &dyn Fn(Instant) -> bool| sent.iter().filter(|sent| within(sent.at)).collect::<Vec<_>>();
    let parts = vec![
        ("before", part(&|at| at < gone)),
        ("away", part(&|at| at >= gone && at < back)),
        ("20 s after", part(&|at| at >= back)),
    ];
    let verdict = judge(program, &sent, brokers, &mark, parts);
    started.running.stop();
    verdict
}

fn judge(
    program: &Program,
    sent: &[Sent],
    brokers: &Brokers,
    mark: &arrived::Mark,
    parts: Vec<(&'static str, Vec<&Sent>)>,
) -> Result<Verdict, String> {
    let accepted: HashSet<&str> =
        sent.iter().filter(|sent| sent.is_accepted()).map(|sent| sent.call.as_str()).collect();
    let began = Instant::now();
    let calls = program.broker.calls(brokers, mark, &accepted)?;
    Ok(Verdict::new(parts, &accepted, &calls, began.elapsed()))
}
