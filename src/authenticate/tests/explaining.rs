use std::io;
use std::sync::Mutex;

use super::*;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is said of a request with this body, signed with `secret` and refused as `bad_signature`.
async fn causes(accounts: &Arc<Accounts>, body: &[u8], secret: &str) -> Vec<String> {
    let mut headers = HeaderMap::new();
    let timestamp = SIGNED_AT.to_string();
    let signature = sign(&Secret::new(secret.into()), &timestamp, body);
    headers.insert(&TIMESTAMP_HEADER, timestamp.parse().unwrap());
    headers.insert(&SIGNATURE_HEADER, signature.parse().unwrap());
    let account = accounts.by_path("/default").unwrap();
    accounts.explain(account, &headers, Some(Bytes::copy_from_slice(body)), Refused::BadSignature, NOW);
    let looking = tokio::spawn(Arc::clone(accounts).look_into_refused());
    let explained = async {
        loop {
            match accounts.explanations().first() {
                Some(explanation) => break explanation.causes.clone(),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let causes = tokio::time::timeout(Duration::from_secs(30), explained).await.expect("it is looked into");
    looking.abort();
    causes
}

#[tokio::test]
async fn a_request_that_came_before_its_secret_was_read_is_told_from_a_wrong_one() {
    let fixture = Fixture::new(&[("old", "old-secret")]);
    let accounts = Arc::new(fixture.open());
    fixture.write("new", "new-secret");
    let causes = causes(&accounts, b"{}", "new-secret").await;
    assert!(matches!(&causes[..], [one] if one.contains("secret new of account default")), "{causes:?}");
}

#[tokio::test]
async fn a_body_too_large_to_be_searched_leaves_no_empty_diagnosis() {
    let accounts = Arc::new(Fixture::new(&[("old", "old-secret")]).open());
    let causes = causes(&accounts, &[b' '; (64 << 10) + 1], "another").await;
    assert!(matches!(&causes[..], [one] if one.contains("64 KiB")), "{causes:?}");
}

/// Refuses a request with this timestamp header, signature header and body, and has it looked into.
fn look_into(accounts: &Arc<Accounts>, timestamp: &str, signature: &str, body: &[u8], now: Timestamp) {
    let headers = headers(&[(TIMESTAMP_HEADER.as_str(), timestamp), (SIGNATURE_HEADER.as_str(), signature)]);
    let account = accounts.by_path("/default").unwrap();
    accounts.explain(account, &headers, Some(Bytes::copy_from_slice(body)), Refused::BadSignature, now);
    accounts.look_into_next();
}

#[test]
fn forged_requests_displace_no_diagnosis_that_took_a_secret_and_are_logged_once_a_minute() {
    let fixture = Fixture::new(&[("sipsim", "example-secret")]);
    let accounts = Arc::new(fixture.open());
    let timestamp = SIGNED_AT.to_string();
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let prefixed = format!("sha256={}", signature("example-secret", &timestamp, b"{}"));
        look_into(&accounts, &timestamp, &prefixed, b"{}", NOW);
        let zeros = "0".repeat(64);
        let zeros_prefixed = format!("sha256={zeros}");
        for second in 1..120 {
            let now = Timestamp::from_seconds(SIGNED_AT + second);
            let (forged, body): (&String, &[u8]) =
                [(&zeros, &b"{}"[..]), (&zeros, b""), (&zeros_prefixed, b"{}")][second as usize % 3];
            look_into(&accounts, &timestamp, forged, body, now);
        }
    });
    let kinds: Vec<_> = accounts.explanations().iter().map(|explanation| explanation.kind).collect();
    assert_eq!(kinds, ["no_secret_fits", "signature_decorated"]);
    assert_eq!(log.lines().len(), 3, "the genuine one, and two in two minutes: {:?}", log.lines());
}

#[test]
fn a_request_that_waits_gives_way_only_to_one_of_its_account_and_reason() {
    let accounts = Arc::new(Fixture::new(&[("sipsim", "example-secret")]).open());
    let account = accounts.by_path("/default").unwrap();
    let empty = HeaderMap::new();
    accounts.explain(account, &empty, None, Refused::BadSignature, NOW);
    for second in 0..100 {
        let now = Timestamp::from_seconds(SIGNED_AT + second);
        accounts.explain(account, &empty, None, Refused::MissingHeader, now);
    }
    accounts.look_into_next();
    assert_eq!(accounts.explanations()[0].reason, Refused::BadSignature);
    accounts.look_into_next();
    assert_eq!(accounts.explanations()[0].at, Timestamp::from_seconds(SIGNED_AT + 99));
    assert!(!accounts.look_into_next());
}
