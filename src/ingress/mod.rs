//! The public port. A request that comes in here leaves as a promise ([`crate::journal::Receipt`]) or as a [`Refusal`], within
//! `ingress.deadline` from its first byte, and this is the only room that knows HTTP statuses.
//!
//! [`door`] holds the way in, a function to be read aloud. Around it: [`connection`] drives hyper, `registry` knows what every connection is
//! doing and closes the overdue, `budget` and `body` bound memory, `tls` keeps the certificate fresh, `tally` counts and logs.

use std::io;
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

mod body;
mod budget;
mod connection;
mod descriptors;
mod door;
pub mod framing;
mod refusal;
mod registry;
mod signing;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod tls;

pub use door::{Keep, Rooms, event_of};
pub use refusal::{Refusal, Unavailable, Unproved};

use self::budget::Budget;
use self::door::{Door, Limits, Stopping};
use self::registry::{Admitted, Order, Patience, Phase, Registry};
use self::tally::Tally;
use self::tls::Tls;
use crate::config;
use crate::metrics::Metrics;

/// How often overdue connections are looked for. What is closed without an answer is closed this much late at most; answers have timers.
const TICK: Duration = Duration::from_millis(200);
/// How long the accepting loop rests when the system has no descriptor or memory for another connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How often a newcomer looks for a place when requests under way take all of them, or when one is being made.
const PLACE_LOOK_EVERY: Duration = Duration::from_millis(5);
/// At the stop: how long what has been sent may take to be read. It is on this machine already, or a round trip away.
const STOP_GRACE: Duration = Duration::from_millis(250);
/// Connections that wait in the kernel to be accepted. What comes when it is full has to knock again, a second later: half of SIPSIM's patience.
/// So as many as systems allow (`net.core.somaxconn`, 4,096 on Linux); they are accepted within a fraction of that second.
const BACKLOG: u32 = 4096;
const MINUTE: Duration = Duration::from_secs(60);

/// The public port, listening, and not yet served.
pub struct Ingress<K> {
    listener: TcpListener,
    address: SocketAddr,
    site: Site<K>,
}

/// What every connection needs.
struct Site<K> {
    tls: Option<Arc<Tls>>,
    http: hyper::server::conn::http1::Builder,
    patience: Patience,
    door: Arc<Door<K>>,
}

impl<K: Keep> Ingress<K> {
    /// Listens on `ingress.listen`. Connections wait in the kernel until [`Ingress::serve`]. Fails if the address cannot be had, or the
    /// certificate or its key cannot be used; the error names the key of the configuration.
    pub async fn bind(config: &config::Ingress, rooms: Rooms<K>, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let tls =
            config.tls.as_ref().map(|files| Tls::load(files, config.deadline, metrics)).transpose()?.map(Arc::new);
        let listening = listen(config.listen).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listening.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {} (ingress.listen): {error}", config.listen))
        })?;
        let connections_max = descriptors::connections_max(config.connections_max);
        let registry = Registry::new(connections_max, metrics.ingress.connections.clone(), &metrics.ingress.evicted);
        let accounts: Vec<_> = rooms.accounts.names().collect();
        let door = Door {
            limits: Limits { body_max: config.body_max, deadline: config.deadline },
            budget: Budget::new(config.buffered_max, config.body_max),
            tally: Tally::new(Arc::clone(metrics), accounts),
            hashing: tokio::sync::Semaphore::new(1),
            stopping: Stopping::default(),
            registry,
            rooms,
        };
        let site = Site {
            tls,
            http: connection::http(config.headers_max),
            patience: Patience { deadline: config.deadline, idle: config.idle_timeout },
            door: Arc::new(door),
        };
        Ok(Self { listener, address, site })
    }

    /// Where it listens; tells the port if the configuration said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https` or `http`.
    pub fn scheme(&self) -> &'static str {
        if self.site.tls.is_some() { "https" } else { "http" }
    }

    /// Begins to take requests.
    pub fn serve(self) -> Serving<K> {
        let door = Arc::clone(&self.site.door);
        let patience = self.site.patience;
        let (stop, stopping) = watch::channel(false);
        let mut upkeep = JoinSet::new();
        upkeep.spawn(reap(Arc::clone(&door), patience));
        if let Some(tls) = &self.site.tls {
            upkeep.spawn(Arc::clone(tls).keep_fresh());
        }
        let accepting = tokio::spawn(accept(self.listener, Arc::new(self.site), stopping));
        Serving { door, patience, stop, accepting, _upkeep: upkeep }
    }
}

/// As [`TcpListener::bind`], with a longer queue: for either port.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until told to stop. Gives the connections that are then open.
async fn accept<K: Keep>(
    listener: TcpListener,
    site: Arc<Site<K>>,
    mut stopping: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut warned_at: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(ended) = connections.join_next() => {
                log_panic(ended);
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                if let Some(admitted) = site.admit(&stopping).await {
                    connections.spawn(Arc::clone(&site).serve_one(stream, admitted));
                }
            }
            // The peer went away before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Not at each: where some get through between, they alternate.
                if warned_at.is_none_or(|at| at.elapsed() >= MINUTE) {
                    warned_at = Some(Instant::now());
                    warn!(%error, "cannot accept a connection: {error}; the limit of open files may be too low. Idle ones are closed, trying on");
                }
                // Who idles goes first here too: waiting for its patience would keep everybody else out.
                let has_made_room = site.door.registry.make_room();
                sleep(if has_made_room { PLACE_LOOK_EVERY } else { ACCEPT_BACKOFF }).await;
            }
        }
    }
    // Who was connected before the end of listening is still heard; the kernel would send them a reset.
    while let Ok(Ok((stream, _))) = timeout(Duration::ZERO, listener.accept()).await {
        let Some(admitted) = site.door.registry.admit(site.first_phase()) else { break };
        connections.spawn(Arc::clone(&site).serve_one(stream, admitted));
    }
    connections
}

impl<K: Keep> Site<K> {
    /// A place for a new connection. `None` if by the deadline, in which each request under way ends, or by the stop there was none.
    async fn admit(&self, stopping: &watch::Receiver<bool>) -> Option<Admitted> {
        let give_up_at = Instant::now() + self.patience.deadline;
        loop {
            let admitted = self.door.registry.admit(self.first_phase());
            if admitted.is_some() || *stopping.borrow() || Instant::now() >= give_up_at {
                return admitted;
            }
            sleep(PLACE_LOOK_EVERY).await;
        }
    }

    fn first_phase(&self) -> Phase {
        if self.tls.is_some() { Phase::Handshake } else { Phase::Silent }
    }

    async fn serve_one(self: Arc<Self>, stream: TcpStream, admitted: Admitted) {
        // An answer is one small write: nothing is gained by waiting for more. If this fails, the connection is broken and reading will say so.
        let _ = stream.set_nodelay(true);
        let watched = &admitted.watched;
        if !connection::is_spoken_to(&stream, watched).await {
            return;
        }
        // In a box, so that who says nothing does not hold the room for it; and made in place, since a moved variable keeps its room too.
        let malformed = Box::pin(async {
            match &self.tls {
                None => connection::serve(&self.http, stream, watched, &self.door).await,
                Some(tls) => match tls.shake_hands(stream, watched).await {
                    Ok(stream) => connection::serve(&self.http, stream, watched, &self.door).await,
                    Err(malformed) => malformed,
                },
            }
        })
        .await;
        if let Some(malformed) = malformed {
            self.door.count_malformed(malformed);
        }
    }
}

/// Closes overdue connections, and once a minute says what was refused.
async fn reap<K: Keep>(door: Arc<Door<K>>, patience: Patience) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut minute = Instant::now();
    loop {
        let now = ticks.tick().await;
        door.registry.reap(&patience);
        if now.duration_since(minute) >= MINUTE {
            minute = now;
            door.tally.log_minute();
            door.tally.log_evicted(door.registry.evicted());
        }
        let _ = timeout(MINUTE, door.registry.any()).await; // Who has nobody to look after sleeps.
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        warn!("a connection ended by a fault in the relay itself; please report it");
    }
}

/// The public port at work. To stop: the three functions in their order. If dropped instead, everything is cut off.
pub struct Serving<K> {
    door: Arc<Door<K>>,
    patience: Patience,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<JoinSet<()>>,
    _upkeep: JoinSet<()>,
}

/// What has stopped listening, and still answers.
pub struct Finishing<K> {
    door: Arc<Door<K>>,
    patience: Patience,
    connections: JoinSet<()>,
    _upkeep: JoinSet<()>,
}

impl<K: Keep> Serving<K> {
    /// From now on every answer is the last on its connection (`Connection: close`), so that senders come back elsewhere.
    pub fn close_after_answers(&self) {
        self.door.stopping.close_after_answers();
    }

    /// Stops listening. Connections that idle are closed, others finish what they are at.
    pub async fn stop_accepting(self) -> Finishing<K> {
        self.close_after_answers();
        self.stop.send_replace(true);
        let connections = match self.accepting.await {
            Ok(connections) => connections,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            Err(_aborted) => JoinSet::new(), // Nobody aborts it but the runtime's own end.
        };
        self.door.registry.order_all(Order::Finish, &[Phase::Idle]);
        Finishing { door: self.door, patience: self.patience, connections, _upkeep: self._upkeep }
    }
}

impl<K: Keep> Finishing<K> {
    /// Returns when every request that was read whole has its answer, at most `ingress.deadline` later. What has been sent gets a quarter of a
    /// second to be read; then half-sent bodies are answered 503 `shutting_down`, and what is less than a whole head is closed.
    pub async fn finish_open_requests(mut self) {
        let registry = Arc::clone(&self.door.registry);
        if timeout(STOP_GRACE, registry.done()).await.is_err() {
            self.door.stopping.cut_bodies();
            registry.order_all(Order::Drop, &[Phase::Handshake, Phase::Silent, Phase::Head]);
            registry.order_all(Order::Finish, &[Phase::Idle]);
            if timeout(self.patience.deadline, registry.done()).await.is_err() {
                info!("connections whose peers do not take their answers are cut off");
            }
        }
        self.connections.shutdown().await;
    }
}
