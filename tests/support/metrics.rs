//! Reads what `/metrics` says, by the text format's own rules.

use std::collections::{BTreeMap, BTreeSet};

/// One reading of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Panics at a line that is not in the text format, showing it.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { series: lines.map(|line| series(line).unwrap_or_else(|| panic!("not a metric: {line}"))).collect() }
    }

    /// The value of exactly one series: that which has these labels, whatever others. `None` if there is none; panics if there are several.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found: Vec<&Series> = self.matching(name, labels).collect();
        assert!(found.len() <= 1, "{name}{labels:?} names {} series", found.len());
        found.first().map(|series| series.value)
    }

    /// As [`Metrics::find`], but panics if there is none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("/metrics has no {name}{labels:?}"))
    }

    /// The sum over all series that have these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// Each name once, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.series.iter().map(|series| series.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Each series by its name and labels, without its value.
    pub fn ids(&self) -> BTreeSet<String> {
        self.series.iter().map(|series| format!("{}{:?}", series.name, series.labels)).collect()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| {
            series.name == name && labels.iter().all(|(k, v)| series.labels.get(*k).is_some_and(|value| value == v))
        })
    }
}

/// `name{label="value",…} value [timestamp]`
fn series(line: &str) -> Option<Series> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(label.to_owned(), value);
            rest = after.strip_prefix(',').unwrap_or(after);
        }
    }
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Series { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what comes after that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[test]
fn metrics_are_read_with_their_labels() {
    let text =
        "# TYPE a counter\na{x=\"1\",y=\"b\\\"}\\\\\"} 2\na{x=\"2\",y=\"\"} 3e1\nb 4.5\nc_bucket{le=\"+Inf\"} +Inf\n";
    let metrics = Metrics::parse(text);
    assert_eq!(metrics.get("a", &[("y", "b\"}\\")]), 2.0);
    assert_eq!(metrics.sum("a", &[]), 32.0);
    assert_eq!(metrics.get("b", &[]), 4.5);
    assert_eq!(metrics.get("c_bucket", &[("le", "+Inf")]), f64::INFINITY);
    assert_eq!(metrics.find("a", &[("x", "3")]), None);
    assert_eq!(metrics.names(), ["a", "b", "c_bucket"]);
}
