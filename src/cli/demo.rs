//! `demo`.

pub fn demo() -> Result<bool, String> {
    Err("`demo` is not built yet".to_owned())
}
