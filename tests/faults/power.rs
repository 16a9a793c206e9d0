//! The power goes: what was answered 2xx is on what was synced, and on nothing else.

use std::time::Duration;

use super::{count, seed};
use crate::support::alone::Alone;
use crate::support::oracle::Verdict;
use crate::support::scene::WINDOW;
use crate::support::shim::{Knob, LOG, MAIN, Unsynced};
use crate::support::wait_until;

const LONG: Duration = Duration::from_secs(60);
/// Cuts between two full drains, so that the journal, which is small here, does not fill.
const CUTS_A_ROUND: usize = 20;

/// A small journal is checkpointed often: its log is 512 pages, of which the writer finds some 128 left to move.
const CONFIG: &str = "[journal]\nsize_max = \"32 MiB\"\nfree_min = \"16 MiB\"\nretention = \"0s\"\n";

/// Cuts the power so many times under load; what was not synced survives as one of these. All but a page of what it accepts stays pending until the last start, so that what the
/// journal loses is lost.
fn cuts(scene: &mut Alone, cuts: usize, survivors: &[Unsynced], random: &mut fastrand::Rng) -> Verdict {
    scene.shim.set(Knob::KeepImage, 1);
    let mut unsynced = 0;
    for cut in 1..=cuts {
        scene.relay.spawn_with_output_blocked();
        let load = scene.load(8);
        if random.u8(..) < 64 {
            // At its start, whatever it is doing then.
            std::thread::sleep(Duration::from_millis(random.u64(0..120)));
        } else {
            Alone::wait_for_accepted(&load, random.u64(1..500));
        }
        scene.relay.kill9();
        scene.note(load);
        scene.note_pipe();
        let survives = *random.choice(survivors).expect("one at least");
        let bytes = scene.shim.cut_power(&scene.relay, survives, random);
        eprintln!("cut {cut}: {survives:?}, {bytes} bytes not synced, {} sent", scene.sent.len());
        unsynced += bytes;
        if cut % CUTS_A_ROUND == 0 || cut == cuts {
            scene.relay.run();
            scene.drained();
            if cut < cuts {
                scene.relay.kill9();
            }
        }
    }
    assert!(unsynced > 0, "the shim saw nothing that was not synced, so it proves nothing");
    let verdict = scene.verdict();
    eprintln!("{cuts} power cuts, {unsynced} bytes not synced: {verdict}");
    verdict
}

/// Takes 10 s: twelve power cuts, each under load and with a start.
#[test]
fn what_was_answered_survives_every_power_cut() {
    let (cut, seed) = (count("FAULTS_CUTS", 12), seed());
    eprintln!("{cut} power cuts, seed {seed}");
    let mut scene = Alone::prepare(CONFIG);
    cuts(
        &mut scene,
        cut,
        &[Unsynced::Nothing, Unsynced::SomeSectors, Unsynced::All],
        &mut fastrand::Rng::with_seed(seed),
    );
    scene.judge(cut * WINDOW);
    assert_eq!(scene.relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 0.0);
}

/// Takes 10 s: twelve power cuts, each under load and with a start.
///
/// That the test above can fail: syncing the log only at checkpoints is what SQLite does under `synchronous=NORMAL`. A single cut may come just
/// after a checkpoint, when there is nothing to lose; twelve do not.
#[test]
fn with_a_log_synced_only_at_checkpoints_the_same_test_loses_events() {
    let mut scene = Alone::prepare(CONFIG);
    scene.shim.set(Knob::LazyLog, 1);
    let verdict = cuts(&mut scene, 12, &[Unsynced::Nothing], &mut fastrand::Rng::with_seed(seed()));
    assert!(!verdict.lost.is_empty(), "{verdict}");
}

/// Takes 20 s: four rounds of load, a failed sync, a power cut and a whole drain.
///
/// A page that cannot be written back counts as clean for Linux, and the next sync of the file says so once. Of the journal's file: what was in it still
/// stands in the log, and is to be written again from there before the log begins anew. Of the log: it still looks whole, and nothing may be
/// promised behind it.
#[test]
fn pages_that_the_disk_drops_are_written_again_from_the_log() {
    let (rounds, seed) = (count("FAULTS_DROPS", 4), seed());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut scene = Alone::prepare(CONFIG);
    scene.shim.set(Knob::KeepImage, 1);
    for round in 1..=rounds {
        let (whose, more) = if round % 2 == 0 { (LOG, random.u64(1..40)) } else { (MAIN, 1_000) };
        // Its output has the journal open, and so the log's index, which says what is in the file.
        scene.relay.run_with_output_blocked();
        let load = scene.load(8);
        Alone::wait_for_accepted(&load, random.u64(1..300));
        let failed = scene.shim.get(Knob::Failed);
        scene.shim.set(Knob::DropPages, whose);
        wait_until("a sync to fail", LONG, || scene.shim.get(Knob::Failed) > failed);
        Alone::wait_for_accepted(&load, more); // By a thousand the log has begun anew.
        scene.relay.kill9();
        scene.note(load);
        scene.note_pipe();
        scene.shim.cut_power(&scene.relay, Unsynced::Nothing, &mut random);
        eprintln!("round {round} of seed {seed}: {} sent", scene.sent.len());
        scene.relay.run();
        scene.drained();
        scene.relay.kill9();
    }
    scene.relay.run();
    scene.judge(rounds * 2 * WINDOW);
    assert_eq!(scene.relay.metrics().get("sipsim_relay_journal_set_aside", &[]), 0.0);
}
