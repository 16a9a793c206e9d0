//! The relay itself dies, is told to end, runs out of descriptors or has its clock moved.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use super::{count, seed};
use crate::support::alone::Alone;
use crate::support::shim::{EIO, ENOSPC, Knob, Unsynced};
use crate::support::{Client, PATH, SECRET, Sent, now, sign, wait_until};

const LONG: Duration = Duration::from_secs(60);

/// A small journal that keeps nothing published: it is checkpointed and emptied all the time, so that kills hit that too.
const CONFIG: &str =
    "[journal]\nsize_max = \"32 MiB\"\nfree_min = \"0\"\nretention = \"0s\"\n[shutdown]\ndrain = \"1s\"\n";

#[test]
fn kills_at_any_moment_lose_nothing() {
    let (kills, seed) = (count("FAULTS_KILLS", 30), seed());
    eprintln!("{kills} kills, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scene = Alone::prepare(CONFIG);
    let load = scene.load(8);
    for kill in 0..kills {
        scene.relay.spawn();
        match random.u8(0..4) {
            // At its start, or while it recovers what the last kill left.
            0 => std::thread::sleep(Duration::from_micros(random.u64(0..150_000))),
            // While it ends in good order, and publishes what is pending.
            1 => {
                Alone::wait_for_accepted(&load, random.u64(1..100));
                scene.relay.signal(Signal::TERM);
                std::thread::sleep(Duration::from_micros(random.u64(0..100_000)));
            }
            _ => Alone::wait_for_accepted(&load, random.u64(1..300)),
        }
        scene.relay.kill9();
        if kill % 100 == 99 {
            eprintln!("{} kills, {} accepted", kill + 1, load.accepted());
        }
    }
    scene.relay.run();
    scene.note(load);
    scene.drained();
    // What was printed and not noted: at most 1,000 events a kill, far fewer here.
    scene.judge(kills * 1_000);
}

#[test]
fn a_drain_that_is_killed_again_and_again_loses_nothing() {
    let mut scene = Alone::prepare(CONFIG);
    let mut random = fastrand::Rng::with_seed(seed());
    scene.relay.run_with_output_blocked();
    let load = scene.load(8);
    Alone::wait_for_accepted(&load, 3_000);
    scene.relay.kill9();
    scene.note(load);
    scene.note_pipe();
    for _ in 0..8 {
        scene.relay.spawn_command(&["drain"]);
        std::thread::sleep(Duration::from_micros(random.u64(20_000..200_000)));
        scene.relay.kill9_if_alive();
    }
    scene.relay.run();
    scene.drained();
    // A kill repeats what the only lane had in flight, a thousand, and what the cursor may lag by, another thousand.
    scene.judge(8 * 2_000);
}

/// New connections have to wait, open ones go on, and nothing needs a restart.
#[test]
fn without_descriptors_open_connections_are_served_and_new_ones_later() {
    let mut scene = Alone::prepare("");
    scene.relay.run();
    scene.assert_back();
    let load = scene.load(4);
    Alone::wait_for_accepted(&load, 50);
    let pid = Pid::from_raw(scene.relay.pid().try_into().expect("a pid"));
    let open = scene.relay.metrics().get("process_open_fds", &[]) as u64;
    let before = getrlimit(Resource::Nofile);
    let limit = |files| prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum: before.maximum });
    limit(open + 8).expect("a limit can be lowered");
    let idle: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(scene.relay.ingress).expect("the kernel takes them")).collect();
    Alone::wait_for_accepted(&load, 300);
    drop(idle);
    scene.assert_back();
    limit(before.current.unwrap_or(1024)).expect("its old limit");
    scene.note(load);
    scene.drained();
    assert!(scene.sent.iter().all(Sent::is_accepted), "whoever was connected was served");
    scene.judge(0);
    let lines = scene.relay.stderr().lines().count();
    assert!(lines < 200, "{lines} lines of log: it complained without end");
}

/// Posts one of the oracle's bodies, signed at a time `ahead` of ours, as that relay's clock has it.
fn post_at(scene: &mut Alone, ahead: i64) -> (String, u16) {
    let body = scene.body();
    let timestamp = (now() + ahead).to_string();
    (timestamp.clone(), post(scene, &timestamp, body))
}

fn post(scene: &mut Alone, timestamp: &str, body: String) -> u16 {
    let signature = sign(SECRET, timestamp, body.as_bytes());
    let headers = [("X-Webhook-Timestamp", timestamp), ("X-Webhook-Signature", &*signature)];
    let start = Instant::now();
    let mut client = Client::connect(scene.relay.ingress).expect("it listens");
    let answer = client.request("POST", PATH, &headers, body.as_bytes()).expect("an answer");
    let id = (answer.status == 200).then(|| answer.json()["id"].as_str().expect("an id").to_owned());
    let status = answer.status;
    if !scene.sent.iter().any(|one| one.body == body) {
        scene.sent.push(Sent { body, status: Some(status), id, latency: start.elapsed(), stalled: false });
    }
    status
}

/// Takes 15 s: after each jump the relay's housekeeping, every second, has to have seen the new time.
#[test]
fn a_clock_that_jumps_by_hours_loses_and_repeats_nothing() {
    const HOUR: i64 = 3_600;
    let mut scene = Alone::prepare("");
    scene.relay.run_with_output_blocked();
    for jump in [0, 5 * HOUR, 40 * HOUR, 0, -7 * HOUR, -50 * HOUR, 0] {
        scene.shim.set_clock(i32::try_from(jump).expect("it fits"));
        for _ in 0..30 {
            assert_eq!(post_at(&mut scene, jump).1, 200, "{jump} s ahead");
        }
        // Its housekeeping of a second and more sees the new time.
        let start = Instant::now();
        wait_until("two seconds to pass", LONG, || start.elapsed() > Duration::from_millis(1_500));
    }
    // Back in time the very same request is still known.
    let body = scene.body();
    let timestamp = now().to_string();
    assert_eq!(post(&mut scene, &timestamp, body.clone()), 200);
    scene.shim.set_clock(40 * HOUR as i32);
    assert_eq!(post_at(&mut scene, 40 * HOUR).1, 200);
    let start = Instant::now();
    wait_until("its housekeeping", LONG, || start.elapsed() > Duration::from_secs(2));
    scene.shim.set_clock(0);
    assert_eq!(post(&mut scene, &timestamp, body), 200);
    assert_eq!(
        scene.relay.metrics().get("sipsim_relay_webhooks_total", &[("account", "default"), ("outcome", "duplicate")]),
        1.0
    );
    scene.relay.kill9();
    scene.note_pipe();
    scene.relay.run();
    scene.drained();
    scene.judge(1_000);
}

/// Takes 20 s: twenty faults, each with a start and load before and behind it.
///
/// A seeded mix of what this suite does to relay and disk, one after another and upon another.
#[test]
fn faults_of_all_kinds_together_lose_nothing() {
    let (steps, seed) = (count("FAULTS_MIX", 20), seed());
    eprintln!("{steps} faults, seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scene = Alone::prepare(CONFIG);
    scene.shim.set(Knob::KeepImage, 1);
    let knobs = [Knob::WriteError, Knob::SyncError, Knob::StallSyncs, Knob::StallWrites];
    let mut ends = 0;
    for step in 0..steps {
        let blocked = random.bool();
        if blocked {
            scene.relay.run_with_output_blocked()
        } else {
            scene.relay.run()
        };
        let load = scene.load(8);
        // It may come up into a fault that the last step left.
        for knob in knobs {
            scene.shim.set(knob, 0);
        }
        wait_until("the relay to be ready", LONG, || scene.is_ready());
        Alone::wait_for_accepted(&load, random.u64(1..200));
        let fault =
            random.choice([None, Some(Knob::WriteError), Some(Knob::SyncError), Some(Knob::StallSyncs)]).expect("four");
        if let Some(fault) = fault {
            scene.shim.set(Knob::Spare, random.u32(0..60));
            scene.shim.set(fault, random.choice([EIO, ENOSPC]).expect("two"));
            std::thread::sleep(Duration::from_millis(random.u64(0..300)));
            if random.bool() {
                scene.shim.set(fault, 0);
                Alone::wait_for_accepted(&load, random.u64(1..50));
            }
        }
        let end = random.u8(0..3);
        eprintln!("step {step}: blocked {blocked}, {:?}, end {end}", fault.map(|fault| fault as u32));
        match end {
            0 => assert!(scene.relay.terminate(Duration::from_secs(4)).success()),
            _ => scene.relay.kill9(),
        }
        ends += 1;
        scene.note(load);
        if blocked {
            scene.note_pipe();
        }
        if end == 2 {
            let survives = random.choice([Unsynced::Nothing, Unsynced::SomeSectors, Unsynced::All]).expect("three");
            scene.shim.cut_power(&scene.relay, survives, &mut random);
        }
    }
    for knob in knobs {
        scene.shim.set(knob, 0);
    }
    scene.relay.run();
    scene.drained();
    scene.judge(ends * 11_000);
}
