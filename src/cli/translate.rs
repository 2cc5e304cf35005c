//! `translate`: lines of text or JSON in, translations out.

mod job;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde_json::value::to_raw_value;

use crate::batch::{self, Counts};
use crate::cli::alignment::Alignment;
use crate::cli::control_options::ControlArguments;
use crate::cli::counts::{count, finite};
use crate::cli::input::{Form, InputFormat, Item, Line, Lines, Plain};
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::{Output, n_best, text_line};
use crate::cli::pairing::Paired;
use crate::cli::progress::Progress;
use crate::cli::resume::{self, Start, Unit};
use crate::cli::search_options::SearchArguments;
use crate::cli::stream::{self, Windows};
use crate::cli::values::reader;
use crate::cli::warnings::Warnings;
use crate::cli::{Ending, interrupt, note};
use crate::counts;
use crate::explain::Page;
use crate::jsonl::{BadLine, Fields, Warning, error_json, translation_json};
use crate::translator::{Alternatives, Batch, Sentence, Translation, Translator};
use crate::{DecodeOptions, Error, Overrides, Result};

/// Translate text: sentences as arguments, from a file, or from standard input, one per line.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 some lines failed, each with an error in its place; 2 wrong options, model or \
                        files; 130 interrupted."
)]
pub(super) struct Arguments {
    /// Sentences to translate, instead of input.
    text: Vec<String>,
    /// Input file [default: standard input]; a directory, or a pattern in quotes such as 'data/*.jsonl.gz', makes each of its files a
    /// part of the output, which is a directory then.
    #[arg(long, short, value_name = "FILE|DIR", conflicts_with = "text")]
    input: Option<PathBuf>,
    /// Output file [default: standard output], or directory.
    #[arg(long, short, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// Go on behind the lines that an earlier run of the same command has left in the output's name with .partial behind it; in a
    /// directory with the parts that are not there.
    #[arg(long, requires = "output", conflicts_with_all = ["explain", "text"])]
    resume: bool,
    #[command(flatten)]
    job: job::JobArguments,
    /// How to read the input. jsonl: the sentence is the field "source"; of its own a line may have "source_lang", "target_lang",
    /// "source_ids", "target_prefix", "constraints", "contrast_source", "seed" and "options". tsv: the sentence is the first column. Input compressed by gzip or
    /// zstd is decompressed.
    #[arg(long, value_enum, default_value_t, conflicts_with = "text")]
    input_format: InputFormat,
    /// How to write. text: the best translation per line. jsonl: JSON lines, with ids and scores, and with the other fields or
    /// columns of the input. nbest: number ||| text ||| features ||| score.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write the alignment of source and target tokens behind the text, as Marian does: hard, soft, or a number for all pairs with
    /// more attention than that. In JSON lines --attention does it.
    #[arg(long, value_name = "hard|soft|W", value_parser = reader(str::parse::<Alignment>))]
    alignment: Option<Alignment>,
    /// The language of sentences that bring no field source_lang, as the model calls it: see "beamfuse info".
    #[arg(long, value_name = "CODE")]
    source_lang: Option<String>,
    /// The language to translate sentences into that bring no field target_lang.
    #[arg(long, value_name = "CODE")]
    target_lang: Option<String>,
    /// What the translations of sentences start with that bring no field target_prefix.
    #[arg(long, value_name = "TEXT")]
    target_prefix: Option<String>,
    /// Translations that differ in the token behind target_prefix: up to N, from its most probable token on, each completed by a
    /// search of its own.
    #[arg(long, value_name = "N", value_parser = count(counts::HYPOTHESES))]
    alternatives: Option<usize>,
    /// Leave out alternatives whose token is less probable than this [default: 0].
    #[arg(long, value_name = "P", requires = "alternatives", allow_negative_numbers = true, value_parser = finite::<f32>())]
    min_alternative_prob: Option<f32>,
    /// Draw the search for the first sentence: an HTML page that needs nothing but itself.
    #[arg(long, value_name = "FILE")]
    explain: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    search: SearchArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
    Nbest,
}

/// Windows of this many lines per slot: enough to sort by length, and few enough to answer soon.
const LINES_PER_SLOT: usize = 16;

pub(super) fn run(arguments: Arguments) -> Result<Ending> {
    arguments.validate()?;
    if arguments.job.verify {
        return job::verify(&arguments);
    }
    match arguments.input.as_deref().filter(|input| batch::is_many(input)) {
        Some(input) => job::run(&arguments, input),
        None => run_one(&arguments),
    }
}

fn run_one(arguments: &Arguments) -> Result<Ending> {
    arguments.job.refuse()?;
    let input = arguments.input.as_deref();
    // Sentences given as arguments are plain text whatever the output's format.
    let lines = match arguments.text.is_empty() {
        false => Lines::from_texts(&arguments.text)?,
        true => Lines::open(input, arguments.form())?,
    };
    if let Some(file) = arguments.text.iter().find(|text| Path::new(text).is_file()) {
        note(&format!(
            "\"{file}\" is translated as text, and is the name of a file: --input {file} translates its lines"
        ));
    }
    let setup = Setup::new(arguments)?;
    let page = arguments.explain.as_deref().map(|path| Output::create(Some(path))).transpose()?;
    let unit = if arguments.format == Format::Nbest { Unit::List } else { Unit::Line };
    let start = resume::start(arguments.output.as_deref(), arguments.resume, unit)?;
    let Some(Start { output, done }) = start else { return Ok(Ending::Complete) };
    interrupt::listen();
    let bytes = lines.size();
    let (output, counts, first) = setup.stream(resume::behind(done, setup.reading(lines)), bytes, output)?;
    let ending = output.end(counts.failed > 0)?;
    let Some(page) = page.filter(|_| ending != Ending::Interrupted) else { return Ok(ending) };
    match first {
        First::Sentence(first) => explain(*first, &setup.options, &setup.translator, page)?,
        // It has its error.
        First::Failed => {}
        First::Blank => return Err(nothing_to_explain()),
    }
    Ok(ending)
}

/// Lines, one by one.
type Reading = Box<dyn FnMut() -> Result<Option<Line>> + Send>;

/// The model, and what all lines have in common.
struct Setup<'a> {
    arguments: &'a Arguments,
    translator: Translator,
    options: DecodeOptions,
    /// What the flags set, over which a sentence's own options stand.
    set: Overrides,
    alternatives: Option<Alternatives>,
}

impl<'a> Setup<'a> {
    fn new(arguments: &'a Arguments) -> Result<Self> {
        let translator = arguments.model.open_with(|options| arguments.search.control.engine(options))?;
        let mut set = arguments.search.overrides()?;
        if arguments.alignment.is_some() {
            set.set("attention", true);
        }
        let mut options = arguments.search.resolve(&translator)?;
        options.attention |= arguments.alignment.is_some();
        let alternatives = arguments.alternatives(&options)?;
        Ok(Setup { arguments, translator, options, set, alternatives })
    }

    /// The lines as they are translated: beside each other where the options contrast them.
    fn reading(&self, mut lines: Lines) -> Reading {
        match self.arguments.search.control.pairs_lines() {
            true => {
                let mut paired = Paired::new(lines);
                Box::new(move || paired.next())
            }
            false => Box::new(move || lines.next()),
        }
    }

    /// Translates lines, of so many bytes where that is known, until they or an interrupt end.
    fn stream(
        &self,
        next: impl FnMut() -> Result<Option<Line>> + Send + 'static,
        bytes: Option<u64>,
        output: Output,
    ) -> Result<(Output, Counts, First)> {
        let windows = Windows::start(next, LINES_PER_SLOT * self.arguments.model.engine.batch_size)?;
        let mut work = Work {
            setup: self,
            batch: self.translator.batch(&self.options)?,
            lines: HashMap::new(),
            ready: Vec::new(),
            first: First::Blank,
            output,
            progress: Progress::new(bytes),
            warnings: Warnings::new(self.translator.tokenizer()),
            counts: Counts::default(),
        };
        stream::run(windows, &mut work)?;
        work.warnings.lines().for_each(|line| work.progress.note(&line));
        let Work { first, output, counts, .. } = work;
        Ok((output, counts, first))
    }
}

impl Arguments {
    fn validate(&self) -> Result<()> {
        let refuse =
            |option, expected: &str, got: String| Err(Error::Option { option, expected: expected.into(), got });
        if self.alignment.is_some() && self.format == Format::Jsonl {
            return Err(Error::conflict("alignment", "", "format jsonl, where attention adds it"));
        }
        if self.alternatives.is_some() && self.format == Format::Text {
            return Err(Error::conflict("alternatives", "", "format text, which has room for one"));
        }
        if self.alternatives.is_some() && self.explain.is_some() {
            return Err(Error::conflict("explain", "", "alternatives, which are several searches"));
        }
        if self.explain.is_some() && self.text.len() > 1 {
            return refuse("explain", "one sentence", self.text.len().to_string());
        }
        if self.explain.is_some() && self.text.first().is_some_and(|text| text.trim().is_empty()) {
            return Err(nothing_to_explain());
        }
        Ok(())
    }
}

impl Arguments {
    fn form(&self) -> Form {
        match (self.input_format, self.format) {
            (InputFormat::Auto, Format::Jsonl) => Form::Detect(Plain::Text),
            (InputFormat::Auto | InputFormat::Text, _) => Form::Text,
            (InputFormat::Jsonl, _) => Form::Json,
            (InputFormat::Tsv, _) => Form::Tsv,
        }
    }

    fn alternatives(&self, options: &DecodeOptions) -> Result<Option<Alternatives>> {
        let Some(count) = self.alternatives else { return Ok(None) };
        let min_prob = self.min_alternative_prob.unwrap_or(Alternatives::default().min_prob);
        let wanted = Alternatives { count, min_prob };
        wanted.validate(options)?;
        Ok(Some(wanted))
    }
}

/// The first sentence, whose search may be drawn.
enum First {
    /// It is blank, or there is none.
    Blank,
    /// It could not be translated.
    Failed,
    /// It.
    Sentence(Box<Sentence>),
}

fn nothing_to_explain() -> Error {
    let (expected, got) = ("a first sentence to draw the search for", "an empty one");
    Error::Option { option: "explain", expected: expected.into(), got: got.into() }
}

/// Writes the page that shows the search for a sentence.
fn explain(sentence: Sentence, options: &DecodeOptions, translator: &Translator, mut page: Output) -> Result<()> {
    let options = sentence.options.as_deref().unwrap_or(options);
    let explanation = translator.explain(sentence.clone(), options)?;
    let tokenizer = translator.tokenizer();
    page.line(&Page { explanation: &explanation, options, sentence: &sentence, tokenizer }.to_string())?;
    page.finish()
}

struct Work<'a> {
    setup: &'a Setup<'a>,
    batch: Batch<'a>,
    /// What comes back with each line under way.
    lines: HashMap<u64, Tag>,
    /// Lines that the batch has no part in: that could not be read, or that want alternatives.
    ready: Vec<(u64, Done)>,
    first: First,
    output: Output,
    progress: Progress,
    warnings: Warnings<'a>,
    /// Lines written.
    counts: Counts,
}

struct Tag {
    number: u64,
    bytes: u64,
    source: String,
    other: Fields,
    warnings: Vec<Warning>,
}

struct Done {
    number: u64,
    bytes: u64,
    source: Option<String>,
    other: Fields,
    warnings: Vec<Warning>,
    /// The translation, or the kind and text of the error in its place.
    result: Result<Translation, (&'static str, String)>,
}

impl Work<'_> {
    fn done(&mut self, tag: u64, result: Result<Translation, (&'static str, String)>) -> Option<Done> {
        let Tag { number, bytes, source, other, warnings } = self.lines.remove(&tag)?;
        Some(Done { number, bytes, source: Some(source), other, warnings, result })
    }

    /// The sentence of a line, under its own options if it brings some, and what passes through.
    fn sentence(&self, item: Item) -> Result<(Sentence, Fields), BadLine> {
        let Item { mut sentence, columns, mut other } = item;
        if let Some(columns) = columns.filter(|columns| !columns.is_empty()) {
            // Strings become JSON whatever they hold.
            other.extend(to_raw_value(&columns).ok().map(|columns| ("columns".to_owned(), columns)));
        }
        let Setup { arguments, translator, options, set, .. } = self.setup;
        sentence.prefix = sentence.prefix.or_else(|| arguments.target_prefix.clone());
        sentence.source_lang = sentence.source_lang.or_else(|| arguments.source_lang.clone());
        sentence.target_lang = sentence.target_lang.or_else(|| arguments.target_lang.clone());
        let source = sentence.source.clone();
        let read = || {
            sentence.options.as_ref().map_or(Ok(()), ControlArguments::check_own)?;
            let sentence = translator.sentence(sentence, set, options)?;
            sentence.options.as_deref().map_or(Ok(()), |options| arguments.search.control.check(options))?;
            Ok::<_, Error>(sentence)
        };
        match read() {
            Ok(sentence) => Ok((sentence, other)),
            Err(error) => Err(BadLine { kind: error.kind(), message: error.to_string(), source: Some(source) }),
        }
    }

    /// Finds the alternatives of a window's sentences, which are under way together.
    fn find_alternatives(&mut self, sentences: Vec<(u64, Sentence, Vec<u32>)>, wanted: Alternatives) {
        let (tags, sentences): (Vec<u64>, Vec<Sentence>) =
            sentences.into_iter().map(|(tag, sentence, _)| (tag, sentence)).unzip();
        let told = |error: &Error| (error.kind(), error.to_string());
        let found = match self.setup.translator.alternatives(sentences, &wanted, &self.setup.options) {
            Ok(found) => found.into_iter().map(|result| result.map_err(|error| told(&error))).collect(),
            // What concerns them all.
            Err(error) => vec![Err(told(&error)); tags.len()],
        };
        for (tag, result) in tags.into_iter().zip(found) {
            let done = self.done(tag, result);
            self.ready.extend(done.map(|done| (tag, done)));
        }
    }
}

impl stream::Work for Work<'_> {
    type Done = Done;

    fn start(&mut self, window: Vec<(u64, Line)>) {
        let mut readable = Vec::with_capacity(window.len());
        for (tag, Line { number, bytes, content }) in window {
            let encoded = content.and_then(|item| self.sentence(item)).and_then(|(sentence, other)| {
                let wrong = |error: Error| {
                    let (kind, message) = (error.kind(), error.to_string());
                    BadLine { kind, message, source: Some(sentence.source.clone()) }
                };
                let ids = self.setup.translator.source_ids(&sentence).map_err(wrong)?;
                Ok((sentence, other, ids))
            });
            match encoded {
                Ok((sentence, other, ids)) => {
                    let source = sentence.source.clone();
                    let warnings = self.warnings.look_at(number, &source, sentence.prefix.as_deref());
                    self.lines.insert(tag, Tag { number, bytes, source, other, warnings });
                    readable.push((tag, sentence, ids));
                }
                Err(bad) => {
                    let result = Err((bad.kind, bad.message));
                    let (source, other, warnings) = (bad.source, Fields::new(), Vec::new());
                    self.ready.push((tag, Done { number, bytes, source, other, warnings, result }));
                }
            }
        }
        if let Some((_, sentence, ids)) = readable.iter().find(|(tag, ..)| *tag == 0) {
            self.first = if ids.len() > 1 { First::Sentence(Box::new(sentence.clone())) } else { First::Blank };
        }
        // The longest first: slots that free up towards the end of a window then wait for short sentences only.
        readable.sort_by_key(|(_, _, ids)| std::cmp::Reverse(ids.len()));
        match self.setup.alternatives {
            Some(wanted) => self.find_alternatives(readable, wanted),
            None => readable.into_iter().for_each(|(tag, sentence, ids)| self.batch.push_encoded(tag, sentence, ids)),
        }
    }

    fn finish_one(&mut self, limit: Duration) -> Option<(u64, Done)> {
        let (tag, done) = match self.ready.pop() {
            Some(ready) => ready,
            None => {
                let (tag, result) = self.batch.next_within(limit)?;
                let result = result.map_err(|error| (error.kind(), error.to_string()));
                (tag, self.done(tag, result)?)
            }
        };
        let tokens = done.result.as_ref().map_or(0, |t| t.hypotheses.first().map_or(0, |h| h.length));
        self.progress.add(done.bytes, tokens as u64);
        Some((tag, done))
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.batch.outstanding() == 0
    }

    fn write(&mut self, done: Done) -> Result<()> {
        let Done { number, bytes: _, source, mut other, warnings, result } = done;
        // Our own fields win over fields of that name in the input.
        for field in ["hypotheses", "error", "source_truncated", "warnings"] {
            other.shift_remove(field);
        }
        let Arguments { format, alignment, .. } = *self.setup.arguments;
        self.counts.rows += 1;
        match result {
            Ok(translation) => self.output.line(&match format {
                Format::Text => text_line(&translation.hypotheses[0], alignment),
                Format::Jsonl => translation_json(&translation, &other, &warnings)?,
                Format::Nbest => n_best(number, &translation, alignment),
            }),
            Err((kind, message)) => {
                self.counts.failed += 1;
                // Nothing to draw.
                if number == 1 {
                    self.first = First::Failed;
                }
                self.progress.complain(&format!("line {number}: {message}"));
                self.output.line(&match format {
                    Format::Text | Format::Nbest => String::new(),
                    Format::Jsonl => error_json(source.as_deref(), &other, kind, &message)?,
                })
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.output.flush()
    }
}
