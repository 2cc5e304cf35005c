//! The command line: one file per subcommand.
//!
//! Exit codes: 0 all well; 1 some input lines failed, the rest is there, or a check failed; 2 wrong options, model or files, nothing was written;
//! 130 interrupted, with the lines that were under way.

mod alignment;
mod bench;
mod control_options;
mod diagnose;
mod eval;
mod explain;
mod info;
mod input;
mod interrupt;
mod item_options;
mod model_dir;
mod output;
mod pairing;
mod progress;
mod sampling_options;
mod score;
mod search_options;
mod stream;
#[cfg(feature = "train")]
mod train;
#[cfg(not(feature = "train"))]
#[path = "train/left_out.rs"]
mod train;
mod translate;
mod validate;
mod warnings;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Error;

/// Translate with encoder-decoder models: the same sentence gives the same tokens and scores in any batch.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Translate(Box<translate::Arguments>),
    Score(score::Arguments),
    Eval(Box<eval::Arguments>),
    Bench(bench::Arguments),
    Diagnose(Box<diagnose::Arguments>),
    Info(info::Arguments),
    Train(Box<train::Arguments>),
    Validate(validate::Arguments),
}

/// How a command ended that did its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Every input has its output.
    Complete,
    /// Some lines have an error in their place.
    BadLines,
    /// A check failed.
    Failed,
    /// Interrupted.
    Interrupted,
}

/// What the fuzz targets reach of this module.
#[doc(hidden)]
pub mod fuzzing {

    use super::input::{Fields, Form, Lines};
    use super::output::error_json;
    use crate::Result;

    /// One line of input, read and turned into output.
    #[derive(Debug)]
    pub struct ReadLine {
        /// Counted from 1.
        pub number: u64,
        /// Bytes in the input.
        pub bytes: u64,
        /// The JSON line of an error in its place: its own, or a made-up one with all of the line's fields.
        pub written: String,
    }

    /// Reads every line, as text or as JSON.
    ///
    /// # Errors
    /// For what is no text: UTF-16, a compression that is not read, or one that is damaged.
    pub fn read_lines(bytes: &[u8], json: bool) -> Result<Vec<ReadLine>> {
        let mut lines = Lines::from_bytes(bytes.to_vec(), if json { Form::Json } else { Form::Text });
        let mut read = Vec::new();
        while let Some(line) = lines.next()? {
            let written = match line.content {
                Ok(item) => error_json(Some(&item.source), &item.other, "none", "")?,
                Err(bad) => error_json(bad.source.as_deref(), &Fields::new(), bad.kind, &bad.message)?,
            };
            read.push(ReadLine { number: line.number, bytes: line.bytes, written });
        }
        Ok(read)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ending = match arguments.command {
        Command::Translate(arguments) => translate::run(*arguments),
        Command::Score(arguments) => score::run(arguments),
        Command::Eval(arguments) => eval::run(*arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Diagnose(arguments) => diagnose::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Validate(arguments) => validate::run(&arguments),
    };
    match ending {
        Ok(Ending::Complete) => ExitCode::SUCCESS,
        Ok(Ending::BadLines | Ending::Failed) => ExitCode::from(1),
        Ok(Ending::Interrupted) => ExitCode::from(130),
        // Whoever read the output has seen enough.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(2)
        }
    }
}

/// Writes a line to stderr. Nobody may be reading there any more, which is no reason to stop.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "beamfuse: {line}");
}

fn is_closed_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
}
