//! Searches with phrases that must be contained, on the scripted model.

use std::sync::Arc;

use super::tests::{self, EOS, Scripted, brute_force, score, search, source, translate_one};
use super::*;
use crate::{Error, Result};

const MODEL: Scripted = Scripted { vocab_size: 24, ..tests::MODEL };

/// The search for a source whose translations contain these phrases.
fn request(source: &[u32], options: &DecodeOptions, phrases: &[&[u32]]) -> Request {
    let constraint = |ids: &&[u32]| Constraint { text: format!("{ids:?}"), ids: ids.to_vec() };
    let constraints = phrases.iter().map(constraint).collect();
    let sentence = SentenceIds { constraints, ..SentenceIds::from(source.to_vec()) };
    Request::new(options, sentence, tests::limits(40)).expect("they fit")
}

fn one(model: &Scripted, request: Request) -> Result<Vec<Hypothesis>> {
    search(model, 1, vec![request]).remove(0)
}

fn contains(hypothesis: &Hypothesis, phrase: &[u32]) -> bool {
    hypothesis.token_ids.windows(phrase.len()).any(|part| part == phrase)
}

fn beam(beam_size: usize) -> DecodeOptions {
    DecodeOptions { beam_size, n_best: beam_size, ..DecodeOptions::default() }
}

/// A source, options and phrases.
type Constrained = (Vec<u32>, DecodeOptions, &'static [&'static [u32]]);

/// Phrases of one to four tokens: alone, sharing tokens, one in another, with a repeat, that do not follow one another.
const PHRASES: [&[&[u32]]; 8] = [
    &[&[7]],
    &[&[9, 5]],
    &[&[5, 5, 6]],
    &[&[4, 6, 4, 8]],
    &[&[5, 6], &[6, 5]],
    &[&[8, 8], &[8]],
    &[&[3], &[11, 12], &[9, 9, 9]],
    &[&[5, 6, 7], &[6, 7, 8], &[20]],
];

#[test]
fn every_hypothesis_contains_every_phrase_and_has_the_score_of_its_ids() {
    for (p, phrases) in PHRASES.iter().enumerate() {
        for (k, stop) in
            [(1, Stop::Heuristic), (2, Stop::First), (3, Stop::Exact), (5, Stop::Heuristic), (8, Stop::First)]
        {
            let options =
                DecodeOptions { stop: Some(stop), coverage_penalty: 0.1 * (p % 3) as f32, min_length: p, ..beam(k) };
            let source = source(p as u32 * 13 + 4);
            let hypotheses = one(&MODEL, request(&source, &options, phrases)).expect("a translation");
            assert!(!hypotheses.is_empty() && hypotheses.len() <= k);
            let pairs: Vec<_> = hypotheses.iter().map(|h| (source.clone(), h.token_ids.clone())).collect();
            for (hypothesis, scores) in hypotheses.iter().zip(score(&MODEL, &pairs)) {
                assert!(phrases.iter().all(|phrase| contains(hypothesis, phrase)), "{phrases:?}: {hypothesis:?}");
                assert!((hypothesis.log_prob - scores.iter().sum::<f32>()).abs() < 1e-4);
                assert_eq!(hypothesis.log_prob, hypothesis.search_log_prob);
                assert!(hypothesis.token_ids.last() == Some(&EOS) && hypothesis.length > p.max(1) - 1);
            }
            assert!(hypotheses.is_sorted_by(|a, b| a.score >= b.score));
        }
    }
}

#[test]
fn constraints_are_the_same_in_any_company_and_change_nothing_for_others() {
    let works: Vec<Constrained> = (0..40)
        .map(|i| {
            let phrases: &'static [&'static [u32]] = if i % 3 == 0 { &[] } else { PHRASES[i as usize % 8] };
            let options = DecodeOptions {
                attention: i % 4 == 0,
                no_repeat_ngram: i as usize % 5 / 4 * 3,
                ..beam(1 + i as usize % 6)
            };
            (source(i), options, phrases)
        })
        .collect();
    let all = || works.iter().map(|(source, options, phrases)| request(source, options, phrases));
    let alone: Vec<_> = all().map(|request| one(&MODEL, request).ok()).collect();
    for slots in [2, 7, 32] {
        let together = search(&MODEL, slots, all().collect());
        let mut backwards = search(&MODEL, slots, all().rev().collect());
        backwards.reverse();
        for ((alone, together), backwards) in alone.iter().zip(together).zip(backwards) {
            assert_eq!((alone, alone), (&together.ok(), &backwards.ok()));
        }
    }
    let plain = |(i, (source, options, _)): (usize, &Constrained)| {
        (i % 3 == 0).then(|| assert_eq!(alone[i], Some(translate_one(&MODEL, source, options))))
    };
    assert_eq!(works.iter().enumerate().filter_map(plain).count(), 14);
}

#[test]
fn a_beam_as_wide_as_the_search_space_finds_the_best_that_contain_them() {
    // Four tokens go on (ids 2 to 5), so that all 64 prefixes of length 3 are kept, each in its bank.
    let model = Scripted { vocab_size: 6, eos_bonus: 0.0, ..MODEL };
    let cases: [&[&[u32]]; 6] =
        [&[&[3]], &[&[3, 3]], &[&[2, 2, 3]], &[&[4], &[5]], &[&[3, 4], &[4, 3]], &[&[5, 2], &[2]]];
    for phrases in cases {
        for length_penalty in [LengthPenalty::None, LengthPenalty::Gnmt] {
            let max_length = MaxLength::Absolute(4);
            let options = DecodeOptions { length_penalty, stop: Some(Stop::Exact), max_length, ..beam(64) };
            for s in 0..6 {
                let source = source(s);
                let has = |ids: &[u32], phrase: &[u32]| ids.windows(phrase.len()).any(|part| part == phrase);
                let mut expected = brute_force(&model, &source, &options, 4);
                expected.retain(|(_, ids)| phrases.iter().all(|phrase| has(ids, phrase)));
                let constraint = |ids: &&[u32]| Constraint { text: String::new(), ids: ids.to_vec() };
                let constraints = phrases.iter().map(constraint).collect();
                let sentence = SentenceIds { constraints, ..SentenceIds::from(source.clone()) };
                // Phrases that share tokens fit where their lengths together would not.
                let request = Request::unchecked(&options, sentence, tests::limits(40));
                let found = one(&model, request).expect("a translation");
                assert!(!found.is_empty(), "{phrases:?}");
                for (found, expected) in found.iter().zip(&expected) {
                    assert_eq!(found.token_ids, expected.1, "{phrases:?} {source:?}");
                    assert!((f64::from(found.score) - expected.0).abs() < 1e-4);
                }
                assert_eq!(found.len(), expected.len().min(64), "{phrases:?} {source:?}");
            }
        }
    }
}

#[test]
fn what_the_best_translation_contains_anyway_leaves_it_the_best() {
    for s in 0..12 {
        let (source, options) = (source(s), DecodeOptions { stop: Some(Stop::Exact), ..beam(24) });
        let plain = translate_one(&MODEL, &source, &options).remove(0);
        let middle = plain.token_ids.len() / 2;
        let phrase = &plain.token_ids[middle.saturating_sub(1)..plain.token_ids.len() - 1];
        if phrase.is_empty() {
            continue;
        }
        let found = one(&MODEL, request(&source, &options, &[phrase])).expect("a translation");
        assert!(found.iter().any(|found| found.token_ids == plain.token_ids), "{phrase:?} of {plain:?}");
    }
}

#[test]
fn a_prefix_that_holds_the_phrases_leaves_the_search_alone() {
    for k in [1, 3, 6] {
        let (source, prefix) = (source(8), vec![7, 8, 9]);
        let with_prefix = |mut request: Request| {
            (request.options.prefix_len, request.options.banned, request.prefix) = (3, 1, prefix.clone());
            request
        };
        let plain = one(&MODEL, with_prefix(request(&source, &beam(k), &[]))).expect("a translation");
        let found = one(&MODEL, with_prefix(request(&source, &beam(k), &[&[8, 9], &[7]]))).expect("a translation");
        assert_eq!(plain, found);
    }
}

#[test]
fn the_limit_leaves_just_the_phrase_or_says_what_is_missing() {
    let options = DecodeOptions { max_length: MaxLength::Absolute(4), min_length: 0, ..beam(3) };
    let found = one(&MODEL, request(&source(2), &options, &[&[9, 9, 5]])).expect("a translation");
    assert_eq!(found[0].token_ids, [9, 9, 5, EOS]);
    let cut = DecodeOptions { cut: true, max_length: MaxLength::Absolute(6), ..beam(3) };
    let found = one(&MODEL, request(&source(2), &cut, &[&[9, 9, 5]])).expect("a translation");
    assert!(found.iter().all(|hypothesis| contains(hypothesis, &[9, 9, 5])));
    // Banned phrases, and an end of sentence that scores 0 at the limit without them.
    for forced_free in [false, true] {
        let bans = Bans::new(MODEL.vocab_size, &[5], None, &[]).expect("they fit");
        let options = DecodeOptions { forced_free, bans: Some(Arc::new(bans)), ..options.clone() };
        let mut request = request(&source(2), &options, &[&[9, 9], &[5]]);
        request.bans.clone_from(&options.bans);
        match one(&MODEL, request) {
            Err(Error::UnmetConstraint { phrases }) => assert_eq!(phrases, ["[5]"]),
            other => panic!("{other:?}"),
        }
    }
}
