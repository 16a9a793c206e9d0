//! Who may come in: a request is [`Claims`] once its headers have the right form, [`Unverified`] once its body is read, and [`Verified`] only
//! if its signature matches one of the account's secrets over the raw bytes and it is fresh.
//!
//! ```text
//! accounts.by_path(path) → account.claims(&headers)? → claims.with_body(body, received_at) → .verify()?
//! ```

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayString;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::clock::Timestamp;
use crate::config::AccountName;

mod accounts;
pub mod diagnose;
mod explain;
mod held;
mod keys;
mod secrets;

pub use accounts::{Account, Accounts, NoSecrets, Reload, SecretsChanged};
pub use explain::Explanation;
pub use keys::sign;
pub use secrets::{NamedSecret, ReloadReport, SECRETS_DEFAULT, Unusable, load as load_secrets, make_secret};

/// Carries the signature: 64 hex digits.
pub static SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-webhook-signature");
/// Carries the time of signing: seconds since 1970.
pub static TIMESTAMP_HEADER: HeaderName = HeaderName::from_static("x-webhook-timestamp");
/// Longer ones are no seconds of any year that can be written.
const TIMESTAMP_DIGITS_MAX: usize = 12;
/// HMAC-SHA256 has 32 bytes.
const SIGNATURE_DIGITS: usize = 64;

/// `X-Webhook-Timestamp` as sent: ASCII digits. In place, as [`SignatureText`]: each request has both, and memory for each costs more than to copy them.
pub type TimestampText = ArrayString<TIMESTAMP_DIGITS_MAX>;
/// `X-Webhook-Signature` as sent: hex digits of either case.
pub type SignatureText = ArrayString<SIGNATURE_DIGITS>;

/// A request whose signature matched and which is fresh. Only [`Unverified::verify`] makes one.
#[derive(Clone)]
#[expect(clippy::manual_non_exhaustive, reason = "the seal keeps this crate's other rooms from making one, too")]
pub struct Verified {
    pub account: AccountName,
    /// `X-Webhook-Timestamp` as sent: 1 to 12 ASCII digits.
    pub signed_text: TimestampText,
    /// The same in seconds since 1970.
    pub signed_at: i64,
    /// `X-Webhook-Signature` as sent: 64 hex digits of either case.
    pub signature: SignatureText,
    pub received_at: Timestamp,
    pub body: Bytes,
    _seal: (),
}

/// Why a request is not let in. Who sent it learns none of this: all are the same 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    MissingHeader,
    /// One of the two headers stands there twice, or has not the form of its kind.
    MalformedHeader,
    /// None of the account's secrets made this signature of this timestamp and this body.
    BadSignature,
    /// Correctly signed, too long ago or too far ahead.
    OutsideTolerance,
}

impl Refused {
    pub const ALL: [Refused; 4] =
        [Self::MissingHeader, Self::MalformedHeader, Self::BadSignature, Self::OutsideTolerance];

    /// The label `outcome` of `webhooks_total`, and the word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_header",
            Self::MalformedHeader => "malformed_header",
            Self::BadSignature => "bad_signature",
            Self::OutsideTolerance => "outside_tolerance",
        }
    }
}

/// Headers of the right form, before the body is read. Nothing is proved yet.
pub struct Claims {
    account: Arc<Account>,
    signed: Signed,
}

/// A whole request whose signature was not looked at yet.
pub struct Unverified {
    account: Arc<Account>,
    request: Request,
}

/// The two headers, parsed.
struct Signed {
    text: TimestampText,
    at: i64,
    signature: SignatureText,
    mac: [u8; 32],
}

/// What is signed and what claims to be its signature, without the account, so that an account can hold refused ones.
struct Request {
    signed: Signed,
    received_at: Timestamp,
    body: Bytes,
}

impl Account {
    /// Whether both headers are there, once each, in the right form; the body need not be read for a request that fails here.
    pub fn claims(self: &Arc<Self>, headers: &HeaderMap) -> Result<Claims, Refused> {
        let mut timestamps = headers.get_all(&TIMESTAMP_HEADER).iter();
        let mut signatures = headers.get_all(&SIGNATURE_HEADER).iter();
        // A missing one goes before a malformed other: it is the plainer mistake.
        let (Some(timestamp), Some(signature)) = (timestamps.next(), signatures.next()) else {
            return Err(Refused::MissingHeader);
        };
        if timestamps.next().is_some() || signatures.next().is_some() {
            return Err(Refused::MalformedHeader);
        }
        let signed = Signed::parse(timestamp, signature).ok_or(Refused::MalformedHeader)?;
        Ok(Claims { account: Arc::clone(self), signed })
    }
}

impl Signed {
    fn parse(timestamp: &HeaderValue, signature: &HeaderValue) -> Option<Self> {
        let (timestamp, signature) = (timestamp.as_bytes(), signature.as_bytes());
        let digits = (1..=TIMESTAMP_DIGITS_MAX).contains(&timestamp.len()) && timestamp.iter().all(u8::is_ascii_digit);
        if !digits {
            return None;
        }
        let mac = mac_of(signature)?;
        let text = TimestampText::from(str::from_utf8(timestamp).ok()?).ok()?;
        let signature = SignatureText::from(str::from_utf8(signature).ok()?).ok()?;
        Some(Self { at: text.parse().ok()?, text, signature, mac })
    }

    fn is_fresh(&self, now: Timestamp, tolerance: Duration) -> bool {
        is_fresh(Timestamp::from_seconds(self.at), now, tolerance)
    }
}

/// What 64 hex digits of either case say, no fewer, no more.
fn mac_of(digits: &[u8]) -> Option<[u8; SIGNATURE_DIGITS / 2]> {
    let mut mac = [0; SIGNATURE_DIGITS / 2];
    let is_whole = digits.len() == SIGNATURE_DIGITS; // hex would take "0x" before them.
    (is_whole && hex::decode_to_slice(digits, &mut mac).is_ok()).then_some(mac)
}

/// Fresh on either side of `now`: senders' clocks run ahead as well as behind.
fn is_fresh(signed_at: Timestamp, now: Timestamp, tolerance: Duration) -> bool {
    signed_at.abs_diff(now) <= tolerance
}

impl Claims {
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The whole request. `received_at` is when it came in: what [`Verified::received_at`] will say.
    pub fn with_body(self, body: Bytes, received_at: Timestamp) -> Unverified {
        Unverified { account: self.account, request: Request { signed: self.signed, received_at, body } }
    }
}

impl Unverified {
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Lets in what one of the account's secrets signed and what was fresh when it came; signature goes before freshness, so that
    /// [`Refused::OutsideTolerance`] means correctly signed.
    ///
    /// Hashes the body once per secret until one matches: some 5 ms for 8 MiB and a secret on a machine with SHA instructions, ten times that on
    /// one without. A fresh one that nothing signed is held for the case that its secret is on its way (`accounts.NAME.keep_refused`).
    pub fn verify(self) -> Result<Verified, Refused> {
        let Self { account, mut request } = self;
        let is_fresh = request.signed.is_fresh(request.received_at, account.tolerance);
        loop {
            let keys = account.keys();
            if let Some(key) = keys.signer_of(&request) {
                key.used(request.received_at);
                account.note_skew(request.signed.at, request.received_at);
                return if is_fresh { Ok(request.proved(&account.name)) } else { Err(Refused::OutsideTolerance) };
            }
            if !is_fresh {
                return Err(Refused::BadSignature);
            }
            match account.keep(request, &keys) {
                None => return Err(Refused::BadSignature),
                // The secrets changed between the look at them and now, and the held ones were already tried again.
                Some(again) => request = again,
            }
        }
    }
}

impl Request {
    /// Only for what a key signed and what was fresh when it came.
    fn proved(self, account: &AccountName) -> Verified {
        Verified {
            account: account.clone(),
            signed_text: self.signed.text,
            signed_at: self.signed.at,
            signature: self.signed.signature,
            received_at: self.received_at,
            body: self.body,
            _seal: (),
        }
    }
}

#[cfg(test)]
impl Verified {
    /// As if `body` had come for `account`, signed at `signed_at` and received half a second later. For the tests of rooms behind this one.
    pub(crate) fn for_test(account: &str, signed_at: i64, body: &[u8]) -> Self {
        Self {
            account: AccountName::new(account).unwrap(),
            signed_text: TimestampText::from(&signed_at.to_string()).unwrap(),
            signed_at,
            signature: SignatureText::from(&"0123456789abcdef".repeat(4)).unwrap(),
            received_at: Timestamp::from_micros(signed_at * 1_000_000 + 500_000),
            body: Bytes::copy_from_slice(body),
            _seal: (),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::config_of as config_for_test;
