//! Accepting as fast as it goes: the load's own maximum, the floor, the relay keeping only (its broker is away), and the relay publishing
//! beside it.

use crate::load;
use crate::process::Running;
use crate::report::{Aim, Group};
use crate::stage::{Measured, Stage, USUAL, away};

pub const FLOOR: &str = "floor: hyper, HMAC, append, shared fdatasync";

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let mut groups = Vec::new();
    for body_bytes in stage.arguments.body.clone() {
        for connections in stage.arguments.connections.clone() {
            groups.push(accept(stage, connections, body_bytes)?);
        }
    }
    Ok(groups)
}

fn accept(stage: &mut Stage, connections: usize, body_bytes: usize) -> Result<Group, String> {
    let mut group =
        Group::new(format!("Accepting: {connections} connections, bodies of {body_bytes} bytes"), FLOOR, "requests/s");
    let load = stage.load(connections, body_bytes);
    for run in 1..=stage.arguments.runs {
        eprintln!("accepting from {connections} connections, {body_bytes} bytes, run {run}");
        let is_usual = (connections, body_bytes) == USUAL;
        if is_usual {
            let mut instant = Running::role(&["instant"])?;
            let outcome = load::run(instant.address()?, instant.pid(), load)?;
            Measured::new(outcome, instant.pid(), None).add_to(&mut group, "the load alone: answered at once")?;
            instant.stop();
        }
        let floor = stage.floor(|server| load::run(server.address()?, server.pid(), load))?;
        floor.add_to(&mut group, FLOOR)?;
        for (name, program) in stage.relays(run) {
            let kept = stage.relay(&program, &away(), |relay| load::run(relay.public, relay.running.pid(), load))?;
            kept.add_to(&mut group, name)?;
            if is_usual && name == "relay" {
                stage.maxima.push(kept.outcome.answered as f64 / kept.outcome.seconds);
            }
            if is_usual {
                let console = "[outputs.console]\n";
                let published =
                    stage.relay(&program, console, |relay| load::run(relay.public, relay.running.pid(), load))?;
                published.add_to(&mut group, &format!("{name}, publishing to a console"))?;
            }
        }
    }
    group.finish();
    let part = if body_bytes <= 1_000 { 0.85 } else { 0.75 };
    group.aims.push(Aim::least("relay", "of the floor", part));
    group.aims.push(Aim::most("relay", "p99.9 ms", 50.0));
    if (connections, body_bytes) == USUAL {
        group.aims.push(Aim::most("relay", "MB at start", 30.0));
        group.aims.push(Aim::most("relay, publishing to a console", "MB at most", 120.0));
    }
    Ok(group)
}
