//! Reads whole topics and queues quickly, by plain clients that know nothing of the relay: for counting hundreds of thousands.
//! What a message looks like to clients of other makes, [`super::Brokers::read_kafka`] and its sibling show.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
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

/// Takes everything out of `queues`, each in its order. A quorum queue may show less than it has just after a restart: wait for that before.
pub fn read_queues(url: &str, queues: &[String]) -> Vec<Arrived> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("RabbitMQ answers");
        let channel = connection.create_channel().await.expect("a channel");
        let mut arrived = Vec::new();
        for queue in queues {
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await;
            let mut left = declared.expect("the queue exists").message_count();
            let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
            let mut consumer = channel
                .basic_consume(queue.as_str().into(), queue.as_str().into(), options, FieldTable::default())
                .await
                .expect("it may be consumed");
            // A second without anything ends it, so that one too many shows.
            loop {
                let limit = if left > 0 { PATIENCE } else { Duration::from_millis(500) };
                let next = std::future::poll_fn(|context| {
                    futures_core::Stream::poll_next(std::pin::Pin::new(&mut consumer), context)
                });
                match tokio::time::timeout(limit, next).await {
                    Ok(Some(delivery)) => {
                        let delivery = delivery.expect("a delivery");
                        left = left.saturating_sub(1);
                        let payload = String::from_utf8_lossy(&delivery.data).into_owned();
                        arrived.push(Arrived { place: queue.clone(), payload });
                    }
                    Ok(None) => panic!("RabbitMQ ended the reading of {queue}"),
                    Err(_) => {
                        assert_eq!(left, 0, "{queue}: RabbitMQ hands nothing over any more");
                        break;
                    }
                }
            }
            drop(consumer);
            channel.basic_cancel(queue.as_str().into(), Default::default()).await.expect("it ends");
        }
        arrived
    })
}
