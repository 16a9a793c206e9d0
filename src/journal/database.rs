//! The open file: one transaction for all that waits, and what of the file is kept in memory.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::checkpoint::Checkpoints;
use super::retention::{Limits, Retention};
use super::room::Room;
use super::seen::Seen;
use super::writer::Group;
use super::{Kept, Options, OutputRow, Receipt, Shared, file, ledger, orders, progress, row};
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

/// The open file, and what of it is kept in memory.
pub(super) struct Database {
    db: Connection,
    checkpoints: Checkpoints,
    id: Arc<str>,
    seen: Seen,
    retention: Retention,
    outputs: Vec<OutputRow>,
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
        let long_ago = Instant::now() - Duration::from_secs(2);
        let checkpoints = Checkpoints::start(&options.config.path, file::log_max(&options.config), &db)?;
        let database = Self {
            db,
            checkpoints,
            id,
            seen: Seen::default(),
            retention: Retention::new(),
            outputs,
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
        let order = self.next_order()?;
        let imported = order.as_ref().map(orders::Waiting::events).unwrap_or_default();
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.append(group.appends.iter().map(|append| &*append.event).chain(&imported), options, &mut written, now)?;
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
            rows,
            outputs: &self.outputs,
            last: self.last,
        };
        let step = self.retention.step(&self.db, &limits, now)?;
        if step.floor > self.floor {
            self.floor = step.floor;
            save_floor(&self.db, step.floor)?;
        }
        let mut more = step.more;
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

    /// How full the journal and its disk are, and whether events are taken.
    pub fn measure(&mut self, options: &Options, shared: &Shared) {
        if self.room.measure(&self.db, options, shared) {
            self.housekeeping_due = true;
        }
    }

    /// To be called between two writes; `is_idle`: the last one had nothing to write. After an error this value is no longer to be believed; what was
    /// written before stands.
    pub fn checkpoint(&mut self, is_idle: bool) -> rusqlite::Result<()> {
        self.checkpoints.advance(&self.db, is_idle)
    }

    /// Closes it, and spares the next start the recovery of the log; nothing depends on that. False if a fault came to light that nobody was told of.
    pub fn finish(mut self) -> bool {
        self.checkpoints.stop(); // Or it may be just at it.
        !self.checkpoints.has_failed() && self.db.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").is_ok()
    }

    /// Lets everybody see the outputs as they are now.
    pub fn show(&self, shared: &Shared) {
        shared.outputs.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.outputs);
    }
}

/// How many requests are remembered even when room is short.
fn requests_kept(options: &Options) -> u64 {
    options.config.size_max / REQUESTS_PART / REQUEST_BYTES
}

fn save_floor(db: &Connection, floor: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE meta SET value = ? WHERE name = 'sequence_floor'")?.execute([floor.to_string()])?;
    Ok(())
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
