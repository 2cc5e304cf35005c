//! Launcher of `kernels/embedding.cu`: token and position rows for the live rows of a step.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::quantize::{QuantizedView, padded};
use super::rows::RowList;
use super::{Launch, is_vectorizable};
use crate::backend::{Dtype, Row, words};
use crate::{Error, Result};

const OPERATION: &str = "embedding";
const THREADS: u32 = 128;

/// `out[i] = table[rows[i].token] * scale + positions[rows[i].position]` for the live rows, the latter where there are positions and
/// the token is not `pad_id`.
///
/// A token or position outside its table gives a row of NaN.
pub struct Embedding<'a, T> {
    /// `[vocab_size, d_model]`.
    pub table: Table<'a, T>,
    /// `[max_positions, d_model]`.
    pub positions: Option<View<'a, T>>,
    /// A token that no position is added to.
    pub pad_id: Option<u32>,
    /// Multiplies the token's row.
    pub scale: f32,
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, d_model]`.
    pub out: ViewMut<'a, T>,
}

/// Token rows.
#[derive(Clone, Copy)]
pub enum Table<'a, T> {
    /// In the type of the activations.
    Plain(View<'a, T>),
    /// The weights of a product of 8-bit integers, for activations in f32.
    Quantized(QuantizedView<'a>),
}

/// Mirrors `EmbeddingArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    table: u64,
    table_scales: u64,
    positions: u64,
    rows: u64,
    count: u64,
    out: u64,
    d_model: u32,
    vocab_size: u32,
    max_positions: u32,
    scale: f32,
    bucket: u32,
    pad_id: u32,
    row_words: u32,
    vectorized: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(Arguments as "EmbeddingF32" {
        table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket, pad_id,
        row_words, vectorized
    }),
    layout!(Arguments as "EmbeddingF16" {
        table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket, pad_id,
        row_words, vectorized
    }),
    layout!(Arguments as "EmbeddingBf16" {
        table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket, pad_id,
        row_words, vectorized
    }),
    layout!(Arguments as "EmbeddingI8" {
        table, table_scales, positions, rows, count, out, d_model, vocab_size, max_positions, scale, bucket, pad_id,
        row_words, vectorized
    }),
];

impl<T: Element> Embedding<'_, T> {
    /// Enqueues the kernel for rows of `d_model` elements.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, d_model: usize) -> Result<()> {
        self.launch_with(context, d_model, THREADS)
    }

    /// As [`Embedding::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, d_model: usize, threads: u32) -> Result<()> {
        check_len(OPERATION, "out", self.rows.bucket * d_model, self.out.len())?;
        let (symbol, vocab_size, table, table_scales) = self.table.checked(context, d_model)?;
        let max_positions =
            self.positions.map_or(Ok(0), |positions| table_rows("positions", positions.len(), d_model))?;
        let rows = self.rows.arguments(OPERATION, context)?;
        if rows.bucket == 0 {
            return Ok(());
        }
        let mut arguments = Arguments {
            table,
            table_scales,
            positions: context.address_or_null(self.positions.as_ref())?,
            rows: rows.entries,
            count: rows.count,
            out: context.address_mut(&self.out)?,
            d_model: to_u32(OPERATION, "d_model", d_model)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            max_positions: to_u32(OPERATION, "max_positions", max_positions)?,
            scale: self.scale,
            bucket: rows.bucket,
            pad_id: self.pad_id.unwrap_or(u32::MAX),
            row_words: words::<Row>() as u32,
            vectorized: 0,
        };
        let Arguments { table, positions, out, .. } = arguments;
        arguments.vectorized = is_vectorizable::<T>(d_model, &[table, positions, out]).into();
        let launch = Launch { symbol, grid: [arguments.bucket, 1, 1], block: threads, shared: 0 };
        // SAFETY: mirrors `embedding_<dtype>(EmbeddingArguments)`. A block writes its own row of `out`, below `bucket`, and reads
        // its own entry of `rows`; the kernel compares token and position with the sizes given, which were checked above; `out` is
        // borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

impl<T: Element> Table<'_, T> {
    /// The kernel that reads it, its rows, its address and that of its scales.
    fn checked(&self, context: &Context, d_model: usize) -> Result<(&'static str, usize, u64, u64)> {
        match self {
            Table::Plain(table) => {
                let rows = table_rows("table", table.len(), d_model)?;
                Ok((symbol!("embedding", T), rows, context.address(table)?, 0))
            }
            Table::Quantized(_) if T::DTYPE != Dtype::F32 => {
                let (expected, got) = ("f32 from a table of integers".to_owned(), format!("{:?}", T::DTYPE));
                Err(Error::Shape { operation: OPERATION, tensor: "out", expected, got })
            }
            Table::Quantized(QuantizedView { values, scales }) => {
                let rows = table_rows("table", values.len(), padded(d_model))?;
                check_len(OPERATION, "scales", rows, scales.len())?;
                Ok(("embedding_i8", rows, context.address(values)?, context.address(scales)?))
            }
        }
    }
}

/// How many rows of `d_model` elements a table has: at least one, and no part of one.
fn table_rows(tensor: &'static str, len: usize, d_model: usize) -> Result<usize> {
    if d_model > 0 && len > 0 && len.is_multiple_of(d_model) {
        return Ok(len / d_model);
    }
    let expected = format!("rows of {d_model} elements");
    Err(Error::Shape { operation: OPERATION, tensor, expected, got: format!("{len} elements") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::{DeviceRows, device_tests};
    use crate::validate::kernels::embedding as cases;
    use crate::validate::probe::assert_all_pass;

    fn a_table_of_half_a_row_is_refused(context: &Context) -> Result<()> {
        let table = context.upload(&[0.0f32; 6])?;
        let rows = DeviceRows::upload(context, &[Row::default()], 1)?;
        let mut out = context.allocate(4)?;
        let (table, positions) = (Table::Plain(table.view()), table.view());
        let embedding = Embedding {
            table,
            positions: Some(positions),
            pad_id: None,
            scale: 1.0,
            rows: rows.list(),
            out: out.view_mut(),
        };
        let error = embedding.launch(context, 4).unwrap_err();
        assert_eq!(error.to_string(), "embedding: table: expected rows of 4 elements, got 6 elements");
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        i8: |context| assert_all_pass(context, OPERATION, cases::check_quantized);
        shapes: a_table_of_half_a_row_is_refused;
    }
}
