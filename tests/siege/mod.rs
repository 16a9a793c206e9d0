//! Each attack alone and many at once, beside a SIPSIM that must not notice: 100 events a second, on connections that it keeps and on fresh ones,
//! each answered 2xx within two seconds. And the relay's memory, descriptors, log and metrics stay within their bounds.
//!
//! SIEGE_SECONDS (2) is how long each attack lasts, SIEGE_FORGED (20000) how many forged requests must all be refused; `make siege` is the
//! long form. Attackers stand behind SIPSIM and the relay in priority (attack.rs says why).

mod attack;
mod forge;
mod proxies;
mod sipsim;
mod watch;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{self, Client, Relay};
use attack::{Attack, Besieger, UnderWay};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sipsim::{Connect, Sipsim, TIMEOUT};
use watch::Watch;

/// Attacks on the public port of a relay without TLS.
const PUBLIC: [Besieger; 12] = [
    attack::SLOW_HEADS,
    attack::SLOW_BODIES,
    Besieger::Own(attack::SILENT),
    Besieger::Own(attack::COMING_AND_GOING),
    Besieger::Own(attack::LARGE_HEADS),
    Besieger::Own(attack::FORGED),
    Besieger::Own(attack::ODD_BODIES),
    Besieger::Own(attack::LARGE_BODIES),
    Besieger::Own(attack::GARBAGE),
    Besieger::Own(attack::SMUGGLING),
    Besieger::Own(attack::OTHER_PROTOCOLS),
    Besieger::Own(attack::TLS_GARBAGE),
];
const TLS: [Attack; 4] = [attack::TLS_GARBAGE, attack::HANDSHAKES, attack::REPLAYED_HELLO, attack::SILENT];
/// At once: those that hold connections, and floods beside them.
const TOGETHER: [Besieger; 9] = [
    attack::SLOW_HEADS,
    attack::SLOW_BODIES,
    Besieger::Own(attack::SILENT),
    Besieger::Own(attack::HALF_BODIES),
    Besieger::Own(attack::FORGED),
    Besieger::Own(attack::NESTED),
    Besieger::Own(attack::ALTERNATING),
    Besieger::Own(attack::SMUGGLING),
    Besieger::Own(attack::OTHER_PROTOCOLS),
];
const ADMIN: [Attack; 4] = [attack::SILENT, attack::ADMIN_REQUESTS, attack::COMING_AND_GOING, attack::GARBAGE];

/// A genuine request, signed when it is first asked for, and its body.
fn captured() -> &'static (String, String) {
    static CAPTURED: OnceLock<(String, String)> = OnceLock::new();
    CAPTURED.get_or_init(|| {
        let (body, timestamp) = (support::oracle::body(99, 0), support::now().to_string());
        let signature = support::sign(support::SECRET, &timestamp, body.as_bytes());
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: relay\r\nContent-Length: {}\r\nX-Webhook-Timestamp: {timestamp}\r\nX-Webhook-Signature: {signature}\r\n\r\n{body}",
            support::PATH,
            body.len()
        );
        (request, body)
    })
}

/// Between two places of one continent.
const ROUND_TRIP: Duration = Duration::from_millis(20);

fn from_environment(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} wants a whole number, not {text:?}")),
        Err(_) => otherwise,
    }
}

/// Attacks of one relay, and the SIPSIM beside them.
struct Scene {
    relay: Relay,
    connect: Connect,
    sent: Vec<support::Sent>,
    rounds: usize,
    /// How much larger than the oracle's own SIPSIM's bodies are.
    padding: usize,
}

impl Scene {
    fn new(relay: Relay, connect: Connect) -> Self {
        watch::raise_descriptors();
        Self { relay, connect, sent: Vec::new(), rounds: 0, padding: 0 }
    }

    /// A relay that speaks TLS.
    fn with_tls() -> Self {
        let mut relay =
            Relay::prepare("[ingress.tls]\ncertificate_file = \"tls.crt\"\nprivate_key_file = \"tls.key\"\n");
        let tls = tls();
        std::fs::write(relay.path("tls.crt"), &tls.certificate).expect("a file");
        std::fs::write(relay.path("tls.key"), &tls.key).expect("a file");
        relay.run();
        let address = relay.ingress;
        Self::new(relay, Arc::new(move || Client::connect_secure(address, TIMEOUT, &tls.trusting)))
    }

    /// Has SIPSIM send the request that attackers then have too.
    fn capture(&mut self) {
        let (request, body) = captured();
        let begin = Instant::now();
        let answer = (self.connect)().and_then(|mut client| {
            client.send(request.as_bytes())?;
            client.answer()
        });
        let answer = answer.expect("an answer");
        let id = answer.json()["id"].as_str().map(str::to_owned);
        let body = body.clone();
        self.sent.push(support::Sent {
            body,
            status: Some(answer.status),
            id,
            latency: begin.elapsed(),
            stalled: false,
        });
    }

    /// Runs these attacks together, and judges.
    fn besiege(&mut self, name: &str, attacks: &[(Besieger, SocketAddr)]) {
        let seconds = from_environment("SIEGE_SECONDS", 2);
        self.rounds += 1;
        let sipsim = Sipsim::start(&self.connect, self.rounds, self.padding);
        thread::sleep(Duration::from_millis(300)); // Its connections stand when the attack begins, as a pool's would.
        let watch = Watch::begin(&self.relay);
        let probes = watch::Probes::start(self.relay.admin);
        let under_way: Vec<_> =
            attacks.iter().map(|(besieger, target)| UnderWay::begin(besieger, *target, seconds)).collect();
        thread::sleep(Duration::from_secs(seconds)); // The attack's length is what is asked for.
        let grown = watch.grown();
        drop(under_way);
        let slowest_probe = probes.stop();
        let result = sipsim.stop();
        let log_lines = watch.assert_nothing_left(&self.relay, name);
        let slowest = |sent: &[support::Sent]| sent.iter().map(|one| one.latency).max().unwrap_or_default();
        eprintln!(
            "{name}: {} on kept connections, the slowest {:.0?}; {} on fresh ones, {:.0?}; probes {slowest_probe:.0?}; {} MB more memory; {log_lines} lines logged",
            result.kept.len(),
            slowest(&result.kept),
            result.fresh.len(),
            slowest(&result.fresh),
            grown / 1_000_000,
        );
        for sent in [result.kept, result.fresh] {
            let refused: Vec<_> = sent.iter().filter(|one| !one.is_accepted() && !one.stalled).collect();
            let answers: Vec<_> = refused.iter().map(|one| (one.status, one.latency)).collect();
            assert!(refused.is_empty(), "{name}: {} events had no 2xx, but {answers:?}", refused.len());
            let late = sent.iter().filter(|one| one.latency >= TIMEOUT && !one.stalled).count();
            assert_eq!(late, 0, "{name}: late answers");
            self.sent.extend(sent);
        }
        watch.assert_memory(grown, name);
    }

    /// Every accepted event is on the output, and nothing else.
    fn end(self) {
        watch::assert_events(&self.relay, &self.sent);
    }
}

/// Takes most of a minute: sixteen attacks of two seconds, one after another.
#[test]
fn sipsim_does_not_notice_attacks_on_the_public_port() {
    let relay = Relay::start("");
    let address = relay.ingress;
    let mut scene = Scene::new(relay, Arc::new(move || Client::connect_with(address, TIMEOUT)));
    for besieger in PUBLIC {
        scene.besiege(besieger.name(), &[(besieger, address)]);
    }
    let admin = scene.relay.admin;
    for attack in ADMIN {
        scene.besiege(&format!("on the admin port, {}", attack.name), &[(Besieger::Own(attack), admin)]);
    }
    scene.end();
}

/// Places for fewer connections than the attackers have.
#[test]
fn sipsim_does_not_notice_a_replayed_request() {
    let relay = Relay::start("[ingress]\nconnections_max = 512\n");
    let address = relay.ingress;
    // A request comes a round trip after its connection. Without that, a fresh connection is a request under way before anybody can push it out.
    let connect = move || Client::connect_with(address, TIMEOUT).inspect(|_| thread::sleep(ROUND_TRIP));
    let mut scene = Scene::new(relay, Arc::new(connect));
    scene.capture();
    scene.besiege(attack::REPLAY.name, &[(Besieger::Own(attack::REPLAY), address)]);
    let both = [attack::REPLAY, attack::SILENT_FEWER].map(|attack| (Besieger::Own(attack), address));
    scene.besiege("a replayed genuine request, and 2,000 silent connections", &both);
    let metrics = scene.relay.metrics();
    assert!(metrics.sum("sipsim_relay_connections_evicted_total", &[("kind", "silent")]) > 0.0);
    assert_eq!(metrics.sum("sipsim_relay_webhooks_total", &[("outcome", "accepted")]), scene.sent.len() as f64);
    scene.end();
}

/// Memory for fewer bodies than the attackers send. SIPSIM's are of 40 KB, so that they need what is for large ones too.
#[test]
fn sipsim_does_not_notice_half_sent_bodies() {
    let relay = Relay::start("[ingress]\nbody_max = \"1 MiB\"\nbuffered_max = \"4 MiB\"\n");
    let address = relay.ingress;
    let mut scene = Scene::new(relay, Arc::new(move || Client::connect_with(address, TIMEOUT)));
    scene.padding = 40_000;
    scene.besiege(attack::HALF_BODIES.name, &[(Besieger::Own(attack::HALF_BODIES), address)]);
    scene.end();
}

/// And an operator still reads why a request was refused that a secret signed, which forged ones must not displace.
#[test]
fn sipsim_does_not_notice_attacks_on_the_diagnosis_of_refused_requests() {
    let mut relay = Relay::prepare("");
    for number in 0..9 {
        relay.write_secret(&format!("other-{number}"), &format!("another secret of some length, {number}"));
    }
    relay.run();
    let timestamp = support::now().to_string();
    let signature = support::sign(support::SECRET, &timestamp, br#"{"event":"sms"}"#);
    let headers = [("X-Webhook-Timestamp", &*timestamp), ("X-Webhook-Signature", &*signature)];
    assert_eq!(relay.post_with(&headers, br#"{"event": "sms"}"#).status, 401);
    let is_shown =
        |relay: &Relay| relay.get("/api/v1/status").is_some_and(|status| status.text().contains("body_rewritten"));
    support::wait_until("the diagnosis", Duration::from_secs(20), || is_shown(&relay));
    let address = relay.ingress;
    let mut scene = Scene::new(relay, Arc::new(move || Client::connect_with(address, TIMEOUT)));
    for attack in [attack::NESTED, attack::ALTERNATING] {
        scene.besiege(attack.name, &[(Besieger::Own(attack), address)]);
    }
    assert!(is_shown(&scene.relay));
    let causes = scene.relay.stderr().matches("the likely cause").count();
    assert!(
        causes <= 5,
        "{causes} lines: one for the rewritten body, and one a minute for each of two kinds of forged ones"
    );
    scene.end();
}

/// Takes 15 s: four attacks of two seconds, one after another.
#[test]
fn sipsim_does_not_notice_attacks_on_tls() {
    let mut scene = Scene::with_tls();
    let address = scene.relay.ingress;
    for attack in TLS {
        scene.besiege(&format!("on TLS, {}", attack.name), &[(Besieger::Own(attack), address)]);
    }
    scene.end();
}

/// The only certificate that there is in these tests, and a client that trusts it.
struct Tls {
    certificate: String,
    key: String,
    trusting: Arc<ClientConfig>,
}

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        // RSA, which costs the relay most, and which `rcgen` does not make.
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "-", "-subj", "/CN=127.0.0.1"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"])
            .output()
            .expect("openssl runs (Debian's package of that name)");
        let pem = String::from_utf8(output.stdout).expect("PEM");
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        roots.add(certificate).expect("a certificate");
        let start = pem.find("-----BEGIN CERTIFICATE").expect("behind the key");
        let (key, certificate) = pem.split_at(start);
        Tls { certificate: certificate.to_owned(), key: key.to_owned(), trusting: Arc::new(client(roots)) }
    })
}

/// The first bytes of a client.
fn hello() -> &'static [u8] {
    static HELLO: OnceLock<Vec<u8>> = OnceLock::new();
    HELLO.get_or_init(|| {
        let name = std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST).into();
        let mut client = rustls::ClientConnection::new(Arc::clone(&tls().trusting), name).expect("a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a vector takes it");
        hello
    })
}

fn client(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("there are versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[test]
fn no_forged_request_is_accepted() {
    let begin = Instant::now();
    let count = from_environment("SIEGE_FORGED", 20_000);
    forge::none_is_accepted(count);
    eprintln!("{count} forged requests, none accepted, in {:.0?}", begin.elapsed());
}

/// Part of the long form only: the gate leaves it out (tests/nextest.toml).
mod long {
    use super::*;

    #[test]
    fn sipsim_does_not_notice_all_attacks_on_tls_at_once() {
        let mut scene = Scene::with_tls();
        let address = scene.relay.ingress;
        scene.besiege("on TLS, all together", &TLS.map(|attack| (Besieger::Own(attack), address)));
        scene.end();
    }

    /// All floods at once take more than the processors of one machine, of which SIPSIM's clients want a share here.
    #[test]
    fn sipsim_does_not_notice_many_attacks_at_once() {
        let relay = Relay::start("");
        let address = relay.ingress;
        let mut scene = Scene::new(relay, Arc::new(move || Client::connect_with(address, TIMEOUT)));
        scene.besiege("many at once", &TOGETHER.map(|besieger| (besieger, address)));
        scene.end();
    }
}
