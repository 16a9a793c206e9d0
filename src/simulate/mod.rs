//! A SIPSIM: plays calls, signs their events, posts them, and counts what a real one would have lost.

mod target;

pub use target::Target;

/// What is changed after signing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tamper {
    Signature,
    Timestamp,
    Body,
}
