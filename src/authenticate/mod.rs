//! Who may come in: a request is [`Claims`] once its headers have the right form, [`Unverified`] once its body is read, and [`Verified`] only
//! if its signature matches one of the account's secrets over the raw bytes and it is fresh.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::config::AccountName;

/// A request whose signature matched and which is fresh. Only [`Unverified::verify`] makes one.
#[derive(Clone)]
pub struct Verified {
    pub account: AccountName,
    /// `X-Webhook-Timestamp` as sent: 1 to 12 ASCII digits.
    pub signed_text: String,
    /// The same in seconds since 1970.
    pub signed_at: i64,
    /// `X-Webhook-Signature` as sent: 64 hex digits of either case.
    pub signature: String,
    pub received_at: Timestamp,
    pub body: Bytes,
    _seal: (),
}
