//! `check --live` at real brokers: what is missing, what is in order, and that asking publishes nothing.

use std::process::Output;

use serde_json::Value;

use crate::support::{Brokers, Relay};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn check_live_names_what_is_missing_with_its_command_and_then_finds_all_in_order() {
    let brokers = Brokers::start("all", &["--kafka-property", "message.max.bytes=20000000"]);
    let relay = Relay::prepare(&format!(
        "[outputs.kafka]\nbrokers = \"{}\"\n[outputs.rabbitmq]\nurls = [\"{}\"]\nmanagement_url = \"{}\"\n",
        brokers.kafka(),
        brokers.rabbitmq(),
        brokers.management()
    ));
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
    let queue = brokers.ask("GET", "/api/queues/%2f/sipsim.call", "").json();
    assert_eq!(queue["messages"].as_u64().unwrap_or(0), 0, "nothing was published by asking");

    brokers.ask("DELETE", "/api/queues/%2f/sipsim.sms", "");
    brokers.set_topic("sipsim.sms", ("max.message.bytes", "1000"));
    let small = relay.finish(&["check", "--live"]);
    let said = text(&small);
    assert_eq!(small.status.code(), Some(1), "{said}");
    assert!(said.contains("routing key sipsim.sms.sms: nothing is bound for it"), "{said}");
    assert!(said.contains("--entity-name sipsim.sms --add-config max.message.bytes="), "{said}");

    brokers.stop_one("kafka");
    let away = relay.finish(&["check", "--live"]);
    assert_eq!(away.status.code(), Some(1));
    assert!(text(&away).contains("Kafka cannot be asked"), "{}", text(&away));
}
