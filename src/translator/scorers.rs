//! The further models that sentences may rank by, and what a sentence asks of all of them.

use std::path::Path;

use super::{EngineOptions, Sentence, Translator, check_vocabularies, cut_source};
use crate::backend::{ContrastiveForm, SpecialIds};
use crate::decode::engine::Scoring;
use crate::decode::{Constraint, DecodeOptions, Limits, Request, SentenceIds};
use crate::model::config::ModelConfig;
use crate::text::{TargetPlace, Tokenizer, behind};
use crate::{Error, Result};

impl EngineOptions {
    /// The directories of the further models, in the order of their scorers.
    pub(super) fn companions(&self) -> impl Iterator<Item = &Path> {
        self.ensemble.iter().chain(&self.amateur).map(|dir| dir.as_path())
    }
}

/// Checks that the further models have the pieces of the translator's.
pub(super) fn check_companions(options: &EngineOptions, config: &ModelConfig, own: &Tokenizer) -> Result<()> {
    for dir in options.companions() {
        let (other, tokenizer) = (ModelConfig::open(dir)?, Tokenizer::open(dir)?);
        check_vocabularies(dir, &other, &tokenizer)?;
        let differs = |expected: String, got: String| Err(Error::Tokenizer { path: dir.to_path_buf(), expected, got });
        for (side, ours, theirs) in [
            ("source", pieces(own, true), pieces(&tokenizer, true)),
            ("target", pieces(own, false), pieces(&tokenizer, false)),
        ] {
            if let Some(id) = (0..ours.len().max(theirs.len())).find(|id| ours.get(*id) != theirs.get(*id)) {
                let name =
                    |pieces: &[&str]| pieces.get(id).map_or("no piece".to_owned(), |piece| format!("\"{piece}\""));
                let expected = format!("the translator's own pieces, {side} piece {id} being {}", name(&ours));
                return differs(expected, name(&theirs));
            }
        }
        let sizes = |config: &ModelConfig| (config.vocab_size, config.decoder_vocab_size);
        if sizes(&other) != sizes(config) {
            let said = |(source, target)| format!("{source} source and {target} target tokens");
            return differs(format!("the translator's own {}", said(sizes(config))), said(sizes(&other)));
        }
        if other.ids != config.ids {
            let told = |ids: SpecialIds| {
                let SpecialIds { eos_id, pad_id, decoder_start_id } = ids;
                format!("end of sentence {eos_id}, padding {pad_id} and decoder start {decoder_start_id}")
            };
            return differs(format!("the translator's own {}", told(config.ids)), told(other.ids));
        }
    }
    Ok(())
}

fn pieces(tokenizer: &Tokenizer, source: bool) -> Vec<&str> {
    match source {
        true => (0..tokenizer.source_vocab_size() as u32).map(|id| tokenizer.source_piece(id)).collect(),
        false => (0..tokenizer.target_vocab_size() as u32).map(|id| tokenizer.target_piece(id)).collect(),
    }
}

impl Translator {
    /// Checks that the models which the options ask for are there.
    pub(super) fn check_models(&self, options: &DecodeOptions) -> Result<()> {
        let asks_amateur = options.contrastive.is_some_and(|form| form != ContrastiveForm::Source);
        if asks_amateur && self.options.amateur.is_none() {
            let expected = "an amateur model, or the form source".to_owned();
            return Err(Error::Option { option: "contrastive", expected, got: "no amateur".into() });
        }
        let (members, weights) = (1 + self.options.ensemble.len(), options.ensemble.len());
        if weights > 0 && weights != members {
            let expected = format!("a weight for each of {members} models");
            return Err(Error::Option { option: "ensemble", expected, got: weights.to_string() });
        }
        Ok(())
    }

    /// The ids that the model reads of a sentence: its own, or its text's under its languages.
    ///
    /// # Errors
    /// [`Error::Option`] for a language that the model does not know.
    pub fn source_ids(&self, sentence: &Sentence) -> Result<Vec<u32>> {
        if let Some(ids) = &sentence.source_ids {
            return Ok(ids.clone());
        }
        self.tokenizer.check_text(&sentence.source)?;
        let Sentence { source_prefix, source_lang, target_lang, .. } = sentence;
        let prefix = self.tokenizer.prefix(source_prefix.as_deref(), source_lang.as_deref(), target_lang.as_deref())?;
        let text = behind(prefix, &sentence.source);
        let source = self.tokenizer.source_language(source_lang.as_deref())?;
        Ok(self.tokenizer.encode_source_as(&text, source, self.target_language(sentence)?))
    }

    /// What it takes to score a translation of a sentence.
    pub(super) fn scoring(&self, sentence: &Sentence, target: &str) -> Result<Scoring> {
        let (source, language) = (self.source_ids(sentence)?, self.target_language(sentence)?);
        self.tokenizer.require_target(language)?;
        self.tokenizer.check_text(target)?;
        let target = self.tokenizer.encode_target_as(target, language);
        let behind = |start| std::iter::once(start).chain(target.iter().copied()).take(target.len()).collect();
        let inputs = self.tokenizer.decoder_start(language).map(behind);
        Ok(Scoring { source, target, inputs })
    }

    fn target_language(&self, sentence: &Sentence) -> Result<Option<u32>> {
        self.tokenizer.target_language(sentence.target_lang.as_deref())
    }

    /// Checks that a model which is told its target language has one, where a text is translated.
    pub(super) fn check_target_language(&self, options: &DecodeOptions, sentence: &Sentence) -> Result<()> {
        match options.forced_bos.is_some() || sentence.source_ids.is_some() {
            true => Ok(()),
            false => self.tokenizer.require_target(self.target_language(sentence)?),
        }
    }

    /// What requests under these options have to know of the models.
    pub(super) fn limits(&self, options: &DecodeOptions) -> Limits {
        let amateur = match options.contrastive {
            Some(ContrastiveForm::Source) => self.engine.other_source_scorer(),
            // Behind the ensemble's scorers comes the amateur's.
            _ => 1 + self.options.ensemble.len(),
        };
        Limits { table: self.engine.max_len(), amateur }
    }

    /// The search for a sentence whose source has these ids. The target language is what the decoder reads or generates first, as
    /// its model has it.
    pub(super) fn request(&self, options: &DecodeOptions, source: Vec<u32>, sentence: &Sentence) -> Result<Request> {
        let limits = self.limits(options);
        let target = self.target_language(sentence)?;
        let place = self.tokenizer.languages().map(|languages| languages.place);
        let first = target.filter(|_| place == Some(TargetPlace::FirstToken));
        let start = self.tokenizer.decoder_start(target);
        let mut contrast_source = Vec::new();
        if options.contrastive == Some(ContrastiveForm::Source) {
            let Some(other) = &sentence.contrast_source else {
                let expected = "another source to contrast the sentence with".into();
                return Err(Error::Input { operation: "contrast sources", expected, got: "none".into() });
            };
            let other = Sentence { source: other.clone(), source_ids: None, ..sentence.clone() };
            contrast_source = self.source_ids(&other)?;
            cut_source(options, &mut contrast_source, limits.table, &self.tokenizer);
        }
        self.tokenizer.check_text(sentence.prefix.as_deref().unwrap_or_default())?;
        let prefix = sentence.prefix.as_ref().map_or_else(Vec::new, |text| {
            let mut prefix = self.tokenizer.encode_target_as(text, first);
            // Its end of sentence.
            prefix.pop();
            prefix
        });
        let constraints = sentence.constraints.iter().map(|text| self.constraint(text)).collect::<Result<_>>()?;
        let ids = SentenceIds { source, contrast_source, prefix, constraints, seed: sentence.seed, start };
        match first {
            None => Request::new(options, ids, limits),
            Some(_) => Request::new(&DecodeOptions { forced_bos: first, ..options.clone() }, ids, limits),
        }
    }

    /// Whether a translation can be told to contain this phrase.
    #[cfg(feature = "documents")]
    pub(crate) fn spells(&self, text: &str) -> bool {
        self.constraint(text).is_ok_and(|constraint| !constraint.ids.is_empty())
    }

    fn constraint(&self, text: &str) -> Result<Constraint> {
        self.tokenizer.check_text(text)?;
        let mut ids = self.tokenizer.encode_target_as(text, None);
        ids.pop();
        if ids.contains(&self.tokenizer.unk_id()) {
            let expected = "phrases that the model's pieces can spell".into();
            return Err(Error::Input { operation: "constrain", expected, got: format!("\"{text}\"") });
        }
        Ok(Constraint { text: text.to_owned(), ids })
    }
}
