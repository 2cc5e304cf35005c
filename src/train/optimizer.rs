//! AdamW (Loshchilov & Hutter 2019), with its moments open, so that a resumed run continues bit for bit.

use std::sync::Mutex;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::autograd::real::{values, with_values};
use super::autograd::{Gradients, Parameters};
use crate::{Error, Result};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct AdamOptions {
    /// How slowly the mean of gradients follows.
    pub beta1: f64,
    /// How slowly the mean of their squares follows.
    pub beta2: f64,
    /// Keeps the division finite.
    pub eps: f64,
    /// The share of a matrix that an update at learning rate 1 takes away; biases and norms keep theirs.
    pub weight_decay: f64,
    /// The largest norm of the gradient; a larger one is scaled down to it. Infinity never clips.
    pub clip: f64,
}

impl Default for AdamOptions {
    fn default() -> Self {
        AdamOptions { beta1: 0.9, beta2: 0.98, eps: 1e-9, weight_decay: 0.0, clip: 1.0 }
    }
}

/// The state of the optimiser: for each parameter the mean of its gradients and the mean of their squares.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    options: AdamOptions,
    /// Updates done.
    pub step: u32,
    /// Means of gradients, and of their squares, in the parameters' order.
    pub moments: Vec<[Vec<f32>; 2]>,
}

/// Values that one task takes. Sums are made task by task: they do not depend on the number of threads.
const TASK: usize = 1 << 14;

impl AdamW {
    /// An optimiser before its first update.
    pub fn new(options: AdamOptions, parameters: &Parameters) -> Self {
        let zeros = |size: usize| [vec![0.0; size], vec![0.0; size]];
        AdamW { options, step: 0, moments: parameters.iter().map(|p| zeros(p.tensor().elem_count())).collect() }
    }

    /// Updates the parameters at a learning rate and returns the norm of the gradient before clipping.
    ///
    /// # Errors
    /// [`Error::Input`] for a gradient that is not finite; the parameters are as before then.
    pub fn update(&mut self, parameters: &mut Parameters, gradients: &Gradients, rate: f64) -> Result<f64> {
        let mut square = 0.0;
        for (parameter, gradient) in parameters.iter().zip(gradients.iter()) {
            square += sum_of_squares(gradient, parameter.frozen()).map_err(Error::autograd)?;
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            let expected = format!("a finite gradient at update {}", self.step + 1);
            return Err(Error::Input { operation: "train", expected, got: format!("one of norm {norm}") });
        }
        self.step += 1;
        let AdamOptions { beta1, beta2, eps, weight_decay, clip } = self.options;
        let correction = |beta: f64| 1.0 - beta.powf(f64::from(self.step));
        let scale = if norm > clip { clip / norm } else { 1.0 };
        for ((parameter, gradient), moments) in parameters.iter().zip(gradients.iter()).zip(&mut self.moments) {
            let [mean, square] = moments;
            let op = Step {
                beta: [beta1 as f32, beta2 as f32],
                scale: scale as f32,
                rate: (rate / correction(beta1)) as f32,
                root: (1.0 / correction(beta2)) as f32,
                eps: eps as f32,
                keep: (1.0 - if parameter.decays() { rate * weight_decay } else { 0.0 }) as f32,
                frozen: parameter.frozen(),
                moments: Mutex::new([mean, square]),
            };
            parameter.tensor().inplace_op2(gradient, &op).map_err(Error::autograd)?;
        }
        Ok(norm)
    }
}

fn sum_of_squares(gradient: &Tensor, frozen: std::ops::Range<usize>) -> candle_core::Result<f64> {
    let squares = |part: &[f32]| part.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let sum = |part: &[f32]| part.par_chunks(TASK).map(squares).collect::<Vec<f64>>().iter().sum::<f64>();
    with_values::<f32, _, 1>([gradient], |[g]| sum(&g[..frozen.start]) + sum(&g[frozen.end..]))
}

/// One parameter's update, in place.
struct Step<'a> {
    beta: [f32; 2],
    scale: f32,
    /// The learning rate over the first moment's correction.
    rate: f32,
    /// What corrects the second moment.
    root: f32,
    eps: f32,
    keep: f32,
    frozen: std::ops::Range<usize>,
    moments: Mutex<[&'a mut Vec<f32>; 2]>,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        values_storage: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let gradient = values::<f32>(gradient, gradient_layout)?;
        let (CpuStorage::F32(all), Some((start, end))) = (values_storage, layout.contiguous_offsets()) else {
            candle_core::bail!("adamw: expected contiguous values in f32")
        };
        // Nothing else can have panicked while it held the moments.
        let mut moments = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [mean, square] = &mut *moments;
        let values = &mut all[start..end];
        for part in [0..self.frozen.start, self.frozen.end..values.len()] {
            let tasks = values[part.clone()].par_chunks_mut(TASK).zip(gradient[part.clone()].par_chunks(TASK));
            let tasks = tasks.zip(mean[part.clone()].par_chunks_mut(TASK)).zip(square[part].par_chunks_mut(TASK));
            tasks.for_each(|(((values, gradient), mean), square)| {
                for (((x, g), m), v) in values.iter_mut().zip(gradient).zip(mean).zip(square) {
                    let g = g * self.scale;
                    *m = self.beta[0] * *m + (1.0 - self.beta[0]) * g;
                    *v = self.beta[1] * *v + (1.0 - self.beta[1]) * g * g;
                    *x = *x * self.keep - self.rate * *m / ((*v * self.root).sqrt() + self.eps);
                }
            });
        }
        Ok(())
    }
}
