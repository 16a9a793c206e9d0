//! The schemas say what the program publishes and reads, and later ones only add.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::{EVENTS, EXTRA, Relay, odd_bodies, program, succeed, wait_until};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What `sipsim-relay schema NAME` prints.
fn printed(name: &str) -> String {
    succeed(program(root()).args(["schema", name]), Duration::from_secs(10))
}

/// What two validators that are not ours say of values, each given as a schema's name and JSON text: `None` where it is valid.
fn judged(values: &[(String, String)]) -> Vec<(&'static str, Vec<Option<String>>)> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("values.json");
    let pairs: Vec<String> = values.iter().map(|(name, value)| format!("[{name:?},{value}]")).collect();
    fs::write(&file, format!("[{}]", pairs.join(","))).expect("a file");
    let tools: [(&str, &[&str]); 2] =
        [("python", &["tests/tools/validate.py"]), ("node", &["tests/tools/node", "tests/tools/validate.js"])];
    let judge = |(script, args): (&'static str, &[&str])| {
        let mut command = Command::new(root().join("scripts").join(script));
        let said = succeed(command.current_dir(root()).args(args).arg(&file), Duration::from_secs(300));
        let problems: Vec<Option<String>> = serde_json::from_str(&said).expect("a list");
        assert_eq!(problems.len(), values.len());
        (script, problems)
    };
    tools.map(judge).into()
}

#[test]
fn the_program_prints_the_files_of_the_repository() {
    let named = [("envelope", "envelope".to_owned()), ("configuration", "relay.toml".to_owned())];
    for (name, file) in EVENTS.map(|event| (event, format!("events/{event}"))).into_iter().chain(named) {
        let file = fs::read_to_string(root().join(format!("schemas/{file}.schema.json"))).expect("a schema");
        assert_eq!(printed(name), file, "{name}");
    }
}

/// Odd bodies whose fields are not of the documented type: what is genuine is forwarded all the same, and a schema tells it apart.
const OTHER_TYPES: [&str; 3] = ["a call that is null", "an array for a call", "true for a call"];

#[test]
fn whatever_is_published_is_valid() {
    let mut relay = Relay::prepare(&format!("{EXTRA}[outputs.console]\n"));
    relay.run();
    let mut bodies: Vec<(String, Vec<u8>)> = Vec::new();
    for entry in fs::read_dir(root().join("tests/payloads")).expect("the payloads") {
        let path = entry.expect("an entry").path();
        bodies.push((path.display().to_string(), fs::read(&path).expect("a payload")));
    }
    assert_eq!(bodies.len(), 17);
    bodies.extend(odd_bodies().into_iter().map(|odd| (odd.what.to_owned(), odd.body)));
    // Identical ones under several names are published once.
    let mut sent: BTreeMap<String, String> = BTreeMap::new();
    for (what, body) in &bodies {
        let answer = relay.post(body);
        assert_eq!(answer.status, 200, "{what}");
        let id = serde_json::from_str::<Value>(&answer.text()).expect("JSON")["id"].as_str().expect("an id").to_owned();
        sent.insert(id, what.clone());
    }
    let to = format!("http://{}/webhooks/sipsim", relay.ingress);
    succeed(
        &mut relay.command(&["simulate", "--to", &to, "--secret-file", "data/secrets/sipsim"]),
        Duration::from_secs(60),
    );
    wait_until("all to be published", Duration::from_secs(30), || {
        relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")]) == 0.0
    });
    let replay = relay.finish(&["journal", "replay", "--output", "console", "--event", "sms", "--yes"]);
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stderr));
    wait_until("a replayed event", Duration::from_secs(30), || relay.stdout().contains(r#""replayed":true"#));

    type Line = BTreeMap<String, Box<RawValue>>;
    let stdout = relay.stdout();
    let (mut values, mut what) = (Vec::new(), Vec::new());
    let mut schemas = BTreeMap::new();
    for line in stdout.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let members: Line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |name: &str| members.get(name).map(|raw| serde_json::from_str::<String>(raw.get()).expect("a text"));
        let id = text("id").expect("an id");
        let name = sent.get(&id).cloned().unwrap_or_else(|| "of the simulator".to_owned());
        values.push(("envelope".to_owned(), line.to_owned()));
        what.push(name.clone());
        if let (Some(schema), Some(data)) = (text("dataschema"), members.get("data")) {
            let event = schema.strip_prefix("urn:sipsim-relay:schema:").and_then(|rest| rest.strip_suffix(":1"));
            let event = event.unwrap_or_else(|| panic!("{schema}")).to_owned();
            *schemas.entry(event.clone()).or_insert(0) += 1;
            values.push((event, data.get().to_owned()));
            what.push(name);
        }
    }
    assert!(values.len() > 250, "{}", values.len());
    assert_eq!(schemas.len(), 15, "each event is among them: {schemas:?}");
    for (tool, problems) in judged(&values) {
        for ((problem, what), (schema, value)) in problems.iter().zip(&what).zip(&values) {
            let other = what == "a status" && (value.contains(r#""status":null"#) || value.contains(r#""status":3"#));
            let differs = schema != "envelope" && (OTHER_TYPES.contains(&what.as_str()) || other);
            let value = &value[..value.len().min(300)];
            assert_eq!(problem.is_some(), differs, "{tool}: {what}, {schema}: {problem:?} {value}");
        }
    }
}

#[test]
fn what_is_not_so_is_not_valid() {
    let payload = |name: &str| -> Value {
        let text = fs::read(root().join("tests/payloads").join(name)).expect("a payload");
        serde_json::from_slice(&text).expect("JSON")
    };
    let sms = payload("sms.inbound.json");
    let with = |value: &Value, key: &str, other: Value| {
        let mut value = value.clone();
        value[key] = other;
        value
    };
    let envelope = json!({
        "specversion": "1.0", "id": "2a6aa2f3-6b84-8ee9-856b-c7342dfe2406", "source": "/sipsim/default", "type": "com.sipsim.sms",
        "time": "2025-01-15T11:00:00Z", "datacontenttype": "application/json", "dataschema": "urn:sipsim-relay:schema:sms:1",
        "partitionkey": "2a6aa2f3-6b84-8ee9-856b-c7342dfe2406", "signedtime": "2025-01-15T11:00:00Z",
        "receivedtime": "2025-01-15T11:00:00.2Z", "relay": "r", "relayjournal": "j", "relaysequence": "00000000000000000001", "data": sms,
    });
    let without = |key: &str| {
        let mut envelope = envelope.clone();
        envelope.as_object_mut().expect("an object").remove(key);
        envelope
    };
    let mut cases = vec![
        ("sms", sms.clone(), true),
        ("sms", with(&sms, "new", json!([1])), true),
        ("sms", payload("test.json"), false),
        ("sms", with(&sms, "message", json!(5)), false),
        ("speech", payload("summary.json"), false),
        ("summary", payload("speech.json"), false),
        ("summary", json!({"event": "summary"}), true),
        ("tags", with(&payload("tags.json"), "tags", json!("vip")), false),
        ("incoming_call_end", with(&payload("incoming_call_end.missed.json"), "audio_path", json!(7)), false),
        ("envelope", envelope.clone(), true),
        ("envelope", with(&envelope, "traceparent", json!("of a later release")), true),
        ("envelope", with(&envelope, "replayed", json!(false)), false),
        ("envelope", with(&envelope, "callstatus", json!("ANSWER")), false),
        ("envelope", with(&envelope, "time", json!("2025-01-15T11:00:00+01:00")), false),
        ("envelope", with(&envelope, "id", json!("2a6aa2f3-6b84-4ee9-856b-c7342dfe2406")), false),
        ("envelope", with(&envelope, "data_base64", json!("aGk=")), false),
        ("envelope", with(&envelope, "relaysequence", json!(1)), false),
    ];
    cases.extend(
        ["id", "source", "type", "time", "partitionkey", "relaysequence", "data"]
            .map(|key| ("envelope", without(key), false)),
    );
    let values: Vec<_> = cases.iter().map(|(name, value, _)| (name.to_string(), value.to_string())).collect();
    for (tool, problems) in judged(&values) {
        for (problem, (name, value, valid)) in problems.iter().zip(&cases) {
            assert_eq!(problem.is_none(), *valid, "{tool}: {name} {value}: {problem:?}");
        }
    }
}

/// relay.toml with all that is off switched on, but for the keys that stand there as examples of both kinds of login.
fn manual() -> Value {
    let text = fs::read_to_string(root().join("relay.toml")).expect("relay.toml");
    let on = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned() + "\n",
        _ => line.to_owned() + "\n",
    };
    let table: toml::Table = text.lines().map(on).collect::<String>().parse().expect("TOML");
    serde_json::to_value(table).expect("JSON")
}

/// `value` with each of its keys misspelt in turn, and where.
fn misspelt(value: &Value, path: &str, found: &mut Vec<(String, Value)>, rebuild: &dyn Fn(Value) -> Value) {
    let Some(table) = value.as_object() else { return };
    for (key, inner) in table {
        let path = format!("{path}/{key}");
        // Names are the operator's, and what stands under `topics` or `properties` is judged by `check`.
        let is_name = ["/accounts/", "/outputs/"]
            .iter()
            .any(|section| path.strip_prefix(section).is_some_and(|rest| !rest.contains('/')));
        if !is_name {
            let mut other = table.clone();
            let moved = other.remove(key).expect("it is there");
            other.insert(format!("{key}x"), moved);
            found.push((path.clone(), rebuild(Value::Object(other))));
        }
        if matches!(key.as_str(), "topics" | "routing_keys" | "properties") {
            continue;
        }
        let with = |new: Value| {
            let mut other = table.clone();
            other.insert(key.clone(), new);
            rebuild(Value::Object(other))
        };
        misspelt(inner, &path, found, &with);
    }
}

#[test]
fn relay_toml_is_valid_and_no_misspelt_key_is() {
    let manual = manual();
    let mut cases = vec![("as it is".to_owned(), manual.clone(), true), ("empty".to_owned(), json!({}), true)];
    let mut wrong = Vec::new();
    misspelt(&manual, "", &mut wrong, &|value| value);
    assert!(wrong.len() > 60, "{}", wrong.len());
    cases.extend(wrong.into_iter().map(|(path, value)| (path, value, false)));
    for (text, valid) in [
        ("journal.retention = 0", true),
        ("journal.retention = 1", false),
        ("journal.retention = \"1 day\"", false),
        ("journal.size_max = \"8 mib\"", false),
        ("ingress.listen = \"localhost:8080\"", false),
        ("ingress.listen = \"[::1]:8080\"", true),
        ("ingress.tls.certificate_file = \"c\"", false),
        ("accounts.shop = { path = \"/shop\", secrets = \"s\" }", true),
        ("accounts.shop = { secrets = \"s\" }", false),
        ("accounts.Shop = { path = \"/shop\", secrets = \"s\" }", false),
        ("outputs.second = { type = \"kafka\", topic = \"t\" }", true),
        ("outputs.second = { topic = \"t\" }", false),
        ("outputs.kafka = { urls = [\"amqp://a/\"] }", false),
        ("outputs.kafka = { type = \"rabbitmq\", urls = [\"amqp://a/\"] }", true),
        ("outputs.kafka.security.password = \"p\"", false),
        ("log.level = \"warning\"", false),
    ] {
        let table: toml::Table = text.parse().expect("TOML");
        cases.push((text.to_owned(), serde_json::to_value(table).expect("JSON"), valid));
    }
    let values: Vec<_> = cases.iter().map(|(_, value, _)| ("configuration".to_owned(), value.to_string())).collect();
    for (tool, problems) in judged(&values) {
        for (problem, (what, _, valid)) in problems.iter().zip(&cases) {
            assert_eq!(problem.is_none(), *valid, "{tool}: {what}: {problem:?}");
        }
    }
}

/// What a change from `old` to `new` does to those who rely on `old`: nothing, if keys were added under `properties`, or texts changed.
fn broken(old: &Value, new: &Value, path: &str) -> Vec<String> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let gone = old.keys().filter(|key| !new.contains_key(*key)).map(|key| format!("{path}/{key} is gone"));
            let added = new.keys().filter(|key| !old.contains_key(*key) && !may_come(path, key));
            let added = added.map(|key| format!("{path}/{key} is new, and not among properties"));
            let kept = old.iter().filter(|(key, _)| *key != "description" || path.ends_with("/properties"));
            let inner = kept.filter_map(|(key, value)| Some(broken(value, new.get(key)?, &format!("{path}/{key}"))));
            gone.chain(added).chain(inner.flatten()).collect()
        }
        _ if old == new => Vec::new(),
        _ => vec![format!("{path} was {old} and is {new}")],
    }
}

/// New properties and definitions, and remarks on old ones.
fn may_come(path: &str, key: &str) -> bool {
    let in_a_map = path.ends_with("/properties") || path.ends_with("/$defs");
    in_a_map || key == "description" || key == "title"
}

#[test]
fn schemas_only_add_to_those_that_were_released() {
    let mut releases = 0;
    for entry in fs::read_dir(root().join("tests/schemas")).expect("the released schemas") {
        let file = entry.expect("an entry").path();
        let released: BTreeMap<String, Value> =
            serde_json::from_slice(&fs::read(&file).expect("a file")).expect("schemas by name");
        assert!(released.len() >= 17, "{}", file.display());
        for (name, old) in released {
            let new: Value = serde_json::from_str(&printed(&name)).expect("JSON");
            let broken = broken(&old, &new, &name);
            assert!(broken.is_empty(), "since {}: {broken:#?}", file.display());
        }
        releases += 1;
    }
    assert!(releases > 0);
}

#[test]
fn each_change_that_would_break_a_reader_is_noticed() {
    let old = json!({"description": "a", "type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": ["x", "y"]}},
        "required": ["a"]});
    let change = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        broken(&old, &new, "")
    };
    assert!(change(&|new| new["properties"]["c"] = json!({"type": "integer"})).is_empty(), "a field more");
    assert!(change(&|new| new["description"] = json!("said better")).is_empty());
    let breaking: [&dyn Fn(&mut Value); 7] = [
        &|new| drop(new["properties"].as_object_mut().expect("an object").remove("a")),
        &|new| new["properties"]["a"]["type"] = json!("integer"),
        &|new| new["properties"]["a"]["minLength"] = json!(1),
        &|new| new["properties"]["b"]["enum"] = json!(["x"]),
        &|new| new["required"] = json!(["a", "b"]),
        &|new| new["required"] = json!([]),
        &|new| new["additionalProperties"] = json!(false),
    ];
    for (index, breaks) in breaking.iter().enumerate() {
        assert_eq!(change(breaks).len(), 1, "change {index}");
    }
}
