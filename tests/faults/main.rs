//! Crashes and outages in their long form, as `make faults` runs them. The seed that decided is printed: FAULTS_SEED repeats it.
//!
//! FAULTS_KILLS (100), FAULTS_STEPS (60) and FAULTS_BACKLOG (200000) say how long. The modules need no broker, and `make test` runs them in their
//! short form: FAULTS_KILLS (30), FAULTS_CUTS (12), FAULTS_MIX (20), FAULTS_ERRORS (12) and FAULTS_PAGES (6).

#[path = "../support/mod.rs"]
mod support;

mod damage;
mod disk;
mod power;
mod relay;
mod versions;

use support::scene;

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
