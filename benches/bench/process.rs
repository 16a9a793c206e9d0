//! Processes under test: started, watched in /proc, ended by their own id.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What a process has used so far.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// User and system, of all its threads, in hundredths of a second, which is Linux's USER_HZ everywhere.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    /// The most that it ever had.
    pub resident_max_bytes: u64,
    /// Handed to the disk so far.
    pub written_bytes: u64,
}

impl Usage {
    /// Zeroes for a process that is gone.
    pub fn of(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = read("stat");
        // The name, in parentheses, may hold spaces; what follows it begins with the third field.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |field: usize| {
            after_name.split_whitespace().nth(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let status = read("status");
        let io = read("io");
        Self {
            cpu_seconds: (ticks(14) + ticks(15)) / 100.0,
            resident_bytes: field(&status, "VmRSS:") * 1024,
            resident_max_bytes: field(&status, "VmHWM:") * 1024,
            written_bytes: field(&io, "write_bytes:"),
        }
    }
}

/// CPU seconds of the threads that live, to the nanosecond: for one that does next to nothing.
pub fn cpu_seconds(pid: u32) -> f64 {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let spent = threads.filter_map(Result::ok).filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    spent.sum::<u64>() as f64 / 1e9
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A process of ours, ended with this value.
pub struct Running {
    child: Child,
    lines: Option<BufReader<std::process::ChildStdout>>,
}

impl Running {
    pub fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let lines = child.stdout.take().map(BufReader::new);
        Ok(Self { child, lines })
    }

    /// One whose standard output is thrown away, and whose log goes to a file.
    pub fn start_unheard(command: &mut Command, log: &Path) -> Result<Self, String> {
        let log = std::fs::File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Ok(Self { child: child.map_err(|error| format!("{command:?}: {error}"))?, lines: None })
    }

    /// This program in another role.
    pub fn role(arguments: &[&str]) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        Self::start(Command::new(program).args(arguments))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its standard output; an error when it ends without.
    pub fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.lines.as_mut().map(|lines| lines.read_line(&mut line)) {
            Some(Ok(1..)) => Ok(line.trim().to_owned()),
            _ => Err("a program under test ended early; what it said stands above".to_owned()),
        }
    }

    /// The address that it prints first.
    pub fn address(&mut self) -> Result<SocketAddr, String> {
        self.line()?.parse().map_err(|_| "a server of the benchmark printed no address".to_owned())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command to its end.
pub fn complete(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!("{command:?} failed\n{text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}
