//! How full the journal and its disk are, and whether events are taken.

use std::time::{Duration, Instant};

use rusqlite::Connection;
use tracing::{error, info};

use super::{AppendError, Health, Options, Shared, file};

/// How often room on the disk and in the journal is measured: at 100 MB/s this is 10 MB, a sixth of the least `free_min` that is sensible.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
/// Events that leave a full journal before it accepts again, so that it does not flutter at the brink.
const RESUME_AT: f64 = 0.95;
/// From this fill on published events go, whatever their age.
const PRESSURE_AT: f64 = 0.80;
/// From this fill on they go in large steps: accepting half as fast is better than not accepting.
const URGENT_AT: f64 = 0.90;
/// The same where it is the disk that fills up: at so many times `journal.free_min`.
const DISK_PRESSURE_AT: f64 = 1.50;
const DISK_URGENT_AT: f64 = 1.25;
/// Measured anew after events of this part of `journal.free_min`, so that a fast sender does not run through it between two looks.
const MEASURE_PART: u64 = 8;
/// The part of `journal.free_min` that must be the disk's own: as much as the log is given ([`file::log_max`]). No more, since what the
/// journal has once taken of a disk never comes back, and [`Room::take`] leaves twice that.
const LOG_PART: u64 = 8;
/// What a few commits of a busy second add to the shortest log.
const LOG_USUAL_MIN: u64 = 1 << 20;
/// What an event's row takes beside its body, roughly, bytes.
pub(super) const ROW_BYTES: usize = 512;

pub(super) struct Room {
    measured_at: Instant,
    /// Bytes taken in since then.
    taken: u64,
    /// Bytes of the disk, and with them what the journal's file has free in it.
    disk: u64,
    all: u64,
    /// Why no event is taken.
    pub closed: Option<(AppendError, Health)>,
    /// Published events go whatever their age.
    pub pressure: bool,
    /// They go in large steps.
    pub urgent: bool,
}

impl Room {
    /// To be measured at once.
    pub fn new() -> Self {
        let long_ago = Instant::now().checked_sub(MEASURE_EVERY).unwrap_or_else(Instant::now);
        Self {
            measured_at: long_ago,
            taken: 0,
            disk: u64::MAX,
            all: u64::MAX,
            closed: None,
            pressure: false,
            urgent: false,
        }
    }

    /// Notes that events of so many bytes are about to be written. False if the disk has no room for them: each is written to the log first,
    /// which always needs the disk, and then to the file, where pages are free perhaps. Without a `free_min` it is the disk that says no.
    pub fn take(&mut self, events: usize, bytes: usize, free_min: u64) -> bool {
        self.taken = self.taken.saturating_add((bytes + events * ROW_BYTES) as u64);
        let left = free_min / 4;
        let fits = self.disk >= self.taken.saturating_add(left)
            && self.all >= self.taken.saturating_mul(2).saturating_add(left);
        events == 0 || free_min == 0 || fits
    }

    /// Measures anew, shows it, and says so where that opens or closes the journal. True if published events have to go from now on.
    pub fn measure(&mut self, db: &Connection, options: &Options, shared: &Shared) -> bool {
        let config = &options.config;
        let much = self.taken > config.free_min / MEASURE_PART;
        if self.measured_at.elapsed() < MEASURE_EVERY && !much {
            return false;
        }
        self.measured_at = Instant::now();
        self.taken = 0;
        let pragma =
            |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(0).max(0) as u64;
        let (unused, page_bytes) = (pragma("freelist_count"), pragma("page_size"));
        let pages = pragma("page_count").saturating_sub(unused);
        let log = std::fs::metadata(file::with_suffix(&shared.path, "-wal")).map_or(0, |file| file.len());
        let bytes = pages * page_bytes + log;
        let free = rustix::fs::statvfs(file::folder(&shared.path)).map(|disk| disk.f_bavail * disk.f_frsize);
        let metrics = &shared.metrics.journal;
        metrics.bytes.set(bytes as i64);
        if let Ok(free) = free {
            metrics.free.set(free as i64);
        }
        let closed = self.closed.as_ref().map(|(error, _)| *error);
        let part = bytes as f64 / config.size_max as f64;
        // What the log has beyond its bound only a reader keeps there, for which history must not go: to delete it would make the log longer still.
        let log_usual = (file::log_max_bytes(config, page_bytes) * 2).max(LOG_USUAL_MIN);
        let part_of_events = (pages * page_bytes + log.min(log_usual)) as f64 / config.size_max as f64;
        self.disk = free.unwrap_or(u64::MAX);
        // The file never shrinks: what deleted events leave free in it is as good as the disk's own room, or a journal that once filled its
        // disk with history would refuse events for ever. The log is outside of it, so a part of the room must be the disk's.
        self.all = self.disk.saturating_add(unused * page_bytes);
        // Once closed, some room must have come back before it opens again.
        let free_needed =
            if closed == Some(AppendError::Disk) { config.free_min + config.free_min / 20 } else { config.free_min };
        let part_allowed = if closed == Some(AppendError::Full) { RESUME_AT } else { 1.0 };
        let now_closed = if self.all < free_needed || self.disk < free_needed / LOG_PART {
            let (free, least) = (self.disk >> 20, config.free_min >> 20);
            let text = format!("{free} MiB are free on its disk, journal.free_min is {least} MiB");
            Some((AppendError::Disk, Health::Failing(text)))
        } else if part >= part_allowed && part_of_events < RESUME_AT {
            Some((AppendError::Full, Health::LogFull))
        } else if part >= part_allowed {
            Some((AppendError::Full, Health::Full))
        } else {
            None
        };
        let disk_part = self.all as f64 / config.free_min as f64; // Infinite, or no number, without a `free_min`: no pressure.
        let pressure = part_of_events >= PRESSURE_AT || disk_part < DISK_PRESSURE_AT;
        let begins = pressure && !self.pressure;
        self.pressure = pressure;
        self.urgent = part_of_events >= URGENT_AT || disk_part < DISK_URGENT_AT;
        match (&closed, &now_closed) {
            (None, Some((_, Health::Failing(text)))) => error!("the journal refuses events with 503: {text}"),
            (None, Some((_, Health::LogFull))) => error!(
                journal.bytes = bytes,
                "the journal's log takes {} MiB, and with it the journal is full; events are refused with 503: another process has read the journal in \
                 one transaction since the log began to grow (`fuser -v {}-shm` names it), and when that ends, so does this",
                log >> 20,
                shared.path.display()
            ),
            (None, Some(_)) => error!(
                journal.bytes = bytes,
                "the journal is full of events that are pending or parked; events are refused with 503 until some have left"
            ),
            (Some(_), None) => info!("the journal takes events again"),
            _ => {}
        }
        let kind = |closed: &Option<(_, Health)>| closed.as_ref().map(|(_, health)| std::mem::discriminant(health));
        if kind(&self.closed) != kind(&now_closed) {
            shared.health.send_replace(now_closed.as_ref().map_or(Health::Ready, |(_, health)| health.clone()));
        }
        self.closed = now_closed;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn room(disk: usize, unused: usize) -> Room {
        Room { disk: disk as u64, all: (disk + unused) as u64, ..Room::new() }
    }

    #[test]
    fn what_is_taken_leaves_room_for_the_log_and_the_file() {
        let free_min = 8 * MIB as u64;
        let mut half = room(8 * MIB, 0);
        assert!(half.take(1, 2 * MIB, free_min), "2 MiB for the log, 2 for the file, and 2 are left");
        assert!(!half.take(1, 2 * MIB, free_min), "the same again does not fit");
        assert!(half.take(0, 0, free_min), "what brings nothing needs nothing");
        assert!(room(8 * MIB, 8 * MIB).take(1, 5 * MIB, free_min), "the file has pages of its own");
        assert!(!room(6 * MIB, 64 * MIB).take(1, 5 * MIB, free_min), "the log has not");
        assert!(room(0, 0).take(1, MIB, 0), "without a free_min the disk itself says it");
    }
}
