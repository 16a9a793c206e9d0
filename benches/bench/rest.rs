//! A relay that has nothing to do, or has just been started, or holds connections that say nothing.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::load;
use crate::process::{Usage, cpu_seconds};
use crate::relay::{self, Relay};
use crate::report::{Aim, Group};
use crate::stage::{MB, Measured, NO_BROKER, Stage, away};

const IDLE_CONNECTIONS: usize = 1_000;

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    Ok(vec![idle(stage)?, start(stage)?, connections(stage)?])
}

/// Connected to Kafka, with nothing to do.
fn idle(stage: &mut Stage) -> Result<Group, String> {
    let mut group = Group::new("Nothing to do".into(), "", "");
    let section = stage.brokers()?.section("kafka");
    let home = stage.folder().join("idle");
    for run in 1..=stage.arguments.runs {
        eprintln!("idle, run {run}");
        let relay = Relay::start(relay::PROGRAM.as_ref(), &relay::configure(&home, &section)?)?;
        relay.connected("kafka")?;
        std::thread::sleep(Duration::from_secs(2));
        let pid = relay.running.pid();
        let (began, before) = (Instant::now(), cpu_seconds(pid));
        std::thread::sleep(Duration::from_secs(stage.arguments.seconds.max(2) * 2));
        let part = (cpu_seconds(pid) - before) / began.elapsed().as_secs_f64();
        let resident = Usage::of(pid).resident_bytes as f64 / MB;
        group.add("relay, connected to Kafka", &[("% of a core", part * 100.0), ("MB", resident)]);
        relay.running.stop();
        let _ = std::fs::remove_dir_all(&home);
    }
    group.aims.push(Aim::most("relay, connected to Kafka", "% of a core", 0.2));
    group.aims.push(Aim::most("relay, connected to Kafka", "MB", 30.0));
    Ok(group)
}

/// With a backlog, until it is ready, and what it then takes.
fn start(stage: &mut Stage) -> Result<Group, String> {
    let mut group = Group::new(format!("Started with {} events pending", stage.arguments.pending), "", "");
    let home = stage.pending()?;
    let home = home.parent().unwrap_or(&home).join("start");
    crate::backlog::copy(&stage.pending()?, &home.join("journal"))?;
    let outputs = format!("{}[outputs.rabbitmq]\nurls = [\"amqp://{NO_BROKER}/%2f\"]\n", away());
    for run in 1..=stage.arguments.runs {
        eprintln!("started, run {run}");
        let config = relay::configure(&home, &outputs)?;
        let began = Instant::now();
        let relay = Relay::start(relay::PROGRAM.as_ref(), &config)?;
        let took = began.elapsed().as_secs_f64();
        std::thread::sleep(Duration::from_secs(2));
        let resident = Usage::of(relay.running.pid()).resident_max_bytes as f64 / MB;
        group.add("relay, its brokers away", &[("ready after s", took), ("MB at most", resident)]);
        relay.running.stop();
    }
    let _ = std::fs::remove_dir_all(&home);
    group.aims.push(Aim::most("relay, its brokers away", "ready after s", 2.0));
    group.aims.push(Aim::most("relay, its brokers away", "MB at most", 150.0));
    Ok(group)
}

/// The usual load beside a thousand connections that say nothing.
fn connections(stage: &Stage) -> Result<Group, String> {
    let mut group = Group::new("Beside idle connections".into(), "without", "requests/s");
    let load = stage.usual();
    let with = format!("{IDLE_CONNECTIONS} idle connections");
    for run in 1..=stage.arguments.runs {
        eprintln!("idle connections, run {run}");
        for (name, count) in [("without", 0), (with.as_str(), IDLE_CONNECTIONS)] {
            let mut taken = 0.0;
            let measured: Measured = stage.relay(relay::PROGRAM.as_ref(), &away(), |relay| {
                let before = Usage::of(relay.running.pid()).resident_bytes;
                let open: Result<Vec<_>, _> = (0..count).map(|_| TcpStream::connect(relay.public)).collect();
                let open = open.map_err(|error| error.to_string())?;
                std::thread::sleep(Duration::from_secs(1));
                taken = (Usage::of(relay.running.pid()).resident_bytes.saturating_sub(before)) as f64;
                let outcome = load::run(relay.public, relay.running.pid(), load);
                drop(open);
                outcome
            })?;
            measured.add_to(&mut group, name)?;
            if count > 0 {
                group.add(name, &[("KB a connection", taken / count as f64 / 1e3)]);
            }
        }
    }
    group.finish();
    Ok(group)
}
