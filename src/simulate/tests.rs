//! Whole simulations against a small server of the test's own.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Mutex;

use hmac::{Hmac, KeyInit, Mac};
use rustls::pki_types::PrivateKeyDer;
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const SECRET: &[u8] = b"example-secret";

/// What the server does with a genuine request; others get a 401.
#[derive(Clone, Copy)]
enum Manner {
    Accept,
    /// Accepts, and ends the connection with each answer.
    Close,
    /// Accepts, and ends the connection after each answer without having said so.
    CloseQuietly,
    /// Accepts the first, then never answers again.
    FallSilent,
    /// Ends the connection without an answer.
    HangUp,
}

type Bodies = Arc<Mutex<HashSet<Vec<u8>>>>;

struct Server {
    port: u16,
    /// Distinct bodies that were genuine.
    bodies: Bodies,
    connections: Arc<Mutex<u64>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(manner: Manner, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (bodies, connections) = (Bodies::default(), Arc::<Mutex<u64>>::default());
        let (seen, opened) = (Arc::clone(&bodies), Arc::clone(&connections));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((plain, _)) = listener.accept().await {
                *opened.lock().unwrap() += 1;
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                serving.spawn(async move {
                    match tls {
                        None => serve(plain, manner, seen).await,
                        Some(tls) => match tls.accept(plain).await {
                            Ok(stream) => serve(stream, manner, seen).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { port, bodies, connections, _tasks: tasks }
    }

    fn options(&self, what: What) -> Options {
        let target = Target::parse(&format!("http://127.0.0.1:{}/webhooks/sipsim", self.port)).unwrap();
        Options {
            target,
            secret: Secret::new(SECRET.to_vec()),
            ca_file: None,
            what,
            rate: None,
            count: None,
            duration: None,
            connections: 1,
            tamper: None,
            seed: 1,
        }
    }

    fn accepted(&self) -> usize {
        self.bodies.lock().unwrap().len()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, manner: Manner, seen: Bodies) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut timestamp, mut signature, mut length) = (String::new(), String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            match line.trim_end().split_once(": ") {
                Some(("X-Webhook-Timestamp", value)) => timestamp = value.to_owned(),
                Some(("X-Webhook-Signature", value)) => signature = value.to_owned(),
                Some(("Content-Length", value)) => length = value.parse().ok()?,
                Some(_) => {}
                None if line == "\r\n" => break,
                None => assert_eq!(line, "POST /webhooks/sipsim HTTP/1.1\r\n"),
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let mut mac = Hmac::<Sha256>::new_from_slice(SECRET).unwrap();
        mac.update(format!("{timestamp}.").as_bytes());
        mac.update(&body);
        let genuine = mac.verify_slice(&hex::decode(signature).unwrap()).is_ok();
        if genuine && matches!(manner, Manner::FallSilent) && !seen.lock().unwrap().is_empty() {
            pending::<()>().await;
        }
        if genuine {
            seen.lock().unwrap().insert(body);
        }
        let answer: &[u8] = match (genuine, manner) {
            (_, Manner::HangUp) => return None,
            (false, _) => b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
            (true, Manner::Close) => b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
            (true, _) => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        };
        stream.write_all(answer).await.ok()?;
        if matches!(manner, Manner::Close | Manner::CloseQuietly) {
            return None;
        }
    }
}

#[tokio::test]
async fn by_default_each_kind_of_call_is_played_once() {
    let server = Server::start(Manner::Accept, None).await;
    let summary = run(server.options(What::Calls), pending()).await.unwrap();
    assert_eq!((summary.lost(), summary.errors()), (0, 0));
    assert_eq!(summary.sent, 41);
    assert_eq!((server.accepted(), *server.connections.lock().unwrap()), (41, 1));
}

#[tokio::test]
async fn a_count_is_shared_by_all_connections() {
    let server = Server::start(Manner::Accept, None).await;
    let options = Options { count: Some(1000), connections: 8, ..server.options(What::Calls) };
    let summary = run(options, pending()).await.unwrap();
    assert_eq!((summary.sent, summary.lost(), server.accepted()), (1000, 0, 1000));
    assert_eq!(*server.connections.lock().unwrap(), 8);
    assert_eq!(summary.answers.get(&200), Some(&1000));
}

#[tokio::test]
async fn one_event_and_one_body_are_sent_once_unless_told_otherwise() {
    let server = Server::start(Manner::Accept, None).await;
    let summary = run(server.options(What::Event(Known::Sms)), pending()).await.unwrap();
    assert_eq!((summary.sent, server.accepted()), (1, 1));
    let summary = run(server.options(What::Body(b"not even JSON".to_vec())), pending()).await.unwrap();
    assert_eq!(summary.sent, 1);
    assert!(server.bodies.lock().unwrap().contains(b"not even JSON".as_slice()));
}

#[tokio::test]
async fn a_rate_is_kept() {
    let server = Server::start(Manner::Accept, None).await;
    let duration = Some(Duration::from_millis(500));
    for what in [What::Calls, What::Event(Known::Tags)] {
        let options = Options { rate: Some(200.0), duration, connections: 4, ..server.options(what) };
        let summary = run(options, pending()).await.unwrap();
        assert_eq!((summary.sent, summary.lost()), (100, 0));
        assert!(summary.took >= Duration::from_millis(490));
    }
}

#[tokio::test]
async fn what_is_tampered_with_is_lost() {
    let server = Server::start(Manner::Accept, None).await;
    for tamper in [Tamper::Signature, Tamper::Timestamp, Tamper::Body] {
        let options = Options { tamper: Some(tamper), ..server.options(What::Calls) };
        let summary = run(options, pending()).await.unwrap();
        assert_eq!((summary.answers.get(&401), summary.lost()), (Some(&summary.sent), summary.sent), "{tamper:?}");
    }
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn a_connection_that_the_server_ends_is_opened_anew() {
    let server = Server::start(Manner::Close, None).await;
    let summary = run(Options { count: Some(20), ..server.options(What::Calls) }, pending()).await.unwrap();
    assert_eq!((summary.lost(), *server.connections.lock().unwrap()), (0, 20));
}

#[tokio::test]
async fn a_connection_that_the_server_ended_meanwhile_is_not_written_to() {
    let server = Server::start(Manner::CloseQuietly, None).await;
    let options = Options { count: Some(5), rate: Some(50.0), ..server.options(What::Calls) };
    let summary = run(options, pending()).await.unwrap();
    assert_eq!((summary.lost(), *server.connections.lock().unwrap()), (0, 5), "{:?}", summary.problems);
}

#[tokio::test]
async fn silence_is_waited_for_two_seconds_and_never_tried_again() {
    let server = Server::start(Manner::FallSilent, None).await;
    let summary = run(Options { count: Some(2), ..server.options(What::Calls) }, pending()).await.unwrap();
    assert_eq!((summary.sent, summary.lost(), summary.errors()), (2, 1, 1));
    assert!(summary.problems.contains_key("no answer within 2 s"), "{:?}", summary.problems);
    let max = summary.latency.max().unwrap();
    assert!((2000..4000).contains(&max.as_millis()), "{max:?}");
}

#[tokio::test]
async fn what_stood_in_the_way_is_said() {
    let server = Server::start(Manner::HangUp, None).await;
    let summary = run(Options { count: Some(3), ..server.options(What::Calls) }, pending()).await.unwrap();
    assert_eq!(summary.problems.get("it closed the connection without an answer"), Some(&3));

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let target = Target::parse(&format!("http://127.0.0.1:{port}/webhooks/sipsim")).unwrap();
    let summary = run(Options { target, ..server.options(What::Event(Known::Test)) }, pending()).await.unwrap();
    assert_eq!((summary.sent, summary.lost(), summary.latency.max()), (1, 1, None));
    let problem = summary.problems.keys().next().unwrap();
    assert!(problem.contains("nothing listens there"), "{problem}");
}

#[tokio::test]
async fn stopping_ends_it_in_order() {
    let server = Server::start(Manner::Accept, None).await;
    let options = Options { rate: Some(0.1), duration: Some(Duration::from_secs(3600)), ..server.options(What::Calls) };
    let bodies = Arc::clone(&server.bodies);
    let first_came = async move {
        while bodies.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    let summary = run(options, first_came).await.unwrap();
    assert_eq!((summary.sent, summary.lost()), (1, 0));
}

/// A TLS server for `name`, whose certificate is its own authority, written to the file that is returned.
fn tls(name: &str) -> (TlsAcceptor, tempfile::NamedTempFile) {
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(90) + time::Duration::hours(1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.pem()).unwrap();
    let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), file)
}

#[tokio::test]
async fn https_works_and_the_certificate_is_dated() {
    let (acceptor, ca_file) = tls("localhost");
    let server = Server::start(Manner::Accept, Some(acceptor)).await;
    let target = Target::parse(&format!("https://localhost:{}/webhooks/sipsim", server.port)).unwrap();
    let ca_file = Some(ca_file.path().to_owned());
    let options = Options { target, ca_file, ..server.options(What::Calls) };
    let summary = run(options, pending()).await.unwrap();
    assert_eq!((summary.lost(), server.accepted()), (0, 41), "{:?}", summary.problems);
    let now = clock::now().as_seconds();
    assert!(summary.text(now).contains("certificate  90 days left"), "{}", summary.text(now));
}

#[tokio::test]
async fn a_certificate_that_sipsim_would_refuse_is_refused() {
    let (acceptor, ca_file) = tls("elsewhere.example");
    let server = Server::start(Manner::Accept, Some(acceptor)).await;
    let (_, stranger) = tls("localhost");
    for (file, said) in [(&ca_file, "not valid for name"), (&stranger, "--ca-file")] {
        let target = Target::parse(&format!("https://localhost:{}/webhooks/sipsim", server.port)).unwrap();
        let options =
            Options { target, ca_file: Some(file.path().to_owned()), ..server.options(What::Event(Known::Test)) };
        let summary = run(options, pending()).await.unwrap();
        let problem = summary.problems.keys().next().unwrap();
        assert!(problem.contains(said), "{problem}");
    }
    assert_eq!(server.accepted(), 0);
}

#[tokio::test]
async fn a_ca_file_without_a_certificate_is_said_before_anything_is_sent() {
    let server = Server::start(Manner::Accept, None).await;
    let empty = tempfile::NamedTempFile::new().unwrap();
    let target = Target::parse("https://localhost:1/w").unwrap();
    let options = Options { target, ca_file: Some(empty.path().to_owned()), ..server.options(What::Calls) };
    let error = run(options, pending()).await.expect_err("an empty file");
    assert!(error.contains("holds no certificate"), "{error}");
}
