//! The naive sampler: every token listed and sorted, filters and noise in f64 with the library's functions.

use super::{Draw, Step};
use crate::backend::SamplePick;
use crate::cpu::philox::{Purpose, open_uniform, philox};

/// Picks a token for every row of a slot that samples; `picks` `[S, K]`.
pub fn reference(step: &Step<'_>, picks: &mut [SamplePick]) {
    for r in 0..step.rows.len() {
        if let Some(draw) = step.draw(r) {
            picks[step.pick_at(r)] = pick(&draw);
        }
    }
}

/// A token that may be picked.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The token.
    pub token: usize,
    /// Its share of what the filters have left.
    pub probability: f64,
}

/// The tokens that the filters leave, in order of probability, ties by id.
fn distribution(draw: &Draw<'_>) -> Vec<Candidate> {
    let greedy = draw.options.temperature == 0.0;
    let temperature = if greedy { 1.0 } else { f64::from(draw.options.temperature) };
    let z = |token: usize| f64::from(draw.z[token]) / temperature;
    let mut order: Vec<usize> =
        (0..draw.z.len()).filter(|&v| draw.allows(v) && draw.z[v] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| z(b).partial_cmp(&z(a)).expect("numbers").then(a.cmp(&b)));
    let shares = |order: &[usize]| {
        let weights: Vec<f64> = order.iter().map(|&v| (z(v) - z(order[0])).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect::<Vec<f64>>()
    };
    if greedy || draw.options.top_k > 0 {
        order.truncate(if greedy { 1 } else { draw.options.top_k as usize });
    }
    if order.is_empty() {
        return Vec::new();
    }
    if draw.options.top_p < 1.0 {
        let mut before = 0.0;
        let kept = shares(&order).into_iter().take_while(|share| {
            let stays = before < f64::from(draw.options.top_p);
            before += share;
            stays
        });
        order.truncate(kept.count().max(1));
    }
    for (least, of_first) in [(draw.options.min_p, true), (draw.options.epsilon, false)] {
        let shares = shares(&order);
        let least = f64::from(least) * if of_first { shares[0] } else { 1.0 };
        order.truncate(shares.iter().take_while(|share| **share >= least).count().max(1));
    }
    let shares = shares(&order);
    order.into_iter().zip(shares).map(|(token, probability)| Candidate { token, probability }).collect()
}

fn log_prob_of(row: &[f32], token: usize) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    (f64::from(row[token]) - max) - row.iter().map(|z| (f64::from(*z) - max).exp()).sum::<f64>().ln()
}

/// NaN if one is among the values, else their maximum.
fn largest(row: &[f32]) -> f32 {
    if row.iter().any(|z| z.is_nan()) { f32::NAN } else { row.iter().copied().fold(f32::NEG_INFINITY, f32::max) }
}

fn pick(draw: &Draw<'_>) -> SamplePick {
    let none = |why: f32| SamplePick { token: SamplePick::NONE, log_prob: why, ranked_log_prob: why };
    for row in [draw.logits, draw.z] {
        let largest = largest(row);
        if largest.is_nan() || largest == f32::INFINITY {
            return none(largest);
        }
    }
    let seed = u64::from(draw.options.seed_high) << 32 | u64::from(draw.options.seed_low);
    let score = |candidate: &Candidate| {
        let token = candidate.token;
        let counter = [draw.position, draw.sample, Purpose::Draw as u32, (token / 4) as u32];
        let u = f64::from(open_uniform(philox(seed, counter)[token % 4]));
        candidate.probability.ln() - (-u.ln()).ln()
    };
    let mut best: Option<(f64, usize)> = None;
    for candidate in distribution(draw) {
        let own = score(&candidate);
        if best.is_none_or(|(score, token)| own > score || (own == score && candidate.token < token)) {
            best = Some((own, candidate.token));
        }
    }
    let Some((_, token)) = best else { return none(f32::NEG_INFINITY) };
    let log_prob = log_prob_of(draw.logits, token) as f32;
    let is_ranked = !std::ptr::eq(draw.z, draw.logits);
    SamplePick { token: token as u32, log_prob, ranked_log_prob: if is_ranked { draw.z[token] } else { log_prob } }
}

/// The exact distribution that row `r` draws from.
#[cfg(test)]
pub fn exact(step: &Step<'_>, r: usize) -> Vec<Candidate> {
    distribution(&step.draw(r).expect("a row that samples"))
}
