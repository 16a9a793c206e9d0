//! Reads whole topics and queues quickly, by plain clients that know nothing of the relay: for counting hundreds of thousands.
//! What a message looks like to clients of other makes, [`super::Brokers::read_kafka`] and its sibling show.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_core::Stream;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::oracle::Arrived;

/// How long a reader goes on without anything new.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that `topics` hold now, each partition in its order.
pub fn read_topics(brokers: &str, topics: &[String]) -> Vec<Arrived> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "oracle")
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut ends: BTreeMap<(String, i32), i64> = BTreeMap::new();
    let mut all = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("Kafka answers");
        for partition in metadata.topics()[0].partitions() {
            let (low, high) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE).expect("Kafka answers");
            if high > low {
                ends.insert((topic.clone(), partition.id()), high);
                all.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
            }
        }
    }
    consumer.assign(&all).expect("they exist");
    let mut arrived = Vec::new();
    let mut last = Instant::now();
    while !ends.is_empty() {
        assert!(last.elapsed() < PATIENCE, "Kafka hands nothing over any more; not read to the end: {ends:?}");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let Ok(message) = message else { continue }; // It tries again by itself.
        last = Instant::now();
        let place = (message.topic().to_owned(), message.partition());
        arrived.push(Arrived {
            place: format!("{}/{}", place.0, place.1),
            payload: String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned(),
        });
        if ends.get(&place).is_some_and(|end| message.offset() + 1 >= *end) {
            ends.remove(&place);
        }
    }
    arrived
}

/// Takes everything out of `queues`, each in its order: at least so many messages, and then whatever comes within half a second, so that one too
/// many shows.
pub fn read_queues(url: &str, queues: &[String], at_least: usize) -> Vec<Arrived> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel");
        take(&channel, queues, at_least).await
    })
}

/// As [`read_queues`], over a channel that may be used for other things afterwards.
pub async fn take(channel: &Channel, queues: &[String], at_least: usize) -> Vec<Arrived> {
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumers = Vec::new();
    for queue in queues {
        let name = queue.as_str();
        let consumer = channel.basic_consume(name.into(), name.into(), options, FieldTable::default()).await;
        consumers.push((queue, consumer.expect("the queue exists and may be consumed")));
    }
    let mut arrived = Vec::new();
    loop {
        let next = std::future::poll_fn(|context| {
            let found =
                consumers.iter_mut().find_map(|(queue, consumer)| match Pin::new(consumer).poll_next(context) {
                    Poll::Ready(delivery) => Some((queue.to_string(), delivery)),
                    Poll::Pending => None,
                });
            found.map_or(Poll::Pending, Poll::Ready)
        });
        let limit = if arrived.len() < at_least { PATIENCE } else { Duration::from_millis(500) };
        match tokio::time::timeout(limit, next).await {
            Ok((place, Some(delivery))) => {
                let data = delivery.expect("a delivery").data;
                arrived.push(Arrived { place, payload: String::from_utf8_lossy(&data).into_owned() });
            }
            Ok((queue, None)) => panic!("RabbitMQ ended the reading of {queue}"),
            Err(_) => break,
        }
    }
    assert!(arrived.len() >= at_least, "RabbitMQ hands over {} of {at_least}, and no more", arrived.len());
    for (queue, consumer) in consumers {
        drop(consumer);
        channel.basic_cancel(queue.as_str().into(), Default::default()).await.expect("it ends");
    }
    arrived
}
