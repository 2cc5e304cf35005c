//! BLEU (Papineni et al. 2002) with exponential smoothing.

use std::cmp::Ordering;
use std::ops::AddAssign;

use super::Counts;
use super::ngrams::for_each_common;
use super::tokenize::tokenize_13a;

/// The longest n-gram, in tokens.
pub const BLEU_ORDER: usize = 4;

/// The n-grams of one text, hypothesis or reference, ready to be compared with many others.
#[derive(Clone, Debug)]
pub struct BleuStats {
    tokens: Vec<String>,
    /// Distinct n-grams of all orders, sorted by their tokens.
    ngrams: Vec<Ngram>,
}

/// `tokens[start..start + order]`, which the text holds `count` times.
#[derive(Clone, Copy, Debug)]
struct Ngram {
    start: usize,
    order: usize,
    count: u64,
}

impl BleuStats {
    /// Splits a text into 13a tokens and counts its n-grams.
    pub fn new(text: &str) -> Self {
        Self::from_tokens(tokenize_13a(text))
    }

    /// Counts the n-grams of tokens.
    pub fn from_tokens(tokens: Vec<String>) -> Self {
        let mut all: Vec<Ngram> = (1..=BLEU_ORDER.min(tokens.len()))
            .flat_map(|order| (0..=tokens.len() - order).map(move |start| Ngram { start, order, count: 1 }))
            .collect();
        all.sort_unstable_by(|a, b| a.of(&tokens).cmp(b.of(&tokens)));
        let ngrams = all
            .chunk_by(|a, b| a.of(&tokens) == b.of(&tokens))
            .map(|run| Ngram { count: run.len() as u64, ..run[0] })
            .collect();
        BleuStats { tokens, ngrams }
    }

    /// The text's tokens.
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Sentence BLEU of this hypothesis against one reference, 0..=100; see [`BleuCounts::sentence_score`].
    pub fn score(&self, reference: &Self) -> f64 {
        self.counts(std::slice::from_ref(reference)).sentence_score()
    }

    /// Counts of this hypothesis against its references.
    ///
    /// An n-gram matches as often as the reference that has most of it allows; the reference length is the closest to the
    /// hypothesis', the shorter of two equally close. Without references both are 0.
    pub fn counts(&self, references: &[Self]) -> BleuCounts {
        let hypothesis_tokens = self.tokens.len() as u64;
        let lengths = references.iter().map(|r| r.tokens.len() as u64);
        let reference_tokens = lengths.min_by_key(|&l| (l.abs_diff(hypothesis_tokens), l)).unwrap_or(0);
        let mut counts = BleuCounts { hypothesis_tokens, reference_tokens, ..BleuCounts::default() };
        for (ngram, matches) in self.ngrams.iter().zip(self.matches(references)) {
            counts.ngrams[ngram.order - 1] += ngram.count;
            counts.matches[ngram.order - 1] += matches;
        }
        counts
    }

    /// For each distinct n-gram, how many of its occurrences the references allow.
    fn matches(&self, references: &[Self]) -> Vec<u64> {
        let mut best = vec![0; self.ngrams.len()];
        for reference in references {
            let order = |a: &Ngram, b: &Ngram| -> Ordering { a.of(&self.tokens).cmp(b.of(&reference.tokens)) };
            for_each_common(&self.ngrams, &reference.ngrams, order, |i, j| {
                best[i] = self.ngrams[i].count.min(reference.ngrams[j].count).max(best[i]);
            });
        }
        best
    }
}

impl Ngram {
    /// The tokens of this n-gram in the text that it was taken from.
    fn of<'a>(&self, tokens: &'a [String]) -> &'a [String] {
        &tokens[self.start..self.start + self.order]
    }
}

/// What BLEU needs of a sentence or a corpus; index `n - 1` of the arrays belongs to n-grams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuCounts {
    /// Tokens of the hypotheses.
    pub hypothesis_tokens: u64,
    /// Tokens of the references closest in length.
    pub reference_tokens: u64,
    /// The hypotheses' n-grams found in the references, each at most as often as it stands there.
    pub matches: [u64; BLEU_ORDER],
    /// The hypotheses' n-grams.
    pub ngrams: [u64; BLEU_ORDER],
}

impl BleuCounts {
    /// BLEU of one sentence, 0..=100: over the orders that the hypothesis is long enough for (effective order).
    ///
    /// 100 for a hypothesis that equals its reference and has a token; 0 without any match.
    pub fn sentence_score(&self) -> f64 {
        self.score_over(self.ngrams.iter().take_while(|&&n| n > 0).count())
    }

    /// Precision of each order in percent. The k-th order with n-grams but no match counts as 1/2^k of a match; all are 0 if no
    /// order has a match.
    pub fn precisions(&self) -> [f64; BLEU_ORDER] {
        let mut precisions = [0.0; BLEU_ORDER];
        if self.matches == [0; BLEU_ORDER] {
            return precisions;
        }
        let mut smoothed = 1.0;
        for (precision, (&matches, &ngrams)) in precisions.iter_mut().zip(self.matches.iter().zip(&self.ngrams)) {
            if ngrams > 0 && matches == 0 {
                smoothed /= 2.0;
                *precision = 100.0 * smoothed / ngrams as f64;
            } else if ngrams > 0 {
                *precision = 100.0 * matches as f64 / ngrams as f64;
            }
        }
        precisions
    }

    /// The factor 0..=1 for hypotheses shorter than their references.
    pub fn brevity_penalty(&self) -> f64 {
        if self.hypothesis_tokens >= self.reference_tokens {
            1.0
        } else if self.hypothesis_tokens == 0 {
            0.0
        } else {
            (1.0 - self.reference_tokens as f64 / self.hypothesis_tokens as f64).exp()
        }
    }

    /// Hypothesis tokens per reference token; 0 if the references have none.
    pub fn length_ratio(&self) -> f64 {
        if self.reference_tokens == 0 { 0.0 } else { self.hypothesis_tokens as f64 / self.reference_tokens as f64 }
    }

    /// Brevity penalty times the geometric mean of the first `orders` precisions.
    fn score_over(&self, orders: usize) -> f64 {
        let precisions = &self.precisions()[..orders];
        if precisions.iter().all(|&p| p == 0.0) {
            return 0.0;
        }
        let mean_log = precisions.iter().map(|p| p.ln()).sum::<f64>() / orders as f64;
        // The logarithm's rounding may carry a perfect score above 100.
        (self.brevity_penalty() * mean_log.exp()).min(100.0)
    }
}

impl Counts for BleuCounts {
    /// Corpus BLEU, always over four orders: 0 if no hypothesis has four tokens.
    fn score(&self) -> f64 {
        self.score_over(BLEU_ORDER)
    }
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        self.hypothesis_tokens += other.hypothesis_tokens;
        self.reference_tokens += other.reference_tokens;
        for n in 0..BLEU_ORDER {
            self.matches[n] += other.matches[n];
            self.ngrams[n] += other.ngrams[n];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_clipped_by_the_reference_that_allows_most() {
        let references = ["der Hund", "der Katze der Maus"].map(BleuStats::new);
        let counts = BleuStats::new("der Hund der Katze der der").counts(&references);
        // der twice, Hund, Katze; "der Hund", "Katze der", "der Katze"; "der Katze der".
        assert_eq!((counts.matches, counts.ngrams), ([4, 3, 1, 0], [6, 5, 4, 3]));
        assert_eq!((counts.hypothesis_tokens, counts.reference_tokens), (6, 4));
    }

    #[test]
    fn of_two_lengths_equally_close_the_shorter_counts() {
        let references = ["a b c d", "a b"].map(BleuStats::new);
        assert_eq!(BleuStats::new("a b c").counts(&references).reference_tokens, 2);
    }

    #[test]
    fn a_perfect_score_does_not_exceed_100() {
        let text = BleuStats::new("a b c d");
        assert_eq!(text.score(&text), 100.0);
        assert_eq!(text.counts(std::slice::from_ref(&text)).score(), 100.0);
    }
}
