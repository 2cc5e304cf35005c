//! What a model was hardly meant to read: said once for each kind when all is done, and beside each line in JSON.

use std::collections::BTreeMap;
use std::fmt;

use crate::cli::note;
use crate::jsonl::{Warning, Watch};
use crate::text::Tokenizer;

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
    watch: Watch,
    counts: BTreeMap<Warning, Count>,
}

impl<'a> Warnings<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Warnings { tokenizer, watch: Watch::new(tokenizer), counts: BTreeMap::new() }
    }

    /// Looks at sources, each with its line's number, and says what is odd about them.
    pub(super) fn tell<'s>(tokenizer: &'a Tokenizer, sources: impl IntoIterator<Item = (u64, &'s str)>) {
        let mut warnings = Warnings::new(tokenizer);
        for (number, source) in sources {
            warnings.look_at(number, source, None);
        }
        warnings.lines().for_each(|line| note(&line));
    }

    /// What is odd about a source and the prefix of its translation, if it has one.
    pub(super) fn look_at(&mut self, number: u64, source: &str, prefix: Option<&str>) -> Vec<Warning> {
        let found = self.watch.look_at(self.tokenizer, source, prefix);
        for (warning, example) in &found {
            let new = || Count { lines: 0, first: number, example: example.clone() };
            self.counts.entry(*warning).or_insert_with(new).lines += 1;
        }
        found.into_iter().map(|(warning, _)| warning).collect()
    }

    /// A line for each kind that was met.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.counts.iter().map(|(warning, count)| format!("warning: {}", Told { warning: *warning, count }))
    }
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
