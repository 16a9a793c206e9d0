//! Every open connection and what it is doing, so that one task can close the overdue ones. A timer for each connection would cost more, and
//! hyper's own header timeout also runs while a connection idles between requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::EVICTED_KINDS;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// TLS, before the first request.
    Handshake,
    /// Open, and not a byte has come.
    Silent,
    /// Between two requests.
    Idle,
    /// A request's first byte has come, its head is not complete.
    Head,
    /// A request's body is read. The request's own deadline ends this.
    Body,
    /// A request is whole: judged, kept, answered, within its deadline.
    Request,
    /// Our side is closed; what the peer still sends is thrown away.
    Linger,
}

impl Phase {
    /// The label `kind` of `connections_evicted_total`, as a place in [`EVICTED_KINDS`].
    fn kind(self) -> usize {
        match self {
            Self::Silent => 0,
            Self::Idle | Self::Linger => 1,
            Self::Head => 2,
            // A request that is whole is never evicted.
            Self::Body | Self::Request => 3,
            Self::Handshake => 4,
        }
    }
}

const PHASES: [Phase; 7] =
    [Phase::Handshake, Phase::Silent, Phase::Idle, Phase::Head, Phase::Body, Phase::Request, Phase::Linger];

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Finish the request under way, if any, then close.
    Finish = 1,
    /// Close now, without an answer; unless by now a head is complete, whose request is answered first.
    Drop = 2,
    /// Close now, without an answer; unless by now a request is whole.
    Cut = 3,
}

/// How long a connection may stay in its phases.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub deadline: Duration,
    pub idle: Duration,
}

/// With so many on their way out to make room, further ones are cut off: half of the descriptors that are kept for others.
const LEAVING_MAX: usize = 128;
/// With so many told to go and not gone, which happens only where newcomers take all the processors' time, newcomers wait: each that is told to
/// go still has its memory.
const LEAVING_WAITS: usize = 1024;

impl Patience {
    /// What a connection is to be told that has been in `phase` for `age`.
    fn overdue(&self, phase: Phase, age: Duration) -> Option<Order> {
        let (limit, order) = match phase {
            Phase::Silent | Phase::Idle => (self.idle, Order::Finish),
            Phase::Handshake | Phase::Head | Phase::Linger => (self.deadline, Order::Drop),
            Phase::Body | Phase::Request => return None,
        };
        (age >= limit).then_some(order)
    }
}

/// How long who has just come, or has just been answered, is taken for somebody about to ask. Who asks sends all of an ordinary request at
/// once, so it is a round trip or two, and a good deal for a machine under attack.
pub const YOUNG: Duration = Duration::from_millis(250);
/// So many are chosen to go at a time when there is no room: to look at all connections for each newcomer would make accepting slow just when
/// newcomers are many.
const CHOSEN_MAX: usize = 128;

/// The order in which connections are closed when there is no room, smaller first. Of strangers those that say nothing, then those that are slow
/// to ask, then those that are slow to send a body, which nobody can judge before its end; then whoever has just come, or a genuine sender on a
/// new connection would make room for the slow. Only then connections that carried a genuine request within the tolerance.
fn dispensability(phase: Phase, age: Duration, is_proved: bool) -> Option<u8> {
    let rank = match phase {
        Phase::Silent | Phase::Idle | Phase::Linger => 0,
        Phase::Handshake | Phase::Head => 1,
        Phase::Body => 2,
        Phase::Request => return None,
    };
    Some(match is_proved {
        true => PROVED + rank,
        // One that only waits for its peer to close was answered: its sender is not about to ask.
        false if age < YOUNG && phase != Phase::Linger => JUST_COME,
        false => rank,
    })
}

/// The last rank of strangers.
const JUST_COME: u8 = 3;
/// The first rank of connections that carried a genuine request.
const PROVED: u8 = 4;
/// Of them, the rank of those that send a body now. They are closed only where proved connections take places that belong to newcomers.
const PROVED_BODY: u8 = PROVED + 2;

/// How many places belong to connections that have proved nothing yet: a quarter. Every genuine sender's connection begins as one. If proved
/// connections could take all places, whoever gets hold of enough genuine requests would shut all new connections out.
fn newcomers_share(connections_max: usize) -> usize {
    connections_max.div_ceil(4)
}

/// One connection, as its own task tells it and as the others see it.
pub struct Watched {
    id: u64,
    began: Instant,
    /// The phase in the upper byte; below, the microseconds from `began` to when it was entered. One word, so that both are always read together.
    state: AtomicU64,
    /// Requests that have begun: of the newest perhaps only its first byte has come.
    begun: AtomicU32,
    /// Microseconds from `began` to the read that brought the first byte of the newest of them.
    begun_at: AtomicU64,
    /// Microseconds from `began` to when a write found the peer not reading; 0 while writes go through.
    stalled_since: AtomicU64,
    /// Microseconds from `began` to when the proof lapses that a genuine request gave; 0: there was none.
    proved_until: AtomicU64,
    /// Requests whose heads were complete.
    requests: AtomicU32,
    /// The first of them that can be read in two ways, from 1; `u32::MAX` while there is none.
    ambiguous_from: AtomicU32,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

const PHASE_SHIFT: u32 = 56;

impl Watched {
    fn new(id: u64, phase: Phase) -> Self {
        Self {
            id,
            began: Instant::now(),
            state: AtomicU64::new((phase as u64) << PHASE_SHIFT),
            begun: AtomicU32::new(0),
            begun_at: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            proved_until: AtomicU64::new(0),
            requests: AtomicU32::new(0),
            ambiguous_from: AtomicU32::new(u32::MAX),
            order: AtomicU8::new(0),
            waker: Mutex::new(None),
        }
    }

    /// Microseconds since the connection began. Deadlines are of the monotonic clock: the wall clock may be set.
    fn age(&self) -> u64 {
        self.age_at(Instant::now())
    }

    fn age_at(&self, now: Instant) -> u64 {
        u64::try_from((now - self.began).as_micros()).unwrap_or(u64::MAX)
    }

    fn set(&self, phase: Phase, since: u64) {
        self.state.store((phase as u64) << PHASE_SHIFT | since, Ordering::Relaxed);
    }

    fn get(&self) -> (Phase, u64) {
        phase_of(self.state.load(Ordering::Relaxed))
    }

    pub fn phase(&self) -> Phase {
        self.get().0
    }

    pub fn enter(&self, phase: Phase) {
        self.set(phase, self.age());
    }

    /// With what was just read, so many requests of the connection have begun.
    pub fn begun(&self, requests: u32) {
        if self.begun.swap(requests, Ordering::Relaxed) < requests {
            self.begun_at.store(self.age(), Ordering::Relaxed);
        }
    }

    /// Bytes came. They begin a request if none is under way; empty lines before one, which RFC 9112 §2.2 has us ignore, do not.
    pub fn bytes_read(&self, bytes: &[u8]) {
        let now = self.age();
        let waiting = matches!(self.phase(), Phase::Silent | Phase::Idle);
        if waiting && bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.set(Phase::Head, now);
        }
    }

    /// A request's head is complete. Gives when its first byte came.
    pub fn request_began(&self) -> Instant {
        let since = match self.get() {
            (Phase::Head, since) => since,
            _ => self.begun_at.load(Ordering::Relaxed),
        };
        self.set(Phase::Body, since);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.began + Duration::from_micros(since)
    }

    /// What has come of the request under way, or of one before it, can be read in two ways.
    pub fn is_ambiguous(&self) -> bool {
        self.requests.load(Ordering::Relaxed) >= self.ambiguous_from.load(Ordering::Relaxed)
    }

    /// From this request on, counted from 1, it is not certain where each ends.
    pub fn ambiguous_from(&self, request: u32) {
        self.ambiguous_from.store(request, Ordering::Relaxed);
    }

    /// The request's body is there.
    pub fn read_whole(&self) {
        self.set(Phase::Request, self.get().1);
    }

    /// A genuine request that was not here before came over this connection. It counts as a sender's for as long as the account's tolerance lets
    /// a captured request be of use.
    pub fn prove(&self, tolerance: Duration) {
        let until = self.age().saturating_add(tolerance.as_micros() as u64);
        self.proved_until.fetch_max(until, Ordering::Relaxed);
    }

    pub fn is_proved(&self) -> bool {
        self.is_proved_at(Instant::now())
    }

    fn is_proved_at(&self, now: Instant) -> bool {
        self.age_at(now) < self.proved_until.load(Ordering::Relaxed)
    }

    /// Nothing is left of a request. The next one may have begun: its first bytes can come with the last ones of this, and then no read tells of them.
    pub fn await_next(&self, now: Instant) {
        if self.begun.load(Ordering::Relaxed) > self.requests.load(Ordering::Relaxed) {
            self.set(Phase::Head, self.begun_at.load(Ordering::Relaxed));
        } else {
            self.set(Phase::Idle, self.age_at(now));
        }
    }

    /// Writes find the peer not reading, or reading again.
    pub fn stalled(&self, is_stalled: bool) {
        if !is_stalled {
            self.stalled_since.store(0, Ordering::Relaxed);
        } else if self.stalled_since.load(Ordering::Relaxed) == 0 {
            self.stalled_since.store(self.age().max(1), Ordering::Relaxed);
        }
    }

    /// Nothing is under way: neither a request, nor an answer that the peer does not take.
    pub fn is_waiting(&self) -> bool {
        matches!(self.phase(), Phase::Silent | Phase::Idle) && !self.is_stalled()
    }

    /// Whether an order ends the connection at once. A request that is far enough is answered first, if its peer takes answers.
    pub fn obeys(&self, order: Order) -> bool {
        let is_far_enough = match order {
            Order::Finish => return false,
            Order::Drop => matches!(self.phase(), Phase::Body | Phase::Request),
            Order::Cut => self.phase() == Phase::Request,
        };
        !is_far_enough || self.is_stalled()
    }

    fn is_stalled(&self) -> bool {
        self.stalled_since.load(Ordering::Relaxed) > 0
    }

    pub fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        if let Some(waker) = lock(&self.waker).take() {
            waker.wake();
        }
    }

    /// The order that came since the last one was taken.
    pub fn poll_order(&self, cx: &mut Context<'_>) -> Poll<Order> {
        {
            let mut waker = lock(&self.waker);
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        match self.order.swap(0, Ordering::AcqRel) {
            0 => Poll::Pending,
            1 => Poll::Ready(Order::Finish),
            2 => Poll::Ready(Order::Drop),
            _ => Poll::Ready(Order::Cut),
        }
    }

    fn dispensability(&self, now: Instant) -> Option<Dispensable> {
        let state = self.state.load(Ordering::Relaxed);
        let (phase, since) = phase_of(state);
        // It counts from each connection's own beginning: compare moments.
        let since = self.began + Duration::from_micros(since);
        let is_proved = self.is_proved_at(now);
        let rank = dispensability(phase, now.saturating_duration_since(since), is_proved)?;
        Some(Dispensable { rank, since, id: self.id, state })
    }

    fn overdue(&self, patience: &Patience) -> Option<Order> {
        let now = self.age();
        let stalled_since = self.stalled_since.load(Ordering::Relaxed);
        if stalled_since > 0 && now.saturating_sub(stalled_since) >= patience.deadline.as_micros() as u64 {
            return Some(Order::Drop);
        }
        let (phase, since) = self.get();
        patience.overdue(phase, Duration::from_micros(now.saturating_sub(since)))
    }
}

fn phase_of(state: u64) -> (Phase, u64) {
    // Only `Watched::set` makes these, and only of discriminants of `Phase`; the fallback is never taken.
    let phase = PHASES.get((state >> PHASE_SHIFT) as usize).copied().unwrap_or(Phase::Request);
    (phase, state & ((1 << PHASE_SHIFT) - 1))
}

/// All open connections.
pub struct Registry {
    connections_max: usize,
    open: Mutex<Open>,
    /// Told whenever a connection was let in.
    admitted: Notify,
    /// Told whenever a connection has ended.
    ended: Notify,
    gauge: IntGauge,
    /// In the order of [`EVICTED_KINDS`].
    evicted: [IntCounter; EVICTED_KINDS.len()],
}

#[derive(Default)]
struct Open {
    next_id: u64,
    staying: HashMap<u64, Arc<Watched>>,
    /// Told to go, to make room; they no longer count, and are still watched.
    leaving: HashMap<u64, Arc<Watched>>,
    /// Who goes next, the first one last: chosen when room was last needed, each with what it was doing then.
    chosen: Vec<(u64, u64)>,
}

impl Open {
    fn all(&self) -> impl Iterator<Item = &Arc<Watched>> {
        self.staying.values().chain(self.leaving.values())
    }

    /// Tells the most dispensable one to go; it no longer counts. Gives what it was doing; `None` if every one has a request under way. One that
    /// is dismissed politely still takes a descriptor until its peer has closed too, or the deadline is over.
    fn dismiss_one(&mut self, connections_max: usize, politely: bool) -> Option<Phase> {
        let watched = self.next_chosen(connections_max)?;
        let phase = watched.phase();
        watched.order(if politely && watched.is_waiting() { Order::Finish } else { Order::Cut });
        self.leaving.insert(watched.id, watched);
        Some(phase)
    }

    /// Takes out who is to go next.
    fn next_chosen(&mut self, connections_max: usize) -> Option<Arc<Watched>> {
        loop {
            if self.chosen.is_empty() {
                self.choose(connections_max);
            }
            let (id, state) = self.chosen.pop()?;
            let is_as_it_was = |watched: &Arc<Watched>| watched.state.load(Ordering::Relaxed) == state;
            // Who has done something since is looked at again when the next ones are chosen.
            if self.staying.get(&id).is_some_and(is_as_it_was) {
                return self.staying.remove(&id);
            }
        }
    }

    fn choose(&mut self, connections_max: usize) {
        let now = Instant::now();
        let mut dispensable: Vec<_> = self.staying.values().filter_map(|watched| watched.dispensability(now)).collect();
        dispensable.sort_unstable();
        let strangers = dispensable.iter().take_while(|one| one.rank < PROVED).count();
        let proved = self.staying.values().filter(|watched| watched.is_proved_at(now)).count();
        let proved_too_many = proved.saturating_sub(connections_max - newcomers_share(connections_max));
        if proved_too_many > 0 && strangers < dispensable.len() {
            dispensable.drain(..strangers);
            // One that sends a body only if there is no other.
            if dispensable[0].rank < PROVED_BODY {
                dispensable.retain(|one| one.rank < PROVED_BODY);
            }
            dispensable.truncate(proved_too_many.min(CHOSEN_MAX));
        } else {
            // Those that have just come are chosen only where there is nobody else, and then the oldest quarter: others may be spared by the time
            // that the youngest would go.
            let longer_here = dispensable.iter().take_while(|one| one.rank < JUST_COME).count();
            let asking =
                self.staying.values().filter(|one| one.phase() == Phase::Request && !one.is_proved_at(now)).count();
            if longer_here == 0 && asking > strangers {
                return; // Their requests end soon; a newcomer waits for that.
            }
            let count = if longer_here > 0 { longer_here } else { strangers.div_ceil(4) };
            // A proved connection goes only if at that moment there is no stranger to go, and not while it sends a body.
            dispensable.truncate(count.clamp(1, CHOSEN_MAX));
            dispensable.retain(|one| one.rank < PROVED_BODY);
        }
        self.chosen.extend(dispensable.iter().rev().map(|one| (one.id, one.state)));
    }
}

/// A connection that could go; in the order in which they go.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Dispensable {
    rank: u8,
    since: Instant,
    id: u64,
    state: u64,
}

impl Registry {
    pub fn new(connections_max: usize, gauge: IntGauge, evicted: &IntCounterVec) -> Arc<Self> {
        Arc::new(Self {
            connections_max,
            open: Mutex::default(),
            admitted: Notify::new(),
            ended: Notify::new(),
            gauge,
            evicted: EVICTED_KINDS.map(|kind| evicted.with_label_values(&[kind])),
        })
    }

    /// As [`Open::dismiss_one`], and counts it.
    fn dismiss_one(&self, open: &mut Open, politely: bool) -> bool {
        let dismissed = open.dismiss_one(self.connections_max, politely);
        if let Some(phase) = dismissed {
            self.evicted[phase.kind()].inc();
        }
        dismissed.is_some()
    }

    /// How many were told to go so far to make room, in the order of [`EVICTED_KINDS`].
    pub fn evicted(&self) -> [u64; EVICTED_KINDS.len()] {
        self.evicted.each_ref().map(IntCounter::get)
    }

    /// Lets a connection in, making room for it if it must. `None`: requests under way take the places, or those that are to go.
    pub fn admit(self: &Arc<Self>, phase: Phase) -> Option<Admitted> {
        let mut open = lock(&self.open);
        if open.staying.len() >= self.connections_max {
            let leaving = open.leaving.len();
            if leaving >= LEAVING_WAITS || !self.dismiss_one(&mut open, leaving < LEAVING_MAX) {
                return None;
            }
        }
        open.next_id += 1;
        let watched = Arc::new(Watched::new(open.next_id, phase));
        open.staying.insert(watched.id, Arc::clone(&watched));
        self.gauge.inc();
        self.admitted.notify_waiters();
        Some(Admitted { watched, registry: Arc::clone(self) })
    }

    /// The system has no room for another connection: of ours those go that are on their way out, else the one that can best be spared, at once.
    /// False if there is none such.
    pub fn make_room(&self) -> bool {
        let mut open = lock(&self.open);
        for leaving in open.leaving.values() {
            leaving.order(Order::Cut);
        }
        !open.leaving.is_empty() || self.dismiss_one(&mut open, false)
    }

    /// Tells every connection that has outstayed its phase to go.
    pub fn reap(&self, patience: &Patience) {
        for watched in lock(&self.open).all() {
            if let Some(order) = watched.overdue(patience) {
                watched.order(order);
            }
        }
    }

    /// Returns once any is open.
    pub async fn any(&self) {
        loop {
            let admitted = self.admitted.notified();
            if lock(&self.open).all().next().is_some() {
                return;
            }
            admitted.await;
        }
    }

    /// Tells all connections to finish what they are at, or those in `phases` to close at once.
    pub fn order_all(&self, order: Order, phases: &[Phase]) {
        for watched in lock(&self.open).all().filter(|watched| phases.contains(&watched.phase())) {
            watched.order(order);
        }
    }

    /// Returns once no connection has anything to do but to throw away what its peer still sends.
    pub async fn done(&self) {
        loop {
            let ended = self.ended.notified();
            if lock(&self.open).all().all(|watched| watched.phase() == Phase::Linger) {
                return;
            }
            ended.await;
        }
    }

    /// A connection began to linger, or ended.
    pub fn tell_ended(&self) {
        self.ended.notify_waiters();
    }
}

/// A connection's place in the registry, given back when dropped.
pub struct Admitted {
    pub watched: Arc<Watched>,
    registry: Arc<Registry>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = lock(&self.registry.open);
        open.staying.remove(&self.watched.id);
        open.leaving.remove(&self.watched.id);
        drop(open);
        self.registry.gauge.dec();
        self.registry.tell_ended();
    }
}

/// Nobody panics while holding these locks, and what they guard is whole at any moment.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
