//! A TCP line between the relay and a broker that can be cut, slowed, refused and frozen.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How soon a line's threads notice what was done to it.
const NOTICE: Duration = Duration::from_millis(20);
/// Bytes of one read.
const PIECE: usize = 4096;

/// Listens on one address for as long as it exists, except while it refuses.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
    accepting: Option<JoinHandle<()>>,
}

struct State {
    target: SocketAddr,
    /// Nothing moves in either direction, and nobody is told.
    frozen: AtomicBool,
    /// Microseconds a kilobyte.
    slow: AtomicU64,
    /// Bytes to the broker after which its line is cut; negative: none.
    cut_after: AtomicI64,
    /// All that went to the broker.
    to_broker: AtomicU64,
    refusing: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// `target` need not listen yet.
    pub fn start(address: SocketAddr, target: SocketAddr) -> Self {
        let state = Arc::new(State {
            target,
            frozen: AtomicBool::new(false),
            slow: AtomicU64::new(0),
            cut_after: AtomicI64::new(-1),
            to_broker: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::new(Vec::new()),
        });
        let accepting = Some(accept(address, &state));
        Self { address, state, accepting }
    }

    /// Every line ends at once; new ones are taken.
    pub fn cut(&self) {
        for stream in self.state.open.lock().expect("nobody panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // Its other end may have been quicker.
        }
    }

    /// The lines end after so many more bytes to the broker: in the middle of a request.
    pub fn cut_after(&self, bytes: i64) {
        self.state.cut_after.store(bytes, Ordering::SeqCst);
    }

    /// How many bytes went to the broker so far, over all connections.
    pub fn bytes_to_broker(&self) -> u64 {
        self.state.to_broker.load(Ordering::SeqCst)
    }

    /// Whether [`Proxy::cut_after`] has yet to happen.
    pub fn will_cut(&self) -> bool {
        self.state.cut_after.load(Ordering::SeqCst) >= 0
    }

    /// Half-open: connections stand, are even taken, and nothing ever comes.
    pub fn freeze(&self, frozen: bool) {
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// So many microseconds for each kilobyte, in each direction; 0: as fast as it goes.
    pub fn slow(&self, microseconds: u64) {
        self.state.slow.store(microseconds, Ordering::SeqCst);
    }

    /// Cuts every line, and nobody listens any more.
    pub fn refuse(&mut self) {
        self.state.refusing.store(true, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().expect("it does not panic");
        }
        self.cut();
    }

    /// Listens again.
    pub fn restore(&mut self) {
        self.state.refusing.store(false, Ordering::SeqCst);
        self.accepting.get_or_insert_with(|| accept(self.address, &self.state));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.refuse();
    }
}

fn accept(address: SocketAddr, state: &Arc<State>) -> JoinHandle<()> {
    let listener = TcpListener::bind(address).expect("the proxy's port is free");
    listener.set_nonblocking(true).expect("it can be");
    let state = state.clone();
    thread::spawn(move || {
        while !state.refusing.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((near, _)) => connect(near, &state),
                Err(_) => thread::sleep(NOTICE / 4),
            }
        }
    })
}

fn connect(near: TcpStream, state: &Arc<State>) {
    near.set_nonblocking(false).expect("it can be");
    let Ok(far) = TcpStream::connect(state.target) else { return }; // Dropped: the broker is away.
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(NOTICE)).expect("it can be");
        stream.set_nodelay(true).expect("it can be");
    }
    let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be shared");
    state.open.lock().expect("nobody panics with it").extend([copy(&near), copy(&far)]);
    for (from, to, to_broker) in [(copy(&near), copy(&far), true), (far, near, false)] {
        let state = state.clone();
        thread::spawn(move || carry(from, to, to_broker, &state));
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, to_broker: bool, state: &State) {
    let mut piece = [0; PIECE];
    while !state.ended.load(Ordering::SeqCst) {
        if state.frozen.load(Ordering::SeqCst) {
            thread::sleep(NOTICE);
            continue;
        }
        let count = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        let mut sent = count;
        let left = state.cut_after.load(Ordering::SeqCst);
        let cuts = to_broker && left >= 0 && (count as i64) > left;
        if to_broker && left >= 0 {
            sent = count.min(usize::try_from(left).expect("it is not negative"));
            state.cut_after.store(if cuts { -1 } else { left - sent as i64 }, Ordering::SeqCst);
        }
        let slow = state.slow.load(Ordering::SeqCst);
        if slow > 0 {
            thread::sleep(Duration::from_micros(slow * count as u64 / 1024));
        }
        if to_broker {
            state.to_broker.fetch_add(sent as u64, Ordering::SeqCst);
        }
        if to.write_all(&piece[..sent]).is_err() || cuts {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both); // Its other end may have been quicker.
    }
}
