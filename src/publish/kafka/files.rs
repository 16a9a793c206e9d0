//! Notices when a password or certificate file has another content, so that a rotated one needs no restart.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::KafkaSecurity;

/// How often the files are read. They are few and small, and are compared by content: a mount of Kubernetes swaps links, and its files' times
/// say little.
const INTERVAL: Duration = Duration::from_secs(2);

pub struct Files {
    paths: Vec<PathBuf>,
    /// What the producer in use was made with. `None` for a file that could not be read.
    used: Vec<Option<[u8; 32]>>,
    since_look: Duration,
}

impl Files {
    /// Reads nothing yet.
    pub fn new(security: &KafkaSecurity) -> Self {
        let all = [
            &security.password.file,
            &security.client_secret.file,
            &security.ca_file,
            &security.certificate_file,
            &security.private_key_file,
        ];
        let paths: Vec<PathBuf> = all.into_iter().flatten().cloned().collect();
        Self { used: vec![None; paths.len()], paths, since_look: Duration::ZERO }
    }

    /// A producer is about to be made with them. A change in between costs one replacement too many at worst.
    pub fn read(&mut self) {
        self.used = digests(&self.paths);
    }

    /// After so much more time: whether it is time to look and something has changed. A file that cannot be read just now has not, as it may be
    /// about to be replaced.
    pub fn changed(&mut self, passed: Duration) -> Option<Change> {
        self.since_look += passed;
        if self.since_look < INTERVAL || self.paths.is_empty() {
            return None;
        }
        self.since_look = Duration::ZERO;
        let found = digests(&self.paths);
        let differs = found.iter().zip(&self.used).any(|(found, used)| found.is_some() && found != used);
        let complete = found.iter().zip(&self.used).all(|(found, used)| found.is_some() || used.is_none());
        (differs && complete).then_some(Change(found))
    }

    /// A producer was made with them.
    pub fn accept(&mut self, change: Change) {
        self.used = change.0;
    }
}

/// Contents that the producer in use does not know.
pub struct Change(Vec<Option<[u8; 32]>>);

fn digests(paths: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    paths.iter().map(|path| std::fs::read(path).ok().map(|content| Sha256::digest(content).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_content_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let (password, ca) = (folder.path().join("password"), folder.path().join("ca.pem"));
        std::fs::write(&password, "one").unwrap();
        std::fs::write(&ca, "certificate").unwrap();
        let mut security = KafkaSecurity { ca_file: Some(ca.clone()), ..Default::default() };
        security.password.file = Some(password.clone());
        let mut files = Files::new(&security);
        files.read();

        assert!(files.changed(INTERVAL).is_none());
        std::fs::write(&password, "one").unwrap();
        assert!(files.changed(INTERVAL).is_none(), "written anew, but the same");
        std::fs::remove_file(&password).unwrap();
        assert!(files.changed(INTERVAL).is_none(), "about to be replaced");
        std::fs::write(&ca, "another").unwrap();
        assert!(files.changed(INTERVAL).is_none(), "the other is still missing");
        std::fs::write(&password, "two").unwrap();
        assert!(files.changed(INTERVAL / 2).is_none(), "not yet looked");
        let change = files.changed(INTERVAL / 2).unwrap();
        assert!(files.changed(INTERVAL).is_some(), "until it is accepted");
        files.accept(change);
        assert!(files.changed(INTERVAL).is_none());
    }
}
