//! The `beamfuse` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    beamfuse::cli::main()
}
