//! Odd and forged requests through real proxies that keep their connections to the relay and send the requests of all clients over them: whatever a
//! proxy and the relay each take for the end of a request, a genuine request behind it has its own answer, in time.
//!
//! Beside the real proxies stand lenient ones of our own, which pass bytes on as they came and find the ends of requests in ways that were seen in the
//! wild. They keep what the real ones have learnt to refuse under test.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::sipsim::{Connect, Sipsim, TIMEOUT};
use crate::support::oracle::{self, Arrived};
use crate::support::{
    Client, PATH, Relay, SECRET, Sent, event_id, forged, free_address, now, sign, smuggle, stall, wait_until,
};

const HAPROXY: Program = Program {
    name: "HAProxy",
    command: &["haproxy", "-db", "-f"],
    config: "
global
  nbthread 1
defaults
  mode http
  timeout connect 1s
  timeout server 5s
  timeout client 5s
  timeout http-request 5s
frontend webhooks
  bind LISTEN
  option accept-invalid-http-request
  default_backend relay
backend relay
  http-reuse always
  server relay RELAY
",
};
const NGINX: Program = Program {
    name: "nginx",
    command: &["nginx", "-e", "stderr", "-c"],
    config: "
daemon off;
worker_processes 1;
user root;
pid FOLDER/pid;
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path FOLDER/body;
  proxy_temp_path FOLDER/proxy;
  fastcgi_temp_path FOLDER/fastcgi;
  scgi_temp_path FOLDER/scgi;
  uwsgi_temp_path FOLDER/uwsgi;
  upstream relay { server RELAY; keepalive 16; keepalive_requests 1000000; }
  server {
    listen LISTEN;
    underscores_in_headers on;
    ignore_invalid_headers off;
    location / {
      proxy_pass http://relay;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_request_buffering off;
    }
  }
}
",
};
const APACHE: Program = Program {
    name: "Apache httpd",
    command: &["apache2", "-D", "FOREGROUND", "-f"],
    config: "
ServerRoot FOLDER
ServerName localhost
PidFile FOLDER/pid
DefaultRuntimeDir FOLDER
ErrorLog FOLDER/errors
User daemon
Group daemon
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
StartServers 1
ServerLimit 1
ThreadsPerChild 64
MaxRequestWorkers 64
MaxKeepAliveRequests 0
HttpProtocolOptions Unsafe
Listen LISTEN
ProxyPass / http://RELAY/ ttl=60
",
};

/// Set to take as much as it can, and to share its connections to the relay among all clients.
struct Program {
    name: &'static str,
    command: &'static [&'static str],
    config: &'static str,
}

/// A proxy that runs; ends with this value.
struct Proxy {
    address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Program {
    fn is_installed(&self) -> bool {
        Command::new(self.command[0]).arg("-v").output().is_ok()
    }

    fn start(&self, relay: SocketAddr) -> Proxy {
        let folder = TempDir::with_prefix("sipsim-relay-proxy-").expect("a temporary folder");
        let address = free_address();
        let path = folder.path().to_str().expect("UTF-8");
        let config = self.config.replace("LISTEN", &address.to_string()).replace("RELAY", &relay.to_string());
        let file = folder.path().join("config");
        fs::write(&file, config.replace("FOLDER", path)).expect("its configuration");
        let log = fs::File::create(folder.path().join("log")).expect("a file for its log");
        let (program, arguments) = self.command.split_first().expect("a command");
        let child = Command::new(program)
            .args(arguments)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{} starts: {error}", self.name));
        let proxy = Proxy { address, child, folder };
        wait_until("the proxy to answer", Duration::from_secs(20), || Client::connect(address).is_ok());
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid")).expect("not zero");
        let _ = kill_process(pid, Signal::TERM); // With its children, which SIGKILL would leave.
        let _ = self.child.wait();
        if thread::panicking() {
            for log in ["log", "errors"] {
                eprintln!("---- the proxy\n{}", fs::read_to_string(self.folder.path().join(log)).unwrap_or_default());
            }
        }
    }
}

/// How a proxy might find the end of a request. RFC 9112 allows some of it, and programs like the others were seen in the wild.
#[derive(Clone, Copy, Debug)]
struct Lenient {
    /// With both a length and chunks, the chunks count.
    chunks_win: bool,
    /// A line may end with a line feed alone.
    line_feed_alone: bool,
    /// A coding is chunks if `chunked` stands anywhere in it.
    any_chunked: bool,
}

const LENIENT: [Lenient; 4] = [
    Lenient { chunks_win: true, line_feed_alone: false, any_chunked: false },
    Lenient { chunks_win: false, line_feed_alone: false, any_chunked: false },
    Lenient { chunks_win: false, line_feed_alone: true, any_chunked: true },
    Lenient { chunks_win: true, line_feed_alone: true, any_chunked: true },
];

/// Connections to the relay, with nothing under way.
type Pool = Arc<Mutex<Vec<TcpStream>>>;

impl Lenient {
    /// Serves for the life of the process.
    fn start(self, relay: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            let pool = Pool::default();
            for client in listener.incoming().flatten() {
                let pool = Arc::clone(&pool);
                thread::spawn(move || self.serve(client, relay, &pool));
            }
        });
        address
    }

    /// One client's connection, to its end.
    fn serve(self, mut client: TcpStream, relay: SocketAddr, pool: &Pool) -> std::io::Result<()> {
        let mut read = Vec::new();
        let mut buffer = [0; 4096];
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        loop {
            let Some(end) = self.end(&read) else {
                let length = client.read(&mut buffer)?;
                if length == 0 {
                    return Ok(());
                }
                read.extend_from_slice(&buffer[..length]);
                continue;
            };
            let request: Vec<u8> = read.drain(..end).collect();
            let pooled = pool.lock().expect("nobody panics with it").pop();
            let mut server = pooled.map_or_else(|| TcpStream::connect(relay), Ok)?;
            server.set_read_timeout(Some(Duration::from_secs(5)))?;
            server.write_all(&request)?;
            let answer = answer(&mut server)?;
            client.write_all(&answer)?;
            let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
            if !text.starts_with("http/1.0") && !text.contains("\r\nconnection: close") {
                pool.lock().expect("nobody panics with it").push(server);
            }
        }
    }

    /// Where the request ends; `None` if its end has not come, or this reader refuses it.
    fn end(self, bytes: &[u8]) -> Option<usize> {
        let (mut at, mut chunked, mut length, mut begun) = (0, false, None, false);
        loop {
            let line = self.line(bytes, &mut at)?;
            if line.is_empty() {
                if begun {
                    break;
                }
                continue;
            }
            if !std::mem::replace(&mut begun, true) {
                continue;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (line[..colon].trim_ascii().to_ascii_lowercase(), line[colon + 1..].trim_ascii());
            match &name[..] {
                b"content-length" => length = Some(str::from_utf8(value).ok()?.parse::<usize>().ok()?),
                b"transfer-encoding" => {
                    let value = value.to_ascii_lowercase();
                    chunked |= match self.any_chunked {
                        true => value.windows(7).any(|part| part == b"chunked"),
                        false => value == b"chunked",
                    };
                }
                _ => {}
            }
        }
        if let Some(length) = length
            && !(chunked && self.chunks_win)
        {
            return at.checked_add(length).filter(|end| *end <= bytes.len());
        }
        if !chunked {
            return Some(at);
        }
        loop {
            let line = self.line(bytes, &mut at)?;
            let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
            let size = usize::from_str_radix(str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
            if size == 0 {
                while !self.line(bytes, &mut at)?.is_empty() {}
                return Some(at);
            }
            at = at.checked_add(size).filter(|end| *end <= bytes.len())?;
            if !self.line(bytes, &mut at)?.is_empty() {
                return None; // No reader takes bytes behind a chunk.
            }
        }
    }

    fn line<'a>(self, bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
        let rest = bytes.get(*at..)?;
        let (length, end) = if self.line_feed_alone {
            let feed = rest.iter().position(|byte| *byte == b'\n')?;
            (feed - usize::from(feed > 0 && rest[feed - 1] == b'\r'), feed + 1)
        } else {
            let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
            (end, end + 2)
        };
        *at += end;
        Some(&rest[..length])
    }
}

/// One answer, with the interim ones before it, to the byte. Those of the relay have lengths.
fn answer(server: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        let mut byte = [0];
        while !bytes[start..].ends_with(b"\r\n\r\n") {
            server.read_exact(&mut byte)?;
            bytes.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&bytes[start..]).to_ascii_lowercase();
        if head.starts_with("http/1.1 1") {
            continue;
        }
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        server.read_exact(&mut body)?;
        bytes.extend(body);
        return Ok(bytes);
    }
}

/// Whose bytes a form carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// A stranger's.
    None,
    /// Of a genuine request that the relay has had already.
    Replayed,
    /// Of a genuine request that comes to the relay for the first time.
    New,
}

/// What stands behind each form: a whole request, and half of one that the next one would complete.
fn tails() -> [String; 2] {
    let head = |length| {
        let (timestamp, signature) = (now(), "5a".repeat(32));
        format!(
            "POST {PATH} HTTP/1.1\r\nHost: relay\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {signature}\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let body = r#"{"event":"sms","message":"smuggled"}"#;
    [head(body.len()) + body, head(400) + body]
}

/// The siege of one proxy, and what it is judged by.
struct Scene {
    relay: Relay,
    proxy: SocketAddr,
    /// Genuine requests behind forms.
    sent: Vec<Sent>,
    /// The bodies of forms that are signed.
    signed: RefCell<BTreeSet<String>>,
    /// Attackers' connections. The newest stay open.
    open: Vec<TcpStream>,
    wrong: Vec<String>,
    proofs: &'static [Proof],
}

/// So many of the attackers' connections are open at a time.
const OPEN_MAX: usize = 16;
/// The client's number in the bodies behind forms, beside those of `Sipsim`.
const CLIENT: usize = 900;

impl Scene {
    fn new(relay: Relay, proxy: SocketAddr, proofs: &'static [Proof]) -> Self {
        let (sent, open, wrong) = (Vec::new(), Vec::new(), Vec::new());
        Self { relay, proxy, sent, signed: RefCell::default(), open, wrong, proofs }
    }

    /// Of all forms, each `step`th.
    fn besiege(mut self, name: &str, step: usize) {
        self.assert_connections_are_kept(name);
        let address = self.proxy;
        let connect: Connect = Arc::new(move || Client::connect_with(address, TIMEOUT));
        let sipsim = Sipsim::start(&connect, 1, 0);
        let begin = Instant::now();
        let mut forms = 0;
        for proof in self.proofs {
            for (what, bytes) in self.forms(*proof).into_iter().skip(*proof as usize).step_by(step) {
                self.attack(&bytes);
                forms += 1;
                let genuine = [self.post(), self.post()];
                for one in genuine {
                    self.judge(&format!("{what} ({proof:?})"), one);
                }
            }
        }
        let result = sipsim.stop();
        let beside = result.kept.len() + result.fresh.len();
        for one in result.kept.into_iter().chain(result.fresh) {
            self.judge("beside them", one);
        }
        eprintln!("{name}: {forms} forms in {:.0?}, {beside} genuine requests beside them", begin.elapsed());
        self.end(name);
    }

    /// Two forms may differ in nothing but what follows them.
    fn forms(&self, proof: Proof) -> Vec<(String, Vec<u8>)> {
        let signed_at = (now() - proof as i64).to_string();
        let proved = |body: &[u8]| {
            let signature = match proof {
                Proof::None => "a5".repeat(32),
                Proof::Replayed | Proof::New => sign(SECRET, &signed_at, body),
            };
            if proof != Proof::None {
                self.signed.borrow_mut().insert(String::from_utf8_lossy(body).into_owned());
            }
            if proof == Proof::Replayed {
                let headers = [("X-Webhook-Timestamp", &*signed_at), ("X-Webhook-Signature", &*signature)];
                assert_eq!(self.relay.post_with(&headers, body).status, 200);
            }
            format!("X-Webhook-Timestamp: {signed_at}\r\nX-Webhook-Signature: {signature}\r\n")
        };
        let mut all: Vec<_> =
            smuggle::forms(&proved).into_iter().map(|form| (form.what.to_owned(), form.bytes)).collect();
        all.extend(asides(&proved));
        if proof == Proof::None {
            let body = br#"{"event":"sms","message":"forged"}"#;
            all.extend(forged(body).into_iter().map(|forged| {
                let headers = forged.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
                let head = format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\n", body.len());
                let head = headers.fold(head, |head, header| head + &header) + "\r\n";
                (forged.what.to_owned(), [head.as_bytes(), body].concat())
            }));
        }
        all.into_iter().flat_map(|(what, bytes)| followed(&what, &bytes)).collect()
    }

    /// Sends bytes and takes what comes.
    fn attack(&mut self, bytes: &[u8]) {
        if self.open.len() == OPEN_MAX {
            self.open.remove(0);
        }
        let mut stream = TcpStream::connect(self.proxy).expect("the proxy listens");
        stream.set_read_timeout(Some(Duration::from_millis(30))).expect("a socket takes it");
        let _ = stream.write_all(bytes); // It may have been refused, and closed.
        while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
        self.open.push(stream);
    }

    /// A genuine request on a connection of its own, so that the proxy sends it over one that it kept.
    fn post(&self) -> Sent {
        static NUMBERS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let body = oracle::body(CLIENT, NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let timestamp = now().to_string();
        let signature = sign(SECRET, &timestamp, body.as_bytes());
        let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
        let start = Instant::now();
        let answer = Client::connect_with(self.proxy, TIMEOUT)
            .and_then(|mut client| client.request("POST", PATH, &headers, body.as_bytes()));
        let latency = start.elapsed();
        let status = answer.as_ref().map(|answer| answer.status).ok();
        let id = answer.ok().filter(|answer| answer.status == 200);
        let id = id.and_then(|answer| answer.json()["id"].as_str().map(str::to_owned));
        let stalled = status == Some(503) && stall::was_stalled(start, Instant::now());
        Sent { body, status, id, latency, stalled }
    }

    fn judge(&mut self, what: &str, one: Sent) {
        let own = event_id("default", one.body.as_bytes());
        let is_well = one.status == Some(200) && one.id.as_ref() == Some(&own) && one.latency < TIMEOUT;
        if !is_well && !one.stalled {
            self.wrong.push(format!("{what}: {:?} {:?} after {:.0?}", one.status, one.id, one.latency));
        }
        self.sent.push(one);
    }

    fn assert_connections_are_kept(&mut self, name: &str) {
        const REQUESTS: usize = 20;
        for _ in 0..REQUESTS {
            let one = self.post();
            self.judge("before all", one);
        }
        let open = self.relay.metrics().sum("sipsim_relay_http_connections", &[]);
        assert!((1.0..REQUESTS as f64 / 2.0).contains(&open), "{name} keeps {open} connections");
    }

    /// Every genuine event is on the output to the byte, and nothing else.
    fn end(self, name: &str) {
        assert!(self.wrong.is_empty(), "{name}: {} answers:\n{}", self.wrong.len(), self.wrong.join("\n"));
        wait_until("nothing to be pending", Duration::from_secs(20), || {
            self.relay.metrics().sum("sipsim_relay_events_pending", &[]) == 0.0
        });
        let stdout = self.relay.stdout();
        let (forms, genuine): (Vec<_>, Vec<_>) = stdout.lines().partition(|line| line.contains(r#""form":"#));
        let signed = self.signed.borrow();
        for line in forms {
            let data =
                line.split_once(r#","data":"#).and_then(|(_, rest)| rest.strip_suffix('}')).expect("it has data");
            assert!(signed.contains(data), "{name}: {line}");
        }
        let arrived: Vec<_> =
            genuine.iter().map(|line| Arrived { place: "console".into(), payload: (*line).to_owned() }).collect();
        oracle::judge(&self.sent, &arrived).assert_kept(0);
        let log = self.relay.stderr();
        assert!(!log.contains("panicked") && !log.contains("fault in the relay"), "{log}");
    }
}

/// Requests that a proxy has to change before it passes them on, or whose body might not come.
fn asides(proof: &dyn Fn(&[u8]) -> String) -> Vec<(String, Vec<u8>)> {
    let body = br#"{"event":"sms","form":"of a proxy's own"}"#;
    let proof = proof(body);
    [
        ("POST", "Expect: 100-continue\r\n"),
        ("POST", "Expect: x 100-continue\r\n"),
        ("POST", "Expect: 100-continue\r\nExpect: 100-continue\r\n"),
        ("POST", "Connection: Content-Length\r\n"),
        ("POST", "Connection: close, Content-Length\r\n"),
        ("POST", "Connection: Transfer-Encoding, X-Webhook-Signature\r\n"),
        ("POST", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        ("GET", ""),
        ("HEAD", ""),
        ("OPTIONS", ""),
        ("TRACE", ""),
        ("CONNECT", ""),
        ("PRI", ""),
    ]
    .map(|(method, header)| {
        let length = body.len();
        let head =
            format!("{method} {PATH} HTTP/1.1\r\nHost: relay\r\n{header}Content-Length: {length}\r\n{proof}\r\n");
        (format!("{method} {}", header.trim_end()), [head.as_bytes(), body].concat())
    })
    .into()
}

/// The form with each tail behind it; and, where it has two framings, the tail within the length as well.
fn followed(what: &str, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for (tail, kind) in tails().into_iter().zip(["a request", "half a request"]) {
        let bytes = [bytes, tail.as_bytes()].concat();
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4);
        if let Some(head) = head
            && let Ok(text) = str::from_utf8(&bytes[..head])
            && text.to_ascii_lowercase().contains("transfer")
            && text.contains("Content-Length: 40\r\n")
        {
            let length = format!("Content-Length: {}\r\n", bytes.len() - head);
            let longer = text.replace("Content-Length: 40\r\n", &length);
            all.push((format!("{what}, and within its length {kind}"), [longer.as_bytes(), &bytes[head..]].concat()));
        }
        all.push((format!("{what}, and {kind}"), bytes));
    }
    all
}

const ALL: &[Proof] = &[Proof::None, Proof::Replayed, Proof::New];
/// A new event keeps its connection. A proxy that reads it otherwise than RFC 9112 says lets its sender harm others, and the relay cannot help it.
const NOT_NEW: &[Proof] = &[Proof::None, Proof::Replayed];

fn besiege(program: &Program, step: usize) {
    let relay = Relay::start("");
    let proxy = program.start(relay.ingress);
    Scene::new(relay, proxy.address, ALL).besiege(program.name, step);
}

fn besiege_lenient(lenient: Lenient, step: usize) {
    let relay = Relay::start("");
    let proxy = lenient.start(relay.ingress);
    Scene::new(relay, proxy, NOT_NEW).besiege(&format!("{lenient:?}"), step);
}

#[test]
fn no_genuine_answer_is_lost_or_swapped_behind_haproxy() {
    if HAPROXY.is_installed() {
        besiege(&HAPROXY, 7);
    } else {
        eprintln!("HAProxy is not installed, and left out");
    }
}

#[test]
fn no_genuine_answer_is_lost_or_swapped_behind_a_lenient_proxy() {
    besiege_lenient(LENIENT[1], 3);
}

/// Part of the long form only: the gate leaves it out (tests/nextest.toml).
mod long {
    use super::*;

    #[test]
    fn no_genuine_answer_is_lost_or_swapped_behind_any_proxy() {
        for program in [HAPROXY, NGINX, APACHE] {
            besiege(&program, 1);
        }
        for lenient in LENIENT {
            besiege_lenient(lenient, 1);
        }
    }
}
