//! The tokens that BLEU counts, split as sacrebleu splits them.

use std::fmt;
use std::str::FromStr;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use crate::error::{Error, Result};

/// White space where Python's `str.split` splits, which is where sacrebleu does: Unicode's, and the separators 1c to 1f.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// How BLEU splits text into tokens; the names are sacrebleu's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BleuTokenizer {
    /// NIST's `mteval-v13a.pl`, the usual one: [`tokenize_13a`].
    #[default]
    V13a,
    /// `mteval-v14.pl`: punctuation and symbols of all scripts stand alone, punctuation between two numbers does not.
    Intl,
    /// Chinese characters stand alone; the rest as in 13a, but for entities.
    Zh,
    /// Every character but white space is a token.
    Char,
    /// Text that is split at white space, and nowhere else.
    None,
}

impl BleuTokenizer {
    /// The tokens of a text.
    pub fn tokenize(self, text: &str) -> Vec<String> {
        match self {
            BleuTokenizer::V13a => tokenize_13a(text),
            BleuTokenizer::Intl => tokenize_intl(text),
            BleuTokenizer::Zh => tokenize_zh(text),
            BleuTokenizer::Char => text.chars().filter(|c| !is_space(*c)).map(String::from).collect(),
            BleuTokenizer::None => split_at_spaces(text),
        }
    }

    fn name(self) -> &'static str {
        match self {
            BleuTokenizer::V13a => "13a",
            BleuTokenizer::Intl => "intl",
            BleuTokenizer::Zh => "zh",
            BleuTokenizer::Char => "char",
            BleuTokenizer::None => "none",
        }
    }
}

impl fmt::Display for BleuTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BleuTokenizer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        use BleuTokenizer::{Char, Intl, None, V13a, Zh};
        [V13a, Intl, Zh, Char, None].into_iter().find(|tokenizer| tokenizer.name() == text).ok_or_else(|| {
            Error::Option { option: "tokenize", expected: "13a, intl, zh, char or none".into(), got: text.into() }
        })
    }
}

/// The tokens of a text that something else splits into pieces, as sacrebleu does it with SentencePiece: the pieces, split once more
/// at white space.
pub fn tokenize_pieces(text: &str, split: impl FnOnce(&str) -> Vec<String>) -> Vec<String> {
    split(text.trim_end_matches(is_space)).iter().flat_map(|piece| split_at_spaces(piece)).collect()
}

fn split_at_spaces(text: &str) -> Vec<String> {
    text.split(is_space).filter(|token| !token.is_empty()).map(String::from).collect()
}

/// Splits a line into 13a tokens.
///
/// ASCII symbols other than `'`, `,`, `-` and `.` stand alone; periods and commas do unless between digits; a dash does after
/// a digit. Beyond ASCII only white space splits. Four HTML entities are decoded; `<skipped>` is removed.
pub fn tokenize_13a(text: &str) -> Vec<String> {
    let mut line = text.trim_end_matches(is_space).replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        // In this order: `&amp;lt;` becomes `<`, `&amp;quot;` becomes `&quot;`.
        for (entity, symbol) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, symbol);
        }
    }
    split_western(&format!(" {line} "))
}

/// What 13a and zh do to text in Latin letters.
fn split_western(line: &str) -> Vec<String> {
    let line = space_out_symbols(line);
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    let line = part_pairs(&line, |a, b| !digit(a) && point(b), "", " ");
    let line = part_pairs(&line, |a, b| point(a) && !digit(b), " ", "");
    split_at_spaces(&part_pairs(&line, |a, b| digit(a) && b == '-', "", " "))
}

fn tokenize_intl(text: &str) -> Vec<String> {
    let of = |group: GeneralCategoryGroup| move |c: char| c.general_category_group() == group;
    let (number, mark) = (of(GeneralCategoryGroup::Number), of(GeneralCategoryGroup::Punctuation));
    let line = part_pairs(text.trim_end_matches(is_space), |a, b| !number(a) && mark(b), "", " ");
    let line = part_pairs(&line, |a, b| mark(a) && !number(b), " ", "");
    split_at_spaces(&space_out(&line, of(GeneralCategoryGroup::Symbol)))
}

fn tokenize_zh(text: &str) -> Vec<String> {
    split_western(&space_out(text.trim_matches(is_space), is_chinese))
}

/// What sacrebleu takes for a Chinese character. Its table means the ideographs beyond U+FFFF and the supplement to compatibility
/// ideographs, but writes them with four digits and a fifth character; compared with that as strings, U+2001 to U+2A6D (punctuation
/// and symbols of all scripts) are in it, and the ideographs beyond U+FFFF are not.
fn is_chinese(c: char) -> bool {
    matches!(c, '\u{2001}'..='\u{2a6d}' | '\u{2e80}'..='\u{2fdf}' | '\u{2ff0}'..='\u{303f}' | '\u{3100}'..='\u{312f}')
        || matches!(c, '\u{31a0}'..='\u{31bf}' | '\u{31c0}'..='\u{31ef}' | '\u{3200}'..='\u{4db5}' | '\u{4e00}'..='\u{9fbb}')
        || matches!(c, '\u{f900}'..='\u{fa2d}' | '\u{fa30}'..='\u{fa6a}' | '\u{fa70}'..='\u{fad9}')
        || matches!(c, '\u{fe10}'..='\u{fe1f}' | '\u{fe30}'..='\u{fe4f}' | '\u{ff00}'..='\u{ffef}')
}

/// Puts a space on both sides of every ASCII symbol that always stands alone.
pub(super) fn space_out_symbols(line: &str) -> String {
    space_out(line, |c| c.is_ascii_punctuation() && !matches!(c, '\'' | ',' | '-' | '.'))
}

/// Puts a space on both sides of every character of a kind.
pub(super) fn space_out(line: &str, kind: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    for c in line.chars() {
        if kind(c) {
            out.extend([' ', c, ' ']);
        } else {
            out.push(c);
        }
    }
    out
}

/// Parts two neighbours with a space where `hit` says so, and puts `before` and `after` around them.
///
/// Goes left to right, and the second of a pair is not the first of another, as with `re.sub`: so `...` is parted only in
/// every other place by one rule, and the next rule does the rest.
pub(super) fn part_pairs(line: &str, hit: impl Fn(char, char) -> bool, before: &str, after: &str) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    let mut chars = line.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|&b| hit(a, b)) {
            Some(b) => {
                out.push_str(before);
                out.extend([a, ' ', b]);
                out.push_str(after);
            }
            None => out.push(a),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stay_between_digits_only() {
        assert_eq!(
            tokenize_13a("Es kostet 1,234.5 Euro, ja..."),
            ["Es", "kostet", "1,234.5", "Euro", ",", "ja", ".", ".", "."]
        );
    }

    #[test]
    fn white_space_alone_has_no_tokens() {
        assert!(tokenize_13a(" \t\u{a0}\u{1f}\n").is_empty());
    }
}
