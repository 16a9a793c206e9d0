//! Configurations as people write them, and what is said to each.

use std::ffi::OsString;
use std::path::Path;

use super::load::parse;
use super::{Loaded, Problems};

/// Reads a text as if it stood in `relay.toml`, with variables beside it.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let variables = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    parse(Some((Path::new("relay.toml"), text)), variables)
}

#[test]
fn without_file_and_variables_there_are_one_account_and_the_console() {
    let config = super::Config::defaults();
    assert_eq!(config.accounts.len(), 1);
    assert_eq!(config.accounts[0].path, "/webhooks/sipsim");
    assert!(matches!(config.outputs[0].kind, super::OutputKind::Console));
    assert!(load("", &[]).is_ok());
}
