//! Where secrets come from: a file, a folder of which each file is one, the environment. What cannot be used is reported and skipped.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::{fmt, iter};

use crate::config::{self, AccountName};
use crate::secret::{Doubt, FILE_MAX, Secret};
use zeroize::Zeroizing;

/// `accounts.default.secrets`, unless configured. It may be absent if the environment gives a secret.
pub const SECRETS_DEFAULT: &str = "data/secrets";
/// The label of the secret from the environment.
const ENVIRONMENT: &str = "environment";

pub struct NamedSecret {
    /// The file's name, or `environment`.
    pub label: String,
    pub secret: Secret,
}

/// Something about an account's secrets that an operator has to mend. Says names only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReloadReport {
    pub account: AccountName,
    /// The file or folder, or the environment variable.
    pub place: String,
    pub unusable: Unusable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Unusable {
    Empty,
    /// With the system's own words.
    Unreadable(String),
    TooLarge,
    /// Too short, beside others that are not. With its length in bytes.
    Short(usize),
    /// It is taken all the same.
    Doubtful(Doubt),
    /// Nothing usable is left there; what was loaded before stays in force.
    NoneLeft,
}

impl fmt::Display for ReloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, place, unusable } = self;
        match unusable {
            Unusable::Empty => {
                write!(
                    f,
                    "account {account}: the secret in {place} is empty and is skipped; write the secret there, or remove it"
                )
            }
            Unusable::Unreadable(error) => {
                write!(
                    f,
                    "account {account}: {place} cannot be read and is skipped: {error}; let the relay's user read it, or remove it"
                )
            }
            Unusable::TooLarge => write!(
                f,
                "account {account}: {place} is larger than {} KiB, so no secret, and is skipped; remove it",
                FILE_MAX >> 10
            ),
            Unusable::Short(length) => write!(
                f,
                "account {account}: the secret in {place} has {length} bytes, too few for a signing secret, and is skipped; remove it, or write the secret there"
            ),
            Unusable::Doubtful(doubt) => {
                write!(f, "account {account}: the secret in {place} is taken as it is, but it {doubt}")
            }
            Unusable::NoneLeft => write!(
                f,
                "account {account}: no usable secret is left in {place}; those loaded before stay in force until there is one"
            ),
        }
    }
}

/// What an account's places hold now, sorted by label, the environment's last; and what of it cannot be used, or is hardly a secret.
pub fn load(account: &config::Account) -> (Vec<NamedSecret>, Vec<ReloadReport>) {
    reload(account, |_| false)
}

/// The same, beside secrets that are in force.
pub fn reload(
    account: &config::Account,
    is_in_force: impl Fn(&NamedSecret) -> bool,
) -> (Vec<NamedSecret>, Vec<ReloadReport>) {
    let mut found = Found { account, secrets: Vec::new(), reports: Vec::new() };
    if let Some(path) = &account.secrets {
        found.place(path);
    }
    found.secrets.sort_by(|(a, _), (b, _)| a.label.cmp(&b.label));
    if let Some(secret) = &account.environment_secret {
        let trimmed = Secret::of(secret.expose());
        match trimmed.is_empty() {
            true => found.report(variable(&account.name), Unusable::Empty),
            false => {
                let named = NamedSecret { label: ENVIRONMENT.to_owned(), secret: trimmed };
                found.secrets.push((named, variable(&account.name)));
            }
        }
    }
    // A short one is rather another value that came along, a user name for instance, unless there is nothing else, or it was so: then SIPSIM may
    // sign with it until the new one is chosen there.
    let skips_short = found.secrets.iter().any(|(named, _)| !named.secret.is_short());
    let mut taken = Vec::new();
    for (named, place) in std::mem::take(&mut found.secrets) {
        if skips_short && named.secret.is_short() && !is_in_force(&named) {
            found.report(place, Unusable::Short(named.secret.expose().len()));
            continue;
        }
        if let Some(doubt) = named.secret.doubt(&named.label) {
            found.report(place, Unusable::Doubtful(doubt));
        }
        taken.push(named);
    }
    (taken, found.reports)
}

/// The environment variable that may give the account one secret.
pub fn variable(account: &AccountName) -> String {
    format!("RELAY_ACCOUNTS__{}__SECRET", account.as_str().to_uppercase())
}

struct Found<'a> {
    account: &'a config::Account,
    /// Each with its place.
    secrets: Vec<(NamedSecret, String)>,
    reports: Vec<ReloadReport>,
}

impl Found<'_> {
    fn place(&mut self, path: &Path) {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => self.folder(path),
            Ok(metadata) if metadata.is_file() => self.file(path, &metadata),
            Ok(_) => self.unreadable(path, &io::Error::other("it is neither a file nor a folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.may_be_absent(path) => {}
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn may_be_absent(&self, path: &Path) -> bool {
        self.account.environment_secret.is_some() && path == Path::new(SECRETS_DEFAULT)
    }

    /// Each file whose name does not begin with a dot. Those of a Kubernetes mount are links into `..data`, itself a link that is swapped
    /// whole: a name that vanishes on the way is the old mount's, and the next look sees the new one.
    fn folder(&mut self, path: &Path) {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.unreadable(path, &error),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.unreadable(path, &error),
            };
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match fs::metadata(entry.path()) {
                // A folder or a socket is no file; a pipe would let us wait for ever.
                Ok(metadata) if !metadata.is_file() => {}
                Ok(metadata) => self.file(&entry.path(), &metadata),
                Err(error) => self.unreadable(&entry.path(), &error),
            }
        }
    }

    fn file(&mut self, path: &Path, metadata: &fs::Metadata) {
        if metadata.len() > FILE_MAX {
            return self.report(path.display().to_string(), Unusable::TooLarge);
        }
        match Secret::read(path) {
            Ok(secret) if secret.is_empty() => self.report(path.display().to_string(), Unusable::Empty),
            Ok(secret) => {
                let label = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                self.secrets.push((NamedSecret { label, secret }, path.display().to_string()));
            }
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.report(config::shown(path), Unusable::Unreadable(error.to_string()));
    }

    fn report(&mut self, place: String, unusable: Unusable) {
        self.reports.push(ReloadReport { account: self.account.name.clone(), place, unusable });
    }
}

/// Makes a first secret: the file `sipsim` in `folder`, 64 hex characters of the system's randomness, 0600; a folder that is not there yet
/// becomes 0700. Returns the file's path. Synced, and never there half written. Fails with `AlreadyExists` rather than replace one.
pub fn make_secret(folder: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join("sipsim");
    if fs::symlink_metadata(&path).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let unfinished = folder.join(".sipsim.new"); // A name that loading passes over.
    let mut random = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *random).map_err(io::Error::other)?;
    let mut digits = Zeroizing::new([0; 64]);
    hex::encode_to_slice(*random, &mut *digits).map_err(io::Error::other)?;
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // A start that was cut short left it.
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(&*digits)?;
    file.sync_all()?;
    fs::rename(&unfinished, &path)?;
    for folder in iter::once(folder).chain(folder.parent().filter(|parent| !parent.as_os_str().is_empty())) {
        File::open(folder)?.sync_all()?;
    }
    Ok(path)
}
