//! A load that goes on whatever the other side does: so many events a second, each given up after SIPSIM's two seconds, with a connection of its
//! own while others are stuck. What became of each is noted.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sipsim_relay::clock;
use sipsim_relay::simulate::http::Connection;
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::work::Work;

/// As long as SIPSIM waits, once.
const PATIENCE: Duration = Duration::from_secs(2);

/// One event and its answer.
pub struct Sent {
    /// Its `call_id`, which no other event has.
    pub call: String,
    pub at: Instant,
    pub took: Duration,
    /// `None`: no connection, or no answer in time.
    pub status: Option<u16>,
}

impl Sent {
    pub fn is_accepted(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// A load under way.
pub struct Offered {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Sent>, String>>,
}

impl Offered {
    pub fn start(address: SocketAddr, rate: u32, body_bytes: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || offer(address, rate, body_bytes, &stopping)) }
    }

    /// Waits for the last answers.
    pub fn stop(self) -> Result<Vec<Sent>, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the load panicked".to_owned())?
    }
}

#[derive(Default)]
struct Shared {
    idle: RefCell<Vec<Connection<TcpStream>>>,
    sent: RefCell<Vec<Sent>>,
    under_way: Cell<usize>,
}

fn offer(address: SocketAddr, rate: u32, body_bytes: usize, stop: &AtomicBool) -> Result<Vec<Sent>, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let shared = Rc::new(Shared::default());
    LocalSet::new().block_on(&runtime, async {
        let maker = clock::now().as_micros() as u64 & 0xffff_ff00;
        let mut work = Work::new(maker, body_bytes);
        let (began, mut made) = (Instant::now(), 0_u64);
        while !stop.load(Ordering::Relaxed) {
            let due = (began.elapsed().as_secs_f64() * f64::from(rate)) as u64;
            while made < due {
                let request = work.next(clock::now().as_seconds()).to_vec();
                let call = format!("{maker:08x}-{made:012x}");
                made += 1;
                shared.under_way.set(shared.under_way.get() + 1);
                let shared = Rc::clone(&shared);
                tokio::task::spawn_local(async move {
                    let at = Instant::now();
                    let status = timeout(PATIENCE, post(address, &request, &shared)).await.ok().flatten();
                    shared.sent.borrow_mut().push(Sent { call, at, took: at.elapsed(), status });
                    shared.under_way.set(shared.under_way.get() - 1);
                });
            }
            sleep(Duration::from_millis(1)).await;
        }
        while shared.under_way.get() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    });
    Ok(shared.sent.take())
}

async fn post(address: SocketAddr, request: &[u8], shared: &Shared) -> Option<u16> {
    let mut connection = loop {
        let idle = shared.idle.borrow_mut().pop();
        match idle {
            Some(mut connection) => {
                if connection.is_idle().await {
                    break connection;
                } // Else the other side closed it.
            }
            None => {
                let stream = TcpStream::connect(address).await.ok()?;
                stream.set_nodelay(true).ok()?;
                break Connection::new(stream);
            }
        }
    };
    let answer = connection.exchange(request, &mut Vec::new()).await.ok()?;
    if answer.keep_alive {
        shared.idle.borrow_mut().push(connection);
    }
    Some(answer.status)
}
