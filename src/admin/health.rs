//! What the probes say: started, alive, ready, and why not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::journal;

/// Where the journal's state is read.
pub type JournalHealth = Arc<dyn Fn() -> journal::Health + Send + Sync>;

/// Set by `run`, read by the probes. Never of the broker: whether it answers decides neither readiness nor start (DESIGN §1.4).
pub struct Health {
    is_listening: AtomicBool,
    is_stopping: AtomicBool,
    journal: JournalHealth,
}

/// One condition of readiness.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// `None`: it is in order. Else why not, in words for a person.
    pub problem: Option<String>,
}

impl Health {
    pub fn new(journal: impl Fn() -> journal::Health + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            is_listening: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            journal: Arc::new(journal),
        })
    }

    /// Both ports listen: `/startupz` is 200 from now on, whatever the disk does.
    pub fn listening(&self) {
        self.is_listening.store(true, Ordering::Relaxed);
    }

    /// The relay stops: `/readyz` is 503 from now on, so that load balancers look elsewhere.
    pub fn stopping(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    pub fn is_started(&self) -> bool {
        self.is_listening.load(Ordering::Relaxed)
    }

    /// Every condition of readiness, in a fixed order.
    pub fn checks(&self) -> [Check; 3] {
        let listening = (!self.is_started()).then(|| "the public port does not listen yet".into());
        let running = self.is_stopping.load(Ordering::Relaxed).then(|| "the relay is stopping".into());
        let journal = match (self.journal)() {
            journal::Health::Ready => None,
            journal::Health::Opening => Some("not open yet".into()),
            journal::Health::Full => Some("full: pending and parked events fill journal.size_max".into()),
            journal::Health::LogFull => Some(
                "its log fills journal.size_max, as another process has read it in one transaction for long".into(),
            ),
            journal::Health::Gone => Some("its file is no longer at its path: deleted, replaced or unmounted".into()),
            journal::Health::Failing(how) => Some(format!("the disk fails: {how}")),
        };
        [
            Check { name: "listening", problem: listening },
            Check { name: "running", problem: running },
            Check { name: "journal", problem: journal },
        ]
    }

    /// `Err` with the reasons on one line.
    pub fn ready(&self) -> Result<(), String> {
        let problems: Vec<_> = self
            .checks()
            .into_iter()
            .filter_map(|check| check.problem.map(|why| format!("{}: {why}", check.name)))
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_listening_running_and_a_journal_that_takes_events() {
        let check = |journal: journal::Health, listening, stopping, expected: Result<(), &str>| {
            let health = Health::new(move || journal.clone());
            if listening {
                health.listening();
            }
            if stopping {
                health.stopping();
            }
            let ready = health.ready();
            match expected {
                Ok(()) => assert_eq!(ready, Ok(())),
                Err(word) => {
                    assert!(ready.as_ref().is_err_and(|why| why.contains(word)), "{ready:?} does not say {word:?}")
                }
            }
        };
        check(journal::Health::Ready, true, false, Ok(()));
        check(journal::Health::Ready, false, false, Err("listening: "));
        check(journal::Health::Ready, true, true, Err("running: "));
        check(journal::Health::Opening, true, false, Err("journal: not open"));
        check(journal::Health::Full, true, false, Err("journal: full"));
        check(journal::Health::Gone, true, false, Err("journal: its file is no longer at its path"));
        check(journal::Health::Failing("no space".into()), true, true, Err("no space"));
    }

    #[test]
    fn started_does_not_ask_the_disk() {
        let health = Health::new(|| journal::Health::Failing("dead".into()));
        assert!(!health.is_started());
        health.listening();
        assert!(health.is_started());
    }
}
