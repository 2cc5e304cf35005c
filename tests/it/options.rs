//! Options in pairs: every two values that may stand together do so in some search, all of them in one engine at once.

use crate::common;
use beamfuse::metrics::Utility;
use beamfuse::{
    DecodeOptions, Device, EngineOptions, Error, LengthPenalty, MaxLength, Sentence, Stop, Translation, Translator,
};

/// How one sentence is searched.
#[derive(Clone, Debug, Default)]
struct Case {
    options: DecodeOptions,
    constraints: Vec<String>,
}

impl Case {
    fn is_allowed(&self) -> bool {
        let DecodeOptions { sample, beam_groups, shrink, .. } = self.options;
        let constrainable = !sample && beam_groups == 1 && !shrink;
        self.options.validate().is_ok() && (self.constraints.is_empty() || constrainable)
    }
}

/// A value of an option: its name, and what it changes.
type Value = (&'static str, fn(&mut Case));

/// The options, each with its values.
fn options() -> Vec<Vec<Value>> {
    vec![
        vec![
            ("beam 1", |c| c.options.beam_size = 1),
            ("beam 2", |c| c.options.beam_size = 2),
            ("beam 4", |c| c.options.beam_size = 4),
        ],
        vec![
            ("no penalty", |c| c.options.length_penalty = LengthPenalty::None),
            ("gnmt", |c| (c.options.length_penalty, c.options.alpha) = (LengthPenalty::Gnmt, 0.7)),
            ("power", |c| (c.options.length_penalty, c.options.alpha) = (LengthPenalty::Power, 1.0)),
            ("power of all", |c| (c.options.length_penalty, c.options.alpha) = (LengthPenalty::PowerOfAll, 0.8)),
        ],
        vec![
            ("first", |c| c.options.stop = Some(Stop::First)),
            ("heuristic", |c| c.options.stop = Some(Stop::Heuristic)),
            ("exact", |c| c.options.stop = Some(Stop::Exact)),
            ("top", |c| c.options.stop = Some(Stop::Top)),
        ],
        vec![("no coverage", |_| ()), ("coverage", |c| c.options.coverage_penalty = 0.2)],
        vec![("no reward", |_| ()), ("reward", |c| c.options.word_reward = 0.3)],
        vec![("patience 1", |_| ()), ("patience 2", |c| c.options.patience = 2.0)],
        vec![("replace", |_| ()), ("shrink", |c| c.options.shrink = true)],
        vec![("long", |_| ()), ("short", |c| c.options.max_length = MaxLength::Absolute(5))],
        vec![("any length", |_| ()), ("five at least", |c| c.options.min_length = 5)],
        vec![("close", |_| ()), ("cut", |c| c.options.cut = true), ("free end", |c| c.options.forced_free = true)],
        vec![("any start", |_| ()), ("forced start", |c| c.options.forced_bos = Some(95))],
        vec![("whole softmax", |_| ()), ("renormalize", |c| c.options.renormalize = true)],
        vec![("one group", |_| ()), ("groups", |c| c.options.beam_groups = 2)],
        vec![
            ("search", |_| ()),
            ("sample", |c| (c.options.sample, c.options.samples, c.options.top_k) = (true, 3, 20)),
        ],
        vec![("repeating", |_| ()), ("no token twice", |c| c.options.no_repeat_ngram = 1)],
        vec![("no penalty", |_| ()), ("repetition penalty", |c| c.options.repetition_penalty = 1.3)],
        vec![("penalty on log-probs", |_| ()), ("penalty on logits", |c| c.options.penalize_logits = Some(true))],
        vec![("best", |_| ()), ("mbr", |c| c.options.mbr = Some(Utility::Chrf))],
        vec![("alone", |_| ()), ("attention", |c| c.options.attention = true)],
        vec![("any words", |_| ()), ("constraints", |c| c.constraints = vec!["schnell".to_owned(), "Hund".to_owned()])],
    ]
}

fn build(options: &[Vec<Value>], choice: &[usize]) -> Case {
    let mut built = Case::default();
    options.iter().zip(choice).for_each(|(values, at)| values[*at].1(&mut built));
    built
}

/// Choices of values in which every pair that is allowed stands together: each pair not seen yet is completed by values that
/// keep the whole allowed.
fn covering(options: &[Vec<Value>]) -> Vec<Case> {
    let mut seen = std::collections::HashSet::new();
    let mut found = Vec::new();
    let places: Vec<(usize, usize)> =
        (0..options.len()).flat_map(|i| (i + 1..options.len()).map(move |j| (i, j))).collect();
    for &(i, j) in &places {
        for (a, b) in (0..options[i].len()).flat_map(|a| (0..options[j].len()).map(move |b| (a, b))) {
            if seen.contains(&(i, a, j, b)) {
                continue;
            }
            // Every value from a different start, so that others than the first turn up as well.
            let Some(choice) = complete(options, &[(i, a), (j, b)], found.len()) else { continue };
            for &(i, j) in &places {
                seen.insert((i, choice[i], j, choice[j]));
            }
            found.push(build(options, &choice));
        }
    }
    found
}

/// A choice with these values that is allowed; the others from `start` on, where that is allowed too.
fn complete(options: &[Vec<Value>], fixed: &[(usize, usize)], start: usize) -> Option<Vec<usize>> {
    let mut choice = vec![0; options.len()];
    fixed.iter().for_each(|(option, value)| choice[*option] = *value);
    // Beams enough for what is fixed: two groups need two.
    let beams = fixed.iter().find(|(option, _)| *option == 0).map_or(2, |(_, value)| *value);
    choice[0] = beams;
    if !build(options, &choice).is_allowed() {
        // The stop rule, and the penalty, may be what is in the way.
        let ways = (0..options[1].len()).flat_map(|p| (0..options[2].len()).map(move |s| (p, s)));
        let is_fixed = |option: usize| fixed.iter().any(|(fixed, _)| *fixed == option);
        let tried = ways.map(|(penalty, stop)| {
            let mut other = choice.clone();
            if !is_fixed(1) {
                other[1] = penalty;
            }
            if !is_fixed(2) {
                other[2] = stop;
            }
            other
        });
        choice = tried.into_iter().find(|choice| build(options, choice).is_allowed())?;
    }
    for (option, values) in options.iter().enumerate().skip(1) {
        if fixed.iter().any(|(fixed, _)| *fixed == option) {
            continue;
        }
        let before = choice[option];
        choice[option] = (start + option) % values.len();
        if !build(options, &choice).is_allowed() {
            choice[option] = before;
        }
    }
    Some(choice)
}

const SENTENCES: [&str; 2] = ["A dog runs.", "Two men sit on a bench."];

/// Every sentence under every case.
fn jobs(cases: &[Case]) -> Vec<(&Case, &str)> {
    cases.iter().flat_map(|case| SENTENCES.map(|source| (case, source))).collect()
}

/// Translates sentences under options of their own, all under way at once. Only a constraint can end without a translation.
fn translate(translator: &Translator, jobs: &[(&Case, &str)]) -> Vec<Option<Translation>> {
    let start = |(case, source): &(&Case, &str)| {
        let mut batch = translator.batch(&case.options).expect("allowed");
        let (source, constraints) = (source.to_string(), case.constraints.clone());
        batch.push(0, Sentence { source, constraints, ..Sentence::default() });
        batch
    };
    let mut batches: Vec<_> = jobs.iter().map(start).collect();
    let outcome = |batch: &mut beamfuse::translator::Batch<'_>| match batch.next().expect("one was pushed").1 {
        Err(Error::UnmetConstraint { .. }) => None,
        found => Some(found.expect("a translation")),
    };
    batches.iter_mut().map(outcome).collect()
}

fn open(device: Device) -> Translator {
    let options = EngineOptions::default().with(|o| {
        o.device = device;
        o.slots = 8;
    });
    Translator::open_with(common::demo_model(), &options).expect("the demo model opens")
}

/// What holds of each hypothesis, however it was searched.
fn check(translator: &Translator, case: &Case, translation: &Translation) {
    for h in &translation.hypotheses {
        let text = &h.text;
        let score = &translator.score_ids(&[(translation.source_ids.clone(), h.token_ids.clone())])[0];
        assert_eq!(score.as_ref().expect("ids fit").log_prob, h.log_prob, "{case:?}: {h:?}");
        assert!(h.score.is_finite() && h.length == h.token_ids.len(), "{case:?}: {h:?}");
        let limit = case.options.max_length.resolve(translation.source_ids.len(), 256);
        assert!(h.length <= limit && (h.truncated || h.length >= case.options.min_length), "{case:?}: {h:?}");
        assert!(case.constraints.iter().all(|phrase| text.contains(phrase)), "{case:?}: {text}");
    }
}

#[test]
fn all_pairs_of_options_work_together_and_a_batch_changes_nothing() {
    let cases = covering(&options());
    // Two options of four values have 16 pairs, so fewer searches than that cannot hold them all.
    assert!((16..400).contains(&cases.len()), "{} searches", cases.len());
    let translator = open(Device::Cpu);
    let jobs = jobs(&cases);
    let together = translate(&translator, &jobs);
    for (job, found) in jobs.iter().zip(&together) {
        assert_eq!(&translate(&translator, &[*job])[0], found, "{job:?}");
        found.iter().for_each(|translation| check(&translator, job.0, translation));
    }
    let is_constrained = |(case, _): &(&Case, &str)| !case.constraints.is_empty();
    let (constrained, free) = jobs.iter().zip(&together).partition::<Vec<_>, _>(|(job, _)| is_constrained(job));
    assert!(free.iter().all(|(_, found)| found.is_some()));
    let unmet = constrained.iter().filter(|(_, found)| found.is_none()).count();
    assert!(5 * unmet < constrained.len(), "{unmet} of {} without their phrases", constrained.len());
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn the_kernels_give_the_same_tokens_under_all_pairs_of_options() {
    // Every fifth: together they hold every value, and most pairs.
    let cases: Vec<Case> = covering(&options()).into_iter().step_by(5).collect();
    let (cpu, emulated) = (open(Device::Cpu), open(Device::Emulated));
    let jobs = jobs(&cases);
    for ((job, ours), theirs) in jobs.iter().zip(translate(&cpu, &jobs)).zip(translate(&emulated, &jobs)) {
        let ids = |found: &Option<Translation>| -> Option<Vec<Vec<u32>>> {
            let hypotheses = &found.as_ref()?.hypotheses;
            Some(hypotheses.iter().map(|h| h.token_ids.clone()).collect())
        };
        assert_eq!(ids(&ours), ids(&theirs), "{job:?}");
    }
}
