//! The losses that training minimises, as operations on rows of logits with a gradient.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::twin::real::{Real, by_dtype, storage, tensor, values, with_values};
use crate::{Error, Result};

/// The weighted negative log-likelihood of targets, summed over rows: a scalar.
///
/// `logits` `[rows, vocab_size]`; a row's loss is `weights[r] * sum_v -target_v log p_v`, where target is `1 - smoothing` at
/// `targets[r]` and `smoothing / (vocab_size - 1)` elsewhere. A row of weight 0 contributes exact zeros. Negative weights make a
/// target less likely.
///
/// # Errors
/// [`Error::Autograd`] for logits of another shape.
pub fn weighted_nll(logits: &Tensor, targets: Arc<[u32]>, weights: Arc<[f32]>, smoothing: f32) -> Result<Tensor> {
    let loss = logits.apply_op1(WeightedNll { targets, weights, smoothing }).and_then(|rows| rows.sum_all());
    loss.map_err(Error::Autograd)
}

struct WeightedNll {
    targets: Arc<[u32]>,
    weights: Arc<[f32]>,
    smoothing: f32,
}

impl WeightedNll {
    /// What the target distribution gives to the target and to each other token.
    fn shares(&self, vocab_size: usize) -> (f64, f64) {
        let smoothing = f64::from(self.smoothing);
        (1.0 - smoothing, smoothing / (vocab_size - 1).max(1) as f64)
    }

    fn losses<T: Real>(&self, logits: &[T], vocab_size: usize) -> Vec<T> {
        let (gold, other) = self.shares(vocab_size);
        let loss = |(row, (&target, &weight)): (&[T], (&u32, &f32))| {
            if weight == 0.0 {
                return T::ZERO;
            }
            let max = T::largest(row);
            let sum = T::exp_shift(&mut row.to_vec(), max);
            let lse = WithDType::to_f64(max) + WithDType::to_f64(sum).ln();
            let at_target = lse - WithDType::to_f64(row[target as usize]);
            let all = match other == 0.0 {
                true => 0.0,
                false => vocab_size as f64 * lse - row.iter().map(|z| WithDType::to_f64(*z)).sum::<f64>(),
            };
            <T as WithDType>::from_f64(f64::from(weight) * (gold * at_target + other * (all - at_target)))
        };
        logits.par_chunks(vocab_size).zip(self.targets.par_iter().zip(&self.weights[..])).map(loss).collect()
    }

    fn gradients<T: Real>(&self, logits: &[T], gradient: &[T], vocab_size: usize) -> Vec<T> {
        let (gold, other) = self.shares(vocab_size);
        let mut out = vec![T::ZERO; logits.len()];
        let rows = out.par_chunks_mut(vocab_size).zip(logits.par_chunks(vocab_size)).zip(gradient);
        rows.zip(self.targets.par_iter().zip(&self.weights[..])).for_each(|(((out, row), g), (&target, &weight))| {
            let weight = f64::from(weight) * WithDType::to_f64(*g);
            if weight == 0.0 {
                return;
            }
            out.copy_from_slice(row);
            let sum = T::exp_shift(out, T::largest(row));
            let factor = <T as WithDType>::from_f64(weight / WithDType::to_f64(sum));
            let shift = <T as WithDType>::from_f64(weight * other);
            out.iter_mut().for_each(|p| *p = *p * factor - shift);
            out[target as usize] -= <T as WithDType>::from_f64(weight * (gold - other));
        });
        out
    }
}

impl CustomOp1 for WeightedNll {
    fn name(&self) -> &'static str {
        "weighted_nll"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, vocab_size) = layout.shape().dims2()?;
        if rows != self.targets.len() || rows != self.weights.len() {
            candle_core::bail!("weighted_nll: expected {rows} targets and weights, got {}", self.targets.len());
        }
        by_dtype!(logits.dtype(), T => {
            Ok((storage(self.losses(values::<T>(logits, layout)?, vocab_size)), Shape::from(rows)))
        })
    }

    fn bwd(&self, logits: &Tensor, _result: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, vocab_size) = logits.dims2()?;
        by_dtype!(logits.dtype(), T => {
            let out = with_values::<T, _, 2>([logits, &gradient.contiguous()?], |[logits, gradient]| {
                self.gradients(logits, gradient, vocab_size)
            })?;
            Ok(Some(tensor(out, logits.dims())?))
        })
    }
}
