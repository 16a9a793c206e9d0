//! The way out: each output takes [`crate::journal::Stored`] events in order, by lanes, to its broker, and tells the journal what was confirmed.
//!
//! A lane is output × topic (or routing key). [`Sink`] is all that Kafka, RabbitMQ and the console have in common.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

mod aside;
mod books;
mod console;
pub mod encode;
mod files;
mod http;
mod in_flight;
pub mod kafka;
mod lane;
mod output;
mod publisher;
mod status;
pub mod rabbitmq;
mod record;
mod replay;
pub mod routes;
mod sequences;
mod series;
mod suspect;
mod tls;
pub mod topology;
mod window;

pub use console::Stream;
pub use publisher::Publisher;
pub use record::{Headers, Record};
pub use status::{HeldTopic, OutputStatus, Outputs, StuckEvent};

/// What a sink says. Each record that was sent gets exactly one `Delivered` or `Failed`, in whatever order.
#[derive(Debug)]
pub enum Report {
    Delivered {
        sequence: u64,
        place: Place,
    },
    Failed {
        sequence: u64,
        error: PublishError,
    },
    /// The broker answers; records may be sent. A sink begins as not connected.
    Connected,
    /// The broker is away. `detail` is one line for the log and the status page, without any content of events or secrets. A sink that says so
    /// has failed, or will fail, all its open records itself, or keeps trying them (Kafka); the output sends no more until `Connected`.
    Lost {
        reason: PublishError,
        detail: String,
    },
    /// A connection that stood has broken while these records were open on it, each of more than [`LARGE_BYTES`]. The broker may have closed it
    /// because of one of them, which it says by no code. Comes before the reports of those records, if the break fails them.
    Broken {
        large: Vec<u64>,
    },
}

/// Payloads of more are suspected when a connection breaks: the smallest limit known at which a broker hangs up is 256 KiB (Azure Event Hubs,
/// basic), and a batch of smaller records has at most 128 KiB.
const LARGE_BYTES: usize = 64 << 10;

/// Without control characters, at most 200 characters: for the log and the status page.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// Where a record lies now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Kafka {
        partition: i32,
        offset: i64,
    },
    /// RabbitMQ's confirm, or the console's write.
    Confirmed,
}

/// Why a record was not published. No text of a record is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishError {
    // The broker's or the line's: try again.
    Disconnected,
    Timeout,
    Blocked,
    /// The producer was given up; a new one is made. Every open record fails with this.
    Fatal,
    /// Not on any list. The text names the code, for the log.
    Unknown(String),
    /// The record was taken back before it was tried, because another one failed. Not a failure of its own, and not counted as one.
    Withdrawn,
    /// The channel was closed without naming a message: one of those open on it is to blame. They are to be sent one at a time.
    Suspect(String),
    // The topic's: hold the lane.
    TopicMissing,
    Forbidden,
    Unroutable,
    NotEnoughReplicas,
    Nack,
    /// It takes no record as the relay sends it, whichever that is. The text says why.
    TopicRejects(String),
    /// It takes none of this size, and took such before.
    TopicTooSmall,
    // The record's: park it, once it has failed alone.
    TooLarge,
    Rejected(String),
    /// The connection breaks whenever it is sent.
    HungUp,
    /// Past `outputs.NAME.record_max`. No broker saw it, so it is no failure to publish.
    OverMax,
    /// Its envelope cannot be made, by a fault in the relay itself. No broker saw it, so it is no failure to publish.
    NoEnvelope,
}

/// Who acts next after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The relay: once the lane has settled, again from the oldest.
    Retry,
    /// The relay: the same, one record at a time until past the suspects.
    RetryAlone,
    /// An operator mends the topic; the oldest probes meanwhile.
    Hold,
    /// An operator looks at this record; the lane goes on.
    Park,
}

impl PublishError {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Disconnected | Self::Timeout | Self::Blocked | Self::Fatal | Self::Unknown(_) | Self::Withdrawn => {
                Disposition::Retry
            }
            Self::Suspect(_) => Disposition::RetryAlone,
            Self::TopicMissing
            | Self::Forbidden
            | Self::Unroutable
            | Self::NotEnoughReplicas
            | Self::Nack
            | Self::TopicRejects(_)
            | Self::TopicTooSmall => Disposition::Hold,
            Self::TooLarge | Self::Rejected(_) | Self::HungUp | Self::OverMax | Self::NoEnvelope => Disposition::Park,
        }
    }

    /// No broker saw the record: that it cannot be sent is its own fault, whatever else is in flight, and not counted as a failure to publish.
    fn is_ours(&self) -> bool {
        matches!(self, Self::OverMax | Self::NoEnvelope)
    }

    /// What a record's fault is called once it proves to be its topic's; `None` for what can only be the record's.
    fn of_topic(&self) -> Option<Self> {
        match self {
            Self::TooLarge => Some(Self::TopicTooSmall),
            Self::Rejected(text) => Some(Self::TopicRejects(text.clone())),
            _ => None,
        }
    }

    /// It says nothing of the record or its topic: the broker is away, or another record failed.
    pub fn is_of_the_line(&self) -> bool {
        matches!(self, Self::Disconnected | Self::Timeout | Self::Blocked | Self::Fatal | Self::Withdrawn)
    }

    /// The label `reason` of metrics and the word in log and trail.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected => "disconnected",
            Self::Timeout => "timeout",
            Self::Blocked => "blocked",
            Self::Fatal => "fatal",
            Self::Unknown(_) | Self::Withdrawn | Self::Suspect(_) => "unknown",
            Self::TopicMissing => "topic_missing",
            Self::Forbidden => "forbidden",
            Self::Unroutable => "unroutable",
            Self::NotEnoughReplicas => "not_enough_replicas",
            Self::Nack => "nack",
            Self::TooLarge | Self::TopicTooSmall | Self::HungUp | Self::OverMax => "too_large",
            Self::Rejected(_) | Self::TopicRejects(_) => "rejected",
            Self::NoEnvelope => "other",
        }
    }
}

/// Where a sink's reports go. Bounded by what the output lets be in flight: at most 2,000 records.
pub type Reports = UnboundedSender<Report>;

/// A broker, as an output sees it. Made by its module's `new(.., reports: Reports)` inside a tokio runtime, on which it may spawn tasks
/// that end when it is dropped.
pub trait Sink: Send {
    /// Hands one record over. Never blocks; records of one lane are published in the order of the calls. A sink that needs it for longer takes it
    /// away; what it leaves is memory for the next.
    fn send(&mut self, record: &mut Record);

    /// Whether a topic's fault can show as nothing but silence, so that a lane that hears nothing for long counts as held. It does at brokers; a
    /// console that takes nothing is itself at fault.
    fn is_silent_on_faults(&self) -> bool {
        false
    }

    /// Closes the channel or producer that has a lane's open records, which are then reported as [`PublishError::Withdrawn`], if not delivered
    /// meanwhile. `oldest` of them is what the broker does not answer or hangs up at, so it is better tried apart from other lanes.
    fn take_back(&mut self, _lane: &Arc<str>, _oldest: u64) {}
}

/// What an operator does about a held topic, for the log.
pub(crate) fn mend(reason: &str) -> &'static str {
    match reason {
        "topic_missing" => "the broker has no such topic or exchange; make it (`sipsim-relay topics --create --yes`)",
        "forbidden" => {
            "the broker does not let us write to it; grant the right (`sipsim-relay check --live` shows the command)"
        }
        "unroutable" => "no queue is bound for its routing key; bind one (`sipsim-relay topics --create --yes`)",
        "not_enough_replicas" => {
            "the broker confirms nothing: too few replicas are in sync, or it hangs (Kafka: `kafka-topics.sh --describe --under-min-isr-partitions`; RabbitMQ: `rabbitmq-queues quorum_status QUEUE`)"
        }
        "nack" => {
            "the broker refuses it: a queue is full or failing; read it, or raise its limit (`rabbitmqctl list_queues name messages policy`)"
        }
        "rejected" => {
            "the broker refuses whatever is sent to it: look at its settings (Kafka: `message.timestamp.before.max.ms`, `.after.max.ms`, and this machine's clock; `kafka-configs.sh --describe --topic TOPIC`)"
        }
        "too_large" => {
            "the broker refuses records that are no larger than those it took before: its limit was lowered; raise it (Kafka: `max.message.bytes` of the topic; RabbitMQ: `max_message_size`)"
        }
        _ => "see the metric topic_held",
    }
}
