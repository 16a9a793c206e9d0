//! `check --live` at real brokers: what is missing, what is in order, and that asking publishes nothing.

use std::process::Output;

use serde_json::Value;

use crate::support::{Brokers, Relay, free_address};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn check_live_names_what_is_missing_with_its_command_and_then_finds_all_in_order() {
    // With the names that the defaults make: no other test uses those in Kafka, and in RabbitMQ they are in a virtual host of this test's.
    let brokers = Brokers::shared();
    brokers.ask("PUT", "/api/vhosts/live", "");
    let rabbitmq = brokers.rabbitmq().replace("%2f", "live");
    let config = |kafka: &str| {
        format!(
            "[outputs.kafka]\nbrokers = \"{kafka}\"\n[outputs.rabbitmq]\nurls = [\"{rabbitmq}\"]\nmanagement_url = \"{}\"\n",
            brokers.management()
        )
    };
    let relay = Relay::prepare(&config(brokers.kafka()));
    let missing = relay.finish(&["check", "--live"]);
    let said = text(&missing);
    assert_eq!(missing.status.code(), Some(1), "{said}");
    for part in ["sipsim.tags", "missing", "the exchange sipsim is missing", "sipsim-relay topics --create --yes"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    assert!(relay.finish(&["topics", "--create", "--yes"]).status.success());
    let whole = relay.finish(&["check", "--live", "--format", "json"]);
    let said: Value = serde_json::from_slice(&whole.stdout).expect("JSON");
    assert_eq!((whole.status.code(), &said["problems"]), (Some(0), &serde_json::json!([])), "{said:#}");
    assert!(said["live"].to_string().contains("16 of 16 routing keys"), "{said:#}");
    let queue = brokers.ask("GET", "/api/queues/live/sipsim.call", "").json();
    assert_eq!(queue["messages"].as_u64().unwrap_or(0), 0, "nothing was published by asking");

    brokers.ask("DELETE", "/api/queues/live/sipsim.sms", "");
    brokers.set_topic("sipsim.sms", ("max.message.bytes", "1000"));
    let small = relay.finish(&["check", "--live"]);
    let said = text(&small);
    assert_eq!(small.status.code(), Some(1), "{said}");
    assert!(said.contains("routing key sipsim.sms.sms: nothing is bound for it"), "{said}");
    assert!(said.contains("--entity-name sipsim.sms --add-config max.message.bytes="), "{said}");

    relay.configure(&config(&free_address().to_string()));
    let away = relay.finish(&["check", "--live"]);
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away).contains("Kafka cannot be asked"), "{}", text(&away));
}
