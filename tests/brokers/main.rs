//! Real Kafka and real RabbitMQ, read back by clients that are not ours too.

#[path = "../support/mod.rs"]
mod support;

mod contract;
mod infrastructure;
mod live;
mod odd;
mod rabbit_sink;
mod recover;
mod recover_disk;
mod secure;
mod troubles;
