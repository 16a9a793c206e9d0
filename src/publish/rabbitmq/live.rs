//! What a broker says of an exchange and of routing keys, for `check --live`. Nothing is published: what is sent to try the rights goes in a
//! transaction (AMQP's `tx`), which is rolled back before anything is routed.

use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Connection};
use tokio::time::timeout;

use super::{connect, fault, management, topology};
use crate::config;

/// For all questions together. A broker with an alarm on never answers the trial of the rights.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How often a trial is made until the broker says why it refuses.
const TRIES_MAX: u32 = 10;

/// What is known, `None` for what is not.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Host and port of the broker that was asked.
    pub at: String,
    pub exists: bool,
    /// `Err`: it is another than a durable topic exchange, in the broker's words.
    pub is_durable_topic: Option<Result<(), String>>,
    /// By routing key, in the order asked.
    pub keys: Vec<Key>,
    /// A record as large as our largest; `Err`: the broker does not take it, in its own words.
    pub largest: Option<Result<(), String>>,
    /// Why bindings are not known; `None` if they are.
    pub bindings_unknown: Option<String>,
    /// Takes what no binding takes.
    pub alternate: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Key {
    pub name: String,
    /// `Err`: refused, in the broker's words.
    pub may_write: Option<Result<(), String>>,
    pub is_bound: Option<bool>,
}

/// Asks the first URL that answers. `largest` is a record's size in bytes. The error is one line, without secrets.
pub async fn ask(config: &config::RabbitMq, vhost: &str, keys: &[String], largest: usize) -> Result<Found, String> {
    let link = connect::connect(config, &mut None).await.map_err(|refusal| refusal.detail)?;
    let at = link.at.clone();
    let asked = timeout(ANSWER_MAX, questions(&link.connection, config, keys, largest)).await;
    link.close().await;
    let mut found = asked.unwrap_or_else(|_| {
        Err(format!("no answer within {} s; is a memory or disk alarm on? rabbitmqctl status", ANSWER_MAX.as_secs()))
    });
    if let Ok(found) = &mut found {
        found.at.clone_from(&at);
        bindings(config, vhost, found).await;
    }
    found.map_err(|error| format!("{at}: {error}"))
}

async fn questions(
    connection: &Connection,
    config: &config::RabbitMq,
    keys: &[String],
    largest: usize,
) -> Result<Found, String> {
    let exchange = config.exchange.as_str();
    let mut found = Found {
        keys: keys.iter().map(|key| Key { name: key.clone(), may_write: None, is_bound: None }).collect(),
        ..Found::default()
    };
    found.exists = match topology::try_declare(connection, exchange, true).await {
        Ok(()) => true,
        Err(error) if topology::code(&error) == Some(404) => false,
        Err(error) => return Err(fault::of_command(&error)),
    };
    if !found.exists {
        return Ok(found);
    }
    // Declaring what exists makes nothing, and compares.
    found.is_durable_topic = match topology::try_declare(connection, exchange, false).await {
        Ok(()) => Some(Ok(())),
        Err(error) if topology::code(&error) == Some(406) => Some(Err(fault::of_command(&error))),
        // Without the right to declare. The management API may know.
        Err(_) => None,
    };
    let mut channel = None;
    for key in &mut found.keys {
        key.may_write = Some(trial(connection, &mut channel, exchange, &key.name, 0).await?);
    }
    let writable = found.keys.iter().find(|key| matches!(key.may_write, Some(Ok(()))));
    if let Some(key) = writable {
        found.largest = Some(trial(connection, &mut channel, exchange, &key.name, largest).await?);
    }
    Ok(found)
}

/// Whether the broker takes a record of this size, which is taken back again. `Err` inside: its words. A refusal ends the channel.
async fn trial(
    connection: &Connection,
    channel: &mut Option<Channel>,
    exchange: &str,
    key: &str,
    size: usize,
) -> Result<Result<(), String>, String> {
    let words = |error: lapin::Error| fault::of_command(&error);
    let payload = vec![b' '; size];
    let (exchange, key) = (topology::short(exchange), topology::short(key));
    let mut tries = TRIES_MAX;
    loop {
        let open = match channel.take() {
            Some(open) => open,
            None => {
                let open = connection.create_channel().await.map_err(words)?;
                open.tx_select().await.map_err(words)?;
                open
            }
        };
        let tried = async {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            open.basic_publish(exchange.clone(), key.clone(), options, &payload, properties).await?;
            open.tx_rollback().await
        };
        tries -= 1;
        match tried.await {
            Ok(()) => {
                *channel = Some(open);
                return Ok(Ok(()));
            }
            Err(error) if !connection.status().connected() => return Err(fault::of_connection(&error)),
            // The refusal was there before the rollback was sent, and then lapin says that the channel is closed, but not why.
            Err(error) if topology::code(&error).is_none() && tries > 0 => {}
            Err(error) => return Ok(Err(fault::of_command(&error))),
        }
    }
}

async fn bindings(config: &config::RabbitMq, vhost: &str, found: &mut Found) {
    let Some(url) = &config.management_url else {
        found.bindings_unknown = Some("no `management_url` is configured".to_owned());
        return;
    };
    let (exchange, bindings) = match management::exchange(url, config, vhost).await {
        Ok(Some(known)) => known,
        Ok(None) => {
            found.bindings_unknown = found.exists.then(|| format!("the API at {url} knows no such exchange"));
            return;
        }
        Err(why) => {
            found.bindings_unknown = Some(why);
            return;
        }
    };
    if found.is_durable_topic.is_none() {
        let durable = if exchange.durable { "durable" } else { "not durable" };
        found.is_durable_topic = Some(match (exchange.kind.as_str(), exchange.durable) {
            ("topic", true) => Ok(()),
            (kind, _) => Err(format!("its type is {kind}, and it is {durable}")),
        });
    }
    found.alternate = exchange.alternate().map(str::to_owned);
    for key in &mut found.keys {
        // A fanout or direct exchange routes otherwise; that it is none of ours was said.
        key.is_bound = Some(match exchange.kind.as_str() {
            "topic" => bindings.iter().any(|binding| management::matches(&binding.routing_key, &key.name)),
            "fanout" => !bindings.is_empty(),
            _ => bindings.iter().any(|binding| binding.routing_key == key.name),
        });
    }
}
