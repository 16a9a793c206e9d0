//! What a cluster says of topics, for `check --live`: asked on a connection of our own, as librdkafka's safe interface tells neither rights nor,
//! with OAUTHBEARER, anything at all. Nothing is written, and no topic is made by asking.

use std::collections::HashMap;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config;

mod sasl;
mod wire;

use wire::{Connection, Reader, Writer};

/// For one question, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// For a look whether an address that the cluster advertises answers at all.
const CONNECT_MAX: Duration = Duration::from_secs(5);

const METADATA: i16 = 3;
const CREATE_TOPICS: i16 = 19;
const DESCRIBE_CONFIGS: i16 = 32;

/// Kafka's number of the operation WRITE in a set of rights.
const WRITE: u32 = 4;
/// What stands where a broker knows of no rights.
const RIGHTS_UNKNOWN: i32 = i32::MIN;
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

const UNKNOWN_TOPIC: i16 = 3;
const TOPIC_FORBIDDEN: i16 = 29;
const TOPIC_EXISTS: i16 = 36;

/// One topic as the cluster shows it to this user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    pub state: State,
    pub partitions: usize,
    /// Of the partition that has fewest.
    pub replicas: usize,
    /// Of the partition that has fewest.
    pub in_sync: usize,
    pub without_leader: usize,
    /// `None`: the broker did not say.
    pub may_write: Option<bool>,
    /// `None`: this user may not see the topic's settings.
    pub settings: Option<Settings>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    There,
    Missing,
    /// This user may not even see whether it exists.
    Hidden,
    /// Another code of Kafka's.
    Faulty(i16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    pub replicas_in_sync_min: usize,
    /// Bytes, of a whole batch.
    pub record_max: u64,
}

/// What a cluster answered.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// In the order in which they were asked for.
    pub topics: Vec<Topic>,
    /// Addresses that the cluster tells its clients to use and where nobody answers from here.
    pub unreachable: Vec<String>,
    /// Bytes of a request past which the broker that was asked closes the connection. `None`: this user may not see it.
    pub request_max: Option<u64>,
}

/// Asks the first of the configured brokers that answers. The error is one line, without secrets, about all of them.
pub async fn ask(config: &config::Kafka, topics: &[String]) -> Result<Cluster, String> {
    let mut connection = connect(config).await?;
    let answered = timeout(ANSWER_MAX, async {
        let (mut found, brokers) = metadata(&mut connection, topics).await?;
        settings(&mut connection, &mut found).await?;
        // Last, since a broker that is not Kafka itself may not know this question.
        let request_max = request_max(&mut connection, &brokers).await.unwrap_or_default();
        Ok::<_, String>((found, brokers, request_max))
    });
    let (topics, brokers, request_max) = answered.await.unwrap_or_else(|_| Err(silent(&connection.at)))?;
    let mut unreachable = Vec::new();
    for (_, address) in brokers {
        if !matches!(timeout(CONNECT_MAX, TcpStream::connect(&address)).await, Ok(Ok(_))) {
            unreachable.push(address);
        }
    }
    Ok(Cluster { topics, unreachable, request_max })
}

/// Makes topics; one outcome each, in order: `Ok(true)` for made, `Ok(false)` for one that was there, or Kafka's code and words. -1 for
/// partitions or replicas means the broker's default.
pub(super) async fn create(
    config: &config::Kafka,
    topics: &[String],
    partitions: i32,
    replication: i16,
) -> Result<Vec<Result<bool, (i16, String)>>, String> {
    let mut connection = connect(config).await?;
    let controller = match timeout(ANSWER_MAX, controller(&mut connection)).await {
        Ok(Ok(Some(address))) if address != connection.at => Some(address),
        Ok(Err(error)) => return Err(error),
        _ => None,
    };
    if let Some(address) = controller {
        connection = open(config, &address).await?;
    }
    let mut body = Writer::default();
    body.array(topics, |body, topic| {
        body.text(topic).i32(partitions).i16(replication).i32(0).i32(0);
    });
    let limit = i32::try_from(ANSWER_MAX.as_millis()).unwrap_or(i32::MAX);
    body.i32(limit).bool(false);
    let asked = timeout(ANSWER_MAX + ANSWER_MAX, connection.ask(CREATE_TOPICS, 4, body));
    let answer = asked.await.unwrap_or_else(|_| Err(silent(&connection.at)))?;
    let mut answer = Reader::new(&answer);
    answer.i32()?;
    let mut outcomes = HashMap::new();
    for _ in 0..answer.count()? {
        let (name, code, words) = (answer.text()?, answer.i16()?, answer.text_or_null()?);
        outcomes.insert(
            name,
            match code {
                0 => Ok(true),
                TOPIC_EXISTS => Ok(false),
                code => Err((code, words.unwrap_or_default())),
            },
        );
    }
    Ok(topics
        .iter()
        .map(|topic| outcomes.remove(topic).unwrap_or_else(|| Err((-1, "the broker said nothing of it".to_owned()))))
        .collect())
}

async fn connect(config: &config::Kafka) -> Result<Connection, String> {
    let mut refusals = Vec::new();
    for broker in config.brokers.split(',') {
        match open(config, broker.trim()).await {
            Ok(connection) => return Ok(connection),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(refusals.join("; "))
}

async fn open(config: &config::Kafka, address: &str) -> Result<Connection, String> {
    let opened = timeout(ANSWER_MAX, async {
        let mut connection = Connection::open(address, config).await?;
        if config.security.protocol.starts_with("SASL") {
            sasl::log_in(&mut connection, &config.security).await?;
        }
        Ok(connection)
    });
    opened.await.unwrap_or_else(|_| Err(silent(address)))
}

fn silent(address: &str) -> String {
    format!("{address}: no answer within {} s", ANSWER_MAX.as_secs())
}

/// The topics, and every broker's number and advertised address.
async fn metadata(connection: &mut Connection, topics: &[String]) -> Result<(Vec<Topic>, Vec<(i32, String)>), String> {
    let mut body = Writer::default();
    body.array(topics, |body, topic| {
        body.text(topic);
    });
    body.bool(false).bool(false).bool(true); // Make no topic; of rights, those on topics.
    let answer = connection.ask(METADATA, 8, body).await?;
    let mut answer = Reader::new(&answer);
    let (advertised, _) = brokers(&mut answer)?;
    let mut found = Vec::new();
    for _ in 0..answer.count()? {
        found.push(topic(&mut answer)?);
    }
    let place = |topic: &Topic| topics.iter().position(|name| *name == topic.name);
    found.sort_by_key(place);
    Ok((found, advertised))
}

/// The address of the broker that makes topics, if the cluster says.
async fn controller(connection: &mut Connection) -> Result<Option<String>, String> {
    let mut body = Writer::default();
    body.i32(0).bool(false).bool(false).bool(false);
    let answer = connection.ask(METADATA, 8, body).await?;
    let (brokers, controller) = brokers(&mut Reader::new(&answer))?;
    Ok(brokers.into_iter().find(|(id, _)| *id == controller).map(|(_, address)| address))
}

/// The answer's first part: brokers by number, and the controller's number.
fn brokers(answer: &mut Reader<'_>) -> Result<(Vec<(i32, String)>, i32), String> {
    answer.i32()?;
    let mut brokers = Vec::new();
    for _ in 0..answer.count()? {
        let (id, host, port, _rack) = (answer.i32()?, answer.text()?, answer.i32()?, answer.text_or_null()?);
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        brokers.push((id, address));
    }
    answer.text_or_null()?; // The cluster's id.
    Ok((brokers, answer.i32()?))
}

fn topic(answer: &mut Reader<'_>) -> Result<Topic, String> {
    let code = answer.i16()?;
    let mut topic = Topic { name: answer.text()?, ..Topic::default() };
    topic.state = match code {
        0 => State::There,
        UNKNOWN_TOPIC => State::Missing,
        TOPIC_FORBIDDEN => State::Hidden,
        // Some partition has no leader just now, which is counted below.
        5 => State::There,
        code => State::Faulty(code),
    };
    answer.bool()?; // Internal.
    topic.partitions = answer.count()?;
    (topic.replicas, topic.in_sync) = (usize::MAX, usize::MAX);
    for _ in 0..topic.partitions {
        let (_error, _index, leader, _epoch) = (answer.i16()?, answer.i32()?, answer.i32()?, answer.i32()?);
        topic.replicas = topic.replicas.min(answer.numbers()?);
        topic.in_sync = topic.in_sync.min(answer.numbers()?);
        answer.numbers()?; // Offline ones.
        topic.without_leader += usize::from(leader < 0);
    }
    if topic.partitions == 0 {
        (topic.replicas, topic.in_sync) = (0, 0);
    }
    let rights = answer.i32()?;
    topic.may_write = (rights != RIGHTS_UNKNOWN).then_some(rights & (1 << WRITE) != 0);
    Ok(topic)
}

/// Adds the settings of the topics that are there, as far as this user may see them.
async fn settings(connection: &mut Connection, topics: &mut [Topic]) -> Result<(), String> {
    const WANTED: [&str; 2] = ["min.insync.replicas", "max.message.bytes"];
    let there: Vec<&str> =
        topics.iter().filter(|topic| topic.state == State::There).map(|topic| topic.name.as_str()).collect();
    if there.is_empty() {
        return Ok(());
    }
    for Described { code, name, values } in describe(connection, RESOURCE_TOPIC, &there, &WANTED).await? {
        let number = |key: &str| values.get(key).and_then(|value| value.parse().ok());
        let (in_sync, record) =
            (number("min.insync.replicas").map(|number| number as usize), number("max.message.bytes"));
        if let (0, Some(replicas_in_sync_min), Some(record_max)) = (code, in_sync, record)
            && let Some(topic) = topics.iter_mut().find(|topic| topic.name == name)
        {
            topic.settings = Some(Settings { replicas_in_sync_min, record_max });
        }
    }
    Ok(())
}

/// Of the broker that this connection leads to, by its number among all: each tells its own settings only.
async fn request_max(connection: &mut Connection, brokers: &[(i32, String)]) -> Result<Option<u64>, String> {
    const WANTED: &str = "socket.request.max.bytes";
    let numbers: Vec<String> = brokers.iter().map(|(number, _)| number.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let described = describe(connection, RESOURCE_BROKER, &numbers, &[WANTED]).await?;
    let told = described.into_iter().find(|broker| broker.code == 0);
    Ok(told.and_then(|broker| broker.values.get(WANTED)?.parse().ok()))
}

/// Settings of a topic or broker, as far as it tells them.
struct Described {
    code: i16,
    name: String,
    values: HashMap<String, String>,
}

async fn describe(
    connection: &mut Connection,
    resource: i8,
    names: &[&str],
    wanted: &[&str],
) -> Result<Vec<Described>, String> {
    let mut body = Writer::default();
    body.array(names, |body, name| {
        body.i8(resource).text(name).array(wanted, |body, key| {
            body.text(key);
        });
    });
    body.bool(false);
    let answer = connection.ask(DESCRIBE_CONFIGS, 1, body).await?;
    let mut answer = Reader::new(&answer);
    answer.i32()?;
    let mut all = Vec::new();
    for _ in 0..answer.count()? {
        let (code, _words, _type, name) = (answer.i16()?, answer.text_or_null()?, answer.i8()?, answer.text()?);
        let mut values = HashMap::new();
        for _ in 0..answer.count()? {
            let (key, value) = (answer.text()?, answer.text_or_null()?);
            answer.bool()?; // Read-only.
            answer.i8()?; // Where it comes from.
            answer.bool()?; // Sensitive.
            for _ in 0..answer.count()? {
                answer.text()?;
                answer.text_or_null()?;
                answer.i8()?;
            }
            values.extend(value.map(|value| (key, value)));
        }
        all.push(Described { code, name, values });
    }
    Ok(all)
}
