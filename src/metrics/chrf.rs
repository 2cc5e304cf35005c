//! chrF2 (Popović 2015): the F-score of character 1- to 6-grams, recall weighing four times as much as precision.

use std::array;
use std::ops::AddAssign;

use super::Counts;
use super::ngrams::{count_runs, for_each_common};
use super::tokenize::is_space;

/// The longest n-gram, in characters.
pub const CHRF_ORDER: usize = 6;

/// Beta squared: what recall weighs against precision.
const BETA_SQUARED: f64 = 4.0;

/// Bits that hold any character. Six of them fit a `u128`, so that an n-gram is one integer and nothing is hashed.
const CHAR_BITS: u32 = 21;

/// The n-grams of one text, hypothesis or reference, ready to be compared with many others.
#[derive(Clone, Debug)]
pub struct ChrfStats {
    /// Characters, white space aside.
    chars: usize,
    /// Distinct n-grams of each order and their counts, sorted.
    orders: [Vec<(u128, u32)>; CHRF_ORDER],
}

impl ChrfStats {
    /// Counts the n-grams of a text.
    pub fn new(text: &str) -> Self {
        let chars: Vec<u128> = text.chars().filter(|&c| !is_space(c)).map(|c| u128::from(u32::from(c))).collect();
        let pack = |ngram: &[u128]| ngram.iter().fold(0, |packed, c| packed << CHAR_BITS | c);
        let orders = array::from_fn(|i| count_runs(chars.windows(i + 1).map(pack).collect()));
        ChrfStats { chars: chars.len(), orders }
    }

    /// Sentence chrF2 of this hypothesis against one reference, 0..=100.
    pub fn score(&self, reference: &Self) -> f64 {
        self.counts_of(reference).score()
    }

    /// Sentence chrF2 of each of two texts against the other: what they have in common is counted once.
    pub fn score_both(&self, other: &Self) -> [f64; 2] {
        let matches = self.matches(other);
        [self.counts_given(other, matches).score(), other.counts_given(self, matches).score()]
    }

    /// Counts of this hypothesis against the reference that gives it the best chrF, the first of equals; zeros without
    /// references.
    pub fn counts(&self, references: &[Self]) -> ChrfCounts {
        let mut best: Option<(f64, ChrfCounts)> = None;
        for reference in references {
            let counts = self.counts_of(reference);
            let score = counts.score();
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, counts));
            }
        }
        best.map(|(_, counts)| counts).unwrap_or_default()
    }

    fn counts_of(&self, reference: &Self) -> ChrfCounts {
        self.counts_given(reference, self.matches(reference))
    }

    /// N-grams of each order that both have, each as often as both have it.
    fn matches(&self, other: &Self) -> [u64; CHRF_ORDER] {
        array::from_fn(|i| {
            let (own, other) = (&self.orders[i], &other.orders[i]);
            let mut matches = 0;
            let order = |a: &(u128, u32), b: &(u128, u32)| a.0.cmp(&b.0);
            for_each_common(own, other, order, |a, b| matches += u64::from(own[a].1.min(other[b].1)));
            matches
        })
    }

    fn counts_given(&self, reference: &Self, matches: [u64; CHRF_ORDER]) -> ChrfCounts {
        // sacrebleu leaves the hypothesis' n-grams out where the reference is too short to have any.
        let own = |order| if reference.ngrams(order) == 0 { 0 } else { self.ngrams(order) };
        ChrfCounts {
            hypothesis: array::from_fn(|i| own(i + 1)),
            reference: array::from_fn(|i| reference.ngrams(i + 1)),
            matches,
        }
    }

    /// How many n-grams of an order the text has.
    fn ngrams(&self, order: usize) -> u64 {
        (self.chars + 1).saturating_sub(order) as u64
    }
}

/// What chrF needs of a sentence or a corpus; index `n - 1` belongs to n-grams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChrfCounts {
    /// The hypotheses' n-grams, where the reference has n-grams of that order.
    pub hypothesis: [u64; CHRF_ORDER],
    /// The references' n-grams.
    pub reference: [u64; CHRF_ORDER],
    /// N-grams that both have, each as often as both have it.
    pub matches: [u64; CHRF_ORDER],
}

impl Counts for ChrfCounts {
    /// chrF2 from precision and recall averaged over the orders that both sides have; 0 if there is none, or no match.
    fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for i in 0..CHRF_ORDER {
            if self.hypothesis[i] > 0 && self.reference[i] > 0 {
                precision += self.matches[i] as f64 / self.hypothesis[i] as f64;
                recall += self.matches[i] as f64 / self.reference[i] as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        (precision, recall) = (precision / orders, recall / orders);
        100.0 * ((1.0 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)).min(1.0)
    }
}

impl AddAssign for ChrfCounts {
    fn add_assign(&mut self, other: Self) {
        for i in 0..CHRF_ORDER {
            self.hypothesis[i] += other.hypothesis[i];
            self.reference[i] += other.reference[i];
            self.matches[i] += other.matches[i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        let counts = ChrfStats::new("a ab\u{a0}b").counts(&[ChrfStats::new("abba")]);
        // aabb against abba: a a b b; ab bb; abb.
        assert_eq!(counts.matches, [4, 2, 1, 0, 0, 0]);
        assert_eq!((counts.hypothesis, counts.reference), ([4, 3, 2, 1, 0, 0], [4, 3, 2, 1, 0, 0]));
    }

    #[test]
    fn orders_that_the_reference_lacks_do_not_count() {
        let counts = ChrfStats::new("abcd").counts(&[ChrfStats::new("ab")]);
        assert_eq!((counts.hypothesis, counts.reference), ([4, 3, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0]));
    }

    #[test]
    fn the_highest_characters_stay_apart() {
        let text = "\u{10ffff}\u{10fffe}\u{10ffff}\u{10ffff}\u{10fffe}\u{10fffd}";
        let stats = ChrfStats::new(text);
        assert_eq!(stats.orders.each_ref().map(Vec::len), [3, 4, 4, 3, 2, 1]);
        assert_eq!(stats.orders[5][0].0 >> (5 * CHAR_BITS), 0x10ffff);
    }
}
