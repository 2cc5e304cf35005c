//! `score`: the model's log-probabilities of given translations.

use std::path::PathBuf;

use crate::Result;
use crate::cli::input::{Fields, Form, Line, Lines};
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::{Output, error_json, score_json};
use crate::cli::progress::Progress;
use crate::cli::stream::{self, Windows};
use crate::cli::{Ending, interrupt};
use crate::translator::{Score, Translator};

/// Score given translations: lines of source TAB target in, JSON lines with the target's token log-probabilities out.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Input file [default: standard input].
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Output file [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArguments,
}

/// Lines scored together.
const WINDOW: usize = 256;

pub(super) fn run(arguments: Arguments) -> Result<Ending> {
    let input = arguments.input.as_deref();
    let mut lines = Lines::open(input, Form::Text)?;
    let translator = arguments.model.open()?;
    let output = Output::create(arguments.output.as_deref(), input)?;
    interrupt::listen();
    let progress = Progress::new(Progress::input_size(input));
    let mut work = Work { translator: &translator, done: Vec::new(), output, progress, bad_lines: false };
    stream::run(Windows::start(move || lines.next(), WINDOW)?, &mut work)?;
    Ok(match (interrupt::asked(), work.bad_lines) {
        (true, _) => Ending::Interrupted,
        (false, true) => Ending::BadLines,
        (false, false) => Ending::Complete,
    })
}

struct Work<'a> {
    translator: &'a Translator,
    done: Vec<(u64, Done)>,
    output: Output,
    progress: Progress,
    bad_lines: bool,
}

struct Done {
    number: u64,
    bytes: u64,
    source: Option<String>,
    /// Target and score, or the kind and text of the error in its place.
    result: Result<(String, Score), (&'static str, String)>,
}

/// Splits a line into source and target.
fn split(line: &str) -> Result<(&str, &str), (&'static str, String)> {
    let parts: Vec<&str> = line.split('\t').collect();
    match parts[..] {
        [source, target] => Ok((source, target)),
        _ => Err(("columns", format!("read line: expected source TAB target, got {} columns", parts.len()))),
    }
}

impl stream::Work for Work<'_> {
    type Done = Done;

    fn start(&mut self, window: Vec<(u64, Line)>) {
        let mut pairs = Vec::new();
        for (tag, Line { number, bytes, content }) in window {
            let line = content.map_err(|bad| (bad.source, (bad.kind, bad.message)));
            let pair = line.and_then(|item| match split(&item.source) {
                Ok((source, target)) => Ok((source.to_string(), target.to_string())),
                Err(error) => Err((Some(item.source.clone()), error)),
            });
            match pair {
                Ok(pair) => pairs.push((tag, number, bytes, pair)),
                Err((source, error)) => self.done.push((tag, Done { number, bytes, source, result: Err(error) })),
            }
        }
        let texts: Vec<&(String, String)> = pairs.iter().map(|(_, _, _, pair)| pair).collect();
        let texts: Vec<(&str, &str)> = texts.iter().map(|(s, t)| (s.as_str(), t.as_str())).collect();
        let scores = self.translator.score(&texts);
        for ((tag, number, bytes, (source, target)), score) in pairs.into_iter().zip(scores) {
            let result = score.map(|score| (target, score)).map_err(|error| (error.kind(), error.to_string()));
            self.done.push((tag, Done { number, bytes, source: Some(source), result }));
        }
    }

    fn finish_one(&mut self) -> Option<(u64, Done)> {
        self.done.pop()
    }

    fn write(&mut self, done: Done) -> Result<()> {
        let Done { number, bytes, source, result } = done;
        let source = source.as_deref();
        let tokens = result.as_ref().map_or(0, |(_, score)| score.token_ids.len());
        self.progress.add(bytes, tokens as u64);
        match result {
            Ok((target, score)) => self.output.line(score_json(source.unwrap_or_default(), &target, &score)?),
            Err((kind, message)) => {
                self.bad_lines = true;
                self.progress.note(&format!("line {number}: {message}"));
                self.output.line(error_json(source, &Fields::new(), kind, &message)?)
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.output.flush()
    }
}
