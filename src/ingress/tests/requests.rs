//! What is taken in, what is refused, and with which words.

use super::*;

#[tokio::test]
async fn a_signed_webhook_is_kept_and_answered_with_its_id() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    peer.send(post(r#"{"event":"test"}"#)).await;
    let answer = peer.answer().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"id":"07070707-0707-0707-0707-070707070707"}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(*relay.journal.bodies.lock().unwrap(), [br#"{"event":"test"}"#.to_vec()]);
    assert_eq!(relay.outcome("accepted"), 1);
    relay.journal.will(Script::Duplicate);
    peer.send(post(r#"{"event":"test"}"#)).await;
    let answer = peer.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.is_last(), "whoever captured a request can send it again");
    assert_eq!((relay.outcome("accepted"), relay.outcome("duplicate")), (1, 1));
    assert_eq!(relay.metrics.ingress.duration.get_sample_count(), 2);
}

#[tokio::test]
async fn every_way_of_asking_that_http_allows_is_understood() {
    let relay = start(|_| {}).await;
    let body = b"{}";
    let proof = proof(body);
    let check = async |request: String, expected: u16| {
        let mut peer = relay.connect().await;
        peer.send(&request).await;
        assert_eq!(peer.answer().await.status, expected, "{request}");
    };
    check(format!("POST {PATH} HTTP/1.0\r\nContent-Length: 2\r\n{proof}\r\n{{}}"), 200).await;
    check(format!("POST {PATH}?a=b&c HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n{proof}\r\n{{}}"), 200).await;
    check(format!("POST http://relay{PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n{proof}\r\n{{}}"), 200).await;
    check(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n{proof}\r\n1\r\n{{\r\n1\r\n}}\r\n0\r\nA: b\r\n\r\n"), 200).await;
    check(
        format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n{proof}\r\n{{}}"),
        200,
    )
    .await;
    check(format!("\r\nPOST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n{proof}\r\n{{}}"), 200).await;
    check("OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n".into(), 404).await;
    check("CONNECT relay:80 HTTP/1.1\r\nHost: r\r\n\r\n".into(), 404).await;
    assert!(relay.journal.bodies.lock().unwrap().iter().all(|kept| kept == body));
}

#[tokio::test]
async fn what_is_no_webhook_is_told_so() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    peer.send("POST /elsewhere HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}").await;
    assert_eq!(peer.answer().await.status, 404);
    let mut peer = relay.connect().await;
    peer.send(format!("GET {PATH} HTTP/1.1\r\nHost: r\r\n\r\n")).await;
    let answer = peer.answer().await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!((relay.http_refused("not_found"), relay.http_refused("method")), (1, 1));
    assert!(relay.journal.bodies.lock().unwrap().is_empty());
}

#[tokio::test]
async fn forged_requests_get_the_same_401_and_their_connection_ends() {
    let relay = start(|_| {}).await;
    let now = clock::now().as_seconds();
    let good = signature(now, b"{}");
    let stale = now - 400;
    let headers = [
        ("missing_header", String::new()),
        ("malformed_header", format!("X-Webhook-Timestamp: soon\r\nX-Webhook-Signature: {good}\r\n")),
        ("bad_signature", format!("X-Webhook-Timestamp: {}\r\nX-Webhook-Signature: {good}\r\n", now + 1)),
        (
            "outside_tolerance",
            format!("X-Webhook-Timestamp: {stale}\r\nX-Webhook-Signature: {}\r\n", signature(stale, b"{}")),
        ),
    ];
    for (reason, headers) in headers {
        let mut peer = relay.connect().await;
        peer.send(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n{headers}\r\n{{}}")).await;
        let answer = peer.answer().await;
        assert_eq!((answer.status, answer.body.as_str()), (401, r#"{"error":"unauthorized"}"#), "{reason}");
        assert!(answer.is_last(), "{reason}");
        assert_eq!(relay.outcome(reason), 1, "{reason}");
    }
    assert!(relay.journal.bodies.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refusal_comes_before_the_body_and_the_body_is_thrown_away() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    peer.send(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nContent-Length: 100000\r\n\r\n")).await;
    assert_eq!(peer.answer().await.status, 401, "the headers alone are enough to refuse");
    peer.send(vec![b'x'; 100_000]).await;
    peer.send(post("{}")).await;
    assert!(peer.rest().await.is_empty(), "nothing behind the refused body is read as a request");
    assert!(relay.journal.bodies.lock().unwrap().is_empty());
}

#[tokio::test]
async fn requests_behind_one_another_are_answered_in_order() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    let elsewhere = b"POST /elsewhere HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{}".to_vec();
    peer.send([post("1"), post("2"), elsewhere, post("3")].concat()).await;
    for expected in [200, 200, 404] {
        assert_eq!(peer.answer().await.status, expected);
    }
    assert!(peer.rest().await.is_empty(), "what is behind a refused request is not read");
    assert_eq!(*relay.journal.bodies.lock().unwrap(), [b"1", b"2"]);
}

#[tokio::test]
async fn what_hyper_refuses_is_counted() {
    let relay = start(|_| {}).await;
    let check = async |request: String, status: u16, reason: &str| {
        let before = relay.http_refused(reason);
        let mut peer = relay.connect().await;
        peer.send(request).await;
        assert_eq!(peer.answer().await.status, status);
        assert!(peer.rest().await.is_empty());
        wait_for(reason, || relay.http_refused(reason) == before + 1).await;
    };
    check("this is no HTTP\r\n\r\n".into(), 400, "bad_request").await;
    check(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nA: {}\r\n\r\n", "a".repeat(17 << 10)), 431, "headers").await;
    check(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\n{}\r\n", "A: b\r\n".repeat(101)), 431, "headers").await;
    // Who writes on and on before reading is read from on and on, and no reset destroys the answer.
    check(format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nA: {}\r\n\r\n", "a".repeat(8 << 20)), 431, "headers").await;
    // Who connects and goes has refused nothing.
    drop(relay.connect().await);
    relay.connections(0).await;
    assert_eq!(relay.http_refused("bad_request"), 1);
}

#[tokio::test]
async fn who_asks_before_sending_is_told_to_go_on_or_is_refused_at_once() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    let head = |proof: &str| {
        format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nExpect: 100-continue\r\nContent-Length: 2\r\n{proof}\r\n")
    };
    peer.send(head(&proof(b"{}"))).await;
    assert_eq!(peer.answer().await.status, 100);
    peer.send("{}").await;
    assert_eq!(peer.answer().await.status, 200);
    peer.send(head("")).await;
    let answer = peer.answer().await;
    assert_eq!(answer.status, 401);
    assert!(answer.is_last(), "whether the body still comes cannot be known");
    assert!(peer.rest().await.is_empty());
}

#[tokio::test]
async fn who_closes_its_side_after_asking_is_answered() {
    let relay = start(|_| {}).await;
    relay.journal.will(Script::Wait);
    let mut peer = relay.connect().await;
    peer.send(post("{}")).await;
    peer.stream.shutdown().await.unwrap();
    relay.journal.received(1).await;
    relay.journal.will(Script::Keep);
    assert_eq!(peer.answer().await.status, 200);
}

#[tokio::test]
async fn what_the_journal_cannot_keep_is_503_with_the_time_to_come_back() {
    let relay = start(|_| {}).await;
    for (error, reason, retry_after) in [
        (AppendError::Full, "journal_full", "10"),
        (AppendError::AccountFull, "account_full", "10"),
        (AppendError::Disk, "disk", "10"),
        (AppendError::QueueFull, "queue_full", "1"),
        (AppendError::ShuttingDown, "shutting_down", "1"),
    ] {
        relay.journal.will(Script::Refuse(error));
        let mut peer = relay.connect().await;
        peer.send(post("{}")).await;
        let answer = peer.answer().await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some(retry_after)), "{reason}");
        assert!(answer.is_last(), "{reason}");
        assert_eq!(relay.unavailable(reason), 1, "{reason}");
    }
    assert_eq!(relay.outcome("unavailable"), 5);
}
