//! Requests without a right signature, in great number and of many kinds, alone and behind a genuine one: none is accepted.

use std::thread;

use crate::support::{Client, PATH, Relay, SECRET, now, sign};

const CLIENTS: u64 = 8;
const OTHER_SECRET: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
const OTHER_PATH: &str = "/webhooks/other";

pub fn none_is_accepted(count: u64) {
    let mut relay = Relay::prepare(&format!(
        "[accounts.default]\n[accounts.other]\npath = \"{OTHER_PATH}\"\nsecrets = \"data/other\"\n"
    ));
    std::fs::write(relay.path("data/other"), OTHER_SECRET).expect("a file");
    relay.run();
    let requests = count.div_ceil(CLIENTS);
    let clients = (0..CLIENTS).map(|_| {
        let address = relay.ingress;
        thread::spawn(move || {
            for number in 0..requests {
                // Behind it comes what would be genuine: on the connection of a forged request it is not read.
                let mut client = Client::connect(address).expect("it listens");
                client.send((forged() + &genuine()).as_bytes()).expect("it is read");
                assert_eq!(client.answer().expect("an answer").status, 401);
                if number % 100 == 0 {
                    let mut client = Client::connect(address).expect("it listens");
                    client.send((genuine() + &forged()).as_bytes()).expect("it is read");
                    assert_eq!([200, 401], [(); 2].map(|()| client.answer().expect("an answer").status));
                }
            }
        })
    });
    clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().expect("all were refused"));
    let metrics = relay.metrics();
    let outcome = |outcome| metrics.sum("sipsim_relay_webhooks_total", &[("outcome", outcome)]);
    let accepted = (CLIENTS * requests.div_ceil(100)) as f64;
    let refused = ["bad_signature", "malformed_header", "outside_tolerance"].map(outcome).iter().sum::<f64>();
    assert_eq!(refused, (CLIENTS * requests) as f64 + accepted);
    assert_eq!((outcome("accepted"), metrics.sum("sipsim_relay_events_accepted_total", &[])), (accepted, accepted));
}

fn genuine() -> String {
    let (body, timestamp) = (body(), now().to_string());
    request(PATH, &timestamp, &sign(SECRET, &timestamp, body.as_bytes()), &body)
}

fn body() -> String {
    format!(r#"{{"event":"sms","message":"{:x}"}}"#, fastrand::u128(..))
}

fn request(path: &str, timestamp: &str, signature: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: relay\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {signature}\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

/// A request that differs from a genuine one in what is proved.
fn forged() -> String {
    let (body, time) = (body(), now());
    let timestamp = time.to_string();
    let sign = |timestamp: &str, body: &str| sign(SECRET, timestamp, body.as_bytes());
    let genuine = sign(&timestamp, &body);
    let digit = |at: usize, change: &dyn Fn(u8) -> u8| {
        let mut digits = genuine.clone().into_bytes();
        digits[at] = change(digits[at]);
        String::from_utf8(digits).expect("digits")
    };
    let at = fastrand::usize(..64);
    let bit = 1 << fastrand::u32(..4);
    let flipped = |digit: u8| {
        let value = char::from(digit).to_digit(16).expect("hex") ^ bit;
        char::from_digit(value, 16).expect("hex") as u8
    };
    let other_time = (time + fastrand::i64(1..200)).to_string();
    let signature = match fastrand::u32(..20) {
        0..4 => format!("{:032x}{:032x}", fastrand::u128(..), fastrand::u128(..)),
        4..8 => digit(at, &flipped),
        8 => digit(at, &flipped).to_uppercase(),
        9 => sign(&timestamp, &format!("{body} ")),
        10 => sign(&timestamp, &super::forge::body()),
        11 => sign(&other_time, &body),
        12 => crate::support::sign(OTHER_SECRET, &timestamp, body.as_bytes()),
        13 => return request(OTHER_PATH, &timestamp, &genuine, &body),
        14 => return request(PATH, &timestamp, &genuine, &body.replacen("sms", "SMS", 1)),
        15 => return request(PATH, &other_time, &genuine, &body),
        16 => return request(PATH, &(time - 400).to_string(), &sign(&(time - 400).to_string(), &body), &body),
        17 => genuine.chars().rev().collect::<String>() + "0",
        18 => format!("{}{}", &genuine[32..], &genuine[..32]),
        _ => sign(&timestamp, ""),
    };
    request(PATH, &timestamp, &signature, &body)
}
