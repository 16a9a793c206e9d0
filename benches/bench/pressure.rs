//! Half of the maximum offered while things happen: nothing may be refused, and no answer may be late.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::backlog;
use crate::load::{self, Load, Until};
use crate::relay::{self, Relay, Settings};
use crate::report::{Aim, Group};
use crate::stage::{Measured, Stage, USUAL, away};

const PART: f64 = 0.5;
/// More than are ever under way while answers are in time: with a few, what a slow answer delays would wait in the load, and not at the server.
const CONNECTIONS: usize = 512;
const FLOOR: &str = "floor";
/// Retention that has something to delete while it is looked at.
const SHORT: &str = "retention = \"1s\"\n";

/// What is done to a broker or a journal meanwhile.
type Disturb = Box<dyn FnOnce() -> Result<(), String> + Send>;

struct Scene {
    name: &'static str,
    outputs: String,
    journal: &'static str,
    /// Begins with the pending events of `--pending`.
    pending: bool,
    disturb: Disturb,
}

pub fn measure(stage: &mut Stage) -> Result<Vec<Group>, String> {
    let rate = stage.maximum()? * PART;
    let mut group = Group::new("Half of the maximum offered, while …".into(), FLOOR, "requests/s");
    for run in 1..=stage.arguments.runs {
        let load = stage.load(CONNECTIONS, USUAL.1);
        let floor = stage.floor(|server| load::offer(server.address()?, server.pid(), load, rate))?;
        floor.add_to(&mut group, FLOOR)?;
        for scene in scenes(stage)? {
            eprintln!("{} run {run}", scene.name);
            let name = scene.name;
            let values = play(stage, scene, rate)?;
            group.add(name, &values);
        }
    }
    let names: Vec<String> = group.programs.iter().map(|program| program.name.clone()).collect();
    for name in names.iter().filter(|name| *name != FLOOR) {
        group.aims.push(Aim::most(name, "p99.9 ms", 100.0));
        group.aims.push(Aim::never_over(name, "max ms", 2_000.0));
        group.aims.push(Aim::never_over(name, "not 2xx", 0.0));
    }
    Ok(vec![group])
}

/// Of a scene: long enough for a broker to stop and start, and for what piles up slowly to show.
fn length(stage: &Stage) -> Duration {
    Duration::from_secs((3 * stage.arguments.seconds).max(6))
}

fn scenes(stage: &mut Stage) -> Result<Vec<Scene>, String> {
    let seconds = length(stage).as_secs_f64();
    let journal = stage.folder().join("pressure/journal/journal.db");
    let brokers = stage.brokers()?;
    let (kafka, rabbitmq) = (brokers.section("kafka"), brokers.section("rabbitmq"));
    let nothing = || Box::new(|| Ok(())) as Disturb;
    let scene =
        |name, outputs: &str, disturb| Scene { name, outputs: outputs.into(), journal: "", pending: false, disturb };
    let mut scenes = vec![
        scene("the broker is away", &away(), nothing()),
        scene("Kafka takes it", &kafka, nothing()),
        scene("RabbitMQ takes what it can", &rabbitmq, nothing()),
    ];
    for (name, broker, section) in
        [("Kafka stops and starts", "kafka", &kafka), ("RabbitMQ stops and starts", "rabbitmq", &rabbitmq)]
    {
        let broker = brokers.handle(broker);
        scenes.push(scene(
            name,
            section,
            Box::new(move || {
                broker.stop()?;
                broker.start()
            }),
        ));
    }
    for (name, broker, section) in [("Kafka is slow", "kafka", &kafka), ("RabbitMQ is slow", "rabbitmq", &rabbitmq)] {
        let broker = brokers.handle(broker);
        scenes.push(scene(name, section, Box::new(move || slow(&broker, seconds))));
    }
    let pending = |name, section: &str| Scene { pending: true, ..scene(name, section, nothing()) };
    scenes.push(pending("a backlog drains into Kafka", &kafka));
    scenes.push(pending("a backlog drains into RabbitMQ", &rabbitmq));
    scenes.push(Scene { journal: SHORT, ..scene("retention deletes", "[outputs.console]\n", nothing()) });
    let held = stage.arguments.seconds as f64 / 3.0; // A longer one makes a longer log.
    let hold = Box::new(move || hold(&journal, held));
    scenes.push(scene("a long read, then a checkpoint of all since", &away(), hold));
    Ok(scenes)
}

/// It runs for one millisecond in ten.
fn slow(broker: &crate::brokers::Handle, seconds: f64) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        broker.freeze(true)?;
        std::thread::sleep(Duration::from_millis(90));
        broker.freeze(false)?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A reader that keeps its snapshot, so that the log can be checkpointed no further than to it.
fn hold(journal: &Path, seconds: f64) -> Result<(), String> {
    let read = || -> rusqlite::Result<()> {
        let db = Connection::open(journal)?;
        db.execute_batch("BEGIN")?;
        db.query_row("SELECT max(sequence) FROM events", [], |row| row.get::<_, Option<i64>>(0))?;
        std::thread::sleep(Duration::from_secs_f64(seconds));
        db.execute_batch("COMMIT")
    };
    read().map_err(|error| format!("the long read: {error}"))
}

fn play(stage: &mut Stage, scene: Scene, rate: f64) -> Result<Vec<(&'static str, f64)>, String> {
    let home = stage.folder().join("pressure");
    let settings = Settings { outputs: &scene.outputs, journal: scene.journal, ingress: "" };
    let config = relay::configure_all(&home, &settings)?;
    if scene.pending {
        backlog::copy(&stage.pending()?, &home.join("journal"))?;
    }
    let relay = Relay::start(relay::PROGRAM.as_ref(), &config)?;
    let pid = relay.running.pid();
    // The scene begins with what is counted, and what it does may take longer than that.
    let usual = stage.load(CONNECTIONS, USUAL.1);
    let warm_up = usual.warm_up;
    let disturbing = std::thread::spawn(move || {
        std::thread::sleep(warm_up);
        (scene.disturb)()
    });
    let pending = if scene.pending { stage.arguments.pending as f64 } else { 0.0 };
    let load = Load { length: Until::Passed(length(stage)), ..usual };
    let before = relay.published()?;
    let outcome = load::offer(relay.public, pid, load, rate)?;
    let after = relay.published()?;
    let disturbed = disturbing.join().map_err(|_| "what was to happen panicked".to_owned())?;
    disturbed?;
    let refused = outcome.refused as f64;
    let seconds = outcome.seconds + warm_up.as_secs_f64();
    let mut values = Measured::new(outcome, pid, None).values();
    values.push(("not 2xx", refused));
    values.push(("published/s", (after - before) / seconds));
    if pending > 0.0 {
        values.push(("backlog left", (pending - after).max(0.0)));
    }
    relay.running.stop();
    let _ = std::fs::remove_dir_all(&home);
    Ok(values)
}
