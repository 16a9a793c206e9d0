//! What two programs in a row could frame differently is refused and its connection closed, and nothing that follows it becomes an event.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::support::{PATH, Relay, SECRET, now, sign, smuggle, wait_until};

/// With one time for all, so that what is sent again is the very same.
fn proof_of(time: i64) -> impl Fn(&[u8]) -> String {
    let timestamp = time.to_string();
    move |body| {
        format!("X-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {}\r\n", sign(SECRET, &timestamp, body))
    }
}

/// Looks genuine, and is proved by no secret.
fn smuggled() -> String {
    let body = r#"{"event":"sms","message":"smuggled"}"#;
    let (timestamp, length) = (now(), body.len());
    format!(
        "POST {PATH} HTTP/1.1\r\nHost: relay\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {}\r\nContent-Length: {length}\r\n\r\n{body}",
        "5a".repeat(32)
    )
}

/// Sends all and the end, in one piece or byte by byte, and gives the statuses of all answers until the relay closes.
fn answers(relay: &Relay, bytes: &[u8], piece: usize) -> Vec<u16> {
    let mut stream = TcpStream::connect(relay.ingress).expect("it listens");
    stream.set_nodelay(true).expect("a socket takes it");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket takes it");
    for piece in bytes.chunks(piece) {
        if stream.write_all(piece).is_err() {
            break; // It has refused already, and closed.
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read); // A reset, where we went on writing, comes behind the answers.
    let text = String::from_utf8_lossy(&read);
    text.split("HTTP/1.").skip(1).map(|answer| answer[2..5].parse().expect("a status")).collect()
}

#[test]
fn each_form_is_taken_or_refused_and_nothing_behind_it_is_an_event() {
    let relay = Relay::start("");
    let mut events = 0;
    let mut wrong = Vec::new();
    // In one piece, as an attacker would; and byte by byte, as nothing may depend on how it comes. Signed at another time, since the very same
    // request again is answered as a duplicate, whose connection ends.
    for (piece, signed_at) in [(usize::MAX, now()), (1, now() - 1)] {
        for form in smuggle::forms(&proof_of(signed_at)) {
            let got = answers(&relay, &[&form.bytes, smuggled().as_bytes()].concat(), piece);
            // A refusal is an answer or the close alone.
            if got != form.answers && !(got.is_empty() && form.answers == [400]) {
                wrong.push(format!("{}: {got:?} instead of {:?}", form.what, form.answers));
            }
            events += form.answers.iter().filter(|status| **status == 200).count();
        }
    }
    assert!(wrong.is_empty(), "{} forms:\n{}", wrong.len(), wrong.join("\n"));
    wait_until("all of them to be published", Duration::from_secs(10), || relay.envelopes().len() >= events);
    assert_eq!(relay.envelopes().len(), events, "nothing but what was answered 200 once came in");
    assert!(!relay.stdout().contains("smuggled"));
    let metrics = relay.metrics();
    assert_eq!(metrics.sum("sipsim_relay_webhooks_total", &[("outcome", "accepted")]), events as f64);
    assert_eq!(metrics.sum("sipsim_relay_webhooks_total", &[("outcome", "duplicate")]), 0.0);
    let log = relay.stderr();
    assert!(!log.contains("panicked") && !log.contains("fault in the relay"), "{log}");
}

#[test]
fn a_strict_request_is_accepted_after_every_form() {
    let relay = Relay::start("");
    for (number, form) in smuggle::forms(&proof_of(now())).into_iter().enumerate() {
        answers(&relay, &form.bytes, usize::MAX);
        let body = format!(r#"{{"event":"sms","number":{number}}}"#);
        assert_eq!(relay.post(body.as_bytes()).status, 200, "after: {}", form.what);
    }
}
