//! What is at the brokers: how many messages since a mark, and which.

use std::collections::{HashMap, HashSet};
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_core::Stream;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::{Connection, ConnectionProperties};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use crate::Brokers;
use crate::work::GROUPS;

/// After so long without a message whatever is still missing counts as lost.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Broker {
    Kafka,
    Rabbitmq,
}

/// Where a broker stood: the end of each partition. RabbitMQ's queues are emptied instead.
pub struct Mark(HashMap<(String, i32), i64>);

impl Broker {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::Rabbitmq => "rabbitmq",
        }
    }

    pub fn mark(self, brokers: &Brokers) -> Result<Mark, String> {
        match self {
            Self::Kafka => Ok(Mark(ends(&consumer(&brokers.kafka)?)?)),
            Self::Rabbitmq => crate::clients::purge(&brokers.rabbitmq).map(|()| Mark(HashMap::new())),
        }
    }

    /// Waits until `count` messages have come since the mark.
    pub fn wait_for(self, brokers: &Brokers, mark: &Mark, count: u64) -> Result<(), String> {
        let kafka = consumer(&brokers.kafka)?;
        let runtime = runtime()?;
        let (mut most, mut changed) = (0, Instant::now());
        loop {
            let there = match self {
                Self::Kafka => ends(&kafka)?.iter().map(|(key, end)| end - mark.0.get(key).unwrap_or(&0)).sum(),
                Self::Rabbitmq => runtime.block_on(waiting(&brokers.rabbitmq)).map_err(|error| error.to_string())?,
            };
            if there as u64 >= count {
                return Ok(());
            }
            if there > most {
                (most, changed) = (there, Instant::now());
            }
            if changed.elapsed() > SILENCE {
                return Err(format!("{there} of {count} messages are in {} and no more come", self.name()));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// How often each `call_id` came since the mark; reads on until all that are wanted are there, or none came for [`SILENCE`].
    pub fn calls(
        self,
        brokers: &Brokers,
        mark: &Mark,
        wanted: &HashSet<&str>,
    ) -> Result<HashMap<String, usize>, String> {
        match self {
            Self::Kafka => read_kafka(&brokers.kafka, mark, wanted),
            Self::Rabbitmq => {
                runtime()?.block_on(read_rabbitmq(&brokers.rabbitmq, wanted)).map_err(|error| error.to_string())
            }
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Runtime::new().map_err(|error| error.to_string())
}

/// What has come so far.
struct Arrivals<'a> {
    calls: HashMap<String, usize>,
    missing: HashSet<&'a str>,
    last: Instant,
}

impl<'a> Arrivals<'a> {
    fn new(wanted: &HashSet<&'a str>) -> Self {
        Self { calls: HashMap::new(), missing: wanted.clone(), last: Instant::now() }
    }

    fn note(&mut self, payload: &[u8]) {
        const FIELD: &[u8] = b"\"call_id\":\"";
        let Some(place) = payload.windows(FIELD.len()).position(|window| window == FIELD) else { return };
        let value = payload[place + FIELD.len()..].split(|byte| *byte == b'"').next().unwrap_or_default();
        let call = String::from_utf8_lossy(value).into_owned();
        self.missing.remove(call.as_str());
        *self.calls.entry(call).or_default() += 1;
        self.last = Instant::now();
    }

    fn is_over(&self) -> bool {
        self.missing.is_empty() || self.last.elapsed() > SILENCE
    }
}

fn consumer(brokers: &str) -> Result<BaseConsumer, String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "bench").set("enable.auto.commit", "false");
    config.create().map_err(|error| error.to_string())
}

fn ends(consumer: &BaseConsumer) -> Result<HashMap<(String, i32), i64>, String> {
    let patience = Duration::from_secs(10);
    let cluster = consumer.fetch_metadata(None, patience).map_err(|error| error.to_string())?;
    let mut ends = HashMap::new();
    for topic in cluster.topics().iter().filter(|topic| topic.name().starts_with("sipsim.")) {
        for partition in topic.partitions() {
            let (_, end) =
                consumer.fetch_watermarks(topic.name(), partition.id(), patience).map_err(|error| error.to_string())?;
            ends.insert((topic.name().to_owned(), partition.id()), end);
        }
    }
    Ok(ends)
}

fn read_kafka(brokers: &str, mark: &Mark, wanted: &HashSet<&str>) -> Result<HashMap<String, usize>, String> {
    let consumer = consumer(brokers)?;
    let mut from = TopicPartitionList::new();
    for ((topic, partition), offset) in &mark.0 {
        from.add_partition_offset(topic, *partition, Offset::Offset(*offset)).map_err(|error| error.to_string())?;
    }
    consumer.assign(&from).map_err(|error| error.to_string())?;
    let mut arrivals = Arrivals::new(wanted);
    while !arrivals.is_over() {
        // An error of a connection heals by itself, or ends as silence.
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            arrivals.note(message.payload().unwrap_or_default());
        }
    }
    // What came twice may lie behind what was waited for.
    while let Some(Ok(message)) = consumer.poll(Duration::from_secs(1)) {
        arrivals.note(message.payload().unwrap_or_default());
    }
    Ok(arrivals.calls)
}

async fn waiting(url: &str) -> lapin::Result<i64> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut count = 0;
    for group in GROUPS {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(format!("sipsim.{group}").into(), passive, Default::default()).await?;
        count += i64::from(queue.message_count());
    }
    Ok(count)
}

async fn read_rabbitmq(url: &str, wanted: &HashSet<&str>) -> lapin::Result<HashMap<String, usize>> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut consumers = Vec::new();
    for group in GROUPS {
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let name = format!("bench-{group}");
        consumers.push(
            channel.basic_consume(format!("sipsim.{group}").into(), name.into(), options, Default::default()).await?,
        );
    }
    let mut arrivals = Arrivals::new(wanted);
    // As above: a second more for what came twice.
    let mut over_since = None;
    while over_since.is_none_or(|since: Instant| since.elapsed() < Duration::from_secs(1)) {
        for consumer in &mut consumers {
            while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(20), next_of(consumer)).await {
                arrivals.note(&delivery?.data);
            }
        }
        if arrivals.is_over() && over_since.is_none() {
            over_since = Some(Instant::now());
        }
    }
    let _ = connection.close(0, "read".into()).await;
    Ok(arrivals.calls)
}

/// The next message of a queue; pends while there is none.
async fn next_of(consumer: &mut lapin::Consumer) -> Option<lapin::Result<lapin::message::Delivery>> {
    std::future::poll_fn(|cx| Pin::new(&mut *consumer).poll_next(cx)).await
}
