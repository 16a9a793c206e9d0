//! `make bench`: the relay beside what it cannot avoid. Accepting beside a floor server, draining beside bare rdkafka and bare lapin, in turn on
//! the same machine and in the same minutes; see `docs/performance.md`.
//!
//! One program in several roles: it starts itself as floor and as bare client, so that each is a process whose CPU and memory can be read.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

mod clients;
mod load;
mod peers;
mod process;
mod relay;
mod report;
mod servers;
mod work;

use load::{Load, Until};
use process::{Running, Usage};
use relay::Relay;
use report::{Group, Report};

/// Nobody listens there: the discard port, on loopback.
const NO_BROKER: &str = "127.0.0.1:9";

#[derive(Parser)]
#[command(about = "Measures the relay beside its floor; see docs/performance.md")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Of each program, interleaved
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// That each run of accepting is measured for
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of each body
    #[arg(long, default_value_t = 500)]
    body: usize,
    /// Events that each run of draining begins with
    #[arg(long, default_value_t = 200_000)]
    pending: u64,
    /// Only this part
    #[arg(long)]
    only: Option<Part>,
    /// Where the result goes as JSON
    #[arg(long, default_value = "target/bench.json")]
    out: PathBuf,
    /// An earlier result to set this one against
    #[arg(long)]
    against: Option<PathBuf>,
    /// Another build of the relay, measured in the same rounds: the comparison for a noisy machine
    #[arg(long)]
    beside: Option<PathBuf>,
    /// cargo gives this; it says nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Accept,
    Kafka,
    Rabbitmq,
}

/// What the benchmark starts itself as.
#[derive(Subcommand)]
enum Role {
    Instant,
    Floor {
        file: PathBuf,
    },
    Kafka {
        brokers: String,
        journal: PathBuf,
    },
    Rabbitmq {
        url: String,
        journal: PathBuf,
    },
    /// Measures the relay beside Bento instead: `make bench-peers`
    Peers(peers::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(Role::Instant) => servers::instant(),
        Some(Role::Floor { file }) => servers::floor(file),
        Some(Role::Kafka { brokers, journal }) => clients::kafka(brokers, journal),
        Some(Role::Rabbitmq { url, journal }) => clients::rabbitmq(url, journal),
        Some(Role::Peers(peers)) => peers::measure(peers),
        None => measure(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    let earlier = arguments.against.as_deref().map(Report::load).transpose()?;
    // On the disk of the build, since /tmp may be memory, where a sync costs nothing.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: report::machine(folder.path()),
        settings: vec![format!(
            "{} runs of each program, interleaved; accepting: {} connections, bodies of {} bytes, {} s each; draining: {} events",
            arguments.runs, arguments.connections, arguments.body, arguments.seconds, arguments.pending
        )],
        groups: Vec::new(),
    };
    let wants = |part| arguments.only.is_none_or(|only| only == part);
    if wants(Part::Accept) {
        report.groups.push(accept(arguments, folder.path())?);
    }
    if wants(Part::Kafka) || wants(Part::Rabbitmq) {
        let brokers = Brokers::start()?;
        let pending = fill(arguments, folder.path())?;
        if wants(Part::Kafka) {
            report.groups.push(drain(arguments, folder.path(), &pending, &brokers, "kafka", "bare rdkafka")?);
        }
        if wants(Part::Rabbitmq) {
            report.groups.push(drain(arguments, folder.path(), &pending, &brokers, "rabbitmq", "bare lapin")?);
        }
    }
    print!("{}", report.text());
    if let Some(earlier) = earlier {
        print!("{}", report.against(&earlier));
    }
    report.save(&arguments.out)?;
    println!("\nAlso in {}, for `--against` of a later one.", arguments.out.display());
    Ok(())
}

/// Accepting: the load's own maximum, the floor, the relay keeping only (its broker is away), and the relay publishing beside it.
fn accept(arguments: &Arguments, folder: &Path) -> Result<Group, String> {
    let mut group = Group::new(
        format!("Accepting: {} connections, bodies of {} bytes", arguments.connections, arguments.body),
        "floor: hyper, HMAC, append, shared fdatasync",
        "requests/s",
    );
    let floor = group.floor.clone();
    let load = Load {
        connections: arguments.connections,
        body_bytes: arguments.body,
        warm_up: Duration::from_secs(1),
        length: Until::Passed(Duration::from_secs(arguments.seconds)),
    };
    for run in 1..=arguments.runs {
        eprintln!("accepting, run {run} of {}", arguments.runs);
        let mut instant = Running::role(&["instant"])?;
        let address = instant.address()?;
        accepted(
            &mut group,
            "the load alone: answered at once",
            load::run(address, instant.pid(), load)?,
            instant.pid(),
            None,
        )?;
        instant.stop();

        let file = folder.join("floor");
        let mut server = Running::role(&["floor", &file.to_string_lossy()])?;
        let address = server.address()?;
        accepted(&mut group, &floor, load::run(address, server.pid(), load)?, server.pid(), None)?;
        server.stop();
        let _ = std::fs::remove_file(&file);

        for (what, outputs) in [
            ("journal alone (broker away)", format!("[outputs.kafka]\nbrokers = \"{NO_BROKER}\"\n")),
            ("publishing to a console", "[outputs.console]\n".into()),
        ] {
            for (name, program) in relays(arguments) {
                let home = folder.join("relay");
                let relay = Relay::start(&program, &relay::configure(&home, &outputs)?)?;
                std::thread::sleep(Duration::from_secs(1));
                let pid = relay.running.pid();
                let idle = Usage::of(pid).resident_bytes;
                accepted(&mut group, &format!("{name}, {what}"), load::run(relay.public, pid, load)?, pid, Some(idle))?;
                relay.running.stop();
                let _ = std::fs::remove_dir_all(&home);
            }
        }
    }
    group.finish();
    Ok(group)
}

/// The build under test, and the other one if there is one.
fn relays(arguments: &Arguments) -> Vec<(&'static str, PathBuf)> {
    let other = arguments.beside.clone().map(|program| ("the other build", program));
    [("relay", PathBuf::from(relay::PROGRAM))].into_iter().chain(other).collect()
}

const MB: f64 = 1_000_000.0;

fn accepted(
    group: &mut Group,
    program: &str,
    outcome: load::Outcome,
    pid: u32,
    idle_bytes: Option<u64>,
) -> Result<(), String> {
    if outcome.refused > 0 {
        return Err(format!("{program}: {} requests were not answered 200", outcome.refused));
    }
    let milliseconds =
        |share: f64| outcome.latency.quantile(share).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3);
    let mut values = vec![
        ("per second", outcome.answered as f64 / outcome.seconds),
        ("p50 ms", milliseconds(0.5)),
        ("p99 ms", milliseconds(0.99)),
        ("p99.9 ms", milliseconds(0.999)),
        ("max ms", milliseconds(1.0)),
        ("CPU s / 10,000", outcome.cpu_seconds / outcome.answered as f64 * 1e4),
        ("load's CPU s / 10,000", outcome.own_cpu_seconds / outcome.answered as f64 * 1e4),
        ("KB written each", outcome.written_bytes as f64 / outcome.answered as f64 / 1e3),
        ("MB at most", Usage::of(pid).resident_max_bytes as f64 / MB),
    ];
    values.extend(idle_bytes.map(|bytes| ("MB at start", bytes as f64 / MB)));
    group.add(program, &values);
    Ok(())
}

/// A journal full of pending events, as a relay whose brokers are away leaves it.
fn fill(arguments: &Arguments, folder: &Path) -> Result<PathBuf, String> {
    eprintln!("filling a journal with {} events", arguments.pending);
    let home = folder.join("pending");
    let outputs = format!(
        "[outputs.kafka]\nbrokers = \"{NO_BROKER}\"\n[outputs.rabbitmq]\nurls = [\"amqp://{NO_BROKER}/%2f\"]\n"
    );
    let relay = Relay::start(Path::new(relay::PROGRAM), &relay::configure(&home, &outputs)?)?;
    let load = Load {
        connections: arguments.connections,
        body_bytes: arguments.body,
        warm_up: Duration::ZERO,
        length: Until::Answered(arguments.pending),
    };
    let outcome = load::run(relay.public, relay.running.pid(), load)?;
    relay.running.stop();
    match outcome.refused {
        0 => Ok(home.join("journal")),
        refused => Err(format!("{refused} requests were not answered 200 while the journal was filled")),
    }
}

/// Draining: the bare client and the relay in turn, each beginning with the same pending events.
fn drain(
    arguments: &Arguments,
    folder: &Path,
    pending: &Path,
    brokers: &Brokers,
    output: &str,
    bare: &str,
) -> Result<Group, String> {
    let mut group = Group::new(format!("Draining {} events into {output}", arguments.pending), bare, "events/s");
    let section = match output {
        "kafka" => format!("[outputs.kafka]\nbrokers = \"{}\"\n", brokers.kafka),
        _ => format!("[outputs.rabbitmq]\nurls = [\"{}\"]\n", brokers.rabbitmq),
    };
    let home = folder.join("drain");
    let config = relay::configure(&home, &section)?;
    relay::command(&["topics", "--create", "--yes"], &config)?;
    let address = if output == "kafka" { &brokers.kafka } else { &brokers.rabbitmq };
    for run in 1..=arguments.runs {
        eprintln!("draining into {output}, run {run} of {}", arguments.runs);
        let journal = home.join("journal");
        let prepare = || match output {
            "rabbitmq" => clients::purge(&brokers.rabbitmq).and_then(|()| process::copy_journal(pending, &journal)),
            _ => process::copy_journal(pending, &journal),
        };
        prepare()?;
        let mut client = Running::role(&[output, address, &journal.join("journal.db").to_string_lossy()])?;
        let line = client.line()?;
        let numbers: Vec<f64> = line.split(' ').filter_map(|text| text.parse().ok()).collect();
        let &[events, seconds, cpu_seconds] = &numbers[..] else { return Err(format!("a bare client said: {line}")) };
        group.add(bare, &[("per second", events / seconds), ("CPU s / 10,000", cpu_seconds / events * 1e4)]);
        client.stop();
        for (name, program) in relays(arguments) {
            prepare()?;
            let relay = Relay::start(&program, &config)?;
            let drained = relay.drained(output, arguments.pending)?;
            let memory = Usage::of(relay.running.pid()).resident_max_bytes as f64 / MB;
            let cpu = drained.cpu_seconds / drained.events * 1e4;
            group.add(
                name,
                &[("per second", drained.events / drained.seconds), ("CPU s / 10,000", cpu), ("MB at most", memory)],
            );
            relay.running.stop();
        }
    }
    group.finish();
    let _ = std::fs::remove_dir_all(&home);
    Ok(group)
}

/// A real Kafka and a real RabbitMQ of our own, or those that the environment names; see `scripts/brokers`.
struct Brokers {
    kafka: String,
    rabbitmq: String,
    folder: tempfile::TempDir,
}

impl Brokers {
    fn start() -> Result<Self, String> {
        eprintln!("starting Kafka and RabbitMQ");
        // RabbitMQ runs as another user, who must be able to enter it: /tmp, not the build's folder.
        let folder =
            tempfile::Builder::new().prefix("sipsim-relay-bench").tempdir().map_err(|error| error.to_string())?;
        let said = Self::script(&["start", "all", "--while", &std::process::id().to_string()], folder.path())?;
        let find =
            |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
        let missing = "scripts/brokers printed no address";
        Ok(Self { kafka: find("KAFKA").ok_or(missing)?, rabbitmq: find("RABBITMQ").ok_or(missing)?, folder })
    }

    /// `stop-one` or `start-one` of `kafka` or `rabbitmq`; returns once that is done.
    fn order(&self, order: &str, broker: &str) -> Result<(), String> {
        Self::script(&[order, broker], self.folder.path()).map(drop)
    }

    fn script(arguments: &[&str], folder: &Path) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/brokers");
        process::complete(std::process::Command::new(script).args(arguments).arg("--dir").arg(folder))
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        let _ = Self::script(&["stop", "--kill"], self.folder.path());
    }
}
