//! What librdkafka's codes mean for a record: a closed list of what parks, a closed list of what holds, and "unknown" for the rest.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::publish::PublishError;

/// What a failed delivery, or a refused hand-over to librdkafka, means.
///
/// Parking is for codes by which a broker says of the record itself that it will not take it; a doubtful code is better tried again for ever,
/// and seen in `publish_failures_total{reason="unknown"}`, than given up once.
pub fn meaning(error: &KafkaError) -> PublishError {
    match error.rdkafka_error_code() {
        Some(code) => meaning_of_code(code),
        // A topic name with a NUL in it is the only other way to fail, and `check` refuses such a name.
        None => PublishError::Unknown("not handed over".to_owned()),
    }
}

fn meaning_of_code(code: Code) -> PublishError {
    match code {
        // Taken back by us, or failed only because it shared a batch with the record that is to blame (KIP-467).
        Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord => PublishError::Withdrawn,
        // Cannot be by construction (see `settings`), and must not lose the record if it is.
        Code::QueueFull => PublishError::Withdrawn,
        Code::Fatal | Code::GaplessGuarantee => PublishError::Fatal,

        // From the broker: over the topic's `max.message.bytes`, for every record of the batch. From librdkafka: over `message.max.bytes`.
        Code::MessageSizeTooLarge => PublishError::TooLarge,
        // The broker validated the record and will judge the same bytes the same way next time: no key on a compacted topic, a timestamp
        // outside `message.timestamp.before.max.ms`, headers on a topic whose message format has none.
        Code::InvalidRecord | Code::InvalidTimestamp | Code::UnsupportedForMessageFormat => {
            PublishError::Rejected(name(code))
        }

        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic => PublishError::TopicMissing,
        Code::TopicAuthorizationFailed => PublishError::Forbidden,
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => PublishError::NotEnoughReplicas,

        Code::MessageTimedOut | Code::OperationTimedOut | Code::TimedOutQueue | Code::RequestTimedOut => {
            PublishError::Timeout
        }
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::BrokerDestroy
        | Code::DestroyBroker => PublishError::Disconnected,

        // INVALID_MSG (a broken checksum) and MESSAGE_BATCH_TOO_LARGE are here on purpose: the first is the line's fault and the second the
        // batch's, so neither says that the record will never be taken.
        other => PublishError::Unknown(name(other)),
    }
}

/// The code's name, without librdkafka's sentence about it.
fn name(code: Code) -> String {
    format!("{code:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Disposition;
    use rdkafka::types::RDKafkaRespErr;

    #[test]
    fn only_what_says_never_of_the_record_itself_is_parked() {
        let parked: Vec<i32> = (-200..200)
            .filter(|&code| {
                let Ok(code) = RDKafkaRespErr::try_from(code) else { return false };
                meaning_of_code(code.into()).disposition() == Disposition::Park
            })
            .collect();
        // MSG_SIZE_TOO_LARGE, INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, INVALID_RECORD by their numbers in Kafka's protocol.
        assert_eq!(parked, [10, 32, 43, 87]);
    }

    #[test]
    fn a_topics_fault_holds_it_and_says_which() {
        let meaning = |code| meaning_of_code(code);
        assert_eq!(meaning(Code::UnknownTopic), PublishError::TopicMissing);
        assert_eq!(meaning(Code::UnknownTopicOrPartition), PublishError::TopicMissing);
        assert_eq!(meaning(Code::UnknownPartition), PublishError::TopicMissing);
        assert_eq!(meaning(Code::InvalidTopic), PublishError::TopicMissing);
        assert_eq!(meaning(Code::TopicAuthorizationFailed), PublishError::Forbidden);
        assert_eq!(meaning(Code::NotEnoughReplicas), PublishError::NotEnoughReplicas);
        assert_eq!(meaning(Code::NotEnoughReplicasAfterAppend), PublishError::NotEnoughReplicas);
    }

    #[test]
    fn what_we_took_back_is_no_failure_of_its_own() {
        for code in [Code::PurgeQueue, Code::PurgeInflight, Code::InvalidDifferentRecord, Code::QueueFull] {
            assert_eq!(meaning_of_code(code), PublishError::Withdrawn, "{code:?}");
        }
    }

    #[test]
    fn a_code_on_no_list_is_named_and_tried_again() {
        assert_eq!(meaning_of_code(Code::PolicyViolation), PublishError::Unknown("PolicyViolation".to_owned()));
        assert_eq!(meaning_of_code(Code::InvalidMessage), PublishError::Unknown("InvalidMessage".to_owned()));
    }
}
