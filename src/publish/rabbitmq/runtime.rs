//! The runtime that lapin runs in: the current tokio, whose sockets are whatever `connect` made. lapin thus needs no TLS of its own.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use async_compat::Compat;
use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

/// TCP alone, or with TLS on it.
pub(super) type Socket = Compat<Box<dyn Duplex>>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

pub(super) fn socket(stream: impl Duplex + 'static) -> Socket {
    Compat::new(Box::new(stream))
}

/// Panics outside of tokio.
pub(super) fn current() -> Runtime<RuntimeParts<Tokio, Sockets>> {
    Runtime::new(RuntimeParts::new(Tokio::current(), Sockets(Tokio::current())))
}

/// tokio's reactor, but for the type of its sockets.
#[derive(Clone, Debug)]
pub(super) struct Sockets(Tokio);

impl Reactor for Sockets {
    type TcpStream = Socket;
    type Sleep = Sleep;

    fn register<H: io::Read + io::Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        handle: H,
    ) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        self.0.register(handle)
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, address: SocketAddr) -> impl Future<Output = io::Result<Socket>> + Send + 'static {
        let connect = self.0.tcp_connect_addr(address);
        async move { Ok(socket(connect.await?.into_inner())) }
    }
}
