//! The relay under test: the release build of this package, with a configuration and a journal of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::{Running, Usage};
use crate::work::{PATH, SECRET};

/// The build under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sipsim-relay");
const STARTS_WITHIN: Duration = Duration::from_secs(30);

pub struct Relay {
    pub running: Running,
    pub public: SocketAddr,
    admin: SocketAddr,
    runtime: tokio::runtime::Runtime,
}

/// What of a configuration differs from run to run.
pub struct Settings<'a> {
    /// Whole sections.
    pub outputs: &'a str,
    /// Keys of `[journal]`, beside its path.
    pub journal: &'a str,
    /// Whole sections under `ingress`.
    pub ingress: &'a str,
}

/// Writes a configuration with its secret; `outputs` are whole sections.
pub fn configure(folder: &Path, outputs: &str) -> Result<PathBuf, String> {
    configure_all(folder, &Settings { outputs, journal: "", ingress: "" })
}

pub fn configure_all(folder: &Path, settings: &Settings<'_>) -> Result<PathBuf, String> {
    let text = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::create_dir_all(folder.join("secrets")).map_err(text)?;
    std::fs::write(folder.join("secrets/bench"), SECRET).map_err(text)?;
    let (public, admin) = (free_port()?, free_port()?);
    let file = folder.join("relay.toml");
    let toml = format!(
        "instance = \"bench\"\n[ingress]\nlisten = \"127.0.0.1:{public}\"\n{}[admin]\nlisten = \"127.0.0.1:{admin}\"\n\
         [accounts.default]\npath = \"{PATH}\"\nsecrets = \"{}\"\n[journal]\npath = \"{}\"\n{}[shutdown]\ndrain = \"0s\"\n\
         [log]\nlevel = \"error\"\n{}",
        settings.ingress,
        folder.join("secrets").display(),
        folder.join("journal/journal.db").display(),
        settings.journal,
        settings.outputs,
    );
    std::fs::write(&file, toml).map_err(text)?;
    Ok(file)
}

pub fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Runs another command of the relay's program.
pub fn command(arguments: &[&str], config: &Path) -> Result<String, String> {
    crate::process::complete(Command::new(PROGRAM).args(arguments).arg("--config").arg(config))
}

impl Relay {
    /// Starts it and returns once it is ready. What it prints beside its log goes nowhere.
    pub fn start(program: &Path, config: &Path) -> Result<Self, String> {
        let toml = std::fs::read_to_string(config).map_err(|error| error.to_string())?;
        let mut addresses =
            toml.lines().filter_map(|line| line.strip_prefix("listen = \"")?.strip_suffix('"')?.parse().ok());
        let (Some(public), Some(admin)) = (addresses.next(), addresses.next()) else {
            return Err("a configuration without its two addresses".into());
        };
        let log = config.with_extension("log");
        let running = Running::start_unheard(Command::new(program).arg("run").arg("--config").arg(config), &log)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        let relay = Self { running, public, admin, runtime };
        let began = Instant::now();
        while !relay.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            if began.elapsed() > STARTS_WITHIN {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(format!("the relay was not ready within 30 s; it said:\n{said}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(relay)
    }

    fn get(&self, path: &str) -> Result<String, String> {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        self.runtime.block_on(ask).map_err(|error: std::io::Error| error.to_string())
    }

    /// The sum of a metric's series whose labels include `label`.
    fn metric(text: &str, name: &str, label: &str) -> f64 {
        let series = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn figure(&self, name: &str, output: &str) -> Result<f64, String> {
        Ok(Self::metric(&self.get("/metrics")?, name, &format!("output=\"{output}\"")))
    }

    fn until(&self, what: &str, is_so: impl Fn() -> Result<bool, String>) -> Result<(), String> {
        let began = Instant::now();
        while !is_so()? {
            if began.elapsed() > STARTS_WITHIN {
                return Err(format!("the relay was not {what} within 30 s"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until the broker answers.
    pub fn connected(&self, output: &str) -> Result<(), String> {
        self.until("connected", || Ok(self.figure("sipsim_relay_output_up", output)? == 1.0))
    }

    /// Waits until every event is confirmed and the trail has it.
    pub fn nothing_pending(&self, output: &str) -> Result<(), String> {
        self.until("done", || Ok(self.pending(output)? == 0.0))
    }

    pub fn pending(&self, output: &str) -> Result<f64, String> {
        self.figure("sipsim_relay_events_pending{", output)
    }

    /// Events that any output got rid of since the start.
    pub fn published(&self) -> Result<f64, String> {
        Ok(Self::metric(&self.get("/metrics")?, "sipsim_relay_events_published_total", ""))
    }

    /// Waits until `count` events have left `output`, and says how many a second did: from the first look that showed some gone to the first that
    /// showed all gone, as the bare clients' clocks begin when they are connected. What was used is of the same span.
    pub fn drained(&self, output: &str, count: u64) -> Result<Drained, String> {
        let label = format!("output=\"{output}\"");
        let began = Instant::now();
        let mut first = None;
        loop {
            let text = self.get("/metrics")?;
            let published = Self::metric(&text, "sipsim_relay_events_published_total", &label);
            let now = (Instant::now(), Usage::of(self.running.pid()));
            if published >= count as f64 {
                let (since, before, used) = first.unwrap_or((began, 0.0, Usage::default()));
                return Ok(Drained {
                    events: published - before,
                    seconds: (now.0 - since).as_secs_f64(),
                    cpu_seconds: now.1.cpu_seconds - used.cpu_seconds,
                    written_bytes: now.1.written_bytes - used.written_bytes,
                });
            }
            if published > 0.0 && first.is_none() {
                first = Some((now.0, published, now.1));
            }
            if began.elapsed() > Duration::from_secs(600) {
                return Err(format!("{output}: {published} of {count} events published after ten minutes"));
            }
            // Each look costs the relay a tenth of a millisecond or more.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub struct Drained {
    pub events: f64,
    pub seconds: f64,
    pub cpu_seconds: f64,
    /// Handed to the disk.
    pub written_bytes: u64,
}
