//! What an operator sees of it.

use std::fs::File;
use std::process::Command;

use crate::support::Relay;

#[test]
fn promtool_is_content_with_the_metrics() {
    let relay = Relay::start("");
    assert_eq!(relay.post(b"{}").status, 200);
    let page = relay.get("/metrics").expect("the admin port answers").body;
    std::fs::write(relay.path("metrics"), page).expect("a file");
    let output = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(File::open(relay.path("metrics")).expect("the file"))
        .output()
        .expect("promtool runs: `make test` installs it, as Debian's package prometheus");
    // It exits 0 with mere advice too, and 3 with complaints.
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
