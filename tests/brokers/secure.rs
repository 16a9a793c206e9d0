//! Brokers that let nobody in unproved, and one relay with an output for each way in and for each way to get it wrong. What is wrong has a line in
//! the log, costs nobody else anything, is never tried in plain text, and is mended by changing a file.

mod cases;
mod doors;

use std::process::Output;
use std::thread;
use std::time::Duration;

use crate::support::{Relay, event_id, finish, wait_until};
use cases::{Case, EXPIRED, cases};
use doors::{Doors, Files, PASSWORD, Trap, token_server};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Those that a changed file mends.
const MENDED: [&str; 6] =
    ["k-wrong-password", "k-wrong-scram", "k-wrong-secret", "k-unknown-ca", "r-wrong-password", "r-unknown-ca"];

/// Takes a minute or more: two brokers of its own kind start, 23 outputs each have to be let in or to say why not, and files and certificates change one after another.
#[test]
fn secured_brokers_let_the_relay_in_or_it_says_why_not_and_changed_files_need_no_restart() {
    let files = Files::new();
    let doors = Doors::open(&files);
    let traps = [Trap::start(), Trap::start()];
    let cases = cases(&files, &doors, token_server(), traps.each_ref().map(|trap| trap.address));
    let (welcome, refused): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.refusal.is_none());
    prepare_brokers(&doors, &welcome, &refused);
    let mut relay = Relay::start(&format!("[log]\nlevel = \"trace\"\n{}{}", config(&welcome), config(&refused)));
    let mut sent = Vec::new();
    let mut post = |relay: &Relay| {
        let body = format!(r#"{{"event":"sms","pbx_id":"one","text":"canary-text {}"}}"#, sent.len()).into_bytes();
        // On a machine under load the disk may be late; the brokers' health never decides whether we accept.
        wait_until("a webhook to be accepted", PATIENCE, || relay.post(&body).status == 200);
        sent.push(event_id("default", &body));
    };

    post(&relay);
    for Case { name, refusal, .. } in &cases {
        wait_until(&format!("{name} to be let in, or to say {refusal:?}"), PATIENCE, || match refusal {
            None => figure(&relay, "events_published_total", name) == 1.0,
            Some(refusal) => has_said(&relay, name, refusal) && figure(&relay, "events_pending", name) == 1.0,
        });
    }

    for name in MENDED {
        files.write(&format!("{name}.password"), PASSWORD);
        files.write(&format!("{name}.ca"), &files.authority());
    }
    for name in MENDED {
        wait_until(&format!("{name} to be let in"), PATIENCE, || figure(&relay, "events_published_total", name) == 1.0);
    }

    change_all(&files, &doors, |what, condition| {
        wait_until(what, PATIENCE, || {
            post(&relay);
            condition(&relay)
        });
    });
    assert!(relay.try_wait().is_none(), "the relay goes on");
    let whole: Vec<&str> = welcome.iter().map(|case| case.name).chain(MENDED).collect();
    for name in &whole {
        let what = format!("{name} to have nothing pending");
        wait_until(&what, PATIENCE, || figure(&relay, "events_pending", name) == 0.0);
    }
    assert_arrived(&doors, &whole, &sent);
    traps.iter().for_each(assert_only_tls_was_spoken);
    for out in [relay.stderr(), relay.get("/api/v1/status").expect("it answers").text()] {
        // As text, or as numbers, as lapin shows what RabbitMQ returns.
        let canaries = ["canary".to_owned(), format!("{:?}", b"canary").trim_matches(['[', ']']).to_owned()];
        let shown = out.lines().find(|line| canaries.iter().any(|canary| line.contains(canary)));
        assert!(shown.is_none(), "{shown:?}");
    }
}

fn config(cases: &[&Case]) -> String {
    cases.iter().map(|case| case.config.as_str()).collect()
}

/// Topics, exchange and queues: by the ways in that are tested, with each certificate, login and token, where they are let in.
fn prepare_brokers(doors: &Doors, welcome: &[&Case], refused: &[&Case]) {
    let operator = Relay::prepare(&config(welcome));
    let stranger = Relay::prepare(&config(refused));
    // Beside the rest, as most of those that do not let it in are waited for, one after another.
    let told = thread::spawn(move || finish(&mut stranger.command(&["check", "--live"]), PATIENCE));
    let made = operator.finish(&["topics", "--create", "--yes"]);
    assert!(made.status.success(), "{}", text(&made));
    for case in welcome.iter().filter(|case| case.name.starts_with("k-")) {
        assert!(text(&made).contains(&format!("{0}: topic {0} created", case.name)), "{}", text(&made));
    }
    let at_kafka = |case: &&&Case| case.name.starts_with("k-");
    let topics: Vec<&str> = refused.iter().filter(at_kafka).map(|case| case.name).collect();
    doors.brokers.create_topics(&topics, 1);
    for case in welcome.iter().chain(refused).filter(|case| !at_kafka(case) && case.name != "r-unbound") {
        doors.brokers.bind(case.name, &[case.name]);
    }
    let live = operator.finish(&["check", "--live"]);
    assert!(live.status.success(), "{}", text(&live));
    let live = told.join().expect("it ends");
    assert_eq!(live.status.code(), Some(1), "{}", text(&live));
    eprintln!("{}", text(&live));
}

/// What changes on a working day, while events come and wait where they must.
fn change_all(files: &Files, doors: &Doors, mut until: impl FnMut(&str, &dyn Fn(&Relay) -> bool)) {
    let up = |name: &'static str, value: f64| move |relay: &Relay| figure(relay, "output_up", name) == value;
    let said = |name: &'static str, what: &'static str| move |relay: &Relay| has_said(relay, name, what);
    let certify = |name: &str, (certificate, key): &(String, String)| {
        files.write(&format!("{name}.key"), key);
        files.write(&format!("{name}.certificate"), certificate);
    };
    let another = files.certificate("127.0.0.1", "by-another", 2099);
    // The file first, to show that it is used. RabbitMQ's connection outlives one that does not fit, Kafka's producer does not.
    for name in ["k-scram-512", "r-password"] {
        files.write(&format!("{name}.password"), "canary-next-password");
    }
    certify("k-mutual", &Files::new().certificate("127.0.0.1", "by-certificate", 2099));
    certify("r-certificate", &another);
    until("a password that Kafka does not know", &up("k-scram-512", 0.0));
    until("a certificate that Kafka does not know", &up("k-mutual", 0.0));
    until("another certificate at RabbitMQ", &said("r-certificate", "with the changed files"));
    let users = doors.rabbitmq_users();
    assert!(users.contains("by-another") && !users.contains("by-certificate"), "{users}");

    doors.brokers.kafka_passwords(&[("rolling", "canary-next-password")]);
    doors.rabbitmq_password("rolling", "canary-next-password");
    certify("k-mutual", &another);
    until("Kafka to know the password", &up("k-scram-512", 1.0));
    until("Kafka to know the certificate", &up("k-mutual", 1.0));

    let renew = |until: i32| {
        let (certificate, key) = files.certificate("127.0.0.1", "broker", until);
        files.write("rabbitmq-key.pem", &key);
        files.write("rabbitmq.pem", &certificate);
        doors.rabbitmq_certificate_changed();
    };
    renew(2001);
    until("an expired certificate", &said("r-password", EXPIRED));
    until("an expired certificate", &said("r-certificate", EXPIRED));
    renew(2099);
}

/// Each output's topic or queue has all of them, in order. More than once is allowed, as connections were lost.
fn assert_arrived(doors: &Doors, outputs: &[&str], sent: &[String]) {
    let (from_kafka, from_rabbitmq): (Vec<&str>, Vec<&str>) = outputs.iter().partition(|name| name.starts_with("k-"));
    let mut arrived = doors.brokers.read_kafka(&from_kafka, sent.len() * from_kafka.len());
    arrived.extend(doors.brokers.read_rabbitmq(&from_rabbitmq, sent.len() * from_rabbitmq.len()));
    eprintln!("{} events to each of {outputs:?}, {} arrived", sent.len(), arrived.len());
    for name in outputs {
        let mut ids: Vec<&str> = Vec::new();
        for message in arrived.iter().filter(|message| message.topic == *name) {
            let id = message.cloudevent["attributes"]["id"].as_str().expect("an id");
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        assert!(ids == sent, "{name}: {} of {} events, or in another order", ids.len(), sent.len());
    }
}

fn assert_only_tls_was_spoken(trap: &Trap) {
    let heard = trap.heard();
    assert!(heard.len() > 2, "tried again and again, not {} times", heard.len());
    for bytes in heard.iter().filter(|bytes| !bytes.is_empty()) {
        assert_eq!(bytes[0], 0x16, "no handshake: {}", String::from_utf8_lossy(bytes));
        assert!(!String::from_utf8_lossy(bytes).contains(PASSWORD));
    }
}

fn figure(relay: &Relay, name: &str, output: &str) -> f64 {
    relay.metrics().sum(&format!("sipsim_relay_{name}"), &[("output", output)])
}

/// A line of the log names the output and says this.
fn has_said(relay: &Relay, output: &str, what: &str) -> bool {
    relay.stderr().lines().any(|line| line.contains(&format!("output={output}")) && line.contains(what))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
