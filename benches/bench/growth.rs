//! What an event costs while more and more are pending: nothing may grow with the backlog. The same journals take and give in turn.

use std::path::{Path, PathBuf};

use crate::backlog;
use crate::load::{self, Load, Until};
use crate::relay::{self, Relay};
use crate::report::{Aim, Group};
use crate::stage::{Measured, Stage, USUAL, away};

/// Events that each run brings, and of whose draining it counts the cost.
const DRAINED: f64 = 150_000.0;
/// Runs, of which the medians are compared.
const RUNS_MIN: u32 = 5;

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let mut accepting = Group::new("Accepting with a backlog".into(), "", "requests/s");
    let mut draining = Group::new("Draining with a backlog, into Kafka".into(), "", "events/s");
    let kafka = stage.brokers()?.section("kafka");
    let journals: Vec<(String, u64, PathBuf)> = stage
        .arguments
        .growth
        .iter()
        .map(|size| (format!("{size} pending"), *size, stage.folder().join(format!("growth-{size}"))))
        .collect();
    for (_, size, home) in journals.iter().filter(|(_, size, _)| *size > 0) {
        backlog::fill(&home.join("journal"), *size, USUAL.1, &["kafka"])?;
    }
    // The first is thrown away: it is the one that finds everything cold.
    for run in 0..=stage.arguments.runs.max(if stage.arguments.quick { 1 } else { RUNS_MIN }) {
        for (name, size, home) in &journals {
            eprintln!("{name}, run {run}");
            if *size == 0 {
                let _ = std::fs::remove_dir_all(home);
            }
            let accepted = accept(stage, home)?;
            let drained = drain(home, &kafka)?;
            if run > 0 {
                accepting.add(name, &accepted);
                draining.add(name, &drained);
            }
        }
    }
    for group in [&mut accepting, &mut draining] {
        if let [(first, ..), others @ ..] = &journals[..] {
            for (name, ..) in others {
                group.aims.push(Aim::most_of(name, "CPU µs each", first, 1.15));
            }
        }
    }
    for (.., home) in &journals {
        let _ = std::fs::remove_dir_all(home);
    }
    Ok(vec![accepting, draining])
}

fn accept(stage: &Stage, home: &Path) -> Result<Vec<(&'static str, f64)>, String> {
    let relay = Relay::start(relay::PROGRAM.as_ref(), &relay::configure(home, &away())?)?;
    let pid = relay.running.pid();
    let load = Load { length: Until::Answered(DRAINED as u64), ..stage.usual() };
    let outcome = load::run(relay.public, pid, load)?;
    if outcome.refused > 0 {
        return Err(format!("{} requests were not answered 200", outcome.refused));
    }
    let values = Measured::new(outcome, pid, None).values();
    relay.running.stop();
    Ok(values)
}

fn drain(home: &Path, kafka: &str) -> Result<Vec<(&'static str, f64)>, String> {
    let relay = Relay::start(relay::PROGRAM.as_ref(), &relay::configure(home, kafka)?)?;
    let drained = relay.drained("kafka", relay.pending("kafka")?.min(DRAINED) as u64)?;
    relay.running.stop();
    Ok(vec![
        ("per second", drained.events / drained.seconds),
        ("CPU µs each", drained.cpu_seconds / drained.events * 1e6),
    ])
}
