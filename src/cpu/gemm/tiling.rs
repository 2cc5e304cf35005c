//! What every dense layer has in common, whatever its weights' type: how the output is divided among threads, caches and
//! register tiles, and what happens to a tile once it is computed.

use super::Epilogue;
use crate::backend::Activation;
use crate::cpu::simd::lanes::{LANES, Simd, prefetch_line};
use crate::cpu::simd::{activate_body, activate_vector, add_body};
use std::ops::Range;

/// Outputs per panel of packed weights: two vectors of lanes.
pub(super) const PANEL: usize = 2 * LANES;

/// How many steps ahead of their use weights are asked for.
const PREFETCH_STEPS: usize = 32;

/// Asks for the cache line that a walk down a panel, now at `address`, will need later.
#[inline(always)]
pub(super) fn prefetch<T>(address: *const T) {
    // A panel's step is two cache lines.
    prefetch_line(address.cast::<u8>().wrapping_add(PREFETCH_STEPS * 128));
}

/// A dense layer's output and what is known of its size.
pub(super) struct Layer<'a> {
    rows: usize,
    n: usize,
    /// Steps of a walk down a panel.
    steps: usize,
    epilogue: Epilogue<'a>,
    out: Output,
}

/// Where a vector of outputs lies in each row.
#[derive(Clone, Copy)]
pub(super) struct Place<V> {
    column: usize,
    /// Outputs of the vector that the layer has.
    count: usize,
    bias: V,
}

/// The output's address, shared by threads that write different elements.
struct Output(*mut f32);

// SAFETY: `Layer::divide` gives each thread its own rows and columns of the output.
unsafe impl Sync for Output {}

impl<'a> Layer<'a> {
    /// Bytes of x that stay in the second-level cache while a panel passes over them.
    const BLOCK_BYTES: usize = 1 << 18;
    /// Pieces end at multiples of this many vectors, so that few rows can take all of them side by side.
    const PIECE_VECTORS: usize = 8;
    /// Pieces end at multiples of this many rows: whole tiles on every instruction set.
    const PIECE_ROWS: usize = 48;
    /// The least work worth another thread, in lane-wise multiply-adds: about 20 us, several times the cost of waking it.
    const GRAIN: usize = 3 << 19;
    /// Reading a step's weights from the last-level cache takes as long as multiplying them with this many rows.
    const ROWS_WORTH_A_READ: usize = 8;

    pub fn new(rows: usize, n: usize, steps: usize, epilogue: &Epilogue<'a>, out: &'a mut [f32]) -> Self {
        assert_eq!(out.len(), rows * n, "gemm: out is not [rows, n]");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == n), "gemm: bias is not [n]");
        assert!(epilogue.residual.is_none_or(|r| r.len() == rows * n), "gemm: residual is not [rows, n]");
        Layer { rows, n, steps, epilogue: *epilogue, out: Output(out.as_mut_ptr()) }
    }

    /// Calls `piece(rows, vectors)` for pieces that cover the output, in parallel where there is enough work.
    pub fn divide(&self, piece: &(impl Fn(Range<usize>, Range<usize>) + Sync)) {
        if self.rows == 0 || self.n == 0 {
            return;
        }
        let (rows, vectors) = (0..self.rows, 0..self.n.div_ceil(PANEL) * (PANEL / LANES));
        let threads = rayon::current_num_threads();
        let grain = (self.work(&rows, &vectors) / (4 * threads)).max(Self::GRAIN);
        if threads == 1 { piece(rows, vectors) } else { self.halve(rows, vectors, grain, piece) }
    }

    fn work(&self, rows: &Range<usize>, vectors: &Range<usize>) -> usize {
        rows.len().max(Self::ROWS_WORTH_A_READ) * vectors.len() * LANES * self.steps
    }

    fn halve(
        &self,
        rows: Range<usize>,
        vectors: Range<usize>,
        grain: usize,
        piece: &(impl Fn(Range<usize>, Range<usize>) + Sync),
    ) {
        let row = rows.start + (rows.len() / 2).next_multiple_of(Self::PIECE_ROWS);
        let vector = vectors.start + (vectors.len() / 2).next_multiple_of(Self::PIECE_VECTORS);
        let (rows_divide, vectors_divide) = (row < rows.end, vector < vectors.end);
        if self.work(&rows, &vectors) < grain + grain / 2 || !(rows_divide || vectors_divide) {
            piece(rows, vectors)
        } else if rows_divide && (rows.len() > 256 || !vectors_divide) {
            rayon::join(
                || self.halve(rows.start..row, vectors.clone(), grain, piece),
                || self.halve(row..rows.end, vectors.clone(), grain, piece),
            );
        } else {
            rayon::join(
                || self.halve(rows.clone(), vectors.start..vector, grain, piece),
                || self.halve(rows.clone(), vector..vectors.end, grain, piece),
            );
        }
    }

    /// Stretches of rows whose x stays in the second-level cache.
    pub fn blocks(&self, rows: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let block = (Self::BLOCK_BYTES / (4 * self.steps.max(1))).next_multiple_of(Self::PIECE_ROWS);
        rows.clone().step_by(block).map(move |start| start..rows.end.min(start + block))
    }

    /// Computes a piece with the register tiles of `t`: x in blocks of rows that fit the cache, so that each stretch of
    /// panels is read once per block and meets all of its rows. `s` are the lanes for activation and residual.
    ///
    /// # Safety
    /// The piece lies inside the output, and no other thread accesses its elements; `operands` belong to this layer.
    #[inline(always)]
    pub unsafe fn compute<P, T: Tiles<P>, S: Simd>(
        &self,
        t: T,
        s: S,
        operands: &P,
        rows: Range<usize>,
        vectors: Range<usize>,
    ) {
        for block in self.blocks(rows) {
            let mut walk = Walk::new::<P, T>(block, vectors.clone(), self.steps);
            let mut before = None;
            // What follows a tile's products waits for the next tile's: by then they have left the pipeline.
            loop {
                let tile = walk.next();
                if let Some((rows, vectors)) = &tile {
                    self.prefetch_out(rows.clone(), vectors.clone());
                    // SAFETY: the caller's promise; these rows and vectors are part of the piece.
                    unsafe { t.tile(operands, self, rows.start, vectors.start, rows.len(), vectors.len()) };
                }
                if let Some((rows, vectors)) = before {
                    // SAFETY: as above.
                    unsafe { self.finish(s, rows, vectors) };
                }
                if tile.is_none() {
                    break;
                }
                before = tile;
            }
        }
    }

    /// Stores the products of a register tile, whose first ones are at `row` and `vector`, bias added.
    ///
    /// # Safety
    /// These are rows and vectors of the output, and no other thread accesses their elements.
    #[inline(always)]
    pub unsafe fn store<S: Simd, const ROWS: usize, const WIDTH: usize>(
        &self,
        s: S,
        row: usize,
        vector: usize,
        products: &[[S::V; WIDTH]; ROWS],
    ) {
        // Written out: the compiler would not unroll such a loop, and a tile whose columns are indexed by a variable lies in memory.
        macro_rules! columns {
            ($($i:literal)+) => {$(
                if $i < WIDTH {
                    let place = self.place(s, vector + $i);
                    for (r, products) in products.iter().enumerate() {
                        // SAFETY: the caller's promise.
                        unsafe { self.store_row::<S, false>(s, row + r, &place, products[$i]) };
                    }
                }
            )+};
        }
        const { assert!(WIDTH <= 8, "no tile is wider") };
        columns!(0 1 2 3 4 5 6 7);
    }

    /// Asks for the cache lines that some vectors of outputs begin in, before their products are computed.
    #[inline(always)]
    pub fn prefetch_out(&self, rows: Range<usize>, vectors: Range<usize>) {
        for row in rows {
            for vector in vectors.clone() {
                prefetch_line(self.out.0.wrapping_add(row * self.n + vector * LANES).cast());
            }
        }
    }

    /// Where a vector of outputs lies in each row, and its bias.
    #[inline(always)]
    pub fn place<S: Simd>(&self, s: S, vector: usize) -> Place<S::V> {
        let column = self.n.min(vector * LANES);
        let count = LANES.min(self.n - column);
        // Adding -0 leaves every product as it is.
        let bias = match self.epilogue.bias {
            Some(bias) => s.load_partial(&bias[column..column + count], 0.0),
            None => s.splat(-0.0),
        };
        Place { column, count, bias }
    }

    /// Whether anything but a bias follows the products.
    #[inline(always)]
    pub fn finishes(&self) -> bool {
        self.epilogue.activation != Activation::None || self.epilogue.residual.is_some()
    }

    /// Stores the products of one vector of outputs for one row, bias added; if `FINISHED`, with activation and residual.
    ///
    /// # Safety
    /// As for [`Layer::store`]; the place is this layer's.
    #[inline(always)]
    pub unsafe fn store_row<S: Simd, const FINISHED: bool>(
        &self,
        s: S,
        row: usize,
        place: &Place<S::V>,
        product: S::V,
    ) {
        let at = row * self.n + place.column;
        // SAFETY: the row has `count` columns from `column` on; the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), place.count) };
        let mut value = s.add(product, place.bias);
        if FINISHED {
            value = activate_vector(s, self.epilogue.activation, value);
            if let Some(residual) = self.epilogue.residual {
                // SAFETY: it is as long as the output.
                let residual = unsafe { residual.get_unchecked(at..at + place.count) };
                value =
                    s.add(value, residual.first_chunk().map_or_else(|| s.load_partial(residual, 0.0), |r| s.load(r)));
            }
        }
        match out.first_chunk_mut() {
            Some(out) => s.store(value, out),
            None => s.store_partial(value, out),
        }
    }

    /// Applies activation and residual to a tile that still lies in the first-level cache.
    ///
    /// # Safety
    /// As for [`Layer::store`].
    #[inline(always)]
    pub unsafe fn finish<S: Simd>(&self, s: S, rows: Range<usize>, vectors: Range<usize>) {
        if !self.finishes() {
            return;
        }
        let columns = self.n.min(vectors.start * LANES)..self.n.min(vectors.end * LANES);
        for row in rows {
            let at = row * self.n + columns.start;
            // SAFETY: inside the row; the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(self.out.0.add(at), columns.len()) };
            activate_body(s, self.epilogue.activation, out);
            if let Some(residual) = self.epilogue.residual {
                add_body(s, out, &residual[at..at + columns.len()]);
            }
        }
    }
}

/// The tiles of a block of rows, by groups of vectors: all of a group for some rows, so that what they write lies together, then for
/// the next rows, then the next group.
struct Walk {
    rows: Range<usize>,
    /// Vectors of the present group that these rows have not met, those of the whole group, and those of later groups.
    left: Range<usize>,
    group: Range<usize>,
    later: Range<usize>,
    /// How many tiles lie below each other, and which is next. They are of equal height, so that none is left too short to keep the
    /// multipliers busy.
    tiles: usize,
    tile: usize,
    wide: usize,
    narrow: usize,
}

impl Walk {
    /// Bytes of weights that stay in the second-level cache while all rows of a block meet them.
    const GROUP_BYTES: usize = 1 << 17;

    #[inline(always)]
    fn new<P, T: Tiles<P>>(rows: Range<usize>, vectors: Range<usize>, steps: usize) -> Self {
        let tiles = rows.len().div_ceil(T::MAX_ROWS);
        let wide = T::width(rows.len().div_ceil(tiles));
        let group = (Self::GROUP_BYTES / (steps.max(1) * LANES * 4)).clamp(wide, Layer::PIECE_VECTORS) / wide * wide;
        let group = vectors.start..vectors.end.min(vectors.start + group);
        Walk {
            rows,
            left: group.clone(),
            later: group.end..vectors.end,
            group,
            tiles,
            tile: 0,
            wide,
            narrow: T::NARROW,
        }
    }

    /// Rows and vectors of the next tile.
    #[inline(always)]
    fn next(&mut self) -> Option<(Range<usize>, Range<usize>)> {
        if self.left.is_empty() {
            self.tile += 1;
            if self.tile == self.tiles {
                self.tile = 0;
                let end = self.later.end.min(self.later.start + self.group.len());
                self.group = self.later.start..end;
                self.later.start = end;
            }
            self.left = self.group.clone();
            if self.left.is_empty() {
                return None;
            }
        }
        let (first, height) = (self.rows.start, self.rows.len());
        let rows = first + height * self.tile / self.tiles..first + height * (self.tile + 1) / self.tiles;
        let width = if self.wide <= self.left.len() { self.wide } else { self.narrow };
        let vectors = self.left.start..self.left.start + width;
        self.left.start = vectors.end;
        Some((rows, vectors))
    }
}

/// The register tiles that suit an instruction set's number of registers, for operands of type `P`.
pub(super) trait Tiles<P>: Copy {
    /// The tallest tile.
    const MAX_ROWS: usize;
    /// The width in vectors that every height has a tile of.
    const NARROW: usize;

    /// The best width in vectors for tiles of this height.
    fn width(rows: usize) -> usize;

    /// Computes `rows` rows from `row` on, of `width` vectors from `vector` on, and hands them to [`Layer::store`].
    ///
    /// # Safety
    /// As for [`Layer::compute`].
    unsafe fn tile(self, operands: &P, layer: &Layer<'_>, row: usize, vector: usize, rows: usize, width: usize);
}

/// Implements [`Tiles`] by `tile::<isa, rows, width>` for a list of `(rows, width)`: first the wide tiles, then those of the
/// narrow width.
///
/// Each is a function of its own, with the instruction set's features: in one, what any tile computes outside of its loop would be
/// computed for all of them at every column, and their sums would compete for registers.
macro_rules! tiles {
    ($isa:ty $(: $features:literal)?, $operands:ty, $tile:ident, max_rows $max_rows:literal, narrow $narrow:literal,
     $(($rows:literal, $width:literal))+) => {
        impl Tiles<$operands> for $isa {
            const MAX_ROWS: usize = $max_rows;
            const NARROW: usize = $narrow;

            #[inline(always)]
            fn width(rows: usize) -> usize {
                [$(($rows, $width)),+].iter().find(|tile| tile.0 == rows).map_or($narrow, |tile| tile.1)
            }

            #[inline(always)]
            unsafe fn tile(
                self,
                operands: &$operands,
                layer: &Layer<'_>,
                row: usize,
                vector: usize,
                rows: usize,
                width: usize,
            ) {
                $(#[target_feature(enable = $features)])?
                #[inline(never)]
                unsafe fn sized<const ROWS: usize, const WIDTH: usize>(
                    isa: $isa,
                    operands: &$operands,
                    layer: &Layer<'_>,
                    row: usize,
                    vector: usize,
                ) {
                    // SAFETY: the caller's promise.
                    unsafe { $tile::<$isa, ROWS, WIDTH>(isa, operands, layer, row, vector) }
                }
                match (rows, width) {
                    // SAFETY: the caller's promise; `self` exists only where the CPU has these features.
                    $(($rows, $width) => unsafe { sized::<$rows, $width>(self, operands, layer, row, vector) },)+
                    _ => unreachable!("no tile of {rows} rows and {width} vectors"),
                }
            }
        }
    };
}
pub(super) use tiles;
