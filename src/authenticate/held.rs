//! Refused requests that a secret on its way may yet prove genuine: SIPSIM's new secret exists only from the click on, so some requests
//! come before the relay has it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::Request;
use super::keys::Keys;

/// What one held request costs beside its body: itself, two short texts, and the allocator's share.
const OVERHEAD: usize = 256;

/// At most `bytes_max` of requests, those included that were recovered and are not in the journal yet; when it is full a random one that is still
/// unproved makes room, so that a flood cannot choose what stays.
pub struct Held {
    requests: Vec<Request>,
    /// Of `requests`.
    unproved: usize,
    /// Of those, and of the ones that were recovered.
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    random: fastrand::Rng,
}

impl Held {
    pub fn new(bytes_max: usize, random: fastrand::Rng) -> Self {
        Self { requests: Vec::new(), unproved: 0, bytes: Arc::default(), bytes_max, random }
    }

    pub fn keep(&mut self, mut request: Request) {
        let cost = cost(&request);
        // Nothing makes room for what does not fit even then, beside what waits for the journal.
        let recovered = self.bytes.load(Ordering::Relaxed) - self.unproved;
        if cost > self.bytes_max.saturating_sub(recovered) {
            return;
        }
        while self.bytes.load(Ordering::Relaxed) + cost > self.bytes_max && !self.requests.is_empty() {
            let out = self.requests.swap_remove(self.random.usize(..self.requests.len()));
            self.unproved -= self::cost(&out);
        }
        self.unproved += cost;
        // The body may be a slice of the connection's read buffer, all of which it would keep alive.
        request.body = Bytes::from_owner(Counted::new(&request.body, &self.bytes));
        self.requests.push(request);
    }

    /// Takes out what one of these keys signed, in order of arrival, the very same request once. The rest stays.
    pub fn recover(&mut self, keys: &Keys) -> Vec<Request> {
        let mut recovered = Vec::new();
        for request in std::mem::take(&mut self.requests) {
            match keys.signer_of(&request) {
                Some(key) => {
                    self.unproved -= cost(&request);
                    key.used(request.received_at);
                    recovered.push(request);
                }
                None => self.requests.push(request),
            }
        }
        recovered.sort_by_key(|request| request.received_at);
        // Two with one correct signature are one request sent twice.
        let mut seen = HashSet::new();
        recovered.retain(|request| seen.insert(request.signed.mac));
        recovered
    }

    pub fn len(&self) -> usize {
        self.requests.len()
    }
}

fn cost(request: &Request) -> usize {
    request.body.len() + OVERHEAD
}

/// A held request's body. It counts until the last clone of it is gone, wherever that is by then.
struct Counted {
    body: Box<[u8]>,
    bytes: Arc<AtomicUsize>,
}

impl Counted {
    fn new(body: &[u8], bytes: &Arc<AtomicUsize>) -> Self {
        bytes.fetch_add(body.len() + OVERHEAD, Ordering::Relaxed);
        Self { body: body.into(), bytes: Arc::clone(bytes) }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.body.len() + OVERHEAD, Ordering::Relaxed);
    }
}
