//! Launcher of `kernels/layer_norm.cu`: residual add, and layer norm or RMS norm.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::Element;
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::Result;
use crate::backend::{Dtype, NormKind};

const OPERATION: &str = "layer_norm";
/// Four rows a block.
pub(super) const THREADS: u32 = 128;

/// The norm of each row, in place; see [`crate::backend::NetworkOps::layer_norm`]. To the delta `delta_bias` is added.
pub struct LayerNorm<'a, T> {
    /// `[rows, d_model]`, replaced.
    pub x: ViewMut<'a, T>,
    /// `[rows, d_model]`: takes what is normalised; where there is a delta, it is added to this.
    pub sum: Option<ViewMut<'a, f32>>,
    /// `[rows, d_model]`.
    pub delta: Option<View<'a, T>>,
    /// `[d_model]`: the bias of the product that made `delta`, if that has not been added.
    pub delta_bias: Option<View<'a, f32>>,
    /// `[d_model]`.
    pub gain: View<'a, T>,
    /// `[d_model]`.
    pub bias: Option<View<'a, T>>,
    /// What a row is divided by.
    pub kind: NormKind,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
}

/// Mirrors `LayerNormArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Arguments {
    x: u64,
    sum: u64,
    delta: u64,
    gain: u64,
    bias: u64,
    delta_bias: u64,
    rows: u32,
    d_model: u32,
    eps: f32,
    flags: u32,
}

impl Arguments {
    /// How many rows are normalised.
    pub(super) fn rows(&self) -> u32 {
        self.rows
    }
}

/// Bits of `flags`.
const VECTORIZED: u32 = 1;
const RMS: u32 = 2;

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] =
    &[layout!(Arguments as "LayerNormArguments" { x, sum, delta, gain, bias, delta_bias, rows, d_model, eps, flags })];

impl<T: Element> LayerNorm<'_, T> {
    /// Enqueues the kernel for `rows` rows of `d_model` elements.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, rows: usize, d_model: usize) -> Result<()> {
        self.launch_with(context, rows, d_model, THREADS)
    }

    /// As [`LayerNorm::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, rows: usize, d_model: usize, threads: u32) -> Result<()> {
        let arguments = self.arguments(context, rows, d_model)?;
        // SAFETY: the lengths were checked; `x` and `sum` are borrowed mutably.
        unsafe { enqueue(context, T::DTYPE, &arguments, threads) }
    }

    /// What the kernel takes: addresses of tensors that are borrowed here alone.
    ///
    /// # Errors
    /// A tensor of another size.
    pub(super) fn arguments(self, context: &Context, rows: usize, d_model: usize) -> Result<Arguments> {
        check_len(OPERATION, "x", rows * d_model, self.x.len())?;
        check_len(OPERATION, "sum", rows * d_model, self.sum.as_ref().map_or(rows * d_model, ViewMut::len))?;
        check_len(OPERATION, "delta", rows * d_model, self.delta.map_or(rows * d_model, |delta| delta.len()))?;
        check_len(OPERATION, "gain", d_model, self.gain.len())?;
        check_len(OPERATION, "bias", d_model, self.bias.map_or(d_model, |bias| bias.len()))?;
        check_len(OPERATION, "delta_bias", d_model, self.delta_bias.map_or(d_model, |bias| bias.len()))?;
        let mut arguments = Arguments {
            x: context.address_mut(&self.x)?,
            sum: self.sum.as_ref().map_or(Ok(0), |sum| context.address_mut(sum))?,
            delta: context.address_or_null(self.delta.as_ref())?,
            gain: context.address(&self.gain)?,
            bias: context.address_or_null(self.bias.as_ref())?,
            delta_bias: context.address_or_null(self.delta_bias.as_ref())?,
            rows: to_u32(OPERATION, "rows", rows)?,
            d_model: to_u32(OPERATION, "d_model", d_model)?,
            eps: self.eps,
            flags: if self.kind == NormKind::Rms { RMS } else { 0 },
        };
        let Arguments { x, sum, delta, gain, bias, delta_bias, .. } = arguments;
        if is_vectorizable::<T>(d_model, &[x, sum, delta, gain, bias, delta_bias]) {
            arguments.flags |= VECTORIZED;
        }
        Ok(arguments)
    }
}

/// The launch of the kernel for a storage type and so many rows, at least one.
pub(super) fn launch(dtype: Dtype, rows: u32, threads: u32) -> Launch {
    let symbol = match dtype {
        Dtype::F32 | Dtype::I8 => "layer_norm_f32",
        Dtype::F16 => "layer_norm_f16",
        Dtype::Bf16 => "layer_norm_bf16",
    };
    Launch { symbol, grid: [rows.div_ceil(threads / 32), 1, 1], block: threads, shared: 0 }
}

/// Enqueues the kernel, if there is anything to normalise.
///
/// # Safety
/// The tensors hold elements of this type and have the lengths that [`LayerNorm`] says; nothing else reads or writes `x` and `sum`.
unsafe fn enqueue(context: &Context, dtype: Dtype, arguments: &Arguments, threads: u32) -> Result<()> {
    if arguments.rows == 0 || arguments.d_model == 0 {
        return Ok(());
    }
    // SAFETY: mirrors `layer_norm_<dtype>(LayerNormArguments)`. A warp touches its own row, which is less than `rows`; the caller's promise.
    unsafe { context.launch(&launch(dtype, arguments.rows, threads), arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::cpu::layer_norm as cpu;
    use crate::cuda::testing::{Values, device_tests, tolerance};
    use crate::validate::kernels::layer_norm as cases;
    use crate::validate::probe::assert_all_pass;

    const EPS: f32 = 1e-5;

    fn bad_values_stay_in_their_row(context: &Context) -> Result<()> {
        let d_model = 64;
        let mut values: Vec<f32> = Values::new(5).elements(3 * d_model, 0.0, 1.0);
        let good = values[..d_model].to_vec();
        values[d_model + 63] = f32::NAN;
        values[2 * d_model] = f32::INFINITY;
        let delta = context.upload(&vec![0.0f32; values.len()])?;
        let (gain, bias) = (context.upload(&vec![1.0f32; d_model])?, context.upload(&vec![0.0f32; d_model])?);
        let (delta, gain, bias) = (Some(delta.view()), gain.view(), Some(bias.view()));
        for kind in [NormKind::Layer, NormKind::Rms] {
            let mut good = good.clone();
            let mut x = context.upload(&values)?;
            let (x_view, delta_bias) = (x.view_mut(), None);
            LayerNorm { x: x_view, sum: None, delta, delta_bias, gain, bias, kind, eps: EPS }
                .launch(context, 3, d_model)?;
            let out = context.download(x.view())?;
            let norm = cpu::Norm { kind, gain: vec![1.0; d_model], bias: vec![0.0; d_model], eps: EPS };
            cpu::reference(&norm, 1, None, None, &mut good);
            check::assert_close(&out[..d_model], &good, tolerance::<f32>(2e-5));
            let bad = &out[d_model..];
            // The root of an infinite mean square is infinite: what is finite becomes 0.
            let shows = |row: &[f32], at: usize| match kind {
                NormKind::Layer => row.iter().all(|value| value.is_nan()),
                NormKind::Rms => row[at].is_nan(),
            };
            assert!(shows(&bad[..d_model], 63) && shows(&bad[d_model..], 0), "{bad:?}");
        }
        Ok(())
    }

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let mut x = context.upload(&[1.0f32; 12])?;
        let (delta, gain) = (context.upload(&[1.0f32; 12])?, context.upload(&[1.0f32; 4])?);
        let bias = gain.view().slice(0..3)?;
        let (x, delta, gain) = (x.view_mut(), delta.view(), gain.view());
        let (delta, bias, kind) = (Some(delta), Some(bias), NormKind::Layer);
        let case = LayerNorm { x, sum: None, delta, delta_bias: None, gain, bias, kind, eps: 0.0 };
        let error = case.launch(context, 3, 4).unwrap_err();
        assert_eq!(error.to_string(), "layer_norm: bias: expected 4 elements, got 3 elements");
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        bad_values: bad_values_stay_in_their_row;
        shapes: wrong_shapes_are_refused;
    }
}
