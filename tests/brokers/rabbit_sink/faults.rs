//! What can happen to a broker of one's own: an alarm, a hang, a kill.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapin::types::{AMQPValue, FieldTable};
use rustix::process::Signal;
use sipsim_relay::publish::Report;
use tokio::task::JoinSet;
use tokio::time::interval;

use super::bench::{self, Bench, Output, PATIENCE};
use crate::support::Brokers;

/// Takes most of a minute: a hung broker shows only by missed heartbeats, and a killed one has to start again.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_blocks_hangs_or_is_killed_costs_nothing_but_time() {
    let broker = Arc::new(Brokers::own());
    if broker.is_given("rabbitmq") {
        return eprintln!("the given broker is not ours to hang and kill: nothing was tested");
    }
    let url = broker.rabbitmq().to_owned();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let mut bench = Bench::new("sink-faults", &url, &url, arguments).await;
    bench.bind("faults").await;
    let mut output = Output::new("faults");
    let mut ticks = interval(Duration::from_millis(10));
    let (mut sent, mut script) = (0, VecDeque::from(SCRIPT));
    let mut doing = JoinSet::new();
    let started = Instant::now();
    while !(script.is_empty() && doing.is_empty() && output.is_done()) {
        assert!(started.elapsed() < 4 * PATIENCE, "{} signs did not come", script.len());
        let heard = tokio::select! {
            // At 100 a second, until all has happened.
            _ = ticks.tick(), if !script.is_empty() => {
                sent += 1;
                output.pending.insert(sent);
                None
            }
            Some(done) = doing.join_next() => {
                done.unwrap();
                None
            }
            report = bench.next() => output.hear(report),
        };
        output.send(&mut bench.sink);
        let due = match (script.front(), heard) {
            (Some((Sign::Delivered(count), _)), _) => output.delivered.len() >= *count,
            (Some((Sign::Lost(expected), _)), Some(Report::Lost { reason, .. })) => {
                // While it is away, it may say so for another reason too.
                reason.reason() == *expected
            }
            (Some((Sign::Connected, _)), Some(Report::Connected)) => true,
            _ => false,
        };
        if due && let Some((_, orders)) = script.pop_front() {
            let broker = broker.clone();
            doing.spawn_blocking(move || orders.iter().for_each(|order| order.give(&broker)));
        }
    }
    assert_eq!(output.delivered.iter().copied().collect::<BTreeSet<_>>(), (1..=sent).collect());
    // Through a connection of its own: the operator's went with the broker.
    let bench = bench.again(&url).await;
    let mut received = Vec::new();
    // After a kill, a quorum queue shows its messages only after some seconds.
    while received.iter().collect::<BTreeSet<_>>().len() < output.delivered.len() {
        received.extend(bench.received().await);
    }
    assert!(bench::in_order_of_first_arrival(&received));
}

/// What shows that it is time for what comes next.
enum Sign {
    Delivered(usize),
    Lost(&'static str),
    Connected,
}

enum Order {
    Ctl(&'static [&'static str]),
    Signal(Signal),
    KillAndStart,
}

const SCRIPT: [(Sign, &[Order]); 7] = [
    (Sign::Delivered(100), &[Order::Ctl(&["set_vm_memory_high_watermark", "absolute", "1MB"])]),
    (Sign::Lost("blocked"), &[Order::Ctl(&["set_vm_memory_high_watermark", "absolute", "1GB"])]),
    (Sign::Connected, &[Order::Signal(Signal::STOP)]),
    (Sign::Lost("disconnected"), &[Order::Signal(Signal::CONT)]),
    (Sign::Connected, &[Order::KillAndStart]),
    (Sign::Lost("disconnected"), &[]),
    (Sign::Connected, &[]),
];

impl Order {
    fn give(&self, broker: &Brokers) {
        match self {
            Self::Ctl(arguments) => drop(broker.rabbitmqctl(arguments)),
            Self::Signal(signal) => broker.signal("rabbitmq", *signal),
            Self::KillAndStart => {
                broker.kill_one("rabbitmq");
                broker.start_one("rabbitmq");
            }
        }
    }
}
