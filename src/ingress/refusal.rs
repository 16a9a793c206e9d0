//! Why a request is not taken in, and the one place where that becomes a status.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::authenticate::Refused;
use crate::journal::{AppendError, Receipt};

pub type Answer = Response<Full<Bytes>>;

/// Why a request is refused, named by what its sender did or by what we cannot do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No account has this path.
    NotFound,
    /// Something else than POST.
    Method,
    /// The framing is broken or can be read in two ways, or the sender went away within the body.
    BadRequest,
    /// Not proved to be from SIPSIM.
    Unproved(Unproved),
    /// The body is over `ingress.body_max`.
    TooLarge,
    /// The body was not read by the deadline.
    TooSlow,
    /// It may well be genuine, and cannot be kept now.
    Unavailable(Unavailable),
}

/// What is missing of the proof. The sender learns none of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unproved {
    MissingHeader,
    MalformedHeader,
    BadSignature,
    OutsideTolerance,
}

/// Why a webhook cannot be kept now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    JournalFull,
    AccountFull,
    Disk,
    Deadline,
    QueueFull,
    Memory,
    ShuttingDown,
    Panic,
}

impl Refusal {
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unproved(_) => StatusCode::UNAUTHORIZED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word in the log and, in its metric, the label.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Method => "method",
            Self::BadRequest => "bad_request",
            Self::Unproved(unproved) => unproved.reason(),
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Unavailable(unavailable) => unavailable.reason(),
        }
    }

    /// For the log: what it means and what the operator does about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::NotFound => "no account has this path; the URL at SIPSIM must end with an accounts.NAME.path",
            Self::Method => "only POST is taken; a browser or a probe asked",
            Self::BadRequest => "its body was cut off or badly framed, or where it ends can be read in two ways",
            Self::Unproved(Unproved::MissingHeader) => {
                "X-Webhook-Signature or X-Webhook-Timestamp is missing; not SIPSIM, or a proxy drops headers"
            }
            Self::Unproved(Unproved::MalformedHeader) => {
                "X-Webhook-Signature or X-Webhook-Timestamp is doubled or malformed"
            }
            Self::Unproved(Unproved::BadSignature) => {
                "no configured secret matches; put the secret that SIPSIM shows into accounts.NAME.secrets"
            }
            Self::Unproved(Unproved::OutsideTolerance) => {
                "correctly signed, but its timestamp is outside accounts.NAME.tolerance; compare the clocks"
            }
            Self::TooLarge => "its body is over ingress.body_max",
            Self::TooSlow => {
                "its body was not there by ingress.deadline, or came slower than 32 KiB a second while memory for bodies was short"
            }
            Self::Unavailable(Unavailable::JournalFull) => {
                "pending and parked events fill journal.size_max; mend the output that they wait for, or make it larger"
            }
            Self::Unavailable(Unavailable::AccountFull) => {
                "the account's pending and parked events fill accounts.NAME.journal_max; mend the output that they wait for, or give parked ones up"
            }
            Self::Unavailable(Unavailable::Disk) => "the journal's disk fails, or is down to journal.free_min",
            Self::Unavailable(Unavailable::Deadline) => "the journal's disk was slower than ingress.deadline",
            Self::Unavailable(Unavailable::QueueFull) => "too many events wait for the journal's disk",
            Self::Unavailable(Unavailable::Memory) => {
                "bodies in memory are up to ingress.buffered_max, and it came slowest of those that were not whole, or none of them was left"
            }
            Self::Unavailable(Unavailable::ShuttingDown) => "the relay is stopping",
            Self::Unavailable(Unavailable::Panic) => "a fault in the relay itself; please report it",
        }
    }

    /// What the sender reads. Says no more than the status does: of a 401 nobody is to learn what was wrong.
    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "not found",
            Self::Method => "method not allowed",
            Self::BadRequest => "bad request",
            Self::Unproved(_) => "unauthorized",
            Self::TooLarge => "content too large",
            Self::TooSlow => "request timeout",
            Self::Unavailable(_) => "service unavailable",
        }
    }

    pub fn answer(self) -> Answer {
        let mut answer = respond(self.status(), format!(r#"{{"error":"{}"}}"#, self.text()));
        match self {
            Self::Method => {
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
            }
            Self::Unavailable(unavailable) => {
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(unavailable.retry_after().as_secs()));
            }
            // No `Retry-After` on a 401: a wrong secret does not heal with time.
            Self::NotFound | Self::BadRequest | Self::Unproved(_) | Self::TooLarge | Self::TooSlow => {}
        }
        answer
    }
}

impl Unproved {
    pub fn reason(self) -> &'static str {
        match self {
            Self::MissingHeader => "missing_header",
            Self::MalformedHeader => "malformed_header",
            Self::BadSignature => "bad_signature",
            Self::OutsideTolerance => "outside_tolerance",
        }
    }
}

impl Unavailable {
    pub fn reason(self) -> &'static str {
        match self {
            Self::JournalFull => "journal_full",
            Self::AccountFull => "account_full",
            Self::Disk => "disk",
            Self::Deadline => "deadline",
            Self::QueueFull => "queue_full",
            Self::Memory => "memory",
            Self::ShuttingDown => "shutting_down",
            Self::Panic => "panic",
        }
    }

    /// Congestion passes within a second; a full or failing disk waits for somebody, or for the check every 10 s at most.
    fn retry_after(self) -> Duration {
        match self {
            Self::Deadline | Self::QueueFull | Self::Memory | Self::ShuttingDown | Self::Panic => {
                Duration::from_secs(1)
            }
            Self::JournalFull | Self::AccountFull | Self::Disk => Duration::from_secs(10),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Unproved(match refused {
            Refused::MissingHeader => Unproved::MissingHeader,
            Refused::MalformedHeader => Unproved::MalformedHeader,
            Refused::BadSignature => Unproved::BadSignature,
            Refused::OutsideTolerance => Unproved::OutsideTolerance,
        })
    }
}

impl From<AppendError> for Refusal {
    fn from(error: AppendError) -> Self {
        Self::Unavailable(match error {
            AppendError::Full => Unavailable::JournalFull,
            AppendError::AccountFull => Unavailable::AccountFull,
            AppendError::Disk => Unavailable::Disk,
            AppendError::QueueFull => Unavailable::QueueFull,
            AppendError::ShuttingDown => Unavailable::ShuttingDown,
        })
    }
}

/// The only function that says 200. Without a receipt there is no calling it.
pub fn accepted(receipt: &Receipt) -> Answer {
    respond(StatusCode::OK, [r#"{"id":""#, &receipt.id.to_string(), r#""}"#].concat())
}

fn respond(status: StatusCode, json: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(json)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const UNPROVED: [Unproved; 4] =
        [Unproved::MissingHeader, Unproved::MalformedHeader, Unproved::BadSignature, Unproved::OutsideTolerance];
    const UNAVAILABLE: [Unavailable; 8] = [
        Unavailable::JournalFull,
        Unavailable::AccountFull,
        Unavailable::Disk,
        Unavailable::Deadline,
        Unavailable::QueueFull,
        Unavailable::Memory,
        Unavailable::ShuttingDown,
        Unavailable::Panic,
    ];

    async fn text(answer: Answer) -> Bytes {
        answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default()
    }

    #[tokio::test]
    async fn every_401_looks_the_same_to_its_sender() {
        for unproved in UNPROVED {
            let answer = Refusal::Unproved(unproved).answer();
            assert_eq!(answer.status(), 401);
            assert_eq!(answer.headers().len(), 1, "{unproved:?} has a header beside Content-Type");
            assert_eq!(&text(answer).await[..], br#"{"error":"unauthorized"}"#);
        }
    }

    #[test]
    fn every_503_says_when_to_come_back() {
        for unavailable in UNAVAILABLE {
            let answer = Refusal::Unavailable(unavailable).answer();
            assert_eq!(answer.status(), 503);
            let full = matches!(unavailable.reason(), "journal_full" | "account_full" | "disk");
            assert_eq!(answer.headers()[RETRY_AFTER], if full { "10" } else { "1" }, "{unavailable:?}");
        }
    }

    #[test]
    fn reasons_are_the_labels_of_the_metrics() {
        for unavailable in UNAVAILABLE {
            assert!(crate::metrics::UNAVAILABLE_REASONS.contains(&unavailable.reason()), "{unavailable:?}");
        }
        for refusal in [Refusal::NotFound, Refusal::Method, Refusal::BadRequest] {
            assert!(crate::metrics::HTTP_REFUSED_REASONS.contains(&refusal.reason()), "{refusal:?}");
        }
        for refusal in UNPROVED.map(Refusal::Unproved).into_iter().chain([Refusal::TooLarge, Refusal::TooSlow]) {
            assert!(crate::metrics::OUTCOMES.contains(&refusal.reason()), "{refusal:?}");
        }
    }

    #[test]
    fn statuses_are_those_of_the_contract() {
        assert_eq!(Refusal::NotFound.answer().status(), 404);
        assert_eq!(Refusal::Method.answer().status(), 405);
        assert_eq!(Refusal::Method.answer().headers()[ALLOW], "POST");
        assert_eq!(Refusal::BadRequest.answer().status(), 400);
        assert_eq!(Refusal::TooLarge.answer().status(), 413);
        assert_eq!(Refusal::TooSlow.answer().status(), 408);
    }
}
