//! `topics`: what the configuration needs at its brokers, printed in four formats, or made.

use crate::config::{self, Config, OutputKind, OutputName};
use crate::publish::kafka::{Made, create_topics};
use crate::publish::rabbitmq::create_topology;
use crate::publish::topology::{self, Topology};

use super::{TopicsArgs, TopicsFormat};

mod formats;
pub(super) use formats::{quoted, vhost};

/// What one output needs.
struct Need<'a> {
    output: &'a OutputName,
    what: What<'a>,
}

enum What<'a> {
    Kafka(&'a config::Kafka, Vec<String>),
    RabbitMq(&'a config::RabbitMq, Topology),
}

/// The text to print, and whether all is in order: false when something could not be made. The error says what stands in the way of
/// even trying.
pub fn topics(config: &Config, args: &TopicsArgs) -> Result<(String, bool), String> {
    let needs = needs(config);
    if args.create && args.yes {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("cannot start a runtime: {error}"))?;
        return Ok(runtime.block_on(make(&needs, args)));
    }
    let text = match args.format {
        _ if args.create => formats::plan(&needs, args),
        TopicsFormat::Text => formats::text(&needs),
        TopicsFormat::Kafka => formats::kafka(&needs, args)?,
        TopicsFormat::Strimzi => formats::strimzi(&needs, args)?,
        TopicsFormat::Rabbitmq => formats::rabbitmq(&needs)?,
    };
    Ok((text, true))
}

fn needs(config: &Config) -> Vec<Need<'_>> {
    let mut needs = Vec::new();
    for output in &config.outputs {
        let what = match &output.kind {
            OutputKind::Kafka(kafka) => What::Kafka(kafka, topology::kafka_topics(config, kafka)),
            OutputKind::RabbitMq(rabbit) => What::RabbitMq(rabbit, topology::rabbitmq(config, rabbit)),
            OutputKind::Console => continue,
        };
        needs.push(Need { output: &output.name, what });
    }
    needs
}

/// Makes what is missing, output after output, whatever failed before.
async fn make(needs: &[Need<'_>], args: &TopicsArgs) -> (String, bool) {
    if needs.is_empty() {
        return (formats::NOTHING.to_owned(), true);
    }
    let (mut text, mut in_order) = (String::new(), true);
    for need in needs {
        let output = need.output;
        let mut say = |line: String| text.push_str(&format!("{output}: {line}\n"));
        match &need.what {
            What::Kafka(kafka, topics) => match create_topics(kafka, topics, args.partitions, args.replication).await {
                Ok(outcomes) => {
                    for (topic, made) in topics.iter().zip(outcomes) {
                        match made {
                            Made::Created => say(format!("topic {topic} created")),
                            Made::Exists => say(format!("topic {topic} exists")),
                            Made::Failed(reason) => {
                                in_order = false;
                                say(format!("topic {topic} failed: {reason}"));
                            }
                        }
                    }
                }
                Err(reason) => {
                    in_order = false;
                    say(format!("failed: {reason}"));
                }
            },
            What::RabbitMq(rabbit, topology) => {
                match create_topology(rabbit, &topology.exchange, &topology.queues).await {
                    Ok(lines) => lines.into_iter().for_each(|line| say(format!("{line} is there"))),
                    Err(reason) => {
                        in_order = false;
                        say(format!("failed: {reason}"));
                    }
                }
            }
        }
    }
    (text, in_order)
}

#[cfg(test)]
mod tests;
