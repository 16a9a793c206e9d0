//! The RabbitMQ sink at a real broker. Every test has an exchange and a queue of its own.

mod bench;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use sipsim_relay::config::RabbitMq as Settings;
use sipsim_relay::publish::rabbitmq::create_topology;
use sipsim_relay::publish::{PublishError, Report, Sink};
use sipsim_relay::secret::PasswordSource;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use bench::{Bench, PATIENCE, record, settings, sink};

use crate::support::{Brokers, RABBITMQ_MESSAGE_MAX};

#[tokio::test(flavor = "multi_thread")]
async fn messages_carry_their_properties() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-properties", &url, &url, FieldTable::default()).await;
    bench.bind("sipsim.#").await;
    bench.sink.send(&mut record("sipsim.call.test", 7, 10));
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
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-unroutable", &url, &url, FieldTable::default()).await;
    bench.bind("routed").await;
    for sequence in 0..1_000 {
        bench.sink.send(&mut record(if sequence % 2 == 0 { "routed" } else { "nowhere" }, sequence, 100));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_that_comes_and_goes_loses_nothing_and_keeps_the_order() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-flapping", &url, &url, FieldTable::default()).await;
    let count = 20_000;
    let admin = bench.admin.clone();
    let mut told = bench.told.subscribe();
    let flapping: JoinHandle<()> = tokio::spawn(async move {
        let name = || "sink-flapping".into();
        loop {
            admin
                .queue_bind(name(), name(), "flaps".into(), QueueBindOptions::default(), FieldTable::default())
                .await
                .unwrap();
            let enough = told.borrow().delivered + fastrand::u64(1..1_500);
            told.wait_for(|told| told.delivered >= enough).await.unwrap();
            admin.queue_unbind(name(), name(), "flaps".into(), FieldTable::default()).await.unwrap();
            let failed = told.borrow().failed;
            told.wait_for(|told| told.failed > failed).await.unwrap();
        }
    });
    let delivered = bench.deliver("flaps", count).await;
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
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let address = broker.rabbitmq_address();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxied = url.replace(&address.to_string(), &listener.local_addr().unwrap().to_string());
    let (cuts, mut cut) = tokio::sync::broadcast::channel::<()>(1);
    let proxy = {
        let cuts = cuts.clone();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(address).await.unwrap();
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
    let mut told = bench.told.subscribe();
    let cutting = tokio::spawn(async move {
        for cut in 1..=5 {
            told.wait_for(|told| told.delivered >= cut * 3_000).await.unwrap();
            cuts.send(()).unwrap();
        }
        // The proxy's own sender keeps this open.
        let _ = cut.recv().await;
    });
    let delivered = bench.deliver("cut", 20_000).await;
    cutting.await.unwrap();
    proxy.abort();
    let received = bench.received().await;
    let arrived: BTreeSet<u64> = received.iter().copied().collect();
    assert!(delivered.iter().all(|sequence| arrived.contains(sequence)));
    assert_eq!(arrived.len(), 20_000);
    assert!(bench::in_order_of_first_arrival(&received));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_gone_holds_its_lanes_and_is_made_again() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-gone", &url, &url, FieldTable::default()).await;
    bench.bind("gone").await;
    bench.sink.send(&mut record("gone", 1, 10));
    assert_eq!(bench.verdicts(1).await[&1], Ok(()));
    bench.admin.exchange_delete("sink-gone".into(), ExchangeDeleteOptions::default()).await.unwrap();
    for sequence in 2..100 {
        bench.sink.send(&mut record("gone", sequence, 10));
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
            report @ (Report::Delivered { .. } | Report::Broken { .. }) => panic!("{report:?}"),
        }
    }
    assert_eq!(first, Some(PublishError::TopicMissing));
    // The next channel declares it again; nothing is bound yet.
    let verdict = loop {
        bench.sink.send(&mut record("gone", 2, 10));
        match bench.next().await {
            Report::Failed { error: PublishError::Disconnected, .. } | Report::Lost { .. } | Report::Connected => {}
            Report::Failed { error, .. } => break error,
            report => panic!("{report:?}"),
        }
    };
    assert_eq!(verdict, PublishError::Unroutable);
    bench.bind("gone").await;
    bench.sink.send(&mut record("gone", 2, 10));
    assert_eq!(bench.verdicts(1).await[&2], Ok(()));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_that_rejects_shows_as_nack() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(3));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let mut bench = Bench::new("sink-full", &url, &url, arguments).await;
    bench.bind("full").await;
    for sequence in 1..=50 {
        bench.sink.send(&mut record("full", sequence, 10));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_is_told_alone_and_suspected_among_others() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-large", &url, &url, FieldTable::default()).await;
    bench.bind("large").await;
    let mut verdicts = BTreeMap::new();
    for _ in 0..20 {
        for sequence in 1..=3 {
            bench.sink.send(&mut record("large", sequence, if sequence == 2 { RABBITMQ_MESSAGE_MAX } else { 10 }));
        }
        verdicts = bench.verdicts(3).await;
        if broker.is_given("rabbitmq") && verdicts[&2] == Ok(()) {
            eprintln!("the given broker takes so much: nothing was tested");
            return bench.tidy().await;
        }
        if verdicts[&2] != Err(PublishError::TooLarge) {
            break; // Else the first was confirmed before the second was written, which was alone then, as a busy machine has it.
        }
    }
    assert!(matches!(verdicts[&2], Err(PublishError::Suspect(_))), "{verdicts:?}");
    bench.sink.send(&mut record("large", 2, RABBITMQ_MESSAGE_MAX));
    assert_eq!(bench.verdicts(1).await[&2], Err(PublishError::TooLarge));
    // It is parked, and the next is handed back once: it was not among those that failed.
    bench.sink.send(&mut record("large", 4, 10));
    assert_eq!(bench.verdicts(1).await[&4], Err(PublishError::Withdrawn));
    bench.sink.send(&mut record("large", 4, 10));
    assert_eq!(bench.verdicts(1).await[&4], Ok(()));
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_a_missing_vhost_and_a_closed_port_say_so() {
    let broker = Brokers::shared();
    let address = broker.rabbitmq_address();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (url, expected) in [
        (format!("amqp://guest:wrong@{address}/%2f"), "password is wrong"),
        (format!("amqp://guest:guest@{address}/nonesuch"), "nonesuch"),
        (format!("amqp://{closed}/%2f"), "refused"),
    ] {
        let (_sink, mut said) = sink(settings(&url, "sink-refused"));
        let Some(Report::Lost { detail, .. }) = timeout(PATIENCE, said.recv()).await.unwrap() else {
            panic!("no loss")
        };
        assert!(detail.contains(expected) && !detail.contains("wrong@"), "{detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_topology_is_made_and_made_again() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
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

#[tokio::test(flavor = "multi_thread")]
async fn tls_trusts_whom_it_was_told_to_and_names_what_it_does_not() {
    let broker = Brokers::shared();
    if broker.is_given("rabbitmq") {
        return eprintln!("the given broker's TLS is not known: nothing was tested");
    }
    let (port, certificate) = (broker.address("RABBITMQ_TLS").port(), broker.certificate());
    let plain = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-tls", &plain, &plain, FieldTable::default()).await;
    bench.bind("tls").await;
    let other = tempfile::NamedTempFile::new().unwrap();
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(other.path(), stranger.cert.pem()).unwrap();
    let at = |host: &str, ca: &std::path::Path| Settings {
        ca_file: Some(ca.to_owned()),
        ..settings(&format!("amqps://guest:guest@{host}:{port}/%2f"), "sink-tls")
    };
    for (settings, expected) in [
        (at("localhost", other.path()), "not trusted"),
        (at("127.0.0.1", &certificate), "another host name"),
        (Settings { urls: vec![plain.replace("amqp:", "amqps:")], ..at("localhost", &certificate) }, "no TLS"),
    ] {
        let (_sink, mut said) = sink(settings);
        let Some(Report::Lost { detail, .. }) = timeout(PATIENCE, said.recv()).await.unwrap() else {
            panic!("no loss")
        };
        assert!(detail.contains(expected), "{detail}");
    }
    let (sink, said) = sink(at("localhost", &certificate));
    (bench.sink, bench.reports) = (sink, said);
    assert!(matches!(bench.next().await, Report::Connected));
    bench.sink.send(&mut record("tls", 1, 100_000));
    assert_eq!(bench.verdicts(1).await[&1], Ok(()));
    assert_eq!(bench.received().await, [1]);
    bench.tidy().await;
}

/// Takes 10 to 20 s: the sink looks for a changed file every few seconds, and the wrong password has to have been seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_password_needs_no_restart_and_a_wrong_one_costs_nothing() {
    let broker = Arc::new(Brokers::shared());
    if broker.is_given("rabbitmq") {
        return eprintln!("the given broker's users are not ours: nothing was tested");
    }
    let url = broker.rabbitmq().to_owned();
    let mut bench = Bench::new("sink-reload", &url, &url, FieldTable::default()).await;
    bench.bind("reload").await;
    let set_password = |password: &str| {
        let order = serde_json::json!({ "password": password, "tags": "" });
        broker.ask("PUT", "/api/users/reloading", &order.to_string());
    };
    set_password("one");
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    broker.ask("PUT", "/api/permissions/%2f/reloading", all);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one\n").unwrap();
    let password = PasswordSource { file: Some(file.path().to_owned()), environment: None };
    let settings = Settings { username: Some("reloading".into()), password, ..settings(&url, "sink-reload") };
    (bench.sink, bench.reports) = sink(settings);
    assert!(matches!(bench.next().await, Report::Connected));
    let connections = async || {
        let broker = broker.clone();
        let listed = tokio::task::spawn_blocking(move || broker.ask("GET", "/api/connections", "").json());
        let listed = listed.await.unwrap();
        let ours = listed.as_array().unwrap().iter().filter(|connection| connection["user"] == "reloading");
        ours.map(|connection| connection["name"].to_string()).collect::<BTreeSet<_>>()
    };
    let until = Instant::now() + PATIENCE;
    let first = loop {
        // The management pages show a connection a moment after it stands.
        let first = connections().await;
        if first.len() == 1 {
            break first;
        }
        assert!(Instant::now() < until, "{first:?}");
    };
    // The broker does not know this one; the connection that stands goes on.
    std::fs::write(file.path(), "wrong").unwrap();
    let mut sequence = 0;
    let until = Instant::now() + Duration::from_secs(7);
    while Instant::now() < until {
        sequence += 1;
        bench.sink.send(&mut record("reload", sequence, 10));
        assert_eq!(bench.verdicts(1).await[&sequence], Ok(()));
    }
    assert_eq!(connections().await, first);
    // This one it knows: another connection, and records are neither lost nor refused meanwhile.
    set_password("two");
    std::fs::write(file.path(), "two").unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        for _ in 0..100 {
            sequence += 1;
            bench.sink.send(&mut record("reload", sequence, 10));
        }
        assert!(bench.verdicts(100).await.values().all(Result::is_ok));
        let now = connections().await;
        if now.len() == 1 && now != first {
            break;
        }
        assert!(Instant::now() < until, "still {now:?}");
    }
    bench.sink.send(&mut record("reload", sequence + 1, 10));
    assert_eq!(bench.verdicts(1).await[&(sequence + 1)], Ok(()));
    assert_eq!(bench.received().await, (1..=sequence + 1).collect::<Vec<_>>());
    bench.tidy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_lanes_than_channels_take_turns() {
    let broker = Brokers::shared();
    let url = broker.rabbitmq().to_owned();
    // Two of the four are left for declaring.
    let mut bench = Bench::new("sink-lanes", &format!("{url}?channel_max=4"), &url, FieldTable::default()).await;
    bench.bind("lane.*").await;
    for sequence in 0..300 {
        bench.sink.send(&mut record(&format!("lane.{}", sequence % 10), sequence, 10));
    }
    assert!(bench.verdicts(300).await.values().all(Result::is_ok));
    let received = bench.received().await;
    assert_eq!(received.len(), 300);
    for lane in 0..10 {
        assert!(received.iter().filter(|sequence| *sequence % 10 == lane).is_sorted(), "lane {lane}");
    }
    bench.tidy().await;
}
