//! `relay.toml` at the root is the manual: every key, at its default.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::load::read;
use super::super::{Config, OutputKind};
use super::{good, load};

const MANUAL: &str = include_str!("../../../relay.toml");

/// The manual with all that is off switched on: what `#` stands before without a space.
fn uncommented() -> String {
    let on = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    MANUAL.lines().map(on).collect()
}

/// Keys that only the environment gives.
const ENVIRONMENT_ONLY: [&str; 4] = [
    "accounts.default.secret",
    "outputs.kafka.security.password",
    "outputs.kafka.security.client_secret",
    "outputs.rabbitmq.password",
];
/// Keys that stand for whichever event somebody wants to name.
const EXAMPLES: [&str; 2] = ["outputs.kafka.topics.test", "outputs.rabbitmq.routing_keys.test"];

/// Every value of a table under its dotted key; an empty table is a value.
fn leaves(table: &toml::Table, prefix: &str, found: &mut BTreeMap<String, toml::Value>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => leaves(inner, &format!("{key}."), found),
            value => drop(found.insert(key, value.clone())),
        }
    }
}

/// Every key that there is, with its default; those apart that only the environment gives.
pub(super) fn existing() -> BTreeMap<String, Option<toml::Value>> {
    let text = uncommented();
    let (_, _, _, asked) = read(Some((Path::new("relay.toml"), &text)), std::iter::empty());
    let sections: Vec<String> = asked.keys().map(|path| path[..path.len() - 1].join(".")).collect();
    let mut existing: BTreeMap<String, Option<toml::Value>> = BTreeMap::new();
    for (path, asked) in asked {
        let key = path.join(".");
        if !sections.contains(&key) && !ENVIRONMENT_ONLY.contains(&key.as_str()) && !EXAMPLES.contains(&key.as_str()) {
            existing.insert(key, asked.default);
        }
    }

    existing
}

#[test]
fn it_shows_every_key_and_each_at_its_default() {
    let text = uncommented();
    let mut shown = BTreeMap::new();
    leaves(&text.parse().unwrap(), "", &mut shown);
    for key in EXAMPLES {
        assert!(shown.remove(key).is_some(), "{key}");
    }

    let existing = existing();
    let names = |keys: Vec<&String>| keys.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(shown.keys().collect()), names(existing.keys().collect()));
    for (key, default) in existing {
        match default {
            Some(default) if key != "instance" => assert_eq!(shown[&key], default, "{key}"),
            _ => {} // Without default, an example stands there.
        }
    }
}

#[test]
fn as_it_is_it_changes_nothing() {
    assert_eq!(format!("{:?}", good(MANUAL)), format!("{:?}", Config::defaults()));
}

/// The keys without default are examples, and not all of them fit together: without those, the rest is in order.
#[test]
fn with_every_section_on_it_is_in_order() {
    let mut table: toml::Table = uncommented().parse().unwrap();
    let outputs = table["outputs"].as_table_mut().unwrap();
    let security = outputs["kafka"]["security"].as_table_mut().unwrap();
    security.retain(|key, _| key == "protocol");
    let rabbitmq = outputs["rabbitmq"].as_table_mut().unwrap();
    rabbitmq.retain(|key, _| !["ca_file", "certificate_file", "private_key_file"].contains(&key));
    let config = good(&table.to_string());
    assert_eq!(config.outputs.len(), 3);
    assert!(matches!(config.outputs[1].kind, OutputKind::Kafka(_)));
    assert_eq!(config.instance, "relay-1");
}

#[test]
fn it_names_every_variable_that_holds_a_secret() {
    for key in ENVIRONMENT_ONLY {
        let variable = format!("RELAY_{}", key.replace('.', "__").to_uppercase());
        assert!(MANUAL.contains(&variable), "{variable}");
    }
}

#[test]
fn its_examples_of_variables_and_properties_are_taken() {
    let environment = [("RELAY_OUTPUTS__KAFKA__BROKERS", "kafka-1:9092,kafka-2:9092")];
    assert!(load(MANUAL, &environment).is_ok());
    let text = r#"outputs.kafka.properties = { "linger.ms" = 5, "compression.type" = "lz4" }"#;
    assert!(load(text, &[]).is_ok());
}
