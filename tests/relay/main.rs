//! The real program on a socket, a module per promise.

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod observe;
mod recover;
