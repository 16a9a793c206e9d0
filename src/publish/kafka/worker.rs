//! The thread that polls the producer, judges when its time is over, and sees that every record has its report before the next takes over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{Producer as _, PurgeConfig};
use tracing::warn;

use super::context::make;
use super::files::Files;
use super::health::{Health, Stranding};
use super::{Producer, Role, Shared};
use crate::config;
use crate::publish::Report;
use crate::publish::aside::Aside;

/// Between two looks into librdkafka's queue while records are open: so many reports come at once, and each wakes the output no more than that
/// often. Nobody waits for them, and it is short beside `linger.ms`.
const REST_BUSY: Duration = Duration::from_millis(1);
/// The same while none is open. A record that is sent ends this rest, so it is only how late a stop, other files, and a broker that comes or goes
/// are noticed. A hundred looks a second took 0.9 % of a processor.
const REST_IDLE: Duration = Duration::from_millis(200);
/// How long one look lasts while a producer ends.
const POLL_ENDING: Duration = Duration::from_millis(10);
/// Polls for which a producer that is only replaced may go on sending what it has: 2 s.
const DRAIN_POLLS_SENT: u32 = 200;
/// Polls for which a failed producer may wait for answers to what it has sent: 5 s. What is taken back after that may be published twice.
const DRAIN_POLLS_ANSWERED: u32 = 500;
/// Polls after which its records count as failed even without its word, which a thread that hangs in a DNS query may keep: 10 s.
const DRAIN_POLLS_MAX: u32 = 1000;
/// Pause before another producer replaces one that failed by itself; doubled each time until something is delivered, or one lasts longer than
/// the longest of them.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Pause before another try to make the producer in whose place one is to be given up.
const RECALL_PAUSE: Duration = Duration::from_secs(1);
/// Why a producer's time is over.
enum End {
    /// The sink is dropped.
    Stopped,
    /// A broker refused a record or topic for good, and the gapless guarantee stopped the producer before it sent anything later.
    Refusal,
    /// librdkafka gave up for its own reasons, which were reported, or has no broker left to try.
    Fault,
    /// A lane's records are to be taken back, since the broker does not answer them, or hangs up at one. This next producer is made already.
    Recall(Arc<Producer>),
    /// A password or certificate file has another content, with which this next producer was made.
    Reload(Arc<Producer>),
}

/// What the thread owns.
pub(super) struct Worker {
    config: Arc<config::Kafka>,
    files: Files<Arc<Producer>>,
    /// What was last said of files that no producer could be made with.
    complaint: Option<String>,
    /// The producer that is made for a recall.
    recall: Aside<Result<Arc<Producer>, String>>,
    shared: Arc<Shared>,
    role: Role,
}

impl Worker {
    /// `files` as they were before the first producer read them, if that is given to `run`.
    pub fn new(config: config::Kafka, files: Files<Arc<Producer>>, shared: &Arc<Shared>, role: Role) -> Self {
        Self {
            config: Arc::new(config),
            files,
            complaint: None,
            recall: Aside::default(),
            shared: Arc::clone(shared),
            role,
        }
    }

    /// Serves one producer after the other, the first of them if it is given, until told to stop by the other end's going.
    pub fn run(mut self, first: Option<Arc<Producer>>, stop: &Receiver<()>) {
        let mut pause = PAUSE_MIN;
        let mut next = first.or_else(|| {
            self.files.read();
            self.replace(Duration::ZERO, stop)
        });
        while let Some(producer) = next {
            self.shared.install(self.role, Arc::clone(&producer));
            let start = Instant::now();
            let end = self.serve(&producer, stop);
            self.recall = Aside::default();
            self.shared.state().slot(self.role).producer = None;
            self.drain(&producer, &end);
            drop(producer);
            if self.shared.state().slot(self.role).delivered || start.elapsed() > PAUSE_MAX {
                pause = PAUSE_MIN;
            }
            next = match end {
                End::Stopped => None,
                End::Refusal => self.replace(Duration::ZERO, stop),
                End::Recall(next) | End::Reload(next) => Some(next),
                End::Fault => {
                    let next = self.replace(pause, stop);
                    pause = (pause * 2).min(PAUSE_MAX);
                    next
                }
            };
        }
        let waiting = std::mem::take(&mut self.shared.state().slot(self.role).waiting);
        self.shared.withdraw(waiting);
    }

    /// Polls until this producer's time is over.
    fn serve(&mut self, producer: &Arc<Producer>, stop: &Receiver<()>) -> End {
        let mut before = Instant::now();
        let mut recall_in = Duration::ZERO;
        loop {
            take_all(producer);
            let is_recalled = self.shared.state().slot(self.role).is_recalled;
            if is_recalled && recall_in.is_zero() {
                match self.make_for_recall() {
                    Some(Ok(next)) => return End::Recall(next),
                    Some(Err(())) => recall_in = RECALL_PAUSE,
                    None => {}
                }
            }
            let rest = {
                let mut state = self.shared.state();
                // While the broker is away, no report is near, however many records are open.
                let expects_reports = state.health.is_connected() && !state.slot(self.role).open.is_empty();
                if expects_reports { REST_BUSY } else { REST_IDLE }
            };
            thread::park_timeout(rest);
            if stop.try_recv() != Err(TryRecvError::Empty) {
                return End::Stopped;
            }
            // As it was: on a busy machine a rest takes many times as long as it should.
            let now = Instant::now();
            let passed = now.duration_since(std::mem::replace(&mut before, now));
            recall_in = recall_in.saturating_sub(passed);
            if let Some(next) = self.reload(passed) {
                return End::Reload(next);
            }
            let context = producer.client().context();
            if context.stranding.is_final() {
                self.lost(|health| health.unusable(Stranding::DETAIL.to_owned()));
                return End::Fault;
            }
            if !context.failed.load(Ordering::Relaxed) {
                continue;
            }
            match producer.client().fatal_error() {
                Some((Code::GaplessGuarantee, _)) => return End::Refusal,
                Some((code, words)) => {
                    self.lost(|health| health.fatal(code, &words));
                    return End::Fault;
                }
                None => {}
            }
        }
    }

    /// A producer made with changed files. While they do not fit together, as in the middle of a rotation, the old one goes on.
    fn reload(&mut self, passed: Duration) -> Option<Arc<Producer>> {
        if !self.files.is_due(passed) {
            return None;
        }
        let (config, shared, role) = (Arc::clone(&self.config), Arc::clone(&self.shared), self.role);
        match self.files.look(move || make(&config, &shared, role))? {
            Ok(next) => {
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

    /// The next producer, once there is one. The one that stands goes on meanwhile, as it serves other lanes, and the files may be missing just now.
    fn make_for_recall(&mut self) -> Option<Result<Arc<Producer>, ()>> {
        let (config, shared, role) = (Arc::clone(&self.config), Arc::clone(&self.shared), self.role);
        let made = self.recall.ask(Duration::ZERO, move || make(&config, &shared, role))?;
        Some(made.map_err(|detail| {
            if self.complaint.as_ref() != Some(&detail) {
                warn!("a Kafka output needs a new producer, which cannot be made yet; the one that stands goes on: {detail}");
                self.complaint = Some(detail);
            }
        }))
    }

    /// Gets a report for each record that the producer still has. What it has not sent is taken back at once, unless it can still be
    /// sent; what it has sent gets some seconds to be answered, as taking that back may publish it twice.
    fn drain(&self, producer: &Producer, end: &End) {
        let (sent, answered) = match end {
            End::Stopped => (0, 0),
            End::Refusal | End::Recall(_) | End::Fault => (0, DRAIN_POLLS_ANSWERED),
            End::Reload(_) if !self.shared.state().health.is_connected() => (0, DRAIN_POLLS_ANSWERED),
            End::Reload(_) => (DRAIN_POLLS_SENT, DRAIN_POLLS_ANSWERED),
        };
        for poll in 0..DRAIN_POLLS_MAX {
            if self.shared.state().slot(self.role).open.is_empty() {
                return;
            }
            if poll >= sent {
                // Again each time: what a broker refuses because its forerunner failed goes back into the queue. And without waiting for
                // librdkafka's threads, of which one may hang.
                let purge = PurgeConfig::default().queue().non_blocking();
                producer.purge(if poll < answered { purge } else { purge.inflight() });
            }
            producer.poll(POLL_ENDING);
        }
        self.shared.abandon(self.role);
    }

    /// The next producer, after a pause; `None` when told to stop. Files that cannot be read just now are tried again.
    fn replace(&self, mut pause: Duration, stop: &Receiver<()>) -> Option<Arc<Producer>> {
        loop {
            match stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return None,
            }
            match make(&self.config, &self.shared, self.role) {
                Ok(producer) => return Some(producer),
                Err(detail) => {
                    self.lost(|health| health.unusable(detail));
                    pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
                }
            }
        }
    }

    /// The second producer's troubles are the main one's too, or will be; only that one says so. That it has no broker left is its own, and over
    /// before anybody could do anything.
    fn lost(&self, say: impl FnOnce(&mut Health) -> Report) {
        if self.role == Role::Main {
            let lost = say(&mut self.shared.state().health);
            self.shared.report(lost);
        }
    }
}

/// Has librdkafka call back for all that waits in its queue, and returns. Not `poll` with a time: rdkafka counts in whole milliseconds, and spins for
/// what is left of the last one, a tenth of a processor.
fn take_all(producer: &Producer) {
    let calls = &producer.client().context().calls;
    loop {
        let before = calls.load(Ordering::Relaxed);
        producer.poll(Duration::ZERO); // One event: a batch of reports, say.
        if calls.load(Ordering::Relaxed) == before {
            return;
        }
    }
}
