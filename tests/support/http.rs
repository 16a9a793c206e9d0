//! A plain HTTP/1.1 client on a blocking socket, so that tests decide every byte, and nothing retries behind their back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Panics with the body if it is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON, {error}: {}", self.text()))
    }
}

/// One connection, kept open between requests.
pub struct Client {
    stream: BufReader<Line>,
}

enum Line {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Secure(stream) => stream.read(buffer),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Secure(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Secure(stream) => stream.flush(),
        }
    }
}

impl Client {
    /// Waits at most 10 s for the connection, and for each piece of an answer.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::connect_with(address, Duration::from_secs(10))
    }

    /// Waits at most `limit` for each of them.
    pub fn connect_with(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(Line::Plain(connect(address, limit)?)) })
    }

    /// As [`Client::connect_with`], over TLS; the certificate must be of the address.
    pub fn connect_secure(address: SocketAddr, limit: Duration, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let socket = connect(address, limit)?;
        let tls = ClientConnection::new(Arc::clone(config), address.ip().into()).map_err(io::Error::other)?;
        Ok(Self { stream: BufReader::new(Line::Secure(Box::new(StreamOwned::new(tls, socket)))) })
    }

    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.request("GET", path, &[], b"")
    }

    /// Adds `Host` and `Content-Length`, and nothing else.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        self.send(&[bytes.as_bytes(), body].concat())?;
        self.answer()
    }

    /// Writes bytes as they are: half a request, or one that is none.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let line = self.stream.get_mut();
        line.write_all(bytes)?;
        line.flush()
    }

    /// Reads one answer; `UnexpectedEof` if the server closed instead.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let status_line = self.line()?;
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .or_else(|| status_line.strip_prefix("HTTP/1.0 "))
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .ok_or_else(|| invalid(&status_line))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        answer.body = if let Some(length) = answer.header("content-length") {
            let mut body = vec![0; length.parse().map_err(|_| invalid(length))?];
            self.stream.read_exact(&mut body)?;
            body
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.chunks()?
        } else if status == 204 {
            Vec::new() // It has no body, and needs no Content-Length to say so (RFC 9112, 6.3).
        } else {
            let mut body = Vec::new();
            self.stream.read_to_end(&mut body)?;
            body
        };
        Ok(answer)
    }

    /// Whether the server has closed its side: an end, or an error other than that nothing came within `limit`.
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        let socket = match self.stream.get_ref() {
            Line::Plain(socket) => socket,
            Line::Secure(stream) => stream.get_ref(),
        };
        socket.set_read_timeout(Some(limit)).expect("a socket takes it");
        match self.stream.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(&line, 16).map_err(|_| invalid(&line))?;
            let start = body.len();
            body.resize(start + length, 0);
            self.stream.read_exact(&mut body[start..])?;
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

fn connect(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, limit)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    Ok(socket)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {text:?}"))
}
