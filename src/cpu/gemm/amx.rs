//! Matrix tiles (Intel AMX): the products of up to sixteen rows of x with sixteen outputs over 64 bytes of inputs, in one
//! instruction. Intel SDM volume 1, chapter 18.
//!
//! A panel of packed weights holds two such tiles side by side, a step of the walk down the panel being one row of each, so that a
//! tile's rows lie 128 bytes apart. The registers are laid out once per piece of work: sums in 0 to 3, x in 4 and 5, weights in 6
//! and 7. The compiler knows nothing of tile registers; between two `asm!` blocks of this file nothing else uses them.
//!
//! A tile is set to zero once it has been used. A core has few physical registers for tiles, which its two hyperthreads share, and a
//! tile of zeros needs none: where the other thread multiplies tiles, too, a loop with eight tiles in use waits for free registers at
//! each load, and takes twice as long as this one (docs/performance.md, "Matrix tiles").
//!
//! The intrinsics are unstable in Rust 1.95, hence the assembly.

use super::quads::{Factors, Finish, Instructions, Line, Multiply, Quad, TILE_STEPS, row_stride};
use super::tiling::{Layer, PANEL};
use crate::cpu::simd::lanes::{Avx512, LANES};
use std::arch::asm;
use std::arch::x86_64::__m512i;
use std::ops::Range;

/// Rows of x that one tile takes.
const TILE_ROWS: usize = 16;

/// Proof that the CPU has AVX-512 and matrix tiles for bytes and bf16, and that the system lets this process use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amx(pub(super) Avx512);

/// The sums of a unit, as they lie in registers 0 to 3: 32-bit integers or floating point numbers.
#[repr(C, align(64))]
pub(super) struct Sums([[[u32; LANES]; TILE_ROWS]; 4]);

/// Which instruction multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Instruction {
    /// Unsigned bytes with signed ones, into 32-bit integers.
    Bytes,
    /// bf16, into f32.
    Bf16,
}

/// The instruction for a kind of factors.
pub(super) trait Tiled: Finish<Amx> {
    const INSTRUCTION: Instruction;
}

impl Instructions for Amx {
    type Lanes = Avx512;
    /// Sixteen 32-bit sums of either kind.
    type Sum = __m512i;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }
}

/// Tile registers laid out for `rows` rows of x at once; released when dropped.
struct Layout;

impl Layout {
    fn new(_: Amx, rows: usize) -> Self {
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut configuration =
            Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..6].fill(rows as u8);
        configuration.rows[6..8].fill(TILE_STEPS as u8);
        // SAFETY: the token proves that the instruction is there; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, preserves_flags)) };
        Layout
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: a layout exists only where the instruction does.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Tiles of sums that one walk computes: four, or two where rows or panels end.
#[derive(Clone, Copy)]
struct Unit {
    shape: Shape,
    /// The first row of each tile of rows.
    rows: [usize; 2],
    /// Rows per tile.
    height: usize,
    /// The first panel.
    panel: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Two tiles of rows by the two tiles of a panel.
    TwoByTwo,
    /// One tile of rows by the two tiles of a panel.
    TwoOutputs,
    /// One tile of rows by the four tiles of two panels: with two, each product would wait for the one before it.
    FourOutputs,
}

/// Panels that some rows meet before the next rows do: what they write lies together then, and what they read stays in the second-level
/// cache.
fn panels_of_group(steps: usize) -> usize {
    const GROUP_BYTES: usize = 1 << 16;
    (GROUP_BYTES / (steps.max(1) * PANEL * size_of::<Quad>())).clamp(4, 8)
}

/// A block of rows as tiles of one height; the last one reaches back over rows of the one before it, which it computes again.
struct Tiles {
    rows: Range<usize>,
    count: usize,
    height: usize,
}

impl Tiles {
    fn of(rows: Range<usize>) -> Self {
        let count = rows.len().div_ceil(TILE_ROWS);
        Tiles { height: rows.len().div_ceil(count), count, rows }
    }

    /// The first rows of two tiles, of which the second may be the first again.
    fn pair(&self, tile: usize) -> [usize; 2] {
        [tile, (tile + 1).min(self.count - 1)]
            .map(|tile| (self.rows.start + tile * self.height).min(self.rows.end - self.height))
    }

    /// What the next walk of two tiles computes, when so many panels are left.
    fn shape(&self, tile: usize, panels: usize) -> Shape {
        match (tile + 1 < self.count, self.count == 1 && panels > 1) {
            (true, _) => Shape::TwoByTwo,
            (_, true) => Shape::FourOutputs,
            _ => Shape::TwoOutputs,
        }
    }
}

/// The unit that was walked last, whose sums have not been stored.
struct Pending {
    sums: Sums,
    unit: Option<Unit>,
}

impl<F: Tiled> Multiply<F> for Amx {
    /// Computes a piece of a layer: x in blocks of rows that fit the cache, so that each group of panels is read once per block and
    /// meets all of its rows, four tiles at a time.
    ///
    /// # Safety
    /// As for [`Layer::compute`].
    #[inline(always)]
    unsafe fn compute(self, factors: &Factors<'_, F>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>) {
        let panels = vectors.start * LANES / PANEL..vectors.end * LANES / PANEL;
        let group = panels_of_group(factors.w.steps());
        let mut pending = Pending { sums: Sums([[[0; LANES]; TILE_ROWS]; 4]), unit: None };
        for block in layer.blocks(rows) {
            let tiles = Tiles::of(block);
            let _layout = Layout::new(self, tiles.height);
            for start in panels.clone().step_by(group) {
                let group = start..panels.end.min(start + group);
                for tile in (0..tiles.count).step_by(2) {
                    // SAFETY: the layout is for tiles of this height; rows and panels are the caller's.
                    unsafe { self.compute_pair(factors, layer, &tiles, tile, group.clone(), &mut pending) };
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.store_pending(layer, factors, &pending) };
    }
}

impl Amx {
    /// Computes two tiles of rows, or one, over a group of panels. The last unit's sums stay pending.
    ///
    /// # Safety
    /// As for [`Layer::compute`]; the tile registers are laid out for tiles of this height.
    #[inline(always)]
    unsafe fn compute_pair<F: Tiled>(
        self,
        factors: &Factors<'_, F>,
        layer: &Layer<'_>,
        tiles: &Tiles,
        tile: usize,
        group: Range<usize>,
        pending: &mut Pending,
    ) {
        let mut panel = group.start;
        while panel < group.end {
            let shape = tiles.shape(tile, group.end - panel);
            let unit = Unit { shape, rows: tiles.pair(tile), height: tiles.height, panel };
            self.expect_stores(layer, &unit);
            // Of the next group's panel a walk asks for a quarter: after 16 x 8 rows or more, all of it lies in the cache.
            let next_group = panel_start(factors, panel + panels_of_group(factors.w.steps())).cast::<u8>();
            // SAFETY: the caller's promise.
            unsafe {
                unit.walk(factors, next_group.wrapping_add(tile / 2 % 4 * 512));
                // What follows a walk is done while the matrix unit is busy with the next one.
                self.store_pending(layer, factors, pending);
                unit.take(&mut pending.sums);
            }
            pending.unit = Some(unit);
            panel += if shape == Shape::FourOutputs { 2 } else { 1 };
        }
    }

    /// Stores the outputs of the unit whose sums were taken last, if there is one.
    ///
    /// # Safety
    /// As for [`Layer::store`].
    #[inline(always)]
    unsafe fn store_pending<F: Tiled>(self, layer: &Layer<'_>, factors: &Factors<'_, F>, pending: &Pending) {
        if let Some(unit) = &pending.unit {
            // SAFETY: the caller's promise.
            unsafe { self.store_unit(layer, factors, &pending.sums, unit) };
        }
    }

    /// Asks for the lines that a unit's outputs are stored to.
    #[inline(always)]
    fn expect_stores(self, layer: &Layer<'_>, unit: &Unit) {
        let vector = unit.panel * (PANEL / LANES);
        let (tiles, lines) = match unit.shape {
            Shape::TwoByTwo => (2, 2),
            Shape::TwoOutputs => (1, 2),
            Shape::FourOutputs => (1, 4),
        };
        for first in &unit.rows[..tiles] {
            layer.prefetch_out(*first..first + unit.height, vector..vector + lines);
        }
    }

    /// Stores the outputs of a unit, whose sums have been taken from the tiles.
    ///
    /// # Safety
    /// As for [`Layer::store`].
    #[inline(always)]
    unsafe fn store_unit<F: Tiled>(self, layer: &Layer<'_>, factors: &Factors<'_, F>, sums: &Sums, unit: &Unit) {
        let Unit { shape, rows, height, panel } = *unit;
        let [a, b, c, d] = &sums.0;
        // SAFETY: the caller's promise.
        unsafe {
            match shape {
                Shape::TwoByTwo => {
                    self.store(layer, factors, [a, b], rows[0]..rows[0] + height, panel);
                    self.store(layer, factors, [c, d], rows[1]..rows[1] + height, panel);
                }
                Shape::TwoOutputs => self.store(layer, factors, [a, b], rows[0]..rows[0] + height, panel),
                Shape::FourOutputs => self.store(layer, factors, [a, b, c, d], rows[0]..rows[0] + height, panel),
            }
        }
    }

    /// Stores some vectors of outputs of some rows, from a panel's first on; row by row, so that they lie together.
    ///
    /// # Safety
    /// As for [`Layer::store`].
    #[inline(always)]
    unsafe fn store<F: Tiled, const COUNT: usize>(
        self,
        layer: &Layer<'_>,
        factors: &Factors<'_, F>,
        sums: [&[[u32; LANES]; TILE_ROWS]; COUNT],
        rows: Range<usize>,
        panel: usize,
    ) {
        let (s, first) = (self.0, panel * (PANEL / LANES));
        let mut columns = [factors.finish.column(self, first); COUNT];
        let mut places = [layer.place(s, first); COUNT];
        for v in 1..COUNT {
            (columns[v], places[v]) = (factors.finish.column(self, first + v), layer.place(s, first + v));
        }
        // Not a branch at each vector: most layers have nothing to finish.
        macro_rules! store_rows {
            ($finished:literal) => {
                for (r, row) in rows.enumerate() {
                    for v in 0..COUNT {
                        let product = factors.finish.product(self, s.load_words(&sums[v][r]), row, columns[v]);
                        // SAFETY: the caller's promise.
                        unsafe { layer.store_row::<_, $finished>(s, row, &places[v], product) };
                    }
                }
            };
        }
        if layer.finishes() {
            store_rows!(true);
        } else {
            store_rows!(false);
        }
    }
}

/// Walks down panels with one of the two instructions: first the lines that set the sums to zero, then for each tile of x the pairs
/// (what is loaded, which tiles are multiplied) and the lines that release the last of them. The sums stay in their tiles.
macro_rules! walk {
    ($factors:expr, [$($zero:literal)+], [$($step:tt)+], [$($release:literal)+], $($operand:tt)+) => {
        match F::INSTRUCTION {
            Instruction::Bytes => walk!(@ "tdpbusd", $factors, [$($zero)+], [$($step)+], [$($release)+], $($operand)+),
            Instruction::Bf16 => walk!(@ "tdpbf16ps", $factors, [$($zero)+], [$($step)+], [$($release)+], $($operand)+),
        }
    };
    (@ $multiply:literal, $factors:expr, [$($zero:literal)+], [$(($load:literal, $tiles:literal))+], [$($release:literal)+],
     $($operand:tt)+) => {
        asm!(
            $($zero,)+
            "test {count}, {count}",
            "jz 3f",
            "2:",
            $($load, concat!($multiply, " ", $tiles),)+
            $($release,)+
            "add {w}, 2048",
            "dec {count}",
            "jnz 2b",
            "3:",
            count = inout(reg) $factors.w.steps() / TILE_STEPS => _,
            x_stride = in(reg) row_stride($factors.w.steps()) * size_of::<Quad>(),
            w_stride = in(reg) PANEL * 4,
            $($operand)+,
            options(nostack)
        )
    };
}

/// The address of a row of x.
#[inline(always)]
fn row<F>(factors: &Factors<'_, F>, row: usize) -> *const Quad {
    factors.x[row * row_stride(factors.w.steps())..].as_ptr()
}

/// The address of a panel's first step.
#[inline(always)]
fn panel_start<F>(factors: &Factors<'_, F>, panel: usize) -> *const Line {
    factors.w.vector(panel * (PANEL / LANES))
}

impl Unit {
    /// Computes the sums; of what begins at `next`, which need not exist, a walk of four tiles asks for a quarter of each 2048 bytes.
    ///
    /// # Safety
    /// The tile registers are laid out for tiles of this height, whose rows lie within x, as the panels lie within the weights.
    #[inline(always)]
    unsafe fn walk<F: Tiled>(&self, factors: &Factors<'_, F>, next: *const u8) {
        let (x, w) = (row(factors, self.rows[0]), panel_start(factors, self.panel));
        // SAFETY: reads whole tiles of x and of panels; what is asked for ahead need not exist.
        unsafe {
            match self.shape {
                Shape::TwoByTwo => walk!(factors,
                    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
                    [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]
                       prefetcht0 [{next}]\n prefetcht0 [{next} + 64]", "tmm0, tmm4, tmm6")
                     ("tileloadd tmm7, [{w} + {w_stride} + 64]
                       prefetcht0 [{next} + 128]\n prefetcht0 [{next} + 192]", "tmm1, tmm4, tmm7")
                     ("tilezero tmm4\n tileloadd tmm5, [{y} + {x_stride}]
                       prefetcht0 [{next} + 256]\n prefetcht0 [{next} + 320]", "tmm2, tmm5, tmm6")
                     ("tilezero tmm6\n add {x}, 64\n add {y}, 64
                       prefetcht0 [{next} + 384]\n prefetcht0 [{next} + 448]\n add {next}, 2048", "tmm3, tmm5, tmm7")],
                    ["tilezero tmm5" "tilezero tmm7"],
                    x = inout(reg) x => _, y = inout(reg) row(factors, self.rows[1]) => _, w = inout(reg) w => _,
                    next = inout(reg) next => _),
                Shape::TwoOutputs => walk!(factors,
                    ["tilezero tmm0" "tilezero tmm1"],
                    [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]", "tmm0, tmm4, tmm6")
                     ("tilezero tmm6\n tileloadd tmm7, [{w} + {w_stride} + 64]\n add {x}, 64", "tmm1, tmm4, tmm7")],
                    ["tilezero tmm4" "tilezero tmm7"],
                    x = inout(reg) x => _, w = inout(reg) w => _),
                Shape::FourOutputs => walk!(factors,
                    ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
                    [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]", "tmm0, tmm4, tmm6")
                     ("tilezero tmm6\n tileloadd tmm7, [{w} + {w_stride} + 64]", "tmm1, tmm4, tmm7")
                     ("tilezero tmm7\n tileloadd tmm6, [{v} + {w_stride}]", "tmm2, tmm4, tmm6")
                     ("tilezero tmm6\n tileloadd tmm7, [{v} + {w_stride} + 64]\n add {x}, 64\n add {v}, 2048", "tmm3, tmm4, tmm7")],
                    ["tilezero tmm4" "tilezero tmm7"],
                    x = inout(reg) x => _, v = inout(reg) panel_start(factors, self.panel + 1) => _, w = inout(reg) w => _),
            }
        }
    }

    /// Takes the sums from the tiles.
    ///
    /// # Safety
    /// A walk of this unit was the last thing that happened to the tiles.
    #[inline(always)]
    unsafe fn take(&self, sums: &mut Sums) {
        macro_rules! take {
            ($($line:literal)+) => {
                asm!($($line,)+ sums = in(reg) sums.0.as_mut_ptr(), stride = in(reg) LANES * 4, options(nostack))
            };
        }
        // SAFETY: writes as many tiles of sums as a unit has.
        unsafe {
            if self.shape == Shape::TwoOutputs {
                take!("tilestored [{sums} + {stride}], tmm0" "tilestored [{sums} + {stride} + 1024], tmm1"
                      "tilezero tmm0" "tilezero tmm1");
            } else {
                take!("tilestored [{sums} + {stride}], tmm0" "tilestored [{sums} + {stride} + 1024], tmm1"
                      "tilestored [{sums} + {stride} + 2048], tmm2" "tilestored [{sums} + {stride} + 3072], tmm3"
                      "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3");
            }
        }
    }
}
