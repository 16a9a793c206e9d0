//! What is genuine is answered 200, and goes out.

use std::time::Duration;

use crate::support::{Relay, wait_for};

#[test]
fn a_signed_event_gets_200_and_its_envelope_comes_out() {
    let relay = Relay::start("");
    let answer = relay.post(include_bytes!("../payloads/incoming_call_start.json"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let envelope =
        wait_for("the envelope on the console", Duration::from_secs(10), || relay.envelopes().into_iter().next());
    assert_eq!(envelope["id"], answer.json()["id"]);
    assert_eq!(envelope["type"], "com.sipsim.incoming_call_start");
    assert_eq!(envelope["data"]["pbx_id"], "call_abc123");
}
