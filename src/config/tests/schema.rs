//! `schemas/relay.toml.schema.json` has the configuration's keys, with their defaults, and no others.

use std::collections::BTreeMap;

use serde_json::Value;

use super::manual::existing;

const SCHEMA: &str = include_str!("../../../schemas/relay.toml.schema.json");

/// Every key of the schema with its default, `outputs.kafka` and so on standing for what an output of that type has.
fn leaves(root: &Value, schema: &Value, path: &str, found: &mut BTreeMap<String, Option<Value>>) {
    // An output's own type is the first that it may be.
    let schema = schema["anyOf"].get(0).filter(|first| first["$ref"].is_string()).unwrap_or(schema);
    let schema = match schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        Some("duration" | "size") | None => schema,
        Some(section) => &root["$defs"][section],
    };
    match schema["properties"].as_object() {
        Some(keys) => {
            for (key, schema) in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(root, schema, &path, found);
            }
        }
        // A table of templates by event: its keys are events.
        None if schema["type"] == "object" && schema.get("default").is_none() => {}
        None => drop(found.insert(path.to_owned(), schema.get("default").cloned())),
    }
}

#[test]
fn it_has_every_key_of_the_configuration_at_its_default_and_no_other() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut described = BTreeMap::new();
    leaves(&schema, &schema, "", &mut described);
    let mut expected: BTreeMap<String, Option<Value>> =
        existing().into_iter().map(|(key, default)| (key, default.map(|d| serde_json::to_value(d).unwrap()))).collect();
    expected.insert("instance".to_owned(), None); // It is the machine's.
    assert_eq!(described, expected);
}
