//! librdkafka's properties that may be tuned: an allow-list, taken from its CONFIGURATION.md (2.12). What could break the promise, load
//! code, hold a secret or show one is refused by name, with the reason.

use std::collections::BTreeMap;

use figment::value::Value;

use super::reader::{Parsed, Section};
use super::suggest::did_you_mean;
use super::values::shown;

/// What a property takes.
enum Takes {
    Number(i64, i64),
    /// With a fraction.
    Decimal(i64, i64),
    Flag,
    OneOf(&'static [&'static str]),
    Text,
}
use Takes::{Decimal, Flag, Number, OneOf, Text};

const INT_MAX: i64 = i32::MAX as i64;

const ALLOWED: &[(&str, Takes)] = &[
    ("api.version.request.timeout.ms", Number(1, 300_000)),
    ("batch.num.messages", Number(1, 1_000_000)),
    ("broker.address.family", OneOf(&["any", "v4", "v6"])),
    ("broker.address.ttl", Number(0, 86_400_000)),
    ("client.dns.lookup", OneOf(&["use_all_dns_ips", "resolve_canonical_bootstrap_servers_only"])),
    ("client.rack", Text),
    ("compression.level", Number(-1, 12)),
    // gzip and zstd are not built in.
    ("compression.type", OneOf(&["none", "lz4", "snappy"])),
    ("connections.max.idle.ms", Number(0, INT_MAX)),
    ("enable.metrics.push", Flag),
    // A longer one looks like a broker that does not answer: after 10 s without a report a topic counts as held.
    ("linger.ms", Decimal(0, 1_000)),
    ("message.copy.max.bytes", Number(0, 1_000_000_000)),
    ("metadata.max.age.ms", Number(1, 86_400_000)),
    ("metadata.recovery.rebootstrap.trigger.ms", Number(0, INT_MAX)),
    ("queue.buffering.backpressure.threshold", Number(1, 1_000_000)),
    ("receive.message.max.bytes", Number(1_000, INT_MAX)),
    ("reconnect.backoff.max.ms", Number(0, 3_600_000)),
    ("reconnect.backoff.ms", Number(0, 3_600_000)),
    ("retry.backoff.max.ms", Number(1, 300_000)),
    ("retry.backoff.ms", Number(1, 300_000)),
    ("socket.connection.setup.timeout.ms", Number(1_000, INT_MAX)),
    ("socket.keepalive.enable", Flag),
    ("socket.max.fails", Number(1, 1_000_000)),
    ("socket.nagle.disable", Flag),
    ("socket.receive.buffer.bytes", Number(0, 100_000_000)),
    ("socket.send.buffer.bytes", Number(0, 100_000_000)),
    ("socket.timeout.ms", Number(1_000, 300_000)),
    ("ssl.crl.location", Text),
    ("topic.metadata.propagation.max.ms", Number(0, 30_000)),
    ("topic.metadata.refresh.fast.interval.ms", Number(1, 60_000)),
    // Without the refresh (-1) a moved partition or a topic made late would not be seen.
    ("topic.metadata.refresh.interval.ms", Number(1_000, 3_600_000)),
    ("topic.metadata.refresh.sparse", Flag),
];

/// Second names of allowed properties; they are kept under the first.
const ALIASES: [(&str, &str); 2] = [("queue.buffering.max.ms", "linger.ms"), ("compression.codec", "compression.type")];

/// Names, or beginnings of names that end with a dot, and why they are refused.
const REFUSED: &[(&[&str], &str)] = &[
    (&["acks", "request.required.acks"], "a confirmed event must be on all in-sync replicas, so it is always `all`"),
    (
        &["enable.idempotence", "enable.gapless.guarantee", "max.in.flight", "max.in.flight.requests.per.connection"],
        "order without gaps depends on the idempotent producer, which the relay sets up itself",
    ),
    (&["queuing.strategy", "msg_order_cmp"], "events leave in the order in which they were accepted"),
    (
        &["message.timeout.ms", "delivery.timeout.ms", "message.send.max.retries", "retries", "request.timeout.ms"],
        "an event that is given up leaves a gap in the order; the relay tries without end",
    ),
    (
        &["partitioner", "partitioner_cb", "sticky.partitioning.linger.ms"],
        "a key must keep its partition, the same that Java's clients choose (murmur2_random)",
    ),
    (&["transactional.id", "transaction.timeout.ms"], "the relay does not use transactions"),
    (
        &["plugin.library.paths", "interceptors", "ssl.engine.", "ssl.providers", "ssl_engine_callback_data"],
        "it loads foreign code into the relay",
    ),
    (
        &["enable.ssl.certificate.verification", "ssl.endpoint.identification.algorithm", "ssl.certificate.verify_cb"],
        "anybody could pose as the broker; for a certificate authority of your own use `security.ca_file`",
    ),
    (&["enable.sasl.oauthbearer.unsecure.jwt"], "anybody could make such a token"),
    (&["sasl.kerberos."], "it runs a command, and Kerberos is not built in"),
    (
        &["debug", "log_level", "log."],
        "librdkafka's messages may hold keys and content, and never reach the log; use `log.level` for the relay's own",
    ),
    (&["statistics.interval.ms"], "the relay learns from librdkafka's statistics whether a broker answers"),
    (
        &["metadata.recovery.strategy"],
        "without `rebootstrap`, an output may lose every broker that it knows and find none again",
    ),
    (&["delivery.report.only.error", "dr_cb", "dr_msg_cb"], "the relay needs to hear of every event"),
    (
        &["message.max.bytes", "batch.size", "queue.buffering.max.messages", "queue.buffering.max.kbytes"],
        "the relay sets it to fit what it lets be in flight",
    ),
    (&["allow.auto.create.topics", "topic.blacklist"], "topics are made on purpose: see `sipsim-relay topics`"),
    (&["sasl.password"], "it holds a secret; use `security.password_file`, or the environment's …__SECURITY__PASSWORD"),
    (
        &["sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"],
        "it holds a secret; use `security.client_secret_file`, or the environment's …__SECURITY__CLIENT_SECRET",
    ),
    (
        &["ssl.key.password", "ssl.key.pem", "ssl_key", "ssl.keystore.location", "ssl.keystore.password"],
        "it holds a secret; use `security.private_key_file` with a key that has no password",
    ),
    (&["bootstrap.servers", "metadata.broker.list"], "use `brokers`"),
    (&["client.id"], "use `instance`"),
    (&["security.protocol"], "use `security.protocol` of the output itself"),
    (&["sasl.mechanism", "sasl.mechanisms"], "use `security.mechanism`"),
    (&["sasl.username"], "use `security.username`"),
    (
        &["ssl.ca.location", "ssl.ca.pem", "ssl_ca", "ssl.ca.certificate.stores", "https.ca.location", "https.ca.pem"],
        "use `security.ca_file`",
    ),
    (&["ssl.certificate.location", "ssl.certificate.pem", "ssl_certificate"], "use `security.certificate_file`"),
    (&["ssl.key.location"], "use `security.private_key_file`"),
    (&["sasl.oauthbearer.client.id", "sasl.oauthbearer.client.credentials.client.id"], "use `security.client_id`"),
    (&["sasl.oauthbearer.token.endpoint.url"], "use `security.token_url`"),
    (&["sasl.oauthbearer.scope"], "use `security.scope`"),
    (&["sasl.oauthbearer."], "use `security.mechanism = \"OAUTHBEARER\"` and its keys"),
];

/// `outputs.NAME.properties`, flattened to dotted names and each value as librdkafka writes it.
pub(super) fn read(section: &Section<'_>) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    for (name, path, value) in section.leaves("properties") {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, first)| first);
        match judge(name).and_then(|takes| written(takes, value)) {
            Err(message) => section.problem_at(&path, message),
            Ok(_) if properties.contains_key(name) => section.problem_at(&path, format!("`{name}` is given twice")),
            Ok(value) => drop(properties.insert(name.to_owned(), value)),
        }
    }
    properties
}

fn judge(name: &str) -> Parsed<&'static Takes> {
    if let Some((_, takes)) = ALLOWED.iter().find(|(allowed, _)| *allowed == name) {
        return Ok(takes);
    }
    let refuses = |refused: &&str| name == *refused || (refused.ends_with('.') && name.starts_with(refused));
    if let Some((_, reason)) = REFUSED.iter().find(|(names, _)| names.iter().any(refuses)) {
        return Err(format!("may not be set: {reason}"));
    }
    let hint = did_you_mean(name, ALLOWED.iter().map(|(allowed, _)| *allowed));
    Err(format!("is not among the properties of librdkafka that the relay passes on{hint}"))
}

fn written(takes: &Takes, value: &Value) -> Parsed<String> {
    let text = match value {
        Value::String(_, text) => text.trim().to_owned(),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => match number.to_i128() {
            Some(number) => number.to_string(),
            None => number.to_f64().unwrap_or(f64::NAN).to_string(),
        },
        _ => return Err("must be one value, not a list".to_owned()),
    };
    let wrong = |form: String| Err(format!("{} is not {form}", shown(&text)));
    match takes {
        Number(min, max) => match text.parse::<i64>() {
            Ok(number) if (*min..=*max).contains(&number) => Ok(text),
            _ => wrong(format!("a whole number from {min} to {max}")),
        },
        Decimal(min, max) => match text.parse::<f64>() {
            Ok(number) if (*min as f64..=*max as f64).contains(&number) => Ok(text),
            _ => wrong(format!("a number from {min} to {max}")),
        },
        Flag => match text.as_str() {
            "true" | "false" => Ok(text),
            _ => wrong("true or false".to_owned()),
        },
        OneOf(words) if words.contains(&text.as_str()) => Ok(text),
        OneOf(words) => wrong(format!("one of {}", super::values::alternatives(words.iter().copied()))),
        Text if text.is_empty() || text.chars().any(char::is_control) => {
            wrong("a text without control characters".to_owned())
        }
        Text => Ok(text),
    }
}
