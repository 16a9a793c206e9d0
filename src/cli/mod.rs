//! The command line: what a person types, and which function does it. Results go to stdout, notices to stderr.
//!
//! Exit codes: 0 done; 1 the thing checked is not in order, or the run failed; 2 wrong usage (clap's own).

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::Shell;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::{clock, printable, stderr};

mod arguments;
pub mod check;
pub mod demo;
pub mod drain;
pub mod healthcheck;
pub mod journal;
pub mod logging;
pub mod run;
pub mod schema;
pub mod sign;
pub mod simulate;
pub mod topics;
pub mod verify;

pub use arguments::{
    CheckArgs, Cli, Command, Format, HealthcheckArgs, SignArgs, SimulateArgs, TopicsArgs, TopicsFormat, VerifyArgs,
};

/// How long the end of a command waits for what it said last to leave on stderr.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Runs one command to its end. A command that says `Ok(false)` found something not in order and has said what.
pub fn run(cli: Cli) -> ExitCode {
    // Neither a core file nor another process of this user gets the secrets in memory. `journal` has none but the environment's, which that user can read.
    if !matches!(cli.command, Command::Journal(_)) {
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable); // Fails on no Linux.
    }
    let config = cli.config.as_deref();
    let ended = match cli.command {
        Command::Run => run::run(config),
        Command::Demo => demo::demo(),
        Command::Check(args) => return check::check(config, args.live, args.format == Format::Json),
        Command::Topics(args) => topics(config, &args),
        Command::Simulate(args) => simulate::simulate(args),
        Command::Sign(args) => sign(&args),
        Command::Verify(args) => verify(config, &args),
        Command::Healthcheck(args) => healthcheck(config, &args),
        Command::Drain { timeout } => drain::drain(config, timeout),
        Command::Journal(command) => journal::journal(config, &command),
        Command::Schema { of } => print(of.text().as_bytes()),
        Command::Completions { shell } => completions(shell),
    };
    let code = match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            notice(format_args!("error: {problem}"));
            ExitCode::FAILURE
        }
    };
    stderr::flush(FLUSH_MAX);
    code
}

fn topics(config: Option<&Path>, args: &TopicsArgs) -> Result<bool, String> {
    let (text, in_order) = topics::topics(&run::load(config)?.config, args)?;
    print(text.as_bytes()).map(|printed| printed && in_order)
}

fn sign(args: &SignArgs) -> Result<bool, String> {
    print(sign::sign(&args.secret_file, &args.body, args.timestamp.as_deref(), clock::now())?.as_bytes())
}

fn verify(file: Option<&Path>, args: &VerifyArgs) -> Result<bool, String> {
    let (Some(body), Some(timestamp), Some(signature)) = (&args.body, &args.timestamp, &args.signature) else {
        return verify::last(run::admin_address(file)?); // clap asks for all three, unless it is `--last`.
    };
    // With a secret named on the command line, a configuration that is not in order is beside the point.
    let loaded = match run::load(file) {
        Err(problem) if args.secret_file.is_none() => return Err(problem),
        loaded => loaded.ok(),
    };
    let question = verify::Question {
        body,
        timestamp,
        signature,
        secret_file: args.secret_file.as_deref(),
        config: loaded.as_ref().map(|loaded| &loaded.config),
        fresh: args.fresh,
    };
    let answer = verify::verify(&question, clock::now())?;
    for line in &answer.notices {
        notice(format_args!("{}", printable::one_line(line)));
    }
    print(answer.text.as_bytes()).map(|printed| printed && answer.right)
}

fn healthcheck(config: Option<&Path>, args: &HealthcheckArgs) -> Result<bool, String> {
    let admin = match args.admin {
        Some(admin) => admin,
        None => run::admin_address(config)?,
    };
    Ok(healthcheck::healthcheck(admin, args.ready))
}

fn completions(shell: Shell) -> Result<bool, String> {
    let mut script = Vec::new(); // clap_complete panics where it cannot write, as into `head`; a Vec always takes it.
    clap_complete::generate(shell, &mut Cli::command(), "sipsim-relay", &mut script);
    print(&script)
}

/// Writes a command's result to stdout. `Err` says why that failed; a closed pipe (`| head`) is a reader who has seen enough, and fine.
pub fn print(result: &[u8]) -> Result<bool, String> {
    let mut stdout = printable::stdout();
    match stdout.write_all(result).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("cannot write to stdout: {error}")),
        _ => Ok(true),
    }
}

/// One line to stderr, or more if there are line ends in it, and no panic where stderr is closed. Names of files go through [`printable::one_line`] first where the
/// log may be what reads it.
pub fn notice(line: fmt::Arguments<'_>) {
    stderr::write(printable::lines(&format!("{line}\n")).as_bytes());
}

/// Ctrl-C or SIGTERM. Where they cannot be listened for, never: then they end the program as they end any other.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn no_command_that_reads_a_secret_can_be_dumped() {
        let absent = "/nowhere";
        let sign = ["sipsim-relay", "sign", "--secret-file", absent, "--body", absent];
        assert_eq!(run(Cli::parse_from(sign)), ExitCode::FAILURE);
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap(); // Other tests look at this process.
    }
}
