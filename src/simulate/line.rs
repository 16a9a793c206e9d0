//! One of SIPSIM's connections: signs a body, posts it, and gives up after two seconds. Never tries twice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::time::{Instant, timeout_at};

use super::connect::{Connector, Stream};
use super::http::{Connection, Fault};
use super::{Tamper, Target};
use crate::secret::Secret;

/// How long SIPSIM waits for an answer (PROTOCOL §2). When its clock starts is not documented; here it includes connecting.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// What all lines to one target share.
pub struct Route {
    connector: Connector,
    /// The request from its first byte to before the value of `X-Webhook-Timestamp`.
    head: Vec<u8>,
    /// Keyed once; a copy signs one body.
    signer: Hmac<Sha256>,
    tamper: Option<Tamper>,
}

/// What came of one post.
#[derive(Debug)]
pub struct Outcome {
    /// The status, or in words why there is none.
    pub answer: Result<u16, String>,
    pub answered_at: Instant,
}

impl Outcome {
    /// Whether a real SIPSIM would take this event as delivered. It knows nothing of an event that was not.
    pub fn is_delivered(&self) -> bool {
        matches!(self.answer, Ok(200..=299))
    }
}

impl Route {
    /// `Err` says which option is at fault.
    pub fn new(
        target: &Target,
        secret: &Secret,
        ca_file: Option<&Path>,
        tamper: Option<Tamper>,
    ) -> Result<Arc<Self>, String> {
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: sipsim-relay-simulate/{}\r\nContent-Type: application/json\r\nX-Webhook-Timestamp: ",
            target.path,
            target.authority,
            env!("CARGO_PKG_VERSION"),
        );
        let signer = Hmac::new_from_slice(secret.expose()).map_err(|error| format!("the secret: {error}"))?;
        Ok(Arc::new(Self { connector: Connector::new(target, ca_file)?, head: head.into_bytes(), signer, tamper }))
    }

    /// When the server's certificate ends, in seconds since 1970; `None` without TLS, or before a first connection.
    pub fn certificate_ends(&self) -> Option<i64> {
        self.connector.certificate_ends()
    }

    /// Writes the whole request to `request`. `now` is seconds since 1970.
    fn write_request(&self, now: i64, body: &[u8], request: &mut Vec<u8>) {
        use std::io::Write;
        let sign = |timestamp: i64| {
            let mut mac = self.signer.clone();
            mac.update(timestamp.to_string().as_bytes());
            mac.update(b".");
            mac.update(body);
            let mut hex = [0; 64];
            let _ = hex::encode_to_slice(mac.finalize().into_bytes(), &mut hex); // 32 bytes are 64 digits.
            hex
        };
        let (mut signature, mut timestamp, mut more) = (sign(now), now, "");
        match self.tamper {
            None => {}
            Some(Tamper::Signature) => signature[63] = if signature[63] == b'0' { b'1' } else { b'0' },
            Some(Tamper::Timestamp) => timestamp += 1,
            Some(Tamper::Body) => more = " ",
        }
        request.clear();
        request.extend_from_slice(&self.head);
        let _ = write!(request, "{timestamp}\r\nX-Webhook-Signature: "); // A `Vec` takes whatever is written.
        request.extend_from_slice(&signature);
        let _ = write!(request, "\r\nContent-Length: {}\r\n\r\n", body.len() + more.len());
        request.extend_from_slice(body);
        request.extend_from_slice(more.as_bytes());
    }
}

/// One keep-alive connection to the target, opened when it is needed.
pub struct Line {
    route: Arc<Route>,
    connection: Option<Connection<Box<dyn Stream>>>,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Line {
    pub fn new(route: Arc<Route>) -> Self {
        Self { route, connection: None, request: Vec::new(), answer: Vec::new() }
    }

    /// Signs and posts one body, and waits for the answer at most [`TIMEOUT`], connecting included. `now` is seconds since 1970, for the signature.
    pub async fn post(&mut self, now: i64, body: &[u8]) -> Outcome {
        self.route.write_request(now, body, &mut self.request);
        let deadline = Instant::now() + TIMEOUT;
        let answer = match timeout_at(deadline, self.exchange()).await {
            Ok(answer) => answer,
            // What `exchange` had open went with it: its answer may still come, and would be taken for the next one's.
            Err(_) => Err("no answer within 2 s".to_owned()),
        };
        Outcome { answer, answered_at: Instant::now() }
    }

    /// The body of the last answer.
    pub fn answer(&self) -> &[u8] {
        &self.answer
    }

    async fn exchange(&mut self) -> Result<u16, String> {
        let open = match self.connection.take() {
            Some(mut open) => open.is_idle().await.then_some(open),
            None => None,
        };
        let mut connection = match open {
            Some(open) => open,
            None => self.route.connector.connect().await?,
        };
        match connection.exchange(&self.request, &mut self.answer).await {
            Ok(answer) => {
                self.connection = answer.keep_alive.then_some(connection);
                Ok(answer.status)
            }
            Err(Fault::Closed) => Err("it closed the connection without an answer".to_owned()),
            Err(Fault::Io(error)) => Err(format!("the connection broke: {error}")),
            Err(Fault::Malformed(what)) => Err(what.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tamper: Option<Tamper>, body: &[u8]) -> String {
        let target = Target::parse("http://relay.example:8080/webhooks/sipsim?a=b").unwrap();
        let secret = Secret::new(b"example-secret".to_vec());
        let route = Route::new(&target, &secret, None, tamper).unwrap();
        let mut request = Vec::new();
        route.write_request(1_736_937_000, body, &mut request);
        String::from_utf8(request).unwrap()
    }

    /// The vectors of PROTOCOL §1.1.
    #[test]
    fn a_request_is_signed_as_sipsim_signs() {
        for (body, signature) in [
            (
                r#"{"event":"test","pbx_id":"test_000000"}"#,
                "c7f86e4e9314998cde8f1113e20ce9cd37ba170778263fffe81b7c6d6e1dde92",
            ),
            (
                r#"{"event":"sms","message":"Été à 14h"}"#,
                "996d4ff9562caff6a3ee526ad7740ceb01b8e00c4e4a471eccebdf7d8b759837",
            ),
        ] {
            let version = env!("CARGO_PKG_VERSION");
            let length = body.len();
            assert_eq!(
                request(None, body.as_bytes()),
                format!(
                    "POST /webhooks/sipsim?a=b HTTP/1.1\r\nHost: relay.example:8080\r\nUser-Agent: sipsim-relay-simulate/{version}\r\n\
                     Content-Type: application/json\r\nX-Webhook-Timestamp: 1736937000\r\nX-Webhook-Signature: {signature}\r\n\
                     Content-Length: {length}\r\n\r\n{body}"
                )
            );
        }
    }

    #[test]
    fn what_is_tampered_with_differs_there_only() {
        let honest = request(None, b"{}");
        let signature = request(Some(Tamper::Signature), b"{}");
        let differing = honest.bytes().zip(signature.bytes()).filter(|(a, b)| a != b).count();
        assert_eq!((differing, honest.len()), (1, signature.len()));
        assert_eq!(request(Some(Tamper::Timestamp), b"{}"), honest.replace("1736937000", "1736937001"));
        assert_eq!(request(Some(Tamper::Body), b"{}"), honest.replace("Length: 2\r\n\r\n{}", "Length: 3\r\n\r\n{} "));
    }
}
