//! A decoding engine for sequence-to-sequence models.

pub mod backend;
pub mod check;
pub mod cpu;
pub mod error;

pub use error::{Error, Result};
