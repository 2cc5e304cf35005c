//! Text into sentences and what stands between them.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::marks::{first_word, is_address, markers, without_pictographs};
use super::rules::Rules;

/// A stretch of a text, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it lies.
    pub range: Range<usize>,
    /// What it is.
    pub kind: PieceKind,
}

/// What a stretch of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    /// White space between the others, line breaks included.
    Space,
    /// Something that is no sentence and stays as it is: a list marker, pictographs beside a sentence, what has no letter, an
    /// address alone.
    Kept,
    /// A sentence, without white space around it.
    Sentence,
}

/// Splits a text into sentences: at line breaks, and within a line as UAX 29 does, but not behind abbreviations, initials and ordinal
/// numbers of the language.
///
/// The pieces follow one another without a gap: all together are the text, byte for byte. The time is linear in the text's length.
///
/// ```
/// use beamfuse::document::{PieceKind, Rules, split};
///
/// let text = "- Mr. Smith has 3.5 dogs.  They run!";
/// let sentences = split(text, Rules::of(Some("en"))).into_iter().filter(|piece| piece.kind == PieceKind::Sentence);
/// assert_eq!(sentences.map(|piece| &text[piece.range]).collect::<Vec<_>>(), ["Mr. Smith has 3.5 dogs.", "They run!"]);
/// ```
pub fn split(text: &str, rules: &Rules) -> Vec<Piece> {
    split_with(text, rules, Splitting::Full)
}

/// What ends a sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splitting {
    /// Line breaks, and what [`split`] takes for the end of one.
    #[default]
    Full,
    /// The same without line breaks, which are read as spaces.
    WithoutLines,
    /// The end of the text alone.
    Off,
}

/// As [`split`], where sentences end at less.
pub(super) fn split_with(text: &str, rules: &Rules, splitting: Splitting) -> Vec<Piece> {
    let mut pieces = Pieces { text, found: Vec::new(), at: 0 };
    match splitting {
        Splitting::Full => {}
        Splitting::WithoutLines => {
            split_line(&mut pieces, 0, &without_lines(text), rules);
            pieces.space_to(text.len());
            return pieces.found;
        }
        Splitting::Off => {
            pieces.sentence(0..text.len());
            pieces.space_to(text.len());
            return pieces.found;
        }
    }
    let mut start = 0;
    for line in text.split_inclusive(is_line_break) {
        split_line(&mut pieces, start, line, rules);
        start += line.len();
    }
    pieces.space_to(text.len());
    pieces.found
}

/// The text with a space of as many bytes for each line break.
pub(super) fn without_lines(text: &str) -> String {
    let space = |c: char| match c.len_utf8() {
        1 => ' ',
        2 => '\u{a0}',
        _ => '\u{2003}',
    };
    text.chars().map(|c| if is_line_break(c) { space(c) } else { c }).collect()
}

/// CR LF is two of them, with nothing in between.
fn is_line_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Pieces as they are found, from left to right.
struct Pieces<'a> {
    text: &'a str,
    found: Vec<Piece>,
    at: usize,
}

impl Pieces<'_> {
    fn push(&mut self, range: Range<usize>, kind: PieceKind) {
        self.at = range.end;
        if !range.is_empty() {
            self.found.push(Piece { range, kind });
        }
    }

    fn space_to(&mut self, end: usize) {
        self.push(self.at..end, PieceKind::Space);
    }

    /// Adds a stretch without the white space around it.
    fn trimmed(&mut self, range: Range<usize>, kind: PieceKind) {
        let range = trim(self.text, range);
        if !range.is_empty() {
            self.space_to(range.start);
            self.push(range, kind);
        }
    }

    /// Adds a sentence, with the pictographs that stand beside it.
    fn sentence(&mut self, range: Range<usize>) {
        let inner = without_pictographs(&self.text[range.clone()]);
        let inner = range.start + inner.start..range.start + inner.end;
        let sentence = &self.text[inner.clone()];
        let is_kept = !sentence.contains(char::is_alphabetic)
            || (!sentence.contains(char::is_whitespace) && is_address(sentence));
        if is_kept {
            return self.trimmed(range, PieceKind::Kept);
        }
        self.trimmed(range.start..inner.start, PieceKind::Kept);
        self.trimmed(inner.clone(), PieceKind::Sentence);
        self.trimmed(inner.end..range.end, PieceKind::Kept);
    }
}

pub(super) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let inner = text[range.clone()].trim_start();
    let start = range.end - inner.len();
    start..start + inner.trim_end().len()
}

fn split_line(pieces: &mut Pieces<'_>, start: usize, line: &str, rules: &Rules) {
    let inner = trim(line, 0..line.len());
    let body = &line[inner.clone()];
    if !body.contains(char::is_alphabetic) {
        return pieces.trimmed(start + inner.start..start + inner.end, PieceKind::Kept);
    }
    let marker = markers(body, |word| rules.follows_ordinal(word));
    let start = start + inner.start;
    pieces.trimmed(start..start + marker, PieceKind::Kept);
    let sentences = &body[marker..];
    let start = start + marker;
    let mut from = 0;
    for end in boundaries(sentences) {
        let behind = sentences[end..].trim_start();
        if !goes_on(&sentences[from..end], behind, rules) {
            pieces.sentence(start + from..start + end);
            from = end;
        }
    }
}

/// Where sentences end by UAX 29, and behind an ellipsis before a capital letter.
fn boundaries(line: &str) -> Vec<usize> {
    let condensed = Condensed::new(line);
    let mut ends: Vec<usize> = Vec::new();
    for (start, sentence) in condensed.text.split_sentence_bound_indices() {
        let mut from = 0;
        for (at, ellipsis) in sentence.match_indices('…') {
            let behind = &sentence[at + ellipsis.len()..];
            let next = behind.trim_start_matches(|c: char| "\"'”’»)]".contains(c)).trim_start();
            let end = sentence.len() - next.len();
            let spaced = sentence[..end].ends_with(char::is_whitespace);
            if spaced
                && end > from
                && next.trim_start_matches(|c| "\"“„«'(¿¡".contains(c)).starts_with(char::is_uppercase)
            {
                ends.push(condensed.original(start + end));
                from = end;
            }
        }
        ends.push(condensed.original(start + sentence.len()));
    }
    ends
}

/// A text in which long runs of characters that are neither letters nor digits are cut short. UAX 29 looks ahead from each of them,
/// which would take time in the square of their number.
struct Condensed {
    text: String,
    /// Positions here, and what they are in the original, wherever that changes.
    cuts: Vec<(usize, usize)>,
}

/// The longest run that is left as it is.
const MAX_RUN: usize = 16;

impl Condensed {
    fn new(line: &str) -> Self {
        let mut condensed = Condensed { text: String::with_capacity(line.len()), cuts: Vec::new() };
        // White space and others count apart: sentences end between them.
        let mut runs = [0, 0];
        let mut last = None;
        for (at, c) in line.char_indices() {
            if c.is_alphanumeric() {
                runs = [0, 0];
            } else {
                let run = &mut runs[usize::from(c.is_whitespace())];
                *run += 1;
                if *run > MAX_RUN {
                    last = Some((at, c));
                    continue;
                }
            }
            // What ended the run decides as much as what began it.
            if let Some((at, c)) = last.take() {
                condensed.cuts.push((condensed.text.len(), at));
                condensed.text.push(c);
                condensed.cuts.push((condensed.text.len(), at + c.len_utf8()));
            }
            condensed.text.push(c);
        }
        condensed.cuts.push((condensed.text.len(), line.len()));
        condensed
    }

    /// The position in the original.
    fn original(&self, at: usize) -> usize {
        let before = self.cuts.partition_point(|(here, _)| *here <= at);
        match before.checked_sub(1).map(|before| self.cuts[before]) {
            Some((here, original)) => original + (at - here),
            None => at,
        }
    }
}

/// Whether a sentence goes on where UAX 29 ends it.
fn goes_on(before: &str, behind: &str, rules: &Rules) -> bool {
    let trimmed = before.trim_end();
    if behind.is_empty() {
        return false;
    }
    if trimmed.len() == before.len() {
        return goes_on_attached(before, behind);
    }
    let closers = "\"'”’»›)]}“";
    let core = trimmed.trim_end_matches(|c| closers.contains(c));
    let is_closed = core.len() < trimmed.len();
    if core.ends_with(['?', '!']) {
        // "Stop!" he said.
        return is_closed && behind.starts_with(char::is_lowercase);
    }
    match core.strip_suffix('.') {
        Some(word) if !is_closed && !word.ends_with('.') => goes_on_behind_stop(word, behind, rules),
        _ => false,
    }
}

/// The same without white space in between, as in `/?query`.
fn goes_on_attached(before: &str, behind: &str) -> bool {
    if !before.ends_with(|c: char| c.is_ascii()) {
        return false;
    }
    let (left, right) = (before.rsplit(char::is_whitespace).next(), behind.split(char::is_whitespace).next());
    let (left, right) = (left.unwrap_or_default(), right.unwrap_or_default());
    let next = right.chars().next().unwrap_or_default();
    next.is_lowercase()
        || next.is_numeric()
        || (next.is_ascii() && !next.is_alphanumeric())
        || is_address(&format!("{left}{right}"))
}

/// The same behind a full stop: abbreviations, initials, ordinal numbers. `before` lacks the full stop.
fn goes_on_behind_stop(before: &str, behind: &str, rules: &Rules) -> bool {
    let token = before.rsplit(char::is_whitespace).next().unwrap_or_default();
    let token = token.trim_start_matches(|c: char| !c.is_alphanumeric());
    let next = first_word(behind);
    let last = token.rsplit(['.', '-', '–', '/', '(']).next().unwrap_or_default();
    if rules.goes_on(token, next) || rules.goes_on(last, next) {
        return true;
    }
    // A letter with a full stop is one more initial.
    let is_initial = next.chars().count() == 1 && behind.trim_start_matches(next).starts_with('.');
    let starts = rules.starts(next) && !is_initial;
    let mut letters = last.chars();
    let single = letters.next().filter(|_| letters.next().is_none());
    match single {
        // The pronoun, but at the beginning of a sentence.
        Some('I') if token.len() == 1 => before.trim() == "I" && !starts,
        Some(letter) if letter.is_alphabetic() => !starts,
        _ => {
            let is_ordinal = (1..=2).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_digit());
            is_ordinal && rules.has_ordinals() && next.starts_with(char::is_uppercase) && !starts
        }
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
