//! The secrets in force, ready to check signatures with.

use hmac::{Hmac, KeyInit, Mac};
use prometheus::Gauge;
use sha2::Sha256;

use super::Request;
use super::secrets::NamedSecret;
use crate::clock::Timestamp;
use crate::secret::Secret;

/// One secret with its HMAC's first block already computed, which halves the work for a short body. The state inside is as good as the
/// secret and is wiped like it when dropped (hmac's feature `zeroize`).
pub struct Key {
    /// The file's name, or `environment`.
    pub label: String,
    secret: Secret,
    mac: Hmac<Sha256>,
    last_used: Gauge,
}

/// An account's secrets, in the order in which they are tried.
pub struct Keys(pub Vec<Key>);

impl Key {
    pub fn new(named: NamedSecret, last_used: Gauge) -> Self {
        let mac = signer(&named.secret);
        Self { label: named.label, secret: named.secret, mac, last_used }
    }

    pub fn is(&self, named: &NamedSecret) -> bool {
        self.label == named.label && self.secret == named.secret
    }

    pub fn used(&self, now: Timestamp) {
        self.last_used.set(now.as_seconds_f64());
    }

    fn signed(&self, request: &Request) -> bool {
        let mut mac = self.mac.clone();
        feed(&mut mac, request.signed.text.as_bytes(), &request.body);
        mac.verify_slice(&request.signed.mac).is_ok() // In constant time.
    }
}

impl Keys {
    /// The first key that made the request's signature.
    pub fn signer_of(&self, request: &Request) -> Option<&Key> {
        self.0.iter().find(|key| key.signed(request))
    }

    pub fn labels(&self) -> Vec<String> {
        self.0.iter().map(|key| key.label.clone()).collect()
    }
}

/// The value of `X-Webhook-Signature` that SIPSIM would send with this timestamp and body: 64 hex digits in lower case.
pub fn sign(secret: &Secret, timestamp: &str, body: &[u8]) -> String {
    let mut mac = signer(secret);
    feed(&mut mac, timestamp.as_bytes(), body);
    hex::encode(mac.finalize().into_bytes())
}

/// HMAC-SHA256 under a secret's own characters.
pub fn signer(secret: &Secret) -> Hmac<Sha256> {
    match Hmac::new_from_slice(secret.expose()) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"), // RFC 2104, and hmac's own `expect`.
    }
}

/// What SIPSIM signs: the timestamp's text as sent, a dot, the raw body.
pub fn feed(mac: &mut Hmac<Sha256>, timestamp: &[u8], body: &[u8]) {
    mac.update(timestamp);
    mac.update(b".");
    mac.update(body);
}
