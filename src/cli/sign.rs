//! `sign`.

use super::SignArgs;

pub fn sign(_args: &SignArgs) -> Result<bool, String> {
    Err("`sign` is not built on this branch".to_owned())
}
