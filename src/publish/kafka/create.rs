//! Makes topics, for `topics --create`.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;

use super::{live, settings};
use crate::config;

/// How long the brokers may take to answer, connecting included, and to make the topics.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What became of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    Created,
    /// It was there before, with however many partitions; that is fine.
    Exists,
    Failed(String),
}

/// Makes the topics that are missing, with so many partitions and replicas, or the broker's defaults. One outcome for each topic, in order;
/// the error is one that concerns them all.
pub async fn create_topics(
    config: &config::Kafka,
    topics: &[String],
    partitions: Option<i32>,
    replication: Option<i16>,
) -> Result<Vec<Made>, String> {
    if config.security.mechanism.as_deref() == Some("OAUTHBEARER") {
        // rdkafka's administrator never polls the queue by which librdkafka asks for a token, so this one is asked without it.
        let outcomes = live::create(config, topics, partitions.unwrap_or(-1), replication.unwrap_or(-1)).await?;
        let made = |outcome: Result<bool, (i16, String)>| match outcome {
            Ok(true) => Made::Created,
            Ok(false) => Made::Exists,
            Err((code, words)) => Made::Failed(match RDKafkaRespErr::try_from(i32::from(code)) {
                Ok(code) => explain(code.into()),
                Err(_) => format!("the broker refused ({words})"),
            }),
        };
        return Ok(outcomes.into_iter().map(made).collect());
    }
    let settings = settings::connection(config)?;
    let admin = AdminClient::from_config_and_context(&settings, Silent).map_err(|error| settings::refusal(&error))?;
    let replication = i32::from(replication.unwrap_or(-1));
    let wanted: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| NewTopic::new(topic, partitions.unwrap_or(-1), TopicReplication::Fixed(replication)))
        .collect();
    let options = AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX));
    let outcomes =
        admin.create_topics(&wanted, &options).await.map_err(|error| unreachable(&error, &config.brokers))?;
    let made = |topic: &String| {
        let outcome = outcomes.iter().find(|outcome| match outcome {
            Ok(name) | Err((name, _)) => name == topic,
        });
        match outcome {
            Some(Ok(_)) => Made::Created,
            Some(Err((_, Code::TopicAlreadyExists))) => Made::Exists,
            Some(Err((_, code))) => Made::Failed(explain(*code)),
            None => Made::Failed("the broker said nothing of it".to_owned()),
        }
    };
    Ok(topics.iter().map(made).collect())
}

fn unreachable(error: &KafkaError, brokers: &str) -> String {
    match error.rdkafka_error_code() {
        Some(Code::OperationTimedOut | Code::BrokerTransportFailure) | None => {
            format!("no broker at {brokers} let us in within {} s", ANSWER_MAX.as_secs())
        }
        Some(code) => explain(code),
    }
}

fn explain(code: Code) -> String {
    let meaning = match code {
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => {
            "this user may not create it: grant CREATE on it or on the cluster"
        }
        Code::InvalidReplicationFactor => "there are fewer brokers than replicas: give a smaller --replication",
        Code::InvalidPartitions => "the cluster does not take that number of partitions",
        Code::PolicyViolation => "the cluster's policy forbids it, perhaps for its name, --partitions or --replication",
        Code::InvalidTopic => "Kafka does not take this name",
        Code::OperationTimedOut | Code::RequestTimedOut => "the brokers did not finish in time; it may still appear",
        Code::UnsupportedVersion | Code::UnsupportedFeature => {
            "the broker is older than Kafka 2.4 and has no defaults here: give --partitions and --replication"
        }
        _ => "the broker refused",
    };
    format!("{meaning} ({code:?})")
}

/// Says nothing: what goes wrong comes back as an outcome.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _line: &str) {}

    fn error(&self, _error: KafkaError, _words: &str) {}
}
