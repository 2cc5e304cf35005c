//! Ranking: each live slot's best candidates, or what its samples have drawn.

use std::ops::Range;

use rayon::prelude::*;

use super::{Candidate, Ranking, Scratch, banks};
use crate::backend::{BANK_WORDS, Constraints, Failure, SamplePick, Search, SlotOptions};
use crate::cpu::stats::Normalizer;
use crate::cpu::{Cpu, simd};

/// Ranks every live slot.
pub(super) fn rank_all(logits: &[f32], search: &mut Search<Cpu>) {
    let Scratch { rankings, first_row, .. } = &mut search.scratch;
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let constraints: &[Constraints] = bytemuck::cast_slice(&search.constraints);
    let picks: &[SamplePick] = bytemuck::cast_slice(&search.picks);
    let (vocab_size, beam_size, words) = (search.vocab_size, search.shape.beam_size, search.vocab_size.div_ceil(32));
    rankings.par_iter_mut().enumerate().for_each(|(slot, ranking)| {
        ranking.candidates.clear();
        ranking.failure = Failure::default();
        let live = search.live[slot] as usize;
        if live == 0 {
            return;
        }
        let (options, first) = (&options[slot], first_row[slot]);
        let rules = Rules::new(options, search.step[slot] + 1, search.ids.eos_id, search.ids.pad_id);
        let cum = &search.cum_log_probs[slot * beam_size..][..live];
        if options.samples() {
            return take_picks(rules.step, cum, &picks[slot * beam_size..][..live], ranking);
        }
        let origin = |beam: usize| match search.step[slot] {
            0 => beam as u32,
            _ => search.ancestry[(slot * beam_size + beam) * search.shape.max_len],
        };
        let rows = SlotRows {
            logits: &logits[first * vocab_size..][..live * vocab_size],
            ranked: (options.ranked != 0).then(|| &search.ranked[first * vocab_size..][..live * vocab_size]),
            bans: (options.banned != 0).then(|| &search.bans[first * words..][..live * words]),
            vocab_size,
            apart: constraints.get(slot).filter(|_| options.constraints != 0).map_or(&[], Constraints::tokens),
        };
        ranking.picked.clear();
        if options.constraints != 0 {
            let banks = &search.banks[first * BANK_WORDS..][..live * BANK_WORDS];
            return banks::rank(&rules, options, cum, &rows, banks, ranking);
        }
        let mut first = 0;
        while first < live && ranking.failure.failed == 0 {
            let end = (first..live).find(|beam| origin(*beam) != origin(first)).unwrap_or(live);
            rank_group(&rules, first..end, cum, &rows, ranking);
            first = end;
        }
    });
}

/// The candidates of a sampling slot: one per live beam, in the order of the beams.
fn take_picks(step: u32, cum: &[f32], picks: &[SamplePick], ranking: &mut Ranking) {
    for (beam, (cum, pick)) in cum.iter().zip(picks).enumerate() {
        let &SamplePick { token, log_prob, ranked_log_prob } = pick;
        if token == SamplePick::NONE && log_prob != f32::NEG_INFINITY {
            ranking.failure = Failure { failed: 1, step, beam: beam as u32, value: log_prob };
            return;
        }
        let cum_log_prob = if token == SamplePick::NONE { *cum } else { cum + ranked_log_prob };
        ranking.candidates.push(Candidate { cum_log_prob, log_prob, beam: beam as u32, token });
    }
}

/// What one slot's live beams are ranked by, a row each.
pub(super) struct SlotRows<'a> {
    logits: &'a [f32],
    /// In place of the model's own distribution.
    ranked: Option<&'a [f32]>,
    /// Bits of the tokens that may not be taken.
    bans: Option<&'a [u32]>,
    vocab_size: usize,
    /// Tokens that go to [`Ranking::apart`] whatever they are worth, and not to the ranking.
    apart: &'a [u32],
}

impl<'a> SlotRows<'a> {
    fn logits(&self, beam: usize) -> &'a [f32] {
        &self.logits[beam * self.vocab_size..][..self.vocab_size]
    }

    fn ranked(&self, beam: usize) -> Option<&'a [f32]> {
        Some(&self.ranked?[beam * self.vocab_size..][..self.vocab_size])
    }

    fn bans(&self, beam: usize) -> Option<&'a [u32]> {
        let words = self.vocab_size.div_ceil(32);
        Some(&self.bans?[beam * words..][..words])
    }
}

/// Which tokens one slot may take at one step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Candidates of a group that are ranked.
    keep: usize,
    diversity: f32,
    pub step: u32,
    pub eos: usize,
    /// Never taken; beyond every vocabulary where padding is a token like any other.
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
        let only_eos = step >= options.max_len && options.cut == 0;
        // A prefix leaves one token: then its share of what is left is all of it.
        let renormalize = options.renormalize != 0 || (options.free_first != 0 && step == 1);
        Rules {
            keep: 2 * options.group_width() as usize,
            diversity: options.diversity,
            step,
            eos: eos_id as usize,
            pad: if options.takes_pad != 0 { usize::MAX } else { pad_id as usize },
            eos_allowed: step >= options.min_len || only_eos,
            only_eos,
            forced_eos: only_eos && options.forced_eos != 0,
            // With nothing else left, renormalising comes to the same.
            free_eos: only_eos && (options.forced_eos != 0 || renormalize),
            renormalize,
        }
    }

    /// What `row` is normalised by before it ranks: `normalizer`, or, renormalising, the tokens that masks leave.
    fn ranked_normalizer(&self, row: &[f32], normalizer: Normalizer) -> Normalizer {
        if !self.renormalize || self.only_eos {
            return normalizer;
        }
        let end = row.len();
        let masked = [self.pad.min(end), if self.eos_allowed { end } else { self.eos }];
        let (first, second) = (masked[0].min(masked[1]), masked[0].max(masked[1]));
        let parts = [&row[..first], &row[(first + 1).min(second)..second], &row[(second + 1).min(end)..]];
        let parts = parts.map(Normalizer::of);
        let max = parts.iter().fold(f32::NEG_INFINITY, |max, part| max.max(part.max));
        let sum = || parts.map(|part| (part.max - max + part.log_sum).exp()).iter().sum::<f32>();
        Normalizer { max, log_sum: if max == f32::NEG_INFINITY { 0.0 } else { sum().ln() } }
    }

    /// What a token's score loses because earlier groups go on with it.
    fn penalty(&self, token: usize, picked: &[u32]) -> f32 {
        self.diversity * picked.iter().filter(|picked| **picked as usize == token).count() as f32
    }

    fn allows(&self, token: usize) -> bool {
        token != self.pad && (if token == self.eos { self.eos_allowed } else { !self.only_eos })
    }
}

/// Ranks the candidates of one group of beams, which stand side by side, behind those of the groups before it; `cum` `[live]`.
pub(super) fn rank_group(rules: &Rules, beams: Range<usize>, cum: &[f32], rows: &SlotRows<'_>, ranking: &mut Ranking) {
    let Ranking { candidates, failure, masked, picked, apart } = ranking;
    let first = candidates.len();
    for beam in beams {
        let (cum, logits) = (cum[beam], rows.logits(beam));
        let mut normalizer = Normalizer::of(logits);
        let ranked = rows.ranked(beam);
        if let Some(ranked) = ranked
            && ranked[0].is_nan()
        {
            normalizer.max = f32::NAN;
        }
        if normalizer.max.is_nan() || normalizer.max == f32::INFINITY {
            *failure = Failure { failed: 1, step: rules.step, beam: beam as u32, value: normalizer.max };
            return;
        }
        if normalizer.max == f32::NEG_INFINITY {
            continue;
        }
        let mut row = ranked.unwrap_or(logits);
        if let Some(bans) = rows.bans(beam) {
            row = without(row, bans, masked);
        }
        let ranked_normalizer =
            rules.ranked_normalizer(row, if ranked.is_some() { Normalizer::NONE } else { normalizer });
        let candidate = |token: usize, value: f32| {
            let ranked = if rules.free_eos { 0.0 } else { ranked_normalizer.log_prob(value) };
            let log_prob = normalizer.log_prob(logits[token]);
            Candidate { cum_log_prob: cum + ranked, log_prob, beam: beam as u32, token: token as u32 }
        };
        if rules.only_eos {
            if rules.forced_eos || row[rules.eos] > f32::NEG_INFINITY {
                insert(candidates, first, rules.keep, candidate(rules.eos, row[rules.eos]));
            }
            continue;
        }
        let alone = rows.apart.iter().map(|token| *token as usize).enumerate();
        let alone = alone.map(|(place, token)| (place, candidate(token, row[token])));
        let counts = |c: &Candidate| rules.allows(c.token as usize) && c.cum_log_prob > f32::NEG_INFINITY;
        apart.extend(alone.filter(|(_, candidate)| counts(candidate)));
        let bar = |candidates: &[Candidate]| bar(&candidates[first..], rules.keep, cum, ranked_normalizer);
        simd::scan_above(row, bar(candidates), |token, value| {
            if rules.allows(token) && !rows.apart.contains(&(token as u32)) {
                let mut candidate = candidate(token, value);
                candidate.cum_log_prob -= rules.penalty(token, picked);
                insert(candidates, first, rules.keep, candidate);
            }
            bar(candidates)
        });
    }
    let live_on = candidates[first..].iter().filter(|candidate| candidate.token as usize != rules.eos);
    picked.extend(live_on.take(rules.keep / 2).map(|candidate| candidate.token));
}

/// `row` with -infinity for each token whose bit is set, in `masked`.
fn without<'a>(row: &[f32], bans: &[u32], masked: &'a mut Vec<f32>) -> &'a [f32] {
    masked.clear();
    masked.extend_from_slice(row);
    for (word, values) in bans.iter().zip(masked.chunks_mut(32)) {
        let mut left = *word;
        while left != 0 {
            // Bits beyond the vocabulary say nothing.
            if let Some(value) = values.get_mut(left.trailing_zeros() as usize) {
                *value = f32::NEG_INFINITY;
            }
            left &= left - 1;
        }
    }
    masked
}

/// A value at or below which no token of this row can enter the list.
///
/// It errs on the low side by more than the rounding of the score: [`insert`] decides.
fn bar(candidates: &[Candidate], keep: usize, cum: f32, ranked_normalizer: Normalizer) -> f32 {
    match candidates.last() {
        Some(worst) if candidates.len() == keep => {
            let Normalizer { max, log_sum } = ranked_normalizer;
            let slack = 1e-6 * (worst.cum_log_prob.abs() + cum.abs() + max.abs() + log_sum) + f32::MIN_POSITIVE;
            worst.cum_log_prob - cum + log_sum + max - slack
        }
        _ => f32::NEG_INFINITY,
    }
}

/// Inserts a candidate into the list that starts at `first`, behind all that are as good: they came first, so their flat index is
/// lower.
fn insert(candidates: &mut Vec<Candidate>, first: usize, keep: usize, candidate: Candidate) {
    if candidate.cum_log_prob == f32::NEG_INFINITY {
        return;
    }
    let at = candidates[first..].partition_point(|c| c.cum_log_prob >= candidate.cum_log_prob);
    if at < keep {
        candidates.truncate(first + keep - 1);
        candidates.insert(first + at, candidate);
    }
}
