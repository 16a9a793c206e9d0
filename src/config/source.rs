//! Where values come from: `relay.toml` and the environment, merged by figment into one tree, with the line or variable of each key beside it.
//!
//! The environment's values stay texts, and secrets stay out of the tree: only the key that is read knows what a text means.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use super::problem::{Place, Problem};
use crate::secret::Secret;
use zeroize::Zeroizing;

/// The names from the root to a key: `["ingress", "listen"]`. A key of the file may itself hold dots, so a joined text would not do.
pub(super) type KeyPath = Vec<String>;

/// All that was given, before anybody asks what it means.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    pub root: Dict,
    pub file: Option<PathBuf>,
    /// The line of each key of the file, and of each element of a list under its number.
    pub lines: BTreeMap<KeyPath, usize>,
    /// The variable of each key of the environment.
    pub variables: BTreeMap<KeyPath, String>,
    /// The environment's secrets, surrounding white space trimmed as it is of those in files.
    pub secrets: BTreeMap<KeyPath, Secret>,
}

impl Sources {
    /// Merges file and environment. The problems are those of the texts themselves: what is no TOML, what is no name of a variable.
    pub fn new(
        file: Option<(&Path, &str)>,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> (Self, Vec<Problem>) {
        let mut sources = Self::default();
        let mut problems = Vec::new();
        let file = file.map(|(path, text)| sources.read_file(path, text, &mut problems)).unwrap_or_default();
        let environment = sources.read_environment(environment, &mut problems);
        let merged = Figment::new().merge(Layer("file", file)).merge(Layer("environment", environment));
        // Only a provider can fail here, and ours do not.
        if let Ok(Value::Dict(_, root)) = merged.find_value("") {
            sources.root = root;
        }
        (sources, problems)
    }

    /// Where `path` is to be mended: where it is given, else where what it belongs to is.
    pub fn place(&self, path: &[String]) -> Place {
        for (up, length) in (1..=path.len()).rev().enumerate() {
            let path = &path[..length];
            if let Some(variable) = self.variables.get(path) {
                return Place::Variable(variable.clone());
            }
            if let Some(line) = self.lines.get(path) {
                return self.in_file(*line);
            }
            // A section that only the environment gives; further up it would be a stranger's.
            let beneath = self.variables.range(path.to_vec()..).next().filter(|(key, _)| key.starts_with(path));
            if let (Some((_, variable)), true) = (beneath, up <= 1) {
                return Place::Variable(variable.clone());
            }
        }
        Place::Default
    }

    pub fn in_file(&self, line: usize) -> Place {
        let file = self.file.clone().unwrap_or_default();
        Place::File { file, line: Some(line), column: None }
    }

    fn read_file(&mut self, path: &Path, text: &str, problems: &mut Vec<Problem>) -> Dict {
        self.file = Some(path.to_owned());
        let starts: Vec<usize> = [0].into_iter().chain(text.match_indices('\n').map(|(end, _)| end + 1)).collect();
        let line = |offset: usize| starts.partition_point(|start| *start <= offset);
        let position = |offset: usize| {
            let line = line(offset);
            let before = text.get(starts[line - 1]..offset).unwrap_or("");
            (line, before.chars().count() + 1)
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let (line, column) = error.span().map(|span| position(span.start)).unzip();
            let place = Place::File { file: path.to_owned(), line, column };
            problems.push(Problem { place, key: String::new(), message: in_words(&error, text) });
        }
        self.convert_table(table.get_ref(), &mut Vec::new(), &line)
    }

    fn convert_table(&mut self, table: &DeTable<'_>, path: &mut KeyPath, line: &dyn Fn(usize) -> usize) -> Dict {
        let mut dict = Dict::new();
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            self.lines.insert(path.clone(), line(key.span().start));
            let value = self.convert_value(value.get_ref(), path, line);
            dict.insert(key.get_ref().to_string(), value);
            path.pop();
        }
        dict
    }

    fn convert_value(&mut self, value: &DeValue<'_>, path: &mut KeyPath, line: &dyn Fn(usize) -> usize) -> Value {
        if is_secret(path) {
            return Value::from(""); // Refused by its reader, which needs to know no more than that it is there.
        }
        match value {
            DeValue::String(text) => Value::from(text.to_string()),
            DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(number) => Value::from(number),
                Err(_) => Value::from(f64::MAX), // Past every range, and reported as such.
            },
            DeValue::Float(float) => Value::from(float.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::from(*flag),
            DeValue::Datetime(datetime) => Value::from(datetime.to_string()),
            DeValue::Array(array) => {
                let mut values = Vec::new();
                for (index, element) in array.iter().enumerate() {
                    path.push(index.to_string());
                    self.lines.insert(path.clone(), line(element.span().start));
                    values.push(self.convert_value(element.get_ref(), path, line));
                    path.pop();
                }
                Value::from(values)
            }
            DeValue::Table(table) => Value::from(self.convert_table(table, path, line)),
        }
    }

    fn read_environment(
        &mut self,
        environment: impl Iterator<Item = (OsString, OsString)>,
        problems: &mut Vec<Problem>,
    ) -> Dict {
        let mut dict = Dict::new();
        let mut given: Vec<(String, OsString)> = environment.filter_map(ours).collect();
        given.sort(); // The order in which a process finds its variables is chance.
        for (name, value) in given {
            let path: KeyPath = name[PREFIX.len()..].to_lowercase().split("__").map(str::to_owned).collect();
            let mut refuse = |message: String| {
                let place = Place::Variable(name.clone());
                problems.push(Problem { place, key: path.join("."), message });
            };
            if path.len() > LEVELS_MAX {
                refuse("unknown key".to_owned());
                continue;
            }
            if let Some(other) = self.variables.get(&path) {
                refuse(format!("given twice, the other time as {other}; keep one"));
                continue;
            }
            let text = if is_secret(&path) {
                let secret = Secret::of(&Zeroizing::new(value.into_vec()));
                self.secrets.insert(path.clone(), secret);
                String::new()
            } else if let Ok(text) = value.into_string() {
                text
            } else {
                refuse("not UTF-8".to_owned());
                continue;
            };
            match insert(&mut dict, &path, text) {
                true => drop(self.variables.insert(path, name)),
                false => refuse(
                    "another variable gives a value to what this one takes for a section, or the other way round"
                        .to_owned(),
                ),
            }
        }
        dict
    }
}

/// The parser's words, but for the most common slip, a text without quotes, which it takes for a number gone wrong.
fn in_words(error: &toml::de::Error, text: &str) -> String {
    let (before, _) = text.split_at_checked(error.span().map_or(0, |span| span.start)).unwrap_or((text, ""));
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text[line_start..].lines().next().unwrap_or("");
    match line.split_once('=') {
        Some((key, value)) if key.len() < before.len() - line_start && !value.trim_start().starts_with(QUOTES) => {
            "not TOML: this value is neither a number, nor true or false, nor a text in quotes".to_owned()
        }
        _ => format!("not TOML: {}", error.message().trim()),
    }
}

/// What values begin with that are not bare words.
const QUOTES: [char; 4] = ['"', '\'', '[', '{'];

const PREFIX: &str = "RELAY_";
/// Twice what the longest property of librdkafka takes, spelt out. The tree is walked by recursion.
const LEVELS_MAX: usize = 16;

/// Our variables, whatever their case; not those that Kubernetes makes for a Service called `relay`.
fn ours((name, value): (OsString, OsString)) -> Option<(String, OsString)> {
    let begins = |prefix: &str| {
        let head = name.as_bytes().get(..prefix.len());
        head.is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    let wanted = begins(PREFIX) && !begins("RELAY_PORT") && !begins("RELAY_SERVICE_");
    wanted.then(|| (OsStr::to_string_lossy(&name).into_owned(), value))
}

/// Whether the key is a secret or password itself, which only the environment may give, and which is read raw.
fn is_secret(path: &[String]) -> bool {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    matches!(
        path[..],
        ["accounts", _, "secret"]
            | ["outputs", _, "password"]
            | ["outputs", _, "security", "password" | "client_secret"]
    )
}

/// `false` if a section and a value claim the same name.
fn insert(dict: &mut Dict, path: &[String], text: String) -> bool {
    match path {
        [] => false,
        [key] => !dict.contains_key(key) && dict.insert(key.clone(), Value::from(text)).is_none(),
        [key, rest @ ..] => match dict.entry(key.clone()).or_insert_with(|| Value::from(Dict::new())) {
            Value::Dict(_, inner) => insert(inner, rest, text),
            _ => false,
        },
    }
}

/// One layer of figment's merge.
struct Layer(&'static str, Dict);

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0)
    }

    fn data(&self) -> Result<BTreeMap<Profile, Dict>, figment::Error> {
        Ok(BTreeMap::from([(Profile::Default, self.1.clone())]))
    }
}
