//! The servers that the relay is compared with: the floor, which does only what cannot be avoided, and one that answers at once, which shows
//! what the load itself can do.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::work::SECRET;

/// An event in the floor's queue: what is appended, and who waits for the sync.
struct Append {
    bytes: Bytes,
    synced: oneshot::Sender<()>,
}

/// hyper, one HMAC, an append to `file`, and one fdatasync for all that wait. No parsing, no envelope, no duplicates, no reading back.
pub fn floor(file: &Path) -> Result<(), String> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    let (queue, appends) = mpsc::channel::<Append>();
    std::thread::spawn(move || {
        let (mut group, mut bytes) = (Vec::new(), Vec::new());
        while let Ok(first) = appends.recv() {
            group.push(first);
            group.extend(appends.try_iter().take(511));
            bytes.clear();
            for append in &group {
                bytes.extend_from_slice(&append.bytes);
            }
            if file.write_all(&bytes).and_then(|()| file.sync_data()).is_err() {
                std::process::exit(1);
            }
            for append in group.drain(..) {
                let _ = append.synced.send(());
            }
        }
    });
    // Keyed once, as the relay does.
    let Ok(signer) = Hmac::<Sha256>::new_from_slice(SECRET) else { unreachable!("HMAC takes keys of every length") };
    serve(move |stream| {
        let (queue, signer) = (queue.clone(), signer.clone());
        async move {
            let service = service_fn(|request| floor_answer(request, signer.clone(), &queue));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
    })
}

async fn floor_answer(
    request: Request<Incoming>,
    mut mac: Hmac<Sha256>,
    queue: &mpsc::Sender<Append>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return Ok(empty(StatusCode::BAD_REQUEST)) };
    let body = body.to_bytes();
    let header = |name: &str| head.headers.get(name).map(|value| value.as_bytes()).unwrap_or_default();
    let mut signature = [0; 32];
    mac.update(header("x-webhook-timestamp"));
    mac.update(b".");
    mac.update(&body);
    if hex::decode_to_slice(header("x-webhook-signature"), &mut signature).is_err()
        || mac.verify_slice(&signature).is_err()
    {
        return Ok(empty(StatusCode::UNAUTHORIZED));
    }
    let (synced, done) = oneshot::channel();
    if queue.send(Append { bytes: body, synced }).is_err() || done.await.is_err() {
        return Ok(empty(StatusCode::SERVICE_UNAVAILABLE));
    }
    Ok(Response::new(Full::new(Bytes::from_static(b"{\"id\":\"00000000-0000-8000-8000-000000000000\"}"))))
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// Answers as soon as a request is whole, without looking into it.
pub fn instant() -> Result<(), String> {
    const ANSWER: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-length: 45\r\n\r\n{\"id\":\"00000000-0000-8000-8000-000000000000\"}";
    serve(|mut stream| async move {
        let mut buffer = vec![0; 64 << 10];
        let mut end = 0;
        while let Ok(read @ 1..) = stream.read(&mut buffer[end..]).await {
            end += read;
            if is_whole(&buffer[..end]) {
                end = 0;
                if stream.write_all(ANSWER).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Of the load's requests, in which the length stands last of all headers.
fn is_whole(request: &[u8]) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(request) else { return false };
    let length = parsed
        .headers
        .last()
        .and_then(|header| str::from_utf8(header.value).ok())
        .and_then(|text| text.parse::<usize>().ok());
    length.is_some_and(|length| request.len() >= head + length)
}

/// Prints the address, then serves connections until the process is ended.
fn serve<F, S>(connection: F) -> Result<(), String>
where
    F: Fn(tokio::net::TcpStream) -> S + Send + Sync + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let connection = Arc::new(connection);
    runtime.block_on(async {
        // The accepting loop runs on a worker, as the relay's does.
        let accepting = tokio::spawn(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(connection(stream));
            }
        });
        let ended: Result<Result<(), std::io::Error>, _> = accepting.await;
        match ended {
            Ok(Err(error)) => Err(error.to_string()),
            Ok(Ok(())) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
}
