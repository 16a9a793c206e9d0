//! One connection from its first byte to its last: hyper reads and writes it, and the [`Watched`] beside it knows what it is doing.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::door::{Door, Keep};
use super::framing::Framing;
use super::registry::{Order, Phase, Watched};

/// The least that hyper takes for its buffer.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// What was wrong when no request came to be: hyper has answered 400, 414 or 431 by then, where it can; TLS has sent its alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The head is over `ingress.headers_max`, or has more than hyper's 100 headers.
    HeadTooLarge,
    NotHttp,
    NotTls,
}

/// hyper as it is for the public port.
pub fn http(headers_max: usize) -> http1::Builder {
    let mut http = http1::Builder::new();
    // hyper's header timeout also runs while a connection idles between requests, which would cut a load balancer's pooled ones; our
    // reader starts the deadline at a request's first byte instead. Without it hyper needs no timer.
    http.header_read_timeout(None);
    // A sender that closes its side after the request still waits for the answer.
    http.half_close(true);
    http.max_header_size(headers_max);
    // A head has to fit; what were more would be lent to strangers, times `ingress.connections_max`. Large bodies come in more pieces then.
    http.max_buf_size(headers_max.max(BUFFER_BYTES_MIN));
    http
}

/// Serves a connection to its end. Errors of the line concern nobody but the peer; what hyper refused is given back, to be counted.
pub async fn serve<S, K>(
    http: &http1::Builder,
    stream: S,
    watched: &Arc<Watched>,
    door: &Arc<Door<K>>,
) -> Option<Malformed>
where
    S: AsyncRead + AsyncWrite + Unpin,
    K: Keep,
{
    let service = service_fn(|request| {
        let (door, watched) = (Arc::clone(door), Arc::clone(watched));
        async move { Ok::<_, Infallible>(door.answer(&watched, request).await) }
    });
    let io = TokioIo::new(Noticed { stream, framing: Some(Framing::default()), watched: Arc::clone(watched) });
    let mut connection = http.serve_connection(io, service);
    let mut is_finishing = false;
    let ended = poll_fn(|cx| {
        loop {
            // The connection goes first: what has already come is read before an order is looked at.
            if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
                return Poll::Ready(Some(ended));
            }
            if is_finishing && watched.is_waiting() {
                return Poll::Ready(None); // For hyper an empty line before the first request is one under way.
            }
            let order = ready!(watched.poll_order(cx));
            // A head that was late may have become a whole request while the order was on its way. That one is answered.
            if watched.obeys(order) {
                return Poll::Ready(None);
            }
            is_finishing = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
    })
    .await;
    let malformed = match &ended {
        None => return None,
        Some(Err(error)) if error.is_parse_too_large() => Some(Malformed::HeadTooLarge),
        Some(Err(error)) if error.is_parse() => Some(Malformed::NotHttp),
        Some(Err(_)) => return None,
        Some(Ok(())) => None,
    };
    watched.enter(Phase::Linger);
    door.tell_ended();
    let mut stream = connection.into_parts().io.into_inner().stream;
    linger(&mut stream, watched).await;
    malformed
}

/// Returns when something comes, and `false` if the connection is told to go before. Until then a peer costs no buffer, which hyper takes
/// before it reads.
pub async fn is_spoken_to(stream: &TcpStream, watched: &Watched) -> bool {
    // Not `poll_read_ready`: of a connection that was just accepted tokio assumes that there is something to read, and asks the system only here.
    poll_fn(|cx| match stream.poll_peek(cx, &mut ReadBuf::new(&mut [0])) {
        Poll::Ready(_) => Poll::Ready(true), // If it is broken, reading says so.
        Poll::Pending => watched.poll_order(cx).map(|_| false),
    })
    .await
}

/// Reads until the peer closes too, who may still be sending the body of a refused request. To close with bytes unread would send a reset, which can
/// destroy the answer on its way.
async fn linger<S: AsyncRead + Unpin>(stream: &mut S, watched: &Watched) {
    poll_fn(|cx| {
        // In here it is on the stack; outside, each connection would carry it along for life.
        let mut thrown_away = [0; 4096];
        loop {
            if watched.poll_order(cx).map(|order| order > Order::Finish) == Poll::Ready(true) {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// A stream that tells its [`Watched`] when bytes come, and when the peer does not take ours.
struct Noticed<S> {
    stream: S,
    /// `None` once a request was ambiguous: it is the last one that is looked at.
    framing: Option<Framing>,
    watched: Arc<Watched>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Noticed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        if !read.is_empty() {
            let this = &mut *self;
            if let Some(framing) = &mut this.framing {
                let is_clear = framing.read(read);
                this.watched.begun(framing.begun());
                if let Err(request) = is_clear {
                    this.watched.ambiguous_from(request);
                    this.framing = None;
                }
            }
            this.watched.bytes_read(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Noticed<S> {
    fn notice<T>(&self, written: Poll<T>) -> Poll<T> {
        self.watched.stalled(written.is_pending());
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noticed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.notice(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.notice(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.notice(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.notice(shut)
    }
}
