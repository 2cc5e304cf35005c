//! What a model says on its own: translations from the decode session, the one that `translate` uses.

use std::path::Path;

use crate::Result;
use crate::decode::DecodeOptions;
use crate::train::objectives::Example;
use crate::train::twin::Twin;
use crate::translator::{EngineOptions, Translator};

/// Where translations come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// The best of beam search.
    Beam,
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
    /// Opens the session over a model directory.
    ///
    /// # Errors
    /// As [`Translator::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Rollouts { translator: Translator::open_with(dir, &EngineOptions::default())?, weights_of: None })
    }

    /// Makes sure that what comes now is the model's as it is before update number `update`.
    ///
    /// # Errors
    /// As [`Translator::set_weights`].
    pub fn follow(&mut self, twin: &Twin, update: u32) -> Result<()> {
        if self.weights_of != Some(update) {
            self.translator.set_weights(&twin.parameters().to_weights()?)?;
            self.weights_of = Some(update);
        }
        Ok(())
    }

    /// `count` translations of each example's source, which is encoded once.
    ///
    /// # Errors
    /// A sentence that cannot be translated.
    pub fn draw(&self, examples: &[Example<'_>], count: usize, draw: Draw, _seed: u64) -> Result<Vec<Vec<Rollout>>> {
        let options = match draw {
            Draw::Beam => DecodeOptions { beam_size: count, n_best: count, ..DecodeOptions::default() },
        };
        let mut batch = self.translator.batch(&options)?;
        for (tag, example) in examples.iter().enumerate() {
            batch.push_encoded(tag as u64, example.pair.source_text.clone(), example.pair.source.clone());
        }
        let mut drawn: Vec<Vec<Rollout>> = vec![Vec::new(); examples.len()];
        while let Some((tag, result)) = batch.next() {
            let hypotheses = result?.hypotheses.into_iter();
            drawn[tag as usize] = hypotheses.map(|h| Rollout { ids: h.hypothesis.token_ids, text: h.text }).collect();
        }
        Ok(drawn)
    }
}
