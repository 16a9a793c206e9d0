//! Real HAProxy in front of the relays, configured as docs/load-balancer.md says (a test compares).

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{Client, Relay, free_address, succeed, wait_until};

/// Beside what the documentation shows: each answer, HAProxy's own included, says which relay the request was sent to. The last section is the backend's.
const ASIDE: &str = "  http-after-response set-header X-Server %[srv_name]\n";

/// Ends with this value.
pub struct Balancer {
    pub address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Balancer {
    pub fn start(relays: &[Relay]) -> Self {
        let need = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/need");
        succeed(Command::new(need).arg("haproxy:haproxy"), Duration::from_secs(300));
        let folder = TempDir::with_prefix("sipsim-relay-haproxy-").expect("a temporary folder");
        let address = free_address();
        let servers: String = relays
            .iter()
            .enumerate()
            .map(|(number, relay)| {
                let (public, admin) = (relay.ingress, relay.admin.port());
                format!("  server relay-{number} {public} check port {admin}\n")
            })
            .collect();
        let config =
            include_str!("haproxy.cfg").replace("LISTEN", &address.to_string()).replace("  SERVERS\n", &servers)
                + ASIDE;
        let file = folder.path().join("haproxy.cfg");
        fs::write(&file, config).expect("HAProxy's configuration");
        let log = fs::File::create(folder.path().join("log")).expect("a file for its log");
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("HAProxy starts");
        let balancer = Self { address, child, folder };
        wait_until("HAProxy to answer", Duration::from_secs(20), || Client::connect(address).is_ok());
        balancer
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- HAProxy\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
        }
    }
}
