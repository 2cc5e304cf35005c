//! `serve` in a build without it: says how to get one.

use crate::cli::Ending;
use crate::{Error, Result};

/// Serve translations over HTTP; this build leaves it out: build with --features serve.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Whatever was given.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _given: Vec<std::ffi::OsString>,
}

pub(super) fn run(_: Arguments) -> Result<Ending> {
    Err(Error::NotBuilt { operation: "serve", feature: "serve" })
}
