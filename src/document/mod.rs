//! Documents: texts of several sentences.
//!
//! A translation model reads one sentence at a time, and drops what stands behind it. A [`Plan`] says which sentences a document has,
//! and makes a document of their translations. Both steps are pure and do not wait, so that a server may submit the sentences in between
//! in its own way:
//!
//! ```no_run
//! # fn main() -> beamfuse::Result<()> {
//! use beamfuse::document::{Plan, Reading, Rendered, Rules};
//! use beamfuse::{DecodeOptions, Sentence, Translator};
//!
//! let translator = Translator::open("models/m30k-en-de")?;
//! // What all sentences share: languages, or a seed.
//! let like = Sentence::default();
//! let plan = Plan::text("A dog runs. Two cats sleep.", Rules::of(Some("en")), &Reading::new(&translator, &like));
//! let options = DecodeOptions::default();
//! let mut translations = Vec::new();
//! for sentence in plan.sentences(&like, &options) {
//!     let terms = beamfuse::Terms::new();
//!     translations.push(translator.submit(sentence, &options, terms)?.wait()?);
//! }
//! let best = translations.iter().map(|translation| &translation.hypotheses[0]);
//! let rendered: Vec<_> = best.map(|best| Some(Rendered::new(best, translator.tokenizer()))).collect();
//! println!("{}", plan.assemble(&rendered));
//! # Ok(())
//! # }
//! ```
//!
//! [`translate`] does all that with a [`Translator`]. HTML goes the same way by [`Plan::html`]. Other hypotheses than the best make
//! other documents.

mod cut;
mod html;
mod marks;
mod rules;
mod split;
mod translate;
mod wording;

use std::borrow::Cow;
use std::ops::Range;

use crate::text::Tokenizer;
use crate::translator::{Sentence, TextHypothesis, Translator};
use crate::{DecodeOptions, Error, Result};
use html::{Aligned, Markup};

pub use rules::Rules;
pub use split::{Piece, PieceKind, Splitting, split};
pub use translate::{Translated, translate};
pub use wording::{MAX_ENTRIES, MAX_PATTERNS, Wording};

/// The ids of a text.
type Encode<'a> = Box<dyn Fn(&str) -> Vec<u32> + 'a>;
/// Whether a text can be told the model as a phrase that a translation must contain.
type Spells<'a> = Box<dyn Fn(&str) -> bool + 'a>;

/// How a model reads: what a plan asks to know which sentences are too long.
pub struct Reading<'a> {
    encode: Encode<'a>,
    spells: Spells<'a>,
    limit: usize,
}

impl<'a> Reading<'a> {
    /// As this translator reads sentences like that one, whose languages may add tokens.
    pub fn new(translator: &'a Translator, like: &'a Sentence) -> Self {
        // A language that the model lacks is the error of each sentence.
        let encode = |text: &str| translator.source_ids(&with_text(like, text)).unwrap_or_default();
        let spells = |text: &str| translator.spells(text);
        Reading { encode: Box::new(encode), spells: Box::new(spells), limit: translator.max_len() }
    }

    /// As a model that reads at most `limit` ids a sentence, which `encode` gives, and cannot be told what to write.
    pub fn by(encode: impl Fn(&str) -> Vec<u32> + 'a, limit: usize) -> Self {
        Reading { encode: Box::new(encode), spells: Box::new(|_| false), limit }
    }

    /// The same for a model that can be told to write the phrases of which `spells` says so.
    #[must_use]
    pub fn spelling(self, spells: impl Fn(&str) -> bool + 'a) -> Self {
        Reading { spells: Box::new(spells), ..self }
    }

    fn fits(&self, text: &str) -> bool {
        (self.encode)(text).len() <= self.limit
    }
}

impl std::fmt::Debug for Reading<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("limit", &self.limit).finish_non_exhaustive()
    }
}

fn with_text(like: &Sentence, text: &str) -> Sentence {
    Sentence { source: text.to_owned(), source_ids: None, ..like.clone() }
}

/// Refuses what a sentence may have that means it alone, and nothing for each of several: a beginning of its translation, phrases that
/// it must contain, a text to contrast it with.
///
/// # Errors
/// [`Error::Option`], which names it.
pub fn check(like: &Sentence) -> Result<()> {
    let own = [
        ("target_prefix", like.prefix.is_some()),
        ("constraints", !like.constraints.is_empty()),
        ("contrast_source", like.contrast_source.is_some()),
    ];
    match own.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => Err(Error::conflict(option, "", "a document, which may have several sentences")),
    }
}

/// Something to translate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What the model reads.
    pub text: String,
    /// Whether it is part of a sentence that the model cannot read as a whole.
    pub cut: bool,
    /// What its translation must contain: see [`Wording`].
    pub constraints: Vec<String>,
    /// Protected text that the model cannot write, and that is put back where its neighbours went.
    pub placed: Vec<String>,
}

/// How a document is read.
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// As HTML, see [`Plan::html`].
    pub html: bool,
    /// What ends a sentence, beside the blocks of HTML.
    pub splitting: Splitting,
    /// Names of further elements of HTML whose content stays as it is.
    pub ignored: Vec<String>,
    /// What translations have to say.
    pub wording: Wording,
}

/// What a document consists of.
#[derive(Debug)]
pub struct Plan {
    source: String,
    is_html: bool,
    parts: Vec<Part>,
    segments: Vec<Segment>,
}

/// The parts of a document, which follow one another without a gap.
#[derive(Debug)]
enum Part {
    /// Stays as it is.
    Kept(Range<usize>),
    /// The next segment stands for this.
    Segment {
        range: Range<usize>,
        /// The tags within.
        markup: Option<Box<Markup>>,
    },
}

impl Plan {
    /// A plan for plain text: its sentences, see [`split`]; those that the model cannot read are [cut](Segment::cut) at a clause mark or
    /// a space. All else stays as it is.
    pub fn text(text: &str, rules: &Rules, reading: &Reading<'_>) -> Self {
        Self::of(text, &Form::default(), rules, reading)
    }

    /// A plan for a document of any form.
    pub fn of(text: &str, form: &Form, rules: &Rules, reading: &Reading<'_>) -> Self {
        match form.html || !form.wording.is_empty() {
            true => html::plan(text, form, rules, reading),
            false => Self::plain(text, form, rules, reading),
        }
    }

    fn plain(text: &str, form: &Form, rules: &Rules, reading: &Reading<'_>) -> Self {
        let mut plan = Plan { source: text.to_owned(), is_html: false, parts: Vec::new(), segments: Vec::new() };
        let read = match form.splitting {
            Splitting::Full => Cow::Borrowed(text),
            Splitting::WithoutLines | Splitting::Off => split::without_lines(text).into(),
        };
        for Piece { range, kind } in split::split_with(text, rules, form.splitting) {
            if kind != PieceKind::Sentence {
                plan.parts.push(Part::Kept(range));
                continue;
            }
            let sentence = &read[range.clone()];
            let mut at = range.start;
            for part in reading.parts(sentence) {
                let (text, cut) = (sentence[part.clone()].to_owned(), part.len() < sentence.len());
                let segment = Segment { text, cut, constraints: Vec::new(), placed: Vec::new() };
                let part = range.start + part.start..range.start + part.end;
                plan.parts.push(Part::Kept(at..part.start));
                at = part.end;
                plan.parts.push(Part::Segment { range: part, markup: None });
                plan.segments.push(segment);
            }
        }
        plan
    }

    /// A plan for an HTML document, or a piece of one. Malformed HTML is read as a browser's tokenizer reads it.
    ///
    /// * Block elements, `br` among them, bound sentences; within a block they end as in plain text, and only in `pre` at line breaks.
    ///   White space is read as a browser shows it.
    /// * Tags within a sentence, and comments, are not shown to the model. [`Plan::assemble`] puts them back, all of them, nested as they
    ///   were, where the translation's attention says that their text went.
    /// * `script`, `style`, `code`, `kbd`, `samp`, `tt`, `var`, `textarea`, `svg`, `math`, media, and what has `translate="no"` or the class
    ///   `notranslate`, stays as it is, and counts as a tag.
    /// * Character references are decoded for the model; in translations `&`, `<`, `>` and no-break spaces are written as references.
    /// * Everything outside of segments stays as it is, byte for byte, and so do the tags within.
    pub fn html(html: &str, rules: &Rules, reading: &Reading<'_>) -> Self {
        Self::of(html, &Form { html: true, ..Form::default() }, rules, reading)
    }

    /// For each segment whether [`Plan::assemble`] has tags to put back into it, and so does better with a hypothesis that carries its
    /// attention.
    fn needs_attention(&self) -> impl Iterator<Item = bool> {
        let of = |part: &Part| match part {
            Part::Kept(_) => None,
            Part::Segment { markup, .. } => Some(markup.is_some()),
        };
        self.parts.iter().filter_map(of)
    }

    /// What is to be translated, in the order of the document.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segments as sentences to submit, with all else as `like` has it, but for its text and its ids, and with the phrases that each must contain. Where tags are to be put back,
    /// the sentence has options of its own that ask for [attention](crate::DecodeOptions::attention): those of `like`, else these.
    pub fn sentences(&self, like: &Sentence, options: &DecodeOptions) -> impl Iterator<Item = Sentence> {
        self.segments.iter().zip(self.needs_attention()).map(|(segment, needs_attention)| {
            let mut sentence = with_text(like, &segment.text);
            sentence.constraints.extend_from_slice(&segment.constraints);
            if needs_attention {
                let own = sentence.options.get_or_insert_with(|| Box::new(options.clone()));
                own.attention = true;
            }
            sentence
        })
    }

    /// The document, with a translation for each segment; where there is none, its source stays.
    ///
    /// What stands between the segments is as it was. Only where nothing does, because the source's writing puts no space behind a full
    /// stop, a space comes between translations that need it.
    pub fn assemble(&self, translations: &[Option<Rendered<'_>>]) -> String {
        let mut document = String::with_capacity(self.source.len());
        let mut translations = translations.iter();
        // Whether nothing stands behind a segment whose writing needs no space there.
        let mut open = false;
        for part in &self.parts {
            let (Part::Kept(range) | Part::Segment { range, .. }) = part;
            let source = &self.source[range.clone()];
            let Part::Segment { markup, .. } = part else {
                document.push_str(source);
                open &= source.is_empty();
                continue;
            };
            let translation = translations.next().and_then(Option::as_ref);
            let text = translation.map_or(source, |translation| translation.text);
            if open && needs_space(&document, text) {
                document.push(' ');
            }
            match (translation, markup) {
                (Some(translation), Some(markup)) => {
                    document.push_str(&html::place(self, markup, text, translation.aligned().as_ref()));
                }
                (Some(_), None) => document.push_str(&self.written(text)),
                (None, _) => document.push_str(text),
            }
            open = source.ends_with(is_wide);
        }
        document
    }
}

impl Plan {
    /// A translation's text as it stands in the document.
    fn written<'a>(&self, text: &'a str) -> Cow<'a, str> {
        if self.is_html { html::encode(text) } else { text.into() }
    }
}

impl Reading<'_> {
    fn parts(&self, sentence: &str) -> Vec<Range<usize>> {
        if self.fits(sentence) {
            std::iter::once(0..sentence.len()).collect()
        } else {
            cut::cut(sentence, |part| self.fits(part))
        }
    }
}

/// Whether a space must stand between two texts that did not have one in writing without spaces.
fn needs_space(before: &str, text: &str) -> bool {
    let is_narrow = |c: char| !is_wide(c) && !c.is_whitespace();
    before.ends_with(is_narrow) && text.starts_with(is_narrow)
}

/// Whether a character belongs to a word, in writing that parts words by spaces.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() && !is_wide(c)
}

/// Whether a character is of a writing that puts no space between sentences: Chinese, Japanese, and their punctuation.
fn is_wide(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{30ff}' | '\u{31f0}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}'
        | '\u{ff00}'..='\u{ffef}' | '\u{20000}'..='\u{3ffff}')
}

/// A segment's translation, to be put into the document.
#[derive(Clone, Copy, Debug)]
pub struct Rendered<'a> {
    text: &'a str,
    hypothesis: Option<(&'a TextHypothesis, &'a Tokenizer)>,
}

impl<'a> Rendered<'a> {
    /// A hypothesis for the segment, and the tokenizer that its text is from.
    pub fn new(hypothesis: &'a TextHypothesis, tokenizer: &'a Tokenizer) -> Self {
        Rendered { text: &hypothesis.text, hypothesis: Some((hypothesis, tokenizer)) }
    }

    /// A text alone: tags in it find their places by the order of words only.
    pub fn text(text: &'a str) -> Self {
        Rendered { text, hypothesis: None }
    }

    /// Where each token ends, and what it attends to; none for a hypothesis without attention.
    fn aligned(&self) -> Option<Aligned<'a>> {
        let (hypothesis, tokenizer) = self.hypothesis?;
        let rows = hypothesis.attention.as_deref()?;
        let end = |tokens: usize| {
            let begun = tokenizer.detokenize(&hypothesis.token_ids[..tokens]);
            // Half a character, or white space that nothing stands behind yet, is not the text's.
            let common = begun.bytes().zip(self.text.bytes()).take_while(|(a, b)| a == b).count();
            self.text.floor_char_boundary(common)
        };
        Some(Aligned { ends: (1..=hypothesis.token_ids.len()).map(end).collect(), rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that reads one token a word, and the end of the sentence, up to 6.
    fn plan(text: &str) -> Plan {
        let encode = |text: &str| vec![1; text.split_whitespace().count() + 1];
        Plan::text(text, Rules::of(Some("en")), &Reading::by(encode, 6))
    }

    fn assembled(plan: &Plan, translations: &[&str]) -> String {
        plan.assemble(&translations.iter().map(|text| Some(Rendered::text(text))).collect::<Vec<_>>())
    }

    #[test]
    fn what_stands_between_segments_stays() {
        let text = " - A dog runs.  Mr. Cat sleeps!\r\n\n2) A bird 😀\n";
        let plan = plan(text);
        let segments: Vec<&str> = plan.segments().iter().map(|segment| segment.text.as_str()).collect();
        assert_eq!(segments, ["A dog runs.", "Mr. Cat sleeps!", "A bird"]);
        assert_eq!(assembled(&plan, &["x", "y", "z"]), " - x  y\r\n\n2) z 😀\n");
        assert_eq!((plan.assemble(&[]), assembled(&plan, &segments)), (text.to_owned(), text.to_owned()));
        assert_eq!(plan.assemble(&[None, Some(Rendered::text("y"))]), " - A dog runs.  y\r\n\n2) A bird 😀\n");
    }

    #[test]
    fn a_long_sentence_is_cut_and_says_so() {
        let plan = plan("One two three, four five six seven eight.  A dog.");
        let segments: Vec<(&str, bool)> = plan.segments().iter().map(|s| (s.text.as_str(), s.cut)).collect();
        assert_eq!(segments, [("One two three,", true), ("four five six seven eight.", true), ("A dog.", false)]);
        assert_eq!(assembled(&plan, &["x", "y", "z"]), "x y  z");
    }

    #[test]
    fn writing_without_spaces_gets_them_in_translation() {
        let plan = plan("犬が走る。猫が寝る。\n鳥。");
        assert_eq!(assembled(&plan, &["A dog.", "A cat.", "A bird."]), "A dog. A cat.\nA bird.");
        assert_eq!(assembled(&plan, &["狗。", "猫。", "鸟。"]), "狗。猫。\n鸟。");
    }
}
