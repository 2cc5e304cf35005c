//! A decoding engine for sequence-to-sequence models.

pub mod check;
pub mod cuda;
pub mod error;

pub use error::{Error, Result};
