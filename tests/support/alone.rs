//! A relay with console output only, over a disk that the test governs: the oracle's books over many lives of its process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::oracle::{self, Arrived};
use super::scene::{Ledger, assert_all_accepted_in_time};
use super::shim::Shim;
use super::{Load, Relay, Sent, wait_until};

/// DESIGN §4: a recovered disk is noticed within this.
pub const BACK_WITHIN: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);
/// Numbers between two loads, of which each repeats none: a multiple of 12, so that kinds and keys stay with them.
const NUMBERS: usize = 1_200_000;

/// The client of [`Alone::body`], which no load has.
const SINGLE: usize = 999;

pub struct Alone {
    pub relay: Relay,
    pub shim: Shim,
    pub sent: Vec<Sent>,
    printed: Vec<String>,
    /// Of the relay's `stdout`, how many lines stand in `printed`.
    taken: usize,
    next: usize,
}

impl Alone {
    /// Not started yet. `config` is the relay's.
    pub fn prepare(config: &str) -> Self {
        let mut relay = Relay::prepare(config);
        let shim = Shim::under(&mut relay);
        Self { relay, shim, sent: Vec::new(), printed: Vec::new(), taken: 0, next: 0 }
    }

    /// Clients whose bodies nobody sent before.
    pub fn load(&mut self, clients: usize) -> Load {
        let first = self.next;
        self.next += NUMBERS;
        Load::start(&self.relay, clients, move |client, number| oracle::body(client, first + number))
    }

    /// At least so many events, in steps: the next one comes when the journal knows of all but a thousand that they went out, which an output
    /// tells it by the thousand. So it is never full of what is owed, however slow the machine is, and every event must be accepted.
    pub fn load_in_steps(&mut self, at_least: usize) {
        const CLIENTS: usize = 32;
        const EACH: usize = 4;
        let allowed = Arc::new(AtomicUsize::new(0));
        let (first, gate) = (self.next, Arc::clone(&allowed));
        self.next += NUMBERS;
        let load = Load::start(&self.relay, CLIENTS, move |client, number| {
            while number >= gate.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1)); // It looks again: the turn is given by the other thread.
            }
            oracle::body(client, first + number)
        });
        for step in 1..=at_least.div_ceil(CLIENTS * EACH) {
            allowed.store(step * EACH, Ordering::Relaxed);
            wait_until("every event of a step to be answered", LONG, || {
                load.answered() >= (step * EACH * CLIENTS) as u64
            });
            wait_until("most to be published", LONG, || self.pending() <= 1_000.0);
        }
        load.end();
        allowed.store(usize::MAX, Ordering::Relaxed); // Each still has its next one to send.
        self.note(load);
        self.drained();
        assert_all_accepted_in_time(&self.sent);
    }

    /// A single body of which the same holds.
    pub fn body(&mut self) -> String {
        self.next += NUMBERS;
        oracle::body(SINGLE, self.next - NUMBERS)
    }

    /// Ends a load and enters what it sent.
    pub fn note(&mut self, load: Load) {
        self.sent.extend(load.stop());
    }

    /// What a process with blocked output, dead by now, got out.
    pub fn note_pipe(&mut self) {
        self.note_stdout(); // Of a life before.
        self.printed.extend(self.relay.read_pipe());
    }

    fn note_stdout(&mut self) {
        let lines = self.stdout();
        self.taken += lines.len();
        self.printed.extend(lines);
    }

    /// The whole lines that were not noted yet.
    fn stdout(&self) -> Vec<String> {
        let printed = self.relay.stdout();
        let whole = printed.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::trim_end);
        whole.skip(self.taken).map(str::to_owned).collect()
    }

    pub fn is_ready(&self) -> bool {
        self.relay.get("/readyz").is_some_and(|answer| answer.status == 200)
    }

    /// Until so many more were answered 200.
    pub fn wait_for_accepted(load: &Load, more: u64) {
        let enough = load.accepted() + more;
        wait_until("some more events to be accepted", LONG, || load.accepted() >= enough);
    }

    /// While the disk fails: 503 with `Retry-After` inside the deadline, not ready, alive.
    pub fn assert_refuses(&mut self) {
        wait_until("/readyz to say 503", LONG, || !self.is_ready());
        for _ in 0..3 {
            let body = self.body();
            let start = Instant::now();
            let answer = self.relay.post(body.as_bytes());
            let took = start.elapsed();
            assert_eq!(answer.status, 503, "{}", answer.text());
            assert!(took < Duration::from_secs(2), "it took {took:?}");
            assert!(answer.header("retry-after").is_some_and(|value| value.parse::<u32>().is_ok()), "{answer:?}");
            self.sent.push(Sent { body, status: Some(503), id: None, latency: took, stalled: false });
        }
        for (path, status) in [("/readyz", 503), ("/livez", 200), ("/startupz", 200)] {
            assert_eq!(self.relay.get(path).expect("the admin port answers").status, status, "{path}");
        }
    }

    /// By itself, soon.
    pub fn assert_back(&mut self) {
        wait_until("the relay to accept again by itself", BACK_WITHIN, || {
            self.is_ready() && {
                let body = self.body();
                let start = Instant::now();
                let answer = self.relay.post(body.as_bytes());
                let id = (answer.status == 200).then(|| answer.json()["id"].as_str().expect("an id").to_owned());
                let status = Some(answer.status);
                self.sent.push(Sent { body, status, id, latency: start.elapsed(), stalled: false });
                status == Some(200)
            }
        });
    }

    /// Waits until nothing is pending. The relay must run with its output open.
    pub fn drained(&self) {
        wait_until("the relay to be ready", LONG, || self.is_ready());
        wait_until("nothing to be pending", LONG, || self.pending() == 0.0);
    }

    fn pending(&self) -> f64 {
        self.relay.metrics().get("sipsim_relay_events_pending", &[("output", "console")])
    }

    /// Everything that came out, over all lives of the process.
    pub fn arrived(&self) -> Vec<Arrived> {
        let lines = self.printed.iter().cloned().chain(self.stdout());
        lines.map(|line| Arrived { place: "console".into(), payload: line }).collect()
    }

    pub fn verdict(&self) -> oracle::Verdict {
        oracle::judge(&self.sent, &self.arrived())
    }

    /// The whole judgement, once nothing is pending: the oracle's, the ledger's, and no answer later than SIPSIM waits.
    pub fn judge(&self, duplicates_max: usize) {
        self.assert_answers();
        let verdict = self.verdict();
        verdict.assert_kept(duplicates_max);
        let ledger = Ledger::read(&self.relay.metrics(), "console");
        assert_eq!(
            (ledger.published, ledger.pending, ledger.parked),
            (verdict.delivered as f64, 0.0, 0.0),
            "{ledger:?}"
        );
    }

    /// Only 200, 503 or none, and none later than two seconds.
    pub fn assert_answers(&self) {
        for one in &self.sent {
            assert!(matches!(one.status, None | Some(200 | 503)), "{one:?}");
            assert!(one.status.is_none() || one.latency < Duration::from_secs(2), "late: {one:?}");
        }
    }
}
