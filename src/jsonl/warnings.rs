//! What a model was hardly meant to read.

use serde::Serialize;

use crate::text::Tokenizer;

/// What may be odd about a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Warning {
    /// It begins with a language token that the vocabulary lacks.
    UnknownLanguage,
    /// It names no language, and the model has several.
    NoLanguage,
    /// Its target prefix holds a piece that the vocabulary lacks.
    UnknownPrefix,
    /// It holds the name of a special token, which is read as text.
    SpecialToken,
}

/// Looks at lines.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The language tokens of a multilingual model; none of another.
    languages: Vec<String>,
    special: Vec<String>,
}

impl Watch {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
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
        Watch { languages, special }
    }

    /// What is odd about a source and the prefix of its translation, if it has one, each with an example.
    pub(crate) fn look_at(&self, tokenizer: &Tokenizer, source: &str, prefix: Option<&str>) -> Vec<(Warning, String)> {
        let mut found = Vec::new();
        let is_told = tokenizer.languages().is_some_and(|languages| languages.target.is_some());
        match language_token(source) {
            // A piece of its own begins the ids of any text that begins with it.
            Some(token) if !begins_with(tokenizer, token) => found.push((Warning::UnknownLanguage, token.to_owned())),
            None if !self.languages.is_empty() && !is_told && !source.trim().is_empty() => {
                found.push((Warning::NoLanguage, self.languages[0].clone()));
            }
            _ => {}
        }
        let is_unknown = |prefix: &&str| tokenizer.encode_target(prefix).contains(&tokenizer.unk_id());
        if let Some(prefix) = prefix.filter(is_unknown) {
            found.push((Warning::UnknownPrefix, format!("{prefix:?}")));
        }
        if let Some(special) = self.special.iter().find(|special| source.contains(special.as_str())) {
            found.push((Warning::SpecialToken, special.clone()));
        }
        found
    }
}

fn begins_with(tokenizer: &Tokenizer, token: &str) -> bool {
    let ids = tokenizer.encode_source_as(token, None, None);
    ids.first().is_some_and(|id| tokenizer.source_piece(*id) == token)
}

/// The language token, as in `>>fra<<`, that a text begins with.
fn language_token(text: &str) -> Option<&str> {
    let end = text.starts_with(">>").then(|| text.find("<<")).flatten()? + 2;
    text.get(..end)
}
