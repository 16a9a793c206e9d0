//! Turns at signing, which each TLS handshake needs once. It takes a processor up to a millisecond, and anybody who recorded a ClientHello can ask
//! for it: no proof is possible before. So turns go round the addresses that wait, the newest handshake of an address first, and no more wait
//! than can be signed in time.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::registry::lock;

/// Of the deadline, half is for waiting; the rest of the handshake and the request need the other.
const WAITING_PART: f64 = 0.5;
/// What one turn takes until some have been measured: a signature with RSA 2048.
const FIRST_ESTIMATE: Duration = Duration::from_millis(1);
/// The weight of a turn's length in the average.
const WEIGHT: f64 = 1.0 / 16.0;
/// However slow signing is, so many may wait.
const WAITING_MIN: usize = 16;

/// Who may sign now, and who waits for that.
pub struct Turns {
    pub at_once: usize,
    deadline: Duration,
    queue: Mutex<Queue>,
}

struct Queue {
    free: usize,
    /// Those of one address in order of arrival.
    waiting: HashMap<IpAddr, VecDeque<oneshot::Sender<()>>>,
    /// The addresses that wait, the next one first.
    round: VecDeque<IpAddr>,
    count: usize,
    /// Seconds that a turn takes on average.
    average: f64,
}

impl Queue {
    /// The newest of the next address.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        let address = self.round.pop_front()?;
        let of_address = self.waiting.get_mut(&address)?;
        let newest = of_address.pop_back();
        self.count -= usize::from(newest.is_some());
        if of_address.is_empty() {
            self.waiting.remove(&address);
        } else {
            self.round.push_back(address);
        }
        newest
    }

    /// Drops the oldest of the address that has most waiting. True if it waited to the end, false if it had gone by itself.
    fn drop_one(&mut self) -> bool {
        let Some(address) = self.waiting.iter().max_by_key(|(_, waiting)| waiting.len()).map(|(address, _)| *address)
        else {
            return false;
        };
        let of_address = self.waiting.entry(address).or_default();
        let oldest = of_address.pop_front();
        self.count -= usize::from(oldest.is_some());
        if of_address.is_empty() {
            self.waiting.remove(&address);
            self.round.retain(|other| *other != address);
        }
        oldest.is_some_and(|oldest| !oldest.is_closed())
    }

    fn pass_on(&mut self) {
        while let Some(next) = self.next() {
            if next.send(()).is_ok() {
                return;
            }
        }
        self.free += 1;
    }
}

impl Turns {
    /// `at_once` sign at the same time; a handshake has `deadline` in all.
    pub fn new(at_once: usize, deadline: Duration) -> Arc<Self> {
        let queue = Queue {
            free: at_once,
            waiting: HashMap::new(),
            round: VecDeque::new(),
            count: 0,
            average: FIRST_ESTIMATE.as_secs_f64(),
        };
        Arc::new(Self { at_once, deadline, queue: Mutex::new(queue) })
    }

    /// Waits for a turn. `None`: newer handshakes took its place. `dropped` is called for each that this one takes the place of.
    pub async fn turn(self: &Arc<Self>, peer: IpAddr, dropped: impl Fn()) -> Option<Turn> {
        let mut place = {
            let mut queue = lock(&self.queue);
            if queue.free > 0 {
                queue.free -= 1;
                return Some(Turn::new(self));
            }
            while queue.count >= self.waiting_max(queue.average) {
                if queue.drop_one() {
                    dropped();
                }
            }
            let (sender, receiver) = oneshot::channel();
            let address = network(peer);
            let queue = &mut *queue;
            let of_address = queue.waiting.entry(address).or_default();
            if of_address.is_empty() {
                queue.round.push_back(address);
            }
            of_address.push_back(sender);
            queue.count += 1;
            Place { turns: Arc::clone(self), receiver }
        };
        let is_ours = (&mut place.receiver).await.is_ok();
        is_ours.then(|| Turn::new(self))
    }

    /// As many as can be signed in the part of the deadline that is for waiting.
    fn waiting_max(&self, average: f64) -> usize {
        let signed = self.deadline.as_secs_f64() * WAITING_PART / average * self.at_once as f64;
        (signed as usize).max(WAITING_MIN)
    }
}

/// What counts as one address: of IPv6 the network, of which one customer has all addresses.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// A place in the queue. A turn that comes to it when it is given up goes on to the next.
struct Place {
    turns: Arc<Turns>,
    receiver: oneshot::Receiver<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.receiver.close();
        if self.receiver.try_recv().is_ok() {
            lock(&self.turns.queue).pass_on();
        }
    }
}

/// The right to sign, until it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    began: Instant,
}

impl Turn {
    fn new(turns: &Arc<Turns>) -> Self {
        Self { turns: Arc::clone(turns), began: Instant::now() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = lock(&self.turns.queue);
        queue.average += (self.began.elapsed().as_secs_f64() - queue.average) * WEIGHT;
        queue.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    const HOG: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn turns_go_round_the_addresses_and_to_the_newest_of_each() {
        let turns = Turns::new(1, Duration::from_millis(1800));
        let signing = poll(&mut pin!(turns.turn(HOG, || {})));
        let Poll::Ready(Some(signing)) = signing else { panic!("nobody else signs") };
        let mut first = pin!(turns.turn(HOG, || {}));
        let mut second = pin!(turns.turn(HOG, || {}));
        let mut other = pin!(turns.turn(OTHER, || {}));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending() && poll(&mut other).is_pending());
        drop(signing);
        assert!(poll(&mut first).is_pending() && poll(&mut other).is_pending());
        let Poll::Ready(Some(signing)) = poll(&mut second) else { panic!("the newest of the first address") };
        drop(signing);
        assert!(poll(&mut first).is_pending());
        let Poll::Ready(Some(signing)) = poll(&mut other) else { panic!("then the other address") };
        drop(signing);
        assert!(matches!(poll(&mut first), Poll::Ready(Some(_))));
        assert_eq!(lock(&turns.queue).free, 1);
    }

    #[test]
    fn who_waits_beyond_what_can_be_signed_in_time_is_dropped_the_oldest_of_the_address_with_most() {
        let turns = Turns::new(1, Duration::from_millis(40)); // 20 ms for waiting, 1 ms each.
        let Poll::Ready(Some(signing)) = poll(&mut pin!(turns.turn(HOG, || {}))) else { panic!("nobody else signs") };
        let dropped = Cell::new(0);
        let mut other = pin!(turns.turn(OTHER, || {}));
        assert!(poll(&mut other).is_pending());
        let mut waiting: Vec<_> =
            (0..25).map(|_| Box::pin(turns.turn(HOG, || dropped.set(dropped.get() + 1)))).collect();
        assert!(waiting.iter_mut().all(|one| poll(&mut one.as_mut()).is_pending()));
        assert_eq!(dropped.get(), 6, "20 wait");
        assert!(waiting.drain(..6).all(|mut one| matches!(poll(&mut one.as_mut()), Poll::Ready(None))));
        // Who gives up is passed over, also when the turn is on its way already.
        drop(waiting);
        drop(signing);
        assert!(matches!(poll(&mut other), Poll::Ready(Some(_))));
        let mut queue = lock(&turns.queue);
        queue.pass_on();
        assert_eq!((queue.free, queue.count), (2, 0), "nothing is left of them");
    }

    #[test]
    fn a_turn_that_comes_to_somebody_who_has_gone_is_not_lost() {
        let turns = Turns::new(1, Duration::from_millis(1800));
        let Poll::Ready(Some(signing)) = poll(&mut pin!(turns.turn(HOG, || {}))) else { panic!("nobody else signs") };
        let mut gone = Box::pin(turns.turn(HOG, || {}));
        assert!(poll(&mut gone.as_mut()).is_pending());
        drop(signing);
        drop(gone);
        assert_eq!(lock(&turns.queue).free, 1);
    }

    #[test]
    fn a_customers_whole_network_is_one_address() {
        let networks = ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "::ffff:192.0.2.1", "192.0.2.1"]
            .map(|text| network(text.parse().unwrap()));
        assert_eq!(networks[0], networks[1]);
        assert_ne!(networks[0], networks[2]);
        assert_eq!(networks[3], networks[4]);
    }
}
