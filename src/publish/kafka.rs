//! Kafka, by librdkafka: each record gets exactly one report, and what failed is never overtaken by a later record of its key.
//!
//! One thread of our own polls the producer, judges its reports, and replaces it when it has failed for good. The rest is told by topic:
//! `settings` (why each is as it is), `faults` (what a code means), `lanes` (order across a failure), `health` (`Connected`, `Lost`).

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use tracing::warn;

use crate::config::{self, OutputName};
use crate::publish::{Disposition, Place, PublishError, Record, Report, Reports, Sink};

mod create;
mod faults;
mod files;
mod health;
mod lanes;
mod settings;

pub use create::{Made, create_topics};
use files::Files;
use health::Health;
use lanes::Lanes;

/// A record's number travels through librdkafka in a pointer.
const _: () = assert!(usize::BITS >= u64::BITS);

/// How long one look into librdkafka's queue lasts while records are open, which is how late a failed producer is noticed.
const POLL_BUSY: Duration = Duration::from_millis(10);
/// The same while none is.
const POLL_IDLE: Duration = Duration::from_millis(100);
/// Polls for which a producer that is only replaced may go on sending what it has: 2 s.
const DRAIN_POLLS_SENT: u32 = 200;
/// Polls for which a failed producer may wait for answers to what it has sent: 5 s. What is taken back after that may be published twice.
const DRAIN_POLLS_ANSWERED: u32 = 500;
/// Polls after which its records count as failed even without its word, which a thread that hangs in a DNS query may keep: 10 s.
const DRAIN_POLLS_MAX: u32 = 1000;
/// Pause before another producer replaces one that failed by itself; doubled each time until something is delivered.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long dropping waits for the thread. The rest of `shutdown` must not hang on a broker.
const STOP_MAX: Duration = Duration::from_millis(1500);

type Producer = BaseProducer<Context>;

/// Publishes to Kafka with acks=all from an idempotent producer.
///
/// A failure to deliver closes its lane until the output begins again from an earlier record; what comes before is
/// [`PublishError::Withdrawn`]. Dropping it takes all open records back, each with its report, and ends the thread within 1.5 s.
pub struct Kafka {
    shared: Arc<Shared>,
    /// Dropped first, which tells the thread to stop.
    stop: Option<Sender<()>>,
    stopped: Receiver<()>,
}

struct Shared {
    state: Mutex<State>,
    reports: Reports,
}

#[derive(Default)]
struct State {
    /// `None` while it is replaced; records wait meanwhile.
    producer: Option<Arc<Producer>>,
    /// Bounded by what the output lets be in flight.
    waiting: VecDeque<Record>,
    /// Numbers of the records that librdkafka has and that have no report yet.
    open: HashSet<u64>,
    lanes: Lanes,
    health: Health,
    /// Something was delivered since the last producer was made.
    delivered: bool,
}

/// Why a producer's time is over.
enum End {
    /// The sink is dropped.
    Stopped,
    /// A broker refused a record or topic for good, and the gapless guarantee stopped the producer before it sent anything later.
    Refusal,
    /// librdkafka gave up for its own reasons, which were reported.
    Fault,
    /// A password or certificate file has another content, with which this next producer was made.
    Reload(Arc<Producer>),
}

impl Kafka {
    /// Starts the producer; it connects by itself, and again after each loss. The error names what in the configuration or which file is
    /// wrong, and holds no secret.
    pub fn new(name: OutputName, config: config::Kafka, reports: Reports) -> Result<Self, String> {
        let shared = Arc::new(Shared { state: Mutex::default(), reports });
        let files = Files::new(&config.security);
        let producer = make(&config, &shared)?;
        shared.install(Arc::clone(&producer));
        let (stop, told_to_stop) = mpsc::channel();
        let (done, stopped) = mpsc::channel();
        let worker = Worker { config, files, complaint: None, shared: Arc::clone(&shared), told_to_stop };
        thread::Builder::new()
            .name(format!("kafka-{name}"))
            .spawn(move || {
                worker.run(producer);
                // The receiver is gone if dropping did not wait any longer.
                let _ = done.send(());
            })
            .map_err(|error| format!("no thread could be started for librdkafka: {error}"))?;
        Ok(Self { shared, stop: Some(stop), stopped })
    }
}

impl Sink for Kafka {
    fn send(&mut self, record: Record) {
        let mut state = self.shared.state();
        if state.lanes.admit(&record.lane, record.sequence) {
            self.shared.publish(&mut state, record);
        } else {
            self.shared.report_failed(record.sequence, PublishError::Withdrawn);
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.stop = None;
        // A thread that does not end in time hangs inside librdkafka, in a DNS query for one; the process may end without it.
        let _ = self.stopped.recv_timeout(STOP_MAX);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves at worst a record without its report, which is no reason to fail all others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody listens any more once the output is gone, and then nothing is to be said.
    fn report(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    fn report_failed(&self, sequence: u64, error: PublishError) {
        self.report(Report::Failed { sequence, error });
    }

    /// Hands a record to the producer, or keeps it until there is one.
    fn publish(&self, state: &mut State, record: Record) {
        let Some(producer) = &state.producer else {
            state.waiting.push_back(record);
            return;
        };
        let headers = OwnedHeaders::new_with_capacity(record.headers.len() + 1)
            .insert(Header { key: "content-type", value: Some(record.content_type) });
        let headers = record
            .headers
            .iter()
            .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_str()) }));
        let message = BaseRecord::with_opaque_to(&record.lane, record.sequence as usize)
            .key(&record.key)
            .payload(&record.payload)
            .headers(headers);
        let Err((error, _)) = producer.send(message) else {
            state.open.insert(record.sequence);
            return;
        };
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            // The thread is about to replace this producer; the record goes to the next one.
            state.producer = None;
            state.waiting.push_back(record);
            return;
        }
        state.lanes.close(&record.lane);
        self.report_failed(record.sequence, faults::meaning(&error));
    }

    fn delivered(&self, sequence: u64, place: Place) {
        let mut state = self.state();
        if !state.open.remove(&sequence) {
            return;
        }
        state.delivered = true;
        let connected = state.health.up();
        drop(state);
        if let Some(connected) = connected {
            self.report(connected);
        }
        self.report(Report::Delivered { sequence, place });
    }

    fn failed(&self, sequence: u64, topic: &str, error: PublishError) {
        let mut state = self.state();
        if !state.open.remove(&sequence) {
            return;
        }
        state.lanes.close(topic);
        // What came between the producer's end and this report would be published by the next one, before this record is sent again.
        let (behind, waiting) =
            std::mem::take(&mut state.waiting).into_iter().partition(|record| *record.lane == *topic);
        state.waiting = waiting;
        drop(state);
        self.report_failed(sequence, error);
        self.withdraw(behind);
    }

    fn withdraw(&self, records: VecDeque<Record>) {
        for record in records {
            self.report_failed(record.sequence, PublishError::Withdrawn);
        }
    }

    /// A new producer takes over, with what waited for it, in order.
    fn install(&self, producer: Arc<Producer>) {
        let mut state = self.state();
        state.producer = Some(producer);
        state.delivered = false;
        for record in std::mem::take(&mut state.waiting) {
            if state.lanes.is_closed(&record.lane) {
                self.report_failed(record.sequence, PublishError::Withdrawn); // One before it has just failed.
            } else {
                self.publish(&mut state, record);
            }
        }
    }
}

/// What the thread owns.
struct Worker {
    config: config::Kafka,
    files: Files,
    /// What was last said of files that no producer could be made with.
    complaint: Option<String>,
    shared: Arc<Shared>,
    told_to_stop: Receiver<()>,
}

impl Worker {
    /// Serves one producer after the other until told to stop.
    fn run(mut self, mut producer: Arc<Producer>) {
        let mut pause = PAUSE_MIN;
        loop {
            let end = self.serve(&producer);
            self.shared.state().producer = None;
            self.drain(&producer, &end);
            drop(producer);
            if self.shared.state().delivered {
                pause = PAUSE_MIN;
            }
            let next = match end {
                End::Stopped => None,
                End::Refusal => self.replace(Duration::ZERO),
                End::Reload(next) => Some(next),
                End::Fault => {
                    let next = self.replace(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                    next
                }
            };
            let Some(next) = next else { break };
            self.shared.install(Arc::clone(&next));
            producer = next;
        }
        let waiting = std::mem::take(&mut self.shared.state().waiting);
        self.shared.withdraw(waiting);
    }

    /// Polls until this producer's time is over.
    fn serve(&mut self, producer: &Arc<Producer>) -> End {
        loop {
            let idle = self.shared.state().open.is_empty();
            let poll = if idle { POLL_IDLE } else { POLL_BUSY };
            producer.poll(poll);
            if matches!(self.told_to_stop.try_recv(), Err(TryRecvError::Disconnected)) {
                return End::Stopped;
            }
            if let Some(next) = self.reload(poll) {
                return End::Reload(next);
            }
            if !producer.client().context().failed.load(Ordering::Relaxed) {
                continue;
            }
            match producer.client().fatal_error() {
                Some((Code::GaplessGuarantee, _)) => return End::Refusal,
                Some((code, words)) => {
                    let lost = self.shared.state().health.fatal(code, &words);
                    self.shared.report(lost);
                    return End::Fault;
                }
                None => {}
            }
        }
    }

    /// A producer made with changed files. While they do not fit together, as in the middle of a rotation, the old one goes on.
    fn reload(&mut self, passed: Duration) -> Option<Arc<Producer>> {
        let change = self.files.changed(passed)?;
        match make(&self.config, &self.shared) {
            Ok(next) => {
                self.files.accept(change);
                self.complaint = None;
                Some(next)
            }
            Err(detail) => {
                if self.complaint.as_ref() != Some(&detail) {
                    warn!("changed password or certificate files of a Kafka output cannot be used yet: {detail}");
                    self.complaint = Some(detail);
                }
                None
            }
        }
    }

    /// Gets a report for each record that the producer still has. What it has not sent is taken back at once, unless it can still be
    /// sent; what it has sent gets some seconds to be answered, as taking that back may publish it twice.
    fn drain(&self, producer: &Producer, end: &End) {
        let (sent, answered) = match end {
            End::Stopped => (0, 0),
            End::Refusal | End::Fault => (0, DRAIN_POLLS_ANSWERED),
            End::Reload(_) if !self.shared.state().health.is_connected() => (0, DRAIN_POLLS_ANSWERED),
            End::Reload(_) => (DRAIN_POLLS_SENT, DRAIN_POLLS_ANSWERED),
        };
        for poll in 0..DRAIN_POLLS_MAX {
            if self.shared.state().open.is_empty() {
                return;
            }
            if poll >= sent {
                // Again each time: what a broker refuses because its forerunner failed goes back into the queue. And without waiting for
                // librdkafka's threads, of which one may hang.
                let purge = PurgeConfig::default().queue().non_blocking();
                producer.purge(if poll < answered { purge } else { purge.inflight() });
            }
            producer.poll(POLL_BUSY);
        }
        let abandoned = std::mem::take(&mut self.shared.state().open);
        for sequence in abandoned {
            self.shared.report_failed(sequence, PublishError::Fatal);
        }
    }

    /// The next producer, after a pause; `None` when told to stop. Files that cannot be read just now are tried again.
    fn replace(&self, mut pause: Duration) -> Option<Arc<Producer>> {
        loop {
            match self.told_to_stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
            }
            match make(&self.config, &self.shared) {
                Ok(producer) => return Some(producer),
                Err(detail) => {
                    let lost = self.shared.state().health.unusable(detail);
                    self.shared.report(lost);
                    pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                }
            }
        }
    }
}

fn make(config: &config::Kafka, shared: &Arc<Shared>) -> Result<Arc<Producer>, String> {
    let settings = settings::producer(config)?;
    let context = Context { shared: Arc::clone(shared), failed: AtomicBool::new(false), producer: OnceLock::new() };
    let producer = Producer::from_config_and_context(&settings, context).map_err(|error| settings::refusal(&error))?;
    let producer = Arc::new(producer);
    // Nobody else sets it, and without it a purged record is called withdrawn where it should be called fatal.
    let _ = producer.client().context().producer.set(Arc::downgrade(&producer));
    Ok(producer)
}

/// What librdkafka calls back, on our thread, from within `poll`.
struct Context {
    shared: Arc<Shared>,
    /// The producer failed for good.
    failed: AtomicBool,
    /// The producer whose context this is.
    producer: OnceLock<Weak<Producer>>,
}

impl Context {
    /// What a failure means, given how the producer ended. Where it failed for its own reasons all its records failed with it; where it
    /// was stopped because one was refused, the others are only taken back.
    fn judge(&self, error: &KafkaError) -> PublishError {
        let meaning = faults::meaning(error);
        match self.fatal_error() {
            Some(Code::GaplessGuarantee) if meaning == PublishError::Fatal => PublishError::Withdrawn,
            None | Some(Code::GaplessGuarantee) => meaning,
            Some(_) if meaning.disposition() == Disposition::Retry => PublishError::Fatal,
            Some(_) => meaning,
        }
    }

    /// Why the producer failed for good, if it did.
    fn fatal_error(&self) -> Option<Code> {
        let producer = self.producer.get().and_then(Weak::upgrade)?;
        producer.client().fatal_error().map(|(code, _)| code)
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sequence: usize) {
        let sequence = sequence as u64;
        match result {
            // The offset is -1 where a broker had the record already and no longer knew where.
            Ok(message) => {
                let place = Place::Kafka { partition: message.partition(), offset: message.offset() };
                self.shared.delivered(sequence, place);
            }
            Err((error, message)) => self.shared.failed(sequence, message.topic(), self.judge(error)),
        }
    }
}

impl ClientContext for Context {
    /// Dropped: libraries' lines never reach our log as they are, and what matters in them comes as an error or a report too.
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _line: &str) {}

    fn stats_raw(&self, statistics: &[u8]) {
        let Some(any_up) = health::any_broker_up(statistics) else { return };
        let change = self.shared.state().health.seen(any_up);
        if let Some(change) = change {
            self.shared.report(change);
        }
    }

    /// rdkafka calls this twice for each error of a producer, which changes nothing.
    fn error(&self, error: KafkaError, words: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        if self.fatal_error().is_some() {
            // Told once the thread has seen it; librdkafka gives the code of the cause here, not one of its own.
            self.failed.store(true, Ordering::Relaxed);
            return;
        }
        let change = self.shared.state().health.trouble(code, words);
        if let Some(change) = change {
            self.shared.report(change);
        }
    }
}

#[cfg(test)]
mod tests;
