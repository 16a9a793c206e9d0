//! `healthcheck`.

use std::net::SocketAddr;

pub fn healthcheck(_admin: SocketAddr, _ready: bool) -> bool {
    super::notice(format_args!("`healthcheck` is not built on this branch"));
    false
}
