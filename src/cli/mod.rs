//! To be written.

pub mod topics;

use clap::{Args, ValueEnum};

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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopicsFormat {
    /// For people
    #[default]
    Text,
    /// kafka-topics.sh commands
    Kafka,
    /// KafkaTopic resources
    Strimzi,
    /// Definitions for rabbitmqctl import_definitions
    Rabbitmq,
}
