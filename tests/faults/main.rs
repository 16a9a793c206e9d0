//! Crashes and outages in their long form, as `make faults` runs them. The seed that decided is printed: FAULTS_SEED repeats it.
//!
//! FAULTS_KILLS (100), FAULTS_STEPS (60), FAULTS_PARKED (1000) and FAULTS_BACKLOG (200000) say how long. The modules need no broker, and `make test` runs them in their
//! short form: FAULTS_KILLS (30), FAULTS_CUTS (12), FAULTS_MIX (20), FAULTS_ERRORS (12), FAULTS_DROPS (4) and FAULTS_PAGES (6).

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod disk;
mod power;
mod relay;
mod versions;

use std::time::Duration;

use support::{fates, scene, troubles};

fn from_environment(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} wants a number, not {text:?}")),
        Err(_) => otherwise,
    }
}

fn count(name: &str, otherwise: u64) -> usize {
    usize::try_from(from_environment(name, otherwise)).expect("it fits")
}

fn seed() -> u64 {
    from_environment("FAULTS_SEED", fastrand::u64(..1_000_000))
}

#[test]
fn kills_under_load() {
    scene::kills("kills", count("FAULTS_KILLS", 100), seed());
}

#[test]
fn faults_of_all_kinds_under_load() {
    scene::faults("faults", count("FAULTS_STEPS", 60), seed());
}

#[test]
fn a_large_backlog_at_the_start() {
    scene::backlog("backlog", from_environment("FAULTS_BACKLOG", 200_000));
}

#[test]
fn lines_that_are_cut_slowed_and_refused_many_times() {
    troubles::lines_cut_slowed_and_refused("lines", 30);
}

#[test]
fn half_open_lines() {
    troubles::lines_half_open("half-open");
}

#[test]
fn brokers_that_hang_longer_than_every_timeout() {
    troubles::brokers_hung("hung", Duration::from_secs(90));
}

#[test]
fn leaders_that_change_and_replicas_that_are_missing() {
    troubles::leaders_change_and_replicas_are_missing("leaders");
}

#[test]
fn many_fatal_errors() {
    troubles::fatal_errors("fatal", 20);
}

#[test]
fn alarms_of_memory_and_disk() {
    troubles::alarms("alarms");
}

#[test]
fn a_node_of_rabbitmq_that_restarts() {
    troubles::node_restarted("restarted");
}

#[test]
fn held_events_do_not_storm_for_a_minute() {
    troubles::held_events_do_not_storm("storm", Duration::from_secs(60));
}

#[test]
fn parked_events_do_not_storm_for_a_minute_and_a_half() {
    fates::parked_events_do_not_storm("parked", from_environment("FAULTS_PARKED", 1_000), Duration::from_secs(90));
}

#[test]
fn outputs_of_different_fates() {
    fates::outputs_of_different_fates("fates");
}

#[test]
fn routes_that_change_while_events_wait() {
    fates::routes_changed("routes");
}
