//! The languages that a multilingual model knows, and how it is told them.

use std::path::Path;

use serde_json::Value;

use super::iso::Tag;
use crate::{Error, Result};

/// The source and target language that a model's directory names: in its tokenizer's configuration, else in the name that it goes by,
/// as in `en-de`.
pub fn named_pair(dir: &Path, name: &str) -> [Option<String>; 2] {
    let config = std::fs::read_to_string(dir.join("tokenizer_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    let (source, target) = name.split_once('-').or(name.split_once('_')).unzip();
    [("source_lang", source), ("target_lang", target)].map(|(field, named)| {
        let is_code = |code: &&str| Tag::parse(code).is_some();
        let said = config.get(field).and_then(Value::as_str).filter(is_code);
        said.or(named.filter(is_code)).map(str::to_owned)
    })
}

/// A language as a tokenizer knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Language {
    /// What users call it: `de`, `deu_Latn`, `de_DE`, `python`.
    pub code: String,
    /// Its token: `__de__`, `deu_Latn`, `<2de>`, `>>deu<<`.
    pub token: String,
    /// That token's id.
    pub id: u32,
}

/// How the decoder learns which language to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetPlace {
    /// The language's token is the first that is generated: M2M100, NLLB, mBART-50.
    FirstToken,
    /// The decoder starts with it: mBART-25, PLBART.
    DecoderStart,
    /// It stands in front of the source: OPUS-MT, MADLAD-400.
    Source,
}

/// A model's languages.
#[derive(Clone, Debug)]
pub struct Languages {
    all: Vec<Language>,
    /// How the decoder learns the target language.
    pub place: TargetPlace,
    /// Whether the encoder is told the source's language.
    pub marks_source: bool,
    /// The id of the source language where none is said.
    pub source: Option<u32>,
    /// The id of the target language where none is said.
    pub target: Option<u32>,
}

impl Languages {
    /// These languages, without defaults.
    pub(super) fn new(all: Vec<Language>, place: TargetPlace) -> Self {
        Languages { all, place, marks_source: place != TargetPlace::Source, source: None, target: None }
    }

    /// All languages, in the order of the tokenizer.
    pub fn all(&self) -> &[Language] {
        &self.all
    }

    /// The language of this code, or of this token; else the one that a code of [`iso`](super::iso) means.
    pub fn get(&self, code: &str) -> Option<&Language> {
        let own = self.all.iter().find(|language| language.code == code || language.token == code);
        own.or_else(|| self.meant(code))
    }

    /// The language that a code of another kind means, unless it may be several.
    fn meant(&self, code: &str) -> Option<&Language> {
        let tag = Tag::parse(code)?;
        let alike = |language: &Language| Tag::parse(&language.code).map_or(0, |own| tag.likeness(&own));
        let best = self.all.iter().map(alike).max().filter(|best| *best > 0)?;
        let mut found = self.all.iter().filter(|language| alike(language) == best);
        found.next().filter(|_| found.next().is_none())
    }

    /// The language with this id.
    pub fn with_id(&self, id: u32) -> Option<&Language> {
        self.all.iter().find(|language| language.id == id)
    }

    /// The id of the language of this code, which `option` asks for.
    ///
    /// # Errors
    /// [`Error::Option`] names the three codes that are nearest.
    pub fn id(&self, option: &'static str, code: &str) -> Result<u32> {
        let language = self.get(code).ok_or_else(|| {
            let mut near: Vec<&str> = self.all.iter().map(|language| language.code.as_str()).collect();
            near.sort_by_key(|other| distance(code, other));
            near.truncate(3);
            let expected = format!("one of the model's {} languages, such as {}", self.all.len(), near.join(", "));
            Error::Option { option, expected, got: format!("{code:?}") }
        })?;
        Ok(language.id)
    }
}

/// The least number of characters to insert, delete or replace (Levenshtein 1966); letters of either case are alike.
fn distance(a: &str, b: &str) -> usize {
    let lower = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
    let (a, b) = (lower(a), lower(b));
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_code_is_answered_with_the_nearest() {
        let language = |(id, code): (u32, &&str)| Language { code: code.to_string(), token: format!("__{code}__"), id };
        let codes = ["fra_Latn", "deu_Latn", "eng_Latn", "dan_Latn", "zho_Hans"];
        let languages = Languages::new((7..).zip(&codes).map(language).collect(), TargetPlace::FirstToken);
        assert_eq!(languages.id("target-lang", "deu_Latn").ok(), Some(8));
        assert_eq!(languages.id("target-lang", "__dan_Latn__").ok(), Some(10));
        for (code, id) in [("de", 8), ("EN-GB", 9), ("fr_XX", 7), ("zh-CN", 11), ("zh", 11)] {
            assert_eq!(languages.id("target-lang", code).ok(), Some(id), "{code}");
        }
        assert!(languages.get("zh-TW").is_none() && languages.get("pt").is_none());
        let error = languages.id("target-lang", "deu_latin").expect_err("no such code").to_string();
        assert_eq!(
            error,
            "option target-lang: expected one of the model's 5 languages, such as deu_Latn, dan_Latn, fra_Latn, got \"deu_latin\""
        );
    }

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("DE", "de", 0), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
