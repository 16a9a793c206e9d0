//! What the pure parts are given: SIPSIM's own examples of each event, a body of 4 KiB, and one that is no JSON.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use sipsim_relay::authenticate::{Account, Accounts, SIGNATURE_HEADER, TIMESTAMP_HEADER, Verified, sign};
use sipsim_relay::clock::Timestamp;
use sipsim_relay::config::{Config, Mode};
use sipsim_relay::journal::Stored;
use sipsim_relay::metrics::Metrics;
use sipsim_relay::normalize::{Event, normalize};
use sipsim_relay::publish::Record;
use sipsim_relay::publish::encode::Encoder;
use sipsim_relay::secret::Secret;

/// 2025-01-15T10:30:00Z, also when every request is received and checked.
const SIGNED_AT: i64 = 1_736_937_000;
const NOW: Timestamp = Timestamp::from_seconds(SIGNED_AT);

/// A body under the name of its file, or of what it is like.
#[derive(Clone)]
pub struct Case {
    pub name: String,
    pub body: Bytes,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// All bodies, in an order that never changes.
pub fn all() -> Vec<Case> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/payloads");
    let mut cases: Vec<Case> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?.strip_suffix(".json")?.to_owned();
            Some(Case { name, body: std::fs::read(entry.path()).ok()?.into() })
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!cases.is_empty(), "no payloads in {folder}");
    let text = "Доброго дня, чим можу допомогти? ".repeat(40);
    let turns = r#"{"speaker":"operator","text":"Good morning","start":1.25},"#.repeat(19);
    let speech = format!(
        r#"{{"event":"speech","call_id":"call_abc123","payload":[{}],"text":"{text}""#,
        turns.trim_end_matches(',')
    );
    let padding = 4096 - speech.len() - r#","pad":""}"#.len();
    let speech = format!(r#"{speech},"pad":"{}"}}"#, "x".repeat(padding));
    cases.push(Case { name: "json-4096".into(), body: speech.into() });
    cases.push(Case { name: "not-json-500".into(), body: "event=test&".repeat(46)[..500].to_owned().into() });
    cases
}

/// A body as each room receives it from the one before.
pub struct Prepared {
    account: Arc<Account>,
    headers: HeaderMap,
    body: Bytes,
    pub verified: Verified,
    stored: Stored,
    lane: Arc<str>,
    encoders: [Encoder; 2],
}

impl Prepared {
    pub fn of(case: &Case) -> Self {
        let secret = Secret::new(b"example-secret".to_vec());
        let mut config = Config::defaults();
        config.accounts[0].secrets = None;
        config.accounts[0].environment_secret = Some(secret.clone());
        let accounts = Accounts::open(&config, Metrics::new(&config)).expect("the account has a secret");
        let account = Arc::clone(accounts.by_path(&config.accounts[0].path).expect("it has this path"));

        let timestamp = SIGNED_AT.to_string();
        let mut headers = HeaderMap::new();
        let mut header = |name, value: &str| headers.insert(name, HeaderValue::from_str(value).expect("digits"));
        header(TIMESTAMP_HEADER.as_str(), &timestamp);
        header(SIGNATURE_HEADER.as_str(), &sign(&secret, &timestamp, &case.body));
        // What real requests carry too.
        header("host", "relay.example.com");
        header("content-type", "application/json");
        header("user-agent", "SIPSIM");

        let verified = verify(&account, &headers, &case.body);
        let stored = Stored { sequence: 123_456_789, event: normalize(verified.clone(), &[]) };
        let encoders = [Mode::Structured, Mode::Binary].map(|mode| Encoder {
            mode,
            source: config.envelope.source.clone(),
            relay: "relay-0".into(),
            journal_id: "0123456789abcdef".into(),
        });
        Self { account, headers, body: case.body.clone(), verified, stored, lane: "sipsim.event".into(), encoders }
    }

    pub fn verify(&self) -> Verified {
        verify(&self.account, &self.headers, &self.body)
    }

    pub fn normalize(&self, verified: Verified) -> Event {
        normalize(verified, &[])
    }

    /// In the memory of the record before, as an output has it.
    pub fn structured(&self, record: &mut Record) {
        self.encoders[0].fill(record, Arc::clone(&self.lane), &self.stored, false);
    }

    pub fn binary(&self, record: &mut Record) {
        self.encoders[1].fill(record, Arc::clone(&self.lane), &self.stored, false);
    }
}

/// All of `authenticate`: the form of the headers, the signature, the freshness.
fn verify(account: &Arc<Account>, headers: &HeaderMap, body: &Bytes) -> Verified {
    let Ok(claims) = account.claims(headers) else { unreachable!("both headers are there") };
    let Ok(verified) = claims.with_body(body.clone(), NOW).verify() else { unreachable!("it is signed") };
    verified
}
