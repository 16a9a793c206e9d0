//! sipsim-relay: takes SIPSIM's signed webhooks, keeps them safe, publishes them to Kafka or RabbitMQ.
//!
//! The modules stand in the order in which an event travels; read them so.
//!
//! | room | takes → gives | keeps to itself |
//! |---|---|---|
//! | [`ingress`] | a socket → [`authenticate::Unverified`] | hyper, limits, deadlines, TLS; where a refusal becomes a status |
//! | [`authenticate`] | `Unverified` → [`authenticate::Verified`] | header form, HMAC, secrets and their reload, freshness |
//! | [`normalize`] | `Verified` → [`normalize::Event`] | SIPSIM's dialect: names, shapes, calls, times, ids; pure and total |
//! | [`journal`] | `Event` → [`journal::Receipt`], then [`journal::Stored`] | SQLite, one writer thread, one commit for all that wait |
//! | [`publish`] | `Stored` → the broker's confirmation | lanes, envelope bytes, retry, holding, parking |
//!
//! Around them: [`config`], [`cli`], [`admin`], [`metrics`], [`simulate`]; beneath them [`certificate`], [`clock`], [`printable`], [`secret`] and [`stderr`].
//!
//! What always holds:
//! - Answer 200 can only be built from a [`journal::Receipt`], and only the journal makes one, after a sync.
//! - Nothing unverified passes [`authenticate`]: only it makes a `Verified`, and only of one [`normalize`] makes an `Event`.
//! - [`journal`] never looks inside an event; [`publish`] never changes a byte of its body.
//! - The broker's health never reaches [`ingress`].
pub mod ingress;
pub mod authenticate;
pub mod normalize;
pub mod journal;
pub mod publish;

pub mod admin;
pub mod cli;
pub mod config;
pub mod metrics;
pub mod simulate;

pub mod certificate;
pub mod clock;
pub mod printable;
pub mod secret;
pub mod stderr;
