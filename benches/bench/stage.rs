//! What the parts have in common: the arguments, a folder, the brokers and the journals, each made when it is first asked for.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Arguments;
use crate::backlog;
use crate::brokers::Brokers;
use crate::load::{self, Load, Outcome, Until};
use crate::process::{Running, Usage};
use crate::relay::{self, Relay};
use crate::report::Group;

/// Nobody listens there: the discard port, on loopback.
pub const NO_BROKER: &str = "127.0.0.1:9";
pub const MB: f64 = 1_000_000.0;
/// The connections and bodies that the parts have which vary something else.
pub const USUAL: (usize, usize) = (64, 500);

pub struct Stage {
    pub arguments: Arguments,
    folder: tempfile::TempDir,
    brokers: Option<Brokers>,
    pending: Option<PathBuf>,
    /// What was accepted a second at the usual load, in each run so far.
    pub maxima: Vec<f64>,
}

impl Stage {
    pub fn new(arguments: Arguments) -> Result<Self, String> {
        // On the disk of the build, since /tmp may be memory, where a sync costs nothing.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).map_err(|error| error.to_string())?;
        Ok(Self { arguments, folder, brokers: None, pending: None, maxima: Vec::new() })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn brokers(&mut self) -> Result<&Brokers, String> {
        if self.brokers.is_none() {
            // A million records a run, which nobody reads.
            let brokers = Brokers::start_with(&["log.retention.bytes=67108864", "log.segment.bytes=33554432"])?;
            for broker in ["kafka", "rabbitmq"] {
                let config = relay::configure(&self.folder().join("topics"), &brokers.section(broker))?;
                relay::command(&["topics", "--create", "--yes"], &config)?;
            }
            self.brokers = Some(brokers);
        }
        self.brokers.as_ref().ok_or_else(|| "no brokers".to_owned())
    }

    /// A journal with `--pending` events for either broker, to be read or copied.
    pub fn pending(&mut self) -> Result<PathBuf, String> {
        if let Some(folder) = &self.pending {
            return Ok(folder.clone());
        }
        let folder = self.folder().join("pending");
        let folder = backlog::fill(&folder, self.arguments.pending, USUAL.1, &["kafka", "rabbitmq"])?;
        self.pending = Some(folder.clone());
        Ok(folder)
    }

    /// The build under test, and the other one if there is one. Who goes first changes from run to run: what went before leaves the disk busy.
    pub fn relays(&self, run: u32) -> Vec<(&'static str, PathBuf)> {
        let other = self.arguments.beside.clone().map(|program| ("the other build", program));
        let mut relays: Vec<_> = [("relay", PathBuf::from(relay::PROGRAM))].into_iter().chain(other).collect();
        if run.is_multiple_of(2) {
            relays.reverse();
        }
        relays
    }

    pub fn load(&self, connections: usize, body_bytes: usize) -> Load {
        Load {
            connections,
            body_bytes,
            warm_up: Duration::from_secs(1),
            length: Until::Passed(Duration::from_secs(self.arguments.seconds)),
        }
    }

    /// The usual load.
    pub fn usual(&self) -> Load {
        self.load(USUAL.0, USUAL.1)
    }

    /// A floor server for as long as `work` loads it.
    pub fn floor(&self, work: impl FnOnce(&mut Running) -> Result<Outcome, String>) -> Result<Measured, String> {
        let file = self.folder().join("floor");
        let mut server = Running::role(&["floor", &file.to_string_lossy()])?;
        let outcome = work(&mut server)?;
        let measured = Measured::new(outcome, server.pid(), None);
        server.stop();
        let _ = std::fs::remove_file(&file);
        Ok(measured)
    }

    /// A relay with a new journal for as long as `work` loads it.
    pub fn relay(
        &self,
        program: &Path,
        outputs: &str,
        work: impl FnOnce(&Relay) -> Result<Outcome, String>,
    ) -> Result<Measured, String> {
        let home = self.folder().join("relay");
        let relay = Relay::start(program, &relay::configure(&home, outputs)?)?;
        std::thread::sleep(Duration::from_secs(1));
        let pid = relay.running.pid();
        let idle = Usage::of(pid).resident_bytes;
        let measured = Measured::new(work(&relay)?, pid, Some(idle));
        relay.running.stop();
        let _ = std::fs::remove_dir_all(&home);
        Ok(measured)
    }

    /// What the relay accepts a second at the usual load: the median of what was measured, now if it was not yet.
    pub fn maximum(&mut self) -> Result<f64, String> {
        if self.maxima.is_empty() {
            for run in 1..=self.arguments.runs {
                eprintln!("looking for the maximum, run {run}");
                let load = self.usual();
                let measured = self.relay(Path::new(relay::PROGRAM), &away(), |relay| {
                    load::run(relay.public, relay.running.pid(), load)
                })?;
                self.maxima.push(measured.outcome.answered as f64 / measured.outcome.seconds);
            }
        }
        Ok(crate::report::median(&self.maxima))
    }
}

/// An output whose broker is away: accepting, and nothing else.
pub fn away() -> String {
    format!("[outputs.kafka]\nbrokers = \"{NO_BROKER}\"\n")
}

/// What a load showed, with the memory of the server.
pub struct Measured {
    pub outcome: Outcome,
    idle_bytes: Option<u64>,
    resident_max_bytes: u64,
}

impl Measured {
    pub fn new(outcome: Outcome, pid: u32, idle_bytes: Option<u64>) -> Self {
        Self { outcome, idle_bytes, resident_max_bytes: Usage::of(pid).resident_max_bytes }
    }

    pub fn values(&self) -> Vec<(&'static str, f64)> {
        let outcome = &self.outcome;
        let milliseconds =
            |share: f64| outcome.latency.quantile(share).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3);
        let each = outcome.answered as f64;
        let mut values = vec![
            ("per second", each / outcome.seconds),
            ("p50 ms", milliseconds(0.5)),
            ("p99 ms", milliseconds(0.99)),
            ("p99.9 ms", milliseconds(0.999)),
            ("max ms", milliseconds(1.0)),
            ("CPU µs each", outcome.cpu_seconds / each * 1e6),
            ("load's CPU µs each", outcome.own_cpu_seconds / each * 1e6),
            ("KB written each", outcome.written_bytes as f64 / each / 1e3),
            ("MB at most", self.resident_max_bytes as f64 / MB),
        ];
        values.extend(self.idle_bytes.map(|bytes| ("MB at start", bytes as f64 / MB)));
        values
    }

    /// Notes it as a run of `program`, of which nothing may have been refused.
    pub fn add_to(&self, group: &mut Group, program: &str) -> Result<(), String> {
        if self.outcome.refused > 0 {
            return Err(format!("{program}: {} requests were not answered 200", self.outcome.refused));
        }
        group.add(program, &self.values());
        Ok(())
    }
}
