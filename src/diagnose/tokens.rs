//! Numbers of tokens and their places, without a model: bins, alignment, repetition, calibration.

use std::collections::HashMap;
use std::hash::Hash;

use super::estimate::Share;

/// Bins of every curve.
pub const BINS: usize = 20;

/// The bin of position `t` of `len`, counted from 0, by its share of the sentence.
pub fn relative_bin(t: usize, len: usize) -> usize {
    (t * BINS / len.max(1)).min(BINS - 1)
}

/// The middle of each bin of [`relative_bin`].
pub fn relative_xs() -> Vec<f64> {
    (0..BINS).map(|bin| (bin as f64 + 0.5) / BINS as f64).collect()
}

/// Bins of positions, equally wide, of which the last is open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionBins {
    width: usize,
}

impl PositionBins {
    /// Bins that hold the positions of 95% of sentences of these lengths.
    pub fn new(lengths: &[usize]) -> Self {
        PositionBins { width: percentile(lengths, 0.95).div_ceil(BINS).max(1) }
    }

    /// The bin of position `t`, counted from 0.
    pub fn of(&self, t: usize) -> usize {
        (t / self.width).min(BINS - 1)
    }

    /// The middle of each bin, positions counted from 1.
    pub fn xs(&self) -> Vec<f64> {
        (0..BINS).map(|bin| (bin * self.width) as f64 + (self.width as f64 + 1.0) / 2.0).collect()
    }
}

/// The least value that `share` of the values do not exceed; 0 for none.
pub fn percentile(values: &[usize], share: f64) -> usize {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// Sums each position's number into bins; positions without one are left out.
pub fn binned(values: impl Iterator<Item = (usize, f64)>) -> Vec<Share> {
    let mut bins = vec![(0.0, 0.0); BINS];
    for (bin, value) in values {
        bins[bin].0 += value;
        bins[bin].1 += 1.0;
    }
    bins
}

/// Which tokens of `a` and of `b` belong to their longest common subsequence.
pub fn align(a: &[u32], b: &[u32]) -> (Vec<bool>, Vec<bool>) {
    let width = b.len() + 1;
    let mut longest = vec![0u32; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i * width + j] = match a[i] == b[j] {
                true => longest[(i + 1) * width + j + 1] + 1,
                false => longest[(i + 1) * width + j].max(longest[i * width + j + 1]),
            };
        }
    }
    let (mut in_a, mut in_b) = (vec![false; a.len()], vec![false; b.len()]);
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            (in_a[i], in_b[j]) = (true, true);
            (i, j) = (i + 1, j + 1);
        } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    (in_a, in_b)
}

/// How often the most frequent n-gram stands in a text.
pub fn top_ngram<T: Eq + Hash>(tokens: &[T], order: usize) -> usize {
    let mut counts: HashMap<&[T], usize> = HashMap::new();
    tokens.windows(order).for_each(|ngram| *counts.entry(ngram).or_default() += 1);
    counts.into_values().max().unwrap_or(0)
}

/// Whether some stretch of up to four tokens follows itself at least twice, as in "a b a b a b".
pub fn has_loop<T: PartialEq>(tokens: &[T]) -> bool {
    (1..=4).any(|n| tokens.windows(3 * n).any(|w| w[..n] == w[n..2 * n] && w[n..2 * n] == w[2 * n..]))
}

/// Bins of confidence.
pub const CONFIDENCE_BINS: usize = 10;

/// Of one line, for each bin of confidence: the sum of confidences, the number of right tokens, the number of tokens.
pub type Confidences = [(f64, f64, f64); CONFIDENCE_BINS];

/// Sums (confidence, right) pairs.
pub fn confidences(tokens: impl Iterator<Item = (f64, bool)>) -> Confidences {
    let mut bins = [(0.0, 0.0, 0.0); CONFIDENCE_BINS];
    for (confidence, right) in tokens {
        let bin = &mut bins[((confidence * CONFIDENCE_BINS as f64) as usize).min(CONFIDENCE_BINS - 1)];
        *bin = (bin.0 + confidence, bin.1 + f64::from(u8::from(right)), bin.2 + 1.0);
    }
    bins
}

/// Expected calibration error (Guo et al. 2017): the mean distance of confidence and accuracy over bins, by their tokens.
pub fn calibration_error<'a>(lines: impl Iterator<Item = &'a Confidences>) -> f64 {
    let mut sum = [(0.0, 0.0, 0.0); CONFIDENCE_BINS];
    for line in lines {
        for (all, bin) in sum.iter_mut().zip(line) {
            *all = (all.0 + bin.0, all.1 + bin.1, all.2 + bin.2);
        }
    }
    let tokens: f64 = sum.iter().map(|bin| bin.2).sum();
    sum.iter().map(|bin| (bin.0 - bin.1).abs()).sum::<f64>() / tokens
}

/// The distance, in tokens after the first, at which a curve has fallen to half of its first value, between points by a straight
/// line; the number of points if it never does, 0 if it begins at or below 0.
pub fn half_life(curve: &[f64]) -> f64 {
    let Some(&first) = curve.first() else { return f64::NAN };
    if first.is_nan() {
        return f64::NAN;
    }
    let half = first / 2.0;
    if first <= 0.0 {
        return 0.0;
    }
    for (i, pair) in curve.windows(2).enumerate() {
        if pair[1] <= half {
            return i as f64 + (pair[0] - half) / (pair[0] - pair[1]);
        }
    }
    curve.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_cover_all_positions() {
        assert_eq!((0..5).map(|t| relative_bin(t, 5)).collect::<Vec<_>>(), [0, 4, 8, 12, 16]);
        assert_eq!((relative_bin(39, 40), relative_bin(0, 1), relative_xs()[0]), (19, 0, 0.025));
        // 95 of 100 lengths are at most 41: three positions each.
        let lengths: Vec<usize> = (0..100).map(|i| if i < 95 { 41 } else { 90 }).collect();
        let bins = PositionBins::new(&lengths);
        assert_eq!((bins.width, bins.of(2), bins.of(3), bins.of(89), bins.xs()[1]), (3, 0, 1, 19, 5.0));
        assert_eq!((percentile(&[3, 1, 2], 0.5), percentile(&[], 0.5), percentile(&[4], 0.95)), (2, 0, 4));
    }

    #[test]
    fn alignment_follows_the_longest_common_subsequence() {
        // A token too much in front moves everything by one and still aligns.
        let (reference, hypothesis) = align(&[1, 2, 3, 4], &[9, 1, 2, 4]);
        assert_eq!(reference, [true, true, false, true]);
        assert_eq!(hypothesis, [false, true, true, true]);
        assert_eq!(align(&[1, 2], &[]), (vec![false; 2], vec![]));
    }

    #[test]
    fn loops_and_top_ngrams() {
        assert!(has_loop(&["a", "b", "a", "b", "a", "b"]) && has_loop(&[1, 1, 1]));
        assert!(!has_loop(&["a", "b", "a", "b", "a"]) && !has_loop::<u32>(&[]));
        assert_eq!((top_ngram(&[1, 2, 1, 2, 1], 2), top_ngram(&[1], 2)), (2, 0));
    }

    #[test]
    fn calibration_by_hand() {
        // Four tokens of confidence 0.95, of which three are right; two of 0.25, none right: (4 * 0.2 + 2 * 0.25) / 6.
        let line = confidences(
            [(0.95, true), (0.95, true), (0.95, false), (0.95, true), (0.25, false), (0.25, false)].into_iter(),
        );
        assert!((calibration_error([line].iter()) - 1.3 / 6.0).abs() < 1e-12);
        assert_eq!(confidences([(1.0, true)].into_iter())[9], (1.0, 1.0, 1.0));
    }

    #[test]
    fn half_lives() {
        assert_eq!(half_life(&[4.0, 3.0, 1.0, 0.5]), 1.5);
        assert_eq!(half_life(&[4.0, 2.0]), 1.0);
        assert_eq!(half_life(&[4.0, 3.0, 3.0]), 3.0);
        assert_eq!((half_life(&[-1.0, 2.0]), half_life(&[]).is_nan()), (0.0, true));
    }
}
