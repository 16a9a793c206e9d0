//! What is genuine is answered 200, and goes out.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

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

#[test]
fn idle_connections_keep_nobody_out_even_where_there_are_few_descriptors() {
    let relay = Relay::start("");
    // Below what the relay found at its start and reckoned with, so that it is the system that refuses.
    let pid = Pid::from_raw(i32::try_from(relay.pid()).expect("a pid"));
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) }).expect("one's own child");
    let idle: Vec<_> = (0..100).filter_map(|_| TcpStream::connect(relay.ingress).ok()).collect();
    assert!(idle.len() > 64, "{}", idle.len());
    for number in 0..5 {
        let begun = Instant::now();
        let answer = relay.post(format!(r#"{{"event":"test","number":{number}}}"#).as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    }
    assert_eq!(relay.get("/livez").expect("the admin port answers").status, 200);
}
