//! Stem `beam_step`: one step of beam search in every live slot; its contract is [`crate::backend::Backend::beam_step`].
//!
//! The fast path reads each row of logits twice while it is in cache: once for its log-sum-exp, once for the candidates that
//! can still enter the best 2K. Ranking runs in parallel over slots; applying it is a few words per slot and runs serially.

mod reference;
#[cfg(test)]
pub(crate) mod tests;

use rayon::prelude::*;

use crate::backend::{Failure, Finished, Row, Search, SessionShape, SlotOptions, StopKind};
use crate::cpu::stats::log_sum_exp;
use crate::cpu::{Cpu, simd};

pub use reference::reference;

/// A (live beam, token) pair of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Candidate {
    /// Search score after taking the token.
    pub cum_log_prob: f32,
    /// The model's own log-probability of the token.
    pub log_prob: f32,
    /// Live beam it extends.
    pub beam: u32,
    /// The token.
    pub token: u32,
}

/// What ranking leaves for applying, per slot.
#[derive(Clone, Debug, Default)]
struct Ranking {
    /// Sorted, best first; room for 2K.
    candidates: Vec<Candidate>,
    failure: Failure,
}

/// Working memory of a step, allocated once.
#[derive(Debug)]
pub struct Scratch {
    rankings: Vec<Ranking>,
    /// First row of each slot in the row list.
    first_row: Vec<usize>,
    /// One slot's ancestry `[K, T]` and coverage `[K, N]` before the step.
    ancestry: Vec<u32>,
    coverage: Vec<f32>,
}

impl Scratch {
    /// Room for every slot of `shape`.
    pub fn new(shape: SessionShape) -> Self {
        // One more than 2K: a candidate is inserted before the worst is dropped.
        let ranking = Ranking { candidates: Vec::with_capacity(2 * shape.beam_size + 1), failure: Failure::default() };
        Scratch {
            rankings: (0..shape.slots)
                .map(|_| Ranking { candidates: Vec::with_capacity(ranking.candidates.capacity()), ..ranking })
                .collect(),
            first_row: vec![0; shape.slots],
            ancestry: vec![0; shape.beam_size * shape.max_len],
            coverage: vec![0.0; shape.beam_size * shape.max_src_len],
        }
    }
}

/// Takes slots into the search; see [`crate::backend::Backend::start_slots`].
pub fn start_slots(slots: &[(u32, SlotOptions)], search: &mut Search<Cpu>) {
    let SessionShape { beam_size, max_len, max_src_len, .. } = search.shape;
    for &(slot, options) in slots {
        let slot = slot as usize;
        bytemuck::cast_slice_mut::<_, SlotOptions>(&mut search.options)[slot] = options;
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = Failure::default();
        search.step[slot] = 0;
        search.live[slot] = 1;
        search.finished_count[slot] = 0;
        search.cum_log_probs[slot * beam_size] = 0.0;
        search.coverage[slot * beam_size * max_src_len..][..beam_size * max_src_len].fill(0.0);
        debug_assert!(options.max_len as usize <= max_len && options.src_len as usize <= max_src_len);
    }
    rebuild_rows(search);
}

/// Lists the live beams of all slots, by slot, then beam, each with its latest token.
fn rebuild_rows(search: &mut Search<Cpu>) {
    let SessionShape { slots, beam_size, max_len, .. } = search.shape;
    let rows: &mut [Row] = bytemuck::cast_slice_mut(&mut search.rows.entries);
    let mut count = 0;
    for slot in 0..slots {
        search.scratch.first_row[slot] = count;
        let step = search.step[slot] as usize;
        for beam in 0..search.live[slot] as usize {
            let token = match step {
                0 => search.ids.decoder_start_id,
                _ => search.tokens[(slot * max_len + step - 1) * beam_size + beam],
            };
            rows[count] = Row { slot: slot as u32, beam: beam as u32, position: step as u32, token };
            count += 1;
        }
    }
    search.rows.count[0] = count as u32;
}

/// One step of beam search in every live slot; see [`crate::backend::Backend::beam_step`].
pub fn beam_step(logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    rank_all(logits, search);
    for slot in 0..search.shape.slots {
        if search.live[slot] > 0 {
            apply(slot, attention, search);
        }
    }
    rebuild_rows(search);
}

fn rank_all(logits: &[f32], search: &mut Search<Cpu>) {
    let Scratch { rankings, first_row, .. } = &mut search.scratch;
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let (vocab_size, beam_size) = (search.vocab_size, search.shape.beam_size);
    rankings.par_iter_mut().enumerate().for_each(|(slot, ranking)| {
        ranking.candidates.clear();
        ranking.failure = Failure::default();
        let live = search.live[slot] as usize;
        if live == 0 {
            return;
        }
        let rules = Rules::new(&options[slot], search.step[slot] + 1, search.ids.eos_id, search.ids.pad_id);
        let cum = &search.cum_log_probs[slot * beam_size..][..live];
        let logits = &logits[first_row[slot] * vocab_size..][..live * vocab_size];
        rank(&rules, cum, logits, ranking);
    });
}

/// Which tokens one slot may take at one step.
#[derive(Clone, Copy, Debug)]
struct Rules {
    keep: usize,
    step: u32,
    eos: usize,
    pad: usize,
    eos_allowed: bool,
    only_eos: bool,
    /// End of sentence is a candidate whatever its logit.
    forced_eos: bool,
    /// End of sentence ranks with log-probability 0.
    free_eos: bool,
    renormalize: bool,
}

impl Rules {
    fn new(options: &SlotOptions, step: u32, eos_id: u32, pad_id: u32) -> Self {
        let only_eos = step >= options.max_len;
        Rules {
            keep: 2 * options.beam_size as usize,
            step,
            eos: eos_id as usize,
            pad: pad_id as usize,
            eos_allowed: step >= options.min_len || only_eos,
            only_eos,
            forced_eos: only_eos && options.forced_eos != 0,
            // With nothing else left, renormalising comes to the same.
            free_eos: only_eos && (options.forced_eos != 0 || options.renormalize != 0),
            renormalize: options.renormalize != 0,
        }
    }

    /// What ranked log-probabilities are normalised by: the whole row, or, renormalising, the tokens that masks leave.
    fn ranked_normalizer(&self, row: &[f32], normalizer: f32) -> f32 {
        if !self.renormalize || self.only_eos {
            return normalizer;
        }
        let masked = [self.pad, if self.eos_allowed { self.pad } else { self.eos }];
        let (first, second) = (masked[0].min(masked[1]), masked[0].max(masked[1]));
        let parts = [&row[..first], &row[(first + 1).min(second)..second], &row[second + 1..]];
        let parts = parts.map(log_sum_exp);
        let max = parts.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY { max } else { max + parts.map(|part| (part - max).exp()).iter().sum::<f32>().ln() }
    }

    fn allows(&self, token: usize) -> bool {
        token != self.pad && (if token == self.eos { self.eos_allowed } else { !self.only_eos })
    }
}

/// Ranks one slot's candidates: `cum` `[live]`, `logits` `[live, vocab_size]`.
fn rank(rules: &Rules, cum: &[f32], logits: &[f32], ranking: &mut Ranking) {
    let vocab_size = logits.len() / cum.len();
    for (beam, (&cum, row)) in cum.iter().zip(logits.chunks_exact(vocab_size)).enumerate() {
        let normalizer = log_sum_exp(row);
        if normalizer.is_nan() || normalizer == f32::INFINITY {
            ranking.failure = Failure { failed: 1, step: rules.step, beam: beam as u32, value: normalizer };
            return;
        }
        if normalizer == f32::NEG_INFINITY {
            continue;
        }
        let ranked_normalizer = rules.ranked_normalizer(row, normalizer);
        let candidate = |token: usize, logit: f32| {
            let log_prob = logit - normalizer;
            let ranked = if rules.free_eos { 0.0 } else { logit - ranked_normalizer };
            Candidate { cum_log_prob: cum + ranked, log_prob, beam: beam as u32, token: token as u32 }
        };
        let candidates = &mut ranking.candidates;
        if rules.only_eos {
            if rules.forced_eos || row[rules.eos] > f32::NEG_INFINITY {
                insert(candidates, rules.keep, candidate(rules.eos, row[rules.eos]));
            }
            continue;
        }
        let bar = |candidates: &[Candidate]| logit_bar(candidates, rules.keep, cum, ranked_normalizer);
        simd::scan_above(row, bar(candidates), |token, logit| {
            if rules.allows(token) {
                insert(candidates, rules.keep, candidate(token, logit));
            }
            bar(candidates)
        });
    }
}

/// A logit at or below which no token of this row can enter the list.
///
/// It errs on the low side by more than the rounding of the score: [`insert`] decides.
fn logit_bar(candidates: &[Candidate], keep: usize, cum: f32, ranked_normalizer: f32) -> f32 {
    match candidates.last() {
        Some(worst) if candidates.len() == keep => {
            let slack = 1e-6 * (worst.cum_log_prob.abs() + cum.abs() + ranked_normalizer.abs()) + f32::MIN_POSITIVE;
            worst.cum_log_prob - cum + ranked_normalizer - slack
        }
        _ => f32::NEG_INFINITY,
    }
}

/// Inserts a candidate behind all that are as good: they came first, so their flat index is lower.
fn insert(candidates: &mut Vec<Candidate>, keep: usize, candidate: Candidate) {
    if candidate.cum_log_prob == f32::NEG_INFINITY {
        return;
    }
    let at = candidates.partition_point(|c| c.cum_log_prob >= candidate.cum_log_prob);
    if at < keep {
        candidates.truncate(keep - 1);
        candidates.insert(at, candidate);
    }
}

/// Carries out one slot's ranking.
fn apply(slot: usize, attention: &[f32], search: &mut Search<Cpu>) {
    let failure = search.scratch.rankings[slot].failure;
    if failure.failed != 0 {
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = failure;
        search.live[slot] = 0;
        return;
    }
    let options: SlotOptions = bytemuck::cast_slice(&search.options)[slot];
    remember(slot, attention, search);
    let candidates = std::mem::take(&mut search.scratch.rankings[slot].candidates);
    let mut live = 0;
    for (rank, candidate) in candidates.iter().enumerate() {
        if candidate.token == search.ids.eos_id {
            if rank < options.beam_size as usize {
                finish(slot, &options, candidate, attention, search);
            }
        } else if live < options.beam_size as usize {
            extend(slot, live, candidate, attention, search);
            live += 1;
        }
    }
    search.scratch.rankings[slot].candidates = candidates;
    if live == 0 && search.finished_count[slot] == 0 {
        give_up(slot, &options, search);
    }
    search.step[slot] += 1;
    search.live[slot] = if has_ended(slot, &options, live, search) { 0 } else { live as u32 };
}

/// Copies what `extend` reads of the slot before it is overwritten; keeps the step's attention where asked for.
fn remember(slot: usize, attention: &[f32], search: &mut Search<Cpu>) {
    let SessionShape { beam_size, max_len, max_src_len, keep_attention, .. } = search.shape;
    let scratch = &mut search.scratch;
    scratch.ancestry.copy_from_slice(&search.ancestry[slot * beam_size * max_len..][..beam_size * max_len]);
    scratch.coverage.copy_from_slice(&search.coverage[slot * beam_size * max_src_len..][..beam_size * max_src_len]);
    if keep_attention {
        let live = search.live[slot] as usize;
        let from = &attention[scratch.first_row[slot] * max_src_len..][..live * max_src_len];
        let at = (slot * max_len + search.step[slot] as usize) * beam_size * max_src_len;
        search.attention[at..at + from.len()].copy_from_slice(from);
    }
}

/// The coverage of a beam after this step, at source position `i`.
fn covered(slot: usize, beam: usize, i: usize, attention: &[f32], search: &Search<Cpu>) -> f32 {
    let max_src_len = search.shape.max_src_len;
    let row = search.scratch.first_row[slot] + beam;
    search.scratch.coverage[beam * max_src_len + i] + attention[row * max_src_len + i]
}

/// Makes `candidate` the slot's live beam number `beam`.
fn extend(slot: usize, beam: usize, candidate: &Candidate, attention: &[f32], search: &mut Search<Cpu>) {
    let SessionShape { beam_size, max_len, max_src_len, .. } = search.shape;
    let (step, parent) = (search.step[slot] as usize, candidate.beam as usize);
    let at = (slot * max_len + step) * beam_size + beam;
    search.tokens[at] = candidate.token;
    search.parents[at] = candidate.beam;
    search.log_probs[at] = candidate.log_prob;
    search.cum_log_probs[slot * beam_size + beam] = candidate.cum_log_prob;
    let ancestry = &mut search.ancestry[(slot * beam_size + beam) * max_len..][..max_len];
    ancestry[..step].copy_from_slice(&search.scratch.ancestry[parent * max_len..][..step]);
    ancestry[step] = candidate.beam;
    for i in 0..max_src_len {
        let sum = covered(slot, parent, i, attention, search);
        search.coverage[(slot * beam_size + beam) * max_src_len + i] = sum;
    }
}

/// Adds the hypothesis that `candidate`, an end of sentence, closes.
fn finish(slot: usize, options: &SlotOptions, candidate: &Candidate, attention: &[f32], search: &mut Search<Cpu>) {
    let length = search.step[slot] + 1;
    let mut coverage_penalty = 0.0;
    if options.coverage_penalty != 0.0 {
        // The source's own end of sentence asks for no attention.
        for i in 0..options.src_len as usize - 1 {
            let sum = covered(slot, candidate.beam as usize, i, attention, search);
            coverage_penalty += sum.clamp(1e-6, 1.0).ln();
        }
        coverage_penalty *= options.coverage_penalty;
    }
    let finished = Finished {
        score: options.normalized(candidate.cum_log_prob, length) + coverage_penalty,
        search_log_prob: candidate.cum_log_prob,
        coverage_penalty,
        eos_log_prob: candidate.log_prob,
        length,
        beam: candidate.beam,
        has_eos: 1,
        truncated: u32::from(length >= options.max_len),
    };
    insert_finished(slot, options, finished, search);
}

/// Masks have left no candidate at all: the best beam of the step before is what there is.
fn give_up(slot: usize, options: &SlotOptions, search: &mut Search<Cpu>) {
    let length = search.step[slot];
    let search_log_prob = search.cum_log_probs[slot * search.shape.beam_size];
    let finished = Finished {
        score: options.normalized(search_log_prob, length.max(1)),
        search_log_prob,
        length,
        truncated: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    insert_finished(slot, options, finished, search);
}

fn insert_finished(slot: usize, options: &SlotOptions, finished: Finished, search: &mut Search<Cpu>) {
    let k = options.beam_size as usize;
    let all: &mut [Finished] = bytemuck::cast_slice_mut(&mut search.finished);
    let entries = &mut all[slot * search.shape.beam_size..][..k];
    let count = search.finished_count[slot] as usize;
    let at = entries[..count].partition_point(|f| f.score >= finished.score);
    if at < k {
        let count = (count + 1).min(k);
        entries[at..count].rotate_right(1);
        entries[at] = finished;
        search.finished_count[slot] = count as u32;
    }
}

/// Whether the slot's search is over, `step` counting the step just taken.
fn has_ended(slot: usize, options: &SlotOptions, live: usize, search: &Search<Cpu>) -> bool {
    let k = options.beam_size as usize;
    if live == 0 {
        return true;
    }
    if (search.finished_count[slot] as usize) < k {
        return false;
    }
    let beam_size = search.shape.beam_size;
    let best_live = search.cum_log_probs[slot * beam_size];
    let worst = bytemuck::cast_slice::<_, Finished>(&search.finished)[slot * beam_size + k - 1].score;
    worst >= stop_bound(options, best_live, search.step[slot])
}

/// What no live hypothesis is taken to exceed; -infinity stops at once.
fn stop_bound(options: &SlotOptions, best_live: f32, step: u32) -> f32 {
    match options.stop {
        stop if stop == StopKind::First as u32 => f32::NEG_INFINITY,
        stop if stop == StopKind::Heuristic as u32 => options.normalized(best_live, step),
        _ => {
            // A negative exponent makes longer hypotheses worse, a negative reward likewise: the bound is then the shortest.
            let longest = |favours_length: bool| if favours_length { options.max_len } else { step };
            best_live / options.length_penalty_at(longest(options.alpha >= 0.0))
                + options.word_reward * longest(options.word_reward > 0.0) as f32
        }
    }
}
