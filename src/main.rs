//! The `beamfuse` command.

fn main() {}
