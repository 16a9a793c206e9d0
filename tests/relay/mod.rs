//! The real program on a socket, a module per promise.

mod accept;
mod again;
mod bodies;
mod canary;
mod connections;
mod journal;
mod keys;
mod memory;
mod observe;
mod place;
mod recover;
mod refuse;
mod rotate;
mod schema;
mod smuggle;
mod stop;
mod stuck;
mod tidy;
mod tls;
