//! `simulate`: a SIPSIM.

use super::SimulateArgs;

pub fn simulate(_args: SimulateArgs) -> Result<bool, String> {
    Err("`simulate` is not built yet".to_owned())
}
