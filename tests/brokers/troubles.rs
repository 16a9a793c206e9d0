//! Brokers in trouble under load, each for as short a time as shows it. The longer ones are in `tests/faults`.

use std::time::Duration;

use crate::support::{fates, troubles};

#[test]
fn lines_that_are_cut_slowed_and_refused_delay_events_and_nothing_else() {
    troubles::lines_cut_slowed_and_refused("lines", 4);
}

/// Takes 10 s: a broker goes on confirming for seconds for a topic that it is about to remove.
#[test]
fn a_deleted_topic_holds_its_events_until_it_is_made_again() {
    troubles::topic_deleted("deleted");
}

/// Takes 10 s: rights are given by a Python client, and what is held is tried again after pauses that grow.
#[test]
fn a_topic_that_kafka_forbids_is_held_until_the_right_is_granted() {
    troubles::kafka_forbids("acl");
}

#[test]
fn a_fatal_error_of_librdkafka_costs_a_producer_and_no_event() {
    troubles::fatal_errors("fatal", 2);
}

/// Takes most of a minute: Kafka starts three times, and in between a race within librdkafka has to be lost.
#[test]
fn a_kafka_that_is_fenced_again_and_again_leaves_no_output_without_a_broker() {
    troubles::fenced("fenced");
}

/// Takes 10 to 20 s: what is held is tried again after pauses that grow.
#[test]
fn a_missing_exchange_and_one_of_another_type_hold_events() {
    troubles::exchange_gone_and_of_another_type("exchange");
}

/// Takes 10 s: what is held is tried again after pauses that grow, and `rabbitmqctl` and `check --live` need some seconds.
#[test]
fn a_routing_key_that_rabbitmq_forbids_is_held_and_the_others_go_on() {
    troubles::rabbitmq_forbids("forbidden");
}

#[test]
fn a_record_too_large_for_rabbitmq_is_parked_alone() {
    troubles::too_large_for_rabbitmq("large-rabbit");
}

/// Takes 10 s: five of them only pass, to count what is tried meanwhile.
#[test]
fn a_thousand_held_events_do_not_storm_the_broker() {
    troubles::held_events_do_not_storm("storm", Duration::from_secs(5));
}

#[test]
fn a_full_queue_that_drops_its_oldest_has_confirmed_them() {
    fates::full_queue_that_drops("drop");
}

/// Takes 10 s: what is held is tried again after pauses that grow.
#[test]
fn of_two_queues_the_full_one_holds_the_key_and_the_other_gets_duplicates() {
    fates::one_of_two_queues_full("two-queues");
}
