//! The RabbitMQ sink at a real broker, which `SIPSIM_TEST_RABBITMQ` names (an amqp:// URL with user and password); without it nothing runs.
//! Every test has an exchange and a queue of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use sipsim_relay::clock::Timestamp;
use sipsim_relay::config::{OutputName, RabbitMq as Settings, Routes};
use sipsim_relay::publish::rabbitmq::{RabbitMq, create_topology};
use sipsim_relay::publish::{PublishError, Record, Report, Sink};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn broker() -> Option<String> {
    let url = std::env::var("SIPSIM_TEST_RABBITMQ").ok();
    if url.is_none() {
        eprintln!("SIPSIM_TEST_RABBITMQ is not set: nothing was tested");
    }
    url
}

fn settings(url: &str, exchange: &str) -> Settings {
    Settings {
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

fn record(lane: &str, sequence: u64, size: usize) -> Record {
    Record {
        sequence,
        lane: lane.into(),
        key: "call_1".into(),
        content_type: "application/cloudevents+json; charset=UTF-8",
        headers: vec![("x-webhook-signature", "abc".into()), ("x-webhook-timestamp", "1736937000".into())],
        id: format!("id-{sequence}"),
        event_type: "com.sipsim.test".into(),
        received_at: Timestamp::from_seconds(1_736_937_001),
        payload: format!(r#"{{"relaysequence":"{sequence:020}","data":"{}"}}"#, "x".repeat(size)).into_bytes(),
    }
}

/// A sink, and what an operator does to its broker.
struct Bench {
    /// Kept, as its end would end the channel.
    _connection: Connection,
    admin: Channel,
    exchange: String,
    sink: RabbitMq,
    reports: UnboundedReceiver<Report>,
}

impl Bench {
    /// With a queue of the exchange's name.
    async fn new(exchange: &str, sink_url: &str, url: &str, queue: FieldTable) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
        let admin = connection.create_channel().await.unwrap();
        admin.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
        admin.queue_delete(exchange.into(), QueueDeleteOptions::default()).await.unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        admin.queue_declare(exchange.into(), options, queue).await.unwrap();
        let (reports, said) = unbounded_channel();
        let sink = RabbitMq::new(OutputName::new("rabbit").unwrap(), settings(sink_url, exchange), reports);
        let mut bench = Self { _connection: connection, admin, exchange: exchange.to_owned(), sink, reports: said };
        // It declared the exchange, which did not exist.
        assert!(matches!(bench.next().await, Report::Connected));
        bench
    }

    async fn bind(&self, key: &str) {
        let (queue, exchange) = (self.exchange.as_str().into(), self.exchange.as_str().into());
        self.admin
            .queue_bind(queue, exchange, key.into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
    }

    async fn unbind(&self, key: &str) {
        let (queue, exchange) = (self.exchange.as_str().into(), self.exchange.as_str().into());
        self.admin.queue_unbind(queue, exchange, key.into(), FieldTable::default()).await.unwrap();
    }

    async fn next(&mut self) -> Report {
        timeout(PATIENCE, self.reports.recv()).await.expect("no report came").unwrap()
    }

    /// The verdicts of `count` records, by sequence; a second one for the same record is a failure.
    async fn verdicts(&mut self, count: usize) -> BTreeMap<u64, Result<(), PublishError>> {
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

    /// The sequences in the queue, in its order.
    async fn received(&self) -> Vec<u64> {
        let mut received = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(message) = self.admin.basic_get(self.exchange.as_str().into(), options).await.unwrap() {
            let id = message.properties.message_id().as_ref().unwrap().as_str().to_owned();
            received.push(id.strip_prefix("id-").unwrap().parse().unwrap());
        }
        received
    }

    async fn tidy(self) {
        self.admin.exchange_delete(self.exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
        self.admin.queue_delete(self.exchange.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_carry_their_properties() {
    let Some(url) = broker() else { return };
    let mut bench = Bench::new("sink-properties", &url, &url, FieldTable::default()).await;
    bench.bind("sipsim.#").await;
    bench.sink.send(record("sipsim.call.test", 7, 10));
    assert_eq!(bench.verdicts(1).await[&7], Ok(()));
    let options = BasicGetOptions { no_ack: true };
    let message = bench.admin.basic_get("sink-properties".into(), options).await.unwrap().unwrap();
    assert_eq!(message.routing_key.as_str(), "sipsim.call.test");
    assert_eq!(message.data, record("", 7, 10).payload);
    let properties = &message.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().unwrap().as_str().to_owned();
    assert_eq!(text(properties.content_type()), "application/cloudevents+json; charset=UTF-8");
    assert_eq!(text(properties.message_id()), "id-7");
    assert_eq!(text(properties.kind()), "com.sipsim.test");
    assert_eq!(text(properties.app_id()), "sipsim-relay");
    assert_eq!(*properties.timestamp(), Some(1_736_937_001));
    assert_eq!(*properties.delivery_mode(), Some(2));
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["x-webhook-signature"], AMQPValue::LongString("abc".into()));
    assert_eq!(headers["x-webhook-timestamp"], AMQPValue::LongString("1736937000".into()));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unroutable_records_among_a_thousand_routed_ones_are_told_from_them() {
    let Some(url) = broker() else { return };
    let mut bench = Bench::new("sink-unroutable", &url, &url, FieldTable::default()).await;
    bench.bind("routed").await;
    for sequence in 0..1_000 {
        bench.sink.send(record(if sequence % 2 == 0 { "routed" } else { "nowhere" }, sequence, 100));
    }
    let verdicts = bench.verdicts(1_000).await;
    for (sequence, verdict) in &verdicts {
        if sequence % 2 == 0 {
            assert_eq!(*verdict, Ok(()), "{sequence}");
        } else {
            assert!(
                matches!(verdict, Err(PublishError::Unroutable | PublishError::Withdrawn)),
                "{sequence}: {verdict:?}"
            );
        }
    }
    assert_eq!(verdicts[&1], Err(PublishError::Unroutable));
    assert_eq!(bench.received().await, (0..1_000).step_by(2).collect::<Vec<_>>());
    bench.tidy().await;
}

/// Sends 1 to `count` on one lane as an output does: many at a time; after a failure nothing more until all are reported, then again from the oldest
/// that is not delivered. Gives the records that the sink said were delivered, in that order.
async fn deliver(bench: &mut Bench, lane: &str, count: u64, in_flight_max: usize) -> Vec<u64> {
    let mut pending: BTreeSet<u64> = (1..=count).collect();
    let mut open = BTreeSet::new();
    let mut delivered = Vec::new();
    let mut held = false;
    while !pending.is_empty() || !open.is_empty() {
        if held && open.is_empty() {
            held = false;
        }
        while !held && open.len() < in_flight_max {
            let Some(sequence) = pending.pop_first() else { break };
            open.insert(sequence);
            bench.sink.send(record(lane, sequence, 100));
        }
        match bench.next().await {
            Report::Delivered { sequence, .. } => {
                assert!(open.remove(&sequence), "{sequence} was reported twice");
                delivered.push(sequence);
            }
            Report::Failed { sequence, .. } => {
                assert!(open.remove(&sequence), "{sequence} was reported twice");
                pending.insert(sequence);
                held = true;
            }
            Report::Connected | Report::Lost { .. } => {}
        }
    }
    delivered
}

fn in_order_of_first_arrival(received: &[u64]) -> bool {
    let mut newest = 0;
    received.iter().all(|sequence| {
        let follows = *sequence <= newest + 1;
        newest = newest.max(*sequence);
        follows
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_comes_and_goes_loses_nothing_and_keeps_the_order() {
    let Some(url) = broker() else { return };
    let mut bench = Bench::new("sink-flapping", &url, &url, FieldTable::default()).await;
    let count = 20_000;
    let admin = bench.admin.clone();
    let flapping: JoinHandle<()> = tokio::spawn(async move {
        let name = || "sink-flapping".into();
        loop {
            admin
                .queue_bind(name(), name(), "flaps".into(), QueueBindOptions::default(), FieldTable::default())
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..40))).await;
            admin.queue_unbind(name(), name(), "flaps".into(), FieldTable::default()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..5))).await;
        }
    });
    let delivered = deliver(&mut bench, "flaps", count, 1_000).await;
    flapping.abort();
    let received = bench.received().await;
    let arrived: BTreeSet<u64> = received.iter().copied().collect();
    let missing: Vec<_> = delivered.iter().filter(|sequence| !arrived.contains(sequence)).collect();
    assert!(missing.is_empty(), "said to be delivered, but not in the queue: {missing:?}");
    assert_eq!(delivered.len() as u64, count);
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_line_fails_each_open_record_once_and_comes_back() {
    let Some(url) = broker() else { return };
    let address = url.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxied = url.replace(&address, &listener.local_addr().unwrap().to_string());
    let (cuts, mut cut) = tokio::sync::broadcast::channel::<()>(1);
    let proxy = {
        let cuts = cuts.clone();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(&address).await.unwrap();
                let mut cut = cuts.subscribe();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.recv() => {}
                    }
                });
            }
        })
    };
    let mut bench = Bench::new("sink-cut", &proxied, &url, FieldTable::default()).await;
    bench.bind("cut").await;
    let cutting = tokio::spawn(async move {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            cuts.send(()).unwrap();
        }
        // The proxy's own sender keeps this open.
        let _ = cut.recv().await;
    });
    let delivered = deliver(&mut bench, "cut", 20_000, 1_000).await;
    cutting.await.unwrap();
    proxy.abort();
    let received = bench.received().await;
    let arrived: BTreeSet<u64> = received.iter().copied().collect();
    assert!(delivered.iter().all(|sequence| arrived.contains(sequence)));
    assert_eq!(arrived.len(), 20_000);
    assert!(in_order_of_first_arrival(&received));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_gone_holds_its_lanes_and_is_made_again() {
    let Some(url) = broker() else { return };
    let mut bench = Bench::new("sink-gone", &url, &url, FieldTable::default()).await;
    bench.bind("gone").await;
    bench.sink.send(record("gone", 1, 10));
    assert_eq!(bench.verdicts(1).await[&1], Ok(()));
    bench.admin.exchange_delete("sink-gone".into(), ExchangeDeleteOptions::default()).await.unwrap();
    for sequence in 2..100 {
        bench.sink.send(record("gone", sequence, 10));
    }
    let mut first = None;
    let mut verdicts = BTreeMap::new();
    while verdicts.len() < 98 {
        match bench.next().await {
            Report::Failed { sequence, error } => {
                first.get_or_insert(error.clone());
                verdicts.insert(sequence, error);
            }
            // Frames that follow the closing may cost the connection.
            Report::Lost { .. } | Report::Connected => {}
            report @ Report::Delivered { .. } => panic!("{report:?}"),
        }
    }
    assert_eq!(first, Some(PublishError::TopicMissing));
    // The next channel declares it again; nothing is bound yet.
    let verdict = loop {
        bench.sink.send(record("gone", 2, 10));
        match bench.next().await {
            Report::Failed { error: PublishError::Disconnected, .. } | Report::Lost { .. } | Report::Connected => {}
            Report::Failed { error, .. } => break error,
            report => panic!("{report:?}"),
        }
    };
    assert_eq!(verdict, PublishError::Unroutable);
    bench.bind("gone").await;
    bench.sink.send(record("gone", 2, 10));
    assert_eq!(bench.verdicts(1).await[&2], Ok(()));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_that_rejects_shows_as_nack() {
    let Some(url) = broker() else { return };
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(3));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let mut bench = Bench::new("sink-full", &url, &url, arguments).await;
    bench.bind("full").await;
    for sequence in 1..=50 {
        bench.sink.send(record("full", sequence, 10));
    }
    let verdicts = bench.verdicts(50).await;
    let delivered: Vec<u64> =
        verdicts.iter().filter(|(_, verdict)| verdict.is_ok()).map(|(sequence, _)| *sequence).collect();
    assert_eq!(delivered, bench.received().await);
    assert!(verdicts.values().any(|verdict| *verdict == Err(PublishError::Nack)));
    assert!(
        verdicts.values().all(|verdict| matches!(verdict, Ok(()) | Err(PublishError::Nack | PublishError::Withdrawn))),
        "{verdicts:?}"
    );
    bench.tidy().await;
}

/// Wants a broker with `max_message_size = 1000000`.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_is_told_alone_and_suspected_among_others() {
    let Some(url) = broker() else { return };
    let mut bench = Bench::new("sink-large", &url, &url, FieldTable::default()).await;
    bench.bind("large").await;
    for sequence in 1..=3 {
        bench.sink.send(record("large", sequence, if sequence == 2 { 2_000_000 } else { 10 }));
    }
    let verdicts = bench.verdicts(3).await;
    if verdicts[&2] == Ok(()) {
        eprintln!("this broker takes 2 MB: nothing was tested");
        return bench.tidy().await;
    }
    assert!(matches!(verdicts[&2], Err(PublishError::Suspect(_))), "{verdicts:?}");
    bench.sink.send(record("large", 2, 2_000_000));
    assert_eq!(bench.verdicts(1).await[&2], Err(PublishError::TooLarge));
    // It is parked, and the next is handed back once: it was not among those that failed.
    bench.sink.send(record("large", 4, 10));
    assert_eq!(bench.verdicts(1).await[&4], Err(PublishError::Withdrawn));
    bench.sink.send(record("large", 4, 10));
    assert_eq!(bench.verdicts(1).await[&4], Ok(()));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_a_missing_vhost_and_a_closed_port_say_so() {
    let Some(url) = broker() else { return };
    let place = url.rsplit('@').next().unwrap().to_owned();
    let address = place.split('/').next().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, expected) in [
        (format!("amqp://guest:wrong@{place}"), "password is wrong"),
        (format!("amqp://guest:guest@{address}/nonesuch"), "nonesuch"),
        (format!("amqp://{closed}/%2f"), "refused"),
    ] {
        let (reports, mut said) = unbounded_channel();
        let _sink = RabbitMq::new(OutputName::new("rabbit").unwrap(), settings(&url, "sink-refused"), reports);
        let Some(Report::Lost { detail, .. }) = timeout(PATIENCE, said.recv()).await.unwrap() else {
            panic!("no loss")
        };
        assert!(detail.contains(expected) && !detail.contains("wrong@"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_is_made_and_made_again() {
    let Some(url) = broker() else { return };
    let queues = [("sink-made.call".to_owned(), "sipsim.call.*".to_owned())];
    let expected = [
        "exchange \"sink-made\" (topic, durable)",
        "queue \"sink-made.call\" (quorum, durable)",
        "binding of \"sink-made.call\" to \"sink-made\" by \"sipsim.call.*\"",
    ];
    for _ in 0..2 {
        assert_eq!(create_topology(&settings(&url, "unused"), "sink-made", &queues).await.unwrap(), expected);
    }
    let connection = Connection::connect(&url, ConnectionProperties::default()).await.unwrap();
    let admin = connection.create_channel().await.unwrap();
    // Of another type: the error names it.
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    admin.exchange_declare("sink-other".into(), ExchangeKind::Fanout, options, FieldTable::default()).await.unwrap();
    let error = create_topology(&settings(&url, "unused"), "sink-other", &queues).await.unwrap_err();
    assert!(error.contains("\"sink-other\"") && error.contains("type"), "{error}");
    for exchange in ["sink-made", "sink-other"] {
        admin.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
    admin.queue_delete("sink-made.call".into(), QueueDeleteOptions::default()).await.unwrap();
}
