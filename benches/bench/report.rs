//! What was measured: as a table for people, and as JSON by which two versions can be compared.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Everything of one call of the benchmark.
#[derive(Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub machine: Vec<String>,
    pub settings: Vec<String>,
    pub groups: Vec<Group>,
}

/// Programs that were given the same work, in turn, so that what disturbs the machine disturbs them alike.
#[derive(Serialize, Deserialize)]
pub struct Group {
    pub name: String,
    /// Whose rate the others' is divided by, run by run.
    pub floor: String,
    pub rate: String,
    pub programs: Vec<Program>,
    #[serde(default)]
    pub aims: Vec<Aim>,
}

/// What a figure is to be.
#[derive(Serialize, Deserialize)]
pub struct Aim {
    program: String,
    column: String,
    /// A lower limit, not an upper one.
    is_least: bool,
    limit: f64,
    /// The limit is this many times the same figure of another program.
    of: Option<String>,
    /// Every run is to keep it, not only the median.
    every_run: bool,
}

impl Aim {
    pub fn least(program: &str, column: &str, limit: f64) -> Self {
        Self { program: program.into(), column: column.into(), is_least: true, limit, of: None, every_run: false }
    }

    pub fn most(program: &str, column: &str, limit: f64) -> Self {
        Self { is_least: false, ..Self::least(program, column, limit) }
    }

    pub fn never_over(program: &str, column: &str, limit: f64) -> Self {
        Self { every_run: true, ..Self::most(program, column, limit) }
    }

    /// At most so many times what `other` shows.
    pub fn most_of(program: &str, column: &str, other: &str, limit: f64) -> Self {
        Self { of: Some(other.into()), ..Self::most(program, column, limit) }
    }

    /// What is looked at, the limit, and whether it is kept. `None` if it was not measured.
    fn judge(&self, group: &Group) -> Option<(f64, f64, bool)> {
        let values =
            |name: &str| group.programs.iter().find(|program| program.name == name)?.values.get(&self.column).cloned();
        let own = values(&self.program)?;
        let figure = if self.every_run { own.into_iter().fold(f64::MIN, f64::max) } else { median(&own) };
        let limit = match &self.of {
            Some(other) => median(&values(other)?) * self.limit,
            None => self.limit,
        };
        Some((figure, limit, if self.is_least { figure >= limit } else { figure <= limit }))
    }
}

#[derive(Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    /// By column, a value of each run.
    pub values: BTreeMap<String, Vec<f64>>,
}

/// The columns in the order of the table, with their decimals. The first is the rate.
const COLUMNS: [(&str, usize); 21] = [
    ("per second", 0),
    ("of the floor", 2),
    ("p50 ms", 2),
    ("p99 ms", 1),
    ("p99.9 ms", 1),
    ("max ms", 0),
    ("refused", 0),
    ("not 2xx", 0),
    ("CPU s / 10,000", 3),
    ("CPU µs each", 1),
    ("load's CPU µs each", 1),
    ("KB written each", 1),
    ("s until all published", 1),
    ("published/s", 0),
    ("backlog left", 0),
    ("% of a core", 3),
    ("ready after s", 2),
    ("KB a connection", 1),
    ("MB", 0),
    ("MB at start", 0),
    ("MB at most", 0),
];

impl Group {
    pub fn new(name: String, floor: &str, rate: &str) -> Self {
        Self { name, floor: floor.into(), rate: rate.into(), programs: Vec::new(), aims: Vec::new() }
    }

    /// Notes one run of a program.
    pub fn add(&mut self, program: &str, values: &[(&str, f64)]) {
        eprintln!(
            "  {program}: {}",
            values.iter().map(|(column, value)| format!("{column} {value:.3}")).collect::<Vec<_>>().join(", ")
        );
        let index = self.programs.iter().position(|known| known.name == program).unwrap_or_else(|| {
            self.programs.push(Program { name: program.into(), values: BTreeMap::new() });
            self.programs.len() - 1
        });
        for (column, value) in values {
            self.programs[index].values.entry((*column).into()).or_default().push(*value);
        }
    }

    /// Fills in each program's rate as a part of the floor's of the same round.
    pub fn finish(&mut self) {
        let rates = |program: &Program| program.values.get("per second").cloned().unwrap_or_default();
        let floor = self.programs.iter().find(|program| program.name == self.floor).map(rates).unwrap_or_default();
        for program in self.programs.iter_mut().filter(|program| program.name != self.floor) {
            let parts = rates(program).iter().zip(&floor).map(|(rate, floor)| rate / floor).collect();
            program.values.insert("of the floor".into(), parts);
        }
    }

    fn table(&self, text: &mut String) {
        let shown: Vec<_> = COLUMNS
            .iter()
            .filter(|(column, _)| self.programs.iter().any(|program| program.values.contains_key(*column)))
            .collect();
        // A String takes whatever is written.
        let _ = writeln!(text, "\n### {}\n", self.name);
        let heads = shown.iter().map(|(column, _)| if *column == "per second" { self.rate.as_str() } else { column });
        let _ = writeln!(
            text,
            "| program | {} |\n|---|{}",
            heads.collect::<Vec<_>>().join(" | "),
            "---:|".repeat(shown.len())
        );
        for program in &self.programs {
            let _ = write!(text, "| {} ", program.name);
            for (column, decimals) in &shown {
                let cell = program.values.get(*column).map(|values| spread(values, *decimals)).unwrap_or_default();
                let _ = write!(text, "| {cell} ");
            }
            let _ = writeln!(text, "|");
        }
    }
}

/// The decimals of a column.
fn decimals(column: &str) -> usize {
    COLUMNS.iter().find(|(name, _)| *name == column).map_or(2, |(_, decimals)| *decimals)
}

/// Minimum, median and maximum; of one run its figure.
fn spread(values: &[f64], decimals: usize) -> String {
    let sorted = sorted(values);
    let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else { return String::new() };
    if values.len() == 1 {
        return format!("{min:.decimals$}");
    }
    format!("{min:.decimals$} / {:.decimals$} / {max:.decimals$}", median(values))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => (sorted[count / 2 - 1] + sorted[count / 2]) / 2.0,
    }
}

impl Report {
    pub fn text(&self) -> String {
        let mut text = format!("sipsim-relay {}\n\n", self.version);
        for line in self.machine.iter().chain(&self.settings) {
            let _ = writeln!(text, "- {line}");
        }
        let _ = writeln!(text, "\nEach cell: minimum / median / maximum of the runs.");
        for group in &self.groups {
            group.table(&mut text);
        }
        self.aims(&mut text);
        text
    }

    /// Every aim beside its figure.
    fn aims(&self, text: &mut String) {
        let _ = writeln!(text, "\n### Aims\n\n| work | program | figure | aim | seen | |\n|---|---|---|---:|---:|---|");
        for (group, aim) in self.groups.iter().flat_map(|group| group.aims.iter().map(move |aim| (group, aim))) {
            let Some((figure, limit, is_met)) = aim.judge(group) else { continue };
            let decimals = decimals(&aim.column);
            let _ = writeln!(
                text,
                "| {} | {} | {}{} | {} {limit:.decimals$} | {figure:.decimals$} | {} |",
                group.name,
                aim.program,
                aim.column,
                if aim.every_run { ", any run" } else { "" },
                if aim.is_least { "≥" } else { "≤" },
                if is_met { "met" } else { "**missed**" }
            );
        }
    }

    pub fn save(&self, file: &Path) -> Result<(), String> {
        let json = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(file, json).map_err(|error| format!("{}: {error}", file.display()))
    }

    pub fn load(file: &Path) -> Result<Self, String> {
        let json = std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_slice(&json).map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Medians then and now, of every figure that both have.
    pub fn against(&self, before: &Report) -> String {
        let mut text = format!(
            "\n### {} against {}: medians\n\n| work | program | figure | before | now | now / before |\n|---|---|---|---:|---:|---:|\n",
            self.version, before.version
        );
        for group in &self.groups {
            let Some(old) = before.groups.iter().find(|old| old.name == group.name) else { continue };
            for program in &group.programs {
                let Some(old) = old.programs.iter().find(|old| old.name == program.name) else { continue };
                for (column, decimals) in COLUMNS {
                    let (Some(was), Some(is)) = (old.values.get(column), program.values.get(column)) else { continue };
                    let (was, is) = (median(was), median(is));
                    let _ = writeln!(
                        text,
                        "| {} | {} | {column} | {was:.decimals$} | {is:.decimals$} | {:.2} |",
                        group.name,
                        program.name,
                        is / was
                    );
                }
            }
        }
        text
    }
}

/// Processors, memory, kernel and disk.
pub fn machine(folder: &Path) -> Vec<String> {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).unwrap_or_else(|| "unknown".into())
    };
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = value(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let mounts = read("/proc/self/mounts");
    let mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        folder.starts_with(at).then(|| (at.len(), format!("{kind} on {device}")))
    });
    vec![
        format!("{processors} processors: {}", value(&read("/proc/cpuinfo"), "model name")),
        format!(
            "{:.0} GiB of memory, Linux {}",
            memory as f64 / (1 << 20) as f64,
            read("/proc/sys/kernel/osrelease").trim()
        ),
        format!("journal and floor on {}", mounted.max().map_or("an unknown filesystem".into(), |(_, kind)| kind)),
        format!(
            "load average at the start {}",
            read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(", ")
        ),
    ]
}
