//! Real Kafka and real RabbitMQ, read back by clients that are not ours too.

mod contract;
mod infrastructure;
mod kafka_sink;
mod live;
mod odd;
mod rabbit_sink;
mod recover;
mod recover_disk;
mod secure;
mod stuck;
mod troubles;
