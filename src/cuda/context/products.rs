//! Matrix products: what they are given is checked here.

use super::{Context, Fault, check_len, shape_error};
use crate::backend::{Activation, Dtype};
use crate::cuda::Element;
use crate::cuda::buffer::{View, ViewMut};
use crate::cuda::counters::GEMMS;
use crate::cuda::device::Gemm;
use crate::cuda::gemm::Tile;
use crate::cuda::linear_norm::GemmNorm;
use crate::cuda::quantize::{QuantizedView, padded};
use crate::{Error, Result};

impl Context {
    /// `out[rows, n] = activation(x[rows, k] * weight[n, k]^T + bias[n])`, row-major, accumulated in f32; the rows of `out` start
    /// `out_stride` elements apart and what lies between is not written. A row's bits do not depend on the other rows.
    ///
    /// # Errors
    /// The lengths do not fit `[rows, k]`, `[n, k]`, `[n]` and `[rows, n]`; `out` is neither f32 nor of the inputs' type; the
    /// device failed.
    pub fn gemm<I: Element, O: Element>(
        &self,
        [rows, n, k]: [usize; 3],
        x: View<'_, I>,
        weight: View<'_, I>,
        (bias, activation): (Option<View<'_, f32>>, Activation),
        out: ViewMut<'_, O>,
        out_stride: usize,
    ) -> Result<()> {
        let gemm = self.check_gemm([rows, n, k], &x, &weight, (bias.as_ref(), activation), &out, out_stride)?;
        // SAFETY: the lengths were checked, this context owns all matrices, and a mutable view overlaps no other.
        unsafe { self.multiply(&gemm) }
    }

    /// As [`Context::gemm`], of 8-bit integers: `out[r, j] = activation(sum * (x.scales[r] * weight.scales[j]) + bias[j])`. The sum is
    /// exact, so the bits are those of the CPU's product.
    ///
    /// # Errors
    /// As [`Context::gemm`]; `out` is not f32.
    pub fn gemm_int8<O: Element>(
        &self,
        [rows, n, k]: [usize; 3],
        x: QuantizedView<'_>,
        weight: QuantizedView<'_>,
        (bias, activation): (Option<View<'_, f32>>, Activation),
        out: ViewMut<'_, O>,
        out_stride: usize,
    ) -> Result<()> {
        let sizes = [rows, n, k];
        let gemm = self.check_gemm_int8(sizes, &x, &weight, (bias.as_ref(), activation), &out, out_stride)?;
        // SAFETY: as above.
        unsafe { self.multiply(&gemm) }
    }

    /// # Safety
    /// That of [`Device::gemm`](crate::cuda::Device::gemm).
    pub(in crate::cuda) unsafe fn multiply(&self, gemm: &Gemm) -> Result<()> {
        if gemm.rows == 0 || gemm.n == 0 {
            return Ok(());
        }
        self.check_fault(Fault::Launch, "gemm")?;
        self.count(GEMMS, 1);
        // SAFETY: the caller's promise.
        unsafe { self.0.device.gemm(gemm) }
    }

    /// Enqueues a product and the norm behind it: at once where there is a kernel for that.
    ///
    /// # Safety
    /// That of [`Device::gemm_norm`](crate::cuda::Device::gemm_norm).
    pub(in crate::cuda) unsafe fn multiply_norm(&self, work: &GemmNorm) -> Result<()> {
        let gemm = &work.gemm;
        if gemm.rows == 0 || gemm.n == 0 {
            return Ok(());
        }
        if !Tile::choose(gemm).normalizes() {
            // SAFETY: the caller's promise; mirrors `layer_norm_<dtype>(LayerNormArguments)`.
            return unsafe { self.multiply(gemm).and_then(|()| self.launch(&work.norm_launch(), &work.norm)) };
        }
        self.check_fault(Fault::Launch, "linear_norm")?;
        self.count(GEMMS, 1);
        // SAFETY: the caller's promise.
        unsafe { self.0.device.gemm_norm(work) }
    }

    /// How each product so far is computed: its shape and types, and the algorithm.
    pub fn gemm_plans(&self) -> Vec<String> {
        self.0.device.gemm_plans()
    }

    /// A product whose lengths fit.
    pub(in crate::cuda) fn check_gemm<I: Element, O: Element>(
        &self,
        [rows, n, k]: [usize; 3],
        x: &View<'_, I>,
        weight: &View<'_, I>,
        (bias, activation): (Option<&View<'_, f32>>, Activation),
        out: &ViewMut<'_, O>,
        out_stride: usize,
    ) -> Result<Gemm> {
        let gemm = Gemm {
            rows,
            n,
            k,
            out_stride,
            input: I::DTYPE,
            output: O::DTYPE,
            x: self.address(x)?,
            weight: self.address(weight)?,
            x_scales: 0,
            weight_scales: 0,
            bias: self.address_or_null(bias)?,
            activation,
            out: self.address_mut(out)?,
        };
        check_lengths(&gemm, [x.len, weight.len, bias.map_or(n, |bias| bias.len), out.len])?;
        Ok(gemm)
    }

    /// As [`Context::check_gemm`], of 8-bit integers.
    pub(in crate::cuda) fn check_gemm_int8<O: Element>(
        &self,
        [rows, n, k]: [usize; 3],
        x: &QuantizedView<'_>,
        weight: &QuantizedView<'_>,
        (bias, activation): (Option<&View<'_, f32>>, Activation),
        out: &ViewMut<'_, O>,
        out_stride: usize,
    ) -> Result<Gemm> {
        let gemm = Gemm {
            rows,
            n,
            k: padded(k),
            out_stride,
            input: Dtype::I8,
            output: O::DTYPE,
            x: self.address(&x.values)?,
            weight: self.address(&weight.values)?,
            x_scales: self.address(&x.scales)?,
            weight_scales: self.address(&weight.scales)?,
            bias: self.address_or_null(bias)?,
            activation,
            out: self.address_mut(out)?,
        };
        check_len("gemm", "scales of x", rows, x.scales.len)?;
        check_len("gemm", "scales of weight", n, weight.scales.len)?;
        check_lengths(&gemm, [x.values.len, weight.values.len, bias.map_or(n, |bias| bias.len), out.len])?;
        Ok(gemm)
    }
}

/// Of x, weight, bias and out.
fn check_lengths(gemm: &Gemm, [x, weight, bias, out]: [usize; 4]) -> Result<()> {
    let &Gemm { rows, n, k, out_stride, input, output, .. } = gemm;
    check_len("gemm", "x", rows * k, x)?;
    check_len("gemm", "weight", n * k, weight)?;
    check_len("gemm", "bias", n, bias)?;
    if out_stride < n || out < gemm.out_len() {
        return Err(shape_error("gemm", "out", format!("{rows} rows of {n}, {out_stride} apart"), out));
    }
    if output != Dtype::F32 && output != input {
        let expected = format!("{input:?} or F32");
        return Err(Error::Shape { operation: "gemm", tensor: "out", expected, got: format!("{output:?}") });
    }
    Ok(())
}
