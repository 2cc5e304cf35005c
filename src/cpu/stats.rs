//! Op `stats`: what a row of logits says about its gold token, and on its own.

use rayon::prelude::*;

use crate::backend::TokenStats;
use crate::cpu::simd;

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(logits: &[f32], vocab_size: usize, gold: &[u32], out: &mut [TokenStats]) {
    for (r, (&gold, out)) in gold.iter().zip(out).enumerate() {
        let row = &logits[r * vocab_size..(r + 1) * vocab_size];
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|z| (f64::from(*z) - f64::from(max)).exp()).sum();
        let log_prob = |z: f32| f64::from(z) - f64::from(max) - sum.ln();
        if row.iter().any(|z| z.is_nan()) || !max.is_finite() {
            let nan = f32::NAN;
            *out = TokenStats { log_prob: nan, entropy: nan, max_log_prob: nan, rank: 0, argmax: 0 };
            continue;
        }
        let mut ranking: Vec<usize> = (0..vocab_size).collect();
        ranking.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
        let surprise = |z: &f32| if *z == f32::NEG_INFINITY { 0.0 } else { -log_prob(*z) * log_prob(*z).exp() };
        *out = TokenStats {
            log_prob: log_prob(row[gold as usize]) as f32,
            entropy: row.iter().map(surprise).sum::<f64>() as f32,
            max_log_prob: log_prob(max) as f32,
            rank: 1 + ranking.iter().position(|v| *v == gold as usize).unwrap_or(0) as u32,
            argmax: ranking[0] as u32,
        };
    }
}

/// What a row of logits is normalised by. `max` is NaN or infinite where there is nothing to normalise; `log_sum` is then 0.
///
/// Their sum, `log(sum(exp(row)))`, would not do: beside a maximum of -3.4e38 nothing is left of the logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalizer {
    /// The largest logit; NaN if one is.
    pub max: f32,
    /// `log(sum(exp(row - max)))`.
    pub log_sum: f32,
}

impl Normalizer {
    /// Of what is normalised already.
    pub const NONE: Normalizer = Normalizer { max: 0.0, log_sum: 0.0 };

    /// That of a row.
    pub fn of(row: &[f32]) -> Self {
        let max = simd::max(row);
        Normalizer { max, log_sum: if max.is_finite() { simd::sum_exp(row, max).ln() } else { 0.0 } }
    }

    /// The log-probability of a token with logit `x`.
    #[inline(always)]
    pub fn log_prob(self, x: f32) -> f32 {
        (x - self.max) - self.log_sum
    }
}

/// The statistics of each row of `logits` `[rows, vocab_size]`; `gold` and `out` `[rows]`.
pub fn token_stats(logits: &[f32], vocab_size: usize, gold: &[u32], out: &mut [TokenStats]) {
    let rows = logits.par_chunks_exact(vocab_size).zip(gold).zip(out);
    rows.for_each(|((row, gold), out)| *out = row_stats(row, *gold as usize));
}

fn row_stats(row: &[f32], gold: usize) -> TokenStats {
    let max = simd::max(row);
    if !max.is_finite() {
        let nan = f32::NAN;
        return TokenStats { log_prob: nan, entropy: nan, max_log_prob: nan, rank: 0, argmax: 0 };
    }
    let sum = simd::sum_exp(row, max);
    // As in `Normalizer::of`, for the same bits.
    let normalizer = Normalizer { max, log_sum: sum.ln() };
    let better = row.iter().filter(|z| **z > row[gold]).count();
    let equal = row[..gold].iter().filter(|z| **z == row[gold]).count();
    TokenStats {
        log_prob: normalizer.log_prob(row[gold]),
        entropy: sum.ln() - simd::sum_exp_times(row, max) / sum,
        max_log_prob: -normalizer.log_sum,
        rank: (1 + better + equal) as u32,
        argmax: row.iter().position(|z| *z == max).unwrap_or(0) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};

    /// The statistics' numbers, ranks and tokens exact.
    fn assert_stats(actual: &[TokenStats], expected: &[TokenStats]) {
        let numbers = |stats: &[TokenStats]| -> Vec<f32> {
            stats.iter().flat_map(|s| [s.log_prob, s.entropy, s.max_log_prob]).collect()
        };
        let places = |stats: &[TokenStats]| stats.iter().map(|s| (s.rank, s.argmax)).collect::<Vec<_>>();
        assert_close(&numbers(actual), &numbers(expected), Tolerance::new(1e-5, 1e-6));
        assert_eq!(places(actual), places(expected));
    }

    #[test]
    fn by_hand() {
        // p = (1/4, 1/2, 1/4): the two equal tokens rank by their ids.
        let logits = [0.0, 2f32.ln(), 0.0];
        let entropy = 1.5 * 2f32.ln();
        for (gold, rank, p) in [(0, 2, 0.25f32), (1, 1, 0.5), (2, 3, 0.25)] {
            for compute in [reference, token_stats] {
                let mut out = [TokenStats::default()];
                compute(&logits, 3, &[gold], &mut out);
                let stats = TokenStats { log_prob: p.ln(), entropy, max_log_prob: 0.5f32.ln(), rank, argmax: 1 };
                assert_stats(&out, &[stats]);
            }
        }
    }

    #[test]
    fn fast_path_equals_reference() {
        for vocab_size in [1, 2, 31, 997] {
            let rows = 11;
            let mut logits: Vec<f32> =
                (0..rows * vocab_size).map(|i| ((i * 7919 % 1013) as f32 - 500.0) * 0.02).collect();
            logits.iter_mut().skip(1).step_by(5).for_each(|z| *z = f32::NEG_INFINITY);
            logits.iter_mut().step_by(97).for_each(|z| *z = 80.0);
            let gold: Vec<u32> = (0..rows).map(|r| (r * 13 % vocab_size) as u32).collect();
            let mut expected = vec![TokenStats::default(); rows];
            let mut actual = expected.clone();
            reference(&logits, vocab_size, &gold, &mut expected);
            token_stats(&logits, vocab_size, &gold, &mut actual);
            // Rows of width 1 may hold nothing but -inf: both give NaN.
            assert_stats(&actual, &expected);
            for (r, stats) in actual.iter().enumerate() {
                let row = &logits[r * vocab_size..(r + 1) * vocab_size];
                let normalizer = Normalizer::of(row);
                let ranked = normalizer.log_prob(row[gold[r] as usize]);
                assert!(ranked.to_bits() == stats.log_prob.to_bits() || !normalizer.max.is_finite());
            }
        }
    }

    #[test]
    fn what_cannot_be_normalised_shows() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for bad in [[0.0, nan, 1.0], [0.0, 1.0, inf], [-inf; 3]] {
            for compute in [reference, token_stats] {
                let mut out = [TokenStats::default()];
                compute(&bad, 3, &[0], &mut out);
                assert!(out[0].log_prob.is_nan() && out[0].entropy.is_nan() && out[0].rank == 0, "{bad:?}");
            }
        }
    }
}
