//! Lines under way: as sentences, or as documents of several.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};

use super::{Arguments, First, Format, Setup};
use crate::batch::Counts;
use crate::cli::control_options::ControlArguments;
use crate::cli::input::{InputFormat, Item, Line};
use crate::cli::interrupt;
use crate::cli::model_dir::LanguageArguments;
use crate::cli::output::{Output, n_best, text_line};
use crate::cli::progress::Progress;
use crate::cli::stream;
use crate::cli::warnings::Warnings;
use crate::document::{self, Plan, Reading, Rendered, Rules};
use crate::jsonl::{BadLine, Fields, Warning, document_json, error_json, segment_json, translation_json};
use crate::translator::{Alternatives, Batch, Sentence, Translation};
use crate::{Error, Result};

/// The kind and the text of an error.
type Failure = (&'static str, String);

fn failure(error: &Error) -> Failure {
    (error.kind(), error.to_string())
}

pub(super) struct Work<'a> {
    setup: &'a Setup<'a>,
    batch: Batch<'a>,
    /// What comes back with each line under way.
    lines: HashMap<u64, Tag>,
    /// The line, and which of its sentences, that each search is for.
    searches: HashMap<u64, (u64, usize)>,
    /// Searches so far.
    searched: u64,
    /// Lines that the batch has no part in: that could not be read, that have no sentence, or that want alternatives.
    ready: Vec<(u64, Done)>,
    first: First,
    output: Output,
    progress: Progress,
    warnings: Warnings<'a>,
    /// Lines written.
    counts: Counts,
}

/// A line under way.
struct Tag {
    number: u64,
    bytes: u64,
    end: &'static str,
    source: String,
    other: Fields,
    /// The line as a document, if it is one.
    plan: Option<Plan>,
    /// Whether attention was asked for, and not only needed to find the places of tags.
    shows_attention: bool,
    /// Of each of its sentences.
    warnings: Vec<Vec<Warning>>,
    results: Vec<Option<Result<Translation, Failure>>>,
    /// Sentences that have no result yet.
    missing: usize,
}

pub(super) struct Done {
    number: u64,
    bytes: u64,
    end: &'static str,
    source: Option<String>,
    other: Fields,
    /// The translation, or the error in its place.
    result: Result<Outcome, Failure>,
}

enum Outcome {
    Sentence(Translation, Vec<Warning>),
    Document {
        text: String,
        segments: Vec<Translated>,
        /// Of sentences that stay as they were.
        failures: Vec<Failure>,
    },
}

/// A sentence of a document.
struct Translated {
    translation: Translation,
    /// Whether it is part of one that the model cannot read as a whole.
    cut: bool,
    warnings: Vec<Warning>,
}

/// A line that has been read: its sentences with their ids.
struct Read {
    tag: Tag,
    sentences: Vec<(Sentence, Vec<u32>)>,
}

impl Tag {
    /// What the line comes to, once all its sentences have their results.
    fn done(self, setup: &Setup<'_>) -> Done {
        let Tag { number, bytes, end, source, other, plan, shows_attention, warnings, results, .. } = self;
        let results = results.into_iter().map(|result| result.unwrap_or_else(|| Err(failure(&Error::EngineStopped))));
        let result = match plan {
            None => {
                let first = results.zip(warnings).next();
                first.map_or_else(
                    || Err(failure(&Error::EngineStopped)),
                    |(t, warnings)| Ok(Outcome::Sentence(t?, warnings)),
                )
            }
            Some(plan) => assemble(&plan, results.zip(warnings).collect(), shows_attention, setup),
        };
        Done { number, bytes, end, source: Some(source), other, result }
    }
}

/// A document of its sentences' translations. A failure is a line's; in HTML the sentence stays as it was.
fn assemble(
    plan: &Plan,
    results: Vec<(Result<Translation, Failure>, Vec<Warning>)>,
    shows_attention: bool,
    setup: &Setup<'_>,
) -> Result<Outcome, Failure> {
    let stays = setup.arguments.input_format == InputFormat::Html && setup.arguments.format == Format::Text;
    if let Some((Err(first), _)) = results.iter().find(|(result, _)| result.is_err() && !stays) {
        return Err(first.clone());
    }
    let tokenizer = setup.translator.tokenizer();
    let best =
        |result| Result::as_ref(result).ok().and_then(|translation: &Translation| translation.hypotheses.first());
    let rendered = results.iter().map(|(result, _)| Some(Rendered::new(best(result)?, tokenizer)));
    let text = plan.assemble(&rendered.collect::<Vec<_>>());
    let (mut segments, mut failures) = (Vec::new(), Vec::new());
    for ((result, warnings), segment) in results.into_iter().zip(plan.segments()) {
        match result {
            Ok(mut translation) => {
                if !shows_attention {
                    translation.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.ids.attention = None);
                }
                segments.push(Translated { translation, cut: segment.cut, warnings });
            }
            Err(failure) => failures.push(failure),
        }
    }
    Ok(Outcome::Document { text, segments, failures })
}

impl<'a> Work<'a> {
    /// Nothing yet, of so many bytes where that is known.
    pub fn new(setup: &'a Setup<'a>, output: Output, bytes: Option<u64>) -> Result<Self> {
        Ok(Work {
            setup,
            batch: setup.translator.batch(&setup.options)?,
            lines: HashMap::new(),
            searches: HashMap::new(),
            searched: 0,
            ready: Vec::new(),
            first: First::Blank,
            output,
            progress: Progress::new(bytes),
            warnings: Warnings::new(setup.translator.tokenizer()),
            counts: Counts::default(),
        })
    }

    /// Tells the warnings; what was written, and the first sentence.
    pub fn end(self) -> (Output, Counts, First) {
        self.warnings.lines().for_each(|line| self.progress.note(&line));
        (self.output, self.counts, self.first)
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
        let LanguageArguments { prefix, source_lang, target_lang } = arguments.model.languages.clone();
        sentence.source_prefix = sentence.source_prefix.or(prefix);
        sentence.source_lang = sentence.source_lang.or(source_lang);
        sentence.target_lang = sentence.target_lang.or(target_lang);
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

    /// A line's sentences: itself, or those that it consists of. Ids are one sentence, whatever they mean.
    fn read(&mut self, number: u64, bytes: u64, end: &'static str, item: Item) -> Result<Read, BadLine> {
        let (sentence, other) = self.sentence(item)?;
        let Setup { arguments, translator, options, language, .. } = self.setup;
        let source = sentence.source.clone();
        let wrong =
            |error: Error| BadLine { kind: error.kind(), message: error.to_string(), source: Some(source.clone()) };
        let shows_attention = sentence.options.as_deref().unwrap_or(options).attention;
        let mut plan = None;
        if arguments.has_documents() && sentence.source_ids.is_none() {
            document::check(&sentence).map_err(wrong)?;
            let rules = Rules::of(sentence.source_lang.as_deref().or(language.as_deref()));
            let reading = Reading::new(translator, &sentence);
            plan = Some(match arguments.input_format {
                InputFormat::Html => Plan::html(&source, rules, &reading),
                _ => Plan::text(&source, rules, &reading),
            });
        }
        let sentences: Vec<Sentence> = match &plan {
            Some(plan) => plan.sentences(&sentence, options).collect(),
            None => vec![sentence],
        };
        let with_ids = |sentence: Sentence| translator.source_ids(&sentence).map(|ids| (sentence, ids));
        let sentences: Vec<(Sentence, Vec<u32>)> =
            sentences.into_iter().map(with_ids).collect::<Result<_>>().map_err(wrong)?;
        let look = |(sentence, _): &(Sentence, Vec<u32>)| {
            self.warnings.look_at(number, &sentence.source, sentence.prefix.as_deref())
        };
        let warnings: Vec<Vec<Warning>> = sentences.iter().map(look).collect();
        let results = sentences.iter().map(|_| None).collect();
        let missing = sentences.len();
        let tag = Tag { number, bytes, end, source, other, plan, shows_attention, warnings, results, missing };
        Ok(Read { tag, sentences })
    }

    /// Hands a sentence of a line to the engine.
    fn search(&mut self, line: u64, at: usize, sentence: Sentence, ids: Vec<u32>) {
        self.searches.insert(self.searched, (line, at));
        self.batch.push_encoded(self.searched, sentence, ids);
        self.searched += 1;
    }

    /// Notes the result of a line's sentence; what the line comes to, if it was the last.
    fn ended(&mut self, line: u64, at: usize, result: Result<Translation, Failure>) -> Option<Done> {
        let tag = self.lines.get_mut(&line)?;
        *tag.results.get_mut(at)? = Some(result);
        tag.missing -= 1;
        match tag.missing {
            0 => self.lines.remove(&line).map(|tag| tag.done(self.setup)),
            _ => None,
        }
    }

    /// Finds the alternatives of a window's sentences, which are under way together.
    fn find_alternatives(&mut self, sentences: Vec<(u64, usize, Sentence, Vec<u32>)>, wanted: Alternatives) {
        let (lines, sentences): (Vec<u64>, Vec<Sentence>) =
            sentences.into_iter().map(|(line, _, sentence, _)| (line, sentence)).unzip();
        let found = match self.setup.translator.alternatives(sentences, &wanted, &self.setup.options) {
            Ok(found) => found.into_iter().map(|result| result.map_err(|error| failure(&error))).collect(),
            // What concerns them all.
            Err(error) => vec![Err(failure(&error)); lines.len()],
        };
        for (line, result) in lines.into_iter().zip(found) {
            self.progress.add(0, 0);
            let done = self.ended(line, 0, result);
            self.ready.extend(done.map(|done| (line, done)));
        }
    }

    /// Writes a document.
    fn document(&mut self, number: u64, end: &str, document: &Document<'_>) -> Result<()> {
        let Document { text, segments, failures, other } = document;
        let Arguments { format, input_format, text: given, .. } = self.setup.arguments;
        for (_, message) in *failures {
            self.progress.complain(&format!("line {number}: {message}"));
        }
        self.counts.failed += u64::from(!failures.is_empty());
        match (format, input_format) {
            (Format::Jsonl, _) => {
                let segment = |own: &Translated| segment_json(&own.translation, own.cut, &[], &own.warnings);
                let segments = segments.iter().map(segment).collect::<Result<Vec<Box<RawValue>>>>()?;
                self.output.line(&document_json(text, &segments, other)?)
            }
            (_, InputFormat::Html) => self.output.text(text),
            // Arguments may have line breaks; in a file each line answers one.
            _ if given.is_empty() => self.output.text(&(text.replace('\n', " ") + end)),
            _ => self.output.line(text),
        }
    }
}

/// A document to be written.
struct Document<'a> {
    text: &'a str,
    segments: &'a [Translated],
    failures: &'a [Failure],
    other: &'a Fields,
}

impl stream::Work for Work<'_> {
    type Done = Done;

    fn start(&mut self, window: Vec<(u64, Line)>) {
        let mut readable = Vec::with_capacity(window.len());
        for (tag, Line { number, bytes, end, content }) in window {
            // Only text that is put together again keeps how its lines end.
            let end = if self.setup.arguments.keeps_ends() { end } else { "\n" };
            match content.and_then(|item| self.read(number, bytes, end, item)) {
                Ok(Read { tag: line, sentences }) if sentences.is_empty() => {
                    self.ready.push((tag, line.done(self.setup)));
                }
                Ok(Read { tag: line, sentences }) => {
                    self.lines.insert(tag, line);
                    let sentences = sentences.into_iter().enumerate();
                    readable.extend(sentences.map(|(at, (sentence, ids))| (tag, at, sentence, ids)));
                }
                Err(BadLine { kind, message, source }) => {
                    let (result, other) = (Err((kind, message)), Fields::new());
                    self.progress.add(0, 0);
                    self.ready.push((tag, Done { number, bytes, end, source, other, result }));
                }
            }
        }
        if let Some((_, _, sentence, ids)) = readable.iter().find(|(tag, ..)| *tag == 0) {
            self.first = if ids.len() > 1 { First::Sentence(Box::new(sentence.clone())) } else { First::Blank };
        }
        // The longest first: slots that free up towards the end of a window then wait for short sentences only.
        readable.sort_by_key(|(_, _, _, ids)| std::cmp::Reverse(ids.len()));
        if let Some(wanted) = self.setup.alternatives {
            return self.find_alternatives(readable, wanted);
        }
        for (line, at, sentence, ids) in readable {
            // A document may have more sentences than the queue has room for.
            if interrupt::asked() {
                return;
            }
            self.search(line, at, sentence, ids);
        }
    }

    fn finish_one(&mut self, limit: Duration) -> Option<(u64, Done)> {
        loop {
            if let Some((line, done)) = self.ready.pop() {
                self.progress.pass(done.bytes);
                return Some((line, done));
            }
            let (search, result) = self.batch.next_within(limit)?;
            let tokens = result.as_ref().map_or(0, |t| t.hypotheses.first().map_or(0, |h| h.length));
            self.progress.add(0, tokens as u64);
            let (line, at) = self.searches.remove(&search)?;
            let done = self.ended(line, at, result.map_err(|error| failure(&error)));
            self.ready.extend(done.map(|done| (line, done)));
            if self.ready.is_empty() && interrupt::asked() {
                return None;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.ready.is_empty() && self.batch.outstanding() == 0
    }

    fn write(&mut self, done: Done) -> Result<()> {
        let Done { number, bytes: _, end, source, mut other, result } = done;
        // Our own fields win over fields of that name in the input.
        for field in ["hypotheses", "error", "source_truncated", "warnings"] {
            other.shift_remove(field);
        }
        let Arguments { format, alignment, .. } = *self.setup.arguments;
        self.counts.rows += 1;
        match result {
            Ok(Outcome::Document { text, segments, failures }) => {
                let document = Document { text: &text, segments: &segments, failures: &failures, other: &other };
                self.document(number, end, &document)
            }
            Ok(Outcome::Sentence(translation, warnings)) => self.output.line(&match format {
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
                match format {
                    Format::Text | Format::Nbest => self.output.text(end),
                    Format::Jsonl => self.output.line(&error_json(source.as_deref(), &other, kind, &message)?),
                }
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.output.flush()
    }
}
