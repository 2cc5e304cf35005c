//! Dense layers with 8-bit weights: four times fewer bytes to read, four times more products per instruction.
//!
//! Each output's weights have one scale, and each row of x gets one when it is multiplied: `scale = max |v| / 127`,
//! `q = round(v * (127 / max |v|))`, ties to even. Sums of products are exact integers; the output is
//! `activation(sum * (scale_x * scale_w) + bias) + residual` in f32. So its bits depend on its row of x and its row of W
//! alone, and are equal on every instruction set (as far as those of the activation are).
//!
//! x is kept as q + 128, unsigned, which is what `vpdpbusd` multiplies with signed weights; where the instruction is used,
//! 128 times the sum of an output's weights is subtracted at the end. Weights lie in the panels of [`super`], a step being
//! four inputs: `[n / 32][k / 4][32][4]`.

use super::storage::Lines;
use super::tiling::{Layer, PANEL, Tiles, prefetch, tiles};
use super::{Epilogue, reference_activation};
use crate::cpu::simd::lanes::{self, LANES, Simd, dispatch};
use crate::cpu::simd::{Isa, max_abs_body};
use rayon::prelude::*;
use std::ops::Range;

mod dot;

pub use dot::Int8Isa;
use dot::{Dot, dispatch_int8};
#[cfg(target_arch = "x86_64")]
use dot::{Signed, Vnni256, Vnni512};

/// Inputs per step.
const QUAD: usize = 4;

/// One vector's weights for one step: four inputs for each of sixteen outputs.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([i8; QUAD * LANES]);

/// Weights of a dense layer, quantised to 8 bits and packed for [`gemm_int8`].
pub struct PackedInt8 {
    /// `[panel][k / 4][2]`.
    lines: Lines<Line>,
    /// Per output, padded to whole panels: what a quantised weight is worth.
    scales: Vec<f32>,
    /// Per output, padded to whole panels: 128 times the sum of its quantised weights.
    offsets: Vec<i32>,
    n: usize,
    k: usize,
}

impl std::fmt::Debug for PackedInt8 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedInt8([{}, {}])", self.n, self.k)
    }
}

impl PackedInt8 {
    /// The longest sum that cannot overflow: 255 * 127 * k < 2^31.
    pub const MAX_K: usize = 66_000;

    /// Quantises and packs `weights`, `[n, k]` row-major. An output with a weight that is not finite will be NaN.
    ///
    /// # Panics
    /// If `weights` is not `n * k` long or `k` exceeds [`PackedInt8::MAX_K`].
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "pack: weights are not [n, k]");
        assert!(k <= Self::MAX_K, "pack: sums over {k} inputs may overflow");
        let (steps, padded) = (k.div_ceil(QUAD), n.next_multiple_of(PANEL));
        let mut packed = PackedInt8 {
            lines: Lines::zeroed(padded / LANES * steps),
            scales: vec![0.0; padded],
            offsets: vec![0; padded],
            n,
            k,
        };
        let mut quantised = vec![[128; QUAD]; steps];
        for output in 0..n {
            let row = &weights[output * k..(output + 1) * k];
            packed.scales[output] = quantise(Isa::best(), row, &mut quantised);
            let (panel, column) = (output / PANEL, output % PANEL);
            for (step, quad) in quantised.iter().enumerate() {
                let line = &mut packed.lines[(panel * steps + step) * (PANEL / LANES) + column / LANES];
                for (i, &q) in quad.iter().enumerate() {
                    let weight = (i16::from(q) - 128) as i8;
                    line.0[column % LANES * QUAD + i] = weight;
                    packed.offsets[output] += 128 * i32::from(weight);
                }
            }
        }
        packed
    }

    /// Outputs.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..]) + size_of_val(self.scales.as_slice()) + size_of_val(self.offsets.as_slice())
    }

    fn steps(&self) -> usize {
        self.k.div_ceil(QUAD)
    }

    /// The address of vector `v`'s first step; the next step lies two lines further.
    fn vector(&self, v: usize) -> *const Line {
        self.lines.as_ptr().wrapping_add(v / 2 * self.steps() * 2 + v % 2)
    }
}

/// Where [`gemm_int8`] keeps quantised rows; it grows to the largest product and is then reused.
#[derive(Debug, Default)]
pub struct Int8Scratch {
    /// `[rows, k / 4]`, each value plus 128.
    x: Vec<[u8; QUAD]>,
    /// `[rows]`.
    scales: Vec<f32>,
}

impl Int8Scratch {
    /// Rows are quantised in parallel from this many values on.
    const GRAIN: usize = 1 << 16;

    /// Quantises x `[rows, k]`.
    fn fill(&mut self, isa: Isa, x: &[f32], rows: usize, k: usize) -> (&[[u8; QUAD]], &[f32]) {
        let steps = k.div_ceil(QUAD);
        if self.x.len() < rows * steps {
            self.x.resize(rows * steps, [128; QUAD]);
        }
        if self.scales.len() < rows {
            self.scales.resize(rows, 0.0);
        }
        let (quantised, scales) = (&mut self.x[..rows * steps], &mut self.scales[..rows]);
        if k == 0 {
            scales.fill(0.0);
        } else if rows * k < 2 * Self::GRAIN {
            for ((x, out), scale) in x.chunks_exact(k).zip(quantised.chunks_exact_mut(steps)).zip(scales.iter_mut()) {
                *scale = quantise(isa, x, out);
            }
        } else {
            (x.par_chunks_exact(k), quantised.par_chunks_exact_mut(steps), scales.par_iter_mut())
                .into_par_iter()
                .with_min_len(Self::GRAIN.div_ceil(k))
                .for_each(|(x, out, scale)| *scale = quantise(isa, x, out));
        }
        (quantised, scales)
    }
}

/// Quantises one row to `q + 128`, padded with 128, and returns its scale.
///
/// The scale is NaN if a value is NaN or infinite, and 0 if all are below 1e-35 (127 / max would overflow).
fn quantise(isa: Isa, x: &[f32], out: &mut [[u8; QUAD]]) -> f32 {
    dispatch!(isa, quantise_body, (x: &[f32], out: &mut [[u8; QUAD]]) -> f32)
}

#[inline(always)]
fn quantise_body<S: Simd>(s: S, x: &[f32], out: &mut [[u8; QUAD]]) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, whose low byte is then the f32's low byte.
    let bias = s.splat(12_582_912.0 + 128.0);
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    let largest = max_abs_body(s, x);
    let usable = largest.is_finite() && largest >= 1e-35;
    let factor = s.splat(if usable { 127.0 / largest } else { 0.0 });
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (bytes, bytes_rest) = out.split_at_mut(chunks.len() * LANES);
    for (chunk, bytes) in chunks.iter().zip(bytes.as_chunks_mut::<LANES>().0) {
        let rounded = s.to_array(s.add(s.mul(s.load(chunk), factor), bias));
        for (byte, value) in bytes.iter_mut().zip(rounded) {
            *byte = value.to_bits() as u8;
        }
    }
    // The rest of the row, and the padding as zeros.
    let rounded = s.to_array(s.add(s.mul(s.load_partial(rest, 0.0), factor), bias));
    for (byte, value) in bytes_rest.iter_mut().zip(rounded) {
        *byte = value.to_bits() as u8;
    }
    if usable {
        largest / 127.0
    } else if largest < 1e-35 {
        0.0
    } else {
        f32::NAN
    }
}

/// Computes `out = activation(x W^T + bias) + residual` with 8-bit weights, for x `[rows, k]` and out `[rows, n]`.
///
/// Runs in the current rayon pool like [`super::gemm`]. Allocates nothing once `scratch` has seen a product of this size.
/// A row of x that holds NaN or an infinity, which no scale can represent, gives NaN in all its outputs.
///
/// # Panics
/// If a slice's length does not match.
pub fn gemm_int8(
    x: &[f32],
    rows: usize,
    w: &PackedInt8,
    epilogue: &Epilogue<'_>,
    scratch: &mut Int8Scratch,
    out: &mut [f32],
) {
    gemm_int8_on(Int8Isa::best(), x, rows, w, epilogue, scratch, out);
}

/// [`gemm_int8`] on one of the CPU's instruction sets.
pub fn gemm_int8_on(
    isa: Int8Isa,
    x: &[f32],
    rows: usize,
    w: &PackedInt8,
    epilogue: &Epilogue<'_>,
    scratch: &mut Int8Scratch,
    out: &mut [f32],
) {
    assert_eq!(x.len(), rows * w.k, "gemm: x is not [rows, k]");
    let layer = &Layer::new(rows, w.n, w.steps(), epilogue, out);
    let (x, scales) = scratch.fill(isa.lanes(), x, rows, w.k);
    let factors = &Factors { x, scales, w };
    layer.divide(&|rows, vectors| {
        dispatch_int8!(isa, piece, (factors: &Factors<'_>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>))
    });
}

#[inline(always)]
fn piece<D: Dot + for<'a> Tiles<Factors<'a>>>(
    d: D,
    factors: &Factors<'_>,
    layer: &Layer<'_>,
    rows: Range<usize>,
    vectors: Range<usize>,
) {
    // SAFETY: called for the pieces of `Layer::divide` only, with the factors that the layer was made for.
    unsafe { layer.compute(d, d.lanes(), factors, rows, vectors) }
}

/// [`gemm_int8`] without its means: plain weights `[n, k]`, quantised as the module says, loops in index order.
pub fn reference_int8(
    x: &[f32],
    rows: usize,
    weights: &[f32],
    n: usize,
    k: usize,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let quantise = |row: &[f32]| -> (Vec<i64>, f32) {
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        if row.iter().any(|v| !v.is_finite()) {
            return (vec![0; row.len()], f32::NAN);
        }
        if largest < 1e-35 {
            return (vec![0; row.len()], 0.0);
        }
        let factor = 127.0 / largest;
        (row.iter().map(|v| (v * factor).round_ties_even() as i64).collect(), largest / 127.0)
    };
    for row in 0..rows {
        let (qx, scale_x) = quantise(&x[row * k..(row + 1) * k]);
        for column in 0..n {
            let (qw, scale_w) = quantise(&weights[column * k..(column + 1) * k]);
            let sum: i64 = qx.iter().zip(&qw).map(|(a, b)| a * b).sum();
            let sum = sum as f64 * f64::from(scale_x) * f64::from(scale_w);
            let sum = sum + epilogue.bias.map_or(0.0, |bias| f64::from(bias[column]));
            let residual = epilogue.residual.map_or(0.0, |residual| f64::from(residual[row * n + column]));
            out[row * n + column] = (reference_activation(epilogue.activation, sum) + residual) as f32;
        }
    }
}

/// The factors of one product.
struct Factors<'a> {
    /// `[rows, k / 4]`.
    x: &'a [[u8; QUAD]],
    /// `[rows]`.
    scales: &'a [f32],
    w: &'a PackedInt8,
}

// 32 registers: at most 24 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Vnni512, Factors<'_>, tile, max_rows 12, narrow 2,
    (1, 8) (2, 4) (3, 4)
    (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2));
// 16 registers, two to a vector: at most 12 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Vnni256, Factors<'_>, tile, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// Five of the 16 registers hold intermediate products.
#[cfg(target_arch = "x86_64")]
tiles!(Signed, Factors<'_>, tile, max_rows 4, narrow 1, (1, 4) (2, 2) (1, 1) (2, 1) (3, 1) (4, 1));
tiles!(lanes::Portable, Factors<'_>, tile, max_rows 2, narrow 1, (1, 1) (2, 1));

/// One register tile.
///
/// # Safety
/// As for [`Layer::compute`].
#[inline(always)]
unsafe fn tile<D: Dot, const ROWS: usize, const WIDTH: usize>(
    d: D,
    factors: &Factors<'_>,
    layer: &Layer<'_>,
    row: usize,
    vector: usize,
) {
    let (s, steps) = (d.lanes(), factors.w.steps());
    let mut weights = [std::ptr::null::<Line>(); WIDTH];
    for (i, pointer) in weights.iter_mut().enumerate() {
        *pointer = factors.w.vector(vector + i);
    }
    let x = factors.x[row * steps..(row + ROWS) * steps].as_ptr();
    let mut sums = [[d.zero(); WIDTH]; ROWS];
    for step in 0..steps {
        let mut w = [d.no_weights(); WIDTH];
        for (w, &vector) in w.iter_mut().zip(&weights) {
            // SAFETY: step < steps, and a packed vector has that many lines, two apart.
            let address = unsafe { vector.add(step * (PANEL / LANES)) };
            // SAFETY: as above.
            *w = d.load(unsafe { &(*address).0 });
            prefetch(address);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `x` starts ROWS rows of `steps` quads.
            d.add_step(sums, unsafe { &*x.add(r * steps + step) }, &w);
        }
    }
    for i in 0..WIDTH {
        let outputs = (vector + i) * LANES..(vector + i + 1) * LANES;
        let offsets = d.load_offsets(sixteen(&factors.w.offsets[outputs.clone()]));
        let scale_w = s.load(sixteen(&factors.w.scales[outputs]));
        let mut column = [s.splat(0.0); ROWS];
        for (r, (product, sums)) in column.iter_mut().zip(&sums).enumerate() {
            let scale = s.mul(s.splat(factors.scales[row + r]), scale_w);
            *product = s.mul(d.to_f32(sums[i], offsets), scale);
        }
        // SAFETY: the caller's promise.
        unsafe { layer.store(s, row, vector + i, column) };
    }
}

/// The first sixteen elements.
#[inline(always)]
fn sixteen<T>(x: &[T]) -> &[T; LANES] {
    match x.first_chunk() {
        Some(x) => x,
        None => unreachable!("a vector has sixteen outputs"),
    }
}

#[cfg(test)]
mod tests;
