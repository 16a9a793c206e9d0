//! What an attack may cost the relay, read from outside: its memory, descriptors, log, series, probes, and what came out of it.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::oracle::{self, Arrived};
use crate::support::{Client, Relay, Sent, wait_until};

/// `ingress.buffered_max` and 64 MB.
const GROWTH_MAX: u64 = (64 << 20) + 64_000_000;
/// A line for each account and reason, twice if a minute passes meanwhile.
const LOG_LINES_MAX: usize = 24;
/// Descriptors that come and go by themselves: SIPSIM's connections, the journal's readers, a probe.
const DESCRIPTORS_SPARE: usize = 24;
/// Who finds the kernel's queue full knocks again after a second.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Kubernetes asks `/livez` six times before it acts (deploy/helm); here is less patience.
const PROBE_TRIES: u32 = 3;

pub struct Watch {
    pid: u32,
    memory: u64,
    descriptors: usize,
    log_lines: usize,
    series: BTreeSet<String>,
}

impl Watch {
    pub fn begin(relay: &Relay) -> Self {
        let pid = relay.pid();
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5"); // Forgets the peak, where root runs this: the relay cannot be dumped.
        Self {
            pid,
            memory: status(pid, "VmRSS:"),
            descriptors: descriptors(pid),
            log_lines: relay.stderr().lines().count(),
            series: relay.metrics().ids(),
        }
    }

    /// By how much the resident memory has grown at the most.
    pub fn grown(&self) -> u64 {
        status(self.pid, "VmHWM:").saturating_sub(self.memory)
    }

    pub fn assert_memory(&self, grown: u64, name: &str) {
        assert!(grown < GROWTH_MAX, "{name}: {grown} bytes more of memory");
    }

    /// After the attack; gives how many lines were logged.
    pub fn assert_nothing_left(&self, relay: &Relay, name: &str) -> usize {
        wait_until(&format!("descriptors to come back after: {name}"), Duration::from_secs(20), || {
            descriptors(self.pid) <= self.descriptors + DESCRIPTORS_SPARE
        });
        assert_eq!(relay.metrics().ids().difference(&self.series).collect::<Vec<_>>(), [""; 0], "{name}: new series");
        let log = relay.stderr();
        assert!(!log.contains("panicked") && !log.contains("fault in the relay"), "{name}:\n{log}");
        let lines = log.lines().count() - self.log_lines;
        assert!(lines <= LOG_LINES_MAX, "{name}: {lines} lines in the log");
        lines
    }
}

fn status(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(key)).expect("Linux shows it");
    line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number of KiB") * 1024
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count) // Root alone sees them.
}

/// As many as the system lets this process have; the relay has its own.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(40_000, |hard| hard.max(40_000));
    // Root may raise the hard one too.
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .expect("up to the hard one");
    }
}

/// Asks `/livez` and `/metrics` as long as it runs.
pub struct Probes {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl Probes {
    pub fn start(admin: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut slowest = Duration::ZERO;
            for path in ["/livez", "/metrics"].into_iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let mut tries = (1..=PROBE_TRIES).map(|number| {
                    let start = Instant::now();
                    let answer = Client::connect_with(admin, PROBE_MAX).and_then(|mut client| client.get(path));
                    let status = answer.map(|answer| answer.status).map_err(|error| error.to_string());
                    if status != Ok(200) {
                        eprintln!("probe {number}, {path}: {status:?} after {:.0?}", start.elapsed());
                    }
                    (status == Ok(200)).then(|| start.elapsed())
                });
                let took = tries.find_map(|answered| answered);
                slowest = slowest.max(took.unwrap_or_else(|| panic!("{path} was not answered {PROBE_TRIES} times")));
                thread::sleep(Duration::from_millis(100)); // Often enough, and no flood of its own.
            }
            slowest
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every probe was answered")
    }
}

/// Everything that was accepted has left, unaltered and in order, and nothing else; the journal says the same.
pub fn assert_events(relay: &Relay, sent: &[Sent]) {
    let accepted = sent.iter().filter(|one| one.is_accepted()).count();
    wait_until("all that was accepted to leave", Duration::from_secs(20), || {
        relay.stdout().lines().count() >= accepted
    });
    let stdout = relay.stdout();
    let arrived = stdout.lines().map(|line| Arrived { place: "console".into(), payload: line.to_owned() });
    oracle::judge(sent, &arrived.collect::<Vec<_>>()).assert_kept(0);
    assert_eq!(relay.metrics().sum("sipsim_relay_events_accepted_total", &[]), accepted as f64);
}
