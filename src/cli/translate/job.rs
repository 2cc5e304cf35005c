//! `translate --input DIR --output DIR`: each file becomes a part, committed by itself.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::{Arguments, Form, Format, InputFormat, Lines, Plain, Reading, Setup};
use crate::batch::{Compression, Counts, Input, Job, Shard, State, Unit, digest_model, plan, verify as check};
use crate::cli::output::Output;
use crate::cli::values::reader;
use crate::cli::{Ending, complain, interrupt, note};
use crate::files::{Stamp, io};
use crate::{Error, Result};

/// What concerns jobs alone.
#[derive(Debug, clap::Args)]
pub(super) struct JobArguments {
    /// Do the I-th of N shares of the files: N commands, on as many machines, do them all.
    #[arg(long, value_name = "I/N", requires = "output", value_parser = reader(str::parse::<Shard>))]
    shard: Option<Shard>,
    /// Compress the parts [default: as each input's name says].
    #[arg(long, value_enum, requires = "output")]
    compress: Option<CompressionName>,
    /// Translate nothing: check the parts in the output directory against their records, and, with --input, whether each input has
    /// its part. Exit code 1 if something is wrong.
    #[arg(long, requires = "output", conflicts_with_all = ["text", "resume", "explain", "shard"])]
    pub(super) verify: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CompressionName {
    None,
    Gzip,
    Zstd,
}

impl JobArguments {
    /// Refuses them where there is no job.
    pub(super) fn refuse(&self) -> Result<()> {
        let given = [("shard", self.shard.is_some()), ("compress", self.compress.is_some())];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((option, _)) => {
                let (expected, got) = ("a directory or a pattern as the input", "another input");
                Err(Error::Option { option, expected: expected.into(), got: got.into() })
            }
        }
    }

    fn compression(&self, unit: &Unit) -> Compression {
        match self.compress {
            None => Compression::of_name(&unit.name),
            Some(CompressionName::None) => Compression::None,
            Some(CompressionName::Gzip) => Compression::Gzip,
            Some(CompressionName::Zstd) => Compression::Zstd,
        }
    }
}

/// Checks an output directory; the problems go to stderr.
pub(super) fn verify(arguments: &Arguments) -> Result<Ending> {
    let directory = directory(arguments)?;
    let inputs = arguments.input.as_deref().map(|input| parts(arguments, input)).transpose()?;
    let (parts, problems) = check(directory, inputs.as_deref())?;
    problems.iter().for_each(|problem| complain(&format!("{}: {}", problem.name, problem.message)));
    note(&format!("{parts} parts looked at, {} problems", problems.len()));
    Ok(if problems.is_empty() { Ending::Complete } else { Ending::Failed })
}

fn directory(arguments: &Arguments) -> Result<&Path> {
    let refuse = |got: String| Error::Option { option: "output", expected: "a directory, as for all jobs".into(), got };
    let directory = arguments.output.as_deref().ok_or_else(|| refuse("none".into()))?;
    match directory.symlink_metadata().is_ok() && !directory.is_dir() {
        true => Err(refuse(directory.display().to_string())),
        false => Ok(directory),
    }
}

/// The files of the job, each with the name of its part.
fn parts(arguments: &Arguments, input: &Path) -> Result<Vec<(Unit, String)>> {
    let written = match (arguments.format, arguments.input_format) {
        (Format::Text, InputFormat::Html) => "html",
        (Format::Text, _) => "txt",
        (Format::Jsonl, _) => "jsonl",
        (Format::Nbest, _) => "nbest",
    };
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let named = plan(input)?.into_iter().map(|unit| {
        let part = unit.part(written, arguments.job.compression(&unit));
        match taken.insert(part.clone(), unit.name.clone()) {
            None => Ok((unit, part)),
            Some(other) => {
                let got = format!("{part} of both {other} and {}", unit.name);
                Err(Error::Input { operation: "plan the job", expected: "one input for each part".into(), got })
            }
        }
    });
    named.collect()
}

pub(super) fn run(arguments: &Arguments, input: &Path) -> Result<Ending> {
    let directory = directory(arguments)?;
    if arguments.explain.is_some() {
        return Err(Error::conflict("explain", "", "a directory or a pattern as the input"));
    }
    let all = parts(arguments, input)?;
    check_apart(input, directory, &all)?;
    let setup = Setup::new(arguments)?;
    let model = digest_model(&arguments.model.name.resolve()?)?;
    let job = Job::new(directory, setup.identity(digest_model)?, model, arguments.resume);
    let shard = arguments.job.shard.unwrap_or_default();
    let mine: Vec<(Unit, String)> =
        all.into_iter().enumerate().filter(|(at, _)| shard.has(*at)).map(|(_, named)| named).collect();
    let (open, counts) = open_parts(&job, &mine)?;
    let mut run = Run { setup: &setup, job: &job, counts, unread: Vec::new() };
    interrupt::listen();
    for (unit, part, input) in &open {
        if interrupt::asked() || !run.make(unit, part, input)? {
            note("the parts so far are whole; the same command with --resume continues");
            return Ok(Ending::Interrupted);
        }
    }
    let Run { counts: Counts { rows, failed }, unread, .. } = run;
    let (made, before) = (open.len() - unread.len(), mine.len() - open.len());
    note(&format!("{made} parts made, {before} were there; {rows} rows in all, {failed} of them with errors"));
    match unread.first() {
        None if failed > 0 => Ok(Ending::BadLines),
        None => Ok(Ending::Complete),
        Some(first) => {
            let got = format!("{} that cannot be read, the first of them {first}", unread.len());
            Err(Error::Input { operation: "translate", expected: "whole text files as inputs".into(), got })
        }
    }
}

/// A part that has to be made, with its input as it was when it was looked at.
type Open<'a> = (&'a Unit, &'a str, (Input, Metadata));

/// The parts that have to be made, and the rows of those that are there. All are looked at before the first is made.
fn open_parts<'a>(job: &Job, parts: &'a [(Unit, String)]) -> Result<(Vec<Open<'a>>, Counts)> {
    let (mut open, mut counts) = (Vec::new(), Counts::default());
    for (unit, part) in parts {
        let metadata = unit.path.metadata().map_err(io("read", &unit.path))?;
        let input = unit.read()?;
        match job.state(&input, part)? {
            State::Open => open.push((unit, part.as_str(), (input, metadata))),
            State::Done(done) => counts.add(done),
        }
    }
    Ok((open, counts))
}

/// Refuses an output among the inputs: what is written there would be read by the next command.
fn check_apart(input: &Path, output: &Path, units: &[(Unit, String)]) -> Result<()> {
    let output_place = absolute(output);
    let within = input.is_dir() && output_place.starts_with(absolute(input));
    let holds = units.iter().any(|(unit, _)| absolute(&unit.path).starts_with(&output_place));
    match within || holds {
        false => Ok(()),
        true => {
            let expected = "a directory apart from the inputs".into();
            Err(Error::Option { option: "output", expected, got: output.display().to_string() })
        }
    }
}

/// A path without links, as far as it exists.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let there = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    there.map_or(path.clone(), |(above, place)| match path.strip_prefix(above) {
        Ok(rest) if rest.as_os_str().is_empty() => place,
        Ok(rest) => place.join(rest),
        Err(_) => path.clone(),
    })
}

struct Run<'a> {
    setup: &'a Setup<'a>,
    job: &'a Job,
    /// Of all parts that are whole.
    counts: Counts,
    /// Inputs that could not be read to their end.
    unread: Vec<String>,
}

impl Run<'_> {
    /// Makes a part; false if it was interrupted. An input that cannot be read to its end has no part, and does not stop the others.
    fn make(&mut self, unit: &Unit, part: &str, (input, before): &(Input, Metadata)) -> Result<bool> {
        let lines = match Lines::open(Some(&unit.path), self.setup.arguments.form_of(unit)) {
            Ok(lines) => lines,
            Err(error) => return Ok(self.skip(unit, &error)),
        };
        let bytes = lines.size();
        let unreadable = Arc::new(Mutex::new(None));
        let next = ending_with_errors(self.setup.reading(lines), unreadable.clone());
        let compression = self.setup.arguments.job.compression(unit);
        let output = Output::part(self.job.begin(input.clone(), part)?, compression);
        let (output, counts, _) = self.setup.stream(next, bytes, output)?;
        if interrupt::asked() {
            return Ok(false);
        }
        if let Some(error) = unreadable.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            return Ok(self.skip(unit, &error));
        }
        let after = unit.path.metadata().map_err(io("read", &unit.path))?;
        if Stamp::of(&after) != Stamp::of(before) {
            let reason = "it was changed while it was read";
            return Ok(self.skip(unit, &io("read", &unit.path)(std::io::Error::other(reason))));
        }
        output.commit(counts)?;
        self.counts.add(counts);
        Ok(true)
    }

    fn skip(&mut self, unit: &Unit, error: &Error) -> bool {
        complain(&error.to_string());
        self.unread.push(unit.name.clone());
        true
    }
}

/// Ends where reading fails, and leaves the error in `left`: errors of writing are others.
fn ending_with_errors(
    mut next: Reading,
    left: Arc<Mutex<Option<Error>>>,
) -> impl FnMut() -> Result<Option<super::Line>> + Send {
    move || {
        next().or_else(|error| {
            *left.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
            Ok(None)
        })
    }
}

impl Arguments {
    /// How a file of a job is read: as its name says, where the command line does not.
    fn form_of(&self, unit: &Unit) -> Form {
        match (self.input_format, unit.form()) {
            (InputFormat::Auto, Some("jsonl")) => Form::Json,
            (InputFormat::Auto, Some("tsv")) => Form::Tsv,
            (InputFormat::Auto, None) if self.format == Format::Jsonl => Form::Detect(Plain::Text),
            (InputFormat::Auto, _) => Form::Text,
            _ => self.form(),
        }
    }
}

impl Setup<'_> {
    /// All that rows depend on beside the inputs and the model, by name; of other models, what `tell` tells.
    pub(super) fn identity(&self, tell: fn(&Path) -> Result<String>) -> Result<Map<String, Value>> {
        let Arguments { format, input_format, alignment, target_prefix, model, .. } = self.arguments;
        let unreadable = |source| Error::Json { path: "-".into(), source };
        // By way of text: numbers then are as short as they were.
        let options = serde_json::to_string(&self.options).map_err(unreadable)?;
        let mut identity: Map<String, Value> = serde_json::from_str(&options).map_err(unreadable)?;
        let device = self.translator.device().device.to_string();
        let alternatives = self.alternatives.map(|wanted| (wanted.count, f64::from(wanted.min_prob)));
        let own = [
            ("format", format!("{format:?}").to_lowercase().into()),
            ("input_format", format!("{input_format:?}").to_lowercase().into()),
            ("segment", self.arguments.segment.then_some(true).into()),
            ("alignment", alignment.map(|alignment| format!("{alignment:?}").to_lowercase()).into()),
            ("target_prefix", target_prefix.clone().into()),
            ("alternatives", alternatives.map(|(count, _)| count).into()),
            ("min_alternative_prob", alternatives.map(|(_, min_prob)| min_prob).into()),
            ("device", device.split(':').next().into()),
            ("dtype", model.engine.dtype.name().into()),
        ];
        let models = self.arguments.search.control.identity(tell)?;
        let own = own.into_iter().chain(model.languages.identity()).chain(models);
        identity.extend(own.map(|(name, value)| (name.to_owned(), value)));
        Ok(identity)
    }
}
