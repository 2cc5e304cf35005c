//! What is meant where a sentence says nothing of its languages, and which language or task a code means.

use std::borrow::Cow;

use super::{Languages, TargetPlace, Tokenizer};
use crate::{Error, Result};

/// What sentences have that bring none of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceDefaults {
    /// What stands in front of a source: the task of a T5 model, as in `"summarize: "`.
    pub source_prefix: Option<String>,
    /// The language of a source; `None` is the model's own default, if it has one.
    pub source_lang: Option<String>,
    /// The language of a translation; `None` is the model's own default, if it has one.
    pub target_lang: Option<String>,
}

impl Tokenizer {
    /// Sets what texts mean that do not say it themselves.
    ///
    /// # Errors
    /// [`Error::Option`] for a language that the model does not know, or a pair of languages that none of its tasks has.
    pub fn set_defaults(&mut self, defaults: &SentenceDefaults) -> Result<()> {
        let SentenceDefaults { source_prefix, source_lang, target_lang } = defaults;
        let (source, target) =
            (self.source_language(source_lang.as_deref())?, self.target_language(target_lang.as_deref())?);
        let (from, into) = (source_lang.as_deref(), target_lang.as_deref());
        self.defaults = SentenceDefaults::default();
        let prefix = match self.prefix(source_prefix.as_deref(), from, into) {
            Ok(prefix) => prefix.map(str::to_owned),
            // A sentence may say what is left open.
            Err(_) if self.tasks.are_several(from, into) => None,
            Err(error) => return Err(error),
        };
        self.defaults = SentenceDefaults { source_prefix: prefix, ..defaults.clone() };
        if let Some(languages) = &mut self.languages {
            (languages.source, languages.target) = (source, target);
        }
        Ok(())
    }

    /// The id of the source language of this code, or of the default.
    ///
    /// # Errors
    /// [`Error::Option`] for a language that the model does not know.
    pub fn source_language(&self, code: Option<&str>) -> Result<Option<u32>> {
        self.language("source-lang", code, |languages| languages.source)
    }

    /// The id of the target language of this code, or of the default.
    ///
    /// # Errors
    /// [`Error::Option`] for a language that the model does not know.
    pub fn target_language(&self, code: Option<&str>) -> Result<Option<u32>> {
        self.language("target-lang", code, |languages| languages.target)
    }

    fn language(
        &self,
        option: &'static str,
        code: Option<&str>,
        default: impl Fn(&Languages) -> Option<u32>,
    ) -> Result<Option<u32>> {
        match (&self.languages, code) {
            (None, None) => Ok(None),
            (None, Some(_)) if self.has_translation_tasks() => Ok(None),
            (None, Some(code)) => {
                let (expected, got) = ("no language: the model knows none".into(), format!("{code:?}"));
                Err(Error::Option { option, expected, got })
            }
            (Some(languages), None) => Ok(default(languages)),
            (Some(languages), Some(code)) => languages.id(option, code).map(Some),
        }
    }

    /// Refuses a target language that is not said, where the decoder has to be told one.
    ///
    /// # Errors
    /// [`Error::Option`] names some that the model knows.
    pub fn require_target(&self, language: Option<u32>) -> Result<()> {
        let needed = self.languages.as_ref().filter(|languages| languages.place != TargetPlace::Source);
        let (Some(languages), None) = (needed, language) else { return Ok(()) };
        let some: Vec<&str> = languages.all().iter().take(3).map(|language| language.code.as_str()).collect();
        let expected = format!("one of the model's {} languages, such as {}", languages.all().len(), some.join(", "));
        Err(Error::Option { option: "target-lang", expected, got: "none".into() })
    }

    /// Refuses defaults that do not say everything that the model has to be told, where sentences say nothing.
    ///
    /// # Errors
    /// [`Error::Option`] for a target language, or a task.
    pub fn require_languages(&self) -> Result<()> {
        self.require_target(self.target_language(None)?)?;
        self.prefix(None, None, None).map(drop)
    }

    /// What stands in front of a source: this, or the task that its languages name, or the defaults.
    ///
    /// # Errors
    /// [`Error::Option`] for a pair of languages that none of the model's tasks has.
    pub fn prefix<'p>(
        &'p self,
        prefix: Option<&'p str>,
        source_lang: Option<&str>,
        target_lang: Option<&str>,
    ) -> Result<Option<&'p str>> {
        let names_task = self.has_translation_tasks() && (source_lang.is_some() || target_lang.is_some());
        let prefix = prefix.or(self.defaults.source_prefix.as_deref().filter(|_| !names_task));
        let from = source_lang.or(self.defaults.source_lang.as_deref());
        let into = target_lang.or(self.defaults.target_lang.as_deref());
        if prefix.is_some() || (from.is_none() && into.is_none()) || !self.has_translation_tasks() {
            return Ok(prefix);
        }
        self.tasks.translation(from, into).map(Some)
    }

    /// Whether languages name a task, and not a token.
    fn has_translation_tasks(&self) -> bool {
        self.languages.is_none() && self.tasks.translate()
    }

    /// What the decoder starts with to write this language, in place of the start token of the model's configuration.
    pub fn decoder_start(&self, language: Option<u32>) -> Option<u32> {
        let place = self.languages.as_ref().map(|languages| languages.place);
        language.filter(|_| place == Some(TargetPlace::DecoderStart))
    }
}

/// A text behind its prefix; a blank text stays blank.
pub(crate) fn behind<'t>(prefix: Option<&str>, text: &'t str) -> Cow<'t, str> {
    match prefix {
        Some(prefix) if !text.trim().is_empty() => format!("{prefix}{text}").into(),
        _ => text.into(),
    }
}
