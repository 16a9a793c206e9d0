//! The load: some connections, each with one request under way, on one thread. Lighter than `sipsim-relay simulate`, which keeps a timer for
//! each request: what is measured is a server, on the same processors.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sipsim_relay::clock;
use sipsim_relay::simulate::Histogram;
use sipsim_relay::simulate::http::Connection;
use tokio::net::TcpStream;

use crate::process::Usage;
use crate::work::Work;

/// What is sent, and for how long.
#[derive(Clone, Copy)]
pub struct Load {
    pub connections: usize,
    pub body_bytes: usize,
    /// Before anything is counted: connections open, caches fill, files grow.
    pub warm_up: Duration,
    pub length: Until,
}

#[derive(Clone, Copy)]
pub enum Until {
    Passed(Duration),
    /// This many answers, the warm-up's among them.
    Answered(u64),
}

/// What came of it, warm-up left out.
pub struct Outcome {
    pub answered: u64,
    /// Answers other than 200, in the warm-up too.
    pub refused: u64,
    pub seconds: f64,
    pub latency: Histogram,
    /// Of the server's process.
    pub cpu_seconds: f64,
    /// Of ours.
    pub own_cpu_seconds: f64,
    /// By the server's process.
    pub written_bytes: u64,
}

#[derive(Default)]
struct Tally {
    counting: Cell<bool>,
    stopping: Cell<bool>,
    total: Cell<u64>,
    answered: Cell<u64>,
    refused: Cell<u64>,
    latency: RefCell<Histogram>,
}

/// Loads the server at `address`, which is the process `pid`.
///
/// # Errors
/// A connection was refused or broke: nothing under test may do that.
pub fn run(address: SocketAddr, pid: u32, load: Load) -> Result<Outcome, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let tally = Rc::new(Tally::default());
        // Distinct between loads too: one relay may get several.
        let maker = clock::now().as_micros() as u64 & 0xffff_ff00;
        let connections: Vec<_> = (0..load.connections as u64)
            .map(|number| {
                tokio::task::spawn_local(post_all(
                    address,
                    Work::new(maker + number, load.body_bytes),
                    Rc::clone(&tally),
                ))
            })
            .collect();
        tokio::time::sleep(load.warm_up).await;
        let (began, server, own) = (Instant::now(), Usage::of(pid), Usage::of(std::process::id()));
        tally.counting.set(true);
        match load.length {
            Until::Passed(length) => tokio::time::sleep(length).await,
            Until::Answered(count) => {
                while tally.total.get() < count && !connections.iter().all(|connection| connection.is_finished()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        tally.counting.set(false);
        let seconds = began.elapsed().as_secs_f64();
        let (server_after, own_after) = (Usage::of(pid), Usage::of(std::process::id()));
        tally.stopping.set(true);
        for connection in connections {
            connection.await.map_err(|error| error.to_string())??;
        }
        Ok(Outcome {
            answered: tally.answered.get(),
            refused: tally.refused.get(),
            seconds,
            latency: tally.latency.borrow().clone(),
            cpu_seconds: server_after.cpu_seconds - server.cpu_seconds,
            own_cpu_seconds: own_after.cpu_seconds - own.cpu_seconds,
            written_bytes: server_after.written_bytes - server.written_bytes,
        })
    })
}

async fn post_all(address: SocketAddr, mut work: Work, tally: Rc<Tally>) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let mut connection = Connection::new(stream);
    let mut body = Vec::new();
    while !tally.stopping.get() {
        let request = work.next(clock::now().as_seconds());
        let sent_at = Instant::now();
        let answer = connection
            .exchange(request, &mut body)
            .await
            .map_err(|fault| format!("{address} gave no answer: {fault:?}"))?;
        tally.total.set(tally.total.get() + 1);
        if answer.status != 200 {
            tally.refused.set(tally.refused.get() + 1);
        }
        if tally.counting.get() {
            tally.answered.set(tally.answered.get() + 1);
            tally.latency.borrow_mut().record(sent_at.elapsed());
        }
        if !answer.keep_alive {
            return Err(format!("{address} closed a connection after status {}", answer.status));
        }
    }
    Ok(())
}
