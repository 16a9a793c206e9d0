//! What is in the process's memory: no secret that is no longer accepted, and next to nothing for strangers who say nothing.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::support::{Relay, SECRET, now, sign, wait_until};

const NEXT: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";

/// How often these bytes are in the process's writable memory.
fn found(relay: &Relay, wanted: &[u8]) -> usize {
    let pid = relay.pid();
    let memory =
        File::open(format!("/proc/{pid}/mem")).expect("root may look; nobody else, since the relay cannot be dumped");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it runs");
    let mut count = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(to - from).expect("it fits")];
        // What is mapped without being there cannot be read, and holds nothing.
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            count += bytes.windows(wanted.len()).filter(|window| *window == wanted).count();
        }
    }
    count
}

#[test]
fn a_secret_that_was_rotated_out_is_wiped_from_memory() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root may look into the memory of a process that cannot be dumped");
    }
    let relay = Relay::start("");
    let answer = |secret: &str| {
        let timestamp = now().to_string();
        let signature = sign(secret, &timestamp, b"{}");
        relay.post_with(&[("X-Webhook-Timestamp", &timestamp), ("X-Webhook-Signature", &signature)], b"{}").status
    };
    assert_eq!(answer(SECRET), 200);
    assert!(found(&relay, SECRET.as_bytes()) > 0, "while it is accepted, it is there: so this test can see");
    relay.write_secret("next", NEXT);
    fs::remove_file(relay.path("data/secrets/sipsim")).expect("it is there");
    wait_until("the next secret alone to be accepted", Duration::from_secs(30), || {
        answer(NEXT) == 200 && answer(SECRET) == 401
    });
    assert!(found(&relay, NEXT.as_bytes()) > 0);
    assert_eq!(found(&relay, SECRET.as_bytes()), 0, "copies of a secret that nobody accepts any more");
}

/// `SECURITY.md`: no buffer before a connection's first byte. hyper's own take 16 KiB.
#[test]
fn connections_that_say_nothing_cost_next_to_no_memory() {
    const CONNECTIONS: u64 = 800; // Two processes share what one is allowed to open on many systems.
    const EACH_MAX: u64 = 4 << 10;
    let relay = Relay::start("");
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", relay.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux shows it");
        line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number of KiB") << 10
    };
    let open = || relay.metrics().get("sipsim_relay_http_connections", &[]) as u64;
    let before = resident();
    let silent: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(relay.ingress).expect("it listens")).collect();
    wait_until("all to be accepted", Duration::from_secs(30), || open() >= CONNECTIONS);
    let grown = resident().saturating_sub(before);
    assert!(grown < CONNECTIONS * EACH_MAX, "{grown} bytes for {CONNECTIONS} connections");
    drop(silent);
}
