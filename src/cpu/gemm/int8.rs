//! Dense layers with 8-bit weights: four times fewer bytes to read, four times more products per instruction.
//!
//! Each output's weights have one scale, and each row of x gets one when it is multiplied: `scale = max |v| / 127`,
//! `q = round(v * (127 / max |v|))`, ties to even. Sums of products are exact integers; the output is
//! `activation(sum * (scale_x * scale_w) + bias) + residual` in f32. So its bits depend on its row of x and its row of W
//! alone, and are equal on every instruction set (as far as those of the activation are).
//!
//! x is kept as q + 128, unsigned, which is what `vpdpbusd` multiplies with signed weights; where the instruction is used,
//! 128 times the sum of an output's weights is subtracted at the end. Weights lie in the panels of [`super`], a step being
//! four inputs: `[n / 32][k / 4][32][4]`, k padded to whole matrix tiles.

use super::quads::{Factors, Finish, Panels, Quad, RowScratch, piece, sixteen, tile};
use super::tiling::{Layer, PANEL, Tiles, tiles};
use super::{Epilogue, reference_activation};
use crate::backend::{WeightRows, rows_of};
use crate::cpu::simd::lanes::{self, LANES, Simd, dispatch};
use crate::cpu::simd::{Isa, max_abs_body};
use std::convert::Infallible;
use std::ops::Range;

mod dot;

pub use dot::Int8Isa;
use dot::{IntegerDot, dispatch_int8};
#[cfg(target_arch = "x86_64")]
use {
    super::amx::{Amx, Instruction, Tiled},
    super::quads::Instructions,
    dot::{Signed, Vnni256, Vnni512},
    std::arch::x86_64::{__m512, __m512i},
};

/// Inputs per step.
const QUAD: usize = size_of::<Quad>();

/// Weights of a dense layer, quantised to 8 bits and packed for [`gemm_int8`].
pub struct PackedInt8 {
    panels: Panels,
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

    /// Room for `n` outputs of `k` inputs; zeros.
    ///
    /// # Panics
    /// If `k` exceeds [`PackedInt8::MAX_K`].
    pub fn zeroed(n: usize, k: usize) -> Self {
        assert!(k <= Self::MAX_K, "pack: sums over {k} inputs may overflow");
        let padded = n.next_multiple_of(PANEL);
        let panels = Panels::zeroed(n, k.div_ceil(QUAD));
        PackedInt8 { panels, scales: vec![0.0; padded], offsets: vec![0; padded], n, k }
    }

    /// All that it holds: panels, scales, offsets.
    pub fn parts(&self) -> [&[u8]; 3] {
        [self.panels.part(), bytemuck::cast_slice(&self.scales), bytemuck::cast_slice(&self.offsets)]
    }

    /// [`PackedInt8::parts`], to be written.
    pub fn parts_mut(&mut self) -> [&mut [u8]; 3] {
        let PackedInt8 { panels, scales, offsets, .. } = self;
        [panels.part_mut(), bytemuck::cast_slice_mut(scales), bytemuck::cast_slice_mut(offsets)]
    }

    /// Quantises and packs `weights`, `[n, k]` row-major. An output with a weight that is not finite will be NaN.
    ///
    /// # Panics
    /// If `weights` is not `n * k` long or `k` exceeds [`PackedInt8::MAX_K`].
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "pack: weights are not [n, k]");
        let Ok(packed) = Self::pack_rows(&rows_of::<Infallible>(weights, k), n, k);
        packed
    }

    /// As [`PackedInt8::pack`], with weights that are asked for as they are packed.
    ///
    /// # Errors
    /// Those of `weights`.
    ///
    /// # Panics
    /// If `k` exceeds [`PackedInt8::MAX_K`].
    pub fn pack_rows<E: Send>(weights: &WeightRows<'_, E>, n: usize, k: usize) -> Result<Self, E> {
        let mut packed = Self::zeroed(n, k);
        let narrow = |weights: &[f32], quantised: &mut [Quad]| {
            let scale = quantise(Isa::best(), weights, quantised);
            let mut sum = 0;
            for byte in bytemuck::cast_slice_mut::<Quad, u8>(quantised) {
                let weight = signed(*byte);
                sum += i32::from(weight);
                *byte = weight as u8;
            }
            (scale, 128 * sum)
        };
        for (output, (scale, offset)) in packed.panels.fill([n, k], weights, narrow)?.into_iter().enumerate() {
            (packed.scales[output], packed.offsets[output]) = (scale, offset);
        }
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

    /// Writes the weights of one output, `[k]`: integers times the output's scale.
    ///
    /// # Panics
    /// If there is no such output, or `weights` has another length.
    pub fn weights_of(&self, output: usize, weights: &mut [f32]) {
        assert!(output < self.n && weights.len() == self.k, "weights: output {output} of [{}, {}]", self.n, self.k);
        for (weights, quad) in weights.chunks_mut(QUAD).zip(self.panels.of(output)) {
            for (weight, quantised) in weights.iter_mut().zip(bytemuck::cast::<Quad, [i8; QUAD]>(quad)) {
                *weight = f32::from(quantised) * self.scales[output];
            }
        }
    }

    /// Bytes held, padding included.
    pub fn bytes(&self) -> usize {
        self.panels.bytes() + size_of_val(self.scales.as_slice()) + size_of_val(self.offsets.as_slice())
    }
}

/// What stands for `q` as `q + 128`.
fn signed(byte: u8) -> i8 {
    (i16::from(byte) - 128) as i8
}

/// Quantises one row as products do, and returns its scale; without a scale its integers are 0.
///
/// # Panics
/// If the lengths differ.
pub fn quantize_row(x: &[f32], out: &mut [i8]) -> f32 {
    assert_eq!(x.len(), out.len(), "quantize: a row and its integers have different lengths");
    let mut quads = vec![0; x.len().div_ceil(QUAD)];
    let scale = quantise(Isa::best(), x, &mut quads);
    for (out, byte) in out.iter_mut().zip(bytemuck::cast_slice::<Quad, u8>(&quads)) {
        *out = if scale.is_finite() { signed(*byte) } else { 0 };
    }
    scale
}

/// Quantises one row to `q + 128`, padded with 128, and returns its scale.
///
/// The scale is NaN if a value is NaN or infinite, and 0 if all are below 1e-35 (127 / max would overflow).
fn quantise(isa: Isa, x: &[f32], out: &mut [Quad]) -> f32 {
    dispatch!(isa, quantise_body, (x: &[f32], out: &mut [Quad]) -> f32)
}

#[inline(always)]
fn quantise_body<S: Simd>(s: S, x: &[f32], out: &mut [Quad]) -> f32 {
    // 1.5 * 2^23: adding it rounds to an integer, whose low byte is then the f32's low byte.
    let bias = s.splat(12_582_912.0 + 128.0);
    let out: &mut [u8] = bytemuck::cast_slice_mut(out);
    let largest = max_abs_body(s, x);
    let usable = largest.is_finite() && largest >= 1e-35;
    let factor = s.splat(if usable { 127.0 / largest } else { 0.0 });
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (bytes, bytes_rest) = out.split_at_mut(chunks.len() * LANES);
    let bytes = &mut bytes.as_chunks_mut::<LANES>().0[..chunks.len()];
    for (i, bytes) in bytes.iter_mut().enumerate() {
        *bytes = s.low_bytes(s.add(s.mul(s.load(&chunks[i]), factor), bias));
    }
    // The padding is zeros.
    bytes_rest.fill(128);
    let rounded = s.low_bytes(s.add(s.mul(s.load_partial(rest, 0.0), factor), bias));
    for (i, byte) in bytes_rest.iter_mut().take(LANES).enumerate() {
        *byte = rounded[i];
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
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    gemm_int8_on(Int8Isa::best().for_rows(rows), x, rows, w, epilogue, scratch, out);
}

/// [`gemm_int8`] on one of the CPU's instruction sets.
pub fn gemm_int8_on(
    isa: Int8Isa,
    x: &[f32],
    rows: usize,
    w: &PackedInt8,
    epilogue: &Epilogue<'_>,
    scratch: &mut RowScratch,
    out: &mut [f32],
) {
    assert_eq!(x.len(), rows * w.k, "gemm: x is not [rows, k]");
    let layer = &Layer::new(rows, w.n, w.panels.steps(), epilogue, out);
    let (x, scales) = scratch.fill(x, rows, w.k, w.panels.steps(), |x, out| quantise(isa.lanes(), x, out));
    let factors = &Factors { x, w: &w.panels, finish: Scales { scales, w } };
    layer.divide(&|rows, vectors| {
        dispatch_int8!(isa, piece, (factors: &Factors<'_, Scales<'_>>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>))
    });
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

/// What a sum is worth.
struct Scales<'a> {
    /// `[rows]`
    scales: &'a [f32],
    w: &'a PackedInt8,
}

impl Scales<'_> {
    /// Of one vector's outputs.
    #[inline(always)]
    fn column<S: Simd>(&self, s: S, vector: usize) -> (&[i32; LANES], S::V) {
        let outputs = vector * LANES..(vector + 1) * LANES;
        (sixteen(&self.w.offsets[outputs.clone()]), s.load(sixteen(&self.w.scales[outputs])))
    }
}

impl<D: IntegerDot> Finish<D> for Scales<'_> {
    /// What 128 in place of 0 adds to each sum, and the weights' scales.
    type Column = (D::Sum, <D::Lanes as Simd>::V);

    #[inline(always)]
    fn column(&self, d: D, vector: usize) -> Self::Column {
        let (offsets, scales) = Scales::column(self, d.lanes(), vector);
        (d.load_offsets(offsets), scales)
    }

    #[inline(always)]
    fn product(&self, d: D, sum: D::Sum, row: usize, (offsets, scale_w): Self::Column) -> <D::Lanes as Simd>::V {
        let s = d.lanes();
        s.mul(d.to_f32(sum, offsets), s.mul(s.splat(self.scales[row]), scale_w))
    }
}

#[cfg(target_arch = "x86_64")]
impl Finish<Amx> for Scales<'_> {
    type Column = (__m512i, __m512);

    #[inline(always)]
    fn column(&self, amx: Amx, vector: usize) -> Self::Column {
        let (offsets, scales) = Scales::column(self, amx.lanes(), vector);
        (amx.lanes().load_words(bytemuck::cast_ref(offsets)), scales)
    }

    #[inline(always)]
    fn product(&self, amx: Amx, sum: __m512i, row: usize, (offsets, scale_w): Self::Column) -> __m512 {
        let s = amx.lanes();
        s.mul(s.difference_to_f32(sum, offsets), s.mul(s.splat(self.scales[row]), scale_w))
    }
}

#[cfg(target_arch = "x86_64")]
impl Tiled for Scales<'_> {
    const INSTRUCTION: Instruction = Instruction::Bytes;
}

// 32 registers: at most 24 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Vnni512: "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma", Factors<'_, Scales<'_>>, tile, max_rows 12, narrow 2,
    (1, 8) (2, 4) (3, 4)
    (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2));
// 16 registers, two to a vector: at most 12 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Vnni256: "avxvnni,avx2,fma", Factors<'_, Scales<'_>>, tile, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// Five of the 16 registers hold intermediate products.
#[cfg(target_arch = "x86_64")]
tiles!(Signed: "avx2,fma", Factors<'_, Scales<'_>>, tile, max_rows 4, narrow 1, (1, 4) (2, 2) (1, 1) (2, 1) (3, 1) (4, 1));
// A row's sums take all of 16 registers.
tiles!(lanes::Portable, Factors<'_, Scales<'_>>, tile, max_rows 1, narrow 1, (1, 1));

#[cfg(test)]
mod tests;
