//! What librdkafka's codes mean for a record: a closed list of what parks, a closed list of what holds, and "unknown" for the rest.

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::publish::PublishError;

/// What a failed delivery, or a refused hand-over to librdkafka, means.
///
/// Gone through for librdkafka 2.12.1: every code of Kafka's protocol that a produce request may get, and every one of librdkafka's own that a
/// delivery report may carry. Parking is for codes by which a broker says of the record itself that it will not take it; a doubtful code is better tried again for ever,
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
        // ---- Taken back.
        // By us, or failed only because it shared a batch with the record that is to blame (KIP-467).
        Code::PurgeQueue | Code::PurgeInflight | Code::InvalidDifferentRecord => PublishError::Withdrawn,
        // Cannot be by construction (see `settings`), and must not lose the record if it is.
        Code::QueueFull => PublishError::Withdrawn,
        Code::Fatal | Code::GaplessGuarantee => PublishError::Fatal,

        // ---- The record's, once it failed alone; the topic's if smaller ones fail too (see `Lane`).
        // From the broker: over the topic's `max.message.bytes`, for every record of the batch. From librdkafka: over `message.max.bytes`.
        Code::MessageSizeTooLarge => PublishError::TooLarge,
        // Over the topic's `segment.bytes`: the batch, and a large record is one by itself.
        Code::MessageBatchTooLarge => PublishError::TooLarge,
        // The broker looked into the record and will judge the same bytes the same way: no key on a compacted topic, a value that the schema
        // of its topic forbids (Confluent).
        Code::InvalidRecord => PublishError::Rejected(name(code)),

        // ---- The topic's: whatever is sent meets the same.
        // librdkafka stamps a record when it is handed over, so each try has a fresh time. Then it is the topic's
        // `message.timestamp.before.max.ms` or `.after.max.ms` (an hour by default, since Kafka 4), or one of the clocks.
        Code::InvalidTimestamp => PublishError::TopicRejects(name(code)),
        // Its message format knows no headers, and each of our records has some.
        Code::UnsupportedForMessageFormat => PublishError::TopicRejects(name(code)),
        // The `compression.type` among our properties, which this broker or topic does not know.
        Code::UnsupportedCompressionType => PublishError::TopicRejects(name(code)),
        // A policy of the broker's that this topic does not meet.
        Code::PolicyViolation => PublishError::TopicRejects(name(code)),
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicId
        | Code::InvalidTopic => PublishError::TopicMissing,
        // The cluster's is IdempotentWrite, which Kafka before 2.8 asks for.
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed => PublishError::Forbidden,
        // librdkafka tries these again by itself, so they never come; its silence does.
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend | Code::ISRInsufficient => {
            PublishError::NotEnoughReplicas
        }

        // ---- The line's or a broker's: tried again.
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

        // ---- Unknown: tried again, named in the log, and shown by its event's number once that takes long. Among them on purpose:
        // INVALID_MSG: a broken checksum, which is the line's fault. librdkafka tries it again first.
        // KAFKA_STORAGE_ERROR, LOG_DIR_NOT_FOUND: a broker's disk; another becomes leader. librdkafka tries the first again by itself.
        // THROTTLING_QUOTA_EXCEEDED, OPERATION_NOT_ATTEMPTED, FENCED_LEADER_EPOCH, UNKNOWN_LEADER_EPOCH, REPLICA_NOT_AVAILABLE: they pass.
        // INVALID_REQUIRED_ACKS, UNSUPPORTED_VERSION, INVALID_REQUEST: a broker or a proxy that does not take what Kafka's does.
        // INVALID_PRODUCER_EPOCH, UNKNOWN_PRODUCER_ID, OUT_OF_ORDER_SEQUENCE_NUMBER, DUPLICATE_SEQUENCE_NUMBER: librdkafka's own to settle, or
        // it gives the producer up, which comes as FATAL.
        // UNKNOWN_SERVER_ERROR: the broker does not say what; some do so for a moment.
        // Codes of groups, transactions, tokens and administration: they answer nothing that is asked here.
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
        // MSG_SIZE_TOO_LARGE, RECORD_LIST_TOO_LARGE, INVALID_RECORD by their numbers in Kafka's protocol.
        assert_eq!(parked, [10, 18, 87]);
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
        // INVALID_TIMESTAMP, UNSUPPORTED_FOR_MESSAGE_FORMAT, POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE.
        for code in [
            Code::InvalidTimestamp,
            Code::UnsupportedForMessageFormat,
            Code::PolicyViolation,
            Code::UnsupportedCompressionType,
        ] {
            assert_eq!(
                (meaning(code).disposition(), meaning(code).reason()),
                (Disposition::Hold, "rejected"),
                "{code:?}"
            );
        }
    }

    #[test]
    fn what_we_took_back_is_no_failure_of_its_own() {
        for code in [Code::PurgeQueue, Code::PurgeInflight, Code::InvalidDifferentRecord, Code::QueueFull] {
            assert_eq!(meaning_of_code(code), PublishError::Withdrawn, "{code:?}");
        }
    }

    #[test]
    fn a_code_on_no_list_is_named_and_tried_again() {
        assert_eq!(meaning_of_code(Code::KafkaStorageError), PublishError::Unknown("KafkaStorageError".to_owned()));
        assert_eq!(meaning_of_code(Code::InvalidMessage), PublishError::Unknown("InvalidMessage".to_owned()));
    }
}
