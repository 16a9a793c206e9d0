//! The open file: one transaction for all that waits, and what of the file is kept in memory.

use std::path::Path;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::checkpoint::Checkpoints;
use super::fetch::SIZES;
use super::file::Files;
use super::retention::{self, Limits, Retention};
use super::room::Room;
use super::seen::Seen;
use super::undelivered::Undelivered;
use super::writer::Group;
use super::{Health, Kept, Options, OutputRow, Receipt, Shared, file, ledger, orders, progress, row};
use crate::clock::{self, Timestamp};
use crate::config::AccountName;
use crate::normalize::Event;

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

/// The part of `journal.size_max` that the memory of requests may take once the journal is nearly full, and what one takes of it at the most, bytes.
const REQUESTS_PART: u64 = 10;
const REQUEST_BYTES: u64 = 64;

/// Brings a copy of the journal up to the present, while no event is taken in: what outputs did meanwhile, and orders. Events that are gone since may
/// stay. The copy is another file than the one noted in `meta`.
const COMPLETE: &str = "BEGIN IMMEDIATE;
DELETE FROM copy.outputs; INSERT INTO copy.outputs SELECT * FROM main.outputs;
DELETE FROM copy.spans; INSERT INTO copy.spans SELECT * FROM main.spans;
DELETE FROM copy.apart; INSERT INTO copy.apart SELECT * FROM main.apart;
DELETE FROM copy.given_up; INSERT INTO copy.given_up SELECT * FROM main.given_up;
DELETE FROM copy.orders; INSERT INTO copy.orders SELECT * FROM main.orders;
INSERT INTO copy.trail SELECT * FROM main.trail WHERE entry > (SELECT coalesce(max(entry), 0) FROM copy.trail);
DELETE FROM copy.meta WHERE name = 'file';
COMMIT";

/// The open file, and what of it is kept in memory.
pub(super) struct Database {
    db: Connection,
    checkpoints: Checkpoints,
    pub id: Arc<str>,
    pub files: Files,
    seen: Seen,
    retention: Retention,
    outputs: Vec<OutputRow>,
    pub undelivered: Undelivered,
    /// The last sequence given.
    pub last: u64,
    floor: u64,
    kept: Kept,
    pub room: Room,
    expired_at: Instant,
    seen_accounts_at: Instant,
    accounts_dirty: Vec<(AccountName, Timestamp)>,
    orders_at: Instant,
    /// An order is not at its end.
    order_open: bool,
    /// A page of it cannot be read.
    is_damaged: bool,
    pub housekeeping_due: bool,
}

/// What a transaction did, for the answers and metrics that follow it.
#[derive(Default)]
pub(super) struct Written {
    pub receipts: Vec<Receipt>,
    pub accepted: usize,
    /// Which appends of the group `events.discard` names.
    pub discarded: Vec<usize>,
    /// Which progress of the group is of this file and of an output that it has.
    pub known: Vec<bool>,
    /// Account and name of events that an order brought.
    pub imported: Vec<(crate::config::AccountName, crate::normalize::EventName)>,
    pub order: Option<orders::Step>,
}

impl Database {
    pub fn load(
        db: Connection,
        files: Files,
        options: &Options,
        shared: &Shared,
        sequence_min: u64,
        is_damaged: bool,
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
        let account = |(name, _): &(AccountName, _)| (name.clone(), shared.metrics.journal.account(name.as_str()));
        let gauges = options.accounts.iter().map(account).collect();
        let undelivered = Undelivered::load(&db, &outputs, last, is_damaged, gauges)?;
        let id = Arc::clone(&shared.id.lock().unwrap_or_else(PoisonError::into_inner));
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
        let long_ago = Instant::now() - Duration::from_secs(2);
        let checkpoints = Checkpoints::start(&options.config.path, file::log_max(&options.config), &db)?;
        let database = Self {
            db,
            checkpoints,
            id,
            files,
            seen: Seen::default(),
            retention: Retention::new(),
            outputs,
            undelivered,
            last,
            floor,
            // Whatever comes is behind this.
            kept: Kept { groups: [(last, now)].into() },
            room: Room::new(),
            expired_at: long_ago,
            seen_accounts_at: long_ago,
            accounts_dirty: Vec::new(),
            orders_at: long_ago,
            order_open: false,
            is_damaged,
            housekeeping_due: true,
        };
        database.show(shared);
        Ok(database)
    }

    /// Carries out a group and syncs it. On an error nothing of it happened, and this value is no longer to be believed.
    pub fn write(
        &mut self,
        group: &Group,
        options: &Options,
        started: (Instant, Timestamp),
    ) -> rusqlite::Result<Written> {
        let mut written = Written::default();
        if group.is_empty() && !self.housekeeping_due && self.expired_at.elapsed() < Duration::from_secs(1) {
            return Ok(written);
        }
        let now = clock::now();
        let mut order = self.next_order()?;
        if let Some(order) = &mut order {
            let rows = if group.appends.is_empty() { ORDER_ROWS_IDLE } else { ORDER_ROWS };
            order.look(&self.db, &self.outputs, self.last, rows)?;
        }
        let looked_at = order.iter().flat_map(orders::Waiting::looked_at);
        let sizes = SIZES.of(&self.db, looked_at, usize::MAX)?; // Before the step, with which a row may go.
        let limits = limits(group.appends.len(), options, &self.room, &self.outputs, self.last);
        self.retention.look(&self.db, &limits, now)?;
        let imported = order.as_ref().map(orders::Waiting::events).unwrap_or_default();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.append(group.appends.iter().map(|append| &*append.event).chain(&imported), options, &mut written, now)?;
        written.imported.extend(imported.into_iter().map(|event| (event.account, event.name)));
        for (progress, _) in &group.progress {
            // What an output did with the events of a file that was set aside meanwhile says nothing of this one's. One that was kept though its commit seemed to fail is not counted again.
            let row = self
                .outputs
                .iter_mut()
                .find(|row| row.number == progress.output && Arc::ptr_eq(&progress.journal, &self.id));
            written.known.push(row.is_some());
            if let Some(row) = row.filter(|row| row.progress < progress.number) {
                for (sequence, size) in progress::apply(&self.db, progress, row, &self.kept, now)? {
                    self.undelivered.delivered(&self.db, &self.outputs, progress.output, sequence, &size)?;
                }
            }
        }
        let ordered = order.is_some();
        if let Some(order) = order {
            let step = orders::carry_out(&self.db, order, &mut self.outputs, now)?;
            for (output, given_up) in &step.given_up {
                let size = sizes.iter().find(|(sequence, _)| sequence == given_up).and_then(|(_, size)| size.as_ref());
                if let Some(size) = size {
                    self.undelivered.delivered(&self.db, &self.outputs, *output, *given_up, size)?;
                }
            }
            if step.forgotten.is_some() {
                // Its cursor may have been all that remembered how far the numbers went.
                self.floor = self.last;
                file::save_floor(&self.db, self.floor)?;
            }
            self.order_open = true; // Or another one follows.
            written.order = Some(step);
        }
        if !group.is_empty() || ordered {
            for row in &self.outputs {
                progress::save(&self.db, row)?;
            }
        }
        self.undelivered.save(&self.db, &self.outputs)?;
        self.clean(group, options, started, now)?;
        self.db.prepare_cached("COMMIT")?.execute([])?;
        self.seen.saved();
        if written.accepted > 0 {
            self.kept.note(self.last, clock::now());
        }
        Ok(written)
    }

    /// Whether this very request was answered 200 before.
    pub fn is_duplicate(&mut self, event: &Event) -> rusqlite::Result<bool> {
        self.seen.has(&self.db, event.signed_at, event.id)
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
        events: impl Iterator<Item = &'a Event>,
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
                self.undelivered.accepted(&event.account, event.body.len());
                kept += 1;
            }
            if event.replayed {
                continue; // Nobody was heard of.
            }
            match self.accounts_dirty.iter_mut().find(|(name, _)| *name == event.account) {
                Some((_, at)) => *at = now,
                None => self.accounts_dirty.push((event.account.clone(), now)),
            }
        }
        drop(insert);
        self.seen.save(&self.db, first)?;
        let discarded = written.discarded.len() as i64;
        if discarded > 0 {
            file::save_floor(&self.db, self.floor)?;
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
        let limits = limits(group.appends.len(), options, &self.room, &self.outputs, self.last);
        let mut more = retention::trail(&self.db, &limits, now)?;
        // Where a page is damaged they go behind this transaction.
        if !self.is_damaged {
            let step = self.retention.delete(&self.db)?;
            if step.floor > self.floor {
                self.floor = step.floor;
                file::save_floor(&self.db, step.floor)?;
            }
            more |= step.more;
        }
        if self.room.pressure || self.expired_at.elapsed() >= Duration::from_secs(1) {
            // A clock that jumps ahead must not make us forget requests that may come again once it is set right, so time passes here at
            // most as fast as it really does.
            let steady = started.1.plus(started.0.elapsed());
            let before = now.min(steady).minus(options.tolerance_max + REQUESTS_KEPT_LONGER);
            // They may not crowd out events: where room is short, only the newest keep a part of it.
            let crowding = if self.room.pressure { self.last.saturating_sub(requests_kept(options)) } else { 0 };
            let more_requests = self.seen.expire(&self.db, before.as_seconds(), crowding)?;
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

    /// Between two writes: deletes what is old where damaged pages may forbid it. After an error this value is no longer to be believed; what was
    /// written before stands.
    pub fn clean_carefully(&mut self) -> rusqlite::Result<()> {
        if self.is_damaged {
            let floor = self.floor;
            let step =
                self.retention.delete_carefully(&self.db, |deleted| file::save_floor(&self.db, deleted.max(floor)))?;
            self.floor = floor.max(step.floor);
            self.housekeeping_due |= step.more;
        }
        Ok(())
    }

    /// How full the journal and its disk are, and whether events are taken.
    pub fn measure(&mut self, options: &Options, shared: &Shared) {
        if self.room.measure(&self.db, options, shared) {
            self.housekeeping_due = true;
        }
    }

    /// To be called between two writes; `is_idle`: the last one had nothing to write. After an error this value is no longer to be believed; what was
    /// written before stands.
    pub fn checkpoint(&mut self, is_idle: bool) -> rusqlite::Result<()> {
        // A log that filled the journal keeps its length until something is written behind its last checkpoint, and nothing is taken that would be.
        let log_is_full = matches!(self.room.closed, Some((_, Health::LogFull)));
        if log_is_full && is_idle && self.checkpoints.finish(&self.db)? {
            return file::probe(&self.db);
        }
        self.checkpoints.advance(&self.db, is_idle)
    }

    /// Moves all of the log into the file, and says whether nothing of it is left.
    pub fn finish_log(&mut self) -> rusqlite::Result<bool> {
        self.checkpoints.finish(&self.db)
    }

    /// Begins a copy; see [`Checkpoints::save`].
    pub fn save(&self, journal: &Path) -> Result<Option<Receiver<Result<(), String>>>, String> {
        self.checkpoints.save(journal)
    }

    /// Brings the copy up to the present.
    pub fn complete(&self, copy: &Path) -> rusqlite::Result<()> {
        if !copy.exists() {
            return Err(rusqlite::Error::InvalidPath(copy.to_owned())); // To attach would make it.
        }
        self.db.execute("ATTACH ? AS copy", [copy.to_str()])?;
        let completed = self.db.execute_batch(COMPLETE).inspect_err(|_| self.roll_back());
        self.db.execute_batch("DETACH copy")?;
        completed
    }

    /// Undoes what a failed transaction left.
    pub fn roll_back(&self) {
        let _ = self.db.execute_batch("ROLLBACK"); // The error that counts is known, and it may have done so itself.
    }

    /// Bytes of what is live in it.
    pub fn bytes(&self) -> rusqlite::Result<u64> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        Ok(((pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?).max(0) as u64)
    }

    /// Events that some output has neither published nor given up: pending and parked ones.
    pub fn owed(&self) -> (i64, i64) {
        let counts = || self.outputs.iter().map(|row| row.counts);
        (counts().map(|counts| counts.pending.max(0)).sum(), counts().map(|counts| counts.parked.max(0)).sum())
    }

    /// Closes it, and spares the next start the recovery of the log; nothing depends on that. False if a fault came to light that nobody was told of.
    pub fn finish(mut self) -> bool {
        self.checkpoints.stop(); // Or it may be just at it.
        !self.checkpoints.has_failed() && self.db.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").is_ok()
    }

    /// Closes it as it is. False if a fault came to light that nobody was told of.
    pub fn abandon(mut self) -> bool {
        self.checkpoints.stop();
        !self.checkpoints.has_failed()
    }

    /// Lets everybody see the outputs as they are now.
    pub fn show(&self, shared: &Shared) {
        self.undelivered.show();
        shared.outputs.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.outputs);
    }
}

fn limits<'a>(appends: usize, options: &Options, room: &Room, outputs: &'a [OutputRow], last: u64) -> Limits<'a> {
    let rows = match appends {
        0 => RETENTION_ROWS_IDLE,
        _ if room.urgent => RETENTION_ROWS_IDLE.max(appends * 2),
        _ if room.pressure => RETENTION_ROWS.max(appends * 2),
        _ => (appends * 2).clamp(RETENTION_ROWS_MIN, RETENTION_ROWS.max(appends + appends / 4)),
    };
    Limits {
        retention: options.config.retention,
        trail: options.config.trail,
        size_max: options.config.size_max,
        pressure: room.pressure,
        rows,
        outputs,
        last,
    }
}

/// How many requests are remembered even when room is short.
fn requests_kept(options: &Options) -> u64 {
    options.config.size_max / REQUESTS_PART / REQUEST_BYTES
}

/// Of an event that configuration discards only the trail is kept.
fn discard(db: &Connection, sequence: u64, event: &Event, now: Timestamp) -> rusqlite::Result<()> {
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
