//! Dense layers: `out = activation(x W^T + bias) + residual` with weights that were packed once.
//!
//! **Each output element is one accumulator that runs over k in order.** Its bits therefore depend on its row of x and its
//! row of W alone: not on the other rows, its position, the tile or panel it falls into, the thread that computes it, or
//! (up to the note in `simd::lanes` on fused multiply-add) the instruction set.
//!
//! Weights `[n, k]` are packed into panels of 32 outputs, each `[k][32]`, the last one padded with zeros. A tile keeps
//! `rows x columns` accumulators in registers and walks down its panels once: per step it loads a stretch of the panel and
//! one value of x per row. Few rows take several panels side by side, so that enough accumulators are in flight to hide
//! the latency of the fused multiply-add.

use crate::backend::Activation;
#[cfg(target_arch = "x86_64")]
use crate::cpu::simd::lanes::{Avx2, Avx512};
use crate::cpu::simd::lanes::{LANES, Portable, Simd, dispatch};
use crate::cpu::simd::{Isa, activate_body, add_body, reference_activation};
use std::ops::Range;

/// Outputs per panel: two vectors of lanes.
const PANEL: usize = 2 * LANES;

/// One cache line of packed weights.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// Weights of a dense layer, packed for [`gemm`].
pub struct PackedMatrix {
    /// `[panel][k][PANEL]`.
    lines: Vec<Line>,
    n: usize,
    k: usize,
}

impl PackedMatrix {
    /// Packs `weights`, `[n, k]` row-major: one row per output, as checkpoints store a linear layer.
    pub fn pack(weights: &[f32], n: usize, k: usize) -> Self {
        assert_eq!(weights.len(), n * k, "pack: weights are not [n, k]");
        let mut lines = vec![Line([0.0; LANES]); n.div_ceil(PANEL) * k * (PANEL / LANES)];
        let packed: &mut [f32] = bytemuck::cast_slice_mut(&mut lines);
        if k > 0 {
            for (panel, rows) in packed.chunks_exact_mut(k * PANEL).zip(weights.chunks(PANEL * k)) {
                for (column, row) in rows.chunks_exact(k).enumerate() {
                    for (step, &weight) in row.iter().enumerate() {
                        panel[step * PANEL + column] = weight;
                    }
                }
            }
        }
        PackedMatrix { lines, n, k }
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
        std::mem::size_of_val(self.lines.as_slice())
    }

    /// Vectors of outputs, padding included.
    fn vectors(&self) -> usize {
        self.n.div_ceil(PANEL) * (PANEL / LANES)
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
    assert_eq!(out.len(), rows * w.n, "gemm: out is not [rows, n]");
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == w.n), "gemm: bias is not [n]");
    assert!(epilogue.residual.is_none_or(|r| r.len() == rows * w.n), "gemm: residual is not [rows, n]");
    if rows == 0 || w.n == 0 {
        return;
    }
    let job = Job { isa, x, w, epilogue: *epilogue, out: Output(out.as_mut_ptr()) };
    let split = Split::new(rows, w.vectors(), w.k);
    split.run(0..rows, 0..w.vectors(), &|rows, vectors| job.run(rows, vectors));
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

/// How a product is divided among threads: recursively, down to pieces of about `grain` multiply-adds.
struct Split {
    rows: usize,
    vectors: usize,
    work: usize,
    grain: usize,
}

impl Split {
    /// Pieces end at multiples of this many vectors, so that few rows can take all of them side by side.
    const VECTORS: usize = 8;
    /// Pieces end at multiples of this many rows: whole tiles on every instruction set.
    const ROWS: usize = 48;
    /// The fewest multiply-adds worth another thread: about 20 us, several times the cost of waking it.
    const GRAIN: usize = 3 << 19;
    /// Reading a weight from the last-level cache takes as long as this many multiply-adds.
    const ROWS_WORTH_A_READ: usize = 8;

    fn new(rows: usize, vectors: usize, k: usize) -> Self {
        let work = rows.max(Self::ROWS_WORTH_A_READ) * vectors * LANES * k;
        let threads = rayon::current_num_threads();
        let grain = if threads == 1 { usize::MAX } else { (work / (4 * threads)).max(Self::GRAIN) };
        Split { rows, vectors, work, grain }
    }

    fn run(&self, rows: Range<usize>, vectors: Range<usize>, piece: &(impl Fn(Range<usize>, Range<usize>) + Sync)) {
        let share = (rows.len() * vectors.len()) as f64 / (self.rows * self.vectors) as f64;
        if share * self.work as f64 <= 1.5 * self.grain as f64 {
            return piece(rows, vectors);
        }
        let middle_vector = vectors.start + (vectors.len() / 2).next_multiple_of(Self::VECTORS);
        let middle_row = rows.start + (rows.len() / 2).next_multiple_of(Self::ROWS);
        if middle_row < rows.end && (rows.len() > 256 || middle_vector >= vectors.end) {
            rayon::join(
                || self.run(rows.start..middle_row, vectors.clone(), piece),
                || self.run(middle_row..rows.end, vectors.clone(), piece),
            );
        } else if middle_vector < vectors.end {
            rayon::join(
                || self.run(rows.clone(), vectors.start..middle_vector, piece),
                || self.run(rows.clone(), middle_vector..vectors.end, piece),
            );
        } else {
            piece(rows, vectors)
        }
    }
}

/// The output's address, shared by threads that write different elements.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: `Split` gives each thread its own rows and columns of the output.
unsafe impl Sync for Output {}

/// One product.
struct Job<'a> {
    isa: Isa,
    x: &'a [f32],
    w: &'a PackedMatrix,
    epilogue: Epilogue<'a>,
    out: Output,
}

impl Job<'_> {
    /// Bytes of x that stay in the second-level cache while a panel passes over them.
    const BLOCK_BYTES: usize = 1 << 18;

    /// Computes the given rows of the given vectors.
    fn run(&self, rows: Range<usize>, vectors: Range<usize>) {
        let (isa, job) = (self.isa, self);
        dispatch!(isa, Job::run_body, (job: &Job<'_>, rows: Range<usize>, vectors: Range<usize>))
    }

    #[inline(always)]
    fn run_body<S: Tiles>(s: S, job: &Job<'_>, rows: Range<usize>, vectors: Range<usize>) {
        let block_rows = (Self::BLOCK_BYTES / (4 * job.w.k.max(1))).next_multiple_of(Split::ROWS);
        let mut start = rows.start;
        while start < rows.end {
            let end = rows.end.min(start + block_rows);
            job.block(s, start..end, vectors.clone());
            start = end;
        }
    }

    /// Rows that fit the cache: each stretch of panels is read once and meets all of them.
    #[inline(always)]
    fn block<S: Tiles>(&self, s: S, rows: Range<usize>, vectors: Range<usize>) {
        // Tiles of equal height, so that none is left too short to keep the multipliers busy.
        let tiles = rows.len().div_ceil(S::MAX_ROWS);
        let tile_start = |tile: usize| rows.start + rows.len() * tile / tiles;
        let wide = S::width(rows.len().div_ceil(tiles));
        let mut vector = vectors.start;
        while vector < vectors.end {
            let width = if vector + wide <= vectors.end { wide } else { S::NARROW };
            for tile in 0..tiles {
                let rows = tile_start(tile)..tile_start(tile + 1);
                // SAFETY: rows and vectors lie inside the product and, by `Split`, are this thread's own.
                unsafe { s.tile(self, rows.start, vector, rows.len(), width) };
                self.finish(s, rows, vector..vector + width);
            }
            vector += width;
        }
    }

    /// Applies activation and residual to a tile that still lies in the first-level cache.
    #[inline(always)]
    fn finish<S: Simd>(&self, s: S, rows: Range<usize>, vectors: Range<usize>) {
        if self.epilogue.activation == Activation::None && self.epilogue.residual.is_none() {
            return;
        }
        let n = self.w.n;
        let columns = n.min(vectors.start * LANES)..n.min(vectors.end * LANES);
        for row in rows {
            let at = row * n + columns.start;
            // SAFETY: inside the output; these elements are this thread's own.
            let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), columns.len()) };
            activate_body(s, self.epilogue.activation, out);
            if let Some(residual) = self.epilogue.residual {
                add_body(s, out, &residual[at..at + columns.len()]);
            }
        }
    }
}

/// The register tiles that suit an instruction set's number of registers.
trait Tiles: Simd {
    /// The tallest tile.
    const MAX_ROWS: usize;
    /// The width in vectors that every height has a tile of.
    const NARROW: usize;

    /// The best width in vectors for tiles of this height.
    fn width(rows: usize) -> usize;

    /// Computes `rows` rows from `row` on, of `width` vectors from `vector` on, bias included.
    ///
    /// # Safety
    /// Rows and vectors lie inside the product, and no other thread accesses these elements of the output.
    unsafe fn tile(self, job: &Job<'_>, row: usize, vector: usize, rows: usize, width: usize);
}

/// Implements [`Tiles`] for a list of `(rows, width)`: first the wide tiles, then those of the narrow width.
macro_rules! tiles {
    ($isa:ty, max_rows $max_rows:literal, narrow $narrow:literal, $(($rows:literal, $width:literal))+) => {
        impl Tiles for $isa {
            const MAX_ROWS: usize = $max_rows;
            const NARROW: usize = $narrow;

            #[inline(always)]
            fn width(rows: usize) -> usize {
                [$(($rows, $width)),+].iter().find(|tile| tile.0 == rows).map_or($narrow, |tile| tile.1)
            }

            #[inline(always)]
            unsafe fn tile(self, job: &Job<'_>, row: usize, vector: usize, rows: usize, width: usize) {
                match (rows, width) {
                    // SAFETY: the caller's promise.
                    $(($rows, $width) => unsafe { tile::<Self, $rows, $width>(self, job, row, vector) },)+
                    _ => unreachable!("no tile of {rows} rows and {width} vectors"),
                }
            }
        }
    };
}

// 32 registers: at most 24 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Avx512, max_rows 12, narrow 2,
    (1, 8) (2, 4) (3, 4)
    (1, 2) (2, 2) (3, 2) (4, 2) (5, 2) (6, 2) (7, 2) (8, 2) (9, 2) (10, 2) (11, 2) (12, 2));
// 16 registers, two to a vector: at most 12 accumulators, two weights, one x.
#[cfg(target_arch = "x86_64")]
tiles!(Avx2, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// 32 registers, four to a vector (NEON): at most 24 accumulators.
#[cfg(not(target_arch = "x86_64"))]
tiles!(Portable, max_rows 6, narrow 1, (1, 4) (2, 2) (3, 2) (1, 1) (2, 1) (3, 1) (4, 1) (5, 1) (6, 1));
// 16 registers, four to a vector (SSE2).
#[cfg(target_arch = "x86_64")]
tiles!(Portable, max_rows 2, narrow 1, (1, 2) (1, 1) (2, 1));

/// One register tile, bias included.
///
/// # Safety
/// As for [`Tiles::tile`].
#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const WIDTH: usize>(s: S, job: &Job<'_>, row: usize, vector: usize) {
    let (n, k) = (job.w.n, job.w.k);
    let mut weights = [std::ptr::null::<f32>(); WIDTH];
    for (i, pointer) in weights.iter_mut().enumerate() {
        *pointer = job.w.vector(vector + i);
    }
    let x = job.x[row * k..(row + ROWS) * k].as_ptr();
    let mut sums = [[s.splat(0.0); WIDTH]; ROWS];
    for step in 0..k {
        let mut w = [s.splat(0.0); WIDTH];
        for (w, &vector) in w.iter_mut().zip(&weights) {
            // SAFETY: step < k, and a packed vector has k steps of LANES values, PANEL apart.
            *w = s.load(unsafe { &*vector.add(step * PANEL).cast::<[f32; LANES]>() });
            prefetch(vector.wrapping_add((step + PREFETCH_STEPS) * PANEL));
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `x` starts ROWS rows of k values.
            let value = s.splat(unsafe { *x.add(r * k + step) });
            for (sum, &w) in sums.iter_mut().zip(&w) {
                *sum = s.mul_add(value, w, *sum);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (i, &sum) in sums.iter().enumerate() {
            let column = (vector + i) * LANES;
            let count = n.saturating_sub(column).min(LANES);
            let bias = match job.epilogue.bias {
                Some(bias) => s.load_partial(&bias[n.min(column)..][..count], 0.0),
                None => s.splat(0.0),
            };
            // SAFETY: row + r is a row of the output, which has `count` columns from `column` on; they are this thread's own.
            let out = unsafe { std::slice::from_raw_parts_mut(job.out.0.wrapping_add((row + r) * n + column), count) };
            s.store_partial(s.add(sum, bias), out);
        }
    }
}

/// How far ahead of its use a step's weights are asked for.
const PREFETCH_STEPS: usize = 32;

/// Asks for a cache line; any address will do.
#[inline(always)]
fn prefetch(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that never faults; SSE is in the target's baseline.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests;
