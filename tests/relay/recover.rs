//! What was answered 2xx survives whatever happens to the process.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::{Load, Relay, wait_until};

#[test]
fn nothing_answered_2xx_is_lost_over_twenty_kills() {
    let mut relay = Relay::start("");
    // Keys in alphabetical order and no spaces: as serde_json writes them, so that texts can be compared.
    let body = |client, number| format!(r#"{{"event":"tags","pbx_id":"call_{client}","tags":["{number}"]}}"#);
    let load = Load::start(&relay, 8, body);
    for kill in 1..=20 {
        // Each kill hits a relay at work: one that has accepted some more since the last one.
        let accepted = load.accepted();
        wait_until("fifty more events to be accepted", Duration::from_secs(30), || load.accepted() >= accepted + 50);
        relay.restart();
        eprintln!("kill {kill}: {} accepted before it", load.accepted());
    }
    let sent = load.stop();
    let accepted: BTreeSet<&str> = sent.iter().filter(|one| one.is_accepted()).map(|one| one.body.as_str()).collect();
    assert!(accepted.len() >= 1000, "{} accepted", accepted.len());

    let published =
        || -> BTreeSet<String> { relay.envelopes().iter().map(|envelope| envelope["data"].to_string()).collect() };
    wait_until("everything that was answered 2xx to be published", Duration::from_secs(60), || {
        let published = published();
        accepted.iter().all(|body| published.contains(*body))
    });
    let published = published();
    // What was published and not answered 2xx was sent all the same: the answer was lost, not the event made up.
    let known: BTreeSet<&str> = sent.iter().map(|one| one.body.as_str()).collect();
    assert!(published.iter().all(|body| known.contains(body.as_str())), "something was published that nobody sent");
    let slowest = sent.iter().filter(|one| one.is_accepted()).map(|one| one.latency).max().expect("some were accepted");
    assert!(slowest < Duration::from_secs(2), "a 2xx took {slowest:?}, and SIPSIM gives two seconds");
}

#[test]
fn a_limit_of_files_sizes_means_503_and_back_by_itself() {
    let mut relay = Relay::prepare("");
    relay.run_with_output_blocked();
    let post = |number| relay.post(format!(r#"{{"event":"test","number":{number}}}"#).as_bytes()).status;
    assert_eq!(post(0), 200);
    let pid = Pid::from_raw(i32::try_from(relay.pid()).expect("a pid"));
    let before = getrlimit(Resource::Fsize);
    let limit = |bytes| prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: before.maximum });
    limit(Some(4096)).expect("one's own child");
    let of_the_disk = || relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "disk")]) > 0.0;
    wait_until("503 for the disk's sake", Duration::from_secs(30), || post(1) == 503 && of_the_disk());
    assert_eq!(relay.get("/livez").expect("the admin port answers").status, 200);
    limit(before.current).expect("one's own child");
    wait_until("events to be accepted again", Duration::from_secs(30), || post(2) == 200);
    assert_eq!(relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 0.0);
    relay.restart();
    wait_until("what was answered 2xx to be published", Duration::from_secs(30), || {
        let numbers: BTreeSet<_> = relay.envelopes().iter().filter_map(|one| one["data"]["number"].as_u64()).collect();
        numbers.is_superset(&[0, 2].into())
    });
}
