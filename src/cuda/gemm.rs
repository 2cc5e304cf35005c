//! Launcher of `kernels/gemm.cu`: matrix products with what follows them.
//!
//! A row's bits depend on that row and the weights alone. They are the same whatever tile a block computes, so the tile is chosen
//! by what is fastest for a number of rows ([`Tile::choose`]).

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, to_u32};
use super::device::Gemm;
use super::element::Element;
use super::layout::{Layout, layout};
use super::quantize::QuantizedView;
use crate::backend::{Activation, Dtype};
use crate::{Error, Result};

const OPERATION: &str = "gemm";
/// Elements along k that are summed by themselves on tensor cores; as in the kernel, whose elements there are of two bytes.
pub(super) const SLICE: u32 = 512;
/// Addresses of matrices for tensor cores are multiples of this; so is 2 k.
const ALIGNMENT: u64 = 16;
/// Blocks that keep a large GPU's multiprocessors busy.
const ENOUGH_BLOCKS: u64 = 128;

/// What a block computes of `out`: some rows by some columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU chooses"))]
pub enum Tile {
    /// On tensor cores.
    Small,
    /// On tensor cores, for long rows: slices of k side by side.
    Deep,
    /// On tensor cores.
    Middle,
    /// On tensor cores.
    Large,
    /// On tensor cores.
    Huge,
    /// On the ordinary units, f32's among them.
    Square32,
    /// On the ordinary units.
    Square64,
    /// On the ordinary units.
    Square128,
}

/// A tile's sizes, as in the kernel.
struct Sizes {
    rows: u32,
    columns: u32,
    threads: u32,
    shared: u32,
}

const fn sizes(rows: u32, columns: u32, threads: u32, shared: u32) -> Sizes {
    Sizes { rows, columns, threads, shared }
}

impl Tile {
    /// Those on tensor cores.
    pub const ON_TENSOR_CORES: [Tile; 5] = [Tile::Small, Tile::Deep, Tile::Middle, Tile::Large, Tile::Huge];
    /// The others, which take any type and size.
    pub const ON_ORDINARY_UNITS: [Tile; 3] = [Tile::Square32, Tile::Square64, Tile::Square128];

    /// Its kernels' last name.
    pub const fn name(self) -> &'static str {
        match self {
            Tile::Small => "small",
            Tile::Deep => "deep",
            Tile::Middle => "middle",
            Tile::Large => "large",
            Tile::Huge => "huge",
            Tile::Square32 => "square32",
            Tile::Square64 => "square64",
            Tile::Square128 => "square128",
        }
    }

    const fn sizes(self) -> Sizes {
        match self {
            Tile::Small => sizes(16, 32, 64, 49_152),
            Tile::Deep => sizes(16, 32, 128, 73_728),
            Tile::Middle => sizes(32, 64, 128, 49_152),
            Tile::Large => sizes(64, 64, 128, 65_536),
            Tile::Huge => sizes(128, 128, 256, 98_304),
            Tile::Square32 => sizes(32, 32, 256, 0),
            Tile::Square64 => sizes(64, 64, 256, 0),
            Tile::Square128 => sizes(128, 128, 256, 0),
        }
    }

    /// Bytes of shared memory of a block.
    pub(super) const fn shared(self) -> u32 {
        self.sizes().shared
    }

    /// Blocks of a product.
    fn blocks(self, rows: usize, n: usize) -> u64 {
        let Sizes { rows: height, columns, .. } = self.sizes();
        rows.div_ceil(height as usize) as u64 * n.div_ceil(columns as usize) as u64
    }

    /// Whether there are kernels of this tile that go on with the norm of its rows: where these are so few that the block that comes
    /// last has them done sooner than another launch would.
    pub fn normalizes(self) -> bool {
        matches!(self, Tile::Small | Tile::Deep | Tile::Square32)
    }

    /// The tile of a product: the largest that fills at least half its rows and keeps the GPU busy.
    pub fn choose(gemm: &Gemm) -> Tile {
        let suits =
            |tile: &Tile| gemm.rows > tile.sizes().rows as usize / 2 && tile.blocks(gemm.rows, gemm.n) >= ENOUGH_BLOCKS;
        let is_aligned = [gemm.x, gemm.weight].iter().all(|address| address.is_multiple_of(ALIGNMENT));
        let row_bytes = gemm.k * gemm.input.size();
        if gemm.input == Dtype::F32 || !is_aligned || !row_bytes.is_multiple_of(ALIGNMENT as usize) {
            return [Tile::Square128, Tile::Square64].into_iter().find(suits).unwrap_or(Tile::Square32);
        }
        let few_rows = if row_bytes > SLICE as usize * 2 { Tile::Deep } else { Tile::Small };
        [Tile::Huge, Tile::Large, Tile::Middle].into_iter().find(suits).unwrap_or(few_rows)
    }
}

/// What a tile is chosen for.
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU chooses"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    rows: usize,
    n: usize,
    k: usize,
    input: Dtype,
    output: Dtype,
}

#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only a GPU chooses"))]
impl Product {
    pub(super) fn of(gemm: &Gemm) -> Self {
        let &Gemm { rows, n, k, input, output, .. } = gemm;
        Product { rows, n, k, input, output }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Product { rows, n, k, input, output } = self;
        write!(f, "{rows} rows by [{n}, {k}], {} to {}", input.name(), output.name())
    }
}

/// Mirrors `GemmArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Arguments {
    x: u64,
    weight: u64,
    bias: u64,
    x_scales: u64,
    weight_scales: u64,
    out: u64,
    rows: u32,
    n: u32,
    k: u32,
    out_stride: u32,
    activation: u32,
    vectorized: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(Arguments as "GemmF32" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
    layout!(Arguments as "GemmF16" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
    layout!(Arguments as "GemmBf16" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
    layout!(Arguments as "GemmWideF16" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
    layout!(Arguments as "GemmWideBf16" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
    layout!(Arguments as "GemmI8" {
        x, weight, bias, x_scales, weight_scales, out, rows, n, k, out_stride, activation, vectorized
    }),
];

/// The kernels of some types, by tile; f32 has none on tensor cores.
macro_rules! symbols {
    ($types:literal, $tile:expr) => {
        match $tile {
            Tile::Small => concat!("gemm_small_", $types),
            Tile::Deep => concat!("gemm_deep_", $types),
            Tile::Middle => concat!("gemm_middle_", $types),
            Tile::Large => concat!("gemm_large_", $types),
            Tile::Huge => concat!("gemm_huge_", $types),
            Tile::Square32 => concat!("gemm_square32_", $types),
            Tile::Square64 => concat!("gemm_square64_", $types),
            Tile::Square128 => concat!("gemm_square128_", $types),
        }
    };
}

/// The launch of a product, which may not be empty, and its arguments.
///
/// # Errors
/// Sizes beyond 32 bits; types that are not multiplied.
pub(super) fn product(gemm: &Gemm, tile: Tile) -> Result<(Launch, Arguments)> {
    let symbol = match (gemm.input, gemm.output) {
        (Dtype::F32, Dtype::F32) => symbols!("f32", tile),
        (Dtype::F16, Dtype::F16) => symbols!("f16", tile),
        (Dtype::F16, Dtype::F32) => symbols!("wide_f16", tile),
        (Dtype::Bf16, Dtype::Bf16) => symbols!("bf16", tile),
        (Dtype::Bf16, Dtype::F32) => symbols!("wide_bf16", tile),
        (Dtype::I8, Dtype::F32) => symbols!("i8", tile),
        (input, output) => {
            let (expected, got) =
                ("f32, f16 or bf16, out as in or f32, or i8, out f32".to_owned(), format!("{input:?}, {output:?} out"));
            return Err(Error::Shape { operation: OPERATION, tensor: "types", expected, got });
        }
    };
    let size = |name, value| to_u32(OPERATION, name, value);
    let row_bytes = (gemm.out_stride * gemm.output.size()) as u64;
    let arguments = Arguments {
        x: gemm.x,
        weight: gemm.weight,
        bias: gemm.bias,
        x_scales: gemm.x_scales,
        weight_scales: gemm.weight_scales,
        out: gemm.out,
        rows: size("rows", gemm.rows)?,
        n: size("n", gemm.n)?,
        // Integers come in pairs.
        k: size("k", if gemm.input == Dtype::I8 { gemm.k / 2 } else { gemm.k })?,
        out_stride: size("stride", gemm.out_stride)?,
        activation: gemm.activation as u32,
        vectorized: (gemm.out.is_multiple_of(ALIGNMENT) && row_bytes.is_multiple_of(ALIGNMENT)).into(),
    };
    let Sizes { rows, columns, threads, shared } = tile.sizes();
    // Blocks that share columns of the weights follow each other.
    let grid = [arguments.rows.div_ceil(rows), arguments.n.div_ceil(columns), 1];
    Ok((Launch { symbol, grid, block: threads, shared: shared as usize }, arguments))
}

/// As [`Context::gemm`], in tiles of one kind.
///
/// # Errors
/// As [`Context::gemm`]; there is no such kernel.
#[allow(clippy::too_many_arguments)]
pub(crate) fn launch<I: Element, O: Element>(
    context: &Context,
    sizes: [usize; 3],
    x: View<'_, I>,
    weight: View<'_, I>,
    (bias, activation): (Option<View<'_, f32>>, Activation),
    out: ViewMut<'_, O>,
    out_stride: usize,
    tile: Tile,
) -> Result<()> {
    let gemm = context.check_gemm(sizes, &x, &weight, (bias.as_ref(), activation), &out, out_stride)?;
    // SAFETY: the lengths were checked, and `out` is borrowed mutably.
    unsafe { launch_checked(context, &gemm, tile) }
}

/// As [`Context::gemm_int8`], in tiles of one kind.
///
/// # Errors
/// As [`Context::gemm_int8`]; there is no such kernel.
#[allow(clippy::too_many_arguments)]
pub(crate) fn launch_int8<O: Element>(
    context: &Context,
    sizes: [usize; 3],
    x: QuantizedView<'_>,
    weight: QuantizedView<'_>,
    (bias, activation): (Option<View<'_, f32>>, Activation),
    out: ViewMut<'_, O>,
    out_stride: usize,
    tile: Tile,
) -> Result<()> {
    let gemm = context.check_gemm_int8(sizes, &x, &weight, (bias.as_ref(), activation), &out, out_stride)?;
    // SAFETY: the lengths were checked, and `out` is borrowed mutably.
    unsafe { launch_checked(context, &gemm, tile) }
}

/// # Safety
/// The matrices have the lengths that the product needs, and nothing else reads or writes `out`.
unsafe fn launch_checked(context: &Context, gemm: &Gemm, tile: Tile) -> Result<()> {
    if gemm.rows == 0 || gemm.n == 0 {
        return Ok(());
    }
    let (launch, arguments) = product(gemm, tile)?;
    // SAFETY: mirrors `GemmArguments` of these types. A thread reads rows below `rows` and `n` up to `k`, writes elements of `out`
    // below `rows` and `n`; the caller's promise.
    unsafe { context.launch(&launch, &arguments) }
}

#[cfg(test)]
mod tests;
