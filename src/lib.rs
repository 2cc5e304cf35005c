//! A decoding engine for sequence-to-sequence models.

pub mod check;
pub mod error;
pub mod metrics;

pub use error::{Error, Result};
