//! A journal that is no longer at its path: its file, or its log, was deleted, replaced, or lies on a volume that was unmounted. The next process
//! would not find what is taken in from then on, so nothing is. Outputs go on with what the open file holds, that is saved beside the path under
//! a dated name, as a file that was set aside, and then a new journal is begun.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rusqlite::ErrorCode;
use tracing::{error, info, warn};

use super::{Database, Health, Writer};
use crate::clock;
use crate::journal::AppendError;
use crate::journal::file::{self, OpenError, Standing};
use crate::journal::room::Room;

/// How often is looked. What is found is acted upon with the next look: a file that was moved away may be back by then.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon a copy that could not be made is tried again: the disk may have room by then.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// After so many failures nothing is waited for that only an operator could bring about.
const FAILURES_MAX: u32 = 3;

/// What is done about it.
#[derive(Default)]
pub(super) struct Gone {
    /// Hears how the copy under way ended.
    saving: Option<Receiver<Result<(), String>>>,
    save_again_at: Option<Instant>,
    /// Why it could not be saved: said once.
    problem: Option<String>,
    /// How often that was tried in vain; where there is no room it is not tried.
    failures: u32,
    /// A write failed: the connection still reads, and what is in memory is not to be believed.
    has_failed: bool,
    /// And it was no full disk.
    is_lost: bool,
}

impl Gone {
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }
}

impl Writer {
    /// Whether lock and files are still those at their path, and what is to be done if not.
    pub(super) fn look_for_files(&mut self) {
        self.looked_at = Instant::now();
        if let Some(Ok(_) | Err(TryRecvError::Disconnected)) = self.unwanted.as_ref().map(Receiver::try_recv) {
            file::stop_saving(&self.options.config.path);
            self.unwanted = None;
        }
        let shared = Arc::clone(&self.shared);
        let lock = shared.at_disk(|| self.look_for_lock());
        let Some(db) = &self.db else { return };
        let standing = shared.at_disk(|| db.files.standing(&self.options.config.path));
        match (standing, self.gone.is_some()) {
            (Standing::InPlace, true) => self.is_back(),
            (Standing::InPlace, false) => match lock {
                Err(error @ OpenError::Locked(_)) => self.give_way(&error),
                // What is known of it may be wrong.
                _ if self.is_anothers => self.close(),
                _ => {}
            },
            (_, false) => self.has_gone(standing),
            (_, true) => self.save_and_begin_anew(standing),
        }
    }

    /// Before the open file is closed, which may be the last that has it.
    pub(super) fn is_gone_now(&mut self) -> bool {
        if self.gone.is_none() {
            self.look_for_files();
        }
        self.gone.is_some()
    }

    /// A lock whose file is gone keeps nobody out.
    fn look_for_lock(&mut self) -> Result<(), OpenError> {
        let Some(lock) = &mut self.lock else { return Ok(()) };
        match lock.renew() {
            Ok(false) => Ok(()),
            Ok(true) => {
                warn!(journal.path = %self.options.config.path.display(), "the lock beside the journal was deleted or replaced; it is taken anew");
                self.may_be_anothers();
                Ok(())
            }
            Err(error) => {
                if let OpenError::Locked(_) = error {
                    self.lock = None;
                    self.may_be_anothers();
                }
                Err(error)
            }
        }
    }

    /// Somebody else has the lock, whose file was gone for a moment: two may not write.
    fn give_way(&mut self, error: &OpenError) {
        let text = error.to_string();
        error!(journal.path = %self.options.config.path.display(), "the journal is closed: {text}; events are refused with 503 until it is free");
        self.shared.health.send_replace(Health::Failing(text));
        self.close();
        self.reopen_at = Instant::now() + super::REOPEN_EVERY;
    }

    fn has_gone(&mut self, standing: Standing) {
        let path = self.options.config.path.display();
        let what = if standing == Standing::Gone { "the journal" } else { "the journal's log, or its index," };
        error!(
            journal.path = %path,
            "{what} is no longer at its path: deleted, replaced, or on a volume that was unmounted; events are refused with 503 until a new \
             journal is begun, and what this one holds is published meanwhile"
        );
        self.shared.health.send_replace(Health::Gone);
        self.shared.metrics.journal.gone.set(1);
        self.gone = Some(Gone::default());
        if let Some(db) = &mut self.db {
            db.room.closed = Some((AppendError::Disk, Health::Gone)); // Neither requests nor imports: a copy would not have them.
        }
        match standing {
            Standing::Gone => self.save(),
            // At once: until then what only the log has ends with this process.
            _ => {
                if let Some(Err(error)) = self.db.as_mut().map(Database::finish_log) {
                    self.fail_while_gone(&error);
                }
            }
        }
    }

    fn is_back(&mut self) {
        let Some(gone) = self.gone.take() else { return };
        self.unwanted = gone.saving;
        warn!(journal.path = %self.options.config.path.display(), "the journal is at its path again");
        self.shared.metrics.journal.gone.set(0);
        if self.unwanted.is_none() {
            file::stop_saving(&self.options.config.path);
        }
        if gone.has_failed {
            let failing = Health::Failing("it is opened anew".into());
            self.shared.health.send_replace(failing);
            self.close_in_doubt();
        } else if let Some(db) = &mut self.db {
            db.room = Room::new();
            self.shared.health.send_replace(Health::Ready); // The next measure says more.
        }
    }

    /// A write failed. To close what has no name any more would lose it.
    pub(super) fn fail_while_gone(&mut self, error: &rusqlite::Error) {
        error!(journal.path = %self.options.config.path.display(), "a write to the journal that is gone from its path failed: {error}");
        if let Some(db) = &self.db {
            db.roll_back();
        }
        if let Some(gone) = &mut self.gone {
            gone.has_failed = true;
            // A full disk may have room again.
            gone.is_lost |= error.sqlite_error_code() != Some(ErrorCode::DiskFull);
        }
    }

    fn save_and_begin_anew(&mut self, standing: Standing) {
        // For `drain` there is nothing to begin.
        if !self.options.set_aside {
            return;
        }
        match standing {
            Standing::LogGone => self.set_aside_without_log(),
            _ => self.look_for_copy(),
        }
    }

    /// Once the whole log is in the file, the file alone is the journal.
    fn set_aside_without_log(&mut self) {
        let (Some(db), path) = (&mut self.db, &self.options.config.path) else { return };
        let set_aside = match db.finish_log() {
            Ok(true) => file::set_aside_alone(path, clock::now()).map_err(|error| error.to_string()),
            Ok(false) => Err("its log is not in its file yet: another process reads it".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match set_aside {
            Ok(aside) => self.begin_anew(Some(aside)),
            Err(problem) => self.cannot(problem),
        }
    }

    fn look_for_copy(&mut self) {
        let Some(gone) = &mut self.gone else { return };
        let ended = gone.saving.as_ref().map(Receiver::try_recv);
        match ended {
            Some(Err(TryRecvError::Empty)) => {}
            Some(Ok(Ok(()))) => match self.keep_copy() {
                Ok(aside) => self.begin_anew(Some(aside)),
                Err(problem) => self.cannot(problem),
            },
            Some(Ok(Err(problem))) => self.could_not(problem),
            Some(Err(TryRecvError::Disconnected)) => self.could_not("it was interrupted".to_owned()),
            None if self.may_be_left() => self.begin_anew(None),
            None => self.save(),
        }
    }

    /// Whether to wait on would bring nothing: it can be saved as little as published.
    fn may_be_left(&self) -> bool {
        let (Some(db), Some(gone)) = (&self.db, &self.gone) else { return false };
        let (pending, parked) = db.owed();
        let is_hopeless = gone.failures >= FAILURES_MAX && (pending == 0 || gone.is_lost);
        gone.problem.is_some() && pending + parked == 0 || is_hopeless
    }

    /// Begins a copy, if it is time to.
    fn save(&mut self) {
        let (Some(db), Some(gone)) = (&self.db, &mut self.gone) else { return };
        // One that was begun before the file came back is not at its end yet.
        if self.unwanted.is_some()
            || !self.options.set_aside
            || gone.save_again_at.is_some_and(|at| Instant::now() < at)
        {
            return;
        }
        let (path, free_min) = (&self.options.config.path, self.options.config.free_min);
        let begun = || -> Result<Option<Receiver<Result<(), String>>>, String> {
            let (needed, free) = (db.bytes().map_err(|error| error.to_string())?, file::free_bytes(path));
            if free.is_some_and(|free| free < needed + free_min) {
                return Err(format!("{} MiB and journal.free_min are more than its disk has free", needed >> 20));
            }
            db.save(path) // None: a round of the log's is under way, and the next look tries again.
        };
        match begun() {
            Ok(saving) => gone.saving = saving,
            Err(problem) => self.cannot(problem),
        }
    }

    fn keep_copy(&mut self) -> Result<PathBuf, String> {
        let path = &self.options.config.path;
        let Some(db) = &self.db else { return Err("there is none".to_owned()) };
        if let Err(error) = db.complete(&file::saved(path)) {
            warn!(journal.path = %path.display(), "the copy of the journal does not know what was published while it was made: {error}");
        }
        file::keep_saved(path, clock::now()).map_err(|error| error.to_string())
    }

    /// It was tried.
    fn could_not(&mut self, problem: String) {
        if let Some(gone) = &mut self.gone {
            gone.failures += 1;
        }
        self.cannot(problem);
    }

    /// It cannot be saved now.
    fn cannot(&mut self, problem: String) {
        let Some(gone) = &mut self.gone else { return };
        gone.saving = None;
        gone.save_again_at = Some(Instant::now() + SAVE_AGAIN);
        if gone.problem.as_ref() != Some(&problem) {
            error!(
                journal.path = %self.options.config.path.display(),
                "the journal that is gone from its path cannot be saved: {problem}; a new one is begun once it can, or once nothing in it can be \
                 published"
            );
            gone.problem = Some(problem);
        }
    }

    fn begin_anew(&mut self, aside: Option<PathBuf>) {
        let Some(db) = self.db.take() else { return };
        let path = &self.options.config.path;
        self.gone = None;
        self.sequence_min = self.sequence_min.max(db.last + 1);
        let (files, owed) = (db.files, db.owed());
        self.abandoned = Some(db.id.clone());
        drop(db); // Before its log is, lest anything be written to it still.
        files.remove_log(path);
        match aside {
            Some(aside) => error!(
                journal.path = %path.display(), journal.set_aside = %aside.display(),
                "what the journal held was saved as {}, and a new one is begun", aside.display()
            ),
            None if owed == (0, 0) => {
                info!(journal.path = %path.display(), "nothing in the journal was pending or parked; a new one is begun");
            }
            None => error!(
                journal.path = %path.display(), events.pending = owed.0, events.parked = owed.1,
                "the journal could not be saved, and a new one is begun: {} pending and {} parked events are lost", owed.0, owed.1
            ),
        }
        self.reopen_at = Instant::now();
    }

    /// The process ends, and with it what is open.
    pub(super) fn save_at_the_end(&mut self) {
        let owed = self.db.as_ref().map_or((0, 0), Database::owed);
        if self.gone.is_none() || owed == (0, 0) || !self.options.set_aside {
            return;
        }
        let path = self.options.config.path.display().to_string();
        error!(
            journal.path = path,
            events.pending = owed.0,
            events.parked = owed.1,
            "the relay ends while its journal is gone from its path: unless a line says that it was saved, {} pending and {} parked events end with it",
            owed.0,
            owed.1
        );
        let until = Instant::now() + crate::journal::SAVE_AT_THE_END_MAX;
        while self.gone.as_ref().is_some_and(|gone| gone.problem.is_none()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            self.look_for_files();
        }
    }
}
