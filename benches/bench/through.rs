//! From a webhook to the broker's confirmation, at a thousand a second: each event's own times, which the journal's trail has to the
//! microsecond, and so those of every one of them.

use rusqlite::Connection;
use sipsim_relay::simulate::Histogram;

use crate::load::{self, Load};
use crate::relay::{self, Relay};
use crate::report::{Aim, Group};
use crate::stage::Stage;

const PER_SECOND: f64 = 1_000.0;

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let name = "Webhook to the broker's confirmation, at 1,000 a second";
    let mut group = Group::new(name.into(), "", "events/s");
    let load = stage.usual();
    for run in 1..=stage.arguments.runs {
        for (output, program) in [("kafka", "relay into Kafka"), ("rabbitmq", "relay into RabbitMQ")] {
            eprintln!("through to {output}, run {run}");
            let values = through(stage, output, load)?;
            group.add(program, &values);
        }
    }
    for program in ["relay into Kafka", "relay into RabbitMQ"] {
        group.aims.push(Aim::most(program, "p50 ms", 15.0));
        group.aims.push(Aim::most(program, "p99 ms", 50.0));
    }
    Ok(vec![group])
}

fn through(stage: &mut Stage, output: &str, load: Load) -> Result<Vec<(&'static str, f64)>, String> {
    let section = stage.brokers()?.section(output);
    let home = stage.folder().join("through");
    let relay = Relay::start(relay::PROGRAM.as_ref(), &relay::configure(&home, &section)?)?;
    relay.connected(output)?;
    let outcome = load::offer(relay.public, relay.running.pid(), load, PER_SECOND)?;
    relay.nothing_pending(output)?;
    relay.running.stop();
    if outcome.refused > 0 {
        return Err(format!("{} requests were not answered 200", outcome.refused));
    }
    let latency = delays(&home.join("journal/journal.db"), load.warm_up.as_secs_f64() * PER_SECOND);
    let latency = latency.map_err(|error| format!("the trail: {error}"))?;
    let milliseconds = |share: f64| latency.quantile(share).map_or(f64::NAN, |delay| delay.as_secs_f64() * 1e3);
    let _ = std::fs::remove_dir_all(&home);
    Ok(vec![
        ("per second", outcome.answered as f64 / outcome.seconds),
        ("p50 ms", milliseconds(0.5)),
        ("p99 ms", milliseconds(0.99)),
        ("p99.9 ms", milliseconds(0.999)),
        ("max ms", milliseconds(1.0)),
        ("CPU µs each", outcome.cpu_seconds / outcome.answered as f64 * 1e6),
    ])
}

/// From an event's arrival to its confirmation, those of the warm-up left out.
fn delays(journal: &std::path::Path, warm_up: f64) -> rusqlite::Result<Histogram> {
    let db = Connection::open(journal)?;
    let mut delays = Histogram::default();
    let mut select = db.prepare("SELECT at - received_at FROM trail WHERE state = 'published' AND sequence > ?")?;
    let mut rows = select.query([warm_up as i64])?;
    while let Some(row) = rows.next()? {
        delays.record(std::time::Duration::from_micros(row.get::<_, i64>(0)?.max(0) as u64));
    }
    Ok(delays)
}
