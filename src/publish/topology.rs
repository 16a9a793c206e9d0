//! What a configuration needs at its brokers: topics for Kafka; an exchange, queues and bindings for RabbitMQ. Nothing is asked of a broker.

use std::sync::Arc;

use crate::config::{self, Config, Routes};
use crate::normalize::{EventName, Group, Known};

/// What RabbitMQ needs so that every event that can be routed finds a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// A durable topic exchange.
    pub exchange: String,
    /// Queue and binding key. A queue comes once for each of its bindings.
    pub queues: Vec<(String, String)>,
}

/// The topics of one Kafka output, each once, in the order of SIPSIM's events, then `events.extra`, then `unknown`.
pub fn kafka_topics(config: &Config, kafka: &config::Kafka) -> Vec<String> {
    destinations(config, &kafka.topics)
}

/// Every topic or routing key that an event can be sent to, each once, in the same order.
pub fn destinations(config: &Config, routes: &Routes) -> Vec<String> {
    let mut all = Vec::new();
    for event in events(config) {
        for destination in routed(config, routes, &event) {
            if !all.contains(&destination) {
                all.push(destination);
            }
        }
    }
    all
}

/// The exchange of one RabbitMQ output with a queue `sipsim.GROUP` for each group, bound to `sipsim.GROUP.*`. Routing keys that do not match
/// it, from a template or override of the operator's own, are bound one by one.
pub fn rabbitmq(config: &Config, rabbitmq: &config::RabbitMq) -> Topology {
    let mut queues = Vec::new();
    for group in [Group::Call, Group::Ai, Group::Sms, Group::Test, Group::Extra, Group::Unknown] {
        let queue = format!("sipsim.{}", group.as_str());
        let members: Vec<EventName> = events(config).into_iter().filter(|event| event.group() == group).collect();
        if members.is_empty() {
            continue; // `extra`, when nothing is declared.
        }
        queues.push((queue.clone(), format!("{queue}.*")));
        for key in members.iter().flat_map(|event| routed(config, &rabbitmq.routing_keys, event)) {
            let matched = key.strip_prefix(&queue).and_then(|rest| rest.strip_prefix('.'));
            let binding = (queue.clone(), key.clone());
            if matched.is_none_or(|word| word.contains('.')) && !queues.contains(&binding) {
                queues.push(binding);
            }
        }
    }
    Topology { exchange: rabbitmq.exchange.clone(), queues }
}

/// Every name that an event can have here. What `events.discard` names is among them: it may be taken off that list tomorrow.
fn events(config: &Config) -> Vec<EventName> {
    let known = Known::ALL.into_iter().map(EventName::Known);
    let extra = config.events.extra.iter().map(|name| EventName::Extra(Arc::clone(name)));
    known.chain(extra).chain([EventName::Unknown]).collect()
}

/// An event's topics or routing keys: one, unless the template names the account.
fn routed(config: &Config, routes: &Routes, event: &EventName) -> Vec<String> {
    let mut all: Vec<String> = config
        .accounts
        .iter()
        .map(|account| routes.fill(event.as_str(), event.group().as_str(), account.name.as_str()))
        .collect();
    all.dedup();
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::config::*;

    pub(crate) fn config(accounts: &[&str], extra: &[&str], outputs: Vec<Output>) -> Config {
        let here = "127.0.0.1:0".parse().unwrap();
        let account = |name: &&str| Account {
            name: Name::new(name).unwrap(),
            path: "/".into(),
            secrets: None,
            environment_secret: None,
            tolerance: Duration::ZERO,
            journal_max: None,
            keep_refused: 0,
        };
        Config {
            instance: "relay".into(),
            ingress: Ingress {
                listen: here,
                body_max: 0,
                headers_max: 0,
                buffered_max: 0,
                deadline: Duration::ZERO,
                idle_timeout: Duration::ZERO,
                connections_max: 0,
                tls: None,
            },
            accounts: accounts.iter().map(account).collect(),
            events: Events { discard: vec!["sms".into()], extra: extra.iter().map(|name| (*name).into()).collect() },
            envelope: Envelope { source: String::new() },
            journal: Journal {
                path: "journal.db".into(),
                size_max: 0,
                free_min: 0,
                retention: Duration::ZERO,
                trail: Duration::ZERO,
            },
            outputs,
            admin: Admin { listen: here, hosts: Vec::new() },
            shutdown: Shutdown { delay: Duration::ZERO, drain: Duration::ZERO },
            log: Log { format: LogFormat::Text, level: tracing::Level::INFO },
        }
    }

    pub(crate) fn kafka(template: &str, by_event: &[(&str, &str)]) -> Kafka {
        Kafka {
            instance: "relay".into(),
            topics: routes(template, by_event),
            mode: Mode::Structured,
            brokers: "127.0.0.1:9092".into(),
            security: KafkaSecurity::default(),
            record_max: None,
            properties: BTreeMap::new(),
        }
    }

    pub(crate) fn rabbit(template: &str, by_event: &[(&str, &str)]) -> RabbitMq {
        RabbitMq {
            instance: "relay".into(),
            urls: vec!["amqp://127.0.0.1:5672/%2f".into()],
            username: None,
            password: Default::default(),
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            exchange: "sipsim".into(),
            routing_keys: routes(template, by_event),
            declare: true,
            management_url: None,
        }
    }

    fn routes(template: &str, by_event: &[(&str, &str)]) -> Routes {
        let by_event = by_event.iter().map(|(event, template)| (event.to_string(), template.to_string())).collect();
        Routes { template: template.to_owned(), by_event }
    }

    #[test]
    fn kafka_gets_a_topic_for_each_event_name() {
        let topics = kafka_topics(&config(&["default"], &["fax"], vec![]), &kafka("sipsim.{event}", &[]));
        assert_eq!(
            topics,
            [
                "sipsim.incoming_call_start",
                "sipsim.incoming_call_start_chain_member_call",
                "sipsim.incoming_call_end_chain_member_call",
                "sipsim.incoming_call_answer",
                "sipsim.incoming_call_end",
                "sipsim.outgoing_call_start",
                "sipsim.outgoing_call_answer",
                "sipsim.outgoing_call_end",
                "sipsim.voicemail",
                "sipsim.tags",
                "sipsim.speech",
                "sipsim.summary",
                "sipsim.sms",
                "sipsim.rating",
                "sipsim.test",
                "sipsim.fax",
                "sipsim.unknown",
            ]
        );
    }

    #[test]
    fn topics_that_events_or_accounts_share_come_once() {
        let both = config(&["a", "b"], &[], vec![]);
        assert_eq!(kafka_topics(&both, &kafka("all", &[])), ["all"]);
        assert_eq!(kafka_topics(&both, &kafka("t.{group}", &[])), ["t.call", "t.ai", "t.sms", "t.test", "t.unknown"]);
        assert_eq!(
            kafka_topics(&both, &kafka("all", &[("sms", "{account}.texts"), ("test", "a.texts")])),
            ["all", "a.texts", "b.texts"]
        );
    }

    #[test]
    fn rabbitmq_gets_a_queue_for_each_group() {
        let group = |name: &str| (format!("sipsim.{name}"), format!("sipsim.{name}.*"));
        let default = rabbit("sipsim.{group}.{event}", &[]);
        let topology = rabbitmq(&config(&["default"], &[], vec![]), &default);
        assert_eq!(topology.exchange, "sipsim");
        assert_eq!(topology.queues, [group("call"), group("ai"), group("sms"), group("test"), group("unknown")]);

        let topology = rabbitmq(&config(&["default"], &["fax"], vec![]), &default);
        assert_eq!(topology.queues[4..], [group("extra"), group("unknown")]);
    }

    #[test]
    fn a_routing_key_that_the_pattern_misses_is_bound_by_itself() {
        let own = rabbit("sipsim.{group}.{event}", &[("sms", "texts.{account}"), ("test", "sipsim.test.of.{account}")]);
        let topology = rabbitmq(&config(&["a", "b"], &[], vec![]), &own);
        let bindings = |queue: &str| -> Vec<String> {
            topology.queues.iter().filter(|(name, _)| name == queue).map(|(_, binding)| binding.clone()).collect()
        };
        assert_eq!(bindings("sipsim.call"), ["sipsim.call.*"]);
        assert_eq!(bindings("sipsim.sms"), ["sipsim.sms.*", "texts.a", "texts.b"]);
        assert_eq!(bindings("sipsim.test"), ["sipsim.test.*", "sipsim.test.of.a", "sipsim.test.of.b"]);
    }
}
