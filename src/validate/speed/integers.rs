//! Products of 8-bit integers, and what makes integers of their input.

use super::{BEAMS, Bench, Moves, SpeedRow};
use crate::Result;
use crate::backend::{Activation, Dtype};
use crate::cuda::Cuda;
use crate::cuda::gemm::{Tile, launch_int8};
use crate::cuda::quantize::QuantizedRows;

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    /// Those of a layer.
    pub(super) fn integers(&mut self) -> Result<()> {
        let (width, ffn) = (self.effort.heads.width(), self.effort.ffn);
        for rows in [&[BEAMS], &self.effort.rows[..]].concat() {
            for [n, k] in [[3 * width, width], [width; 2], [ffn, width], [width, ffn]] {
                self.product_int8([rows, n, k])?;
            }
            self.linear_norm::<f32>(rows, &Cuda::new(self.context.clone(), Dtype::I8))?;
        }
        Ok(())
    }

    /// The tile that the device chooses, then each of the others.
    fn product_int8(&mut self, [rows, n, k]: [usize; 3]) -> Result<()> {
        let context = self.context;
        let (wide_x, mut x) = (self.numbers::<f32>(rows * k)?, QuantizedRows::with_capacity(context, rows, k)?);
        let seconds = self.time(|| x.fill(context, wide_x.view(), rows, k).map(drop))?;
        self.add(("quantize", "", "f32"), format!("{rows} x {k}"), (Moves::ReadsAndWrites, 5 * rows * k), seconds)?;
        let ones = |_: usize, some: &mut [f32]| {
            some.fill(1.0);
            Ok(())
        };
        let weights = QuantizedRows::of_matrix(context, ones, n, k)?;
        let (bias, mut out) = (context.zeros::<f32>(n)?, context.allocate::<f32>(rows * n)?);
        for tile in std::iter::once(None).chain(Tile::ON_TENSOR_CORES.map(Some)) {
            let seconds = self.time(|| {
                let finish = (Some(bias.view()), Activation::Relu);
                let (x, weights, out) = (x.view(rows, k)?, weights.view(n, k)?, out.view_mut());
                match tile {
                    None => context.gemm_int8([rows, n, k], x, weights, finish, out, n),
                    Some(tile) => launch_int8(context, [rows, n, k], x, weights, finish, out, n, tile),
                }
            })?;
            let moved = (Moves::ReadsAndWrites, rows * k + n * k + 4 * rows * n);
            let variant = tile.map_or("", Tile::name);
            self.add(("gemm", variant, "i8"), format!("{rows} x {n} x {k}"), moved, seconds)?;
        }
        Ok(())
    }
}
