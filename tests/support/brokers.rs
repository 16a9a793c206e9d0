//! Real Kafka and real RabbitMQ, as `scripts/brokers` starts them, and their messages as clients that are not ours read them.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication, TopicResult,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Answer, Client, succeed, wait_for, wait_until};

/// Long enough for the first run on a slow machine, which fetches Kafka.
const LIMIT: Duration = Duration::from_secs(300);
/// Sets of brokers that tests may break, at most: as many as tests/nextest.toml lets such tests run at once.
const OWN_MAX: usize = 2;

/// Of the sets of brokers that tests share one after another or at once. Who comes to Kafka without a name may do everything; `relay` with its
/// password, by the listener `SASL`, only what was granted. Who comes by `PROXIED` is told to go on at its advertised address.
const KAFKA_LISTENERS: [&str; 2] = ["PROXIED:PLAINTEXT:0:0", "SASL:SASL_PLAINTEXT:0"];
const KAFKA_PROPERTIES: [&str; 6] = [
    "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users=User:ANONYMOUS",
    "sasl.enabled.mechanisms=PLAIN",
    "listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_relay=\"password\" user_other=\"password\";",
    // Room for the largest envelope that the relay may make, as `check --live` wants it.
    "message.max.bytes=20000000",
    // What was in a deleted topic stays on the disk until it was looked at, see `Brokers::deleted_topic`.
    "log.segment.delete.delay.ms=1800000",
];
/// Bytes of a message that RabbitMQ takes: more than any of those that are to arrive, and less than `ingress.body_max`.
pub const RABBITMQ_MESSAGE_MAX: usize = 4_000_000;

/// In a set's folder.
const CERTIFICATE: &str = "certificate.pem";

/// Real brokers, by the folder in which they were started.
pub struct Brokers {
    folder: PathBuf,
    addresses: BTreeMap<String, String>,
    held: Held,
}

/// What becomes of the brokers when a test is done with them.
enum Held {
    /// They end with the value, or with the test's process if that comes first.
    Alone { _folder: TempDir },
    /// They go on for other tests. The lock, if there is one, keeps those away until then.
    OnLoan { _lock: Option<File> },
}

impl Brokers {
    /// Starts `kafka`, `rabbitmq` or `all` with further options of `scripts/brokers start`, and returns once they answer. For tests that want brokers
    /// of their own kind; for others there are [`Brokers::shared`] and [`Brokers::own`], which need no start most of the time.
    pub fn start(which: &str, options: &[&str]) -> Self {
        let folder = TempDir::with_prefix("sipsim-relay-brokers-").expect("a temporary folder");
        let process = std::process::id().to_string();
        let addresses = start(which, folder.path(), &[&["--while", &process], options].concat());
        Self { folder: folder.path().to_owned(), addresses, held: Held::Alone { _folder: folder } }
    }

    /// A Kafka and a RabbitMQ that every test uses at the same time, under names of its own, and leaves as it found them: not stopped, not hung, and
    /// with no other setting for all.
    pub fn shared() -> Self {
        let folder = set_folder("shared");
        let _starting = lock(&folder, FlockOperation::LockExclusive);
        // Whoever came first has started them.
        let addresses = match fs::read_to_string(folder.join("env")) {
            Ok(text) => addresses(&text),
            Err(_) => start_set(&folder),
        };
        Self { folder, addresses, held: Held::OnLoan { _lock: None } }
    }

    /// Brokers like the shared ones, for this test to stop, kill and hang: nobody else uses them before this value ends.
    /// Topics and queues of earlier tests are in them.
    pub fn own() -> Self {
        let (lock, folder) = wait_for("brokers that no other test has", LIMIT, || {
            let mut folders = (0..OWN_MAX).map(|number| set_folder(&format!("own-{number}")));
            folders.find_map(|folder| Some((lock(&folder, FlockOperation::NonBlockingLockExclusive)?, folder)))
        });
        // The test before may have left one hung, which would take no connection, or stopped.
        for broker in ["kafka", "rabbitmq"] {
            try_signal(&folder, broker, Signal::CONT);
        }
        Self { addresses: start_set(&folder), folder, held: Held::OnLoan { _lock: Some(lock) } }
    }

    /// `127.0.0.1:PORT`
    pub fn kafka(&self) -> &str {
        &self.addresses["KAFKA"]
    }

    /// `amqp://127.0.0.1:PORT/%2f`
    pub fn rabbitmq(&self) -> &str {
        &self.addresses["RABBITMQ"]
    }

    /// `http://127.0.0.1:PORT`, user and password `guest`.
    pub fn management(&self) -> &str {
        &self.addresses["RABBITMQ_MANAGEMENT"]
    }

    /// An address by its name in the file `env` of `scripts/brokers`: `KAFKA_SASL`, `KAFKA_PROXIED`, `KAFKA_PROXIED_ADVERTISED`, `RABBITMQ_TLS`.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.addresses[name].parse().expect("an address")
    }

    /// RabbitMQ's, for a proxy.
    pub fn rabbitmq_address(&self) -> SocketAddr {
        let place = self.rabbitmq()["amqp://".len()..].split('/').next().expect("an address stands first");
        place.rsplit('@').next().and_then(|place| place.parse().ok()).expect("an address")
    }

    /// Whether the environment names this one: then it is not ours to stop, and nothing is known of its settings.
    pub fn is_given(&self, broker: &str) -> bool {
        self.folder.join(broker).join("given").exists()
    }

    /// The certificate of RabbitMQ's TLS listener, in shared and own sets: for `localhost`, and its own authority.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Ends one of them in its own good time (half a second to a second); its data stay.
    pub fn stop_one(&self, broker: &str) {
        self.run("stop-one", &[broker]);
    }

    /// `kill -9` to one of them; its data stay as they are.
    pub fn kill_one(&self, broker: &str) {
        self.run("stop-one", &[broker, "--kill"]);
    }

    /// Starts one again on the same port with the same data, and returns once it answers.
    pub fn start_one(&self, broker: &str) {
        self.run("start-one", &[broker]);
    }

    /// Starts Kafka anew with further lines of `server.properties`, which win over those before them.
    pub fn restart_kafka_with(&self, properties: &[&str]) {
        self.stop_one("kafka");
        let mut file = fs::OpenOptions::new().append(true).open(self.folder.join("kafka/server.properties"));
        let file = file.as_mut().expect("Kafka's properties can be written");
        properties.iter().for_each(|line| writeln!(file, "{line}").expect("Kafka's properties can be written"));
        self.start_one("kafka");
    }

    /// Sends a signal to a broker's process.
    pub fn signal(&self, broker: &str, signal: Signal) {
        assert!(try_signal(&self.folder, broker, signal), "{broker} runs");
    }

    /// `rabbitmqctl ARGS…`; what it prints. 0.4 to 4 s a call.
    pub fn rabbitmqctl(&self, args: &[&str]) -> String {
        self.run("rabbitmqctl", args)
    }

    /// Makes topics with so many partitions each, by librdkafka's own admin client, and returns once Kafka tells clients of them.
    pub fn create_topics(&self, topics: &[&str], partitions: i32) {
        let new = topics.iter().map(|topic| NewTopic::new(topic, partitions, TopicReplication::Fixed(1)));
        self.create(topics, &new.collect::<Vec<_>>());
    }

    /// As [`Brokers::create_topics`], with settings of the topic: `("max.message.bytes", "2000")`.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        self.create_replicated_topic(topic, partitions, 1, settings);
    }

    pub fn create_replicated_topic(&self, topic: &str, partitions: i32, replicas: i32, settings: &[(&str, &str)]) {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        self.create(&[topic], &[settings.iter().fold(new, |topic, (name, value)| topic.set(name, value))]);
    }

    fn create(&self, topics: &[&str], new: &[NewTopic]) {
        self.admin(async |admin| admin.create_topics(new, &AdminOptions::new()).await);
        // A broker says so before it knows of them itself: `CreateTopicsResult` in the API of Kafka's own client has it as "several seconds".
        let client: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", self.kafka()).create().expect("a client");
        let is_known = |topic: &&str| {
            let told = client.fetch_metadata(Some(topic), Duration::from_secs(5));
            told.is_ok_and(|told| told.topics().iter().all(|topic| topic.error().is_none()))
        };
        wait_until("Kafka to know its new topics", LIMIT, || topics.iter().all(is_known));
    }

    /// Changes one setting of a topic.
    pub fn set_topic(&self, topic: &str, setting: (&str, &str)) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(setting.0, setting.1);
        let options = AdminOptions::new();
        let mut config = ClientConfig::new();
        let admin: AdminClient<_> = config.set("bootstrap.servers", self.kafka()).create().expect("an admin client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let results = runtime.block_on(admin.alter_configs([&change], &options)).expect("Kafka answers");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    /// `allow` or `revoke` a user's `write`, `describe`, … on topics.
    pub fn kafka_right(&self, what: &str, user: &str, operation: &str, topics: &[&str]) {
        let mut command = script("python");
        command.arg(tool("kafka_acls.py")).args(["--brokers", self.kafka(), what, user, operation]).args(topics);
        succeed(&mut command, LIMIT);
    }

    /// Gives users these passwords for SCRAM-SHA-256 and -512.
    pub fn kafka_passwords(&self, users: &[(&str, &str)]) {
        let mut command = script("python");
        command.arg(tool("kafka_passwords.py")).args(["--brokers", self.kafka()]);
        command.args(users.iter().map(|(user, password)| format!("{user}={password}")));
        succeed(&mut command, LIMIT);
    }

    pub fn delete_topics(&self, topics: &[&str]) {
        self.admin(async |admin| admin.delete_topics(topics, &AdminOptions::new()).await);
    }

    /// Reads `topics` to their ends with the `confluent-kafka` client, once there are at least `count` messages in them: so one too many
    /// shows. Each partition's messages are in order. Panics if `count` of them, or a topic, are not there within 60 s.
    pub fn read_kafka(&self, topics: &[&str], count: usize) -> Vec<Message> {
        read(reader("read_kafka.py", count).args(["--brokers", self.kafka()]).args(topics))
    }

    /// Declares a durable classic queue, and the exchange `sipsim` if it is missing, and binds the queue to routing keys.
    pub fn bind(&self, queue: &str, keys: &[&str]) {
        let classic = r#"{"durable":true,"arguments":{"x-queue-type":"classic"}}"#;
        self.ask("PUT", &format!("/api/queues/%2f/{queue}"), classic);
        self.ask("PUT", "/api/exchanges/%2f/sipsim", r#"{"type":"topic","durable":true}"#);
        for key in keys {
            let order = serde_json::json!({ "routing_key": key }).to_string();
            self.ask("POST", &format!("/api/bindings/%2f/e/sipsim/q/{queue}"), &order);
        }
    }

    /// Takes all messages out of `queues` with the client `pika`, waiting until there are at least `count`; each queue's are in order.
    /// Panics if `count` of them are not there within 60 s.
    pub fn read_rabbitmq(&self, queues: &[&str], count: usize) -> Vec<Message> {
        read(reader("read_rabbitmq.py", count).args(["--url", self.rabbitmq()]).args(queues))
    }

    /// Asks RabbitMQ's management API, as guest: `ask("GET", "/api/queues/%2f/NAME", "")`. Panics unless it says 2xx.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let address = self.management().trim_start_matches("http://").parse().expect("an address");
        let headers = [("Authorization", "Basic Z3Vlc3Q6Z3Vlc3Q="), ("Content-Type", "application/json")];
        // RabbitMQ answers a changed policy once its queues have taken it up, which a busy one does late.
        let answer = Client::connect_with(address, Duration::from_secs(170))
            .and_then(|mut client| client.request(method, path, &headers, body.as_bytes()))
            .expect("the management API answers");
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        answer
    }

    /// What the broker took into a topic that was deleted since, as its files have it: Kafka renames them, and removes them later.
    pub fn deleted_topic(&self, topic: &str) -> String {
        let data = fs::read_dir(self.folder.join("kafka/data")).expect("Kafka's data");
        let folders = data.filter_map(Result::ok).filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with(&format!("{topic}-")) && name.ends_with("-delete")
        });
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).expect("its files").filter_map(Result::ok));
        let logs = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "log"));
        logs.map(|path| String::from_utf8_lossy(&fs::read(path).expect("a log")).into_owned()).collect()
    }

    fn admin(&self, order: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> KafkaResult<Vec<TopicResult>>) {
        let mut config = ClientConfig::new();
        let admin: AdminClient<_> = config.set("bootstrap.servers", self.kafka()).create().expect("an admin client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let results = runtime.block_on(order(&admin)).expect("Kafka answers");
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    fn run(&self, command: &str, args: &[&str]) -> String {
        succeed(script("brokers").arg(command).arg("--dir").arg(&self.folder).args(args), LIMIT)
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        if matches!(self.held, Held::OnLoan { .. }) {
            return;
        }
        // By kill -9: nobody reads their data again. An error here would only hide the test's own.
        let _ = script("brokers").args(["stop", "--kill", "--dir"]).arg(&self.folder).status();
    }
}

/// Where a set of brokers lives: in the folder that whoever runs the tests made for it and ends it with, or until this process ends.
fn set_folder(name: &str) -> PathBuf {
    let folder = match std::env::var_os(SETS) {
        Some(folder) => Path::new(&folder).join(name),
        None => std::env::temp_dir().join(format!("sipsim-relay-brokers-{}-{name}", std::process::id())),
    };
    fs::create_dir_all(&folder).expect("a folder for brokers");
    folder
}

/// The variable with the folder for sets of brokers.
const SETS: &str = "SIPSIM_TEST_BROKERS";

/// Locks a folder until the value ends; `None` if it must not wait and another process has it.
fn lock(folder: &Path, how: FlockOperation) -> Option<File> {
    let file = File::open(folder).expect("the folder is there");
    match flock(&file, how) {
        Ok(()) => Some(file),
        Err(Errno::WOULDBLOCK) => None,
        Err(error) => panic!("{}: {error}", folder.display()),
    }
}

/// Starts what does not run of a set.
fn start_set(folder: &Path) -> BTreeMap<String, String> {
    // As root, RabbitMQ runs as somebody else, who must be able to come here.
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o755)).expect("the folder is ours");
    open(folder);
    let mut options: Vec<String> = Vec::new();
    match std::env::var_os(SETS) {
        Some(sets) => open(Path::new(&sets)),
        None => options.extend(["--while".into(), std::process::id().to_string()]),
    }
    let (certificate, key) = (folder.join(CERTIFICATE), folder.join("key.pem"));
    if !certificate.exists() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        fs::write(&certificate, made.cert.pem()).expect("a file");
    }
    let lines = [
        format!("max_message_size = {RABBITMQ_MESSAGE_MAX}"),
        format!("ssl_options.certfile = {}", certificate.display()),
        format!("ssl_options.keyfile = {}", key.display()),
        format!("ssl_options.cacertfile = {}", certificate.display()),
    ];
    options.push("--rabbitmq-tls".into());
    for (option, values) in [
        ("--kafka-listener", KAFKA_LISTENERS.map(str::to_owned).to_vec()),
        ("--kafka-property", KAFKA_PROPERTIES.map(str::to_owned).to_vec()),
        ("--rabbitmq-conf", lines.to_vec()),
    ] {
        options.extend(values.into_iter().flat_map(|value| [option.to_owned(), value]));
    }
    start("all", folder, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

fn start(which: &str, folder: &Path, options: &[&str]) -> BTreeMap<String, String> {
    let mut command = script("brokers");
    addresses(&succeed(command.args(["start", which, "--dir"]).arg(folder).args(options), LIMIT))
}

fn try_signal(folder: &Path, broker: &str, signal: Signal) -> bool {
    let pid = fs::read_to_string(folder.join(broker).join("pid")).ok().and_then(|text| text.trim().parse().ok());
    pid.and_then(Pid::from_raw).is_some_and(|pid| kill_process(pid, signal).is_ok())
}

fn addresses(env: &str) -> BTreeMap<String, String> {
    env.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// One message as a client that is not ours read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Kafka's topic, RabbitMQ's routing key.
    pub topic: String,
    /// Kafka's partition and offset; 0 for RabbitMQ.
    pub partition: i64,
    pub offset: i64,
    pub key: Option<String>,
    /// Kafka's in their order; RabbitMQ's sorted by name.
    pub headers: Vec<(String, String)>,
    /// RabbitMQ's properties: `content_type`, `message_id`, `type`, `timestamp`, `app_id`, `delivery_mode`. Null for Kafka.
    pub properties: serde_json::Value,
    /// `None` is Kafka's null, which an empty value is not.
    pub value: Option<Vec<u8>>,
    /// What the `cloudevents` package takes the message for: `mode` (`structured`, `binary`), `attributes`, and `data` (as JSON text) or
    /// `data_base64`; or `error`.
    pub cloudevent: serde_json::Value,
    /// What the schema of its event has against its data; `None` if nothing. That an envelope of the relay's is valid is seen to while reading.
    pub invalid_data: Option<String>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value as text; panics if it is null or not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("the value is not null")).expect("the value is UTF-8")
    }
}

fn read(command: &mut Command) -> Vec<Message> {
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let message = |line: &str| {
        let fields: serde_json::Value = serde_json::from_str(line).expect("the reader prints JSON");
        assert!(fields["invalid_envelope"].is_null(), "{}: {line}", fields["invalid_envelope"]);
        let pairs = fields["headers"].as_array().expect("headers are a list");
        Message {
            topic: text(&fields["topic"]).expect("a topic"),
            partition: fields["partition"].as_i64().unwrap_or(0),
            offset: fields["offset"].as_i64().unwrap_or(0),
            key: text(&fields["key"]),
            headers: pairs
                .iter()
                .map(|pair| (text(&pair[0]).expect("a name"), text(&pair[1]).expect("a text")))
                .collect(),
            properties: fields["properties"].clone(),
            value: text(&fields["value"]).map(|value| STANDARD.decode(value).expect("values are base64")),
            cloudevent: fields["cloudevent"].clone(),
            invalid_data: text(&fields["invalid_data"]),
        }
    };
    succeed(command, LIMIT).lines().map(message).collect()
}

fn reader(name: &str, count: usize) -> Command {
    let mut command = script("python");
    command.arg(tool(name)).args(["--wait", "60", "--count", &count.to_string()]);
    command
}

fn script(name: &str) -> Command {
    Command::new(repository().join("scripts").join(name))
}

fn tool(name: &str) -> PathBuf {
    repository().join("tests/tools").join(name)
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
