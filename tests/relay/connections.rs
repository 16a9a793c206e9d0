//! Which answers are the last on their connection: all but those to a newly accepted event that came with one `Content-Length`.

use std::time::Duration;

use crate::support::{Client, PATH, Relay, SECRET, now, sign};

const KEPT_FOR: Duration = Duration::from_millis(300);

fn signed(body: &str) -> String {
    let timestamp = now().to_string();
    let signature = sign(SECRET, &timestamp, body.as_bytes());
    format!("X-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {signature}\r\n")
}

fn with_length(line: &str, headers: &str, body: &str) -> String {
    format!("{line}\r\nHost: relay\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn post(headers: &str, body: &str) -> String {
    with_length(&format!("POST {PATH} HTTP/1.1"), headers, body)
}

fn event(number: usize) -> String {
    format!(r#"{{"event":"sms","number":{number}}}"#)
}

/// The status of a request's answer, whether it says that it is the last on its connection, and whether it is.
fn answered(relay: &Relay, request: &str) -> (u16, bool, bool) {
    let mut client = Client::connect(relay.ingress).expect("a connection");
    let _ = client.send(request.as_bytes()); // The relay may answer before it has read everything.
    let answer = client.answer().expect("an answer");
    let says_so = answer.header("connection") == Some("close");
    let limit = if says_so { Duration::from_secs(5) } else { KEPT_FOR };
    (answer.status, says_so, client.is_closed_within(limit))
}

#[test]
fn only_a_newly_accepted_event_with_one_length_keeps_its_connection() {
    let mut relay = Relay::prepare(
        "[ingress]\nbody_max = \"600 KiB\"\n[accounts.default]\n[accounts.full]\npath = \"/full\"\nsecrets = \"data/secrets\"\njournal_max = \"1 MiB\"\n",
    );
    relay.run_with_output_blocked(); // So that what is accepted stays pending.
    let genuine = |number| post(&signed(&event(number)), &event(number));
    let captured = genuine(1);
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n{}\r\n2\r\n{{}}\r\n0\r\n\r\n",
        signed("{}")
    );
    let nothing = format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\n{}\r\n", signed(""));
    let large = "1".repeat(500 << 10);
    let to_full = |event: &str| with_length("POST /full HTTP/1.1", &signed(event), event);
    let refused = [
        ("the very same request again", captured.clone(), 200),
        ("chunks", chunked, 200),
        ("no length at all", nothing, 200),
        ("HTTP/1.0", genuine(2).replace("HTTP/1.1", "HTTP/1.0"), 200),
        (
            "HTTP/1.0 that asks to go on",
            post(&(signed(&event(3)) + "Connection: keep-alive\r\n"), &event(3)).replace("HTTP/1.1", "HTTP/1.0"),
            200,
        ),
        ("the sender's own wish", post(&(signed(&event(4)) + "Connection: close\r\n"), &event(4)), 200),
        ("no signature", post("", &event(5)), 401),
        ("another event's signature", post(&signed(&event(5)), &event(6)), 401),
        ("no signature, and no body yet", post("Content-Type: text/plain\r\n", &event(5)).replace(&event(5), ""), 401),
        ("another path", with_length("POST /elsewhere HTTP/1.1", "", "{}"), 404),
        ("another path without a body", "GET / HTTP/1.1\r\nHost: relay\r\n\r\n".into(), 404),
        ("another method", with_length(&format!("GET {PATH} HTTP/1.1"), "", ""), 405),
        ("a body that does not come", post(&signed(&event(7)), &event(7)).replace('}', ""), 408),
        ("too large", post(&signed("{}"), &"1".repeat(601 << 10)), 413),
        ("headers that are too large", post(&format!("X: {}\r\n", "x".repeat(17 << 10)), "{}"), 431),
        ("no HTTP", "hello\r\n\r\n".into(), 400),
        ("an account that is full", to_full(&large.replace('1', "4")), 503),
    ];
    assert_eq!(answered(&relay, &captured), (200, false, false));
    for event in [&large, &large.replace('1', "2"), &large.replace('1', "3")] {
        answered(&relay, &to_full(event));
    }
    let mut wrong = Vec::new();
    for (what, request, status) in refused {
        let got = answered(&relay, &request);
        if got != (status, true, true) {
            wrong.push(format!("{what}: {got:?} instead of {status} and the end"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // And a connection goes on as long as its events are new.
    let mut client = Client::connect(relay.ingress).expect("a connection");
    for number in 100..110 {
        client.send(genuine(number).as_bytes()).expect("it is open");
        assert_eq!(client.answer().expect("an answer").status, 200);
    }
}

#[test]
fn nothing_behind_a_refused_request_is_read_as_a_request() {
    let relay = Relay::start("");
    let mut client = Client::connect(relay.ingress).expect("a connection");
    let genuine = post(&signed(&event(1)), &event(1));
    client.send((post("", "{}") + &genuine).as_bytes()).expect("it is sent");
    assert_eq!(client.answer().expect("an answer").status, 401);
    assert!(client.is_closed_within(Duration::from_secs(5)));
    assert_eq!(relay.metrics().sum("sipsim_relay_events_accepted_total", &[]), 0.0);
}
