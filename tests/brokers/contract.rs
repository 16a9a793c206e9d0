//! Each of SIPSIM's payloads through the real program into real Kafka, in both of its modes, and real RabbitMQ. What has to come out was
//! written down by hand (the ids with Python's hashlib), and is read back by clients that are not ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::support::{Brokers, EVENTS, Message, Relay, SECRET, sign, wait_until};

/// The requests are as old as they say: so what is signed, and what comes of it, is the same in each run.
pub const TOLERANCE: &str = "[accounts.default]\ntolerance = \"36500d\"\n";
pub const SIGNED: &str = "1736942400";
pub const SIGNED_TIME: &str = "2025-01-15T12:00:00Z";

/// One payload and what becomes of it.
struct Row {
    /// A file of `tests/payloads`, or a body.
    payload: &'static str,
    id: &'static str,
    event: &'static str,
    group: &'static str,
    subject: Option<&'static str>,
    time: &'static str,
    call_status: Option<&'static str>,
}

const fn row(
    payload: &'static str,
    id: &'static str,
    [event, group]: [&'static str; 2],
    subject: Option<&'static str>,
    time: &'static str,
    call_status: Option<&'static str>,
) -> Row {
    Row { payload, id, event, group, subject, time, call_status }
}

/// No page of SIPSIM's shows the body of this one; that it has these fields is a guess that nothing depends on.
const CHAIN_END: &str = r#"{"event":"incoming_call_end_chain_member_call","caller":"+33612345678","receiver":"101","time":"2025-01-15T10:30:04+01:00","pbx_id":"call_abc123","status":"noanswer"}"#;

const CALL: Option<&str> = Some("call_abc123");
const OUT: Option<&str> = Some("call_def456");
const NUMBER: Option<&str> = Some("12345");

#[rustfmt::skip] // A line is a payload.
const ROWS: [Row; 18] = [
    row("incoming_call_start.json", "1a405bd1-773b-86a7-a033-e11f6fe37a48", ["incoming_call_start", "call"], CALL, "2025-01-15T10:30:00Z", None),
    row("incoming_call_start_chain_member_call.json", "c85bf0d7-fef6-8bee-a9b5-5dce6d6803fa", ["incoming_call_start_chain_member_call", "call"], CALL, "2025-01-15T10:30:02Z", None),
    row(CHAIN_END, "8292fde2-6ec0-8a79-8d3b-67e8da31f630", ["incoming_call_end_chain_member_call", "call"], CALL, "2025-01-15T09:30:04Z", Some("no_answer")),
    row("incoming_call_answer.json", "516bbeb7-d30a-838b-adef-5bd018adda98", ["incoming_call_answer", "call"], CALL, "2025-01-15T10:30:05Z", None),
    row("incoming_call_end.answered.json", "e35ff2d3-0f28-80bd-a037-8bb7aaa3a0e5", ["incoming_call_end", "call"], CALL, "2025-01-15T10:35:00Z", Some("answered")),
    row("incoming_call_end.missed.json", "23750dba-6281-8662-aa75-972aa3e3882c", ["incoming_call_end", "call"], CALL, "2025-01-15T10:30:30Z", Some("missed")),
    row("outgoing_call_start.json", "56f20bf3-0bf0-89e8-b060-f2f20f57ca4b", ["outgoing_call_start", "call"], OUT, "2025-01-15T14:00:00Z", None),
    row("outgoing_call_answer.json", "fff5312f-334e-81d4-b411-cd7bd7c5399f", ["outgoing_call_answer", "call"], OUT, "2025-01-15T14:00:08Z", None),
    row("outgoing_call_end.answered.json", "3f0de75a-2b93-81dd-9301-b7e40ca25e36", ["outgoing_call_end", "call"], OUT, "2025-01-15T14:05:00Z", Some("answered")),
    row("outgoing_call_end.unanswered.json", "f54eb64d-d8ef-81a1-b547-82db9f773916", ["outgoing_call_end", "call"], OUT, "2025-01-15T14:00:30Z", Some("no_answer")),
    row("voicemail.json", "1fe0ee60-8ac9-8e27-8065-fd8fdfe99e1b", ["voicemail", "call"], CALL, "2025-01-15T10:31:00Z", None),
    row("tags.json", "fe01ce5f-fb7f-8769-b13b-a8fbc64c5d5a", ["tags", "call"], CALL, "2025-01-15T10:36:00Z", None),
    row("speech.json", "2bc50f4f-e60a-8dc9-88ba-d836ffe22df6", ["speech", "ai"], NUMBER, SIGNED_TIME, None),
    row("summary.json", "0d33d37a-6088-879e-87b9-c0f37a8d190a", ["summary", "ai"], NUMBER, SIGNED_TIME, None),
    row("rating.json", "887b455b-15dd-8705-8c66-73aefc616e9b", ["rating", "ai"], NUMBER, SIGNED_TIME, None),
    row("sms.inbound.json", "2a6aa2f3-6b84-8ee9-856b-c7342dfe2406", ["sms", "sms"], None, "2025-01-15T11:00:00Z", None),
    row("sms.outbound.json", "ce54efd2-5c9f-85ce-93e9-1665978f02c0", ["sms", "sms"], None, "2025-01-15T11:05:00Z", None),
    row("test.json", "7a63335e-6bc2-883a-b658-bdf9079161ab", ["test", "test"], Some("test_000000"), "2025-01-15T10:30:00Z", None),
];

impl Row {
    fn body(&self) -> Vec<u8> {
        if self.payload.starts_with('{') {
            return self.payload.into();
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads");
        fs::read(folder.join(self.payload)).expect("a payload")
    }

    fn key(&self) -> &'static str {
        self.subject.unwrap_or(self.id)
    }

    /// What is the same in each run.
    fn attributes(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::from([
            ("specversion", json!("1.0")),
            ("id", json!(self.id)),
            ("source", json!("/sipsim/default")),
            ("type", json!(format!("com.sipsim.{}", self.event))),
            ("time", json!(self.time)),
            ("datacontenttype", json!("application/json")),
            ("dataschema", json!(format!("urn:sipsim-relay:schema:{}:1", self.event))),
            ("partitionkey", json!(self.key())),
            ("signedtime", json!(SIGNED_TIME)),
            ("relay", json!("relay-of-the-test")),
        ]);
        all.extend(self.subject.map(|subject| ("subject", json!(subject))));
        all.extend(self.call_status.map(|status| ("callstatus", json!(status))));
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What every message about one event has in common, whichever way it took.
struct Seen {
    journal: String,
    number: u64,
    received: OffsetDateTime,
}

/// Takes from `attributes` what differs from run to run, and judges its form.
fn take_varying(attributes: &mut BTreeMap<String, Value>) -> Seen {
    let mut take = |name: &str| match attributes.remove(name) {
        Some(Value::String(text)) => text,
        other => panic!("{name} is {other:?}"),
    };
    let (journal, number, received) = (take("relayjournal"), take("relaysequence"), take("receivedtime"));
    assert!(!journal.is_empty());
    assert_eq!(number.len(), 20, "zero-padded to 20 digits: {number}");
    assert!(received.ends_with('Z'), "UTC: {received}");
    let received = OffsetDateTime::parse(&received, &Rfc3339).expect("RFC 3339");
    Seen { journal, number: number.parse().expect("digits"), received }
}

fn signature(body: &[u8]) -> String {
    sign(SECRET, SIGNED, body)
}

fn check_structured(row: &Row, message: &Message, content_type: Option<&str>) -> Seen {
    let body = row.body();
    assert_eq!(content_type, Some("application/cloudevents+json; charset=UTF-8"), "{}", row.payload);
    let text = message.text();
    let mut attributes: BTreeMap<String, Value> = serde_json::from_str(text).expect("JSON");
    attributes.remove("data").expect("data");
    let seen = take_varying(&mut attributes);
    assert_eq!(attributes, row.attributes(), "{}", row.payload);
    let data = String::from_utf8(body).expect("UTF-8");
    assert!(text.ends_with(&format!(r#","data":{}}}"#, data.trim_end())), "data is not as sent: {text}");
    check_cloudevent(row, message, "structured");
    seen
}

/// What the `cloudevents` package makes of it.
fn check_cloudevent(row: &Row, message: &Message, mode: &str) {
    assert_eq!(message.invalid_data, None, "{}", row.payload);
    let found = &message.cloudevent;
    assert_eq!(found["mode"], mode, "{}: {found}", row.payload);
    let mut attributes: BTreeMap<String, Value> =
        serde_json::from_value(found["attributes"].clone()).unwrap_or_else(|_| panic!("{found}"));
    take_varying(&mut attributes);
    let mut expected = row.attributes();
    expected.insert("time".into(), row.time.replace('Z', "+00:00").into()); // It parses this one, and prints it its own way.
    assert_eq!(attributes, expected, "{} as `cloudevents` sees it", row.payload);
    let data: Value = serde_json::from_str(found["data"].as_str().expect("parsed data")).expect("JSON");
    assert_eq!(data, serde_json::from_slice::<Value>(&row.body()).expect("JSON"), "{}", row.payload);
}

fn check_binary(row: &Row, message: &Message) -> Seen {
    let body = row.body();
    assert_eq!(message.value.as_deref(), Some(&body[..]), "{}: the value is the body itself", row.payload);
    let mut headers: BTreeMap<String, Value> =
        message.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    assert_eq!(headers.len(), message.headers.len(), "none stands there twice");
    for (name, value) in [
        ("x-webhook-signature", &*signature(&body)),
        ("x-webhook-timestamp", SIGNED),
        ("content-type", "application/json"),
    ] {
        assert_eq!(headers.remove(name), Some(value.into()), "{}: {name}", row.payload);
    }
    let strip = |(name, value): (String, Value)| (name.strip_prefix("ce_").expect("an attribute").to_owned(), value);
    let mut attributes: BTreeMap<String, Value> = headers.into_iter().map(strip).collect();
    let seen = take_varying(&mut attributes);
    let mut expected = row.attributes();
    expected.remove("datacontenttype");
    assert_eq!(attributes, expected, "{}", row.payload);
    check_cloudevent(row, message, "binary");
    seen
}

/// The one with this id; its sequence tells apart what has the same.
fn pick<'a>(messages: &'a [Message], row: &Row) -> &'a Message {
    let has_id = |message: &&Message| message.cloudevent["attributes"]["id"] == row.id;
    let found: Vec<&Message> = messages.iter().filter(has_id).collect();
    assert_eq!(found.len(), 1, "{} is there once and only once", row.payload);
    found[0]
}

pub fn nothing_pending(relay: &Relay, outputs: &[&str]) {
    for output in outputs {
        wait_until("nothing to be pending", Duration::from_secs(60), || {
            relay.metrics().get("sipsim_relay_events_pending", &[("output", output)]) == 0.0
        });
    }
}

/// `[outputs.…]` for both brokers. `structured`, `binary` and `keys` are the templates of topics and routing keys.
pub fn outputs(brokers: &Brokers, structured: &str, binary: &str, keys: &str) -> String {
    format!(
        "[outputs.kafka]\nbrokers = \"{kafka}\"\ntopic = \"{structured}\"\n\
         [outputs.binary]\ntype = \"kafka\"\nmode = \"binary\"\nbrokers = \"{kafka}\"\ntopic = \"{binary}\"\n\
         [outputs.rabbitmq]\nurls = [\"{rabbitmq}\"]\nrouting_key = \"{keys}\"\n",
        kafka = brokers.kafka(),
        rabbitmq = brokers.rabbitmq(),
    )
}

/// All that lies in topics of both modes and in queues, each with so many messages. One reader for all topics, and both brokers' at once, as a reader
/// takes longer to start than to read.
pub fn read(
    brokers: &Brokers,
    structured: &[&str],
    binary: &[&str],
    queues: &[&str],
    count: usize,
) -> [Vec<Message>; 3] {
    let topics = [structured, binary].concat();
    thread::scope(|scope| {
        let kafka = scope.spawn(|| brokers.read_kafka(&topics, 2 * count));
        let in_rabbitmq = brokers.read_rabbitmq(queues, count);
        let kafka = kafka.join().expect("Kafka is read").into_iter();
        let (in_kafka, in_binary) = kafka.partition(|message| structured.contains(&&*message.topic));
        [in_kafka, in_binary, in_rabbitmq]
    })
}

/// Takes 10 s: clients in Python read and judge every message, and their packages take seconds to load.
#[test]
fn every_payload_arrives_as_written_down_in_kafka_in_both_modes_and_in_rabbitmq() {
    let brokers = Brokers::shared();
    let structured = EVENTS.map(|event| format!("payloads.{event}"));
    let binary = ["call", "ai", "sms", "test"].map(|group| format!("binary.{group}"));
    let [structured, binary] =
        [&structured[..], &binary[..]].map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
    brokers.create_topics(&[&structured[..], &binary].concat(), 3);
    for group in ["call", "ai", "sms", "test"] {
        brokers.bind(&format!("payloads.{group}"), &[&format!("sipsim.{group}.*")]);
    }
    let config = outputs(&brokers, "payloads.{event}", "binary.{group}", "sipsim.{group}.{event}");
    let before = OffsetDateTime::now_utc() - Duration::from_millis(1);
    let relay = Relay::start(&format!("instance = \"relay-of-the-test\"\n{TOLERANCE}{config}"));
    for row in &ROWS {
        let body = row.body();
        let headers = [("X-Webhook-Timestamp", SIGNED), ("X-Webhook-Signature", &*signature(&body))];
        let answer = relay.post_with(&headers, &body);
        assert_eq!((answer.status, answer.text()), (200, format!(r#"{{"id":"{}"}}"#, row.id)), "{}", row.payload);
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    nothing_pending(&relay, &["kafka", "binary", "rabbitmq"]);
    let after = OffsetDateTime::now_utc();

    let queues = ["payloads.call", "payloads.ai", "payloads.sms", "payloads.test"];
    let [in_kafka, in_binary, in_rabbitmq] = read(&brokers, &structured, &binary, &queues, ROWS.len());
    for all in [&in_kafka, &in_binary, &in_rabbitmq] {
        assert_eq!(all.len(), ROWS.len());
    }
    let mut journals = Vec::new();
    for (index, row) in ROWS.iter().enumerate() {
        let signature = signature(&row.body());
        let proof = [("x-webhook-signature", &*signature), ("x-webhook-timestamp", SIGNED)];

        let message = pick(&in_kafka, row);
        assert_eq!(message.topic, format!("payloads.{}", row.event));
        assert_eq!(message.key.as_deref(), Some(row.key()));
        let mut headers: Vec<(&str, &str)> = message.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
        headers.sort_unstable();
        let content_type = ("content-type", "application/cloudevents+json; charset=UTF-8");
        assert_eq!(headers, [&[content_type][..], &proof].concat(), "{}: and no ce_… ones", row.payload);
        let first = check_structured(row, message, message.header("content-type"));
        assert!((before..=after).contains(&first.received), "{} of {before} to {after}", first.received);
        assert_eq!(first.number, index as u64 + 1, "{} was accepted in this place", row.payload);

        let message = pick(&in_binary, row);
        assert_eq!(message.topic, format!("binary.{}", row.group));
        assert_eq!(message.key.as_deref(), Some(row.key()));
        let second = check_binary(row, message);
        assert_eq!((second.number, second.received), (first.number, first.received), "{}: the same event", row.payload);

        let message = pick(&in_rabbitmq, row);
        assert_eq!(message.topic, format!("sipsim.{}.{}", row.group, row.event));
        let headers: Vec<(&str, &str)> = message.headers.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(headers, proof, "{}", row.payload);
        let properties = json!({
            "content_type": "application/cloudevents+json; charset=UTF-8",
            "message_id": row.id,
            "type": format!("com.sipsim.{}", row.event),
            "timestamp": first.received.unix_timestamp(),
            "app_id": "sipsim-relay",
            "delivery_mode": 2,
        });
        assert_eq!(message.properties, properties, "{}", row.payload);
        let third = check_structured(row, message, message.properties["content_type"].as_str());
        assert_eq!((third.number, third.received), (first.number, first.received), "{}: the same event", row.payload);
        assert_eq!(message.text(), pick(&in_kafka, row).text(), "both brokers have the same envelope");
        journals.extend([first.journal, second.journal, third.journal]);
    }
    journals.sort_unstable();
    journals.dedup();
    assert_eq!(journals.len(), 1, "one journal file, one id");
}

/// Takes 10 s on a busy machine: clients in Python read the messages, and their packages take seconds to load.
#[test]
fn the_vectors_of_the_wire_contract_are_accepted_and_carried() {
    // Published beside PROTOCOL §1.1's form of the signature; Python and OpenSSL agree on them.
    const VECTORS: [(&str, &str); 2] = [
        (
            r#"{"event":"test","pbx_id":"test_000000"}"#,
            "c7f86e4e9314998cde8f1113e20ce9cd37ba170778263fffe81b7c6d6e1dde92",
        ),
        (
            r#"{"event":"sms","message":"Été à 14h"}"#,
            "996d4ff9562caff6a3ee526ad7740ceb01b8e00c4e4a471eccebdf7d8b759837",
        ),
    ];
    let brokers = Brokers::shared();
    brokers.create_topics(&["vectors", "vectors.binary"], 1);
    brokers.bind("vectors", &["vectors"]);
    let mut relay =
        Relay::prepare(&format!("{TOLERANCE}{}", outputs(&brokers, "vectors", "vectors.binary", "vectors")));
    relay.write_secret("sipsim", "example-secret\n"); // Editors end a file with a line break.
    relay.run();
    for (body, signature) in VECTORS {
        let headers = [("X-Webhook-Timestamp", "1736937000"), ("X-Webhook-Signature", signature)];
        assert_eq!(relay.post_with(&headers, body.as_bytes()).status, 200, "{body}");
    }
    let [in_kafka, in_binary, in_rabbitmq] = read(&brokers, &["vectors"], &["vectors.binary"], &["vectors"], 2);
    for (message, (body, signature)) in in_binary.iter().zip(VECTORS) {
        assert_eq!(message.text(), body);
        assert_eq!(message.header("x-webhook-signature"), Some(signature));
    }
    let text = |message: &Message| message.text().rsplit_once(r#""data":"#).expect("data").1.to_owned();
    let expected = VECTORS.map(|(body, _)| format!("{body}}}"));
    assert_eq!(in_kafka.iter().map(text).collect::<Vec<_>>(), expected);
    assert_eq!(in_rabbitmq.iter().map(text).collect::<Vec<_>>(), expected);
}
