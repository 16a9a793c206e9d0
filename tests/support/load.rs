//! A SIPSIM under load that remembers what it was told: the oracle outside the process under test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Client, PATH, Relay, SECRET, now, sign, stall};

/// One webhook that was sent, and what came back.
#[derive(Clone, Debug)]
pub struct Sent {
    pub body: String,
    /// `None`: no answer, because nobody listened or the connection broke. Whether it was kept nobody knows then.
    pub status: Option<u16>,
    /// The answer's `id`, for a 200.
    pub id: Option<String>,
    /// From before connecting, where that was needed, to the answer's last byte.
    pub latency: Duration,
    /// It was refused while the disk stood still; see [`stall`].
    pub stalled: bool,
}

impl Sent {
    pub fn is_accepted(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }
}

/// Clients that post until they are stopped, each on a connection of its own, made anew whenever it breaks.
pub struct Load {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

impl Load {
    /// `body(client, number)` makes each body; they must all differ, or the oracle cannot tell them apart. It may wait, to set the pace.
    pub fn start(
        relay: &Relay,
        clients: usize,
        body: impl Fn(usize, usize) -> String + Clone + Send + 'static,
    ) -> Self {
        stall::watch();
        let stop = Arc::new(AtomicBool::new(false));
        let (accepted, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let clients = (0..clients)
            .map(|client| {
                let (body, stop, address) = (body.clone(), stop.clone(), relay.ingress);
                let counts = (accepted.clone(), answered.clone());
                thread::spawn(move || run(address, &stop, (&counts.0, &counts.1), |number| body(client, number)))
            })
            .collect();
        Self { stop, accepted, answered, clients }
    }

    /// How many were answered 2xx so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many had an answer so far, whatever it was.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// No client begins another request.
    pub fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Lets every client finish its request, and returns all that were sent: each client's in its order, one client after another.
    pub fn stop(self) -> Vec<Sent> {
        self.end();
        self.clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

fn run(
    address: SocketAddr,
    stop: &AtomicBool,
    (accepted, answered): (&AtomicU64, &AtomicU64),
    body: impl Fn(usize) -> String,
) -> Vec<Sent> {
    let mut connection: Option<Client> = None;
    let mut sent = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let body = body(number);
        let timestamp = now().to_string();
        let signature = sign(SECRET, &timestamp, body.as_bytes());
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        let start = Instant::now();
        let answer = match connection.take() {
            Some(open) => Ok(open),
            None => Client::connect(address),
        }
        .and_then(|mut client| {
            let answer = client.request("POST", PATH, &headers, body.as_bytes())?;
            if answer.header("connection") != Some("close") {
                connection = Some(client);
            }
            Ok(answer)
        });
        let latency = start.elapsed();
        let (status, id) = match answer {
            Ok(answer) if answer.status == 200 => (Some(200), answer.json()["id"].as_str().map(str::to_owned)),
            Ok(answer) => (Some(answer.status), None),
            Err(_) => (None, None),
        };
        if status.is_none() {
            thread::sleep(Duration::from_millis(5)); // Nobody is there: no reason to ask thousands of times a second.
        }
        let stalled = status == Some(503) && stall::was_stalled(start, Instant::now());
        let one = Sent { body, status, id, latency, stalled };
        if one.is_accepted() {
            accepted.fetch_add(1, Ordering::Relaxed);
        }
        answered.fetch_add(u64::from(one.status.is_some()), Ordering::Relaxed);
        sent.push(one);
    }
    sent
}
