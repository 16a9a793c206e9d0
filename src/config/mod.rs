//! The configuration, parsed once into types that cannot be wrong: built-in defaults, then `relay.toml`, then the environment.
//!
//! [`Config`] is what the rest of the relay sees; `load` reports every problem at once, each with its key, and its line or variable.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayString;

use crate::secret::{PasswordSource, Secret};

mod load;
mod outputs;
mod problem;
mod properties;
mod reader;
mod routes;
mod secrets;
mod sections;
mod source;
mod suggest;
mod url;
mod values;
mod warnings;

pub use load::{Inspected, Loaded, inspect, load};
pub use problem::{Place, Problem, Problems, Warning};
pub(crate) use secrets::shown;
pub use warnings::warnings;

const NAME_MAX: usize = 32;

/// A name that configuration gives: an account or an output. `[a-z0-9_-]{1,32}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(ArrayString<NAME_MAX>);

pub type AccountName = Name;
pub type OutputName = Name;

impl Name {
    /// `None` unless `text` is 1 to 32 of `a` to `z`, `0` to `9`, `_` and `-`.
    pub fn new(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
        ArrayString::from(text).ok().filter(|name| !name.is_empty() && name.bytes().all(allowed)).map(Self)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Debug)]
pub struct Config {
    pub instance: String,
    pub ingress: Ingress,
    /// At least one. Sorted by name.
    pub accounts: Vec<Account>,
    pub events: Events,
    pub envelope: Envelope,
    pub journal: Journal,
    /// At least one. Sorted by name.
    pub outputs: Vec<Output>,
    pub admin: Admin,
    pub shutdown: Shutdown,
    pub log: Log,
}

#[derive(Clone, Debug)]
pub struct Ingress {
    pub listen: SocketAddr,
    /// Bytes.
    pub body_max: usize,
    /// Bytes.
    pub headers_max: usize,
    /// Bytes, all request bodies in memory together.
    pub buffered_max: usize,
    pub deadline: Duration,
    pub idle_timeout: Duration,
    pub connections_max: usize,
    pub tls: Option<Tls>,
}

#[derive(Clone, Debug)]
pub struct Tls {
    pub certificate_file: PathBuf,
    pub private_key_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Account {
    pub name: AccountName,
    pub path: String,
    /// A file or a directory; `None` if only the environment gives a secret.
    pub secrets: Option<PathBuf>,
    pub environment_secret: Option<Secret>,
    pub tolerance: Duration,
    /// Bytes that undelivered events may take in the journal; `None`: what there is.
    pub journal_max: Option<u64>,
    /// Bytes; 0 turns it off.
    pub keep_refused: usize,
}

#[derive(Clone, Debug, Default)]
pub struct Events {
    pub discard: Vec<String>,
    pub extra: Vec<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct Envelope {
    /// With the placeholder `{account}`.
    pub source: String,
}

#[derive(Clone, Debug)]
pub struct Journal {
    pub path: PathBuf,
    /// Bytes.
    pub size_max: u64,
    /// Bytes.
    pub free_min: u64,
    /// How long published events stay for replay; zero: not at all.
    pub retention: Duration,
    pub trail: Duration,
}

#[derive(Clone, Debug)]
pub struct Output {
    pub name: OutputName,
    pub kind: OutputKind,
}

#[derive(Clone, Debug)]
pub enum OutputKind {
    Kafka(Kafka),
    RabbitMq(RabbitMq),
    Console,
}

/// Which topic or routing key an event goes to: a template with `{event}`, `{group}`, `{account}`, and other templates for single event names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    pub template: String,
    /// By event name.
    pub by_event: BTreeMap<String, String>,
}

#[derive(Clone, Debug)]
pub struct Kafka {
    /// [`Config::instance`], the client's id.
    pub instance: String,
    pub topics: Routes,
    pub mode: Mode,
    pub brokers: String,
    pub security: KafkaSecurity,
    /// Bytes. Larger records are not sent; `None`: all are.
    pub record_max: Option<usize>,
    /// Further librdkafka properties, flattened to dotted names and already checked against the allow-list.
    pub properties: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Structured,
    Binary,
}

#[derive(Clone, Debug, Default)]
pub struct KafkaSecurity {
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub protocol: String,
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub mechanism: Option<String>,
    pub username: Option<String>,
    pub password: PasswordSource,
    pub ca_file: Option<PathBuf>,
    pub certificate_file: Option<PathBuf>,
    pub private_key_file: Option<PathBuf>,
    pub client_id: Option<String>,
    pub client_secret: PasswordSource,
    pub token_url: Option<String>,
    pub scope: Option<String>,
}

#[derive(Clone, Debug)]
pub struct RabbitMq {
    /// [`Config::instance`], the connection's name.
    pub instance: String,
    /// Tried in turn, shuffled. `amqp://` or `amqps://`.
    pub urls: Vec<String>,
    pub username: Option<String>,
    pub password: PasswordSource,
    pub ca_file: Option<PathBuf>,
    pub certificate_file: Option<PathBuf>,
    pub private_key_file: Option<PathBuf>,
    pub exchange: String,
    pub routing_keys: Routes,
    pub declare: bool,
    pub management_url: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: SocketAddr,
    /// By which it may be asked, beside IP addresses, `localhost` and [`Config::instance`].
    pub hosts: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Shutdown {
    pub delay: Duration,
    pub drain: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[cfg(test)]
mod tests;
