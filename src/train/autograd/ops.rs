//! The operations of the autograd model that candle lacks, or has without a gradient: linear layers with their bias, embedding, layer norm,
//! activation and dropout. Each goes over rows `[rows, width]`; each row's result depends on that row alone.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::real::{Real, by_dtype, owned, storage, tensor, values, with_values};
use crate::backend::{Activation, NormKind, TokenPlace};
use crate::cpu::philox::{Purpose, philox};

/// Rows that one task takes. Sums over rows are made task by task, so that they do not depend on the number of threads.
const ROWS_PER_TASK: usize = 32;

/// The sum of the rows `[rows, width]`.
fn sum_rows<T: Real>(x: &[T], width: usize) -> Vec<T> {
    let partial = |rows: &[T]| {
        let mut sum = vec![T::ZERO; width];
        rows.chunks_exact(width).for_each(|row| T::axpy(T::ONE, row, &mut sum));
        sum
    };
    let parts: Vec<Vec<T>> = x.par_chunks(width * ROWS_PER_TASK).map(partial).collect();
    parts.into_iter().reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a + b).collect()).unwrap_or_default()
}

/// `x weight^T + bias`: x `[rows, inner]`, weight `[out, inner]`, bias `[out]`.
pub(super) struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = x_layout.shape().dims2()?;
        let (out, _) = weight_layout.shape().dims2()?;
        let product = x.matmul(weight, (1, rows, out, inner), x_layout, &weight_layout.transpose(0, 1)?)?;
        by_dtype!(x.dtype(), T => {
            let mut product = owned::<T>(product)?;
            let bias = values::<T>(bias, bias_layout)?;
            product.par_chunks_mut(out * ROWS_PER_TASK).for_each(|rows| {
                rows.chunks_exact_mut(out).for_each(|row| T::axpy(T::ONE, bias, row));
            });
            Ok((storage(product), Shape::from((rows, out))))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let to_x = x.track_op().then(|| gradient.matmul(weight)).transpose()?;
        let to_weight = weight.track_op().then(|| gradient.t()?.matmul(x)).transpose()?;
        let to_bias = || {
            let width = bias.dims1()?;
            by_dtype!(x.dtype(), T => tensor(with_values::<T, _, 1>([gradient], |[g]| sum_rows(g, width))?, &[width]))
        };
        Ok((to_x, to_weight, bias.track_op().then(to_bias).transpose()?))
    }
}

/// `table[id] * scale + positions[position]`: table `[vocabulary, width]`, positions `[longest, width]`.
///
/// The row of `pad_id`, where there is one, gets no gradient: the decoder starts from it, and like padding it stays what it is.
pub(super) struct Embed {
    pub ids: Arc<[u32]>,
    pub places: Arc<[TokenPlace]>,
    pub scale: f64,
    pub pad_id: Option<u32>,
}

impl CustomOp2 for Embed {
    fn name(&self) -> &'static str {
        "embed"
    }

    fn cpu_fwd(
        &self,
        table: &CpuStorage,
        table_layout: &Layout,
        positions: &CpuStorage,
        positions_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = table_layout.shape().dims2()?;
        by_dtype!(table.dtype(), T => {
            let (table, positions) = (values::<T>(table, table_layout)?, values::<T>(positions, positions_layout)?);
            let mut out = vec![T::ZERO; self.ids.len() * width];
            for ((row, &id), place) in out.chunks_exact_mut(width).zip(self.ids.iter()).zip(self.places.iter()) {
                row.copy_from_slice(&positions[place.position as usize * width..][..width]);
                T::axpy(<T as WithDType>::from_f64(self.scale), &table[id as usize * width..][..width], row);
            }
            Ok((storage(out), Shape::from((self.ids.len(), width))))
        })
    }

    fn bwd(
        &self,
        table: &Tensor,
        _positions: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (vocabulary, width) = table.dims2()?;
        let to_table = by_dtype!(table.dtype(), T => {
            let sum = with_values::<T, _, 1>([gradient], |[gradient]| {
                let mut sum = vec![T::ZERO; vocabulary * width];
                for (row, &id) in gradient.chunks_exact(width).zip(self.ids.iter()).filter(|(_, id)| Some(**id) != self.pad_id) {
                    T::axpy(<T as WithDType>::from_f64(self.scale), row, &mut sum[id as usize * width..][..width]);
                }
                sum
            })?;
            tensor(sum, &[vocabulary, width])
        })?;
        Ok((Some(to_table), None))
    }
}

/// `(x - mean) / sqrt(variance + eps) * gain + bias` over each row; x `[rows, width]`, gain and bias `[width]`. Without a bias
/// nothing is subtracted, either: the RMS norm.
pub(super) struct LayerNorm {
    pub eps: f64,
    pub kind: NormKind,
}

impl LayerNorm {
    /// Writes `(x - mean) / sqrt(variance + eps)` and returns the factor.
    fn normalize<T: Real>(&self, x: &[T], out: &mut [T]) -> f64 {
        let width = x.len() as f64;
        let mean = match self.kind {
            NormKind::Layer => x.iter().map(|x| x.to_f64()).sum::<f64>() / width,
            NormKind::Rms => 0.0,
        };
        let variance = x.iter().map(|x| (x.to_f64() - mean).powi(2)).sum::<f64>() / width;
        let factor = 1.0 / (variance + self.eps).sqrt();
        let (shift, scale) = (T::from_f64(mean), T::from_f64(factor));
        out.iter_mut().zip(x).for_each(|(out, x)| *out = (*x - shift) * scale);
        factor
    }

    /// The norm of each row.
    fn apply<T: Real>(&self, x: &[T], gain: &[T], bias: Option<&[T]>) -> Vec<T> {
        let width = gain.len();
        let mut out = vec![T::ZERO; x.len()];
        let task = width * ROWS_PER_TASK;
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                self.normalize(x, out);
                for i in 0..width {
                    out[i] = out[i] * gain[i] + bias.map_or(T::ZERO, |bias| bias[i]);
                }
            }
        });
        out
    }

    /// The gradients of x, of the gain and of the bias.
    fn gradients<T: Real>(&self, x: &[T], gain: &[T], gradient: &[T]) -> (Vec<T>, Vec<T>, Vec<T>) {
        let width = gain.len();
        let mut to_x = vec![T::ZERO; x.len()];
        let task = width * ROWS_PER_TASK;
        let chunks = to_x.par_chunks_mut(task).zip(x.par_chunks(task)).zip(gradient.par_chunks(task));
        let parts: Vec<(Vec<T>, Vec<T>)> = chunks
            .map(|((to_x, x), gradient)| {
                let (mut to_gain, mut to_bias) = (vec![T::ZERO; width], vec![T::ZERO; width]);
                let (mut normal, mut scaled) = (vec![T::ZERO; width], vec![T::ZERO; width]);
                let rows = to_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(gradient.chunks_exact(width));
                for ((to_x, x), gradient) in rows {
                    let factor = T::from_f64(self.normalize(x, &mut normal));
                    T::axpy(T::ONE, gradient, &mut to_bias);
                    for i in 0..width {
                        to_gain[i] += gradient[i] * normal[i];
                        scaled[i] = gradient[i] * gain[i];
                    }
                    let count = T::from_f64(width as f64);
                    let mean = match self.kind {
                        NormKind::Layer => scaled.iter().fold(T::ZERO, |sum, x| sum + *x) / count,
                        NormKind::Rms => T::ZERO,
                    };
                    let along = T::dot(&scaled, &normal) / count;
                    for i in 0..width {
                        to_x[i] = factor * (scaled[i] - mean - normal[i] * along);
                    }
                }
                (to_gain, to_bias)
            })
            .collect();
        let mut sums = (vec![T::ZERO; width], vec![T::ZERO; width]);
        for (to_gain, to_bias) in parts {
            T::axpy(T::ONE, &to_gain, &mut sums.0);
            T::axpy(T::ONE, &to_bias, &mut sums.1);
        }
        (to_x, sums.0, sums.1)
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), T => {
            let (x, gain, bias) =
                (values::<T>(x, x_layout)?, values::<T>(gain, gain_layout)?, values::<T>(bias, bias_layout)?);
            Ok((storage(self.apply(x, gain, Some(bias))), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _bias: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let width = gain.dims1()?;
        by_dtype!(x.dtype(), T => {
            let (to_x, to_gain, to_bias) =
                with_values::<T, _, 3>([x, gain, gradient], |[x, gain, gradient]| self.gradients(x, gain, gradient))?;
            Ok((Some(tensor(to_x, x.dims())?), Some(tensor(to_gain, &[width])?), Some(tensor(to_bias, &[width])?)))
        })
    }
}

impl CustomOp2 for LayerNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), T => {
            let (x, gain) = (values::<T>(x, x_layout)?, values::<T>(gain, gain_layout)?);
            Ok((storage(self.apply(x, gain, None)), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = gain.dims1()?;
        by_dtype!(x.dtype(), T => {
            let (to_x, to_gain, _) =
                with_values::<T, _, 3>([x, gain, gradient], |[x, gain, gradient]| self.gradients(x, gain, gradient))?;
            Ok((Some(tensor(to_x, x.dims())?), Some(tensor(to_gain, &[width])?)))
        })
    }
}

/// The model's activation, element by element.
pub(super) struct Activate(pub Activation);

impl Activate {
    /// The derivative at x, where the function's value is y.
    ///
    /// But for relu each is y = x s(x) with a share s from 0 to 1, so that y' = s + x s'(x), and s can be taken from y / x.
    fn slope(&self, x: f64, y: f64) -> f64 {
        // 1 / sqrt(2 pi): the normal density at 0, and the slope of GELU's share there.
        const DENSITY: f64 = 0.398_942_280_401_432_7;
        let share = |slope_at_zero: f64| if x.abs() > 1e-3 { y / x } else { 0.5 + slope_at_zero * x };
        match self.0 {
            Activation::None => 1.0,
            Activation::Relu => f64::from(u8::from(x > 0.0)),
            Activation::Silu => {
                let s = share(0.25);
                s + x * s * (1.0 - s)
            }
            Activation::GeluTanh => {
                let s = share(DENSITY);
                s + x * s * (1.0 - s) * 4.0 * DENSITY * (1.0 + 3.0 * 0.044_715 * x * x)
            }
            Activation::GeluErf => share(DENSITY) + x * DENSITY * (-x * x / 2.0).exp(),
        }
    }
}

/// Elements that one task takes in operations that go element by element.
const ELEMENTS_PER_TASK: usize = 1 << 14;

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(x.dtype(), T => {
            let mut out = values::<T>(x, layout)?.to_vec();
            out.par_chunks_mut(ELEMENTS_PER_TASK).for_each(|x| T::activate(self.0, x));
            Ok((storage(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        by_dtype!(x.dtype(), T => {
            let to_x = with_values::<T, _, 3>([x, result, gradient], |[x, y, gradient]| {
                let mut out = gradient.to_vec();
                let task = ELEMENTS_PER_TASK;
                out.par_chunks_mut(task).zip(x.par_chunks(task)).zip(y.par_chunks(task)).for_each(|((out, x), y)| {
                    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                        *out *= <T as WithDType>::from_f64(self.slope(WithDType::to_f64(*x), WithDType::to_f64(*y)));
                    }
                });
                out
            })?;
            Ok(Some(tensor(to_x, x.dims())?))
        })
    }
}

/// Which elements a run drops: a function of the seed, the update, the place in the model and the token, so that it depends on
/// neither the batch nor the number of threads, and a resumed run drops the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The run's seed.
    pub seed: u64,
    /// Number of the update.
    pub update: u32,
    /// How much is dropped where.
    pub rates: Rates,
}

/// Shares of elements that become 0; the others are divided by 1 - rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Rates {
    /// Of embeddings and of what sublayers add.
    pub sublayers: f32,
    /// Of the weights of attention.
    pub attention: f32,
    /// Of the inner elements of feed-forward layers.
    pub activation: f32,
}

impl Rates {
    /// Dropout of embeddings and sublayers alone.
    pub fn of_sublayers(rate: f32) -> Self {
        Rates { sublayers: rate, ..Rates::default() }
    }
}

/// Dropout at one place of the model.
#[derive(Clone, Debug)]
pub(super) struct Drop {
    pub dropout: Dropout,
    /// The rate there.
    pub rate: f32,
    /// Which of the model's places: every one draws its own numbers.
    pub site: u32,
    pub places: Arc<[TokenPlace]>,
}

impl Drop {
    /// `out += kept(x) / (1 - rate)`, row by row.
    fn add<T: Real>(&self, x: &[T], width: usize, out: &mut [T]) {
        let (threshold, factor) = self.threshold_and_factor();
        let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).zip(&self.places[..]).with_min_len(ROWS_PER_TASK);
        rows.for_each(|((out, x), place)| {
            for (group, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                for ((out, x), word) in out.iter_mut().zip(x).zip(self.words(place, group as u32)) {
                    *out += if word < threshold { T::ZERO } else { *x * factor };
                }
            }
        });
    }

    /// Drops some of the weights with which a row's head attends to the keys of a sentence, from the first on.
    pub fn weights<T: Real>(&self, row: usize, head: usize, weights: &mut [T]) {
        let (threshold, factor) = self.threshold_and_factor();
        for (group, weights) in weights.chunks_mut(4).enumerate() {
            // Room for 64 heads and 4096 keys.
            let words = self.words(&self.places[row], (head << 10 | group) as u32);
            for (weight, word) in weights.iter_mut().zip(words) {
                *weight = if word < threshold { T::ZERO } else { *weight * factor };
            }
        }
    }

    /// Below which a random word, with the probability of the rate, drops an element, and what multiplies the others.
    fn threshold_and_factor<T: Real>(&self) -> (u32, T) {
        let rate = f64::from(self.rate);
        ((rate * 2f64.powi(32)) as u32, T::from_f64(1.0 / (1.0 - rate)))
    }

    fn words(&self, place: &TokenPlace, group: u32) -> [u32; 4] {
        let Dropout { seed, update, .. } = self.dropout;
        let site = (Purpose::Dropout as u32) << 28 | self.site;
        philox(seed, [update, site, place.sentence, place.position << 16 | group])
    }

    fn applied(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = x.dims2()?;
        by_dtype!(x.dtype(), T => {
            let out = with_values::<T, _, 1>([x], |[x]| {
                let mut out = vec![T::ZERO; x.len()];
                self.add(x, width, &mut out);
                out
            })?;
            tensor(out, x.dims())
        })
    }
}

/// Dropout of x.
impl CustomOp1 for Drop {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), T => {
            let x = values::<T>(x, layout)?;
            let mut out = vec![T::ZERO; x.len()];
            self.add(x, width, &mut out);
            Ok((storage(out), layout.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, _result: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.applied(gradient)?))
    }
}

/// A residual connection: x plus dropout of a sublayer's result.
pub(super) struct AddDropped(pub Drop);

impl CustomOp2 for AddDropped {
    fn name(&self) -> &'static str {
        "add_dropped"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        delta: &CpuStorage,
        delta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        by_dtype!(x.dtype(), T => {
            let mut out = values::<T>(x, layout)?.to_vec();
            self.0.add(values::<T>(delta, delta_layout)?, width, &mut out);
            Ok((storage(out), layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        _x: &Tensor,
        _delta: &Tensor,
        _result: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(gradient.clone()), Some(self.0.applied(gradient)?)))
    }
}
