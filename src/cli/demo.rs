//! `demo`: a relay on free ports in a temporary folder, a SIPSIM that plays calls at it, and an output that goes away for a while.
//!
//! What it tells goes to stderr, envelopes to stdout. It tells nothing that it has not checked: see [`Door`].

mod door;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::run::Relay;
use super::{FLUSH_MAX, interrupted, notice};
use crate::clock;
use crate::config::{self, Config, LogFormat, Name, OutputKind};
use crate::normalize::Known;
use crate::publish::Stream;
use crate::secret::Secret;
use crate::simulate::calls::{Calls, Plan, Player};
use crate::simulate::http::Connection;
use crate::simulate::line::{Line, Route};
use crate::simulate::{Tamper, Target};
use crate::stderr;
use door::Door;

/// How long the output stays away: time to see it.
const OUTAGE: Duration = Duration::from_secs(3);
/// How long an output may take to notice that it is back, before the demo calls what has not come lost.
const RETURN_MAX: Duration = Duration::from_secs(60);

/// Plays the demo in a folder of its own, which it removes. `Ok(false)` if anything was lost.
pub fn demo() -> Result<bool, String> {
    stderr::start();
    super::logging::start(&config::Log { format: LogFormat::Text, level: tracing::Level::ERROR });
    let folder = Folder::make()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let all_well = runtime.block_on(demonstrate(&folder.0, io::stdout().is_terminal()));
    runtime.shutdown_background(); // Nor is a stdout waited for that nobody reads.
    all_well
}

async fn demonstrate(folder: &Path, stay: bool) -> Result<bool, String> {
    let secret_file = folder.join("secret");
    let secret = make_secret(&secret_file)?;
    let door = Door::new(Box::new(io::stdout()));
    let relay =
        Relay::start(config(folder, &secret_file)?, Stream::new(Box::new(door.clone()), io::stdout().is_terminal()))
            .await?;
    let stage =
        Stage { public: relay.public_addr(), admin: relay.admin_addr(), secret, door, tell: Box::new(to_stderr) };
    let all_well = tokio::select! {
        ended = stage.play(OUTAGE, RETURN_MAX) => ended,
        () = interrupted() => {
            notice(format_args!("\nEnded before it was over."));
            stage.door.open(); // What waits may still leave.
            relay.stop().await;
            return Ok(true);
        }
    };
    if stay && all_well.is_ok() {
        stage.door.stop_watching();
        stage.title("The relay goes on until Ctrl-C. For more of SIPSIM, in another terminal:");
        stage.line(&format!("sipsim-relay simulate --to {} --secret-file {}", stage.url(), secret_file.display()));
        interrupted().await;
    }
    relay.stop().await;
    all_well
}

/// Where the play takes place: a relay, and the door its envelopes come out of.
struct Stage {
    public: SocketAddr,
    admin: SocketAddr,
    secret: Secret,
    door: Door,
    tell: Box<dyn Fn(Told<'_>) + Send + Sync>,
}

/// One line of the story.
enum Told<'a> {
    Title(&'a str),
    Line(&'a str),
}

/// The 200's body.
#[derive(Deserialize)]
struct Accepted {
    id: String,
}

impl Stage {
    fn url(&self) -> String {
        format!("http://{}/webhooks/sipsim", self.public)
    }

    fn title(&self, text: &str) {
        (self.tell)(Told::Title(text));
    }

    fn line(&self, text: &str) {
        (self.tell)(Told::Line(text));
    }

    /// The whole play. `Ok(false)` if an event was not answered 200, did not come out, or came out of order.
    async fn play(&self, outage: Duration, return_max: Duration) -> Result<bool, String> {
        self.prologue().await?;
        let target = Target::parse(&self.url())?;
        let mut sipsim = Line::new(Route::new(&target, &self.secret, None, None)?);
        let mut calls = Calls::new(Plan::Calls, fastrand::u32(..)).player();
        let mut sent = 0;

        self.title(
            "1. SIPSIM plays a call: each event is signed, answered 200 once it is on disk, and leaves on stdout.",
        );
        loop {
            sent += 1;
            self.door.hold();
            self.line(&self.post(&mut sipsim, &mut calls).await?);
            let door = self.door.clone();
            let released = spawn_blocking(move || door.release()).await.map_err(|error| error.to_string())?;
            released.map_err(|error| format!("cannot write to stdout: {error}"))?;
            if !self.all_out(return_max).await {
                return Err(format!("it was answered 200, but did not leave within {} s", return_max.as_secs()));
            }
            if calls.is_between_calls() {
                break;
            }
        }

        self.title("2. Somebody without the secret posts an event.");
        let mut forger = Line::new(Route::new(&target, &self.secret, None, Some(Tamper::Signature))?);
        let refused =
            self.post(&mut forger, &mut Calls::new(Plan::Only(Known::Sms), fastrand::u32(..)).player()).await?;
        self.line(&refused);

        self.title(&format!(
            "3. The output goes away for {} seconds. Webhooks are answered all the same.",
            outage.as_secs()
        ));
        self.door.shut();
        let back = sleep(outage);
        loop {
            sent += 1;
            let answer = self.post(&mut sipsim, &mut calls).await?;
            self.line(&format!("{answer}, {} waiting", self.pending().await?));
            if calls.is_between_calls() {
                break;
            }
            sleep(outage / 12).await;
        }
        back.await;
        let during = self.door.tally();

        self.title("4. The output is back.");
        self.door.open();
        self.all_out(return_max).await; // What has not come by then is lost, and said to be.
        self.line(&format!("{} waiting", self.pending().await?));

        let tally = self.door.tally();
        let waited = during.accepted - during.published;
        let mut wrong = Vec::new();
        if !refused.contains(" 401 ") {
            wrong.push("the forged event was not refused".to_owned());
        }
        match tally.disorder {
            Some(which) => wrong.push(format!("not what was answered, or not in order: {which}")),
            None if tally.published < sent => wrong.push(format!("LOST: {}", sent - tally.published)),
            None => {}
        }
        self.title(&format!("Sent {sent}, answered 200: {}, published: {}.", tally.accepted, tally.published));
        if tally.again > 0 {
            self.line(&format!(
                "{} came out twice: an output that fails in the middle of a write is told again.",
                tally.again
            ));
        }
        match wrong.is_empty() {
            true => {
                self.line(&format!("Nothing was lost. The {waited} that waited left in the order in which they came."))
            }
            false => self.line(&wrong.join("\n")),
        }
        Ok(wrong.is_empty())
    }

    /// Says where everything is, having looked that it is there.
    async fn prologue(&self) -> Result<(), String> {
        let admin = self.admin;
        for path in ["/", "/metrics"] {
            match get(admin, path).await? {
                (200, _) => {}
                (status, _) => return Err(format!("http://{admin}{path} answers {status}")),
            }
        }
        self.title("A relay and a simulated SIPSIM, in a temporary folder: no broker, no configuration.");
        self.line(&format!("webhooks     {}", self.url()));
        self.line(&format!("status page  http://{admin}/"));
        self.line(&format!("metrics      http://{admin}/metrics"));
        Ok(())
    }

    /// Posts the next event and puts in words what came of it.
    async fn post(&self, line: &mut Line, player: &mut Player) -> Result<String, String> {
        let now = clock::now().as_seconds();
        let mut body = Vec::new();
        let event = player.next(now, &mut body).ok_or("the calls are at their end")?;
        let begun = Instant::now();
        let outcome = line.post(now, &body).await;
        let took = (outcome.answered_at - begun).as_secs_f64() * 1000.0;
        let said = match &outcome.answer {
            Ok(status) => format!("{status} in {took:.1} ms"),
            Err(problem) => problem.clone(),
        };
        if outcome.is_delivered() {
            let accepted: Accepted =
                serde_json::from_slice(line.answer()).map_err(|_| "the relay's 200 names no id".to_owned())?;
            self.door.expect(accepted.id);
        }
        Ok(format!("{:<38} {said}", event.as_str()))
    }

    /// Waits until all that was answered 200 has come out, and says whether it did within `patience`.
    async fn all_out(&self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        loop {
            let tally = self.door.tally();
            if tally.published == tally.accepted || tally.disorder.is_some() || Instant::now() > give_up {
                return tally.published == tally.accepted;
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// What the relay's metrics say waits, once that is what must wait, or after a second. They may lag behind the answers a little.
    async fn pending(&self) -> Result<u64, String> {
        let give_up = Instant::now() + Duration::from_secs(1);
        loop {
            let tally = self.door.tally();
            let (_, metrics) = get(self.admin, "/metrics").await?;
            let pending =
                metrics.lines().find_map(|line| line.strip_prefix("sipsim_relay_events_pending{output=\"console\"} "));
            let pending = pending.and_then(|number| number.parse().ok()).ok_or("/metrics has no events_pending")?;
            if pending == tally.accepted - tally.published || Instant::now() > give_up {
                return Ok(pending);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// One GET on the relay's admin port: status and body.
async fn get(admin: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let failed = |error: &dyn std::fmt::Debug| format!("http://{admin}{path}: {error:?}");
    let asked = async {
        let stream = TcpStream::connect(admin).await.map_err(|error| failed(&error))?;
        let mut body = Vec::new();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        let answer =
            Connection::new(stream).exchange(request.as_bytes(), &mut body).await.map_err(|error| failed(&error))?;
        Ok((answer.status, String::from_utf8_lossy(&body).into_owned()))
    };
    timeout(Duration::from_secs(5), asked).await.map_err(|_| failed(&"no answer within 5 s"))?
}

fn to_stderr(told: Told<'_>) {
    match told {
        Told::Title(text) if io::stderr().is_terminal() => {
            stderr::write(format!("\n\x1b[1m{text}\x1b[0m\n").as_bytes())
        }
        Told::Title(text) => notice(format_args!("\n{text}")),
        Told::Line(text) => notice(format_args!("   {text}")),
    }
    stderr::flush(FLUSH_MAX); // So that it stands before what goes to stdout next, where both are one terminal.
}

/// A folder that only this user can look into, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("sipsim-relay-demo-{:08x}", fastrand::u32(..)));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| format!("cannot make the folder {}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // A temporary folder that cannot be removed is the system's to clear.
    }
}

/// 32 random bytes as hex, as the relay makes its own.
fn make_secret(file: &Path) -> Result<Secret, String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random bytes: {error}"))?;
    let secret = hex::encode(bytes);
    let mut options = fs::OpenOptions::new();
    let created = options.write(true).create_new(true).mode(0o600).open(file);
    let written = created.and_then(|mut file| file.write_all(secret.as_bytes()));
    written.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(Secret::new(secret.into_bytes()))
}

/// The defaults of `relay.toml`, but for free ports and the folder.
fn config(folder: &Path, secret_file: &Path) -> Result<Config, String> {
    let name = |text| Name::new(text).ok_or_else(|| format!("{text} is no name"));
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(Config {
        instance: "demo".to_owned(),
        ingress: config::Ingress {
            listen: free_port,
            body_max: 8 << 20,
            headers_max: 16 << 10,
            buffered_max: 64 << 20,
            deadline: Duration::from_millis(1800),
            idle_timeout: Duration::from_secs(620),
            connections_max: 4096,
            tls: None,
        },
        accounts: vec![config::Account {
            name: name("default")?,
            path: "/webhooks/sipsim".to_owned(),
            secrets: Some(secret_file.to_owned()),
            environment_secret: None,
            tolerance: Duration::from_secs(300),
            journal_max: None,
            keep_refused: 4 << 20,
        }],
        events: config::Events::default(),
        envelope: config::Envelope { source: "/sipsim/{account}".to_owned() },
        journal: config::Journal {
            path: folder.join("journal").join("journal.db"),
            size_max: 8 << 30,
            free_min: 64 << 20,
            retention: Duration::from_secs(24 * 3600),
            trail: Duration::from_secs(30 * 24 * 3600),
        },
        outputs: vec![config::Output { name: name("console")?, kind: OutputKind::Console }],
        admin: config::Admin { listen: free_port, hosts: Vec::new() },
        shutdown: config::Shutdown { delay: Duration::ZERO, drain: Duration::from_secs(5) },
        log: config::Log { format: LogFormat::Text, level: tracing::Level::ERROR },
    })
}
