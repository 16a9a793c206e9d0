//! A SIPSIM at a steady rate that sends every event once, and remembers what came of it and when.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Client, PATH, SECRET, Sent, now, oracle, sign, stall};

/// SIPSIM's patience (PROTOCOL §2).
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections, each with at most one request under way.
const CLIENTS: usize = 30;

pub struct Once {
    pub sent: Sent,
    pub start: Instant,
    /// Which relay the balancer sent it to, as its answer says.
    pub server: Option<String>,
}

pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    secret: Arc<Mutex<String>>,
    clients: Vec<JoinHandle<Vec<Once>>>,
}

impl Load {
    /// So many events a second, all clients together, spread evenly.
    pub fn start(address: SocketAddr, rate: u32) -> Self {
        stall::watch();
        let stop = Arc::new(AtomicBool::new(false));
        let secret = Arc::new(Mutex::new(SECRET.to_owned()));
        let sent = Arc::new(AtomicU64::new(0));
        let begin = Instant::now();
        let clients = (0..CLIENTS)
            .map(|client| {
                let (stop, secret, sent) = (stop.clone(), secret.clone(), sent.clone());
                thread::spawn(move || {
                    let mut connection = None;
                    let mut all = Vec::new();
                    for number in 0.. {
                        let turn = u32::try_from(number * CLIENTS + client).expect("not so many");
                        let due = begin + Duration::from_secs(1) * turn / rate;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let secret = secret.lock().expect("nobody panics with it").clone();
                        all.push(post(&mut connection, address, &secret, oracle::body(client, number)));
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    all
                })
            })
            .collect();
        Self { stop, sent, secret, clients }
    }

    /// From now on it signs with this one.
    pub fn rotate(&self, secret: &str) {
        *self.secret.lock().expect("nobody panics with it") = secret.to_owned();
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Each client's in its order, one client after another.
    pub fn stop(self) -> Vec<Once> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    }
}

fn post(connection: &mut Option<Client>, address: SocketAddr, secret: &str, body: String) -> Once {
    let timestamp = now().to_string();
    let signature = sign(secret, &timestamp, body.as_bytes());
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    let start = Instant::now();
    let open = connection.take().map_or_else(|| Client::connect_with(address, TIMEOUT), Ok);
    let answer = open.and_then(|mut client| {
        let answer = client.request("POST", PATH, &headers, body.as_bytes())?;
        if answer.header("connection") != Some("close") {
            *connection = Some(client);
        }
        Ok(answer)
    });
    let server = answer.as_ref().ok().and_then(|answer| answer.header("x-server").map(str::to_owned));
    let (status, id) = match answer {
        Ok(answer) if answer.status == 200 => (Some(200), answer.json()["id"].as_str().map(str::to_owned)),
        Ok(answer) => (Some(answer.status), None),
        Err(_) => (None, None),
    };
    let stalled = status == Some(503) && stall::was_stalled(start, Instant::now());
    Once { sent: Sent { body, status, id, latency: start.elapsed(), stalled }, start, server }
}
