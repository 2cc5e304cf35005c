//! What a model says on its own: translations from the decode session, the one that `translate` uses.

use std::path::Path;

use crate::Result;
use crate::decode::{DecodeOptions, Hypothesis};
use crate::text::SentenceDefaults;
use crate::train::autograd::AutogradModel;
use crate::train::objectives::Example;
use crate::translator::{EngineOptions, Translator};

/// Where translations come from.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Draw {
    /// The best of beam search.
    Beam,
    /// Samples of the model's distribution.
    Samples {
        /// Divides the log-probabilities.
        temperature: f32,
        /// Only the most probable tokens that hold this mass together; 1 is all of them.
        top_p: f32,
    },
}

impl Draw {
    /// Checks the values.
    ///
    /// # Errors
    /// [`crate::Error::Option`] names the option.
    pub fn validate(self) -> Result<()> {
        match self {
            Draw::Beam => Ok(()),
            Draw::Samples { temperature, top_p } => {
                DecodeOptions { sample: true, temperature, top_p, ..DecodeOptions::default() }.validate()
            }
        }
    }
}

/// A translation of the model's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// Ids; end of sentence included, unless a length limit ended it.
    pub ids: Vec<u32>,
    /// Text.
    pub text: String,
}

/// A decode session that follows a model being trained.
#[derive(Debug)]
pub struct Rollouts {
    translator: Translator,
    /// The update before which the weights were taken.
    weights_of: Option<u32>,
}

impl Rollouts {
    /// Opens the session over a model directory, for sources with this prefix and these languages.
    ///
    /// # Errors
    /// As [`Translator::open`].
    pub fn open(dir: &Path, defaults: &SentenceDefaults) -> Result<Self> {
        let options = EngineOptions { defaults: defaults.clone(), ..EngineOptions::default() };
        Ok(Rollouts { translator: Translator::open_with(dir, &options)?, weights_of: None })
    }

    /// Makes sure that what comes now is the model's as it is before update number `update`.
    ///
    /// # Errors
    /// As [`Translator::set_weights`].
    pub fn follow(&mut self, model: &AutogradModel, update: u32) -> Result<()> {
        if self.weights_of != Some(update) {
            self.translator.set_weights(&model.parameters().to_weights()?)?;
            self.weights_of = Some(update);
        }
        Ok(())
    }

    /// `count` translations of each example's source, which is encoded once. Samples follow from the seed and the source.
    ///
    /// # Errors
    /// A sentence that cannot be translated.
    pub fn draw(&self, examples: &[Example<'_>], count: usize, draw: Draw, seed: u64) -> Result<Vec<Vec<Rollout>>> {
        let options = match draw {
            Draw::Beam => DecodeOptions { beam_size: count, n_best: count, ..DecodeOptions::default() },
            Draw::Samples { temperature, top_p } => {
                let (sample, samples, cut) = (true, count, true);
                DecodeOptions { sample, samples, temperature, top_p, seed, cut, ..DecodeOptions::default() }
            }
        };
        let sources: Vec<Vec<u32>> = examples.iter().map(|example| example.pair.source.clone()).collect();
        let rollout = |hypothesis: Hypothesis| Rollout {
            text: self.translator.tokenizer().detokenize(&hypothesis.token_ids),
            ids: hypothesis.token_ids,
        };
        let drawn = self.translator.translate_ids(&sources, &options)?.into_iter();
        drawn.map(|hypotheses| Ok(hypotheses?.into_iter().map(rollout).collect())).collect()
    }
}
