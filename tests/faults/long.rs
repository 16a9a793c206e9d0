//! With real brokers, minutes each: the gate leaves these out (tests/nextest.toml). Shorter forms of most are in tests/brokers.

use std::time::Duration;

use super::{count, from_environment, seed};
use crate::support::{fates, scene, troubles};

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
