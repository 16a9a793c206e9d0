//! Kafka's protocol, as far as a few questions need it: one request at a time on one connection, with or without TLS. The versions used are understood
//! by Kafka 2.4 to 4.x.

use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config;
use crate::publish::tls;

/// Bytes of an answer. A topic of a thousand partitions takes some 50 KiB; what claims more than this is no Kafka.
const ANSWER_MAX: usize = 16 << 20;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

pub struct Connection {
    stream: Box<dyn Stream>,
    /// Host and port.
    pub at: String,
    client_id: String,
    asked: i32,
}

impl Connection {
    /// Connects, with TLS where the protocol says so. Logging in is the caller's.
    pub async fn open(address: &str, config: &config::Kafka) -> Result<Self, String> {
        let security = &config.security;
        let stream =
            TcpStream::connect(address).await.map_err(|error| format!("{address}: cannot connect: {error}"))?;
        let stream: Box<dyn Stream> = if security.protocol.ends_with("SSL") {
            let config = tls::client(&tls::Files {
                section: "security.",
                ca: security.ca_file.as_deref(),
                certificate: security.certificate_file.as_deref(),
                private_key: security.private_key_file.as_deref(),
            })?;
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host).map_err(|_| format!("{address}: no host that TLS can verify"))?;
            let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
            Box::new(connected.map_err(|error| match tls::explain_io(&error) {
                Some(why) => format!("{address}: {why}"),
                None => format!("{address}: TLS failed ({error}): is it the broker's TLS port?"),
            })?)
        } else {
            Box::new(stream)
        };
        Ok(Self { stream, at: address.to_owned(), client_id: config.instance.clone(), asked: 0 })
    }

    /// One request and its answer, without the headers of either.
    pub async fn ask(&mut self, api: i16, version: i16, body: Writer) -> Result<Vec<u8>, String> {
        self.asked += 1;
        let mut request = Writer::default();
        request.i16(api).i16(version).i32(self.asked).text(&self.client_id);
        request.0.extend_from_slice(&body.0);
        let answer = self.exchange(&request.0).await.map_err(|error| match error.kind() {
            // Kafka hangs up without a word on a version it does not know, and a TLS port on plain text.
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                format!("{}: the broker hung up: is `security.protocol` right, and is it Kafka 2.4 or newer?", self.at)
            }
            // In TLS 1.3 a broker that misses our certificate says so after the handshake.
            _ => format!("{}: {}", self.at, tls::explain_io(&error).unwrap_or_else(|| error.to_string())),
        })?;
        if Reader::new(&answer).i32()? != self.asked {
            return Err(format!("{}: what answers there is no Kafka", self.at));
        }
        Ok(answer[4..].to_vec())
    }

    async fn exchange(&mut self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let length = i32::try_from(request.len()).map_err(std::io::Error::other)?;
        self.stream.write_all(&[&length.to_be_bytes(), request].concat()).await?;
        self.stream.flush().await?;
        let length = usize::try_from(self.stream.read_i32().await?).unwrap_or(usize::MAX);
        if !(4..=ANSWER_MAX).contains(&length) {
            return Err(std::io::Error::other("what answers there is no Kafka"));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

/// Builds a request's body.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    pub fn i8(&mut self, value: i8) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.i8(i8::from(value))
    }

    pub fn i16(&mut self, value: i16) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Names are shorter than 32 KiB: `check` has seen to it.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let text = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
        self.i16(text.len() as i16);
        self.0.extend_from_slice(text);
        self
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn array<T>(&mut self, all: &[T], each: impl Fn(&mut Self, &T)) -> &mut Self {
        self.i32(i32::try_from(all.len()).unwrap_or(i32::MAX));
        for one in all {
            each(self, one);
        }
        self
    }
}

/// Takes an answer apart. Each error says that the answer ended before it should, and never what was in it.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("the broker's answer cannot be read")?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().unwrap_or([0; N]))
    }

    pub fn i8(&mut self) -> Result<i8, String> {
        self.fixed().map(i8::from_be_bytes)
    }

    pub fn bool(&mut self) -> Result<bool, String> {
        self.i8().map(|value| value != 0)
    }

    pub fn i16(&mut self) -> Result<i16, String> {
        self.fixed().map(i16::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, String> {
        self.fixed().map(i32::from_be_bytes)
    }

    /// Of an array; null counts as empty.
    pub fn count(&mut self) -> Result<usize, String> {
        Ok(usize::try_from(self.i32()?).unwrap_or(0))
    }

    /// Passes over an array of numbers, and says how many there are.
    pub fn numbers(&mut self) -> Result<usize, String> {
        let count = self.count()?;
        self.take(count.saturating_mul(4))?;
        Ok(count)
    }

    pub fn text(&mut self) -> Result<String, String> {
        Ok(self.text_or_null()?.unwrap_or_default())
    }

    pub fn text_or_null(&mut self) -> Result<Option<String>, String> {
        let Ok(length) = usize::try_from(self.i16()?) else { return Ok(None) };
        Ok(Some(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = self.count()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_cut_answer_is_an_error() {
        let mut written = Writer::default();
        written.i16(-1).bool(true).text("sipsim.tags").bytes(b"xyz").array(&[1, 2], |w, n| {
            w.i32(*n);
        });
        let mut read = Reader::new(&written.0);
        assert_eq!(read.i16(), Ok(-1));
        assert_eq!(read.bool(), Ok(true));
        assert_eq!(read.text(), Ok("sipsim.tags".to_owned()));
        assert_eq!(read.bytes(), Ok(&b"xyz"[..]));
        assert_eq!(read.numbers(), Ok(2));
        assert!(read.i8().is_err());
        assert!(Reader::new(&written.0[..6]).text().is_err() || Reader::new(&[0, 9, b'a']).text().is_err());
        // A length that would be gigabytes takes no memory.
        assert!(Reader::new(&[0x7f, 0xff, 0xff, 0xff, 1]).numbers().is_err());
    }
}
