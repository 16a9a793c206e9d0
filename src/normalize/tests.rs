use super::*;
use crate::authenticate::Verified;

fn event_of(body: &[u8]) -> Event {
    normalize(Verified::for_test("default", 1_736_937_000, body), &["transfer".into()])
}

fn name_of(body: &str) -> String {
    event_of(body.as_bytes()).name.as_str().to_owned()
}

#[test]
fn an_event_says_its_name() {
    assert_eq!(name_of(r#"{"event":"sms"}"#), "sms");
}

#[test]
fn ids_are_the_same_digest_that_anybody_can_compute() {
    // printf 'default\0{"event":"test","pbx_id":"test_000000"}' | sha256sum
    let id = EventId::of(&AccountName::new("default").unwrap(), br#"{"event":"test","pbx_id":"test_000000"}"#);
    assert_eq!(id.to_string(), "4f4e7e10-8d56-8581-8c18-cf576f5d94af");
}
