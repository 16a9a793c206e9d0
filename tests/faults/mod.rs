//! Crashes and outages, of which the long form is `make faults`. The seed that decided is printed: FAULTS_SEED repeats it.
//!
//! The gate runs what needs no broker, in its short form: FAULTS_KILLS (30), FAULTS_CUTS (12), FAULTS_MIX (20), FAULTS_ERRORS (12), FAULTS_DROPS (4) and FAULTS_PAGES (3)
//! make it longer. With brokers are those of [`long`], and FAULTS_KILLS (100), FAULTS_STEPS (60), FAULTS_PARKED (1000) and FAULTS_BACKLOG (200000) say how long.

mod damage;
mod disk;
mod long;
mod power;
mod relay;
mod versions;

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
