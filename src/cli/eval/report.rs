//! What `eval` says about a corpus: scores, their intervals, rates, and a comparison of two systems.

use std::fmt;
use std::ops::AddAssign;
use std::path::Path;

use serde::Serialize;

use super::metrics::Metrics;
use crate::Result;
use crate::metrics::{
    BLEU_ORDER, BleuCounts, BootstrapOptions, CHRF_ORDER, ChrfCounts, Counts, Paired, TerCounts, bleu_counts_with,
    bootstrap, chrf_counts_with, copy_rate, corpus_score, paired_bootstrap, repetition_rate, ter_counts, total,
};

/// Translations and what they are held to, line by line.
#[derive(Clone, Copy)]
pub(super) struct Corpus<'a> {
    pub sources: Option<&'a [String]>,
    pub hypotheses: &'a [String],
    pub references: &'a [Vec<String>],
}

/// Everything that is printed; the fields are those of the JSON output.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    lines: usize,
    /// Lines that could not be translated and count as empty.
    failed_lines: usize,
    bleu: Bleu,
    chrf2: Metric,
    #[serde(skip_serializing_if = "Option::is_none")]
    ter: Option<Metric>,
    length_ratio: Estimate,
    /// Mean over lines of [`repetition_rate`].
    repetition_rate: f64,
    /// Mean over lines of [`copy_rate`]; needs the sources.
    copy_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
}

/// A corpus score and its 95% bootstrap interval.
#[derive(Clone, Copy, Debug, Serialize)]
struct Estimate {
    score: f64,
    low: f64,
    high: f64,
}

#[derive(Debug, Serialize)]
struct Metric {
    /// As in sacrebleu.
    name: &'static str,
    #[serde(flatten)]
    estimate: Estimate,
    signature: String,
}

#[derive(Debug, Serialize)]
struct Bleu {
    #[serde(flatten)]
    metric: Metric,
    precisions: [f64; BLEU_ORDER],
    brevity_penalty: f64,
    hypothesis_tokens: u64,
    reference_tokens: u64,
}

/// This system against another one on the same lines.
#[derive(Debug, Serialize)]
struct Comparison {
    baseline: String,
    bleu: Difference,
    chrf2: Difference,
    #[serde(skip_serializing_if = "Option::is_none")]
    ter: Option<Difference>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Difference {
    /// This system's corpus score minus the baseline's, and the interval of the difference.
    difference: f64,
    low: f64,
    high: f64,
    p_value: f64,
    baseline_score: f64,
}

/// The order of the n-grams whose repetition is counted, as in seq-rep-4 (Welleck et al. 2020).
const REPETITION_ORDER: usize = 4;

impl Report {
    pub(super) fn new(
        corpus: &Corpus<'_>,
        metrics: &Metrics,
        failed_lines: usize,
        options: &BootstrapOptions,
    ) -> Result<Self> {
        let AllCounts { bleu, chrf, ter } = corpus.counts(corpus.hypotheses, metrics)?;
        let lengths: Vec<Lengths> = bleu.iter().map(Lengths::new).collect();
        let tokens: Vec<Vec<String>> = corpus.hypotheses.iter().map(|text| (metrics.tokenize)(text)).collect();
        let sum = total(&bleu);
        let metric =
            |name, estimate, settings: &str| Metric { name, estimate, signature: signature(corpus, options, settings) };
        let chrf_settings = format!("case:mixed|eff:yes|nc:{CHRF_ORDER}|nw:{}|space:no", metrics.chrf_word_order);
        let ter = match (&metrics.ter, ter) {
            (Some(settings), Some(counts)) => Some(metric("TER", estimate(&counts, options)?, &settings.signature())),
            _ => None,
        };
        Ok(Report {
            lines: corpus.hypotheses.len(),
            failed_lines,
            bleu: Bleu {
                metric: metric(
                    "BLEU",
                    estimate(&bleu, options)?,
                    &format!("case:mixed|eff:no|tok:{}|smooth:exp", metrics.tokenizer),
                ),
                precisions: sum.precisions(),
                brevity_penalty: sum.brevity_penalty(),
                hypothesis_tokens: sum.hypothesis_tokens,
                reference_tokens: sum.reference_tokens,
            },
            chrf2: metric(chrf_name(metrics.chrf_word_order), estimate(&chrf, options)?, &chrf_settings),
            ter,
            length_ratio: estimate(&lengths, options)?,
            repetition_rate: mean(tokens.iter().map(|t| repetition_rate(t, REPETITION_ORDER))),
            copy_rate: corpus.sources.map(|sources| {
                let pairs = sources.iter().zip(&tokens);
                mean(pairs.map(|(source, target)| copy_rate(&(metrics.tokenize)(source), target)))
            }),
            comparison: None,
        })
    }

    /// Adds the paired test against a baseline's translations of the same lines.
    pub(super) fn compare(
        &mut self,
        corpus: &Corpus<'_>,
        metrics: &Metrics,
        baseline: &[String],
        path: &Path,
        options: &BootstrapOptions,
    ) -> Result<()> {
        let ours = corpus.counts(corpus.hypotheses, metrics)?;
        let theirs = corpus.counts(baseline, metrics)?;
        self.comparison = Some(Comparison {
            baseline: path.display().to_string(),
            bleu: difference(&theirs.bleu, &ours.bleu, options)?,
            chrf2: difference(&theirs.chrf, &ours.chrf, options)?,
            ter: match (theirs.ter, ours.ter) {
                (Some(theirs), Some(ours)) => Some(difference(&theirs, &ours, options)?),
                _ => None,
            },
        });
        Ok(())
    }
}

/// sacrebleu's name of chrF2 with n-grams of so many words beside those of characters.
fn chrf_name(word_order: usize) -> &'static str {
    match word_order {
        0 => "chrF2",
        1 => "chrF2+",
        _ => "chrF2++",
    }
}

/// The counts of every line.
struct AllCounts {
    bleu: Vec<BleuCounts>,
    chrf: Vec<ChrfCounts>,
    ter: Option<Vec<TerCounts>>,
}

impl Corpus<'_> {
    fn counts(&self, hypotheses: &[String], metrics: &Metrics) -> Result<AllCounts> {
        Ok(AllCounts {
            bleu: bleu_counts_with(hypotheses, self.references, &metrics.tokenize)?,
            chrf: chrf_counts_with(hypotheses, self.references, metrics.chrf_word_order)?,
            ter: metrics.ter.as_ref().map(|ter| ter_counts(hypotheses, self.references, ter)).transpose()?,
        })
    }
}

fn estimate<C: Counts>(counts: &[C], options: &BootstrapOptions) -> Result<Estimate> {
    let interval = bootstrap(counts, options)?;
    Ok(Estimate { score: corpus_score(counts), low: interval.low, high: interval.high })
}

fn difference<C: Counts>(baseline: &[C], system: &[C], options: &BootstrapOptions) -> Result<Difference> {
    let Paired { difference, p_value, .. } = paired_bootstrap(baseline, system, options)?;
    let baseline_score = corpus_score(baseline);
    Ok(Difference {
        difference: corpus_score(system) - baseline_score,
        low: difference.low,
        high: difference.high,
        p_value,
        baseline_score,
    })
}

/// The settings in the form of sacrebleu's signatures: what two scores must share to be comparable.
fn signature(corpus: &Corpus<'_>, options: &BootstrapOptions, settings: &str) -> String {
    let references = corpus.references.first().map_or(0, Vec::len);
    let BootstrapOptions { resamples, seed } = options;
    let version = env!("CARGO_PKG_VERSION");
    format!("nrefs:{references}|bs:{resamples}|seed:{seed}|{settings}|version:beamfuse-{version}")
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Tokens of both sides, so that the bootstrap gives the length ratio an interval, too.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    hypothesis: u64,
    reference: u64,
}

impl Lengths {
    fn new(counts: &BleuCounts) -> Self {
        Lengths { hypothesis: counts.hypothesis_tokens, reference: counts.reference_tokens }
    }
}

impl AddAssign for Lengths {
    fn add_assign(&mut self, other: Self) {
        self.hypothesis += other.hypothesis;
        self.reference += other.reference;
    }
}

impl Counts for Lengths {
    /// Hypothesis tokens per reference token, as [`BleuCounts::length_ratio`]; no score of 0..=100.
    fn score(&self) -> f64 {
        if self.reference == 0 { 0.0 } else { self.hypothesis as f64 / self.reference as f64 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { bleu, chrf2, ter, length_ratio, .. } = self;
        writeln!(f, "lines         {}", self.lines)?;
        if self.failed_lines > 0 {
            writeln!(f, "failed        {}, counted as empty", self.failed_lines)?;
        }
        let precisions = bleu.precisions.map(|p| format!("{p:.1}")).join("/");
        let (score, penalty) = (percent(&bleu.metric.estimate), bleu.brevity_penalty);
        writeln!(f, "BLEU          {score}  precisions {precisions}, brevity penalty {penalty:.3}")?;
        writeln!(f, "{:<13} {}", chrf2.name, percent(&chrf2.estimate))?;
        if let Some(ter) = ter {
            writeln!(f, "TER           {}  edits per 100 words: lower is better", percent(&ter.estimate))?;
        }
        let (hypothesis, reference) = (bleu.hypothesis_tokens, bleu.reference_tokens);
        let Estimate { score, low, high } = length_ratio;
        writeln!(f, "length ratio  {score:.3} [{low:.3}, {high:.3}]  {hypothesis} tokens to {reference}")?;
        let repetition = 100.0 * self.repetition_rate;
        writeln!(
            f,
            "repetition    {repetition:.2}% of a line's {REPETITION_ORDER}-grams stand earlier in it, mean over lines"
        )?;
        if let Some(copied) = self.copy_rate {
            writeln!(
                f,
                "copied        {:.2}% of a line's tokens stand in its source, mean over lines",
                100.0 * copied
            )?;
        }
        if let Some(comparison) = &self.comparison {
            write!(f, "{comparison}")?;
        }
        for Metric { name, signature, .. } in [&bleu.metric, chrf2].into_iter().chain(ter) {
            let name = format!("{name} settings");
            writeln!(f, "{name:<16}{signature}")?;
        }
        write!(f, "Intervals hold 95% of the bootstrap's resamples.")
    }
}

fn percent(Estimate { score, low, high }: &Estimate) -> String {
    format!("{score:.2} [{low:.2}, {high:.2}]")
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "difference    this minus {}", self.baseline)?;
        let ter = self.ter.iter().map(|difference| ("TER", difference));
        for (name, difference) in [("BLEU", &self.bleu), ("chrF2", &self.chrf2)].into_iter().chain(ter) {
            let Difference { difference, low, high, p_value, baseline_score } = difference;
            write!(f, "  {name:<11} {difference:+.2} [{low:+.2}, {high:+.2}]  from {baseline_score:.2}, ")?;
            // A p-value says nothing where no resample tells the two apart; see `Paired::p_value`.
            match low == high && *difference == 0.0 {
                true => writeln!(f, "the same on every resample")?,
                false => writeln!(f, "p = {p_value:.4}")?,
            }
        }
        Ok(())
    }
}
