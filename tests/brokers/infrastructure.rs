//! The readers that the other tests stand on see what is there. (That brokers keep it through a stop and a kill: `outages` in recover.rs.)

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::Brokers;

const STRUCTURED: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","partitionkey":"k","data":{"a":1}}"#;

#[test]
fn kafka_is_read_to_the_byte_with_keys_and_headers() {
    let brokers = Brokers::shared();
    brokers.create_topics(&["infrastructure"], 3);
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers.kafka()).set("acks", "all").create().expect("a producer");
    let send = |headers: &[(&str, &str)], value: &[u8]| {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        let record = BaseRecord::to("infrastructure").key("k").headers(headers).payload(value);
        producer.send(record).map_err(|(error, _)| error).expect("it is queued");
        producer.flush(Duration::from_secs(30)).expect("it is delivered");
    };
    send(&[("content-type", "application/cloudevents+json; charset=UTF-8")], STRUCTURED.as_bytes());
    let attributes = [("ce_specversion", "1.0"), ("ce_id", "2"), ("ce_source", "/s"), ("ce_type", "t")];
    send(&[&attributes[..], &[("content-type", "application/octet-stream")]].concat(), b"\xff\x00");
    send(&[], b"");

    let read = brokers.read_kafka(&["infrastructure"], 3);
    assert_eq!(read.len(), 3);
    assert_eq!(
        read.iter().map(|message| message.offset).collect::<Vec<_>>(),
        [0, 1, 2],
        "one key, one partition, in order"
    );
    assert!(read.iter().all(|message| message.key.as_deref() == Some("k")));
    assert_eq!(read[0].text(), STRUCTURED);
    assert_eq!(read[0].cloudevent["mode"], "structured");
    assert_eq!(read[0].cloudevent["attributes"]["id"], "1");
    assert_eq!(read[0].cloudevent["data"], r#"{"a": 1}"#);
    assert_eq!(read[1].value.as_deref(), Some(&b"\xff\x00"[..]));
    assert_eq!(read[1].header("ce_id"), Some("2"));
    assert_eq!(read[1].cloudevent["mode"], "binary");
    assert_eq!(read[1].cloudevent["data_base64"], "/wA=");
    assert_eq!(read[2].value.as_deref(), Some(&b""[..]), "an empty value is not null");
    assert!(read[2].cloudevent["error"].is_string(), "nothing makes a CloudEvent of this: {}", read[2].cloudevent);
}

/// Takes 10 s on a busy machine: the reader in Python and `rabbitmqctl` take seconds to start.
#[test]
fn rabbitmq_is_read_with_its_properties() {
    let brokers = Brokers::shared();
    brokers.bind("infrastructure", &["infrastructure.*"]);
    let publish = |key: &str, body: &str| {
        let properties =
            r#"{"content_type":"application/cloudevents+json; charset=UTF-8","delivery_mode":2,"headers":{"x":"y"}}"#;
        let payload = serde_json::Value::from(body);
        let order = format!(
            r#"{{"properties":{properties},"routing_key":"{key}","payload":{payload},"payload_encoding":"string"}}"#
        );
        brokers.ask("POST", "/api/exchanges/%2f/sipsim/publish", &order).json()["routed"] == true
    };
    assert!(publish("infrastructure.tags", STRUCTURED));
    assert!(!publish("infrastructure", STRUCTURED), "no binding takes this one");

    let read = brokers.read_rabbitmq(&["infrastructure"], 1);
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].topic, "infrastructure.tags");
    assert_eq!(read[0].text(), STRUCTURED);
    assert_eq!(read[0].header("x"), Some("y"));
    assert_eq!(read[0].properties["content_type"], "application/cloudevents+json; charset=UTF-8");
    assert_eq!(read[0].properties["delivery_mode"], 2);
    assert_eq!(read[0].cloudevent["mode"], "structured");
    assert_eq!(read[0].cloudevent["attributes"]["partitionkey"], "k");
    assert!(
        brokers.rabbitmqctl(&["list_queues", "--quiet", "name", "messages"]).contains("infrastructure\t0"),
        "they were taken out"
    );
}
