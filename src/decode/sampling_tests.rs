//! Sampling in the decode loop, on the scripted model: its distributions are known, so are those of its translations.

use std::collections::HashMap;

use super::tests::{EOS, MODEL, PAD, Scripted, log_probs, score, source, translate, translate_one};
use super::*;
use crate::Error;

fn sampling(samples: usize, seed: u64) -> DecodeOptions {
    DecodeOptions { sample: true, samples, seed, ..DecodeOptions::default() }
}

fn ids(hypotheses: &[Hypothesis]) -> Vec<&[u32]> {
    hypotheses.iter().map(|h| h.token_ids.as_slice()).collect()
}

fn all_filters(samples: usize) -> Vec<DecodeOptions> {
    let base = sampling(samples, 0);
    vec![
        base.clone(),
        DecodeOptions { temperature: 0.4, ..base.clone() },
        DecodeOptions { top_k: 4, ..base.clone() },
        DecodeOptions { top_p: 0.6, ..base.clone() },
        DecodeOptions { min_p: 0.3, epsilon: 0.02, ..base },
    ]
}

#[test]
fn samples_are_the_same_in_any_company() {
    // Among beams of every size, and among sentences whose attention makes sessions reopen.
    let filters = all_filters(5);
    let work: Vec<(Vec<u32>, DecodeOptions)> = (0..60)
        .map(|i| {
            let beam = DecodeOptions { beam_size: 1 + i as usize % 4, ..DecodeOptions::default() };
            let options = if i % 3 == 0 { beam } else { filters[i as usize % 5].clone() };
            (source(i), DecodeOptions { attention: i % 4 == 0, ..options })
        })
        .collect();
    let alone: Vec<Vec<Hypothesis>> = work.iter().map(|(s, o)| translate_one(&MODEL, s, o)).collect();
    for slots in [2, 7, 32] {
        let together = translate(&MODEL, slots, &work);
        let reversed: Vec<_> = work.iter().rev().cloned().collect();
        let mut backwards = translate(&MODEL, slots, &reversed);
        backwards.reverse();
        for ((alone, together), backwards) in alone.iter().zip(together).zip(backwards) {
            assert_eq!(alone, &together.expect("a translation"));
            assert_eq!(alone, &backwards.expect("a translation"));
        }
    }
}

#[test]
fn a_sample_depends_on_its_number_and_seed_and_not_on_how_many_there_are() {
    let all = translate_one(&MODEL, &source(3), &sampling(24, 7));
    assert_eq!(all.len(), 24);
    for samples in [1, 2, 9] {
        assert_eq!(translate_one(&MODEL, &source(3), &sampling(samples, 7)), all[..samples]);
    }
    let different: std::collections::HashSet<_> = ids(&all).into_iter().collect();
    assert!(different.len() > 12, "{} different samples of 24", different.len());
    assert_ne!(ids(&translate_one(&MODEL, &source(3), &sampling(24, 8))), ids(&all));
    // The sentence's own seed rules; by itself it is what the run's seed and the ids give.
    let options = sampling(24, 7);
    let seed = options.seed_of(&source(3));
    let request = |options: &DecodeOptions, seed| {
        let sentence = SentenceIds { seed, ..SentenceIds::from(source(3)) };
        Request::new(options, sentence, super::tests::limits(40)).expect("a search that can be").options
    };
    assert_eq!(request(&sampling(24, 99), Some(seed)), request(&options, None));
    assert_ne!(request(&options, Some(seed + 1)), request(&options, Some(seed)));
}

#[test]
fn a_samples_log_prob_is_its_score() {
    for options in all_filters(6) {
        let options = DecodeOptions { word_reward: 0.1, ..options };
        let pairs: Vec<(Vec<u32>, Hypothesis)> = (0..12)
            .flat_map(|s| translate_one(&MODEL, &source(s), &options).into_iter().map(move |h| (source(s), h)))
            .collect();
        let targets: Vec<_> = pairs.iter().map(|(source, h)| (source.clone(), h.token_ids.clone())).collect();
        for ((_, h), scores) in pairs.iter().zip(score(&MODEL, &targets)) {
            assert_eq!(h.token_log_probs, scores);
            assert_eq!((h.log_prob, h.search_log_prob), (scores.iter().sum(), h.log_prob));
            assert_eq!((h.length, h.token_ids.last()), (h.token_ids.len(), Some(&EOS)));
            assert_eq!(h.score, h.search_log_prob / h.length_penalty + 0.1 * h.length as f32);
        }
    }
}

#[test]
fn translations_have_their_probabilities() {
    // Five tokens of which padding is one: all translations of up to three tokens are few enough to count.
    let model = Scripted { vocab_size: 5, eos_bonus: 1.0, ..MODEL };
    let options = DecodeOptions { max_length: MaxLength::Absolute(3), ..sampling(64, 0) };
    for s in 0..2 {
        let source = source(s);
        let mut counts: HashMap<Vec<u32>, f64> = HashMap::new();
        let runs = 100;
        let work: Vec<_> = (0..runs).map(|seed| (source.clone(), DecodeOptions { seed, ..options.clone() })).collect();
        for result in translate(&model, 16, &work) {
            for h in result.expect("a translation") {
                *counts.entry(h.token_ids).or_default() += 1.0;
            }
        }
        let total = 64.0 * runs as f64;
        let mut open = vec![(Vec::new(), 1.0)];
        let (mut chi_square, mut cells, mut seen) = (0.0, 0.0, 0.0);
        while let Some((prefix, probability)) = open.pop() {
            let row = log_probs(&model, &source, &prefix);
            let kept: f64 = (0..5).filter(|v| *v != PAD as usize).map(|v| row[v].exp()).sum();
            for token in (0..5).filter(|token| *token != PAD) {
                let at_limit = prefix.len() == 2;
                if at_limit && token != EOS {
                    continue;
                }
                let share = if at_limit { 1.0 } else { row[token as usize].exp() / kept };
                let ids: Vec<u32> = prefix.iter().copied().chain([token]).collect();
                if token != EOS {
                    open.push((ids, probability * share));
                    continue;
                }
                let (count, mean) = (counts.get(&ids).copied().unwrap_or(0.0), total * probability * share);
                seen += count;
                chi_square += (count - mean).powi(2) / mean;
                cells += 1.0;
            }
        }
        // 1 + 3 + 9 translations; 40.5 is exceeded once in 10,000 seeds.
        assert_eq!((seen, cells), (total, 13.0));
        assert!(chi_square < 40.5, "{chi_square}");
    }
}

#[test]
fn temperature_zero_is_greedy_search() {
    for s in 0..20 {
        let options = sampling(1, s);
        let greedy = DecodeOptions { beam_size: 1, stop: Some(Stop::First), ..DecodeOptions::default() };
        let source = source(s as u32);
        let samples = translate_one(&MODEL, &source, &DecodeOptions { temperature: 0.0, ..options });
        assert_eq!(samples, translate_one(&MODEL, &source, &greedy));
    }
}

#[test]
fn the_limit_ends_samples_or_cuts_them() {
    let model = Scripted { eos_bonus: -30.0, ..MODEL };
    let options = DecodeOptions { max_length: MaxLength::Absolute(5), ..sampling(6, 1) };
    let ended = translate_one(&model, &source(3), &options);
    let cut = translate_one(&model, &source(3), &DecodeOptions { cut: true, ..options.clone() });
    assert_eq!((ended.len(), cut.len()), (6, 6));
    for (ended, cut) in ended.iter().zip(&cut) {
        assert!(ended.truncated && ended.length == 5 && ended.token_ids[4] == EOS, "{ended:?}");
        assert!(cut.truncated && cut.length == 5 && !cut.token_ids.contains(&EOS), "{cut:?}");
        assert_eq!(ended.token_ids[..4], cut.token_ids[..4]);
        assert!(cut.log_prob > ended.log_prob + 20.0);
    }
    // What ends by itself is not cut.
    let eager = Scripted { eos_bonus: 6.0, ..MODEL };
    for h in translate_one(&eager, &source(3), &DecodeOptions { cut: true, ..options }) {
        assert!(!h.truncated && h.token_ids.last() == Some(&EOS), "{h:?}");
    }
    // In beam search too: the best prefixes of five tokens.
    let beam = DecodeOptions { cut: true, n_best: 4, max_length: MaxLength::Absolute(5), ..DecodeOptions::default() };
    let cut = translate_one(&model, &source(3), &beam);
    assert!(cut.len() == 4 && cut.iter().all(|h| h.truncated && h.length == 5 && !h.token_ids.contains(&EOS)));
}

#[test]
fn a_poisoned_sample_fails_alone() {
    let model = Scripted { poison: Some(77), eos_bonus: -3.0, ..MODEL };
    let mut work: Vec<(Vec<u32>, DecodeOptions)> = (0..9).map(|i| (source(i), sampling(3, 5))).collect();
    work[4].0[0] = 77;
    for (i, result) in translate(&model, 4, &work).into_iter().enumerate() {
        match result {
            Err(Error::NonFiniteLogits { step: 3, value, .. }) if i == 4 => assert!(value.is_nan()),
            Ok(hypotheses) if i != 4 => assert_eq!(hypotheses, translate_one(&model, &work[i].0, &work[i].1)),
            other => panic!("sentence {i}: {other:?}"),
        }
    }
}
