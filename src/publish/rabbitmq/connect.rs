//! From URLs and files to a connection: shuffled, tried in turn, each within a time, with TLS where the URL says so and never without.

use std::net::{self, Shutdown};
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_core::Stream;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use lapin::{Connection, ConnectionProperties, Event};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::fault;
use super::runtime::{self, Socket};
use crate::config;
use crate::publish::{PublishError, tls};
use crate::secret::Secret;

/// For one URL: TCP, TLS and AMQP's handshake together.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// For the goodbye. A broker that hangs or blocks never answers it.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Bytes. lapin keeps 32 of these for sending and 32 for receiving; with the broker's 128 KiB that would be 8 MiB of memory.
const FRAME_MAX: u32 = 32 * 1024;
/// Seconds. lapin gives a connection up when nothing came for two of them.
const HEARTBEAT: u16 = 10;

/// Why no URL gave a connection, in one line.
pub(super) struct Refusal {
    pub reason: PublishError,
    pub detail: String,
}

/// A connection, and the means to end it whatever lapin's thread hangs on. Dropped, it is cut.
pub(super) struct Link {
    pub connection: Arc<Connection>,
    pub events: Pin<Box<dyn Stream<Item = Event> + Send>>,
    /// Of the files that it was made with.
    pub files: FilesDigest,
    /// Host and port.
    pub at: String,
    _line: Line,
}

impl Link {
    pub async fn close(self) {
        // Either way it ends here; the broker just likes a goodbye better.
        let _ = timeout(CLOSE_MAX, self.connection.close(200, "OK".into())).await;
    }
}

/// The files being read, where a try to connect did not wait for that any longer: the next one goes on waiting.
pub(super) type Reading = Option<JoinHandle<Result<Access, String>>>;

/// Connects to the first URL that answers, beginning anywhere. The files are read anew each time.
pub(super) async fn connect(config: &config::RabbitMq, reading: &mut Reading) -> Result<Link, Refusal> {
    let refused = |detail| Refusal { reason: PublishError::Disconnected, detail };
    let read = config.clone();
    let under_way = reading.get_or_insert_with(|| spawn_blocking(move || Access::read(&read)));
    let Ok(read) = timeout(CONNECT_MAX, under_way).await else {
        return Err(refused(format!("the files that it names did not answer within {} s", CONNECT_MAX.as_secs())));
    };
    *reading = None;
    let access = read.map_err(|error| refused(error.to_string()))?.map_err(refused)?;
    let mut urls: Vec<&String> = config.urls.iter().collect();
    fastrand::shuffle(&mut urls);
    let mut refusals = Vec::new();
    let mut timeouts = 0;
    for url in urls {
        let Some(uri) = uri(url, config, access.password.as_ref()) else {
            refusals.push("one of the urls is not amqp://HOST:PORT/VHOST or amqps://…".to_owned());
            continue;
        };
        let at = format!("{}:{}", uri.authority.host, uri.authority.port);
        let line = Line::default();
        match timeout(CONNECT_MAX, open(&config.instance, uri, access.tls.clone(), line.0.clone())).await {
            Ok(Ok(connection)) => {
                let events = Box::pin(connection.events_listener());
                return Ok(Link { connection: Arc::new(connection), events, files: access.files, at, _line: line });
            }
            Ok(Err(error)) => refusals.push(format!("{at}: {}", fault::of_connecting(&error))),
            Err(_) => {
                timeouts += 1;
                refusals.push(format!("{at}: no answer within {} s", CONNECT_MAX.as_secs()));
            }
        }
    }
    let reason = if timeouts == refusals.len() { PublishError::Timeout } else { PublishError::Disconnected };
    // Sorted, so that the same troubles read the same whatever the order in which they were met.
    refusals.sort();
    Err(Refusal { reason, detail: refusals.join("; ") })
}

async fn open(
    name: &str,
    uri: AMQPUri,
    tls: Option<Arc<ClientConfig>>,
    line: Arc<Mutex<Held>>,
) -> lapin::Result<Connection> {
    let properties = ConnectionProperties::default()
        .with_connection_name(name.into())
        .with_client_property("product".into(), "sipsim-relay".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into());
    // lapin's own way of connecting knows neither a time limit nor a CA of one's own. This runs on its thread, within our runtime.
    Connection::connector(
        uri,
        runtime::current(),
        async move |uri, _| match timeout(CONNECT_MAX, stream(&uri, tls.as_ref(), &line)).await {
            Ok(opened) => Ok(AsyncTcpStream::Plain(opened?)),
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        },
        properties,
    )
    .await
}

/// TCP, and TLS on it where the URL says so.
async fn stream(uri: &AMQPUri, tls: Option<&Arc<ClientConfig>>, line: &Mutex<Held>) -> std::io::Result<Socket> {
    let host = uri.authority.host.as_str();
    let plain = TcpStream::connect((host, uri.authority.port)).await?;
    // Nobody listens on a port of the range that clients get theirs from: Linux may then connect a socket to itself.
    if plain.local_addr()? == plain.peer_addr()? {
        return Err(std::io::ErrorKind::ConnectionRefused.into());
    }
    plain.set_nodelay(true)?;
    hold(line, &plain)?;
    match (&uri.scheme, tls) {
        (AMQPScheme::AMQP, _) => Ok(runtime::socket(plain)),
        (AMQPScheme::AMQPS, Some(tls)) => {
            let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
            Ok(runtime::socket(TlsConnector::from(tls.clone()).connect(name, plain).await?))
        }
        (AMQPScheme::AMQPS, None) => Err(std::io::Error::other("TLS is not set up")),
    }
}

/// The socket's other handle, which cuts the line when it is dropped. lapin's thread waits on its socket for as long as the connection exists, and
/// offers no way to end one that hangs, be it in the handshake; closing the socket under it does.
#[derive(Default)]
struct Line(Arc<Mutex<Held>>);

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Socket(net::TcpStream),
    Cut,
}

fn hold(line: &Mutex<Held>, socket: &impl AsFd) -> std::io::Result<()> {
    let mut held = line.lock().unwrap_or_else(PoisonError::into_inner);
    if let Held::Cut = *held {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    *held = Held::Socket(net::TcpStream::from(socket.as_fd().try_clone_to_owned()?));
    Ok(())
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Socket(socket) = std::mem::replace(&mut *held, Held::Cut) {
            // Fails if the other side was first, which is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The URL with the configuration's username, password and mechanism. `None` if it is no AMQP URL.
fn uri(url: &str, config: &config::RabbitMq, password: Option<&Secret>) -> Option<AMQPUri> {
    let mut uri: AMQPUri = url.parse().ok()?;
    let authority = url.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    // lapin takes an IPv6 address for no host at all, and would connect to "localhost".
    if let Some(address) = place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        uri.authority.host = address.0.to_owned();
    }
    uri.query.heartbeat = Some(HEARTBEAT);
    uri.query.frame_max = Some(FRAME_MAX);
    let named = config.username.is_some() || !user.is_empty();
    if let Some(username) = &config.username {
        uri.authority.userinfo.username.clone_from(username);
    }
    match password {
        Some(password) => uri.authority.userinfo.password = String::from_utf8(password.expose().to_vec()).ok()?,
        // lapin's default is guest's password, which is nobody else's.
        None if named && !user.contains(':') => uri.authority.userinfo.password.clear(),
        None => {}
    }
    if config.certificate_file.is_some() && !named && uri.scheme == AMQPScheme::AMQPS {
        uri.query.auth_mechanism = Some(SASLMechanism::External);
    }
    Some(uri)
}

/// A digest over the password, CA, certificate and key files: it changes when any of them does.
pub(super) type FilesDigest = [u8; 32];

/// What the files gave.
pub(super) struct Access {
    password: Option<Secret>,
    tls: Option<Arc<ClientConfig>>,
    files: FilesDigest,
}

impl Access {
    /// The error names the file and what is wrong with it.
    fn read(config: &config::RabbitMq) -> Result<Self, String> {
        // Before the reading: what changes while we read shows as a change later.
        let files = digest(config);
        let password = config.password.read().map_err(|error| {
            let path = config.password.file.as_deref().unwrap_or(Path::new(""));
            format!("password_file {} cannot be read: {error}", path.display())
        })?;
        let wants_tls = config.urls.iter().any(|url| url.starts_with("amqps:"));
        let tls = if wants_tls { Some(Arc::new(tls(config)?)) } else { None };
        Ok(Self { password, tls, files })
    }
}

/// The digest of the files as they are now; one that cannot be read counts as such.
pub(super) fn digest(config: &config::RabbitMq) -> FilesDigest {
    let mut hash = Sha256::new();
    for file in [&config.password.file, &config.ca_file, &config.certificate_file, &config.private_key_file]
        .into_iter()
        .flatten()
    {
        let content = std::fs::read(file).map(Secret::new);
        let content = content.as_ref().map(Secret::expose).unwrap_or(b"");
        hash.update(content.len().to_be_bytes());
        hash.update(content);
    }
    hash.finalize().into()
}

fn tls(config: &config::RabbitMq) -> Result<ClientConfig, String> {
    tls::client(&tls::Files {
        section: "",
        ca: config.ca_file.as_deref(),
        certificate: config.certificate_file.as_deref(),
        private_key: config.private_key_file.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::config::{RabbitMq, Routes};
    use crate::secret::PasswordSource;

    fn config() -> RabbitMq {
        RabbitMq {
            instance: String::new(),
            urls: Vec::new(),
            username: None,
            password: PasswordSource::default(),
            ca_file: None,
            certificate_file: None,
            private_key_file: None,
            exchange: String::new(),
            routing_keys: Routes { template: String::new(), by_event: BTreeMap::new() },
            declare: true,
            management_url: None,
        }
    }

    /// Username, password, host and whether EXTERNAL is asked for.
    fn seen(url: &str, config: &RabbitMq, password: Option<&str>) -> (String, String, String, bool) {
        let password = password.map(|text| Secret::new(text.as_bytes().to_vec()));
        let uri = uri(url, config, password.as_ref()).unwrap();
        let user = uri.authority.userinfo;
        (user.username, user.password, uri.authority.host, uri.query.auth_mechanism == Some(SASLMechanism::External))
    }

    #[test]
    fn a_url_is_completed_from_the_configuration_and_guest_is_only_guest() {
        let text = |(user, password, host, external): (&str, &str, &str, bool)| {
            (user.to_owned(), password.to_owned(), host.to_owned(), external)
        };
        let named = RabbitMq { username: Some("relay".into()), ..config() };
        let certified = RabbitMq { certificate_file: Some(PathBuf::from("c")), ..config() };
        for (url, config, password, expected) in [
            ("amqp://h/%2f", &config(), None, ("guest", "guest", "h", false)),
            ("amqp://u@h/%2f", &config(), None, ("u", "", "h", false)),
            ("amqp://u:p@h/%2f", &config(), Some("file"), ("u", "file", "h", false)),
            ("amqp://h/%2f", &named, Some("p:@/ü"), ("relay", "p:@/ü", "h", false)),
            ("amqp://h/%2f", &named, None, ("relay", "", "h", false)),
            ("amqps://h/%2f", &certified, None, ("guest", "guest", "h", true)),
            // A certificate beside a username only proves the machine; without TLS it is not even shown.
            ("amqps://u@h/%2f", &certified, Some("p"), ("u", "p", "h", false)),
            ("amqp://h/%2f", &certified, None, ("guest", "guest", "h", false)),
            ("amqp://[::1]:5673/%2f", &config(), None, ("guest", "guest", "::1", false)),
        ] {
            assert_eq!(seen(url, config, password), text(expected), "{url}");
        }
        assert!(uri("http://h/", &config(), None).is_none());
        assert_eq!(uri("amqps://h/", &config(), None).unwrap().authority.port, 5671);
    }

    #[test]
    fn what_is_wrong_with_a_file_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        let missing = folder.path().join("missing.pem");
        for (config, expected) in [
            (RabbitMq { ca_file: Some(missing.clone()), ..config() }, "ca_file"),
            (RabbitMq { ca_file: Some(empty.clone()), ..config() }, "no certificate"),
            (RabbitMq { ca_file: None, certificate_file: Some(empty.clone()), ..config() }, "private_key_file"),
            (
                RabbitMq { password: PasswordSource { file: Some(missing.clone()), environment: None }, ..config() },
                "password_file",
            ),
        ] {
            let config = RabbitMq { urls: vec!["amqps://h/%2f".into()], ..config };
            let error = Access::read(&config).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_changed_file_shows_and_a_touched_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        let config = RabbitMq { password: PasswordSource { file: Some(file.clone()), environment: None }, ..config() };
        let absent = digest(&config);
        std::fs::write(&file, "one").unwrap();
        let one = digest(&config);
        std::fs::write(&file, "one").unwrap();
        assert_eq!(digest(&config), one);
        std::fs::write(&file, "two").unwrap();
        assert!(digest(&config) != one && one != absent);
    }
}
