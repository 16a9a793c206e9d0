//! The load: some connections, each with one request under way, on one thread. Lighter than `sipsim-relay simulate`, which keeps a timer for
//! each request: what is measured is a server, on the same processors.
//!
//! Either as fast as answered ([`run`]), or so many a second whatever the server does ([`offer`]): then a latency counts from the moment at
//! which the request was due, so that a server that stands still is charged for all that would have come meanwhile.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use sipsim_relay::clock;
use sipsim_relay::simulate::Histogram;
use sipsim_relay::simulate::http::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pace::{Pace, Pacer};
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
    /// Answers other than 200, and requests that could not be sent in time; in the warm-up too.
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

impl Tally {
    fn note(&self, latency: Duration) {
        self.answered.set(self.answered.get() + 1);
        self.latency.borrow_mut().record(latency);
    }
}

/// Loads the server at `address`, which is the process `pid`, as fast as it answers.
///
/// # Errors
/// A connection was refused or broke: nothing under test may do that.
pub fn run(address: SocketAddr, pid: u32, load: Load) -> Result<Outcome, String> {
    run_by(address, pid, load, None, None)
}

/// The same over TLS.
pub fn run_tls(address: SocketAddr, pid: u32, load: Load, tls: TlsConnector) -> Result<Outcome, String> {
    run_by(address, pid, load, None, Some(tls))
}

/// So many requests a second, whatever the server does.
pub fn offer(address: SocketAddr, pid: u32, load: Load, per_second: f64) -> Result<Outcome, String> {
    run_by(address, pid, load, Some(per_second), None)
}

fn run_by(
    address: SocketAddr,
    pid: u32,
    load: Load,
    per_second: Option<f64>,
    tls: Option<TlsConnector>,
) -> Result<Outcome, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let tally = Rc::new(Tally::default());
        let pacer = per_second.map(Pacer::start);
        // Distinct between loads too: one relay may get several.
        let maker = clock::now().as_micros() as u64 & 0xffff_ff00;
        let connections: Vec<_> = (0..load.connections as u64)
            .map(|number| {
                let sender = Sender {
                    address,
                    tls: tls.clone(),
                    work: Work::new(maker + number, load.body_bytes),
                    tally: Rc::clone(&tally),
                    pace: pacer.as_ref().map(Pacer::pace),
                };
                tokio::task::spawn_local(sender.post_all())
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
        let seconds = began.elapsed().as_secs_f64();
        let (server_after, own_after) = (Usage::of(pid), Usage::of(std::process::id()));
        match pacer {
            // What was due is sent and counted, however late: to leave it out would be to leave the worst out.
            Some(pacer) => tally.refused.set(tally.refused.get() + pacer.finish().await),
            None => tally.counting.set(false),
        }
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

/// One connection's.
struct Sender {
    address: SocketAddr,
    tls: Option<TlsConnector>,
    work: Work,
    tally: Rc<Tally>,
    pace: Option<Arc<Pace>>,
}

impl Sender {
    async fn post_all(mut self) -> Result<(), String> {
        let address = self.address;
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match self.tls.take() {
            None => self.post_over(Connection::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
                let stream = tls.connect(name, stream).await.map_err(|error| format!("no TLS: {error}"))?;
                self.post_over(Connection::new(stream)).await
            }
        }
    }

    async fn post_over<S: AsyncRead + AsyncWrite + Unpin>(
        mut self,
        mut connection: Connection<S>,
    ) -> Result<(), String> {
        let (address, tally) = (self.address, self.tally);
        let mut body = Vec::new();
        while !tally.stopping.get() {
            let since = match &self.pace {
                None => Instant::now(),
                Some(pace) => match pace.next().await {
                    Some(due) => due,
                    None => break,
                },
            };
            let counts = tally.counting.get();
            let answer = connection
                .exchange(self.work.next(clock::now().as_seconds()), &mut body)
                .await
                .map_err(|fault| format!("{address} gave no answer: {fault:?}"))?;
            tally.total.set(tally.total.get() + 1);
            if answer.status != 200 {
                tally.refused.set(tally.refused.get() + 1);
            }
            // At a fixed rate those of the warm-up are told by when they began, else by when they ended, since there is always one under way.
            if tally.counting.get() && (counts || self.pace.is_none()) {
                tally.note(since.elapsed());
            }
            if !answer.keep_alive {
                return Err(format!("{address} closed a connection after status {}", answer.status));
            }
        }
        Ok(())
    }
}
