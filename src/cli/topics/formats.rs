//! The same need in the words of different tools.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Need, What};
use crate::cli::TopicsArgs;
use crate::config;

pub const NOTHING: &str = "No output of this configuration needs topics or queues.\n";

/// For people.
pub fn text(needs: &[Need<'_>]) -> String {
    if needs.is_empty() {
        return NOTHING.to_owned();
    }
    let mut text = describe(needs);
    text.push_str("To make what is missing: sipsim-relay topics --create --yes\n");
    text
}

/// What `--create` would do.
pub fn plan(needs: &[Need<'_>], args: &TopicsArgs) -> String {
    if needs.is_empty() {
        return NOTHING.to_owned();
    }
    let or_default =
        |number: Option<i64>| number.map_or("the broker's default number of".to_owned(), |number| number.to_string());
    let mut text = describe(needs);
    if needs.iter().any(|need| matches!(need.what, What::Kafka(..))) {
        text.push_str(&format!(
            "Topics would get {} partitions and {} replicas.\n",
            or_default(args.partitions.map(i64::from)),
            or_default(args.replication.map(i64::from))
        ));
    }
    text.push_str("Nothing was made. To make what is missing, add --yes; what exists stays as it is.\n");
    text
}

fn describe(needs: &[Need<'_>]) -> String {
    let mut text = String::new();
    for need in needs {
        match &need.what {
            What::Kafka(kafka, topics) => {
                text.push_str(&format!(
                    "Kafka at {} (output {}): {} topics\n",
                    kafka.brokers,
                    need.output,
                    topics.len()
                ));
                for topic in topics {
                    text.push_str(&format!("  {topic}\n"));
                }
            }
            What::RabbitMq(rabbit, topology) => {
                text.push_str(&format!("RabbitMQ at {} (output {})\n", hosts(rabbit), need.output));
                text.push_str(&format!("  exchange {} (topic, durable)\n", topology.exchange));
                for (queue, binding) in &topology.queues {
                    text.push_str(&format!("  queue {queue} (quorum), bound by {binding}\n"));
                }
            }
        }
    }
    text
}

/// A script for Kafka's own tool. What this configuration leaves open stands at its head, to be filled in; left empty, the broker decides.
pub fn kafka(needs: &[Need<'_>], args: &TopicsArgs) -> Result<String, String> {
    let kafkas = kafkas(needs)?;
    let mut text = "# Left empty, the brokers' defaults hold. More partitions later would move calls to other ones: choose for years.\n".to_owned();
    let mut options = String::new();
    for (variable, option, given) in [
        ("PARTITIONS", "--partitions ", args.partitions.is_some()),
        ("REPLICATION", "--replication-factor ", args.replication.is_some()),
        ("RETENTION_MS", "--config retention.ms=", false),
    ] {
        if !given {
            text.push_str(&format!("{variable}=\n"));
            options.push_str(&format!(" ${{{variable}:+{option}${variable}}}"));
        }
    }
    for (kafka, topics) in kafkas {
        if kafka.security.protocol.contains('S') {
            text.push_str(
                "# These brokers want more than an address: add --command-config FILE with their security settings.\n",
            );
        }
        for topic in topics {
            text.push_str(&format!(
                "kafka-topics.sh --bootstrap-server {} --create --if-not-exists --topic {topic}",
                quoted(&kafka.brokers)
            ));
            if let Some(partitions) = args.partitions {
                text.push_str(&format!(" --partitions {partitions}"));
            }
            if let Some(replication) = args.replication {
                text.push_str(&format!(" --replication-factor {replication}"));
            }
            text.push_str(&format!("{options}\n"));
        }
    }
    Ok(text)
}

/// `KafkaTopic` resources.
pub fn strimzi(needs: &[Need<'_>], args: &TopicsArgs) -> Result<String, String> {
    let mut text = "# For Strimzi 0.49 or newer; before that the apiVersion is kafka.strimzi.io/v1beta2.\n\
                    # Put the name of your Kafka resource for my-cluster. What is a remark below is the brokers' default until you take the # away.\n"
        .to_owned();
    let (mut seen, mut names) = (BTreeSet::new(), BTreeSet::new());
    for topic in kafkas(needs)?.into_iter().flat_map(|(_, topics)| topics) {
        if !seen.insert(topic) {
            continue; // Two outputs may share a topic.
        }
        let mut name = resource_name(topic);
        if !names.insert(name.clone()) {
            name = format!("{name}-{:08x}", crc32fast::hash(topic.as_bytes()));
        }
        text.push_str(&format!(
            "---\napiVersion: kafka.strimzi.io/v1\nkind: KafkaTopic\nmetadata:\n  name: {name}\n  labels:\n    \
             strimzi.io/cluster: my-cluster\nspec:\n  topicName: {topic}\n"
        ));
        text.push_str(&match args.partitions {
            Some(partitions) => format!("  partitions: {partitions}\n"),
            None => "  # partitions: 12\n".to_owned(),
        });
        text.push_str(&match args.replication {
            Some(replication) => format!("  replicas: {replication}\n"),
            None => "  # replicas: 3\n".to_owned(),
        });
        text.push_str("  # config:\n  #   retention.ms: 604800000\n");
    }
    Ok(text)
}

/// A topic's name as Kubernetes takes names (RFC 1123): lower case, `-` for `_`, each part beginning and ending with a letter or digit.
fn resource_name(topic: &str) -> String {
    let name: String = topic.chars().map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() }).collect();
    let parts: Vec<&str> = name.split('.').map(|part| part.trim_matches('-')).filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { "topic".to_owned() } else { parts.join(".") }
}

/// Bytes that a queue may hold: half a million events of 2 KiB. Each quorum queue has them on three nodes, and five queues share the disks.
const QUEUE_BYTES_MAX: u64 = 1 << 30;

/// Definitions for `rabbitmqctl import_definitions` or the management page. The policy bounds the queues: one that nobody reads would fill the
/// broker's disk, and block everybody. It has the broker refuse what is over, which the relay keeps, and never drop what is oldest.
pub fn rabbitmq(needs: &[Need<'_>]) -> Result<String, String> {
    let (mut exchanges, mut queues, mut bindings, mut policies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for need in needs {
        let What::RabbitMq(rabbit, topology) = &need.what else { continue };
        let vhost = vhost(rabbit);
        let exchange = json!({
            "name": topology.exchange, "vhost": vhost, "type": "topic", "durable": true, "auto_delete": false,
            "internal": false, "arguments": {},
        });
        push_once(&mut exchanges, exchange);
        let policy = json!({
            "name": "sipsim", "vhost": vhost, "pattern": "^sipsim\\.(call|ai|sms|test|extra|unknown)$", "apply-to": "queues", "priority": 0,
            "definition": { "max-length-bytes": QUEUE_BYTES_MAX, "overflow": "reject-publish" },
        });
        push_once(&mut policies, policy);
        for (queue, binding) in &topology.queues {
            let declared = json!({
                "name": queue, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": { "x-queue-type": "quorum" },
            });
            push_once(&mut queues, declared);
            let bound = json!({
                "source": topology.exchange, "vhost": vhost, "destination": queue, "destination_type": "queue",
                "routing_key": binding, "arguments": {},
            });
            push_once(&mut bindings, bound);
        }
    }
    if exchanges.is_empty() {
        return Err("no output of this configuration is of type rabbitmq".to_owned());
    }
    Ok(format!(
        "{:#}\n",
        json!({ "exchanges": exchanges, "queues": queues, "bindings": bindings, "policies": policies })
    ))
}

fn push_once(all: &mut Vec<Value>, one: Value) {
    if !all.contains(&one) {
        all.push(one);
    }
}

fn kafkas<'a>(needs: &'a [Need<'_>]) -> Result<Vec<(&'a config::Kafka, &'a [String])>, String> {
    let all: Vec<_> = needs
        .iter()
        .filter_map(|need| match &need.what {
            What::Kafka(kafka, topics) => Some((*kafka, topics.as_slice())),
            What::RabbitMq(..) => None,
        })
        .collect();
    if all.is_empty() { Err("no output of this configuration is of type kafka".to_owned()) } else { Ok(all) }
}

/// The virtual host that the first URL names; all of one output name the same broker.
pub fn vhost(rabbit: &config::RabbitMq) -> String {
    let path = rabbit.urls.first().and_then(|url| url.split_once("://")).and_then(|(_, rest)| rest.split_once('/'));
    let named = path.map_or("", |(_, path)| path.split('?').next().unwrap_or_default());
    if named.is_empty() { "/".to_owned() } else { percent_decoded(named) }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let mut byte = [0];
        if first == b'%' && after.len() >= 2 && hex::decode_to_slice(&after[..2], &mut byte).is_ok() {
            bytes.push(byte[0]);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The URLs without whatever credentials somebody put into them.
fn hosts(rabbit: &config::RabbitMq) -> String {
    let host = |url: &String| match url.split_once("://") {
        Some((scheme, rest)) => {
            let authority = rest.split('/').next().unwrap_or_default();
            format!("{scheme}://{}", authority.rsplit('@').next().unwrap_or_default())
        }
        None => "?".to_owned(),
    };
    rabbit.urls.iter().map(host).collect::<Vec<_>>().join(", ")
}

/// As one word of a POSIX shell.
pub fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b",.:_-[]".contains(&b);
    if text.bytes().all(|b| plain(b) && !b"[]".contains(&b)) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
