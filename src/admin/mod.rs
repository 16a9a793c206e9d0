//! The admin port: metrics, probes and status, for machines and people. Read-only, and apart from the public port: a crowd there does not keep
//! anybody from looking here.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, sleep, sleep_until, timeout};
use tracing::warn;

mod health;
mod hosts;
mod pace;
mod page;
mod status;
#[cfg(test)]
mod tests;

pub use health::{Check, Health, JournalHealth};
pub use pace::Pace;
pub use status::{LastRefused, Sources, Status};

use self::hosts::Hosts;
use crate::ingress::listen;
use crate::{clock, config};

/// Probes, a scraper or two, and some people looking.
const CONNECTIONS_MAX: usize = 128;
/// How long a connection may at least stay, however many come, from its first turn: a probe asks as soon as it is connected, and its answer is
/// made at once, but under attack its turn comes only after others'. With the number above it bounds a flood to 6,400 connections a second.
const STAY_MIN: Duration = Duration::from_millis(20);
/// For a connection as a whole: each carries one request.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a request's head, as on the public port: all heads together take 2 MiB at the most.
const HEAD_MAX: usize = 16 << 10;
/// How long accepting rests when the system has no descriptor for another connection.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The admin port, listening, and not yet served.
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
}

/// What every connection needs.
struct Site {
    sources: Sources,
    hosts: Hosts,
}

impl Admin {
    /// Listens on `admin.listen`. The error names the key.
    pub async fn bind(config: &config::Admin, sources: Sources) -> io::Result<Self> {
        let listening = listen(config.listen).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = listening.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {} (admin.listen): {error}", config.listen))
        })?;
        let hosts = Hosts::new(config, &sources.instance);
        Ok(Self { listener, address, site: Arc::new(Site { sources, hosts }) })
    }

    /// Where it listens; tells the port if the configuration said 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until dropped. Never ends by itself: to be spawned, and aborted last of all.
    pub async fn serve(self) {
        let mut sampling = JoinSet::new(); // Ends with this.
        sampling.spawn(sample(Arc::clone(&self.site)));
        let mut connections = JoinSet::new();
        let mut oldest: VecDeque<Open> = VecDeque::new();
        let mut is_failing = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    is_failing = false;
                    while connections.try_join_next().is_some() {}
                    oldest.retain(|open| !open.connection.is_finished());
                    // An answer takes milliseconds: who has been there longest asks nothing, and must not keep a probe waiting.
                    if oldest.len() >= CONNECTIONS_MAX
                        && let Some(open) = oldest.pop_front()
                    {
                        if let Ok(since) = open.first_turn.await {
                            sleep_until(since + STAY_MIN).await;
                        }
                        open.connection.abort();
                    }
                    let site = Arc::clone(&self.site);
                    let (has_turn, first_turn) = oneshot::channel();
                    let connection = connections.spawn(async move {
                        let _ = has_turn.send(Instant::now());
                        // Whoever is slower than this, or breaks off, has no use for the answer.
                        let _ = timeout(DEADLINE, serve_one(stream, site)).await;
                    });
                    oldest.push_back(Open { first_turn, connection });
                }
                Err(error) => {
                    if !is_failing {
                        warn!(%error, "cannot accept a connection to the admin port: {error}; trying on");
                    }
                    is_failing = true;
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

/// A connection that may have to give way.
struct Open {
    first_turn: oneshot::Receiver<Instant>,
    connection: AbortHandle,
}

/// Feeds the rates of the status page.
async fn sample(site: Arc<Site>) {
    let mut ticks = tokio::time::interval(pace::EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let at = ticks.tick().await;
        site.sources.sample(at.into_std());
    }
}

async fn serve_one(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(|request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.answer(&request)) }
    });
    let mut http = http1::Builder::new();
    // The deadline is for the whole connection, so no header timeout, and no second request.
    http.header_read_timeout(None).keep_alive(false).half_close(true).max_buf_size(HEAD_MAX);
    // Its errors are the peer's.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

type Answer = Response<Full<Bytes>>;

const PLAIN: &str = "text/plain; charset=utf-8";

impl Site {
    fn answer<B>(&self, request: &Request<B>) -> Answer {
        if self.hosts.allow(request) {
            return answer(request, &self.sources);
        }
        respond(StatusCode::MISDIRECTED_REQUEST, PLAIN, "ask by an IP address, or by a name that admin.hosts lists\n")
    }
}

fn answer<B>(request: &Request<B>, sources: &Sources) -> Answer {
    let answer: fn(&Request<B>, &Sources) -> Answer = match request.uri().path() {
        "/metrics" => |_, sources| {
            let rows = (sources.rows)();
            let counts = rows.iter().map(|row| (row.name.as_str(), row.counts.by_state()));
            respond(StatusCode::OK, "text/plain; version=0.0.4", sources.metrics.text(counts))
        },
        "/livez" => |_, _| respond(StatusCode::OK, PLAIN, "ok\n"),
        "/readyz" => |request, sources| readyz(&sources.health, request.uri().query()),
        "/startupz" => |_, sources| startupz(&sources.health),
        "/" => |_, sources| status_page(sources),
        "/api/v1/status" => |_, sources| status_json(sources),
        _ => return respond(StatusCode::NOT_FOUND, PLAIN, "not found\n"),
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = respond(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "method not allowed\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    answer(request, sources)
}

fn startupz(health: &Health) -> Answer {
    if health.is_started() {
        respond(StatusCode::OK, PLAIN, "ok\n")
    } else {
        respond(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "not listening yet\n")
    }
}

fn readyz(health: &Health, query: Option<&str>) -> Answer {
    let ready = health.ready();
    let status = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_verbose =
        query.is_some_and(|query| query.split('&').any(|key| key == "verbose" || key.starts_with("verbose=")));
    let text = if is_verbose {
        let line = |check: Check| match check.problem {
            None => format!("[+] {} ok\n", check.name),
            Some(why) => format!("[-] {}: {why}\n", check.name),
        };
        let verdict = if ready.is_ok() { "ready\n" } else { "not ready\n" };
        health.checks().into_iter().map(line).chain([verdict.to_owned()]).collect()
    } else {
        ready.map_or_else(|why| format!("not ready: {why}\n"), |()| "ok\n".to_owned())
    };
    respond(status, PLAIN, text)
}

fn status_page(sources: &Sources) -> Answer {
    let html = page::html(&sources.status(clock::now()));
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", html);
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CONTENT_SECURITY_POLICY));
    answer
}

fn status_json(sources: &Sources) -> Answer {
    match serde_json::to_vec_pretty(&sources.status(clock::now())) {
        Ok(mut json) => {
            json.push(b'\n');
            respond(StatusCode::OK, "application/json", json)
        }
        // Every map in it has text for keys, which is all that JSON asks.
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}
