//! A sink at a real broker, an operator who does things to that broker, and an output that sends as the relay's does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use sipsim_relay::clock::Timestamp;
use sipsim_relay::config::{OutputName, RabbitMq as Settings, Routes};
use sipsim_relay::publish::rabbitmq::RabbitMq;
use sipsim_relay::publish::{PublishError, Record, Report, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::whole;

/// Longer than anything here takes; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn settings(url: &str, exchange: &str) -> Settings {
    Settings {
        instance: "test".into(),
        urls: vec![url.to_owned()],
        username: None,
        password: Default::default(),
        ca_file: None,
        certificate_file: None,
        private_key_file: None,
        exchange: exchange.to_owned(),
        routing_keys: Routes { template: String::new(), by_event: BTreeMap::new() },
        declare: true,
        management_url: None,
    }
}

pub fn sink(settings: Settings) -> (RabbitMq, UnboundedReceiver<Report>) {
    let (reports, said) = unbounded_channel();
    (RabbitMq::new(OutputName::new("rabbit").unwrap(), settings, reports), said)
}

pub fn record(lane: &str, sequence: u64, size: usize) -> Record {
    let mut record = Record {
        sequence,
        lane: lane.into(),
        key: "call_1".into(),
        content_type: "application/cloudevents+json; charset=UTF-8",
        id: format!("id-{sequence}").as_str().try_into().unwrap(),
        event_type: "com.sipsim.test".into(),
        received_at: Timestamp::from_seconds(1_736_937_001),
        payload: format!(r#"{{"relaysequence":"{sequence:020}","data":"{}"}}"#, "x".repeat(size)).into_bytes(),
        ..Record::default()
    };
    record.headers.push("x-webhook-signature", "abc");
    record.headers.push("x-webhook-timestamp", "1736937000");
    record
}

/// A sink, and what an operator does to its broker.
pub struct Bench {
    /// Kept, as its end would end the channel.
    _connection: Connection,
    pub admin: Channel,
    pub exchange: String,
    pub sink: RabbitMq,
    pub reports: UnboundedReceiver<Report>,
    /// How far [`Self::deliver`] has come, for whoever does things to the broker meanwhile.
    pub told: watch::Sender<Told>,
}

/// Reports so far.
#[derive(Clone, Copy, Default)]
pub struct Told {
    pub delivered: u64,
    pub failed: u64,
}

impl Bench {
    /// With a queue of the exchange's name.
    pub async fn new(exchange: &str, sink_url: &str, url: &str, queue: FieldTable) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let admin = connection.create_channel().await.unwrap();
        admin.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        admin.queue_delete(exchange.into(), QueueDeleteOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        admin.queue_declare(exchange.into(), options, queue).await.unwrap();
        let (sink, said) = sink(settings(sink_url, exchange));
        let mut bench = Self {
            _connection: connection,
            admin,
            exchange: exchange.to_owned(),
            sink,
            reports: said,
            told: watch::Sender::default(),
        };
        // It declared the exchange, which did not exist.
        assert!(matches!(bench.next().await, Report::Connected));
        bench
    }

    /// The same queue over another connection, with a sink that is left alone.
    pub async fn again(self, url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let admin = connection.create_channel().await.unwrap();
        Self { _connection: connection, admin, ..self }
    }

    pub async fn bind(&self, key: &str) {
        let (queue, exchange) = (self.exchange.as_str().into(), self.exchange.as_str().into());
        self.admin
            .queue_bind(queue, exchange, key.into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    pub async fn next(&mut self) -> Report {
        timeout(PATIENCE, self.reports.recv()).await.expect("no report came").unwrap()
    }

    /// The verdicts of `count` records, by sequence; a second one for the same record is a failure.
    pub async fn verdicts(&mut self, count: usize) -> BTreeMap<u64, Result<(), PublishError>> {
        let mut verdicts = BTreeMap::new();
        while verdicts.len() < count {
            let (sequence, verdict) = match self.next().await {
                Report::Delivered { sequence, .. } => (sequence, Ok(())),
                Report::Failed { sequence, error } => (sequence, Err(error)),
                other => panic!("not a verdict: {other:?}"),
            };
            assert_eq!(verdicts.insert(sequence, verdict), None, "record {sequence} was reported twice");
        }
        verdicts
    }

    /// Takes out what is in the queue: the sequences, in its order.
    pub async fn received(&self) -> Vec<u64> {
        let queue = self.exchange.as_str();
        let asked = QueueDeclareOptions { passive: true, ..Default::default() };
        let told = self.admin.queue_declare(queue.into(), asked, FieldTable::default()).await.unwrap();
        let taken = whole::take(&self.admin, &[queue.to_owned()], told.message_count() as usize).await;
        let sequence = |payload: &str| {
            let envelope: serde_json::Value = serde_json::from_str(payload).unwrap();
            envelope["relaysequence"].as_str().unwrap().parse().unwrap()
        };
        taken.iter().map(|arrived| sequence(&arrived.payload)).collect()
    }

    pub async fn tidy(self) {
        self.admin.exchange_delete(self.exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        self.admin.queue_delete(self.exchange.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Sends 1 to `count` on one lane, through whatever happens to the broker. Gives what the sink said was delivered, in that order.
    pub async fn deliver(&mut self, lane: &str, count: u64) -> Vec<u64> {
        let mut output = Output::new(lane);
        output.pending = (1..=count).collect();
        while !output.is_done() {
            output.send(&mut self.sink);
            let report = self.next().await;
            self.told.send_modify(|told| match report {
                Report::Delivered { .. } => told.delivered += 1,
                Report::Failed { .. } => told.failed += 1,
                _ => {}
            });
            output.hear(report);
        }
        output.delivered
    }
}

/// Sends as an output does: many at a time; after a failure nothing more until all are reported, then again from the oldest that is not delivered.
pub struct Output {
    lane: String,
    pub pending: BTreeSet<u64>,
    open: BTreeSet<u64>,
    held: bool,
    pub delivered: Vec<u64>,
}

impl Output {
    pub fn new(lane: &str) -> Self {
        Self { lane: lane.into(), pending: BTreeSet::new(), open: BTreeSet::new(), held: false, delivered: Vec::new() }
    }

    pub fn is_done(&self) -> bool {
        self.pending.is_empty() && self.open.is_empty()
    }

    pub fn send(&mut self, sink: &mut RabbitMq) {
        self.held &= !self.open.is_empty();
        while !self.held && self.open.len() < 1_000 {
            let Some(sequence) = self.pending.pop_first() else { break };
            self.open.insert(sequence);
            sink.send(&mut record(&self.lane, sequence, 100));
        }
    }

    /// Gives back what is not about a record.
    pub fn hear(&mut self, report: Report) -> Option<Report> {
        match report {
            Report::Delivered { sequence, .. } => {
                assert!(self.open.remove(&sequence), "{sequence} was reported twice");
                self.delivered.push(sequence);
            }
            Report::Failed { sequence, .. } => {
                assert!(self.open.remove(&sequence), "{sequence} was reported twice");
                self.pending.insert(sequence);
                self.held = true;
            }
            other => return Some(other),
        }
        None
    }
}

/// Each record first came behind those before it.
pub fn in_order_of_first_arrival(received: &[u64]) -> bool {
    let mut newest = 0;
    received.iter().all(|sequence| {
        let follows = *sequence <= newest + 1;
        newest = newest.max(*sequence);
        follows
    })
}
