//! Launcher of `kernels/embedding.cu`: token and position rows for the live rows of a step.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::{Launch, is_vectorizable};
use crate::{Error, Result};

const OPERATION: &str = "embedding";
const THREADS: u32 = 128;

/// A row of the device's row list: what one row of the step's activations belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RowEntry {
    /// The sentence.
    pub slot: u32,
    /// The beam within it; for the encoder, the place within it.
    pub beam: u32,
    /// The row of the position table.
    pub position: u32,
}

/// `out[i] = table[tokens[rows[i].slot, rows[i].beam]] * scale + positions[rows[i].position]` for `i < count`.
///
/// Rows from `count` on are not written. A token or position outside its table gives a row of NaN.
pub struct Embedding<'a, T> {
    /// `[vocab_size, d_model]`.
    pub table: View<'a, T>,
    /// `[max_positions, d_model]`.
    pub positions: Option<View<'a, T>>,
    /// Multiplies the token's row.
    pub scale: f32,
    /// `[slots, beams]`.
    pub tokens: View<'a, u32>,
    /// Beams per slot.
    pub beams: usize,
    /// `[bucket]`.
    pub rows: View<'a, RowEntry>,
    /// `[1]`: how many entries of `rows` are live.
    pub count: View<'a, u32>,
    /// `[bucket, d_model]`.
    pub out: ViewMut<'a, T>,
}

/// Mirrors `EmbeddingArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    table: u64,
    positions: u64,
    tokens: u64,
    rows: u64,
    count: u64,
    out: u64,
    beams: u32,
    num_tokens: u32,
    d_model: u32,
    vocab_size: u32,
    max_positions: u32,
    scale: f32,
    bucket: u32,
    vectorized: u32,
}

impl<T: Element> Embedding<'_, T> {
    /// Enqueues the kernel for a bucket of `rows.len()` rows of `d_model` elements.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, d_model: usize) -> Result<()> {
        self.launch_with(context, d_model, THREADS)
    }

    /// As [`Embedding::launch`], with blocks of `threads`, a multiple of 32.
    fn launch_with(self, context: &Context, d_model: usize, threads: u32) -> Result<()> {
        let bucket = self.rows.len();
        check_len(OPERATION, "out", bucket * d_model, self.out.len())?;
        check_len(OPERATION, "count", 1, self.count.len())?;
        let vocab_size = table_rows("table", self.table.len(), d_model)?;
        let max_positions =
            self.positions.map_or(Ok(0), |positions| table_rows("positions", positions.len(), d_model))?;
        if bucket == 0 {
            return Ok(());
        }
        let mut arguments = Arguments {
            table: context.address(&self.table)?,
            positions: context.address_or_null(self.positions.as_ref())?,
            tokens: context.address(&self.tokens)?,
            rows: context.address(&self.rows)?,
            count: context.address(&self.count)?,
            out: context.address_mut(&self.out)?,
            beams: to_u32(OPERATION, "beams", self.beams)?,
            num_tokens: to_u32(OPERATION, "tokens", self.tokens.len())?,
            d_model: to_u32(OPERATION, "d_model", d_model)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            max_positions: to_u32(OPERATION, "max_positions", max_positions)?,
            scale: self.scale,
            bucket: to_u32(OPERATION, "rows", bucket)?,
            vectorized: 0,
        };
        let Arguments { table, positions, out, .. } = arguments;
        arguments.vectorized = is_vectorizable::<T>(d_model, &[table, positions, out]).into();
        let launch =
            Launch { symbol: symbol!("embedding", T), grid: [arguments.bucket, 1, 1], block: threads, shared: 0 };
        // SAFETY: mirrors `embedding_<dtype>(EmbeddingArguments)`. A block writes its own row of `out`, below `bucket`, and reads
        // its own entry of `rows`; the kernel checks token index, token and position against the sizes given, which were
        // checked above; `out` is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
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
    use crate::check;
    use crate::cuda::Buffer;
    use crate::cuda::testing::{Values, device_tests, stored, tolerance};

    const SLOTS: usize = 5;
    const BEAMS: usize = 3;
    const VOCAB: usize = 11;
    const POSITIONS: usize = 7;

    fn check_case<T: Element>(context: &Context, d_model: usize, has_positions: bool, threads: u32) -> Result<()> {
        let mut values = Values::new(d_model as u64);
        let table: Vec<T> = values.elements(VOCAB * d_model, 0.0, 1.0);
        let positions: Vec<T> = values.elements(POSITIONS * d_model, 0.0, 1.0);
        let mut tokens: Vec<u32> = (0..SLOTS * BEAMS).map(|i| (i * 7 % VOCAB) as u32).collect();
        tokens[4] = VOCAB as u32; // outside the table
        let entry = |slot, beam, position| RowEntry { slot, beam, position };
        // Slots out of order, a token, a position and a slot that are not there; the last two are beyond the count.
        let rows = [
            entry(4, 0, 6),
            entry(0, 2, 1),
            entry(1, 1, 0),
            entry(2, 0, POSITIONS as u32),
            entry(9, 0, 0),
            entry(1, 2, 3),
            entry(0, 0, 0),
        ];
        let (count, scale) = (6, 5.5f32);
        let untouched = T::from_f32(-77.0);
        let mut expected = vec![-77.0; rows.len() * d_model];
        for (i, row) in rows.iter().enumerate().take(count) {
            let token =
                tokens.get(row.slot as usize * BEAMS + row.beam as usize).map_or(VOCAB, |&token| token as usize);
            let bad = token >= VOCAB || (has_positions && row.position as usize >= POSITIONS);
            for j in 0..d_model {
                let position =
                    if has_positions && !bad { positions[row.position as usize * d_model + j].to_f32() } else { 0.0 };
                expected[i * d_model + j] =
                    if bad { f32::NAN } else { table[token * d_model + j].to_f32() * scale + position };
            }
        }
        let (table, positions) = (context.upload(&table)?, context.upload(&positions)?);
        let (tokens, rows, count) =
            (context.upload(&tokens)?, context.upload(&rows)?, context.upload(&[count as u32])?);
        let mut out: Buffer<T> = context.upload(&vec![untouched; rows.len() * d_model])?;
        Embedding {
            table: table.view(),
            positions: has_positions.then(|| positions.view()),
            scale,
            tokens: tokens.view(),
            beams: BEAMS,
            rows: rows.view(),
            count: count.view(),
            out: out.view_mut(),
        }
        .launch_with(context, d_model, threads)?;
        check::assert_close(&stored(&context.download(out.view())?), &expected, tolerance::<T>(1e-6));
        Ok(())
    }

    fn check_shapes<T: Element>(context: &Context) -> Result<()> {
        for d_model in [1, 37, 64, 512, 1048] {
            for (has_positions, threads) in [(true, 32), (false, 128), (true, 1024)] {
                check_case::<T>(context, d_model, has_positions, threads)?;
            }
        }
        Ok(())
    }

    fn a_table_of_half_a_row_is_refused(context: &Context) -> Result<()> {
        let table = context.upload(&[0.0f32; 6])?;
        let (tokens, count) = (context.upload(&[0u32])?, context.upload(&[1u32])?);
        let rows = context.upload(&[RowEntry { slot: 0, beam: 0, position: 0 }])?;
        let mut out = context.allocate(4)?;
        let embedding = Embedding {
            table: table.view(),
            positions: None,
            scale: 1.0,
            tokens: tokens.view(),
            beams: 1,
            rows: rows.view(),
            count: count.view(),
            out: out.view_mut(),
        };
        let error = embedding.launch(context, 4).unwrap_err();
        assert_eq!(error.to_string(), "embedding: table: expected rows of 4 elements, got 6 elements");
        Ok(())
    }

    device_tests! {
        f32: check_shapes::<f32>;
        f16: check_shapes::<half::f16>;
        bf16: check_shapes::<half::bf16>;
        shapes: a_table_of_half_a_row_is_refused;
    }
}
