//! Maximum likelihood: each token given the gold tokens before it.

use super::{Example, Objective, Sum, Update};
use crate::train::autograd::Batch;
use crate::train::ops::weighted_nll;
use crate::{Error, Result};

/// The mean negative log-likelihood of the targets' tokens, with label smoothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mle;

impl Objective for Mle {
    fn gradients(&mut self, update: &Update<'_>, examples: &[Example<'_>], sum: &mut Sum) -> Result<()> {
        likelihood(update, &update.batch(examples), 1.0, sum)
    }
}

/// Adds `share` times the mean over the update's tokens of their negative log-likelihood, given a batch's inputs.
///
/// # Errors
/// A batch that does not fit the model.
pub fn likelihood(update: &Update<'_>, batch: &Batch, share: f32, sum: &mut Sum) -> Result<()> {
    let logits = update.model.logits(batch, update.dropout())?;
    let rows = batch.targets.len();
    let weights = vec![share / update.tokens as f32; rows];
    let loss = weighted_nll(&logits, &batch.targets.ids, &vec![1; rows], &weights, update.smoothing);
    sum.add_loss(update.model, loss.map_err(Error::autograd)?)
}
