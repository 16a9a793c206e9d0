//! A disk that fails, fills, stalls or turns read-only, at work and at the start: 503 in time, nothing promised that is not kept, and back by
//! itself. (A tmpfs that is really full: tests/brokers/recover_disk.rs.)

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use crate::support::alone::Alone;
use crate::support::shim::{EIO, ENOSPC, EROFS, Knob};
use crate::support::{SECRET, Sent, event_id, now, oracle, sign, wait_until};

const LONG: Duration = Duration::from_secs(60);

/// Each fault as the knobs that make it.
const FAULTS: [(&str, &[(Knob, u32)]); 6] = [
    ("writes fail", &[(Knob::WriteError, EIO)]),
    ("the disk is full", &[(Knob::WriteError, ENOSPC)]),
    ("read-only", &[(Knob::WriteError, EROFS), (Knob::SyncError, EROFS), (Knob::OpenError, EROFS)]),
    ("syncs fail", &[(Knob::SyncError, EIO)]),
    ("syncs stall", &[(Knob::StallSyncs, 1)]),
    ("writes stall", &[(Knob::StallWrites, 1)]),
];

fn set(scene: &Alone, knobs: &[(Knob, u32)]) {
    knobs.iter().for_each(|(knob, value)| scene.shim.set(*knob, *value));
}

fn clear(scene: &Alone, knobs: &[(Knob, u32)]) {
    knobs.iter().for_each(|(knob, _)| scene.shim.set(*knob, 0));
}

/// Takes half a minute: six faults, and under those that stall each refused request waits for its whole deadline.
#[test]
fn a_failing_disk_means_503_in_time_and_back_by_itself() {
    let mut scene = Alone::prepare("");
    scene.relay.run();
    for (what, knobs) in FAULTS {
        eprintln!("-- {what}");
        let load = scene.load(8);
        Alone::wait_for_accepted(&load, 50);
        set(&scene, knobs);
        scene.assert_refuses();
        let before = load.accepted();
        scene.assert_refuses();
        assert_eq!(load.accepted(), before, "{what}: nothing is promised meanwhile");
        clear(&scene, knobs);
        scene.assert_back();
        Alone::wait_for_accepted(&load, 50);
        scene.note(load);
    }
    scene.drained();
    scene.judge(0);
    let metrics = scene.relay.metrics();
    for reason in ["disk", "deadline"] {
        assert!(metrics.get("sipsim_relay_unavailable_total", &[("reason", reason)]) > 0.0, "{reason}");
    }
    scene.relay.logged(&["a write to the journal failed", "the journal's disk took"]);
}

/// Takes half a minute: nine starts, and under the faults that stall each refused request waits for its whole deadline.
#[test]
fn a_disk_that_fails_at_the_start_delays_accepting_and_nothing_else() {
    let mut scene = Alone::prepare("");
    // Without a journal yet, and then with one that a killed process left.
    for (what, knobs) in [&FAULTS[2..5], &FAULTS[..]].concat() {
        eprintln!("-- {what}");
        set(&scene, knobs);
        scene.relay.run();
        scene.assert_refuses();
        clear(&scene, knobs);
        scene.assert_back();
        let load = scene.load(4);
        Alone::wait_for_accepted(&load, 20);
        scene.relay.kill9();
        scene.note(load);
    }
    scene.relay.run();
    scene.drained();
    // What a killed process printed and could not note any more.
    scene.judge(FAULTS.len() * 2 * 1_000);
}

#[test]
fn what_a_new_secret_proves_while_the_disk_fails_is_kept_when_it_is_back_and_counts_once() {
    const EACH: usize = 5;
    let mut scene = Alone::prepare("");
    scene.relay.run();
    let recovered =
        |scene: &Alone| scene.relay.metrics().get("sipsim_relay_webhooks_recovered_total", &[("account", "default")]);
    // SIPSIM signs with a secret that the relay does not have yet; then the disk fails, and then the secret comes.
    let prove_late = |scene: &mut Alone, round: usize, knobs| {
        let secret = format!("{round}{}", &SECRET[1..]);
        scene.drained(); // So that no other write comes first.
        for number in 0..EACH {
            let body = oracle::body(0, 12 * round + number);
            let timestamp = now().to_string();
            let signature = sign(&secret, &timestamp, body.as_bytes());
            let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
            assert_eq!(scene.relay.post_with(&headers, body.as_bytes()).status, 401);
            // From here on it is to be kept as if it had been answered 200.
            let id = Some(event_id("default", body.as_bytes()));
            scene.sent.push(Sent { body, status: Some(200), id, latency: Duration::ZERO, stalled: false });
        }
        set(scene, knobs);
        scene.relay.write_secret(&format!("round-{round}"), &secret);
        wait_until("them to be brought in vain", LONG, || {
            scene.relay.stderr().matches("refused webhooks that a new secret proved wait for the journal").count()
                == round
        });
        scene.assert_refuses();
        assert_eq!(recovered(scene), ((round - 1) * EACH) as f64);
    };
    // Of a write that fails nothing is kept; of a sync that fails the row is there all the same, and the next try finds it.
    for (round, (what, knobs)) in [(1, FAULTS[0]), (2, FAULTS[3])] {
        eprintln!("-- {what}");
        prove_late(&mut scene, round, knobs);
        clear(&scene, knobs);
        scene.assert_back();
        wait_until("all to be kept", LONG, || recovered(&scene) == (round * EACH) as f64);
    }
    scene.drained();
    scene.judge(0);
    // The stop ends it, and says so.
    prove_late(&mut scene, 3, FAULTS[0].1);
    scene.relay.terminate(LONG);
    let log = scene.relay.stderr();
    assert!(log.contains("5 refused webhooks that a new secret proved are lost"), "{log}");
}

/// All of the log is in the file already then, so that its checkpoint asks nothing of the disk.
#[test]
fn a_disk_that_still_fails_is_not_believed_because_there_is_nothing_to_write() {
    let mut scene = Alone::prepare("");
    for (what, knobs) in [FAULTS[0], FAULTS[3]] {
        eprintln!("-- {what}");
        scene.relay.run(); // Which checkpoints whatever there is.
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        set(&scene, knobs);
        let before = scene.relay.stderr().len();
        let body = scene.body();
        assert_eq!(scene.relay.post(body.as_bytes()).status, 503);
        wait_until("it to be tried in vain", LONG, || {
            scene.relay.stderr()[before..].contains("the journal cannot be opened")
        });
        scene.assert_refuses();
        assert!(!scene.relay.stderr()[before..].contains("the journal takes events again"), "{what}: it was believed");
        clear(&scene, knobs);
        scene.assert_back();
        scene.drained();
        scene.relay.terminate(LONG);
    }
}

/// Takes 10 to 20 s: twelve rounds of load until a call fails, a kill and a start.
#[test]
fn single_errors_here_and_there_promise_nothing_and_a_kill_among_them_loses_nothing() {
    let mut scene = Alone::prepare("[journal]\nsize_max = \"32 MiB\"\nfree_min = \"0\"\n");
    let mut random = fastrand::Rng::with_seed(super::seed());
    let rounds = super::count("FAULTS_ERRORS", 12);
    for round in 0..rounds {
        scene.relay.run_with_output_blocked();
        let load = scene.load(8);
        // Somewhere in a group, a checkpoint or the making of a new log.
        scene.shim.set(Knob::Spare, random.u32(1..600));
        let (knob, error) = random
            .choice([(Knob::WriteError, EIO), (Knob::WriteError, ENOSPC), (Knob::SyncError, EIO)])
            .expect("three");
        let failed = scene.shim.get(Knob::Failed);
        scene.shim.set(knob, error);
        wait_until("a call to fail", LONG, || scene.shim.get(Knob::Failed) > failed);
        if round % 2 == 0 {
            scene.shim.set(knob, 0);
            Alone::wait_for_accepted(&load, random.u64(1..100));
        }
        scene.relay.kill9();
        scene.shim.set(knob, 0);
        scene.note(load);
        scene.note_pipe();
    }
    scene.relay.run();
    scene.drained();
    scene.judge(rounds * 1_000);
}

/// Takes 10 s: each refused request waits for its whole deadline.
#[test]
fn a_stop_while_the_disk_stalls_ends_in_time() {
    let mut scene = Alone::prepare("[shutdown]\ndrain = \"1s\"\n");
    scene.relay.run();
    let load = scene.load(4);
    Alone::wait_for_accepted(&load, 50);
    scene.shim.set(Knob::StallSyncs, 1);
    scene.assert_refuses();
    assert!(scene.relay.terminate(Duration::from_secs(3)).success());
    scene.note(load);
    scene.shim.set(Knob::StallSyncs, 0);
    scene.relay.run();
    scene.drained();
    scene.judge(1_000);
}

/// While it stalls, requests whose deadline has passed stay in the queue, so that a few clients fill it.
#[test]
fn a_full_queue_refuses_and_empties_by_itself() {
    let mut scene = Alone::prepare("[ingress]\ndeadline = \"50ms\"\n");
    scene.relay.run();
    scene.assert_back();
    let load = scene.load(48);
    Alone::wait_for_accepted(&load, 50);
    scene.shim.set(Knob::StallSyncs, 1);
    wait_until("requests to be refused for the full queue", LONG, || {
        scene.relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "queue_full")]) > 0.0
    });
    scene.shim.set(Knob::StallSyncs, 0);
    Alone::wait_for_accepted(&load, 50);
    scene.note(load);
    scene.assert_back();
    scene.drained();
    scene.judge(0);
}

/// Some events, all pending, in a journal whose relay is dead; `settled`: in the file itself, nothing in the log.
pub fn pending(scene: &mut Alone, settled: bool) {
    scene.relay.run_with_output_blocked();
    let load = scene.load(4);
    Alone::wait_for_accepted(&load, 300);
    scene.relay.kill9();
    scene.note(load);
    scene.note_pipe();
    if settled {
        let db = rusqlite::Connection::open(scene.relay.path("data/journal.db")).expect("the journal");
        let left: i64 =
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(1)).expect("nobody else has it");
        assert_eq!(left, 0, "pages left in the log");
    }
}

#[test]
fn rubbish_behind_the_log_s_end_and_a_missing_index_cost_nothing() {
    let mut scene = Alone::prepare("");
    let mut random = fastrand::Rng::with_seed(super::seed());
    for what in ["noise", "half a frame again", "no index", "an index of noise"] {
        eprintln!("-- {what}");
        pending(&mut scene, false);
        let (log, index) = (scene.relay.path("data/journal.db-wal"), scene.relay.path("data/journal.db-shm"));
        let bytes = fs::read(&log).expect("the log");
        let append = |bytes: &[u8]| {
            OpenOptions::new().append(true).open(&log).expect("the log").write_all(bytes).expect("it grows");
        };
        match what {
            "noise" => append(&(0..20_000).map(|_| random.u8(..)).collect::<Vec<_>>()),
            "half a frame again" => append(&bytes[bytes.len() - 8_216..bytes.len() - 4_000]),
            "no index" => fs::remove_file(&index).expect("the index"),
            _ => fs::write(&index, (0..32_768).map(|_| random.u8(..)).collect::<Vec<_>>()).expect("the index"),
        }
        scene.relay.run();
        scene.drained();
        scene.relay.terminate(LONG);
    }
    scene.relay.run();
    scene.drained();
    scene.judge(4_000);
}

/// The disk lost what it said was synced: nobody can give that back. What stands before it is whole, and the relay goes on.
#[test]
fn a_log_cut_short_costs_its_own_end_only() {
    let mut scene = Alone::prepare("");
    pending(&mut scene, false);
    let log = OpenOptions::new().write(true).open(scene.relay.path("data/journal.db-wal")).expect("the log");
    let length = log.metadata().expect("its length").len();
    log.set_len(length - 3 * 8_216 - 4_000).expect("it can be cut");
    scene.relay.run();
    scene.assert_back();
    scene.drained();
    let verdict = scene.verdict();
    eprintln!("{verdict}");
    assert!(verdict.altered.is_empty() && verdict.invented.is_empty() && verdict.reordered.is_empty(), "{verdict}");
    assert!(verdict.lost.len() <= 40, "{verdict}");
}

#[test]
fn a_flipped_byte_costs_its_own_event_which_is_reported_as_corrupt() {
    let mut scene = Alone::prepare("");
    pending(&mut scene, true);
    let path = scene.relay.path("data/journal.db");
    let mut bytes = Vec::new();
    fs::File::open(&path).expect("the journal").read_to_end(&mut bytes).expect("it can be read");
    let victim = scene.sent.iter().filter(|one| one.is_accepted()).nth(200).expect("300 were accepted").body.clone();
    // Also where an earlier state of the page left it.
    let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(victim.as_bytes())).collect();
    assert!(!places.is_empty(), "it is in the file");
    let mut file = OpenOptions::new().write(true).open(&path).expect("the journal");
    for at in places {
        file.seek(SeekFrom::Start(at as u64 + 11)).expect("it is there");
        file.write_all(b"X").expect("it can be written");
    }
    scene.relay.run();
    scene.drained();
    scene.assert_back();
    scene.drained();
    let metrics = scene.relay.metrics();
    assert_eq!(metrics.get("sipsim_relay_events_parked", &[("output", "console")]), 1.0);
    assert_eq!(metrics.get("sipsim_relay_events_parked_total", &[("output", "console"), ("reason", "corrupt")]), 1.0);
    let verdict = scene.verdict();
    assert_eq!(verdict.lost, [victim], "{verdict}");
    assert!(verdict.altered.is_empty() && verdict.reordered.is_empty(), "{verdict}");
}

/// Published events make room: far more passes through than the journal holds, and nothing is refused.
#[test]
fn history_gives_way_before_anything_is_refused() {
    let mut scene = Alone::prepare("[journal]\nsize_max = \"4 MiB\"\nfree_min = \"0\"\n");
    scene.relay.run();
    scene.assert_back();
    scene.load_in_steps(12_000);
    let metrics = scene.relay.metrics();
    let (bytes, most) = (metrics.get("sipsim_relay_journal_bytes", &[]), 4.0 * 1024.0 * 1024.0);
    assert!(bytes <= most, "{bytes} bytes");
    scene.judge(0);
}

/// Takes half a minute: it takes 40,000 requests to fill the memory of requests in the smallest journal that there is.
///
/// So does the memory of requests: in a journal this small it alone would fill it within half a minute.
#[test]
fn what_is_remembered_of_requests_gives_way_too() {
    let mut scene = Alone::prepare("[journal]\nsize_max = \"1 MiB\"\nfree_min = \"0\"\nretention = 0\n");
    scene.relay.run();
    scene.load_in_steps(40_000);
    // What came a moment ago is known again all the same.
    let (body, timestamp) = (scene.body(), now().to_string());
    let signature = sign(SECRET, &timestamp, body.as_bytes());
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    let [first, again] = [(); 2].map(|()| scene.relay.post_with(&headers, body.as_bytes()).text());
    assert_eq!(first, again);
    let duplicates = scene.relay.metrics().get("sipsim_relay_webhooks_total", &[("outcome", "duplicate")]);
    assert_eq!(duplicates, 1.0);
}

/// What a removed output owes is kept, and nothing that came after its removal because of it.
#[test]
fn the_debt_of_a_removed_output_keeps_its_own_events_and_no_others() {
    const SMALL: &str = "[outputs.console]\n[journal]\nsize_max = \"1 MiB\"\nfree_min = \"0\"\nretention = 0\n";
    let mut scene = Alone::prepare(&format!("{SMALL}[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n"));
    scene.relay.run();
    let owed = |scene: &Alone| {
        let exported = scene.relay.finish(&["journal", "export", "--output", "kafka", "--state", "pending"]);
        String::from_utf8(exported.stdout).expect("JSON lines")
    };
    for _ in 0..5 {
        scene.assert_back();
    }
    let before = owed(&scene);
    assert_eq!(before.lines().count(), 5, "{before}");
    scene.relay.kill9();
    scene.relay.configure(SMALL);
    scene.relay.run();
    scene.load_in_steps(4_000);
    assert_eq!(owed(&scene), before);
}

/// Debt fills it: 503 and not ready; what leaves makes room, and it goes on by itself.
#[test]
fn only_debt_fills_the_journal_and_the_output_s_return_empties_it() {
    let mut scene = Alone::prepare("[journal]\nsize_max = \"1 MiB\"\nfree_min = \"0\"\n");
    scene.relay.run_with_output_blocked();
    let load = scene.load(8);
    wait_until("the journal to be full", LONG, || {
        scene.relay.metrics().get("sipsim_relay_unavailable_total", &[("reason", "journal_full")]) > 0.0
    });
    scene.assert_refuses();
    scene.relay.kill9();
    scene.note(load);
    scene.note_pipe();
    scene.relay.run();
    scene.assert_back();
    scene.drained();
    scene.judge(1_000);
}
