//! All outputs: each on a thread of its own, so that a backlog that drains never keeps an acceptor waiting for the scheduler.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tracing::{error, info};

use super::console::Console;
use super::encode::Encoder;
use super::files;
use super::kafka::Kafka;
use super::output::{Ended, Output, Parts};
use super::rabbitmq::RabbitMq;
use super::routes::Router;
use super::{Outputs, Reports, Sink};
use crate::clock;
use crate::config::{self, Config, Mode, OutputKind, Routes};
use crate::journal::{Journal, OutputRow};
use crate::metrics::Metrics;

/// How soon an output that could not begin, or that panicked, begins again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the console output writes: asked anew each time the output begins.
pub type ConsoleWriter = Arc<dyn Fn() -> Box<dyn Write + Send> + Send + Sync>;

/// The running outputs.
pub struct Publisher {
    stop: watch::Sender<Option<Instant>>,
    threads: Vec<JoinHandle<()>>,
}

impl Publisher {
    /// Starts every configured output. None of them waits for its broker, and a broker that is away stops none.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        config: &Config,
        journal: &Journal,
        metrics: &Arc<Metrics>,
        statuses: &Outputs,
        console: &ConsoleWriter,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let mut threads = Vec::new();
        for output in &config.outputs {
            let kind = match output.kind {
                OutputKind::Kafka(_) => "kafka",
                OutputKind::RabbitMq(_) => "rabbitmq",
                OutputKind::Console => "console",
            };
            statuses.update(&output.name, |status| status.kind = kind);
            let one = One {
                output: output.clone(),
                source: config.envelope.source.clone(),
                instance: config.instance.clone(),
                journal: journal.clone(),
                metrics: Arc::clone(metrics),
                console: Arc::clone(console),
                status: statuses.clone(),
                stop: stopped.clone(),
            };
            // Linux shows 15 characters of it.
            threads.push(
                std::thread::Builder::new().name(format!("out-{}", output.name)).spawn(move || one.keep_running())?,
            );
        }
        let (outputs, metrics) = (config.outputs.clone(), Arc::clone(metrics));
        threads.push(
            std::thread::Builder::new()
                .name("output-files".into())
                .spawn(move || files::watch(&outputs, &metrics, &stopped))?,
        );
        Ok(Self { stop, threads })
    }

    /// Publishes what is pending for at most so long, then ends every output. What is left waits in the journal. Blocks.
    pub fn stop(self, drain: Duration) {
        self.stop.send_replace(Some(Instant::now() + drain));
        for thread in self.threads {
            let _ = thread.join(); // Panics were caught and logged inside.
        }
    }
}

/// What one output is made of, again and again if need be.
struct One {
    output: config::Output,
    source: String,
    instance: String,
    journal: Journal,
    metrics: Arc<Metrics>,
    console: ConsoleWriter,
    status: Outputs,
    stop: watch::Receiver<Option<Instant>>,
}

impl One {
    fn keep_running(self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.run())) {
                Ok(Ok(Ended::Stopped)) => return,
                Ok(Ok(Ended::SinkGone)) => {
                    error!(output = %self.output.name, "the client of the broker ended by a fault; the output begins anew");
                }
                Ok(Ok(Ended::JournalReplaced)) => {
                    info!(output = %self.output.name, "the journal is a new file; the output begins anew")
                }
                Ok(Err(problem)) => {
                    error!(output = %self.output.name, "the output cannot begin: {problem}");
                    self.status.update(&self.output.name, |status| status.failed(problem, clock::now()));
                }
                Err(_) => {
                    error!(output = %self.output.name, "the output panicked and begins anew; nothing is lost, some may be sent twice")
                }
            }
            self.metrics.publish.up.with_label_values(&[self.output.name.as_str()]).set(0);
            self.status.update(&self.output.name, |status| status.up = false);
            if self.sleep_until_stopped() {
                return;
            }
        }
    }

    /// True if it was told to stop meanwhile.
    fn sleep_until_stopped(&self) -> bool {
        let until = Instant::now() + AGAIN;
        while Instant::now() < until {
            if self.stop.borrow().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn run(&self) -> Result<Ended, String> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
        runtime.block_on(async {
            let Some(row) = self.row().await else { return Ok(Ended::Stopped) };
            let (reports, inbox) = unbounded_channel();
            let (sink, routes, mode) = self.sink(reports)?;
            let encoder = Encoder {
                mode,
                source: self.source.clone(),
                relay: self.instance.clone(),
                journal_id: self.journal.id().to_string(),
            };
            let output = Output::new(Parts {
                name: self.output.name.clone(),
                row,
                sink,
                reports: inbox,
                journal: self.journal.clone(),
                encoder,
                router: Router::new(routes),
                metrics: Arc::clone(&self.metrics),
                status: self.status.clone(),
                stop: self.stop.clone(),
            });
            Ok(output.run().await)
        })
    }

    /// The output's place in the journal, once that is open; `None` if it was told to stop before.
    async fn row(&self) -> Option<OutputRow> {
        let mut health = self.journal.health_changes();
        let mut stop = self.stop.clone();
        loop {
            if stop.borrow_and_update().is_some() {
                return None;
            }
            if let Some(row) = self.journal.outputs().into_iter().find(|row| row.name == self.output.name.as_str()) {
                return Some(row);
            }
            tokio::select! {
                changed = health.changed() => changed.ok()?,
                changed = stop.changed() => changed.ok()?,
            }
        }
    }

    fn sink(&self, reports: Reports) -> Result<(Box<dyn Sink>, Routes, Mode), String> {
        let name = self.output.name.clone();
        Ok(match &self.output.kind {
            OutputKind::Kafka(kafka) => {
                (Box::new(Kafka::new(name, kafka.clone(), reports)?), kafka.topics.clone(), kafka.mode)
            }
            OutputKind::RabbitMq(rabbit) => {
                (Box::new(RabbitMq::new(name, rabbit.clone(), reports)), rabbit.routing_keys.clone(), Mode::Structured)
            }
            OutputKind::Console => {
                // One stream has one lane, so that its lines are in order of acceptance.
                let routes = Routes { template: "console".into(), by_event: Default::default() };
                (Box::new(Console::new((self.console)(), reports)), routes, Mode::Structured)
            }
        })
    }
}
