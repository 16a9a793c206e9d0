//! The real program on a socket, a module per promise.

#[path = "../support/mod.rs"]
mod support;

mod accept;
mod again;
mod bodies;
mod journal;
mod observe;
mod recover;
mod refuse;
mod schema;
mod stop;
mod tidy;
