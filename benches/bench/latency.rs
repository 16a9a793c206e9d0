//! How long an answer takes: at parts of the maximum, offered whatever the server does, and from one connection alone.

use crate::accept::FLOOR;
use crate::load;
use crate::report::{Aim, Group};
use crate::stage::{Stage, away};

const PARTS: [u32; 3] = [10, 50, 70];

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let maximum = stage.maximum()?;
    let mut groups = Vec::new();
    for part in PARTS {
        let rate = maximum * f64::from(part) / 100.0;
        let mut group = Group::new(format!("Offered {part} % of the maximum"), FLOOR, "requests/s");
        let load = stage.usual();
        for run in 1..=stage.arguments.runs {
            eprintln!("offering {rate:.0} a second, run {run}");
            let floor = stage.floor(|server| load::offer(server.address()?, server.pid(), load, rate))?;
            floor.add_to(&mut group, FLOOR)?;
            for (name, program) in stage.relays(run) {
                let kept = stage
                    .relay(&program, &away(), |relay| load::offer(relay.public, relay.running.pid(), load, rate))?;
                kept.add_to(&mut group, name)?;
            }
        }
        group.finish();
        group.aims.push(Aim::most("relay", "p99.9 ms", 50.0));
        groups.push(group);
    }
    groups.push(alone(stage)?);
    Ok(groups)
}

fn alone(stage: &Stage) -> Result<Group, String> {
    let mut group = Group::new("One connection alone".into(), FLOOR, "requests/s");
    let load = stage.load(1, 500);
    for run in 1..=stage.arguments.runs {
        eprintln!("one connection alone, run {run}");
        stage.floor(|server| load::run(server.address()?, server.pid(), load))?.add_to(&mut group, FLOOR)?;
        for (name, program) in stage.relays(run) {
            let kept = stage.relay(&program, &away(), |relay| load::run(relay.public, relay.running.pid(), load))?;
            kept.add_to(&mut group, name)?;
        }
    }
    group.finish();
    // An answer within 1.3 of the floor's time.
    group.aims.push(Aim::least("relay", "of the floor", 1.0 / 1.3));
    Ok(group)
}
