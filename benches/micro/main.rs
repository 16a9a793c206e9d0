//! `make bench-micro`: what the pure parts of the way through the relay cost, apart from sockets, disk and brokers. Times, by divan, for who
//! changes them; instructions, by callgrind, for everybody else: they are the same on every run, however busy the machine.

use std::process::ExitCode;

use divan::{Bencher, black_box};
use sipsim_relay::publish::Record;

mod cases;
mod instructions;

use cases::{Case, Prepared};

fn main() -> ExitCode {
    // cargo puts `--bench` behind whatever it is given.
    let done = match std::env::args().nth(1).as_deref() {
        Some("instructions") => instructions::compare(),
        Some("save") => instructions::save(),
        Some(instructions::COUNTED) => {
            instructions::count_all();
            Ok(())
        }
        _ => {
            divan::main();
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench-micro: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// From headers and body to a proved request.
#[divan::bench(args = cases::all())]
fn verify(bencher: Bencher, case: &Case) {
    let prepared = Prepared::of(case);
    bencher.bench(|| prepared.verify());
}

/// From a proved request to an event.
#[divan::bench(args = cases::all())]
fn normalize(bencher: Bencher, case: &Case) {
    let prepared = Prepared::of(case);
    bencher.with_inputs(|| prepared.verified.clone()).bench_values(|verified| prepared.normalize(verified));
}

/// From a stored event to the record of a structured envelope.
#[divan::bench(args = cases::all())]
fn structured(bencher: Bencher, case: &Case) {
    let prepared = Prepared::of(case);
    let mut record = Record::default();
    bencher.bench_local(|| prepared.structured(black_box(&mut record)));
}

/// The same in Kafka's binary mode.
#[divan::bench(args = cases::all())]
fn binary(bencher: Bencher, case: &Case) {
    let prepared = Prepared::of(case);
    let mut record = Record::default();
    bencher.bench_local(|| prepared.binary(black_box(&mut record)));
}
