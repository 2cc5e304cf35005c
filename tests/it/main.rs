//! The tests that use the crate from outside, in one binary: each binary links the whole crate.

mod common;

mod alternatives;
#[cfg(unix)]
mod batch;
mod bench;
mod checkpoints;
mod cli;
mod control;
#[cfg(target_os = "linux")]
mod counts;
mod cpu_paths;
mod diagnose;
mod documents;
mod emulated;
mod eval;
mod explain;
mod extremes;
mod families;
#[cfg(unix)]
mod files;
mod fuzz_seeds;
mod generation;
mod golden;
mod gpu;
#[cfg(feature = "hub")]
mod hub;
mod inputs;
mod items;
mod layout;
mod malformed;
mod memory_limits;
mod messages;
mod metric_settings;
mod metrics;
mod options;
mod packs;
mod presets;
#[cfg(all(feature = "serve", unix))]
mod serve;
mod sizes;
mod streams;
mod tokenizer;
#[cfg(feature = "train")]
mod train;
mod translations;
mod validate;
mod variants;
mod warnings;
