//! The one thread that writes. It takes all that waits into one transaction, syncs it, and only then answers.
//!
//! A failed write promised nothing and is not believed: the connection is closed without a checkpoint, and events are taken again only after
//! the file was opened anew by all of this process, a probe was committed and the whole log checkpointed from its beginning.
//! While the open file is no longer the one at its path ([`gone`]), outputs go on and nothing is taken.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tracing::{error, info, warn};

use super::database::{Database, Written};
use super::file::{self, Doubt, Files, Lock, OpenError};
use super::mend::mend;
use super::pressure::Gauge;
use super::{
    Append, AppendError, Health, Message, Options, Progress, ProgressReply, Receipt, Shared, checkpoint, orders,
    undelivered,
};
use crate::clock::{self, Timestamp};
use crate::config::AccountName;
use crate::metrics::Metrics;
use crate::normalize::EventName;
use crate::stderr;

mod gone;
use gone::Gone;

/// Events in one commit, at the most: past some hundred the sync is shared so widely that more only adds delay.
const GROUP_EVENTS_MAX: usize = 512;
/// Bytes of bodies in one commit, at the most, unless a single one is larger.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// How often the writer looks after itself when nothing comes in.
const TICK: Duration = Duration::from_millis(500);
/// How often a failed journal is tried again; a recovered disk is to be noticed within 10 s.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// The same where nothing but its own readers keep it from being opened, who look every second.
const REOPEN_SOON: Duration = Duration::from_millis(50);

pub(super) fn start(
    options: Options,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
) -> Result<JoinHandle<()>, OpenError> {
    let lock = match file::lock(&options.config.path) {
        Ok(lock) => Some(lock),
        // The disk may recover, and until then we refuse events, which is better than not to be there.
        Err(OpenError::Disk(_) | OpenError::Unreadable(_)) => None,
        Err(error) => return Err(error),
    };
    let doubt = Doubt::of(&options.config.path);
    let writer = Writer {
        started: (Instant::now(), clock::now()),
        options,
        shared,
        messages,
        lock,
        db: None,
        reopen_at: Instant::now(),
        doubt,
        sequence_min: 1,
        gone: None,
        unwanted: None,
        abandoned: None,
        is_start: true,
        is_anothers: false,
        looked_at: Instant::now(),
        stopping: false,
        is_damaged: false,
        mended_at: None,
        corrupt: None,
        found_corrupt: None,
    };
    let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
        // Whoever waits for a receipt would wait for ever, and the cause would come again: a new process starts clean.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run())).is_err() {
            error!("the journal's writer panicked; the relay ends");
            stderr::flush(Duration::from_secs(1));
            std::process::exit(1);
        }
    });
    thread.map_err(|error| OpenError::Disk(format!("cannot start a thread: {error}")))
}

/// What a reader cannot read so soon after it was mended cannot be mended.
const MENDED_FOR: Duration = Duration::from_secs(60);
/// How late a reader may say what it met before that.
const HEARD_LATE: Duration = Duration::from_secs(3);

struct Writer {
    options: Options,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    lock: Option<Lock>,
    db: Option<Database>,
    reopen_at: Instant,
    doubt: Doubt,
    /// No sequence below this is given again, even if the disk forgot that it was.
    sequence_min: u64,
    /// The open file is no longer the one at its path.
    gone: Option<Gone>,
    /// Hears of the end of a copy that nobody needs, as the file came back.
    unwanted: Option<Receiver<Result<(), String>>>,
    /// The id of the journal whose file was gone: what is opened next is another journal, also if somebody put a copy there.
    abandoned: Option<Arc<str>>,
    /// The file was not opened yet.
    is_start: bool,
    /// Another process may have written it since it was open here.
    is_anothers: bool,
    /// When lock and files were last looked at.
    looked_at: Instant,
    started: (Instant, Timestamp),
    stopping: bool,
    /// A page of the open file cannot be read, of those that do not cost all of it.
    is_damaged: bool,
    /// When what can be mended was.
    mended_at: Option<Instant>,
    /// The open file turned out to be corrupt, and how.
    corrupt: Option<String>,
    /// A reader said so just now.
    found_corrupt: Option<String>,
}

/// One transaction's worth of work.
#[derive(Default)]
pub(super) struct Group {
    pub appends: Vec<Append>,
    pub progress: Vec<(Arc<Progress>, ProgressReply)>,
    bytes: usize,
}

impl Group {
    pub fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.progress.is_empty()
    }

    fn is_full(&self) -> bool {
        self.appends.len() >= GROUP_EVENTS_MAX || self.bytes >= GROUP_BYTES_MAX || self.progress.len() >= 64
    }
}

impl Writer {
    fn run(mut self) {
        let mut gauge = Gauge::new();
        while !self.stopping {
            if self.looked_at.elapsed() >= gone::LOOK_EVERY {
                self.look_for_files();
            }
            self.reopen_if_due();
            let mut group = self.gather();
            // Readers say late what they met before the file was mended, and try again.
            let is_late = self.mended_at.is_some_and(|at| at.elapsed() < HEARD_LATE);
            if let Some(why) = self.found_corrupt.take()
                && !is_late
                && !self.is_gone_now()
            // Then it can neither be opened anew nor be set aside.
            {
                match self.mended_at.is_some_and(|at| at.elapsed() < MENDED_FOR) {
                    true => self.close_corrupt(&mut group, why),
                    false => self.close_damaged(&mut group, &why),
                }
                continue;
            }
            match &mut self.db {
                None => refuse(&mut group, AppendError::Disk),
                Some(_) if self.gone.as_ref().is_some_and(Gone::has_failed) => refuse(&mut group, AppendError::Disk),
                Some(db) => {
                    let is_idle = group.is_empty();
                    if self.gone.is_none() {
                        self.shared.at_disk(|| db.measure(&self.options, &self.shared));
                    }
                    if self.gone.is_some() {
                        refuse_appends(&mut group, AppendError::Disk);
                    } else if let Some((error, _)) = db.room.closed {
                        refuse_appends(&mut group, error);
                    } else {
                        refuse_full_accounts(&mut group, db, &self.options);
                        if !db.room.take(group.appends.len(), group.bytes, self.options.config.free_min) {
                            refuse_appends(&mut group, AppendError::Disk);
                        }
                    }
                    let begun = Instant::now();
                    let mut outcome = self.shared.at_disk(|| db.write(&group, &self.options, self.started));
                    if let Err(error) = &outcome
                        && (file::is_corrupt(error) || is_of_another_writer(error))
                        && !self.is_gone_now()
                    {
                        outcome = self.write_again(&group, error);
                    }
                    match (outcome, &mut self.db) {
                        (Ok(outcome), Some(db)) => {
                            if let Some(oldest) = group.appends.first() {
                                let under_way = self.shared.under_way.load(Ordering::Relaxed);
                                gauge.look(oldest.since, under_way, db.room.urgent, &self.shared.pressure);
                            }
                            answer(&self.shared, db, group, outcome, begun.elapsed());
                            // Behind the answers: what was committed stands, whatever becomes of this.
                            let rest = || db.clean_carefully().and_then(|()| db.checkpoint(is_idle));
                            if let Err(error) = self.shared.at_disk(rest) {
                                self.fail(Group::default(), &error);
                            }
                        }
                        (Err(error), _) => self.fail(group, &error),
                        (Ok(_), None) => {} // What was written again left it open.
                    }
                }
            }
        }
        self.look_for_files();
        self.save_at_the_end();
        if self.unwanted.is_some() {
            drop(self.db.take()); // Its thread may be at it.
            file::stop_saving(&self.options.config.path);
        }
        if let Some(db) = self.db.take().filter(|_| self.gone.is_none())
            && !db.finish()
        {
            self.doubt.raise();
        }
    }

    /// Writes a group once more that met a damaged page, or rows of another process, after the file was opened anew and mended as far as it can be: a
    /// page of events does not cost the journal. What cannot be mended fails again.
    fn write_again(&mut self, group: &Group, error: &rusqlite::Error) -> rusqlite::Result<Written> {
        let shared = Arc::clone(&self.shared);
        self.close();
        if is_of_another_writer(error) {
            warn!(journal.path = %shared.path.display(), "another process has written the journal: {error}; the file is opened anew");
            self.may_be_anothers();
        } else {
            warn!(journal.path = %shared.path.display(), "a page of the journal cannot be read: {error}; the file is opened anew");
            self.is_damaged = true;
        }
        let db = shared.at_disk(|| self.reopen()).map_err(|error| {
            let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
            rusqlite::Error::SqliteFailure(code, Some(error.to_string()))
        })?;
        self.has_opened(db);
        let (Some(db), options) = (&mut self.db, &self.options) else { return Ok(Written::default()) };
        shared.at_disk(|| db.write(group, options, self.started))
    }

    fn close(&mut self) {
        if let Some(db) = self.db.take() {
            self.sequence_min = self.sequence_min.max(db.last + 1);
            if !db.abandon() {
                self.doubt.raise();
            }
        }
    }

    /// Waits for the first message, then takes what else is there.
    fn gather(&mut self) -> Group {
        let mut group = Group::default();
        let patience = match &self.db {
            Some(db) if db.housekeeping_due => Duration::from_millis(2),
            None if self.shared.readers.is_awaited() => REOPEN_SOON,
            _ => TICK,
        };
        let mut next = match self.messages.recv_timeout(patience) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.stopping = true;
                None
            }
        };
        while let Some(message) = next {
            match message {
                Message::Append(append) => {
                    self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                    // Nobody waits any more: the deadline passed, the answer was 503, and an event that was not kept is what that says.
                    if !append.reply.is_closed() {
                        group.bytes += append.event.body.len();
                        group.appends.push(append);
                    }
                }
                Message::Progress(progress, reply) => group.progress.push((progress, reply)),
                Message::Corrupt(id, why) => {
                    // Several readers may meet it, and one of them late.
                    if self.db.is_some()
                        && Arc::ptr_eq(&id, &self.shared.id.lock().unwrap_or_else(PoisonError::into_inner))
                    {
                        self.found_corrupt = Some(why);
                    }
                }
                Message::Stop => {
                    self.stopping = true;
                    break;
                }
            }
            if group.is_full() {
                break;
            }
            next = self.messages.try_recv().ok();
        }
        group
    }

    fn reopen_if_due(&mut self) {
        if self.db.is_some() || Instant::now() < self.reopen_at {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match shared.at_disk(|| self.reopen()) {
            Ok(db) => self.has_opened(db),
            Err(error) => {
                if let OpenError::Disk(_) = error {
                    self.doubt.raise();
                }
                let text = error.to_string();
                let failing = Health::Failing(text.clone());
                if self.shared.health.send_replace(failing.clone()) != failing {
                    error!(journal.path = %self.shared.path.display(), "the journal cannot be opened: {text}; events are refused with 503 until it can");
                }
                self.reopen_at =
                    Instant::now() + if self.shared.readers.is_awaited() { REOPEN_SOON } else { REOPEN_EVERY };
            }
        }
    }

    /// Tells everybody of the file that is open now, which may be another one than before.
    fn has_opened(&mut self, mut db: Database) {
        let was = self.shared.health.borrow().clone();
        // Before anybody hears that it is ready: one that is full, or whose disk is, refuses from the start.
        self.shared.at_disk(|| db.measure(&self.options, &self.shared));
        if db.room.closed.is_none() {
            self.shared.health.send_replace(Health::Ready);
            if let Health::Failing(_) | Health::Gone = was {
                info!(journal.path = %self.shared.path.display(), "the journal takes events again");
            }
        }
        self.shared.committed.send_replace(db.last);
        self.doubt.settle();
        self.shared.readers.read_from(db.files.journal());
        self.shared.metrics.journal.gone.set(0);
        self.db = Some(db);
    }

    fn reopen(&mut self) -> Result<Database, OpenError> {
        let lock = match self.lock.take() {
            Some(mut lock) => match lock.renew() {
                Ok(false) => lock,
                renewed => {
                    self.may_be_anothers();
                    renewed?;
                    lock
                }
            },
            None => {
                let lock = file::lock(&self.options.config.path)?;
                if self.is_anothers {
                    self.corrupt = None;
                }
                lock
            }
        };
        let path = &self.options.config.path;
        let now = clock::now();
        let log_max = file::log_max(&self.options.config);
        let opened = match self.corrupt.take() {
            Some(why) => Err(OpenError::Unreadable(why)),
            None => file::open(path, log_max, &lock, now),
        };
        let opened = match opened {
            Err(OpenError::Unreadable(why)) if !self.options.set_aside => {
                self.shared.readers.send_away_if(false); // Nobody waits for them any more.
                self.corrupt = Some(why.clone());
                Err(OpenError::Unreadable(format!("{}: {why}; it is left as it is", path.display())))
            }
            Err(OpenError::Unreadable(why)) => match file::set_aside(path, now) {
                Ok(aside) => {
                    self.is_damaged = false;
                    error!(journal.path = %path.display(), journal.set_aside = %aside.display(), "the journal was set aside and a new one begun: {why}");
                    file::open(path, log_max, &lock, now)
                }
                Err(error) => {
                    self.corrupt = Some(why);
                    Err(OpenError::Disk(format!("{}: cannot be set aside: {error}", path.display())))
                }
            },
            opened => opened,
        };
        self.lock = Some(lock);
        let db = opened?;
        self.begin_log_again(&db)?;
        let disk = |error: std::io::Error| OpenError::Disk(format!("{}: {error}", path.display()));
        let mended = match self.is_damaged {
            true => mend(&db, self.last_of_this(), now),
            false => Ok(()),
        };
        self.mended_at = self.is_damaged.then(Instant::now);
        let proved = mended.and_then(|()| prove(&db, self.doubt.is())).and_then(|()| self.identify(&db, now));
        let files = Files::of(path).map_err(disk)?; // Its log is there now.
        let database = proved.and_then(|()| {
            Database::load(db, files, &self.options, &self.shared, self.sequence_min, self.is_damaged, now)
        });
        let database = match database {
            Err(error) if file::is_corrupt(&error) && !self.is_damaged => {
                self.is_damaged = true;
                return self.reopen();
            }
            Err(error) => {
                if file::is_not_as_written(&error) {
                    self.corrupt = Some(error.to_string()); // The next try, in a second, sets it aside.
                }
                return Err(OpenError::Disk(format!("{}: {error}", path.display())));
            }
            Ok(database) => database,
        };
        self.shared.metrics.journal.set_aside.set(i64::from(file::count_set_aside(path) > 0));
        (self.is_start, self.abandoned, self.is_anothers) = (false, None, false);
        Ok(database)
    }

    /// Gives the journal another id where another one has its own: `journal new-id` said so, or its file was gone and this is a copy. At the start
    /// says that it is a copy of an earlier one, if that shows.
    fn identify(&self, db: &Connection, now: Timestamp) -> rusqlite::Result<()> {
        let path = &self.options.config.path;
        let id = file::journal_id(db)?;
        let ordered = if self.is_start { orders::next_new_id(db)? } else { None };
        if ordered.is_some() || self.abandoned.as_deref() == Some(&*id) {
            let new = file::renew_id(db, path, ordered, now)?;
            info!(journal.path = %path.display(), "the journal goes on with the id (relayjournal) {new}; until now it was {id}");
        } else if file::is_copy(db, path)? && self.is_start {
            warn!(
                journal.path = %path.display(),
                "the journal is a copy: its file is not the one that was written last under its id (relayjournal) {id}. If events were accepted \
                 after the copy was made, consumers may meet two of one relaysequence: order `journal new-id` and start the relay again"
            );
        }
        let id = file::journal_id(db)?;
        let mut known = self.shared.id.lock().unwrap_or_else(PoisonError::into_inner);
        // Outputs know their journal by this very value: of one that another process wrote meanwhile they have to begin anew.
        if **known != *id || self.is_anothers {
            *known = id.into();
        }
        Ok(())
    }

    /// The last sequence that was committed, of the file that was open last if it can be no other than this one.
    fn last_of_this(&self) -> Option<u64> {
        let is_another = self.is_start || self.is_anothers || self.abandoned.is_some();
        (!is_another).then(|| *self.shared.committed.borrow())
    }

    /// The lock was lost for a time: another process may have written the file since.
    fn may_be_anothers(&mut self) {
        self.is_anothers = true;
        self.corrupt = None; // Perhaps only written by two at once; what is corrupt shows again.
    }

    /// After a fault, sees to it that the whole log is moved into the file once more; see `checkpoint`. What was moved stands in the log's index,
    /// which SQLite makes anew when the first one opens the journal: so everybody has to let go of it.
    fn begin_log_again(&self, db: &Connection) -> Result<(), OpenError> {
        let is_whole = match checkpoint::log_and_moved(db) {
            _ if !self.doubt.is() => true,
            Ok(told) => told.is_some_and(|(_, moved)| moved == 0),
            Err(error) => return Err(OpenError::Disk(format!("{}: {error}", self.options.config.path.display()))),
        };
        self.shared.readers.send_away_if(!is_whole);
        if is_whole {
            return Ok(());
        }
        let why = "after a fault of the disk it is opened anew once everybody has closed it, a `journal` command too";
        Err(OpenError::Disk(why.into()))
    }

    /// To be mended as it is opened anew, as far as it can be.
    fn close_damaged(&mut self, group: &mut Group, why: &str) {
        warn!(journal.path = %self.shared.path.display(), "a page of the journal cannot be read: {why}; the file is opened anew");
        refuse(group, AppendError::Disk);
        self.close();
        self.is_damaged = true;
        self.reopen_at = Instant::now();
    }

    fn close_corrupt(&mut self, group: &mut Group, why: String) {
        self.shared.health.send_replace(Health::Failing(why.clone()));
        self.corrupt = Some(why);
        refuse(group, AppendError::Disk);
        self.doubt.raise(); // A fault of a round may not have been told yet.
        self.close();
        self.reopen_at = Instant::now();
    }

    fn fail(&mut self, mut group: Group, error: &rusqlite::Error) {
        if self.is_gone_now() {
            refuse(&mut group, AppendError::Disk);
            return self.fail_while_gone(error);
        }
        let text = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => "the disk is full".into(),
            _ => error.to_string(),
        };
        error!(journal.path = %self.shared.path.display(), "a write to the journal failed: {text}; events are refused with 503 until one succeeds");
        if file::is_not_as_written(error) {
            self.corrupt = Some(text.clone());
        }
        self.shared.health.send_replace(Health::Failing(text));
        refuse(&mut group, AppendError::Disk); // Before the file is closed, which may wait for the disk.
        self.close_in_doubt();
    }

    fn close_in_doubt(&mut self) {
        self.doubt.raise();
        self.close();
        self.reopen_at = Instant::now() + REOPEN_EVERY;
    }
}

/// A number that is given already, or the like: where nobody else writes, the file is not as it was written.
fn is_of_another_writer(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// A commit and a checkpoint of the whole log that succeed: only then a file that failed is believed again. In doubt the log is emptied, too: it may
/// hold a commit whose sync failed, which is only in the system's memory, and what came behind that would go with it.
fn prove(db: &Connection, in_doubt: bool) -> rusqlite::Result<()> {
    file::probe(db)?;
    let how = if in_doubt { "TRUNCATE" } else { "FULL" };
    let (busy, log, done): (i64, i64, i64) =
        db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if busy != 0 && in_doubt {
        let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        let why = "after a fault of the disk its log has to be emptied, which a reader prevents (a `journal` command?)";
        return Err(rusqlite::Error::SqliteFailure(busy, Some(why.into())));
    }
    if busy != 0 {
        warn!(
            journal.log_pages = log,
            journal.checkpointed_pages = done,
            "a reader kept the journal's log from being checkpointed whole"
        );
    }
    Ok(())
}

/// After the commit: readers first, so that publishing begins while the answers go out.
fn answer(shared: &Shared, db: &Database, group: Group, written: Written, took: Duration) {
    db.show(shared);
    for (place, (account, name)) in written.imported.iter().enumerate() {
        let is_discarded = written.discarded.contains(&(group.appends.len() + place));
        let counter = if is_discarded { &shared.metrics.accounts.discarded } else { &shared.metrics.accounts.accepted };
        counter.with_label_values(&[account.as_str(), name.as_str()]).inc();
    }
    if let Some(step) = written.order {
        tell(shared, step);
    }
    if written.accepted > 0 {
        let metrics = &shared.metrics;
        shared.committed.send_replace(db.last);
        metrics.journal.commit_duration.observe(took.as_secs_f64());
        metrics.journal.commit_events.observe(written.accepted as f64);
    }
    count(&shared.metrics, &group.appends, &written.receipts, &written.discarded, clock::now());
    for (append, receipt) in group.appends.into_iter().zip(written.receipts) {
        let _ = append.reply.send(Ok(receipt)); // Nobody waits: the deadline passed meanwhile.
    }
    for ((_, reply), known) in group.progress.into_iter().zip(written.known) {
        // What was said of another file must not be taken for kept.
        let _ = reply.send(if known { Ok(()) } else { Err(AppendError::Disk) });
    }
}

/// After the commit: what an order changed, for those that have things in memory, and for the log.
fn tell(shared: &Shared, step: orders::Step) {
    let mut listening = shared.given_up.lock().unwrap_or_else(PoisonError::into_inner);
    for (output, sequence) in step.given_up {
        if let Some(list) = listening.get_mut(&output) {
            list.push(sequence);
        }
    }
    drop(listening);
    if let Some(output) = step.forgotten {
        shared.metrics.publish.forget(&output);
    }
    match step.finished {
        Some((command, orders::Progress { problem: Some(problem), .. })) => {
            warn!("an order, `journal {command}`, was not carried out: {problem}");
        }
        Some((command, progress)) => {
            info!(
                events = progress.events,
                "an order, `journal {command}`, was carried out: {} events", progress.events
            );
        }
        None => {}
    }
}

/// Counts a group's new events. Kind by kind: to find a series by its labels costs more than to count, and a group is of few kinds.
fn count(metrics: &Metrics, appends: &[Append], receipts: &[Receipt], discarded: &[usize], now: Timestamp) {
    let mut kinds: Vec<(&AccountName, &EventName, bool, u64, Timestamp)> = Vec::new();
    let mut heard: Vec<&AccountName> = Vec::new();
    let new = appends.iter().zip(receipts).enumerate().filter(|(_, (_, receipt))| !receipt.duplicate);
    for (place, (append, _)) in new {
        let event = &append.event;
        let gone = discarded.binary_search(&place).is_ok();
        let same = |kind: &&mut (&AccountName, &EventName, bool, u64, Timestamp)| {
            (kind.0, kind.1, kind.2) == (&event.account, &event.name, gone)
        };
        match kinds.iter_mut().find(same) {
            Some((.., count, at)) => (*count, *at) = (*count + 1, event.received_at),
            None => kinds.push((&event.account, &event.name, gone, 1, event.received_at)),
        }
        if !heard.contains(&&event.account) {
            heard.push(&event.account);
        }
    }
    for (account, name, gone, count, at) in kinds {
        metrics.accounts.arrived(account.as_str(), name.as_str(), at);
        let counter = if gone { &metrics.accounts.discarded } else { &metrics.accounts.accepted };
        counter.with_label_values(&[account.as_str(), name.as_str()]).inc_by(count);
    }
    for account in heard {
        // Not the arrival: what a new secret proved late came before what was accepted meanwhile.
        metrics.accounts.last_accepted.with_label_values(&[account.as_str()]).set(now.as_seconds_f64());
    }
}

/// Refuses what would take its account past its bound; the others' events go on. An account that has nothing undelivered may keep an event of any size,
/// and a duplicate takes no room.
fn refuse_full_accounts(group: &mut Group, db: &mut Database, options: &Options) {
    for (account, bytes_max) in &options.accounts {
        let Some(bytes_max) = bytes_max else { continue };
        let mut bytes = db.undelivered.of(account);
        let mut requests = HashSet::new();
        let is_too_much = |append: &mut Append| {
            let event = &append.event;
            if event.account != *account || options.discard.iter().any(|name| name == event.name.as_str()) {
                return false;
            }
            // A fault of the disk comes up again where the group is written.
            if requests.contains(&(event.signed_at, event.id)) || db.is_duplicate(event).unwrap_or(false) {
                return false;
            }
            let more = bytes + undelivered::cost(event.body.len());
            let is_too_much = bytes > 0 && more > *bytes_max;
            if !is_too_much {
                bytes = more;
                requests.insert((event.signed_at, event.id));
            }
            is_too_much
        };
        for append in group.appends.extract_if(.., is_too_much) {
            group.bytes -= append.event.body.len();
            let _ = append.reply.send(Err(AppendError::AccountFull)); // Nobody waits: the deadline passed meanwhile.
        }
    }
}

fn refuse_appends(group: &mut Group, error: AppendError) {
    for append in group.appends.drain(..) {
        let _ = append.reply.send(Err(error));
    }
}

fn refuse(group: &mut Group, error: AppendError) {
    refuse_appends(group, error);
    for (_, reply) in group.progress.drain(..) {
        let _ = reply.send(Err(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_writes_to_the_disk_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        let lock = file::lock(&path).unwrap();
        let db = file::open(&path, 1 << 30, &lock, clock::now()).unwrap();
        for time in 1..=3 {
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            let log = || std::fs::metadata(file::with_suffix(&path, "-wal")).unwrap().len();
            assert_eq!(log(), 0);
            prove(&db, false).unwrap();
            assert!(log() > 0, "nothing was written, time {time}");
        }
        prove(&db, true).unwrap();
        let left = std::fs::metadata(file::with_suffix(&path, "-wal")).unwrap().len();
        assert_eq!(left, 0, "in doubt nothing of the log may stay");
    }
}
