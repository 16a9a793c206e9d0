//! Draining a backlog: the bare client and the relay in turn, each beginning with the same pending events.

use crate::backlog;
use crate::clients;
use crate::process::{Running, Usage};
use crate::relay::{self, Relay};
use crate::report::{Aim, Group};
use crate::stage::{MB, Stage};

pub fn kafka(stage: &mut Stage) -> Result<Vec<Group>, String> {
    drain(stage, "kafka", "bare rdkafka", 0.8).map(|group| vec![group])
}

pub fn rabbitmq(stage: &mut Stage) -> Result<Vec<Group>, String> {
    drain(stage, "rabbitmq", "bare lapin", 0.85).map(|group| vec![group])
}

fn drain(stage: &mut Stage, output: &str, bare: &str, aim: f64) -> Result<Group, String> {
    let count = stage.arguments.pending;
    let mut group = Group::new(format!("Draining {count} events into {output}"), bare, "events/s");
    let pending = stage.pending()?;
    let home = stage.folder().join("drain");
    let journal = home.join("journal");
    let brokers = stage.brokers()?;
    let config = relay::configure(&home, &brokers.section(output))?;
    let address = if output == "kafka" { brokers.kafka.clone() } else { brokers.rabbitmq.clone() };
    // The queues, so that no run finds the broker fuller than the one before it.
    let purge = || if output == "rabbitmq" { clients::purge(&address) } else { Ok(()) };
    for run in 1..=stage.arguments.runs {
        eprintln!("draining into {output}, run {run}");
        purge()?;
        let mut client = Running::role(&[output, &address, &pending.join("journal.db").to_string_lossy()])?;
        let line = client.line()?;
        let numbers: Vec<f64> = line.split(' ').filter_map(|text| text.parse().ok()).collect();
        let &[events, seconds, cpu_seconds] = &numbers[..] else { return Err(format!("a bare client said: {line}")) };
        group.add(bare, &[("per second", events / seconds), ("CPU µs each", cpu_seconds / events * 1e6)]);
        client.stop();
        for (name, program) in stage.relays(run) {
            purge()?;
            backlog::copy(&pending, &journal)?;
            let relay = Relay::start(&program, &config)?;
            let drained = relay.drained(output, count)?;
            group.add(
                name,
                &[
                    ("per second", drained.events / drained.seconds),
                    ("CPU µs each", drained.cpu_seconds / drained.events * 1e6),
                    ("KB written each", drained.written_bytes as f64 / drained.events / 1e3),
                    ("MB at most", Usage::of(relay.running.pid()).resident_max_bytes as f64 / MB),
                ],
            );
            relay.running.stop();
        }
    }
    group.finish();
    group.aims.push(Aim::least("relay", "of the floor", aim));
    group.aims.push(Aim::most("relay", "MB at most", 150.0));
    let _ = std::fs::remove_dir_all(&home);
    Ok(group)
}
