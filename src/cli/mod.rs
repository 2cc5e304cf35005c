//! The command line: one file per subcommand.
//!
//! Exit codes: 0 all well; 1 some input lines failed, the rest is there, or a check failed; 2 wrong options, model or files, or an
//! output that cannot be written; 130 interrupted, by Ctrl-C or SIGTERM, with the lines that were done.

mod alignment;
mod bench;
mod claims;
mod completions;
mod control_options;
mod counts;
mod diagnose;
mod eval;
mod info;
mod input;
mod interrupt;
mod man;
mod model_dir;
mod output;
mod pairing;
mod progress;
mod resume;
mod score;
mod search_options;
#[cfg(feature = "serve")]
mod serve;
#[cfg(not(feature = "serve"))]
#[path = "serve/left_out.rs"]
mod serve;
mod stderr;
mod stdout;
mod stream;
#[cfg(feature = "train")]
mod train;
#[cfg(not(feature = "train"))]
#[path = "train/left_out.rs"]
mod train;
mod translate;
mod validate;
mod values;
mod warnings;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::Result;
use stderr::{Verbosity, complain, detail, note, shows_progress};
pub use stdout::look as look_at_stdout;

/// Translate with encoder-decoder models: the same sentence gives the same tokens and scores in any batch.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    verbosity: Verbosity,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Translate(Box<translate::Arguments>),
    Score(score::Arguments),
    Serve(Box<serve::Arguments>),
    Eval(Box<eval::Arguments>),
    Bench(bench::Arguments),
    Diagnose(Box<diagnose::Arguments>),
    Info(info::Arguments),
    Train(Box<train::Arguments>),
    Validate(validate::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
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

    use std::path::Path;
    use std::sync::OnceLock;

    use super::input::{Form, Lines};
    use crate::jsonl::{Fields, error_json};
    use crate::{DecodeOptions, Error, Overrides, Result, Translator};

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

    /// The options of a sentence that brings this object of some.
    ///
    /// # Errors
    /// For what is no such object, and for options that are not allowed.
    pub fn read_options(model: &Path, object: &str) -> Result<Box<DecodeOptions>> {
        static TRANSLATOR: OnceLock<Translator> = OnceLock::new();
        let translator = match TRANSLATOR.get() {
            Some(translator) => translator,
            None => {
                let translator = Translator::open(model)?;
                TRANSLATOR.get_or_init(|| translator)
            }
        };
        let wrong =
            |got: String| Error::Input { operation: "read options", expected: "an object of options".into(), got };
        let own: Overrides = serde_json::from_str(object).map_err(|error| wrong(error.to_string()))?;
        translator.options(&own).map(Box::new)
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
                Ok(item) => error_json(Some(&item.sentence.source), &item.other, "none", "")?,
                Err(bad) => error_json(bad.source.as_deref(), &Fields::new(), bad.kind, &bad.message)?,
            };
            read.push(ReadLine { number: line.number, bytes: line.bytes, written });
        }
        Ok(read)
    }
}

/// Every subcommand with its options, for tests that walk them all.
pub fn command() -> clap::Command {
    Arguments::command().mut_subcommands(|subcommand| subcommand.mut_args(counts::name_range))
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    ExitCode::from(main_with(std::env::args_os()))
}

/// Runs a command with these arguments, its own name first; gives the exit code. Wrong arguments, and requests for help, end the
/// process.
pub fn main_with(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments).unwrap_or_else(|error| error.exit());
    if let (Some(("train", given)), Some(train)) = (matches.subcommand(), command.find_subcommand("train")) {
        train::check_objective(train, given).unwrap_or_else(|error| error.exit());
    }
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    arguments.verbosity.set();
    interrupt::survive_limits();
    let claimed = matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    let claimed = claimed.map_or(Ok(()), |(subcommand, matches)| claims::check(subcommand, matches));
    let ending = claimed.and_then(|()| arguments.run());
    match ending {
        Ok(Ending::Complete) => 0,
        Ok(Ending::BadLines | Ending::Failed) => 1,
        Ok(Ending::Interrupted) => 130,
        Err(error) => {
            complain(&error.to_string());
            2
        }
    }
}

impl Arguments {
    fn run(self) -> Result<Ending> {
        match self.command {
            Command::Translate(arguments) => translate::run(*arguments),
            Command::Score(arguments) => score::run(arguments),
            Command::Serve(arguments) => serve::run(*arguments),
            Command::Eval(arguments) => eval::run(*arguments),
            Command::Bench(arguments) => bench::run(&arguments),
            Command::Diagnose(arguments) => diagnose::run(&arguments),
            Command::Info(arguments) => info::run(&arguments),
            Command::Train(arguments) => train::run(&arguments),
            Command::Validate(arguments) => validate::run(&arguments),
            Command::Completions(arguments) => completions::run(&arguments),
            Command::Man(arguments) => man::run(&arguments),
        }
    }
}
