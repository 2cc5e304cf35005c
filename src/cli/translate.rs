//! `translate`: lines of text or JSON in, translations out.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::value::to_raw_value;

use crate::cli::alignment::Alignment;
use crate::cli::counts::{count, finite};
use crate::cli::explain::Page;
use crate::cli::input::{BadLine, Fields, Form, InputFormat, Item, Line, Lines, Plain};
use crate::cli::item_options::ItemOptions;
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::{Output, error_json, n_best, text_line, translation_json};
use crate::cli::pairing::Paired;
use crate::cli::progress::Progress;
use crate::cli::resume::{self, Start, Unit};
use crate::cli::search_options::SearchArguments;
use crate::cli::stream::{self, Windows};
use crate::cli::{Ending, interrupt};
use crate::counts;
use crate::translator::{Alternatives, Batch, Sentence, Translation, Translator};
use crate::{DecodeOptions, Error, Result};

/// Translate text: sentences as arguments, from a file, or from standard input, one per line.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 done; 1 some lines failed, each with an error in its place; 2 wrong options, model or \
                        files; 130 interrupted."
)]
pub(super) struct Arguments {
    /// Sentences to translate, instead of input.
    text: Vec<String>,
    /// Input file [default: standard input].
    #[arg(long, short, value_name = "FILE", conflicts_with = "text")]
    input: Option<PathBuf>,
    /// Output file [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on behind the lines that an earlier run of the same command has left in the output's name with .partial behind it.
    #[arg(long, requires = "output", conflicts_with_all = ["explain", "text"])]
    resume: bool,
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
    #[arg(long, value_name = "hard|soft|W")]
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
    let input = arguments.input.as_deref();
    // Sentences given as arguments are plain text whatever the output's format.
    let mut lines = match arguments.text.is_empty() {
        false => Lines::from_texts(&arguments.text)?,
        true => Lines::open(input, arguments.form())?,
    };
    let translator = arguments.model.open_with(|options| arguments.search.control.engine(options))?;
    let mut options = arguments.search.resolve(&translator)?;
    options.attention |= arguments.alignment.is_some();
    let alternatives = arguments.alternatives(&options)?;
    let page = arguments.explain.as_deref().map(|path| Output::create(Some(path))).transpose()?;
    let unit = if arguments.format == Format::Nbest { Unit::List } else { Unit::Line };
    let start = resume::start(arguments.output.as_deref(), arguments.resume, unit)?;
    let Some(Start { output, done }) = start else { return Ok(Ending::Complete) };
    interrupt::listen();
    let size = LINES_PER_SLOT * arguments.model.batch_size;
    let bytes = lines.size();
    let windows = match arguments.search.control.pairs_lines() {
        true => {
            let mut paired = Paired::new(lines);
            Windows::start(resume::behind(done, move || paired.next()), size)
        }
        false => Windows::start(resume::behind(done, move || lines.next()), size),
    }?;
    let mut work = Work {
        translator: &translator,
        batch: translator.batch(&options)?,
        lines: HashMap::new(),
        ready: Vec::new(),
        options: &options,
        own_options: ItemOptions::new(&translator, &arguments.search, &options),
        first: None,
        alternatives,
        target_prefix: arguments.target_prefix.clone(),
        source_lang: arguments.source_lang.clone(),
        target_lang: arguments.target_lang.clone(),
        output,
        format: arguments.format,
        alignment: arguments.alignment,
        progress: Progress::new(bytes),
        bad_lines: false,
    };
    stream::run(windows, &mut work)?;
    let Work { first, output, bad_lines, .. } = work;
    let ending = output.end(bad_lines)?;
    if let (Some(page), Some(first), false) = (page, first, ending == Ending::Interrupted) {
        explain(first, &options, &translator, page)?;
    }
    Ok(ending)
}

impl Arguments {
    fn validate(&self) -> Result<()> {
        let refuse =
            |option, expected: &str, got: String| Err(Error::Option { option, expected: expected.into(), got });
        if self.alignment.is_some() && self.format == Format::Jsonl {
            return refuse("alignment", "format text or nbest", "format jsonl, where attention adds it".into());
        }
        if self.alternatives.is_some() && self.format == Format::Text {
            return refuse("alternatives", "format jsonl or nbest", "format text, which has room for one".into());
        }
        if self.alternatives.is_some() && self.explain.is_some() {
            return refuse("explain", "one search", "alternatives, which are several".into());
        }
        if self.explain.is_some() && self.text.len() > 1 {
            return refuse("explain", "one sentence", self.text.len().to_string());
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

/// Writes the page that shows the search for a sentence.
fn explain(sentence: Sentence, options: &DecodeOptions, translator: &Translator, mut page: Output) -> Result<()> {
    let options = sentence.options.as_deref().unwrap_or(options);
    let explanation = translator.explain(sentence.clone(), options)?;
    let tokenizer = translator.tokenizer();
    page.line(&Page { explanation: &explanation, options, sentence: &sentence, tokenizer }.to_string())?;
    page.finish()
}

struct Work<'a> {
    translator: &'a Translator,
    batch: Batch<'a>,
    /// What comes back with each line under way.
    lines: HashMap<u64, Tag>,
    /// Lines that the batch has no part in: that could not be read, or that want alternatives.
    ready: Vec<(u64, Done)>,
    options: &'a DecodeOptions,
    own_options: ItemOptions<'a>,
    /// The first line's sentence, once it has been translated.
    first: Option<Sentence>,
    alternatives: Option<Alternatives>,
    target_prefix: Option<String>,
    source_lang: Option<String>,
    target_lang: Option<String>,
    output: Output,
    format: Format,
    alignment: Option<Alignment>,
    progress: Progress,
    bad_lines: bool,
}

struct Tag {
    number: u64,
    bytes: u64,
    source: String,
    other: Fields,
}

struct Done {
    number: u64,
    bytes: u64,
    source: Option<String>,
    other: Fields,
    /// The translation, or the kind and text of the error in its place.
    result: Result<Translation, (&'static str, String)>,
}

impl Work<'_> {
    fn done(&mut self, tag: u64, result: Result<Translation, (&'static str, String)>) -> Option<Done> {
        let Tag { number, bytes, source, other } = self.lines.remove(&tag)?;
        Some(Done { number, bytes, source: Some(source), other, result })
    }

    /// The sentence of a line, under its own options if it brings some, and what passes through.
    fn sentence(&mut self, item: Item) -> Result<(Sentence, Fields), BadLine> {
        let Item { source, seed, target_prefix, contrast_source, constraints, options, columns, .. } = item;
        let Item { source_lang, target_lang, source_ids, mut other, .. } = item;
        if let Some(columns) = columns.filter(|columns| !columns.is_empty()) {
            // Strings become JSON whatever they hold.
            other.extend(to_raw_value(&columns).ok().map(|columns| ("columns".to_owned(), columns)));
        }
        let options = match options.map(|given| self.own_options.resolve(&given)).transpose() {
            Ok(options) => options,
            Err(error) => {
                return Err(BadLine { kind: error.kind(), message: error.to_string(), source: Some(source) });
            }
        };
        let prefix = target_prefix.or_else(|| self.target_prefix.clone());
        let source_lang = source_lang.or_else(|| self.source_lang.clone());
        let target_lang = target_lang.or_else(|| self.target_lang.clone());
        let sentence = Sentence {
            source,
            seed,
            prefix,
            contrast_source,
            constraints,
            options,
            source_lang,
            target_lang,
            source_ids,
        };
        Ok((sentence, other))
    }

    /// Finds the alternatives of a window's sentences, which are under way together.
    fn find_alternatives(&mut self, sentences: Vec<(u64, Sentence, Vec<u32>)>, wanted: Alternatives) {
        let (tags, sentences): (Vec<u64>, Vec<Sentence>) =
            sentences.into_iter().map(|(tag, sentence, _)| (tag, sentence)).unzip();
        let told = |error: &Error| (error.kind(), error.to_string());
        let found = match self.translator.alternatives(sentences, &wanted, self.options) {
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
                let ids = self.translator.source_ids(&sentence).map_err(wrong)?;
                Ok((sentence, other, ids))
            });
            match encoded {
                Ok((sentence, other, ids)) => {
                    self.lines.insert(tag, Tag { number, bytes, source: sentence.source.clone(), other });
                    readable.push((tag, sentence, ids));
                }
                Err(bad) => {
                    let result = Err((bad.kind, bad.message));
                    self.ready.push((tag, Done { number, bytes, source: bad.source, other: Fields::new(), result }));
                }
            }
        }
        if let Some((_, sentence, ids)) = readable.iter().find(|(tag, ..)| *tag == 0) {
            self.first = (ids.len() > 1).then(|| sentence.clone());
        }
        // The longest first: slots that free up towards the end of a window then wait for short sentences only.
        readable.sort_by_key(|(_, _, ids)| std::cmp::Reverse(ids.len()));
        match self.alternatives {
            Some(wanted) => self.find_alternatives(readable, wanted),
            None => readable.into_iter().for_each(|(tag, sentence, ids)| self.batch.push_encoded(tag, sentence, ids)),
        }
    }

    fn finish_one(&mut self) -> Option<(u64, Done)> {
        if let Some(ready) = self.ready.pop() {
            return Some(ready);
        }
        let (tag, result) = self.batch.next()?;
        let result = result.map_err(|error| (error.kind(), error.to_string()));
        Some((tag, self.done(tag, result)?))
    }

    fn write(&mut self, done: Done) -> Result<()> {
        let Done { number, bytes, source, mut other, result } = done;
        // Our own fields win over fields of that name in the input.
        for field in ["hypotheses", "error", "source_truncated"] {
            other.shift_remove(field);
        }
        let tokens = result.as_ref().map_or(0, |t| t.hypotheses.first().map_or(0, |h| h.hypothesis.length));
        self.progress.add(bytes, tokens as u64);
        match result {
            Ok(translation) => self.output.line(&match self.format {
                Format::Text => text_line(&translation.hypotheses[0], self.alignment),
                Format::Jsonl => translation_json(&translation, &other)?,
                Format::Nbest => n_best(number, &translation, self.alignment),
            }),
            Err((kind, message)) => {
                self.bad_lines = true;
                // Nothing to draw.
                self.first.take_if(|_| number == 1);
                self.progress.note(&format!("line {number}: {message}"));
                self.output.line(&match self.format {
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
