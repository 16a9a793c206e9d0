//! The `process_*` metrics that Prometheus's client libraries have in common, read from /proc at each scrape.

use std::fmt::Write;
use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// Appends them as Prometheus text. `None` where there is no /proc to read; the text is then as it was.
pub(super) fn write(text: &mut String) -> Option<()> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // proc(5) numbers the fields from 1. The second is the program's name in parentheses, which may hold spaces and parentheses of its own.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    let ticks = clock_ticks_per_second() as f64;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()?;
    // Less the one that this opens.
    let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    let open_max = getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, |max| max as f64);
    for (name, kind, help, value) in [
        (
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (field(14)? + field(15)?) / ticks,
        ),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", open_max),
        ("open_fds", "gauge", "Number of open file descriptors.", open as f64),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", field(24)? * page_size() as f64),
        (
            "start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            boot + field(22)? / ticks,
        ),
        ("threads", "gauge", "Number of OS threads in the process.", field(20)?),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(23)?),
    ] {
        // Writing to memory cannot fail.
        let _ = writeln!(text, "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}");
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_are_plausible_for_this_process() {
        let mut text = String::new();
        write(&mut text).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("process_{name} ")));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
        };
        let now = crate::clock::now().as_seconds_f64();
        assert!((now - 3600.0..=now).contains(&value("start_time_seconds")), "{text}");
        assert!((3.0..value("max_fds")).contains(&value("open_fds")), "{text}");
        assert!((1e6..value("virtual_memory_bytes")).contains(&value("resident_memory_bytes")), "{text}");
        assert!((1.0..10_000.0).contains(&value("threads")), "{text}");
        assert!((0.0..3600.0).contains(&value("cpu_seconds_total")), "{text}");
    }
}
