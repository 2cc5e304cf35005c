//! The peers' searches in f64, prefix by prefix and as each of them goes about it, against the presets of their names.

use super::tests::{EOS, MODEL, PAD, Scripted, log_probs, source, translate_one};
use super::*;
use crate::model::generation::{EarlyStopping, GenerationConfig};

type Scored = (f64, Vec<u32>);

fn preset(preset: Preset) -> DecodeOptions {
    let generation = GenerationConfig {
        beam_size: 1,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::No,
        max_len: 7,
        is_default_length: false,
        min_len: 0,
        renormalize: false,
        repetition_penalty: 1.0,
        no_repeat_ngram: 0,
        forced_bos: None,
        forces_eos: true,
        allows_padding: false,
        suppressed: Vec::new(),
        bad_words: Vec::new(),
        vocab_size: 0,
        unsupported: vec!["nothing of this matters".into()],
    };
    DecodeOptions::preset(preset, &generation).expect("these presets ask nothing of the model")
}

/// The log-probabilities of tokens that may come next, over these alone.
fn allowed(source: &[u32], prefix: &[u32], eos: bool) -> Vec<(u32, f64)> {
    let row =
        log_probs(&MODEL, source, prefix).into_iter().enumerate().map(|(token, log_prob)| (token as u32, log_prob));
    let row: Vec<(u32, f64)> = row.filter(|(token, _)| *token != PAD && (eos || *token != EOS)).collect();
    let mass: f64 = row.iter().map(|(_, log_prob)| log_prob.exp()).sum();
    row.into_iter().map(|(token, log_prob)| (token, log_prob - mass.ln())).collect()
}

/// All continuations of all live prefixes, best first.
fn candidates(source: &[u32], live: &[Scored], eos: bool) -> Vec<Scored> {
    let extended = |(sum, prefix): &Scored| {
        let next = allowed(source, prefix, eos);
        let one = |(token, log_prob)| (sum + log_prob, prefix.iter().copied().chain([token]).collect());
        next.into_iter().map(one).collect::<Vec<Scored>>()
    };
    let mut all: Vec<Scored> = live.iter().flat_map(extended).collect();
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

/// A finished prefix's place in the result: its score, and where it stood.
fn ranked(mut done: Vec<Scored>, count: usize) -> Vec<Scored> {
    done.sort_by(|a, b| b.0.total_cmp(&a.0));
    done.truncate(count);
    done
}

/// As CTranslate2 does it: each finished place of the beam is taken by the next candidate, everything that finishes is kept, and
/// without penalties the best candidate's end ends it all.
fn ctranslate2(source: &[u32], options: &DecodeOptions, max_len: usize) -> Vec<Scored> {
    let (k, alpha) = (options.beam_size, f64::from(options.exponent()));
    let most = (k as f64 * f64::from(options.patience)).round() as usize;
    let (mut live, mut done, mut top_finished) = (vec![(0.0, Vec::new())], Vec::new(), false);
    for step in 0..max_len {
        let found = candidates(source, &live, step >= 1);
        let (first, mut spare) = (found[..k.min(found.len())].to_vec(), found.iter().skip(k).take(k));
        live.clear();
        for (place, (sum, tokens)) in first.into_iter().enumerate() {
            let ended = tokens.last() == Some(&EOS);
            if !ended && step + 1 < max_len {
                live.push((sum, tokens));
                continue;
            }
            top_finished |= place == 0;
            done.push((sum / (tokens.len() as f64).powf(alpha), tokens));
            live.extend(spare.by_ref().find(|(_, tokens)| tokens.last() != Some(&EOS)).cloned());
        }
        let enough = if alpha == 0.0 { top_finished && done.len() >= options.n_best } else { done.len() >= most };
        if enough {
            break;
        }
    }
    ranked(done, options.n_best)
}

/// As Marian does it: as many candidates as there are live beams, of which those that end leave for good. It knows no padding token,
/// and what is forced in front costs nothing.
fn marian(source: &[u32], options: &DecodeOptions, max_len: usize) -> Vec<Scored> {
    let (alpha, penalty) = (f64::from(options.exponent()), -f64::from(options.word_reward));
    let score = |sum: f64, length: usize| (sum - penalty * length as f64) / (length as f64).powf(alpha);
    let forced: Vec<u32> = options.forced_bos.into_iter().collect();
    let first = forced.len() + 1;
    let (mut live, mut done) = (vec![(0.0, forced)], Vec::new());
    for step in first..=max_len {
        let beams = if step == first { options.beam_size } else { live.len() };
        let mut found = candidates(source, &live, true);
        found.truncate(beams);
        let (ended, open): (Vec<Scored>, Vec<Scored>) =
            found.into_iter().partition(|(_, tokens)| step == max_len || tokens.last() == Some(&EOS));
        done.extend(ended.into_iter().map(|(sum, tokens)| (score(sum, step), tokens)));
        live = open;
        if live.is_empty() {
            break;
        }
    }
    ranked(done, options.n_best)
}

fn check(options: &DecodeOptions, peer: fn(&[u32], &DecodeOptions, usize) -> Vec<Scored>) {
    options.validate().expect("the test's options are valid");
    for i in 0..8 {
        let source = source(i);
        let max_len = options.max_length.resolve(source.len(), 40);
        let (found, expected) = (translate_one(&MODEL, &source, options), peer(&source, options, max_len));
        let ids = |found: &[Hypothesis]| found.iter().map(|h| h.token_ids.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&found), expected.iter().map(|e| e.1.clone()).collect::<Vec<_>>(), "{i}: {options:?}");
        for (hypothesis, (score, tokens)) in found.iter().zip(&expected) {
            assert!((f64::from(hypothesis.score) - score).abs() < 1e-4, "{hypothesis:?}: expected {score}");
            assert_eq!(hypothesis.truncated, tokens.last() != Some(&EOS), "{hypothesis:?}");
        }
    }
}

#[test]
fn ctranslate2_is_followed() {
    let base = DecodeOptions { max_length: MaxLength::Absolute(9), ..preset(Preset::CTranslate2) };
    for beam_size in [1, 2, 3, 4] {
        for patience in [0.5, 1.0, 2.0] {
            let n_best = (beam_size as f32 * patience).round().clamp(1.0, beam_size as f32) as usize;
            for alpha in [0.6, 1.0] {
                let length_penalty = LengthPenalty::Power;
                check(
                    &DecodeOptions { beam_size, n_best, patience, length_penalty, alpha, ..base.clone() },
                    ctranslate2,
                );
            }
        }
        for n_best in 1..=beam_size {
            let (stop, length_penalty) = (Some(Stop::Top), LengthPenalty::None);
            check(&DecodeOptions { beam_size, n_best, stop, length_penalty, ..base.clone() }, ctranslate2);
        }
    }
}

#[test]
fn ctranslate2_leaves_early_where_it_does() {
    // Eager to end, so that the best candidate of the first steps does.
    let model = Scripted { eos_bonus: 2.5, ..MODEL };
    let base = DecodeOptions { beam_size: 4, length_penalty: LengthPenalty::None, ..preset(Preset::CTranslate2) };
    let longest = |stop| {
        let options = DecodeOptions { stop: Some(stop), ..base.clone() };
        (0..8).map(|i| translate_one(&model, &source(i), &options)[0].length).collect::<Vec<_>>()
    };
    assert_eq!(longest(Stop::Top), longest(Stop::Exact));
}

#[test]
fn marian_is_followed() {
    for beam_size in [1, 2, 5, 12] {
        for (alpha, word_reward) in [(0.0, 0.0), (1.0, 0.0), (0.6, -0.3), (0.0, 0.5)] {
            for (tokens, forced_bos) in [(6, None), (14, None), (14, Some(3))] {
                let (length_penalty, max_length) = (LengthPenalty::PowerOfAll, MaxLength::Absolute(tokens));
                let base = DecodeOptions { forced_bos, max_length, alpha, ..preset(Preset::Marian) };
                check(&DecodeOptions { beam_size, n_best: beam_size, length_penalty, word_reward, ..base }, marian);
            }
        }
    }
}
