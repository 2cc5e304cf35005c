//! Stem `stats`: what a row of logits says about its gold token.

use crate::cpu::{for_each_row, simd};

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(rows: usize, logits: &[f32], vocab_size: usize, gold: &[u32], out: &mut [f32]) {
    for r in 0..rows {
        let row = &logits[r * vocab_size..(r + 1) * vocab_size];
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|z| (f64::from(*z) - f64::from(max)).exp()).sum();
        out[r] = (f64::from(row[gold[r] as usize]) - f64::from(max) - sum.ln()) as f32;
    }
}

/// `log(sum(exp(row)))`, or the NaN or +infinity that stands in the row.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let max = simd::max(row);
    if max.is_finite() { max + simd::sum_exp(row, max).ln() } else { max }
}

/// `out[r] = log_softmax(logits[r])[gold[r]]`.
pub fn gold_log_probs(rows: usize, logits: &[f32], vocab_size: usize, gold: &[u32], out: &mut [f32]) {
    for_each_row(out, 1, rows, |r, out| {
        let row = &logits[r * vocab_size..(r + 1) * vocab_size];
        out[0] = row[gold[r] as usize] - log_sum_exp(row);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};

    #[test]
    fn fast_path_equals_reference() {
        for vocab_size in [1, 2, 31, 997] {
            let rows = 11;
            let mut logits: Vec<f32> =
                (0..rows * vocab_size).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 0.02).collect();
            logits.iter_mut().skip(1).step_by(5).for_each(|z| *z = f32::NEG_INFINITY);
            logits.iter_mut().step_by(97).for_each(|z| *z = 80.0);
            let gold: Vec<u32> = (0..rows).map(|r| (r * 13 % vocab_size) as u32).collect();
            let mut expected = vec![0.0; rows];
            let mut actual = vec![0.0; rows];
            reference(rows, &logits, vocab_size, &gold, &mut expected);
            gold_log_probs(rows, &logits, vocab_size, &gold, &mut actual);
            // Rows of width 1 may hold nothing but -inf: both give NaN.
            assert_close(&actual, &expected, Tolerance::new(1e-5, 1e-6));
        }
    }
}
