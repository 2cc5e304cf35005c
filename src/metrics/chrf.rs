//! chrF2 (Popović 2015): the F-score of character 1- to 6-grams, recall weighing four times as much as precision; with word 1- and
//! 2-grams beside them chrF2++ (Popović 2017).

use std::array;
use std::ops::AddAssign;

use super::Counts;
use super::ngrams::{count_runs, for_each_common};
use super::tokenize::is_space;

/// The longest n-gram, in characters.
pub const CHRF_ORDER: usize = 6;

/// The longest n-gram of words that chrF can count, too.
pub const CHRF_WORD_ORDER: usize = 2;

/// All orders, of characters and then of words.
const ORDERS: usize = CHRF_ORDER + CHRF_WORD_ORDER;

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
    /// The same of words, a space between two; empty where words do not count.
    word_orders: [Vec<(String, u32)>; CHRF_WORD_ORDER],
}

impl ChrfStats {
    /// Counts the n-grams of a text.
    pub fn new(text: &str) -> Self {
        let chars: Vec<u128> = text.chars().filter(|&c| !is_space(c)).map(|c| u128::from(u32::from(c))).collect();
        let pack = |ngram: &[u128]| ngram.iter().fold(0, |packed, c| packed << CHAR_BITS | c);
        let orders = array::from_fn(|i| count_runs(chars.windows(i + 1).map(pack).collect()));
        ChrfStats { chars: chars.len(), orders, word_orders: Default::default() }
    }

    /// The same, and n-grams of up to `word_order` words (at most [`CHRF_WORD_ORDER`]): 1 for chrF2+, 2 for chrF2++.
    pub fn with_words(text: &str, word_order: usize) -> Self {
        let mut stats = Self::new(text);
        let orders = word_order.min(CHRF_WORD_ORDER);
        if orders > 0 {
            let words = words(text);
            for (i, counts) in stats.word_orders.iter_mut().enumerate().take(orders) {
                let ngrams: Vec<String> = words.windows(i + 1).map(|ngram| ngram.join(" ")).collect();
                *counts = count_runs(ngrams.iter().map(String::as_str).collect())
                    .into_iter()
                    .map(|(ngram, count)| (ngram.to_owned(), count))
                    .collect();
            }
        }
        stats
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
    fn matches(&self, other: &Self) -> [u64; ORDERS] {
        array::from_fn(|i| match i.checked_sub(CHRF_ORDER) {
            None => common(&self.orders[i], &other.orders[i]),
            Some(i) => common(&self.word_orders[i], &other.word_orders[i]),
        })
    }

    fn counts_given(&self, reference: &Self, matches: [u64; ORDERS]) -> ChrfCounts {
        // sacrebleu leaves the hypothesis' n-grams out where the reference is too short to have any.
        let own = |i| if reference.ngrams(i) == 0 { 0 } else { self.ngrams(i) };
        ChrfCounts { hypothesis: array::from_fn(own), reference: array::from_fn(|i| reference.ngrams(i)), matches }
    }

    /// How many n-grams of the order with this index the text has.
    fn ngrams(&self, index: usize) -> u64 {
        match index.checked_sub(CHRF_ORDER) {
            None => self.chars.saturating_sub(index) as u64,
            Some(i) => self.word_orders[i].iter().map(|(_, count)| u64::from(*count)).sum(),
        }
    }
}

/// How many n-grams two sorted lists share.
fn common<T: Ord>(a: &[(T, u32)], b: &[(T, u32)]) -> u64 {
    let mut matches = 0;
    for_each_common(a, b, |a, b| a.0.cmp(&b.0), |i, j| matches += u64::from(a[i].1.min(b[j].1)));
    matches
}

/// The words that chrF++ counts: split at white space, and one punctuation mark at the end, else at the beginning, is a word of its own.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for word in text.split(is_space).filter(|word| !word.is_empty()) {
        let cut = |c: char| c.is_ascii_punctuation() && c.len_utf8() < word.len();
        let (first, last) = (word.chars().next(), word.chars().next_back());
        if last.is_some_and(cut) {
            words.extend([&word[..word.len() - 1], &word[word.len() - 1..]]);
        } else if first.is_some_and(cut) {
            words.extend([&word[..1], &word[1..]]);
        } else {
            words.push(word);
        }
    }
    words
}

/// What chrF needs of a sentence or a corpus; index `n - 1` belongs to n-grams of characters, index `CHRF_ORDER + n - 1` to those of
/// words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChrfCounts {
    /// The hypotheses' n-grams, where the reference has n-grams of that order.
    pub hypothesis: [u64; ORDERS],
    /// The references' n-grams.
    pub reference: [u64; ORDERS],
    /// N-grams that both have, each as often as both have it.
    pub matches: [u64; ORDERS],
}

impl Counts for ChrfCounts {
    /// chrF2, or chrF2++, from precision and recall averaged over the orders that both sides have; 0 if there is none, or no match.
    fn score(&self) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for i in 0..ORDERS {
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
        for i in 0..ORDERS {
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
        assert_eq!(counts.matches, [4, 2, 1, 0, 0, 0, 0, 0]);
        assert_eq!((counts.hypothesis, counts.reference), ([4, 3, 2, 1, 0, 0, 0, 0], [4, 3, 2, 1, 0, 0, 0, 0]));
    }

    #[test]
    fn orders_that_the_reference_lacks_do_not_count() {
        let counts = ChrfStats::new("abcd").counts(&[ChrfStats::new("ab")]);
        assert_eq!((counts.hypothesis, counts.reference), ([4, 3, 0, 0, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn words_lose_one_mark() {
        assert_eq!(
            words("(hi) a, !b ? -- \u{201e}x\u{201c}"),
            ["(hi", ")", "a", ",", "!", "b", "?", "-", "-", "\u{201e}x\u{201c}"]
        );
        let counts = ChrfStats::with_words("a, b", 2).counts(&[ChrfStats::with_words("a, a", 2)]);
        assert_eq!((counts.hypothesis[6..].to_vec(), counts.matches[6..].to_vec()), (vec![3, 2], vec![2, 1]));
        let one = ChrfStats::with_words("a, b", 1).counts(&[ChrfStats::with_words("a, a", 1)]);
        assert_eq!((one.hypothesis[6..].to_vec(), one.matches[6..].to_vec()), (vec![3, 0], vec![2, 0]));
    }

    #[test]
    fn the_highest_characters_stay_apart() {
        let text = "\u{10ffff}\u{10fffe}\u{10ffff}\u{10ffff}\u{10fffe}\u{10fffd}";
        let stats = ChrfStats::new(text);
        assert_eq!(stats.orders.each_ref().map(Vec::len), [3, 4, 4, 3, 2, 1]);
        assert_eq!(stats.orders[5][0].0 >> (5 * CHAR_BITS), 0x10ffff);
    }
}
