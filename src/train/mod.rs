//! Training: losses that candle can differentiate.

pub mod ops;
