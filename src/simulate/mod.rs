//! A SIPSIM: plays calls, signs their events, posts them, and counts what a real one would have lost.
//!
//! [`calls`] makes the bodies, [`mod@line`] signs and posts one at a time, [`run`] does so over several connections and on a schedule.

pub mod calls;
mod connect;
mod histogram;
pub mod http;
pub mod line;
mod pace;
mod summary;
mod target;

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use histogram::Histogram;
pub use summary::Summary;
pub use target::Target;

use crate::clock;
use crate::normalize::Known;
use crate::secret::Secret;
use calls::{Calls, Plan, Player};
use line::{Line, Outcome, Route};
use pace::Pace;

/// What is changed after signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tamper {
    Signature,
    Timestamp,
    Body,
}

/// What is sent.
#[derive(Clone, Debug)]
pub enum What {
    /// All kinds of calls in turn.
    Calls,
    /// One event, each time of another call.
    Event(Known),
    /// One body, each time the same.
    Body(Vec<u8>),
}

#[derive(Clone, Debug)]
pub struct Options {
    pub target: Target,
    pub secret: Secret,
    /// PEM; the system's certificates without it.
    pub ca_file: Option<PathBuf>,
    pub what: What,
    /// Events a second, on a fixed schedule that does not wait for answers; `None`: each connection sends as soon as it has its answer.
    pub rate: Option<f64>,
    /// With neither `count` nor `duration`: each kind of call once, or the one event or body once.
    pub count: Option<u64>,
    pub duration: Option<Duration>,
    /// At least 1. So many events at most are under way at once.
    pub connections: u16,
    pub tamper: Option<Tamper>,
    /// Bodies of different seeds are different.
    pub seed: u32,
}

/// Sends what `options` say, until that is done or `stop` is; events that are then on their way still get their two seconds. Runs on the caller's
/// runtime; one thread is enough. `Err` only if nothing could be sent at all, for a reason that is here: a certificate file, say.
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<Summary, String> {
    let route = Route::new(&options.target, &options.secret, options.ca_file.as_deref(), options.tamper)?;
    let endless = options.count.is_none() && options.duration.is_none();
    let (plan, count) = match options.what {
        What::Calls if endless => (Plan::EachKindOnce, None),
        What::Calls => (Plan::Calls, options.count),
        What::Event(event) => (Plan::Only(event), options.count.or(endless.then_some(1))),
        What::Body(_) => (Plan::Calls, options.count.or(endless.then_some(1))), // The plan goes unused.
    };
    let body = match options.what {
        What::Body(body) => Some(Arc::from(body)),
        What::Calls | What::Event(_) => None,
    };
    let calls = Calls::new(plan, options.seed);
    let (stopping, stopped) = watch::channel(false);
    let pace = Arc::new(Pace::new(options.rate, count, options.duration));
    let mut senders = JoinSet::new();
    for _ in 0..options.connections.max(1) {
        let source = Source { player: calls.player(), fixed: body.clone() };
        senders.spawn(send_all(Line::new(Arc::clone(&route)), source, Arc::clone(&pace), stopped.clone()));
    }
    let mut summary = Summary::default();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            joined = senders.join_next() => match joined {
                Some(Ok(part)) => summary.add(part),
                Some(Err(error)) => return Err(format!("a connection's task ended: {error}")),
                None => break,
            },
            () = &mut stop, if !*stopping.borrow() => drop(stopping.send(true)),
        }
    }
    summary.took = pace.begun().elapsed();
    summary.certificate_ends = route.certificate_ends();
    Ok(summary)
}

/// Where one connection's bodies come from.
struct Source {
    player: Player,
    fixed: Option<Arc<[u8]>>,
}

impl Source {
    /// Puts the next body in `body`; `false` if there is none.
    fn next(&mut self, now: i64, body: &mut Vec<u8>) -> bool {
        body.clear();
        match &self.fixed {
            Some(fixed) => body.extend_from_slice(fixed),
            None => return self.player.next(now, body).is_some(),
        }
        true
    }
}

/// One connection: takes its turns on the schedule until that ends, there is no more to send, or all is stopped.
async fn send_all(mut line: Line, mut source: Source, pace: Arc<Pace>, mut stopped: watch::Receiver<bool>) -> Summary {
    /// After a connection that could not be made, so that a dead target does not cost a whole processor.
    const BREATH: Duration = Duration::from_millis(1);
    let mut summary = Summary::default();
    let mut body = Vec::new();
    while !*stopped.borrow_and_update() {
        let turn = tokio::select! {
            biased;
            turn = pace.turn() => turn,
            _ = stopped.changed() => break,
        };
        let Some(turn) = turn else { break };
        let now = clock::now().as_seconds();
        if !source.next(now, &mut body) {
            break;
        }
        summary.began(turn.late_by);
        let Outcome { answer, answered_at } = line.post(now, &body).await;
        let latency = answered_at.saturating_duration_since(turn.since);
        match answer {
            Ok(status) => summary.answered(status, latency),
            Err(problem) => {
                summary.unanswered(problem, latency);
                sleep(BREATH).await;
            }
        }
    }
    summary
}

#[cfg(test)]
mod tests;
