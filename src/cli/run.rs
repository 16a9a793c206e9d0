//! `run`: the relay.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::config::Config;

pub fn run(_file: Option<&Path>) -> Result<bool, String> {
    Err("`run` is not built on this branch".to_owned())
}

/// The configured `admin.listen`.
pub fn admin_address(_file: Option<&Path>) -> Result<SocketAddr, String> {
    Err("the configuration is not built on this branch: give --admin".to_owned())
}

/// A running relay.
pub struct Relay {}

impl Relay {
    pub async fn start(_config: Config, _console: Box<dyn Write + Send>) -> Result<Self, String> {
        Err("`run` is not built on this branch".to_owned())
    }

    pub fn public_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    pub fn admin_addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 0).into()
    }

    pub async fn stop(self) {}
}
