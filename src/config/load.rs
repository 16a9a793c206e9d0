//! From a file and an environment to a [`Config`], or to all that is wrong with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::problem::{Place, Problem, Problems, Warning};
use super::reader::{Asked, Reader};
use super::source::{KeyPath, Sources};
use super::{AccountName, Config, outputs, secrets, sections, warnings};

/// The file that is read if none is named and it is there.
const FILE: &str = "relay.toml";
/// Bytes. Some hundred times the longest sensible configuration; more is another file by mistake.
const FILE_MAX: u64 = 1 << 20;

/// A configuration that is in order.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// The file that was read; `None` if there is none.
    pub file: Option<PathBuf>,
    /// What the values alone give reason for. What the machine gives reason for is found by [`warnings()`].
    pub warnings: Vec<Warning>,
    pub(super) sources: Sources,
}

/// A configuration looked at for a person, in order or not.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// With defaults in place of what is wrong.
    pub config: Config,
    pub file: Option<PathBuf>,
    /// Of the values, and of what a start would not find: secrets, and the certificate of the public port.
    pub problems: Vec<Problem>,
    /// None are looked for while values are wrong.
    pub warnings: Vec<Warning>,
    /// How many secrets each account has now.
    pub secrets: Vec<(AccountName, usize)>,
}

impl Loaded {
    /// What a start needs and does not find: each account without any secret, a place for the journal, and the certificate of the public port. An account for which
    /// the first start makes a secret ([`Config::first_secret_file`]) is none of them.
    pub fn missing(&self) -> Vec<Problem> {
        secrets::missing(&self.config, &self.sources)
    }
}

/// Reads the named file, or else `relay.toml` in the working directory if there is one, and the variables `RELAY_…` of `environment`.
/// Relative paths stay as they are written. On failure all problems are reported at once. The files that it names are not looked
/// at: see [`Loaded::missing`] and [`warnings()`].
pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Loaded, Problems> {
    match find(file) {
        Ok(Some((path, text))) => parse(Some((path, &text)), environment),
        Ok(None) => parse(None, environment),
        Err(unread) => Err(Problems(vec![unread])),
    }
}

/// Reads as [`load`] does, and looks at the machine too: for `check`.
pub fn inspect(
    file: Option<&Path>,
    environment: impl Iterator<Item = (OsString, OsString)>,
    stdout_is_terminal: bool,
) -> Inspected {
    let (text, unread) = match find(file) {
        Ok(text) => (text, None),
        Err(unread) => (None, Some(unread)),
    };
    let text = text.as_ref().map(|(path, text)| (*path, text.as_str()));
    let (config, sources, mut problems, _) = read(text, environment);
    // Without the file, most of what the environment says is judged wrongly.
    if let Some(unread) = unread {
        let file = file.map(Path::to_owned);
        return Inspected { config, file, problems: vec![unread], warnings: Vec::new(), secrets: Vec::new() };
    }
    let secrets = config.accounts.iter().map(|account| (account.name.clone(), account.count_secrets())).collect();
    let mut found = Vec::new();
    if problems.is_empty() {
        found = warnings::of_values(&config);
        found.extend(warnings::warnings(&config, stdout_is_terminal));
    }
    let known: Vec<String> = problems.iter().map(|problem| problem.key.clone()).collect();
    let missing = secrets::missing(&config, &sources).into_iter().filter(|problem| !known.contains(&problem.key));
    problems.extend(missing);
    found.retain(|warning| {
        !problems.iter().any(|problem| problem.key == warning.key && problem.message == warning.message)
    });
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    Inspected { config, file: sources.file, problems, warnings: found, secrets }
}

/// The file's path and text; `None` if none is named and none is there.
fn find(named: Option<&Path>) -> Result<Option<(&Path, String)>, Problem> {
    let path = named.unwrap_or(Path::new(FILE));
    match read_text(path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let place = Place::File { file: path.to_owned(), line: None, column: None };
            Err(Problem { place, key: String::new(), message: format!("cannot be read: {error}") })
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::Error::other("it is larger than 1 MiB, so it can hardly be a configuration"));
    }
    Ok(text)
}

/// [`load`], once the file is read.
pub(super) fn parse(
    file: Option<(&Path, &str)>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Problems> {
    let (config, sources, problems, _) = read(file, environment);
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let warnings = warnings::of_values(&config);
    Ok(Loaded { config, file: sources.file.clone(), warnings, sources })
}

/// The configuration, with defaults in place of what is wrong, and all that was found on the way.
pub(super) fn read(
    file: Option<(&Path, &str)>,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> (Config, Sources, Vec<Problem>, BTreeMap<KeyPath, Asked>) {
    let (sources, problems) = Sources::new(file, environment);
    let reader = Reader::new(sources, problems);
    let root = reader.root();
    let instance = sections::instance(&root);
    let ingress = sections::ingress(&root.section("ingress"));
    let accounts = sections::accounts(&root.section("accounts"));
    let events = sections::events(&root.section("events"));
    let envelope = sections::envelope(&root.section("envelope"));
    let mut journal = sections::journal(&root.section("journal"));
    // Lock and log lie beside the file itself, where whoever opens it by its other name looks for them.
    if let Ok(target) = journal.path.read_link() {
        let target = journal.path.parent().unwrap_or(Path::new("")).join(target);
        // The file may not be there yet, but its folder is.
        let folder = target.parent().and_then(|folder| folder.canonicalize().ok());
        let resolved = target.canonicalize().ok().or_else(|| Some(folder?.join(target.file_name()?)));
        journal.path = resolved.unwrap_or(target);
    }
    let outputs = outputs::outputs(&root.section("outputs"), &instance, &events, &accounts);
    let section = root.section("admin");
    let admin = sections::admin(&section);
    // A port of 0 is whichever is free, so that two of them are never the same.
    let port = admin.listen.port();
    if port == ingress.listen.port() && port != 0 && overlap(admin.listen.ip(), ingress.listen.ip()) {
        let ingress_section = root.section("ingress");
        let (here, other, address) = match section.is_given("listen") || !ingress_section.is_given("listen") {
            true => (&section, "ingress.listen", admin.listen),
            false => (&ingress_section, "admin.listen", ingress.listen),
        };
        if section.sound(&["listen"]) && ingress_section.sound(&["listen"]) {
            here.problem(
                "listen",
                format!("{address} is the port of {other} too; the public port shows nothing of the relay"),
            );
        }
    }
    let shutdown = sections::shutdown(&root.section("shutdown"));
    let log = sections::log(&root.section("log"));
    let config = Config { instance, ingress, accounts, events, envelope, journal, outputs, admin, shutdown, log };
    let (sources, problems, asked) = reader.finish();
    (config, sources, problems, asked)
}

/// Whether one address listens where the other does. `[::]` takes IPv4 in too.
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let all = |all: IpAddr, of: IpAddr| all.is_unspecified() && (all.is_ipv6() || of.is_ipv4());
    one == other || all(one, other) || all(other, one)
}

impl Config {
    /// What one gets without file and environment.
    pub fn defaults() -> Self {
        read(None, std::iter::empty()).0
    }
}
