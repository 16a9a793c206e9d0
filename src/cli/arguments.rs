//! Every command with its arguments, and the texts of `--help`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{journal, schema};

/// Takes SIPSIM's signed webhooks, keeps them safe, and publishes them to Kafka or RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "sipsim-relay", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "New here? `sipsim-relay demo` shows everything at work and needs nothing else.
Exit codes: 0 done; 1 the thing checked is not in order, or the run failed; 2 wrong usage.")]
pub struct Cli {
    /// The configuration [default: relay.toml in the working directory, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the relay
    #[command(
        after_help = "Without any configuration it listens on 127.0.0.1:8080, keeps its journal in data/, prints events on stdout, and makes itself a secret on the first start.
SIGTERM or Ctrl-C ends it in order."
    )]
    Run,
    /// Watch the relay at work with a simulated SIPSIM: no broker, no configuration, nothing left behind
    #[command(
        after_help = "At a terminal it stays until Ctrl-C; otherwise it ends after a few calls. Exit 1 if anything was lost."
    )]
    Demo,
    /// Check the configuration and print every problem in it
    #[command(after_help = "Examples:
  sipsim-relay check          the configuration alone; no broker is asked
  sipsim-relay check --live   and what the brokers have of it, with the command that mends each problem
Exit 1 if there is a problem; warnings and what is not known do not count.")]
    Check(CheckArgs),
    /// Show the topics, queues and bindings that this configuration needs, or make them
    #[command(after_help = "Examples:
  sipsim-relay topics                    what is needed, for people
  sipsim-relay topics --format strimzi   KafkaTopic resources for kubectl apply
  sipsim-relay topics --create --yes     make them at the configured brokers")]
    Topics(TopicsArgs),
    /// Be a SIPSIM: sign events, post them, and say what a real one would have lost
    #[command(after_help = "Examples:
  sipsim-relay simulate --to http://127.0.0.1:8080/webhooks/sipsim --secret-file data/secrets/sipsim
  sipsim-relay simulate --to https://hooks.example.com/webhooks/sipsim --secret-file secret --rate 200 --duration 1m
  sipsim-relay simulate --to http://127.0.0.1:8080/webhooks/sipsim --secret-file secret --event sms --count 10
Exit 1 if any event had no 2xx within SIPSIM's two seconds; there is no second try.")]
    Simulate(SimulateArgs),
    /// Sign a body as SIPSIM does, and print the two header lines
    #[command(after_help = "Example: sipsim-relay sign --secret-file data/secrets/sipsim --body event.json")]
    Sign(SignArgs),
    /// Say whether a signature is right, and if not, why
    #[command(after_help = "Examples:
  sipsim-relay verify --body event.json --timestamp 1736937000 --signature c7f8… --secret-file secret
  sipsim-relay verify --last             why the running relay refused its newest refused request
Exit 0 if the signature matches, whatever its age; with --fresh only within the tolerance.")]
    Verify(VerifyArgs),
    /// Ask a running relay whether it lives (for images without a shell)
    #[command(after_help = "Exit 0 if the answer is 200, else 1.")]
    Healthcheck(HealthcheckArgs),
    /// Look into the journal
    #[command(subcommand)]
    Journal(journal::JournalCommand),
    /// Publish what a journal still holds, without taking anything in: for a volume whose relay is gone
    #[command(after_help = "Example: sipsim-relay --config relay.toml drain --timeout 2m
Exit 0 only when nothing is pending or parked, else 1 and what is left. Refuses to run beside a relay on the same journal.")]
    Drain {
        /// End after so long without progress
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration)]
        timeout: Duration,
    },
    /// Print the JSON Schema of an event, of the envelope, or of relay.toml
    #[command(after_help = "Examples:
  sipsim-relay schema incoming_call_end   what `data` holds
  sipsim-relay schema envelope            what is around it
  sipsim-relay schema configuration > relay.toml.schema.json
With `#:schema ./relay.toml.schema.json` as the first line of relay.toml, editors that speak Taplo complete and check it.")]
    Schema {
        #[arg(value_name = "EVENT|envelope|configuration", value_parser = schema::parser())]
        of: schema::Of,
    },
    /// Print completions for a shell
    #[command(
        after_help = "Example: sipsim-relay completions bash > ~/.local/share/bash-completion/completions/sipsim-relay"
    )]
    Completions { shell: Shell },
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Ask the brokers too: topics, exchange, bindings, rights, largest record; nothing is published
    #[arg(long)]
    pub live: bool,
    /// For people, or for scripts
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct TopicsArgs {
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: TopicsFormat,
    /// Make at the brokers what is missing; shows it only, unless --yes is given too
    #[arg(long)]
    pub create: bool,
    /// Really make it
    #[arg(long, requires = "create")]
    pub yes: bool,
    /// Partitions of Kafka topics [default: the broker's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: Option<i32>,
    /// Replicas of Kafka topics [default: the broker's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
    pub replication: Option<i16>,
}

#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// The whole webhook URL, http:// or https://, as one would paste it into SIPSIM
    #[arg(long, value_name = "URL", value_parser = crate::simulate::Target::parse)]
    pub to: crate::simulate::Target,
    /// The file that holds the signing secret
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// Trust the certificates in this PEM file [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Events a second, on a fixed schedule [default: as fast as they are answered]
    #[arg(long, value_name = "N", value_parser = rate)]
    pub rate: Option<f64>,
    /// Stop after so many events [default, without --duration: each kind of call once]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Stop after this time: 500ms, 30s, 10m, 1h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Keep-alive connections; each plays its own calls, so that a call's events stay in order
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub connections: u16,
    /// Only this event, each time of another call
    #[arg(long, value_name = "NAME", value_parser = event_names(), conflicts_with = "body")]
    pub event: Option<crate::normalize::Known>,
    /// Only this body, to the byte, each time the same
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
    /// Change this after signing; the right answer is then 401
    #[arg(long, value_enum)]
    pub tamper: Option<crate::simulate::Tamper>,
    /// For people, or for scripts
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct SignArgs {
    /// The file that holds the signing secret
    #[arg(long, value_name = "FILE")]
    pub secret_file: PathBuf,
    /// The body to sign; - is stdin
    #[arg(long, value_name = "FILE|-")]
    pub body: PathBuf,
    /// Seconds since 1970, 1 to 12 digits [default: now]
    #[arg(long, value_name = "N", value_parser = timestamp)]
    pub timestamp: Option<String>,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The body as it was received, to the byte; - is stdin
    #[arg(long, value_name = "FILE|-", required_unless_present = "last")]
    pub body: Option<PathBuf>,
    /// The value of X-Webhook-Timestamp
    #[arg(long, value_name = "T", required_unless_present = "last")]
    pub timestamp: Option<String>,
    /// The value of X-Webhook-Signature
    #[arg(long, value_name = "S", required_unless_present = "last")]
    pub signature: Option<String>,
    /// The file that holds the signing secret [default: every configured one is tried]
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Exit 1 also if the timestamp is outside the tolerance
    #[arg(long)]
    pub fresh: bool,
    /// Ask the running relay why it refused its newest refused request, and the newest of each other account and cause
    #[arg(long, conflicts_with_all = ["body", "timestamp", "signature", "secret_file", "fresh"])]
    pub last: bool,
}

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Ask /readyz (does it accept events?) instead of /livez
    #[arg(long)]
    pub ready: bool,
    /// The relay's admin port [default: the configured admin.listen]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin: Option<SocketAddr>,
}

/// For people, or for scripts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopicsFormat {
    /// For people
    #[default]
    Text,
    /// A script of kafka-topics.sh commands
    Kafka,
    /// KafkaTopic resources
    Strimzi,
    /// Definitions for rabbitmqctl import_definitions
    Rabbitmq,
}

fn event_names() -> impl clap::builder::TypedValueParser<Value = crate::normalize::Known> {
    use crate::normalize::Known;
    use clap::builder::{PossibleValuesParser, TypedValueParser};
    PossibleValuesParser::new(Known::ALL.map(Known::as_str))
        .try_map(|name| Known::from_name(&name).ok_or("not one of SIPSIM's events"))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("a number of events a second from 0.001 to 1000000".to_owned()),
    }
}

fn timestamp(text: &str) -> Result<String, &'static str> {
    match (1..=12).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(text.to_owned()),
        false => Err("seconds since 1970, 1 to 12 digits"),
    }
}

/// A positive number with its unit, as configuration writes durations.
pub(super) fn duration(text: &str) -> Result<Duration, &'static str> {
    const HELP: &str = "a time with its unit: 500ms, 30s, 10m, 1h";
    let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or(HELP)?;
    let seconds = match text[unit..].trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(HELP),
    };
    let number: f64 = text[..unit].trim().parse().map_err(|_| HELP)?;
    match Duration::try_from_secs_f64(number * seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(HELP),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_a_person_types_is_understood() {
        for line in [
            "sipsim-relay run",
            "sipsim-relay --config r.toml run",
            "sipsim-relay run --config r.toml",
            "sipsim-relay demo",
            "sipsim-relay check --format json",
            "sipsim-relay topics",
            "sipsim-relay topics --format strimzi",
            "sipsim-relay topics --create --yes --partitions 3 --replication 1",
            "sipsim-relay simulate --to http://h/p --secret-file s",
            "sipsim-relay simulate --to https://h:8/p?q --secret-file s --ca-file c --rate 0.5 --count 3 --duration 1.5m --connections 9 --event sms --tamper body --format json",
            "sipsim-relay simulate --to http://[::1]:80/p --secret-file s --body b",
            "sipsim-relay sign --secret-file s --body - --timestamp 1736937000",
            "sipsim-relay verify --body - --timestamp x --signature y --fresh",
            "sipsim-relay verify --last",
            "sipsim-relay healthcheck --ready --admin 127.0.0.1:8081",
            "sipsim-relay journal status --format json",
            "sipsim-relay journal list --event sms --call 1 --since 14:00 --until 15:00+02:00 --output k --state parked --format json",
            "sipsim-relay journal show --id 2c7a2d09-6f55-8d0e-9b4a-0e5a1f0f2b3c",
            "sipsim-relay journal export --since 2h",
            "sipsim-relay journal import",
            "sipsim-relay journal import f",
            "sipsim-relay journal trace --call 1",
            "sipsim-relay journal trace --since 14:00 --until 14:20",
            "sipsim-relay journal replay --output k --since 2025-01-15 --yes",
            "sipsim-relay journal requeue --output k",
            "sipsim-relay journal discard --output k --state pending --yes",
            "sipsim-relay journal forget --output k --yes",
            "sipsim-relay journal verify",
            "sipsim-relay drain --timeout 30s",
            "sipsim-relay schema incoming_call_end_chain_member_call",
            "sipsim-relay schema envelope",
            "sipsim-relay schema configuration",
            "sipsim-relay completions zsh",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
    }

    #[test]
    fn wrong_usage_is_said_before_anything_is_done() {
        use clap::error::ErrorKind::*;
        for (line, kind) in [
            ("sipsim-relay", DisplayHelpOnMissingArgumentOrSubcommand),
            ("sipsim-relay runn", InvalidSubcommand),
            ("sipsim-relay topics --yes", MissingRequiredArgument),
            ("sipsim-relay topics --partitions 0", ValueValidation),
            ("sipsim-relay simulate --to http://h/p", MissingRequiredArgument),
            ("sipsim-relay simulate --to h/p --secret-file s", ValueValidation),
            ("sipsim-relay simulate --to http://h --secret-file s", ValueValidation),
            ("sipsim-relay simulate --to http://h/p --secret-file s --event smms", InvalidValue),
            ("sipsim-relay simulate --to http://h/p --secret-file s --event sms --body b", ArgumentConflict),
            ("sipsim-relay simulate --to http://h/p --secret-file s --rate 0", ValueValidation),
            ("sipsim-relay simulate --to http://h/p --secret-file s --count 0", ValueValidation),
            ("sipsim-relay simulate --to http://h/p --secret-file s --duration 5", ValueValidation),
            ("sipsim-relay simulate --to http://h/p --secret-file s --tamper all", InvalidValue),
            ("sipsim-relay sign --secret-file s --body b --timestamp 1x", ValueValidation),
            ("sipsim-relay verify --body b", MissingRequiredArgument),
            ("sipsim-relay verify --last --fresh", ArgumentConflict),
            ("sipsim-relay journal trace", MissingRequiredArgument),
            ("sipsim-relay journal list --since noon", ValueValidation),
            ("sipsim-relay journal list --state lost", InvalidValue),
            ("sipsim-relay journal show --id 1", ValueValidation),
            ("sipsim-relay journal discard --yes", MissingRequiredArgument),
            ("sipsim-relay journal forget --yes", MissingRequiredArgument),
            ("sipsim-relay drain --timeout 0s", ValueValidation),
            ("sipsim-relay schema", MissingRequiredArgument),
            ("sipsim-relay schema fax", InvalidValue),
            ("sipsim-relay journal", DisplayHelpOnMissingArgumentOrSubcommand),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5 m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "5", "s", "0s", "-1s", "1e400s", "1d", "NaNs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn completions_name_the_commands() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "sipsim-relay", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("healthcheck") && script.contains("--secret-file"));
    }
}
