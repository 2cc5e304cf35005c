//! Op `sample`: a token for every row of the slots that sample; its contract is [`crate::backend::SearchOps::sample`].
//!
//! The distribution is softmax(z / temperature) over the tokens that the row may take, z being its logits, or its row of `ranked`.
//! Tokens stand in order of z, the largest first, ties by id. Each filter keeps a beginning of that order, the first token always:
//! 1. `top_k`: the first k;
//! 2. `top_p`: those before which less than p of the mass lies that `top_k` has left;
//! 3. `min_p`: those with at least `min_p` times the first one's mass;
//! 4. `epsilon`: those with at least `epsilon` of the mass that the others have left.
//!
//! The pick is the token with the largest `z / temperature + Gumbel noise`, ties to the lower id, which is a draw from what is left
//! (Maddison et al. 2014). Its noise is `-ln(-ln(u))` with u from Philox4x32-10 under the slot's seed, counter (step, sample,
//! purpose, token / 4): a token has the same noise whatever else is decoded, and whatever the filters.
//!
//! Masses are integers, `floor(2^40 * exp((z - max z) / temperature))`: sums do not depend on their order, and with the `exp` and
//! `ln` of [`portable_math`] every device draws the same token from the same numbers. A mass below 2^-40 of the first one's is 0,
//! and the noise's 24 bits let no token win that is e^19 times less probable than the best.

mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::LazyLock;

use rayon::prelude::*;

use crate::backend::{Row, SampleOptions, SamplePick, SlotOptions, SpecialIds};
use crate::cpu::philox::{Purpose, open_uniform, philox};
use crate::cpu::stats::Normalizer;
use crate::cpu::{portable_math, simd};

pub use reference::reference;

/// What a step samples from.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The live rows, by slot, then beam.
    pub rows: &'a [Row],
    /// By slot.
    pub options: &'a [SlotOptions],
    /// `[S, K, T]`: position 0 of a beam's prefix is the sample's number.
    pub ancestry: &'a [u32],
    /// `[rows, vocab_size]`, rows `stride` apart.
    pub logits: &'a [f32],
    /// Likewise, for the slots that rank something else than their logits; may be empty without such.
    pub ranked: &'a [f32],
    /// `[rows, ceil(vocab_size / 32)]`, for the slots with bans; may be empty without such. Bit `v % 32` of word `v / 32` bans v.
    pub bans: &'a [u32],
    /// The target vocabulary's size.
    pub vocab_size: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// K.
    pub beam_size: usize,
    /// T.
    pub max_len: usize,
    /// The ids with a meaning of their own.
    pub ids: SpecialIds,
}

/// One row of a step: what it draws from.
#[derive(Clone, Copy, Debug)]
struct Draw<'a> {
    logits: &'a [f32],
    /// What is ranked: the logits themselves, or the row of `ranked`.
    z: &'a [f32],
    /// Empty without bans.
    bans: &'a [u32],
    options: SampleOptions,
    position: u32,
    sample: u32,
    /// Never taken; beyond every vocabulary where padding is a token like any other.
    pad: usize,
    eos: usize,
    eos_allowed: bool,
    only_eos: bool,
}

impl<'a> Step<'a> {
    /// What row `r` draws from; none if its slot does not sample.
    fn draw(&self, r: usize) -> Option<Draw<'a>> {
        let row = self.rows[r];
        let options = &self.options[row.slot as usize];
        if !options.samples() {
            return None;
        }
        let logits = &self.logits[r * self.stride..][..self.vocab_size];
        let words = self.vocab_size.div_ceil(32);
        let ancestor = (row.slot as usize * self.beam_size + row.beam as usize) * self.max_len;
        let length = row.position + 1;
        let only_eos = length >= options.max_len && options.cut == 0;
        Some(Draw {
            logits,
            z: if options.ranked != 0 { &self.ranked[r * self.stride..][..self.vocab_size] } else { logits },
            bans: if options.banned != 0 { &self.bans[r * words..][..words] } else { &[] },
            options: options.sampling,
            position: row.position,
            sample: if row.position == 0 { row.beam } else { self.ancestry[ancestor] },
            pad: if options.takes_pad != 0 { usize::MAX } else { self.ids.pad_id as usize },
            eos: self.ids.eos_id as usize,
            eos_allowed: length >= options.min_len || only_eos,
            only_eos,
        })
    }

    /// Where the pick of row `r` stands.
    fn pick_at(&self, r: usize) -> usize {
        self.rows[r].slot as usize * self.beam_size + self.rows[r].beam as usize
    }
}

impl Draw<'_> {
    fn allows(&self, token: usize) -> bool {
        let banned = self.bans.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 != 0);
        token != self.pad && !banned && if token == self.eos { self.eos_allowed } else { !self.only_eos }
    }

    fn seed(&self) -> u64 {
        u64::from(self.options.seed_high) << 32 | u64::from(self.options.seed_low)
    }

    /// Of the random words of tokens `4 quad` to `4 quad + 3`.
    fn counter(&self, quad: usize) -> [u32; 4] {
        [self.position, self.sample, Purpose::Draw as u32, quad as u32]
    }

    /// Of a token that is allowed.
    fn noise(&self, token: usize) -> f32 {
        gumbel(philox(self.seed(), self.counter(token / 4))[token % 4])
    }
}

fn gumbel(word: u32) -> f32 {
    -portable_math::ln(-portable_math::ln(open_uniform(word)))
}

/// No noise is larger: `gumbel(u32::MAX)` is 16.64.
const MOST_NOISE: f32 = 16.7;

/// Below the first token's by so much, a mass is 0.
const NO_MASS: f32 = -28.0;

/// Picks a token for every row of a slot that samples; `picks` `[S, K]`.
pub fn sample(step: &Step<'_>, picks: &mut [SamplePick]) {
    let beam_size = step.beam_size;
    picks.par_iter_mut().enumerate().for_each_init(Vec::new, |kept, (i, pick)| {
        let place = ((i / beam_size) as u32, (i % beam_size) as u32);
        let r = step.rows.partition_point(|row| (row.slot, row.beam) < place);
        if step.rows.get(r).is_some_and(|row| (row.slot, row.beam) == place)
            && let Some(draw) = step.draw(r)
        {
            *pick = pick_token(&draw, kept);
        }
    });
}

fn pick_token(draw: &Draw<'_>, kept: &mut Vec<u64>) -> SamplePick {
    let none = |why: f32| SamplePick { token: SamplePick::NONE, log_prob: why, ranked_log_prob: why };
    let normalizer = Normalizer::of(draw.logits);
    if normalizer.max.is_nan() || normalizer.max == f32::INFINITY {
        return none(normalizer.max);
    }
    let is_ranked = !std::ptr::eq(draw.z, draw.logits);
    let largest = if is_ranked { simd::max(draw.z) } else { 0.0 };
    if largest.is_nan() || largest == f32::INFINITY {
        return none(largest);
    }
    let Some(best) = first(draw) else { return none(f32::NEG_INFINITY) };
    let greedy = draw.only_eos || draw.options.temperature == 0.0;
    let token = if greedy { best } else { Filtered::new(draw, best, kept).draw(draw) };
    let log_prob = normalizer.log_prob(draw.logits[token]);
    SamplePick { token: token as u32, log_prob, ranked_log_prob: if is_ranked { draw.z[token] } else { log_prob } }
}

/// The first token in order of z, if there is one.
fn first(draw: &Draw<'_>) -> Option<usize> {
    let mut best = None;
    let mut threshold = f32::NEG_INFINITY;
    simd::scan_above(draw.z, threshold, |token, z| {
        if draw.allows(token) {
            (best, threshold) = (Some(token), z);
        }
        threshold
    });
    best
}

/// Orders tokens as the filters do, the largest key first.
fn key(z: f32, token: usize) -> u64 {
    let bits = (z + 0.0).to_bits();
    let ordered = if bits >> 31 != 0 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!(token as u32))
}

fn key_token(key: u64) -> usize {
    !(key as u32) as usize
}

/// What the filters leave of a row.
#[derive(Clone, Copy, Debug)]
struct Filtered {
    best: usize,
    max: f32,
    temperature: f32,
    inverse_temperature: f32,
    /// The least key that stays.
    cutoff: u64,
    /// The least mass that stays.
    limit: u64,
}

impl Filtered {
    /// `kept` is working memory.
    fn new(draw: &Draw<'_>, best: usize, kept: &mut Vec<u64>) -> Self {
        let SampleOptions { temperature, top_k, top_p, min_p, epsilon, .. } = draw.options;
        let inverse_temperature = 1.0 / temperature;
        let mut all = Filtered { best, max: draw.z[best], temperature, inverse_temperature, cutoff: 0, limit: 0 };
        kept.clear();
        if (1..draw.z.len()).contains(&(top_k as usize)) {
            keep_first(draw, top_k as usize, kept);
            all.cutoff = kept[kept.len() - 1];
        }
        if top_p < 1.0 {
            let limit = share(top_p, all.total(draw)).max(1);
            if kept.is_empty() {
                all.keep_mass(draw, limit, kept);
            }
            let mut before = 0;
            let stays = kept.iter().take_while(|key| {
                let stays = before < limit;
                before += all.mass(draw.z[key_token(**key)]);
                stays
            });
            all.cutoff = stays.last().copied().unwrap_or(all.cutoff);
        }
        all.limit = share(min_p, all.mass(all.max));
        if epsilon > 0.0 {
            all.limit = all.limit.max(share(epsilon, all.total(draw)));
        }
        all
    }

    /// (z - max z) / temperature.
    fn x(&self, z: f32) -> f32 {
        (z - self.max) * self.inverse_temperature
    }

    fn mass(&self, z: f32) -> u64 {
        portable_math::mass(self.x(z))
    }

    /// A z at or below which `x` is less than this, with room for rounding.
    fn below(&self, x: f32) -> f32 {
        let down = self.temperature * x;
        self.max + down - 1e-5 * (self.max.abs() + down.abs()) - f32::MIN_POSITIVE
    }

    fn stays(&self, token: usize, z: f32) -> bool {
        token == self.best || (key(z, token) >= self.cutoff && (self.limit == 0 || self.mass(z) >= self.limit))
    }

    /// The mass of what has stayed so far.
    fn total(&self, draw: &Draw<'_>) -> u64 {
        if self.cutoff == 0 && self.limit == 0 {
            return simd::sum_masses(draw.z, self.max, self.inverse_temperature) - self.forbidden(draw);
        }
        let (mut total, floor) = (0, self.below(NO_MASS));
        simd::scan_above(draw.z, floor, |token, z| {
            if draw.allows(token) && self.stays(token, z) {
                total += self.mass(z);
            }
            floor
        });
        total
    }

    /// The mass of what may not be taken, as [`simd::sum_masses`] counts it.
    fn forbidden(&self, draw: &Draw<'_>) -> u64 {
        let mass = |token: usize| portable_math::mass(self.x(draw.z[token]).min(0.0));
        let among = |tokens: &mut dyn Iterator<Item = usize>| tokens.filter(|t| !draw.allows(*t)).map(mass).sum();
        if !draw.bans.is_empty() {
            return among(&mut (0..draw.z.len()));
        }
        let other = Some(draw.eos).filter(|eos| *eos != draw.pad);
        among(&mut other.into_iter().chain([draw.pad]).filter(|token| *token < draw.z.len()))
    }

    /// kept = a beginning of the order that holds at least `limit` of the mass.
    fn keep_mass(&self, draw: &Draw<'_>, limit: u64, kept: &mut Vec<u64>) {
        // Most of the mass lies near the top: the rest need not be sorted.
        for depth in [-3.0, -9.0, NO_MASS] {
            let (mut sum, floor) = (0, self.below(depth));
            kept.clear();
            simd::scan_above(draw.z, floor, |token, z| {
                if draw.allows(token) {
                    sum += self.mass(z);
                    kept.push(key(z, token));
                }
                floor
            });
            if sum >= limit {
                break;
            }
        }
        kept.sort_unstable_by(|a, b| b.cmp(a));
    }

    /// Draws from what has stayed.
    fn draw(&self, draw: &Draw<'_>) -> usize {
        let (mut best, mut score) = (self.best, draw.noise(self.best));
        let lowest = if self.cutoff == 0 { f32::NEG_INFINITY } else { draw.z[key_token(self.cutoff)] };
        let (isa, least_words) = (simd::Isa::best(), &*LEAST_WORDS);
        for (block, z) in draw.z.chunks(BLOCK).enumerate() {
            // What is best so far rules most blocks out: by their largest z, or by that and their random words.
            let largest = isa.max(z);
            let needed = score - self.x(largest);
            if largest < lowest || needed > MOST_NOISE {
                continue;
            }
            let words = isa.random_words(draw.seed(), draw.counter(block * BLOCK / 4));
            let least = least_words[step_of(needed)];
            if words.as_flattened().iter().all(|word| *word < least) {
                continue;
            }
            for (i, &z) in z.iter().enumerate() {
                let (token, word) = (block * BLOCK + i, words[i % 4][i / 4]);
                if word >= least && draw.allows(token) && self.stays(token, z) {
                    let own = self.x(z) + gumbel(word);
                    if own > score || (own == score && token < best) {
                        (best, score) = (token, own);
                    }
                }
            }
        }
        best
    }
}

/// Tokens whose random words are computed at once.
const BLOCK: usize = 4 * simd::LANES;

/// The number of [`LEAST_WORDS`], and how many of them stand for one unit of noise.
const STEPS: usize = 158;
const STEPS_PER_UNIT: f32 = 8.0;

/// No noise is smaller: `gumbel(0)` is -2.81. The last step is [`MOST_NOISE`].
const LEAST_NOISE: f32 = -3.0;

/// For each step of noise a word below which all have less, by a thousandth at least: more than roundings make of it. Comparing words
/// saves the two logarithms of [`gumbel`].
static LEAST_WORDS: LazyLock<[u32; STEPS]> = LazyLock::new(|| {
    std::array::from_fn(|step| {
        let noise = LEAST_NOISE + step as f32 / STEPS_PER_UNIT - 1e-3;
        let (mut low, mut high) = (0, u32::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            (low, high) = if gumbel(middle) < noise { (middle + 1, high) } else { (low, middle) };
        }
        low
    })
});

/// The last step that is not above this noise.
fn step_of(noise: f32) -> usize {
    (((noise - LEAST_NOISE) * STEPS_PER_UNIT) as usize).min(STEPS - 1)
}

/// The least mass that is at least `part` of `whole`.
fn share(part: f32, whole: u64) -> u64 {
    (f64::from(part) * whole as f64).ceil() as u64
}

/// kept = the first `count` of the order, or as many as there are, sorted.
fn keep_first(draw: &Draw<'_>, count: usize, kept: &mut Vec<u64>) {
    let mut threshold = f32::NEG_INFINITY;
    let room = 2 * count + 64;
    simd::scan_above(draw.z, threshold, |token, z| {
        if draw.allows(token) {
            kept.push(key(z, token));
            if kept.len() == room {
                let (_, last, _) = kept.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
                // Later tokens with the same z come after all that are kept.
                threshold = draw.z[key_token(*last)];
                kept.truncate(count);
            }
        }
        threshold
    });
    kept.sort_unstable_by(|a, b| b.cmp(a));
    kept.truncate(count);
}
