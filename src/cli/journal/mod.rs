//! `journal …`: what a person sees of a journal, and what they ask of it. A second reader beside a running relay, in short transactions; and the
//! same on the volume of a relay that is gone.

use std::path::Path;

use clap::Subcommand;

use super::{Format, run};
use crate::config::{Config, OutputKind, Routes};
use crate::journal::inspect::Inspector;
use crate::publish::routes::Router;

mod status;
mod words;

#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Sizes, the ledger, and what still waits, per output and topic
    #[command(after_help = "Examples:
  sipsim-relay journal status
  sipsim-relay --config /etc/relay.toml journal status --format json
Works beside a running relay, and on a volume whose relay is gone.")]
    Status {
        /// For people, or for scripts
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Runs one of them. `Ok(false)`: something is not in order, and it was said what.
pub fn journal(file: Option<&Path>, command: &JournalCommand) -> Result<bool, String> {
    let config = run::load(file)?.config;
    match command {
        JournalCommand::Status { format } => status::status(&config, *format),
    }
}

fn open(config: &Config) -> Result<Inspector, String> {
    Inspector::open(&config.journal.path).map_err(|problem| format!("journal.path: {problem}"))
}

/// Where each configured output sends an event now.
fn routers(config: &Config) -> Vec<(String, Router)> {
    config.outputs.iter().map(|output| (output.name.as_str().to_owned(), Router::new(routes(&output.kind)))).collect()
}

fn routes(kind: &OutputKind) -> Routes {
    match kind {
        OutputKind::Kafka(kafka) => kafka.topics.clone(),
        OutputKind::RabbitMq(rabbit) => rabbit.routing_keys.clone(),
        OutputKind::Console => Routes { template: "console".into(), by_event: Default::default() },
    }
}

/// An error of SQLite while reading, for a person.
fn unreadable(error: rusqlite::Error) -> String {
    format!("the journal cannot be read: {error}")
}
