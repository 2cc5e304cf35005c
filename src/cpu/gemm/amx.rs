//! Matrix tiles (Intel AMX): the products of up to sixteen rows of x with sixteen outputs over 64 bytes of inputs, in one
//! instruction. Intel SDM volume 1, chapter 18.
//!
//! A panel of packed weights holds two such tiles side by side, a step of the walk down the panel being one row of each, so that a
//! tile's rows lie 128 bytes apart. The registers are laid out once per piece of work: sums in 0 to 3, x in 4 and 5, weights in 6
//! and 7. The compiler knows nothing of tile registers; between two `asm!` blocks of this file nothing else uses them.
//!
//! The intrinsics are unstable in Rust 1.95, hence the assembly.

use super::quads::{Factors, Finish, Instructions, Line, Multiply, Quad, TILE_STEPS};
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

/// The sums of four tiles, as they lie in registers 0 to 3: 32-bit integers or floating point numbers.
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

impl<F: Tiled> Multiply<F> for Amx {
    /// Computes a piece of a layer: x in blocks of rows that fit the cache, so that each stretch of panels is read once per block and
    /// meets all of its rows, two tiles of rows by two of outputs at a time.
    ///
    /// Tiles of a block have equal heights; the last one reaches back over rows of the one before it, which it computes again.
    ///
    /// # Safety
    /// As for [`Layer::compute`].
    #[inline(always)]
    unsafe fn compute(self, factors: &Factors<'_, F>, layer: &Layer<'_>, rows: Range<usize>, vectors: Range<usize>) {
        let mut sums = Sums([[[0; LANES]; TILE_ROWS]; 4]);
        let panels = vectors.start * LANES / PANEL..vectors.end * LANES / PANEL;
        for block in layer.blocks(rows) {
            let count = block.len().div_ceil(TILE_ROWS);
            let height = block.len().div_ceil(count);
            let first_row = |tile: usize| (block.start + tile * height).min(block.end - height);
            let _layout = Layout::new(self, height);
            let mut panel = panels.start;
            while panel < panels.end {
                if count == 1 && panel + 1 < panels.end {
                    // SAFETY: the layout is for tiles of this height; the rows and panels are the caller's.
                    unsafe {
                        four_outputs(factors, block.start, panel, &mut sums);
                        self.store(layer, factors, &sums, block.start, panel, height, 0, 4);
                    }
                    panel += 2;
                    continue;
                }
                for tile in (0..count).step_by(2) {
                    let (first, second) = (first_row(tile), first_row((tile + 1).min(count - 1)));
                    // SAFETY: as above.
                    unsafe {
                        if tile + 1 < count {
                            two_by_two(factors, [first, second], panel, &mut sums);
                            self.store(layer, factors, &sums, first, panel, height, 0, 2);
                            self.store(layer, factors, &sums, second, panel, height, 2, 2);
                        } else {
                            two_outputs(factors, first, panel, &mut sums);
                            self.store(layer, factors, &sums, first, panel, height, 0, 2);
                        }
                    }
                }
                panel += 1;
            }
        }
    }
}

impl Amx {
    /// Stores `count` vectors of outputs from a panel's first on, whose sums stand in the tiles from `tile` on.
    ///
    /// # Safety
    /// As for [`Layer::store`].
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one call per kernel, inlined")]
    unsafe fn store<F: Tiled>(
        self,
        layer: &Layer<'_>,
        factors: &Factors<'_, F>,
        sums: &Sums,
        row: usize,
        panel: usize,
        height: usize,
        tile: usize,
        count: usize,
    ) {
        let (s, first) = (self.0, panel * (PANEL / LANES));
        for v in 0..count {
            let (column, place) = (factors.finish.column(self, first + v), layer.place(s, first + v));
            for (r, sums) in sums.0[tile + v][..height].iter().enumerate() {
                let product = factors.finish.product(self, s.load_words(sums), row + r, column);
                // SAFETY: the caller's promise.
                unsafe { layer.store_row(s, row + r, &place, product) };
            }
        }
        // SAFETY: as above.
        unsafe { layer.finish(s, row..row + height, first..first + count) };
    }
}

/// Walks down panels with one of the two instructions: first the lines that set the sums to zero, then for each tile of x the pairs
/// (what is loaded, which tiles are multiplied), then the lines that store the sums.
macro_rules! walk {
    ($factors:expr, $sums:expr, [$($zero:literal)+], [$($step:tt)+], [$($store:literal)+], $($operand:tt)+) => {
        if $factors.w.steps() > 0 {
            match F::INSTRUCTION {
                Instruction::Bytes => walk!(@ "tdpbusd", $factors, $sums, [$($zero)+], [$($step)+], [$($store)+], $($operand)+),
                Instruction::Bf16 => walk!(@ "tdpbf16ps", $factors, $sums, [$($zero)+], [$($step)+], [$($store)+], $($operand)+),
            }
        }
    };
    (@ $multiply:literal, $factors:expr, $sums:expr, [$($zero:literal)+], [$(($load:literal, $tiles:literal))+],
     [$($store:literal)+], $($operand:tt)+) => {
        asm!(
            $($zero,)+
            "2:",
            $($load, concat!($multiply, " ", $tiles),)+
            "add {w}, 2048",
            "dec {count}",
            "jnz 2b",
            $($store,)+
            count = inout(reg) $factors.w.steps() / TILE_STEPS => _,
            x_stride = in(reg) $factors.w.steps() * size_of::<Quad>(),
            w_stride = in(reg) PANEL * 4,
            sums = in(reg) $sums.0.as_mut_ptr(),
            sums_stride = in(reg) LANES * 4,
            $($operand)+,
            options(nostack)
        )
    };
}

/// The address of a row of x.
#[inline(always)]
fn row<F>(factors: &Factors<'_, F>, row: usize) -> *const Quad {
    factors.x[row * factors.w.steps()..].as_ptr()
}

/// The address of a panel's first step.
#[inline(always)]
fn panel_start<F>(factors: &Factors<'_, F>, panel: usize) -> *const Line {
    factors.w.vector(panel * (PANEL / LANES))
}

/// Two tiles of rows by the two tiles of a panel.
///
/// # Safety
/// The tile registers are laid out for tiles of rows that lie within x.
#[inline(always)]
unsafe fn two_by_two<F: Tiled>(factors: &Factors<'_, F>, rows: [usize; 2], panel: usize, sums: &mut Sums) {
    // SAFETY: reads whole tiles of x and of a panel, and writes four tiles of sums.
    unsafe {
        walk!(factors, sums,
            ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
            [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]", "tmm0, tmm4, tmm6")
             ("tileloadd tmm7, [{w} + {w_stride} + 64]", "tmm1, tmm4, tmm7")
             ("tileloadd tmm5, [{y} + {x_stride}]", "tmm2, tmm5, tmm6")
             ("add {x}, 64\n add {y}, 64", "tmm3, tmm5, tmm7")],
            ["tilestored [{sums} + {sums_stride}], tmm0" "tilestored [{sums} + {sums_stride} + 1024], tmm1"
             "tilestored [{sums} + {sums_stride} + 2048], tmm2" "tilestored [{sums} + {sums_stride} + 3072], tmm3"],
            x = inout(reg) row(factors, rows[0]) => _, y = inout(reg) row(factors, rows[1]) => _,
            w = inout(reg) panel_start(factors, panel) => _);
    }
}

/// One tile of rows by the two tiles of a panel.
///
/// # Safety
/// As for [`two_by_two`].
#[inline(always)]
unsafe fn two_outputs<F: Tiled>(factors: &Factors<'_, F>, first: usize, panel: usize, sums: &mut Sums) {
    // SAFETY: reads whole tiles of x and of a panel, and writes two tiles of sums.
    unsafe {
        walk!(factors, sums,
            ["tilezero tmm0" "tilezero tmm1"],
            [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]", "tmm0, tmm4, tmm6")
             ("tileloadd tmm7, [{w} + {w_stride} + 64]\n add {x}, 64", "tmm1, tmm4, tmm7")],
            ["tilestored [{sums} + {sums_stride}], tmm0" "tilestored [{sums} + {sums_stride} + 1024], tmm1"],
            x = inout(reg) row(factors, first) => _, w = inout(reg) panel_start(factors, panel) => _);
    }
}

/// One tile of rows by the four tiles of two panels: with two, each product would wait for the one before it.
///
/// # Safety
/// As for [`two_by_two`].
#[inline(always)]
unsafe fn four_outputs<F: Tiled>(factors: &Factors<'_, F>, first: usize, panel: usize, sums: &mut Sums) {
    // SAFETY: reads whole tiles of x and of two panels, and writes four tiles of sums.
    unsafe {
        walk!(factors, sums,
            ["tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3"],
            [("tileloadd tmm4, [{x} + {x_stride}]\n tileloadd tmm6, [{w} + {w_stride}]", "tmm0, tmm4, tmm6")
             ("tileloadd tmm7, [{w} + {w_stride} + 64]", "tmm1, tmm4, tmm7")
             ("tileloadd tmm6, [{v} + {w_stride}]", "tmm2, tmm4, tmm6")
             ("tileloadd tmm7, [{v} + {w_stride} + 64]\n add {x}, 64\n add {v}, 2048", "tmm3, tmm4, tmm7")],
            ["tilestored [{sums} + {sums_stride}], tmm0" "tilestored [{sums} + {sums_stride} + 1024], tmm1"
             "tilestored [{sums} + {sums_stride} + 2048], tmm2" "tilestored [{sums} + {sums_stride} + 3072], tmm3"],
            x = inout(reg) row(factors, first) => _, v = inout(reg) panel_start(factors, panel + 1) => _,
            w = inout(reg) panel_start(factors, panel) => _);
    }
}
