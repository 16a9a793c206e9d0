//! `topics`.

use std::path::Path;

use super::TopicsArgs;

pub fn topics(_file: Option<&Path>, _args: &TopicsArgs) -> Result<bool, String> {
    Err("`topics` is not built on this branch".to_owned())
}
