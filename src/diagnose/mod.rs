//! Does a model have exposure bias, and which remedy fits?
//!
//! A model trained on gold prefixes meets its own in use. Whether that hurts is measured line by line (`measure`, `sums`) on the test
//! set's references and, by the same estimators, on references that the model itself has sampled (`null`), with which there is no gap
//! by construction. Only what differs between the two counts (`inference`, `verdict`). docs/diagnose.md says what each number means.
//! Everything follows from the test set, the models and the seed: the same call gives the same numbers.

mod curves;
mod estimate;
mod flags;
pub mod inference;
mod measure;
pub mod null;
mod oracle;
#[cfg(feature = "report")]
mod page;
mod report;
pub mod subject;
mod sums;
mod tables;
mod tokens;
mod verdict;

pub use estimate::{Estimate, Point};
pub use measure::Bench;
pub use oracle::{Network, Oracle};
pub use report::{Bucket, Curve, CurveSeries, Digest, Figure, Flag, Null, Provenance, Report, Setup, Sweep};
pub use sums::{Rule, Statistic, Sums, Worse};
pub use verdict::{Call, Finding, Seen, VERDICT_LINES, Verdict};

use crate::metrics::BootstrapOptions;
use crate::model::generation::GenerationConfig;
use crate::translator::Translator;
use crate::{DecodeOptions, Error, Result, threads};
use estimate::Resampler;
use inference::Test;
use subject::Reference;
use verdict::Outcome;

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
    /// Sets of references that are sampled for the null.
    pub null_draws: usize,
    /// Permutations behind each test.
    pub permutations: usize,
    /// How the diagnosis was called, for the commands of findings.
    pub call: Call,
    /// What was run, for the record.
    pub provenance: Provenance,
}

/// Sets of references at temperature 1, which are only shown.
const PLAIN_DRAWS: usize = 2;

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

impl Pair {
    /// The test set's own reference.
    pub fn gold(&self) -> Reference {
        Reference { text: self.reference.clone(), ids: self.reference_ids.clone() }
    }
}

/// A diagnosis under way.
struct Diagnosis<'a> {
    bench: Bench<'a>,
    pairs: &'a [Pair],
    bootstrap: BootstrapOptions,
    seed: u64,
    /// All lines.
    lines: Resampler,
    /// The draws of the probed lines.
    probes: Resampler,
    figures: Vec<Figure>,
    curves: Vec<Curve>,
    buckets: Vec<Bucket>,
    sweep: Vec<Sweep>,
    flags: Vec<Flag>,
    hidden: Vec<String>,
}

impl Diagnosis<'_> {
    fn figure(&mut self, group: &'static str, name: &str, estimate: Estimate, note: &'static str) {
        self.figures.push(Figure::plain((group, name), estimate, note));
    }

    fn probed(&self) -> &[usize] {
        &self.bench.probed
    }
}

/// `count` of `lines` line numbers, evenly spread, all of them if there are fewer.
pub fn spread(lines: usize, count: usize) -> Vec<usize> {
    let count = count.clamp(1, lines.max(1)).min(lines);
    (0..count).map(|i| i * lines / count).collect()
}

/// The statistics that `lines`' references are judged by; what lengths are compared depends on how many lines have them.
pub fn statistics(lines: &[Sums]) -> Vec<Statistic> {
    sums::statistics(lines)
}

/// Tests all rules that references can trigger, with Holm's correction over them: the first of some sets of references against the others.
pub fn test(statistics: &[Statistic], sets: &[&[Sums]], permutations: usize, seed: u64) -> Vec<Test> {
    let mut tests = inference::test(statistics, sets, permutations, seed);
    inference::holm(&mut tests);
    tests
}

/// Diagnoses a model on a test set; `model` is its name for the report.
///
/// # Errors
/// No line to look at; an oracle with other pieces; what translating and scoring give.
pub fn run(
    (model, translator): (&str, &Translator),
    oracle: Option<&Oracle>,
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
    translator.tokenizer().require_languages()?;
    // Resamples and permutations are divided among them, after all else.
    threads::start_global()?;
    if let Some(oracle) = oracle {
        check_oracle(translator, &oracle.translator, pairs)?;
    }
    let (probed, swept) = (spread(pairs.len(), options.probe_lines), spread(pairs.len(), options.sweep_lines));
    let (probe_lines, sweep_lines) = (probed.len(), swept.len());
    let seed = options.bootstrap.seed;
    let bench = Bench::new(translator, pairs, &options.search, (probed, swept), seed, progress)?;
    let mut d = Diagnosis {
        pairs,
        bootstrap: options.bootstrap,
        seed,
        lines: Resampler::new(pairs.len(), &options.bootstrap)?,
        probes: Resampler::new(probe_lines, &options.bootstrap)?,
        bench,
        figures: Vec::new(),
        curves: Vec::new(),
        buckets: Vec::new(),
        sweep: Vec::new(),
        flags: Vec::new(),
        hidden: Vec::new(),
    };
    let (null, verdict) = measure(&mut d, oracle, options, settings, progress)?;
    Ok(Report {
        provenance: options.provenance.clone(),
        setup: Setup {
            model: model.to_owned(),
            oracle: oracle.map(|oracle| oracle.name.clone()),
            lines: pairs.len(),
            skipped: set.refused.clone(),
            probe_lines,
            sweep_lines,
            resamples: options.bootstrap.resamples,
            seed,
            null,
        },
        verdict,
        figures: d.figures,
        curves: d.curves,
        buckets: d.buckets,
        sweep: d.sweep,
        flags: d.flags,
        hidden: d.hidden,
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

/// The null of a bench: what was drawn, and what each line contributes with each set of references.
struct NullSets {
    about: Null,
    fitted: Vec<Vec<Sums>>,
    plain: Vec<Vec<Sums>>,
}

fn null_sets(
    d: &Diagnosis<'_>,
    gold: &[Reference],
    options: &Options,
    progress: &mut dyn FnMut(&str),
) -> Result<NullSets> {
    let (subject, pairs, seed) = (d.bench.subject, d.pairs, d.seed);
    let all: Vec<usize> = (0..pairs.len()).collect();
    progress("temperature of the null");
    let temperature = null::fit(subject, pairs, gold, seed)?;
    let mut sampled = |name: &str, count: usize, temperature: f32, seed: u64| {
        progress(&format!("null: {name}"));
        let drawn = null::draw(subject, pairs, &all, (count, temperature), seed)?;
        let sums = drawn.sets.iter().map(|set| d.bench.sums(set)).collect::<Result<Vec<_>>>()?;
        Ok::<_, Error>((null::nll(subject, pairs, &all, &drawn.sets)?, sums, drawn.of_other_lengths))
    };
    let (sampled_nll, fitted, of_other_lengths) =
        sampled("references sampled from the model", options.null_draws, temperature, seed.wrapping_add(1 << 40))?;
    let (plain_nll, plain, _) =
        sampled("references sampled at temperature 1", PLAIN_DRAWS, 1.0, seed.wrapping_add(2 << 40))?;
    let about = Null {
        draws: options.null_draws,
        temperature,
        nll: null::nll(subject, pairs, &all, &[gold.to_vec()])?,
        sampled_nll,
        plain_draws: PLAIN_DRAWS,
        plain_nll,
        of_other_lengths,
        permutations: options.permutations,
    };
    Ok(NullSets { about, fitted, plain })
}

/// The test set's references first, then sampled ones.
fn beside<'a>(value: &'a [Sums], sampled: &'a [Vec<Sums>]) -> Vec<&'a [Sums]> {
    [value].into_iter().chain(sampled.iter().map(Vec::as_slice)).collect()
}

/// Takes all measures, in order, and draws the conclusions.
fn measure(
    d: &mut Diagnosis<'_>,
    oracle: Option<&Oracle>,
    options: &Options,
    settings: Vec<String>,
    progress: &mut dyn FnMut(&str),
) -> Result<(Null, Verdict)> {
    let gold: Vec<Reference> = d.pairs.iter().map(Pair::gold).collect();
    progress("references");
    let forced = d.bench.forced(&gold)?;
    let value = d.bench.sums_of(&gold, &forced)?;
    let null = null_sets(d, &gold, options, progress)?;

    progress("comparison with the null");
    let statistics = statistics(&value);
    let (fitted, plain) = (beside(&value, &null.fitted), beside(&value, &null.plain));
    let compared = inference::compare(&statistics, &fitted, &options.bootstrap)?;
    let at_1 = inference::compare(&statistics, &plain, &options.bootstrap)?;
    for ((statistic, compared), at_1) in statistics.iter().zip(&compared).zip(&at_1).filter(|((s, _), _)| s.shown) {
        d.figures.push(Figure {
            null: Some(compared.null),
            null_at_1: Some(at_1.null),
            difference: Some(compared.difference),
            ..Figure::plain((statistic.group, &statistic.name), compared.value, statistic.note)
        });
    }
    let mut outcomes: Vec<Outcome> = inference::test(&statistics, &fitted, options.permutations, d.seed)
        .into_iter()
        .map(|test| Outcome::of(test, &statistics, &compared))
        .collect();

    progress("curves and tables");
    curves::own_minus_gold(d, &statistics, &compared);
    curves::recovery(d, &value, &null.fitted[0]);
    curves::positions(d, &gold, &forced);
    curves::doses(d, &gold, &forced)?;
    curves::calibration(d, &gold, &forced);
    tables::buckets(d, &gold)?;
    tables::sweep(d, &gold, &forced)?;
    tables::repetition(d, &gold);
    tables::flags(d, &gold);
    let mut not_tested = Vec::new();
    match oracle {
        Some(oracle) => {
            progress("oracle");
            outcomes.extend(oracle::excess_error(d, oracle, options.permutations)?);
        }
        None => {
            d.figure("oracle", oracle::FIGURE, Estimate::NONE, "needs --oracle");
            not_tested.push("excess accumulated error: n/a without --oracle".to_owned());
        }
    }
    let mut warnings = settings;
    warnings.extend(search_warnings(d, &mut not_tested));
    let mut tests: Vec<Test> = outcomes.iter().map(|outcome| outcome.test).collect();
    inference::holm(&mut tests);
    outcomes.iter_mut().zip(tests).for_each(|(outcome, test)| outcome.test = test);
    let verdict = Verdict::new(d.pairs.len(), &outcomes, not_tested, warnings, &options.call);
    // Groups stay together in the order in which they come first.
    let mut groups: Vec<&str> = Vec::new();
    d.figures.iter().for_each(|figure| {
        if !groups.contains(&figure.group) {
            groups.push(figure.group)
        }
    });
    d.figures.sort_by_key(|figure| groups.iter().position(|group| *group == figure.group));
    Ok((null.about, verdict))
}

/// What the search's settings cost here, where the interval leaves no doubt; what cannot be compared goes to `not_tested`.
fn search_warnings(d: &mut Diagnosis<'_>, not_tested: &mut Vec<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    let gain = d.figures.iter_mut().find(|figure| figure.name == "BLEU gain over greedy");
    let search = &d.bench.search;
    if search.beam_size == 1 && !search.sample {
        not_tested.push("beam search against greedy: n/a, since the search is greedy itself".to_owned());
        if let Some(figure) = gain {
            let none = Some(Estimate::NONE);
            (figure.estimate, figure.null, figure.null_at_1, figure.difference) = (Estimate::NONE, none, none, none);
            figure.note = "n/a: the search is greedy";
        }
    } else if let Some(Estimate { value, low, high }) = gain.map(|figure| figure.estimate).filter(|gain| gain.low > 0.0)
    {
        warnings
            .push(format!("greedy search alone would lose {value:.2} BLEU [{low:.2}, {high:.2}] against this search"));
    }
    for sweep in d.sweep.iter().filter(|sweep| sweep.against_4.high < 0.0 && sweep.beam_size > 4) {
        let Estimate { value, low, high } = sweep.against_4;
        warnings.push(format!(
            "{} beams with length penalty {} lose {:.2} chrF2 [{:.2}, {:.2}] against 4 beams; {:.1}% of their translations are empty",
            sweep.beam_size,
            sweep.penalty,
            -value,
            -high,
            -low,
            100.0 * sweep.empty
        ));
    }
    warnings
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

    /// The simulation of docs/diagnose.md, small.
    #[test]
    fn own_samples_as_references_hardly_ever_fire() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let translator = Translator::open(root.join("models/m30k-en-de-amateur")).expect("the amateur");
        let read = |name: &str| -> Vec<String> {
            let text = std::fs::read_to_string(root.join("tests/data").join(name)).expect("test data");
            text.lines().take(40).map(str::to_owned).collect()
        };
        let set = TestSet::new(&translator, &read("own/own.en"), &read("metrics/own.reference.de"));
        let lines: Vec<usize> = (0..set.pairs.len()).collect();
        let search = DecodeOptions::default().with(|o| o.beam_size = 1);
        let probed = (spread(lines.len(), 10), Vec::new());
        let bench = Bench::new(&translator, &set.pairs, &search, probed, 5, &mut |_| ()).expect("a bench");
        let drawn = null::draw(&translator, &set.pairs, &lines, (5, 1.0), 1).expect("samples");
        let mut sums: Vec<Vec<Sums>> = drawn.sets.iter().map(|set| bench.sums(set).expect("sums")).collect();
        let fired = |sums: &[Vec<Sums>]| {
            let sets: Vec<&[Sums]> = sums.iter().map(Vec::as_slice).collect();
            let options = BootstrapOptions { resamples: 99, ..BootstrapOptions::default() };
            let statistics = statistics(sets[0]);
            let compared = inference::compare(&statistics, &sets, &options).expect("lines");
            test(&statistics, &sets, 199, 1).iter().filter(|t| inference::fires(t, &statistics, &compared)).count()
        };
        let mut false_alarms = 0;
        for _ in 0..sums.len() {
            false_alarms += usize::from(fired(&sums) > 0);
            sums.rotate_left(1);
        }
        // At 5% each, three or more of five have a probability of 0.1%.
        assert!(false_alarms <= 2, "{false_alarms} of {}", sums.len());
        // References of other lines are not what the model says of these sources.
        let mut others: Vec<Reference> = set.pairs.iter().map(Pair::gold).collect();
        others.rotate_left(7);
        sums[0] = bench.sums(&others).expect("sums");
        assert!(fired(&sums) > 0);
    }

    #[test]
    fn lines_are_spread_evenly() {
        assert_eq!(spread(10, 5), [0, 2, 4, 6, 8]);
        assert_eq!(spread(3, 5), [0, 1, 2]);
        assert_eq!(spread(7, 3), [0, 2, 4]);
        assert_eq!(spread(4, 0), [0]);
    }
}
