//! The real program on a socket, a module per promise.

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod journal;
mod observe;
mod recover;
