//! The program `sipsim-relay`: parses the command line, runs one command, gives its exit code.

use std::process::ExitCode;

use clap::Parser;
use sipsim_relay::cli::{self, Cli};

fn main() -> ExitCode {
    cli::logging::hush_panics();
    cli::run(Cli::parse())
}
