//! What is measured: the relay, and Bento in the configurations of `benches/peers`.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::arrived::Broker;
use crate::Brokers;
use crate::process::Running;
use crate::relay::{self, Relay};
use crate::work::SECRET;

/// A program and the broker that it publishes to.
pub struct Program {
    pub name: &'static str,
    pub broker: Broker,
    /// The files of Bento's configuration; none: the relay.
    files: &'static [&'static str],
}

pub const PROGRAMS: [Program; 8] = [
    Program { name: "relay", broker: Broker::Kafka, files: &[] },
    Program {
        name: "Bento, no buffer",
        broker: Broker::Kafka,
        files: &["input.yaml", "pipeline.yaml", "output-kafka.yaml"],
    },
    Program {
        name: "Bento, SQLite buffer",
        broker: Broker::Kafka,
        files: &["input.yaml", "buffer-sqlite.yaml", "pipeline.yaml", "output-kafka.yaml"],
    },
    Program {
        name: "Bento, SQLite buffer, batches",
        broker: Broker::Kafka,
        files: &["input-batched.yaml", "buffer-sqlite-batched.yaml", "pipeline.yaml", "output-kafka.yaml"],
    },
    Program { name: "relay", broker: Broker::Rabbitmq, files: &[] },
    Program {
        name: "Bento, no buffer",
        broker: Broker::Rabbitmq,
        files: &["input.yaml", "pipeline.yaml", "output-rabbitmq.yaml"],
    },
    Program {
        name: "Bento, SQLite buffer",
        broker: Broker::Rabbitmq,
        files: &["input.yaml", "buffer-sqlite.yaml", "pipeline.yaml", "output-rabbitmq.yaml"],
    },
    Program {
        name: "Bento, SQLite buffer, batches",
        broker: Broker::Rabbitmq,
        files: &["input-batched.yaml", "buffer-sqlite-batched.yaml", "pipeline.yaml", "output-rabbitmq.yaml"],
    },
];

/// A program with a folder of its own, which it keeps when it is killed and started again.
pub struct Installed<'a> {
    program: &'a Program,
    bento: &'a Path,
    brokers: &'a Brokers,
    folder: PathBuf,
    config: PathBuf,
    address: SocketAddr,
}

/// A program that takes requests.
pub struct Started {
    pub running: Running,
    pub address: SocketAddr,
}

impl Program {
    pub fn install<'a>(
        &'a self,
        bento: &'a Path,
        brokers: &'a Brokers,
        folder: &Path,
    ) -> Result<Installed<'a>, String> {
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        let (config, address) = match self.files {
            [] => (relay::configure(folder, &self.output(brokers))?, ([127, 0, 0, 1], 0).into()),
            files => {
                let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers");
                let texts = files.iter().map(|file| std::fs::read_to_string(peers.join(file)));
                let text = texts.collect::<Result<String, _>>().map_err(|error| error.to_string())?;
                let config = folder.join("bento.yaml");
                std::fs::write(&config, text).map_err(|error| error.to_string())?;
                (config, ([127, 0, 0, 1], relay::free_port()?).into())
            }
        };
        Ok(Installed { program: self, bento, brokers, folder: folder.into(), config, address })
    }

    /// The relay's section for this broker: its address, and all else as it is by default.
    pub fn output(&self, brokers: &Brokers) -> String {
        match self.broker {
            Broker::Kafka => format!("[outputs.kafka]\nbrokers = \"{}\"\n", brokers.kafka),
            Broker::Rabbitmq => format!("[outputs.rabbitmq]\nurls = [\"{}\"]\n", brokers.rabbitmq),
        }
    }
}

impl Installed<'_> {
    /// Returns once it takes connections.
    pub fn start(&self) -> Result<Started, String> {
        if self.program.files.is_empty() {
            let relay = Relay::start(Path::new(relay::PROGRAM), &self.config)?;
            return Ok(Started { running: relay.running, address: relay.public });
        }
        let log = self.folder.join("bento.log");
        let mut command = Command::new(self.bento);
        command
            .arg("-c")
            .arg(&self.config)
            .env("ADDRESS", self.address.to_string())
            .env("SECRET", String::from_utf8_lossy(SECRET).as_ref())
            .env("BUFFER", self.folder.join("buffer.db"))
            .env("KAFKA", &self.brokers.kafka)
            .env("RABBITMQ", &self.brokers.rabbitmq);
        let running = Running::start_unheard(&mut command, &log)?;
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            if began.elapsed() > Duration::from_secs(30) {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("Bento did not listen within 30 s; it said:\n{said}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Started { running, address: self.address })
    }
}
