//! HTTP/1.1 from the sender's side, no more of it than webhooks need: one request, one answer, over any stream. Written by hand because as a
//! load generator it must cost little beside what it measures; the parsing of heads and chunk sizes is httparse's.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use httparse::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Bytes of an answer's head, and of any one line between chunks.
const HEAD_MAX: usize = 16 << 10;
/// Header lines of an answer.
const HEADERS_MAX: usize = 64;
/// Bytes of an answer's body. A webhook's is some 50; a relay's `/metrics` stays under it too.
const BODY_MAX: usize = 4 << 20;

/// One answer, read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Whether the connection takes another request.
    pub keep_alive: bool,
}

/// Why there is no answer. The connection is of no more use.
#[derive(Debug)]
pub enum Fault {
    /// The other side closed before it said anything.
    Closed,
    Io(io::Error),
    Malformed(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection that carries one request after the other.
pub struct Connection<S> {
    stream: S,
    /// What was read and not yet used is at `start..end`.
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// How an answer's body ends.
enum Framing {
    Length(u64),
    Chunked,
    Close,
}

struct Head {
    length: usize,
    answer: Answer,
    framing: Framing,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; HEAD_MAX].into(), start: 0, end: 0 }
    }

    /// Whether the other side has said or done nothing since the last answer. If it has, it closed, and a pool would take another connection.
    pub async fn is_idle(&mut self) -> bool {
        self.start == self.end && poll_fn(|cx| Poll::Ready(self.poll_fill(cx).is_pending())).await
    }

    /// Sends one whole request and reads its answer, whose body it leaves in `body`. Takes as long as the other side takes: the caller sets the
    /// deadline, and gives the connection up if it passes. An answer that comes before the request is sent whole is taken, and ends the connection.
    pub async fn exchange(&mut self, request: &[u8], body: &mut Vec<u8>) -> Result<Answer, Fault> {
        let sent = self.send(request).await;
        // Also after a failed write: who refuses a large body says so, and closes while it is still being sent.
        match (self.answer(body).await, sent) {
            (Ok(answer), Ok(true)) => Ok(answer),
            (Ok(answer), Ok(false) | Err(_)) => Ok(Answer { keep_alive: false, ..answer }),
            (Err(_), Err(error)) => Err(Fault::Io(error)),
            (Err(fault), Ok(_)) => Err(fault),
        }
    }

    /// Whether the request went out whole; `false` if an answer began before.
    async fn send(&mut self, request: &[u8]) -> io::Result<bool> {
        let mut sent = 0;
        poll_fn(|cx| {
            while sent < request.len() {
                match Pin::new(&mut self.stream).poll_write(cx, &request[sent..]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => sent += written,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return self.poll_fill(cx).map(|filled| filled.map(|_| false)),
                }
            }
            Pin::new(&mut self.stream).poll_flush(cx).map_ok(|()| true)
        })
        .await
    }

    async fn answer(&mut self, body: &mut Vec<u8>) -> Result<Answer, Fault> {
        body.clear();
        let head = loop {
            match parse_head(&self.buffer[self.start..self.end])? {
                // Interim answers (100, 103) announce the real one.
                Some(head) if head.answer.status < 200 => self.start += head.length,
                Some(head) => break head,
                None => match self.fill().await? {
                    0 if self.start == self.end => return Err(Fault::Closed),
                    0 => return Err(Fault::Malformed("it closed in the middle of its answer")),
                    _ => {}
                },
            }
        };
        self.start += head.length;
        match head.framing {
            Framing::Length(length) => self.take(length, body).await?,
            Framing::Chunked => self.take_chunks(body).await?,
            Framing::Close => loop {
                let found = self.end - self.start;
                self.take(found as u64, body).await?;
                if self.fill().await? == 0 {
                    break;
                }
            },
        }
        // Bytes after the answer are none of HTTP/1.1 without pipelining.
        Ok(Answer { keep_alive: head.answer.keep_alive && self.start == self.end, ..head.answer })
    }

    async fn take(&mut self, length: u64, body: &mut Vec<u8>) -> Result<(), Fault> {
        let mut missing = usize::try_from(length).unwrap_or(usize::MAX);
        if missing > BODY_MAX - body.len() {
            return Err(Fault::Malformed("its answer is over 4 MiB"));
        }
        while missing > 0 {
            if self.start == self.end && self.fill().await? == 0 {
                return Err(Fault::Malformed("it closed in the middle of its answer"));
            }
            let found = missing.min(self.end - self.start);
            body.extend_from_slice(&self.buffer[self.start..self.start + found]);
            self.start += found;
            missing -= found;
        }
        Ok(())
    }

    async fn take_chunks(&mut self, body: &mut Vec<u8>) -> Result<(), Fault> {
        loop {
            let size = loop {
                match httparse::parse_chunk_size(&self.buffer[self.start..self.end]) {
                    Ok(Status::Complete((length, size))) => {
                        self.start += length;
                        break size;
                    }
                    Ok(Status::Partial) => self.fill_more().await?,
                    Err(_) => return Err(Fault::Malformed("a chunk's size in its answer is no number")),
                }
            };
            self.take(size, body).await?;
            // The line's end after the data; after the last chunk any trailers, then an empty line.
            while self.take_line().await? > 0 {
                if size > 0 {
                    return Err(Fault::Malformed("a chunk in its answer is longer than it says"));
                }
            }
            if size == 0 {
                return Ok(());
            }
        }
    }

    /// Skips one line and says how long it was without its end.
    async fn take_line(&mut self) -> Result<usize, Fault> {
        loop {
            let line = &self.buffer[self.start..self.end];
            if let Some(length) = line.windows(2).position(|two| two == b"\r\n") {
                self.start += length + 2;
                return Ok(length);
            }
            self.fill_more().await?;
        }
    }

    async fn fill_more(&mut self) -> Result<(), Fault> {
        match self.fill().await? {
            0 => Err(Fault::Malformed("it closed in the middle of its answer")),
            _ => Ok(()),
        }
    }

    /// Reads what there is; 0 at the end.
    async fn fill(&mut self) -> Result<usize, Fault> {
        self.make_room();
        if self.end == self.buffer.len() {
            return Err(Fault::Malformed("a head or line of its answer is over 16 KiB"));
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        Ok(read)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        Pin::new(&mut self.stream).poll_read(cx, &mut room).map_ok(|()| {
            let read = room.filled().len();
            self.end += read;
            read
        })
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

/// `None` while the head is not whole.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Fault> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(_) => return Err(Fault::Malformed("what it says is not HTTP/1.1")),
    };
    let status = head.code.unwrap_or(0);
    let mut keep_alive = head.version == Some(1);
    let mut framing = Framing::Close;
    for header in head.headers.iter() {
        let says =
            |token: &[u8]| header.value.split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(token));
        if header.name.eq_ignore_ascii_case("connection") {
            keep_alive = (keep_alive || says(b"keep-alive")) && !says(b"close");
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") && says(b"chunked") {
            framing = Framing::Chunked;
        } else if header.name.eq_ignore_ascii_case("content-length") && !matches!(framing, Framing::Chunked) {
            let number = std::str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
            framing = Framing::Length(number.ok_or(Fault::Malformed("the Content-Length of its answer is no number"))?);
        }
    }
    if status < 200 || status == 204 || status == 304 {
        framing = Framing::Length(0);
    }
    keep_alive &= !matches!(framing, Framing::Close);
    Ok(Some(Head { length, answer: Answer { status, keep_alive }, framing }))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    type Outcome = Result<(u16, bool, Vec<u8>), String>;

    /// What comes of an answer that arrives in pieces of `piece` bytes, the connection staying open or not.
    fn read(answer: &[u8], piece: usize, then_close: bool) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs): (DuplexStream, _) = duplex(piece);
            let answer = answer.to_vec();
            let server = tokio::spawn(async move {
                let mut request = [0; 4];
                theirs.read_exact(&mut request).await.unwrap();
                theirs.write_all(&answer).await.unwrap();
                (!then_close).then_some(theirs)
            });
            let mut connection = Connection::new(ours);
            let mut body = Vec::new();
            let answer =
                tokio::time::timeout(std::time::Duration::from_secs(5), connection.exchange(b"POST", &mut body));
            let answer = answer.await.map_err(|_| "no answer in time".to_owned())?;
            let answer = answer.map_err(|fault| format!("{fault:?}"))?;
            let theirs = server.await.unwrap();
            assert_eq!(connection.is_idle().await, theirs.is_some());
            Ok((answer.status, answer.keep_alive, body))
        })
    }

    fn check(answer: &str, then_close: bool, status: u16, keep_alive: bool, body: &str) {
        for piece in [1, 2, 7, 64 << 10] {
            let expected = Ok((status, keep_alive, body.as_bytes().to_vec()));
            assert_eq!(read(answer.as_bytes(), piece, then_close), expected, "{answer:?} in pieces of {piece}");
        }
    }

    #[test]
    fn an_answer_is_read_whole_however_it_is_framed_and_split() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false, 200, true, "hello");
        check("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", false, 401, true, "");
        check("HTTP/1.1 204 No Content\r\n\r\n", false, 204, true, "");
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
            false,
            200,
            true,
            "hello",
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n0\r\nA: b\r\nC: d\r\n\r\n",
            false,
            200,
            true,
            "h",
        );
        check(
            "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            200,
            true,
            "ok",
        );
    }

    #[test]
    fn a_connection_that_is_to_close_is_not_used_again() {
        check("HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", false, 503, false, "no");
        check("HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\nContent-Length: 0\r\n\r\n", false, 200, false, "");
        check("HTTP/1.1 200 OK\r\n\r\nuntil the end", true, 200, false, "until the end");
        check("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false, 200, false, "ok");
        check("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", false, 200, true, "ok");
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", true, 200, true, "ok"); // Then `is_idle` says so.
    }

    #[test]
    fn what_is_no_answer_is_said() {
        for (answer, fault) in [
            ("", "Closed"),
            ("HTTP/1.1 200 OK\r\nContent-Len", "in the middle"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "in the middle"),
            ("HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n", "no number"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "no number"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "longer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "4 MiB"),
            ("\x15\x03\x01\x00\x02\x02\x16 TLS alert", "not HTTP"),
        ] {
            let outcome = read(answer.as_bytes(), 16, true).expect_err(answer);
            assert!(outcome.contains(fault), "{answer:?}: {outcome}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX));
        let outcome = read(endless.as_bytes(), 64 << 10, false).expect_err("endless");
        assert!(outcome.contains("16 KiB"), "{outcome}");
    }

    #[tokio::test]
    async fn one_connection_takes_many_requests() {
        let (ours, mut theirs) = duplex(1024);
        let server = tokio::spawn(async move {
            let mut request = [0; 4];
            for _ in 0..3 {
                theirs.read_exact(&mut request).await.unwrap();
                theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").await.unwrap();
                theirs.write_all(&request).await.unwrap();
            }
        });
        let mut connection = Connection::new(ours);
        let mut body = Vec::new();
        for request in [b"abcd", b"efgh", b"ijkl"] {
            let answer = connection.exchange(request, &mut body).await.unwrap();
            assert_eq!((answer.status, answer.keep_alive, body.as_slice()), (200, true, request.as_slice()));
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_comes_before_a_large_request_is_whole_is_taken() {
        let (ours, mut theirs) = duplex(1024);
        let server = tokio::spawn(async move {
            theirs.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            theirs // Reads nothing, and stays open.
        });
        let mut connection = Connection::new(ours);
        let answer = connection.exchange(&[0; 4096], &mut Vec::new()).await.unwrap();
        assert_eq!(answer, Answer { status: 413, keep_alive: false });
        drop(server.await.unwrap());
    }
}
