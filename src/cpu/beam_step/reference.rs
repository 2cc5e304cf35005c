//! The naive beam step: every candidate listed and sorted, normalisers in f64, ancestry walked back from the parents.

use super::rebuild_rows;
use crate::backend::{Failure, Finished, LengthPenaltyKind, Search, SlotOptions, StopKind};
use crate::cpu::Cpu;

/// One step of beam search in every live slot; see [`crate::backend::Backend::beam_step`].
pub fn reference(logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    let mut first_row = 0;
    for slot in 0..search.shape.slots {
        let live = search.live[slot] as usize;
        if live > 0 {
            let logits = &logits[first_row * search.vocab_size..][..live * search.vocab_size];
            let attention = &attention[first_row * search.shape.max_src_len..][..live * search.shape.max_src_len];
            step(slot, logits, attention, search);
        }
        first_row += live;
    }
    rebuild_rows(search);
}

/// (ranked score, model's log-probability, beam, token)
type Candidate = (f32, f32, usize, usize);

fn step(slot: usize, logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    let options: SlotOptions = bytemuck::cast_slice(&search.options)[slot];
    let (k, own_k) = (search.shape.beam_size, options.beam_size as usize);
    let (max_len, n) = (search.shape.max_len, search.shape.max_src_len);
    let before = search.step[slot] as usize;
    let length = before + 1;
    if let Some(bad) = logits.iter().position(|z| z.is_nan() || *z == f32::INFINITY) {
        let beam = bad / search.vocab_size;
        let row = &logits[beam * search.vocab_size..][..search.vocab_size];
        let value = if row.iter().any(|z| z.is_nan()) { f32::NAN } else { f32::INFINITY };
        let failure = Failure { failed: 1, step: length as u32, beam: beam as u32, value };
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = failure;
        search.live[slot] = 0;
        return;
    }
    let mut candidates = list_candidates(slot, &options, logits, search);
    // A stable sort: candidates were listed by flat index, so ties stay in its order.
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
    candidates.truncate(2 * own_k);

    let coverage = search.coverage[slot * k * n..][..k * n].to_vec();
    let covered = |beam: usize, i: usize| coverage[beam * n + i] + attention[beam * n + i];
    if search.shape.keep_attention {
        let at = (slot * max_len + before) * k * n;
        search.attention[at..at + attention.len()].copy_from_slice(attention);
    }
    let previous_best = search.cum_log_probs[slot * k];
    let count = search.finished_count[slot] as usize;
    let mut finished: Vec<Finished> = bytemuck::cast_slice(&search.finished)[slot * k..][..count].to_vec();
    let mut live = 0;
    for (rank, &(cum, log_prob, beam, token)) in candidates.iter().enumerate() {
        if token == search.ids.eos_id as usize && rank < own_k {
            let source = 0..options.src_len as usize - 1;
            let logs: f64 = source.map(|i| f64::from(covered(beam, i).clamp(1e-6, 1.0)).ln()).sum();
            let coverage_penalty = (f64::from(options.coverage_penalty) * logs) as f32;
            finished.push(Finished {
                score: length_score(&options, cum, length) + coverage_penalty,
                search_log_prob: cum,
                coverage_penalty,
                eos_log_prob: log_prob,
                length: length as u32,
                beam: beam as u32,
                has_eos: 1,
                truncated: u32::from(length >= options.max_len as usize),
            });
        } else if token != search.ids.eos_id as usize && live < own_k {
            let at = (slot * max_len + before) * k + live;
            search.tokens[at] = token as u32;
            search.parents[at] = beam as u32;
            search.log_probs[at] = log_prob;
            search.cum_log_probs[slot * k + live] = cum;
            for i in 0..n {
                search.coverage[(slot * k + live) * n + i] = covered(beam, i);
            }
            live += 1;
        }
    }
    if live == 0 && finished.is_empty() {
        finished.push(Finished {
            score: length_score(&options, previous_best, before.max(1)),
            search_log_prob: previous_best,
            length: before as u32,
            truncated: 1,
            ..bytemuck::Zeroable::zeroed()
        });
    }
    for beam in 0..live {
        let mut ancestor = beam;
        for t in (0..length).rev() {
            ancestor = search.parents[(slot * max_len + t) * k + ancestor] as usize;
            search.ancestry[(slot * k + beam) * max_len + t] = ancestor as u32;
        }
    }
    finished.sort_by(|a, b| b.score.total_cmp(&a.score));
    finished.truncate(own_k);
    bytemuck::cast_slice_mut::<_, Finished>(&mut search.finished)[slot * k..][..finished.len()]
        .copy_from_slice(&finished);
    search.finished_count[slot] = finished.len() as u32;
    search.step[slot] = length as u32;
    let full = finished.len() == own_k;
    let best = search.cum_log_probs[slot * k];
    let over = live == 0 || (full && finished[own_k - 1].score >= best_to_come(&options, best, length));
    search.live[slot] = if over { 0 } else { live as u32 };
}

fn list_candidates(slot: usize, options: &SlotOptions, logits: &[f32], search: &Search<Cpu>) -> Vec<Candidate> {
    let length = search.step[slot] + 1;
    let (eos, pad) = (search.ids.eos_id as usize, search.ids.pad_id as usize);
    let last = length >= options.max_len;
    let allowed =
        |token: usize| token != pad && (token == eos || !last) && (token != eos || last || length >= options.min_len);
    let mut candidates = Vec::new();
    for (beam, row) in logits.chunks_exact(search.vocab_size).enumerate() {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        if max == f64::NEG_INFINITY {
            continue;
        }
        let mass = |keep: &dyn Fn(usize) -> bool| {
            let kept = row.iter().enumerate().filter(|(token, _)| keep(*token));
            max + kept.map(|(_, z)| (f64::from(*z) - max).exp()).sum::<f64>().ln()
        };
        let (everything, left) = (mass(&|_| true), mass(&|token| allowed(token)));
        for token in (0..row.len()).filter(|token| allowed(*token)) {
            let log_prob = (f64::from(row[token]) - everything) as f32;
            let ranked = match () {
                () if last && options.forced_eos != 0 => 0.0,
                () if options.renormalize != 0 => (f64::from(row[token]) - left) as f32,
                () => log_prob,
            };
            let cum = search.cum_log_probs[slot * search.shape.beam_size + beam] + ranked;
            if cum > f32::NEG_INFINITY {
                candidates.push((cum, log_prob, beam, token));
            }
        }
    }
    candidates
}

fn penalty(options: &SlotOptions, length: usize) -> f32 {
    let base = if options.length_penalty == LengthPenaltyKind::Gnmt as u32 {
        (5.0 + length as f64) / 6.0
    } else if options.length_penalty == LengthPenaltyKind::Power as u32 {
        length as f64
    } else {
        1.0
    };
    base.powf(f64::from(options.alpha)) as f32
}

fn length_score(options: &SlotOptions, cum: f32, length: usize) -> f32 {
    cum / penalty(options, length) + options.word_reward * length as f32
}

/// The best score that a live hypothesis is taken to reach.
fn best_to_come(options: &SlotOptions, best: f32, length: usize) -> f32 {
    if options.stop == StopKind::First as u32 {
        return f32::NEG_INFINITY;
    }
    if options.stop == StopKind::Heuristic as u32 {
        return length_score(options, best, length);
    }
    let longest = options.max_len as usize;
    let divided = [length, longest].map(|l| best / penalty(options, l)).into_iter().fold(f32::NEG_INFINITY, f32::max);
    let reward =
        [length, longest].map(|l| options.word_reward * l as f32).into_iter().fold(f32::NEG_INFINITY, f32::max);
    divided + reward
}
