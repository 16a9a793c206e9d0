//! A second reading of each request's framing, beside hyper's. hyper takes some forms that another program in front may read otherwise
//! (RFC 9112 §2.2, §6.1, §6.3, §7.1, §11.2): lines that end with a line feed alone, both a length and chunks, codings beside `chunked`. Where two
//! programs differ on where a request ends, a stranger's bytes can swallow the webhook behind them. So such a request is refused, and its
//! connection with it.
//!
//! Whatever hyper refuses by itself is left to it, and only hyper's reading is ever believed.

use memchr::memchr;

/// As much of a line as tells `Content-Length` and `Transfer-Encoding` with every value that is allowed.
const LINE_MAX: usize = 64;

/// Where in a request the next line stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    RequestLine,
    Field,
    ChunkSize,
    Trailer,
}

/// Says of a connection's bytes, as they come, from which request on two programs might read them differently.
pub struct Framing {
    next: Next,
    /// Bytes of a body before the next line.
    skip: u64,
    /// What has come of a line that is not whole.
    begun: Line,
    /// Of the head under way.
    length: Option<u64>,
    is_chunked: bool,
    /// Heads that have begun.
    heads: u32,
}

/// The beginning of a line, how long all of it is, and its last byte.
#[derive(Clone, Copy)]
struct Line {
    start: [u8; LINE_MAX],
    length: usize,
    last: u8,
}

impl Line {
    const EMPTY: Self = Self { start: [0; LINE_MAX], length: 0, last: 0 };

    fn push(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        let room = self.start.get_mut(self.length..).unwrap_or_default();
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        self.length = self.length.saturating_add(bytes.len());
        self.last = *last;
    }
}

impl Default for Framing {
    /// At a connection's first byte.
    fn default() -> Self {
        Self { next: Next::RequestLine, skip: 0, begun: Line::EMPTY, length: None, is_chunked: false, heads: 0 }
    }
}

impl Framing {
    /// Takes what was read. `Err` is the number of the connection's request that can be read in two ways, from 1; behind it nothing is
    /// known, and this is not to be asked again.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), u32> {
        loop {
            let skipped = self.skip.min(bytes.len() as u64);
            self.skip -= skipped;
            bytes = &bytes[skipped as usize..];
            let Some(end) = memchr(b'\n', bytes) else {
                self.begun.push(bytes);
                return Ok(());
            };
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            let is_clear = if self.begun.length == 0 {
                self.line(line, line.len(), line.last().copied())
            } else {
                let mut begun = std::mem::replace(&mut self.begun, Line::EMPTY);
                begun.push(line);
                self.line(&begun.start[..begun.length.min(LINE_MAX)], begun.length, Some(begun.last))
            };
            if !is_clear {
                return Err(self.heads);
            }
        }
    }

    /// How many requests of the connection have begun: of the newest perhaps only its first byte has come.
    pub fn begun(&self) -> u32 {
        let in_request_line = self.next == Next::RequestLine && self.begun.length > 0 && self.begun.start[0] != b'\r';
        self.heads + u32::from(in_request_line)
    }

    /// A line ended; `start` is its beginning, `length` counts all of it but the line feed. False if it can be read in two ways.
    fn line(&mut self, start: &[u8], length: usize, last: Option<u8>) -> bool {
        let is_empty = length == 0 || start == b"\r";
        match self.next {
            // Empty lines before a request mean nothing to anybody (RFC 9112 §2.2), unless one takes a line feed alone for a request line.
            Next::RequestLine if is_empty && last == Some(b'\r') => {}
            Next::RequestLine if is_empty => self.heads = self.heads.saturating_add(1), // It is the next one's.
            Next::RequestLine => {
                self.heads = self.heads.saturating_add(1);
                (self.next, self.length, self.is_chunked) = (Next::Field, None, false);
            }
            Next::Field if is_empty => {
                (self.next, self.skip) = match (self.is_chunked, self.length) {
                    (true, Some(_)) => return false,
                    (true, None) => (Next::ChunkSize, 0),
                    (false, length) => (Next::RequestLine, length.unwrap_or(0)),
                };
            }
            Next::Field if is_field(start, b"content-length") => match number(value(start), length, 10) {
                Some(length) => self.length = Some(length), // Of two that differ hyper says so.
                None => return false,
            },
            Next::Field if is_field(start, b"transfer-encoding") => {
                if self.is_chunked || length > LINE_MAX || !value(start).eq_ignore_ascii_case(b"chunked") {
                    return false;
                }
                self.is_chunked = true;
            }
            Next::Field => {}
            Next::ChunkSize => {
                let digits = start.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(start.len());
                match (number(&start[..digits], digits, 16), start.get(digits)) {
                    (Some(0), Some(b'\r' | b';')) => self.next = Next::Trailer,
                    (Some(size), Some(b'\r' | b';')) => self.skip = size.saturating_add(2),
                    _ => return false,
                }
            }
            Next::Trailer if is_empty => self.next = Next::RequestLine,
            Next::Trailer => {}
        }
        last == Some(b'\r')
    }
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

fn value(line: &[u8]) -> &[u8] {
    let colon = line.iter().position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
    let value = &line[colon..];
    let start = value.iter().position(|byte| !is_space(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_space(byte)).map_or(start, |at| at + 1);
    &value[start..end]
}

/// Digits and nothing else, of a line that is not longer than is looked at.
fn number(digits: &[u8], line: usize, radix: u32) -> Option<u64> {
    let is_number = line <= LINE_MAX && digits.iter().all(|byte| char::from(*byte).is_digit(radix));
    is_number.then(|| std::str::from_utf8(digits).ok()).flatten().and_then(|text| u64::from_str_radix(text, radix).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAR: &str = "POST / HTTP/1.1\r\nHost: r\r\nContent-Length: 3\r\n\r\na\nb";
    const CHUNKED: &str =
        "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n2;x=y\r\n\n\n\r\nA\r\n0123456\n89\r\n0\r\nX: y\r\n\r\n";

    /// However it is split.
    fn check(bytes: &str, expected: Result<(), u32>) {
        for piece in [usize::MAX, 1, 2, 7, 65] {
            let mut framing = Framing::default();
            let read = bytes.as_bytes().chunks(piece.min(bytes.len())).try_for_each(|piece| framing.read(piece));
            assert_eq!(read, expected, "{bytes:?} in pieces of {piece}");
        }
    }

    #[test]
    fn what_follows_a_body_of_any_framing_is_read_as_the_next_head() {
        let doubtful = "POST / HTTP/1.1\nHost: r\r\n\r\n";
        check(CLEAR, Ok(()));
        check(CHUNKED, Ok(()));
        check(&format!("{CLEAR}\r\n{CHUNKED}{CLEAR}"), Ok(()));
        check(&format!("{CLEAR}\r\n{CHUNKED}{CLEAR}{doubtful}"), Err(4));
        check(&format!("GET / HTTP/1.1\r\n\r\n{CHUNKED}{doubtful}"), Err(3));
        check(&format!("\r\n\r\n{CLEAR}\r\n"), Ok(()));
        check(&format!("{CLEAR}\n{CLEAR}"), Err(2));
        check(&format!("\n{CLEAR}"), Err(1));
        check(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n{CHUNKED}{doubtful}", "y".repeat(1000)), Err(3));
    }

    #[test]
    fn a_request_has_begun_with_its_first_byte_and_not_with_an_empty_line() {
        for (behind, begun) in [("", 2), ("\r\n\r", 2), ("\r\nP", 3), ("POST / HTTP/1.1\r\n", 3), (CLEAR, 3)] {
            let mut framing = Framing::default();
            assert_eq!(framing.begun(), 0);
            assert_eq!(framing.read(format!("{CLEAR}{CHUNKED}{behind}").as_bytes()), Ok(()));
            assert_eq!(framing.begun(), begun, "{behind:?}");
        }
    }

    #[test]
    fn lines_and_framing_that_can_be_read_in_two_ways_are_told() {
        check("POST / HTTP/1.1\n", Err(1));
        check("POST / HTTP/1.1\r\nHost: r\n", Err(1));
        check("POST / HTTP/1.1\r\nHost: r\r\n\n", Err(1));
        for framing in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\ncontent-length: 3\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Content-Length: +3\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n",
            "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\n",
            "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\n",
        ] {
            check(&format!("POST / HTTP/1.1\r\n{framing}\r\n"), Err(1));
        }
        let spaces = " ".repeat(LINE_MAX);
        check(&format!("POST / HTTP/1.1\r\nTransfer-Encoding:{spaces}chunked\r\n\r\n"), Err(1));
        check(&format!("POST / HTTP/1.1\r\nContent-Length:{spaces}3\r\n\r\n"), Err(1));
    }
}
