//! Launcher of `kernels/linear_norm.cu`: a matrix product and the norm of the rows it is added to, in one launch for few rows.
//!
//! Its bits are those of the two kernels, so a device may take either way. What decides is the product's tile: those for few rows
//! ([`Tile::normalizes`]) end with the norm.

use bytemuck::{Pod, Zeroable};

use super::buffer::ViewMut;
use super::context::Context;
use super::device::Gemm;
use super::element::Element;
use super::gemm::{self, Tile};
use super::layer_norm::{self, LayerNorm};
use super::layout::{Layout, layout};
use super::{Launch, buffer::View};
use crate::backend::Dtype;
use crate::{Error, Result};

const OPERATION: &str = "linear_norm";
/// Rows of the lowest tile: no product has more rows of tiles than rows divided by this.
const LEAST_ROWS: usize = 16;

/// How many tickets a product of so many rows takes, each of them 0 before and after.
pub fn tickets(rows: usize) -> usize {
    rows.div_ceil(LEAST_ROWS)
}

/// A product whose `out` is the delta of the norm that follows, as a [`Device`](super::Device) takes it.
#[derive(Clone, Copy)]
pub struct GemmNorm {
    /// The product; not empty.
    pub(super) gemm: Gemm,
    /// What `kernels/layer_norm.cu` takes.
    pub(super) norm: layer_norm::Arguments,
    /// Address of the tickets.
    tickets: u64,
}

/// Mirrors `LinearNormArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Arguments {
    product: gemm::Arguments,
    norm: layer_norm::Arguments,
    tickets: u64,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(Arguments as "LinearNormF32" { product, norm, tickets }),
    layout!(Arguments as "LinearNormF16" { product, norm, tickets }),
    layout!(Arguments as "LinearNormBf16" { product, norm, tickets }),
    layout!(Arguments as "LinearNormI8" { product, norm, tickets }),
];

impl GemmNorm {
    /// Of a product that was checked, and a norm whose delta is what it computes.
    ///
    /// # Errors
    /// They do not fit each other; too few tickets.
    pub(super) fn new<T: Element>(
        context: &Context,
        gemm: Gemm,
        norm: LayerNorm<'_, T>,
        tickets: &ViewMut<'_, u32>,
    ) -> Result<Self> {
        let is_delta = norm.delta.map_or(Ok(0), |delta: View<'_, T>| context.address(&delta))? == gemm.out;
        if gemm.output != T::DTYPE || gemm.out_stride != gemm.n || !is_delta {
            let (expected, got) = ("the product".to_owned(), "another tensor".to_owned());
            return Err(Error::Shape { operation: OPERATION, tensor: "delta", expected, got });
        }
        if tickets.len() < self::tickets(gemm.rows) {
            let (expected, got) = (format!("at least {}", self::tickets(gemm.rows)), tickets.len().to_string());
            return Err(Error::Shape { operation: OPERATION, tensor: "tickets", expected, got });
        }
        let tickets = context.address_mut(tickets)?;
        Ok(GemmNorm { gemm, norm: norm.arguments(context, gemm.rows, gemm.n)?, tickets })
    }

    /// The launch of both in one, in tiles that end with a norm, and its arguments.
    ///
    /// # Errors
    /// As [`gemm::product`]; there is no such kernel.
    pub(super) fn launch(&self, tile: Tile) -> Result<(Launch, Arguments)> {
        let (launch, product) = gemm::product(&self.gemm, tile)?;
        let symbol = match (tile, self.gemm.input) {
            (Tile::Small, Dtype::F16) => "linear_norm_small_f16",
            (Tile::Small, Dtype::Bf16) => "linear_norm_small_bf16",
            (Tile::Small, Dtype::I8) => "linear_norm_small_i8",
            (Tile::Deep, Dtype::F16) => "linear_norm_deep_f16",
            (Tile::Deep, Dtype::Bf16) => "linear_norm_deep_bf16",
            (Tile::Deep, Dtype::I8) => "linear_norm_deep_i8",
            (Tile::Square32, Dtype::F32) => "linear_norm_square32_f32",
            (Tile::Square32, Dtype::F16) => "linear_norm_square32_f16",
            (Tile::Square32, Dtype::Bf16) => "linear_norm_square32_bf16",
            (tile, input) => {
                let (expected, got) = ("a tile of few rows".to_owned(), format!("{tile:?} of {}", input.name()));
                return Err(Error::Shape { operation: OPERATION, tensor: "tile", expected, got });
            }
        };
        Ok((Launch { symbol, ..launch }, Arguments { product, norm: self.norm, tickets: self.tickets }))
    }

    /// The launch of the norm alone, behind the product.
    pub(super) fn norm_launch(&self) -> Launch {
        layer_norm::launch(self.gemm.output, self.norm.rows(), layer_norm::THREADS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NetworkOps;
    use crate::cuda::Cuda;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::linear_norm as cases;
    use crate::validate::probe::assert_all_pass;

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let backend = Cuda::new(context.clone(), Dtype::F32);
        let matrix = backend.matrix(&[1.0; 12], None, 4, 3)?;
        let (from, gain) = (context.upload(&[1.0f32; 17 * 3])?, context.upload(&[1.0f32; 4])?);
        let (mut delta, mut x) = (context.zeros::<f32>(17 * 4)?, context.zeros::<f32>(17 * 4)?);
        let mut launch = |rows: usize, capacity: usize, deltas: usize| -> Result<()> {
            let mut scratch = backend.product_scratch(capacity, 3)?;
            let norm = LayerNorm {
                x: x.view_mut().slice(0..rows * 4)?,
                sum: None,
                delta: None,
                delta_bias: None,
                gain: gain.view(),
                bias: None,
                kind: crate::backend::NormKind::Rms,
                eps: 0.0,
            };
            let (from, delta) = (from.view().slice(0..rows * 3)?, delta.view_mut().slice(0..deltas)?);
            matrix.multiply_norm(context, (rows, from), &mut scratch, norm, &delta, None)
        };
        launch(17, 17, 68)?;
        let error = launch(17, 16, 68).unwrap_err();
        assert_eq!(error.to_string(), "linear_norm: tickets: expected at least 2, got 1");
        assert_eq!(launch(2, 16, 7).unwrap_err().kind(), "shape");
        // A product may have room behind it, the delta of a norm may not.
        assert_eq!(launch(2, 16, 9).unwrap_err().kind(), "shape");
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        i8: |context| assert_all_pass(context, OPERATION, cases::check_int8);
        shapes: wrong_shapes_are_refused;
    }
}
