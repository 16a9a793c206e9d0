//! Kafka, by librdkafka: each record gets exactly one report, and what failed is never overtaken by a later record of its key.
//!
//! One thread of our own polls the producer, judges its reports, and replaces it when it has failed for good. The rest is told by topic:
//! `settings` (why each is as it is), `faults` (what a code means), `lanes` (order across a failure), `health` (`Connected`, `Lost`).

use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord};

use crate::config::{self, OutputName};
use crate::publish::{Place, PublishError, Record, Report, Reports, Sink};

mod context;
mod create;
mod faults;
mod files;
mod health;
mod lanes;
mod oauth;
mod settings;
mod worker;

use context::{Context, make};
pub use create::{Made, create_topics};
use files::Files;
use health::Health;
use lanes::Lanes;
use worker::Worker;

/// A record's number travels through librdkafka in a pointer.
const _: () = assert!(usize::BITS >= u64::BITS);

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
        state.health.begin();
        for record in std::mem::take(&mut state.waiting) {
            if state.lanes.is_closed(&record.lane) {
                self.report_failed(record.sequence, PublishError::Withdrawn); // One before it has just failed.
            } else {
                self.publish(&mut state, record);
            }
        }
    }
}

#[cfg(test)]
mod tests;
