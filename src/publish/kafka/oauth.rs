//! Tokens for SASL OAUTHBEARER: OAuth 2.0 client credentials (RFC 6749 §4.4). librdkafka could fetch them by itself only with libcurl, which is
//! not built in.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use rustls::pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::config::KafkaSecurity;
use crate::publish::http::{self, encoded, host_and_port};
use crate::secret::Secret;

/// For the whole exchange. librdkafka asks again 10 s after a failure, and well before a token ends; deliveries wait meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The same, and for the files of secret and authority, which may hang on a network mount.
pub const FETCH_MAX: Duration = Duration::from_secs(6);
/// Bytes of an answer. Tokens of some providers are a few kilobytes.
const BODY_MAX: usize = 64 * 1024;
/// How long a token counts as good if the answer does not say, in seconds; RFC 6749 only recommends saying.
const LIFETIME_DEFAULT: u64 = 300;

/// An access token and how long it is good for.
pub struct Token {
    pub access_token: String,
    pub lifetime: Duration,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    expires_in: Option<u64>,
    error: Option<String>,
}

/// Fetches a token, with the client's secret as its file is now. Blocks for at most 5 s, but for as long as a file hangs. The error names what is
/// wrong and no secret.
pub fn fetch(security: &KafkaSecurity) -> Result<Token, String> {
    let url = security.token_url.as_deref().ok_or("security.token_url is missing, which OAUTHBEARER needs")?;
    let client_id = security.client_id.as_deref().ok_or("security.client_id is missing, which OAUTHBEARER needs")?;
    let secret = security
        .client_secret
        .read()
        .map_err(|error| format!("the file of security.client_secret_file cannot be read: {error}"))?
        .ok_or("security.client_secret_file is missing, which OAUTHBEARER needs")?;
    let mut form = "grant_type=client_credentials".to_owned();
    if let Some(scope) = &security.scope {
        form.push_str("&scope=");
        form.push_str(&encoded(scope));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    let uri: Uri = url.parse().map_err(|_| "security.token_url is no URL")?;
    // Without a query or a user's name, which are nobody's business.
    let shown = format!("{}://{}{}", uri.scheme_str().unwrap_or("?"), host_and_port(&uri), uri.path());
    let exchange = exchange(uri, authorization(client_id, &secret), form, security.ca_file.as_deref());
    let answered = runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, exchange).await });
    runtime.shutdown_background(); // A name that is still being looked up is not waited for.
    match answered {
        Ok(answered) => answered.map_err(|error| format!("{shown}: {error}")),
        Err(_) => Err(format!("{shown} did not answer within {} s", ANSWER_MAX.as_secs())),
    }
}

/// RFC 6749 §2.3.1: both encoded as in a form, then as HTTP's basic authentication.
fn authorization(client_id: &str, secret: &Secret) -> Zeroizing<String> {
    let pair = Zeroizing::new(format!("{}:{}", encoded(client_id), encoded(secret.expose())));
    Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
}

async fn exchange(
    uri: Uri,
    authorization: Zeroizing<String>,
    form: String,
    ca: Option<&Path>,
) -> Result<Token, String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(HOST, host_and_port(&uri))
        .header(AUTHORIZATION, authorization.as_str())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(Full::new(Bytes::from(form)))
        .map_err(|_| "makes no HTTP request")?;
    let (status, body) = http::exchange(&uri, request, || trust(ca), BODY_MAX).await?;
    token(status, &body)
}

/// The system's certificates and those of `security.ca_file`: who has a private authority for brokers often has it for tokens too.
fn trust(ca: Option<&Path>) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let unusable =
            |error: rustls_pki_types::pem::Error| format!("the file of security.ca_file cannot be used: {error}");
        for certificate in CertificateDer::pem_file_iter(path).map_err(unusable)? {
            roots.add(certificate.map_err(unusable)?).map_err(|error| format!("security.ca_file: {error}"))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| format!("TLS cannot be set up: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn token(status: StatusCode, body: &[u8]) -> Result<Token, String> {
    let body = Zeroizing::new(body.to_vec());
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|_| format!("answered {status} with something that is no token"))?;
    match answer.access_token {
        Some(access_token) if status.is_success() && !access_token.is_empty() => {
            let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(LIFETIME_DEFAULT).min(u64::from(u32::MAX)));
            Ok(Token { access_token, lifetime })
        }
        _ => {
            // A word of RFC 6749 §5.2, such as `invalid_client`; nothing else of the answer is shown.
            let word = |text: &String| text.len() <= 40 && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            let why = answer.error.filter(word).map(|why| format!(", {why}")).unwrap_or_default();
            Err(format!("answered {status}{why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::secret::PasswordSource;

    fn security(url: String) -> KafkaSecurity {
        KafkaSecurity {
            client_id: Some("relay".into()),
            client_secret: PasswordSource { file: None, environment: Some(Secret::new(b"p:ss w+rd~".to_vec())) },
            token_url: Some(url),
            scope: Some("kafka write".into()),
            ..Default::default()
        }
    }

    /// Answers one request; gives what it was.
    fn answering(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/oauth/token?tenant=1", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !String::from_utf8_lossy(&request).contains("client_credentials&scope=kafka%20write") {
                let mut part = [0; 1024];
                let count = stream.read(&mut part).unwrap();
                assert!(count > 0, "{}", String::from_utf8_lossy(&request));
                request.extend_from_slice(&part[..count]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap()
        });
        (url, server)
    }

    fn shown(url: &str) -> &str {
        url.trim_end_matches("?tenant=1")
    }

    #[test]
    fn a_token_is_asked_for_with_the_clients_credentials() {
        let (url, server) = answering(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
             {\"access_token\":\"a.b.c\",\"token_type\":\"x\",\"expires_in\":60}",
        );
        let token = fetch(&security(url)).unwrap();
        assert_eq!((token.access_token.as_str(), token.lifetime), ("a.b.c", Duration::from_secs(60)));
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /oauth/token?tenant=1 HTTP/1.1\r\n"), "{request}");
        // "relay:p%3Ass%20w%2Brd~" in base64.
        assert!(request.contains("authorization: Basic cmVsYXk6cCUzQXNzJTIwdyUyQnJkfg==\r\n"), "{request}");
        assert!(request.ends_with("\r\n\r\ngrant_type=client_credentials&scope=kafka%20write"), "{request}");
    }

    #[test]
    fn a_refusal_says_why_and_nothing_secret() {
        let (url, server) = answering(
            "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\n{\"error\":\"invalid_client\",\"error_description\":\"p:ss w+rd~\"}",
        );
        let error = fetch(&security(url.clone())).err().unwrap();
        assert_eq!(error, format!("{}: answered 401 Unauthorized, invalid_client", shown(&url)));
        server.join().unwrap();

        let (url, server) = answering("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>p:ss w+rd~</html>");
        let error = fetch(&security(url.clone())).err().unwrap();
        assert_eq!(error, format!("{}: answered 200 OK with something that is no token", shown(&url)));
        server.join().unwrap();
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut security = security("https://localhost/token".into());
        security.client_secret = PasswordSource::default();
        assert!(fetch(&security).err().unwrap().contains("security.client_secret_file"));
        security.token_url = None;
        assert!(fetch(&security).err().unwrap().contains("security.token_url"));
    }
}
