//! Training: closing the gap between a gold prefix and the model's own.

pub mod losses;
pub mod twin;
