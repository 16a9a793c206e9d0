//! `journal …`: what a person sees of a journal, and what they ask of it. A second reader beside a running relay, in short transactions; and the
//! same on the volume of a relay that is gone.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use self::events::What;
use self::moments::{Moment, between, moment};
use super::{Format, run};
use crate::clock::Timestamp;
use crate::config::{Config, OutputKind, Routes};
use crate::journal::inspect::{self, Inspector};
use crate::journal::orders::Command;
use crate::journal::selection::{Selection, State};
use crate::normalize::EventId;
use crate::publish::routes::Router;

mod events;
mod moments;
mod orders;
mod status;
mod trace;
mod verify;
pub(super) mod words;

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
    /// The events that the journal holds, without their content
    #[command(after_help = "Examples:
  sipsim-relay journal list --state parked
  sipsim-relay journal list --call call_abc123 --output kafka
  sipsim-relay journal list --since 14:00 --until 14:20 --format json    one JSON object a line")]
    List {
        #[command(flatten)]
        select: SelectArgs,
        /// For people, or for scripts
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// The events that the journal holds, with their content
    #[command(after_help = "Example: sipsim-relay journal show --id 2c7a2d09-6f55-8d0e-9b4a-0e5a1f0f2b3c")]
    Show {
        #[command(flatten)]
        select: SelectArgs,
        /// For people, or for scripts
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// The same as lines that `import` takes, one JSON object an event
    #[command(after_help = "Example: sipsim-relay journal export --since 2025-01-15 > events.jsonl
The lines hold what was said in calls and messages: treat them as you treat the journal.")]
    Export {
        #[command(flatten)]
        select: SelectArgs,
    },
    /// The way of a call or event: received, kept, published where and when, parked or discarded and why
    #[command(after_help = "Examples:
  sipsim-relay journal trace --call call_abc123
  sipsim-relay journal trace --id 2c7a2d09-6f55-8d0e-9b4a-0e5a1f0f2b3c
  sipsim-relay journal trace --since 14:00 --until 14:20
Works on the trail when the content is long gone (journal.trail). Exit 1 if this journal knows nothing of it.")]
    Trace(TraceArgs),
    /// Send published events again to one output, marked as replayed
    #[command(after_help = "Examples:
  sipsim-relay journal replay --output kafka --since 14:00 --until 15:00        shows what it would do
  sipsim-relay journal replay --output kafka --since 14:00 --until 15:00 --yes  does it
As far as the journal still holds them (journal.retention). Consumers see the same ids as before, and `replayed`.
Without a running relay the order is recorded, and the next run or drain carries it out.")]
    Replay(OrderArgs),
    /// Try parked events now instead of at the next backoff
    #[command(after_help = "Example: sipsim-relay journal requeue --output kafka
Without a running relay the order is recorded, and the next run or drain carries it out.")]
    Requeue(OrderArgs),
    /// Give parked or pending events up: they are never sent to this output
    #[command(after_help = "Examples:
  sipsim-relay journal discard --output kafka --state parked        shows what it would do
  sipsim-relay journal discard --output kafka --event sms --yes     does it
Ledger and trail keep them as discarded. Without a running relay the order is recorded, and the next run or drain carries it out.")]
    Discard(OrderArgs),
    /// Give up an output that was removed from the configuration, with all that it owes
    #[command(after_help = "Example: sipsim-relay journal forget --output old-kafka --yes
Without a running relay the order is recorded, and the next run or drain carries it out.")]
    Forget {
        /// The output, as it was called
        #[arg(long, value_name = "NAME")]
        output: String,
        /// Do it; without this it only shows what it would do
        #[arg(long)]
        yes: bool,
    },
    /// Take the events of an export as new ones, marked as replayed
    #[command(after_help = "Examples:
  sipsim-relay journal import events.jsonl
  ssh other sipsim-relay journal export | sipsim-relay journal import
Every output publishes them. They count as accepted. Each line is checked before the first is taken.")]
    Import {
        /// What `journal export` wrote; - is stdin
        #[arg(value_name = "FILE|-", default_value = "-")]
        file: PathBuf,
    },
    /// After the journal was put back from a copy: go on with another id (relayjournal) from the next start on
    #[command(
        after_help = "A snapshot, a backup or a clone gives the same id and the same numbers to events that were accepted after it was made, and to others that the
original accepted. Consumers who compare relayjournal and relaysequence would take one for the other. Order this before the first start
on what was put back; it never does harm. The numbers go on. The order is recorded, and the next run or drain carries it out."
    )]
    NewId,
    /// Check every row against its checksum, and the ledger
    #[command(
        after_help = "Beside a running relay it reads in short steps; where none runs it checks the file as a whole too. It says which.
Exit 1 if anything is not in order."
    )]
    Verify,
}

/// What an order means.
#[derive(Clone, Debug, Args)]
pub struct OrderArgs {
    /// The output that it is about
    #[arg(long, value_name = "NAME")]
    pub output: String,
    /// Only this event, such as sms
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Only this call (pbx_id or call_id)
    #[arg(long, value_name = "ID")]
    pub call: Option<String>,
    /// Only the event with this id, as the answer 200 and the envelope have it
    #[arg(long, value_name = "ID", value_parser = event_id)]
    pub id: Option<String>,
    /// Received at this moment or later: 14:00 (today, UTC), 14:00+02:00, 2025-01-15T14:00:00Z, or 2h (ago)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Received before this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only what stands so at the output
    #[arg(long, value_name = "STATE", value_enum)]
    pub state: Option<State>,
    /// Do it; without this, what repeats or deletes only shows what it would do
    #[arg(long)]
    pub yes: bool,
}

impl OrderArgs {
    fn select(&self) -> SelectArgs {
        SelectArgs {
            event: self.event.clone(),
            call: self.call.clone(),
            id: self.id.clone(),
            since: self.since.clone(),
            until: self.until.clone(),
            output: None,
            state: self.state,
        }
    }
}

/// Which events are meant. What is not given does not matter.
#[derive(Clone, Debug, Default, Args)]
pub struct SelectArgs {
    /// Only this event, such as sms
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Only this call (pbx_id or call_id)
    #[arg(long, value_name = "ID")]
    pub call: Option<String>,
    /// Only the event with this id, as the answer 200 and the envelope have it
    #[arg(long, value_name = "ID", value_parser = event_id)]
    pub id: Option<String>,
    /// Received at this moment or later: 14:00 (today, UTC), 14:00+02:00, 2025-01-15T14:00:00Z, or 2h (ago)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Received before this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only as it stands at this output
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// Only what stands so, at the named output or at any
    #[arg(long, value_name = "STATE", value_enum)]
    pub state: Option<State>,
}

#[derive(Debug, Args)]
// The group of its own that clap makes of a struct has all its arguments in it, so that `--format` alone would do.
#[group(skip)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true).args(["call", "id", "since"])))]
pub struct TraceArgs {
    /// Only this event, such as sms
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// This call (pbx_id or call_id)
    #[arg(long, value_name = "ID")]
    pub call: Option<String>,
    /// The event with this id, as the answer 200 and the envelope have it
    #[arg(long, value_name = "ID", value_parser = event_id)]
    pub id: Option<String>,
    /// Received at this moment or later: 14:00 (today, UTC), 14:00+02:00, 2025-01-15T14:00:00Z, or 2h (ago)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Received before this moment
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// For people, or for scripts
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

impl SelectArgs {
    fn order(self, output: &str) -> OrderArgs {
        let Self { event, call, id, since, until, state, .. } = self;
        OrderArgs { output: output.to_owned(), event, call, id, since, until, state, yes: false }
    }

    fn selection(&self, now: Timestamp) -> Selection {
        let (since, until) = between(self.since.as_ref(), self.until.as_ref(), now);
        Selection {
            event: self.event.clone(),
            call: self.call.clone(),
            id: self.id.clone(),
            since: since.map(Timestamp::as_micros),
            until: until.map(Timestamp::as_micros),
            state: self.state,
            ..Selection::default()
        }
    }
}

impl TraceArgs {
    fn selection(&self, now: Timestamp) -> Selection {
        let (since, until) = between(self.since.as_ref(), self.until.as_ref(), now);
        Selection {
            event: self.event.clone(),
            call: self.call.clone(),
            id: self.id.clone(),
            since: since.map(Timestamp::as_micros),
            until: until.map(Timestamp::as_micros),
            ..Selection::default()
        }
    }
}

fn event_id(text: &str) -> Result<String, &'static str> {
    let id = EventId::from_text(&text.to_ascii_lowercase())
        .ok_or("an event's id, such as 2c7a2d09-6f55-8d0e-9b4a-0e5a1f0f2b3c")?;
    Ok(id.to_string())
}

/// Runs one of them. `Ok(false)`: something is not in order, and it was said what.
pub fn journal(file: Option<&Path>, command: &JournalCommand) -> Result<bool, String> {
    let config = run::load(file)?.config;
    match command {
        JournalCommand::Status { format } => status::status(&config, *format),
        JournalCommand::List { select, format } => events::events(&config, select, What::List(*format)),
        JournalCommand::Show { select, format } => events::events(&config, select, What::Show(*format)),
        JournalCommand::Export { select } => events::events(&config, select, What::Export),
        JournalCommand::Trace(args) => trace::trace(&config, args),
        JournalCommand::Replay(args) => orders::order(&config, Command::Replay, args),
        JournalCommand::Requeue(args) => orders::order(&config, Command::Requeue, args),
        JournalCommand::Discard(args) => orders::order(&config, Command::Discard, args),
        JournalCommand::Forget { output, yes } => {
            let all = SelectArgs::default();
            orders::order(&config, Command::Forget, &OrderArgs { yes: *yes, ..all.order(output) })
        }
        JournalCommand::Import { file } => orders::import(&config, file),
        JournalCommand::NewId => orders::new_id(&config),
        JournalCommand::Verify => verify::verify(&config),
    }
}

/// How long a command stays out of a journal that its relay opens anew. That tries once a second.
const AWAY: Duration = Duration::from_secs(2);

/// For one step of a command: what lasts opens it anew for each, and has it closed while it prints or waits. So a relay that has to be alone with its
/// journal, after a fault of the disk, is alone with it between two steps.
fn open(config: &Config) -> Result<Inspector, String> {
    let (path, until) = (&config.journal.path, Instant::now() + AWAY);
    while inspect::is_opened_anew(path) && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    Inspector::open(path).map_err(|problem| format!("journal.path: {problem}"))
}

/// For the next step.
fn open_again(config: &Config, id: &str) -> Result<Inspector, String> {
    let inspector = open(config)?;
    match inspector.id == id {
        true => Ok(inspector),
        false => Err(format!("{}: it is another journal since a moment ago; try again", config.journal.path.display())),
    }
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
