//! The emulated device's matrix product: naive, one order of additions whatever the number of rows, since the kernels' tensor cores
//! take the emulator long.

use half::{bf16, f16};

use super::ffi::activate;
use crate::backend::{Activation, Dtype};
use crate::cuda::{Element, Gemm};

/// How many rows are computed side by side, each in its own sum: for the host's vector registers, and for few rows.
const WIDE: usize = 64;
const NARROW: usize = 8;

/// What a product's numbers in f32 are: of rows and columns, empty where there are none.
pub struct Factors<'a> {
    /// `[n]`
    pub bias: &'a [f32],
    /// `[rows]`
    pub x_scales: &'a [f32],
    /// `[n]`
    pub weight_scales: &'a [f32],
}

/// Computes `gemm` on memory at `x`, `weight` and `out`, which lie where its addresses say.
///
/// # Safety
/// `x` holds `rows * k` and `weight` `n * k` elements of the input type, `out` `out_len()` of the output type; `out` overlaps neither.
pub unsafe fn run(gemm: &Gemm, x: *const u8, weight: *const u8, factors: &Factors<'_>, out: *mut u8) {
    let bias = factors.bias;
    // SAFETY: the caller's promise, for the types named in `gemm`.
    unsafe {
        match (gemm.input, gemm.output) {
            (Dtype::F32, _) => multiply::<f32, f32>(gemm, x.cast(), weight.cast(), bias, out.cast()),
            (Dtype::F16, Dtype::F32) => multiply::<f16, f32>(gemm, x.cast(), weight.cast(), bias, out.cast()),
            (Dtype::F16, _) => multiply::<f16, f16>(gemm, x.cast(), weight.cast(), bias, out.cast()),
            (Dtype::Bf16, Dtype::F32) => multiply::<bf16, f32>(gemm, x.cast(), weight.cast(), bias, out.cast()),
            (Dtype::Bf16, _) => multiply::<bf16, bf16>(gemm, x.cast(), weight.cast(), bias, out.cast()),
            (Dtype::I8, _) => multiply_int8(gemm, x.cast(), weight.cast(), factors, out.cast()),
        }
    }
}

/// Sums of integers are exact, whatever their order.
unsafe fn multiply_int8(gemm: &Gemm, x: *const i8, weight: *const i8, factors: &Factors<'_>, out: *mut f32) {
    let &Gemm { rows, n, k, out_stride, .. } = gemm;
    // SAFETY: the caller's promise; the slices do not overlap `out`.
    let (x, weight) = unsafe { (std::slice::from_raw_parts(x, rows * k), std::slice::from_raw_parts(weight, n * k)) };
    for row in 0..rows {
        for j in 0..n {
            let (x, weight) = (&x[row * k..(row + 1) * k], &weight[j * k..(j + 1) * k]);
            let sum: i32 = x.iter().zip(weight).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
            let sum = sum as f32 * (factors.x_scales[row] * factors.weight_scales[j]);
            let sum = finish(gemm, factors.bias.get(j).map_or(sum, |bias| sum + bias));
            // SAFETY: row `row < rows` and column `j < n` of `out`.
            unsafe { out.add(row * out_stride + j).write(sum) };
        }
    }
}

unsafe fn multiply<I: Element, O: Element>(gemm: &Gemm, x: *const I, weight: *const I, bias: &[f32], out: *mut O) {
    // SAFETY: the caller's promise.
    unsafe {
        if gemm.rows >= WIDE / 2 {
            multiply_panels::<I, O, WIDE>(gemm, x, weight, bias, out);
        } else {
            multiply_panels::<I, O, NARROW>(gemm, x, weight, bias, out);
        }
    }
}

unsafe fn multiply_panels<I: Element, O: Element, const SIDE_BY_SIDE: usize>(
    gemm: &Gemm,
    x: *const I,
    weight: *const I,
    bias: &[f32],
    out: *mut O,
) {
    let &Gemm { rows, n, k, out_stride, .. } = gemm;
    // SAFETY: the caller's promise; the slices do not overlap `out`.
    let (x, weight) = unsafe { (std::slice::from_raw_parts(x, rows * k), std::slice::from_raw_parts(weight, n * k)) };
    let mut panel = vec![[0.0f32; SIDE_BY_SIDE]; k];
    let mut weight_row = vec![0.0f32; k];
    for first in (0..rows).step_by(SIDE_BY_SIDE) {
        let count = SIDE_BY_SIDE.min(rows - first);
        for (t, column) in panel.iter_mut().enumerate() {
            *column = std::array::from_fn(|r| if r < count { x[(first + r) * k + t].to_f32() } else { 0.0 });
        }
        for j in 0..n {
            for (to, from) in weight_row.iter_mut().zip(&weight[j * k..(j + 1) * k]) {
                *to = from.to_f32();
            }
            let sums = sum_products(&panel, &weight_row);
            let bias = bias.get(j).copied();
            for (r, &sum) in sums.iter().enumerate().take(count) {
                let sum = finish(gemm, bias.map_or(sum, |bias| sum + bias));
                // SAFETY: row `first + r < rows` and column `j < n` of `out`.
                unsafe { out.add((first + r) * out_stride + j).write(O::from_f32(sum)) };
            }
        }
    }
}

/// A sum with its bias, and what is done with that.
fn finish(gemm: &Gemm, sum: f32) -> f32 {
    match gemm.activation {
        Activation::None => sum,
        activation => activate(activation, sum, gemm.output == Dtype::F32),
    }
}

/// The sum over k of each of the rows side by side: a chain of fused multiply-adds, as the kernel has it for f32, on a host that has those.
fn sum_products<const SIDE_BY_SIDE: usize>(panel: &[[f32; SIDE_BY_SIDE]], weight_row: &[f32]) -> [f32; SIDE_BY_SIDE] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both.
        return unsafe { sum_fused_products(panel, weight_row) };
    }
    let mut sums = [0.0f32; SIDE_BY_SIDE];
    for (column, &w) in panel.iter().zip(weight_row) {
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum += column[r] * w;
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_fused_products<const SIDE_BY_SIDE: usize>(
    panel: &[[f32; SIDE_BY_SIDE]],
    weight_row: &[f32],
) -> [f32; SIDE_BY_SIDE] {
    let mut sums = [0.0f32; SIDE_BY_SIDE];
    for (column, &w) in panel.iter().zip(weight_row) {
        // Indexed: `zip` would be called at each step where the crate's parts are not optimised together.
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = column[r].mul_add(w, *sum);
        }
    }
    sums
}
