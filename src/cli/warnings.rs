//! What a model was hardly meant to read: said once for each kind when all is done, and beside each line in JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::text::Tokenizer;

/// What may be odd about a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Warning {
    /// It begins with a language token that the vocabulary lacks.
    UnknownLanguage,
    /// It names no language, and the model has several.
    NoLanguage,
    /// Its target prefix holds a piece that the vocabulary lacks.
    UnknownPrefix,
    /// It holds the name of a special token, which is read as text.
    SpecialToken,
}

/// How often something was odd, and where it was first.
#[derive(Debug)]
struct Count {
    lines: u64,
    first: u64,
    example: String,
}

/// Looks at lines and keeps count.
#[derive(Debug)]
pub(super) struct Warnings<'a> {
    tokenizer: &'a Tokenizer,
    /// The language tokens of a multilingual model; none of another.
    languages: Vec<String>,
    special: Vec<String>,
    counts: BTreeMap<Warning, Count>,
}

impl<'a> Warnings<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        let summary = tokenizer.summary();
        // Other families' languages are said by an option, not in the text.
        let mut languages = summary.language_tokens;
        languages.retain(|token| token.starts_with(">>"));
        if languages.len() < 2 {
            languages.clear();
        }
        // Some families read the name in a text as the token, as transformers does.
        let count = |text: &str, id: u32| tokenizer.encode_source(text).iter().filter(|other| **other == id).count();
        let is_text = |(piece, id): &(String, u32)| count(piece, *id) == count("", *id);
        let special = summary.special_tokens.into_iter().filter(is_text).map(|(piece, _)| piece).collect();
        Warnings { tokenizer, languages, special, counts: BTreeMap::new() }
    }

    /// What is odd about a source and the prefix of its translation, if it has one.
    pub(super) fn look_at(&mut self, number: u64, source: &str, prefix: Option<&str>) -> Vec<Warning> {
        let mut found = Vec::new();
        match language_token(source) {
            // A piece of its own begins the ids of any text that begins with it.
            Some(token) if !self.begins_with(token) => found.push((Warning::UnknownLanguage, token.to_owned())),
            None if !self.languages.is_empty() && !source.trim().is_empty() => {
                found.push((Warning::NoLanguage, self.languages[0].clone()));
            }
            _ => {}
        }
        if let Some(prefix) = prefix.filter(|prefix| self.has_unknown_target(prefix)) {
            found.push((Warning::UnknownPrefix, format!("{prefix:?}")));
        }
        if let Some(special) = self.special.iter().find(|special| source.contains(special.as_str())) {
            found.push((Warning::SpecialToken, special.clone()));
        }
        for (warning, example) in &found {
            let new = || Count { lines: 0, first: number, example: example.clone() };
            self.counts.entry(*warning).or_insert_with(new).lines += 1;
        }
        found.into_iter().map(|(warning, _)| warning).collect()
    }

    fn begins_with(&self, token: &str) -> bool {
        let ids = self.tokenizer.encode_source(token);
        ids.first().is_some_and(|id| self.tokenizer.source_piece(*id) == token)
    }

    fn has_unknown_target(&self, text: &str) -> bool {
        self.tokenizer.encode_target(text).contains(&self.tokenizer.unk_id())
    }

    /// A line for each kind that was met.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.counts.iter().map(|(warning, count)| format!("warning: {}", Told { warning: *warning, count }))
    }
}

/// The language token, as in `>>fra<<`, that a text begins with.
fn language_token(text: &str) -> Option<&str> {
    let end = text.starts_with(">>").then(|| text.find("<<")).flatten()? + 2;
    text.get(..end)
}

/// A count in words.
struct Told<'a> {
    warning: Warning,
    count: &'a Count,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { lines, first, example } = self.count;
        let (what, rest) = match self.warning {
            Warning::UnknownLanguage => (
                "begin with a language token that the model's vocabulary lacks",
                format!("the first is {example} in line {first}"),
            ),
            Warning::NoLanguage => {
                let advice =
                    format!("the first is line {first}; a language token in front, such as {example}, names one");
                ("name no language, though the model translates into several", advice)
            }
            Warning::UnknownPrefix => (
                "have a target prefix with a piece that the model's vocabulary lacks",
                format!("the first is {example} in line {first}"),
            ),
            Warning::SpecialToken => (
                "hold the name of a special token, which is read as text",
                format!("the first is {example} in line {first}"),
            ),
        };
        write!(f, "lines that {what}: {lines}; {rest}")
    }
}
