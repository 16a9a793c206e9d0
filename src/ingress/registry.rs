//! Every open connection and what it is doing, so that one task can close the overdue ones. A timer for each connection would cost more, and
//! hyper's own header timeout also runs while a connection idles between requests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::Leftover;

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
    /// A request's body is read, kept, answered. The request's own deadline ends this.
    Request,
    /// Answered, and what is left of the refused request's body is thrown away.
    Drain,
    /// Our side is closed; what the peer still sends is thrown away.
    Linger,
}

const PHASES: [Phase; 7] =
    [Phase::Handshake, Phase::Silent, Phase::Idle, Phase::Head, Phase::Request, Phase::Drain, Phase::Linger];

/// What a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// Finish the request under way, if any, then close.
    Finish = 1,
    /// Close now, without an answer.
    Drop = 2,
}

/// How long a connection may stay in its phases.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub deadline: Duration,
    pub idle: Duration,
}

/// A peer that reads an answer needs a round trip, not more.
const LINGER: Duration = Duration::from_secs(1);
/// With so many on their way out to make room, further ones are cut off: half of the descriptors that are kept for others.
const LEAVING_MAX: usize = 128;

impl Patience {
    /// What a connection is to be told that has been in `phase` for `age`.
    fn overdue(&self, phase: Phase, age: Duration) -> Option<Order> {
        let (limit, order) = match phase {
            Phase::Silent | Phase::Idle => (self.idle, Order::Finish),
            Phase::Handshake | Phase::Head | Phase::Drain => (self.deadline, Order::Drop),
            Phase::Linger => (LINGER, Order::Drop),
            Phase::Request => return None,
        };
        (age >= limit).then_some(order)
    }
}

/// Who goes first when there is no room: idle ones, then those that are slow to ask, the longest there first. Smaller goes earlier.
fn dispensability(phase: Phase, since: u64) -> Option<(u8, u64)> {
    match phase {
        Phase::Silent | Phase::Idle | Phase::Linger => Some((0, since)),
        Phase::Handshake | Phase::Head | Phase::Drain => Some((1, since)),
        Phase::Request => None,
    }
}

/// One connection, as its own task tells it and as the others see it.
pub struct Watched {
    id: u64,
    began: Instant,
    /// The phase in the upper byte; below, the microseconds from `began` to when it was entered. One word, so that both are always read together.
    state: AtomicU64,
    /// Microseconds from `began` to the newest read.
    last_read: AtomicU64,
    /// Microseconds from `began` to when a write found the peer not reading; 0 while writes go through.
    stalled_since: AtomicU64,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
    pub leftover: Mutex<Option<Leftover>>,
}

const PHASE_SHIFT: u32 = 56;

impl Watched {
    fn new(id: u64, phase: Phase) -> Self {
        Self {
            id,
            began: Instant::now(),
            state: AtomicU64::new((phase as u64) << PHASE_SHIFT),
            last_read: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            order: AtomicU8::new(0),
            waker: Mutex::new(None),
            leftover: Mutex::new(None),
        }
    }

    /// Microseconds since the connection began. Deadlines are of the monotonic clock: the wall clock may be set.
    fn age(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn set(&self, phase: Phase, since: u64) {
        self.state.store((phase as u64) << PHASE_SHIFT | since, Ordering::Relaxed);
    }

    fn get(&self) -> (Phase, u64) {
        let state = self.state.load(Ordering::Relaxed);
        // Only `set` writes here, and only discriminants of `Phase`; the fallback is never taken.
        let phase = PHASES.get((state >> PHASE_SHIFT) as usize).copied().unwrap_or(Phase::Request);
        (phase, state & ((1 << PHASE_SHIFT) - 1))
    }

    pub fn phase(&self) -> Phase {
        self.get().0
    }

    pub fn enter(&self, phase: Phase) {
        self.set(phase, self.age());
    }

    /// Bytes came. They begin a request if none is under way; empty lines before one, which RFC 9112 §2.2 has us ignore, do not.
    pub fn bytes_read(&self, bytes: &[u8]) {
        let now = self.age();
        self.last_read.store(now, Ordering::Relaxed);
        let waiting = matches!(self.phase(), Phase::Silent | Phase::Idle);
        if waiting && bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.set(Phase::Head, now);
        }
    }

    /// A request's head is complete. Gives when its first byte came; for one that came behind the request before it, when it came with
    /// that one's last bytes.
    pub fn request_began(&self) -> Instant {
        let since = match self.get() {
            (Phase::Head, since) => since,
            _ => self.last_read.load(Ordering::Relaxed),
        };
        self.set(Phase::Request, since);
        self.began + Duration::from_micros(since)
    }

    /// The answer is made. With `leftover`, the rest of the request's body is still to come, and has the request's deadline.
    pub fn answered(&self, leftover: Option<Leftover>) {
        if leftover.is_some() {
            self.set(Phase::Drain, self.get().1);
        } else {
            self.enter(Phase::Idle);
        }
        *lock(&self.leftover) = leftover;
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

    /// A whole request is under way, and its peer takes answers.
    pub fn is_serving(&self) -> bool {
        self.phase() == Phase::Request && !self.is_stalled()
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
            _ => Poll::Ready(Order::Drop),
        }
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

/// All open connections.
pub struct Registry {
    connections_max: usize,
    open: Mutex<Open>,
    /// Told whenever a connection has ended.
    ended: Notify,
    gauge: IntGauge,
}

#[derive(Default)]
struct Open {
    next_id: u64,
    staying: HashMap<u64, Arc<Watched>>,
    /// Told to go, to make room; they no longer count, and are still watched.
    leaving: HashMap<u64, Arc<Watched>>,
}

impl Open {
    fn all(&self) -> impl Iterator<Item = &Arc<Watched>> {
        self.staying.values().chain(self.leaving.values())
    }

    /// Tells the most dispensable one to go; it no longer counts. False if every one has a request under way. One that is dismissed politely
    /// still takes a descriptor until its peer has closed too, or [`LINGER`] is over.
    fn dismiss_one(&mut self, politely: bool) -> bool {
        let dispensable = self.staying.values().filter_map(|watched| {
            let (phase, since) = watched.get();
            // `since` counts from each connection's own beginning: compare moments.
            dispensability(phase, since)
                .map(|(rank, since)| (rank, watched.began + Duration::from_micros(since), watched.id))
        });
        let Some((_, _, id)) = dispensable.min() else { return false };
        if let Some(watched) = self.staying.remove(&id) {
            watched.order(if politely && watched.is_waiting() { Order::Finish } else { Order::Drop });
            self.leaving.insert(id, watched);
        }
        true
    }
}

impl Registry {
    pub fn new(connections_max: usize, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { connections_max, open: Mutex::default(), ended: Notify::new(), gauge })
    }

    /// Lets a connection in, making room for it if it must. `None`: every place is taken by a request under way.
    pub fn admit(self: &Arc<Self>, phase: Phase) -> Option<Admitted> {
        let mut open = lock(&self.open);
        let is_polite = open.leaving.len() < LEAVING_MAX;
        if open.staying.len() >= self.connections_max && !open.dismiss_one(is_polite) {
            return None;
        }
        open.next_id += 1;
        let watched = Arc::new(Watched::new(open.next_id, phase));
        open.staying.insert(watched.id, Arc::clone(&watched));
        self.gauge.inc();
        Some(Admitted { watched, registry: Arc::clone(self) })
    }

    /// The system has no room for another connection: of ours those go that are on their way out, else the one that can best be spared, at once.
    /// False if there is none such.
    pub fn make_room(&self) -> bool {
        let mut open = lock(&self.open);
        for leaving in open.leaving.values() {
            leaving.order(Order::Drop);
        }
        !open.leaving.is_empty() || open.dismiss_one(false)
    }

    /// Tells every connection that has outstayed its phase to go.
    pub fn reap(&self, patience: &Patience) {
        for watched in lock(&self.open).all() {
            if let Some(order) = watched.overdue(patience) {
                watched.order(order);
            }
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
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { deadline: Duration::from_millis(1800), idle: Duration::from_secs(620) };

    fn registry(connections_max: usize) -> Arc<Registry> {
        Registry::new(connections_max, IntGauge::new("open", "open").unwrap())
    }

    fn order_of(watched: &Watched) -> Option<Order> {
        match watched.poll_order(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(order) => Some(order),
            Poll::Pending => None,
        }
    }

    #[test]
    fn each_phase_has_its_patience() {
        let check = |phase, millis, expected| {
            assert_eq!(PATIENCE.overdue(phase, Duration::from_millis(millis)), expected, "{phase:?} for {millis} ms");
        };
        check(Phase::Head, 1799, None);
        check(Phase::Head, 1800, Some(Order::Drop));
        check(Phase::Handshake, 1800, Some(Order::Drop));
        check(Phase::Drain, 1800, Some(Order::Drop));
        check(Phase::Idle, 619_999, None);
        check(Phase::Idle, 620_000, Some(Order::Finish));
        check(Phase::Silent, 620_000, Some(Order::Finish));
        check(Phase::Linger, 1000, Some(Order::Drop));
        check(Phase::Request, u64::MAX / 2, None);
    }

    #[test]
    fn the_first_byte_begins_the_head_and_an_empty_line_does_not() {
        let watched = Watched::new(1, Phase::Silent);
        watched.bytes_read(b"\r\n");
        assert_eq!(watched.phase(), Phase::Silent);
        watched.bytes_read(b"P");
        assert_eq!(watched.phase(), Phase::Head);
        let (_, first_byte) = watched.get();
        watched.bytes_read(b"OST / HTTP/1.1\r\n\r\n");
        assert_eq!(watched.request_began(), watched.began + Duration::from_micros(first_byte));
        assert_eq!(watched.phase(), Phase::Request);
        watched.bytes_read(b"body");
        assert_eq!(watched.phase(), Phase::Request, "a body's bytes begin nothing");
        watched.answered(None);
        assert_eq!(watched.phase(), Phase::Idle);
    }

    #[test]
    fn room_is_made_by_the_longest_idle_then_by_the_slowest_head_never_by_a_request() {
        let registry = registry(3);
        let (serving, head, idle) = match [Phase::Request, Phase::Head, Phase::Idle].map(|phase| registry.admit(phase))
        {
            [Some(serving), Some(head), Some(idle)] => (serving, head, idle),
            _ => panic!("there is room for three"),
        };
        let newcomer = registry.admit(Phase::Request).expect("the idle one goes");
        assert_eq!(order_of(&idle.watched), Some(Order::Finish));
        let another = registry.admit(Phase::Request).expect("the one that reads its head goes");
        assert_eq!(order_of(&head.watched), Some(Order::Drop));
        assert!(registry.admit(Phase::Request).is_none(), "three requests are under way");
        assert_eq!(order_of(&serving.watched), None);
        drop((newcomer, another));
        assert!(registry.admit(Phase::Request).is_some());
    }

    #[test]
    fn whoever_keeps_coming_takes_no_more_descriptors_than_are_spared() {
        let registry = registry(1);
        let mut all = Vec::new();
        for _ in 0..=LEAVING_MAX + 1 {
            all.extend(registry.admit(Phase::Silent));
        }
        assert_eq!(all.len(), LEAVING_MAX + 2);
        assert_eq!(order_of(&all[0].watched), Some(Order::Finish));
        assert_eq!(order_of(&all[LEAVING_MAX].watched), Some(Order::Drop));
        assert_eq!(order_of(&all[LEAVING_MAX + 1].watched), None, "the newest stays");
        assert!(registry.make_room());
        assert_eq!(order_of(&all[0].watched), Some(Order::Drop), "those that leave go first");
        all.drain(..=LEAVING_MAX);
        assert!(registry.make_room());
        assert_eq!(order_of(&all[0].watched), Some(Order::Drop), "then the last that can be spared");
        all.clear();
        assert!(!registry.make_room());
    }

    #[test]
    fn of_two_idle_ones_the_longer_goes() {
        let registry = registry(2);
        let (Some(older), Some(younger)) = (registry.admit(Phase::Idle), registry.admit(Phase::Idle)) else {
            panic!("there is room for two");
        };
        older.watched.set(Phase::Idle, 5_000_000);
        let newcomer = registry.admit(Phase::Silent);
        assert!(newcomer.is_some());
        assert_eq!(order_of(&younger.watched), Some(Order::Finish), "it idles since before the older connection did");
        assert_eq!(order_of(&older.watched), None);
    }
}
