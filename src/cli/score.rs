//! `score`: the model's log-probabilities of given translations.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::cli::input::{Form, InputFormat, Item, Line, Lines, Plain};
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::resume::{self, Start, Unit};
use crate::cli::stream::{self, Windows};
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, interrupt};
use crate::jsonl::{Fields, READ_LINE, Warning, error_json, field, score_json};
use crate::translator::{Score, Sentence, Translator};
use crate::{Error, Result};

/// Score given translations: lines of source TAB target in, or JSON lines with the fields source and target; JSON lines with the
/// target's token log-probabilities out.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Input file [default: standard input].
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Output file [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on behind the lines that an earlier run of the same command has left in the output's name with .partial behind it.
    #[arg(long, requires = "output")]
    resume: bool,
    /// How to read the input. text and tsv: source TAB target. jsonl: objects with the fields "source" and "target", and
    /// of their own "source_prefix", "source_lang", "target_lang" and "source_ids". auto: jsonl if the
    /// first line that is not blank is a JSON object. Input compressed by gzip or zstd is decompressed.
    #[arg(long, value_enum, default_value_t)]
    input_format: InputFormat,
    /// How to write. jsonl: JSON lines, with the other fields of the input. text: the log-probability of the target alone.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    model: ModelArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
}

impl Arguments {
    /// All that lines depend on beside the input and the model, by name.
    fn identity(&self, translator: &Translator) -> Map<String, Value> {
        let device = translator.device().device.to_string();
        let identity = [
            ("format", format!("{:?}", self.format).to_lowercase().into()),
            ("input_format", format!("{:?}", self.input_format).to_lowercase().into()),
            ("device", device.split(':').next().into()),
            ("dtype", self.model.engine.dtype.name().into()),
        ];
        let identity = identity.into_iter().chain(self.model.languages.identity());
        identity.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Lines scored together.
const WINDOW: usize = 256;

pub(super) fn run(arguments: Arguments) -> Result<Ending> {
    let input = arguments.input.as_deref();
    let form = match arguments.input_format {
        InputFormat::Auto => Form::Detect(Plain::Tsv),
        InputFormat::Text | InputFormat::Tsv => Form::Tsv,
        InputFormat::Jsonl => Form::Json,
        InputFormat::Html => {
            let expected = "a form with sources and targets: jsonl or tsv".into();
            return Err(Error::Option { option: "input-format", expected, got: "html".into() });
        }
    };
    let mut lines = Lines::open(input, form)?;
    let translator = arguments.model.open()?;
    let terms = || resume::terms(arguments.identity(&translator), &arguments.model.name.resolve()?, input);
    let start = resume::start(arguments.output.as_deref(), arguments.resume, Unit::Line, terms)?;
    let Some(Start { output, done }) = start else { return Ok(Ending::Complete) };
    interrupt::listen();
    let progress = Progress::new(lines.size());
    let format = arguments.format;
    let warnings = Warnings::new(translator.tokenizer());
    let mut work =
        Work { translator: &translator, done: Vec::new(), output, format, progress, warnings, bad_lines: false };
    stream::run(Windows::start(resume::behind(done, move || lines.next()), WINDOW)?, &mut work)?;
    work.warnings.lines().for_each(|line| work.progress.note(&line));
    work.output.end(work.bad_lines)
}

struct Work<'a> {
    translator: &'a Translator,
    done: Vec<(u64, Done)>,
    output: Output,
    format: Format,
    progress: Progress,
    warnings: Warnings<'a>,
    bad_lines: bool,
}

struct Done {
    number: u64,
    bytes: u64,
    source: Option<String>,
    other: Fields,
    warnings: Vec<Warning>,
    /// Target and score, or the kind and text of the error in its place.
    result: Result<(String, Score), (&'static str, String)>,
}

/// The target of a line: its second column, or its field of that name.
fn target(columns: Option<Vec<String>>, other: &mut Fields) -> Result<String, (&'static str, String)> {
    match columns.map(<[String; 1]>::try_from) {
        Some(Ok([target])) => Ok(target),
        Some(Err(columns)) => {
            let message = format!("read line: expected source TAB target, got {} columns", 1 + columns.len());
            Err(("columns", message))
        }
        None => match other.shift_remove("target") {
            Some(target) => field(READ_LINE, "target", "a string", &target).map_err(|message| ("json", message)),
            None => Err(("json", "read line: expected a field \"target\", got none".to_string())),
        },
    }
}

impl stream::Work for Work<'_> {
    type Done = Done;

    fn start(&mut self, window: Vec<(u64, Line)>) {
        let (mut lines, mut pairs) = (Vec::new(), Vec::new());
        for (tag, Line { number, bytes, content, .. }) in window {
            let failed = |source, other, error| {
                let warnings = Vec::new();
                Done { number, bytes, source, other, warnings, result: Err(error) }
            };
            match content {
                Ok(Item { sentence, columns, mut other }) => match target(columns, &mut other) {
                    Ok(target) => {
                        lines.push((tag, number, bytes, other));
                        pairs.push((sentence.under(None), target));
                    }
                    Err(error) => self.done.push((tag, failed(Some(sentence.source), other, error))),
                },
                Err(bad) => self.done.push((tag, failed(bad.source, Fields::new(), (bad.kind, bad.message)))),
            }
        }
        let scores = self.translator.score(&pairs);
        for (((tag, number, bytes, other), (Sentence { source, .. }, target)), score) in
            lines.into_iter().zip(pairs).zip(scores)
        {
            let result = score.map(|score| (target, score)).map_err(|error| (error.kind(), error.to_string()));
            let warnings = self.warnings.look_at(number, &source, None);
            self.done.push((tag, Done { number, bytes, source: Some(source), other, warnings, result }));
        }
    }

    fn finish_one(&mut self, _: Duration) -> Option<(u64, Done)> {
        let (tag, done) = self.done.pop()?;
        let tokens = done.result.as_ref().map_or(0, |(_, score)| score.token_ids.len());
        self.progress.add(done.bytes, tokens as u64);
        Some((tag, done))
    }

    fn is_idle(&self) -> bool {
        self.done.is_empty()
    }

    fn write(&mut self, done: Done) -> Result<()> {
        let Done { number, bytes: _, source, mut other, warnings, result } = done;
        // Our own fields win over fields of that name in the input.
        for field in ["token_ids", "token_log_probs", "log_prob", "error", "warnings"] {
            other.shift_remove(field);
        }
        let source = source.as_deref();
        match result {
            Ok((target, score)) => self.output.line(&match self.format {
                Format::Text => score.log_prob.to_string(),
                Format::Jsonl => score_json(source.unwrap_or_default(), &target, &score, &other, &warnings)?,
            }),
            Err((kind, message)) => {
                self.bad_lines = true;
                self.progress.complain(&format!("line {number}: {message}"));
                self.output.line(&match self.format {
                    Format::Text => String::new(),
                    Format::Jsonl => error_json(source, &other, kind, &message)?,
                })
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.output.flush()
    }
}
