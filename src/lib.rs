//! A decoding engine for sequence-to-sequence models.

pub mod check;
pub mod error;
pub mod text;

pub use error::{Error, Result};
