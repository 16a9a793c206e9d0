//! What is not proved to be from SIPSIM, or is too much, is not let in.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Answer, Client, PATH, Relay, SECRET, forged, now, sign, wait_until};

const BODY: &[u8] = br#"{"event":"sms","message":"forged"}"#;

fn nothing_came_in(relay: &Relay) {
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("sipsim_relay_events_accepted_total", &[]), 0.0);
    assert_eq!(metrics.get("sipsim_relay_ledger_events", &[("output", "console"), ("state", "accepted")]), 0.0);
    assert_eq!(relay.stdout(), "");
}

fn outcome(relay: &Relay, outcome: &str) -> f64 {
    relay.metrics().get("sipsim_relay_webhooks_total", &[("account", "default"), ("outcome", outcome)])
}

/// Names of the headers, and values where they may not differ.
fn shape(answer: &Answer) -> Vec<(&str, &str)> {
    let value = |name: &str, value| if name == "date" { "" } else { value };
    answer.headers.iter().map(|(name, text)| (&**name, value(name, text))).collect()
}

#[test]
fn what_is_forged_gets_the_same_401_whatever_is_wrong_and_goes_nowhere() {
    let relay = Relay::start("");
    let mut first: Option<Answer> = None;
    for forged in forged(BODY) {
        let before = outcome(&relay, forged.outcome);
        let headers: Vec<(&str, &str)> = forged.headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let answer = relay.post_with(&headers, BODY);
        assert_eq!((answer.status, answer.text()), (401, r#"{"error":"unauthorized"}"#.into()), "{}", forged.what);
        assert_eq!(answer.header("retry-after"), None, "a wrong secret does not heal with time");
        let first = first.get_or_insert_with(|| answer.clone());
        assert_eq!(shape(&answer), shape(first), "{} is told apart from the others", forged.what);
        assert_eq!(outcome(&relay, forged.outcome), before + 1.0, "{} counts as {}", forged.what, forged.outcome);
    }
    nothing_came_in(&relay);
    let log = relay.stderr();
    assert!(!log.contains(&sign(SECRET, &now().to_string(), BODY)[..16]) && !log.contains("message"), "{log}");
}

#[test]
fn signatures_in_capitals_and_timestamps_with_zeros_are_genuine() {
    let relay = Relay::start("");
    for (timestamp, capitals) in [(now().to_string(), true), (format!("00{}", now()), false)] {
        let mut signature = sign(SECRET, &timestamp, BODY);
        if capitals {
            signature.make_ascii_uppercase();
        }
        let answer = relay.post_with(&[("x-webhook-TIMESTAMP", &timestamp), ("x-webhook-signature", &signature)], BODY);
        assert_eq!(answer.status, 200, "{timestamp} {signature}: {}", answer.text());
    }
}

#[test]
fn headers_are_judged_before_the_body_is_read() {
    let relay = Relay::start("");
    let start = Instant::now();
    let mut client = Client::connect(relay.ingress).expect("a connection");
    let head =
        format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\nX-Webhook-Timestamp: 1\r\n\r\n");
    client.send(head.as_bytes()).expect("it is sent");
    let answer = client.answer().expect("an answer without the body");
    assert_eq!(answer.status, 401);
    assert!(start.elapsed() < Duration::from_secs(1), "it waited for the body");
    assert_eq!(outcome(&relay, "missing_header"), 1.0);
}

#[test]
fn any_one_flipped_bit_is_refused() {
    let relay = Relay::start("");
    // One request, each of its bits in turn.
    let timestamp = now().to_string();
    let genuine = [timestamp.clone().into_bytes(), sign(SECRET, &timestamp, BODY).into_bytes(), BODY.to_vec()];
    for part in 0..3 {
        for bit in 0..genuine[part].len() * 8 {
            let mut parts = genuine.clone();
            parts[part][bit / 8] ^= 1 << (bit % 8);
            refuse(&relay, &parts, &genuine).unwrap_or_else(|error| panic!("part {part}, bit {bit}: {error}"));
        }
    }
    // And one bit of any.
    let config = Config { cases: 300, failure_persistence: None, ..Config::default() };
    let parts = (prop::collection::vec(any::<u8>(), 1..300), -200_i64..200, 0_usize..3, any::<prop::sample::Index>());
    TestRunner::new(config)
        .run(&parts, |(body, age, part, bit)| {
            let timestamp = (now() + age).to_string();
            let genuine = [timestamp.clone().into_bytes(), sign(SECRET, &timestamp, &body).into_bytes(), body];
            let mut parts = genuine.clone();
            let bit = bit.index(parts[part].len() * 8);
            parts[part][bit / 8] ^= 1 << (bit % 8);
            refuse(&relay, &parts, &genuine).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    nothing_came_in(&relay);
}

fn refuse(relay: &Relay, parts: &[Vec<u8>; 3], genuine: &[Vec<u8>; 3]) -> Result<(), String> {
    if parts[1] != genuine[1] && parts[1].eq_ignore_ascii_case(&genuine[1]) {
        return Ok(()); // The same digit in the other case: the same signature.
    }
    let [timestamp, signature, body] = parts;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n", body.len());
    let bytes = [
        head.as_bytes(),
        b"X-Webhook-Timestamp: ",
        timestamp,
        b"\r\nX-Webhook-Signature: ",
        signature,
        b"\r\n\r\n",
        body,
    ];
    let mut client = Client::connect(relay.ingress).map_err(|error| error.to_string())?;
    let answer = client.send(&bytes.concat()).and_then(|()| client.answer()).map_err(|error| error.to_string())?;
    match answer.status {
        // A flip may make a byte that no header can have: then it is not a request at all.
        401 | 400 => Ok(()),
        status => Err(format!("{status} {}", answer.text())),
    }
}

fn signed(body: &[u8]) -> String {
    let timestamp = now().to_string();
    format!("X-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {}\r\n", sign(SECRET, &timestamp, body))
}

fn raw(relay: &Relay, parts: &[&[u8]]) -> Answer {
    let mut client = Client::connect(relay.ingress).expect("a connection");
    let _ = client.send(&parts.concat()); // The relay may answer, and close, before it has read everything.
    client.answer().expect("an answer")
}

#[test]
fn other_paths_are_404_and_other_methods_405_with_allow() {
    let relay = Relay::start("");
    let timestamp = now().to_string();
    let signature = sign(SECRET, &timestamp, BODY);
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    let ask = |method: &str, path: &str| {
        let mut client = Client::connect(relay.ingress).expect("a connection");
        client.request(method, path, &headers, BODY).expect("an answer")
    };
    for path in ["/", "/webhooks", "/webhooks/sipsim/", "/Webhooks/sipsim", "//webhooks/sipsim", "/metrics", "/livez"] {
        for method in ["POST", "GET"] {
            let answer = ask(method, path);
            assert_eq!((answer.status, answer.header("allow")), (404, None), "{method} {path}");
        }
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        let answer = ask(method, PATH);
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{method}");
    }
    nothing_came_in(&relay);
    let metrics = relay.metrics();
    assert_eq!(metrics.get("sipsim_relay_http_refused_total", &[("reason", "not_found")]), 14.0);
    assert_eq!(metrics.get("sipsim_relay_http_refused_total", &[("reason", "method")]), 6.0);
    // A query string is none of the path.
    assert_eq!(ask("POST", &format!("{PATH}?token=1")).status, 200);
}

#[test]
fn what_is_over_a_size_is_413_431_or_414_and_no_http_is_400() {
    let mut relay = Relay::prepare("[ingress]\nbody_max = \"64 KiB\"\n");
    relay.run();
    let post = format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\n");
    let large = vec![b'1'; 64 * 1024 + 1];
    let (largest, head) = (&large[1..], signed(&large));

    let length = format!("{post}Content-Length: {}\r\n{head}\r\n", large.len());
    assert_eq!(raw(&relay, &[length.as_bytes(), &large]).status, 413);
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n{head}\r\n{:x}\r\n", large.len());
    assert_eq!(raw(&relay, &[chunked.as_bytes(), &large, b"\r\n0\r\n\r\n"]).status, 413);
    assert_eq!(outcome(&relay, "too_large"), 2.0);
    let chunked = format!("{post}Transfer-Encoding: chunked\r\n{}\r\n{:x}\r\n", signed(largest), largest.len());
    assert_eq!(raw(&relay, &[chunked.as_bytes(), largest, b"\r\n0\r\n\r\n"]).status, 200, "body_max itself");

    let headers = format!("{post}X-Padding: {}\r\n\r\n", "x".repeat(17 * 1024));
    assert_eq!(raw(&relay, &[headers.as_bytes()]).status, 431);
    let path = format!("GET /{} HTTP/1.1\r\nHost: relay\r\n\r\n", "x".repeat(70_000));
    assert!(matches!(raw(&relay, &[path.as_bytes()]).status, 414 | 431));
    assert_eq!(raw(&relay, &[b"hello\r\n\r\n"]).status, 400);
    let refused = |reason| relay.metrics().get("sipsim_relay_http_refused_total", &[("reason", reason)]);
    wait_until("hyper's own refusals to be counted", Duration::from_secs(5), || {
        refused("headers") >= 1.0 && refused("bad_request") >= 1.0
    });
}

#[test]
fn a_body_that_does_not_come_in_time_is_408_and_a_head_that_does_not_is_closed() {
    let relay = Relay::start("");
    let start = Instant::now();
    let mut body = Client::connect(relay.ingress).expect("a connection");
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n{}\r\n", BODY.len(), signed(BODY));
    body.send(&[head.as_bytes(), &BODY[..BODY.len() - 1]].concat()).expect("all but a byte");
    let mut half = Client::connect(relay.ingress).expect("a connection");
    half.send(&head.as_bytes()[..head.len() - 2]).expect("all but the empty line");
    let answer = body.answer().expect("an answer");
    let took = start.elapsed();
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert!((1.7..2.0).contains(&took.as_secs_f64()), "{took:?}: the deadline is 1.8 s, and SIPSIM gives 2");
    assert!(half.answer().is_err(), "closed without an answer");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(outcome(&relay, "too_slow"), 1.0);
    nothing_came_in(&relay);
}

#[test]
fn half_a_request_is_over_by_the_deadline_also_behind_a_whole_one() {
    let relay = Relay::start("");
    let post = |body: &str| {
        let length = body.len();
        format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {length}\r\n{}\r\n{body}",
            signed(body.as_bytes())
        )
    };
    // Each another one: the very same request again ends its connection.
    let numbers = std::cell::Cell::new(0);
    let whole = || post(&numbers.replace(numbers.get() + 1).to_string());
    let head = whole().split("\r\n\r\n").next().expect("a head").to_owned();
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n{}\r\n2\r\n{{}}\r\n0\r\n\r\n",
        signed(b"{}")
    );
    let unsigned = "POST /elsewhere HTTP/1.1\r\nHost: relay\r\nContent-Length: 2\r\n\r\n{}";
    let large = post(&format!("[{}]", "1,".repeat(300_000) + "1"));
    // What is sent in one piece, which answers come, and whether the connection may stay.
    let mut cases = [
        ("the head alone", head.clone(), &[][..], false),
        ("behind one that is accepted", whole() + &head, &[200], false),
        ("its first byte, behind two", format!("{}{}P", whole(), whole()), &[200, 200], false),
        ("behind one in chunks", format!("{chunked}{head}"), &[200], false),
        ("behind one of many pieces", format!("{large}{head}"), &[200], false),
        ("behind one that is refused", format!("{unsigned}{head}"), &[404], false),
        ("behind one without a body", format!("GET / HTTP/1.1\r\nHost: relay\r\n\r\n{head}"), &[404], false),
        ("a body, behind one that is accepted", whole() + whole().split_at(whole().len() - 1).0, &[200, 408], false),
        ("an empty line is no request", whole() + "\r\n", &[200], true),
    ]
    .map(|(what, bytes, answers, stays)| {
        let mut client = Client::connect(relay.ingress).expect("a connection");
        client.send(bytes.as_bytes()).expect("it is sent");
        (what, client, answers, stays)
    });
    let start = Instant::now();
    for (what, client, answers, _) in &mut cases {
        for expected in *answers {
            let answer = client.answer().unwrap_or_else(|error| panic!("{what}: {error} instead of {expected}"));
            assert_eq!(answer.status, *expected, "{what}");
        }
    }
    for (what, client, _, stays) in &mut cases {
        let left = Duration::from_secs(3).saturating_sub(start.elapsed()).max(Duration::from_millis(10));
        assert_eq!(client.is_closed_within(left), !*stays, "{what}");
    }
    assert_eq!(outcome(&relay, "accepted") + outcome(&relay, "duplicate"), 7.0);
}
