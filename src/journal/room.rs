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

pub(super) struct Room {
    measured_at: Instant,
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
        Self { measured_at: long_ago, closed: None, pressure: false, urgent: false }
    }

    /// Measures anew, shows it, and says so where that opens or closes the journal. True if published events have to go from now on.
    pub fn measure(&mut self, db: &Connection, options: &Options, shared: &Shared) -> bool {
        if self.measured_at.elapsed() < MEASURE_EVERY {
            return false;
        }
        self.measured_at = Instant::now();
        let pragma =
            |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap_or(0).max(0) as u64;
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
        let closed = self.closed.as_ref().map(|(error, _)| *error);
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
        let begins = part >= PRESSURE_AT && !self.pressure;
        self.pressure = part >= PRESSURE_AT;
        self.urgent = part >= URGENT_AT;
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
        self.closed = now_closed;
        begins
    }
}
