//! `translate`: lines of text or JSON in, translations out.

mod job;
mod work;

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::batch::{self, Counts, stamp_model};
use crate::cli::alignment::Alignment;
use crate::cli::counts::{count, finite};
use crate::cli::input::{Form, InputFormat, Line, Lines, Plain};
use crate::cli::model_dir::ModelArguments;
use crate::cli::output::Output;
use crate::cli::pairing::Paired;
use crate::cli::resume::{self, Start, Unit};
use crate::cli::search_options::SearchArguments;
use crate::cli::stream::{self, Windows};
use crate::cli::values::reader;
use crate::cli::{Ending, interrupt, note};
use crate::counts;
use crate::explain::Page;
use crate::text::iso::Tag;
use crate::text::named_pair;
use crate::translator::{Alternatives, Sentence, Translator};
use crate::{DecodeOptions, Error, Overrides, Result};
use work::Work;

/// Translate text: sentences as arguments, from a file, or from standard input, one per line; with --segment lines of several sentences,
/// with --input-format html a document.
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
    /// How to read the input. jsonl: the sentence is the field "source"; of its own a line may have "source_prefix", "source_lang", "target_lang",
    /// "source_ids", "target_prefix", "constraints", "contrast_source", "seed" and "options". tsv: the sentence is the first column.
    /// html: all of the input is one document, whose tags come back around the translations. Input compressed by gzip or zstd is
    /// decompressed.
    #[arg(long, value_enum, default_value_t, conflicts_with = "text")]
    input_format: InputFormat,
    /// Translate the sentences of each line one by one and put the line together again: models read one sentence, and drop what stands
    /// behind it.
    #[arg(long)]
    segment: bool,
    /// How to write. text: the best translation per line. jsonl: JSON lines, with ids and scores, and with the other fields or
    /// columns of the input, and for --segment and html with "text" and its "segments". nbest: number ||| text ||| features ||| score.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Write the alignment of source and target tokens behind the text, as Marian does: hard, soft, or a number for all pairs with
    /// more attention than that. In JSON lines --attention does it.
    #[arg(long, value_name = "hard|soft|W", value_parser = reader(str::parse::<Alignment>))]
    alignment: Option<Alignment>,
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
    let terms = || resume::terms(setup.identity(stamp_model)?, &arguments.model.name.resolve()?, input);
    let start = resume::start(arguments.output.as_deref(), arguments.resume, unit, terms)?;
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
    /// The language that the model translates from, where it is not told one.
    language: Option<String>,
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
        let dir = arguments.model.name.resolve()?;
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let [source, _] = named_pair(&dir, &name);
        let language = source.and_then(|code| Tag::parse(&code)).map(|tag| tag.language);
        Ok(Setup { arguments, translator, options, set, alternatives, language })
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
        let mut work = Work::new(self, output, bytes)?;
        stream::run(windows, &mut work)?;
        Ok(work.end())
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
        self.check_documents()?;
        if self.explain.is_some() && self.text.len() > 1 {
            return refuse("explain", "one sentence", self.text.len().to_string());
        }
        if self.explain.is_some() && self.text.first().is_some_and(|text| text.trim().is_empty()) {
            return Err(nothing_to_explain());
        }
        Ok(())
    }

    /// Whether the input is split into sentences.
    fn has_documents(&self) -> bool {
        self.segment || self.input_format == InputFormat::Html
    }

    /// Refuses what is one sentence's where there may be several.
    fn check_documents(&self) -> Result<()> {
        if !self.has_documents() {
            return Ok(());
        }
        let document = if self.segment { "segment" } else { "input-format html" };
        let one = [
            ("format", "nbest", self.format == Format::Nbest),
            ("alignment", "", self.alignment.is_some()),
            ("alternatives", "", self.alternatives.is_some()),
            ("explain", "", self.explain.is_some()),
            ("target-prefix", "", self.target_prefix.is_some()),
            ("contrastive", "source", self.search.control.pairs_lines()),
        ];
        let html = self.input_format == InputFormat::Html;
        let whole = [("segment", "", self.segment), ("resume", "", self.resume && !self.is_job())];
        let refused = one.into_iter().find(|(.., given)| *given);
        match refused.or(whole.into_iter().find(|(.., given)| html && *given)) {
            None => Ok(()),
            Some(("segment", ..)) => {
                Err(Error::conflict("segment", "", "input-format html, whose sentences are found anyway"))
            }
            Some(("resume", ..)) => {
                Err(Error::conflict("resume", "", "input-format html, which is written as a whole"))
            }
            Some((option, value, _)) => {
                Err(Error::conflict(option, value, format!("{document}, which makes several sentences")))
            }
        }
    }

    /// Whether what is written is the text that was read, with translations in it.
    fn keeps_ends(&self) -> bool {
        let is_text = matches!(self.input_format, InputFormat::Auto | InputFormat::Text);
        self.has_documents() && self.format == Format::Text && is_text
    }

    fn is_job(&self) -> bool {
        self.input.as_deref().is_some_and(batch::is_many)
    }
}

impl Arguments {
    fn form(&self) -> Form {
        match (self.input_format, self.format) {
            (InputFormat::Auto, Format::Jsonl) => Form::Detect(Plain::Text),
            (InputFormat::Auto | InputFormat::Text, _) => Form::Text,
            (InputFormat::Jsonl, _) => Form::Json,
            (InputFormat::Tsv, _) => Form::Tsv,
            (InputFormat::Html, _) => Form::Html,
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
