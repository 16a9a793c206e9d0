//! Why a signature does not match: [`diagnose`] tries what usually goes wrong between SIPSIM and a receiver, and says what of it would make
//! the signature right. Pure. Its words name secrets and headers, never a byte of a body, a signature or a secret.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::HeaderMap;

use super::{SIGNATURE_HEADER, TIMESTAMP_DIGITS_MAX, TIMESTAMP_HEADER, is_fresh, mac_of};
use crate::clock::{Timestamp, rfc3339_seconds};
use crate::secret::Secret;

mod rewrite;
mod search;

use search::{CutShort, Found, Work, search};

/// What came: the headers' values, however many, and the body.
pub struct Evidence<'a> {
    pub timestamps: Vec<&'a [u8]>,
    pub signatures: Vec<&'a [u8]>,
    pub body: &'a [u8],
    pub received_at: Timestamp,
}

/// Secrets that are named where none fits, so that the text does not grow with their number.
const NAMED_MAX: usize = 4;

/// A secret to try.
pub struct Candidate<'a> {
    /// What to call it: `secret sipsim of account default`.
    pub name: String,
    pub secret: &'a Secret,
    /// Its account's.
    pub tolerance: Duration,
    /// Whether a signature with it is right. If not, naming it explains a wrong one: another account's, or one that was not asked for.
    pub counts: bool,
}

/// The answer to "is it signed?", and if not, to "why not?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The name of the secret that made the signature, if it is right as it came.
    pub signed_with: Option<String>,
    /// When it claims to be signed, in seconds since 1970, if that can be read.
    pub signed_at: Option<i64>,
    pub received_at: Timestamp,
    /// Whether one is within the tolerance of the other.
    pub fresh: bool,
    /// What is wrong, the plainest first; each a line that names what to do. Empty if the signature is right and fresh.
    pub findings: Vec<Finding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Timestamp,
    Signature,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Missing(Header),
    Empty(Header),
    Doubled(Header),
    /// Not 64 characters; this many.
    SignatureLength(usize),
    SignatureNotHex,
    SignatureBase64,
    /// It is right without the prefix, quotes or white space around it.
    SignatureDecorated,
    TimestampNotSeconds,
    TimestampMilliseconds,
    /// Seconds from now to the time of signing, and the tolerance.
    OutsideTolerance(i64, Duration),
    /// Signed with a secret that does not count here.
    OtherSecret(String),
    /// Signed with this secret, had it been read this way.
    SecretSpoilt(String, &'static str),
    /// Something else was signed than timestamp, dot and body.
    SignedOtherwise(&'static str),
    /// The header says seconds, and milliseconds were signed; or the other way round.
    SignedOtherUnit,
    /// The signature is right for the same body written like this.
    BodyRewritten(String),
    BodyEmpty,
    BodyCompressed,
    /// None of what was tried makes it right; the secrets tried.
    NoSecretFits(Vec<String>),
    /// Nothing that was tried makes it right, and not all was tried.
    SearchCutShort,
}

impl Finding {
    /// The kind of cause, of a closed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing(_) => "header_missing",
            Self::Empty(_) => "header_empty",
            Self::Doubled(_) => "header_doubled",
            Self::SignatureLength(_) => "signature_length",
            Self::SignatureNotHex => "signature_not_hex",
            Self::SignatureBase64 => "signature_base64",
            Self::SignatureDecorated => "signature_decorated",
            Self::TimestampNotSeconds => "timestamp_not_seconds",
            Self::TimestampMilliseconds => "timestamp_milliseconds",
            Self::OutsideTolerance(..) => "outside_tolerance",
            Self::OtherSecret(_) => "other_secret",
            Self::SecretSpoilt(..) => "secret_spoilt",
            Self::SignedOtherwise(_) => "signed_otherwise",
            Self::SignedOtherUnit => "signed_other_unit",
            Self::BodyRewritten(_) => "body_rewritten",
            Self::BodyEmpty => "body_empty",
            Self::BodyCompressed => "body_compressed",
            Self::NoSecretFits(_) => "no_secret_fits",
            Self::SearchCutShort => "search_cut_short",
        }
    }

    /// Whether it says that no secret of ours has to do with the request, so that anybody may have sent it.
    pub fn is_unexplained(&self) -> bool {
        matches!(self, Self::NoSecretFits(_) | Self::SearchCutShort)
    }
}

impl<'a> Evidence<'a> {
    /// The evidence of a request.
    pub fn of(headers: &'a HeaderMap, body: &'a [u8], received_at: Timestamp) -> Self {
        let all = |name| headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
        Self { timestamps: all(&TIMESTAMP_HEADER), signatures: all(&SIGNATURE_HEADER), body, received_at }
    }
}

/// Finds out whether one of `candidates` signed this, and if none did, why not.
///
/// Costs some twenty hashes of the body for each secret that counts, and for a JSON body of at most 256 KiB some hundred more: not for every request. It gives
/// up before it has hashed more than `work_max` bytes.
pub fn diagnose(evidence: &Evidence, candidates: &[Candidate], work_max: usize) -> Diagnosis {
    let mut findings = Vec::new();
    let timestamp = single(&evidence.timestamps, Header::Timestamp, &mut findings);
    let signature = single(&evidence.signatures, Header::Signature, &mut findings);
    let signed_at = timestamp.and_then(|value| seconds(value, &mut findings));
    let mac = signature.and_then(|value| mac(value, &mut findings));
    let well_formed = findings.is_empty();

    let mut tolerance = candidates.iter().map(|candidate| candidate.tolerance).max().unwrap_or_default();
    let mut signed_with = None;
    let (mut unexplained, mut explained) = (None, false);
    if let (Some(timestamp), Some(mac)) = (timestamp, mac) {
        let found = search(candidates, &mac, timestamp.trim_ascii(), evidence.body, &mut Work::new(work_max));
        explained = matches!(found, Ok(Some(_)));
        match found {
            Ok(Some(found)) if found.is_plain() && candidates[found.candidate].counts => {
                let Candidate { name, tolerance: its, .. } = &candidates[found.candidate];
                signed_with = well_formed.then(|| name.clone());
                tolerance = *its;
            }
            Ok(Some(found)) => explain(found, candidates, &mut findings),
            Ok(None) => {
                let tried = candidates.iter().map(|candidate| candidate.name.clone()).collect();
                unexplained = Some(Finding::NoSecretFits(tried));
            }
            Err(CutShort) => unexplained = Some(Finding::SearchCutShort),
        }
    }
    if !explained {
        match evidence.body {
            [] => findings.push(Finding::BodyEmpty),
            [0x1f, 0x8b, ..] => findings.push(Finding::BodyCompressed),
            _ => {}
        }
    }
    findings.extend(unexplained);
    let fresh = signed_at.is_some_and(|at| is_fresh(Timestamp::from_seconds(at), evidence.received_at, tolerance));
    if let (Some(at), false) = (signed_at, fresh) {
        findings.push(Finding::OutsideTolerance(at.saturating_sub(evidence.received_at.as_seconds()), tolerance));
    }
    Diagnosis { signed_with, signed_at, received_at: evidence.received_at, fresh, findings }
}

fn explain(found: Found, candidates: &[Candidate], findings: &mut Vec<Finding>) {
    let candidate = &candidates[found.candidate];
    if !candidate.counts {
        findings.push(Finding::OtherSecret(candidate.name.clone()));
    }
    if let Some(how) = found.secret {
        findings.push(Finding::SecretSpoilt(candidate.name.clone(), how));
    }
    if let Some(how) = found.framing {
        findings.push(Finding::SignedOtherwise(how));
    }
    if found.other_unit {
        findings.push(Finding::SignedOtherUnit);
    }
    if let Some(how) = found.body {
        findings.push(Finding::BodyRewritten(how));
    }
}

/// The one value of a header, or what is wrong with it.
fn single<'a>(values: &[&'a [u8]], header: Header, findings: &mut Vec<Finding>) -> Option<&'a [u8]> {
    match values {
        [] => findings.push(Finding::Missing(header)),
        [value] if value.trim_ascii().is_empty() => findings.push(Finding::Empty(header)),
        [value] => return Some(value),
        _ => findings.push(Finding::Doubled(header)),
    }
    None
}

/// Seconds since 1970, also of a timestamp in milliseconds.
fn seconds(value: &[u8], findings: &mut Vec<Finding>) -> Option<i64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number: Option<i64> = str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
    match (number, value.len()) {
        (Some(number), 1..=TIMESTAMP_DIGITS_MAX) => Some(number),
        (Some(number), 13) => {
            findings.push(Finding::TimestampMilliseconds);
            Some(number / 1000)
        }
        _ => {
            findings.push(Finding::TimestampNotSeconds);
            None
        }
    }
}

/// The 32 bytes that a signature stands for, however it is written.
fn mac(value: &[u8], findings: &mut Vec<Finding>) -> Option<[u8; 32]> {
    if let Some(mac) = mac_of(value) {
        return Some(mac);
    }
    let quotes = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'\'');
    let start = value.iter().position(|byte| !quotes(byte)).unwrap_or(0);
    let end = value.iter().rposition(|byte| !quotes(byte)).map_or(start, |last| last + 1);
    let bare = &value[start..end];
    let after = |separator: u8| bare.iter().position(|byte| *byte == separator).map(|at| bare[at + 1..].trim_ascii());
    if let Some(mac) = [Some(bare), after(b'='), after(b':')].into_iter().flatten().find_map(mac_of) {
        findings.push(Finding::SignatureDecorated);
        return Some(mac);
    }
    let base64 = [Some(bare), after(b'=')].into_iter().flatten().find_map(base64_32);
    findings.push(match base64 {
        Some(_) => Finding::SignatureBase64,
        None if value.len() == 64 => Finding::SignatureNotHex,
        None => Finding::SignatureLength(value.len()),
    });
    base64
}

fn base64_32(text: &[u8]) -> Option<[u8; 32]> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [alphabet::STANDARD, alphabet::URL_SAFE].iter().find_map(|alphabet| {
        let bytes = GeneralPurpose::new(alphabet, lenient).decode(text).ok()?;
        bytes.try_into().ok()
    })
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timestamp => "X-Webhook-Timestamp",
            Self::Signature => "X-Webhook-Signature",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(header) => write!(
                f,
                "There is no {header}. SIPSIM signs every event: look for a proxy that drops the header, or the sender is not SIPSIM."
            ),
            Self::Empty(header) => write!(f, "{header} is empty. Look for a proxy that rewrites headers."),
            Self::Doubled(header) => write!(f, "{header} stands there more than once. Look for a proxy that adds headers."),
            Self::SignatureLength(length) => write!(
                f,
                "X-Webhook-Signature has {length} characters; HMAC-SHA256 in hex has 64. It was cut, or is of another kind."
            ),
            Self::SignatureNotHex => {
                f.write_str("X-Webhook-Signature is not hex: of its 64 characters some are not 0 to 9 or a to f.")
            }
            Self::SignatureBase64 => {
                f.write_str("X-Webhook-Signature is base64; SIPSIM writes hex. Whoever signs has to write hex.")
            }
            Self::SignatureDecorated => f.write_str(
                "X-Webhook-Signature has something around its 64 hex digits, a prefix, quotes or a space. SIPSIM sends the digits alone.",
            ),
            Self::TimestampNotSeconds => {
                f.write_str("X-Webhook-Timestamp is not Unix time in seconds: 1 to 12 digits and nothing else.")
            }
            Self::TimestampMilliseconds => {
                f.write_str("X-Webhook-Timestamp is in milliseconds; it has to be in seconds (10 digits, not 13).")
            }
            Self::OutsideTolerance(ahead, tolerance) => {
                let (off, tolerance) = (Span(ahead.unsigned_abs()), Span(tolerance.as_secs()));
                let (side, why) = match *ahead < 0 {
                    true => ("ago", "an old request, or one of the clocks is wrong"),
                    false => ("ahead", "one of the clocks is wrong"),
                };
                write!(f, "The timestamp is outside the tolerance of {tolerance}, {off} {side}: {why}. Compare them (NTP).")
            }
            Self::OtherSecret(name) => write!(
                f,
                "It is signed with the {name}. If that is meant, SIPSIM has the URL of the wrong account, or the secret lies in the wrong place."
            ),
            Self::SecretSpoilt(name, how) => write!(f, "The signature is right if the {name} {how}. Write the secret's file anew."),
            Self::SignedOtherwise(how) => write!(
                f,
                "The secret is right, but the signature is of {how}; it has to be of the timestamp, a dot and the raw body."
            ),
            Self::SignedOtherUnit => f.write_str(
                "The timestamp that was signed is the same moment in the other unit (seconds, milliseconds) than the one in the header.",
            ),
            Self::BodyRewritten(how) => write!(
                f,
                "The secret is right, but the body was changed after signing: the signature is of the same body {how}. Let the raw bytes through, or save them as they come."
            ),
            Self::BodyEmpty => f.write_str("The body is empty: a proxy or a redirect dropped it, or the file is the wrong one."),
            Self::BodyCompressed => f.write_str(
                "The body is compressed (gzip). SIPSIM signs what it sends, uncompressed: look for a proxy that compresses requests.",
            ),
            Self::NoSecretFits(tried) if tried.is_empty() => f.write_str("There is no secret to try."),
            Self::NoSecretFits(tried) => {
                let (named, more) = tried.split_at(tried.len().min(NAMED_MAX));
                write!(f, "No secret fits ({}", named.join(", "))?;
                if !more.is_empty() {
                    write!(f, " and {} more", more.len())?;
                }
                f.write_str(
                    "): it was changed at SIPSIM, belongs to another integration, or body, timestamp and signature are not of one request.",
                )
            }
            Self::SearchCutShort => f.write_str(
                "Nothing that was tried explains it, and not all was tried: the body is long for the number of secrets. Give the request to `sipsim-relay verify`, which tries all.",
            ),
        }
    }
}

/// Says the outcome first, then what is wrong, a line each.
impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.signed_with {
            Some(name) => writeln!(f, "The signature is right: {name}.")?,
            None => writeln!(f, "The signature is not right.")?,
        }
        if let Some(at) = self.signed_at {
            let age = self.received_at.as_seconds().saturating_sub(at);
            let side = if age < 0 { "ahead" } else { "ago" };
            writeln!(f, "It says it was signed at {}, {} {side}.", rfc3339_seconds(at), Span(age.unsigned_abs()))?;
        }
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

/// Seconds for people, the two largest units: `42 s`, `5 min`, `3 h 20 min`, `12 d 4 h`.
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, hours, minutes, seconds) = (self.0 / 86400, self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        let (large, small) = match self.0 {
            0..60 => return write!(f, "{seconds} s"),
            60..3600 => ((minutes, "min"), (seconds, "s")),
            3600..86400 => ((hours, "h"), (minutes, "min")),
            _ => ((days, "d"), (hours, "h")),
        };
        write!(f, "{} {}", large.0, large.1)?;
        if small.0 != 0 {
            write!(f, " {} {}", small.0, small.1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
