//! The exchange that the sink publishes to, and for `topics --create` the queues bound to it.

use std::time::Duration;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use super::{connect, fault};
use crate::config;

/// For all of `topics --create` together; a quorum queue takes a fraction of a second.
const CREATE_MAX: Duration = Duration::from_secs(60);

/// Makes the durable topic exchange if it is missing. What stands in the way comes back as a text for the log, as the sink publishes all the same:
/// the exchange may well be there and only the right to declare it not.
pub(super) async fn declare(connection: &Connection, exchange: &str) -> Result<(), String> {
    // The default exchange is always there, and declaring it is an error.
    if exchange.is_empty() {
        return Ok(());
    }
    let error = match try_declare(connection, exchange, false).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match code(&error) {
        Some(403) => match try_declare(connection, exchange, true).await {
            Ok(()) => Ok(()),
            Err(missing) if code(&missing) == Some(404) => Err(format!(
                "the exchange \"{exchange}\" is missing, and this user may not declare it: have it made, or grant the \"configure\" right"
            )),
            Err(error) => {
                Err(format!("whether the exchange \"{exchange}\" exists is not known: {}", fault::of_command(&error)))
            }
        },
        Some(406) => Err(format!(
            "the exchange \"{exchange}\" exists but is not a durable topic exchange, so events may not get where they should: {}",
            fault::of_command(&error)
        )),
        _ => Err(format!("the exchange \"{exchange}\" could not be declared: {}", fault::of_command(&error))),
    }
}

/// On a channel of its own, since an error closes the channel.
pub(super) async fn try_declare(connection: &Connection, exchange: &str, passive: bool) -> lapin::Result<()> {
    let channel = connection.create_channel().await?;
    declare_on(&channel, exchange, passive).await?;
    channel.close(200, "OK".into()).await
}

async fn declare_on(channel: &Channel, exchange: &str, passive: bool) -> lapin::Result<()> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    channel.exchange_declare(short(exchange), ExchangeKind::Topic, options, FieldTable::default()).await
}

/// Makes the topic exchange (durable), the queues (quorum) and their bindings; what exists as it should be stays as it is. Gives a line for each.
/// The error says what could not be made and why; what stands before it was made.
pub async fn create_topology(
    config: &config::RabbitMq,
    exchange: &str,
    queues: &[(String, String)],
) -> Result<Vec<String>, String> {
    let link = connect::connect(config, &mut None).await.map_err(|refusal| refusal.detail)?;
    // A broker that blocks or hangs must not keep a person waiting.
    let made = timeout(CREATE_MAX, create(&link.connection, exchange, queues)).await;
    let at = link.at.clone();
    link.close().await;
    made.unwrap_or_else(|_| Err(format!("{at} did not answer within {} s", CREATE_MAX.as_secs())))
}

async fn create(connection: &Connection, exchange: &str, queues: &[(String, String)]) -> Result<Vec<String>, String> {
    let fail = |what: String| move |error: lapin::Error| format!("{what}: {}", fault::of_command(&error));
    let channel = connection.create_channel().await.map_err(fail("no channel could be opened".into()))?;
    let mut made = Vec::new();
    if !exchange.is_empty() {
        declare_on(&channel, exchange, false)
            .await
            .map_err(fail(format!("the exchange \"{exchange}\" could not be declared")))?;
        made.push(format!("exchange \"{exchange}\" (topic, durable)"));
    }
    for (queue, binding) in queues {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel
            .queue_declare(short(queue), options, arguments)
            .await
            .map_err(fail(format!("the queue \"{queue}\" could not be declared")))?;
        made.push(format!("queue \"{queue}\" (quorum, durable)"));
        channel
            .queue_bind(
                short(queue),
                short(exchange),
                short(binding),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(fail(format!("the queue \"{queue}\" could not be bound to \"{exchange}\" by \"{binding}\"")))?;
        made.push(format!("binding of \"{queue}\" to \"{exchange}\" by \"{binding}\""));
    }
    Ok(made)
}

/// A name as AMQP has it; one of more than 255 bytes becomes empty, which the broker refuses.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

pub(super) fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
