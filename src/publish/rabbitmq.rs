//! RabbitMQ: a channel a lane, publisher confirms pipelined, `mandatory`. A record counts as delivered when the broker confirmed that it was
//! routed and kept, and `window` shows that lapin's confirm can be believed; each record gets one report, whatever happens to the line.
//!
//! One task does it all and waits for nothing but news: neither a publish that hangs (a blocked connection, a hung broker) nor a lane whose
//! channel is being opened holds up the others. Reconnecting is our own; lapin's recovery stays off.

mod connect;
mod fault;
mod lane;
pub mod live;
mod management;
mod ready;
mod runtime;
mod session;
mod topology;
mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::types::ShortString;
use lapin::{Channel, Connection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, info, warn};

use super::{Place, PublishError, Record, Report, Reports, Sink};
use crate::config::{self, OutputName};
use connect::Link;
use lane::Lane;
use ready::Ready;
use session::{End, Session};
pub use topology::create_topology;
use window::Verdict;

/// The first pause before connecting again is at most this. It grows by half each time, so that what is lost beside an outage is half of it at worst.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A connection that lasted this long begins again with the shortest pause.
const PROVEN_AFTER: Duration = Duration::from_secs(5);
/// How long open records may take to settle before a connection is replaced because a file changed.
const SETTLE_MAX: Duration = Duration::from_secs(5);

/// Publishes to an exchange, by the records' lanes as routing keys. Dropped, it closes its connection within a second.
pub struct RabbitMq {
    orders: UnboundedSender<Order>,
}

/// What the task is told.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every one is a record, which would be allocated for the sake of a few others"
)]
enum Order {
    Publish(Record),
    /// The lane's open records are given back, and its channel is closed.
    TakeBack(Arc<str>),
}

impl RabbitMq {
    /// Starts the task that connects and publishes. It begins as not connected and tries for as long as it lives.
    pub fn new(name: OutputName, config: config::RabbitMq, reports: Reports) -> Self {
        let (orders, queue) = unbounded_channel();
        let publisher = Publisher {
            exchange: topology::short(&config.exchange),
            name,
            config,
            reports,
            orders: queue,
            lanes: Lanes::default(),
            ready: Arc::default(),
            declare_trouble: None,
        };
        // Owned through the channel: it ends when the sink is dropped, after its goodbye to the broker.
        tokio::spawn(publisher.run());
        Self { orders }
    }
}

impl Sink for RabbitMq {
    fn send(&mut self, record: &mut Record) {
        // The task ends only when this sender is gone, or with the runtime.
        let _ = self.orders.send(Order::Publish(std::mem::take(record)));
    }

    fn is_silent_on_faults(&self) -> bool {
        true
    }

    fn take_back(&mut self, lane: &Arc<str>, _oldest: u64) {
        let _ = self.orders.send(Order::TakeBack(Arc::clone(lane)));
    }
}

struct Publisher {
    name: OutputName,
    config: config::RabbitMq,
    exchange: ShortString,
    reports: Reports,
    orders: UnboundedReceiver<Order>,
    lanes: Lanes,
    ready: Arc<Ready>,
    /// What was last said about the exchange, so that it is said once.
    declare_trouble: Option<String>,
}

impl Publisher {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        let mut told = None;
        let mut reading = None;
        let config = self.config.clone();
        loop {
            let Some(connected) = self.refusing(connect::connect(&config, &mut reading)).await else { return };
            match connected {
                Err(refusal) => {
                    if told.as_ref() != Some(&refusal.detail) {
                        told = Some(refusal.detail.clone());
                        self.report(Report::Lost { reason: refusal.reason, detail: refusal.detail });
                    }
                }
                Ok(link) => {
                    told = None;
                    let since = Instant::now();
                    match self.publish(link).await {
                        None => return,
                        Some(detail) => {
                            self.report(Report::Lost { reason: PublishError::Disconnected, detail });
                        }
                    }
                    if since.elapsed() >= PROVEN_AFTER {
                        pause = PAUSE_MIN;
                    }
                }
            }
            // Full jitter: many relays that lost one broker do not come back as one.
            let jittered = pause.mul_f64(fastrand::f64());
            if self.refusing(tokio::time::sleep(jittered)).await.is_none() {
                return;
            }
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }

    /// Waits for `wait` while all records that come are failed, as the broker is away. `None` if the sink was dropped.
    async fn refusing<T>(&mut self, wait: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(wait);
        loop {
            tokio::select! {
                done = &mut wait => return Some(done),
                order = self.orders.recv() => {
                    let Order::Publish(record) = order? else { continue }; // Nothing is open while it is away.
                    let mut verdicts = Vec::new();
                    self.lanes.of(&record.lane).refuse(&record, &mut verdicts);
                    self.tell(verdicts);
                }
            }
        }
    }

    /// Publishes over this connection and those that replace it, until one is lost: its reason, in one line. `None` if the sink was dropped.
    async fn publish(&mut self, mut link: Link) -> Option<String> {
        debug!(output = %self.name, "connected to {}", link.at);
        self.declare(&link.connection).await;
        self.report(Report::Connected);
        loop {
            let mut session = Session::new(link);
            let end = self.serve(&mut session).await;
            let Session { link: old, next, .. } = session;
            drop(next);
            match end {
                End::Dropped => {
                    old.close().await;
                    return None;
                }
                End::Lost(detail) => {
                    drop(old);
                    let mut verdicts = Vec::new();
                    for lane in &mut self.lanes.all {
                        lane.close(|_| PublishError::Disconnected, Some(&PublishError::Disconnected), &mut verdicts);
                    }
                    self.tell(verdicts);
                    return Some(detail);
                }
                End::Replaced(new) => {
                    let mut verdicts = Vec::new();
                    for lane in &mut self.lanes.all {
                        lane.close(|_| PublishError::Disconnected, None, &mut verdicts);
                    }
                    self.tell(verdicts);
                    old.close().await;
                    info!(output = %self.name, "connected anew to {}, with the changed files", new.at);
                    link = new;
                }
            }
        }
    }

    async fn declare(&mut self, connection: &Connection) {
        if !self.config.declare {
            return;
        }
        // A broker that does not answer this is noticed by its heartbeat; publishing does not wait for it.
        let declared = tokio::time::timeout(SETTLE_MAX, topology::declare(connection, &self.config.exchange));
        let trouble = declared.await.unwrap_or(Ok(())).err();
        if let Some(text) = trouble.as_ref().filter(|text| self.declare_trouble.as_ref() != Some(*text)) {
            warn!(output = %self.name, "{text}");
        }
        self.declare_trouble = trouble;
    }

    fn tell(&self, verdicts: Vec<Verdict>) {
        for (sequence, verdict) in verdicts {
            self.report(match verdict {
                Ok(()) => Report::Delivered { sequence, place: Place::Confirmed },
                Err(error) => Report::Failed { sequence, error },
            });
        }
    }

    fn report(&self, report: Report) {
        // Nobody listens only while the output is being dropped.
        let _ = self.reports.send(report);
    }
}

/// All lanes there ever were. Bounded by the routing keys of the configuration: none is made from input.
#[derive(Default)]
struct Lanes {
    by_key: HashMap<Arc<str>, usize>,
    all: Vec<Lane>,
    uses: u64,
}

impl Lanes {
    fn of(&mut self, key: &Arc<str>) -> &mut Lane {
        let index = match self.by_key.get(key) {
            Some(index) => *index,
            None => {
                let index = self.all.len();
                self.by_key.insert(Arc::clone(key), index);
                self.all.push(Lane::new(index, key));
                index
            }
        };
        &mut self.all[index]
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// The channel of the lane that idles longest.
    fn release_idle(&mut self) -> Option<Arc<Channel>> {
        self.all.iter_mut().filter(|lane| lane.is_idle()).min_by_key(|lane| lane.used)?.release()
    }
}
