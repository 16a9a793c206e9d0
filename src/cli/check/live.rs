//! `check --live`: what the brokers say of the topics, exchange and routing keys that the configuration can name, each finding with the
//! command that mends it. Nothing is published and nothing made.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::cli::journal::words::size;
use crate::cli::topics::{quoted, vhost};
use crate::config::{Config, Kafka, Mode, OutputKind, RabbitMq};
use crate::publish::kafka::live::{self as kafka_live, Cluster, State, Topic};
use crate::publish::kafka::{BATCH_BYTES, batch_bytes};
use crate::publish::rabbitmq::live::{self as rabbit_live, Found, Key};
use crate::publish::topology;

/// Bytes of attributes, headers and framing around an event: some hundred each, and names of at most 128 characters.
const AROUND_EVENT: usize = 4096;

/// Where Azure Event Hubs' namespaces are, and the largest request that they take: 1 MiB, less some room for what is around a record.
const AZURE: &str = ".servicebus.windows.net";
const AZURE_REQUEST_MAX: u64 = 1_040_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Events will not get through: exit code 1.
    Problem,
    Warning,
    /// For lack of rights, or because nobody can be asked.
    NotKnown,
    InOrder,
}

impl Level {
    fn words(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
            Self::NotKnown => "not known",
            Self::InOrder => "in order",
        }
    }
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub output: String,
    pub level: Level,
    pub message: String,
    /// What it is about: topics or routing keys; none for the output as a whole.
    pub about: Vec<String>,
    /// A command for a shell, if one mends it.
    pub mend: Option<String>,
}

/// Asks the brokers of every output, one output after the other.
pub fn ask(config: &Config) -> Result<Vec<Finding>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let mut all = Vec::new();
    for output in &config.outputs {
        let mut findings = Findings { output: output.name.to_string(), all: Vec::new() };
        match &output.kind {
            OutputKind::Kafka(kafka) => {
                let topics = topology::kafka_topics(config, kafka);
                match runtime.block_on(kafka_live::ask(kafka, &topics)) {
                    Ok(cluster) => of_kafka(&mut findings, config, kafka, &cluster),
                    Err(why) => findings.add(Level::Problem, format!("Kafka cannot be asked: {why}"), vec![], None),
                }
            }
            OutputKind::RabbitMq(rabbit) => {
                let keys = topology::destinations(config, &rabbit.routing_keys);
                let largest = largest(config, Mode::Structured);
                match runtime.block_on(rabbit_live::ask(rabbit, &vhost(rabbit), &keys, largest)) {
                    Ok(found) => of_rabbitmq(&mut findings, rabbit, &found, largest),
                    Err(why) => findings.add(Level::Problem, format!("RabbitMQ cannot be asked: {why}"), vec![], None),
                }
            }
            OutputKind::Console => findings.add(Level::InOrder, "the console needs nothing".into(), vec![], None),
        }
        all.append(&mut findings.all);
    }
    Ok(all)
}

pub fn print(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    for Finding { output, level, message, mend, .. } in findings {
        writeln!(out, "{}: output {output}: {message}", level.words())?;
        if let Some(mend) = mend {
            writeln!(out, "    {mend}")?;
        }
    }
    Ok(())
}

pub fn as_json(findings: &[Finding]) -> Value {
    let one = |finding: &Finding| {
        let Finding { output, level, message, about, mend } = finding;
        json!({ "output": output, "level": level.words(), "message": message, "about": about, "mend": mend })
    };
    findings.iter().map(one).collect()
}

struct Findings {
    output: String,
    all: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, level: Level, message: String, about: Vec<String>, mend: Option<String>) {
        self.all.push(Finding { output: self.output.clone(), level, message, about, mend });
    }

    /// One finding about several, if there are any.
    fn about(&mut self, level: Level, kind: &str, these: Vec<String>, what: &str, mend: Option<String>) {
        if !these.is_empty() {
            let who = match (these.len(), level) {
                (1, _) => format!("{kind} {}", these[0]),
                // What is to be mended is named in full; of what only may be, the first.
                (4.., Level::Warning | Level::NotKnown) => format!("{kind}s {} and {} more", these[0], these.len() - 1),
                _ => format!("{kind}s {}", these.join(", ")),
            };
            self.add(level, format!("{who}: {what}"), these, mend);
        }
    }
}

/// Bytes of the largest record that the largest body makes. One that is not JSON travels as base64.
fn largest(config: &Config, mode: Mode) -> usize {
    let body = config.ingress.body_max;
    match mode {
        Mode::Structured => body.div_ceil(3).saturating_mul(4).saturating_add(AROUND_EVENT),
        Mode::Binary => body.saturating_add(AROUND_EVENT),
    }
}

fn of_kafka(findings: &mut Findings, config: &Config, kafka: &Kafka, cluster: &Cluster) {
    let brokers = quoted(&kafka.brokers);
    for address in &cluster.unreachable {
        findings.add(
            Level::Problem,
            format!("the cluster tells its clients to use {address}, which does not answer from here: correct the broker's advertised.listeners, or the network"),
            vec![address.clone()],
            None,
        );
    }
    let names = |wanted: &dyn Fn(&Topic) -> bool| -> Vec<String> {
        cluster.topics.iter().filter(|topic| wanted(topic)).map(|topic| topic.name.clone()).collect()
    };
    let grant = |topics: &[String]| {
        let named: String = topics.iter().map(|topic| format!(" --topic {}", quoted(topic))).collect();
        let principal = quoted(&principal(kafka));
        format!(
            "kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal {principal} --operation Write --operation Describe{named}"
        )
    };
    let missing = names(&|topic| topic.state == State::Missing);
    let make = Some("sipsim-relay topics --create --yes".to_owned());
    findings.about(Level::Problem, "topic", missing, "missing; events for it wait, held as topic_missing", make);
    let hidden = names(&|topic| topic.state == State::Hidden);
    let mend = grant(&hidden);
    findings.about(
        Level::Problem,
        "topic",
        hidden,
        "this user may not write to it, nor see whether it exists; events for it wait, held as forbidden",
        Some(mend),
    );
    for topic in &cluster.topics {
        if let State::Faulty(code) = topic.state {
            let what = format!("topic {}: Kafka answers with error {code}", topic.name);
            findings.add(Level::Problem, what, vec![topic.name.clone()], None);
        }
    }
    let there = |topic: &Topic| topic.state == State::There;
    let forbidden = names(&|topic| there(topic) && topic.may_write == Some(false));
    let mend = grant(&forbidden);
    let what = "this user may not write to it; events for it wait, held as forbidden";
    findings.about(Level::Problem, "topic", forbidden, what, Some(mend));
    let unknown = names(&|topic| there(topic) && topic.may_write.is_none());
    findings.about(Level::NotKnown, "topic", unknown, "whether this user may write to it", None);
    let leaderless = names(&|topic| there(topic) && topic.without_leader > 0);
    let mend = Some(format!("kafka-topics.sh --bootstrap-server {brokers} --describe --unavailable-partitions"));
    findings.about(Level::Problem, "topic", leaderless, "a partition has no leader: brokers are down", mend);
    let unseen = names(&|topic| there(topic) && topic.settings.is_none());
    let named: String = unseen.iter().map(|topic| format!(" --topic {}", quoted(topic))).collect();
    let principal = quoted(&principal(kafka));
    let mend = Some(format!(
        "kafka-acls.sh --bootstrap-server {brokers} --add --allow-principal {principal} --operation DescribeConfigs{named}"
    ));
    let what = "its min.insync.replicas and max.message.bytes, since this user may not see its settings";
    findings.about(Level::NotKnown, "topic", unseen, what, mend);
    replicas(findings, &brokers, cluster);
    records(findings, config, kafka, &brokers, cluster);
    let writable: Vec<&Topic> = cluster.topics.iter().filter(|t| there(t) && t.may_write == Some(true)).collect();
    if !writable.is_empty() {
        let replication: Vec<String> = distinct(writable.iter().map(|topic| topic.replicas));
        let in_sync = distinct(writable.iter().filter_map(|topic| Some(topic.settings?.replicas_in_sync_min)));
        let in_sync = if in_sync.is_empty() { "not known".to_owned() } else { in_sync.join(", ") };
        findings.add(
            Level::InOrder,
            format!(
                "{} of {} topics exist and may be written; replication {}, min.insync.replicas {in_sync}",
                writable.len(),
                cluster.topics.len(),
                replication.join(", ")
            ),
            writable.iter().map(|topic| topic.name.clone()).collect(),
            None,
        );
    }
}

fn replicas(findings: &mut Findings, brokers: &str, cluster: &Cluster) {
    let alter = |topics: &[String], setting: &str| Some(alter(brokers, topics, setting));
    let with = |wanted: &dyn Fn(&Topic, usize) -> bool| -> Vec<String> {
        let wanted = |topic: &&Topic| topic.settings.is_some_and(|known| wanted(topic, known.replicas_in_sync_min));
        cluster.topics.iter().filter(wanted).map(|topic| topic.name.clone()).collect()
    };
    let never = with(&|topic, min| topic.replicas < min);
    let mend = alter(&never, "min.insync.replicas=1");
    let what = "it has fewer replicas than its min.insync.replicas asks for, so older Kafkas never confirm anything, and newer ones count the replicas that there are: add replicas, or lower it";
    findings.about(Level::Problem, "topic", never, what, mend);
    let now = with(&|topic, min| topic.replicas >= min && topic.in_sync < min);
    let mend = Some(format!("kafka-topics.sh --bootstrap-server {brokers} --describe --under-min-isr-partitions"));
    let what = "fewer replicas are in sync now than min.insync.replicas asks for: events wait, held as not_enough_replicas, until brokers are back";
    findings.about(Level::Problem, "topic", now, what, mend);
    let alone: Vec<String> =
        cluster.topics.iter().filter(|topic| topic.replicas == 1).map(|topic| topic.name.clone()).collect();
    let what = "one replica: what Kafka confirmed is lost with that broker's disk; in production three, with min.insync.replicas=2";
    findings.about(Level::Warning, "topic", alone, what, None);
    let careless = with(&|topic, min| topic.replicas > 1 && min == 1);
    let mend = alter(&careless, "min.insync.replicas=2");
    let what = "min.insync.replicas is 1: a confirmed event may be on one broker only, and lost with it";
    findings.about(Level::Warning, "topic", careless, what, mend);
    let strict = with(&|topic, min| min > 1 && topic.replicas == min);
    let what = "as many replicas as min.insync.replicas asks for: while one broker restarts, nothing is confirmed and events wait";
    findings.about(Level::Warning, "topic", strict, what, None);
}

fn records(findings: &mut Findings, config: &Config, kafka: &Kafka, brokers: &str, cluster: &Cluster) {
    let (batch, largest) = (batch_bytes(kafka), largest(config, kafka.mode));
    let ours = largest.min(kafka.record_max.unwrap_or(usize::MAX));
    let makes = match kafka.record_max {
        Some(max) if max < largest => format!("record_max lets records of up to {}", size(ours as u64)),
        _ => format!(
            "ingress.body_max of {} makes records of up to {}",
            size(config.ingress.body_max as u64),
            size(ours as u64)
        ),
    };
    hang_ups(findings, kafka, cluster, ours, &makes);
    let mut limits: Vec<u64> = cluster.topics.iter().filter_map(|topic| Some(topic.settings?.record_max)).collect();
    limits.sort_unstable();
    limits.dedup();
    for limit in limits.into_iter().filter(|limit| *limit < ours as u64) {
        let has = |topic: &&Topic| topic.settings.is_some_and(|known| known.record_max == limit);
        let these: Vec<String> = cluster.topics.iter().filter(has).map(|topic| topic.name.clone()).collect();
        let mend = Some(alter(brokers, &these, &format!("max.message.bytes={ours}")));
        let takes = format!("its max.message.bytes is {limit} ({})", size(limit));
        if limit < batch as u64 {
            let what = format!(
                "{takes}, less than a batch of small events may have ({batch} bytes): batches are refused and sent again one by one, and larger events parked as too_large"
            );
            findings.about(Level::Problem, "topic", these, &what, mend);
        } else {
            let what = format!("{takes}, and {makes}: larger ones than the topic takes are parked as too_large");
            findings.about(Level::Warning, "topic", these, &what, mend);
        }
    }
}

/// What is known of limits at which a broker closes the connection instead of answering.
fn hang_ups(findings: &mut Findings, kafka: &Kafka, cluster: &Cluster, ours: usize, makes: &str) {
    const WHAT: &str = "at a larger request the broker closes the connection without a word, which costs every topic of this output some seconds, until that event is parked as too_large";
    let is_azure = |broker: &str| broker.rsplit_once(':').is_some_and(|(host, _)| host.ends_with(AZURE));
    let mut say = |level, limit: &str| {
        findings.add(level, format!("{limit}; {makes}. {WHAT}: set `record_max` below the limit"), vec![], None)
    };
    match cluster.request_max {
        Some(limit) if limit < (ours + AROUND_EVENT) as u64 => {
            say(Level::Warning, &format!("the broker's socket.request.max.bytes is {limit} ({})", size(limit)));
        }
        Some(_) => {}
        None if kafka.brokers.split(',').any(is_azure) => {
            if ours as u64 > AZURE_REQUEST_MAX {
                say(Level::Warning, "Azure Event Hubs takes requests of 1 MB at most (Basic: 256 KB)");
            }
        }
        None => say(
            Level::NotKnown,
            "the broker's socket.request.max.bytes (100 MiB by default), since this user may not see its settings",
        ),
    }
}

/// One line for a shell that sets something of these topics.
fn alter(brokers: &str, topics: &[String], setting: &str) -> String {
    let command = |topic: &str| {
        format!(
            "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics --entity-name {topic} --add-config {setting}"
        )
    };
    match topics {
        [one] => command(&quoted(one)),
        all => {
            let all: Vec<String> = all.iter().map(|topic| quoted(topic)).collect();
            format!("for topic in {}; do {}; done", all.join(" "), command("\"$topic\""))
        }
    }
}

/// As whom Kafka knows us.
fn principal(kafka: &Kafka) -> String {
    let security = &kafka.security;
    match security.username.as_ref().or(security.client_id.as_ref()) {
        Some(name) => format!("User:{name}"),
        None if security.certificate_file.is_some() => "User:CN=…".to_owned(), // The certificate's whole name.
        None => "User:ANONYMOUS".to_owned(),
    }
}

fn distinct(numbers: impl Iterator<Item = usize>) -> Vec<String> {
    let mut all: Vec<usize> = numbers.collect();
    all.sort_unstable();
    all.dedup();
    all.iter().map(usize::to_string).collect()
}

fn of_rabbitmq(findings: &mut Findings, rabbit: &RabbitMq, found: &Found, largest: usize) {
    let exchange = &rabbit.exchange;
    let host = quoted(&vhost(rabbit));
    let user = quoted(rabbit.username.as_deref().unwrap_or("guest"));
    let make = || Some("sipsim-relay topics --create --yes".to_owned());
    if !found.exists {
        let what = format!("the exchange {exchange} is missing; events wait, held as topic_missing");
        return findings.add(Level::Problem, what, vec![exchange.clone()], make());
    }
    match &found.is_durable_topic {
        Some(Ok(())) => {}
        Some(Err(words)) => findings.add(
            Level::Problem,
            format!("the exchange {exchange} is not a durable topic exchange, so events may not get where they should ({words}); delete it and make it anew, with its bindings"),
            vec![exchange.clone()],
            Some(format!("rabbitmqadmin --vhost={host} delete exchange name={} && sipsim-relay topics --create --yes", quoted(exchange))),
        ),
        None => findings.add(
            Level::NotKnown,
            format!("whether the exchange {exchange} is a durable topic exchange: this user may not declare it, and no management API says"),
            vec![exchange.clone()],
            None,
        ),
    }
    let refused = |key: &&Key| matches!(key.may_write, Some(Err(_)));
    let forbidden: Vec<&Key> = found.keys.iter().filter(refused).collect();
    if let Some(Key { may_write: Some(Err(words)), .. }) = forbidden.first() {
        let by_topic = words.contains(" topic '");
        let mend = if by_topic {
            format!("rabbitmqctl set_topic_permissions -p {host} {user} {} '.*' '.*'", quoted(exchange))
        } else {
            format!("rabbitmqctl set_permissions -p {host} {user} '' '^{exchange}$' ''")
        };
        let what = format!("this user may not publish with it ({words}); events for it wait, held as forbidden");
        let these = forbidden.iter().map(|key| key.name.clone()).collect();
        findings.about(Level::Problem, "routing key", these, &what, Some(mend));
    }
    match &found.largest {
        Some(Err(words)) => findings.add(
            Level::Warning,
            format!("a record of {}, the largest that ingress.body_max makes, is refused ({words}): such events are parked as too_large; raise max_message_size in rabbitmq.conf to {largest}, or lower ingress.body_max", size(largest as u64)),
            vec![],
            None,
        ),
        Some(Ok(())) => {}
        None => findings.add(Level::NotKnown, "whether the broker takes our largest record".into(), vec![], None),
    }
    let unbound: Vec<String> =
        found.keys.iter().filter(|key| key.is_bound == Some(false)).map(|key| key.name.clone()).collect();
    match &found.alternate {
        Some(alternate) => {
            let what = format!("nothing is bound for it; the alternate exchange {alternate} takes its events");
            findings.about(Level::Warning, "routing key", unbound, &what, None);
        }
        None => {
            let what = "nothing is bound for it; events for it wait, held as unroutable";
            findings.about(Level::Problem, "routing key", unbound, what, make());
        }
    }
    if let Some(why) = &found.bindings_unknown {
        findings.add(Level::NotKnown, format!("whether a queue is bound for each routing key: {why}"), vec![], None);
    }
    let usable = |key: &&Key| matches!(key.may_write, Some(Ok(()))) && key.is_bound != Some(false);
    let usable: Vec<String> = found.keys.iter().filter(usable).map(|key| key.name.clone()).collect();
    if !usable.is_empty() {
        let bound = if found.bindings_unknown.is_some() { "" } else { ", and something is bound for each" };
        let what = format!(
            "{} of {} routing keys of the exchange {exchange} may be published with{bound}",
            usable.len(),
            found.keys.len()
        );
        findings.add(Level::InOrder, what, usable, None);
    }
}

const _: () = assert!(BATCH_BYTES as usize > AROUND_EVENT);
