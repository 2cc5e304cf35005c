//! What a model might say, and what a step may read beside it.

use super::IDS;
use crate::backend::{BANK_WORDS, Constraints, SamplePick, Search, SessionShape, SlotOptions};
use crate::cpu::Cpu;
use crate::cuda::testing::Values;

/// What a model might say.
pub struct Data(Values);

impl Data {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Data(Values::new(seed))
    }

    /// Logits with outliers, -inf and an end of sentence that is likely at times; attention.
    pub fn draw(&mut self, shape: SessionShape, vocab_size: usize) -> (Vec<f32>, Vec<f32>) {
        let mut logits: Vec<f32> = self.0.elements(shape.rows * vocab_size, 1.0, 1.5);
        for (i, z) in logits.iter_mut().enumerate() {
            if i % 29 == 3 {
                *z = f32::NEG_INFINITY;
            }
            if i % vocab_size == IDS.eos_id as usize && self.0.uniform() < 0.4 {
                *z = 16.0;
            }
        }
        // Nobody looks at one of the source's positions.
        let unseen = |i: usize| i % shape.max_src_len == 1;
        let mut weight = |i: usize| if unseen(i) { 0.0 } else { self.0.uniform() * 0.3 };
        let attention = (0..shape.rows * shape.max_src_len).map(&mut weight).collect();
        (logits, attention)
    }
}

/// Draws what a step may read beside the logits: another distribution, bans, picks. Padding is never picked.
pub fn draw_extras(search: &mut Search<Cpu>, seed: u64) {
    let mut noise = Values::new(seed);
    let (vocab_size, eos_id) = (search.vocab_size, search.ids.eos_id);
    for z in &mut search.ranked {
        *z = if noise.uniform() < 0.1 { f32::NEG_INFINITY } else { -9.0 * noise.uniform() };
    }
    // A mixture with a scorer that is not finite is NaN throughout.
    for row in search.ranked.chunks_mut(vocab_size) {
        if noise.uniform() < 0.004 {
            row.fill(f32::NAN);
        }
    }
    for word in search.bans.iter_mut() {
        let density = if noise.uniform() < 0.05 { 1.0 } else { 0.3 };
        *word = (0..32).fold(0, |word, bit| word | u32::from(noise.uniform() < density) << bit);
    }
    draw_banks(search, &mut noise);
    for pick in bytemuck::cast_slice_mut::<_, SamplePick>(&mut search.picks) {
        let log_prob = -4.0 * noise.uniform();
        let any = (1.0 + noise.uniform() * (vocab_size - 1) as f32) as u32;
        let none = |log_prob| SamplePick { token: SamplePick::NONE, log_prob, ranked_log_prob: 0.0 };
        *pick = match noise.uniform() {
            // What a row gets that cannot be sampled from.
            u if u < 0.004 => none(f32::NAN),
            u if u < 0.008 => none(f32::INFINITY),
            u if u < 0.05 => none(f32::NEG_INFINITY),
            u if u < 0.2 => SamplePick { token: eos_id, log_prob, ranked_log_prob: 2.0 * log_prob },
            _ => SamplePick { token: any, log_prob, ranked_log_prob: log_prob - 0.25 },
        };
    }
}

/// Draws the tokens of constraints, of one phrase, and any banks.
fn draw_banks(search: &mut Search<Cpu>, noise: &mut Values) {
    let vocab_size = search.vocab_size;
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let mut below = |limit: usize| (noise.uniform() * limit as f32) as usize % limit;
    let constraints: &mut [Constraints] = bytemuck::cast_slice_mut(&mut search.constraints);
    for (constraints, options) in constraints.iter_mut().zip(options) {
        // Now and then padding, which is never a candidate.
        let token = |id: usize| if id == IDS.eos_id as usize { 3 } else { id as u32 };
        let ids: Vec<u32> = (0..options.constraints).map(|_| token(below(vocab_size))).collect();
        *constraints = Constraints::new((!ids.is_empty()).then_some(ids.as_slice()));
    }
    // At times every candidate has met something, and the lowest bank has none.
    let lowest = below(2) as u32;
    for (row, banks) in search.rows.live().iter().zip(search.banks.chunks_mut(BANK_WORDS)) {
        let all = options[row.slot as usize].constraints;
        let lowest = lowest.min(all);
        banks.iter_mut().for_each(|bank| *bank = lowest + below((all - lowest) as usize + 1) as u32);
        match below(3) {
            0 => banks[0] = all,
            1 => banks[0] = lowest,
            _ => {}
        }
    }
}
