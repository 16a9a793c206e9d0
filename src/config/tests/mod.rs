//! Configurations as people write them, and what is said to each.

use std::ffi::OsString;
use std::path::Path;

use super::load::parse;
use super::{Config, Loaded, Problems};

mod environment;
mod machine;
mod manual;
mod mistakes;
mod outputs;
mod schema;
mod sections;

/// Reads a text as if it stood in `relay.toml`, with variables beside it.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let variables = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    parse(Some((Path::new("relay.toml"), text)), variables)
}

/// A configuration that is in order.
fn good(text: &str) -> Config {
    good_with(text, &[])
}

fn good_with(text: &str, environment: &[(&str, &str)]) -> Config {
    match load(text, environment) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("refused:\n{text}\n{problems}"),
    }
}

/// Checks that a configuration has these problems and no others, as `check` prints them.
fn bad(text: &str, expected: &[&str]) {
    bad_with(text, &[], expected);
}

fn bad_with(text: &str, environment: &[(&str, &str)], expected: &[&str]) {
    let found: Vec<String> = match load(text, environment) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.0.iter().map(ToString::to_string).collect(),
    };
    assert_eq!(found, expected, "\n{text}\n{environment:?}");
}
