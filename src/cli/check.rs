//! `check`: all that is wrong with the configuration at once, what is worth a warning, and, when it is in order, what the relay would do.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::config::{Account, Inspected, Kafka, Output, OutputKind, Place, RabbitMq, inspect};

/// Reads the configuration as `run` would and prints what it finds to standard output. Success if there is no problem, else exit code 1.
pub fn check(file: Option<&Path>, json: bool) -> ExitCode {
    let stdout = io::stdout();
    let found = inspect(file, std::env::vars_os(), stdout.is_terminal());
    // Whoever closed the other end wants no more; the exit code still says it.
    let _ = print(&found, json, &mut stdout.lock());
    if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn print(found: &Inspected, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        return writeln!(out, "{:#}", as_json(found));
    }
    for problem in &found.problems {
        writeln!(out, "{problem}")?;
    }
    for warning in &found.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    if found.problems.is_empty() { summarize(found, out) } else { Ok(()) }
}

fn as_json(found: &Inspected) -> serde_json::Value {
    let problem = |problem: &crate::config::Problem| {
        let (file, line, column, variable) = match &problem.place {
            Place::File { file, line, column } => (Some(file.display().to_string()), *line, *column, None),
            Place::Variable(name) => (None, None, None, Some(name)),
            Place::Default => (None, None, None, None),
        };
        let key = (!problem.key.is_empty()).then_some(&problem.key);
        json!({ "file": file, "line": line, "column": column, "key": key, "variable": variable, "message": problem.message })
    };
    json!({
        "problems": found.problems.iter().map(problem).collect::<Vec<_>>(),
        "warnings": found.warnings.iter().map(|one| json!({ "key": one.key, "message": one.message })).collect::<Vec<_>>(),
    })
}

/// What `run` would do with it.
fn summarize(found: &Inspected, out: &mut impl Write) -> io::Result<()> {
    let config = &found.config;
    match &found.file {
        Some(file) => writeln!(out, "{} is in order. The relay would", file.display())?,
        None => writeln!(out, "There is no relay.toml; defaults and environment are in order. The relay would")?,
    }
    let scheme = if config.ingress.tls.is_some() { "https" } else { "http" };
    writeln!(out, "  call itself  {}", config.instance)?;
    for Account { path, name, .. } in &config.accounts {
        writeln!(
            out,
            "  take         POST {scheme}://{}{path}  (account {name}, {})",
            config.ingress.listen,
            secrets(found, name.as_str())
        )?;
    }
    writeln!(out, "  keep in      {}", config.journal.path.display())?;
    for Output { name, kind } in &config.outputs {
        let whither = match kind {
            OutputKind::Kafka(Kafka { brokers, security, topics, .. }) => {
                format!("Kafka at {brokers} ({}), topics {}", security.protocol, topics.template)
            }
            OutputKind::RabbitMq(RabbitMq { urls, exchange, routing_keys, .. }) => {
                format!("RabbitMQ at {}, exchange {exchange}, routing keys {}", urls.join(", "), routing_keys.template)
            }
            OutputKind::Console => "the standard output".to_owned(),
        };
        writeln!(out, "  publish to   {whither}  (output {name})")?;
    }
    writeln!(out, "  show itself  http://{}", config.admin.listen)
}

fn secrets(found: &Inspected, account: &str) -> String {
    match found.secrets.iter().find(|(name, _)| name.as_str() == account).map_or(0, |(_, count)| *count) {
        0 => "a secret made on the first start".to_owned(),
        1 => "1 secret".to_owned(),
        count => format!("{count} secrets"),
    }
}
