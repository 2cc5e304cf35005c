//! Op `embedding`: token row times a scale, plus the position's row.

use crate::backend::Row;
use crate::cpu::for_each_row;

/// Token and position embeddings.
#[derive(Debug)]
pub struct Embedding {
    /// `[vocab_size, width]`
    pub tokens: Vec<f32>,
    /// What a token's row is multiplied by.
    pub scale: f32,
    /// `[max_len, width]`
    pub positions: Vec<f32>,
    /// Width of a row.
    pub width: usize,
}

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(table: &Embedding, rows: &[Row], out: &mut [f32]) {
    for (r, row) in rows.iter().enumerate() {
        for i in 0..table.width {
            let token = f64::from(table.tokens[row.token as usize * table.width + i]);
            let position = f64::from(table.positions[row.position as usize * table.width + i]);
            out[r * table.width + i] = (token * f64::from(table.scale) + position) as f32;
        }
    }
}

/// `out[r] = tokens[rows[r].token] * scale + positions[rows[r].position]`.
pub fn embedding(table: &Embedding, rows: &[Row], out: &mut [f32]) {
    let width = table.width;
    for_each_row(out, width, rows.len(), |r, out| {
        let token = &table.tokens[rows[r].token as usize * width..][..width];
        let position = &table.positions[rows[r].position as usize * width..][..width];
        for ((o, t), p) in out.iter_mut().zip(token).zip(position) {
            *o = t * table.scale + p;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};

    #[test]
    fn fast_path_equals_reference() {
        let (vocab, positions, width) = (11, 13, 7);
        let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 0.03;
        let table = Embedding {
            tokens: (0..vocab * width).map(value).collect(),
            scale: 16.0,
            positions: (0..positions * width).map(|i| value(i + 5)).collect(),
            width,
        };
        for count in [0, 1, 8, 9, 29] {
            let rows: Vec<Row> =
                (0..count).map(|i| Row { slot: 0, beam: 0, position: i * 5 % 13, token: i * 3 % 11 }).collect();
            let mut expected = vec![f32::NAN; count as usize * width];
            let mut actual = expected.clone();
            reference(&table, &rows, &mut expected);
            embedding(&table, &rows, &mut actual);
            assert_close(&actual, &expected, Tolerance::new(1e-6, 1e-6));
        }
    }
}
