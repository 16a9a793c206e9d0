//! The way in, from a request's head to the journal's receipt, and what is counted and logged of it.
//!
//! Where the ingress touches the other rooms is in this file, and in `refusal.rs`, which knows their errors.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::{Method, Request, Version};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::body;
use super::budget::Budget;
use super::connection::Malformed;
use super::refusal::{Answer, Refusal, Unavailable, accepted};
use super::registry::{Registry, Watched};
use super::tally::Tally;
use crate::authenticate::{Account, Accounts, Refused, Unverified, Verified};
use crate::clock;
use crate::config::AccountName;
use crate::journal::{AppendError, Journal, Receipt};
use crate::normalize::{Derived, Event};

/// Bytes of a body that are hashed where the request is served: some fifty microseconds a secret.
const HASHED_AT_ONCE_MAX: usize = 64 << 10;

/// Where events are kept. The journal is the only one; tests script its answers.
pub trait Keep: Send + Sync + 'static {
    fn append(&self, event: Box<Event>) -> impl Future<Output = Result<Receipt, AppendError>> + Send;
}

impl Keep for Journal {
    fn append(&self, event: Box<Event>) -> impl Future<Output = Result<Receipt, AppendError>> + Send {
        Journal::append(self, event)
    }
}

/// The rooms behind the door, in the order in which a request walks through them.
pub struct Rooms<K = Journal> {
    pub accounts: Arc<Accounts>,
    /// `events.extra`.
    pub extra: Vec<Arc<str>>,
    pub journal: K,
}

/// What bounds one request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body_max: usize,
    pub deadline: Duration,
}

/// How far the stop has come.
#[derive(Default)]
pub struct Stopping {
    /// Every answer says that it is the last on its connection.
    answers_close: AtomicBool,
    /// Bodies still on their way are no longer waited for.
    is_cutting: AtomicBool,
    cut: Notify,
}

impl Stopping {
    pub fn close_after_answers(&self) {
        self.answers_close.store(true, Ordering::Relaxed);
    }

    pub fn cut_bodies(&self) {
        self.is_cutting.store(true, Ordering::Release);
        self.cut.notify_waiters();
    }

    async fn bodies_cut(&self) {
        // Made before the flag is looked at: a `Notified` hears of every notification since it was made.
        let cut = self.cut.notified();
        if !self.is_cutting.load(Ordering::Acquire) {
            cut.await;
        }
    }
}

/// What stands between a connection and the rooms.
pub struct Door<K> {
    pub rooms: Rooms<K>,
    pub limits: Limits,
    pub budget: Arc<Budget>,
    pub tally: Tally,
    /// One permit.
    pub hashing: Semaphore,
    pub stopping: Stopping,
    pub registry: Arc<Registry>,
}

/// A request on its way in.
struct Arrival {
    head: Parts,
    body: Incoming,
    deadline: Instant,
    /// Whose path it came to; from then on its answer counts for that account.
    account: Option<AccountName>,
}

impl<K: Keep> Door<K> {
    /// The whole way in. Each line may refuse; only the last can promise.
    async fn take_in(&self, connection: &Watched, arrival: &mut Arrival) -> Result<Receipt, Refusal> {
        // A size over `ingress.headers_max` does not come this far: hyper has answered 431.
        unambiguous(connection)?;
        let account = self.rooms.accounts.by_path(arrival.head.uri.path()).ok_or(Refusal::NotFound)?;
        if arrival.head.method != Method::POST {
            return Err(Refusal::Method);
        }
        arrival.account = Some(account.name().clone());
        let claims = account.claims(&arrival.head.headers); // Presence and form, before any body.
        let claims = claims.map_err(|refused| self.explained(account, &arrival.head, None, refused))?;
        let body = self.read(connection, arrival).await?;
        connection.read_whole();
        unambiguous(connection)?; // Chunks and trailers came with the body.
        let request = claims.with_body(body.clone(), clock::now());
        let verified = self.verify(request, body.len(), arrival.deadline).await?;
        let verified = verified.map_err(|refused| self.explained(account, &arrival.head, Some(body), refused))?;
        let event = event_of(verified, |body| Derived::from_body(body, &self.rooms.extra))?; // Cannot fail but by a fault of ours.
        let kept = timeout_at(arrival.deadline, self.rooms.journal.append(event)).await;
        let receipt = kept.map_err(|_late| Refusal::Unavailable(Unavailable::Deadline))??;
        if !receipt.duplicate {
            connection.prove(account.tolerance);
        }
        Ok(receipt)
    }

    /// Large bodies are hashed beside the threads that serve everybody else, one at a time: an 8 MiB body takes tens of milliseconds a secret.
    async fn verify(
        &self,
        request: Unverified,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Result<Verified, Refused>, Refusal> {
        if bytes <= HASHED_AT_ONCE_MAX {
            return unless_panicking(|| request.verify());
        }
        let late = |_| Refusal::Unavailable(Unavailable::Deadline);
        let _one_at_a_time = timeout_at(deadline, self.hashing.acquire()).await.map_err(late)?;
        let hashing = tokio::task::spawn_blocking(move || unless_panicking(|| request.verify()));
        let hashed = timeout_at(deadline, hashing).await.map_err(late)?;
        hashed.unwrap_or(Err(Refusal::Unavailable(Unavailable::ShuttingDown))) // The runtime is ending.
    }

    /// A refusal that an operator can ask about.
    fn explained(&self, account: &Arc<Account>, head: &Parts, body: Option<bytes::Bytes>, refused: Refused) -> Refusal {
        self.rooms.accounts.explain(account, &head.headers, body, refused, clock::now());
        refused.into()
    }

    async fn read(&self, connection: &Watched, arrival: &mut Arrival) -> Result<bytes::Bytes, Refusal> {
        let reservation = self.budget.reserve(connection.is_proved());
        let grace = self.limits.deadline / 2;
        let read = body::read(&mut arrival.body, self.limits.body_max, reservation, grace);
        let read = timeout_at(arrival.deadline, read);
        tokio::select! {
            biased;
            read = read => read.map_err(|_late| Refusal::TooSlow)?,
            () = self.stopping.bodies_cut() => Err(Refusal::Unavailable(Unavailable::ShuttingDown)),
        }
    }

    /// Answers one request, whatever happens to it, within the deadline from its first byte. Only a newly accepted event keeps the connection.
    pub async fn answer(&self, connection: &Watched, request: Request<Incoming>) -> Answer {
        let first_byte = connection.request_began();
        let (head, body) = request.into_parts();
        let deadline = first_byte + self.limits.deadline;
        let mut arrival = Arrival { head, body, deadline, account: None };
        let taken_in = self.take_in(connection, &mut arrival).await;
        let mut answer = match &taken_in {
            Ok(receipt) => accepted(receipt),
            Err(refusal) => refusal.answer(),
        };
        let keeps_connection = matches!(&taken_in, Ok(receipt) if !receipt.duplicate)
            && has_one_length(&arrival.head)
            && !self.stopping.answers_close.load(Ordering::Relaxed);
        // Otherwise hyper adds `keep-alive` for a sender of HTTP/1.0 that asks for it, whatever we say.
        *answer.version_mut() = arrival.head.version;
        if !keeps_connection {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let now = Instant::now();
        self.tally.count(arrival.account.as_ref(), &taken_in, now - first_byte);
        connection.await_next(now);
        answer
    }

    /// hyper itself refused a request, and answered it if it could.
    pub fn count_malformed(&self, malformed: Malformed) {
        self.tally.count_malformed(malformed);
    }

    /// A connection has said its last.
    pub fn tell_ended(&self) {
        self.registry.tell_ended();
    }
}

/// Whether the request's body has the length that one header says. A proxy may see the end of any other request elsewhere. If the connection went on
/// behind that, or behind bytes of a stranger or of somebody who replays a captured request, these could stand before another sender's request on a
/// connection that a proxy shares among its clients. A repeated equal length reaches us as one.
fn has_one_length(head: &Parts) -> bool {
    head.version == Version::HTTP_11
        && head.headers.contains_key(CONTENT_LENGTH)
        && !head.headers.contains_key(TRANSFER_ENCODING)
}

/// Another program may see the request end elsewhere; see [`super::framing`].
fn unambiguous(connection: &Watched) -> Result<(), Refusal> {
    if connection.is_ambiguous() { Err(Refusal::BadRequest) } else { Ok(()) }
}

/// What is kept of a verified request. Should reading its body panic, the request is kept as it came: it is genuine, and ours is the fault.
pub fn event_of(verified: Verified, read: impl FnOnce(&[u8]) -> Derived) -> Result<Box<Event>, Refusal> {
    let derived = unless_panicking(|| read(&verified.body)).unwrap_or_else(|_| {
        warn!(account.name = %verified.account, "reading a genuine webhook failed by a fault in the relay itself; it is kept as `unknown`. Please report it");
        Derived::undecoded()
    });
    unless_panicking(|| Box::new(derived.event(verified)))
}

/// Runs pure work on one request. A panic in it is that request's alone.
fn unless_panicking<T>(work: impl FnOnce() -> T) -> Result<T, Refusal> {
    // Nothing of the work is used after a panic: what it owned is gone with it, and the rest it only reads.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| Refusal::Unavailable(Unavailable::Panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_on_one_event_is_an_answer() {
        let refused = unless_panicking(|| panic!("on purpose, by a test"));
        assert_eq!(refused, Err::<(), _>(Refusal::Unavailable(Unavailable::Panic)));
    }

    #[test]
    fn a_genuine_event_survives_a_panic_of_its_reader_undecoded() {
        let verified = Verified::for_test("default", 1_736_937_000, br#"{"event":"sms"}"#);
        let event = event_of(verified, |_| panic!("on purpose, by a test")).expect("it is kept");
        assert_eq!((event.name.as_str(), &event.body[..]), ("unknown", &br#"{"event":"sms"}"#[..]));
    }
}
