//! Launcher of `kernels/layer_norm.cu`: residual add and layer norm.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::{Launch, is_vectorizable};
use crate::Result;

const OPERATION: &str = "layer_norm";
/// Four rows a block.
const THREADS: u32 = 128;

/// `out = (s - mean(s)) / sqrt(var(s) + epsilon) * weight + bias` per row, with `s = x (+ residual)`.
pub struct LayerNorm<'a, T> {
    /// `[rows, d_model]`.
    pub x: View<'a, T>,
    /// `[rows, d_model]`, added to `x` first.
    pub residual: Option<View<'a, T>>,
    /// `[d_model]`.
    pub weight: View<'a, T>,
    /// `[d_model]`.
    pub bias: View<'a, T>,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[rows, d_model]`: takes `s`, for the next residual.
    pub sum: Option<ViewMut<'a, T>>,
    /// `[rows, d_model]`.
    pub out: ViewMut<'a, T>,
}

/// Mirrors `LayerNormArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    x: u64,
    residual: u64,
    weight: u64,
    bias: u64,
    sum: u64,
    out: u64,
    rows: u32,
    d_model: u32,
    epsilon: f32,
    vectorized: u32,
}

impl<T: Element> LayerNorm<'_, T> {
    /// Enqueues the kernel for `rows` rows of `d_model` elements.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, rows: usize, d_model: usize) -> Result<()> {
        self.launch_with(context, rows, d_model, THREADS)
    }

    /// As [`LayerNorm::launch`], with blocks of `threads`, a multiple of 32.
    fn launch_with(self, context: &Context, rows: usize, d_model: usize, threads: u32) -> Result<()> {
        check_len(OPERATION, "x", rows * d_model, self.x.len())?;
        check_len(
            OPERATION,
            "residual",
            rows * d_model,
            self.residual.map_or(rows * d_model, |residual| residual.len()),
        )?;
        check_len(OPERATION, "weight", d_model, self.weight.len())?;
        check_len(OPERATION, "bias", d_model, self.bias.len())?;
        check_len(OPERATION, "sum", rows * d_model, self.sum.as_ref().map_or(rows * d_model, |sum| sum.len()))?;
        check_len(OPERATION, "out", rows * d_model, self.out.len())?;
        if rows * d_model == 0 {
            return Ok(());
        }
        let sum = self.sum.as_ref().map(|sum| sum.as_view());
        let mut arguments = Arguments {
            x: context.address(&self.x)?,
            residual: context.address_or_null(self.residual.as_ref())?,
            weight: context.address(&self.weight)?,
            bias: context.address(&self.bias)?,
            sum: context.address_or_null(sum.as_ref())?,
            out: context.address_mut(&self.out)?,
            rows: to_u32(OPERATION, "rows", rows)?,
            d_model: to_u32(OPERATION, "d_model", d_model)?,
            epsilon: self.epsilon,
            vectorized: 0,
        };
        let Arguments { x, residual, weight, bias, sum, out, .. } = arguments;
        arguments.vectorized = is_vectorizable::<T>(d_model, &[x, residual, weight, bias, sum, out]).into();
        let grid = [arguments.rows.div_ceil(threads / 32), 1, 1];
        // SAFETY: mirrors `layer_norm_<dtype>(LayerNormArguments)`. A warp touches its own row, which is less than `rows`; each
        // tensor has the length checked above or is null; `out` and `sum` are borrowed mutably.
        unsafe {
            context.launch(&Launch { symbol: symbol!("layer_norm", T), grid, block: threads, shared: 0 }, &arguments)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{Values, device_tests, stored, tolerance};
    use crate::{check, cuda::Buffer};

    /// The definition, in f64.
    fn reference(s: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
        let n = weight.len() as f64;
        let mut out = Vec::new();
        for row in s.chunks(weight.len()) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
            let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
            let scaled = row.iter().zip(weight).map(|(&v, &w)| (f64::from(v) - mean) * scale * f64::from(w));
            out.extend(scaled.zip(bias).map(|(v, &b)| (v + f64::from(b)) as f32));
        }
        out
    }

    struct Case {
        rows: usize,
        d_model: usize,
        threads: u32,
        has_residual: bool,
        has_sum: bool,
    }

    fn check_case<T: Element>(context: &Context, case: &Case) -> Result<()> {
        let &Case { rows, d_model, threads, .. } = case;
        let mut values = Values::new(rows as u64 * 7919 + d_model as u64);
        // A mean far from 0: a one-pass variance would fail here.
        let x: Vec<T> = values.elements(rows * d_model, 100.0, 1.0);
        let residual: Vec<T> = values.elements(rows * d_model, 0.0, 2.0);
        let (weight, bias): (Vec<T>, Vec<T>) = (values.elements(d_model, 1.0, 0.5), values.elements(d_model, 0.0, 1.0));
        let s: Vec<f32> = x
            .iter()
            .zip(&residual)
            .map(|(x, r)| x.to_f32() + if case.has_residual { r.to_f32() } else { 0.0 })
            .collect();

        let (x, residual) = (context.upload(&x)?, context.upload(&residual)?);
        let (device_weight, device_bias) = (context.upload(&weight)?, context.upload(&bias)?);
        let mut sum: Buffer<T> = context.allocate(rows * d_model)?;
        let mut out: Buffer<T> = context.allocate(rows * d_model)?;
        LayerNorm {
            x: x.view(),
            residual: case.has_residual.then(|| residual.view()),
            weight: device_weight.view(),
            bias: device_bias.view(),
            epsilon: 1e-5,
            sum: case.has_sum.then(|| sum.view_mut()),
            out: out.view_mut(),
        }
        .launch_with(context, rows, d_model, threads)?;

        let expected = reference(&s, &stored(&weight), &stored(&bias), 1e-5);
        check::assert_close(&stored(&context.download(out.view())?), &expected, tolerance::<T>(2e-4));
        if case.has_sum {
            check::assert_close(&stored(&context.download(sum.view())?), &s, tolerance::<T>(0.0));
        }
        Ok(())
    }

    fn check_shapes<T: Element>(context: &Context) -> Result<()> {
        for (rows, d_model) in [(1, 1), (3, 31), (2, 257), (13, 512), (5, 520), (2, 1024), (3, 1032), (2, 1117)] {
            for (threads, has_residual, has_sum) in
                [(32, true, false), (96, false, true), (256, true, true), (512, false, false)]
            {
                check_case::<T>(context, &Case { rows, d_model, threads, has_residual, has_sum })?;
            }
        }
        Ok(())
    }

    fn bad_values_stay_in_their_row(context: &Context) -> Result<()> {
        let d_model = 64;
        let mut values: Vec<f32> = Values::new(5).elements(3 * d_model, 0.0, 1.0);
        let good = values[..d_model].to_vec();
        values[d_model + 63] = f32::NAN;
        values[2 * d_model] = f32::INFINITY;
        let x = context.upload(&values)?;
        let (weight, bias) = (context.upload(&vec![1.0f32; d_model])?, context.upload(&vec![0.0f32; d_model])?);
        let mut out = context.allocate(3 * d_model)?;
        let (residual, sum, epsilon) = (None, None, 1e-6);
        LayerNorm {
            x: x.view(),
            residual,
            weight: weight.view(),
            bias: bias.view(),
            epsilon,
            sum,
            out: out.view_mut(),
        }
        .launch(context, 3, d_model)?;
        let out = context.download(out.view())?;
        let expected = reference(&good, &vec![1.0; d_model], &vec![0.0; d_model], epsilon);
        check::assert_close(&out[..d_model], &expected, tolerance::<f32>(2e-5));
        assert!(out[d_model..].iter().all(|value| value.is_nan()), "{:?}", &out[d_model..]);
        Ok(())
    }

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let x = context.upload(&[1.0f32; 12])?;
        let weight = context.upload(&[1.0f32; 4])?;
        let mut out = context.allocate(12)?;
        let (residual, sum) = (None, None);
        let case = LayerNorm {
            x: x.view(),
            residual,
            weight: weight.view(),
            bias: weight.view().slice(0..3)?,
            epsilon: 0.0,
            sum,
            out: out.view_mut(),
        };
        let error = case.launch(context, 3, 4).unwrap_err();
        assert_eq!(error.to_string(), "layer_norm: bias: expected 4 elements, got 3 elements");
        Ok(())
    }

    device_tests! {
        f32: check_shapes::<f32>;
        f16: check_shapes::<half::f16>;
        bf16: check_shapes::<half::bf16>;
        bad_values: bad_values_stay_in_their_row;
        shapes: wrong_shapes_are_refused;
    }
}
