//! The weights of linear layers on the device, and products with them.

use std::sync::Arc;

use super::buffer::{Buffer, View, ViewMut};
use super::context::Context;
use super::element::Element;
use super::embedding::Table;
use super::quantize::QuantizedRows;
use crate::backend::Activation;
use crate::{Error, Result};

/// The weights `[out_dim, in_dim]` of a linear layer, and its bias.
#[derive(Debug)]
pub struct Matrix<T> {
    pub(super) weights: Weights<T>,
    pub(super) bias: Option<Buffer<f32>>,
    pub(super) out_dim: usize,
    pub(super) in_dim: usize,
}

/// Weights as products take them; shared where they are a table of embeddings, too.
#[derive(Clone, Debug)]
pub(super) enum Weights<T> {
    /// In the type of the activations.
    Plain(Arc<Buffer<T>>),
    /// 8-bit integers, of activations in f32.
    Quantized(Arc<QuantizedRows>),
}

impl<T> Weights<T> {
    /// As token embeddings.
    pub fn table(&self, width: usize) -> Result<Table<'_, T>> {
        match self {
            Weights::Plain(table) => Ok(Table::Plain(table.view())),
            Weights::Quantized(rows) => Ok(Table::Quantized(rows.all(width)?)),
        }
    }
}

impl<T: Element> Matrix<T> {
    /// `out = activation(x W^T + bias)`, x `[rows, in_dim]`, the rows of `out` `stride` apart; without a bias in `finish` there is none.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub(super) fn multiply<O: Element>(
        &self,
        context: &Context,
        (rows, x): (usize, View<'_, T>),
        scratch: &mut Option<QuantizedRows>,
        finish: (Option<View<'_, f32>>, Activation),
        (out, stride): (ViewMut<'_, O>, usize),
    ) -> Result<()> {
        let sizes = [rows, self.out_dim, self.in_dim];
        match (&self.weights, scratch) {
            (Weights::Plain(weights), _) => context.gemm(sizes, x, weights.view(), finish, out, stride),
            (Weights::Quantized(weights), Some(scratch)) => {
                let x = scratch.fill(context, x.floats()?, rows, self.in_dim)?;
                context.gemm_int8(sizes, x, weights.view(self.out_dim, self.in_dim)?, finish, out, stride)
            }
            (Weights::Quantized(_), None) => {
                let (expected, got) = ("room for quantised rows".to_owned(), "none".to_owned());
                Err(Error::Shape { operation: "linear", tensor: "scratch", expected, got })
            }
        }
    }
}
