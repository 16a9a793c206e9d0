//! The promise on disk: [`Journal::append`] gives a [`Receipt`] only after the event is synced. What is published is read back from here.
//!
//! One thread writes (`writer`), and one commit serves all that wait; another moves what was committed from SQLite's log into its file (`checkpoint`);
//! everybody else reads over connections of their own ([`Reader`]). The tables stand in `schema.sql`. The journal never looks inside an event.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::warn;

use crate::clock::Timestamp;
use crate::config::{self, AccountName, OutputName};
use crate::metrics::Metrics;
use crate::normalize::{Event, EventId};

pub mod export;
mod checkpoint;
mod database;
mod fetch;
mod file;
pub mod inspect;
mod ledger;
mod mend;
pub mod orders;
mod pressure;
mod progress;
mod reader;
mod retention;
mod room;
mod row;
mod seen;
pub mod selection;
mod undelivered;
mod writer;
#[cfg(test)]
mod flips;

pub use file::OpenError;
pub(crate) use file::misplaced;
pub use ledger::{Counts, OutputRow, Span};
pub use pressure::Felt;
use pressure::Pressure;
pub use progress::{About, Apart, NEVER, Outcome, Progress, Settlement};
use reader::Readers;
pub use reader::{Due, Parked, Reader};
pub use row::Read;

/// How long the end waits for a copy of a journal that is gone from its path, if nobody ends the process before.
pub const SAVE_AT_THE_END_MAX: Duration = Duration::from_secs(10);
/// Appends that wait for the writer, at the most. One group takes at most 512 of them, so this is eight commits ahead: far less than the
/// deadline on any disk that works.
const APPENDS_WAITING_MAX: usize = 4096;

/// How long a write may take before the journal counts as failing: past a request's usual deadline every request runs into it.
const STALLED_AFTER: Duration = Duration::from_secs(2);

/// Proof that an event is synced to disk. Only [`Journal::append`] makes one.
#[must_use]
#[derive(Clone, Debug)]
#[expect(clippy::manual_non_exhaustive, reason = "the seal keeps this crate's other rooms from making one, too")]
pub struct Receipt {
    pub id: EventId,
    /// The very same request was accepted before; it is not forwarded again.
    pub duplicate: bool,
    _seal: (),
}

#[cfg(test)]
impl Receipt {
    /// For tests of what comes after a receipt.
    pub fn for_test(id: EventId, duplicate: bool) -> Self {
        Self { id, duplicate, _seal: () }
    }
}

/// Why an event could not be promised. Nothing is known of whether it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Pending and parked events fill `journal.size_max`.
    Full,
    /// Undelivered events of the event's account fill its `journal_max`.
    AccountFull,
    /// The disk fails or is down to `journal.free_min`, or the journal is not open (yet).
    Disk,
    /// As many appends wait as may.
    QueueFull,
    ShuttingDown,
}

/// Whether the journal can take events now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Not opened yet.
    Opening,
    /// Pending and parked events fill it.
    Full,
    /// Its log fills it, since another process has read it in one transaction for long.
    LogFull,
    /// Its file, or its log, is no longer at its path.
    Gone,
    /// The disk fails; the text says how.
    Failing(String),
}

/// An event with its number in this journal.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sequence: u64,
    pub event: Event,
}

/// What the journal needs to know beside its own section of the configuration.
pub struct Options {
    pub config: config::Journal,
    pub outputs: Vec<OutputName>,
    /// With the bytes that each one's undelivered events may take, if that is bounded.
    pub accounts: Vec<(AccountName, Option<u64>)>,
    /// Event names that are answered and noted, but not kept.
    pub discard: Vec<String>,
    /// The longest of the accounts': for so long the very same request is known again.
    pub tolerance_max: Duration,
    /// A file that cannot be read is given another name and a new one begun. Else it is left alone, and the journal stays closed.
    pub set_aside: bool,
}

/// The handle by which everybody reaches the journal. Cheap to clone.
#[derive(Clone)]
pub struct Journal {
    queue: Sender<Message>,
    shared: Arc<Shared>,
}

/// Counts one as long as it lives: whose deadline passes is dropped.
struct UnderWay<'a>(&'a AtomicUsize);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the writer shows to everybody.
struct Shared {
    path: PathBuf,
    waiting: AtomicUsize,
    /// Appends from their handing over until their tasks go on.
    under_way: AtomicUsize,
    health: watch::Sender<Health>,
    pressure: Pressure,
    /// Since when the writer waits for the disk, while it does.
    at_disk_since: Mutex<Option<Instant>>,
    /// The last sequence that is synced.
    committed: watch::Sender<u64>,
    outputs: Mutex<Vec<OutputRow>>,
    /// By output, for those that listen: events that an order gave up while they may be in memory.
    given_up: Mutex<HashMap<u32, Vec<u64>>>,
    /// Empty until the file was opened.
    id: Mutex<Arc<str>>,
    readers: Arc<Readers>,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// Notes how long the writer waits for the disk, for the time that `work` takes, and says so afterwards if that was long: meanwhile it
    /// cannot.
    fn at_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let note = |since| *self.at_disk_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
        note(Some(since));
        let done = work();
        note(None);
        let took = since.elapsed();
        if took >= STALLED_AFTER {
            warn!(
                journal.path = %self.path.display(),
                "the journal's disk took {:.1} s for one step; meanwhile events were answered 503 at their deadline",
                took.as_secs_f64()
            );
        }
        done
    }
}

enum Message {
    Append(Append),
    Progress(Arc<Progress>, ProgressReply),
    /// Of the journal of this id a reader found it, and how.
    Corrupt(Arc<str>, String),
    Stop,
}

type ProgressReply = oneshot::Sender<Result<(), AppendError>>;

struct Append {
    /// In a box: it is handed on half a dozen times until it is kept, and to copy its three hundred bytes each time costs more.
    event: Box<Event>,
    since: Instant,
    reply: oneshot::Sender<Result<Receipt, AppendError>>,
}

impl Journal {
    /// Takes the journal's lock and starts its writer, which opens the file; a disk that is full, read-only or failing does not stop
    /// this, the writer tries again every second.
    ///
    /// # Errors
    /// Another process has the journal, or its folder is forbidden to us: what an operator has to mend.
    pub fn open(options: Options, metrics: Arc<Metrics>) -> Result<(Self, Writer), OpenError> {
        let (queue, messages) = channel();
        let shared = Arc::new(Shared {
            path: options.config.path.clone(),
            waiting: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            pressure: Pressure::default(),
            health: watch::Sender::new(Health::Opening),
            at_disk_since: Mutex::default(),
            committed: watch::Sender::new(0),
            outputs: Mutex::default(),
            given_up: Mutex::default(),
            id: Mutex::new("".into()),
            readers: Arc::default(),
            metrics,
        });
        let thread = writer::start(options, Arc::clone(&shared), messages)?;
        Ok((Self { queue: queue.clone(), shared }, Writer { queue, thread }))
    }

    /// Keeps one event and returns once it is synced, or once the very same request that came before it is.
    ///
    /// # Errors
    /// Nothing was promised; the event may still have been kept, and is then forwarded.
    pub async fn append(&self, event: Box<Event>) -> Result<Receipt, AppendError> {
        if self.shared.waiting.fetch_add(1, Ordering::Relaxed) >= APPENDS_WAITING_MAX {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(AppendError::QueueFull);
        }
        let _under_way = UnderWay::begin(&self.shared.under_way);
        let (reply, receipt) = oneshot::channel();
        let append = Message::Append(Append { event, since: Instant::now(), reply });
        if self.queue.send(append).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(AppendError::ShuttingDown);
        }
        receipt.await.unwrap_or(Err(AppendError::ShuttingDown))
    }

    /// Makes what an output has done durable: its cursor, rows and trail move in one transaction. The answer comes once it is synced; after an
    /// error the same progress is to be handed over again, which never counts twice.
    pub fn record(&self, progress: Arc<Progress>) -> oneshot::Receiver<Result<(), AppendError>> {
        let (reply, done) = oneshot::channel();
        if let Err(unsent) = self.queue.send(Message::Progress(progress, reply))
            && let Message::Progress(_, reply) = unsent.0
        {
            let _ = reply.send(Err(AppendError::ShuttingDown)); // The receiver is in our hand.
        }
        done
    }

    /// Tells what a reader met in the journal of this id. If that can never be read, the writer sets the file aside, and events are accepted into a
    /// new one: else they would be taken in, and none would ever leave.
    pub fn unreadable(&self, id: &Arc<str>, error: &rusqlite::Error) {
        // A row that is gone may have gone since the reader knew of it.
        if file::is_not_as_written(error) && *error != rusqlite::Error::QueryReturnedNoRows {
            let _ = self.queue.send(Message::Corrupt(Arc::clone(id), error.to_string())); // Without a writer nothing is written either.
        }
    }

    /// Whether events are accepted now, and why not. A disk that neither writes nor fails counts as failing after two seconds, though
    /// [`Journal::health_changes`] does not tell of it.
    pub fn health(&self) -> Health {
        let health = self.shared.health.borrow().clone();
        let since = *self.shared.at_disk_since.lock().unwrap_or_else(PoisonError::into_inner);
        match (health, since.map(|since| since.elapsed())) {
            (Health::Ready | Health::Opening, Some(waited)) if waited >= STALLED_AFTER => {
                Health::Failing(format!("it has not answered for {} s", waited.as_secs()))
            }
            (health, _) => health,
        }
    }

    /// How short of disk or processors requests went a moment ago: who can do his work later does it later then.
    pub fn pressure(&self) -> Felt {
        self.shared.pressure.felt()
    }

    #[cfg(test)]
    pub fn press_for_test(&self) {
        self.shared.pressure.feel_for_test();
    }

    pub fn health_changes(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    /// The last sequence that is synced, and each change of it.
    pub fn committed(&self) -> watch::Receiver<u64> {
        self.shared.committed.subscribe()
    }

    /// Each output's place and counts as of the last commit, all of one moment.
    pub fn outputs(&self) -> Vec<OutputRow> {
        self.shared.outputs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What orders gave up of this output since the last call: not to be sent any more. Only what comes after the first call is told, and a
    /// reader knows the rest ([`Reader::given_up`]).
    pub fn given_up(&self, output: u32) -> Vec<u64> {
        let mut all = self.shared.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(all.entry(output).or_default())
    }

    /// The id made with the journal file: empty until the file was opened.
    pub fn id(&self) -> Arc<str> {
        self.shared.id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection to read over, for one thread of this process.
    pub fn reader(&self) -> Reader {
        Reader::of(self.path(), Arc::clone(&self.shared.readers))
    }

    pub fn path(&self) -> &Path {
        &self.shared.path
    }
}

/// The writer thread, for the one who stops it.
pub struct Writer {
    queue: Sender<Message>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Carries out what was handed over before, closes the file and gives the lock back. Blocks.
    pub fn stop(self) {
        let _ = self.queue.send(Message::Stop); // If nobody hears it, the thread has ended.
        let _ = self.thread.join(); // A panic of the writer has already ended the process.
    }
}

/// When each of the last groups was synced, to tell how long an event waited.
struct Kept {
    groups: std::collections::VecDeque<(u64, Timestamp)>,
}

impl Kept {
    /// Groups remembered: at a thousand commits a second those of the last four seconds.
    const GROUPS_MAX: usize = 4096;

    fn note(&mut self, through: u64, at: Timestamp) {
        if self.groups.len() == Self::GROUPS_MAX {
            self.groups.pop_front();
        }
        self.groups.push_back((through, at));
    }

    /// When the event of this number was synced; `None` if that was before the last restart, or long ago.
    fn at(&self, sequence: u64) -> Option<Timestamp> {
        let group = self.groups.partition_point(|(through, _)| *through < sequence);
        // What lies before the first group is older than all that is remembered.
        (group > 0).then(|| self.groups.get(group)).flatten().map(|(_, at)| *at)
    }
}
