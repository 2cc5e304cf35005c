//! Op `beam_step`: one step of the search in every live slot; its contract is [`crate::backend::SearchOps::beam_step`].
//!
//! The fast path reads each row of logits twice while it is in cache: once for its log-sum-exp, once for the candidates that
//! can still enter the best 2K. Ranking runs in parallel over slots; applying it is a few words per slot and runs serially.

mod apply;
mod banks;
mod rank;
mod reference;
#[cfg(test)]
pub(crate) mod tests;

use crate::backend::{Failure, Row, Search, SessionShape, SlotOptions};
use crate::cpu::Cpu;

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
    /// The token; [`SamplePick::NONE`](crate::backend::SamplePick::NONE) ends a sample as it is.
    pub token: u32,
}

/// What ranking leaves for applying, per slot.
#[derive(Clone, Debug, Default)]
struct Ranking {
    /// Of each group in turn, sorted, best first; room for 2K.
    candidates: Vec<Candidate>,
    failure: Failure,
    /// A row without what is banned; grows when it is first needed.
    masked: Vec<f32>,
    /// The tokens that the groups ranked so far go on with; room for K.
    picked: Vec<u32>,
    /// Candidates that take one of the tokens which are looked at one by one, and its place among these.
    apart: Vec<(usize, Candidate)>,
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
    /// Bytes of that for `shape`.
    pub fn bytes(shape: SessionShape) -> usize {
        let SessionShape { slots, beam_size, max_len, max_src_len, .. } = shape;
        let ranking = size_of::<Ranking>() + (2 * beam_size + 1) * size_of::<Candidate>() + 4 * beam_size;
        slots * (ranking + size_of::<usize>()) + 4 * beam_size * (max_len + max_src_len)
    }

    /// Room for every slot of `shape`.
    pub fn new(shape: SessionShape) -> Self {
        // One more than 2K: a candidate is inserted before the worst is dropped.
        let ranking = || Ranking {
            candidates: Vec::with_capacity(2 * shape.beam_size + 1),
            picked: Vec::with_capacity(shape.beam_size),
            ..Ranking::default()
        };
        Scratch {
            rankings: (0..shape.slots).map(|_| ranking()).collect(),
            first_row: vec![0; shape.slots],
            ancestry: vec![0; shape.beam_size * shape.max_len],
            coverage: vec![0.0; shape.beam_size * shape.max_src_len],
        }
    }
}

/// Takes slots into the search; see [`crate::backend::SearchOps::start_slots`].
pub fn start_slots(slots: &[(u32, SlotOptions)], search: &mut Search<Cpu>) {
    let SessionShape { beam_size, max_len, max_src_len, .. } = search.shape;
    for &(slot, options) in slots {
        let slot = slot as usize;
        bytemuck::cast_slice_mut::<_, SlotOptions>(&mut search.options)[slot] = options;
        bytemuck::cast_slice_mut::<_, Failure>(&mut search.failures)[slot] = Failure::default();
        search.step[slot] = 0;
        search.live[slot] = options.first_beams();
        search.finished_count[slot] = 0;
        search.cum_log_probs[slot * beam_size..][..beam_size].fill(0.0);
        search.coverage[slot * beam_size * max_src_len..][..beam_size * max_src_len].fill(0.0);
        debug_assert!(options.max_len as usize <= max_len && options.src_len as usize <= max_src_len);
    }
    rebuild_rows(search);
}

/// Lists the live beams of all slots, by slot, then beam, each with its latest token.
fn rebuild_rows(search: &mut Search<Cpu>) {
    let SessionShape { slots, beam_size, max_len, .. } = search.shape;
    let rows: &mut [Row] = bytemuck::cast_slice_mut(&mut search.rows.entries);
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let mut count = 0;
    for (slot, options) in options[..slots].iter().enumerate() {
        search.scratch.first_row[slot] = count;
        let step = search.step[slot] as usize;
        for beam in 0..search.live[slot] as usize {
            let token = match step {
                0 => options.start_or(search.ids.decoder_start_id),
                _ => search.tokens[(slot * max_len + step - 1) * beam_size + beam],
            };
            rows[count] = Row { slot: slot as u32, beam: beam as u32, position: step as u32, token };
            count += 1;
        }
    }
    search.rows.count[0] = count as u32;
}

/// One step of the search in every live slot; see [`crate::backend::SearchOps::beam_step`].
pub fn beam_step(logits: &[f32], attention: &[f32], search: &mut Search<Cpu>) {
    rank::rank_all(logits, search);
    for slot in 0..search.shape.slots {
        if search.live[slot] > 0 {
            apply::apply(slot, attention, search);
        }
    }
    rebuild_rows(search);
}
