//! Notices when a password or certificate file has another content, so that a rotated one needs no restart. Reads aside, since the producer has to be
//! polled even while a file's mount hangs.

use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::config::KafkaSecurity;
use crate::publish::aside::Aside;

/// How often the files are read. They are few and small, and are compared by content: a mount of Kubernetes swaps links, and its files' times
/// say little.
const INTERVAL: Duration = Duration::from_secs(2);

pub struct Files<T> {
    paths: Vec<PathBuf>,
    /// What the producer in use was made with.
    used: Digests,
    since_look: Duration,
    look: Aside<(Digests, Option<Result<T, String>>)>,
}

/// Of each file; `None` for one that could not be read.
type Digests = Vec<Option<[u8; 32]>>;

impl<T: Send + 'static> Files<T> {
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
        Self { used: vec![None; paths.len()], paths, since_look: Duration::ZERO, look: Aside::default() }
    }

    /// A producer is about to be made with them. A change in between costs one replacement too many at worst.
    pub fn read(&mut self) {
        self.used = digests(&self.paths);
    }

    /// After so much more time: whether [`Files::look`] has something to do.
    pub fn is_due(&mut self, passed: Duration) -> bool {
        self.since_look += passed;
        !self.paths.is_empty() && (self.since_look >= INTERVAL || self.look.is_under_way())
    }

    /// Begins to look, or takes what a look brought: what `make` makes of files that have changed, until that succeeds. A file that cannot be read
    /// just now has not changed, as it may be about to be replaced.
    pub fn look(&mut self, make: impl FnOnce() -> Result<T, String> + Send + 'static) -> Option<Result<T, String>> {
        self.since_look = Duration::ZERO;
        let (paths, used) = (self.paths.clone(), self.used.clone());
        let (found, made) = self.look.ask(Duration::ZERO, move || {
            let found = digests(&paths);
            let differs = found.iter().zip(&used).any(|(found, used)| found.is_some() && found != used);
            let complete = found.iter().zip(&used).all(|(found, used)| found.is_some() || used.is_none());
            let made = (differs && complete).then(make);
            (found, made)
        })?;
        if let Some(Ok(_)) = made {
            self.used = found;
        }
        made
    }
}

fn digests(paths: &[PathBuf]) -> Digests {
    paths.iter().map(|path| std::fs::read(path).ok().map(|content| Sha256::digest(content).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a look after so much time gives, waiting for it.
    fn changed(files: &mut Files<()>, passed: Duration, made: Result<(), String>) -> Option<bool> {
        let mut due = files.is_due(passed);
        while due {
            let made = made.clone();
            let looked = files.look(move || made);
            if looked.is_some() || !files.look.is_under_way() {
                return looked.map(|made| made.is_ok());
            }
            due = files.is_due(Duration::ZERO);
        }
        None
    }

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
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), None);
        std::fs::write(&password, "one").unwrap();
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), None, "written anew, but the same");
        std::fs::remove_file(&password).unwrap();
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), None, "about to be replaced");
        std::fs::write(&ca, "another").unwrap();
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), None, "the other is still missing");
        std::fs::write(&password, "two").unwrap();
        assert_eq!(changed(&mut files, INTERVAL / 2, Ok(())), None, "not yet looked");
        assert_eq!(changed(&mut files, INTERVAL / 2, Err("they do not fit".into())), Some(false));
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), Some(true), "until it is made");
        assert_eq!(changed(&mut files, INTERVAL, Ok(())), None);
    }
}
