//! docs/rotation.md, as tests: a secret changes while events come, and none is lost.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{PATH, Relay, SECRET, now, sign, wait_until};

const NEW: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
/// The contract: a changed secret is in force within 10 s.
const IN_FORCE: Duration = Duration::from_secs(10);

fn post(relay: &Relay, secret: &str, number: usize) -> u16 {
    let body = format!(r#"{{"event":"sms","message":"number {number}"}}"#);
    let timestamp = now().to_string();
    let signature = sign(secret, &timestamp, body.as_bytes());
    relay.post_with(&[("X-Webhook-Timestamp", &timestamp), ("X-Webhook-Signature", &signature)], body.as_bytes()).status
}

fn numbers(relay: &Relay) -> Vec<String> {
    relay.envelopes().iter().map(|envelope| envelope["data"]["message"].as_str().expect("a text").to_owned()).collect()
}

fn gauge(relay: &Relay, name: &str, labels: &[(&str, &str)]) -> f64 {
    relay.metrics().find(name, labels).unwrap_or(0.0)
}

#[test]
fn what_comes_signed_anew_before_the_relay_knows_is_kept_after_all() {
    let relay = Relay::start("");
    assert_eq!(post(&relay, SECRET, 0), 200);
    wait_until("the first to leave", IN_FORCE, || numbers(&relay).len() == 1);
    // Somebody pressed the button: SIPSIM signs with the new secret from now on, and nobody has told the relay.
    for number in 1..=5 {
        assert_eq!(post(&relay, NEW, number), 401);
    }
    wait_until("the first to leave", IN_FORCE, || !numbers(&relay).is_empty());
    assert_eq!(numbers(&relay).len(), 1, "nothing of it leaves before it is proved");
    let journal = fs::read(relay.path("data/journal.db-wal")).expect("the journal");
    assert!(!journal.windows(8).any(|bytes| bytes == b"number 3"), "nor is any of it on disk");
    assert_eq!(post(&relay, SECRET, 100), 200);
    let last_accepted = || gauge(&relay, "sipsim_relay_last_accepted_timestamp_seconds", &[("account", "default")]);
    let meanwhile = last_accepted();
    relay.write_secret("next", NEW);
    relay.signal(Signal::HUP);
    wait_until("the held ones to be recovered", IN_FORCE, || {
        gauge(&relay, "sipsim_relay_webhooks_recovered_total", &[("account", "default")]) == 5.0
    });
    assert!(last_accepted() > meanwhile, "they were accepted after what came in between");
    assert_eq!(post(&relay, NEW, 6), 200);
    wait_until("all to leave", IN_FORCE, || numbers(&relay).len() == 8);
    let expected: Vec<String> = [0, 100, 1, 2, 3, 4, 5, 6].iter().map(|number| format!("number {number}")).collect();
    assert_eq!(numbers(&relay), expected, "in the order of their acceptance, and of their arrival among them");
    // The old one is used no more, as its metric says, and can go.
    let used = |secret| gauge(&relay, "sipsim_relay_secret_last_used_timestamp_seconds", &[("secret", secret)]);
    assert!(used("sipsim") > 0.0 && used("next") >= used("sipsim"));
    fs::remove_file(relay.path("data/secrets/sipsim")).expect("it is there");
    wait_until("the old secret to be out of force", IN_FORCE, || post(&relay, SECRET, 7) == 401);
    assert_eq!(post(&relay, NEW, 8), 200);
    assert_eq!(gauge(&relay, "sipsim_relay_last_reload_successful", &[]), 1.0);
}

#[test]
fn two_integrations_at_sipsim_share_one_url_and_account_while_one_takes_over() {
    let relay = Relay::start("");
    relay.write_secret("second", NEW);
    wait_until("both to be in force", IN_FORCE, || {
        gauge(&relay, "sipsim_relay_secrets_loaded", &[("account", "default")]) == 2.0
    });
    // Both send the same events for a while: each under its own secret, none is refused, and consumers tell doubles by their id.
    for number in 0..50 {
        assert_eq!(post(&relay, [SECRET, NEW][number % 2], number), 200);
        assert_eq!(post(&relay, [NEW, SECRET][number % 2], number), 200);
    }
    let ids = || -> BTreeSet<String> {
        relay.envelopes().iter().map(|envelope| envelope["id"].as_str().expect("a text").to_owned()).collect()
    };
    wait_until("all to leave under one id each, whoever signed", IN_FORCE, || ids().len() == 50);
    fs::remove_file(relay.path("data/secrets/sipsim")).expect("it is there");
    wait_until("the first to be out of force", IN_FORCE, || post(&relay, SECRET, 100) == 401);
    assert_eq!(post(&relay, NEW, 101), 200);
}

/// A Secret as the kubelet mounts it: links into `..data`, itself a link that is replaced in one step.
fn mount(relay: &Relay, version: usize, secrets: &[(&str, &str)]) {
    let data = relay.path(&format!("mount/..{version}"));
    fs::create_dir_all(&data).expect("a folder");
    for (name, secret) in secrets {
        fs::write(data.join(name), secret).expect("a file");
        let link = relay.path(&format!("mount/{name}"));
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("..data/{name}"), link).expect("a link");
        }
    }
    symlink(format!("..{version}"), relay.path("mount/..data_tmp")).expect("a link");
    fs::rename(relay.path("mount/..data_tmp"), relay.path("mount/..data")).expect("it takes the place");
    if version > 0 {
        fs::remove_dir_all(relay.path(&format!("mount/..{}", version - 1))).expect("the old one goes");
    }
}

#[test]
fn a_kubernetes_secret_is_swapped_under_load_and_no_genuine_request_is_refused() {
    let mut relay = Relay::prepare(&format!("[accounts.default]\npath = \"{PATH}\"\nsecrets = \"mount\"\n"));
    mount(&relay, 0, &[("current", SECRET)]);
    relay.run();
    let mut number = 0;
    let mut post_all = |secret: &str, until: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !until() {
            assert_eq!(post(&relay, secret, number), 200, "request {number}");
            number += 1;
            assert!(start.elapsed() < IN_FORCE, "the swap is not noticed");
        }
    };
    let loaded = || gauge(&relay, "sipsim_relay_secrets_loaded", &[("account", "default")]);
    mount(&relay, 1, &[("current", SECRET), ("next", NEW)]);
    post_all(SECRET, &|| loaded() == 2.0);
    mount(&relay, 2, &[("current", NEW), ("next", NEW)]);
    post_all(NEW, &|| post(&relay, SECRET, 1_000_000) == 401);
    for version in 3..20 {
        mount(&relay, version, &[("current", NEW), ("next", &format!("{SECRET}{version}"))]);
        assert_eq!(post(&relay, NEW, 2_000_000 + version), 200);
    }
    assert!(!relay.stderr().contains("..data"), "hidden ones are no secrets");
}

#[test]
fn a_reload_that_gives_nothing_keeps_the_old_secret_and_says_so_once() {
    let relay = Relay::start("");
    relay.write_secret("sipsim", " \n");
    let successful = || gauge(&relay, "sipsim_relay_last_reload_successful", &[]);
    wait_until("the reload to fail", IN_FORCE, || successful() == 0.0);
    let said = || relay.stderr().matches("data/secrets/sipsim").count();
    wait_until("the log to say so", IN_FORCE, || said() > 0);
    let before = said();
    // Three more looks, one every 2 s.
    let scrapes = Instant::now();
    wait_until("some more looks", IN_FORCE, || scrapes.elapsed() > Duration::from_secs(5));
    assert_eq!(post(&relay, SECRET, 0), 200, "the last good one is in force");
    assert_eq!(said(), before, "{}", relay.stderr());
    relay.write_secret("sipsim", SECRET);
    wait_until("all to be well again", IN_FORCE, || successful() == 1.0);
}

#[test]
fn a_correctly_signed_request_outside_the_tolerance_says_that_a_clock_is_wrong() {
    let relay = Relay::start("");
    let timestamp = (now() - 3600).to_string();
    let signature = sign(SECRET, &timestamp, b"{}");
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    assert_eq!(relay.post_with(&headers, b"{}").status, 401);
    relay.logged(&["outside_tolerance: correctly signed", "compare the clocks"]);
    let metrics = relay.metrics();
    let outcome = [("account", "default"), ("outcome", "outside_tolerance")];
    assert_eq!(metrics.get("sipsim_relay_webhooks_total", &outcome), 1.0);
    assert!((metrics.get("sipsim_relay_clock_skew_seconds", &[]) + 3600.0).abs() < 10.0);
}

#[test]
fn weak_shared_and_open_secrets_are_worth_a_word_at_the_start_as_in_check() {
    let mut relay = Relay::prepare(
        "[accounts.a]\npath = \"/a\"\nsecrets = \"data/secrets\"\n[accounts.b]\npath = \"/b\"\nsecrets = \"b\"\n",
    );
    relay.write_secret("weak", "123456789");
    fs::write(relay.path("b"), SECRET).expect("a file");
    fs::set_permissions(relay.path("b"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("its mode");
    let check = String::from_utf8(relay.finish(&["check"]).stdout).expect("UTF-8");
    relay.run();
    let warnings = ["is weak: 9 bytes", "is a secret of account `a` too", "is readable by everybody"];
    let log = relay.logged(&warnings);
    assert!(warnings.iter().all(|said| check.contains(said)), "{check}");
    assert!(!(check + &log).contains(SECRET));
}

#[test]
fn a_line_feed_in_the_name_of_a_secret_begins_no_line_of_the_log() {
    let mut relay = Relay::prepare("");
    relay.write_secret("a\n2026-01-01T00:00:00.000000Z ERROR forged\u{1b}[2J", "");
    relay.run();
    relay.logged(&["ERROR forged", "is empty"]);
    let log = relay.stderr();
    assert!(log.lines().all(|line| !line.starts_with("2026-01-01")) && !log.contains('\u{1b}'), "{log}");
}
