//! To be written.

pub mod sign;
pub mod verify;
