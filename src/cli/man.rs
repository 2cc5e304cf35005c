//! `man`: the manual page of the command, or of one of its subcommands.

use std::path::Path;

use crate::cli::output::Output;
use crate::cli::{Ending, command};
use crate::files::io;
use crate::{Error, Result};

/// Print the manual page, to be read with "man -l" or installed.
#[derive(Debug, clap::Args)]
#[command(after_help = "To read one: beamfuse man translate > page && man -l page")]
pub(super) struct Arguments {
    /// Of this subcommand instead.
    command: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let mut all = command();
    all.build();
    let page = match &arguments.command {
        None => all,
        Some(name) => match all.get_subcommands().find(|subcommand| subcommand.get_name() == name) {
            Some(subcommand) => subcommand.clone(),
            None => {
                let names: Vec<&str> = all.get_subcommands().map(clap::Command::get_name).collect();
                let expected = format!("one of {}", names.join(", "));
                return Err(Error::Option { option: "command", expected, got: name.clone() });
            }
        },
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).map_err(io("write", Path::new("-")))?;
    let mut output = Output::create(None)?;
    output.line(String::from_utf8_lossy(&text).trim_end())?;
    output.finish()?;
    Ok(Ending::Complete)
}
