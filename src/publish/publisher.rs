//! All outputs: each on a thread of its own, so that a backlog that drains never keeps an acceptor waiting for the scheduler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tracing::{error, info};

use super::console::{Console, Stream};
use super::encode::Encoder;
use super::files;
use super::kafka::Kafka;
use super::output::{Ended, Output, Parts};
use super::rabbitmq::RabbitMq;
use super::routes::Router;
use super::{Outputs, Reports, Sink};
use crate::clock;
use crate::config::{self, Config, Mode, OutputKind, Routes};
use crate::journal::{Journal, OutputRow, Progress};
use crate::metrics::Metrics;

/// How soon an output that could not begin, or that panicked, begins again.
const AGAIN: Duration = Duration::from_secs(5);
/// What ending an output takes beside the time that it is given to publish.
const END_MAX: Duration = Duration::from_secs(2);
/// How soon a journal that does not say where an output stands is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The running outputs.
pub struct Publisher {
    stop: watch::Sender<Option<Instant>>,
    /// While it is there, the files that outputs name are looked at.
    files: Sender<()>,
    /// Hung up once the last output has ended.
    ended: Receiver<()>,
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
        console: &Stream,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let (running, ended) = channel();
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
                console: console.clone(),
                status: statuses.clone(),
                stop: stopped.clone(),
            };
            let running = running.clone();
            // Linux shows 15 characters of it.
            std::thread::Builder::new().name(format!("out-{}", output.name)).spawn(move || {
                one.keep_running();
                drop(running);
            })?;
        }
        let (outputs, metrics) = (config.outputs.clone(), Arc::clone(metrics));
        let (files, until_dropped) = channel();
        std::thread::Builder::new()
            .name("output-files".into())
            .spawn(move || files::watch(&outputs, &metrics, &until_dropped))?;
        Ok(Self { stop, files, ended })
    }

    /// Publishes what is pending for at most so long, then ends every output. What is left waits in the journal. Blocks, but not for an output that
    /// hangs in a file or a library.
    pub fn stop(self, drain: Duration) {
        self.stop.send_replace(Some(Instant::now() + drain));
        drop(self.files);
        let _ = self.ended.recv_timeout(drain + END_MAX); // It says nothing before it is hung up.
    }
}

/// What one output is made of, again and again if need be.
struct One {
    output: config::Output,
    source: String,
    instance: String,
    journal: Journal,
    metrics: Arc<Metrics>,
    console: Stream,
    status: Outputs,
    stop: watch::Receiver<Option<Instant>>,
}

impl One {
    fn keep_running(self) {
        loop {
            let ended = catch_unwind(AssertUnwindSafe(|| self.run()));
            let is_replaced = matches!(ended, Ok(Ok(Ended::JournalReplaced)));
            match ended {
                Ok(Ok(Ended::Stopped)) => return,
                Ok(Ok(Ended::SinkGone)) => {
                    error!(output = %self.output.name, "the client of the broker ended by a fault; the output begins anew");
                }
                Ok(Ok(Ended::JournalReplaced)) => {
                    info!(output = %self.output.name, "the journal is a new file, or another process may have written it; the output begins anew")
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
            // The new one's events wait, and nothing was wrong with the broker.
            if !is_replaced && self.sleep_until_stopped() {
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
        let ended = runtime.block_on(async {
            let place = place(&self.journal, self.output.name.as_str(), self.stop.clone());
            let Some((journal_id, row)) = place.await else { return Ok(Ended::Stopped) };
            let (reports, inbox) = unbounded_channel();
            let (sink, routes, mode) = self.sink(reports)?;
            let record_max = match &self.output.kind {
                OutputKind::Kafka(kafka) => kafka.record_max,
                OutputKind::RabbitMq(_) | OutputKind::Console => None,
            };
            let encoder = Encoder {
                mode,
                source: self.source.clone(),
                relay: self.instance.clone(),
                journal_id: journal_id.to_string(),
            };
            let output = Output::new(Parts {
                name: self.output.name.clone(),
                row,
                sink,
                reports: inbox,
                journal: self.journal.clone(),
                journal_id,
                encode: Box::new(move |record, lane, stored, replayed| encoder.fill(record, lane, stored, replayed)),
                record_max,
                router: Router::new(routes),
                metrics: Arc::clone(&self.metrics),
                status: self.status.clone(),
                stop: self.stop.clone(),
            });
            Ok(output.run().await)
        });
        // Not waiting for what may hang in a file or a name to resolve.
        runtime.shutdown_background();
        ended
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
                (Box::new(Console::new(self.console.clone(), reports)), routes, Mode::Structured)
            }
        })
    }
}

/// The output's place in the journal, and that journal's id, once it is open; `None` if it was told to stop before.
async fn place(
    journal: &Journal,
    output: &str,
    mut stop: watch::Receiver<Option<Instant>>,
) -> Option<(Arc<str>, OutputRow)> {
    let mut health = journal.health_changes();
    let row = || journal.outputs().into_iter().find(|row| row.name == output);
    while stop.borrow_and_update().is_none() {
        let id = journal.id();
        let Some(shown) = row() else {
            tokio::select! {
                changed = health.changed() => changed.ok()?,
                changed = stop.changed() => changed.ok()?,
            }
            continue;
        };
        // What this output handed over before it began anew may still wait for the disk, and its numbers must not be given twice: the later of
        // two with one number would count as kept, and the cursor pass what only that one gave rows. And the file may have been replaced between
        // two looks. A progress that says nothing is answered behind all others, and only if the file and the output in it are these.
        let nothing = Progress::new(Arc::clone(&id), shown.number, 0);
        let answered = tokio::select! {
            answer = journal.record(Arc::new(nothing)) => matches!(answer, Ok(Ok(()))),
            changed = stop.changed() => { changed.ok()?; false }
        };
        match row() {
            Some(row) if answered && *journal.id() == *id => return Some((id, row)),
            _ => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::output::tests::{journal, take_in};

    #[tokio::test]
    async fn an_output_that_begins_anew_waits_for_what_it_said_before() {
        let folder = tempfile::tempdir().unwrap();
        let (journal, writer) = journal(folder.path()).await;
        take_in(&journal, &["one"]).await;
        let (_stop, stopped) = watch::channel(None);
        let (id, row) = place(&journal, "console", stopped.clone()).await.unwrap();
        // The writer waits for its turn, and so does this.
        let db = rusqlite::Connection::open(journal.path()).unwrap();
        db.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut said = Progress::new(id, row.number, row.progress + 1);
        said.cursor = 1;
        let _kept = journal.record(Arc::new(said));
        let mut anew = Box::pin(place(&journal, "console", stopped));
        let at_once = tokio::select! {
            biased;
            place = &mut anew => Some(place),
            () = std::future::ready(()) => None,
        };
        db.execute_batch("ROLLBACK").unwrap();
        let (_, anew) = match at_once {
            Some(place) => place,
            None => anew.await,
        }
        .unwrap();
        assert_eq!((anew.progress, anew.cursor), (row.progress + 1, 1));
        writer.stop();
    }
}
