//! From the journal into the lanes: new events in order, and held ones when their lane can go on.

use std::sync::Arc;
use std::time::Instant;

use tracing::{error, warn};

use super::super::lane::{Item, REFUSALS};
use super::{BYTES_MAX, Output, READ_AGAIN, READ_BYTES, READ_EVENTS, SILENT_AFTER, WINDOW_MAX};
use crate::config::OutputName;
use crate::journal::{Felt, Read};
use crate::metrics::Metrics;

impl Output {
    /// Reads what there is, as much as requests leave time for: held events of lanes that can go on, new ones, and what is to be sent again.
    pub(super) fn read(&mut self, now: Instant) -> rusqlite::Result<bool> {
        let is_stopping = self.stop.borrow().is_some(); // Then nobody is left to be spared.
        let pressure = if is_stopping { Felt::Hurry } else { self.journal.pressure() };
        let most = self.pace.may_read(now, pressure, READ_EVENTS);
        self.rests_until = most.err();
        let Ok(most) = most else { return Ok(false) };
        let has_read = self.read_rows(now, most)?
            | self.read_on(most)?
            | self.replay(now, most)?
            | self.take_up_parked(now, most)?;
        if has_read {
            self.series.rests.inc_by(self.pace.has_read(now).as_secs_f64());
        }
        Ok(has_read)
    }

    /// Reads the next events of the journal, if none are waiting to be distributed.
    fn read_on(&mut self, most: usize) -> rusqlite::Result<bool> {
        if !self.ahead.is_empty() || !self.has_room() || self.window.len() >= WINDOW_MAX || !self.books.has_room() {
            return Ok(false);
        }
        let Some((after, through)) = self.row.owed_after(self.read_through) else { return Ok(false) };
        let most = most.min(WINDOW_MAX - self.window.len());
        // Read before the events: so whatever it counts is among them.
        let committed = *self.journal.committed().borrow();
        let reads = self.reader.events(after, through.min(committed), most, READ_BYTES)?;
        if reads.is_empty() {
            // A closed span that is read to its end leads to the next one.
            if self.row.spans.iter().any(|span| span.through == Some(through)) {
                self.read_through = through;
                return Ok(true);
            }
            // Numbers whose events were discarded, or never kept: nothing of them is owed.
            self.read_through = self.read_through.max(committed);
            return Ok(false);
        }
        self.read_through = reads.last().map_or(after, Read::sequence);
        self.given_up.extend(self.reader.given_up(self.number, after, self.read_through)?);
        self.ahead.extend(reads);
        Ok(true)
    }

    /// Gives the events that were read to their lanes, in order, as far as these have room.
    pub(super) fn distribute(&mut self, now: Instant) -> bool {
        let mut worked = false;
        let events_max = self.parked.leaves();
        while let Some(read) = self.ahead.front() {
            let sequence = read.sequence();
            if self.given_up.remove(&sequence) {
                self.walked_through = sequence;
                self.window.read(sequence);
                self.window.pass(sequence);
                self.ahead.pop_front();
                worked = true;
                continue;
            }
            let Read::Event(stored) = read else {
                self.walked_through = sequence;
                self.window.read(sequence);
                self.window.pass(sequence);
                self.books.corrupt(sequence, self.rows_beyond.remove(&sequence));
                tell_corrupt(&self.name, &self.metrics, sequence);
                self.ahead.pop_front();
                continue;
            };
            let topic = self.router.route(&stored.event.account, &stored.event.name);
            let lane = self.lane(&topic, now);
            let lane = &mut self.lanes[lane];
            let to_rows = lane.rows
                || self.rows_beyond.contains(&sequence)
                || lane.is_stuck(now)
                || (!lane.has_room() && lane.is_silent(now, SILENT_AFTER));
            if !to_rows && (!lane.has_room() || self.in_memory >= events_max || self.bytes_in_memory >= BYTES_MAX) {
                break;
            }
            if to_rows && !self.books.has_room() {
                break;
            }
            worked = true;
            self.rows_beyond.remove(&sequence);
            self.walked_through = sequence;
            self.window.read(sequence);
            let Some(Read::Event(stored)) = self.ahead.pop_front() else { break };
            let mut item = Item::new(stored, false);
            if to_rows {
                lane.rows = true;
                lane.rows_in = self.books.number();
                self.books.hold(&mut item, &lane.topic, lane.held(now));
                self.window.pass(sequence);
            } else {
                self.in_memory += 1;
                self.bytes_in_memory += item.bytes;
                lane.push(item);
            }
        }
        worked
    }

    /// Fetches held events of lanes that can go on.
    fn read_rows(&mut self, now: Instant, most: usize) -> rusqlite::Result<bool> {
        let mut worked = false;
        let events_max = self.parked.leaves();
        for lane in &mut self.lanes {
            if !lane.wants_rows(now, self.books.kept())
                || self.in_memory >= events_max
                || self.bytes_in_memory >= BYTES_MAX
            {
                continue;
            }
            let wanted = lane.rows_wanted().min(most);
            let span = (lane.taken_through, self.walked_through);
            let reads = self.reader.held(self.number, &lane.topic, span, wanted, READ_BYTES)?;
            if reads.is_empty() && lane.rows_in <= self.books.kept() {
                lane.rows = false;
            }
            for read in reads {
                worked = true;
                if self.books.is_settled(read.sequence()) {
                    lane.taken_through = read.sequence(); // The journal has yet to hear of it.
                    continue;
                }
                match read {
                    Read::Event(stored) => {
                        let item = Item::new(stored, true);
                        self.in_memory += 1;
                        self.bytes_in_memory += item.bytes;
                        lane.push(item);
                    }
                    Read::Corrupt { sequence } => {
                        lane.taken_through = sequence;
                        self.books.corrupt(sequence, true);
                        tell_corrupt(&self.name, &self.metrics, sequence);
                    }
                }
            }
        }
        Ok(worked)
    }

    /// Gives held rows the names that their topics have now, and makes a lane of each. False if it was told to stop before, or the journal was replaced.
    pub(super) async fn name_lanes_anew(&mut self) -> bool {
        let routes = self.router.fingerprint();
        loop {
            match self.try_name_lanes(&routes).await {
                Ok(()) => return true,
                Err(error) => {
                    warn!(output = %self.name, "the journal cannot be read: {error}; trying again");
                    tokio::time::sleep(READ_AGAIN).await;
                    if self.stop.borrow().is_some() || !Arc::ptr_eq(&self.journal.id(), &self.journal_id) {
                        return false;
                    }
                }
            }
        }
    }

    async fn try_name_lanes(&mut self, routes: &str) -> Result<(), String> {
        let (journal, id) = (self.journal.clone(), Arc::clone(&self.journal_id));
        let text = |error: rusqlite::Error| {
            journal.unreadable(&id, &error);
            error.to_string()
        };
        if self.row.routes != routes {
            let mut after = 0;
            loop {
                let held = self.reader.held_after(self.number, after, 1_000).map_err(text)?;
                let Some((last, ..)) = held.last() else { break };
                after = *last;
                for (sequence, lane, kind) in &held {
                    let Some((account, name)) = kind else { continue }; // It is parked when its turn comes.
                    let topic = self.router.route(account, name);
                    if **lane != *topic {
                        self.books.rename(*sequence, &topic);
                    }
                }
                self.books.save_now(&self.journal, self.window.cursor()).await?;
            }
            self.books.routes(routes);
            self.books.save_now(&self.journal, self.window.cursor()).await?;
            self.row.routes = routes.to_owned();
        }
        self.rows_beyond =
            self.reader.held_behind(self.number, self.window.cursor()).map_err(text)?.into_iter().collect();
        for topic in self.reader.held_lanes(self.number).map_err(text)? {
            let refuses = self.reader.held_for(self.number, &topic, REFUSALS).map_err(text)?;
            let lane = self.lane(&topic.into(), Instant::now());
            self.lanes[lane].rows = true;
            self.lanes[lane].topic_refuses = REFUSALS.into_iter().find(|reason| refuses.as_deref() == Some(reason));
        }
        Ok(())
    }
}

/// An event that cannot be read is named once, when it is parked for that.
pub(super) fn tell_corrupt(output: &OutputName, metrics: &Metrics, sequence: u64) {
    error!(output = %output, event.sequence = sequence, "an event's row in the journal is corrupt; it is parked");
    metrics.publish.parked_total.with_label_values(&[output.as_str(), "corrupt"]).inc();
}
