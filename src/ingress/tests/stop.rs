//! The stop, step by step.

use super::*;

#[tokio::test]
async fn while_the_stop_is_announced_requests_are_taken_and_told_to_come_back_elsewhere() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    peer.send(post("1")).await;
    assert!(!peer.answer().await.is_last());
    relay.serving.close_after_answers();
    peer.send(post("2")).await;
    let answer = peer.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.is_last());
    assert!(peer.rest().await.is_empty());
    let mut peer = relay.connect().await;
    peer.send("GET /elsewhere HTTP/1.1\r\nHost: r\r\n\r\n").await;
    assert!(peer.answer().await.is_last(), "refusals too");
}

#[tokio::test]
async fn what_was_read_whole_is_answered_and_nothing_new_comes_in() {
    let relay = start(|_| {}).await;
    let mut idle = relay.connect().await;
    idle.send(post("1")).await;
    assert_eq!(idle.answer().await.status, 200);
    relay.journal.will(Script::Wait);
    let mut whole = relay.connect().await;
    whole.send(post("2")).await;
    relay.journal.received(2).await;
    let (address, journal, metrics) = (relay.address, relay.journal.clone(), Arc::clone(&relay.metrics));
    let finishing = relay.serving.stop_accepting().await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens");
    assert!(idle.rest().await.is_empty(), "idle ones are closed at once");
    let finishing = tokio::spawn(finishing.finish_open_requests());
    assert!(!finishing.is_finished(), "a request is still open");
    journal.will(Script::Keep);
    let answer = whole.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.is_last());
    timeout(PATIENCE, finishing).await.expect("it ends with the last answer").unwrap();
    assert_eq!(metrics.ingress.connections.get(), 0);
}

#[tokio::test]
async fn what_is_half_sent_at_the_stop_is_refused_without_waiting_for_the_rest() {
    let relay = start(|_| {}).await;
    let mut half_body = relay.connect().await;
    half_body.send(format!("{}{{", head_for(b"{}"))).await;
    let mut half_head = relay.connect().await;
    half_head.send("POST ").await;
    relay.connections(2).await;
    let metrics = Arc::clone(&relay.metrics);
    let finishing = relay.serving.stop_accepting().await;
    timeout(Duration::from_secs(5), finishing.finish_open_requests()).await.expect("long before the deadline of 10 s");
    let answer = half_body.answer().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(half_head.rest().await.is_empty());
    assert_eq!(metrics.ingress.unavailable.with_label_values(&["shutting_down"]).get(), 1);
}

#[tokio::test]
async fn who_was_connected_before_the_stop_is_still_heard() {
    let relay = start(|_| {}).await;
    // This thread never waits here, so the accepting task, which shares it, has no turn: all of these are still in the kernel's hands.
    let peers: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(relay.address).expect("the port listens");
            std::io::Write::write_all(&mut stream, &post("{}")).expect("it is open");
            stream.set_nonblocking(true).expect("it is a socket");
            stream
        })
        .collect();
    let mut peers: Vec<_> =
        peers.into_iter().map(|stream| Peer::new(TcpStream::from_std(stream).expect("it is a socket"))).collect();
    let finishing = relay.serving.stop_accepting().await;
    finishing.finish_open_requests().await;
    for peer in &mut peers {
        assert_eq!(peer.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_dropped_ingress_is_silent_at_once() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    relay.connections(1).await;
    let address = relay.address;
    drop(relay.serving);
    assert!(peer.rest().await.is_empty());
    wait_for("the port to be free", || std::net::TcpListener::bind(address).is_ok()).await;
}
