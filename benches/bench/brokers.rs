//! A real Kafka and a real RabbitMQ of our own, or those that the environment names; see `scripts/brokers`.

use std::path::Path;
use std::process::Command;

use crate::process;

pub struct Brokers {
    pub kafka: String,
    pub rabbitmq: String,
    folder: tempfile::TempDir,
}

impl Brokers {
    pub fn start() -> Result<Self, String> {
        Self::start_with(&[])
    }

    /// With further properties of Kafka.
    pub fn start_with(properties: &[&str]) -> Result<Self, String> {
        eprintln!("starting Kafka and RabbitMQ");
        // RabbitMQ runs as another user, who must be able to enter it: /tmp, not the build's folder.
        let folder =
            tempfile::Builder::new().prefix("sipsim-relay-bench").tempdir().map_err(|error| error.to_string())?;
        let process = std::process::id().to_string();
        let properties = properties.iter().flat_map(|property| ["--kafka-property", property]);
        let start: Vec<&str> = ["start", "all", "--while", &process].into_iter().chain(properties).collect();
        let said = script(&start, folder.path())?;
        let find =
            |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
        let missing = "scripts/brokers printed no address";
        Ok(Self { kafka: find("KAFKA").ok_or(missing)?, rabbitmq: find("RABBITMQ").ok_or(missing)?, folder })
    }

    /// The section of the configuration that publishes into one of them.
    pub fn section(&self, broker: &str) -> String {
        match broker {
            "kafka" => format!("[outputs.kafka]\nbrokers = \"{}\"\n", self.kafka),
            _ => format!("[outputs.rabbitmq]\nurls = [\"{}\"]\n", self.rabbitmq),
        }
    }

    /// `stop-one` or `start-one` of `kafka` or `rabbitmq`; returns once that is done.
    pub fn order(&self, order: &str, broker: &str) -> Result<(), String> {
        script(&[order, broker], self.folder.path()).map(drop)
    }

    /// For what is done to one of them beside the benchmark's own thread.
    pub fn handle(&self, broker: &'static str) -> Handle {
        Handle { folder: self.folder.path().to_owned(), broker }
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        let _ = script(&["stop", "--kill"], self.folder.path());
    }
}

/// One of the brokers, to be stopped, started and slowed.
pub struct Handle {
    folder: std::path::PathBuf,
    broker: &'static str,
}

impl Handle {
    pub fn stop(&self) -> Result<(), String> {
        script(&["stop-one", self.broker], &self.folder).map(|_| ())
    }

    pub fn start(&self) -> Result<(), String> {
        script(&["start-one", self.broker], &self.folder).map(|_| ())
    }

    /// Stands still, or goes on.
    pub fn freeze(&self, frozen: bool) -> Result<(), String> {
        use rustix::process::{Pid, Signal, kill_process};
        let file = self.folder.join(self.broker).join("pid");
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw).ok_or("a broker without a process")?;
        kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT }).map_err(|error| error.to_string())
    }
}

fn script(arguments: &[&str], folder: &Path) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/brokers");
    process::complete(Command::new(script).args(arguments).arg("--dir").arg(folder))
}
