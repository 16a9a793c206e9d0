//! Which small change makes a signature right: the secret read otherwise, something else signed, the body written otherwise. One change at a
//! time (and a timestamp in the other unit beside it), the cheap ones first.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Candidate;
use super::rewrite;
use crate::authenticate::keys::{feed, signer};
use crate::secret::{Secret, is_space};

/// What made the signature right; all at their defaults: nothing had to be changed.
#[derive(Default)]
pub struct Found {
    /// The index of the secret.
    pub candidate: usize,
    pub secret: Option<&'static str>,
    pub framing: Option<&'static str>,
    pub other_unit: bool,
    pub body: Option<String>,
}

impl Found {
    pub fn is_plain(&self) -> bool {
        self.secret.is_none() && self.framing.is_none() && !self.other_unit && self.body.is_none()
    }
}

/// The search ended because it had cost as much as it may.
#[derive(Debug)]
pub struct CutShort;

/// The bytes that one search may still hash or write. Counted in bytes and not in time, so that the same request always has the same diagnosis.
pub struct Work {
    bytes_left: usize,
}

impl Work {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_left: bytes_max }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), CutShort> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(CutShort)?;
        Ok(())
    }
}

/// The first change under which one of `candidates` made `mac`, those that count before the others. Changes are tried only with those that count; of the
/// others it is only asked whether they made the signature as it came.
pub fn search(
    candidates: &[Candidate],
    mac: &[u8; 32],
    timestamp: &[u8],
    body: &[u8],
    work: &mut Work,
) -> Result<Option<Found>, CutShort> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&index| !candidates[index].counts);
    let count = candidates.iter().filter(|candidate| candidate.counts).count();
    let mut is = |secret: &Secret, frame: Frame, timestamp: &[u8], body: &[u8]| {
        work.spend(secret.expose().len() + body.len())?;
        let mut attempt = signer(secret);
        frame(&mut attempt, timestamp, body);
        Ok(attempt.verify_slice(mac).is_ok())
    };
    let units = other_unit(timestamp);
    for &candidate in &order {
        let secret = candidates[candidate].secret;
        if is(secret, feed, timestamp, body)? {
            return Ok(Some(Found { candidate, ..Found::default() }));
        }
        if let Some(other) = &units
            && is(secret, feed, other, body)?
        {
            return Ok(Some(Found { candidate, other_unit: true, ..Found::default() }));
        }
    }
    let order = &order[..count];
    for &candidate in order {
        for (spoilt, how) in spoilt(candidates[candidate].secret) {
            if is(&spoilt, feed, timestamp, body)? {
                return Ok(Some(Found { candidate, secret: Some(how), ..Found::default() }));
            }
        }
        for (how, frame) in FRAMINGS {
            if is(candidates[candidate].secret, frame, timestamp, body)? {
                return Ok(Some(Found { candidate, framing: Some(how), ..Found::default() }));
            }
        }
    }
    rewrite::rewritten(body, |rewritten, how| {
        for &candidate in order {
            if is(candidates[candidate].secret, feed, timestamp, rewritten)? {
                return Ok(Some(Found { candidate, body: Some(how), ..Found::default() }));
            }
        }
        Ok(None)
    })
}

/// The same moment in milliseconds for seconds, and in seconds for milliseconds.
fn other_unit(timestamp: &[u8]) -> Option<Vec<u8>> {
    match timestamp.len() {
        10 => Some([timestamp, b"000"].concat()),
        13 => Some(timestamp[..10].to_vec()),
        _ => None,
    }
}

type Frame = fn(&mut Hmac<Sha256>, &[u8], &[u8]);

/// What else is signed by those who did not read the documentation to the end.
const FRAMINGS: [(&str, Frame); 5] = [
    ("the body alone, without timestamp and dot", |mac, _, body| mac.update(body)),
    ("timestamp and body without the dot", |mac, timestamp, body| {
        mac.update(timestamp);
        mac.update(body);
    }),
    ("the body, a dot and the timestamp, the wrong way round", |mac, timestamp, body| {
        mac.update(body);
        mac.update(b".");
        mac.update(timestamp);
    }),
    ("timestamp and body with a colon between", |mac, timestamp, body| {
        mac.update(timestamp);
        mac.update(b":");
        mac.update(body);
    }),
    ("the timestamp and a dot, without a body", |mac, timestamp, _| {
        mac.update(timestamp);
        mac.update(b".");
    }),
];

/// The secret as it may have been meant, or as the signer may have read it. No buffer here grows or is dropped without being wiped.
fn spoilt(secret: &Secret) -> Vec<(Secret, &'static str)> {
    let raw = secret.expose();
    let mut all = Vec::new();
    let mut add = |other: Secret, how| {
        // Neither as it is nor empty, which would be nobody's.
        if other != *secret && !other.is_empty() {
            all.push((other, how));
        }
    };
    let of = |bytes: &[u8]| Secret::new(bytes.to_vec());
    let joined = |parts: &[&[u8]]| Secret::new(parts.concat());
    let quoted = [b'"', b'\''].iter().find_map(|quote| raw.strip_prefix(&[*quote])?.strip_suffix(&[*quote]));
    if let Some(bare) = quoted {
        add(of(bare), "loses the quotes around it");
    }
    if let Some(bare) = raw.strip_prefix(b"\xef\xbb\xbf") {
        add(Secret::of(bare), "loses the byte order mark before it, which an editor put there");
    }
    for utf16 in utf16(raw) {
        add(utf16, "is read as UTF-16, as which its file was saved");
    }
    if let Ok(text) = str::from_utf8(raw) {
        let around = text.trim_matches(is_space);
        add(of(around.as_bytes()), "loses the white space or invisible characters around it");
        let mut within = String::with_capacity(text.len());
        within.extend(text.chars().filter(|character| !is_space(*character)));
        add(Secret::new(within.into_bytes()), "loses the white space and invisible characters in it");
    }
    if let Some(equals) = raw.iter().position(|byte| *byte == b'=') {
        let value = raw[equals + 1..].trim_ascii();
        let mut bare = Vec::with_capacity(value.len());
        bare.extend(value.iter().filter(|byte| !matches!(byte, b'"' | b'\'')));
        add(Secret::new(bare), "is only what stands behind the equals sign");
    }
    if let Some(bare) = raw.strip_suffix(b"\\n") {
        add(of(bare), "loses the backslash and n at its end");
    }
    if let Some(first) = raw.split(u8::is_ascii_whitespace).next() {
        add(of(first), "is only its first word or line");
    }
    add(joined(&[raw, b"\n"]), "has a newline at its end for the signer, which took it for a part of the secret");
    add(
        joined(&[raw, b"\r\n"]),
        "has a carriage return and newline at its end for the signer, which took them for a part of the secret",
    );
    add(joined(&[b"\"", raw, b"\""]), "has quotes around it for the signer, which took them for a part of the secret");
    let mut bytes = Zeroizing::new(vec![0; raw.len() / 2]);
    if raw.len().is_multiple_of(2) && hex::decode_to_slice(raw, &mut bytes).is_ok() {
        add(of(&bytes), "is decoded from hex by the signer, which it must not be");
    }
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(raw.len())]);
    if let Ok(count) = BASE64.decode_slice(raw, &mut bytes) {
        add(of(&bytes[..count]), "is decoded from base64 by the signer, which it must not be");
    }
    add(Secret::new(raw.to_ascii_lowercase()), "is in lower case");
    all
}

/// The same text in UTF-8, of what may be UTF-16 of either order: with zero bytes, or the mark that says so.
fn utf16(raw: &[u8]) -> Vec<Secret> {
    let is_marked = raw.starts_with(b"\xff\xfe") || raw.starts_with(b"\xfe\xff");
    if !is_marked && !raw.contains(&0) {
        return Vec::new();
    }
    let decoded = |unit: fn([u8; 2]) -> u16| {
        let mut text = Zeroizing::new(String::with_capacity(raw.len() * 2)); // A unit is three bytes at the most.
        for character in char::decode_utf16(raw.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]))) {
            text.push(character.ok()?);
        }
        Some(Secret::new(text.trim_matches(is_space).as_bytes().to_vec()))
    };
    [u16::from_le_bytes, u16::from_be_bytes].into_iter().filter_map(decoded).collect()
}
