//! Products of rows and panels that are four bytes wide at each step: four 8-bit integers or two bf16.
//!
//! x is narrowed row by row into a scratch; weights lie in the panels of [`super`], `[n / 32][steps][32][4 bytes]`. Both are padded to
//! whole matrix tiles, sixteen steps each, so that one layout serves all instructions.

use super::storage::{Lines, interleave, panels_of_share};
use super::tiling::{Layer, PANEL, Tiles, prefetch};
use crate::backend::WeightRows;
use crate::cpu::simd::lanes::{LANES, Simd};
use crate::shares::in_shares;
use rayon::prelude::*;
use std::ops::Range;

/// What one step of a walk down a panel reads of a row of x, and of an output's weights: four bytes, as they lie in memory.
pub(super) type Quad = u32;

/// Steps that one matrix tile takes.
pub(super) const TILE_STEPS: usize = 16;

/// One cache line: one vector's weights for one step, or what a matrix tile takes of a row of x.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub [Quad; LANES]);

/// The weights of a dense layer in panels.
pub(super) struct Panels {
    /// `[panel][steps][2]`
    lines: Lines<Line>,
    steps: usize,
}

impl Panels {
    /// Room for `n` outputs of `quads` quads each; zeros.
    pub fn zeroed(n: usize, quads: usize) -> Self {
        let steps = quads.next_multiple_of(TILE_STEPS);
        Panels { lines: Lines::zeroed(n.div_ceil(PANEL) * (PANEL / LANES) * steps), steps }
    }

    /// Sets the weights of the first `n` outputs, of `k` inputs each: `narrow` is given those of one, and room for its quads. What it
    /// returns stands in their order.
    ///
    /// # Errors
    /// Those of `weights`.
    pub fn fill<R: Send, E: Send>(
        &mut self,
        [n, k]: [usize; 2],
        weights: &WeightRows<'_, E>,
        narrow: impl Fn(&[f32], &mut [Quad]) -> R + Sync,
    ) -> Result<Vec<R>, E> {
        let steps = self.steps;
        if k == 0 {
            return Ok((0..n).map(|_| narrow(&[], &mut [])).collect());
        }
        let lines: &mut [[Quad; PANEL]] = bytemuck::cast_slice_mut(&mut self.lines[..]);
        let results = in_shares(lines, panels_of_share(steps), |at, lines| {
            let (mut wide, mut quads, mut results) = (vec![0.0; PANEL * k], vec![0; PANEL * steps], Vec::new());
            for (panel, first) in lines.chunks_exact_mut(steps).zip((at / steps * PANEL..n).step_by(PANEL)) {
                let outputs = PANEL.min(n - first);
                let (wide, quads) = (&mut wide[..outputs * k], &mut quads[..outputs * steps]);
                weights(first, wide)?;
                let rows = wide.chunks_exact(k).zip(quads.chunks_exact_mut(steps));
                results.extend(rows.map(|(wide, quads)| narrow(wide, quads)));
                interleave(quads, panel);
            }
            Ok(results)
        });
        let results: Vec<Vec<R>> = results.into_iter().collect::<Result<_, E>>()?;
        Ok(results.into_iter().flatten().collect())
    }

    /// The weights of one output, padding included.
    pub fn of(&self, output: usize) -> impl Iterator<Item = Quad> + '_ {
        let (panel, column) = (output / PANEL, output % PANEL);
        let lines = self.lines[panel * self.steps * (PANEL / LANES)..].iter().skip(column / LANES);
        lines.step_by(PANEL / LANES).take(self.steps).map(move |line| line.0[column % LANES])
    }

    /// All that it holds.
    pub fn part(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines[..])
    }

    /// [`Panels::part`], to be written.
    pub fn part_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines[..])
    }

    /// Steps of a walk down a panel, padding included.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.lines[..])
    }

    /// The address of vector `v`'s first step; the next step lies two lines further.
    #[inline(always)]
    pub fn vector(&self, v: usize) -> *const Line {
        self.lines.as_ptr().wrapping_add(v / 2 * self.steps * 2 + v % 2)
    }
}

/// Quads from one narrowed row of x to the next: an odd number of cache lines. Rows a power of two apart would share a few sets of the
/// first-level cache, too few for those that a tile reads side by side.
pub(super) fn row_stride(steps: usize) -> usize {
    ((steps / TILE_STEPS) | 1) * TILE_STEPS
}

/// Where products keep narrowed rows; it grows to the largest product and is then reused.
#[derive(Default)]
pub struct RowScratch {
    /// `[rows, row_stride]`
    x: Option<Lines<Line>>,
    /// `[rows]`
    scales: Vec<f32>,
}

impl std::fmt::Debug for RowScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowScratch({} lines)", self.x.as_deref().map_or(0, <[Line]>::len))
    }
}

impl RowScratch {
    /// Rows are narrowed in parallel from this many values on.
    const GRAIN: usize = 1 << 16;

    /// Narrows x `[rows, k]` by `narrow`, which fills a row of `steps` and returns its scale.
    pub(super) fn fill(
        &mut self,
        x: &[f32],
        rows: usize,
        k: usize,
        steps: usize,
        narrow: impl Fn(&[f32], &mut [Quad]) -> f32 + Sync,
    ) -> (&[Quad], &[f32]) {
        let stride = row_stride(steps);
        let lines = rows * stride / TILE_STEPS;
        if self.x.as_deref().is_none_or(|x| x.len() < lines) {
            self.x = Some(Lines::zeroed(lines));
        }
        if self.scales.len() < rows {
            self.scales.resize(rows, 0.0);
        }
        let narrowed: &mut [Quad] =
            self.x.as_deref_mut().map_or(&mut [], |x| bytemuck::cast_slice_mut(&mut x[..lines]));
        let scales = &mut self.scales[..rows];
        if k == 0 {
            scales.fill(0.0);
        } else if rows * k < 2 * Self::GRAIN {
            for ((x, out), scale) in x.chunks_exact(k).zip(narrowed.chunks_exact_mut(stride)).zip(scales.iter_mut()) {
                *scale = narrow(x, &mut out[..steps]);
            }
        } else {
            (x.par_chunks_exact(k), narrowed.par_chunks_exact_mut(stride), scales.par_iter_mut())
                .into_par_iter()
                .with_min_len(Self::GRAIN.div_ceil(k))
                .for_each(|(x, out, scale)| *scale = narrow(x, &mut out[..steps]));
        }
        (narrowed, scales)
    }
}

/// The factors of one product, and what turns sums into products.
pub(super) struct Factors<'a, F> {
    /// `[rows, row_stride]`
    pub x: &'a [Quad],
    pub w: &'a Panels,
    pub finish: F,
}

/// Instructions that multiply, by a token that proves the CPU has them.
pub(super) trait Instructions: Copy {
    /// The lanes that finish the computation.
    type Lanes: Simd;
    /// The sums of sixteen outputs.
    type Sum: Copy;

    fn lanes(self) -> Self::Lanes;
}

/// Turns sums into products.
pub(super) trait Finish<I: Instructions> {
    /// What a vector of outputs needs besides its sums.
    type Column: Copy;

    fn column(&self, i: I, vector: usize) -> Self::Column;
    fn product(&self, i: I, sum: I::Sum, row: usize, column: Self::Column) -> <I::Lanes as Simd>::V;
}

/// Dot products over one step.
pub(super) trait Dot: Instructions {
    /// A step's weights of sixteen outputs.
    type Weights: Copy;
    /// A step's values of x for every output.
    type X: Copy;

    fn zero(self) -> Self::Sum;
    fn no_weights(self) -> Self::Weights;
    fn load(self, weights: &[Quad; LANES]) -> Self::Weights;
    fn splat(self, x: Quad) -> Self::X;
    fn dot(self, sum: Self::Sum, x: Self::X, w: Self::Weights) -> Self::Sum;
    /// Adds to each of a row's sums the products of a step's inputs.
    #[inline(always)]
    fn add_step<const WIDTH: usize>(self, sums: &mut [Self::Sum; WIDTH], x: &Quad, w: &[Self::Weights; WIDTH]) {
        let x = self.splat(*x);
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = self.dot(*sum, x, w[i]);
        }
    }
    /// Whether [`Dot::end_tile`] does anything.
    const ENDS_TILES: bool = false;
    /// What happens to a sum where a matrix tile would end.
    #[inline(always)]
    fn end_tile(self, sum: Self::Sum) -> Self::Sum {
        sum
    }
}

/// A way to compute a piece of a layer.
pub(super) trait Multiply<F>: Copy {
    /// # Safety
    /// As for [`Layer::compute`].
    unsafe fn compute(self, factors: &Factors<'_, F>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>);
}

impl<F: Finish<D>, D: Dot + for<'a> Tiles<Factors<'a, F>>> Multiply<F> for D {
    #[inline(always)]
    unsafe fn compute(self, factors: &Factors<'_, F>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>) {
        // SAFETY: the caller's promise.
        unsafe { layer.compute(self, self.lanes(), factors, rows, vectors) }
    }
}

/// Computes one of the pieces of [`Layer::divide`]; the factors are those that the layer was made for.
#[inline(always)]
pub(super) fn piece<F, M: Multiply<F>>(
    m: M,
    factors: &Factors<'_, F>,
    layer: &Layer<'_>,
    rows: Range<usize>,
    vectors: Range<usize>,
) {
    // SAFETY: called for the pieces of `Layer::divide` only, with the factors that the layer was made for.
    unsafe { m.compute(factors, layer, rows, vectors) }
}

/// Adds the products of some steps. Pairs are indexed, here and below: where a crate's parts are not optimised together,
/// `Iterator::zip` is not inlined, and all sums lie in memory.
///
/// # Safety
/// `x` starts ROWS rows that lie so many quads apart; each of the `weights` starts a packed vector. They have all of the steps.
#[inline(always)]
unsafe fn walk<D: Dot, const ROWS: usize, const WIDTH: usize>(
    d: D,
    steps: Range<usize>,
    (x, stride): (*const Quad, usize),
    weights: &[*const Line; WIDTH],
    sums: &mut [[D::Sum; WIDTH]; ROWS],
) {
    for step in steps {
        let mut w = [d.no_weights(); WIDTH];
        for (i, w) in w.iter_mut().enumerate() {
            // SAFETY: the caller's promise; a packed vector's lines lie two apart.
            let address = unsafe { weights[i].add(step * (PANEL / LANES)) };
            // SAFETY: as above.
            *w = d.load(unsafe { &(*address).0 });
            prefetch(address);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            d.add_step(sums, unsafe { &*x.add(r * stride + step) }, &w);
        }
    }
}

/// One register tile.
///
/// # Safety
/// As for [`Layer::compute`].
#[inline(always)]
pub(super) unsafe fn tile<D: Dot, const ROWS: usize, const WIDTH: usize>(
    d: D,
    factors: &Factors<'_, impl Finish<D>>,
    layer: &Layer<'_>,
    row: usize,
    vector: usize,
) {
    let (s, steps) = (d.lanes(), factors.w.steps);
    let mut weights = [std::ptr::null::<Line>(); WIDTH];
    for (i, pointer) in weights.iter_mut().enumerate() {
        *pointer = factors.w.vector(vector + i);
    }
    let stride = row_stride(steps);
    let x = factors.x[row * stride..(row + ROWS) * stride].as_ptr();
    let mut sums = [[d.zero(); WIDTH]; ROWS];
    if D::ENDS_TILES {
        for first in (0..steps).step_by(TILE_STEPS) {
            // SAFETY: `x` starts ROWS rows of at least `steps` quads, and each packed vector has as many steps, a multiple of a tile's.
            unsafe { walk(d, first..first + TILE_STEPS, (x, stride), &weights, &mut sums) };
            for sums in &mut sums {
                for sum in sums {
                    *sum = d.end_tile(*sum);
                }
            }
        }
    } else {
        // SAFETY: as above.
        unsafe { walk(d, 0..steps, (x, stride), &weights, &mut sums) };
    }
    let mut columns = [factors.finish.column(d, vector); WIDTH];
    for (i, column) in columns.iter_mut().enumerate() {
        *column = factors.finish.column(d, vector + i);
    }
    let mut products = [[s.splat(0.0); WIDTH]; ROWS];
    for (r, products) in products.iter_mut().enumerate() {
        for (i, product) in products.iter_mut().enumerate() {
            *product = factors.finish.product(d, sums[r][i], row + r, columns[i]);
        }
    }
    // SAFETY: the caller's promise.
    unsafe { layer.store(s, row, vector, &products) };
}

/// The first sixteen elements.
#[inline(always)]
pub(super) fn sixteen<T>(x: &[T]) -> &[T; LANES] {
    match x.first_chunk() {
        Some(x) => x,
        None => unreachable!("a vector has sixteen outputs"),
    }
}
