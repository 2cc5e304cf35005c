//! The decode loop on a scripted model: its logits are a function of source, position and token, so that every translation can
//! be worked out by hand or by brute force.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::engine::DEFAULT_QUEUE;
use super::*;
use crate::backend::{Dtype, Rows, SessionShape, SpecialIds};
use crate::cpu::Cpu;
use crate::model::Seq2Seq;
use crate::{Error, Result};

pub(super) const EOS: u32 = 0;
pub(super) const PAD: u32 = 1;
const START: u32 = 2;

/// A model whose logits are pseudo-random in (source, position, token read).
#[derive(Clone, Debug)]
pub(super) struct Scripted {
    pub(super) vocab_size: usize,
    /// Added to the end of sentence: how eager it is to end.
    pub(super) eos_bonus: f32,
    /// Sources that start with this id produce NaN at their third position.
    pub(super) poison: Option<u32>,
    /// Where encoders wait for each other.
    pub(super) meeting: Option<&'static Barrier>,
    /// Called before each step with the sources of its rows, and whether it is one of a search.
    pub(super) hook: Option<Hook>,
    /// Counts the sources that have been encoded.
    pub(super) encoded: Option<Arc<AtomicUsize>>,
}

/// See [`Scripted::hook`].
#[derive(Clone)]
pub(super) struct Hook(pub(super) Arc<Called>);

/// Hears of each step.
type Called = dyn Fn(&[u64], bool) + Send + Sync;

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Debug)]
pub(super) struct ScriptedState {
    /// Per slot, a number that stands for the source.
    sources: Vec<u64>,
    logits: Vec<f32>,
    attention: Vec<f32>,
    max_src_len: usize,
}

fn mix(values: &[u64]) -> u64 {
    values.iter().fold(0x9E37_79B9_7F4A_7C15, |h, v| {
        let h = (h ^ v).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (h ^ (h >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB)
    })
}

fn unit(values: &[u64]) -> f32 {
    (mix(values) >> 40) as f32 / (1u64 << 24) as f32
}

impl Scripted {
    /// What stands for a source.
    pub(super) fn number(source: &[u32]) -> u64 {
        // The first id stays readable: `poison` looks at it.
        let rest = source.iter().fold(7u64, |h, id| mix(&[h, u64::from(*id)]));
        (rest << 8) | u64::from(source[0])
    }

    fn row(&self, source: u64, position: u32, token: u32) -> Vec<f32> {
        let logit = |v: usize| {
            let noise = 4.0 * unit(&[source, u64::from(position), u64::from(token), v as u64]);
            if v == EOS as usize { noise + self.eos_bonus } else { noise }
        };
        let mut row: Vec<f32> = (0..self.vocab_size).map(logit).collect();
        if self.poison == Some(source as u32 & 0xFF) && position == 2 {
            row[self.vocab_size / 2] = f32::NAN;
        }
        row
    }

    fn attention(source: u64, position: u32, i: usize) -> f32 {
        0.4 * unit(&[source, u64::from(position), i as u64, 99])
    }
}

impl Seq2Seq<Cpu> for Scripted {
    type State = ScriptedState;

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }
    fn ids(&self) -> SpecialIds {
        SpecialIds { eos_id: EOS, pad_id: PAD, decoder_start_id: START }
    }
    fn max_len(&self) -> usize {
        40
    }
    fn open(&self, _: &Cpu, shape: SessionShape) -> Result<ScriptedState> {
        Ok(ScriptedState {
            sources: vec![0; shape.slots],
            logits: vec![f32::NAN; shape.rows * self.vocab_size],
            attention: vec![f32::NAN; shape.rows * shape.max_src_len],
            max_src_len: shape.max_src_len,
        })
    }
    fn encode(&self, _: &Cpu, state: &mut ScriptedState, sources: &[(u32, &[u32])]) -> Result<()> {
        for (slot, source) in sources {
            state.sources[*slot as usize] = Self::number(source);
        }
        if let Some(encoded) = &self.encoded {
            encoded.fetch_add(sources.len(), Ordering::Relaxed);
        }
        if let Some(meeting) = self.meeting {
            meeting.wait();
        }
        Ok(())
    }
    fn step(&self, _: &Cpu, state: &mut ScriptedState, rows: &Rows<Cpu>, _: &Vec<u32>, _: &Vec<u32>) -> Result<()> {
        if let Some(Hook(hook)) = &self.hook {
            let sources: Vec<u64> = rows.live().iter().map(|row| state.sources[row.slot as usize]).collect();
            hook(&sources, rows.one_per_beam);
        }
        for (r, row) in rows.live().iter().enumerate() {
            let source = state.sources[row.slot as usize];
            let logits = self.row(source, row.position, row.token);
            state.logits[r * self.vocab_size..][..self.vocab_size].copy_from_slice(&logits);
            for i in 0..state.max_src_len {
                state.attention[r * state.max_src_len + i] = Self::attention(source, row.position, i);
            }
        }
        Ok(())
    }
    fn logits<'a>(&self, state: &'a ScriptedState) -> &'a Vec<f32> {
        &state.logits
    }
    fn attention<'a>(&self, state: &'a ScriptedState) -> &'a Vec<f32> {
        &state.attention
    }
}

pub(super) const MODEL: Scripted =
    Scripted { vocab_size: 9, eos_bonus: 0.7, poison: None, meeting: None, hook: None, encoded: None };

pub(super) fn source(i: u32) -> Vec<u32> {
    (0..1 + i % 5).map(|j| 3 + (i * 7 + j * 3) % 200).chain([EOS]).collect()
}

/// What requests have to know of a scripted model with this position table.
pub(super) fn limits(table: usize) -> Limits {
    Limits { table, amateur: 1 }
}

/// Translates through an engine of `slots` slots and up to three workers; options per source.
pub(super) fn translate(
    model: &Scripted,
    slots: usize,
    work: &[(Vec<u32>, DecodeOptions)],
) -> Vec<Result<Vec<Hypothesis>>> {
    let request = |(source, options): &(Vec<u32>, DecodeOptions)| {
        options.validate().expect("the test's options are valid");
        Request::new(options, source.clone().into(), limits(model.max_len())).expect("a search that can be")
    };
    search(model, slots, work.iter().map(request).collect())
}

/// As [`translate`], for requests.
pub(super) fn search(model: &Scripted, slots: usize, requests: Vec<Request>) -> Vec<Result<Vec<Hypothesis>>> {
    let workers = (0..slots.min(3)).map(|i| Cpu::new(1 + i % 2, Dtype::F32).expect("threads start")).collect();
    let engine = Engine::start(workers, vec![model.clone()], 256, slots, DEFAULT_QUEUE).expect("threads start");
    let ask = |request| engine.ask(Search(request), Terms::new()).expect("the ids fit");
    let asked: Vec<_> = requests.into_iter().map(ask).collect();
    asked.into_iter().map(Handle::wait).collect()
}

/// An engine of one worker with these slots.
pub(super) fn start(model: &Scripted, slots: usize) -> Engine {
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    Engine::start(vec![cpu], vec![model.clone()], 256, slots, DEFAULT_QUEUE).expect("a thread starts")
}

pub(super) fn translate_one(model: &Scripted, source: &[u32], options: &DecodeOptions) -> Vec<Hypothesis> {
    let mut results = translate(model, 1, &[(source.to_vec(), options.clone())]);
    results.pop().expect("one result").expect("a translation")
}

/// log-probabilities after a prefix, padding included, in f64.
pub(super) fn log_probs(model: &Scripted, source: &[u32], prefix: &[u32]) -> Vec<f64> {
    let token = prefix.last().copied().unwrap_or(START);
    let row = model.row(Scripted::number(source), prefix.len() as u32, token);
    let sum: f64 = row.iter().map(|z| f64::from(*z).exp()).sum();
    row.iter().map(|z| f64::from(*z) - sum.ln()).collect()
}

/// A finished hypothesis of the searches below: score, tokens.
pub(super) type Scored = (f64, Vec<u32>);

fn penalty(options: &DecodeOptions, len: usize) -> f64 {
    match options.length_penalty {
        LengthPenalty::None => 1.0,
        LengthPenalty::Gnmt => ((5.0 + len as f64) / 6.0).powf(f64::from(options.alpha)),
        LengthPenalty::Power | LengthPenalty::PowerOfAll => (len as f64).powf(f64::from(options.alpha)),
    }
}

fn final_score(source: &[u32], tokens: &[u32], sum: f64, options: &DecodeOptions) -> f64 {
    let coverage = |i: usize| -> f64 {
        let attention = |t| f64::from(Scripted::attention(Scripted::number(source), t, i));
        (0..tokens.len() as u32).map(attention).sum()
    };
    let logs: f64 = (0..source.len() - 1).map(|i| coverage(i).clamp(1e-6, 1.0).ln()).sum();
    sum / penalty(options, tokens.len()) + f64::from(options.coverage_penalty) * logs
}

/// Every sequence that ends within `max_len` tokens, best first.
pub(super) fn brute_force(model: &Scripted, source: &[u32], options: &DecodeOptions, max_len: usize) -> Vec<Scored> {
    let mut all = Vec::new();
    let mut open = vec![(0.0, Vec::new())];
    for len in 1..=max_len {
        let mut longer = Vec::new();
        for (sum, prefix) in &open {
            for (token, log_prob) in log_probs(model, source, prefix).into_iter().enumerate() {
                let extended: Vec<u32> = prefix.iter().copied().chain([token as u32]).collect();
                let sum = sum + log_prob;
                match token as u32 {
                    EOS => all.push((final_score(source, &extended, sum, options), extended)),
                    PAD => {}
                    _ if len < max_len => longer.push((sum, extended)),
                    _ => {}
                }
            }
        }
        open = longer;
    }
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    all
}

/// Beam search over prefixes in f64, as plainly as it can be said; `stop` None never stops before `max_len`.
fn plain_beam_search(model: &Scripted, source: &[u32], options: &DecodeOptions, stop: Option<Stop>) -> Vec<Scored> {
    let k = options.beam_size;
    let max_len = options.max_length.resolve(source.len(), model.max_len());
    let mut live = vec![(0.0, Vec::new())];
    let mut done: Vec<Scored> = Vec::new();
    for len in 1..=max_len {
        let mut candidates: Vec<(f64, Vec<u32>)> = Vec::new();
        for (sum, prefix) in &live {
            for (token, log_prob) in log_probs(model, source, prefix).into_iter().enumerate() {
                let token = token as u32;
                let early = token == EOS && len < options.min_length;
                if token != PAD && !early && (token == EOS || len < max_len) {
                    candidates.push((sum + log_prob, prefix.iter().copied().chain([token]).collect()));
                }
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(2 * k);
        live.clear();
        for (rank, (sum, tokens)) in candidates.into_iter().enumerate() {
            if tokens.last() != Some(&EOS) {
                live.push((sum, tokens));
            } else if rank < k {
                done.push((final_score(source, &tokens, sum, options), tokens));
            }
        }
        live.truncate(k);
        done.sort_by(|a, b| b.0.total_cmp(&a.0));
        done.truncate(k);
        let bound = match stop {
            Some(Stop::First) => f64::NEG_INFINITY,
            Some(Stop::Heuristic) => live.first().map_or(0.0, |l| l.0 / penalty(options, len)),
            Some(Stop::Exact) => live.first().map_or(0.0, |l| l.0 / penalty(options, max_len)),
            Some(Stop::Top) => panic!("has rules of its own"),
            None => f64::INFINITY,
        };
        if live.is_empty() || (done.len() == k && done[k - 1].0 >= bound) {
            break;
        }
    }
    done
}

fn assert_same(actual: &[Hypothesis], expected: &[Scored], context: &str) {
    let ids = |h: &Hypothesis| h.token_ids.clone();
    assert_eq!(
        actual.iter().map(ids).collect::<Vec<_>>(),
        expected.iter().map(|e| e.1.clone()).collect::<Vec<_>>(),
        "{context}"
    );
    for (a, e) in actual.iter().zip(expected) {
        assert!((f64::from(a.score) - e.0).abs() < 1e-4, "{context}: score {} against {}", a.score, e.0);
    }
}

fn all_options() -> Vec<DecodeOptions> {
    let mut all = Vec::new();
    for (length_penalty, alpha) in [(LengthPenalty::None, 0.0), (LengthPenalty::Gnmt, 0.7), (LengthPenalty::Power, 1.0)]
    {
        for stop in [Stop::First, Stop::Heuristic, Stop::Exact] {
            for (beam_size, coverage_penalty, min_length) in [(1, 0.0, 0), (2, 0.3, 4), (5, 0.0, 3), (4, 0.2, 0)] {
                all.push(DecodeOptions {
                    beam_size,
                    n_best: beam_size,
                    length_penalty,
                    coverage_penalty,
                    alpha,
                    stop: Some(stop),
                    min_length,
                    max_length: MaxLength::Relative { factor: 1.0, offset: 8 },
                    ..DecodeOptions::default()
                });
            }
        }
    }
    all
}

#[test]
fn search_equals_a_plain_beam_search() {
    for (i, options) in all_options().iter().enumerate() {
        for s in 0..6 {
            let source = source(s * 11 + i as u32);
            let expected = plain_beam_search(&MODEL, &source, options, options.stop);
            assert_same(&translate_one(&MODEL, &source, options), &expected, &format!("{source:?} {options:?}"));
        }
    }
}

#[test]
fn exact_equals_never_stopping_before_max_length() {
    for options in all_options().iter().filter(|o| o.stop == Some(Stop::Exact)) {
        for s in 0..10 {
            let source = source(s);
            let expected = plain_beam_search(&MODEL, &source, options, None);
            assert_same(&translate_one(&MODEL, &source, options), &expected, &format!("{source:?} {options:?}"));
        }
    }
}

#[test]
fn a_beam_as_wide_as_the_search_space_equals_brute_force() {
    // Four tokens go on (ids 2 to 5), so 4^2 = 16 prefixes of length 2 are all kept, and every end is among the first 16 ranks.
    let model = Scripted { vocab_size: 6, eos_bonus: 0.0, ..MODEL };
    for length_penalty in [LengthPenalty::None, LengthPenalty::Gnmt] {
        for coverage_penalty in [0.0, 0.5] {
            let options = DecodeOptions {
                beam_size: 64,
                n_best: 10,
                length_penalty,
                coverage_penalty,
                stop: Some(Stop::Exact),
                max_length: MaxLength::Absolute(3),
                ..DecodeOptions::default()
            };
            for s in 0..10 {
                let source = source(s);
                let expected = brute_force(&model, &source, &options, 3);
                assert_same(&translate_one(&model, &source, &options), &expected[..10], "brute force");
            }
        }
    }
}

#[test]
fn beam_one_equals_greedy() {
    for stop in [Stop::First, Stop::Heuristic] {
        let options = DecodeOptions { beam_size: 1, stop: Some(stop), ..DecodeOptions::default() };
        for s in 0..30 {
            let source = source(s);
            let mut greedy: Vec<u32> = Vec::new();
            let max_len = options.max_length.resolve(source.len(), MODEL.max_len());
            while greedy.last() != Some(&EOS) {
                let mut row = log_probs(&MODEL, &source, &greedy);
                row[PAD as usize] = f64::NEG_INFINITY;
                let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a vocabulary");
                greedy.push(if greedy.len() + 1 == max_len { EOS } else { best as u32 });
            }
            assert_eq!(translate_one(&MODEL, &source, &options)[0].token_ids, greedy);
        }
    }
}

#[test]
fn a_sentence_is_the_same_in_any_company() {
    // Options, lengths and beam sizes differ from slot to slot; attention makes some sessions reopen.
    let options = all_options();
    let work: Vec<(Vec<u32>, DecodeOptions)> = (0..60u32)
        .map(|i| {
            let options = options[i as usize * 5 % options.len()].clone();
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
fn scores_can_be_derived_again() {
    for options in all_options() {
        for s in 0..5 {
            let source = source(s);
            let options = DecodeOptions { word_reward: 0.1, attention: true, ..options.clone() };
            for h in translate_one(&MODEL, &source, &options) {
                assert_eq!(h.log_prob, h.token_log_probs.iter().sum::<f32>());
                assert_eq!(h.log_prob, h.search_log_prob);
                assert_eq!(h.length, h.token_ids.len());
                let again = h.search_log_prob / h.length_penalty + 0.1 * h.length as f32 + h.coverage_penalty;
                assert_eq!(h.score, again);
                let attention = h.attention.expect("asked for");
                let number = Scripted::number(&source);
                for (t, row) in attention.iter().enumerate() {
                    let expected: Vec<f32> =
                        (0..source.len()).map(|i| Scripted::attention(number, t as u32, i)).collect();
                    assert_eq!(row, &expected);
                }
            }
        }
    }
}

#[test]
fn the_limit_truncates_and_says_so() {
    let model = Scripted { eos_bonus: -30.0, ..MODEL };
    let options = DecodeOptions { n_best: 4, max_length: MaxLength::Absolute(5), ..DecodeOptions::default() };
    let hypotheses = translate_one(&model, &source(3), &options);
    assert_eq!(hypotheses.len(), 4);
    for h in &hypotheses {
        assert!(h.truncated && h.length == 5 && h.token_ids.ends_with(&[EOS]), "{h:?}");
        // Its own log-probability, however small.
        assert!(h.token_log_probs[4] < -25.0 && h.score < -10.0, "{h:?}");
    }
    let free = DecodeOptions { forced_free: true, ..options };
    for h in translate_one(&model, &source(3), &free) {
        assert!(h.search_log_prob > h.log_prob + 25.0, "{h:?}");
    }
    let natural = translate_one(&Scripted { eos_bonus: 9.0, ..MODEL }, &source(3), &DecodeOptions::default());
    assert!(!natural[0].truncated);
}

#[test]
fn a_poisoned_sentence_fails_alone() {
    let model = Scripted { poison: Some(77), eos_bonus: -3.0, ..MODEL };
    let mut work: Vec<(Vec<u32>, DecodeOptions)> = (0..9).map(|i| (source(i), DecodeOptions::default())).collect();
    work[4].0[0] = 77;
    for (i, result) in translate(&model, 4, &work).into_iter().enumerate() {
        match result {
            Err(Error::NonFiniteLogits { step: 3, value, .. }) if i == 4 => assert!(value.is_nan()),
            Ok(hypotheses) if i != 4 => assert_eq!(hypotheses, translate_one(&model, &work[i].0, &work[i].1)),
            other => panic!("sentence {i}: {other:?}"),
        }
    }
}

/// The log-probabilities of targets under their sources.
pub(super) fn score(model: &Scripted, pairs: &[(Vec<u32>, Vec<u32>)]) -> Vec<Vec<f32>> {
    let engine = start(model, 4);
    let ask = |(source, target)| engine.ask(Scoring { source, target, inputs: None }, Terms::new()).expect("they fit");
    let asked: Vec<_> = pairs.iter().cloned().map(ask).collect();
    let log_probs = |handle: Handle<Vec<crate::backend::TokenStats>>| {
        handle.wait().expect("finite").iter().map(|s| s.log_prob).collect()
    };
    asked.into_iter().map(log_probs).collect()
}

#[test]
fn scoring_equals_the_search() {
    let found = |s| translate_one(&MODEL, &source(s), &DecodeOptions::default()).swap_remove(0);
    let found: Vec<Hypothesis> = (0..40).map(found).collect();
    let pairs: Vec<_> = found.iter().zip(0..).map(|(h, s)| (source(s), h.token_ids.clone())).collect();
    for (h, scores) in found.iter().zip(score(&MODEL, &pairs)) {
        assert_eq!(h.token_log_probs, scores);
    }
}

#[test]
fn ids_outside_the_model_are_refused() {
    let cpu = Cpu::new(1, Dtype::F32).expect("a thread starts");
    let engine = Engine::start(vec![cpu], vec![MODEL], 100, 2, DEFAULT_QUEUE).expect("a thread starts");
    let submit = |source, target| engine.ask(Scoring { source, target, inputs: None }, Terms::new());
    assert!(matches!(submit(vec![100, 0], vec![0]), Err(Error::Input { .. })));
    assert!(matches!(submit(vec![3, 0], vec![9]), Err(Error::Input { .. })));
    assert!(matches!(submit(vec![], vec![0]), Err(Error::Input { .. })));
    assert!(matches!(submit(vec![3; 41], vec![0]), Err(Error::InputTooLong { side: "source", length: 41, limit: 40 })));
    assert!(matches!(submit(vec![3, 0], vec![3; 41]), Err(Error::InputTooLong { side: "target", .. })));
    assert!(submit(vec![3, 0], vec![3, 0]).is_ok());
}

#[test]
fn a_worker_leaves_the_others_their_share() {
    static MEETING: Barrier = Barrier::new(2);
    let workers = (0..2).map(|_| Cpu::new(1, Dtype::F32).expect("a thread starts")).collect();
    let model = Scripted { meeting: Some(&MEETING), ..MODEL };
    // Never dropped: it would wait for workers that wait for each other.
    let engine = Engine::start(workers, vec![model], 256, 2, DEFAULT_QUEUE).expect("threads start");
    let engine = Box::leak(Box::new(engine));
    let ask = |i| engine.ask(Search(request(source(i))), Terms::new()).expect("the ids fit");
    let asked: Vec<_> = (0..6).map(ask).collect();
    for mut handle in asked {
        let result = handle.wait_for(Duration::from_secs(20)).expect("each worker begins a sentence at a time");
        assert!(result.is_ok());
    }
}

/// A search with default options.
pub(super) fn request(source: Vec<u32>) -> Request {
    asked(&DecodeOptions::default(), source)
}

/// The search that these options ask for.
pub(super) fn asked(options: &DecodeOptions, source: Vec<u32>) -> Request {
    Request::new(options, source.into(), limits(MODEL.max_len())).expect("a search that can be")
}
