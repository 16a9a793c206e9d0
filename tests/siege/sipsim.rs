//! A SIPSIM at a steady rate beside an attack: every event once, signed, distinct, on connections that it keeps and on fresh ones.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::{Client, PATH, SECRET, Sent, now, oracle, sign, stall};

/// SIPSIM's patience (PROTOCOL §2), for an event from before its connection to its answer.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// Events a second, all clients together.
const RATE: u32 = 100;
/// Clients that keep their connections, as a load balancer's pool does, and clients that make one for each event.
const KEPT: usize = 6;
const FRESH: usize = 4;

pub type Connect = Arc<dyn Fn() -> io::Result<Client> + Send + Sync>;

/// Posts until it is stopped.
pub struct Sipsim {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

/// What came of it.
pub struct Result {
    pub kept: Vec<Sent>,
    pub fresh: Vec<Sent>,
}

impl Sipsim {
    /// Bodies are told apart from those of other rounds by their clients' numbers, and have `padding` bytes more than the oracle's own.
    pub fn start(connect: &Connect, round: usize, padding: usize) -> Self {
        stall::watch();
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let clients = (0..KEPT + FRESH)
            .map(|client| {
                let (stop, connect) = (Arc::clone(&stop), Arc::clone(connect));
                thread::spawn(move || {
                    let mut connection = None;
                    let mut all = Vec::new();
                    for number in 0.. {
                        let turn = u32::try_from(number * (KEPT + FRESH) + client).expect("not so many");
                        let due = begin + Duration::from_secs(1) * turn / RATE;
                        thread::sleep(due.saturating_duration_since(Instant::now()));
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let mut body = oracle::body(100 * round + client, number);
                        if padding > 0 {
                            body.insert_str(1, &format!(r#""padding":"{}","#, "x".repeat(padding)));
                        }
                        all.push(post(&mut connection, &connect, body));
                        if client >= KEPT {
                            connection = None;
                        }
                    }
                    all
                })
            })
            .collect();
        Self { stop, clients }
    }

    pub fn stop(mut self) -> Result {
        self.stop.store(true, Ordering::Relaxed);
        let mut all =
            std::mem::take(&mut self.clients).into_iter().map(|client| client.join().expect("a client does not panic"));
        let kept = all.by_ref().take(KEPT).flatten().collect();
        Result { kept, fresh: all.flatten().collect() }
    }
}

impl Drop for Sipsim {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn post(connection: &mut Option<Client>, connect: &Connect, body: String) -> Sent {
    let timestamp = now().to_string();
    let signature = sign(SECRET, &timestamp, body.as_bytes());
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    let start = Instant::now();
    let open = connection.take().map_or_else(|| connect(), Ok);
    let answer = open.and_then(|mut client| {
        let answer = client.request("POST", PATH, &headers, body.as_bytes())?;
        if answer.header("connection") != Some("close") {
            *connection = Some(client);
        }
        Ok(answer)
    });
    let (status, id) = match &answer {
        Ok(answer) if answer.status == 200 => (Some(200), answer.json()["id"].as_str().map(str::to_owned)),
        Ok(answer) => (Some(answer.status), None),
        Err(error) => {
            eprintln!("no answer after {:?}: {error}", start.elapsed());
            (None, None)
        }
    };
    let stalled = status == Some(503) && stall::was_stalled(start, Instant::now());
    Sent { body, status, id, latency: start.elapsed(), stalled }
}
