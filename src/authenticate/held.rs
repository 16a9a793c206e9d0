//! Refused requests that a secret on its way may yet prove genuine: SIPSIM's new secret exists only from the click on, so some requests
//! come before the relay has it.

use std::collections::HashSet;

use bytes::Bytes;

use super::Request;
use super::keys::Keys;

/// What one held request costs beside its body: itself, two short texts, and the allocator's share.
const OVERHEAD: usize = 256;

/// At most `bytes_max` of requests; when it is full a random one makes room, so that a flood cannot choose what stays.
pub struct Held {
    requests: Vec<Request>,
    bytes: usize,
    bytes_max: usize,
    random: fastrand::Rng,
}

impl Held {
    pub fn new(bytes_max: usize, random: fastrand::Rng) -> Self {
        Self { requests: Vec::new(), bytes: 0, bytes_max, random }
    }

    pub fn keep(&mut self, mut request: Request) {
        if cost(&request) > self.bytes_max {
            return;
        }
        while self.bytes + cost(&request) > self.bytes_max {
            let dropped = self.requests.swap_remove(self.random.usize(..self.requests.len()));
            self.bytes -= cost(&dropped);
        }
        // The body may be a slice of the connection's read buffer, all of which it would keep alive.
        request.body = Bytes::copy_from_slice(&request.body);
        self.bytes += cost(&request);
        self.requests.push(request);
    }

    /// Takes out what one of these keys signed, in order of arrival, the very same request once. The rest stays.
    pub fn recover(&mut self, keys: &Keys) -> Vec<Request> {
        let mut recovered = Vec::new();
        for request in std::mem::take(&mut self.requests) {
            match keys.signer_of(&request) {
                Some(key) => {
                    key.used(request.received_at);
                    self.bytes -= cost(&request);
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
