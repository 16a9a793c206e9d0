//! One connection at work: records go to their lanes and confirms come back, until it is lost, replaced, or no longer wanted.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, Event};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::warn;

use super::connect::{self, FilesDigest, Link, Refusal};
use super::lane::{Lane, Trouble};
use super::{Order, Publisher, SETTLE_MAX, fault, topology};
use crate::publish::{PublishError, Report, one_line};

/// Records taken over at a time, before confirms get a turn.
const TAKE_MAX: usize = 256;
/// How often the connection is looked at beside its events.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For opening or closing a channel.
const OPEN_MAX: Duration = Duration::from_secs(20);
/// How often the files are read, in looks.
const FILES_EVERY: u32 = 5;
/// Channels at once, if the broker allows as many (it allows 2,047 by default). There are about twenty lanes an account.
const CHANNELS_MAX: usize = 512;

/// How a connection ended.
pub(super) enum End {
    Dropped,
    Lost(String),
    Replaced(Link),
}

/// What was waited for beside the records.
enum Chore {
    /// Of a lane, by its opening's number. `None`: not in time.
    Opened(usize, u64, Option<lapin::Result<Channel>>),
    Closed,
    Files(FilesDigest),
    Reconnected(Result<Link, Refusal>),
}

/// A connection at work.
pub(super) struct Session {
    pub link: Link,
    /// Ended with the session.
    chores: JoinSet<Chore>,
    channels_max: usize,
    /// Lanes that found no channel free.
    starved: Vec<usize>,
    blocked: bool,
    /// The files are being read.
    reads_files: bool,
    /// A channel was closed because the exchange is missing: the next one declares it first.
    exchange_missing: bool,
    /// The files of the connection, or of the last attempt to replace it.
    files: FilesDigest,
    /// The connection that takes over, and when it does so at the latest.
    pub next: Option<(Link, Instant)>,
}

impl Session {
    pub fn new(link: Link) -> Self {
        // One is left for declaring.
        let channels_max =
            usize::from(link.connection.configuration().channel_max()).saturating_sub(2).clamp(1, CHANNELS_MAX);
        Self {
            files: link.files,
            link,
            chores: JoinSet::new(),
            channels_max,
            starved: Vec::new(),
            blocked: false,
            reads_files: false,
            exchange_missing: false,
            next: None,
        }
    }

    fn close(&mut self, channel: Option<Arc<Channel>>) {
        if let Some(channel) = channel {
            self.chores.spawn(async move {
                // An error here is a channel that is closed already; a broker that does not answer keeps it until the connection ends.
                let _ = timeout(OPEN_MAX, channel.close(200, "OK".into())).await;
                Chore::Closed
            });
        }
    }
}

impl Publisher {
    /// Publishes until this connection ends.
    pub(super) async fn serve(&mut self, session: &mut Session) -> End {
        let mut batch = Vec::with_capacity(TAKE_MAX);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = 0_u32;
        // What waited while the connection was replaced.
        for index in 0..self.lanes.all.len() {
            if let Err(end) = self.advance(session, index) {
                return end;
            }
        }
        loop {
            let step = tokio::select! {
                count = self.orders.recv_many(&mut batch, TAKE_MAX) => {
                    if count == 0 {
                        return End::Dropped;
                    }
                    self.take(session, &mut batch)
                }
                () = self.ready.wait() => Ok(()),
                event = next_event(&mut session.link) => self.on_event(session, event),
                Some(chore) = session.chores.join_next() => match chore {
                    Ok(chore) => self.on_chore(session, chore),
                    // Only a panic in lapin or in the connecting; both are as good as a connection that failed.
                    Err(error) => Err(End::Lost(one_line(&error.to_string()))),
                },
                _ = looks.tick() => {
                    looked = looked.wrapping_add(1);
                    self.look(session, looked)
                }
            };
            let step = step.and_then(|()| self.settle(session)).and_then(|()| self.replace(session));
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Hands records to their lanes, or takes them back.
    fn take(&mut self, session: &mut Session, batch: &mut Vec<Order>) -> Result<(), End> {
        let mut verdicts = Vec::new();
        let mut lanes = Vec::new();
        for order in batch.drain(..) {
            let record = match order {
                Order::Publish(record) => record,
                Order::TakeBack(key) => {
                    let lane = self.lanes.of(&key);
                    let channel = lane.release();
                    lane.close(|_| PublishError::Withdrawn, Some(&PublishError::Withdrawn), &mut verdicts);
                    session.close(channel);
                    continue;
                }
            };
            let lane = self.lanes.of(&record.lane);
            lane.accept(record, &mut verdicts);
            if lane.has_waiting() && lanes.last() != Some(&lane.index) {
                lanes.push(lane.index);
            }
        }
        self.tell(verdicts);
        lanes.into_iter().try_for_each(|index| self.advance(session, index))
    }

    /// Publishes what waits in a lane, or gets it a channel.
    fn advance(&mut self, session: &mut Session, index: usize) -> Result<(), End> {
        // Nothing new on a connection that is about to be replaced.
        if session.next.is_some() {
            return Ok(());
        }
        let used = self.lanes.next_use();
        let lane = &mut self.lanes.all[index];
        if !lane.has_waiting() {
            return Ok(());
        }
        lane.used = used;
        if lane.has_channel() {
            let trouble = lane.flush(&self.exchange, &self.ready);
            if let Some(trouble) = trouble {
                self.on_trouble(session, index, trouble)?;
            }
            if self.lanes.all[index].has_channel() {
                return Ok(());
            }
        }
        self.open(session, index);
        Ok(())
    }

    /// Opens a lane's channel, if need be in the place of one that idles.
    fn open(&mut self, session: &mut Session, index: usize) {
        if self.lanes.all[index].is_opening() || !self.lanes.all[index].has_waiting() {
            return;
        }
        if self.lanes.all.iter().filter(|lane| lane.has_channel() || lane.is_opening()).count() >= session.channels_max
        {
            let Some(idle) = self.lanes.release_idle() else {
                if !session.starved.contains(&index) {
                    session.starved.push(index);
                }
                return;
            };
            session.close(Some(idle));
        }
        let number = self.lanes.all[index].begin_opening();
        let connection = session.link.connection.clone();
        let declare = std::mem::take(&mut session.exchange_missing).then(|| self.config.exchange.clone());
        session.chores.spawn(async move {
            let opened = timeout(OPEN_MAX, async {
                if let Some(exchange) = declare {
                    // What stands in its way was logged at connecting, and shows in the lane.
                    let _ = topology::declare(&connection, &exchange).await;
                }
                open_channel(&connection).await
            });
            Chore::Opened(index, number, opened.await.ok())
        });
    }

    /// Looks at all that has news, then gives the verdicts: see [`super::ready`] for why in this order.
    fn settle(&mut self, session: &mut Session) -> Result<(), End> {
        let mut news = Vec::new();
        loop {
            self.ready.take(&mut news);
            if news.is_empty() {
                break;
            }
            for (index, tag) in news.drain(..) {
                if let Some(trouble) = self.lanes.all[index].look(tag) {
                    self.on_trouble(session, index, trouble)?;
                }
            }
        }
        let mut verdicts = Vec::new();
        for lane in self.lanes.all.iter_mut().filter(|lane| lane.touched) {
            lane.judge(&mut verdicts);
        }
        self.tell(verdicts);
        if !session.starved.is_empty() {
            for index in std::mem::take(&mut session.starved) {
                self.advance(session, index)?;
            }
        }
        Ok(())
    }

    fn on_trouble(&mut self, session: &mut Session, index: usize, trouble: Trouble) -> Result<(), End> {
        let error = match trouble {
            Trouble::Channel(error) if session.link.connection.status().connected() => error,
            Trouble::Channel(error) | Trouble::Connection(error) => {
                return Err(End::Lost(format!("{}: {}", session.link.at, fault::of_connection(&error))));
            }
        };
        let mut verdicts = Vec::new();
        let lane = &mut self.lanes.all[index];
        lane.close(|open| fault::of_channel(&error, open), Some(&PublishError::Withdrawn), &mut verdicts);
        session.exchange_missing |=
            self.config.declare && verdicts.iter().any(|(_, verdict)| *verdict == Err(PublishError::TopicMissing));
        self.tell(verdicts);
        Ok(())
    }

    fn on_event(&mut self, session: &mut Session, event: Option<Event>) -> Result<(), End> {
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                session.blocked = true;
                let detail =
                    format!("{}: the broker takes nothing at the moment ({})", session.link.at, one_line(&reason));
                self.report(Report::Lost { reason: PublishError::Blocked, detail });
                Ok(())
            }
            Some(Event::ConnectionUnblocked) => {
                session.blocked = false;
                self.report(Report::Connected);
                Ok(())
            }
            // A channel's end shows in its records too; the connection's must be noticed without any.
            Some(Event::Error(error)) if !session.link.connection.status().connected() => {
                Err(End::Lost(format!("{}: {}", session.link.at, fault::of_connection(&error))))
            }
            Some(_) => Ok(()),
            None => Err(End::Lost(format!("{}: lapin gave the connection up", session.link.at))),
        }
    }

    fn on_chore(&mut self, session: &mut Session, chore: Chore) -> Result<(), End> {
        match chore {
            // The lane was taken back meanwhile, and may have its next channel already.
            Chore::Opened(index, number, opened) if !self.lanes.all[index].end_opening(number) => {
                session.close(opened.and_then(Result::ok).map(Arc::new));
                Ok(())
            }
            Chore::Opened(index, _, Some(Ok(channel))) => {
                self.lanes.all[index].set_channel(channel);
                self.advance(session, index)
            }
            Chore::Opened(index, _, None) if session.blocked => {
                self.open(session, index);
                Ok(())
            }
            // A channel opens at once, unless the broker reads nothing of this connection: a queue that takes nothing may hold up a whole one.
            Chore::Opened(_, _, None) => {
                Err(End::Lost(format!("{}: it opened no channel within {} s", session.link.at, OPEN_MAX.as_secs())))
            }
            Chore::Opened(index, _, Some(Err(error))) => {
                let trouble =
                    if fault::is_channels(&error) { Trouble::Channel(error) } else { Trouble::Connection(error) };
                self.on_trouble(session, index, trouble)
            }
            Chore::Closed => Ok(()),
            Chore::Files(files) => {
                session.reads_files = false;
                if files != session.files {
                    session.files = files;
                    let config = self.config.clone();
                    session.chores.spawn(async move { Chore::Reconnected(connect::connect(&config, &mut None).await) });
                }
                Ok(())
            }
            Chore::Reconnected(Ok(link)) => {
                session.next = Some((link, Instant::now() + SETTLE_MAX));
                Ok(())
            }
            Chore::Reconnected(Err(refusal)) => {
                // The connection that stands still works, so it stays; the next change is tried again.
                let detail = refusal.detail;
                warn!(output = %self.name, "the changed files give no connection, so the one that stands is kept: {detail}");
                Ok(())
            }
        }
    }

    /// What no event tells, each second.
    fn look(&mut self, session: &mut Session, looked: u32) -> Result<(), End> {
        if !session.link.connection.status().connected() {
            return Err(End::Lost(format!("{}: the connection is closed", session.link.at)));
        }
        // While the broker blocks, open records cannot settle.
        let is_due = looked.is_multiple_of(FILES_EVERY) && !session.reads_files; // A file of a network that hangs takes as long as it takes.
        if is_due && session.next.is_none() && !session.blocked {
            session.reads_files = true;
            let config = self.config.clone();
            session.chores.spawn_blocking(move || Chore::Files(connect::digest(&config)));
        }
        Ok(())
    }

    /// Hands over to the connection that waits, once all is settled or it waited long enough.
    fn replace(&mut self, session: &mut Session) -> Result<(), End> {
        match session.next.take() {
            Some((link, latest)) if self.lanes.all.iter().all(Lane::is_settled) || Instant::now() >= latest => {
                Err(End::Replaced(link))
            }
            waiting => {
                session.next = waiting;
                Ok(())
            }
        }
    }
}

/// A channel in confirm mode.
async fn open_channel(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn next_event(link: &mut Link) -> Option<Event> {
    poll_fn(|context| link.events.as_mut().poll_next(context)).await
}
