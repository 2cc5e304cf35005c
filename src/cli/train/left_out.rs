//! `train` in a build without it: says how to get one.

use crate::cli::Ending;
use crate::{Error, Result};

/// Fine-tune a model; this build leaves it out: build with --features train.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Whatever was given.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _given: Vec<std::ffi::OsString>,
}

/// Nothing is known of objectives here.
pub(super) fn check_objective(_: &clap::Command, _: &clap::ArgMatches) -> Result<(), clap::Error> {
    Ok(())
}

pub(super) fn run(_: &Arguments) -> Result<Ending> {
    Err(Error::NotBuilt { operation: "train", feature: "train" })
}
