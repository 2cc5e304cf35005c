//! The autograd model of [`crate::model::Transformer`] on candle-core: the same computation, over all positions of given targets at
//! once, with a gradient for every parameter.
//!
//! Sentences lie side by side without padding, so that nothing is computed for it and no mask is needed. Everything but the matrix
//! products is an operation of our own with its gradient.

mod attention;
mod batch;
mod model;
mod ops;
mod parameters;
pub(super) mod real;
#[cfg(test)]
mod tests;

use std::path::Path;

use candle_core::{DType, Tensor};

use crate::error::room;
use crate::model::config::ModelConfig;
use crate::model::weights::Weights;
use crate::{Error, Result};

pub use batch::{Batch, Rows};
pub use model::Model;
pub use ops::{Dropout, Rates};
pub use parameters::{Gradients, Parameters};

/// A model that can be trained: its computation and its parameters, which share their storage.
#[derive(Debug)]
pub struct AutogradModel {
    config: ModelConfig,
    model: Model,
    parameters: Parameters,
}

impl AutogradModel {
    /// Loads `config.json` and the weights of a model directory; computes in f32.
    ///
    /// # Errors
    /// Those of [`crate::model::Transformer::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        let config = ModelConfig::open(dir)?;
        Self::new(config, &Weights::open(dir)?, DType::F32)
    }

    /// The autograd model with these weights, computing in f32 or f64.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] for a tensor that does not fit; [`crate::Error::OutOfMemory`].
    pub fn new(config: ModelConfig, weights: &Weights, dtype: DType) -> Result<Self> {
        // What holds them ends the process where it cannot have its memory. Some are joined out of copies.
        room::require("open the model to train it", 2 * dtype.size_in_bytes() * weights.parameters())?;
        let mut loader = parameters::Loader::new(weights, &config, dtype);
        let model = Model::load(&mut loader)?;
        let parameters = loader.finish()?;
        Ok(AutogradModel { config, model, parameters })
    }

    /// Lets the decoder start with this token in place of the configuration's: the target language of some families.
    pub fn start_with(&mut self, id: u32) {
        self.config.ids.decoder_start_id = id;
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The parameters, to be changed in place; the computation sees the change.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// The logits `[target tokens, vocab_size]` of a batch: row t of a sentence says what follows its first t inputs.
    ///
    /// # Errors
    /// [`crate::Error::InputTooLong`] for a sentence beyond the position table, [`crate::Error::Input`] for unknown ids.
    pub fn logits(&self, batch: &Batch, dropout: Option<Dropout>) -> Result<Tensor> {
        batch.check(&self.config)?;
        self.model.logits(&self.config, batch, dropout).map_err(Error::autograd)
    }

    /// The same logits without a gradient and without dropout, in less memory.
    ///
    /// # Errors
    /// As [`AutogradModel::logits`].
    pub fn logits_only(&self, batch: &Batch) -> Result<Tensor> {
        batch.check(&self.config)?;
        self.model.detached().logits(&self.config, batch, None).map_err(Error::autograd)
    }

    /// A model with parameters of its own that hold the same values.
    ///
    /// # Errors
    /// No memory.
    pub fn copy(&self) -> Result<Self> {
        Self::new(self.config.clone(), &self.parameters.to_weights()?, self.parameters.dtype())
    }
}
