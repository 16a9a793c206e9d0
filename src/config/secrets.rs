//! Whether every account has a secret to verify with, and the files and places that the relay cannot start without. Reads them as they are now; keeping
//! them up to date is the business of who uses them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::problem::Problem;
use super::sections::{DEFAULT_ACCOUNT, DEFAULT_SECRETS};
use super::source::Sources;
use super::{Account, Config, OutputKind};
use crate::journal;
use crate::secret::{FILE_MAX, Secret};

/// The file in the default folder that a first start makes.
const FIRST_SECRET: &str = "sipsim";
/// Bytes. A shorter text is no secret that is worth hiding.
const SHOWN_BYTES_MAX: usize = 8;
/// Files of one folder that are looked at. A folder with more is no folder of secrets.
const FILES_MAX: usize = 1000;
/// One file of secrets, as it is found.
pub(super) struct SecretFile {
    pub path: PathBuf,
    pub secret: io::Result<Secret>,
    pub readable_by_all: bool,
}

/// The files of an account's secrets: the file itself, or those of the folder whose name does not begin with a dot, by name.
pub(super) fn files(secrets: &Path) -> io::Result<Vec<SecretFile>> {
    let read =
        |path: PathBuf| SecretFile { secret: read_file(&path), readable_by_all: is_readable_by_all(&path), path };
    if !fs::metadata(secrets)?.is_dir() {
        return Ok(vec![read(secrets.to_owned())]);
    }
    let mut paths = Vec::new();
    for entry in fs::read_dir(secrets)?.take(FILES_MAX) {
        let entry = entry?;
        // Kubernetes mounts each key as a link into a folder `..data`, so what counts is what the link leads to. What leads nowhere is told of.
        let is_file = fs::metadata(entry.path()).map_or(true, |metadata| metadata.is_file());
        if is_file && !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths.into_iter().map(read).collect())
}

/// As the running relay takes it: a pipe would let us wait for ever.
fn read_file(path: &Path) -> io::Result<Secret> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is neither a file nor a folder"));
    }
    if metadata.len() > FILE_MAX {
        return Err(io::Error::other(format!("it is larger than {} KiB, so no secret", FILE_MAX >> 10)));
    }
    Secret::read(path)
}

/// A path from a key that names a secret's place, for a message. It is not shown where it may be a secret itself that was pasted there.
pub(crate) fn shown(path: &Path) -> String {
    match may_be_shown(path) {
        true => path.display().to_string(),
        false => NOT_SHOWN.to_owned(),
    }
}

/// The same in quotes.
pub(super) fn quoted(path: &Path) -> String {
    match may_be_shown(path) {
        true => format!("`{}`", path.display()),
        false => NOT_SHOWN.to_owned(),
    }
}

const NOT_SHOWN: &str = "what is given there (not shown: it leads into no folder that exists, so it may be a secret)";

/// Whether it leads into a folder that exists, is a default, or is shorter than any secret.
fn may_be_shown(path: &Path) -> bool {
    let mut parts = path.components();
    let mut first = PathBuf::new();
    for part in parts.by_ref() {
        first.push(part);
        if matches!(part, Component::Normal(_)) {
            break;
        }
    }
    let is_in_a_folder = parts.next().is_some() && first.is_dir();
    is_in_a_folder || path == Path::new(DEFAULT_SECRETS) || path.as_os_str().len() < SHOWN_BYTES_MAX || path.exists()
}

/// Whether everybody on this machine may put a secret into this folder, or others in place of those in it. Kubernetes mounts a Secret so, but read-only.
pub(super) fn is_writable_by_all(path: &Path) -> bool {
    let is_open = fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o002 != 0);
    is_open && !rustix::fs::statvfs(path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::RDONLY))
}

pub(super) fn is_readable_by_all(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

impl Account {
    /// How many secrets the account has now, the environment's included.
    pub(crate) fn count_secrets(&self) -> usize {
        let usable = |file: &SecretFile| file.secret.as_ref().is_ok_and(|secret| !secret.is_empty());
        let files = self.secrets.as_deref().and_then(|secrets| files(secrets).ok()).unwrap_or_default();
        files.iter().filter(|file| usable(file)).count() + usize::from(self.environment_secret.is_some())
    }

    /// Why there is none, and what to do.
    fn without_secret(&self) -> String {
        let variable = format!("RELAY_ACCOUNTS__{}__SECRET", self.name.as_str().to_uppercase());
        let Some(secrets) = self.secrets.as_deref() else { return format!("give the secret as {variable}") };
        let shown = quoted(secrets);
        let why = match files(secrets) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{shown} does not exist"),
            Err(error) => format!("{shown} cannot be read ({error})"),
            Ok(files) if files.is_empty() => format!("{shown} holds no file"),
            Ok(files) => match files.iter().find_map(|file| file.secret.as_ref().err()) {
                Some(error) => format!("what {shown} holds cannot be read ({error})"),
                None => format!("what {shown} holds is empty"),
            },
        };
        format!(
            "no secret: {why}; put the secret from SIPSIM's webhook settings into a file there, or give it as {variable}"
        )
    }
}

impl Config {
    /// The file that a first start makes a secret in: only with console output alone, where nothing can be lost by it, only for the account
    /// `default` with its default folder, and only while that holds nothing at all.
    pub fn first_secret_file(&self) -> Option<PathBuf> {
        let folder = self.first_secret_folder()?;
        let empty = match files(folder) {
            Ok(files) => files.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        empty.then(|| folder.join(FIRST_SECRET))
    }

    pub(super) fn first_secret_folder(&self) -> Option<&Path> {
        let console = self.outputs.iter().all(|output| matches!(output.kind, OutputKind::Console));
        let account = self.accounts.iter().find(|account| account.name.as_str() == DEFAULT_ACCOUNT)?;
        let folder = account.secrets.as_deref().filter(|secrets| *secrets == Path::new(DEFAULT_SECRETS))?;
        (console && account.environment_secret.is_none()).then_some(folder)
    }
}

/// What a start needs and does not find: accounts without any secret, a place for the journal, and the certificate of the public port.
pub(super) fn missing(config: &Config, sources: &Sources) -> Vec<Problem> {
    let first = config.first_secret_file();
    let problem = |path: &[&str], message: String| {
        let path: Vec<String> = path.iter().map(|key| key.to_string()).collect();
        Problem { place: sources.place(&path), key: path.join("."), message }
    };
    let mut problems = Vec::new();
    for account in config.accounts.iter().filter(|account| account.count_secrets() == 0) {
        let name = account.name.as_str();
        if name != DEFAULT_ACCOUNT || first.is_none() {
            problems.push(problem(&["accounts", name, "secrets"], account.without_secret()));
        }
    }
    if let Some(why) = journal::misplaced(&config.journal.path) {
        problems.push(problem(&["journal", "path"], why));
    }
    if let Some(tls) = &config.ingress.tls {
        for (key, path) in [("certificate_file", &tls.certificate_file), ("private_key_file", &tls.private_key_file)] {
            if let Err(error) = fs::File::open(path) {
                let message = format!("{} cannot be read: {error}", quoted(path));
                problems.push(problem(&["ingress", "tls", key], message));
            }
        }
    }
    problems
}
