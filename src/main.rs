//! The `beamfuse` command.

use std::process::ExitCode;

/// Runs before `main`, and before the standard library has replaced what is missing of the standard streams.
#[cfg(target_os = "linux")]
#[used]
// SAFETY: the section holds pointers to functions without arguments, which the loader calls once, on one thread.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        beamfuse::cli::look_at_stdout();
    }
    look
};

fn main() -> ExitCode {
    beamfuse::cli::main()
}
