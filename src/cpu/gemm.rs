//! Dense layers: `out = activation(x W^T + bias) + residual` with weights that were packed once.
//!
//! **Each output element is one accumulator that runs over k in order.** Its bits therefore depend on its row of x and its
//! row of W alone: not on the other rows, its position, the tile or panel it falls into, the thread that computes it, or
//! (where it fuses multiply and add) the instruction set. `bf16` and `int8` say what holds for theirs.
//!
//! Weights `[n, k]` are packed into panels of 32 outputs, each `[k][32]`, the last one padded with zeros. A tile keeps
//! `rows x columns` accumulators in registers and walks down its panels once: per step it loads a stretch of the panel and
//! one value of x per row. Few rows take several panels side by side, so that enough accumulators are in flight to hide
//! the latency of the fused multiply-add.

#[cfg(target_arch = "x86_64")]
mod amx;
mod bf16;
mod int8;
mod path;
mod quads;
mod storage;
mod tiling;

pub use bf16::{Bf16Isa, PackedBf16, gemm_bf16, gemm_bf16_on, reference_bf16};
pub use int8::{Int8Isa, PackedInt8, gemm_int8, gemm_int8_on, quantize_row, reference_int8};
pub use path::{Path, Refused, VARIABLE as PATH_VARIABLE};
pub use quads::RowScratch;

use crate::backend::{Activation, WeightRows, rows_of};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lanes::{Avx2, Avx512};
use crate::cpu::simd::lanes::{LANES, Portable, Simd, dispatch};
use crate::cpu::simd::{Isa, reference_activation};
use crate::shares::in_shares;
use std::convert::Infallible;
use std::ops::Range;
use storage::{Lines, interleave, panels_of_share};
use tiling::{Layer, PANEL, Tiles, prefetch, tiles};

/// One cache line of packed weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Weights of a dense layer, packed for [`gemm`].
pub struct PackedMatrix {
    /// `[panel][k][PANEL]`.
    lines: Lines<Line>,
    n: usize,
    k: usize,
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedMatrix([{}, {}])", self.n, self.k)
    }
}

impl PackedMatrix {
    /// Packs `weights`, `[n, k]` row-major: one row per output, as checkpoints store a linear layer.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "pack: weights are not [n, k]");
        let Ok(packed) = Self::pack_rows(&rows_of::<Infallible>(weights, k), n, k);
        packed
    }

    /// As [`PackedMatrix::pack`], with weights that are asked for as they are packed.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn pack_rows<E: Send>(weights: &WeightRows<'_, E>, n: usize, k: usize) -> Result<Self, E> {
        let mut lines = Lines::<Line>::zeroed(n.div_ceil(PANEL) * k * (PANEL / LANES));
        let steps: &mut [[f32; PANEL]] = bytemuck::cast_slice_mut(&mut lines[..]);
        if k > 0 {
            let shares = in_shares(steps, panels_of_share(k), |at, steps| {
                let mut rows = vec![0.0; PANEL * k];
                for (panel, first) in steps.chunks_exact_mut(k).zip((at / k * PANEL..n).step_by(PANEL)) {
                    let rows = &mut rows[..PANEL.min(n - first) * k];
                    weights(first, rows)?;
                    interleave(rows, panel);
                }
                Ok(())
            });
            shares.into_iter().collect::<Result<(), E>>()?;
        }
        Ok(PackedMatrix { lines, n, k })
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Writes the weights of one output, `[k]`.
    ///
    /// # Panics
    /// If there is no such output, or `weights` has another length.
    pub fn weights_of(&self, output: usize, weights: &mut [f32]) {
        assert!(output < self.n && weights.len() == self.k, "weights: output {output} of [{}, {}]", self.n, self.k);
        let packed: &[f32] = bytemuck::cast_slice(&self.lines[..]);
        let panel = &packed[output / PANEL * self.k * PANEL..][..self.k * PANEL];
        for (weight, step) in weights.iter_mut().zip(panel.chunks_exact(PANEL)) {
            *weight = step[output % PANEL];
        }
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(&self.lines[..])
    }

    /// The address of vector `v`'s first step; the next step lies `PANEL` values further.
    fn vector(&self, v: usize) -> *const f32 {
        let start = v / 2 * self.k * PANEL + v % 2 * LANES;
        self.lines.as_ptr().cast::<f32>().wrapping_add(start)
    }
}

/// What follows the product: `out = activation(product + bias) + residual`.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `[rows, n]`, added last.
    pub residual: Option<&'a [f32]>,
}

/// Computes `out = activation(x W^T + bias) + residual` for x `[rows, k]` and out `[rows, n]`, both row-major.
///
/// Runs in the current rayon pool, on the calling thread alone when there is too little work to share. Allocates nothing.
/// NaN and infinities propagate as IEEE arithmetic does.
///
/// # Panics
/// If a slice's length does not match.
pub fn gemm(x: &[f32], rows: usize, w: &PackedMatrix, epilogue: &Epilogue<'_>, out: &mut [f32]) {
    gemm_on(Isa::best(), x, rows, w, epilogue, out);
}

/// [`gemm`] on one of the CPU's instruction sets.
pub fn gemm_on(isa: Isa, x: &[f32], rows: usize, w: &PackedMatrix, epilogue: &Epilogue<'_>, out: &mut [f32]) {
    assert_eq!(x.len(), rows * w.k, "gemm: x is not [rows, k]");
    let layer = Layer::new(rows, w.n, w.k, epilogue, out);
    let (layer, factors) = (&layer, &Factors { x, w });
    layer.divide(&|rows, vectors| {
        dispatch!(isa, piece, (factors: &Factors<'_>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>))
    });
}

#[inline(always)]
fn piece<S: Simd + for<'a> Tiles<Factors<'a>>>(
    s: S,
    factors: &Factors<'_>,
    layer: &Layer<'_>,
    rows: Range<usize>,
    vectors: Range<usize>,
) {
    // SAFETY: called for the pieces of `Layer::divide` only, with the factors that the layer was made for.
    unsafe { layer.compute(s, s, factors, rows, vectors) }
}

/// [`gemm`] without its means: plain weights `[n, k]`, loops in index order, sums in f64.
pub fn reference(
    x: &[f32],
    rows: usize,
    weights: &[f32],
    n: usize,
    k: usize,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    for row in 0..rows {
        for column in 0..n {
            let mut sum = 0.0;
            for step in 0..k {
                sum += f64::from(x[row * k + step]) * f64::from(weights[column * k + step]);
            }
            sum += epilogue.bias.map_or(0.0, |bias| f64::from(bias[column]));
            let residual = epilogue.residual.map_or(0.0, |residual| f64::from(residual[row * n + column]));
            out[row * n + column] = (reference_activation(epilogue.activation, sum) + residual) as f32;
        }
    }
}

/// The factors of one product.
struct Factors<'a> {
    x: &'a [f32],
    w: &'a PackedMatrix,
}

// 32 registers: at most 24 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Avx512: "avx512f,avx512bw,avx512vl,avx2,fma", Factors<'_>, tile, max_rows 12, narrow 2,
    (1, 8) (2, 4) (3, 4)
    (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2));
// 16 registers, two to a vector: at most 12 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Avx2: "avx2,fma", Factors<'_>, tile, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// 32 registers, four to a vector (NEON): at most 24 accumulators.
#[cfg(not(target_arch = "x86_64"))]
tiles!(Portable, Factors<'_>, tile, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// 16 registers, four to a vector (SSE2).
#[cfg(target_arch = "x86_64")]
tiles!(Portable, Factors<'_>, tile, max_rows 2, narrow 1, (1, 2) (1, 1) (2, 1));

/// One register tile.
///
/// # Safety
/// As for [`Layer::compute`].
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const WIDTH: usize>(
    s: S,
    factors: &Factors<'_>,
    layer: &Layer<'_>,
    row: usize,
    vector: usize,
) {
    let k = factors.w.k;
    let mut weights = [std::ptr::null::<f32>(); WIDTH];
    for (i, pointer) in weights.iter_mut().enumerate() {
        *pointer = factors.w.vector(vector + i);
    }
    let x = factors.x[row * k..(row + ROWS) * k].as_ptr();
    let mut sums = [[s.splat(0.0); WIDTH]; ROWS];
    for step in 0..k {
        let mut w = [s.splat(0.0); WIDTH];
        // Pairs are indexed: see `quads`.
        for (i, w) in w.iter_mut().enumerate() {
            // SAFETY: step < k, and a packed vector has k steps of LANES values, PANEL apart.
            let address = unsafe { weights[i].add(step * PANEL) };
            prefetch(address);
            // SAFETY: as above.
            *w = s.load(unsafe { &*address.cast::<[f32; LANES]>() });
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `x` starts ROWS rows of k values.
            let value = s.splat(unsafe { *x.add(r * k + step) });
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.mul_add(value, w[i], *sum);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { layer.store(s, row, vector, &sums) };
}

#[cfg(test)]
mod tests;
