use super::*;
use crate::config::{Name, Output};
use crate::publish::topology::tests::{config, kafka, rabbit};

fn output(name: &str, kind: OutputKind) -> Output {
    Output { name: Name::new(name).unwrap(), kind }
}

fn args(format: TopicsFormat) -> TopicsArgs {
    TopicsArgs { format, create: false, yes: false, partitions: None, replication: None }
}

fn both() -> Config {
    let kafka = OutputKind::Kafka(kafka("sipsim.{group}", &[]));
    let rabbit = OutputKind::RabbitMq(rabbit("sipsim.{group}.{event}", &[("sms", "texts")]));
    config(&["default"], &[], vec![output("kafka", kafka), output("rabbit", rabbit)])
}

#[test]
fn people_read_what_is_needed_and_how_to_make_it() {
    let (text, in_order) = topics(&both(), &args(TopicsFormat::Text)).unwrap();
    assert!(in_order);
    assert_eq!(
        text,
        "Kafka at 127.0.0.1:9092 (output kafka): 5 topics
  sipsim.call
  sipsim.ai
  sipsim.sms
  sipsim.test
  sipsim.unknown
RabbitMQ at amqp://127.0.0.1:5672 (output rabbit)
  exchange sipsim (topic, durable)
  queue sipsim.call (quorum), bound by sipsim.call.*
  queue sipsim.ai (quorum), bound by sipsim.ai.*
  queue sipsim.sms (quorum), bound by sipsim.sms.*
  queue sipsim.sms (quorum), bound by texts
  queue sipsim.test (quorum), bound by sipsim.test.*
  queue sipsim.unknown (quorum), bound by sipsim.unknown.*
To make what is missing: sipsim-relay topics --create --yes
"
    );
}

#[test]
fn creating_without_yes_only_shows_what_it_would_do() {
    let asked = TopicsArgs { create: true, partitions: Some(6), ..args(TopicsFormat::Text) };
    let (text, in_order) = topics(&both(), &asked).unwrap();
    assert!(in_order);
    assert!(text.contains("would get 6 partitions and the broker's default number of replicas"), "{text}");
    assert!(text.ends_with("Nothing was made. To make what is missing, add --yes; what exists stays as it is.\n"));
}

#[test]
fn a_console_needs_nothing() {
    let console = config(&["default"], &[], vec![output("console", OutputKind::Console)]);
    assert_eq!(topics(&console, &args(TopicsFormat::Text)).unwrap(), (formats::NOTHING.to_owned(), true));
    assert!(topics(&console, &args(TopicsFormat::Kafka)).unwrap_err().contains("type kafka"));
    assert!(topics(&console, &args(TopicsFormat::Strimzi)).unwrap_err().contains("type kafka"));
    assert!(topics(&console, &args(TopicsFormat::Rabbitmq)).unwrap_err().contains("type rabbitmq"));
}

#[test]
fn kafkas_own_tool_gets_a_line_a_topic() {
    let (text, _) = topics(&both(), &args(TopicsFormat::Kafka)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1..4], ["PARTITIONS=", "REPLICATION=", "RETENTION_MS="]);
    assert_eq!(
        lines[4],
        "kafka-topics.sh --bootstrap-server 127.0.0.1:9092 --create --if-not-exists --topic sipsim.call \
         ${PARTITIONS:+--partitions $PARTITIONS} ${REPLICATION:+--replication-factor $REPLICATION} \
         ${RETENTION_MS:+--config retention.ms=$RETENTION_MS}"
    );
    assert_eq!(lines.len(), 4 + 5);

    let sized = TopicsArgs { partitions: Some(12), replication: Some(3), ..args(TopicsFormat::Kafka) };
    let (text, _) = topics(&both(), &sized).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], "RETENTION_MS=");
    assert!(
        lines[2..].iter().all(|line| line.contains(" --partitions 12 --replication-factor 3 ${RETENTION_MS:+")),
        "{text}"
    );
}

#[test]
fn strimzi_gets_a_resource_a_topic_with_a_name_that_kubernetes_takes() {
    let mut kafka = kafka("sipsim.{event}", &[("sms", "Sms"), ("test", "a-b"), ("tags", "a_b"), ("rating", "_.x_")]);
    kafka.security.protocol = "PLAINTEXT".into();
    let config = config(&["default"], &[], vec![output("kafka", OutputKind::Kafka(kafka))]);
    let sized = TopicsArgs { partitions: Some(12), replication: Some(3), ..args(TopicsFormat::Strimzi) };
    let (text, _) = topics(&config, &sized).unwrap();
    assert!(
        text.contains(
            "---
apiVersion: kafka.strimzi.io/v1
kind: KafkaTopic
metadata:
  name: sipsim.incoming-call-start
  labels:
    strimzi.io/cluster: my-cluster
spec:
  topicName: sipsim.incoming_call_start
  partitions: 12
  replicas: 3
  # config:
  #   retention.ms: 604800000
"
        ),
        "{text}"
    );
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("  name: ")).collect();
    assert_eq!(names.len(), 16);
    let fits = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    assert!(names.iter().all(|name| fits(name)), "{names:?}");
    let distinct: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "{names:?}");
}

#[test]
fn rabbitmq_gets_definitions() {
    let (text, _) = topics(&both(), &args(TopicsFormat::Rabbitmq)).unwrap();
    let definitions: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(definitions["exchanges"][0]["name"], "sipsim");
    assert_eq!(definitions["exchanges"][0]["type"], "topic");
    assert_eq!(definitions["exchanges"][0]["vhost"], "/");
    assert_eq!(definitions["queues"].as_array().unwrap().len(), 5, "a queue with two bindings is declared once");
    assert_eq!(definitions["queues"][0]["name"], "sipsim.call");
    assert_eq!(definitions["queues"][0]["arguments"]["x-queue-type"], "quorum");
    let bindings = definitions["bindings"].as_array().unwrap();
    assert_eq!(bindings.len(), 6);
    assert_eq!(bindings[0]["source"], "sipsim");
    assert_eq!(bindings[0]["destination"], "sipsim.call");
    assert_eq!(bindings[0]["routing_key"], "sipsim.call.*");
    let policies = definitions["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 1);
    assert_eq!(policies[0]["definition"]["overflow"], "reject-publish", "nothing is dropped");
}

#[test]
fn no_password_of_a_url_is_shown() {
    let mut rabbit = rabbit("k", &[]);
    rabbit.urls = vec!["amqps://user:hunter2@broker:5671/sip%20sim".into()];
    let config = config(&["default"], &[], vec![output("rabbit", OutputKind::RabbitMq(rabbit))]);
    let (text, _) = topics(&config, &args(TopicsFormat::Text)).unwrap();
    assert!(text.starts_with("RabbitMQ at amqps://broker:5671 (output rabbit)"), "{text}");
    let (definitions, _) = topics(&config, &args(TopicsFormat::Rabbitmq)).unwrap();
    assert!(!definitions.contains("hunter2"));
    assert!(definitions.contains(r#""vhost": "sip sim""#), "{definitions}");
}
