//! Dense layers with weights in bf16 (the upper half of an f32): half of the bytes to read, and products that matrix tiles take.
//!
//! Weights and rows of x are rounded to bf16, ties to even, subnormal numbers to zero; products are exact in f32, sums are f32. A
//! product starts from 0, and takes its inputs in blocks of 32, in the order of k. **A block's inputs of even index and those of odd
//! index are summed apart**, each by fused multiply-add from 0 on; then `product = product + (even + odd)`. That is what `tdpbf16ps`
//! does (Intel SDM, volume 2), and what fused multiply-add in f32 does elsewhere: as long as no sum is subnormal, which matrix tiles
//! flush to zero, all paths with fused multiply-add give the same bits. `vdpbf16ps` adds its two products one after the other to the
//! sum instead: the path that uses it gives other bits than the rest, the same ones for any number of rows.
//!
//! Weights lie in the panels of [`super`], a step being two inputs: `[n / 32][k / 2][32][2]`, k padded to whole matrix tiles.

use super::quads::{Factors, Panels, Quad, RowScratch, piece, tile};
use super::tiling::{Layer, Tiles, tiles};
use super::{Epilogue, reference};
use crate::backend::{WeightRows, rows_of};
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lanes::{Avx2, Avx512};
use crate::cpu::simd::lanes::{Portable, Simd, dispatch};
use crate::cpu::simd::{Isa, to_bf16_body};
use std::convert::Infallible;
use std::ops::Range;

mod dot;

pub use dot::Bf16Isa;
#[cfg(target_arch = "x86_64")]
use dot::Pairs;
use dot::{Fused, Plain, dispatch_bf16};

/// Inputs per step.
const PAIR: usize = 2;

/// Weights of a dense layer, rounded to bf16 and packed for [`gemm_bf16`].
pub struct PackedBf16 {
    panels: Panels,
    n: usize,
    k: usize,
}

impl std::fmt::Debug for PackedBf16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedBf16([{}, {}])", self.n, self.k)
    }
}

impl PackedBf16 {
    /// Room for `n` outputs of `k` inputs; zeros.
    pub fn zeroed(n: usize, k: usize) -> Self {
        PackedBf16 { panels: Panels::zeroed(n, k.div_ceil(PAIR)), n, k }
    }

    /// All that it holds.
    pub fn part(&self) -> &[u8] {
        self.panels.part()
    }

    /// [`PackedBf16::part`], to be written.
    pub fn part_mut(&mut self) -> &mut [u8] {
        self.panels.part_mut()
    }

    /// Rounds and packs `weights`, `[n, k]` row-major.
    ///
    /// # Panics
    /// If `weights` is not `n * k` long.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "pack: weights are not [n, k]");
        let Ok(packed) = Self::pack_rows(&rows_of::<Infallible>(weights, k), n, k);
        packed
    }

    /// As [`PackedBf16::pack`], with weights that are asked for as they are packed.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn pack_rows<E: Send>(weights: &WeightRows<'_, E>, n: usize, k: usize) -> Result<Self, E> {
        let mut packed = Self::zeroed(n, k);
        packed.panels.fill([n, k], weights, |weights, rounded| narrow(Isa::best(), weights, rounded))?;
        Ok(packed)
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Writes the weights of one output, `[k]`, widened to f32.
    ///
    /// # Panics
    /// If there is no such output, or `weights` has another length.
    pub fn weights_of(&self, output: usize, weights: &mut [f32]) {
        assert!(output < self.n && weights.len() == self.k, "weights: output {output} of [{}, {}]", self.n, self.k);
        for (weights, quad) in weights.chunks_mut(PAIR).zip(self.panels.of(output)) {
            for (weight, rounded) in weights.iter_mut().zip(bytemuck::cast::<Quad, [u16; PAIR]>(quad)) {
                *weight = f32::from_bits(u32::from(rounded) << 16);
            }
        }
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.panels.bytes()
    }
}

/// Rounds one row to bf16, padded with zeros.
fn narrow(isa: Isa, x: &[f32], out: &mut [Quad]) {
    dispatch!(isa, narrow_body, (x: &[f32], out: &mut [Quad]))
}

#[inline(always)]
fn narrow_body<S: Simd>(s: S, x: &[f32], out: &mut [Quad]) {
    let (values, padding) = bytemuck::cast_slice_mut(out).split_at_mut(x.len());
    to_bf16_body(s, x, values);
    padding.fill(0);
}

/// Computes `out = activation(x W^T + bias) + residual` in bf16 with sums in f32, for x `[rows, k]` and out `[rows, n]`.
///
/// Runs in the current rayon pool like [`super::gemm`]. Allocates nothing once `scratch` has seen a product of this size. NaN and
/// infinities propagate as IEEE arithmetic does.
///
/// # Panics
/// If a slice's length does not match.
pub fn gemm_bf16(
    x: &[f32],
    rows: usize,
    w: &PackedBf16,
    epilogue: &Epilogue<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    gemm_bf16_on(Bf16Isa::best(), x, rows, w, epilogue, scratch, out);
}

/// [`gemm_bf16`] on one of the CPU's instruction sets.
pub fn gemm_bf16_on(
    isa: Bf16Isa,
    x: &[f32],
    rows: usize,
    w: &PackedBf16,
    epilogue: &Epilogue<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    assert_eq!(x.len(), rows * w.k, "gemm: x is not [rows, k]");
    let layer = &Layer::new(rows, w.n, w.panels.steps(), epilogue, out);
    let (x, _) = scratch.fill(x, rows, w.k, w.panels.steps(), |x, out| {
        narrow(isa.lanes(), x, out);
        1.0
    });
    let factors = &Factors { x, w: &w.panels, finish: Plain };
    layer.divide(&|rows, vectors| {
        dispatch_bf16!(isa, piece, (factors: &Factors<'_, Plain>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>))
    });
}

/// [`gemm_bf16`] without its means: plain weights `[n, k]`, both factors rounded, sums in f64.
pub fn reference_bf16(
    x: &[f32],
    rows: usize,
    weights: &[f32],
    n: usize,
    k: usize,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let rounded = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect() };
    reference(&rounded(x), rows, &rounded(weights), n, k, epilogue, out);
}

// 32 registers: at most 24 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Pairs: "avx512f,avx512bw,avx512vl,avx512bf16,avx2,fma", Factors<'_, Plain>, tile, max_rows 12, narrow 2,
    (1, 8) (2, 4) (3, 4)
    (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2));
// Two sums per output, two halves of each weight and of x.
#[cfg(target_arch = "x86_64")]
tiles!(Fused<Avx512>: "avx512f,avx512bw,avx512vl,avx2,fma", Factors<'_, Plain>, tile, max_rows 5, narrow 2,
    (1, 4) (2, 4) (1, 2) (2, 2) (3, 2) (4, 2) (5, 2));
// 16 registers, two to a vector.
#[cfg(target_arch = "x86_64")]
tiles!(Fused<Avx2>: "avx2,fma", Factors<'_, Plain>, tile, max_rows 2, narrow 1, (1, 1) (2, 1));
tiles!(Fused<Portable>, Factors<'_, Plain>, tile, max_rows 2, narrow 1, (1, 1) (2, 1));

#[cfg(test)]
mod tests;
