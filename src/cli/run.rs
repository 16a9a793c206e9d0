//! `run`: opens the rooms in the order in which an event walks through them, and closes them so that nothing that was answered is lost.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{FLUSH_MAX, logging, notice};
use crate::admin::{Admin, Health, Pace, Sources};
use crate::authenticate::{Accounts, Explanation, Verified, make_secret};
use crate::clock;
use crate::config::{self, Config, Loaded, Problems, Warning};
use crate::ingress::{Ingress, Rooms, Serving, event_of};
use crate::journal::{self, AppendError, Journal, Options};
use crate::metrics::Metrics;
use crate::normalize::{Derived, Event};
use crate::publish::{Outputs, Publisher, Stream};
use crate::{printable, stderr};

/// How often a request that was proved late is brought to a journal that cannot take it: as often as the journal itself is tried again.
const LATE_AGAIN: Duration = Duration::from_secs(1);
/// What the stop may take beside `shutdown.delay` and `shutdown.drain` (DESIGN §4: 2 s), less what ending the process takes.
const STOP_SLACK: Duration = Duration::from_millis(1_800);
/// Of that, for the journal to close its file.
const CLOSE_MAX: Duration = Duration::from_millis(500);
/// For the tasks to say what they leave undone; they wait for nothing then.
const TASKS_MAX: Duration = Duration::from_millis(50);
/// Beside both, for the last lines of the log to leave.
const LAST_LINES_MAX: Duration = Duration::from_millis(100);
/// How long the start waits until the files that the configuration names were looked at, so that what is wrong with them is said first.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// How long the start waits for the journal to be opened, which takes a few milliseconds; not longer, since the disk may not decide whether the
/// ports listen. Without it the first scrape would show a ledger of zeros, and the first probe say that we are not ready.
const OPEN_MAX: Duration = Duration::from_secs(1);

/// Runs the relay until SIGTERM or SIGINT. `Err` says why it could not start.
pub fn run(file: Option<&Path>) -> Result<bool, String> {
    stderr::start();
    let loaded = config::load(file, std::env::vars_os()).map_err(|_| all_problems(file))?;
    let missing = loaded.missing();
    if !missing.is_empty() {
        return Err(Problems(missing).to_string());
    }
    let Loaded { config, file: read, warnings, .. } = loaded;
    logging::start(&config.log);
    warn_of(&warnings, &config);
    match &read {
        Some(file) => info!(config.file = %file.display(), "starting with {}", file.display()),
        None => info!("starting without a configuration file; the defaults hold"),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the asynchronous runtime: {error}"))?;
    let stop_max = config.shutdown.delay + config.shutdown.drain + STOP_SLACK;
    let ended = runtime.block_on(run_until_signalled(config));
    // Threads that hang in a stalled disk or a hung broker must not keep the process: what was answered is synced.
    runtime.shutdown_background();
    let left = (ended? + stop_max + LAST_LINES_MAX).saturating_duration_since(Instant::now());
    stderr::flush(left.min(FLUSH_MAX));
    std::process::exit(0)
}

/// Logs what the configuration gives reason for. Looking at the files that it names is waited for no longer than a moment: one of an output may hang,
/// which is no reason not to start.
pub fn warn_of(warnings: &[Warning], config: &Config) {
    let say = |warnings: &[Warning]| warnings.iter().for_each(|warning| warn!("{warning}"));
    say(warnings);
    let (is_done, done) = std::sync::mpsc::channel::<()>();
    let config = config.clone();
    let look = move || {
        say(&config::warnings(&config, std::io::stdout().is_terminal()));
        drop(is_done);
    };
    match std::thread::Builder::new().name("warnings".into()).spawn(look) {
        Ok(_) => _ = done.recv_timeout(LOOK_MAX), // It says nothing before it is hung up.
        Err(error) => warn!("the files that the configuration names are not looked at: no thread: {error}"),
    }
}

/// Gives when it was told to end.
async fn run_until_signalled(config: Config) -> Result<Instant, String> {
    // Before the ports listen: a signal that comes early is not the death of us.
    let mut signals = Signals::new().map_err(|error| format!("cannot listen for signals: {error}"))?;
    // On a thread of its own: a file on a network mount that hangs may not keep a signal from being heard.
    let runtime = tokio::runtime::Handle::current();
    let mut starting = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            let console = Stream::stdout(&config.journal.path).map_err(|error| format!("standard output: {error}"))?;
            let relay = Relay::start(config, console).await?;
            relay.greet();
            Ok::<_, String>(relay)
        })
    });
    let mut signal = None;
    let started = tokio::select! {
        started = &mut starting => started,
        name = signals.end() => {
            let at = Instant::now();
            signal = Some((name, at));
            let Ok(started) = tokio::time::timeout(OPEN_MAX, starting).await else {
                info!("{name}: ending before the start was done: a file that it reads, or the journal's disk, does not answer");
                return Ok(at);
            };
            started
        }
    };
    let relay = started.map_err(|_| "the start failed by a fault in the relay itself".to_owned())??;
    let (name, at) = match signal {
        Some(signal) => signal,
        None => (signals.end().await, Instant::now()),
    };
    info!("{name}: stopping");
    tokio::select! {
        () = relay.stop() => {}
        name = signals.end() => info!("{name} again: ending at once; what is pending stays in the journal"),
    }
    Ok(at)
}

/// The configured `admin.listen`.
pub fn admin_address(file: Option<&Path>) -> Result<SocketAddr, String> {
    load(file).map(|loaded| loaded.config.admin.listen)
}

/// Loads the configuration of a command that needs one that is in order.
pub fn load(file: Option<&Path>) -> Result<Loaded, String> {
    config::load(file, std::env::vars_os()).map_err(|problems| format!("the configuration is not in order\n{problems}"))
}

/// As `check` prints them: also what a start would not find, lest an account without a secret be named only on the next try.
fn all_problems(file: Option<&Path>) -> String {
    let found = config::inspect(file, std::env::vars_os(), true);
    format!("the configuration is not in order\n{}", Problems(found.problems))
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        // A write past a limit of files' sizes (`ulimit -f`) then fails as on a full disk; left alone, the signal ends the process. tokio keeps a handler
        // for the life of the process.
        drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal that asks for the end.
    async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => info!("SIGHUP: secrets and certificates are read anew within two seconds of each change anyway"),
            }
        }
    }
}

/// A running relay.
pub struct Relay {
    config: Config,
    secret_made: Option<PathBuf>,
    journal: Journal,
    writer: journal::Writer,
    publisher: Publisher,
    console: Stream,
    ingress: Serving<Journal>,
    public: SocketAddr,
    scheme: &'static str,
    admin: SocketAddr,
    health: Arc<Health>,
    /// The admin port and the watch over secrets; they end with the relay.
    tasks: JoinSet<()>,
}

impl Relay {
    /// Opens all rooms. Neither a broker that is away nor a disk that fails stops it.
    ///
    /// # Errors
    /// What an operator has to mend before the relay can do anything: a port that is taken, no secret, a journal that another relay holds.
    pub async fn start(config: Config, console: Stream) -> Result<Self, String> {
        let metrics = Metrics::new(&config);
        let secret_made = first_secret(&config)?;
        let accounts = Arc::new(Accounts::open(&config, Arc::clone(&metrics)).map_err(|without| without.to_string())?);
        let options = Options {
            config: config.journal.clone(),
            outputs: config.outputs.iter().map(|output| output.name.clone()).collect(),
            accounts: config.accounts.iter().map(|account| (account.name.clone(), account.journal_max)).collect(),
            discard: config.events.discard.clone(),
            tolerance_max: config.accounts.iter().map(|account| account.tolerance).max().unwrap_or_default(),
            set_aside: true,
        };
        let (journal, writer) =
            Journal::open(options, Arc::clone(&metrics)).map_err(|error| format!("journal.path: {error}"))?;
        let mut opening = journal.health_changes();
        let _ = tokio::time::timeout(OPEN_MAX, opening.wait_for(|health| *health != journal::Health::Opening)).await;
        let rooms =
            Rooms { accounts: Arc::clone(&accounts), extra: config.events.extra.clone(), journal: journal.clone() };
        let ingress = Ingress::bind(&config.ingress, rooms, &metrics).await.map_err(|error| error.to_string())?;
        let health = {
            let journal = journal.clone();
            Health::new(move || journal.health())
        };
        let outputs = Outputs::default();
        let sources = Sources {
            instance: config.instance.clone(),
            started_at: clock::now(),
            accounts: accounts.names().collect(),
            journal_free_min: config.journal.free_min,
            metrics: Arc::clone(&metrics),
            health: Arc::clone(&health),
            pace: Pace::default(),
            rows: {
                let journal = journal.clone();
                Arc::new(move || journal.outputs())
            },
            outputs: outputs.clone(),
            last_refused: {
                let accounts = Arc::clone(&accounts);
                Arc::new(move || last_refused(&accounts.explanations()))
            },
            secret_problems: {
                let accounts = Arc::clone(&accounts);
                Arc::new(move || accounts.reports().iter().map(ToString::to_string).collect())
            },
        };
        let admin = Admin::bind(&config.admin, sources).await.map_err(|error| error.to_string())?;
        let publisher = Publisher::start(&config, &journal, &metrics, &outputs, &console)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        let (public, scheme, admin_address) = (ingress.address(), ingress.scheme(), admin.address());
        let ingress = ingress.serve();
        health.listening();
        let mut tasks = JoinSet::new();
        tasks.spawn(admin.serve());
        let (recovered, late) = mpsc::unbounded_channel();
        tasks.spawn(Arc::clone(&accounts).look_into_refused());
        tasks.spawn(Arc::clone(&accounts).watch(recovered));
        let late = Late { proved: late, waiting: VecDeque::new(), is_told: false, journal: journal.clone(), metrics };
        tasks.spawn(late.take_in(config.events.extra.clone()));
        Ok(Self {
            config,
            secret_made,
            journal,
            writer,
            publisher,
            console,
            ingress,
            public,
            scheme,
            admin: admin_address,
            health,
            tasks,
        })
    }

    pub fn public_addr(&self) -> SocketAddr {
        self.public
    }

    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Tells a person what to do next.
    fn greet(&self) {
        let outputs: Vec<_> = self.config.outputs.iter().map(|output| output.name.as_str()).collect();
        info!(
            ingress.listen = %self.public, admin.listen = %self.admin,
            "webhooks at {}://{}, published to {}; status page http://{}/, metrics http://{}/metrics",
            self.scheme, self.public, outputs.join(" and "), self.admin, self.admin
        );
        if let Some(made) = &self.secret_made {
            info!("a first secret was made in {}; SIPSIM's own goes beside it or in its place", made.display());
        }
        let Some(account) = self.config.accounts.first() else { return };
        if let Some(file) = account.secrets.as_deref().and_then(a_secret_file) {
            let program = std::env::args().next().unwrap_or_else(|| "sipsim-relay".into());
            let url = format!("{}://{}{}", self.scheme, self.public, account.path);
            notice(format_args!(
                "to post one signed event:\n  {program} simulate --to {url} --secret-file {} --event test",
                printable::one_line(&file.display().to_string())
            ));
        }
    }

    /// Ends in order: unready first, still accepting for `shutdown.delay`; then no new requests, those that were read are answered, and what is
    /// pending is published for `shutdown.drain`. Takes their sum and 2 s at the most, whatever the broker does; longer only to save a
    /// journal that is gone from its path.
    pub async fn stop(mut self) {
        self.health.stopping(); // Load balancers look elsewhere first,
        self.ingress.close_after_answers(); // and are told so on each answer,
        tokio::time::sleep(self.config.shutdown.delay).await; // while requests on their way are still taken.
        let finishing = self.ingress.stop_accepting().await;
        let _ = tokio::time::timeout(STOP_SLACK - CLOSE_MAX, finishing.finish_open_requests()).await;
        let (publisher, console, drain) = (self.publisher, self.console, self.config.shutdown.drain);
        let published = tokio::task::spawn_blocking(move || {
            publisher.stop(drain);
            console.close();
        });
        let _ = tokio::time::timeout(drain + CLOSE_MAX / 2, published).await;
        let writer = self.writer;
        let mut closed = tokio::task::spawn_blocking(move || writer.stop());
        let in_time = tokio::time::timeout(CLOSE_MAX / 2, &mut closed).await;
        // What a journal holds that is gone from its path ends with this process, unless it can be saved.
        if in_time.is_err() && self.journal.health() == journal::Health::Gone {
            let _ = tokio::time::timeout(journal::SAVE_AT_THE_END_MAX, closed).await;
        }
        // What becomes of a journal that is gone from its path, its writer says.
        let is_gone = self.journal.health() == journal::Health::Gone;
        for row in self.journal.outputs() {
            if row.counts.pending + row.counts.parked > 0 && !is_gone {
                info!(
                    output = row.name,
                    events.pending = row.counts.pending,
                    events.parked = row.counts.parked,
                    "{}: {} events stay pending and {} parked in the journal; the next start goes on with them",
                    row.name,
                    row.counts.pending,
                    row.counts.parked
                );
            }
        }
        let _ = tokio::time::timeout(TASKS_MAX, self.tasks.shutdown()).await;
        info!("stopped");
    }
}

/// As the status page and `verify --last` show it: the newest, and within it, as `earlier`, the newest of each other account and kind of cause.
fn last_refused(explanations: &[Explanation]) -> Option<serde_json::Value> {
    let as_json = |explanation: &Explanation| {
        serde_json::json!({
            "at": explanation.at.rfc3339(),
            "account": explanation.account.as_str(),
            "reason": explanation.reason.as_str(),
            "cause": explanation.kind,
            "diagnosis": explanation.causes,
        })
    };
    let (newest, earlier) = explanations.split_first()?;
    let mut newest = as_json(newest);
    newest["earlier"] = earlier.iter().map(as_json).collect();
    Some(newest)
}

/// Requests that a secret which came later proved genuine.
struct Late {
    proved: mpsc::UnboundedReceiver<Verified>,
    /// Those that are not in the journal yet, in order of arrival.
    waiting: VecDeque<LateEvent>,
    is_told: bool,
    journal: Journal,
    metrics: Arc<Metrics>,
}

struct LateEvent {
    event: Box<Event>,
    was_refused: bool,
}

impl Late {
    /// Keeps them last in order; their 401 stands. One that the journal cannot take is brought again until it can. Those of its account that are behind
    /// it wait; other accounts' do not, since the account alone may be full.
    async fn take_in(mut self, extra: Vec<Arc<str>>) {
        loop {
            let next = match self.waiting.is_empty() {
                true => self.proved.recv().await,
                false => match tokio::time::timeout(LATE_AGAIN, self.proved.recv()).await {
                    Ok(next) => next,
                    Err(_elapsed) => match self.bring_from(0).await {
                        Err(AppendError::ShuttingDown) => return,
                        _ => continue,
                    },
                },
            };
            let Some(verified) = next else { return };
            let account = verified.account.clone();
            let Ok(event) = event_of(verified, |body| Derived::from_body(body, &extra)) else {
                warn!(account.name = %account, "a refused webhook that a new secret proved could not be read by a fault in the relay itself; please report it");
                continue;
            };
            let is_behind = self.waiting.iter().any(|late| late.event.account == account);
            self.waiting.push_back(LateEvent { event, was_refused: false });
            if !is_behind && self.bring_from(self.waiting.len() - 1).await == Err(AppendError::ShuttingDown) {
                return;
            }
        }
    }

    /// Brings those from this place on to the journal, of each account up to the first that is refused. Gives the last reason.
    async fn bring_from(&mut self, mut place: usize) -> Result<(), AppendError> {
        let mut refused = Vec::new();
        let mut result = Ok(());
        while let Some(late) = self.waiting.get_mut(place) {
            let account = late.event.account.clone();
            if refused.contains(&account) {
                place += 1;
                continue;
            }
            match self.journal.append(late.event.clone()).await {
                Ok(receipt) => {
                    // A try that failed may have kept it all the same: then it is its own duplicate.
                    if !receipt.duplicate || late.was_refused {
                        self.metrics.accounts.recovered.with_label_values(&[account.as_str()]).inc();
                        info!(account.name = %account, event.id = %receipt.id, "a webhook that was refused is kept after all: a new secret proved it");
                    }
                    self.waiting.remove(place);
                }
                Err(error) => {
                    late.was_refused = true;
                    result = Err(error);
                    if error == AppendError::ShuttingDown {
                        return result;
                    }
                    if !std::mem::replace(&mut self.is_told, true) {
                        warn!(
                            events.waiting = self.waiting(),
                            "{} refused webhooks that a new secret proved wait for the journal, which takes none of account {account} now ({error:?}); \
                             they are in memory only",
                            self.waiting()
                        );
                    }
                    refused.push(account);
                    place += 1;
                }
            }
        }
        self.is_told &= !self.waiting.is_empty();
        result
    }

    fn waiting(&self) -> usize {
        self.proved.len() + self.waiting.len()
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        let lost = self.waiting();
        if lost > 0 {
            warn!(
                events.lost = lost,
                "{lost} refused webhooks that a new secret proved are lost: the journal could not take them before the stop"
            );
        }
    }
}

/// On a first start with console output only, a secret is made, so that the relay can be tried at once. Towards a broker nothing is made up.
fn first_secret(config: &Config) -> Result<Option<PathBuf>, String> {
    let Some(file) = config.first_secret_file() else { return Ok(None) };
    let folder = file.parent().unwrap_or(Path::new("."));
    make_secret(folder)
        .map(Some)
        .map_err(|error| format!("cannot make a first secret in {}: {error}", folder.display()))
}

/// A secret's file, to name in a command: the path itself, or the first visible file of a folder.
fn a_secret_file(path: &Path) -> Option<PathBuf> {
    if !path.is_dir() {
        return Some(path.to_owned());
    }
    let mut files: Vec<_> = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.file_name().is_some_and(|name| !name.to_string_lossy().starts_with('.')));
    files.into_iter().min()
}
