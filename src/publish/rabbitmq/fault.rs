//! What the broker's and the line's errors mean, and how they read. No text of a record and no password is in any of it.

use std::io;

use lapin::protocol::AMQPErrorKind;
use lapin::{Error, ErrorKind};
use serde::Deserialize;

use crate::publish::{PublishError, one_line, tls};

/// What the closing of a channel means for the records open on it. The broker names no message: with one open it was that one, with several they
/// have to go one at a time. Only 406 (precondition failed) and 311 (content too large) say of a message that it is refused; any other code is
/// unknown, and what it closed is tried again.
pub(super) fn of_channel(error: &Error, open: usize) -> PublishError {
    let ErrorKind::ProtocolError(error) = error.kind() else {
        return PublishError::Unknown(one_line(&error.to_string()));
    };
    let text = error.get_message().as_str();
    match error.get_id() {
        404 => PublishError::TopicMissing,
        403 => PublishError::Forbidden,
        code if open == 1 && (code == 311 || names_size(text)) => PublishError::TooLarge,
        406 if open == 1 => PublishError::Rejected(one_line(text)),
        _ if open == 1 => PublishError::Unknown(one_line(text)),
        _ => PublishError::Suspect(one_line(text)),
    }
}

/// As RabbitMQ writes it since 3.8: "message size 2000000 is larger than configured max size 1000000".
fn names_size(text: &str) -> bool {
    text.contains("message size") && text.contains("larger than")
}

/// Is this the end of one channel, rather than of the connection?
pub(super) fn is_channels(error: &Error) -> bool {
    error.is_amqp_soft_error() || matches!(error.kind(), ErrorKind::InvalidChannelState(..)) && !is_unsent(error)
}

/// The record never left: its channel was already closed. The context is the one that lapin's `basic_publish` gives before it queues anything.
pub(super) fn is_unsent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidChannelState(_, "basic.publish"))
}

/// The number of a returned message, which is all that is read of it. Unknown attributes are skipped without recursion, whatever their depth.
pub(super) fn relaysequence(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Envelope {
        relaysequence: String,
    }
    serde_json::from_slice::<Envelope>(body).ok()?.relaysequence.parse().ok()
}

/// Why no connection came about, and what to do.
pub(super) fn of_connecting(error: &Error) -> String {
    match error.kind() {
        ErrorKind::IOError(error) => of_io(error),
        ErrorKind::ProtocolError(error) => match (error.kind(), error.get_id()) {
            (AMQPErrorKind::Soft(_), 403) => {
                "the username or password is wrong (403 ACCESS_REFUSED); the broker's log says which".into()
            }
            // The broker's own words name the virtual host and the user.
            (_, 530) => format!("{} (530 NOT_ALLOWED); the virtual host is the URL's path", reply(error)),
            (_, code) => format!("{} ({code})", reply(error)),
        },
        ErrorKind::MissingHeartbeatError => "no heartbeat came during the handshake".into(),
        _ => one_line(&error.to_string()),
    }
}

/// Why a connection that stood is gone.
pub(super) fn of_connection(error: &Error) -> String {
    match error.kind() {
        ErrorKind::MissingHeartbeatError => "nothing came from the broker for two heartbeats, 20 seconds".into(),
        ErrorKind::ProtocolError(error) => format!("the broker closed it: {} ({})", reply(error), error.get_id()),
        ErrorKind::IOError(error) => of_io(error),
        _ => one_line(&error.to_string()),
    }
}

/// Why the broker did not do what it was told, in its own words.
pub(super) fn of_command(error: &Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => reply(error),
        _ => of_connection(error),
    }
}

fn of_io(error: &io::Error) -> String {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls::explain(tls);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused; nothing listens there".into(),
        // Also what a TLS port does to a client that speaks plain text.
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
            format!("the connection was cut ({})", one_line(&error.to_string()))
        }
        _ => one_line(&error.to_string()),
    }
}

fn reply(error: &lapin::protocol::AMQPError) -> String {
    one_line(error.get_message().as_str())
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn closed(code: u16, text: &str) -> Error {
        ErrorKind::ProtocolError(AMQPError::from_id(code, text.into()).unwrap()).into()
    }

    #[test]
    fn a_closed_channel_blames_its_topic_or_its_one_open_record() {
        let size = "PRECONDITION_FAILED - message size 2000000 is larger than configured max size 1000000";
        let other = "PRECONDITION_FAILED - invalid\nexpiration";
        let shown = "PRECONDITION_FAILED - invalid expiration".to_owned();
        for (code, text, open, expected) in [
            (404, "NOT_FOUND - no exchange 'sipsim' in vhost '/'", 5, PublishError::TopicMissing),
            (403, "ACCESS_REFUSED - write access to exchange", 1, PublishError::Forbidden),
            (406, size, 1, PublishError::TooLarge),
            (406, size, 2, PublishError::Suspect(size.into())),
            (311, "CONTENT_TOO_LARGE", 1, PublishError::TooLarge),
            (406, other, 1, PublishError::Rejected(shown.clone())),
            (406, other, 3, PublishError::Suspect(shown)),
            (405, "RESOURCE_LOCKED", 1, PublishError::Unknown("RESOURCE_LOCKED".into())),
        ] {
            assert_eq!(of_channel(&closed(code, text), open), expected, "{code} {text} with {open} open");
        }
        assert!(is_channels(&closed(406, size)) && !is_channels(&closed(320, "CONNECTION_FORCED")));
    }

    #[test]
    fn a_returned_message_is_known_by_its_own_number_only() {
        let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
        for (body, expected) in [
            (r#"{"id":"x","relaysequence":"00000000000000000042","data":{}}"#.to_owned(), Some(42)),
            (
                r#"{"data":{"relaysequence":"00000000000000000007"},"relaysequence":"00000000000000000042"}"#.into(),
                Some(42),
            ),
            (format!(r#"{{"relaysequence":"18446744073709551615","data":{deep}}}"#), Some(u64::MAX)),
            (r#"{"data":{"relaysequence":"00000000000000000007"}}"#.into(), None),
            (r#"{"relaysequence":"x"}"#.into(), None),
            ("not JSON".into(), None),
        ] {
            assert_eq!(relaysequence(body.as_bytes()), expected, "{body:.80}");
        }
    }

    #[test]
    fn the_reason_of_a_refused_connection_says_what_to_do() {
        let tls =
            |error| Error::from(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(error)));
        for (error, expected) in [
            (closed(403, "ACCESS_REFUSED - Login was refused"), "password is wrong"),
            (closed(530, "NOT_ALLOWED - vhost x not found"), "vhost x not found"),
            (io::Error::from(io::ErrorKind::ConnectionRefused).into(), "nothing listens"),
            (tls(rustls::CertificateError::UnknownIssuer), "ca_file"),
            (tls(rustls::CertificateError::NotValidForName), "another host name"),
        ] {
            let said = of_connecting(&error);
            assert!(said.contains(expected), "{said}");
        }
    }
}
