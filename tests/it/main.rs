//! The tests that use the crate from outside, in one binary: each binary links the whole crate.

mod common;

mod alternatives;
mod bench;
mod checkpoints;
mod cli;
mod control;
mod diagnose;
mod emulated;
mod eval;
mod explain;
mod fuzz_seeds;
mod golden;
#[cfg(feature = "hub")]
mod hub;
mod inputs;
mod items;
mod layout;
mod malformed;
mod metric_settings;
mod metrics;
mod options;
mod streams;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
mod validate;
mod variants;
mod warnings;
