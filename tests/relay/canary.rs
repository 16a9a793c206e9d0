//! What never gets out: canaries go in through every door, and all that came out is searched for them.

use std::fs;
use std::time::Duration;

use crate::support::{Client, PATH, Relay, SECRET, now, sign, wait_until};

/// Each stands for what its name says.
const PHONE: &str = "+33612340987";
const TEXT: &str = "canary text of a message";
const PASSWORD: &str = "canary-password-of-a-broker";
const HEADER: &str = "canary-in-a-header";
const PLACE: &str = "canary-in-a-path";
const CALL: &str = "canary-call";
const CONTROL: &str = "\u{1b}[31mred\u{7}";

#[test]
fn no_canary_comes_out_and_no_control_character_reaches_the_log() {
    let config = "[outputs.console]\n\
        [outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n\
        [outputs.kafka.security]\nprotocol = \"SASL_PLAINTEXT\"\nmechanism = \"PLAIN\"\nusername = \"u\"\npassword_file = \"password\"\n\
        [outputs.rabbitmq]\nurls = [\"amqp://127.0.0.1:1/%2f\"]\nusername = \"u\"\npassword_file = \"password\"\n\
        [shutdown]\ndrain = \"1s\"\n[ingress]\nbody_max = \"64 KiB\"\nbuffered_max = \"1 MiB\"\n[log]\nlevel = \"trace\"\n";
    for format in ["text", "json"] {
        let mut relay = Relay::prepare(&format!("{config}format = \"{format}\"\n"));
        fs::write(relay.path("password"), PASSWORD).expect("a file");
        relay.run();
        let (signatures, mut seen) = send_everything(&relay);
        let console = [("output", "console")];
        wait_until("the console's to be published", Duration::from_secs(30), || {
            relay.metrics().get("sipsim_relay_events_pending", &console) == 0.0
        });
        for path in ["/metrics", "/", "/api/v1/status", "/readyz?verbose", &format!("/{PLACE}")] {
            seen.push((path.to_owned(), relay.get(path).expect("an answer").text()));
        }
        for arguments in [
            &["check"][..],
            &["check", "--format", "json"],
            &["journal", "status"],
            &["journal", "list"],
            &["journal", "verify"],
            &["verify", "--last"],
            &["topics"],
        ] {
            let output = relay.finish(arguments);
            let said = [output.stdout, output.stderr].concat();
            seen.push((arguments.join(" "), String::from_utf8_lossy(&said).into_owned()));
        }
        // Envelopes without what they carry; the subject is the call's id, by the contract.
        for mut envelope in relay.envelopes() {
            let attributes = envelope.as_object_mut().expect("an object");
            attributes.retain(|name, _| !matches!(&**name, "data" | "data_base64" | "subject" | "partitionkey"));
            seen.push(("an envelope".into(), envelope.to_string()));
        }
        relay.terminate(Duration::from_secs(30));
        let log = relay.stderr();
        let raw = log.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t'));
        assert_eq!(raw, None, "a control character in the log");
        assert!(log.lines().count() > 20, "there is a log: {log}");
        seen.push(("the log".into(), log));
        // Also as `Debug` shows bytes.
        let as_numbers = [PHONE, TEXT].map(|text| format!("{:?}", text.as_bytes()).trim_matches(['[', ']']).to_owned());
        for (place, text) in &seen {
            let [phone, words] = as_numbers.each_ref().map(String::as_str);
            let canaries = [PHONE, &PHONE[1..], TEXT, PASSWORD, HEADER, PLACE, SECRET, "\u{1b}[31m", phone, words];
            for canary in canaries.into_iter().chain(signatures.iter().map(String::as_str)) {
                assert!(!text.contains(canary), "{format}: {place} shows {canary:?}: {text}");
            }
            // `journal list` names calls to whoever may read the journal.
            assert!(!text.contains(CALL) || place.starts_with("journal"), "{format}: {place} shows a call's id");
        }
    }
}

/// Genuine and forged requests of every kind; gives the signatures and all answers.
fn send_everything(relay: &Relay) -> (Vec<String>, Vec<(String, String)>) {
    let genuine = format!(
        r#"{{"event":"incoming_call_end","pbx_id":"{CALL}","caller":"{PHONE}","status":"{TEXT}","message":"{TEXT}"}}"#
    );
    let mut odd = format!("not JSON at all: {PHONE} {TEXT} {CONTROL}").into_bytes();
    odd.push(0xff);
    let unknown = format!(r#"{{"event":"{TEXT}","pbx_id":"{CALL}","time":"{TEXT}"}}"#);
    let deep = format!("{}{TEXT}", "[".repeat(200));
    let large = TEXT.repeat(4000);
    let bodies: [&[u8]; 5] = [genuine.as_bytes(), &odd, unknown.as_bytes(), deep.as_bytes(), large.as_bytes()];
    let (mut signatures, mut answers) = (Vec::new(), Vec::new());
    let mut raw = |what: &str, bytes: &[u8]| {
        let mut client = Client::connect(relay.ingress).expect("a connection");
        let _ = client.send(bytes); // The relay may answer before it has read everything.
        let answer = client.answer().map_or_else(|_| String::new(), |a| format!("{:?}{}", a.headers, a.text()));
        answers.push((format!("the answer to {what}"), answer));
    };
    for body in bodies {
        for age in [0, 3600] {
            for secret in [SECRET, "another secret which nobody has", &format!("\"{SECRET}\"")] {
                let timestamp = (now() - age).to_string();
                let signature = sign(secret, &timestamp, body);
                let head = |method: &str, path: &str, signature: &str| {
                    format!(
                        "{method} {path} HTTP/1.1\r\nHost: {HEADER}\r\nUser-Agent: {HEADER}\r\nX-Webhook-Timestamp: {timestamp}\r\n\
                         X-Webhook-Signature: {signature}\r\nContent-Length: {}\r\n\r\n",
                        body.len()
                    )
                };
                for (what, head) in [
                    ("a webhook", head("POST", &format!("{PATH}?{PLACE}={PHONE}"), &signature)),
                    ("another path", head("POST", &format!("/{PLACE}/{PHONE}"), &signature)),
                    ("another method", head("CANARY", PATH, &signature)),
                    ("a malformed signature", head("POST", PATH, &format!("{HEADER}{CONTROL}"))),
                    ("a short signature", head("POST", PATH, &signature[1..])),
                ] {
                    raw(what, &[head.as_bytes(), body].concat());
                }
                signatures.push(signature);
            }
        }
    }
    raw("no HTTP", format!("{TEXT}{CONTROL} {PHONE}\r\n\r\n").as_bytes());
    raw("no version", format!("POST /{PLACE} {TEXT}\r\n\r\n").as_bytes());
    raw("a control character", format!("POST /{PLACE}{CONTROL} HTTP/1.1\r\nX: {CONTROL}\r\n\r\n").as_bytes());
    raw("large headers", format!("POST {PATH} HTTP/1.1\r\nX: {}\r\n\r\n", TEXT.repeat(2000)).as_bytes());
    raw("a cut body", format!("POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{TEXT}").as_bytes());
    (signatures, answers)
}

#[test]
fn the_journal_and_the_secrets_are_for_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let mut relay = Relay::prepare("[journal]\npath = \"new/journal.db\"\n");
    relay.run();
    let mode = |path: &str| fs::metadata(relay.path(path)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(relay.post(b"{}").status, 200);
    assert_eq!(mode("new"), 0o700);
    for file in fs::read_dir(relay.path("new")).expect("the folder") {
        let name = file.expect("an entry").file_name().into_string().expect("a name");
        assert_eq!(mode(&format!("new/{name}")) & 0o077, 0, "{name}");
    }
}
