//! `sipsim-relay healthcheck`: asks the admin port, for images without a shell.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{notice, print};

/// For everything together: orchestrators give a probe a second or a few.
const LIMIT: Duration = Duration::from_secs(2);
/// Some hundred held topics make a status of some ten KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Whether the relay whose admin port is configured as `admin` is alive, or with `ready`, ready. Takes at most 2 s. The answer's reason goes
/// to stdout if it is good, to stderr if it is not.
pub fn healthcheck(admin: SocketAddr, ready: bool) -> bool {
    let path = if ready { "/readyz" } else { "/livez" };
    match ask(reachable(admin), path, LIMIT) {
        Ok((200, reason)) => {
            // A closed stdout changes nothing about the answer.
            let _ = print(format!("{reason}\n").as_bytes());
            true
        }
        Ok((status, reason)) => {
            notice(format_args!("{path} answered {status}: {reason}"));
            false
        }
        Err(error) => {
            notice(format_args!("no answer from http://{}{path} (admin.listen): {error}", reachable(admin)));
            false
        }
    }
}

/// What the relay shows at `/api/v1/status`.
///
/// # Errors
/// Nobody answers at that address, or somebody else.
pub fn status(admin: SocketAddr) -> Result<serde_json::Value, String> {
    let at = reachable(admin);
    let path = "/api/v1/status";
    let problem = |problem: &dyn std::fmt::Display| {
        format!("no answer from http://{at}{path} (admin.listen): {problem}; is the relay running?")
    };
    let (status, body) = ask(at, path, LIMIT).map_err(|error| problem(&error))?;
    if status != 200 {
        return Err(problem(&format_args!("status {status}")));
    }
    serde_json::from_str(&body).map_err(|error| problem(&error))
}

/// Who listens on all addresses is asked on this machine's own.
fn reachable(admin: SocketAddr) -> SocketAddr {
    let address = match admin.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(address, admin.port())
}

/// Status and body of one GET.
fn ask(admin: SocketAddr, path: &str, limit: Duration) -> io::Result<(u16, String)> {
    let until = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&admin, limit)?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while answer.len() < ANSWER_BYTES_MAX {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            // What a read timeout is called differs between systems.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what answers is not the admin port"))
}

fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        let check = |admin: &str, expected: &str| {
            assert_eq!(reachable(admin.parse().unwrap()), expected.parse().unwrap());
        };
        check("0.0.0.0:8081", "127.0.0.1:8081");
        check("[::]:8081", "[::1]:8081");
        check("10.1.2.3:8081", "10.1.2.3:8081");
    }

    #[test]
    fn an_answer_is_read_with_its_reason() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\nok\n"), Some((200, "ok".into())));
        assert_eq!(
            parse(b"HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: journal: full\n"),
            Some((503, "not ready: journal: full".into()))
        );
        assert_eq!(parse(b"SSH-2.0-OpenSSH_9\r\n"), None);
    }

    #[test]
    fn a_port_that_never_answers_is_given_up() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let asked = ask(silent.local_addr().unwrap(), "/livez", Duration::from_millis(50));
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
