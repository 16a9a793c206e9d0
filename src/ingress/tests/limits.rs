//! Deadlines, sizes, memory and places: everything has a bound, and the bound its answer.

use tokio::time::Instant;

use super::*;
use crate::ingress::TICK;
use crate::ingress::registry::{Order, Phase};

const DEADLINE: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_head_that_is_not_complete_at_the_deadline_is_closed_without_an_answer() {
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    let mut peer = relay.connect().await;
    peer.send("POST ").await;
    let began = Instant::now();
    assert!(peer.rest().await.is_empty());
    assert!(began.elapsed() >= DEADLINE * 9 / 10, "closed after {:?}", began.elapsed());
    // The same on a connection that has been of use before.
    let mut peer = relay.connect().await;
    peer.send(post("{}")).await;
    assert_eq!(peer.answer().await.status, 200);
    peer.send("POST ").await;
    assert!(peer.rest().await.is_empty());
}

#[tokio::test]
async fn who_comes_after_nobody_was_there_is_watched_too() {
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    tokio::time::sleep(TICK * 2).await; // That nobody was there for a while is what is tested.
    let mut peer = relay.connect().await;
    peer.send("POST ").await;
    assert!(peer.rest().await.is_empty());
}

#[tokio::test]
async fn a_head_that_became_a_whole_request_while_it_was_closed_as_late_is_answered() {
    let relay = start(|_| {}).await;
    relay.journal.will(Script::Wait);
    let mut peer = relay.connect().await;
    peer.send(post("{}")).await;
    relay.journal.received(1).await;
    relay.serving.door.registry.order_all(Order::Drop, &[Phase::Request]);
    tokio::task::yield_now().await; // The connection's task, on this same thread, has its turn.
    relay.journal.will(Script::Keep);
    let answer = peer.answer().await;
    assert_eq!(answer.status, 200);
    assert!(answer.is_last());
}

#[tokio::test]
async fn a_body_that_is_not_there_by_the_deadline_is_408() {
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    let mut peer = relay.connect().await;
    peer.send(format!("{}{{", head_for(b"{}"))).await;
    let answer = peer.answer().await;
    assert_eq!(answer.status, 408);
    assert!(answer.is_last());
    assert_eq!(relay.outcome("too_slow"), 1);
    assert!(peer.rest().await.is_empty());
}

#[tokio::test]
async fn a_late_journal_is_503_and_the_deadline_runs_from_the_first_byte() {
    let relay = start(|limits| limits.deadline = Duration::from_secs(1)).await;
    relay.journal.will(Script::Wait);
    let mut peer = relay.connect().await;
    let request = post("{}");
    let began = Instant::now();
    peer.send(&request[..1]).await;
    tokio::time::sleep(Duration::from_millis(700)).await; // A slow sender: time is what is tested.
    peer.send(&request[1..]).await;
    let answer = peer.answer().await;
    let took = began.elapsed();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert!(took >= Duration::from_millis(950), "answered after {took:?}");
    assert!(took < Duration::from_millis(1500), "answered after {took:?}: the deadline began with the whole head");
    assert_eq!(relay.unavailable("deadline"), 1);
}

#[tokio::test]
async fn a_connection_may_idle_between_requests_far_past_the_deadline() {
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    let mut peer = relay.connect().await;
    for _ in 0..2 {
        tokio::time::sleep(DEADLINE * 2).await; // Idling is what is tested.
        peer.send(post("{}")).await;
        assert_eq!(peer.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_connection_that_idles_too_long_is_closed() {
    let relay = start(|limits| limits.idle_timeout = Duration::from_millis(200)).await;
    let mut silent = relay.connect().await;
    let mut used = relay.connect().await;
    let mut empty_line = relay.connect().await;
    used.send(post("{}")).await;
    assert_eq!(used.answer().await.status, 200);
    empty_line.send("\r\n").await;
    for peer in [&mut silent, &mut used, &mut empty_line] {
        assert!(peer.rest().await.is_empty());
    }
    relay.connections(0).await;
}

#[tokio::test]
async fn a_peer_that_takes_no_answers_is_cut_off() {
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    let mut peer = relay.connect().await;
    let request = post("{}").repeat(1000);
    // It asks and never reads, until the relay no longer reads either, and then closes.
    let asking = async { while peer.stream.write_all(&request).await.is_ok() {} };
    timeout(PATIENCE, asking).await.expect("the relay closes");
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_at_once() {
    let relay = start(|limits| limits.body_max = 1000).await;
    let mut peer = relay.connect().await;
    let body = vec![b'x'; 1001];
    peer.send(head_for(&body)).await;
    assert_eq!(peer.answer().await.status, 413, "the length alone is enough to refuse");
    peer.send(&body).await;
    // Chunks are counted as they come.
    let mut peer = relay.connect().await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n{}\r\n", proof(b"{}"));
    peer.send(format!("{head}3e8\r\n{}\r\n", "x".repeat(1000))).await;
    peer.send("1\r\nx\r\n").await;
    assert_eq!(peer.answer().await.status, 413);
    peer.send("0\r\n\r\n").await;
    assert_eq!(relay.outcome("too_large"), 2);
    let body = vec![b'x'; 1000];
    let mut peer = relay.connect().await;
    peer.send(post(&body)).await;
    assert_eq!(peer.answer().await.status, 200, "1000 bytes are not over 1000");
}

#[tokio::test]
async fn who_sends_all_of_an_overlarge_body_before_reading_reads_413_and_no_reset() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    peer.send(post(vec![b'x'; 12 << 20])).await;
    assert_eq!(peer.answer().await.status, 413);
    // Without end, it is read for as long as a request may take.
    let relay = start(|limits| limits.deadline = DEADLINE).await;
    let mut endless = relay.connect().await;
    endless.send(head_for(b"").replace("Content-Length: 0", "Content-Length: 1000000000000")).await;
    let answer = endless.answer().await;
    assert_eq!(answer.status, 413);
    assert!(answer.is_last());
    let chunk = vec![b'x'; 1 << 20];
    let sending = async { while endless.stream.write_all(&chunk).await.is_ok() {} };
    timeout(PATIENCE, sending).await.expect("the relay closes");
}

#[tokio::test]
async fn a_body_in_many_pieces_comes_out_whole() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    let body: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).take(6 << 20).collect();
    peer.send(post(&body)).await;
    assert_eq!(peer.answer().await.status, 200);
    assert!(relay.journal.bodies.lock().unwrap()[0] == body);
}

#[tokio::test]
async fn bodies_without_room_in_memory_are_503_until_there_is_room_again() {
    let relay = start(|limits| (limits.body_max, limits.buffered_max) = (20_000, 27_000)).await; // Strangers may take 20,250.
    relay.journal.will(Script::Wait);
    let mut holding = relay.connect().await;
    holding.send(post(vec![b'x'; 15_000])).await;
    relay.journal.received(1).await;
    let mut peer = relay.connect().await;
    peer.send(post(vec![b'y'; 6_000])).await;
    let answer = peer.answer().await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(relay.unavailable("memory"), 1);
    let mut peer = relay.connect().await;
    peer.send(post(vec![b'y'; 4_000])).await;
    relay.journal.received(2).await;
    relay.journal.will(Script::Keep);
    assert_eq!(holding.answer().await.status, 200);
    assert_eq!(peer.answer().await.status, 200, "4,000 bytes had room");
    peer.send(post(vec![b'y'; 19_000])).await;
    assert_eq!(peer.answer().await.status, 200, "what was held is given back");
}

#[tokio::test]
async fn half_sent_bodies_give_way_to_whole_ones() {
    let relay = start(|limits| (limits.body_max, limits.buffered_max) = (1 << 20, 2 << 20)).await;
    let mut strangers = Vec::new();
    for _ in 0..100 {
        let mut peer = relay.connect().await;
        peer.send(&post(vec![b'x'; 40_000])[..36_000]).await;
        strangers.push(peer);
    }
    wait_for("the strangers to have all that they may take", || relay.unavailable("memory") > 0).await;
    for number in 0..50 {
        let mut peer = relay.connect().await;
        peer.send(post(vec![b'a' + number; 40_000])).await;
        assert_eq!(peer.answer().await.status, 200, "number {number}, on a fresh connection");
    }
    // All room that there is, as strangers would have it who are faster than anybody.
    let hold = || {
        let mut holding = relay.serving.door.budget.reserve(false);
        holding.grow(1 << 14).and_then(|()| holding.finish()).map(|()| holding)
    };
    let mut proved = relay.connect().await;
    proved.send(post("1")).await;
    assert_eq!(proved.answer().await.status, 200);
    let _held: Vec<_> = std::iter::from_fn(|| hold().ok()).collect();
    proved.send(post(vec![b'y'; 14_000])).await;
    assert_eq!(proved.answer().await.status, 200, "a part is for those who brought an event");
    let mut stranger = relay.connect().await;
    stranger.send(post(vec![b'z'; 14_000])).await;
    assert_eq!(stranger.answer().await.status, 503);
}

#[tokio::test]
async fn a_body_has_to_come_at_a_least_rate_while_memory_is_short() {
    let relay = start(|limits| limits.deadline = Duration::from_secs(2)).await;
    let mut others = relay.serving.door.budget.reserve(true);
    others.grow(20 << 20).expect("there is room");
    let mut peer = relay.connect().await;
    let began = Instant::now();
    peer.send(&post(vec![b'x'; 40_000])[..9_000]).await;
    assert_eq!(peer.answer().await.status, 408);
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1_200),
        "refused after {took:?}: half of the deadline, and 0.26 s for 8.5 KB"
    );
    assert!(took < Duration::from_millis(1_900), "refused after {took:?}");
    assert_eq!(relay.outcome("too_slow"), 1);
}

#[tokio::test]
async fn memory_counts_as_long_as_the_journal_holds_the_body_even_after_the_answer() {
    let relay = start(|limits| {
        limits.buffered_max = 20_000;
        limits.deadline = DEADLINE;
    })
    .await;
    relay.journal.will(Script::Wait);
    let door = Arc::clone(&relay.serving.door);
    let mut peer = relay.connect().await;
    peer.send(post(vec![b'x'; 15_000])).await;
    relay.journal.received(1).await;
    assert_eq!(door.budget.taken(), 15_000);
    assert_eq!(peer.answer().await.status, 503);
    // This journal lets the event go with its caller; then, and only then, the memory is free.
    wait_for("the memory to be given back", || door.budget.taken() == 0).await;
}

#[tokio::test]
async fn a_refused_request_that_waits_to_be_explained_takes_no_memory_from_bodies() {
    let relay = start(|_| {}).await;
    let mut peer = relay.connect().await;
    let mut forged = post(vec![b'x'; 15_000]);
    *forged.last_mut().expect("a body") = b'y';
    peer.send(forged).await;
    assert_eq!(peer.answer().await.status, 401);
    // Nobody looks into it here, so that it waits still.
    let door = Arc::clone(&relay.serving.door);
    wait_for("the memory to be given back", || door.budget.taken() == 0).await;
}

#[tokio::test]
async fn past_the_most_connections_the_longest_idle_one_goes() {
    let relay = start(|limits| limits.connections_max = 2).await;
    relay.journal.will(Script::Wait);
    let mut serving = relay.connect().await;
    serving.send(post("1")).await;
    relay.journal.received(1).await;
    let mut idle = relay.connect().await;
    relay.connections(2).await;
    let mut newcomer = relay.connect().await;
    newcomer.send(post("2")).await;
    assert!(idle.rest().await.is_empty(), "it made room");
    relay.journal.received(2).await;
    // Now both places are taken by requests: the next one waits for one of them.
    let mut waiting = relay.connect().await;
    waiting.send(post("3")).await;
    relay.journal.will(Script::Keep);
    for peer in [&mut serving, &mut newcomer, &mut waiting] {
        assert_eq!(peer.answer().await.status, 200);
    }
    relay.connections(2).await;
}

#[tokio::test]
async fn a_replayed_request_keeps_no_place_from_a_newcomer() {
    let relay = start(|limits| limits.connections_max = 8).await;
    relay.journal.will(Script::Duplicate);
    let captured = post("1");
    let mut replaying = Vec::new();
    for _ in 0..8 {
        let mut peer = relay.connect().await;
        peer.send(&captured).await;
        let answer = peer.answer().await;
        assert_eq!(answer.status, 200);
        assert!(answer.is_last());
        replaying.push(peer); // Which does not close.
    }
    relay.journal.will(Script::Keep);
    let mut genuine = relay.connect().await;
    genuine.send(post("2")).await;
    assert_eq!(genuine.answer().await.status, 200);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(relay.connect().await);
    }
    wait_for("the silent ones to make room", || relay.serving.door.registry.evicted().iter().sum::<u64>() >= 15).await;
    genuine.send(post("3")).await;
    assert_eq!(genuine.answer().await.status, 200, "what was accepted anew proves its connection");
}

#[tokio::test]
async fn many_may_wait_to_be_accepted_and_none_has_to_knock_again() {
    // More than tokio's own listener lets wait, and what the system allows; each takes a descriptor here.
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = limit.maximum.map_or(4_000, |hard| hard.min(4_000)).max(limit.current.unwrap_or(4_000));
    let raised = rustix::process::Rlimit { current: Some(wanted), ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let listener = crate::ingress::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    for number in 0..1_500.min(allowed) {
        let connected = timeout(Duration::from_millis(900), TcpStream::connect(address)).await;
        waiting.push(connected.unwrap_or_else(|_| panic!("number {number} has to knock again")).unwrap());
    }
}
