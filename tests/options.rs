//! Options in pairs: every two values that may stand together do so in some search, all of them in one engine at once.

mod common;

use beamfuse::decode::Sampling;
use beamfuse::metrics::Utility;
use beamfuse::{DecodeOptions, Device, EngineOptions, LengthPenalty, MaxLength, Stop, Translation, Translator};

/// A value of an option: its name, and what it changes.
type Value = (&'static str, fn(&mut DecodeOptions));

/// The options, each with its values.
fn options() -> Vec<Vec<Value>> {
    vec![
        vec![("beam 1", |o| o.beam_size = 1), ("beam 2", |o| o.beam_size = 2), ("beam 4", |o| o.beam_size = 4)],
        vec![
            ("no penalty", |o| o.length_penalty = LengthPenalty::None),
            ("gnmt", |o| o.length_penalty = LengthPenalty::Gnmt { alpha: 0.7 }),
            ("power", |o| o.length_penalty = LengthPenalty::Power { alpha: 1.0 }),
            ("power of all", |o| o.length_penalty = LengthPenalty::PowerOfAll { alpha: 0.8 }),
        ],
        vec![
            ("first", |o| o.stop = Stop::First),
            ("heuristic", |o| o.stop = Stop::Heuristic),
            ("exact", |o| o.stop = Stop::Exact),
            ("top", |o| o.stop = Stop::Top),
        ],
        vec![("no coverage", |_| ()), ("coverage", |o| o.coverage_penalty = 0.2)],
        vec![("no reward", |_| ()), ("reward", |o| o.word_reward = 0.3)],
        vec![("patience 1", |_| ()), ("patience 2", |o| o.patience = 2.0)],
        vec![("replace", |_| ()), ("shrink", |o| o.shrink = true)],
        vec![("long", |_| ()), ("short", |o| o.max_length = MaxLength::Absolute(5))],
        vec![("any length", |_| ()), ("five at least", |o| o.min_length = 5)],
        vec![("close", |_| ()), ("cut", |o| o.cut = true), ("free end", |o| o.forced_eos_free = true)],
        vec![("whole softmax", |_| ()), ("renormalize", |o| o.renormalize = true)],
        vec![("one group", |_| ()), ("groups", |o| o.groups = 2)],
        vec![
            ("search", |_| ()),
            ("sample", |o| o.sampling = Some(Sampling { samples: 3, top_k: 20, ..Sampling::default() })),
        ],
        vec![("repeating", |_| ()), ("no token twice", |o| o.no_repeat_ngram = 1)],
        vec![("no penalty", |_| ()), ("repetition penalty", |o| o.repetition_penalty = 1.3)],
        vec![("best", |_| ()), ("mbr", |o| o.mbr = Some(Utility::Chrf))],
        vec![("alone", |_| ()), ("attention", |o| o.attention = true)],
    ]
}

fn build(options: &[Vec<Value>], choice: &[usize]) -> DecodeOptions {
    let mut built = DecodeOptions::default();
    options.iter().zip(choice).for_each(|(values, at)| values[*at].1(&mut built));
    built
}

/// Choices of values in which every pair that is allowed stands together: each pair not seen yet is completed by values that
/// keep the whole allowed.
fn covering(options: &[Vec<Value>]) -> Vec<DecodeOptions> {
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
    if build(options, &choice).validate().is_err() {
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
        choice = tried.into_iter().find(|choice| build(options, choice).validate().is_ok())?;
    }
    for (option, values) in options.iter().enumerate().skip(1) {
        if fixed.iter().any(|(fixed, _)| *fixed == option) {
            continue;
        }
        let before = choice[option];
        choice[option] = (start + option) % values.len();
        if build(options, &choice).validate().is_err() {
            choice[option] = before;
        }
    }
    Some(choice)
}

const SENTENCES: [&str; 2] = ["A dog runs.", "Two men sit on a bench."];

/// Translates the sentences under all options, all of them under way at once.
fn translate(translator: &Translator, cases: &[DecodeOptions]) -> Vec<Vec<Translation>> {
    let mut batches: Vec<_> = cases.iter().map(|options| translator.batch(options).expect("allowed")).collect();
    for batch in &mut batches {
        SENTENCES.iter().zip(0..).for_each(|(text, tag)| batch.push(tag, text.to_string()));
    }
    let drain = |batch: &mut beamfuse::translator::Batch<'_>| {
        let mut found: Vec<_> = std::iter::from_fn(|| batch.next()).collect();
        found.sort_by_key(|(tag, _)| *tag);
        found.into_iter().map(|(_, translation)| translation.expect("a translation")).collect()
    };
    batches.iter_mut().map(drain).collect()
}

fn open(device: Device) -> Translator {
    let options = EngineOptions { device, slots: 8, ..EngineOptions::default() };
    Translator::open_with(common::demo_model(), &options).expect("the demo model opens")
}

#[test]
fn all_pairs_of_options_work_together_and_a_batch_changes_nothing() {
    let cases = covering(&options());
    // Two options of four values have 16 pairs, so fewer searches than that cannot hold them all.
    assert!((16..400).contains(&cases.len()), "{} searches", cases.len());
    let translator = open(Device::Cpu);
    let together = translate(&translator, &cases);
    for (options, found) in cases.iter().zip(&together) {
        for (text, translation) in SENTENCES.iter().zip(found) {
            let alone = translator.translate(&[*text], options).expect("allowed");
            assert_eq!(&alone[0], translation, "{options:?}");
            for hypothesis in &translation.hypotheses {
                let h = &hypothesis.hypothesis;
                let score = &translator.score_ids(&[(translation.source_ids.clone(), h.token_ids.clone())])[0];
                assert_eq!(score.as_ref().expect("ids fit").log_prob, h.log_prob, "{options:?}: {h:?}");
                assert!(h.score.is_finite() && h.length == h.token_ids.len(), "{options:?}: {h:?}");
                let limit = options.max_length.resolve(translation.source_ids.len(), 256);
                assert!(h.length <= limit && (h.truncated || h.length >= options.min_length), "{options:?}: {h:?}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
fn the_kernels_give_the_same_tokens_under_all_pairs_of_options() {
    // Every fifth: together they hold every value, and most pairs.
    let cases: Vec<DecodeOptions> = covering(&options()).into_iter().step_by(5).collect();
    let (cpu, emulated) = (open(Device::Cpu), open(Device::Emulated));
    for ((options, ours), theirs) in cases.iter().zip(translate(&cpu, &cases)).zip(translate(&emulated, &cases)) {
        let ids = |found: &[Translation]| -> Vec<Vec<Vec<u32>>> {
            let of = |t: &Translation| t.hypotheses.iter().map(|h| h.hypothesis.token_ids.clone()).collect();
            found.iter().map(of).collect()
        };
        assert_eq!(ids(&ours), ids(&theirs), "{options:?}");
    }
}
