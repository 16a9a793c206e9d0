//! Reads the merged tree key by key and collects every problem on the way, where serde would stop at the first. What nobody asked for in the
//! end is an unknown key.

use std::cell::RefCell;
use std::collections::BTreeMap;

use figment::value::{Dict, Value};

use super::problem::{Place, Problem};
use super::source::{KeyPath, Sources};
use super::suggest;
use crate::secret::Secret;

/// What a text means, or what is wrong with it and what is expected.
pub(super) type Parsed<T> = Result<T, String>;

/// Collects problems and the keys that were asked for.
pub(super) struct Reader {
    pub sources: Sources,
    problems: RefCell<Vec<Problem>>,
    asked: RefCell<BTreeMap<KeyPath, Asked>>,
}

/// A key that exists.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// As one would write it in the file; `None` for a section, and for a key without default.
    pub default: Option<toml::Value>,
    /// Whatever stands beneath it was dealt with.
    pub whole: bool,
}

/// A section of the tree, there or not.
pub(super) struct Section<'r> {
    reader: &'r Reader,
    pub path: KeyPath,
    dict: Option<&'r Dict>,
}

impl Reader {
    pub fn new(sources: Sources, problems: Vec<Problem>) -> Self {
        Self { sources, problems: RefCell::new(problems), asked: RefCell::default() }
    }

    pub fn root(&self) -> Section<'_> {
        Section { reader: self, path: Vec::new(), dict: Some(&self.sources.root) }
    }

    /// All problems, unknown keys included, in the order of file and variables.
    pub fn finish(self) -> (Sources, Vec<Problem>, BTreeMap<KeyPath, Asked>) {
        self.refuse_unknown(&self.sources.root, &mut Vec::new());
        let mut problems = self.problems.into_inner();
        // A line that is no TOML is read as far as it goes; what that makes of its key would only confuse.
        let broken: Vec<Place> = problems.iter().filter(|problem| problem.key.is_empty()).map(line_of).collect();
        problems.retain(|problem| problem.key.is_empty() || !broken.contains(&line_of(problem)));
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        problems.dedup();
        (self.sources, problems, self.asked.into_inner())
    }

    fn ask(&self, path: KeyPath, default: Option<toml::Value>) {
        self.asked.borrow_mut().entry(path).or_default().default = default;
    }

    fn report(&self, place: Place, path: &[String], message: String) {
        self.problems.borrow_mut().push(Problem { place, key: path.join("."), message });
    }

    fn refuse_unknown(&self, dict: &Dict, path: &mut KeyPath) {
        for (key, value) in dict {
            path.push(key.clone());
            let asked = self.asked.borrow().get(path).cloned();
            match (asked, value) {
                (None, _) => {
                    let keys: Vec<KeyPath> = self.asked.borrow().keys().cloned().collect();
                    let place = self.sources.place(path);
                    let hint = suggest::for_unknown(path, &keys, &place);
                    self.report(place, path, format!("unknown key{hint}"));
                }
                (Some(Asked { whole: false, .. }), Value::Dict(_, inner)) => self.refuse_unknown(inner, path),
                _ => {}
            }
            path.pop();
        }
    }
}

fn line_of(problem: &Problem) -> Place {
    match &problem.place {
        Place::File { file, line, .. } => Place::File { file: file.clone(), line: *line, column: None },
        other => other.clone(),
    }
}

impl<'r> Section<'r> {
    fn at(&self, key: &str) -> KeyPath {
        self.path.iter().cloned().chain([key.to_owned()]).collect()
    }

    fn value(&self, key: &str) -> Option<&'r Value> {
        self.dict.and_then(|dict| dict.get(key))
    }

    pub fn is_given(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The names that stand here, in order.
    pub fn keys(&self) -> impl Iterator<Item = &'r str> + use<'r> {
        self.dict.into_iter().flatten().map(|(key, _)| key.as_str())
    }

    /// Whether the file has anything of this section.
    pub fn is_in_file(&self) -> bool {
        self.reader.sources.lines.contains_key(&self.path)
    }

    fn is_from_environment(&self, key: &str) -> bool {
        self.reader.sources.variables.contains_key(&self.at(key))
    }

    /// Reports what is wrong with a key, at its line or variable.
    pub fn problem(&self, key: &str, message: impl Into<String>) {
        let path = self.at(key);
        self.reader.report(self.reader.sources.place(&path), &path, message.into());
    }

    /// Reports what is wrong with one element of a list, at its own line.
    pub fn problem_in_list(&self, key: &str, index: usize, message: impl Into<String>) {
        let path = self.at(key);
        let element: KeyPath = path.iter().cloned().chain([index.to_string()]).collect();
        self.reader.report(self.reader.sources.place(&element), &path, message.into());
    }

    /// Nothing was wrong with these keys so far. What compares several of them asks first, lest one mistake be reported twice.
    pub fn sound(&self, keys: &[&str]) -> bool {
        let problems = self.reader.problems.borrow();
        keys.iter().all(|key| {
            let key = self.at(key).join(".");
            !problems.iter().any(|problem| problem.key == key)
        })
    }

    /// Nothing was wrong with the section itself so far.
    pub fn sound_here(&self) -> bool {
        let here = self.path.join(".");
        !self.reader.problems.borrow().iter().any(|problem| problem.key == here)
    }

    /// A section beneath this one; empty if it is absent, or is none (a problem).
    pub fn section(&self, key: &str) -> Section<'r> {
        let path = self.at(key);
        self.reader.ask(path.clone(), None);
        let dict = match self.value(key) {
            None => None,
            Some(Value::Dict(_, dict)) => Some(dict),
            Some(_) => {
                let name = path.join(".");
                self.problem(
                    key,
                    match self.reader.sources.variables.get(&path) {
                        Some(variable) => format!("is a section; give its keys one by one, as in {variable}__KEY"),
                        None => format!("is a section; write [{name}] and its keys below"),
                    },
                );
                None
            }
        };
        Section { reader: self.reader, path, dict }
    }

    /// Notes a key that is read elsewhere or not at all, with everything beneath it.
    pub fn pass_over(&self, key: &str) {
        self.reader.asked.borrow_mut().entry(self.at(key)).or_default().whole = true;
    }

    /// The text of a key: as it stands in the environment, or in quotes in the file.
    fn text(&self, key: &str, numbers: bool) -> Option<String> {
        match self.value(key)? {
            Value::String(_, text) => return Some(text.clone()),
            Value::Num(_, number) if numbers => {
                return Some(match number.to_i128() {
                    Some(number) => number.to_string(),
                    None => number.to_f64().unwrap_or(f64::NAN).to_string(),
                });
            }
            Value::Num(..) => self.problem(key, "must be a text; put it in quotes"),
            Value::Bool(..) => self.problem(key, "must be a text, not true or false"),
            Value::Array(..) => self.problem(key, "must be one text, not a list"),
            Value::Dict(..) => self.problem(key, "must be a value, not a section"),
            Value::Char(..) | Value::Empty(..) => self.problem(key, "must be a text"),
        }
        self.pass_over(key);
        None
    }

    fn parse<T>(&self, key: &str, numbers: bool, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        parse(&self.text(key, numbers)?).map_err(|message| self.problem(key, message)).ok()
    }

    /// A key without default.
    pub fn optional<T>(&self, key: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        self.reader.ask(self.at(key), None);
        self.parse(key, false, parse)
    }

    /// A text, or its default. After a problem the default stands in, so that the reading goes on.
    pub fn read<T>(&self, key: &str, default: &str, parse: impl Fn(&str) -> Parsed<T>) -> T {
        self.reader.ask(self.at(key), Some(default.into()));
        self.parse(key, false, &parse).unwrap_or_else(|| built_in(default, parse))
    }

    /// Like [`Self::read`], for what may also be written as a bare number.
    pub fn measure<T>(&self, key: &str, default: &str, parse: impl Fn(&str) -> Parsed<T>) -> T {
        let shown = default.parse::<i64>().map_or_else(|_| default.into(), toml::Value::Integer);
        self.reader.ask(self.at(key), Some(shown));
        self.parse(key, true, &parse).unwrap_or_else(|| built_in(default, parse))
    }

    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.reader.ask(self.at(key), Some(default.into()));
        match self.value(key) {
            None => default,
            Some(Value::Bool(_, flag)) => *flag,
            Some(Value::String(_, text)) if self.is_from_environment(key) && text == "true" => true,
            Some(Value::String(_, text)) if self.is_from_environment(key) && text == "false" => false,
            Some(_) => {
                self.problem(key, "must be true or false, without quotes");
                self.pass_over(key);
                default
            }
        }
    }

    /// A list of texts. In the environment a list of TOML, or texts between commas.
    pub fn list(&self, key: &str, default: &[&str]) -> Vec<String> {
        self.reader.ask(self.at(key), Some(default.to_vec().into()));
        let default = || default.iter().map(|text| text.to_string()).collect();
        match self.value(key) {
            None => default(),
            Some(Value::String(_, text)) if self.is_from_environment(key) => list_of(text).unwrap_or_else(|message| {
                self.problem(key, message);
                default()
            }),
            Some(Value::Array(_, values)) => {
                let mut texts = Vec::new();
                for (index, value) in values.iter().enumerate() {
                    match value {
                        Value::String(_, text) => texts.push(text.clone()),
                        _ => self.problem_in_list(key, index, "a list of texts: each must be in quotes"),
                    }
                }
                texts
            }
            Some(Value::String(..)) => {
                // A URL with a password may stand there, so it is not repeated.
                self.problem(key, "must be a list; put it in brackets, as in [\"a\"]");
                default()
            }
            Some(_) => {
                self.problem(key, r#"must be a list of texts, such as ["a", "b"]"#);
                self.pass_over(key);
                default()
            }
        }
    }

    /// A secret or password itself, from the environment only. `instead` says what the file may hold.
    pub fn secret(&self, key: &str, instead: &str) -> Option<Secret> {
        let path = self.at(key);
        self.reader.ask(path.clone(), None);
        if let Some(line) = self.reader.sources.lines.get(&path) {
            let variable = format!("RELAY_{}", path.join("__").to_uppercase());
            let place = self.reader.sources.in_file(*line);
            let message = format!("no secret may stand in the file; use {instead}, or the variable {variable}");
            self.reader.report(place, &path, message);
        }
        let secret = self.reader.sources.secrets.get(&path)?;
        if secret.is_empty() {
            self.problem(key, "is empty; give the secret, or unset the variable");
        }
        Some(secret.clone())
    }

    /// Every value beneath a key with its dotted name, such as `linger.ms`, whether that is one key in quotes or a chain of sections.
    pub fn leaves(&self, key: &str) -> Vec<(String, KeyPath, &'r Value)> {
        fn collect<'v>(dict: &'v Dict, name: &str, path: &KeyPath, leaves: &mut Vec<(String, KeyPath, &'v Value)>) {
            for (key, value) in dict {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                let path: KeyPath = path.iter().cloned().chain([key.clone()]).collect();
                match value {
                    Value::Dict(_, inner) => collect(inner, &name, &path, leaves),
                    value => leaves.push((name, path, value)),
                }
            }
        }
        self.reader.ask(self.at(key), Some(toml::Table::new().into()));
        let section = self.section_value(key);
        self.pass_over(key);
        let mut leaves = Vec::new();
        if let Some(dict) = section.dict {
            collect(dict, "", &section.path, &mut leaves);
        }
        leaves
    }

    /// [`Self::section`], for one that has a default of its own.
    fn section_value(&self, key: &str) -> Section<'r> {
        let default = self.reader.asked.borrow().get(&self.at(key)).and_then(|asked| asked.default.clone());
        let section = self.section(key);
        self.reader.ask(self.at(key), default);
        section
    }

    /// Reports what is wrong with a value that [`Self::leaves`] gave.
    pub fn problem_at(&self, path: &[String], message: impl Into<String>) {
        self.reader.report(self.reader.sources.place(path), path, message.into());
    }
}

fn built_in<T>(default: &str, parse: impl Fn(&str) -> Parsed<T>) -> T {
    match parse(default) {
        Ok(value) => value,
        // Defaults are literals of this room, and a test reads them all.
        Err(message) => unreachable!("the default {default} is wrong: {message}"),
    }
}

fn list_of(text: &str) -> Parsed<Vec<String>> {
    if text.trim_start().starts_with('[') {
        let list: toml::Table = format!("list = {text}")
            .parse()
            .map_err(|_| r#"is no list; write ["a", "b"], or a,b without brackets"#.to_owned())?;
        let elements = list.get("list").and_then(toml::Value::as_array).cloned().unwrap_or_default();
        let texts: Option<_> = elements.iter().map(|element| element.as_str().map(str::to_owned)).collect();
        return texts.ok_or_else(|| "a list of texts: each must be in quotes".to_owned());
    }
    Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
}
