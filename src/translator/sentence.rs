//! Sentences with what is their own, and the options that callers set for all and for each.

use serde::{Deserialize, Serialize};

use super::Translator;
use crate::decode::{DecodeOptions, Overrides, Preset};
use crate::{Error, Result};

/// A sentence to translate, with what is its own. A text becomes one that has nothing else.
///
/// `Sentence<Overrides>` is how JSON says it: its options stand over those of all sentences, and
/// [`Translator::sentence`] makes them whole.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sentence<O = Box<DecodeOptions>> {
    /// The text.
    pub source: String,
    /// What stands in front of the text, as it is, such as the task of a T5 model. Without one: the task that its languages name,
    /// where the model has [such tasks](crate::text::Tasks).
    #[serde(default)]
    pub source_prefix: Option<String>,
    /// The seed of its samples. Without one: a hash of [`DecodeOptions::seed`] and its source ids.
    #[serde(default)]
    pub seed: Option<u64>,
    /// The text that the model reads as its own amateur under
    /// [`ContrastiveForm::Source`](crate::ContrastiveForm::Source).
    #[serde(default)]
    pub contrast_source: Option<String>,
    /// What every translation of it starts with.
    #[serde(default, rename = "target_prefix")]
    pub prefix: Option<String>,
    /// Phrases that every translation of it contains, as they are written at the start of a text or behind a space.
    #[serde(default)]
    pub constraints: Vec<String>,
    /// How to search for its translations, instead of the options of all.
    #[serde(default = "Option::default")]
    pub options: Option<O>,
    /// The language of the text, for a multilingual model; without one the tokenizer's default.
    #[serde(default)]
    pub source_lang: Option<String>,
    /// The language to translate into, for a multilingual model; without one the tokenizer's default.
    #[serde(default)]
    pub target_lang: Option<String>,
    /// The ids that the model is to read instead of the text's, with all that stands around a sentence.
    #[serde(default)]
    pub source_ids: Option<Vec<u32>>,
}

/// The fields of a sentence in JSON.
pub const SENTENCE_FIELDS: [&str; 10] = [
    "source",
    "source_prefix",
    "seed",
    "contrast_source",
    "target_prefix",
    "constraints",
    "options",
    "source_lang",
    "target_lang",
    "source_ids",
];

impl<O> Default for Sentence<O> {
    fn default() -> Self {
        Sentence {
            source: String::new(),
            source_prefix: None,
            seed: None,
            contrast_source: None,
            prefix: None,
            constraints: Vec::new(),
            options: None,
            source_lang: None,
            target_lang: None,
            source_ids: None,
        }
    }
}

impl<O> Sentence<O> {
    /// The sentence under these options, or, without any, under those of all.
    pub fn under<P>(self, options: Option<P>) -> Sentence<P> {
        let Sentence { source, source_prefix, seed, contrast_source, prefix, constraints, .. } = self;
        let Sentence { source_lang, target_lang, source_ids, .. } = self;
        Sentence {
            source,
            source_prefix,
            seed,
            contrast_source,
            prefix,
            constraints,
            options,
            source_lang,
            target_lang,
            source_ids,
        }
    }
}

impl From<&str> for Sentence {
    fn from(source: &str) -> Self {
        source.to_owned().into()
    }
}

impl From<String> for Sentence {
    fn from(source: String) -> Self {
        Sentence { source, ..Sentence::default() }
    }
}

impl Translator {
    /// The options that these come to: those of the preset that they name, and over them what they set. A piece may stand for
    /// `forced_bos`.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that no option has or a value of the wrong type, and as [`DecodeOptions::validate`].
    pub fn options(&self, set: &Overrides) -> Result<DecodeOptions> {
        let options = self.unchecked_options(set)?;
        options.validate()?;
        Ok(options)
    }

    fn unchecked_options(&self, set: &Overrides) -> Result<DecodeOptions> {
        let preset = self.preset(set.read::<Preset>("preset")?.unwrap_or_default())?;
        match set.get("forced_bos").and_then(|value| value.as_str()) {
            None => preset.overridden(set),
            Some(piece) => {
                let mut set = set.clone();
                set.set("forced_bos", self.piece_id("forced-bos", piece)?);
                preset.overridden(&set)
            }
        }
    }

    /// A sentence whose own options, where it brings some, stand over those that are `set` for all; `of_all` are what these come to.
    ///
    /// # Errors
    /// As [`Translator::options`].
    pub fn sentence(
        &self,
        mut sentence: Sentence<Overrides>,
        set: &Overrides,
        of_all: &DecodeOptions,
    ) -> Result<Sentence> {
        let own = sentence.options.take().map(|own| {
            let own = self.unchecked_options(&own.over(set))?;
            // What the models and files of all sentences say.
            let bans = of_all.bans.clone().or(own.bans.clone());
            let own = DecodeOptions { bans, ensemble: of_all.ensemble.clone(), ..own };
            own.validate()?;
            Ok::<_, Error>(Box::new(own))
        });
        Ok(sentence.under(own.transpose()?))
    }

    /// The id of a piece of the target vocabulary, which `option` names.
    ///
    /// # Errors
    /// [`Error::Option`] if there is none.
    pub fn piece_id(&self, option: &'static str, piece: &str) -> Result<u32> {
        let mut ids = 0..self.tokenizer.target_vocab_size() as u32;
        let expected = "pieces of the model's target vocabulary".to_owned();
        let unknown = || Error::Option { option, expected, got: format!("\"{piece}\"") };
        ids.find(|id| self.tokenizer.target_piece(*id) == piece).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_a_sentence_as_the_fields_are_listed() {
        let json =
            r#"{"source": "a", "seed": 18446744073709551615, "target_prefix": "b", "options": {"beam_size": 2}}"#;
        let read: Sentence<Overrides> = serde_json::from_str(json).expect("a sentence");
        let mut options = Overrides::default();
        options.set("beam_size", 2);
        let expected = Sentence {
            source: "a".to_owned(),
            seed: Some(u64::MAX),
            prefix: Some("b".to_owned()),
            options: Some(options),
            ..Sentence::default()
        };
        assert_eq!(read, expected);
        let written = serde_json::to_value(&read).expect("an object");
        let names: std::collections::BTreeSet<&str> =
            written.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(names, SENTENCE_FIELDS.into_iter().collect());
        for wrong in [r#"{"seed": 1}"#, r#"{"source": "a", "sauce": 1}"#, r#"{"source": "a", "options": 7}"#] {
            assert!(serde_json::from_str::<Sentence<Overrides>>(wrong).is_err(), "{wrong}");
        }
    }
}
