//! What has to stand in a translation as it is said: protected text, and the words of a glossary.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ops::Range;

use regex::{Regex, RegexBuilder};

use super::{is_letter, split};
use crate::{Error, Result};

/// Patterns of protected text, at most.
pub const MAX_PATTERNS: usize = 8;
/// Entries of a glossary, at most.
pub const MAX_ENTRIES: usize = 1000;

/// Bytes that a pattern may take, and its automaton while it looks for text.
const MAX_PATTERN_BYTES: usize = 1 << 20;

/// What translations have to say, and how.
#[derive(Clone, Debug, Default)]
pub struct Wording {
    protect: Vec<Regex>,
    /// What a source says, and what its translation says for it.
    glossary: Vec<(String, String)>,
}

impl Wording {
    /// Text that one of these patterns finds is to stand in a translation as in its source, and the first of each pair is to be
    /// translated by the second, wherever it stands as a word, or several.
    ///
    /// # Errors
    /// [`Error::Option`] for more than [`MAX_PATTERNS`] or [`MAX_ENTRIES`], for what is no regular expression, or too large a one, and
    /// for an entry that is blank.
    pub fn new(protect: &[String], glossary: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let refuse = |option, expected: String, got: String| Err(Error::Option { option, expected, got });
        if protect.len() > MAX_PATTERNS {
            return refuse("protect", format!("at most {MAX_PATTERNS} patterns"), protect.len().to_string());
        }
        let protect = protect.iter().map(|pattern| compiled(pattern)).collect::<Result<_>>()?;
        let glossary: Vec<(String, String)> = glossary.into_iter().collect();
        if glossary.len() > MAX_ENTRIES {
            return refuse("glossary", format!("at most {MAX_ENTRIES} entries"), glossary.len().to_string());
        }
        if let Some((source, target)) = glossary.iter().find(|(a, b)| a.trim().is_empty() || b.trim().is_empty()) {
            return refuse("glossary", "words and their translations".to_owned(), format!("{source:?}: {target:?}"));
        }
        Ok(Wording { protect, glossary })
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.protect.is_empty() && self.glossary.is_empty()
    }

    /// Where the protected parts of a text lie, without white space around them, from left to right. Of two that overlap the one that
    /// begins first counts, of two that begin together the longer one.
    pub(super) fn protected(&self, text: &str) -> Vec<Range<usize>> {
        let found = self.protect.iter().flat_map(|pattern| pattern.find_iter(text));
        apart(found.map(|found| split::trim(text, found.range())).collect())
    }

    /// What the translation of a text has to contain, each once.
    pub(super) fn phrases(&self, text: &str) -> Vec<String> {
        let protected = self.protected(text);
        let is_free =
            |range: &Range<usize>| protected.iter().all(|other| other.end <= range.start || range.end <= other.start);
        let found = |(at, entry): (usize, &(String, String))| {
            let source = entry.0.trim();
            let found = text.match_indices(source).map(|(start, found)| start..start + found.len());
            found
                .filter(|range| is_word(text, range) && is_free(range))
                .map(move |range| (range, at))
                .collect::<Vec<_>>()
        };
        let entries: Vec<(Range<usize>, usize)> = self.glossary.iter().enumerate().flat_map(found).collect();
        let kept: HashSet<Range<usize>> =
            apart(entries.iter().map(|(range, _)| range.clone()).collect()).into_iter().collect();
        let own = protected.iter().map(|range| text[range.clone()].to_owned());
        let targets = entries.iter().filter(|(range, _)| kept.contains(range));
        let targets = targets.map(|(_, at)| self.glossary[*at].1.trim().to_owned());
        let mut seen = HashSet::new();
        own.chain(targets).filter(|phrase| seen.insert(phrase.clone())).collect()
    }
}

fn compiled(pattern: &str) -> Result<Regex> {
    let built = RegexBuilder::new(pattern).size_limit(MAX_PATTERN_BYTES).dfa_size_limit(MAX_PATTERN_BYTES).build();
    built.map_err(|error| {
        // The last line says what is wrong; those before draw it.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        let expected = "regular expressions".to_owned();
        Error::Option { option: "protect", expected, got: format!("{pattern:?}: {reason}") }
    })
}

/// Those that do not overlap one before them, and are not empty.
fn apart(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| (range.start, Reverse(range.end)));
    let mut end = 0;
    ranges.retain(|range| {
        let is_free = range.start >= end && !range.is_empty();
        end = if is_free { range.end } else { end };
        is_free
    });
    ranges
}

/// Whether no letter stands beside a stretch that begins, or ends, with one.
fn is_word(text: &str, range: &Range<usize>) -> bool {
    let (before, inner, behind) = (&text[..range.start], &text[range.clone()], &text[range.end..]);
    let goes_on = |left: &str, right: &str| left.ends_with(is_letter) && right.starts_with(is_letter);
    !goes_on(before, inner) && !goes_on(inner, behind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Form, Plan, Reading, Rendered, Rules, Splitting};

    fn wording(protect: &[&str], glossary: &[(&str, &str)]) -> Result<Wording> {
        let protect: Vec<String> = protect.iter().map(|pattern| pattern.to_string()).collect();
        Wording::new(&protect, glossary.iter().map(|(source, target)| (source.to_string(), target.to_string())))
    }

    #[test]
    fn phrases_are_what_stands_in_a_text() {
        let own = wording(&[r"\{\{[^}]*\}\}", "[A-Z]{3,}"], &[("dog", "Köter"), ("hot dog", "Wurst "), ("C++", "C++")]);
        let own = own.expect("patterns and words");
        let phrases = |text: &str| own.phrases(text);
        assert_eq!(phrases("A dog, {{a dog}} NASA {{a dog}}."), ["{{a dog}}", "NASA", "Köter"]);
        assert_eq!(phrases("A hot dog."), ["Wurst"]);
        assert_eq!(phrases("dogs, underdog, doggy"), [""; 0]);
        assert_eq!(phrases("C++, dog-like"), ["Köter", "C++"]);
        assert_eq!(phrases(""), [""; 0]);
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let refused = |wording: Result<Wording>| wording.expect_err("it is refused").to_string();
        let message = refused(wording(&["(a"], &[]));
        assert!(
            message.contains("protect") && message.contains("unclosed group") && !message.contains('\n'),
            "{message}"
        );
        assert!(refused(wording(&["(a{999}){999}"], &[])).contains("size limit"));
        assert!(refused(wording(&["a"; 9], &[])).contains("at most 8 patterns, got 9"));
        assert!(refused(wording(&[], &[("dog", " ")])).contains("glossary"));
        assert!(wording(&[], &[]).is_ok_and(|own| own.is_empty()));
    }

    /// A plan under a model that spells nothing but letters.
    fn plan(text: &str, html: bool, splitting: Splitting) -> Plan {
        let encode = |text: &str| vec![1; text.split_whitespace().count() + 1];
        let spells = |text: &str| text.chars().all(char::is_alphabetic);
        let wording = wording(&[r"\{[^}]*\}", "NASA"], &[("dog", "Köter")]).expect("patterns and words");
        let form = Form { html, splitting, wording, ..Form::default() };
        Plan::of(text, &form, Rules::of(Some("en")), &Reading::by(encode, 40).spelling(spells))
    }

    #[test]
    fn what_the_model_cannot_spell_is_put_back() {
        let text = "Hi {x}, dog.  {a. B} Is NASA{y}s.\n{z}";
        let own = plan(text, false, Splitting::Full);
        let segments: Vec<(&str, &[String], &[String])> =
            own.segments().iter().map(|s| (s.text.as_str(), &s.constraints[..], &s.placed[..])).collect();
        let of = |list: &[&str]| list.iter().map(|own| own.to_string()).collect::<Vec<_>>();
        assert_eq!(
            segments,
            [("Hi , dog.", &of(&["Köter"])[..], &of(&["{x}"])[..]), ("Is NASA s.", &of(&["NASA"]), &of(&["{y}"]))]
        );
        assert_eq!(own.assemble(&[]), text);
        let same: Vec<Option<Rendered<'_>>> = own.segments().iter().map(|s| Some(Rendered::text(&s.text))).collect();
        assert_eq!(own.assemble(&same), "Hi {x}, dog.  {a. B} Is NASA{y} s.\n{z}");
        assert_eq!(own.assemble(&[Some(Rendered::text("<x> y z"))]).matches(['{', '<']).count(), 5);
    }

    #[test]
    fn html_is_protected_too() {
        let html = "<p>Hi <b>{&amp;}</b>, NASA {x<i>y} dog</i>.</p>";
        let own = plan(html, true, Splitting::Off);
        assert_eq!(own.segments()[0].text, "Hi , NASA dog.");
        assert_eq!(
            (own.segments()[0].constraints.join(" "), own.assemble(&[])),
            ("NASA Köter".to_owned(), html.to_owned())
        );
        assert_eq!(own.segments()[0].placed, ["{&amp;}", "{x", "y}"]);
        let text = own.assemble(&[Some(Rendered::text("Hi , NASA dog."))]);
        assert!(["{&amp;}", "{x", "y}", "<b>", "</b>", "<i>", "</i>"].iter().all(|part| text.contains(part)), "{text}");
    }
}
