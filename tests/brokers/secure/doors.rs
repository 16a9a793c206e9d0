//! A Kafka and a RabbitMQ that let nobody in unproved, the certificates for it, a server of tokens, and a port that only listens to what it is told.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use crate::support::{Brokers, now};

/// Of every user of either broker, and of the client of the token server.
pub const PASSWORD: &str = "canary-password-of-brokers";

/// Makes certificates, and holds the files of brokers and outputs.
pub struct Files {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    pub fn new() -> Self {
        let folder = TempDir::with_prefix("sipsim-relay-secure-").expect("a temporary folder");
        // As root, RabbitMQ runs as nobody, who must be able to read them.
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("its mode");
        let files = Self { folder, authority: authority("the brokers' authority") };
        // For the address and no name, so that whoever comes by the name `localhost` comes to the wrong host.
        let (certificate, key) = files.certificate("127.0.0.1", "broker", 2099);
        files.write("kafka.pem", &format!("{key}{certificate}"));
        files.write("rabbitmq.pem", &certificate);
        files.write("rabbitmq-key.pem", &key);
        let (certificate, key) = files.certificate("127.0.0.1", "broker", 2001);
        files.write("expired.pem", &format!("{key}{certificate}"));
        files.write("authority.pem", &files.authority.pem());
        files
    }

    /// By the brokers' authority, and its key. It ends with the first day of that year.
    pub fn certificate(&self, host: &str, name: &str, until: i32) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new([host.to_owned()]).expect("a name");
        wanted.distinguished_name.push(DnType::CommonName, name);
        (wanted.not_before, wanted.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(until, 1, 1));
        (wanted.signed_by(&key, &self.authority).expect("it is signed").pem(), key.serialize_pem())
    }

    pub fn authority(&self) -> String {
        self.authority.pem()
    }

    /// Of somebody else.
    pub fn strange_authority(&self) -> String {
        authority("a stranger").pem()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// In one step, as a reader may look at any moment.
    pub fn write(&self, name: &str, content: &str) {
        fs::write(self.path("new"), content).expect("a file");
        let mode = if name.ends_with(".pem") { 0o644 } else { 0o600 };
        fs::set_permissions(self.path("new"), PermissionsExt::from_mode(mode)).expect("its mode");
        fs::rename(self.path("new"), self.path(name)).expect("it takes its place");
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut wanted = CertificateParams::new([]).expect("no names");
    wanted.distinguished_name.push(DnType::CommonName, name);
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(wanted, KeyPair::generate().expect("a key")).expect("it is signed")
}

/// Where the brokers listen.
pub struct Doors {
    pub brokers: Brokers,
    /// Kafka with TLS; it wants a certificate; its own has expired; TLS and a login.
    pub tls: SocketAddr,
    pub mutual: SocketAddr,
    pub expired: SocketAddr,
    pub login: SocketAddr,
    pub amqps: SocketAddr,
}

impl Doors {
    /// Users `relay` and `rolling` with [`PASSWORD`], at RabbitMQ also `by-certificate` and `by-another` without one.
    pub fn open(files: &Files) -> Self {
        let path = |name: &str| files.path(name).display().to_string();
        let module = "org.apache.kafka.common.security";
        let unsecured = "oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler";
        let listeners = ["TLS:SSL:0", "MUTUAL:SSL:0", "EXPIRED:SSL:0", "LOGIN:SASL_SSL:0"].map(str::to_owned);
        let properties = [
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", path("kafka.pem")),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", path("authority.pem")),
            "listener.name.mutual.ssl.client.auth=required".to_owned(),
            format!("listener.name.expired.ssl.keystore.location={}", path("expired.pem")),
            "listener.name.expired.ssl.keystore.type=PEM".to_owned(),
            "listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER".to_owned(),
            format!(
                "listener.name.login.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_relay=\"{PASSWORD}\";"
            ),
            format!("listener.name.login.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;"),
            format!("listener.name.login.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;"),
            format!(
                "listener.name.login.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";"
            ),
            format!("listener.name.login.oauthbearer.sasl.server.callback.handler.class={module}.{unsecured}"),
        ];
        let lines = [
            format!("ssl_options.certfile = {}", path("rabbitmq.pem")),
            format!("ssl_options.keyfile = {}", path("rabbitmq-key.pem")),
            format!("ssl_options.cacertfile = {}", path("authority.pem")),
            "ssl_options.verify = verify_peer".to_owned(),
            "ssl_options.fail_if_no_peer_cert = false".to_owned(),
            "ssl_cert_login_from = common_name".to_owned(),
            "auth_mechanisms.1 = PLAIN".to_owned(),
            "auth_mechanisms.2 = EXTERNAL".to_owned(),
        ];
        let options: Vec<String> = listeners
            .into_iter()
            .flat_map(|value| ["--kafka-listener".to_owned(), value])
            .chain(properties.into_iter().flat_map(|value| ["--kafka-property".to_owned(), value]))
            .chain(lines.into_iter().flat_map(|value| ["--rabbitmq-conf".to_owned(), value]))
            .chain(["--rabbitmq-tls".to_owned()])
            .collect();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let brokers = Brokers::start("all", &options);
        let [tls, mutual, expired, login] =
            ["TLS", "MUTUAL", "EXPIRED", "LOGIN"].map(|name| brokers.address(&format!("KAFKA_{name}")));
        let doors = Self { tls, mutual, expired, login, amqps: brokers.address("RABBITMQ_TLS"), brokers };
        doors.brokers.kafka_passwords(&[("relay", PASSWORD), ("rolling", PASSWORD)]);
        for (user, password) in [("relay", PASSWORD), ("rolling", PASSWORD), ("by-certificate", ""), ("by-another", "")]
        {
            doors.rabbitmq_password(user, password);
            let all = r#"{"configure":".*","write":".*","read":".*"}"#;
            doors.brokers.ask("PUT", &format!("/api/permissions/%2f/{user}"), all);
        }
        doors
    }

    /// Makes a user, or gives one another password; an empty one: nobody gets in by it.
    pub fn rabbitmq_password(&self, user: &str, password: &str) {
        let key = if password.is_empty() { "password_hash" } else { "password" };
        let order = serde_json::json!({ key: password, "tags": "" });
        self.brokers.ask("PUT", &format!("/api/users/{user}"), &order.to_string());
    }

    /// Who is connected to RabbitMQ, by name.
    pub fn rabbitmq_users(&self) -> String {
        self.brokers.rabbitmqctl(&["list_connections", "user", "--quiet"])
    }

    /// Has RabbitMQ read its certificate anew, and closes all connections.
    pub fn rabbitmq_certificate_changed(&self) {
        self.brokers.rabbitmqctl(&["eval", "ssl:clear_pem_cache()."]);
        self.brokers.rabbitmqctl(&["close_all_connections", "its certificate changes"]);
    }
}

/// Gives whoever knows the client `relay` and [`PASSWORD`] a token that a Kafka of the tests believes. It listens for as long as the process runs.
pub fn token_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_with_token(stream));
        }
    });
    address
}

fn answer_with_token(mut stream: TcpStream) {
    let request = heard(&mut stream, b"grant_type=client_credentials");
    let genuine = format!("Basic {}", STANDARD.encode(format!("relay:{PASSWORD}")));
    let (status, body) = if String::from_utf8_lossy(&request).contains(&genuine) {
        let claims = serde_json::json!({ "sub": "relay", "iat": now() - 5, "exp": now() + 3600 });
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let token = format!("{}.{}.", part(r#"{"alg":"none"}"#), part(&claims.to_string()));
        ("200 OK", serde_json::json!({ "access_token": token, "expires_in": 3600 }))
    } else {
        ("401 Unauthorized", serde_json::json!({ "error": "invalid_client" }))
    };
    let _ = write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n{body}");
}

/// A broker's port where somebody only listens: what each connection said first, in half a second.
pub struct Trap {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Trap {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let all = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&all);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let bytes = heard(&mut stream, b"never said");
                into.lock().expect("nobody panics with it").push(bytes);
            }
        });
        Self { address, heard: all }
    }

    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("nobody panics with it").clone()
    }
}

/// All that comes until these bytes have come, or nothing for half a second.
fn heard(stream: &mut TcpStream, until: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a socket takes it");
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    while !bytes.windows(until.len()).any(|window| window == until) {
        match stream.read(&mut part) {
            Ok(count) if count > 0 => bytes.extend_from_slice(&part[..count]),
            _ => break,
        }
    }
    bytes
}
