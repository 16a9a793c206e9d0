//! What came of a simulation, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;
use super::line::TIMEOUT;

/// Different problems that are told apart; what goes beyond is counted as others.
const PROBLEMS_MAX: usize = 20;
/// An event that begins later than this after its time was held up by the simulation itself.
const LATE: Duration = Duration::from_millis(50);

/// What came of the events that were sent.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub sent: u64,
    /// By status.
    pub answers: BTreeMap<u16, u64>,
    /// Events without any answer, by what was in the way.
    pub problems: BTreeMap<String, u64>,
    /// Of answers, from the event's time on the schedule; those that never came count as the two seconds they were waited for, those that could
    /// not be asked for (nobody listens) not at all.
    pub latency: Histogram,
    /// Events that began over 50 ms after their time, because every connection was still waiting for an answer.
    pub late: u64,
    pub took: Duration,
    /// Of the server, in seconds since 1970.
    pub certificate_ends: Option<i64>,
}

/// The JSON form; its keys are a contract (DESIGN §2).
#[derive(Serialize)]
struct Report<'a> {
    sent: u64,
    answers: &'a BTreeMap<u16, u64>,
    errors: u64,
    lost: u64,
    latency_seconds: LatencySeconds,
}

#[derive(Serialize)]
struct LatencySeconds {
    p50: Option<f64>,
    p99: Option<f64>,
    p999: Option<f64>,
    max: Option<f64>,
}

impl Summary {
    /// Without a 2xx within two seconds. SIPSIM documents no retry.
    pub fn lost(&self) -> u64 {
        let delivered: u64 = self.answers.range(200..300).map(|(_, count)| count).sum();
        self.sent - delivered
    }

    /// Without any answer.
    pub fn errors(&self) -> u64 {
        self.problems.values().sum()
    }

    pub(super) fn answered(&mut self, status: u16, latency: Duration) {
        self.sent += 1;
        *self.answers.entry(status).or_default() += 1;
        self.latency.record(latency);
    }

    pub(super) fn unanswered(&mut self, problem: String, waited: Duration) {
        self.sent += 1;
        if waited >= TIMEOUT {
            self.latency.record(waited);
        }
        self.problem(problem, 1);
    }

    pub(super) fn began(&mut self, late_by: Duration) {
        self.late += u64::from(late_by > LATE);
    }

    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.late += other.late;
        self.latency.add(&other.latency);
        for (status, count) in other.answers {
            *self.answers.entry(status).or_default() += count;
        }
        for (problem, count) in other.problems {
            self.problem(problem, count);
        }
    }

    fn problem(&mut self, problem: String, count: u64) {
        let known = self.problems.contains_key(&problem) || self.problems.len() < PROBLEMS_MAX;
        let problem = if known { problem } else { "other problems".to_owned() };
        *self.problems.entry(problem).or_default() += count;
    }

    /// One line: `{"sent", "answers", "errors", "lost", "latency_seconds"}`. A latency is `null` if there was none.
    pub fn json(&self) -> String {
        let seconds = |latency: Option<Duration>| latency.map(|latency| latency.as_secs_f64());
        let latency_seconds = LatencySeconds {
            p50: seconds(self.latency.quantile(0.5)),
            p99: seconds(self.latency.quantile(0.99)),
            p999: seconds(self.latency.quantile(0.999)),
            max: seconds(self.latency.max()),
        };
        let (errors, lost) = (self.errors(), self.lost());
        let report = Report { sent: self.sent, answers: &self.answers, errors, lost, latency_seconds };
        // Numbers under text keys: nothing there that JSON could not say.
        serde_json::to_string(&report).unwrap_or_default()
    }

    /// A table for people, ending in what a real SIPSIM would have lost. `now` is seconds since 1970.
    pub fn text(&self, now: i64) -> String {
        let mut text = String::new();
        let mut row = |title: &str, value: String| {
            let _ = writeln!(text, "{title:<12} {value}"); // A String takes whatever is written.
        };
        let seconds = self.took.as_secs_f64();
        let per_second = if seconds > 0.0 { self.sent as f64 / seconds } else { 0.0 };
        row("sent", format!("{} in {seconds:.1} s ({per_second:.0} a second)", self.sent));
        for (status, count) in &self.answers {
            row("answered", format!("{status}  {count}"));
        }
        for (problem, count) in &self.problems {
            row("unanswered", format!("{count}  {problem}"));
        }
        let quantile = |share| self.latency.quantile(share).map(milliseconds);
        if let (Some(p50), Some(p99), Some(p999), Some(max)) =
            (quantile(0.5), quantile(0.99), quantile(0.999), self.latency.max().map(milliseconds))
        {
            row("latency", format!("p50 {p50}, p99 {p99}, p99.9 {p999}, max {max}"));
        }
        if let Some(ends) = self.certificate_ends {
            let days = (ends - now).div_euclid(86_400);
            row("certificate", format!("{days} days left"));
        }
        let lost = match self.lost() {
            0 => "nothing: all had a 2xx within 2 s".to_owned(),
            lost => format!("{lost} of {}: no 2xx within 2 s, and no second try", self.sent),
        };
        let _ = writeln!(text, "A real SIPSIM would have lost {lost}.");
        text
    }
}

fn milliseconds(latency: Duration) -> String {
    let milliseconds = latency.as_secs_f64() * 1000.0;
    let decimals = if milliseconds < 10.0 { 2 } else { 0 };
    format!("{milliseconds:.decimals$} ms")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mixed() -> Summary {
        let mut summary =
            Summary { took: Duration::from_secs(2), certificate_ends: Some(86_400 * 30), ..Summary::default() };
        let mut other = Summary::default();
        summary.answered(200, Duration::from_millis(1));
        summary.answered(200, Duration::from_millis(1));
        other.answered(204, Duration::from_millis(1));
        other.answered(401, Duration::from_millis(100));
        other.unanswered("nobody listens".to_owned(), Duration::from_millis(1));
        summary.add(other);
        summary
    }

    #[test]
    fn all_without_a_2xx_is_lost() {
        let summary = mixed();
        assert_eq!((summary.sent, summary.errors(), summary.lost()), (5, 1, 2));
    }

    #[test]
    fn scripts_get_exactly_the_documented_keys() {
        let value: Value = serde_json::from_str(&mixed().json()).unwrap();
        let latency = value["latency_seconds"].clone();
        let expected = json!({"sent": 5, "answers": {"200": 2, "204": 1, "401": 1}, "errors": 1, "lost": 2, "latency_seconds": latency});
        assert_eq!(value, expected);
        assert_eq!(latency.as_object().unwrap().keys().collect::<Vec<_>>(), ["max", "p50", "p99", "p999"]);
        assert!((0.001..0.00101).contains(&latency["p50"].as_f64().unwrap()));
        assert_eq!(latency["max"], json!(0.1));
        let none: Value = serde_json::from_str(&Summary::default().json()).unwrap();
        assert_eq!(
            (&none["sent"], &none["answers"], &none["latency_seconds"]["p50"]),
            (&json!(0), &json!({}), &Value::Null)
        );
    }

    #[test]
    fn people_get_a_table() {
        assert_eq!(
            mixed().text(86_400 * 20 + 1),
            "sent         5 in 2.0 s (2 a second)
answered     200  2
answered     204  1
answered     401  1
unanswered   1  nobody listens
latency      p50 1.00 ms, p99 100 ms, p99.9 100 ms, max 100 ms
certificate  9 days left
A real SIPSIM would have lost 2 of 5: no 2xx within 2 s, and no second try.
"
        );
    }

    #[test]
    fn problems_are_bounded() {
        let mut summary = Summary::default();
        for number in 0..100 {
            summary.unanswered(format!("problem {number}"), TIMEOUT);
        }
        assert_eq!((summary.problems.len(), summary.errors()), (PROBLEMS_MAX + 1, 100));
    }
}
