//! How sure a score is: bootstrap intervals and the paired test of two systems (Koehn 2004).
//!
//! Both draw as many sentences as the corpus has, with replacement, and score the sums of their counts. The statistics are
//! sacrebleu's (`--confidence`, `--paired-bs`); the draws are our own, so figures differ from sacrebleu's by chance only.

use super::{Counts, corpus_score};
use crate::counts;
use crate::error::{Error, Result};

/// How to resample. The same seed draws the same sentences for every metric and for both systems of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootstrapOptions {
    /// Number of resamples, of [`counts::RESAMPLES`]; default 1000.
    pub resamples: usize,
    /// Seed of the draws; default 12345.
    pub seed: u64,
}

impl Default for BootstrapOptions {
    fn default() -> Self {
        BootstrapOptions { resamples: 1000, seed: 12345 }
    }
}

/// A 95% percentile interval over resamples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean over the resamples.
    pub mean: f64,
    /// The value that a fortieth of the resamples lie below.
    pub low: f64,
    /// The value that a fortieth of the resamples lie above.
    pub high: f64,
}

impl Interval {
    /// Half the width: the figure after the ± in sacrebleu's output.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }

    /// The interval of some values; zeros for none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let cut = values.len() / 40;
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Interval { mean: mean(&values), low: at(cut), high: at(values.len().saturating_sub(cut + 1)) }
    }
}

/// What a paired bootstrap says about a system against a baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// The baseline's score.
    pub baseline: Interval,
    /// The system's score.
    pub system: Interval,
    /// System minus baseline, per resample.
    pub difference: Interval,
    /// The probability of a difference at least as large if the systems were equally good, two-sided.
    ///
    /// As sacrebleu defines it: with d the corpus difference and d_i those of the n resamples,
    /// (1 + #{i : |d_i| - mean |d_i| > |d|}) / (n + 1). Two systems that never differ therefore get 1 / (n + 1), its smallest
    /// value: look at `difference` first.
    pub p_value: f64,
}

/// The interval of a corpus score, from the counts of its sentences.
///
/// # Errors
/// [`Error::Input`] without sentences, [`Error::Option`] for resamples out of their range.
pub fn bootstrap<C: Counts>(counts: &[C], options: &BootstrapOptions) -> Result<Interval> {
    check(counts, options)?;
    let mut draws = Draws::new(counts.len(), options.seed);
    Ok(Interval::of((0..options.resamples).map(|_| resampled_score(counts, &draws.next_resample())).collect()))
}

/// The draws of a bootstrap: for each resample as many sentence numbers as there are sentences.
///
/// For statistics that are no corpus score; [`bootstrap`] draws the same ones.
///
/// # Errors
/// As [`bootstrap`].
pub fn resamples(sentences: usize, options: &BootstrapOptions) -> Result<impl Iterator<Item = Vec<usize>>> {
    check(&vec![(); sentences], options)?;
    let mut draws = Draws::new(sentences, options.seed);
    Ok((0..options.resamples).map(move |_| draws.next_resample()))
}

/// Compares two systems on the same sentences, from the counts of each.
///
/// # Errors
/// [`Error::Input`] without sentences or if the systems have different numbers of them, [`Error::Option`] without resamples.
pub fn paired_bootstrap<C: Counts>(baseline: &[C], system: &[C], options: &BootstrapOptions) -> Result<Paired> {
    check(baseline, options)?;
    if baseline.len() != system.len() {
        return Err(Error::Input {
            operation: "compare systems",
            expected: format!("{} sentences as in the baseline", baseline.len()),
            got: system.len().to_string(),
        });
    }
    let mut draws = Draws::new(baseline.len(), options.seed);
    let resamples = (0..options.resamples).map(|_| draws.next_resample());
    Ok(compare(baseline, system, resamples))
}

/// The paired test over given draws of sentences.
fn compare<C: Counts>(baseline: &[C], system: &[C], resamples: impl Iterator<Item = Vec<usize>>) -> Paired {
    let (baseline_scores, system_scores): (Vec<f64>, Vec<f64>) =
        resamples.map(|draw| (resampled_score(baseline, &draw), resampled_score(system, &draw))).unzip();
    let differences: Vec<f64> = system_scores.iter().zip(&baseline_scores).map(|(s, b)| s - b).collect();
    Paired {
        p_value: p_value(&differences, corpus_score(system) - corpus_score(baseline)),
        baseline: Interval::of(baseline_scores),
        system: Interval::of(system_scores),
        difference: Interval::of(differences),
    }
}

/// See [`Paired::p_value`].
fn p_value(differences: &[f64], corpus_difference: f64) -> f64 {
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).collect();
    let mean = mean(&sizes);
    let larger = sizes.iter().filter(|&&size| size - mean > corpus_difference.abs()).count();
    (larger + 1) as f64 / (sizes.len() + 1) as f64
}

fn resampled_score<C: Counts>(counts: &[C], draw: &[usize]) -> f64 {
    let mut sum = C::default();
    draw.iter().for_each(|&i| sum += counts[i]);
    sum.score()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn check<C>(counts: &[C], options: &BootstrapOptions) -> Result<()> {
    if counts.is_empty() {
        return Err(Error::Input {
            operation: "bootstrap",
            expected: "at least one sentence".into(),
            got: "none".into(),
        });
    }
    counts::check("resamples", options.resamples, &counts::RESAMPLES)
}

/// Sentence numbers drawn with replacement, by SplitMix64 (Steele, Lea & Flood 2014).
struct Draws {
    state: u64,
    sentences: usize,
}

impl Draws {
    fn new(sentences: usize, seed: u64) -> Self {
        Draws { state: seed, sentences }
    }

    /// One resample: as many sentence numbers as there are sentences.
    fn next_resample(&mut self) -> Vec<usize> {
        (0..self.sentences).map(|_| self.next_sentence()).collect()
    }

    /// The high word of 64 random bits times the number of sentences: uniform but for a bias below sentences / 2^64.
    fn next_sentence(&mut self) -> usize {
        ((u128::from(self.next_bits()) * self.sentences as u128) >> 64) as usize
    }

    fn next_bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
