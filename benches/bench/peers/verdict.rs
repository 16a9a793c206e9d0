//! What became of the events of a fault: answers by phase, and what of the accepted ones is at the broker.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use super::offered::Sent;
use super::program::Program;

/// One program through one fault.
pub struct Verdict {
    phases: Vec<Phase>,
    accepted: usize,
    /// Answered 2xx and not at the broker.
    lost: usize,
    /// At the broker more than once.
    doubled: usize,
    /// At the broker though not answered 2xx.
    unpromised: usize,
    read_for: Duration,
}

struct Phase {
    name: &'static str,
    sent: usize,
    refused: usize,
    /// By status; 0 for none in time.
    answers: BTreeMap<u16, usize>,
    p99: Duration,
}

impl Verdict {
    pub fn new(
        parts: Vec<(&'static str, Vec<&Sent>)>,
        accepted: &HashSet<&str>,
        calls: &HashMap<String, usize>,
        read_for: Duration,
    ) -> Self {
        Self {
            phases: parts.into_iter().map(|(name, sent)| Phase::new(name, &sent)).collect(),
            accepted: accepted.len(),
            lost: accepted.iter().filter(|call| !calls.contains_key(**call)).count(),
            doubled: calls.values().filter(|times| **times > 1).count(),
            unpromised: calls.keys().filter(|call| !accepted.contains(call.as_str())).count(),
            read_for,
        }
    }
}

impl Phase {
    fn new(name: &'static str, sent: &[&Sent]) -> Self {
        let mut answers = BTreeMap::new();
        for sent in sent {
            *answers.entry(sent.status.unwrap_or(0)).or_default() += 1;
        }
        let mut times: Vec<Duration> = sent.iter().map(|sent| sent.took).collect();
        times.sort_unstable();
        Self {
            name,
            sent: sent.len(),
            refused: sent.iter().filter(|sent| !sent.is_accepted()).count(),
            answers,
            p99: times.get(times.len() * 99 / 100).copied().unwrap_or_default(),
        }
    }

    fn text(&self) -> String {
        let answers = self.answers.iter().map(|(status, count)| match status {
            0 => format!("none {count}"),
            status => format!("{status} {count}"),
        });
        format!(
            "{:.1} % of {} ({}), p99 {:.1} ms",
            self.refused as f64 / self.sent.max(1) as f64 * 100.0,
            self.sent,
            answers.collect::<Vec<_>>().join(", "),
            self.p99.as_secs_f64() * 1e3
        )
    }
}

/// All programs through one fault.
pub struct Faults {
    name: String,
    rows: Vec<(String, Verdict)>,
}

impl Faults {
    pub fn new(name: String) -> Self {
        Self { name, rows: Vec::new() }
    }

    pub fn add(&mut self, program: &Program, verdict: Verdict) {
        let name = format!("{} into {}", program.name, program.broker.name());
        eprintln!("  {name}: {} accepted, {} lost, {} doubled", verdict.accepted, verdict.lost, verdict.doubled);
        for phase in &verdict.phases {
            eprintln!("    refused {}: {}", phase.name, phase.text());
        }
        self.rows.push((name, verdict));
    }

    pub fn text(&self) -> String {
        let mut text = format!("\n### {}\n\n| program |", self.name);
        let Some((_, first)) = self.rows.first() else { return String::new() };
        // A String takes whatever is written.
        for phase in &first.phases {
            let _ = write!(text, " refused {} |", phase.name);
        }
        let columns = ["accepted", "of these lost", "doubled", "arrived though refused", "s until read"];
        let _ = writeln!(text, " {} |", columns.join(" | "));
        let _ = writeln!(text, "|---|{}", "---:|".repeat(first.phases.len() + columns.len()));
        for (name, verdict) in &self.rows {
            let phases: Vec<_> = verdict.phases.iter().map(Phase::text).collect();
            let Verdict { accepted, lost, doubled, unpromised, read_for, .. } = verdict;
            let _ = writeln!(
                text,
                "| {name} | {} | {accepted} | {lost} | {doubled} | {unpromised} | {:.1} |",
                phases.join(" | "),
                read_for.as_secs_f64()
            );
        }
        text
    }
}
