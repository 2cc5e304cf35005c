//! Does a model have exposure bias, and which remedy fits?
//!
//! A model trained on gold prefixes meets its own in use. What is measured here says whether that hurts: on references
//! (`forced`), on what the model writes (`free`), and what to make of it (`verdict`). docs/diagnose.md says what each number
//! means. Everything follows from the test set, the models and the seed: the same call gives the same bytes.

mod estimate;
mod forced;
mod free;
#[cfg(feature = "report")]
mod page;
mod report;
mod tokens;
mod verdict;

pub use estimate::{Estimate, Point};
pub use report::{Bucket, Curve, CurveSeries, Figure, Flag, Report, Setup, Sweep};
pub use verdict::{Evidence, Finding, Verdict};

use crate::backend::TokenStats;
use crate::metrics::BootstrapOptions;
use crate::model::generation::GenerationConfig;
use crate::translator::{Translation, Translator};
use crate::{DecodeOptions, Error, Result};
use estimate::{Resampler, Share};

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The search whose translations are looked at.
    pub search: DecodeOptions,
    /// Resamples and seed.
    pub bootstrap: BootstrapOptions,
    /// Lines for corruption, prefix switch and oracle, spread evenly over the set.
    pub probe_lines: usize,
    /// Lines for the sweep over beam sizes and length penalties, spread evenly over the set.
    pub sweep_lines: usize,
}

/// A line of the test set.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Its number in the files, from 1.
    pub number: usize,
    /// The source.
    pub source: String,
    /// The reference.
    pub reference: String,
    /// Ids of the source, end of sentence included.
    pub source_ids: Vec<u32>,
    /// Ids of the reference, end of sentence included.
    pub reference_ids: Vec<u32>,
}

/// The lines of a test set that can be looked at, and those that cannot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TestSet {
    /// Lines with two sides that fit the model.
    pub pairs: Vec<Pair>,
    /// What is wrong with the others, as `line number: reason`.
    pub refused: Vec<String>,
}

impl TestSet {
    /// Encodes sources and their references.
    pub fn new(translator: &Translator, sources: &[String], references: &[String]) -> Self {
        let mut set = TestSet::default();
        let limit = translator.config().longest();
        for (at, (source, reference)) in sources.iter().zip(references).enumerate() {
            let tokenizer = translator.tokenizer();
            let (source_ids, reference_ids) = (tokenizer.encode_source(source), tokenizer.encode_target(reference));
            let refusal =
                [("source", &source_ids), ("reference", &reference_ids)].into_iter().find_map(|(side, ids)| {
                    let reason = match ids.len() {
                        0 | 1 => format!("the {side} is empty"),
                        len if len > limit => format!("the {side} has {len} tokens, more than the model's {limit}"),
                        _ => return None,
                    };
                    Some(format!("line {}: {reason}", at + 1))
                });
            match refusal {
                Some(refusal) => set.refused.push(refusal),
                None => set.pairs.push(Pair {
                    number: at + 1,
                    source: source.clone(),
                    reference: reference.clone(),
                    source_ids,
                    reference_ids,
                }),
            }
        }
        set
    }
}

/// A diagnosis under way.
struct Diagnosis<'a> {
    translator: &'a Translator,
    pairs: &'a [Pair],
    bootstrap: BootstrapOptions,
    seed: u64,
    /// All lines.
    lines: Resampler,
    /// Numbers of the lines that are probed, and their draws.
    probed: Vec<usize>,
    probes: Resampler,
    /// Numbers of the lines that the sweep takes.
    swept: Vec<usize>,
    progress: &'a mut dyn FnMut(&str),
    figures: Vec<Figure>,
    curves: Vec<Curve>,
    buckets: Vec<Bucket>,
    sweep: Vec<Sweep>,
    flags: Vec<Flag>,
}

impl Diagnosis<'_> {
    fn stage(&mut self, name: &str) {
        (self.progress)(name);
    }

    fn figure(&mut self, group: &'static str, name: &str, estimate: Estimate, note: &'static str) {
        self.figures.push(Figure { group, name: name.to_owned(), estimate, note });
    }

    fn resampler(&self, lines: usize) -> Result<Resampler> {
        Resampler::new(lines, &self.bootstrap)
    }

    fn value(&self, name: &str) -> f64 {
        self.figures.iter().find(|f| f.name == name).map_or(f64::NAN, |f| f.estimate.value)
    }

    fn swept(&self, beam_size: usize, penalty: &str) -> Option<&Sweep> {
        self.sweep.iter().find(|s| s.beam_size == beam_size && s.penalty == penalty)
    }
}

/// `count` of `lines` line numbers, evenly spread, all of them if there are fewer.
fn spread(lines: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, lines.max(1)).min(lines);
    (0..count).map(|i| i * lines / count).collect()
}

/// What a translation's tokens are, and their log-probabilities.
fn tokens(translations: &[Translation]) -> Vec<(Vec<u32>, Vec<f32>)> {
    let best = |t: &Translation| {
        let hypothesis = &t.hypotheses[0];
        (hypothesis.token_ids.clone(), hypothesis.token_log_probs.clone())
    };
    translations.iter().map(best).collect()
}

/// Diagnoses a model on a test set; `model` and `oracle` are names for the report.
///
/// # Errors
/// No line to look at; an oracle with other pieces; what translating and scoring give.
pub fn run(
    (model, translator): (&str, &Translator),
    oracle: Option<(&str, &Translator)>,
    set: &TestSet,
    options: &Options,
    settings: Vec<String>,
    progress: &mut dyn FnMut(&str),
) -> Result<Report> {
    let pairs = &set.pairs[..];
    if pairs.is_empty() {
        let (expected, got) = ("at least one line with a source and a reference".into(), "none".into());
        return Err(Error::Input { operation: "diagnose", expected, got });
    }
    if let Some((_, oracle)) = oracle {
        check_oracle(translator, oracle, pairs)?;
    }
    let (probed, swept) = (spread(pairs.len(), options.probe_lines), spread(pairs.len(), options.sweep_lines));
    let mut d = Diagnosis {
        translator,
        pairs,
        bootstrap: options.bootstrap,
        seed: options.bootstrap.seed,
        lines: Resampler::new(pairs.len(), &options.bootstrap)?,
        probes: Resampler::new(probed.len(), &options.bootstrap)?,
        probed,
        swept,
        progress,
        figures: Vec::new(),
        curves: Vec::new(),
        buckets: Vec::new(),
        sweep: Vec::new(),
        flags: Vec::new(),
    };
    let evidence = measure(&mut d, oracle.map(|(_, oracle)| oracle), &options.search)?;
    Ok(Report {
        setup: Setup {
            model: model.to_owned(),
            oracle: oracle.map(|(name, _)| name.to_owned()),
            lines: pairs.len(),
            skipped: set.refused.clone(),
            probe_lines: d.probed.len(),
            sweep_lines: d.swept.len(),
            resamples: options.bootstrap.resamples,
            seed: d.seed,
        },
        verdict: Verdict::new(&evidence, settings),
        figures: d.figures,
        curves: d.curves,
        buckets: d.buckets,
        sweep: d.sweep,
        flags: d.flags,
    })
}

/// Refuses an oracle that reads or writes other pieces.
fn check_oracle(translator: &Translator, oracle: &Translator, pairs: &[Pair]) -> Result<()> {
    let refuse = |expected: &str, got: String| Err(Error::Option { option: "oracle", expected: expected.into(), got });
    if let Some(difference) = translator.tokenizer().first_difference(oracle.tokenizer()) {
        return refuse("a model with the same target pieces", difference);
    }
    let reads_otherwise = |pair: &&Pair| oracle.tokenizer().encode_source(&pair.source) != pair.source_ids;
    match pairs.iter().find(reads_otherwise) {
        None => Ok(()),
        Some(pair) => refuse("a model with the same source pieces", format!("others in line {}", pair.number)),
    }
}

/// Takes all measures, in order.
fn measure(d: &mut Diagnosis<'_>, oracle: Option<&Translator>, search: &DecodeOptions) -> Result<Evidence> {
    d.stage("references, teacher-forced");
    let forced = forced::references(d.translator, d.pairs)?;
    let all: Vec<usize> = (0..d.pairs.len()).collect();
    d.stage("greedy translations");
    let greedy_options = DecodeOptions { beam_size: 1, n_best: 1, ..search.clone() };
    let greedy = free::translate(d.translator, d.pairs, &all, &greedy_options)?;
    d.stage("translations");
    let found = free::translate(d.translator, d.pairs, &all, &DecodeOptions { n_best: 1, ..search.clone() })?;
    let (greedy_tokens, found_tokens) = (tokens(&greedy), tokens(&found));
    let ids = |tokens: &[(Vec<u32>, Vec<f32>)]| tokens.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>();
    forced::positions(d, &forced, &[("greedy", ids(&greedy_tokens)), ("search", ids(&found_tokens))]);

    d.stage("corrupted prefixes");
    forced::corruption(d, &forced)?;
    d.stage("continuations of gold prefixes");
    free::prefix_switch(d, &greedy_tokens, search)?;
    match oracle {
        Some(oracle) => {
            d.stage("oracle");
            forced::excess_error(d, oracle, &greedy_tokens)?;
        }
        None => d.figures.push(forced::no_oracle()),
    }
    d.stage("other sources");
    forced::distractor(d, &forced)?;

    d.stage("scores");
    let texts: Vec<&str> = found.iter().map(Translation::text).collect();
    let scored = score(d, &texts)?;
    let greedy_scored = score(d, &greedy.iter().map(Translation::text).collect::<Vec<_>>())?;
    scores(d, &scored, &greedy_scored, &forced, &found);
    let bucket_drop = free::buckets(d, &scored);
    free::sweep(d, &forced, search)?;
    free::repetition(d, &texts);
    let per_token = |t: &Translation| {
        let hypothesis = &t.hypotheses[0];
        f64::from(hypothesis.log_prob) / hypothesis.length.max(1) as f64
    };
    free::flags(d, &texts, &found.iter().map(per_token).collect::<Vec<_>>());
    forced::calibration(d, &forced, &greedy_tokens);
    Ok(evidence(d, bucket_drop))
}

fn score(d: &Diagnosis<'_>, texts: &[&str]) -> Result<free::Scored> {
    free::Scored::new(texts, d.pairs.iter().map(|pair| pair.reference.as_str()))
}

/// Corpus scores, and how often search missed the reference.
fn scores(
    d: &mut Diagnosis<'_>,
    scored: &free::Scored,
    greedy: &free::Scored,
    forced: &[Vec<TokenStats>],
    found: &[Translation],
) {
    let missed = |(line, t): (&Vec<TokenStats>, &Translation)| {
        let reference: f64 = line.iter().map(|s| f64::from(s.log_prob)).sum();
        (f64::from(u8::from(reference > f64::from(t.hypotheses[0].log_prob))), 1.0)
    };
    let misses: Vec<Share> = forced.iter().zip(found).map(missed).collect();
    for (name, estimate, note) in [
        ("BLEU", scored.bleu(&d.lines), "of the search"),
        ("BLEU, greedy", greedy.bleu(&d.lines), "of greedy search"),
        ("BLEU gain over greedy", free::gain(d, scored, greedy), "on the same draws of lines"),
        ("chrF2", scored.chrf(&d.lines), "of the search"),
        ("length ratio", scored.length_ratio(&d.lines), "hypothesis tokens per reference token"),
        ("search errors", d.lines.ratio(&misses), "share of lines whose reference is more probable"),
    ] {
        d.figure("search", name, estimate, note);
    }
}

/// Gathers what the verdict is made of.
fn evidence(d: &Diagnosis<'_>, bucket_drop: f64) -> Evidence {
    let lengths: Vec<usize> = d.pairs.iter().map(|pair| pair.reference_ids.len()).collect();
    let estimate = |name: &str| d.figures.iter().find(|f| f.name == name).map(|f| f.estimate);
    let bleu = |beams, penalty| d.swept(beams, penalty).map_or(f64::NAN, |s| s.bleu.value);
    let repetition = |suffix: &str| (1..=4).map(|n| d.value(&format!("rep-{n}{suffix}"))).sum::<f64>();
    let slope_gap = estimate("slope gap, greedy");
    Evidence {
        reference_length: tokens::percentile(&lengths, 0.95) as f64,
        prefix_ratio: d.value("prefix-switch ratio"),
        half_life: d.value("half-life"),
        bucket_drop,
        excess_error_slope: estimate("slope of excess error, %").map_or(f64::NAN, |e| e.low),
        flagged: d.value("flagged lines"),
        flagged_lines: d.flags.len(),
        distractor_gap: d.value("distractor gap"),
        length_ratio: d.value("length ratio"),
        beam_loss: bleu(4, "gnmt 0.7") - bleu(16, "gnmt 0.7"),
        empty: d.sweep.iter().filter(|s| s.penalty == "gnmt 0.7").map(|s| s.empty).fold(0.0, f64::max),
        repetition: repetition("") / repetition(", references"),
        search_errors: d.value("search errors"),
        beam_gain: d.value("BLEU gain over greedy"),
        // No fall where the interval does not exclude one.
        slope_gap: slope_gap.map_or(f64::NAN, |gap| if gap.high < 0.0 { -gap.value } else { 0.0 }),
        penalty_gain: bleu(4, "gnmt 0.7") - bleu(4, "none"),
        bare_length_ratio: d.swept(4, "none").map_or(f64::NAN, |s| s.length_ratio.value),
    }
}

/// Warnings that follow from how a model is searched, here and by its own `generation_config.json`.
pub fn settings_warnings(search: &DecodeOptions, generation: &GenerationConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if search.sample {
        warnings.push("translations are sampled: BLEU of samples is no measure of a model".to_owned());
    } else if search.beam_size == 1 {
        warnings.push("greedy search only: its BLEU says little about what the model can do".to_owned());
    } else if search.exponent() == 0.0 {
        warnings
            .push("beam search without a length penalty prefers short translations, the more so the wider".to_owned());
    }
    if generation.beam_size > 1 && generation.length_penalty == 0.0 {
        warnings.push("generation_config.json asks for beam search without a length penalty".to_owned());
    }
    if generation.unsupported.iter().any(|setting| setting.starts_with("do_sample")) {
        warnings.push("generation_config.json asks for sampling: BLEU of samples is no measure of a model".to_owned());
    }
    warnings
}

/// Warns of a scheduled sampling run whose log says that it hardly left gold prefixes.
pub fn schedule_warning(log: &[String]) -> Option<String> {
    let probability =
        |line: &String| serde_json::from_str::<serde_json::Value>(line).ok()?.get("gold_probability")?.as_f64();
    let least = log.iter().filter_map(probability).reduce(f64::min)?;
    let warning = || {
        format!(
            "the schedule of the training log never fed less than {:.0}% gold tokens: it was all but teacher forcing",
            100.0 * least
        )
    };
    (least > 0.95).then(warning)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_that_stays_at_gold_is_warned_of() {
        let log = |values: &[f64]| values.iter().map(|v| format!("{{\"gold_probability\": {v}}}")).collect::<Vec<_>>();
        assert!(schedule_warning(&log(&[1.0, 0.99])).is_some_and(|w| w.contains("less than 99% gold")));
        assert_eq!(schedule_warning(&log(&[1.0, 0.5, 0.96])), None);
        assert_eq!(schedule_warning(&["{\"loss\": 1}".into(), "cut off".into()]), None);
    }

    #[test]
    fn lines_are_spread_evenly() {
        assert_eq!(spread(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(7, 3), [0, 2, 4]);
        assert_eq!(spread(4, 0), [0]);
    }
}
