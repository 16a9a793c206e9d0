//! Who may come in: a request is [`Claims`] once its headers have the right form, [`Unverified`] once its body is read, and [`Verified`] only
//! if its signature matches one of the account's secrets over the raw bytes and it is fresh.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use sha2::Sha256;

use crate::clock::Timestamp;
use crate::config::{self, AccountName};

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

// A stand-in until the room is written: one secret from the environment for each account.

pub struct Accounts(HashMap<String, Arc<Account>>);

pub struct Account {
    config: config::Account,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedClaim {
    MissingHeader,
    MalformedHeader,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    BadSignature,
    OutsideTolerance,
}

pub struct Claims {
    account: Arc<Account>,
    signed_text: String,
    signed_at: i64,
    signature: String,
}

pub struct Unverified {
    claims: Claims,
    body: Bytes,
    received_at: Timestamp,
}

impl Accounts {
    pub fn stand_in(accounts: &[config::Account]) -> Arc<Self> {
        let by_path = accounts.iter().map(|account| (account.path.clone(), Arc::new(Account { config: account.clone() })));
        Arc::new(Self(by_path.collect()))
    }

    pub fn by_path(&self, path: &str) -> Option<&Arc<Account>> {
        self.0.get(path)
    }

    pub fn names(&self) -> Vec<AccountName> {
        self.0.values().map(|account| account.config.name.clone()).collect()
    }
}

impl Account {
    pub fn name(&self) -> &AccountName {
        &self.config.name
    }

    pub fn claims(self: &Arc<Self>, headers: &HeaderMap) -> Result<Claims, RefusedClaim> {
        let text = |name: &str| {
            let value = headers.get(name).ok_or(RefusedClaim::MissingHeader)?;
            value.to_str().map(str::to_owned).map_err(|_| RefusedClaim::MalformedHeader)
        };
        let (signature, signed_text) = (text("x-webhook-signature")?, text("x-webhook-timestamp")?);
        let signed_at = signed_text.parse().map_err(|_| RefusedClaim::MalformedHeader)?;
        Ok(Claims { account: Arc::clone(self), signed_text, signed_at, signature })
    }
}

impl Claims {
    pub fn with_body(self, body: Bytes, received_at: Timestamp) -> Unverified {
        Unverified { claims: self, body, received_at }
    }
}

impl Unverified {
    pub fn verify(self, now: Timestamp) -> Result<Verified, Refused> {
        let Self { claims, body, received_at } = self;
        let secret = claims.account.config.environment_secret.as_ref().ok_or(Refused::BadSignature)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).map_err(|_| Refused::BadSignature)?;
        mac.update(claims.signed_text.as_bytes());
        mac.update(b".");
        mac.update(&body);
        let signature = hex::decode(&claims.signature).map_err(|_| Refused::BadSignature)?;
        mac.verify_slice(&signature).map_err(|_| Refused::BadSignature)?;
        if now.abs_diff(Timestamp::from_seconds(claims.signed_at)) > claims.account.config.tolerance {
            return Err(Refused::OutsideTolerance);
        }
        Ok(Verified {
            account: claims.account.config.name.clone(),
            signed_text: claims.signed_text,
            signed_at: claims.signed_at,
            signature: claims.signature,
            received_at,
            body,
            _seal: (),
        })
    }
}
