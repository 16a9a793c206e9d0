//! From a file and an environment to a [`Config`], or to all that is wrong with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::problem::{Place, Problem, Problems, Warning};
use super::reader::{Asked, Reader};
use super::source::{KeyPath, Sources};
use super::{Config, outputs, sections, warnings};

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

/// Reads the named file, or else `relay.toml` in the working directory if there is one, and the variables `RELAY_…` of `environment`.
/// Relative paths stay as they are written. On failure all problems are reported at once.
pub fn load(file: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Loaded, Problems> {
    let path = file.unwrap_or(Path::new(FILE));
    match read_text(path) {
        Ok(text) => parse(Some((path, &text)), environment),
        Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => parse(None, environment),
        Err(error) => {
            let place = Place::File { file: path.to_owned(), line: None, column: None };
            let unread = Problem { place, key: String::new(), message: format!("cannot be read: {error}") };
            Err(Problems(vec![unread]))
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
    let journal = sections::journal(&root.section("journal"));
    let outputs = outputs::outputs(&root.section("outputs"), &events, &accounts);
    let section = root.section("admin");
    let admin = sections::admin(&section);
    // A port of 0 is whichever is free, so that two of them are never the same.
    if admin.listen == ingress.listen && admin.listen.port() != 0 && section.sound(&["listen"]) {
        section.problem(
            "listen",
            format!("{} is ingress.listen too; the public port shows nothing of the relay", admin.listen),
        );
    }
    let shutdown = sections::shutdown(&root.section("shutdown"));
    let log = sections::log(&root.section("log"));
    let config = Config { instance, ingress, accounts, events, envelope, journal, outputs, admin, shutdown, log };
    let (sources, problems, asked) = reader.finish();
    (config, sources, problems, asked)
}

impl Config {
    /// What one gets without file and environment.
    pub fn defaults() -> Self {
        read(None, std::iter::empty()).0
    }
}
