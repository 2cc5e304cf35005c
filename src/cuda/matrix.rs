//! The weights of linear layers on the device, and products with them.

use std::sync::Arc;

use super::buffer::{Buffer, View, ViewMut};
use super::context::Context;
use super::device::Gemm;
use super::element::Element;
use super::embedding::Table;
use super::gemm::Tile;
use super::layer_norm::LayerNorm;
use super::linear_norm::{self, GemmNorm};
use super::quantize::QuantizedRows;
use super::tensor::Tensor;
use crate::backend::Activation;
use crate::{Error, Result};

/// The weights `[out_dim, in_dim]` of a linear layer, and its bias.
#[derive(Debug)]
pub struct Matrix {
    pub(super) weights: Weights,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) out_dim: usize,
    pub(super) in_dim: usize,
}

/// Weights as products take them; shared where they are a table of embeddings, too.
#[derive(Clone, Debug)]
pub(super) enum Weights {
    /// In the type of the activations.
    Plain(Arc<Tensor>),
    /// 8-bit integers, of activations in f32.
    Quantized(Arc<QuantizedRows>),
}

impl Weights {
    /// As token embeddings.
    pub fn table<T: Element>(&self, width: usize) -> Result<Table<'_, T>> {
        match self {
            Weights::Plain(table) => Ok(Table::Plain(table.view()?)),
            Weights::Quantized(rows) => Ok(Table::Quantized(rows.all(width)?)),
        }
    }
}

/// Working memory of products.
#[derive(Debug)]
pub struct ProductScratch {
    /// Inputs in 8 bits, where the weights are.
    quantized: Option<QuantizedRows>,
    /// Of products that go on with a norm.
    tickets: Buffer<u32>,
}

impl ProductScratch {
    /// For products of up to `rows` rows of at most `widest` inputs.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn new(context: &Context, rows: usize, widest: usize, is_quantized: bool) -> Result<Self> {
        let quantized = is_quantized.then(|| QuantizedRows::with_capacity(context, rows, widest)).transpose()?;
        Ok(ProductScratch { quantized, tickets: context.zeros(linear_norm::tickets(rows))? })
    }
}

/// A bias and an activation that a product applies; without a bias there is none.
pub(super) type Finish<'a> = (Option<View<'a, f32>>, Activation);

impl Matrix {
    /// `out = activation(x W^T + bias)`, x `[rows, in_dim]`, the rows of `out` `stride` apart.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub(super) fn multiply<T: Element, O: Element>(
        &self,
        context: &Context,
        (rows, x): (usize, View<'_, T>),
        scratch: &mut ProductScratch,
        finish: Finish<'_>,
        (out, stride): (ViewMut<'_, O>, usize),
    ) -> Result<()> {
        let gemm = self.gemm(context, (rows, x), &mut scratch.quantized, finish, (&out, stride))?;
        // SAFETY: the lengths were checked, and `out` is borrowed mutably.
        unsafe { context.multiply(&gemm) }
    }

    /// `delta = x W^T`, then `norm`, to which the bias is left: its own delta is set here. In `tile`, or as the device chooses.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub(crate) fn multiply_norm<'a, T: Element>(
        &self,
        context: &Context,
        (rows, x): (usize, View<'_, T>),
        scratch: &mut ProductScratch,
        norm: LayerNorm<'a, T>,
        delta: &'a ViewMut<'_, T>,
        tile: Option<Tile>,
    ) -> Result<()> {
        let ProductScratch { quantized, tickets } = scratch;
        let gemm = self.gemm(context, (rows, x), quantized, (None, Activation::None), (delta, self.out_dim))?;
        let delta_bias = self.bias.as_ref().map(Buffer::view);
        let norm = LayerNorm { delta: Some(delta.as_view()), delta_bias, ..norm };
        let work = GemmNorm::new(context, gemm, norm, &tickets.view_mut())?;
        match tile {
            // SAFETY: all lengths were checked, and what is written is borrowed mutably.
            None => unsafe { context.multiply_norm(&work) },
            Some(tile) => {
                let (launch, arguments) = work.launch(tile)?;
                // SAFETY: as above; mirrors `LinearNormArguments` of these types.
                unsafe { context.launch(&launch, &arguments) }
            }
        }
    }

    /// A product whose lengths fit, behind the quantisation of its input where that is due.
    fn gemm<T: Element, O: Element>(
        &self,
        context: &Context,
        (rows, x): (usize, View<'_, T>),
        scratch: &mut Option<QuantizedRows>,
        (bias, activation): Finish<'_>,
        (out, stride): (&ViewMut<'_, O>, usize),
    ) -> Result<Gemm> {
        let (sizes, finish) = ([rows, self.out_dim, self.in_dim], (bias.as_ref(), activation));
        match (&self.weights, scratch) {
            (Weights::Plain(weights), _) => context.check_gemm(sizes, &x, &weights.view()?, finish, out, stride),
            (Weights::Quantized(weights), Some(scratch)) => {
                let x = scratch.fill(context, x.floats()?, rows, self.in_dim)?;
                context.check_gemm_int8(sizes, &x, &weights.view(self.out_dim, self.in_dim)?, finish, out, stride)
            }
            (Weights::Quantized(_), None) => {
                let (expected, got) = ("room for quantised rows".to_owned(), "none".to_owned());
                Err(Error::Shape { operation: "linear", tensor: "scratch", expected, got })
            }
        }
    }
}
