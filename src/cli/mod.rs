//! To be written.

pub mod healthcheck;
