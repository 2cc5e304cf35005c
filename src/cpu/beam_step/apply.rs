//! Carrying out a ranking: histories, ancestry, coverage, the finished set, the stop rule.

use super::Candidate;
use crate::backend::{Failure, Finished, SamplePick, Search, SessionShape, SlotOptions, StopKind};
use crate::cpu::Cpu;

/// Carries out one slot's ranking.
pub(super) fn apply(slot: usize, attention: &[f32], search: &mut Search<Cpu>) {
    let failure = search.scratch.rankings[slot].failure;
    if failure.failed != 0 {
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = failure;
        search.live[slot] = 0;
        return;
    }
    let options: SlotOptions = bytemuck::cast_slice(&search.options)[slot];
    remember(slot, attention, search);
    let candidates = std::mem::take(&mut search.scratch.rankings[slot].candidates);
    let cuts = (options.cut != 0 || options.samples()) && search.step[slot] + 1 >= options.max_len;
    let width = options.group_width() as usize;
    let taking = options.ranks_that_count(search.step[slot], search.live[slot], cuts) as usize;
    // What banks leave counts, all of it.
    let constrained = options.constraints != 0;
    let (taking, ending) = if constrained { (candidates.len(), candidates.len()) } else { (taking, width) };
    let mut live = 0;
    // Ranks and quotas count within a group; the samples of a slot are groups of one.
    let (mut group, mut rank, mut live_before) = (None, 0, 0);
    for (place, candidate) in candidates.iter().enumerate() {
        let own = origin(slot, candidate.beam as usize, search);
        if group != Some(own) {
            (group, rank, live_before) = (Some(own), 0, live);
        }
        rank += 1;
        if rank > taking {
            continue;
        }
        if candidate.token == search.ids.eos_id {
            if rank <= ending {
                finish(
                    slot,
                    &options,
                    candidate,
                    Ending::Eos { is_best: place == 0 && !options.samples() },
                    attention,
                    search,
                );
            }
        } else if candidate.token == SamplePick::NONE {
            give_up(slot, &options, candidate.beam as usize, search);
        } else if live - live_before < width {
            if cuts {
                finish(slot, &options, candidate, Ending::Cut { live }, attention, search);
            }
            extend(slot, live, candidate, attention, search);
            live += 1;
        }
    }
    if cuts {
        live = 0;
    }
    let eos_is_best = candidates.first().is_some_and(|best| best.token == search.ids.eos_id);
    search.scratch.rankings[slot].candidates = candidates;
    if live == 0 && search.finished_count[slot] == 0 {
        give_up(slot, &options, 0, search);
    }
    search.step[slot] += 1;
    search.live[slot] = if has_ended(slot, &options, live, eos_is_best, search) { 0 } else { live as u32 };
}

/// The beam that a beam of the step before started in.
fn origin(slot: usize, beam: usize, search: &Search<Cpu>) -> usize {
    if search.step[slot] == 0 { beam } else { search.scratch.ancestry[beam * search.shape.max_len] as usize }
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

/// What ends a hypothesis.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// Its end of sentence, which may be the best candidate of the step.
    Eos { is_best: bool },
    /// The limit: it is live beam number `live`.
    Cut { live: usize },
}

/// Adds the hypothesis that `candidate` ends.
fn finish(
    slot: usize,
    options: &SlotOptions,
    candidate: &Candidate,
    ending: Ending,
    attention: &[f32],
    search: &mut Search<Cpu>,
) {
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
    let (eos_log_prob, beam, has_eos) = match ending {
        Ending::Eos { is_best } => (candidate.log_prob, candidate.beam, 1 + u32::from(is_best)),
        Ending::Cut { live } => (0.0, live as u32, 0),
    };
    let finished = Finished {
        score: options.normalized(candidate.cum_log_prob, length) + coverage_penalty,
        search_log_prob: candidate.cum_log_prob,
        coverage_penalty,
        eos_log_prob,
        length,
        beam,
        has_eos,
        truncated: u32::from(has_eos == 0 || (length >= options.max_len && options.cut == 0)),
    };
    insert_finished(slot, options, finished, search);
}

/// Masks have left no candidate at all: the beam as it was after the step before is what there is.
fn give_up(slot: usize, options: &SlotOptions, beam: usize, search: &mut Search<Cpu>) {
    let length = search.step[slot];
    let search_log_prob = search.cum_log_probs[slot * search.shape.beam_size + beam];
    let finished = Finished {
        score: options.normalized(search_log_prob, length.max(1)),
        search_log_prob,
        length,
        beam: beam as u32,
        truncated: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    insert_finished(slot, options, finished, search);
}

fn insert_finished(slot: usize, options: &SlotOptions, finished: Finished, search: &mut Search<Cpu>) {
    let room = options.finished_room() as usize;
    let all: &mut [Finished] = bytemuck::cast_slice_mut(&mut search.finished);
    let entries = &mut all[slot * search.shape.beam_size..][..room];
    let count = search.finished_count[slot] as usize;
    let at = entries[..count].partition_point(|f| f.score >= finished.score);
    if at < room {
        let count = (count + 1).min(room);
        entries[at..count].rotate_right(1);
        entries[at] = finished;
        search.finished_count[slot] = count as u32;
    }
}

/// Whether the slot's search is over, `step` counting the step just taken.
fn has_ended(slot: usize, options: &SlotOptions, live: usize, eos_is_best: bool, search: &Search<Cpu>) -> bool {
    let needed = options.finished_needed() as usize;
    if live == 0 {
        return true;
    }
    if options.samples() || (search.finished_count[slot] as usize) < needed {
        return false;
    }
    let beam_size = search.shape.beam_size;
    let finished = &bytemuck::cast_slice::<_, Finished>(&search.finished)[slot * beam_size..];
    if options.stop == StopKind::Top as u32 {
        let count = search.finished_count[slot] as usize;
        return eos_is_best || finished[..count].iter().any(|f| f.has_eos == 2);
    }
    let cum_log_probs = &search.cum_log_probs[slot * beam_size..][..live];
    let best_live = cum_log_probs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    finished[needed - 1].score >= stop_bound(options, best_live, search.step[slot])
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
