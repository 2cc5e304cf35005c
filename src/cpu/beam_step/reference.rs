//! The naive beam step: every candidate listed and sorted, normalisers in f64, ancestry walked back from the parents.

use super::rebuild_rows;
use crate::backend::{
    BANK_WORDS, Constraints, Failure, FinishKind, Finished, LengthPenaltyKind, SamplePick, Search, SlotOptions,
    StopKind,
};
use crate::cpu::Cpu;

/// One step of the search in every live slot; see [`crate::backend::SearchOps::beam_step`].
pub fn reference(logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    let mut first_row = 0;
    for slot in 0..search.shape.slots {
        let live = search.live[slot] as usize;
        if live > 0 {
            let logits = &logits[first_row * search.vocab_size..][..live * search.vocab_size];
            let attention = &attention[first_row * search.shape.max_src_len..][..live * search.shape.max_src_len];
            step(slot, first_row, logits, attention, search);
        }
        first_row += live;
    }
    rebuild_rows(search);
}

/// (ranked score, model's log-probability, beam, token)
type Candidate = (f32, f32, usize, usize);

fn step(slot: usize, first_row: usize, logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    let options: SlotOptions = bytemuck::cast_slice(&search.options)[slot];
    let (k, own_k) = (search.shape.beam_size, options.beam_size as usize);
    let (max_len, n) = (search.shape.max_len, search.shape.max_src_len);
    let before = search.step[slot] as usize;
    let length = before + 1;
    if let Some((beam, value)) = what_cannot_be_ranked(slot, first_row, &options, logits, search) {
        let failure = Failure { failed: 1, step: length as u32, beam: beam as u32, value };
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = failure;
        search.live[slot] = 0;
        return;
    }
    let candidates = if options.samples() {
        picks(slot, search)
    } else {
        let candidates = list_candidates(slot, first_row, &options, logits, search);
        match options.constraints {
            0 => rank_groups(slot, &options, candidates, search),
            _ => rank_banks(slot, first_row, &options, candidates, search),
        }
    };
    let width = options.group_width() as usize;
    let origins: Vec<usize> = (0..k).map(|beam| origin(slot, beam, search)).collect();

    let coverage = search.coverage[slot * k * n..][..k * n].to_vec();
    let covered = |beam: usize, i: usize| coverage[beam * n + i] + attention[beam * n + i];
    if search.shape.keep_attention {
        let at = (slot * max_len + before) * k * n;
        search.attention[at..at + attention.len()].copy_from_slice(attention);
    }
    let previous = search.cum_log_probs[slot * k..][..k].to_vec();
    let as_it_was = |beam: usize| Finished {
        score: length_score(&options, previous[beam], before.max(1)),
        search_log_prob: previous[beam],
        length: before as u32,
        beam: beam as u32,
        truncated: 1,
        ..bytemuck::Zeroable::zeroed()
    };
    let at_limit = length >= options.max_len as usize;
    let cuts = at_limit && (options.cut != 0 || options.samples());
    let ended = |cum: f32, beam: usize| {
        let source = 0..options.src_len as usize - 1;
        let logs: f64 = source.map(|i| f64::from(covered(beam, i).clamp(1e-6, 1.0)).ln()).sum();
        let coverage_penalty = (f64::from(options.coverage_penalty) * logs) as f32;
        let score = length_score(&options, cum, length) + coverage_penalty;
        let length = length as u32;
        Finished { score, search_log_prob: cum, coverage_penalty, length, ..bytemuck::Zeroable::zeroed() }
    };
    let count = search.finished_count[slot] as usize;
    let mut finished: Vec<Finished> = bytemuck::cast_slice(&search.finished)[slot * k..][..count].to_vec();
    let mut live = 0;
    let mut lived = vec![0; k];
    let shrinks = options.finish == FinishKind::Shrink as u32;
    let alive = search.live[slot] as usize;
    for (i, &(cum, log_prob, beam, token)) in candidates.iter().enumerate() {
        let group = origins[beam];
        let rank = candidates[..i].iter().filter(|before| origins[before.2] == group).count();
        let beyond_the_living = shrinks && rank >= if before <= options.prefix_len as usize { own_k } else { alive };
        // Banks have left nothing but what counts.
        let chosen = options.constraints != 0;
        if !chosen && (beyond_the_living || (cuts && rank >= width)) {
            continue;
        }
        if token == search.ids.eos_id as usize && (chosen || rank < width) {
            finished.push(Finished {
                eos_log_prob: log_prob,
                beam: beam as u32,
                has_eos: if i == 0 && !options.samples() { 2 } else { 1 },
                truncated: u32::from(at_limit && options.cut == 0),
                ..ended(cum, beam)
            });
        } else if token == SamplePick::NONE as usize {
            finished.push(as_it_was(beam));
        } else if token != search.ids.eos_id as usize && lived[group] < width {
            lived[group] += 1;
            let at = (slot * max_len + before) * k + live;
            search.tokens[at] = token as u32;
            search.parents[at] = beam as u32;
            search.log_probs[at] = log_prob;
            search.cum_log_probs[slot * k + live] = cum;
            for i in 0..n {
                search.coverage[(slot * k + live) * n + i] = covered(beam, i);
            }
            if cuts {
                finished.push(Finished { beam: live as u32, truncated: 1, ..ended(cum, beam) });
            }
            live += 1;
        }
    }
    if live == 0 && finished.is_empty() {
        finished.push(as_it_was(0));
    }
    for beam in 0..live {
        let mut ancestor = beam;
        for t in (0..length).rev() {
            ancestor = search.parents[(slot * max_len + t) * k + ancestor] as usize;
            search.ancestry[(slot * k + beam) * max_len + t] = ancestor as u32;
        }
    }
    finished.sort_by(|a, b| b.score.total_cmp(&a.score));
    finished.truncate(own_k.max(options.patience as usize));
    bytemuck::cast_slice_mut::<_, Finished>(&mut search.finished)[slot * k..][..finished.len()]
        .copy_from_slice(&finished);
    search.finished_count[slot] = finished.len() as u32;
    search.step[slot] = length as u32;
    let needed = if options.patience > 0 { options.patience as usize } else { own_k };
    let full = finished.len() >= needed;
    let eos_came_first = candidates.first().is_some_and(|best| best.3 == search.ids.eos_id as usize)
        || finished.iter().any(|f| f.has_eos == 2);
    let best = search.cum_log_probs[slot * k..][..live].iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let stops = match options.stop == StopKind::Top as u32 {
        true => full && eos_came_first,
        false => full && finished[needed - 1].score >= best_to_come(&options, best, length),
    };
    let stops = stops && !options.samples();
    let over = live == 0 || stops || cuts;
    search.live[slot] = if over { 0 } else { live as u32 };
}

/// The beam that a beam started in, by its parents.
fn origin(slot: usize, beam: usize, search: &Search<Cpu>) -> usize {
    let (k, max_len) = (search.shape.beam_size, search.shape.max_len);
    let parent = |beam: usize, t: u32| search.parents[(slot * max_len + t as usize) * k + beam] as usize;
    if beam < search.live[slot] as usize { (0..search.step[slot]).rev().fold(beam, parent) } else { 0 }
}

/// The 2K best candidates; of each group in turn its share, what earlier groups go on with being worth less.
fn rank_groups(slot: usize, options: &SlotOptions, mut left: Vec<Candidate>, search: &Search<Cpu>) -> Vec<Candidate> {
    let width = options.group_width() as usize;
    let (mut ranked, mut picked): (Vec<Candidate>, Vec<usize>) = (Vec::new(), Vec::new());
    for group in 0..options.groups.max(1) as usize {
        let of_group = |candidate: &mut Candidate| origin(slot, candidate.2, search) == group;
        let mut own: Vec<Candidate> = left.extract_if(.., of_group).collect();
        for candidate in &mut own {
            candidate.0 -= options.diversity * picked.iter().filter(|token| **token == candidate.3).count() as f32;
        }
        // A stable sort: candidates were listed by flat index, so ties stay in its order.
        own.sort_by(|a, b| b.0.total_cmp(&a.0));
        own.truncate(2 * width);
        let live_on = own.iter().map(|candidate| candidate.3).filter(|token| *token != search.ids.eos_id as usize);
        picked.extend(live_on.take(width));
        ranked.extend(own);
    }
    ranked
}

/// What counts where constraints hold: each beam in turn is claimed by its bank, the highest one's first, and goes to the next
/// bank down, around if need be, that has a candidate left.
fn rank_banks(
    slot: usize,
    first_row: usize,
    options: &SlotOptions,
    mut left: Vec<Candidate>,
    search: &Search<Cpu>,
) -> Vec<Candidate> {
    let (k, count, eos) = (options.beam_size as usize, options.constraints as usize + 1, search.ids.eos_id as usize);
    let constraints = &bytemuck::cast_slice::<_, Constraints>(&search.constraints)[slot];
    let bank = |candidate: &Candidate| {
        let place = constraints.tokens().iter().position(|token| *token as usize == candidate.3);
        search.banks[(first_row + candidate.2) * BANK_WORDS + place.map_or(0, |place| place + 1)] as usize
    };
    let at_limit = search.step[slot] + 1 >= options.max_len;
    left.retain(|c| bank(c) + 1 == count || (c.3 != eos && !at_limit));
    // A stable sort: candidates were listed by flat index, so ties stay in its order.
    left.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Of each bank: what ends, and what might go on.
    let mut banks = vec![Vec::new(); count];
    for candidate in left {
        banks[bank(&candidate)].push(candidate);
    }
    let cuts = at_limit && options.cut != 0;
    let in_time = |rank: usize, c: &Candidate| rank < k || (c.3 != eos && !cuts);
    let mut rank = 0..;
    banks[count - 1].retain(|c| in_time(rank.next().unwrap_or(k), c));
    let mut got = vec![0; count];
    for claimed in (0..count).rev() {
        let claims = if claimed + 1 == count { k - (count - 1) * (k / count) } else { k / count };
        for _ in 0..claims {
            let around = (0..count).map(|down| (claimed + count - down) % count);
            let has_more = |b: &usize| banks[*b].iter().filter(|c| c.3 != eos).count() > got[*b];
            if let Some(bank) = around.into_iter().find(has_more) {
                got[bank] += 1;
            }
        }
    }
    let mut chosen = Vec::new();
    for bank in (0..count).rev() {
        let mut lives = 0;
        for candidate in &banks[bank] {
            lives += usize::from(candidate.3 != eos);
            if candidate.3 == eos || lives <= got[bank] {
                chosen.push(*candidate);
            }
        }
    }
    chosen
}

/// The first beam that cannot be ranked, and the value that says so.
fn what_cannot_be_ranked(
    slot: usize,
    first_row: usize,
    options: &SlotOptions,
    logits: &[f32],
    search: &Search<Cpu>,
) -> Option<(usize, f32)> {
    if options.samples() {
        let picks: &[SamplePick] = bytemuck::cast_slice(&search.picks);
        let mut picks = picks[slot * search.shape.beam_size..][..search.live[slot] as usize].iter();
        let broken = |pick: &SamplePick| pick.token == SamplePick::NONE && pick.log_prob != f32::NEG_INFINITY;
        let beam = picks.clone().position(broken)?;
        return picks.nth(beam).map(|pick| (beam, pick.log_prob));
    }
    let vocab_size = search.vocab_size;
    logits.chunks(vocab_size).enumerate().find_map(|(beam, row)| {
        let ranked = &search.ranked[if options.ranked != 0 { (first_row + beam) * vocab_size } else { 0 }..];
        let is_nan = |values: &[f32]| values.iter().any(|z| z.is_nan());
        if is_nan(row) || (options.ranked != 0 && is_nan(&ranked[..vocab_size])) {
            return Some((beam, f32::NAN));
        }
        row.contains(&f32::INFINITY).then_some((beam, f32::INFINITY))
    })
}

/// What a sampling slot's beams have drawn.
fn picks(slot: usize, search: &Search<Cpu>) -> Vec<Candidate> {
    let at = slot * search.shape.beam_size;
    let picks: &[SamplePick] = bytemuck::cast_slice(&search.picks);
    (0..search.live[slot] as usize)
        .map(|beam| {
            let SamplePick { token, log_prob, ranked_log_prob } = picks[at + beam];
            (search.cum_log_probs[at + beam] + ranked_log_prob, log_prob, beam, token as usize)
        })
        .collect()
}

fn list_candidates(
    slot: usize,
    first_row: usize,
    options: &SlotOptions,
    logits: &[f32],
    search: &Search<Cpu>,
) -> Vec<Candidate> {
    let length = search.step[slot] + 1;
    let (vocab_size, words) = (search.vocab_size, search.vocab_size.div_ceil(32));
    let (eos, pad) = (search.ids.eos_id as usize, search.ids.pad_id as usize);
    let last = length >= options.max_len && options.cut == 0;
    let mut candidates = Vec::new();
    for (beam, row) in logits.chunks_exact(vocab_size).enumerate() {
        let r = first_row + beam;
        let is_banned =
            |token: usize| options.banned != 0 && search.bans[r * words + token / 32] >> (token % 32) & 1 != 0;
        let allowed = |token: usize| {
            let forced = token == eos && last && options.forced_eos != 0;
            let in_time = token != eos || last || length >= options.min_len;
            (token != pad || options.takes_pad != 0)
                && (token == eos || !last)
                && in_time
                && (forced || !is_banned(token))
        };
        if row.iter().all(|z| *z == f32::NEG_INFINITY) {
            continue;
        }
        let mass = |row: &[f32], keep: &dyn Fn(usize) -> bool| {
            let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let kept = row.iter().enumerate().filter(|(token, _)| keep(*token));
            (max, kept.map(|(_, z)| (f64::from(*z) - max).exp()).sum::<f64>().ln())
        };
        let normalized = |z: f32, (max, log_sum): (f64, f64)| ((f64::from(z) - max) - log_sum) as f32;
        let everything = mass(row, &|_| true);
        let ranking = if options.ranked != 0 { &search.ranked[r * vocab_size..][..vocab_size] } else { row };
        let left = mass(ranking, &|token| allowed(token));
        for token in (0..row.len()).filter(|token| allowed(*token)) {
            let log_prob = normalized(row[token], everything);
            let ranked = match () {
                () if last && options.forced_eos != 0 => 0.0,
                () if options.renormalize != 0 || (options.free_first != 0 && length == 1) => {
                    normalized(ranking[token], left)
                }
                () if options.ranked != 0 => ranking[token],
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
    } else if options.length_penalty != LengthPenaltyKind::None as u32 {
        length as f64
    } else {
        1.0
    };
    base.powf(f64::from(options.alpha)) as f32
}

fn length_score(options: &SlotOptions, cum: f32, length: usize) -> f32 {
    let reward = options.word_reward * length as f32;
    if options.length_penalty == LengthPenaltyKind::PowerOfAll as u32 {
        return (cum + reward) / penalty(options, length);
    }
    cum / penalty(options, length) + reward
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
