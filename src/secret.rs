//! Secrets cannot be printed, and their memory is wiped when they are dropped.

use std::path::PathBuf;
use std::{fmt, fs, io};

use zeroize::Zeroizing;

/// A signing secret, password or key. No `Display`, no `Serialize`; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The content of a file, surrounding ASCII white space trimmed: editors and `echo` add a newline that nobody meant.
    pub fn read(path: &std::path::Path) -> io::Result<Self> {
        let raw = Zeroizing::new(fs::read(path)?);
        Ok(Self::new(raw.trim_ascii().to_vec()))
    }

    /// The secret itself, for the call that needs it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Where a password comes from: a file that is read anew at each connection, or the environment. Never from `relay.toml` itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PasswordSource {
    pub file: Option<PathBuf>,
    pub environment: Option<Secret>,
}

impl PasswordSource {
    pub fn is_given(&self) -> bool {
        self.file.is_some() || self.environment.is_some()
    }

    /// The password as it is now; the file goes before the environment. `None` if neither is configured.
    pub fn read(&self) -> io::Result<Option<Secret>> {
        match &self.file {
            Some(path) => Secret::read(path).map(Some),
            None => Ok(self.environment.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    #[test]
    fn a_secret_is_wiped_when_dropped_and_cannot_be_shown() {
        fn is_wiped(_: &impl ZeroizeOnDrop) {}
        let secret = Secret::new(b"canary".to_vec());
        is_wiped(&secret.0);
        let source = PasswordSource { file: None, environment: Some(secret) };
        assert_eq!(format!("{source:?}"), "PasswordSource { file: None, environment: Some(Secret(..)) }");
    }
}
