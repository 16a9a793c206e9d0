use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use hyper::header::HeaderName;
use proptest::prelude::*;

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
        let text = String::from_utf8(self.metrics.text([])).unwrap();
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
        journal_max: None,
        keep_refused: 4 << 20,
    }
}

pub(crate) fn config_of(accounts: Vec<config::Account>) -> Config {
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
        admin: config::Admin { listen: any, hosts: Vec::new() },
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
    sign(&Secret::new(secret.into()), timestamp, body)
}

/// A request to the account `default`, received at `now`.
fn request(accounts: &Accounts, timestamp: &str, signature: &str, body: &[u8], now: Timestamp) -> Unverified {
    let headers = headers(&[(TIMESTAMP_HEADER.as_str(), timestamp), (SIGNATURE_HEADER.as_str(), signature)]);
    let claims = accounts.by_path("/default").unwrap().claims(&headers).ok().unwrap();
    claims.with_body(Bytes::copy_from_slice(body), now)
}

fn outcome(accounts: &Accounts, timestamp: &str, signature: &str, body: &[u8], now: Timestamp) -> Result<(), Refused> {
    request(accounts, timestamp, signature, body, now).verify().map(drop)
}

#[test]
fn the_protocols_vectors_are_let_in_as_they_came() {
    let fixture = Fixture::new(&[("sipsim", "example-secret\n")]);
    let accounts = fixture.open();
    for (body, signature) in VECTORS {
        let verified = request(&accounts, "1736937000", signature, body.as_bytes(), NOW).verify().ok().unwrap();
        assert_eq!(verified.account.as_str(), "default");
        assert_eq!(verified.signed_text.as_str(), "1736937000");
        assert_eq!(verified.signed_at, 1_736_937_000);
        assert_eq!(verified.signature.as_str(), signature);
        assert_eq!(verified.received_at, NOW);
        assert_eq!(verified.body, body);
    }
}

#[test]
fn a_signature_may_be_in_either_case_and_under_any_secret() {
    let fixture = Fixture::new(&[("a", "old-secret"), ("b", "  example-secret\r\n")]);
    let accounts = fixture.open();
    let (body, signature) = VECTORS[0];
    for signature in
        [signature.to_owned(), signature.to_uppercase(), self::signature("old-secret", "1736937000", body.as_bytes())]
    {
        assert_eq!(outcome(&accounts, "1736937000", &signature, body.as_bytes(), NOW), Ok(()), "{signature}");
    }
    let other = self::signature("other-secret", "1736937000", body.as_bytes());
    assert_eq!(outcome(&accounts, "1736937000", &other, body.as_bytes(), NOW), Err(Refused::BadSignature));
}

#[test]
fn the_timestamp_is_signed_as_it_is_written() {
    let fixture = Fixture::new(&[("sipsim", "s")]);
    let accounts = fixture.open();
    let padded = "001736937000";
    assert_eq!(outcome(&accounts, padded, &signature("s", padded, b"x"), b"x", NOW), Ok(()));
    assert_eq!(outcome(&accounts, padded, &signature("s", "1736937000", b"x"), b"x", NOW), Err(Refused::BadSignature));
}

#[test]
fn headers_are_judged_by_presence_and_form() {
    use Refused::{MalformedHeader, MissingHeader};
    let fixture = Fixture::new(&[("sipsim", "s")]);
    let accounts = fixture.open();
    let account = accounts.by_path("/default").unwrap();
    let good = "0123456789abcdefABCDEF".repeat(3)[..64].to_owned();
    let check = |timestamps: &[&str], signatures: &[&str], expected: Result<(), Refused>| {
        let mut pairs: Vec<_> = timestamps.iter().map(|value| ("X-Webhook-Timestamp", *value)).collect();
        pairs.extend(signatures.iter().map(|value| ("X-Webhook-Signature", *value)));
        assert_eq!(account.claims(&headers(&pairs)).map(drop), expected, "{pairs:?}");
    };
    check(&["0"], &[&good], Ok(()));
    check(&["999999999999"], &[&good], Ok(()));
    check(&[], &[], Err(MissingHeader));
    check(&["0"], &[], Err(MissingHeader));
    check(&[], &[&good], Err(MissingHeader));
    check(&["x"], &[], Err(MissingHeader));
    check(&["0", "0"], &[], Err(MissingHeader));
    check(&["0", "0"], &[&good], Err(MalformedHeader));
    check(&["0"], &[&good, &good], Err(MalformedHeader));
    check(&["0, 0"], &[&good], Err(MalformedHeader));
    for timestamp in ["", "x", "1x", "-1", "+1", "1.0", "1e3", "0x1", " 1", "1 ", "1736937000000", "١", "1\u{b2}"] {
        check(&[timestamp], &[&good], Err(MalformedHeader));
    }
    for signature in
        ["", "0", &good[..63], &good[..62], &format!("{good}0"), &format!("{good}00"), &format!("{}g", &good[..63])]
    {
        check(&["0"], &[signature], Err(MalformedHeader));
    }
    check(&["0"], &[&format!("sha256={good}")], Err(MalformedHeader));
    check(&["0"], &[&format!("0x{}", &good[..62])], Err(MalformedHeader));
    check(&["0"], &[&format!("0x{good}")], Err(MalformedHeader));
    check(&["0"], &[&format!("{}é", &good[..62])], Err(MalformedHeader));
}

#[test]
fn a_stale_signature_is_refused_and_a_fast_clock_forgiven() {
    let fixture = Fixture::new(&[("sipsim", "s")]);
    let accounts = fixture.open();
    let check = |micros_after_signing: i64, expected| {
        let now = Timestamp::from_micros(SIGNED_AT * 1_000_000 + micros_after_signing);
        let signature = signature("s", "1736937000", b"{}");
        assert_eq!(outcome(&accounts, "1736937000", &signature, b"{}", now), expected, "{micros_after_signing}");
        // A wrong signature is never said to be only late.
        assert_eq!(outcome(&accounts, "1736937000", &"0".repeat(64), b"{}", now), Err(Refused::BadSignature));
    };
    check(0, Ok(()));
    check(300_000_000, Ok(()));
    check(300_000_001, Err(Refused::OutsideTolerance));
    check(-300_000_000, Ok(()));
    check(-300_000_001, Err(Refused::OutsideTolerance));
    check(i64::MAX / 2, Err(Refused::OutsideTolerance));
}

#[test]
fn clock_skew_and_last_use_are_shown_and_only_of_what_was_signed() {
    let fixture = Fixture::new(&[("sipsim", "s"), ("old", "t")]);
    let accounts = fixture.open();
    assert_eq!(fixture.metric("secrets_loaded{account=\"default\"}"), Some(2.0));
    let late = Timestamp::from_seconds(SIGNED_AT + 1000);
    assert!(outcome(&accounts, "1736937000", &"0".repeat(64), b"{}", late).is_err());
    assert_eq!(fixture.metric("clock_skew_seconds"), Some(0.0));
    assert!(outcome(&accounts, "1736937000", &signature("s", "1736937000", b"{}"), b"{}", late).is_err());
    assert_eq!(fixture.metric("clock_skew_seconds"), Some(-1000.0));
    let used = |secret| {
        fixture.metric(&format!("secret_last_used_timestamp_seconds{{account=\"default\",secret=\"{secret}\"}}"))
    };
    assert_eq!((used("sipsim"), used("old")), (Some(1_736_938_000.0), Some(0.0)));
}

#[test]
fn each_flipped_bit_of_a_vector_is_refused() {
    let (body, signature) = VECTORS[1];
    let parts = ["1736937000", signature, body].map(|part| part.as_bytes().to_vec());
    let (mut refused, mut same_digit) = (0, 0);
    for part in 0..3 {
        for bit in 0..parts[part].len() * 8 {
            let mut parts = parts.clone();
            parts[part][bit / 8] ^= 1 << (bit % 8);
            let [timestamp, flipped, body] = &parts;
            if outcome_of_bytes(forged_fixture(), timestamp, flipped, body, NOW).is_none_or(|outcome| outcome.is_err())
            {
                refused += 1;
            } else {
                assert!(flipped.eq_ignore_ascii_case(signature.as_bytes()), "bit {bit} of part {part}");
                same_digit += 1;
            }
        }
    }
    // Only the other case of a signature's letters is no change.
    let letters = signature.bytes().filter(u8::is_ascii_alphabetic).count();
    assert_eq!((refused, same_digit), ((10 + 64 + 40) * 8 - letters, letters));
}

/// `None` if hyper would not even take the values for headers.
fn outcome_of_bytes(
    accounts: &Accounts,
    timestamp: &[u8],
    signature: &[u8],
    body: &[u8],
    now: Timestamp,
) -> Option<Result<(), Refused>> {
    let value = |bytes| HeaderValue::from_bytes(bytes).ok();
    let mut headers = HeaderMap::new();
    headers.insert(&TIMESTAMP_HEADER, value(timestamp)?);
    headers.insert(&SIGNATURE_HEADER, value(signature)?);
    let claims = accounts.by_path("/default").unwrap().claims(&headers);
    Some(claims.and_then(|claims| claims.with_body(Bytes::copy_from_slice(body), now).verify()).map(drop))
}

proptest! {
    /// Any one flipped bit of body, timestamp or signature is refused.
    #[test]
    fn a_flipped_bit_is_refused(
        body in prop::collection::vec(any::<u8>(), 0..200),
        seconds in 0_i64..1_000_000_000_000,
        bit in any::<prop::sample::Index>(),
    ) {
        let fixture = forged_fixture();
        let now = Timestamp::from_seconds(seconds);
        let text = seconds.to_string();
        let signature = signature("example-secret", &text, &body);
        prop_assert_eq!(outcome(fixture, &text, &signature, &body, now), Ok(()));

        let (mut text, mut signature, mut body) = (text.into_bytes(), signature.into_bytes(), body);
        let (in_text, in_signature) = (text.len() * 8, signature.len() * 8);
        let bit = bit.index(in_text + in_signature + body.len() * 8);
        let (part, bit) = match bit {
            bit if bit < in_text => (&mut text, bit),
            bit if bit < in_text + in_signature => (&mut signature, bit - in_text),
            bit => (&mut body, bit - in_text - in_signature),
        };
        part[bit / 8] ^= 1 << (bit % 8);
        // A hex digit's other case is the same digit, so no forgery.
        prop_assume!(!(signature.eq_ignore_ascii_case(self::signature("example-secret", &seconds.to_string(), &body).as_bytes())
            && text == seconds.to_string().as_bytes()));

        let outcome = outcome_of_bytes(fixture, &text, &signature, &body, now);
        prop_assert!(outcome.is_none_or(|outcome| outcome.is_err()));
    }

    /// Any byte string that is signed is let in and comes out the same.
    #[test]
    fn whatever_is_signed_comes_in_unchanged(body in prop::collection::vec(any::<u8>(), 0..500)) {
        let signature = signature("example-secret", "1736937000", &body);
        let verified = request(forged_fixture(), "1736937000", &signature, &body, NOW).verify().ok().unwrap();
        prop_assert_eq!(verified.body, body);
    }
}

/// One for all cases of a property.
fn forged_fixture() -> &'static Accounts {
    static ACCOUNTS: OnceLock<Accounts> = OnceLock::new();
    ACCOUNTS.get_or_init(|| {
        let mut account = account("default", None);
        account.environment_secret = Some(Secret::new(b"example-secret".to_vec()));
        account.keep_refused = 0;
        let config = config_of(vec![account]);
        Accounts::open(&config, Metrics::new(&config)).unwrap()
    })
}

mod explaining;
mod reloading;
