//! A disk that fills up, at work and at the start: 503 in time, and back by itself.

use std::time::{Duration, Instant};

use crate::support::disk::Disk;
use crate::support::oracle::{self, Arrived};
use crate::support::{Load, Relay, Sent, wait_until};

/// DESIGN §4: it ends by itself within this of the disk's recovery.
const BACK_WITHIN: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(90);

fn relay_on(disk: &Disk, free_min: &str) -> Relay {
    let path = disk.journal();
    Relay::prepare(&format!("[journal]\npath = \"{}\"\nfree_min = \"{free_min}\"\n", path.display()))
}

fn is_ready(relay: &Relay) -> bool {
    relay.get("/readyz").is_some_and(|answer| answer.status == 200)
}

/// Every one of these posts is refused as SIPSIM's timeout and the contract want it.
fn assert_refused(relay: &Relay) {
    for number in 0..10 {
        let begun = Instant::now();
        let answer = relay.post(oracle::body(999, number).as_bytes());
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{:?}", answer.headers);
        assert!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    }
    assert_eq!(relay.get("/readyz").expect("the admin port answers").status, 503);
    assert_eq!(relay.get("/livez").expect("the admin port answers").status, 200);
}

fn assert_back(relay: &Relay) {
    wait_until("the relay to accept again by itself", BACK_WITHIN, || {
        is_ready(relay) && relay.post(br#"{"event":"test"}"#).status == 200
    });
}

/// All that was answered 2xx came out of the console.
fn assert_kept(relay: &Relay, sent: &[Sent]) {
    wait_until("nothing to be pending", LONG, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let printed = relay.stdout();
    let lines = printed.split_inclusive('\n').filter(|line| line.ends_with('\n') && line.contains("oracle"));
    let arrived: Vec<Arrived> =
        lines.map(|line| Arrived { place: "console".into(), payload: line.trim_end().into() }).collect();
    oracle::judge(sent, &arrived).assert_kept(0);
    let late = sent.iter().filter(|one| one.status.is_some() && one.latency >= Duration::from_secs(2)).count();
    assert_eq!(late, 0, "answers later than two seconds");
    assert!(sent.iter().all(|one| matches!(one.status, Some(200 | 503))), "only 200 and 503 were answered");
}

#[test]
fn short_of_room_the_relay_says_503_and_comes_back_by_itself() {
    let Some(disk) = Disk::mount(32) else { return };
    let mut relay = relay_on(&disk, "8 MiB");
    relay.run();
    assert_back(&relay);
    let load = Load::start(&relay, 4, oracle::body);
    wait_until("some events", LONG, || load.accepted() >= 200);
    disk.fill(4 << 20);
    wait_until("/readyz to say 503", LONG, || !is_ready(&relay));
    assert_refused(&relay);
    let before = load.accepted();
    assert_refused(&relay);
    assert_eq!(load.accepted(), before, "nothing is promised meanwhile");
    disk.free();
    assert_back(&relay);
    wait_until("some more events", LONG, || load.accepted() >= before + 200);
    let sent = load.stop();
    assert_kept(&relay, &sent);
}

#[test]
fn with_no_byte_left_nothing_is_promised_that_is_not_kept() {
    let Some(disk) = Disk::mount(32) else { return };
    // Accepting goes on until the disk itself says no.
    let mut relay = relay_on(&disk, "0");
    relay.run();
    assert_back(&relay);
    let load = Load::start(&relay, 4, oracle::body);
    wait_until("some events", LONG, || load.accepted() >= 200);
    disk.fill(0);
    wait_until("/readyz to say 503", LONG, || !is_ready(&relay));
    disk.free();
    assert_back(&relay);
    let more = load.accepted() + 200;
    wait_until("some more events", LONG, || load.accepted() >= more);
    // And once more, with a crash in between: what was refused must not have hurt what was kept.
    disk.fill(0);
    wait_until("/readyz to say 503", LONG, || !is_ready(&relay));
    let sent = load.stop();
    relay.kill9();
    disk.free();
    relay.run();
    assert_back(&relay);
    assert_kept_after_a_crash(&relay, &sent);
}

fn assert_kept_after_a_crash(relay: &Relay, sent: &[Sent]) {
    wait_until("nothing to be pending", LONG, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let arrived: Vec<Arrived> = relay
        .stdout()
        .lines()
        .filter(|line| line.contains("oracle"))
        .map(|line| Arrived { place: "console".into(), payload: line.to_owned() })
        .collect();
    oracle::judge(sent, &arrived).assert_kept(11_000);
}

#[test]
fn a_full_disk_at_the_start_does_not_stop_it_from_starting() {
    let Some(disk) = Disk::mount(32) else { return };
    // Without a journal yet, and then with one.
    for free_min in ["0", "8 MiB"] {
        let mut relay = relay_on(&disk, free_min);
        disk.fill(0);
        relay.run();
        wait_until("/readyz to say 503", LONG, || !is_ready(&relay));
        assert_refused(&relay);
        disk.free();
        assert_back(&relay);
        assert_eq!(relay.get("/startupz").expect("the admin port answers").status, 200);
    }
}

#[test]
fn history_gives_way_on_a_disk_that_is_smaller_than_the_journal_may_grow() {
    let Some(disk) = Disk::mount(24) else { return };
    let mut relay = relay_on(&disk, "8 MiB");
    relay.run();
    assert_back(&relay);
    // More than twice what the disk can hold, nearly all of it published and none of it old.
    for number in 0..200 {
        // What waits may not go, and the output comes behind: at the most 5 MB of the 16 that there are.
        wait_until("the output to keep up", LONG, || {
            relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) <= 25.0
        });
        let body = format!(r#"{{"event":"sms","number":{number},"text":"{}"}}"#, "x".repeat(200_000));
        assert_eq!(relay.post(body.as_bytes()).status, 200, "number {number}: {}", relay.stderr());
    }
    assert!(is_ready(&relay));
}

#[test]
fn a_disk_filled_by_what_waits_is_emptied_once_it_can_be_published() {
    let Some(disk) = Disk::mount(16) else { return };
    let path = disk.journal();
    let config = |output: &str| {
        let journal = format!("[journal]\npath = \"{}\"\nfree_min = \"1 MiB\"\n", path.display());
        format!("{journal}[outputs.lines]\n{output}\n")
    };
    let mut relay = Relay::prepare(&config("type = \"kafka\"\nbrokers = \"127.0.0.1:1\""));
    relay.run();
    let load = Load::start(&relay, 4, |connection, number| oracle::body(connection, number) + &" ".repeat(40_000));
    wait_until("/readyz to say 503", LONG, || !is_ready(&relay));
    load.stop();
    assert_refused(&relay);
    relay.kill9();
    relay.configure(&config("type = \"console\""));
    relay.run();
    assert_back(&relay);
    wait_until("nothing to be pending", LONG, || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "lines")]) == 0.0
    });
}
