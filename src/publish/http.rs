//! One HTTP request to what stands beside a broker: RabbitMQ's management API, or whoever gives out Kafka's tokens. Each has a connection of its own.

use std::sync::Arc;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Sends `request` to where `uri` points, over TLS as `tls` has it if that is `https`, and gives status and body, of at most `body_max` bytes. The caller
/// bounds the time.
///
/// # Errors
/// One line, without anything of the request.
pub(super) async fn exchange<B>(
    uri: &Uri,
    request: Request<B>,
    tls: impl FnOnce() -> Result<ClientConfig, String>,
    body_max: usize,
) -> Result<(StatusCode, Bytes), String>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let host = uri.host().ok_or("names no host")?.trim_matches(['[', ']']).to_owned();
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err("is neither https:// nor http://".to_owned()),
    };
    let port = uri.port_u16().unwrap_or(if https { 443 } else { 80 });
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(|error| format!("cannot connect: {error}"))?;
    if !https {
        return ask(stream, request, body_max).await;
    }
    let name = ServerName::try_from(host).map_err(|_| "names no host that TLS can verify")?;
    let stream = TlsConnector::from(Arc::new(tls()?)).connect(name, stream).await;
    ask(stream.map_err(|error| format!("TLS failed: {error}"))?, request, body_max).await
}

async fn ask<S, B>(stream: S, request: Request<B>, body_max: usize) -> Result<(StatusCode, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let broken = |error: hyper::Error| format!("the exchange broke off: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        match Limited::new(response.into_body(), body_max).collect().await {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) => Err(format!("the answer cannot be read: {error}")),
        }
    };
    tokio::pin!(exchange);
    // The connection moves the bytes. Where it ends first, the exchange is over too, or fails at once.
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

/// Without a user's name, which is nobody's business.
pub(super) fn host_and_port(uri: &Uri) -> &str {
    uri.authority().and_then(|authority| authority.as_str().rsplit('@').next()).unwrap_or_default()
}

/// As one segment of a path, or a value of a form (RFC 3986 §2.1).
pub(super) fn encoded(text: impl AsRef<[u8]>) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~".contains(b);
    text.as_ref().iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}
