//! The sink against librdkafka's own mock cluster, which can be told to make errors that a real broker cannot be made to make.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::config::{KafkaSecurity, Mode, Routes};

type Cluster = MockCluster<'static, DefaultProducerContext>;

const PRODUCE: RDKafkaApiKey = RDKafkaApiKey::Produce;
const TOO_LARGE: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
const OUT_OF_ORDER: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;

fn cluster(topics: &[&str]) -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    for topic in topics {
        cluster.create_topic(topic, 2, 1).unwrap();
    }
    cluster
}

struct Sunk {
    sink: Kafka,
    reports: UnboundedReceiver<Report>,
}

fn config(brokers: &str, properties: &[(&str, &str)]) -> config::Kafka {
    config::Kafka {
        instance: "test".into(),
        topics: Routes { template: "unused".into(), by_event: BTreeMap::new() },
        mode: Mode::Structured,
        brokers: brokers.into(),
        security: KafkaSecurity::default(),
        record_max: None,
        properties: properties.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
    }
}

fn sunk(brokers: &str, properties: &[(&str, &str)]) -> Sunk {
    sunk_with(config(brokers, properties))
}

fn sunk_with(config: config::Kafka) -> Sunk {
    let (sender, reports) = unbounded_channel();
    Sunk { sink: Kafka::new(OutputName::new("kafka").unwrap(), config, sender).unwrap(), reports }
}

impl Sunk {
    fn send(&mut self, lane: &str, sequences: impl IntoIterator<Item = u64>) {
        let lane: Arc<str> = lane.into();
        for sequence in sequences {
            self.sink.send(&mut record(&lane, sequence, "key"));
        }
    }

    /// The next report; waits for it, but not for ever.
    async fn next(&mut self) -> Report {
        let next = tokio::time::timeout(Duration::from_secs(30), self.reports.recv());
        next.await.expect("a report within 30 s").expect("a sink that still reports")
    }

    /// What became of so many records, and what else was said meanwhile.
    async fn outcomes(&mut self, count: usize) -> (BTreeMap<u64, Result<Place, PublishError>>, Vec<Report>) {
        let (mut outcomes, mut said) = (BTreeMap::new(), Vec::new());
        while outcomes.len() < count {
            let (sequence, outcome) = match self.next().await {
                Report::Delivered { sequence, place } => (sequence, Ok(place)),
                Report::Failed { sequence, error } => (sequence, Err(error)),
                other => {
                    said.push(other);
                    continue;
                }
            };
            assert!(outcomes.insert(sequence, outcome).is_none(), "two reports of {sequence}");
        }
        (outcomes, said)
    }

    async fn connected(&mut self) {
        while !matches!(self.next().await, Report::Connected) {}
    }
}

fn record(lane: &Arc<str>, sequence: u64, key: &str) -> Record {
    let mut record = Record {
        sequence,
        lane: Arc::clone(lane),
        key: key.into(),
        content_type: "text/plain",
        payload: sequence.to_string().into_bytes(),
        ..Record::default()
    };
    record.headers.push("x-webhook-timestamp", "1736937000");
    record
}

#[tokio::test]
async fn records_of_a_key_lie_in_the_order_in_which_they_were_sent() {
    let cluster = cluster(&["lane"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[]);
    sunk.connected().await;
    sunk.send("lane", 1..=500);
    let (outcomes, _) = sunk.outcomes(500).await;
    let places: BTreeSet<(i32, i64)> = outcomes
        .values()
        .map(|outcome| match outcome {
            Ok(Place::Kafka { partition, offset }) => (*partition, *offset),
            other => panic!("{other:?}"),
        })
        .collect();
    let partition = places.first().unwrap().0;
    assert_eq!(places, (0..500).map(|offset| (partition, offset)).collect());
    let offsets: Vec<_> = outcomes.values().map(|outcome| outcome.clone().unwrap()).collect();
    let in_order: Vec<_> = (0..500).map(|offset| Place::Kafka { partition, offset }).collect();
    assert_eq!(offsets, in_order);
}

#[tokio::test]
async fn nothing_overtakes_a_record_that_was_refused() {
    let cluster = cluster(&["lane", "other"]);
    // Each record a batch of its own, so that four more are under way when the first is refused.
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[("batch.num.messages", "1")]);
    sunk.connected().await;
    sunk.send("lane", 1..=3);
    sunk.outcomes(3).await;

    // A real broker refuses the other four by itself, as their forerunner is missing; the mock has to be told.
    cluster.request_errors(PRODUCE, &[TOO_LARGE, OUT_OF_ORDER, OUT_OF_ORDER, OUT_OF_ORDER, OUT_OF_ORDER]);
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
    sunk.send("lane", 4..=60);
    let (outcomes, said) = sunk.outcomes(57).await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert_eq!(outcomes[&4], Err(PublishError::TooLarge));
    for sequence in 5..=60 {
        assert_eq!(outcomes[&sequence], Err(PublishError::Withdrawn), "{sequence}");
    }
    assert!(said.is_empty(), "a refusal is no outage: {said:?}");

    sunk.send("lane", [61]);
    let (turned_back, _) = sunk.outcomes(1).await;
    assert_eq!(turned_back[&61], Err(PublishError::Withdrawn), "sent before the failures were read");

    sunk.send("other", [62]);
    sunk.send("lane", 4..=61);
    let (outcomes, _) = sunk.outcomes(59).await;
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
    let offsets: Vec<i64> = (4..=61)
        .map(|sequence| match outcomes[&sequence] {
            Ok(Place::Kafka { offset, .. }) => offset,
            _ => unreachable!("all were delivered"),
        })
        .collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
}

#[test]
fn what_waits_for_the_next_producer_does_not_overtake_a_failure_either() {
    let (sender, mut reports) = unbounded_channel();
    let shared = Shared { state: Mutex::default(), reports: sender };
    let (lane, other): (Arc<str>, Arc<str>) = ("lane".into(), "other".into());
    for (lane, sequence) in [(&lane, 1), (&lane, 2), (&other, 3), (&lane, 4)] {
        let mut state = shared.state();
        let mut record = record(lane, sequence, "key");
        let Admission::Publish = state.lanes.admit(&mut record) else { panic!("{sequence}") };
        if sequence == 1 {
            state.main.open.insert(1); // The producer had this one, and failed.
        } else {
            shared.publish(&mut state, Role::Main, &mut record);
        }
    }
    shared.failed(Role::Main, 1, "lane", PublishError::TooLarge, true);
    let mut failed = |sequence, error| {
        let Ok(Report::Failed { sequence: s, error: e }) = reports.try_recv() else {
            panic!("no report of {sequence}")
        };
        assert_eq!((s, e), (sequence, error));
    };
    failed(1, PublishError::TooLarge);
    failed(2, PublishError::Withdrawn);
    failed(4, PublishError::Withdrawn);
    let waiting: Vec<u64> = shared.state().main.waiting.iter().map(|record| record.sequence).collect();
    assert_eq!(waiting, [3]);
}

#[tokio::test]
async fn a_fatal_error_fails_each_open_record_once_and_a_new_producer_takes_over() {
    let cluster = cluster(&["lane", "other"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[("batch.num.messages", "1")]);
    sunk.connected().await;
    sunk.send("lane", [1]);
    sunk.outcomes(1).await;

    // For the oldest request this means that broker and producer disagree on what was written.
    cluster.request_errors(PRODUCE, &[OUT_OF_ORDER; 5]);
    cluster.broker_round_trip_time(1, Duration::from_millis(500)).unwrap();
    sunk.send("lane", 2..=40);
    let (outcomes, mut said) = sunk.outcomes(39).await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert!(outcomes.values().all(|outcome| *outcome == Err(PublishError::Fatal)), "{outcomes:?}");
    while said.is_empty() {
        said.push(sunk.next().await);
    }
    assert!(matches!(&said[..], [Report::Lost { reason: PublishError::Fatal, .. }]), "{said:?}");

    sunk.send("other", [41]); // Waits in the sink.
    sunk.connected().await;
    sunk.send("lane", 2..=40);
    let (outcomes, _) = sunk.outcomes(40).await;
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
}

#[tokio::test]
async fn what_was_refused_is_tried_again_without_disturbing_other_lanes() {
    let cluster = cluster(&["lane", "other"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[]);
    sunk.connected().await;
    cluster.request_errors(PRODUCE, &[TOO_LARGE]);
    sunk.send("lane", [1]);
    assert_eq!(sunk.outcomes(1).await.0[&1], Err(PublishError::TooLarge));
    sunk.send("other", [2]);
    assert!(sunk.outcomes(1).await.0[&2].is_ok());
    let producer = |sunk: &Sunk| sunk.sink.shared.state().main.producer.as_ref().map(Arc::as_ptr).unwrap();
    let before = producer(&sunk);

    for _ in 0..2 {
        cluster.request_errors(PRODUCE, &[TOO_LARGE]);
        sunk.send("lane", [1, 3]);
        let (outcomes, said) = sunk.outcomes(2).await;
        assert_eq!(outcomes[&1], Err(PublishError::TooLarge));
        assert_eq!(outcomes[&3], Err(PublishError::Withdrawn));
        assert!(said.is_empty(), "{said:?}");
        sunk.send("other", [4]);
        assert!(sunk.outcomes(1).await.0[&4].is_ok());
        assert_eq!(producer(&sunk), before);
    }
    sunk.send("lane", [1, 3, 5]);
    let (outcomes, _) = sunk.outcomes(3).await;
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
    let last = sunk.sink.shared.state().probing.open.len();
    assert_eq!(last, 0);
}

#[tokio::test]
async fn a_broker_that_goes_is_lost_and_one_that_comes_back_connected() {
    let cluster = cluster(&["lane"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[]);
    sunk.connected().await;
    cluster.broker_down(1).unwrap();
    sunk.send("lane", 1..=10);
    assert!(matches!(sunk.next().await, Report::Lost { reason: PublishError::Disconnected, .. }));
    cluster.broker_up(1).unwrap();
    let (outcomes, said) = sunk.outcomes(10).await;
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
    assert!(said.iter().any(|report| matches!(report, Report::Connected)), "{said:?}");
}

#[tokio::test]
async fn an_address_where_nothing_listens_is_said_once_and_without_waiting() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut sunk = sunk(&nobody.to_string(), &[]);
    let Report::Lost { reason, detail } = sunk.next().await else { panic!("something else") };
    assert_eq!(reason, PublishError::Disconnected);
    assert!(detail.contains(&nobody.to_string()), "{detail}");
}

#[tokio::test]
async fn a_missing_topic_fails_its_records_and_takes_them_once_it_is_made() {
    let cluster = cluster(&["there"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[("topic.metadata.propagation.max.ms", "10")]);
    sunk.connected().await;
    cluster.topic_error("late", RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART).unwrap();
    sunk.send("late", 1..=5);
    sunk.send("there", 6..=9);
    let (outcomes, _) = sunk.outcomes(9).await;
    assert_eq!(outcomes[&1], Err(PublishError::TopicMissing));
    assert!((2..=5).all(|sequence| outcomes[&sequence].is_err()), "{outcomes:?}");
    assert!((6..=9).all(|sequence| outcomes[&sequence].is_ok()), "{outcomes:?}");

    cluster.topic_error("late", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    loop {
        sunk.send("late", [1]);
        match &sunk.outcomes(1).await.0[&1] {
            Ok(_) => break,
            Err(error) => assert_eq!(*error, PublishError::TopicMissing),
        }
    }
}

#[tokio::test]
async fn dropping_takes_every_open_record_back() {
    let cluster = cluster(&["lane"]);
    let mut sunk = sunk(&cluster.bootstrap_servers(), &[]);
    sunk.connected().await;
    cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
    sunk.send("lane", 1..=100);
    let Sunk { sink, mut reports } = sunk;
    drop(sink);
    let mut taken_back = BTreeSet::new();
    while let Some(report) = reports.recv().await {
        let Report::Failed { sequence, error } = report else { panic!("{report:?}") };
        assert_eq!(error, PublishError::Withdrawn);
        assert!(taken_back.insert(sequence), "two reports of {sequence}");
    }
    assert_eq!(taken_back, (1..=100).collect());
}

#[tokio::test]
async fn settings_that_librdkafka_refuses_are_named_without_their_values() {
    let (sender, _reports) = unbounded_channel();
    let refused = |config| Kafka::new(OutputName::new("kafka").unwrap(), config, sender.clone()).err().unwrap();
    let error = refused(config("127.0.0.1:9092", &[("linger.ms", "hunter2")]));
    assert!(error.contains("linger.ms") && !error.contains("hunter2"), "{error}");

    let mut scram = config("127.0.0.1:9092", &[]);
    scram.security.protocol = "SASL_SSL".into();
    scram.security.mechanism = Some("SCRAM-SHA-512".into());
    scram.security.username = Some("relay".into());
    scram.security.password.file = Some("/nowhere/password".into());
    let error = refused(scram);
    assert!(error.contains("security.password_file"), "{error}");
}

#[tokio::test]
async fn a_changed_file_brings_a_new_producer_and_loses_nothing() {
    let cluster = cluster(&["lane"]);
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "one").unwrap();
    let mut config = config(&cluster.bootstrap_servers(), &[]);
    config.security.password.file = Some(password.clone());
    let mut sunk = sunk_with(config);
    sunk.connected().await;
    let producer = |sunk: &Sunk| sunk.sink.shared.state().main.producer.as_ref().map(Arc::as_ptr);
    let before = producer(&sunk).unwrap();

    std::fs::write(&password, "two").unwrap();
    let mut sequence = 0;
    while producer(&sunk).is_none_or(|now| now == before) {
        sequence += 1;
        sunk.send("lane", [sequence]);
        let (outcomes, said) = sunk.outcomes(1).await;
        assert!(outcomes[&sequence].is_ok(), "{outcomes:?}");
        assert!(said.is_empty(), "{said:?}");
    }
    assert!(sequence > 0);
    sunk.send("lane", [sequence + 1]);
    assert!(sunk.outcomes(1).await.0[&(sequence + 1)].is_ok());
}

#[tokio::test]
async fn a_producer_is_given_up_for_a_silent_lane_only_once_the_next_one_is_made() {
    let cluster = cluster(&["lane", "other"]);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let mut config = config(&cluster.bootstrap_servers(), &[("security.protocol", "PLAINTEXT")]);
    config.security.protocol = "SSL".into(); // Has the file read; the cluster knows no TLS.
    config.security.ca_file = Some(ca.clone());
    let mut sunk = sunk_with(config);
    sunk.connected().await;
    sunk.send("lane", [1]);
    assert!(sunk.outcomes(1).await.0[&1].is_ok());
    let producer = |sunk: &Sunk| sunk.sink.shared.state().main.producer.as_ref().map(Arc::as_ptr);
    let before = producer(&sunk).unwrap();

    std::fs::remove_file(&ca).unwrap();
    sunk.sink.take_back(&"lane".into(), 2);
    for sequence in 3..=30 {
        sunk.send("other", [sequence]);
        let (outcomes, said) = sunk.outcomes(1).await;
        assert!(outcomes[&sequence].is_ok() && said.is_empty(), "{outcomes:?} {said:?}");
    }
    assert_eq!(producer(&sunk), Some(before));
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let mut sequence = 31;
    while producer(&sunk).is_none_or(|now| now == before) {
        sunk.send("other", [sequence]);
        match &sunk.outcomes(1).await.0[&sequence] {
            Ok(_) => sequence += 1,
            Err(error) => assert_eq!(*error, PublishError::Withdrawn), // Not sent yet.
        }
    }
}

#[tokio::test]
async fn a_password_file_that_hangs_holds_up_no_report() {
    use std::os::unix::fs::OpenOptionsExt;
    let cluster = cluster(&["lane"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "one").unwrap();
    let mut config = config(&cluster.bootstrap_servers(), &[]);
    config.security.password.file = Some(file.clone());
    let mut sunk = sunk_with(config);
    sunk.connected().await;
    // Who reads a FIFO waits for the one who writes, as for the server of a network mount.
    std::fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &file,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let not_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
    let _writer = loop {
        // Fails until somebody reads.
        match std::fs::OpenOptions::new().write(true).custom_flags(not_waiting).open(&file) {
            Ok(writer) => break writer,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    sunk.send("lane", 1..=10);
    let (outcomes, _) = sunk.outcomes(10).await;
    assert!(outcomes.values().all(Result::is_ok), "{outcomes:?}");
}
