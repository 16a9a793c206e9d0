//! The bare clients: rdkafka and lapin sending the very records that the relay makes of a journal, to the same topics, with the same promise
//! (acks=all from an idempotent producer; persistent messages, mandatory, confirmed), and nothing else. The records are made before the clock
//! starts.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use sipsim_relay::config::{Mode, Routes};
use sipsim_relay::journal::{Read, Reader};
use sipsim_relay::publish::Record;
use sipsim_relay::publish::encode::Encoder;
use sipsim_relay::publish::routes::Router;

use crate::process::Usage;

/// Unconfirmed messages, as many as one of the relay's lanes may have: lapin alone is no faster with more.
const UNCONFIRMED_MAX: usize = 5_000;

/// Every event of a journal as the relay would send it.
fn records(journal: &Path, template: &str) -> Result<Vec<Record>, String> {
    let encoder = Encoder {
        mode: Mode::Structured,
        source: "/sipsim/{account}".into(),
        relay: "bench".into(),
        // As long as a real one.
        journal_id: "0123456789abcdef".into(),
    };
    let mut router = Router::new(Routes { template: template.into(), by_event: Default::default() });
    let mut reader = Reader::new(journal);
    let (mut records, mut after) = (Vec::new(), 0);
    loop {
        let reads = reader.events(after, u64::MAX, 1_000, 8 << 20).map_err(|error| error.to_string())?;
        let Some(last) = reads.last() else { return Ok(records) };
        after = last.sequence();
        for read in reads {
            if let Read::Event(stored) = read {
                let lane = router.route(&stored.event.account, &stored.event.name);
                records.push(encoder.record(lane, &stored, false));
            }
        }
    }
}

/// Prints how many, seconds and CPU seconds.
fn tell(count: usize, began: Instant, before: Usage) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} {seconds} {}", Usage::of(std::process::id()).cpu_seconds - before.cpu_seconds);
}

#[derive(Clone, Default)]
struct Delivered {
    good: Arc<AtomicU64>,
    bad: Arc<AtomicU64>,
}

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.good } else { &self.bad };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

pub fn kafka(brokers: &str, journal: &Path) -> Result<(), String> {
    let records = records(journal, "sipsim.{event}")?;
    let delivered = Delivered::default();
    let producer: BaseProducer<Delivered> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .create_with_context(delivered.clone())
        .map_err(|error| error.to_string())?;
    // Connecting is not what is measured.
    let topics: Vec<_> = records
        .iter()
        .map(|record| Arc::clone(&record.lane))
        .collect::<std::collections::HashSet<_>>()
        .into_iter()
        .collect();
    for topic in topics {
        producer.client().fetch_metadata(Some(&topic), Duration::from_secs(10)).map_err(|error| error.to_string())?;
    }
    let (began, before) = (Instant::now(), Usage::of(std::process::id()));
    for record in &records {
        let mut message = kafka_message(record);
        while let Err((error, unsent)) = producer.send(message) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                return Err(error.to_string());
            }
            producer.poll(Duration::from_millis(1));
            message = unsent;
        }
        producer.poll(Duration::ZERO);
    }
    while delivered.good.load(Ordering::Relaxed) + delivered.bad.load(Ordering::Relaxed) < records.len() as u64 {
        producer.poll(Duration::from_millis(1));
    }
    tell(records.len(), began, before);
    match delivered.bad.load(Ordering::Relaxed) {
        0 => Ok(()),
        bad => Err(format!("Kafka did not take {bad} records")),
    }
}

fn kafka_message(record: &Record) -> BaseRecord<'_, String, Vec<u8>> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len() + 1)
        .insert(Header { key: "content-type", value: Some(record.content_type) });
    for (key, value) in record.headers.iter() {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    BaseRecord::to(&record.lane).key(&record.key).payload(&record.payload).headers(headers)
}

pub fn rabbitmq(url: &str, journal: &Path) -> Result<(), String> {
    let records = records(journal, "sipsim.{group}.{event}")?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime.block_on(publish(url, &records)).map_err(|error| error.to_string())
}

/// A channel for each routing key, as the relay has, since each is a process of its own in the broker.
async fn publish(url: &str, records: &[Record]) -> lapin::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let mut channels: HashMap<&str, (Channel, ShortString)> = HashMap::new();
    for record in records {
        if !channels.contains_key(&*record.lane) {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            channels.insert(&record.lane, (channel, (&*record.lane).into()));
        }
    }
    let (began, before) = (Instant::now(), Usage::of(std::process::id()));
    let mut unconfirmed = VecDeque::with_capacity(UNCONFIRMED_MAX);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    for record in records {
        if unconfirmed.len() == UNCONFIRMED_MAX
            && let Some(oldest) = unconfirmed.pop_front()
        {
            confirmed(oldest).await?;
        }
        let Some((channel, key)) = channels.get(&*record.lane) else { continue };
        let properties = amqp_properties(record);
        unconfirmed.push_back(
            channel.basic_publish("sipsim".into(), key.clone(), options, &record.payload, properties).await?,
        );
    }
    for oldest in unconfirmed {
        confirmed(oldest).await?;
    }
    tell(records.len(), began, before);
    Ok(())
}

async fn confirmed(confirm: impl Future<Output = lapin::Result<Confirmation>>) -> lapin::Result<()> {
    let confirmation = confirm.await?;
    if !confirmation.is_ack() || confirmation.take_message().is_some() {
        eprintln!("RabbitMQ did not take a message of the bare client");
        std::process::exit(1);
    }
    Ok(())
}

fn amqp_properties(record: &Record) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in record.headers.iter() {
        headers.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
    }
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_app_id("sipsim-relay".into())
        .with_timestamp(u64::try_from(record.received_at.as_seconds()).unwrap_or(0))
        .with_content_type(record.content_type.into())
        .with_message_id(record.id.as_str().into())
        .with_type(record.event_type.as_str().into())
        .with_headers(headers)
}

/// Empties the queues, so that no run finds the broker fuller than the one before it.
pub fn purge(url: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    runtime
        .block_on(async {
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            for group in crate::work::GROUPS {
                channel.queue_purge(format!("sipsim.{group}").into(), Default::default()).await?;
            }
            Ok(())
        })
        .map_err(|error: lapin::Error| error.to_string())
}
