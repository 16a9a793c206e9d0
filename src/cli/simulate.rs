//! `simulate`: a SIPSIM at the command line.

use std::fs;

use super::{Format, SimulateArgs, interrupted, notice, print};
use crate::clock;
use crate::secret::Secret;
use crate::simulate::{Options, Summary, What, run};

/// Plays, then prints the summary. `Ok(false)` if a real SIPSIM would have lost anything.
pub fn simulate(args: SimulateArgs) -> Result<bool, String> {
    let format = args.format;
    let options = options(args)?;
    if let (Some(file), false) = (&options.ca_file, options.target.tls) {
        notice(format_args!("--ca-file {}: has no effect, since --to begins with http://", file.display()));
    }
    // One thread: where it runs beside a relay to measure it, it must not take that one's processors.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let summary = runtime.block_on(run(options, interrupted()))?;
    match format {
        Format::Text => print(summary.text(clock::now().as_seconds()).as_bytes())?,
        Format::Json => print(format!("{}\n", summary.json()).as_bytes())?,
    };
    advise(&summary, format);
    Ok(summary.lost() == 0)
}

fn options(args: SimulateArgs) -> Result<Options, String> {
    let secret = args.secret_file;
    let unusable = |why: &dyn std::fmt::Display| format!("--secret-file {}: {why}", secret.display());
    let secret = Secret::read(&secret).map_err(|error| unusable(&error))?;
    if secret.is_empty() {
        return Err(unusable(&"it is empty; put SIPSIM's signing secret into it"));
    }
    let what = match (args.body, args.event) {
        (Some(file), _) => What::Body(fs::read(&file).map_err(|error| format!("--body {}: {error}", file.display()))?),
        (None, Some(event)) => What::Event(event),
        (None, None) => What::Calls,
    };
    Ok(Options {
        target: args.to,
        secret,
        ca_file: args.ca_file,
        what,
        rate: args.rate,
        count: args.count,
        duration: args.duration,
        connections: args.connections,
        tamper: args.tamper,
        seed: fastrand::u32(..),
    })
}

/// What a person can do about it, and for scripts what their JSON has no place for.
fn advise(summary: &Summary, format: Format) {
    if format == Format::Json {
        for (problem, count) in &summary.problems {
            notice(format_args!("{count} unanswered: {problem}"));
        }
    }
    if summary.late > 0 {
        notice(format_args!(
            "{} events began late, as all connections were waiting for answers; --connections gives more of them",
            summary.late
        ));
    }
    for (status, advice) in [
        (401, "the relay found the signature or the time wrong: is it the same secret, and is this clock right?"),
        (404, "no account has this path; the relay's is accounts.NAME.path, /webhooks/sipsim unless configured"),
    ] {
        if summary.answers.contains_key(&status) {
            notice(format_args!("{status}: {advice}"));
        }
    }
}
