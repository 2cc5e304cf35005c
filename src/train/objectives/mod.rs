//! What training minimises. Each objective turns pairs into gradients; the trainer does the rest.

pub mod distill;
pub mod mle;
pub mod mrt;
pub mod scheduled_sampling;

use candle_core::Tensor;

use crate::model::weights::Tensors;
use crate::train::autograd::{AutogradModel, Batch, Dropout, Gradients, Rates};
use crate::train::data::Pair;
use crate::{Error, Result};

/// A pair with its number in the data, by which random numbers are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Example<'a> {
    /// The pair's number.
    pub number: u32,
    /// The pair.
    pub pair: &'a Pair,
}

/// What one update works with, whatever its objective.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// The model as it is before the update.
    pub model: &'a AutogradModel,
    /// The update's number, from 1.
    pub number: u32,
    /// The run's seed.
    pub seed: u64,
    /// Shares of elements dropped.
    pub dropout: Rates,
    /// Label smoothing of the likelihood.
    pub smoothing: f32,
    /// Target tokens of all the update's pairs: what the likelihood is a mean over.
    pub tokens: usize,
    /// Pairs of the update.
    pub sentences: usize,
}

impl Update<'_> {
    /// The dropout of this update.
    pub fn dropout(&self) -> Option<Dropout> {
        Some(Dropout { seed: self.seed, update: self.number, rates: self.dropout })
    }

    /// Pairs as a batch.
    pub fn batch(&self, examples: &[Example<'_>]) -> Batch {
        let groups =
            examples.iter().map(|e| (e.number, e.pair.source.as_slice(), std::slice::from_ref(&e.pair.target)));
        Batch::new(groups, self.model.config().ids.decoder_start_id)
    }
}

/// The sum of gradients over the parts of an update, and what is to be told about it.
#[derive(Debug, Default)]
pub struct Sum {
    /// None before the first part.
    pub gradients: Option<Gradients>,
    /// The loss.
    pub loss: f64,
    /// Figures of the objective: name, sum and weight; their quotient is shown.
    pub figures: Vec<(&'static str, f64, f64)>,
}

impl Sum {
    /// Adds the gradients of a part.
    ///
    /// # Errors
    /// No memory.
    pub fn add(&mut self, loss: f64, gradients: Gradients) -> Result<()> {
        self.loss += loss;
        match &mut self.gradients {
            Some(sum) => sum.add(&gradients),
            None => {
                self.gradients = Some(gradients);
                Ok(())
            }
        }
    }

    /// Adds the sum of a loss's rows and its gradients.
    ///
    /// # Errors
    /// A loss that a parameter has no part in.
    pub fn add_loss(&mut self, model: &AutogradModel, rows: Tensor) -> Result<()> {
        let loss = rows.sum_all().map_err(Error::autograd)?;
        let mut store = loss.backward().map_err(Error::autograd)?;
        let value = f64::from(loss.to_scalar::<f32>().map_err(Error::autograd)?);
        self.add(value, model.parameters().gradients(&mut store)?)
    }

    /// Adds to a figure that is shown as `sum / weight`.
    pub fn figure(&mut self, name: &'static str, value: f64, weight: f64) {
        match self.figures.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, sum, weights)) => {
                *sum += value;
                *weights += weight;
            }
            None => self.figures.push((name, value, weight)),
        }
    }
}

/// Turns pairs into gradients.
pub trait Objective {
    /// Adds the gradients of some of an update's pairs.
    ///
    /// # Errors
    /// Whatever fails.
    fn gradients(&mut self, update: &Update<'_>, examples: &[Example<'_>], sum: &mut Sum) -> Result<()>;

    /// Called after the parameters have changed.
    ///
    /// # Errors
    /// Whatever fails.
    fn updated(&mut self, _twin: &AutogradModel) -> Result<()> {
        Ok(())
    }

    /// Adds what the objective keeps from update to update to a run's state.
    ///
    /// # Errors
    /// No memory.
    fn save(&self, _tensors: &mut Tensors) -> Result<()> {
        Ok(())
    }

    /// Takes it back.
    ///
    /// # Errors
    /// A tensor that is missing.
    fn restore(&mut self, _tensors: &Tensors) -> Result<()> {
        Ok(())
    }
}
