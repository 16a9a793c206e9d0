use std::fs;
use std::path::{Path, PathBuf};

use hyper::header::HeaderName;

use super::*;
use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::secret::Secret;

/// 2025-01-15T10:30:00Z, as in PROTOCOL §1.1's vectors.
const SIGNED_AT: i64 = 1_736_937_000;
const NOW: Timestamp = Timestamp::from_seconds(SIGNED_AT);
/// Body and signature with the secret `example-secret` and the timestamp 1736937000, computed by Python and OpenSSL (PROTOCOL §1.1).
const VECTORS: [(&str, &str); 2] = [
    (r#"{"event":"test","pbx_id":"test_000000"}"#, "c7f86e4e9314998cde8f1113e20ce9cd37ba170778263fffe81b7c6d6e1dde92"),
    (r#"{"event":"sms","message":"Été à 14h"}"#, "996d4ff9562caff6a3ee526ad7740ceb01b8e00c4e4a471eccebdf7d8b759837"),
];

struct Fixture {
    folder: tempfile::TempDir,
    config: Config,
    metrics: Arc<Metrics>,
}

impl Fixture {
    /// One account `default` whose folder holds these files.
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config_of(vec![account("default", Some(folder.path().into()))]);
        let metrics = Metrics::new(&config);
        let fixture = Self { folder, config, metrics };
        files.iter().for_each(|(name, content)| fixture.write(name, content));
        fixture
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.folder.path().join(name), content).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    fn open(&self) -> Accounts {
        Accounts::open(&self.config, Arc::clone(&self.metrics)).unwrap()
    }

    fn metric(&self, line_start: &str) -> Option<f64> {
        let text = String::from_utf8(self.metrics.text()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("sipsim_relay_")?.strip_prefix(line_start));
        line.map(|value| value.trim().parse().unwrap())
    }
}

fn account(name: &str, secrets: Option<PathBuf>) -> config::Account {
    config::Account {
        name: AccountName::new(name).unwrap(),
        path: format!("/{name}"),
        secrets,
        environment_secret: None,
        tolerance: Duration::from_secs(300),
        keep_refused: 4 << 20,
    }
}

fn config_of(accounts: Vec<config::Account>) -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    let none = Duration::ZERO;
    Config {
        instance: "test".into(),
        ingress: config::Ingress {
            listen: any,
            body_max: 0,
            headers_max: 0,
            buffered_max: 0,
            deadline: none,
            idle_timeout: none,
            connections_max: 0,
            tls: None,
        },
        accounts,
        events: config::Events::default(),
        envelope: config::Envelope { source: String::new() },
        journal: config::Journal { path: PathBuf::new(), size_max: 0, free_min: 0, retention: none, trail: none },
        outputs: Vec::new(),
        admin: config::Admin { listen: any },
        shutdown: config::Shutdown { delay: none, drain: none },
        log: config::Log { format: config::LogFormat::Text, level: tracing::Level::INFO },
    }
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    pairs.iter().map(pair).collect()
}

fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    use hmac::Mac;
    let mut mac = keys::signer(&Secret::new(secret.into()));
    keys::feed(&mut mac, timestamp.as_bytes(), body);
    hex::encode(mac.finalize().into_bytes())
}

/// A request to the account `default`, received at `now`.
fn request(accounts: &Accounts, timestamp: &str, signature: &str, body: &[u8], now: Timestamp) -> Unverified {
    let headers = headers(&[(TIMESTAMP_HEADER, timestamp), (SIGNATURE_HEADER, signature)]);
    let claims = accounts.by_path("/default").unwrap().claims(&headers).ok().unwrap();
    claims.with_body(Bytes::copy_from_slice(body), now)
}

fn outcome(accounts: &Accounts, timestamp: &str, signature: &str, body: &[u8], now: Timestamp) -> Result<(), Refused> {
    request(accounts, timestamp, signature, body, now).verify(now).map(drop)
}

#[test]
fn the_protocols_vectors_are_let_in_as_they_came() {
    let fixture = Fixture::new(&[("sipsim", "example-secret\n")]);
    let accounts = fixture.open();
    for (body, signature) in VECTORS {
        let verified = request(&accounts, "1736937000", signature, body.as_bytes(), NOW).verify(NOW).ok().unwrap();
        assert_eq!(verified.account.as_str(), "default");
        assert_eq!(verified.signed_text, "1736937000");
        assert_eq!(verified.signed_at, 1_736_937_000);
        assert_eq!(verified.signature, signature);
        assert_eq!(verified.received_at, NOW);
        assert_eq!(verified.body, body);
    }
}
