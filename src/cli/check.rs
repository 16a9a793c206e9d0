//! `check`: all that is wrong with the configuration at once, what is worth a warning, and, when it is in order, what the relay would do.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::notice;
use crate::config::{Account, Inspected, Kafka, Output, OutputKind, Place, RabbitMq, inspect};
use crate::printable;

mod live;

use live::{Finding, Level};

/// Reads the configuration as `run` would and prints what it finds to standard output; with `live`, and if it is in order, what the brokers
/// say too. Success if there is no problem, else exit code 1.
pub fn check(file: Option<&Path>, live: bool, json: bool) -> ExitCode {
    let found = inspect(file, std::env::vars_os(), io::stdout().is_terminal());
    // Whoever closed the other end wants no more; the exit code still says it.
    if !live || !found.problems.is_empty() {
        let _ = print(&found, None, json, &mut printable::stdout());
        return if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) };
    }
    let asked = match live::ask(&found.config) {
        Ok(asked) => asked,
        Err(problem) => {
            notice(format_args!("error: {problem}"));
            return ExitCode::from(1);
        }
    };
    let in_order = asked.iter().all(|finding| finding.level != Level::Problem);
    let _ = print(&found, Some(&asked), json, &mut printable::stdout());
    if in_order { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn print(found: &Inspected, asked: Option<&[Finding]>, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        return writeln!(out, "{:#}", as_json(found, asked));
    }
    for problem in &found.problems {
        writeln!(out, "{}", printable::one_line(&problem.to_string()))?;
    }
    for warning in &found.warnings {
        writeln!(out, "warning: {}", printable::one_line(&warning.to_string()))?;
    }
    if found.problems.is_empty() {
        summarize(found, out)?;
    }
    match asked {
        Some(asked) => live::print(asked, out),
        None => Ok(()),
    }
}

fn as_json(found: &Inspected, asked: Option<&[Finding]>) -> serde_json::Value {
    let problem = |problem: &crate::config::Problem| {
        let (file, line, column, variable) = match &problem.place {
            Place::File { file, line, column } => (Some(file.display().to_string()), *line, *column, None),
            Place::Variable(name) => (None, None, None, Some(name)),
            Place::Default => (None, None, None, None),
        };
        let key = (!problem.key.is_empty()).then_some(&problem.key);
        json!({ "file": file, "line": line, "column": column, "key": key, "variable": variable, "message": problem.message })
    };
    let warning = |key: &str, message: &str| json!({ "key": key, "message": message });
    let mut problems: Vec<_> = found.problems.iter().map(problem).collect();
    let mut warnings: Vec<_> = found.warnings.iter().map(|one| warning(&one.key, &one.message)).collect();
    let Some(asked) = asked else { return json!({ "problems": problems, "warnings": warnings }) };
    // What stands in the way counts the same for a script, whoever found it.
    for Finding { output, level, message, .. } in asked {
        let key = format!("outputs.{output}");
        match level {
            Level::Problem => {
                problems.push(problem(&crate::config::Problem {
                    place: Place::Default,
                    key,
                    message: message.clone(),
                }));
            }
            Level::Warning => warnings.push(warning(&key, message)),
            Level::NotKnown | Level::InOrder => {}
        }
    }
    json!({ "problems": problems, "warnings": warnings, "live": live::as_json(asked) })
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

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// What is printed for a file of this text, with the folder's name, which `{dir}` stands for, taken out.
    fn printed(text: &str, json: bool) -> String {
        let dir = TempDir::new().unwrap();
        let name = dir.path().to_str().unwrap();
        fs::create_dir(dir.path().join("secrets")).unwrap();
        fs::write(dir.path().join("secrets/sipsim"), "0123456789abcdef").unwrap();
        let file = dir.path().join("relay.toml");
        fs::write(&file, text.replace("{dir}", name)).unwrap();
        let found = inspect(Some(&file), std::iter::empty(), false);
        let mut out = Vec::new();
        print(&found, None, json, &mut out).unwrap();
        String::from_utf8(out).unwrap().replace(name, "")
    }

    #[test]
    fn what_is_in_order_is_told_in_a_few_lines() {
        let text = r#"
instance = "relay-1"
[accounts.default]
secrets = "{dir}/secrets"
[journal]
path = "/proc/journal.db"
[outputs.kafka]
[outputs.rabbitmq]
"#;
        let expected = "\
warning: accounts.default.secrets: `/secrets/sipsim` is readable by everybody on this machine; chmod 600, or in Kubernetes defaultMode: 0400
warning: journal.path: its folder `/proc` is open to others (mode 555); it holds calls and messages: chmod 700
/relay.toml is in order. The relay would
  call itself  relay-1
  take         POST http://127.0.0.1:8080/webhooks/sipsim  (account default, 1 secret)
  keep in      /proc/journal.db
  publish to   Kafka at 127.0.0.1:9092 (PLAINTEXT), topics sipsim.{event}  (output kafka)
  publish to   RabbitMQ at amqp://127.0.0.1:5672/%2f, exchange sipsim, routing keys sipsim.{group}.{event}  (output rabbitmq)
  show itself  http://127.0.0.1:8081
";
        assert_eq!(printed(text, false), expected);
    }

    #[test]
    fn what_is_not_in_order_is_told_and_nothing_else() {
        let text = "[ingress]\nlisen = \"a\"\n[accounts.default]\nsecrets = \"{dir}/none\"\n";
        let expected = "\
/relay.toml:2: ingress.lisen: unknown key; did you mean `listen`?
/relay.toml:4: accounts.default.secrets: no secret: `/none` does not exist; put the secret from SIPSIM's webhook settings into a file there, \
or give it as RELAY_ACCOUNTS__DEFAULT__SECRET
";
        assert_eq!(printed(text, false), expected);
    }

    #[test]
    fn machines_get_the_same_as_json() {
        let text = "[accounts.default]\nsecrets = \"{dir}/secrets\"\ntolerence = 1\n[log]\nlevel = info";
        let found: serde_json::Value = serde_json::from_str(&printed(text, true)).unwrap();
        let unknown = json!({
            "file": "/relay.toml", "line": 3, "column": null, "key": "accounts.default.tolerence", "variable": null,
            "message": "unknown key; did you mean `tolerance`?",
        });
        let broken = json!({
            "file": "/relay.toml", "line": 5, "column": 9, "key": null, "variable": null,
            "message": "not TOML: this value is neither a number, nor true or false, nor a text in quotes",
        });
        assert_eq!(found, json!({ "problems": [unknown, broken], "warnings": [] }));

        let text =
            "[journal]\npath = \"/proc/journal.db\"\n[accounts.default]\nsecrets = \"{dir}/secrets\"\n[outputs.kafka]";
        let found: serde_json::Value = serde_json::from_str(&printed(text, true)).unwrap();
        let keys: Vec<_> = found["warnings"].as_array().unwrap().iter().map(|warning| &warning["key"]).collect();
        assert_eq!(found["problems"], json!([]));
        assert_eq!(keys, ["accounts.default.secrets", "journal.path"]);
    }

    #[test]
    fn a_variable_is_named_in_place_of_a_line() {
        let variable = ("RELAY_LOG__LEVEL".into(), "loud".into());
        let problem = &as_json(&inspect(None, [variable].into_iter(), true), None)["problems"][0];
        assert_eq!((&problem["variable"], &problem["file"]), (&json!("RELAY_LOG__LEVEL"), &json!(null)));
    }
}
