//! Standard output, standard error and files that neither take anything nor fail: they cost their own lines, and never the end.

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, Load, Relay, wait_for, wait_until};

const BODY: &[u8] = br#"{"event":"sms","message":"stuck"}"#;
/// What the stop may take beside `shutdown.delay` and `shutdown.drain`.
const SLACK: Duration = Duration::from_secs(2);
/// What Linux gives a pipe.
const PIPE_BYTES: usize = 64 * 1024;

/// A pipe that takes nothing more until it is read: lines of one character.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&b"#\n".repeat(PIPE_BYTES / 2)).expect("a pipe takes 64 KiB");
    (reader, writer)
}

/// A pipe that somebody begins to read.
struct Reading {
    text: Arc<Mutex<Vec<u8>>>,
    end: JoinHandle<()>,
}

impl Reading {
    fn start(mut reader: PipeReader) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&text);
        let end = thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut part) {
                taken.lock().expect("no panic").extend_from_slice(&part[..count]);
            }
        });
        Self { text, end }
    }

    /// What was in it so far, without what filled it.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("no panic")).trim_start_matches("#\n").to_owned()
    }

    /// The same, once all its writers have closed it.
    fn whole(self) -> String {
        let text = Arc::clone(&self.text);
        self.end.join().expect("reading");
        String::from_utf8(text.lock().expect("no panic").clone()).expect("UTF-8").trim_start_matches("#\n").to_owned()
    }
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
}

/// Whether a process handles SIGTERM.
fn listens(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).expect("Linux shows it");
    u64::from_str_radix(caught, 16).expect("hex") & 1 << (Signal::TERM.as_raw() - 1) != 0
}

/// A program with outputs of its own, killed when dropped.
struct Running(Child);

impl Running {
    fn start(relay: &Relay, args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Self {
        let mut command = relay.command(args);
        Self(command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().expect("it starts"))
    }

    fn wait_for_start(&mut self, relay: &Relay) {
        wait_until("/startupz to say 200", Duration::from_secs(30), || {
            assert_eq!(self.ended(), None);
            relay.get("/startupz").is_some_and(|answer| answer.status == 200)
        });
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("it can be waited for")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it can be signalled");
    }

    /// SIGTERM, and its exit code.
    fn terminate(&mut self, limit: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        wait_for("the end on SIGTERM", limit, || self.ended()).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill(); // It may have ended.
        let _ = self.0.wait();
    }
}

#[test]
fn a_stderr_that_nobody_reads_costs_log_lines_and_nothing_else() {
    let relay = Relay::prepare("[log]\nlevel = \"debug\"\n[shutdown]\ndrain = \"1s\"\n");
    let (reader, writer) = full_pipe();
    let stdout = File::create(relay.path("stdout")).expect("a file");
    let mut running = Running::start(&relay, &["run"], stdout, writer);
    running.wait_for_start(&relay);
    // Two lines an event; a mebibyte of them waits.
    let load = Load::start(&relay, 8, |client, number| format!(r#"{{"event":"sms","message":"{client} {number}"}}"#));
    let dropped = || relay.metrics().get("sipsim_relay_log_lines_dropped_total", &[]);
    wait_until("log lines to be dropped", Duration::from_secs(60), || dropped() >= 1.0);
    let not_found = Client::connect(relay.ingress).and_then(|mut client| client.get("/nowhere")).expect("an answer");
    assert_eq!(not_found.status, 404);
    assert_eq!(relay.get("/livez").map(|answer| answer.status), Some(200));
    let sent = load.stop();
    assert!(sent.iter().all(|one| one.is_accepted() || one.stalled), "each was answered 200");
    wait_until("all to be published", Duration::from_secs(30), || relay.envelopes().len() >= sent.len());

    let lost = dropped();
    let log = Reading::start(reader);
    wait_until("it to say how many", Duration::from_secs(10), || {
        log.text().contains(&format!(" {lost} log lines were dropped"))
    });
    let posted = relay.post(BODY).json();
    let id = posted["id"].as_str().expect("an id");
    wait_until("the next line", Duration::from_secs(10), || log.text().contains(id));
    assert_eq!(dropped(), lost);
    assert_eq!(running.terminate(Duration::from_secs(1) + SLACK), Some(0));
    let log = log.whole();
    assert_eq!(log.matches("log lines were dropped").count(), 1);
    assert!(log.ends_with("stopped\n"), "the last lines leave before the end");
}

#[test]
fn with_stdout_and_stderr_full_sigterm_ends_it_in_time_and_what_was_not_written_stays() {
    let relay = Relay::prepare("[shutdown]\ndrain = \"1s\"\n");
    let ((_stdout, to_stdout), (_stderr, to_stderr)) = (full_pipe(), full_pipe());
    let mut running = Running::start(&relay, &["run"], to_stdout, to_stderr);
    running.wait_for_start(&relay);
    for number in 0..5 {
        assert_eq!(relay.post(format!(r#"{{"event":"sms","message":"{number}"}}"#).as_bytes()).status, 200);
    }
    assert_eq!(running.terminate(Duration::from_secs(1) + SLACK), Some(0));
    let mut relay = relay;
    relay.run();
    wait_until("all to come out", Duration::from_secs(10), || relay.envelopes().len() == 5);
}

#[test]
fn with_stdout_and_stderr_full_a_second_sigterm_ends_it_at_once() {
    let relay = Relay::prepare("[shutdown]\ndelay = \"30s\"\n");
    let ((_stdout, to_stdout), (_stderr, to_stderr)) = (full_pipe(), full_pipe());
    let mut running = Running::start(&relay, &["run"], to_stdout, to_stderr);
    running.wait_for_start(&relay);
    assert_eq!(relay.post(BODY).status, 200);
    running.signal(Signal::TERM);
    wait_until("/readyz to say 503", Duration::from_secs(5), || {
        relay.get("/readyz").is_some_and(|answer| answer.status == 503)
    });
    assert_eq!(running.terminate(SLACK), Some(0));
}

#[test]
fn a_start_that_fails_ends_though_nobody_reads_why() {
    let relay = Relay::prepare("[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n");
    fs::remove_file(relay.path("data/secrets/sipsim")).expect("the secret goes");
    let (_reader, writer) = full_pipe();
    let mut running = Running::start(&relay, &["run"], Stdio::null(), writer);
    let status = wait_for("the end", Duration::from_secs(10), || running.ended());
    assert_eq!(status.code(), Some(1));
}

#[test]
fn sigterm_ends_a_start_that_hangs_in_a_file() {
    let relay = Relay::prepare("");
    // Opened for writing, it waits for a reader, as a file on a network mount that hangs waits for its server.
    fifo(&relay.path("data/journal.lock"));
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut running = Running::start(&relay, &["run"], Stdio::null(), writer);
    wait_until("it to listen for SIGTERM", Duration::from_secs(10), || listens(running.0.id()));
    assert_eq!(running.terminate(SLACK), Some(0));
    let log = Reading::start(reader).whole();
    assert!(log.contains("SIGTERM: ending before the start was done"), "{log}");
}

#[test]
fn drain_with_stdout_and_stderr_full_ends_on_sigterm() {
    let mut relay = Relay::prepare("[shutdown]\ndrain = \"1s\"\n");
    relay.run_with_output_blocked();
    for number in 0..100 {
        assert_eq!(relay.post(format!(r#"{{"event":"sms","message":"{number}"}}"#).as_bytes()).status, 200);
    }
    relay.kill9();
    let begun = relay.path("data/journal.db.console");
    let _ = fs::remove_file(&begun); // The one that was killed left it.
    let ((_stdout, to_stdout), (_stderr, to_stderr)) = (full_pipe(), full_pipe());
    let mut running = Running::start(&relay, &["drain"], to_stdout, to_stderr);
    wait_until("it to listen for SIGTERM", Duration::from_secs(10), || listens(running.0.id()));
    wait_until("it to begin to write", Duration::from_secs(10), || begun.exists());
    assert_eq!(running.terminate(Duration::from_secs(5)), Some(1));
}

#[test]
fn demo_with_stdout_and_stderr_full_ends_on_sigterm() {
    let relay = Relay::prepare("");
    let ((_stdout, to_stdout), (_stderr, to_stderr)) = (full_pipe(), full_pipe());
    let mut command = crate::support::program(&relay.path("."));
    command.arg("demo").env("TMPDIR", relay.path(".")).stdin(Stdio::null()).stdout(to_stdout).stderr(to_stderr);
    let mut running = Running(command.spawn().expect("it starts"));
    wait_until("an event to be accepted", Duration::from_secs(30), || {
        assert_eq!(running.ended(), None);
        let mut folders = fs::read_dir(relay.path(".")).expect("a folder").flatten();
        folders.any(|entry| fs::metadata(entry.path().join("journal/journal.db-wal")).is_ok_and(|log| log.len() > 0))
    });
    running.signal(Signal::TERM);
    wait_for("the end", Duration::from_secs(5) + SLACK, || running.ended());
}

/// What stands in a pipe, unread.
fn unread(reader: &PipeReader) -> usize {
    rustix::io::ioctl_fionread(reader).expect("a pipe tells").try_into().expect("a number")
}

fn long(number: u32) -> String {
    format!(r#"{{"event":"sms","message":"{number} {}"}}"#, "x".repeat(10_000))
}

#[test]
fn a_line_that_a_run_left_unfinished_in_a_pipe_does_not_run_into_the_next_runs_first() {
    for kill in [true, false] {
        let relay = Relay::prepare("[shutdown]\ndrain = \"0s\"\n");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let filled = PIPE_BYTES - 5 * 1024;
        writer.write_all(&b"#\n".repeat(filled / 2)).expect("a pipe takes 64 KiB");
        let clone = |writer: &PipeWriter| Stdio::from(writer.try_clone().expect("another handle"));
        let stderr = || OpenOptions::new().create(true).append(true).open(relay.path("stderr")).expect("a file");
        let mut running = Running::start(&relay, &["run"], clone(&writer), stderr());
        running.wait_for_start(&relay);
        for number in 0..3 {
            assert_eq!(relay.post(long(number).as_bytes()).status, 200);
        }
        wait_until("a part of the first line to be written", Duration::from_secs(10), || unread(&reader) > filled);
        match kill {
            true => running.signal(Signal::KILL),
            false => assert_eq!(running.terminate(SLACK), Some(0)),
        }
        running.0.wait().expect("it ends");

        let mut running = Running::start(&relay, &["run"], writer, stderr());
        let all = Reading::start(reader);
        running.wait_for_start(&relay);
        wait_until("all to be published", Duration::from_secs(10), || {
            relay.metrics().get("sipsim_relay_ledger_events", &[("output", "console"), ("state", "published")]) == 3.0
        });
        assert_eq!(running.terminate(SLACK), Some(0));
        let text = all.whole();
        let (whole, broken): (Vec<_>, Vec<_>) = text
            .lines()
            .map(|line| (line, serde_json::from_str::<serde_json::Value>(line)))
            .partition(|(_, envelope)| envelope.is_ok());
        let messages: Vec<_> =
            whole.iter().map(|(_, one)| one.as_ref().expect("whole")["data"]["message"].to_string()).collect();
        let begins = |number: u32| messages.iter().any(|message| message.starts_with(&format!("\"{number} x")));
        assert!((0..3).all(begins), "{} lines, {} of them whole", text.lines().count(), whole.len());
        assert_eq!(broken.len(), 1, "the line that was broken off, and no other");
    }
}

#[test]
fn a_run_that_ended_in_order_is_followed_by_no_empty_line() {
    let relay = Relay::prepare("");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let all = Reading::start(reader);
    for run in 1..=2 {
        let mut running = Running::start(&relay, &["run"], writer.try_clone().expect("another handle"), Stdio::null());
        running.wait_for_start(&relay);
        assert_eq!(relay.post(long(run).as_bytes()).status, 200);
        assert_eq!(running.terminate(Duration::from_secs(20) + SLACK), Some(0));
    }
    drop(writer);
    let text = all.whole();
    let envelopes: Vec<Result<serde_json::Value, _>> = text.lines().map(serde_json::from_str).collect();
    assert!(envelopes.len() == 2 && envelopes.iter().all(Result::is_ok), "{} lines", text.lines().count());
    assert!(!relay.path("data/journal.db.console").exists());
}

#[test]
fn files_that_hang_cost_their_output_and_are_named() {
    let relay = Relay::prepare(
        "[outputs.console]\n[outputs.kafka]\nbrokers = \"127.0.0.1:1\"\n\
         security = { protocol = \"SASL_PLAINTEXT\", mechanism = \"PLAIN\", username = \"relay\", password_file = \"kafka\" }\n\
         [outputs.rabbitmq]\nurls = [\"amqp://127.0.0.1:1/%2f\"]\nusername = \"relay\"\npassword_file = \"rabbitmq\"\n\
         [shutdown]\ndrain = \"1s\"\n",
    );
    let passwords = ["kafka", "rabbitmq"].map(|name| relay.path(name));
    passwords.iter().for_each(|path| fifo(path));
    let file = |name: &str| File::create(relay.path(name)).expect("a file");
    let mut running = Running::start(&relay, &["run"], file("stdout"), file("stderr"));
    running.wait_for_start(&relay);
    assert_eq!(relay.post(BODY).status, 200);
    wait_until("the console to publish", Duration::from_secs(10), || relay.envelopes().len() == 1);
    wait_until("the files to be reported", Duration::from_secs(30), || {
        let log = relay.stderr();
        relay.metrics().get("sipsim_relay_last_reload_successful", &[]) == 0.0
            && log.matches("a file of this output cannot be used: reading them takes longer").count() == 2
            && log.contains("the files that it names did not answer within 10 s")
    });
    assert_eq!(relay.post(b"{}").status, 200);
    assert_eq!(running.terminate(Duration::from_secs(1) + SLACK), Some(0));
}
