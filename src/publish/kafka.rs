//! Kafka, by librdkafka: each record gets exactly one report, and what failed is never overtaken by a later record of its key.
//!
//! A thread of our own (`worker`) polls the producer, takes its callbacks (`context`), and replaces it when it has failed for good or when its
//! password or certificate `files` have changed. The rest is told by topic: `settings` (why each is as it is), `faults` (what a code means), `lanes`
//! (order across a failure), `health` (`Connected`, `Lost`), `oauth` (tokens), `create` (topics).

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord};

use crate::config::{self, OutputName};
use crate::publish::sequences::SequenceSet;
use crate::publish::{LARGE_BYTES, Place, PublishError, Record, Report, Reports, Sink};

mod context;
mod create;
mod faults;
mod files;
mod health;
mod lanes;
pub mod live;
mod oauth;
mod settings;
mod worker;

use context::{Context, make};
pub use create::{Made, create_topics};
use files::Files;
use health::Health;
use lanes::{Admission, Lanes};
pub use settings::{BATCH_BYTES, batch_bytes};
use worker::Worker;

/// A record's number travels through librdkafka in a pointer.
const _: () = assert!(usize::BITS >= u64::BITS);

/// How long dropping waits for each of the two threads. The rest of `shutdown` must not hang on a broker, and has 2 s.
const STOP_MAX: Duration = Duration::from_millis(800);

type Producer = BaseProducer<Context>;

/// Publishes to Kafka with acks=all from an idempotent producer.
///
/// A failure to deliver closes its lane until the output begins again from an earlier record; what comes before is
/// [`PublishError::Withdrawn`]. Dropping it takes all open records back, each with its report, and ends its threads within 1.6 s.
pub struct Kafka {
    name: OutputName,
    config: config::Kafka,
    shared: Arc<Shared>,
    main: Thread,
    /// From the first refusal on.
    probing: Option<Thread>,
}

/// A refusal for good costs a producer. So what was refused once is tried again by a second one, and the first serves the other lanes undisturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Main,
    Probing,
}

struct Shared {
    state: Mutex<State>,
    reports: Reports,
}

#[derive(Default)]
struct State {
    main: Slot,
    probing: Slot,
    lanes: Lanes,
    /// As the main producer sees it.
    health: Health,
}

/// A producer's place.
#[derive(Default)]
struct Slot {
    /// `None` while it is replaced; records wait meanwhile.
    producer: Option<Arc<Producer>>,
    /// Bounded by what the output lets be in flight.
    waiting: VecDeque<Record>,
    /// Numbers of the records that librdkafka has and that have no report yet.
    open: SequenceSet,
    /// Those of them that are large.
    large: SequenceSet,
    /// What it has is to be taken back from it.
    is_recalled: bool,
    /// Polls the producer; it rests longer while nothing is open.
    worker: Option<thread::Thread>,
    /// Something was delivered since the last producer was made.
    delivered: bool,
}

impl Slot {
    /// Notes the report of a record; false if it had one.
    fn close(&mut self, sequence: u64) -> bool {
        self.large.remove(&sequence);
        self.open.remove(&sequence)
    }
}

impl State {
    fn slot(&mut self, role: Role) -> &mut Slot {
        match role {
            Role::Main => &mut self.main,
            Role::Probing => &mut self.probing,
        }
    }
}

impl Kafka {
    /// Starts the producer; it connects by itself, and again after each loss. The error names what in the configuration or which file is
    /// wrong, and holds no secret.
    pub fn new(name: OutputName, config: config::Kafka, reports: Reports) -> Result<Self, String> {
        let shared = Arc::new(Shared { state: Mutex::default(), reports });
        let mut files = Files::new(&config.security);
        files.read();
        let producer = make(&config, &shared, Role::Main)?;
        let main = Thread::start(&name, Worker::new(config.clone(), files, &shared, Role::Main), Some(producer))?;
        Ok(Self { name, config, shared, main, probing: None })
    }
}

impl Sink for Kafka {
    fn is_silent_on_faults(&self) -> bool {
        true
    }

    fn send(&mut self, record: &mut Record) {
        let probing = self.shared.admit(&mut self.shared.state(), record);
        self.start_probing_if(probing);
    }

    /// The producer that has the lane's records is replaced, once the next one is made. That costs the other lanes which it serves some five seconds:
    /// so long it waits for answers, and those of this lane do not come.
    fn take_back(&mut self, lane: &Arc<str>, oldest: u64) {
        let mut state = self.shared.state();
        let role = if state.lanes.is_probed(lane) { Role::Probing } else { Role::Main };
        state.lanes.set_apart(lane, oldest);
        let slot = state.slot(role);
        slot.is_recalled = true;
        if let Some(worker) = &slot.worker {
            worker.unpark();
        }
        drop(state);
        self.start_probing_if(role == Role::Probing);
    }
}

impl Kafka {
    fn start_probing_if(&mut self, is_needed: bool) {
        if is_needed && self.probing.is_none() {
            let files = Files::new(&self.config.security);
            let worker = Worker::new(self.config.clone(), files, &self.shared, Role::Probing);
            // Without a thread the probe waits, and the next lane's tries again to have one.
            self.probing = Thread::start(&self.name, worker, None).ok();
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let threads = [Some(&mut self.main), self.probing.as_mut()];
        let told: Vec<_> = threads.into_iter().flatten().map(Thread::tell_to_stop).collect();
        for stopped in told {
            // A thread that does not end in time hangs inside librdkafka, in a DNS query for one; the process may end without it.
            let _ = stopped.recv_timeout(STOP_MAX);
        }
        let behind = self.shared.state().lanes.close_all();
        self.shared.withdraw(behind);
    }
}

/// A thread that serves a producer.
struct Thread {
    thread: thread::Thread,
    stop: Option<Sender<()>>,
    stopped: Receiver<()>,
}

impl Thread {
    fn start(output: &OutputName, worker: Worker, producer: Option<Arc<Producer>>) -> Result<Self, String> {
        let (stop, told_to_stop) = mpsc::channel();
        let (done, stopped) = mpsc::channel();
        let handle = thread::Builder::new()
            .name(format!("kafka-{output}"))
            .spawn(move || {
                worker.run(producer, &told_to_stop);
                // The receiver is gone if dropping did not wait any longer.
                let _ = done.send(());
            })
            .map_err(|error| format!("no thread could be started for librdkafka: {error}"))?;
        Ok(Self { thread: handle.thread().clone(), stop: Some(stop), stopped })
    }

    /// Gives where it says that it has ended.
    fn tell_to_stop(&mut self) -> &Receiver<()> {
        self.stop = None;
        self.thread.unpark();
        &self.stopped
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

    /// Takes a record in; true if it is for the second producer.
    fn admit(&self, state: &mut State, record: &mut Record) -> bool {
        match state.lanes.admit(record) {
            Admission::Publish => self.publish(state, Role::Main, record),
            Admission::Probe => {
                self.publish(state, Role::Probing, record);
                return true;
            }
            Admission::Kept => {}
            Admission::TurnedBack => self.report_failed(record.sequence, PublishError::Withdrawn),
        }
        false
    }

    /// Hands a record to the producer, which copies it, or takes it away until there is one.
    fn publish(&self, state: &mut State, role: Role, record: &mut Record) {
        let slot = state.slot(role);
        let Some(producer) = &slot.producer else {
            slot.waiting.push_back(std::mem::take(record));
            return;
        };
        let headers = OwnedHeaders::new_with_capacity(record.headers.len() + 1)
            .insert(Header { key: "content-type", value: Some(record.content_type) });
        let headers = record
            .headers
            .iter()
            .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let message = BaseRecord::with_opaque_to(&record.lane, record.sequence as usize)
            .key(&record.key)
            .payload(&record.payload)
            .headers(headers);
        let Err((error, _)) = producer.send(message) else {
            if slot.open.is_empty()
                && let Some(worker) = &slot.worker
            {
                worker.unpark();
            }
            slot.open.insert(record.sequence);
            if record.payload.len() > LARGE_BYTES {
                slot.large.insert(record.sequence);
            }
            return;
        };
        if error.rdkafka_error_code() == Some(Code::Fatal) {
            // The thread is about to replace this producer; the record goes to the next one.
            slot.producer = None;
            slot.waiting.push_back(std::mem::take(record));
            return;
        }
        let behind = state.lanes.close(&record.lane, record.sequence);
        self.report_failed(record.sequence, faults::meaning(&error));
        self.withdraw(behind);
    }

    fn delivered(&self, role: Role, sequence: u64, topic: &str, place: Place) {
        let mut state = self.state();
        let slot = state.slot(role);
        if !slot.close(sequence) {
            return;
        }
        slot.delivered = true;
        let connected = if role == Role::Main { state.health.up() } else { None };
        if role == Role::Probing {
            for mut record in state.lanes.delivered(topic, sequence) {
                self.admit(&mut state, &mut record);
            }
        }
        drop(state);
        if let Some(connected) = connected {
            self.report(connected);
        }
        self.report(Report::Delivered { sequence, place });
    }

    /// A record failed, `refused` if by a broker's word that stopped the producer.
    fn failed(&self, role: Role, sequence: u64, topic: &str, error: PublishError, refused: bool) {
        let mut state = self.state();
        if !state.slot(role).close(sequence) {
            return;
        }
        if refused && error != PublishError::Withdrawn {
            state.lanes.suspect(topic, sequence, error.disposition());
        }
        let mut behind = state.lanes.close(topic, sequence);
        // What came between the producer's end and this report would be published by the next one, before this record is sent again.
        for role in [Role::Main, Role::Probing] {
            let slot = state.slot(role);
            let (overtaking, waiting) = std::mem::take(&mut slot.waiting)
                .into_iter()
                .partition::<VecDeque<_>, _>(|record| *record.lane == *topic);
            slot.waiting = waiting;
            for record in &overtaking {
                state.lanes.hand_back(topic, record.sequence);
            }
            behind.extend(overtaking);
        }
        drop(state);
        self.report_failed(sequence, error);
        self.withdraw(behind);
    }

    /// librdkafka does not say what became of the records that it has; they count as failed, and whatever waits is taken back.
    fn abandon(&self, role: Role) {
        let mut state = self.state();
        let abandoned = std::mem::take(&mut state.slot(role).open);
        state.slot(role).large.clear();
        let mut behind = state.lanes.close_all();
        behind.extend(std::mem::take(&mut state.main.waiting));
        behind.extend(std::mem::take(&mut state.probing.waiting));
        for record in &behind {
            state.lanes.hand_back(&record.lane, record.sequence);
        }
        drop(state);
        for sequence in abandoned {
            self.report_failed(sequence, PublishError::Fatal);
        }
        self.withdraw(behind);
    }

    /// Connections that stood have broken.
    fn broken(&self, role: Role) {
        let large: Vec<u64> = self.state().slot(role).large.iter().copied().collect();
        if !large.is_empty() {
            self.report(Report::Broken { large });
        }
    }

    fn withdraw(&self, records: VecDeque<Record>) {
        for record in records {
            self.report_failed(record.sequence, PublishError::Withdrawn);
        }
    }

    /// A new producer takes over, with what waited for it, in order. To be called by the thread that polls it.
    fn install(&self, role: Role, producer: Arc<Producer>) {
        let mut state = self.state();
        if role == Role::Main {
            state.health.begin();
        }
        let slot = state.slot(role);
        slot.producer = Some(producer);
        slot.worker = Some(thread::current());
        slot.delivered = false;
        slot.is_recalled = false;
        for mut record in std::mem::take(&mut slot.waiting) {
            if state.lanes.is_closed(&record.lane) {
                state.lanes.hand_back(&record.lane, record.sequence);
                self.report_failed(record.sequence, PublishError::Withdrawn); // One before it has just failed.
            } else {
                self.publish(&mut state, role, &mut record);
            }
        }
    }
}

#[cfg(test)]
mod tests;
