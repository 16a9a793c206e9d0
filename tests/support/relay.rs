//! The real program, as `cargo test` built it, in a temporary folder of its own.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{PipeReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Answer, Client, Metrics, finish, now, sign, wait_for};

/// The signing secret that every relay of the tests begins with, in `data/secrets/sipsim`.
pub const SECRET: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Where the account `default` listens.
pub const PATH: &str = "/webhooks/sipsim";

/// A relay of its own: folder, ports, secret, journal. Killed and removed when dropped.
pub struct Relay {
    folder: TempDir,
    pub ingress: SocketAddr,
    pub admin: SocketAddr,
    child: Option<Child>,
    environment: Vec<(String, String)>,
    /// The read ends of pipes that took the place of the file `stdout`, see [`Relay::print_to_pipe`].
    pipe: Option<PipeReader>,
}

impl Relay {
    /// Lays out the folder without starting anything. `config` is TOML; `ingress.listen` and `admin.listen` are added to it where it says
    /// nothing of them. The working directory is the folder, so that the journal is its `data/journal.db`.
    pub fn prepare(config: &str) -> Self {
        let folder = TempDir::with_prefix("sipsim-relay-test-").expect("a temporary folder");
        let relay = Self {
            folder,
            ingress: free_address(),
            admin: free_address(),
            child: None,
            environment: Vec::new(),
            pipe: None,
        };
        relay.configure(config);
        fs::create_dir_all(relay.path("data/secrets")).expect("a folder for secrets");
        for folder in ["data", "data/secrets"] {
            fs::set_permissions(relay.path(folder), Permissions::from_mode(0o700)).expect("its mode");
        }
        relay.write_secret("sipsim", SECRET);
        relay
    }

    /// [`Relay::prepare`] and [`Relay::run`].
    pub fn start(config: &str) -> Self {
        let mut relay = Self::prepare(config);
        relay.run();
        relay
    }

    /// Writes `relay.toml` anew, with the ports that this relay has. A running one does not notice.
    pub fn configure(&self, config: &str) {
        let mut table: toml::Table =
            config.parse().unwrap_or_else(|error| panic!("the test's TOML: {error}\n{config}"));
        for (section, address) in [("ingress", self.ingress), ("admin", self.admin)] {
            let keys = table.entry(section).or_insert_with(|| toml::Table::new().into());
            let keys = keys.as_table_mut().expect("sections are tables");
            keys.entry("listen").or_insert_with(|| address.to_string().into());
        }
        fs::write(self.path("relay.toml"), table.to_string()).expect("relay.toml");
    }

    /// Adds or replaces one file of `data/secrets`, mode 0600.
    pub fn write_secret(&self, name: &str, secret: &str) {
        let path = self.path("data/secrets").join(name);
        fs::write(&path, secret).expect("a secret's file");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its mode");
    }

    /// Sets a variable for all its processes to come, over what was set before.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.into(), value.into()));
    }

    /// A file of this relay's folder.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// `sipsim-relay ARGS… --config relay.toml`, ready to run in the relay's folder, with no `RELAY_…` variable of whoever runs the tests.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.folder.path());
        command.args(args).arg("--config").arg("relay.toml");
        command
    }

    /// Runs [`Relay::command`] to its end, which must come within 30 s.
    pub fn finish(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args), Duration::from_secs(30))
    }

    /// Starts it and waits until `/startupz` says 200. Panics with its log if it ends before, or after 30 s.
    pub fn run(&mut self) {
        self.spawn();
        self.wait_for_start();
    }

    fn wait_for_start(&mut self) {
        wait_for("/startupz to say 200", Duration::from_secs(30), || {
            if let Some(status) = self.try_wait() {
                panic!("the relay ended at its start, {status}:\n{}", self.stderr());
            }
            (self.get("/startupz")?.status == 200).then_some(())
        });
    }

    /// Starts it with a pipe for its standard output that nobody reads before [`Relay::read_pipe`] and that is all but full: nearly all that it
    /// accepts stays pending. Waits for nothing.
    pub fn spawn_with_output_blocked(&mut self) {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        // Of the 64 KiB that Linux gives a pipe one page is left.
        writer.write_all(&[[b'#'; 59 * 1024].as_slice(), b"\n"].concat()).expect("a pipe takes 64 KiB");
        self.pipe = Some(reader);
        self.spawn_to(writer.into());
    }

    /// [`Relay::spawn_with_output_blocked`], and waits for `/startupz`.
    pub fn run_with_output_blocked(&mut self) {
        self.spawn_with_output_blocked();
        self.wait_for_start();
    }

    /// The whole lines that the process, ended meanwhile, got into the pipe of [`Relay::spawn_with_output_blocked`].
    pub fn read_pipe(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        self.pipe.take().expect("its output was blocked").read_to_end(&mut bytes).expect("a pipe can be read");
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        String::from_utf8_lossy(&bytes[..whole]).lines().skip(1).map(str::to_owned).collect()
    }

    /// Starts it and waits for nothing. What it prints is appended to the files `stdout` and `stderr` of its folder.
    pub fn spawn(&mut self) {
        let stdout = self.stdout_file();
        self.spawn_to(stdout);
    }

    fn stdout_file(&self) -> Stdio {
        // What kill -9 left of a line went out to nobody, and must not become the beginning of the next one.
        let printed = fs::read(self.path("stdout")).unwrap_or_default();
        let whole = printed.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        append(&self.path("stdout")).set_len(whole as u64).expect("a file can be cut");
        append(&self.path("stdout")).into()
    }

    /// Starts another command in the relay's place, printing as it does.
    pub fn spawn_command(&mut self, args: &[&str]) {
        let stdout = self.stdout_file();
        self.spawn_as(args, stdout);
    }

    fn spawn_to(&mut self, stdout: Stdio) {
        self.spawn_as(&["run"], stdout);
    }

    fn spawn_as(&mut self, args: &[&str], stdout: Stdio) {
        assert!(self.child.is_none(), "this relay runs already");
        let child = self
            .command(args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(append(&self.path("stderr")))
            .spawn()
            .expect("the relay's program starts");
        self.child = Some(child);
    }

    /// The process's number, for signals and `/proc`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the relay runs").id()
    }

    /// `kill -9`, and waits for its end.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the relay runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it can be waited for");
    }

    /// As [`Relay::kill9`], of a process that may have ended by itself.
    pub fn kill9_if_alive(&mut self) {
        match self.try_wait() {
            None => self.kill9(),
            Some(_) => self.child = None,
        }
    }

    /// Sends a signal, and waits for nothing.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().try_into().expect("a pid")).expect("not zero");
        kill_process(pid, signal).expect("it can be signalled");
    }

    /// SIGTERM, and its exit status. Panics with its log if it has not ended within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let status = wait_for("the relay to end on SIGTERM", limit, || self.try_wait());
        self.child = None;
        status
    }

    /// The memory that the process has taken at the most, in bytes.
    pub fn memory_max(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux shows it");
        line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number of KiB") * 1024
    }

    /// `kill -9` and [`Relay::run`], on the same ports and journal.
    pub fn restart(&mut self) {
        self.kill9();
        self.run();
    }

    /// Its exit status, if it has ended.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().expect("it can be waited for")
    }

    /// All that it printed on standard output so far, over restarts.
    pub fn stdout(&self) -> String {
        read(&self.path("stdout"))
    }

    /// Its log so far, over restarts.
    pub fn stderr(&self) -> String {
        read(&self.path("stderr"))
    }

    /// What the console output printed so far: one envelope a whole line.
    pub fn envelopes(&self) -> Vec<serde_json::Value> {
        let stdout = self.stdout();
        let whole = stdout.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// `GET` on the admin port; `None` if nobody answers.
    pub fn get(&self, path: &str) -> Option<Answer> {
        Client::connect(self.admin).ok()?.get(path).ok()
    }

    /// What `/metrics` says now.
    pub fn metrics(&self) -> Metrics {
        let answer = self.get("/metrics").expect("the admin port answers");
        assert_eq!(answer.status, 200, "{}", answer.text());
        Metrics::parse(&answer.text())
    }

    /// Waits until its log has all of these, and returns it. A thread of its own writes the log, so a line may come after what it tells of.
    pub fn logged(&self, parts: &[&str]) -> String {
        wait_for(&format!("the log to have {parts:?}"), Duration::from_secs(10), || {
            let log = self.stderr();
            parts.iter().all(|part| log.contains(part)).then_some(log)
        })
    }

    /// Posts a body as SIPSIM would, signed now with [`SECRET`], on a connection of its own.
    pub fn post(&self, body: &[u8]) -> Answer {
        let timestamp = now().to_string();
        let signature = sign(SECRET, &timestamp, body);
        self.post_with(&[("X-Webhook-Timestamp", &timestamp), ("X-Webhook-Signature", &signature)], body)
    }

    /// Posts a body with these headers and no others, on a connection of its own.
    pub fn post_with(&self, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut client = Client::connect(self.ingress).expect("the public port answers");
        client.request("POST", PATH, headers, body).expect("an answer")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("---- the relay's log\n{}", self.stderr());
        }
    }
}

/// The program in a folder, deaf to the `RELAY_…` variables of whoever runs the tests.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sipsim-relay"));
    command.current_dir(folder);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RELAY_") {
            command.env_remove(name);
        }
    }
    command
}

/// A loopback address that nobody listens on and that no test, of this process or another, was given and may yet use. Its port is below the range out of
/// which the kernel gives ports to clients, so that none of them takes it between now and the moment the relay listens, or while that is down.
pub fn free_address() -> SocketAddr {
    // Bound for as long as the process lives: who is to have a port is told by UDP, of which nothing else here makes use.
    static CLAIMS: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    wait_for("a free port between 10000 and 19999", Duration::from_secs(10), || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..20_000)));
        let claim = UdpSocket::bind(address).ok()?;
        TcpListener::bind(address).ok()?;
        CLAIMS.lock().expect("nobody panics with it").push(claim);
        Some(address)
    })
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("a file for what the relay prints")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
