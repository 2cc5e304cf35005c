//! The statistics against sacrebleu's, over the draws that it made; then our own draws.

use serde_json::Value;

use super::*;
use crate::metrics::{BleuCounts, ChrfCounts, bleu_counts, chrf_counts, one_each};

const REFERENCE: &str = include_str!("../../tests/data/metrics/own.reference.de");
const BEAM1: &str = include_str!("../../tests/data/metrics/own.beam1.de");
const EXPECTED: &str = include_str!("../../tests/data/metrics/expected.json");

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[track_caller]
fn assert_near(actual: f64, expected: f64, tolerance: f64) {
    assert!((actual - expected).abs() <= tolerance, "expected {expected}, got {actual}");
}

/// Counts of hypotheses against their references, as `bleu_counts` and `chrf_counts` give them.
type CountAll<C> = fn(&[String], &[Vec<String>]) -> Result<Vec<C>>;

/// Baseline and system over the sentences of the recorded test.
fn systems<C>(expected: &Value, counts: CountAll<C>) -> [Vec<C>; 2] {
    let sentences = expected["sentences"].as_u64().unwrap() as usize;
    let references: Vec<_> = REFERENCE.lines().take(sentences).map(|r| vec![r.to_string()]).collect();
    let baseline = BEAM1.lines().take(sentences).map(String::from).collect();
    let system = serde_json::from_value(expected["system"].clone()).unwrap();
    [baseline, system].map(|hypotheses: Vec<String>| counts(&hypotheses, &references).unwrap())
}

fn matches_recorded<C: Counts>(metric: &str, counts: CountAll<C>) {
    let expected = &serde_json::from_str::<Value>(EXPECTED).unwrap()["paired"];
    let [baseline, system] = systems(expected, counts);
    let draws: Vec<Vec<usize>> = serde_json::from_value(expected["draws"].clone()).unwrap();
    let expected = &expected[metric];
    for (counts, field) in [(&baseline, "baseline_scores"), (&system, "system_scores")] {
        for (draw, score) in draws.iter().zip(floats(&expected[field])) {
            assert_near(resampled_score(counts, draw), score, 1e-6);
        }
    }
    let paired = compare(&baseline, &system, draws.into_iter());
    assert_near(paired.p_value, expected["p_value"].as_f64().unwrap(), 1e-12);
    // sacrebleu sums and divides in f32 here: at scores below 128 that is worth 4e-6 a step.
    assert_near(paired.system.mean, expected["system_mean"].as_f64().unwrap(), 1e-4);
    assert_near(paired.system.half_width(), expected["system_half_width"].as_f64().unwrap(), 1e-4);
}

#[test]
fn equals_sacrebleu_over_its_own_draws() {
    matches_recorded::<BleuCounts>("bleu", bleu_counts);
    matches_recorded::<ChrfCounts>("chrf", chrf_counts);
}

#[test]
fn the_interval_drops_a_fortieth_at_each_end() {
    let interval = Interval::of((0..200).rev().map(f64::from).collect());
    assert_eq!(interval, Interval { mean: 99.5, low: 5.0, high: 194.0 });
    assert_eq!(interval.half_width(), 94.5);
    assert_eq!(Interval::of(vec![3.0]), Interval { mean: 3.0, low: 3.0, high: 3.0 });
}

#[test]
fn p_value_by_hand() {
    // Sizes 1, 2, 3, 6 less their mean 3: only the last exceeds a corpus difference of 2.
    assert_eq!(p_value(&[1.0, -2.0, 3.0, -6.0], -2.0), 0.4);
    // Exactly equal is not larger.
    assert_eq!(p_value(&[1.0, -2.0, 3.0, -6.0], 3.0), 0.2);
}

#[test]
fn draws_follow_the_seed_and_are_uniform() {
    // The first outputs of SplitMix64 from state 0.
    let mut bits = Draws::new(1, 0);
    assert_eq!([bits.next_bits(), bits.next_bits()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    let mut draws = Draws::new(7, 3);
    let mut seen = [0u32; 7];
    (0..10_000).for_each(|_| draws.next_resample().into_iter().for_each(|i| seen[i] += 1));
    let chi_square: f64 = seen.iter().map(|&n| (f64::from(n) - 10_000.0).powi(2) / 10_000.0).sum();
    // 6 degrees of freedom: 22.46 at 0.001.
    assert!(chi_square < 22.46, "{seen:?}");
}

#[test]
fn same_seed_same_answer_other_seed_another() {
    let expected = &serde_json::from_str::<Value>(EXPECTED).unwrap()["paired"];
    let [baseline, system] = systems(expected, chrf_counts);
    let run = |seed| paired_bootstrap(&baseline, &system, &BootstrapOptions { seed, ..Default::default() }).unwrap();
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    // A system's interval is the same alone and in a pair.
    assert_eq!(run(1).system, bootstrap(&system, &BootstrapOptions { seed: 1, ..Default::default() }).unwrap());
}

#[test]
fn our_draws_agree_with_sacrebleus_in_distribution() {
    let expected = &serde_json::from_str::<Value>(EXPECTED).unwrap()["paired"];
    let [baseline, system] = systems(expected, bleu_counts);
    let paired = paired_bootstrap(&baseline, &system, &BootstrapOptions::default()).unwrap();
    let recorded = floats(&expected["bleu"]["system_scores"]);
    let spread = (recorded.iter().map(|s| (s - mean(&recorded)).powi(2)).sum::<f64>() / recorded.len() as f64).sqrt();
    // Four standard errors of the recorded mean.
    assert_near(paired.system.mean, mean(&recorded), 4.0 * spread / (recorded.len() as f64).sqrt());
    assert!(paired.system.low < corpus_score(&system) && corpus_score(&system) < paired.system.high);
    assert!(paired.difference.low < 0.0 && paired.difference.high > 0.0 && paired.p_value > 0.1, "{paired:?}");
}

#[test]
fn a_clear_improvement_is_significant_and_none_has_no_difference() {
    let references: Vec<_> = REFERENCE.lines().collect();
    let worse: Vec<_> = references.iter().map(|r| r.split(' ').next().unwrap()).collect();
    let good = chrf_counts(&references, &one_each(&references)).unwrap();
    let bad = chrf_counts(&worse, &one_each(&references)).unwrap();
    let options = BootstrapOptions { resamples: 99, ..Default::default() };
    let paired = paired_bootstrap(&bad, &good, &options).unwrap();
    assert_eq!((paired.p_value, paired.system.low), (0.01, 100.0));
    assert!(paired.difference.low > 30.0 && paired.difference.high < 100.0, "{paired:?}");
    let same = paired_bootstrap(&bad, &bad, &options).unwrap();
    assert_eq!((same.difference, same.p_value), (Interval { mean: 0.0, low: 0.0, high: 0.0 }, 0.01));
}

#[test]
fn nothing_to_resample_is_refused() {
    let one = [ChrfCounts::default()];
    let options = BootstrapOptions::default();
    let message = |r: Result<Paired>| r.unwrap_err().to_string();
    assert_eq!(
        bootstrap::<ChrfCounts>(&[], &options).unwrap_err().to_string(),
        "bootstrap: expected at least one sentence, got none"
    );
    assert_eq!(
        message(paired_bootstrap(&one, &[], &options)),
        "compare systems: expected 1 sentences as in the baseline, got 0"
    );
    assert_eq!(
        message(paired_bootstrap(&one, &one, &BootstrapOptions { resamples: 0, seed: 1 })),
        "option resamples: expected 1 to 100000, got 0"
    );
}
