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
    use crate::backend::Dtype;
    use crate::check::{Tolerance, assert_close, assert_same_bits};

    #[test]
    fn fast_path_equals_reference() {
        let (vocab, len, width) = (71, 13, 7);
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 0.03;
        let tokens: Vec<f32> = (0..vocab * width).map(value).collect();
        let own = Embedding { tokens: Tokens::Own(tokens.clone()), scale: 16.0, width };
        let product = Arc::new(Matrix::new(&tokens, None, vocab, width, Dtype::F32));
        let shared = Embedding { tokens: Tokens::Product(product), scale: 16.0, width };
        let table: Vec<f32> = (0..len * width).map(|i| value(i + 5)).collect();
        let padded = Positions { table: table.clone(), pad_id: Some(6) };
        for positions in [None, Some(&Positions { table, pad_id: None }), Some(&padded)] {
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
