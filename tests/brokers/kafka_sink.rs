//! The Kafka sink by itself at a real broker.
//!
//! [`Output`] does what the relay's output does with reports, as plainly as possible: in order, again from the oldest once a lane has settled,
//! alone what a broker refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sipsim_relay::config::{self, KafkaSecurity, Mode, Name, Routes};
use sipsim_relay::publish::kafka::{Kafka, Made, create_topics};
use sipsim_relay::publish::{Disposition, Record, Report, Sink};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::support::Brokers;

const PARTITIONS: i32 = 3;

fn config(broker: &str) -> config::Kafka {
    config::Kafka {
        instance: "test".into(),
        topics: Routes { template: String::new(), by_event: BTreeMap::new() },
        mode: Mode::Structured,
        brokers: broker.to_owned(),
        security: KafkaSecurity::default(),
        record_max: None,
        properties: BTreeMap::new(),
    }
}

/// Names that no earlier run has used.
fn names<const N: usize>(what: &str) -> [String; N] {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    std::array::from_fn(|index| format!("{what}-{now}-{index}"))
}

async fn create(broker: &str, topic: &str, record_max: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", broker).create().unwrap();
    let topic = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1)).set("max.message.bytes", record_max);
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
}

struct Lane {
    name: Arc<str>,
    pending: VecDeque<u64>,
    open: BTreeSet<u64>,
    failed: BTreeSet<u64>,
    held: bool,
}

struct Output {
    broker: String,
    sink: Kafka,
    reports: UnboundedReceiver<Report>,
    connected: bool,
    lanes: Vec<Lane>,
    /// Lane, key and size of each record by its number.
    records: BTreeMap<u64, (usize, String, usize)>,
    alone: BTreeSet<u64>,
    parked: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
}

impl Output {
    /// Records are dealt to the topics in turn and to seven keys; `size` says how large each is.
    fn new(broker: &str, topics: &[String], count: u64, size: impl Fn(u64) -> usize) -> Self {
        let (sender, reports) = unbounded_channel();
        let sink = Kafka::new(Name::new("kafka").unwrap(), config(broker), sender).unwrap();
        let lane = |number: u64| (number % topics.len() as u64) as usize;
        let records = (1..=count).map(|number| (number, (lane(number), format!("k{}", number % 7), size(number))));
        let records: BTreeMap<_, _> = records.collect();
        let lanes = topics.iter().enumerate().map(|(index, name)| Lane {
            name: name.as_str().into(),
            pending: (1..=count).filter(|number| lane(*number) == index).collect(),
            open: BTreeSet::new(),
            failed: BTreeSet::new(),
            held: false,
        });
        let (alone, parked, delivered) = Default::default();
        let (broker, lanes) = (broker.to_owned(), lanes.collect());
        Self { broker, sink, reports, connected: false, lanes, records, alone, parked, delivered }
    }

    fn send(&mut self) {
        for lane in &mut self.lanes {
            if !lane.failed.is_empty() && lane.open.is_empty() {
                while let Some(number) = lane.failed.pop_last() {
                    lane.pending.push_front(number);
                }
            }
            while let Some(&number) = lane.pending.front() {
                let single = lane.held || self.alone.contains(&number);
                let alone = !self.alone.is_empty() && lane.open.iter().any(|open| self.alone.contains(open));
                let full = lane.open.len() >= 1000 || (single && !lane.open.is_empty()) || alone;
                if full || !lane.failed.is_empty() {
                    break;
                }
                lane.pending.pop_front();
                lane.open.insert(number);
                let (_, key, size) = &self.records[&number];
                self.sink.send(&mut record(&lane.name, number, key, *size));
            }
        }
    }

    /// Until every record is delivered or parked; `each` sees the count of delivered ones after every report.
    async fn run(&mut self, mut each: impl AsyncFnMut(usize)) {
        while self.delivered.len() + self.parked.len() < self.records.len() {
            if self.connected {
                self.send();
            }
            let report = tokio::time::timeout(Duration::from_secs(60), self.reports.recv()).await;
            self.take(report.expect("a report within a minute").expect("a sink that reports"));
            each(self.delivered.len()).await;
        }
    }

    fn take(&mut self, report: Report) {
        let (number, error) = match report {
            Report::Connected => {
                self.connected = true;
                return;
            }
            Report::Lost { .. } => {
                self.connected = false;
                return;
            }
            Report::Broken { .. } => return,
            Report::Delivered { sequence, .. } => (sequence, None),
            Report::Failed { sequence, error } => (sequence, Some(error)),
        };
        let lane = &mut self.lanes[self.records[&number].0];
        assert!(lane.open.remove(&number), "a second report of {number}");
        let Some(error) = error else {
            lane.held = false;
            assert!(self.delivered.insert(number));
            return;
        };
        match error.disposition() {
            Disposition::Park if self.alone.contains(&number) => {
                self.parked.insert(number);
                return;
            }
            Disposition::Park | Disposition::RetryAlone => {
                self.alone.insert(number);
            }
            Disposition::Hold => lane.held = true,
            Disposition::Retry => {}
        }
        lane.failed.insert(number);
    }

    /// Reads everything back: each record once, those of a key in order, the parked ones not at all.
    fn check(&self) {
        let mut seen = BTreeSet::new();
        for lane in &self.lanes {
            let mut last: HashMap<String, u64> = HashMap::new();
            for (key, number) in read(&self.broker, &lane.name) {
                assert!(seen.insert(number), "{number} was published twice");
                let before = last.insert(key, number).unwrap_or(0);
                assert!(before < number, "{number} came after {before}");
            }
        }
        let expected = self.records.keys().filter(|number| !self.parked.contains(number)).copied().collect();
        assert_eq!(seen, expected);
    }
}

fn record(lane: &Arc<str>, number: u64, key: &str, size: usize) -> Record {
    let mut payload = format!("{number:020}").into_bytes();
    payload.resize(size.max(20), b'.');
    let mut record = Record {
        sequence: number,
        lane: Arc::clone(lane),
        key: key.to_owned(),
        content_type: "text/plain",
        payload,
        ..Record::default()
    };
    record.headers.push("x-webhook-timestamp", "1736937000");
    record
}

/// Keys and numbers of all that lies in a topic, partition by partition as they lie there.
fn read(broker: &str, topic: &str) -> Vec<(String, u64)> {
    let settings = [("bootstrap.servers", broker), ("group.id", "unused"), ("enable.partition.eof", "true")];
    let settings: ClientConfig = settings.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    let consumer: BaseConsumer = settings.create().unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let (mut records, mut ended) = (Vec::new(), 0);
    while ended < PARTITIONS {
        match consumer.poll(Duration::from_secs(30)).expect("the topic's end within 30 s") {
            Ok(message) => {
                let number = str::from_utf8(&message.payload().unwrap()[..20]).unwrap().parse().unwrap();
                records.push((str::from_utf8(message.key().unwrap()).unwrap().to_owned(), number));
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    records
}

#[tokio::test]
async fn twenty_thousand_records_of_five_topics_arrive_once_and_in_order() {
    let broker = Brokers::shared().kafka().to_owned();
    let topics = names::<5>("order");
    for topic in &topics {
        create(&broker, topic, "1000000").await;
    }
    let mut output = Output::new(&broker, &topics, 20_000, |_| 700);
    output.run(async |_| {}).await;
    assert_eq!(output.parked.len(), 0);
    output.check();
}

/// Takes 10 s: after each refusal librdkafka begins its producer's epoch anew, half a second each.
#[tokio::test]
async fn a_record_that_is_too_large_is_parked_and_overtaken_by_no_other() {
    let broker = Brokers::shared().kafka().to_owned();
    let topics = names::<2>("large");
    create(&broker, &topics[0], "1000000").await;
    create(&broker, &topics[1], "200000").await;
    let mut output = Output::new(&broker, &topics, 10_000, |number| if number % 2501 == 0 { 300_000 } else { 300 });
    output.run(async |_| {}).await;
    assert_eq!(output.parked, [2501, 7503].into(), "300 kB are fine for the first topic and too large for the second");
    output.check();
}

#[tokio::test]
async fn a_topic_smaller_than_a_batch_parks_only_what_is_too_large() {
    let broker = Brokers::shared().kafka().to_owned();
    let topics = names::<1>("tiny");
    create(&broker, &topics[0], "20000").await;
    let mut output = Output::new(&broker, &topics, 400, |number| if number == 201 { 30_000 } else { 300 });
    output.run(async |_| {}).await;
    assert_eq!(output.parked, [201].into());
    output.check();
}

#[tokio::test]
async fn a_topic_made_late_gets_its_records_in_order() {
    let broker = Brokers::shared().kafka().to_owned();
    let topics = names::<2>("late");
    create(&broker, &topics[0], "1000000").await;
    let mut output = Output::new(&broker, &topics, 1000, |_| 300);
    let (mut made, late) = (false, topics[1].clone());
    output
        .run(async |delivered| {
            // The other topic's half is through, and this one's waits.
            if delivered == 500 && !made {
                made = true;
                create(&broker, &late, "1000000").await;
            }
        })
        .await;
    output.check();
}

#[tokio::test]
async fn topics_are_made_once_and_each_failure_is_told() {
    let broker = Brokers::shared().kafka().to_owned();
    let (config, topics) = (config(&broker), names::<2>("made"));
    let made = create_topics(&config, &topics, Some(2), None).await.unwrap();
    assert_eq!(made, [Made::Created, Made::Created]);
    assert_eq!(create_topics(&config, &topics, Some(4), None).await.unwrap(), [Made::Exists, Made::Exists]);
    let refused = create_topics(&config, &["no topic".to_owned()], None, None).await.unwrap();
    assert!(matches!(&refused[..], [Made::Failed(reason)] if reason.contains("InvalidTopic")), "{refused:?}");
}
