//! The one thread that writes. It takes all that waits into one transaction, syncs it, and only then answers.
//!
//! A failed write promised nothing and is not believed: the connection is closed without a checkpoint, and events are taken again only after
//! the file was opened anew, a probe was committed and the whole log checkpointed.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, params};
use tracing::{error, info, warn};

use super::file::{self, Lock, OpenError};
use super::retention::{Limits, Retention};
use super::seen::Seen;
use super::{
    Append, AppendError, Health, Kept, Message, Options, OutputRow, Progress, ProgressReply, Receipt, Shared, ledger,
    orders, progress, row,
};
use crate::clock::{self, Timestamp};
use crate::config::AccountName;
use crate::metrics::Metrics;
use crate::normalize::EventName;

/// Events in one commit, at the most: past some hundred the sync is shared so widely that more only adds delay.
const GROUP_EVENTS_MAX: usize = 512;
/// Bytes of bodies in one commit, at the most, unless a single one is larger.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// How often the writer looks after itself when nothing comes in.
const TICK: Duration = Duration::from_millis(250);
/// How often a failed journal is tried again; a recovered disk is to be noticed within 10 s.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// How often room on the disk and in the journal is measured: at 100 MB/s this is 10 MB, a sixth of the least `free_min` that is sensible.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
/// Events that leave a full journal before it accepts again, so that it does not flutter at the brink.
const RESUME_AT: f64 = 0.95;
/// From this fill on published events go, whatever their age.
const PRESSURE_AT: f64 = 0.80;
/// From this fill on they go in large steps: accepting half as fast is better than not accepting.
const URGENT_AT: f64 = 0.90;
/// Rows that retention looks at in a commit: twice the group, at least 16, and past 128 no more than keeps up with what comes in (DESIGN §8:
/// twice the group is free, 256 rows or more halve acceptance).
const RETENTION_ROWS_MIN: usize = 16;
const RETENTION_ROWS: usize = 128;
/// The same in a commit that no request waits for.
const RETENTION_ROWS_IDLE: usize = 512;
/// How often the table of orders is looked at.
const ORDERS_EVERY: Duration = Duration::from_secs(1);
/// Events that one step of an order looks at: beside requests as many as a group's retention, else enough for a hundred thousand a second.
const ORDER_ROWS: usize = 64;
const ORDER_ROWS_IDLE: usize = 512;
/// Behind the end of the tolerance, before a request's id is forgotten: a clock may be set by some seconds.
const REQUESTS_KEPT_LONGER: Duration = Duration::from_secs(60);

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
    let writer = Writer {
        started: (Instant::now(), clock::now()),
        options,
        shared,
        messages,
        lock,
        db: None,
        reopen_at: Instant::now(),
        sequence_min: 1,
        stopping: false,
        corrupt: None,
    };
    let thread = std::thread::Builder::new().name("journal".into()).spawn(move || {
        // Whoever waits for a receipt would wait for ever, and the cause would come again: a new process starts clean.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| writer.run())).is_err() {
            error!("the journal's writer panicked; the relay ends");
            std::process::exit(1);
        }
    });
    thread.map_err(|error| OpenError::Disk(format!("cannot start a thread: {error}")))
}

struct Writer {
    options: Options,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    lock: Option<Lock>,
    db: Option<Database>,
    reopen_at: Instant,
    /// No sequence below this is given again, even if the disk forgot that it was.
    sequence_min: u64,
    started: (Instant, Timestamp),
    stopping: bool,
    /// The open file turned out to be corrupt, and how.
    corrupt: Option<String>,
}

/// The open file, and what of it is kept in memory.
struct Database {
    db: Connection,
    id: Arc<str>,
    seen: Seen,
    retention: Retention,
    outputs: Vec<OutputRow>,
    /// The last sequence given.
    last: u64,
    floor: u64,
    kept: Kept,
    room: Room,
    expired_at: Instant,
    seen_accounts_at: Instant,
    accounts_dirty: Vec<(AccountName, Timestamp)>,
    orders_at: Instant,
    /// An order is not at its end.
    order_open: bool,
    housekeeping_due: bool,
}

struct Room {
    measured_at: Instant,
    /// Why no event is taken.
    closed: Option<(AppendError, Health)>,
    pressure: bool,
    urgent: bool,
}

/// One transaction's worth of work.
#[derive(Default)]
struct Group {
    appends: Vec<Append>,
    progress: Vec<(Arc<Progress>, ProgressReply)>,
    bytes: usize,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.appends.is_empty() && self.progress.is_empty()
    }

    fn is_full(&self) -> bool {
        self.appends.len() >= GROUP_EVENTS_MAX || self.bytes >= GROUP_BYTES_MAX || self.progress.len() >= 64
    }
}

impl Writer {
    fn run(mut self) {
        while !self.stopping {
            self.reopen_if_due();
            let mut group = self.gather();
            match &mut self.db {
                None => refuse(&mut group, AppendError::Disk),
                Some(db) => {
                    db.measure(&self.options, &self.shared);
                    if let Some((error, _)) = db.room.closed {
                        refuse_appends(&mut group, error);
                    }
                    let begun = Instant::now();
                    match db.write(&group, &self.options, self.started) {
                        Ok(outcome) => {
                            answer(&self.shared, db, group, outcome, begun.elapsed());
                        }
                        Err(error) => self.fail(group, &error),
                    }
                }
            }
        }
        if let Some(db) = self.db.take() {
            // Spares the next start the recovery of the log; nothing depends on it.
            let _ = db.db.execute_batch("PRAGMA wal_checkpoint(PASSIVE)");
        }
    }

    /// Waits for the first message, then takes what else is there.
    fn gather(&mut self) -> Group {
        let mut group = Group::default();
        let patience = match &self.db {
            Some(db) if db.housekeeping_due => Duration::from_millis(2),
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
                        group.appends.push(*append);
                    }
                }
                Message::Progress(progress, reply) => group.progress.push((progress, reply)),
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
        match self.reopen() {
            Ok(db) => {
                let was = self.shared.health.send_replace(Health::Ready);
                if let Health::Failing(_) = was {
                    info!(journal.path = %self.shared.path.display(), "the journal takes events again");
                }
                self.shared.committed.send_replace(db.last);
                self.db = Some(db);
            }
            Err(error) => {
                let text = error.to_string();
                let failing = Health::Failing(text.clone());
                if self.shared.health.send_replace(failing.clone()) != failing {
                    error!(journal.path = %self.shared.path.display(), "the journal cannot be opened: {text}; events are refused with 503 until it can");
                }
                self.reopen_at = Instant::now() + REOPEN_EVERY;
            }
        }
    }

    fn reopen(&mut self) -> Result<Database, OpenError> {
        let path = &self.options.config.path;
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => file::lock(path)?,
        };
        let now = clock::now();
        let size_max = self.options.config.size_max;
        let opened = match self.corrupt.take() {
            Some(why) => Err(OpenError::Unreadable(why)),
            None => file::open(path, size_max, &lock, now),
        };
        let opened = match opened {
            Err(OpenError::Unreadable(why)) => match file::set_aside(path, now) {
                Ok(aside) => {
                    error!(journal.path = %path.display(), journal.set_aside = %aside.display(), "the journal was set aside and a new one begun: {why}");
                    file::open(path, size_max, &lock, now)
                }
                Err(error) => Err(OpenError::Disk(format!("{}: cannot be set aside: {error}", path.display()))),
            },
            opened => opened,
        };
        self.lock = Some(lock);
        let db = opened?;
        let database =
            prove(&db).and_then(|()| Database::load(db, &self.options, &self.shared, self.sequence_min, now));
        let database = database.map_err(|error| {
            if is_corrupt(&error) {
                self.corrupt = Some(error.to_string()); // The next try, in a second, sets it aside.
            }
            OpenError::Disk(format!("{}: {error}", path.display()))
        })?;
        self.shared.metrics.journal.set_aside.set(i64::from(file::count_set_aside(path) > 0));
        Ok(database)
    }

    fn fail(&mut self, mut group: Group, error: &rusqlite::Error) {
        let text = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => "the disk is full".into(),
            _ => error.to_string(),
        };
        error!(journal.path = %self.shared.path.display(), "a write to the journal failed: {text}; events are refused with 503 until one succeeds");
        if is_corrupt(error) {
            self.corrupt = Some(text.clone());
        }
        self.shared.health.send_replace(Health::Failing(text));
        if let Some(db) = self.db.take() {
            self.sequence_min = self.sequence_min.max(db.last + 1);
        }
        refuse(&mut group, AppendError::Disk);
        self.reopen_at = Instant::now() + REOPEN_EVERY;
    }
}

/// The file's content is wrong, which no waiting mends.
fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// A commit and a checkpoint of the whole log that succeed: only then a file that failed is believed again.
fn prove(db: &Connection) -> rusqlite::Result<()> {
    db.execute("UPDATE meta SET value = value WHERE name = 'sequence_floor'", [])?;
    let (busy, log, done): (i64, i64, i64) =
        db.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if busy != 0 {
        warn!(
            journal.log_pages = log,
            journal.checkpointed_pages = done,
            "a reader kept the journal's log from being checkpointed whole"
        );
    }
    Ok(())
}

/// What a transaction did, for the answers and metrics that follow it.
#[derive(Default)]
struct Written {
    receipts: Vec<Receipt>,
    accepted: usize,
    /// Which appends of the group `events.discard` names.
    discarded: Vec<usize>,
    /// Which progress of the group is of this file and of an output that it has.
    known: Vec<bool>,
    /// Account and name of events that an order brought.
    imported: Vec<(crate::config::AccountName, crate::normalize::EventName)>,
    order: Option<orders::Step>,
}

impl Database {
    fn load(
        db: Connection,
        options: &Options,
        shared: &Shared,
        sequence_min: u64,
        now: Timestamp,
    ) -> rusqlite::Result<Self> {
        let highest =
            |sql: &str| db.query_row(sql, [], |row| row.get::<_, Option<i64>>(0)).map(|n| n.unwrap_or(0) as u64);
        let floor = highest("SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'sequence_floor'")?;
        let last = floor
            .max(highest("SELECT max(sequence) FROM events")?)
            .max(highest("SELECT max(cursor) FROM outputs")?)
            .max(sequence_min - 1);
        db.execute_batch("BEGIN IMMEDIATE")?;
        ledger::configure(&db, &options.outputs, last, now)?;
        db.execute_batch("COMMIT")?;
        let outputs = ledger::read(&db)?;
        let id: String = db.query_row("SELECT value FROM meta WHERE name = 'journal_id'", [], |row| row.get(0))?;
        let id: Arc<str> = id.into();
        *shared.id.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&id);
        let mut accounts = db.prepare("SELECT name, last_accepted_at FROM accounts")?;
        let mut rows = accounts.query([])?;
        while let Some(row) = rows.next()? {
            let (name, at): (String, i64) = (row.get(0)?, row.get(1)?);
            // A series for an account that is no longer configured would say nothing.
            if shared.metrics.accounts.last_accepted.remove_label_values(&[&name]).is_ok() {
                shared
                    .metrics
                    .accounts
                    .last_accepted
                    .with_label_values(&[&name])
                    .set(Timestamp::from_micros(at).as_seconds_f64());
            }
        }
        drop(rows);
        drop(accounts);
        let long_ago = Instant::now() - MEASURE_EVERY * 20;
        let database = Self {
            db,
            id,
            seen: Seen::default(),
            retention: Retention::new(),
            outputs,
            last,
            floor,
            // Whatever comes is behind this.
            kept: Kept { groups: [(last, now)].into() },
            room: Room { measured_at: long_ago, closed: None, pressure: false, urgent: false },
            expired_at: long_ago,
            seen_accounts_at: long_ago,
            accounts_dirty: Vec::new(),
            orders_at: long_ago,
            order_open: false,
            housekeeping_due: true,
        };
        database.show(shared);
        Ok(database)
    }

    /// Carries out a group and syncs it. On an error nothing of it happened, and this value is no longer to be believed.
    fn write(&mut self, group: &Group, options: &Options, started: (Instant, Timestamp)) -> rusqlite::Result<Written> {
        let mut written = Written::default();
        if group.is_empty() && !self.housekeeping_due && self.expired_at.elapsed() < Duration::from_secs(1) {
            return Ok(written);
        }
        let now = clock::now();
        let order = self.next_order()?;
        let imported = order.as_ref().map(orders::Waiting::events).unwrap_or_default();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.append(group.appends.iter().map(|append| &append.event).chain(&imported), options, &mut written, now)?;
        written.imported.extend(imported.into_iter().map(|event| (event.account, event.name)));
        for (progress, _) in &group.progress {
            // What an output did with the events of a file that was set aside meanwhile says nothing of this one's. One that was kept though its commit seemed to fail is not counted again.
            let row = self.outputs.iter_mut().find(|row| row.number == progress.output && progress.journal == self.id);
            written.known.push(row.is_some());
            if let Some(row) = row.filter(|row| row.progress < progress.number) {
                progress::apply(&self.db, progress, row, &self.kept, now)?;
            }
        }
        let ordered = order.is_some();
        if let Some(order) = order {
            let rows = if group.appends.is_empty() { ORDER_ROWS_IDLE } else { ORDER_ROWS };
            let step = orders::carry_out(&self.db, order, &mut self.outputs, self.last, rows, now)?;
            if step.forgotten.is_some() {
                // Its cursor may have been all that remembered how far the numbers went.
                self.floor = self.last;
                save_floor(&self.db, self.floor)?;
            }
            self.order_open = true; // Or another one follows.
            written.order = Some(step);
        }
        if !group.is_empty() || ordered {
            for row in &self.outputs {
                progress::save(&self.db, row)?;
            }
        }
        self.clean(group, options, started, now)?;
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.seen.saved();
        if written.accepted > 0 {
            self.kept.note(self.last, clock::now());
        }
        Ok(written)
    }

    /// An order to carry out a step of, if it is time to look.
    fn next_order(&mut self) -> rusqlite::Result<Option<orders::Waiting>> {
        if !self.order_open && self.orders_at.elapsed() < ORDERS_EVERY {
            return Ok(None);
        }
        self.orders_at = Instant::now();
        let order = orders::next(&self.db, self.room.closed.is_none())?;
        self.order_open = order.is_some();
        Ok(order)
    }

    fn append<'a>(
        &mut self,
        events: impl Iterator<Item = &'a crate::normalize::Event>,
        options: &Options,
        written: &mut Written,
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let mut events = events.peekable();
        if events.peek().is_none() {
            return Ok(());
        }
        let first = self.last + 1;
        let mut kept = 0;
        let mut insert = self.db.prepare_cached(row::INSERT)?;
        for (place, event) in events.enumerate() {
            // An import brings its own times, and is asked for on purpose.
            let new = event.replayed || self.seen.note(&self.db, event.signed_at, event.id)?;
            written.receipts.push(Receipt { id: event.id, duplicate: !new, _seal: () });
            if !new {
                continue;
            }
            self.last += 1;
            if options.discard.iter().any(|name| name == event.name.as_str()) {
                discard(&self.db, self.last, event, now)?;
                written.discarded.push(place);
                self.floor = self.last;
            } else {
                row::insert(&mut insert, self.last, event)?;
                kept += 1;
            }
            if event.replayed {
                continue; // Nobody was heard of.
            }
            match self.accounts_dirty.iter_mut().find(|(name, _)| *name == event.account) {
                Some((_, at)) => *at = event.received_at,
                None => self.accounts_dirty.push((event.account.clone(), event.received_at)),
            }
        }
        drop(insert);
        self.seen.save(&self.db, first)?;
        let discarded = written.discarded.len() as i64;
        if discarded > 0 {
            save_floor(&self.db, self.floor)?;
        }
        for row in self.outputs.iter_mut().filter(|row| !row.removed) {
            row.counts.accepted += kept + discarded;
            row.counts.pending += kept;
            row.counts.discarded += discarded;
        }
        written.accepted = (kept + discarded) as usize;
        Ok(())
    }

    /// A step of retention, of forgetting old requests, and of noting when accounts were last heard of.
    fn clean(
        &mut self,
        group: &Group,
        options: &Options,
        started: (Instant, Timestamp),
        now: Timestamp,
    ) -> rusqlite::Result<()> {
        let appends = group.appends.len();
        let rows = match appends {
            0 => RETENTION_ROWS_IDLE,
            _ if self.room.urgent => RETENTION_ROWS_IDLE.max(appends * 2),
            _ if self.room.pressure => RETENTION_ROWS.max(appends * 2),
            _ => (appends * 2).clamp(RETENTION_ROWS_MIN, RETENTION_ROWS.max(appends + appends / 4)),
        };
        let limits = Limits {
            retention: options.config.retention,
            trail: options.config.trail,
            size_max: options.config.size_max,
            pressure: self.room.pressure,
            owed_from: ledger::owed_from(&self.outputs).unwrap_or(u64::MAX).min(self.last),
            rows,
            outputs: self.outputs.len(),
        };
        let step = self.retention.step(&self.db, &limits, now)?;
        if step.floor > self.floor {
            self.floor = step.floor;
            save_floor(&self.db, step.floor)?;
        }
        let mut more = step.more;
        if self.expired_at.elapsed() >= Duration::from_secs(1) {
            // A clock that jumps ahead must not make us forget requests that may come again once it is set right, so time passes here at
            // most as fast as it really does.
            let steady = started.1.plus(started.0.elapsed());
            let before = now.min(steady).minus(options.tolerance_max + REQUESTS_KEPT_LONGER);
            let more_requests = self.seen.expire(&self.db, before.as_seconds())?;
            more |= more_requests;
            if !more_requests {
                self.expired_at = Instant::now();
            }
        }
        if !self.accounts_dirty.is_empty() && self.seen_accounts_at.elapsed() >= Duration::from_secs(1) {
            let mut upsert =
                self.db.prepare_cached("INSERT OR REPLACE INTO accounts (name, last_accepted_at) VALUES (?, ?)")?;
            for (name, at) in self.accounts_dirty.drain(..) {
                upsert.execute(params![name.as_str(), at.as_micros()])?;
            }
            self.seen_accounts_at = Instant::now();
        }
        self.housekeeping_due = more || self.order_open;
        Ok(())
    }

    /// How full the journal and its disk are, and whether events are taken.
    fn measure(&mut self, options: &Options, shared: &Shared) {
        if self.room.measured_at.elapsed() < MEASURE_EVERY {
            return;
        }
        self.room.measured_at = Instant::now();
        let pragma =
            |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(0).max(0) as u64;
        let pages = pragma("page_count").saturating_sub(pragma("freelist_count"));
        let log = std::fs::metadata(file::with_suffix(&shared.path, "-wal")).map_or(0, |file| file.len());
        let bytes = pages * pragma("page_size") + log;
        let free = rustix::fs::statvfs(file::folder(&shared.path)).map(|disk| disk.f_bavail * disk.f_frsize);
        let metrics = &shared.metrics.journal;
        metrics.bytes.set(bytes as i64);
        if let Ok(free) = free {
            metrics.free.set(free as i64);
        }
        let config = &options.config;
        let closed = self.room.closed.as_ref().map(|(error, _)| *error);
        let part = bytes as f64 / config.size_max as f64;
        let free = free.unwrap_or(u64::MAX);
        // Once closed, some room must have come back before it opens again.
        let free_needed =
            if closed == Some(AppendError::Disk) { config.free_min + config.free_min / 20 } else { config.free_min };
        let part_allowed = if closed == Some(AppendError::Full) { RESUME_AT } else { 1.0 };
        let now_closed = if free < free_needed {
            let text =
                format!("{} MiB are free on its disk, journal.free_min is {} MiB", free >> 20, config.free_min >> 20);
            Some((AppendError::Disk, Health::Failing(text)))
        } else if part >= part_allowed {
            Some((AppendError::Full, Health::Full))
        } else {
            None
        };
        if part >= PRESSURE_AT && !self.room.pressure {
            self.housekeeping_due = true;
        }
        self.room.pressure = part >= PRESSURE_AT;
        self.room.urgent = part >= URGENT_AT;
        match (&closed, &now_closed) {
            (None, Some((_, Health::Failing(text)))) => error!("the journal refuses events with 503: {text}"),
            (None, Some(_)) => error!(
                journal.bytes = bytes,
                "the journal is full of events that are pending or parked; events are refused with 503 until some have left"
            ),
            (Some(_), None) => info!("the journal takes events again"),
            _ => {}
        }
        if closed != now_closed.as_ref().map(|(error, _)| *error) {
            shared.health.send_replace(now_closed.as_ref().map_or(Health::Ready, |(_, health)| health.clone()));
        }
        self.room.closed = now_closed;
    }

    /// Lets everybody see the outputs as they are now.
    fn show(&self, shared: &Shared) {
        shared.outputs.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.outputs);
    }
}

fn save_floor(db: &Connection, floor: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE meta SET value = ? WHERE name = 'sequence_floor'")?.execute([floor.to_string()])?;
    Ok(())
}

/// Of an event that configuration discards only the trail is kept.
fn discard(db: &Connection, sequence: u64, event: &crate::normalize::Event, now: Timestamp) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO trail (at, sequence, output, state, account, id, name, subject, received_at, reason) \
         VALUES (?, ?, NULL, 'discarded', ?, ?, ?, ?, ?, 'events.discard')",
    )?;
    insert.execute(params![
        now.as_micros(),
        sequence as i64,
        event.account.as_str(),
        &event.id.0[..],
        event.name.as_str(),
        event.subject,
        event.received_at.as_micros()
    ])?;
    Ok(())
}

/// After the commit: readers first, so that publishing begins while the answers go out.
fn answer(shared: &Shared, db: &Database, group: Group, written: Written, took: Duration) {
    db.show(shared);
    let metrics = &shared.metrics;
    for (account, name) in &written.imported {
        metrics.accounts.accepted.with_label_values(&[account.as_str(), name.as_str()]).inc();
    }
    if let Some(step) = written.order {
        tell(shared, step);
    }
    if written.accepted > 0 {
        shared.committed.send_replace(db.last);
        metrics.journal.commit_duration.observe(took.as_secs_f64());
        metrics.journal.commit_events.observe(written.accepted as f64);
    }
    count(metrics, &group.appends, &written.receipts, &written.discarded);
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
fn count(metrics: &Metrics, appends: &[Append], receipts: &[Receipt], discarded: &[usize]) {
    let mut kinds: Vec<(&AccountName, &EventName, bool, u64)> = Vec::new();
    let mut heard: Vec<(&AccountName, Timestamp)> = Vec::new();
    let mut discarded = discarded.iter().peekable();
    for (place, (Append { event, .. }, receipt)) in appends.iter().zip(receipts).enumerate() {
        if receipt.duplicate {
            continue;
        }
        let is_discarded = discarded.next_if_eq(&&place).is_some();
        let is_kind = |kind: &(&AccountName, &EventName, bool, u64)| {
            *kind.1 == event.name && *kind.0 == event.account && kind.2 == is_discarded
        };
        match kinds.iter().position(is_kind) {
            Some(kind) => kinds[kind].3 += 1,
            None => kinds.push((&event.account, &event.name, is_discarded, 1)),
        }
        match heard.iter_mut().find(|(account, _)| **account == event.account) {
            Some((_, at)) => *at = event.received_at,
            None => heard.push((&event.account, event.received_at)),
        }
    }
    for (account, name, is_discarded, count) in kinds {
        let counter = if is_discarded { &metrics.accounts.discarded } else { &metrics.accounts.accepted };
        counter.with_label_values(&[account.as_str(), name.as_str()]).inc_by(count);
    }
    for (account, at) in heard {
        metrics.accounts.last_accepted.with_label_values(&[account.as_str()]).set(at.as_seconds_f64());
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
