//! `completions`: what a shell completes.

use clap_complete::{Shell, generate};

use crate::Result;
use crate::cli::output::Output;
use crate::cli::{Ending, command};

/// Print completions for a shell, to be put where it looks for them.
#[derive(Debug, clap::Args)]
#[command(after_help = "bash: beamfuse completions bash > ~/.local/share/bash-completion/completions/beamfuse")]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let mut script = Vec::new();
    generate(arguments.shell, &mut command(), "beamfuse", &mut script);
    let mut output = Output::create(None)?;
    output.line(String::from_utf8_lossy(&script).trim_end())?;
    output.finish()?;
    Ok(Ending::Complete)
}
