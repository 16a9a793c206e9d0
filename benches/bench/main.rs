//! `make bench`: the relay beside what it cannot avoid. Accepting beside a floor server, draining beside bare rdkafka and bare lapin, in turn on
//! the same machine and in the same minutes; see `docs/performance.md`.
//!
//! One program in several roles: it starts itself as floor and as bare client, so that each is a process whose CPU and memory can be read.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

mod accept;
mod backlog;
mod brokers;
mod clients;
mod drain;
mod growth;
mod latency;
mod load;
mod pace;
mod peers;
mod pressure;
mod process;
mod relay;
mod report;
mod rest;
mod servers;
mod stage;
mod through;
mod tls;
mod work;

use brokers::Brokers;
use report::{Group, Report};
use stage::{MB, Stage};

#[derive(Parser)]
#[command(about = "Measures the relay beside its floor; see docs/performance.md")]
pub struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Of each program, interleaved
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// That each run of accepting is measured for
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Of accepting as fast as it goes
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256])]
    connections: Vec<usize>,
    /// Bytes of each body there
    #[arg(long, value_delimiter = ',', default_values_t = [500, 4096])]
    body: Vec<usize>,
    /// Events that draining and starting begin with
    #[arg(long, default_value_t = 1_000_000)]
    pending: u64,
    /// Backlogs with which the cost of an event is compared
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1_000_000, 5_000_000])]
    growth: Vec<u64>,
    /// Only these parts
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// One short run of everything: shows that it works, and says nothing of speed
    #[arg(long)]
    quick: bool,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Accept,
    Latency,
    Pressure,
    Kafka,
    Rabbitmq,
    Through,
    Growth,
    Rest,
    Tls,
}

impl Part {
    fn measure(self, stage: &mut Stage) -> Result<Vec<Group>, String> {
        match self {
            Self::Accept => accept::measure(stage),
            Self::Latency => latency::measure(stage),
            Self::Pressure => pressure::measure(stage),
            Self::Kafka => drain::kafka(stage),
            Self::Rabbitmq => drain::rabbitmq(stage),
            Self::Through => through::measure(stage),
            Self::Growth => growth::measure(stage),
            Self::Rest => rest::measure(stage),
            Self::Tls => tls::measure(stage),
        }
    }
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
        None => measure(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn measure(mut arguments: Arguments) -> Result<(), String> {
    if arguments.quick {
        arguments = Arguments { runs: 1, seconds: 1, pending: 50_000, growth: vec![0, 50_000, 100_000], ..arguments };
    }
    let earlier = arguments.against.as_deref().map(Report::load).transpose()?;
    let (out, only) = (arguments.out.clone(), arguments.only.clone());
    let settings = format!(
        "{} runs of each program, interleaved; accepting for {} s each; {} events pending",
        arguments.runs, arguments.seconds, arguments.pending
    );
    let mut stage = Stage::new(arguments)?;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION").into(),
        machine: report::machine(stage.folder()),
        settings: vec![settings],
        groups: Vec::new(),
    };
    for part in Part::value_variants().iter().filter(|part| only.is_empty() || only.contains(part)) {
        report.groups.extend(part.measure(&mut stage)?);
        // What was measured so far is not lost with what comes.
        report.save(&out)?;
    }
    print!("{}", report.text());
    if let Some(earlier) = earlier {
        print!("{}", report.against(&earlier));
    }
    println!("\nAlso in {}, for `--against` of a later one.", out.display());
    Ok(())
}
