//! How good a text is: BLEU, chrF and TER as sacrebleu computes them, their uncertainty, and plain rates over tokens.
//!
//! Figures equal sacrebleu 2.6's: BLEU with mixed case and exponential smoothing, over 13a tokens or others ([`BleuTokenizer`]); chrF2
//! over character 1- to 6-grams without white space, and chrF2++ with words beside them; TER with its options ([`TerOptions`]). Scores
//! of BLEU and chrF lie in 0..=100; TER is edits per 100 words.
//!
//! A corpus is `hypotheses[i]` against `references[i]`, one or more references each; [`one_each`] wraps the usual case:
//!
//! ```
//! use beamfuse::metrics::{BootstrapOptions, bleu_counts, bootstrap, corpus_score, one_each};
//!
//! let hypotheses = ["Ein Hund läuft durch den Schnee.", "Zwei Kinder spielen."];
//! let references = ["Ein Hund läuft durch den Schnee.", "Zwei Kinder spielen im Park."];
//! let counts = bleu_counts(&hypotheses, &one_each(&references))?;
//! let score = corpus_score(&counts);
//! let interval = bootstrap(&counts, &BootstrapOptions::default())?;
//! assert!(interval.low <= score && score <= interval.high);
//! # Ok::<(), beamfuse::Error>(())
//! ```
//!
//! Everything goes through three steps, so that each is paid once: a text's n-grams ([`BleuStats`], [`ChrfStats`]), the
//! counts of one hypothesis against its references ([`BleuCounts`], [`ChrfCounts`]), and scores of sums of counts. Scoring N
//! texts against each other prepares N texts and compares N x N; a bootstrap adds up counts and never sees a text.

mod bleu;
mod bootstrap;
mod chrf;
mod mbr;
mod ngrams;
mod rates;
mod ter;
mod tokenize;

use std::ops::AddAssign;

use crate::error::{Error, Result};

pub use bleu::{BLEU_ORDER, BleuCounts, BleuStats};
pub use bootstrap::{BootstrapOptions, Interval, Paired, bootstrap, paired_bootstrap, resamples};
pub use chrf::{CHRF_ORDER, CHRF_WORD_ORDER, ChrfCounts, ChrfStats};
pub use mbr::{Utility, expected_utilities};
pub use rates::{copy_rate, repetition_rate};
pub use ter::{TerCounts, TerOptions};
pub use tokenize::{BleuTokenizer, tokenize_13a, tokenize_pieces};

/// The counts that a metric needs of one hypothesis; those of a corpus are their sum.
pub trait Counts: Copy + Default + AddAssign {
    /// The corpus score: 0..=100, except for TER.
    fn score(&self) -> f64;
}

/// The score of a corpus from the counts of its sentences; 0 if there are none.
pub fn corpus_score<C: Counts>(counts: &[C]) -> f64 {
    total(counts).score()
}

/// The sum of the counts of some sentences.
pub fn total<C: Counts>(counts: &[C]) -> C {
    let mut sum = C::default();
    counts.iter().for_each(|&c| sum += c);
    sum
}

/// One reference per sentence, in the shape that the functions here take.
pub fn one_each<T>(references: &[T]) -> Vec<&[T]> {
    references.iter().map(std::slice::from_ref).collect()
}

/// BLEU counts of each hypothesis against its references, in 13a tokens.
///
/// # Errors
/// [`Error::Input`] if there are no hypotheses, not as many lists of references, or a list is empty.
pub fn bleu_counts<H, R, T>(hypotheses: &[H], references: &[R]) -> Result<Vec<BleuCounts>>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: AsRef<str>,
{
    bleu_counts_with(hypotheses, references, tokenize_13a)
}

/// BLEU counts of each hypothesis against its references, in the tokens that `tokenize` makes: those of a [`BleuTokenizer`], or of
/// [`tokenize_pieces`].
///
/// # Errors
/// As [`bleu_counts`].
pub fn bleu_counts_with<H, R, T>(
    hypotheses: &[H],
    references: &[R],
    tokenize: impl Fn(&str) -> Vec<String>,
) -> Result<Vec<BleuCounts>>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: AsRef<str>,
{
    check("compute bleu", hypotheses, references)?;
    let stats = |text: &str| BleuStats::from_tokens(tokenize(text));
    Ok(pairs(hypotheses, references)
        .map(|(hypothesis, references)| {
            let references: Vec<_> = references.iter().map(|r| stats(r.as_ref())).collect();
            stats(hypothesis).counts(&references)
        })
        .collect())
}

/// chrF counts of each hypothesis against the reference that gives it the best chrF.
///
/// # Errors
/// As [`bleu_counts`].
pub fn chrf_counts<H, R, T>(hypotheses: &[H], references: &[R]) -> Result<Vec<ChrfCounts>>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: AsRef<str>,
{
    chrf_counts_with(hypotheses, references, 0)
}

/// The same with n-grams of up to `word_order` words beside those of characters: 2 for chrF2++.
///
/// # Errors
/// As [`bleu_counts`].
pub fn chrf_counts_with<H, R, T>(hypotheses: &[H], references: &[R], word_order: usize) -> Result<Vec<ChrfCounts>>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: AsRef<str>,
{
    check("compute chrf", hypotheses, references)?;
    let stats = |text: &str| ChrfStats::with_words(text, word_order);
    Ok(pairs(hypotheses, references)
        .map(|(hypothesis, references)| {
            let references: Vec<_> = references.iter().map(|r| stats(r.as_ref())).collect();
            stats(hypothesis).counts(&references)
        })
        .collect())
}

/// TER counts of each hypothesis against the reference that needs fewest edits.
///
/// # Errors
/// As [`bleu_counts`].
pub fn ter_counts<H, R, T>(hypotheses: &[H], references: &[R], options: &TerOptions) -> Result<Vec<TerCounts>>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: AsRef<str>,
{
    check("compute ter", hypotheses, references)?;
    Ok(pairs(hypotheses, references).map(|(hypothesis, r)| TerCounts::new(hypothesis, r, options)).collect())
}

/// Sentence BLEU: exponential smoothing, over the orders that the hypothesis is long enough for (effective order).
///
/// Without references it is 0.
pub fn sentence_bleu<T: AsRef<str>>(hypothesis: &str, references: &[T]) -> f64 {
    let references: Vec<_> = references.iter().map(|r| BleuStats::new(r.as_ref())).collect();
    BleuStats::new(hypothesis).counts(&references).sentence_score()
}

/// Sentence chrF2 against the best of the references; 0 without references.
pub fn sentence_chrf<T: AsRef<str>>(hypothesis: &str, references: &[T]) -> f64 {
    let references: Vec<_> = references.iter().map(|r| ChrfStats::new(r.as_ref())).collect();
    ChrfStats::new(hypothesis).counts(&references).score()
}

/// Hypotheses with their references as plain slices.
fn pairs<'a, H, R, T>(hypotheses: &'a [H], references: &'a [R]) -> impl Iterator<Item = (&'a str, &'a [T])>
where
    H: AsRef<str>,
    R: AsRef<[T]>,
    T: 'a,
{
    hypotheses.iter().map(AsRef::as_ref).zip(references.iter().map(AsRef::as_ref))
}

/// Refuses corpora that have no defined score.
fn check<H, R: AsRef<[T]>, T>(operation: &'static str, hypotheses: &[H], references: &[R]) -> Result<()> {
    let refuse = |expected: String, got: String| Err(Error::Input { operation, expected, got });
    if hypotheses.is_empty() {
        return refuse("at least one hypothesis".into(), "none".into());
    }
    if hypotheses.len() != references.len() {
        return refuse(
            format!("references for {} hypotheses", hypotheses.len()),
            format!("references for {}", references.len()),
        );
    }
    match references.iter().position(|r| r.as_ref().is_empty()) {
        Some(line) => refuse("at least one reference per hypothesis".into(), format!("none for line {}", line + 1)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [&[&str]; 0] = [];

    #[test]
    fn a_corpus_without_a_defined_score_is_refused() {
        let message = |r: Result<Vec<BleuCounts>>| r.unwrap_err().to_string();
        assert_eq!(message(bleu_counts(&[""; 0], &NONE)), "compute bleu: expected at least one hypothesis, got none");
        assert_eq!(
            message(bleu_counts(&["a", "b"], &[["a"]])),
            "compute bleu: expected references for 2 hypotheses, got references for 1"
        );
        assert_eq!(
            message(bleu_counts(&["a", "b"], &[vec!["a"], vec![]])),
            "compute bleu: expected at least one reference per hypothesis, got none for line 2"
        );
        assert!(chrf_counts(&["a"], &NONE).unwrap_err().to_string().starts_with("compute chrf: "));
    }

    #[test]
    fn without_references_a_sentence_scores_zero() {
        let none: [&str; 0] = [];
        assert_eq!((sentence_bleu("a b", &none), sentence_chrf("a b", &none)), (0.0, 0.0));
    }
}
