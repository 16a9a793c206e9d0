//! The public port on a real socket, before a journal that answers as it is told.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Ingress, Keep, Rooms, Serving};
use crate::authenticate::Accounts;
use crate::clock;
use crate::config::{self, Config, Name};
use crate::journal::{AppendError, Receipt};
use crate::metrics::Metrics;
use crate::normalize::{Event, EventId};
use crate::secret::Secret;

mod limits;
mod requests;
mod stop;
mod tls;

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const SECRET: &str = "a-secret-of-these-tests";
const PATH: &str = "/webhooks/sipsim";

/// A journal that answers as it is told.
#[derive(Clone)]
struct Scripted {
    answer: Arc<watch::Sender<Script>>,
    bodies: Arc<Mutex<Vec<Vec<u8>>>>,
    waiting: Arc<watch::Sender<usize>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Script {
    Keep,
    Duplicate,
    Refuse(AppendError),
    /// Until told otherwise.
    Wait,
}

impl Scripted {
    fn new() -> Self {
        Self {
            answer: Arc::new(watch::channel(Script::Keep).0),
            bodies: Arc::default(),
            waiting: Arc::new(watch::channel(0).0),
        }
    }

    fn will(&self, script: Script) {
        self.answer.send_replace(script);
    }

    /// Returns once so many events have been brought here in all.
    async fn received(&self, count: usize) {
        let received = self.waiting.subscribe().wait_for(|waiting| *waiting >= count).await.map(|_| ());
        received.expect("the sender is in self");
    }
}

impl Keep for Scripted {
    async fn append(&self, event: Box<Event>) -> Result<Receipt, AppendError> {
        self.bodies.lock().unwrap().push(event.body.to_vec());
        self.waiting.send_modify(|waiting| *waiting += 1);
        let told = self.answer.subscribe().wait_for(|script| *script != Script::Wait).await.map(|script| *script);
        let Ok(script) = told else { pending().await };
        // Until here the event's memory counts, as in the real journal.
        drop(event);
        match script {
            Script::Keep | Script::Wait => Ok(Receipt::for_test(EventId([7; 16]), false)),
            Script::Duplicate => Ok(Receipt::for_test(EventId([7; 16]), true)),
            Script::Refuse(error) => Err(error),
        }
    }
}

/// An ingress at work on a free port.
struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    journal: Scripted,
    serving: Serving<Scripted>,
}

/// One account with its secret in the environment, one console output, free ports on loopback.
pub(crate) fn configuration() -> Config {
    let name = |text| Name::new(text).unwrap();
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        instance: "test".into(),
        ingress: config::Ingress {
            listen: loopback,
            body_max: 8 << 20,
            headers_max: 16 << 10,
            buffered_max: 64 << 20,
            deadline: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(620),
            connections_max: 100,
            tls: None,
        },
        accounts: vec![config::Account {
            name: name("default"),
            path: PATH.into(),
            secrets: None,
            environment_secret: Some(Secret::new(SECRET.into())),
            tolerance: Duration::from_secs(300),
            journal_max: None,
            keep_refused: 0,
        }],
        events: config::Events::default(),
        envelope: config::Envelope { source: "/sipsim/{account}".into() },
        journal: config::Journal {
            path: "unused".into(),
            size_max: 1 << 30,
            free_min: 0,
            retention: Duration::ZERO,
            trail: Duration::ZERO,
        },
        outputs: vec![config::Output { name: name("console"), kind: config::OutputKind::Console }],
        admin: config::Admin { listen: loopback, hosts: Vec::new() },
        shutdown: config::Shutdown { delay: Duration::ZERO, drain: Duration::ZERO },
        log: config::Log { format: config::LogFormat::Text, level: tracing::Level::INFO },
    }
}

async fn start(change: impl FnOnce(&mut config::Ingress)) -> Running {
    let mut config = configuration();
    change(&mut config.ingress);
    let metrics = Metrics::new(&config);
    let journal = Scripted::new();
    let accounts = Accounts::open(&config, Arc::clone(&metrics)).expect("the environment gives its secret");
    let rooms = Rooms { accounts: Arc::new(accounts), extra: Vec::new(), journal: journal.clone() };
    let ingress = Ingress::bind(&config.ingress, rooms, &metrics).await.expect("a free port");
    Running { address: ingress.address(), metrics, journal, serving: ingress.serve() }
}

impl Running {
    async fn connect(&self) -> Peer<TcpStream> {
        Peer::new(TcpStream::connect(self.address).await.expect("the port listens"))
    }

    fn outcome(&self, outcome: &str) -> u64 {
        self.metrics.ingress.webhooks.with_label_values(&["default", outcome]).get()
    }

    fn unavailable(&self, reason: &str) -> u64 {
        self.metrics.ingress.unavailable.with_label_values(&[reason]).get()
    }

    fn http_refused(&self, reason: &str) -> u64 {
        self.metrics.ingress.http_refused.with_label_values(&[reason]).get()
    }

    /// Returns once so many connections are open.
    async fn connections(&self, count: i64) {
        wait_for("the number of connections", || self.metrics.ingress.connections.get() == count).await;
    }
}

/// Looks until it is so. For what nobody tells of.
async fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let looking = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// The other end of a connection.
struct Peer<S> {
    stream: S,
    unread: Vec<u8>,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (header, value) = line.split_once(':')?;
            header.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn is_last(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    fn new(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.expect("the relay reads").expect("it is open");
        self.stream.flush().await.expect("it is open");
    }

    async fn answer(&mut self) -> Answer {
        timeout(PATIENCE, self.next_answer()).await.expect("an answer comes").expect("an answer, not the end")
    }

    /// `None`: the connection ended before a whole answer came.
    async fn next_answer(&mut self) -> Option<Answer> {
        let head_end = loop {
            match self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(at) => break at,
                None => self.read_more().await?,
            }
        };
        let head = String::from_utf8(self.unread.drain(..head_end + 4).collect()).expect("a head is text");
        let status = head.get(9..12).and_then(|digits| digits.parse().ok()).expect("a status");
        let mut answer = Answer { status, head, body: String::new() };
        let length = answer.header("content-length").map_or(0, |length| length.parse().expect("a length"));
        while self.unread.len() < length {
            self.read_more().await?;
        }
        answer.body = String::from_utf8(self.unread.drain(..length).collect()).expect("a body is text");
        Some(answer)
    }

    async fn read_more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }

    /// What still comes until the relay closes.
    async fn rest(&mut self) -> Vec<u8> {
        let reading = async { while self.read_more().await.is_some() {} };
        timeout(PATIENCE, reading).await.expect("the relay closes");
        std::mem::take(&mut self.unread)
    }
}

fn signature(timestamp: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{timestamp}.").as_bytes());
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// The two headers that prove `body`.
fn proof(body: &[u8]) -> String {
    let timestamp = clock::now().as_seconds();
    format!("X-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {}\r\n", signature(timestamp, body))
}

/// The head of a POST that announces and proves `body`.
fn head_for(body: &[u8]) -> String {
    format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n{}\r\n", body.len(), proof(body))
}

fn post(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [head_for(body).as_bytes(), body].concat()
}
