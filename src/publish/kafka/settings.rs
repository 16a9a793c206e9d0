//! How librdkafka is set up: what DESIGN §7 asks for, then the operator's own properties.

use std::fs::File;
use std::io;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::config;

/// Largest record that is handed to librdkafka, in bytes with key and headers. Twice and more what the default `ingress.body_max` of 8 MiB makes
/// (10.7 MiB in base64, and the attributes), and below Kafka's `socket.request.max.bytes` of 100 MiB, past which a broker hangs up
/// instead of answering.
const RECORD_MAX: u32 = 64 * 1024 * 1024;

/// Bytes of one batch. A record larger than this always travels alone, and a broker that finds one record too large refuses its
/// whole batch; so this has to be below every `max.message.bytes` that is in use. The smallest known is 256 KiB (Azure Event Hubs, basic);
/// the broker's own default is 1 MiB. Smaller costs throughput: 128 KiB are some hundred records, and five such requests may be under way.
pub const BATCH_BYTES: u32 = 128 * 1024;

/// How often librdkafka tells the state of its connections. `health` counts in these: an outage, and a producer that has no broker left.
const STATISTICS_MS: u32 = 500;

/// Bytes that one batch may have, with the operator's own properties.
pub fn batch_bytes(config: &config::Kafka) -> u32 {
    config.properties.get("batch.size").and_then(|size| size.parse().ok()).unwrap_or(BATCH_BYTES)
}

/// The settings of a producer, with passwords read now. The error names the file or key, and has no secret in it.
pub fn producer(config: &config::Kafka) -> Result<ClientConfig, String> {
    let mut settings = connection(config)?;
    let mut set = |key: &str, value: &str| {
        settings.set(key, value);
    };
    set("acks", "all");
    set("enable.idempotence", "true");
    set("request.timeout.ms", "10000");
    // What idempotence allows at most; the broker remembers the last five batches of a producer.
    set("max.in.flight.requests.per.connection", "5");
    // Without it, librdkafka goes on sending what is queued behind a batch that was refused for good: its thread has the next requests
    // out before we hear of it, and a later record of the same key would be delivered before an earlier one is sent again. With it, the
    // refusal stops this producer at once, inside librdkafka's thread: what was under way is refused by the broker, as its forerunner is
    // missing, what was queued comes back, and a new producer begins. That costs every lane of the output about a second, which is why what
    // was refused once is tried again by the second producer (`Role`). Purging from the delivery callback instead comes too late.
    set("enable.gapless.guarantee", "true");
    // As Java's producer: the same key in the same partition, whatever client wrote it.
    set("partitioner", "murmur2_random");
    // A time-out is what makes gaps: an event is in the journal until it is delivered, so librdkafka may try for ever.
    set("message.timeout.ms", "0");
    // Nobody waits for this confirmation (SIPSIM was answered before), so a few milliseconds for fuller batches cost nothing
    // that can be noticed, and spare the broker small requests. The window is deep enough that a backlog does not wait for it.
    set("linger.ms", "5");
    set("batch.size", &BATCH_BYTES.to_string());
    set("message.max.bytes", &RECORD_MAX.to_string());
    set("compression.codec", "none");
    // What is in flight is bounded by the output: 2,000 records and 32 MiB, or one record past that. librdkafka counts a record until its
    // report's event is freed, by which time the output may have sent the next ones. So these limits are above twice the window, and are
    // never met.
    set("queue.buffering.max.messages", "50000");
    set("queue.buffering.max.kbytes", &(256 * 1024).to_string());
    // How long a record for a topic that the broker does not know waits before it fails. New topics are known within a second; one that
    // takes longer is held and probed, which costs nothing but a few seconds.
    set("topic.metadata.propagation.max.ms", "5000");
    set("statistics.interval.ms", &STATISTICS_MS.to_string());
    if config.properties.contains_key("queue.buffering.max.ms") {
        settings.remove("linger.ms"); // The same setting under its old name; librdkafka would take whichever comes last.
    }
    if config.properties.contains_key("compression.type") {
        settings.remove("compression.codec");
    }
    settings.extend(config.properties.clone());
    Ok(settings)
}

/// What producers and the administration of topics have in common: where the brokers are and how they let us in.
pub fn connection(config: &config::Kafka) -> Result<ClientConfig, String> {
    let security = &config.security;
    let protocol = if security.protocol.is_empty() { "PLAINTEXT" } else { security.protocol.as_str() };
    let mut settings = ClientConfig::new();
    let mut set = |key: &str, value: &str| {
        settings.set(key, value);
    };
    set("bootstrap.servers", &config.brokers);
    set("client.id", &config.instance);
    set("allow.auto.create.topics", "false");
    // Own metrics say what there is to say; the broker need not collect more (KIP-714).
    set("enable.metrics.push", "false");
    // A broker that comes back is noticed within a second, and one connection attempt every half second is no load.
    set("reconnect.backoff.ms", "50");
    set("reconnect.backoff.max.ms", "500");
    // A line that was cut without a word is noticed by the kernel, also while nothing is sent.
    set("socket.keepalive.enable", "true");
    // A broker that hangs with its sockets open is noticed after this, instead of 60 s. What it has to answer is sent again with the same
    // numbers, so that it is not published twice; and it must be longer than `request.timeout.ms`, for which a broker may wait for replicas.
    set("socket.timeout.ms", "20000");
    // The default of 30 s would keep us at one dead address of several for as long.
    set("socket.connection.setup.timeout.ms", "10000");
    set("security.protocol", protocol);
    if protocol.ends_with("SSL") {
        match &security.ca_file {
            Some(path) => set("ssl.ca.location", text_of(path, "security.ca_file")?),
            // An OpenSSL that is built in (feature `vendored`) does not know where this system keeps its certificates; librdkafka looks in the
            // usual places.
            None => set("ssl.ca.location", "probe"),
        }
        if let Some(path) = &security.certificate_file {
            set("ssl.certificate.location", text_of(path, "security.certificate_file")?);
        }
        if let Some(path) = &security.private_key_file {
            set("ssl.key.location", text_of(path, "security.private_key_file")?);
        }
    }
    if protocol.starts_with("SASL") {
        let mechanism = security.mechanism.as_deref().unwrap_or("PLAIN");
        set("sasl.mechanism", mechanism);
        if mechanism != "OAUTHBEARER" {
            set("sasl.username", security.username.as_deref().unwrap_or_default());
            let password = security.password.read().map_err(|error| unreadable("security.password_file", &error))?;
            let password = password.ok_or("security.password_file is missing, which this mechanism needs")?;
            let text = std::str::from_utf8(password.expose())
                .map_err(|_| "the password in security.password_file is not UTF-8, which Kafka's SASL needs")?;
            set("sasl.password", text);
        }
    }
    // Its lines are dropped (see `Context::log`); this spares making them.
    settings.set_log_level(RDKafkaLogLevel::Emerg);
    Ok(settings)
}

/// A file's path as librdkafka takes it. Opened once here, as librdkafka's own message about a missing file names neither file nor reason.
fn text_of<'a>(path: &'a Path, key: &str) -> Result<&'a str, String> {
    File::open(path).map_err(|error| format!("the file of {key}, {}, cannot be read: {error}", path.display()))?;
    path.to_str().ok_or_else(|| format!("the path in {key} is not UTF-8, which librdkafka needs"))
}

fn unreadable(key: &str, error: &io::Error) -> String {
    format!("the file of {key} cannot be read: {error}")
}

/// Why librdkafka did not take the settings, without their values: one of them may be a password.
pub fn refusal(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("librdkafka does not take the value of {key}"),
        KafkaError::ClientCreation(text) => format!("librdkafka does not take the settings: {text}"),
        _ => "librdkafka could not be started".to_owned(),
    }
}
