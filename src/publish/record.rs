//! One event as it goes to a broker, in memory that is used again where the client of the broker copies it: the allocator was more than a quarter
//! of what draining cost an output's thread (callgrind: 8,400 of 30,080 instructions an event).

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::normalize::IdText;

/// One event as it goes to a broker. [`super::encode::Encoder::fill`] makes it.
#[derive(Debug, Default)]
pub struct Record {
    /// The event's number in the journal; a [`super::Report`] names the record by it.
    pub sequence: u64,
    /// Kafka's topic, RabbitMQ's routing key.
    pub lane: Arc<str>,
    /// CloudEvents `partitionkey`: Kafka's key.
    pub key: String,
    /// MIME type of the payload: Kafka's header `content-type`, AMQP's property `content_type`.
    pub content_type: &'static str,
    /// Message headers beside `content-type`: `ce_…` in Kafka's binary mode, `x-webhook-signature`, `x-webhook-timestamp`.
    pub headers: Headers,
    /// CloudEvents `id`: AMQP's `message_id`.
    pub id: IdText,
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `type`: AMQP's `type`.
    pub event_type: String,
    /// AMQP's `timestamp`.
    pub received_at: Timestamp,
    /// The structured envelope, or in Kafka's binary mode the raw body (which may be empty, but is never null).
    pub payload: Vec<u8>,
}

impl Record {
    /// Bytes that it has at a broker: key, payload, and headers with their names.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.key.len() + self.payload.len() + headers
    }

    /// Bytes that its texts and payload take without being allocated.
    pub fn capacity(&self) -> usize {
        let texts = [&self.key, &self.source, &self.event_type, &self.headers.values];
        texts.map(String::capacity).iter().sum::<usize>() + self.payload.capacity()
    }
}

/// Names and values in one text.
#[derive(Debug, Default)]
pub struct Headers {
    values: String,
    /// Each name, and where its value ends.
    ends: Vec<(&'static str, usize)>,
}

impl Headers {
    pub fn clear(&mut self) {
        self.values.clear();
        self.ends.clear();
    }

    pub fn push(&mut self, name: &'static str, value: &str) {
        self.values.push_str(value);
        self.ends.push((name, self.values.len()));
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// In the order in which they were put in.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut start = 0;
        self.ends.iter().map(move |(name, end)| (*name, &self.values[std::mem::replace(&mut start, *end)..*end]))
    }
}
