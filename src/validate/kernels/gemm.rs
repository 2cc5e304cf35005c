//! Matrix products without cuBLASLt.

use super::linear::product;
use crate::Result;
use crate::backend::Dtype;
use crate::cuda::Element;
use crate::cuda::gemm::{BiasIn, launch};
use crate::validate::cases::Distribution;
use crate::validate::probe::Probe;

/// Rows, outputs, inputs: within a tile, a tile, one more, several.
const PRODUCTS: [[usize; 3]; 6] = [[1, 1, 1], [3, 37, 31], [32, 32, 32], [33, 65, 33], [5, 61, 257], [70, 96, 64]];
const LARGE: [[usize; 3]; 2] = [[4, 58101, 512], [300, 512, 2048]];
const BLOCKS: [u32; 5] = [32, 64, 96, 256, 1024];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&PRODUCTS, &LARGE);
    for [shape, block, distribution, bias] in
        probe.grid().combine([shapes.len(), BLOCKS.len(), Distribution::FINITE.len(), 2])
    {
        let (shape, threads, distribution) = (shapes[shape], BLOCKS[block], Distribution::FINITE[distribution]);
        let how = ([BiasIn::Product, BiasIn::Itself][bias], threads);
        let what = format!("[rows, n, k] {shape:?}, {distribution}, {how:?}");
        probe.case("own", T::DTYPE, what, |case| {
            product::<T, T>(case, shape, distribution, |context, sizes, x, weight, bias, out| {
                launch(context, sizes, x, weight, bias, out, sizes[1], how)
            })?;
            // In f32 that was the same.
            if T::DTYPE == Dtype::F32 {
                return Ok(());
            }
            product::<T, f32>(case, shape, distribution, |context, sizes, x, weight, bias, out| {
                launch(context, sizes, x, weight, bias, out, sizes[1], how)
            })
        })?;
    }
    Ok(())
}
