//! By which names the admin port may be asked. A web page can let its own name resolve to the relay's address (DNS rebinding), and a browser then
//! takes the relay's answers for the page's own and lets the page read them. The browser still sends the page's name as `Host`, so a request under
//! a name that the relay does not know is refused.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::header::HOST;
use tokio::time::Instant;
use tracing::warn;

use crate::config;

/// How often the log says at most that a name was refused.
const TELL_EVERY: Duration = Duration::from_secs(60);

pub struct Hosts {
    /// In lower case, without the dot at the end.
    names: HashSet<String>,
    told_at: Mutex<Option<Instant>>,
}

impl Hosts {
    /// IP addresses, which no page can make its own name, are always among them.
    pub fn new(config: &config::Admin, instance: &str) -> Self {
        let names = ["localhost", instance].into_iter().chain(config.hosts.iter().map(String::as_str));
        Self { names: names.map(comparable).collect(), told_at: Mutex::default() }
    }

    /// Whether every name under which the request asks is known. A request without a name comes from no browser and is answered.
    pub fn allow<B>(&self, request: &Request<B>) -> bool {
        let in_uri = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let in_headers = request.headers().get_all(HOST).iter().map(|host| host.as_bytes());
        let is_known = in_uri.into_iter().chain(in_headers).all(|host| self.knows(host));
        if !is_known {
            self.tell();
        }
        is_known
    }

    fn knows(&self, authority: &[u8]) -> bool {
        let Ok(authority) = str::from_utf8(authority) else { return false };
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => authority,
        };
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        in_brackets.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
            || host.parse::<Ipv4Addr>().is_ok()
            || host.is_empty()
            || self.names.contains(&comparable(host))
    }

    /// Without the name, since no text of a request reaches the log. Whoever asked knows it.
    fn tell(&self) {
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told_at = Some(Instant::now());
            warn!(
                "the admin port was asked by a name that it does not know, and answered 421; if the name is one of the relay's, add it to admin.hosts"
            );
        }
    }
}

fn comparable(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
