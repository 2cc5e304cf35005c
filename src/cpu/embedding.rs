//! Op `embedding`: token row times a scale, plus the position's row.

use std::sync::Arc;

use crate::backend::Row;
use crate::cpu::for_each_row;
use crate::cpu::linear::Matrix;

/// Token embeddings.
#[derive(Debug)]
pub struct Embedding {
    /// The tokens' rows.
    pub tokens: Tokens,
    /// What a token's row is multiplied by.
    pub scale: f32,
    /// Width of a row.
    pub width: usize,
}

/// Where the tokens' rows lie.
#[derive(Debug)]
pub enum Tokens {
    /// `[vocab_size, width]`
    Own(Vec<f32>),
    /// The weights of the vocabulary projection.
    Product(Arc<Matrix>),
}

impl Tokens {
    fn copy(&self, token: usize, out: &mut [f32]) {
        match self {
            Tokens::Own(table) => out.copy_from_slice(&table[token * out.len()..][..out.len()]),
            Tokens::Product(matrix) => matrix.weights_of(token, out),
        }
    }
}

/// A table of positions.
#[derive(Debug)]
pub struct Positions {
    /// `[len, width]`
    pub table: Vec<f32>,
    /// A token that no position is added to.
    pub pad_id: Option<u32>,
}

impl Positions {
    fn of(&self, row: &Row, width: usize) -> Option<&[f32]> {
        (self.pad_id != Some(row.token)).then(|| &self.table[row.position as usize * width..][..width])
    }
}

/// The naive computation, in f64: what the fast path is held to. `tokens` `[vocab_size, width]`.
pub fn reference(
    tokens: &[f32],
    scale: f32,
    width: usize,
    positions: Option<&Positions>,
    rows: &[Row],
    out: &mut [f32],
) {
    for (r, row) in rows.iter().enumerate() {
        for i in 0..width {
            let token = f64::from(tokens[row.token as usize * width + i]);
            let position = match positions {
                Some(positions) if positions.pad_id != Some(row.token) => {
                    f64::from(positions.table[row.position as usize * width + i])
                }
                _ => 0.0,
            };
            out[r * width + i] = (token * f64::from(scale) + position) as f32;
        }
    }
}

/// `out[r] = tokens[rows[r].token] * scale + positions[rows[r].position]`.
pub fn embedding(table: &Embedding, positions: Option<&Positions>, rows: &[Row], out: &mut [f32]) {
    let width = table.width;
    for_each_row(out, width, rows.len(), |r, out| {
        table.tokens.copy(rows[r].token as usize, out);
        match positions.and_then(|positions| positions.of(&rows[r], width)) {
            Some(position) => out.iter_mut().zip(position).for_each(|(o, p)| *o = *o * table.scale + p),
            None => out.iter_mut().for_each(|o| *o *= table.scale),
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Dtype, NetworkOps};
    use crate::check::{Tolerance, assert_close, assert_same_bits};
    use crate::cpu::Cpu;

    const VOCAB: usize = 71;

    fn value(i: usize) -> f32 {
        ((i * 37 % 101) as f32 - 50.0) * 0.03
    }

    fn table(width: usize) -> Vec<f32> {
        (0..VOCAB * width).map(value).collect()
    }

    /// The table as products take it.
    fn rounded(tokens: &[f32], width: usize, dtype: Dtype) -> Vec<f32> {
        let quantised = |row: &[f32]| {
            let largest = row.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            row.iter().map(|value| (value * (127.0 / largest)).round_ties_even() * (largest / 127.0)).collect()
        };
        match dtype {
            Dtype::I8 => tokens.chunks(width).flat_map(|row| -> Vec<f32> { quantised(row) }).collect(),
            Dtype::Bf16 => tokens.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect(),
            Dtype::F32 | Dtype::F16 => tokens.to_vec(),
        }
    }

    #[test]
    fn fast_path_equals_reference() {
        // Less than a matrix tile's inputs, and several with a rest.
        for (width, dtype) in
            [7, 131].into_iter().flat_map(|width| [Dtype::F32, Dtype::Bf16, Dtype::I8].map(|dtype| (width, dtype)))
        {
            let product = Arc::new(Matrix::new(&table(width), None, VOCAB, width, dtype));
            let tokens = rounded(&table(width), width, dtype);
            let own = Embedding { tokens: Tokens::Own(tokens.clone()), scale: 16.0, width };
            let shared = Embedding { tokens: Tokens::Product(product), scale: 16.0, width };
            let places: Vec<f32> = (0..13 * width).map(|i| value(i + 5)).collect();
            let padded = Positions { table: places.clone(), pad_id: Some(6) };
            for positions in [None, Some(&Positions { table: places, pad_id: None }), Some(&padded)] {
                for count in [0, 1, 8, 9, 79] {
                    let rows: Vec<Row> =
                        (0..count).map(|i| Row { slot: 0, beam: 0, position: i * 5 % 13, token: i * 3 % 71 }).collect();
                    let mut expected = vec![f32::NAN; count as usize * width];
                    let (mut actual, mut gathered) = (expected.clone(), expected.clone());
                    reference(&tokens, 16.0, width, positions, &rows, &mut expected);
                    embedding(&own, positions, &rows, &mut actual);
                    embedding(&shared, positions, &rows, &mut gathered);
                    assert_close(&actual, &expected, Tolerance::new(1e-6, 1e-6));
                    assert_same_bits(&gathered, &actual);
                }
            }
        }
    }

    #[test]
    fn a_table_that_is_the_vocabulary_projection_is_held_once() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::I8] {
            let cpu = Cpu::new(1, dtype).expect("a type of the CPU");
            let product = Arc::new(cpu.matrix(&table(7), None, VOCAB, 7).expect("it fits"));
            let embedding = cpu.tied_embeddings(&product, 1.0, 7).expect("it fits");
            assert!(matches!(embedding.tokens, Tokens::Product(_)), "{dtype:?}");
        }
    }
}
