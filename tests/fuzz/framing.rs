//! Where requests end: what [`Framing`] calls clear, a strict reader and lenient ones must read the same.

use fastrand::Rng;
use sipsim_relay::ingress::framing::Framing;

use super::Fixture;

pub const SEEDS: &[&str] = &[
    "POST /w HTTP/1.1\r\nHost: r\r\nContent-Length: 5\r\n\r\n{\"\n\"}POST /w HTTP/1.1\r\nHost: r\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    "POST /w HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456\n89\r\n0\r\nX: y\r\n\r\nPOST /w HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "\r\nPOST /w HTTP/1.1\r\nX-Webhook-Timestamp: 1736937000\r\nTransfer-Encoding:chunked \r\n\r\n0\r\n\r\nPOST / HTTP/1.1\r\nContent-Length:\t1\r\n\r\n\n",
    "POST /w HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST /w HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "\r\nPOST /w HTTP/1.1\r\nContent-Length: 1\r\n\r\n\n\n\r\n\r\nPOST /w HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
];

/// A reader of HTTP/1.1 that stands for a program in front of the relay, or for hyper.
#[derive(Clone, Copy)]
struct Reader {
    /// With both a length and chunks, the chunks count.
    chunks_win: bool,
    /// A line may end with a line feed alone.
    line_feed_alone: bool,
    /// A coding is chunks if `chunked` stands anywhere in it.
    any_chunked: bool,
}

/// What a proxy might be made like; RFC 9112 allows the first two, and programs like the others were seen in the wild.
const READERS: [Reader; 4] = [
    Reader { chunks_win: true, line_feed_alone: false, any_chunked: false },
    Reader { chunks_win: true, line_feed_alone: true, any_chunked: false },
    Reader { chunks_win: false, line_feed_alone: true, any_chunked: true },
    Reader { chunks_win: true, line_feed_alone: true, any_chunked: true },
];

pub fn framing(_: &Fixture, rng: &mut Rng, input: &[u8]) {
    let whole = Framing::default().read(input);
    let mut framing = Framing::default();
    let mut rest = input;
    let mut piecewise = Ok(());
    while !rest.is_empty() && piecewise.is_ok() {
        let (piece, left) = rest.split_at(rng.usize(1..=rest.len().min(40)));
        piecewise = framing.read(piece);
        rest = left;
    }
    assert_eq!(piecewise, whole, "it depends on the pieces");
    // Requests before the one that is not clear are.
    let clear = whole.map_or_else(|request| request as usize - 1, |()| usize::MAX);
    let mut at = 0;
    for number in 1..=clear {
        if !is_taken(&input[at..]) {
            return;
        }
        let ends = READERS.map(|reader| reader.end(&input[at..]));
        // A head or body that is not whole may end anywhere yet.
        let Some(end) = ends[0] else { return };
        assert!(ends.iter().all(|other| *other == Some(end)), "request {number} at {at} ends at {ends:?}");
        at += end;
    }
}

/// Whether hyper's own parser takes the head. What that refuses is refused, whatever others think of it.
fn is_taken(bytes: &[u8]) -> bool {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut fields);
    let is_whole = request.parse(bytes).is_ok_and(|status| status.is_complete());
    // hyper refuses lengths that differ or are no numbers, and HTTP/1.0 with chunks; others too need not be compared then.
    let lengths = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    let mut lengths = lengths.map(|field| str::from_utf8(field.value).ok().and_then(|text| text.parse::<u64>().ok()));
    let first = lengths.next();
    let is_sound = first.is_none_or(|first| first.is_some() && lengths.all(|other| other == first));
    is_whole && is_sound && request.version == Some(1)
}

impl Reader {
    /// Where the request ends; `None` if its end has not come, or this reader refuses it.
    fn end(self, bytes: &[u8]) -> Option<usize> {
        let (mut at, mut chunked, mut length, mut begun) = (0, false, None, false);
        loop {
            let line = self.line(bytes, &mut at)?;
            if line.is_empty() {
                if begun {
                    break;
                }
                continue;
            }
            if !std::mem::replace(&mut begun, true) {
                continue;
            }
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) = (line[..colon].trim_ascii().to_ascii_lowercase(), line[colon + 1..].trim_ascii());
            match &name[..] {
                b"content-length" => length = Some(str::from_utf8(value).ok()?.parse::<usize>().ok()?),
                b"transfer-encoding" => {
                    let value = value.to_ascii_lowercase();
                    chunked |= match self.any_chunked {
                        true => value.windows(7).any(|part| part == b"chunked"),
                        false => value == b"chunked",
                    };
                }
                _ => {}
            }
        }
        if let Some(length) = length
            && !(chunked && self.chunks_win)
        {
            return at.checked_add(length).filter(|end| *end <= bytes.len());
        }
        if !chunked {
            return Some(at);
        }
        loop {
            let line = self.line(bytes, &mut at)?;
            let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
            let size = usize::from_str_radix(str::from_utf8(&line[..digits]).ok()?, 16).ok()?;
            if size == 0 {
                while !self.line(bytes, &mut at)?.is_empty() {}
                return Some(at);
            }
            at = at.checked_add(size).filter(|end| *end <= bytes.len())?;
            if !self.line(bytes, &mut at)?.is_empty() {
                return None; // No reader takes bytes behind a chunk.
            }
        }
    }

    fn line<'a>(self, bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
        let rest = bytes.get(*at..)?;
        let (length, end) = if self.line_feed_alone {
            let feed = rest.iter().position(|byte| *byte == b'\n')?;
            (feed - usize::from(feed > 0 && rest[feed - 1] == b'\r'), feed + 1)
        } else {
            let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
            (end, end + 2)
        };
        *at += end;
        Some(&rest[..length])
    }
}
