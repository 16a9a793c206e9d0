//! Who besieges: strangers on many connections, each attack a thread with its own runtime.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{PATH, now, smuggle};

type Life = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// What one connection does until it ends; then the next one begins in its place.
#[derive(Clone, Copy)]
pub struct Attack {
    pub name: &'static str,
    pub connections: usize,
    /// From how many addresses they come.
    addresses: usize,
    /// At most, before each connection: the first, and the next in the place of one that ended.
    pause: Duration,
    life: fn(TcpStream, usize) -> Life,
}

/// Debian's `slowhttptest` beside our own.
#[derive(Clone, Copy)]
pub enum Besieger {
    Own(Attack),
    Slow { name: &'static str, args: &'static [&'static str] },
}

impl Besieger {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Own(attack) => attack.name,
            Self::Slow { name, .. } => name,
        }
    }
}

/// An attack under way. Ends when dropped.
pub struct UnderWay {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    child: Option<Child>,
}

impl UnderWay {
    pub fn begin(besieger: &Besieger, target: SocketAddr, seconds: u64) -> Self {
        match *besieger {
            Besieger::Own(attack) => {
                let (stop, stopped) = oneshot::channel();
                let thread = thread::spawn(move || besiege(attack, target, stopped));
                Self { stop: Some(stop), thread: Some(thread), child: None }
            }
            Besieger::Slow { args, .. } => Self { stop: None, thread: None, child: Some(slow(args, target, seconds)) },
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // What it came to, the relay's own state tells.
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let ended = child.wait().expect("it is ours");
            // What `nice` says of a program that it cannot start.
            assert!(ended.code() != Some(127), "slowhttptest (Debian's package of that name) is missing");
        }
    }
}

fn slow(args: &[&str], target: SocketAddr, seconds: u64) -> Child {
    Command::new("nice")
        .args(["-n", &NICE.to_string(), "slowhttptest"])
        .args(args)
        .args(["-c", "2000", "-r", "1000", "-i", "1", "-p", "2", "-v", "0"])
        .args(["-l", &seconds.to_string(), "-u", &format!("http://{target}{PATH}")])
        // It has no option for headers; a cookie's value goes out as it is. With these two a body is waited for.
        .args(["-j", &format!("a=b\r\n{}", forged_proof().trim_end())])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("every system has `nice`")
}

fn besiege(attack: Attack, target: SocketAddr, stopped: oneshot::Receiver<()>) {
    // On one machine an attacker's processor time is taken from those attacked. Left at equal priority, this thread alone held SIPSIM's own
    // client up for a second; behind them it still takes all that they leave.
    let _ = rustix::process::nice(NICE);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let connections = tokio::task::LocalSet::new();
    connections.block_on(&runtime, async move {
        let mut all = JoinSet::new();
        for number in 0..attack.connections {
            all.spawn_local(async move {
                for life in 0.. {
                    tokio::time::sleep(attack.pause.mul_f64(fastrand::f64())).await;
                    let lived =
                        async { (attack.life)(connect(target, number % attack.addresses).await?, number + life).await };
                    let _ = lived.await; // Cut off or not, the next one comes.
                    tokio::task::yield_now().await;
                }
            });
        }
        let _ = stopped.await;
        all.shutdown().await;
    });
}

/// From the loopback address of that number. Half of them leave with a reset.
async fn connect(target: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if number.is_multiple_of(2) {
        socket.set_zero_linger()?;
    }
    socket.bind((Ipv4Addr::new(127, 0, 7, 1 + number as u8), 0).into())?;
    socket.connect(target).await
}

fn forged_proof() -> String {
    format!(
        "X-Webhook-Timestamp: {}\r\nX-Webhook-Signature: {:032x}{:032x}\r\n",
        now(),
        fastrand::u128(..),
        fastrand::u128(..)
    )
}

fn head(framing: &str) -> String {
    format!("POST {PATH} HTTP/1.1\r\nHost: relay\r\n{}{framing}\r\n", forged_proof())
}

/// Reads until the relay closes.
async fn until_closed(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 512];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Writes the same again and again, and reads beside it as far as something comes.
async fn pour(mut stream: TcpStream, bytes: &[u8]) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            written = writer.write_all(bytes) => written?,
            read = reader.read(&mut buffer) => if read? == 0 { return Ok(()) },
        }
        tokio::task::yield_now().await;
    }
}

/// Sends forged requests with these bodies in turn, each after the answer to the one before it.
async fn forge(mut stream: TcpStream, bodies: &[&str]) -> io::Result<()> {
    let mut answer = [0; 1024];
    for body in bodies.iter().cycle() {
        let request = format!("{}{body}", head(&format!("Content-Length: {}\r\n", body.len())));
        stream.write_all(request.as_bytes()).await?;
        let read = stream.read(&mut answer).await?;
        assert!(read == 0 || !answer.starts_with(b"HTTP/1.1 2"), "a forged request was accepted");
        if read == 0 {
            break;
        }
    }
    Ok(())
}

/// By how much attackers stand behind SIPSIM and the relay.
const NICE: i32 = 10;
/// As the ports of one would run short.
const ADDRESSES: usize = 100;
const SHORT: Duration = Duration::from_millis(20);

pub const SLOW_HEADS: Besieger = Besieger::Slow { name: "slow heads (slowhttptest)", args: &["-H"] };
pub const SLOW_BODIES: Besieger = Besieger::Slow { name: "slow bodies (slowhttptest)", args: &["-B", "-s", "8192"] };

pub const SILENT: Attack =
    // 6,000 find no place for long: without the pause this were a flood of connecting, which is an attack of its own.
    Attack {
        name: "10,000 silent connections",
        connections: 10_000,
        addresses: ADDRESSES,
        pause: Duration::from_secs(2),
        life: |stream, _| Box::pin(until_closed(stream)),
    };

/// For a relay with places for 512. With 10,000 there, each would find its place taken and come back, which is a flood of connecting.
pub const SILENT_FEWER: Attack = Attack { name: "2,000 silent connections", connections: 2_000, ..SILENT };

pub const COMING_AND_GOING: Attack = Attack {
    name: "connections that come and go",
    connections: 200,
    addresses: ADDRESSES,
    pause: Duration::ZERO,
    life: |stream, _| {
        drop(stream);
        Box::pin(async { Ok(()) })
    },
};

pub const LARGE_HEADS: Attack = Attack {
    name: "heads of 16 KiB without an end",
    connections: 4_096,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, _| {
        Box::pin(async move {
            let head = format!("POST {PATH} HTTP/1.1\r\nX: {}", "x".repeat(16_000));
            stream.write_all(head.as_bytes()).await?;
            until_closed(stream).await
        })
    },
};

pub const FORGED: Attack = Attack {
    name: "a flood of forged requests",
    connections: 64,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |stream, _| {
        Box::pin(async move {
            let bodies: Vec<_> =
                (0..64).map(|_| format!(r#"{{"event":"sms","forged":{}}}"#, fastrand::u64(..))).collect();
            forge(stream, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await
        })
    },
};

/// Forged requests of which the search for the likely cause takes longest: 64 KiB of empty lists, 127 lists deep.
pub const NESTED: Attack = Attack {
    name: "forged bodies of nested JSON",
    connections: 16,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |stream, _| {
        Box::pin(async move {
            let (open, close) = ("[".repeat(127), "]".repeat(127));
            let body = format!("{open}{}[]{close}", "[],".repeat(((64 << 10) - 256) / 3));
            forge(stream, &[&body]).await
        })
    },
};

/// Forged requests of which each has another likely cause than the one before it.
pub const ALTERNATING: Attack = Attack {
    name: "alternating forged bodies",
    connections: 16,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |stream, _| Box::pin(async move { forge(stream, &["{}", ""]).await }),
};

pub const ODD_BODIES: Attack = Attack {
    name: "bodies without end, of false length, byte by byte",
    connections: 500,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, number| {
        Box::pin(async move {
            let length = |length: u64| head(&format!("Content-Length: {length}\r\n"));
            let chunked = head("Transfer-Encoding: chunked\r\n");
            match number % 4 {
                0 => {
                    stream.write_all(length(1 << 40).as_bytes()).await?;
                    pour(stream, &[b'x'; 16 << 10]).await
                }
                1 => {
                    stream.write_all(format!("{}{{}}", length(1000)).as_bytes()).await?;
                    until_closed(stream).await
                }
                2 => {
                    stream.write_all(format!("{}{{}}", length(1)).as_bytes()).await?;
                    until_closed(stream).await
                }
                _ => {
                    stream.write_all(chunked.as_bytes()).await?;
                    pour(stream, &b"1\r\nx\r\n".repeat(100)).await
                }
            }
        })
    },
};

pub const LARGE_BODIES: Attack = Attack {
    name: "8 MiB bodies on every connection",
    connections: 4_096,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, _| {
        Box::pin(async move {
            stream.write_all(head(&format!("Content-Length: {}\r\n", 8 << 20)).as_bytes()).await?;
            let piece = [b'x'; 16 << 10];
            for _ in 0..512 {
                stream.write_all(&piece).await?;
            }
            until_closed(stream).await
        })
    },
};

/// Bodies of which the last piece never comes: what comes of them counts as ordinary, or as large. To a relay with 4 MiB for bodies these are what 3,200
/// connections are to the default of 64 MiB. They begin within a second and not at once: a burst of 5 MB pushes out a
/// genuine body if other programs keep the relay from the processor in the middle of that body, and would so measure the machine.
pub const HALF_BODIES: Attack = Attack {
    name: "half-sent bodies",
    connections: 200,
    addresses: ADDRESSES,
    pause: Duration::from_secs(1),
    life: |mut stream, number| {
        Box::pin(async move {
            stream.write_all(head("Content-Length: 40000\r\n").as_bytes()).await?;
            stream.write_all(&vec![b'x'; if number.is_multiple_of(2) { 16 << 10 } else { 36_000 }]).await?;
            until_closed(stream).await
        })
    },
};

pub const GARBAGE: Attack = Attack {
    name: "pipelined garbage",
    connections: 64,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |stream, number| {
        Box::pin(async move {
            let garbage: Vec<u8> = (0..4096).map(|_| fastrand::u8(..)).collect();
            let request = format!("{}{{}}", head("Content-Length: 2\r\n"));
            match number % 2 {
                0 => pour(stream, request.repeat(20).as_bytes()).await, // Requests, and no answer is waited for.
                _ => pour(stream, &[request.as_bytes(), &garbage].concat()).await,
            }
        })
    },
};

pub const SMUGGLING: Attack = Attack {
    name: "request smuggling",
    connections: 64,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, number| {
        Box::pin(async move {
            let forms = smuggle::forms(&|_| forged_proof());
            let form = &forms[number % forms.len()];
            let behind = format!("{}{{}}", head("Content-Length: 2\r\n"));
            stream.write_all(&[&form.bytes, behind.as_bytes()].concat()).await?;
            stream.shutdown().await?;
            until_closed(stream).await
        })
    },
};

pub const OTHER_PROTOCOLS: Attack = Attack {
    name: "prefaces of HTTP/2 and TLS",
    connections: 64,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, number| {
        Box::pin(async move {
            let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
            let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), settings].concat();
            let hello = [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".as_slice(), &[0x5a; 505]].concat();
            stream.write_all(if number.is_multiple_of(2) { &preface } else { &hello }).await?;
            until_closed(stream).await
        })
    },
};

pub const TLS_GARBAGE: Attack = Attack {
    name: "TLS garbage",
    connections: 500,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, number| {
        Box::pin(async move {
            let random: Vec<u8> = (0..512).map(|_| fastrand::u8(..)).collect();
            let record = |length: u16| [&[0x16, 3, 1], length.to_be_bytes().as_slice(), &random].concat();
            match number % 4 {
                0 => stream.write_all(&random).await?,
                1 => stream.write_all(&record(512)).await?,
                2 => stream.write_all(&record(16_384)).await?, // And the rest never comes.
                _ => stream.write_all(head("Content-Length: 0\r\n").as_bytes()).await?,
            }
            until_closed(stream).await
        })
    },
};

pub const HANDSHAKES: Attack = Attack {
    name: "whole handshakes, and nothing more",
    connections: 32,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |stream, _| {
        Box::pin(async move {
            let config = &super::tls().trusting;
            let name = rustls_pki_types::ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
            tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map(drop)
        })
    },
};

/// A genuine request as a consumer of its topic has it, sent again, and half of another one behind it. On connections that are kept until the
/// relay closes them.
pub const REPLAY: Attack = Attack {
    name: "a replayed genuine request",
    connections: 700,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, _| {
        Box::pin(async move {
            stream.write_all(super::captured().0.as_bytes()).await?;
            let _part_of_the_answer = stream.read(&mut [0; 512]).await?;
            stream.write_all(format!("{}{{", head("Content-Length: 1000\r\n")).as_bytes()).await?;
            until_closed(stream).await
        })
    },
};

/// One recorded ClientHello, again and again: each costs the relay a signature, and its sender nothing.
pub const REPLAYED_HELLO: Attack = Attack {
    name: "a replayed ClientHello",
    connections: 1_000,
    addresses: 2,
    pause: SHORT,
    life: |mut stream, _| {
        Box::pin(async move {
            stream.write_all(super::hello()).await?;
            until_closed(stream).await
        })
    },
};

pub const ADMIN_REQUESTS: Attack = Attack {
    name: "a flood of requests for /metrics",
    connections: 200,
    addresses: ADDRESSES,
    pause: SHORT,
    life: |mut stream, _| {
        Box::pin(async move {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            until_closed(stream).await
        })
    },
};
