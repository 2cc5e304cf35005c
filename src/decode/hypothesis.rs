//! A finished hypothesis, resolved from the device's back-pointers.

use crate::Result;
use crate::backend::{Backend, Finished, Search, SlotOptions, words};

/// One translation of one sentence, in ids.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Generated tokens, end of sentence included.
    pub token_ids: Vec<u32>,
    /// The model's own log-probability of each, natural logarithm.
    pub token_log_probs: Vec<f32>,
    /// Their sum: the teacher-forced score of `token_ids`.
    pub log_prob: f32,
    /// Sum of what the search ranked; differs from `log_prob` only under options that change the distribution.
    pub search_log_prob: f32,
    /// Generated tokens, end of sentence included.
    pub length: usize,
    /// What divides `search_log_prob`.
    pub length_penalty: f32,
    /// What coverage adds to the score; 0 or less.
    pub coverage_penalty: f32,
    /// `search_log_prob / length_penalty + coverage_penalty + word_reward * length`.
    pub score: f32,
    /// Whether a length limit, or masks that left no token, cut the sentence.
    pub truncated: bool,
    /// Per generated token the attention to each source token, end of sentence included: last decoder layer, mean over heads.
    /// Present on request.
    pub attention: Option<Vec<Vec<f32>>>,
}

impl Hypothesis {
    /// The translation of a blank line: nothing, at no cost; the model is not asked.
    pub fn empty() -> Self {
        Hypothesis {
            token_ids: Vec::new(),
            token_log_probs: Vec::new(),
            log_prob: 0.0,
            search_log_prob: 0.0,
            length: 0,
            length_penalty: 1.0,
            coverage_penalty: 0.0,
            score: 0.0,
            truncated: false,
            attention: None,
        }
    }

    /// For each generated token the source position that it attends to most, ties to the first; present with the attention.
    pub fn alignment(&self) -> Option<Vec<usize>> {
        let strongest = |weights: &Vec<f32>| {
            let best = weights.iter().enumerate().reduce(|a, b| if b.1 > a.1 { b } else { a });
            best.map_or(0, |(position, _)| position)
        };
        Some(self.attention.as_ref()?.iter().map(strongest).collect())
    }
}

/// The history of one slot, read back once its search has ended.
struct History {
    options: SlotOptions,
    finished: Vec<Finished>,
    /// `[steps, K]` each.
    tokens: Vec<u32>,
    parents: Vec<u32>,
    log_probs: Vec<f32>,
    /// `[steps, K, N]`; empty unless kept.
    attention: Vec<f32>,
}

impl History {
    fn read<B: Backend>(backend: &B, search: &Search<B>, slot: usize) -> Result<Self> {
        let shape = search.shape;
        let k = shape.beam_size;
        let mut step = [0];
        let mut count = [0];
        let mut options = [bytemuck::Zeroable::zeroed()];
        backend.read_ints(&search.step, slot, &mut step)?;
        backend.read_ints(&search.finished_count, slot, &mut count)?;
        backend.read_ints(&search.options, slot * words::<SlotOptions>(), bytemuck::cast_slice_mut(&mut options))?;
        let mut finished = vec![bytemuck::Zeroable::zeroed(); count[0] as usize];
        let at = slot * k * words::<Finished>();
        backend.read_ints(&search.finished, at, bytemuck::cast_slice_mut(&mut finished))?;
        let (first, len) = (slot * shape.max_len * k, step[0] as usize * k);
        let mut history = History {
            options: options[0],
            finished,
            tokens: vec![0; len],
            parents: vec![0; len],
            log_probs: vec![0.0; len],
            attention: vec![0.0; if shape.keep_attention { len * shape.max_src_len } else { 0 }],
        };
        backend.read_ints(&search.tokens, first, &mut history.tokens)?;
        backend.read_ints(&search.parents, first, &mut history.parents)?;
        backend.read_floats(&search.log_probs, first, &mut history.log_probs)?;
        if shape.keep_attention {
            backend.read_floats(&search.attention, first * shape.max_src_len, &mut history.attention)?;
        }
        Ok(history)
    }

    /// The beam that made each token of a hypothesis, its own numbering after each step, and the tokens.
    fn resolve<B: Backend>(&self, finished: &Finished, search: &Search<B>) -> Hypothesis {
        let k = search.shape.beam_size;
        let closed = finished.has_eos != 0;
        let length = finished.length as usize;
        let mut token_ids = Vec::with_capacity(length);
        let mut token_log_probs = Vec::with_capacity(length);
        // The beam, numbered as before the step, whose row made each token.
        let mut makers = Vec::with_capacity(length);
        let mut beam = finished.beam as usize;
        if closed {
            token_ids.push(search.ids.eos_id);
            token_log_probs.push(finished.eos_log_prob);
            makers.push(beam);
        }
        for step in (0..length - usize::from(closed)).rev() {
            let at = step * k + beam;
            token_ids.push(self.tokens[at]);
            token_log_probs.push(self.log_probs[at]);
            beam = self.parents[at] as usize;
            makers.push(beam);
        }
        token_ids.reverse();
        token_log_probs.reverse();
        makers.reverse();
        Hypothesis {
            log_prob: token_log_probs.iter().sum(),
            search_log_prob: finished.search_log_prob,
            length,
            length_penalty: self.options.length_penalty_at(finished.length.max(1)),
            coverage_penalty: finished.coverage_penalty,
            score: finished.score,
            truncated: finished.truncated != 0,
            attention: search.shape.keep_attention.then(|| self.attention(&makers, search.shape.max_src_len, k)),
            token_ids,
            token_log_probs,
        }
    }

    /// The beam whose row made the first token: the number of a sample.
    fn first_beam(&self, finished: &Finished, k: usize) -> usize {
        let steps = 0..finished.length as usize - finished.has_eos as usize;
        steps.rev().fold(finished.beam as usize, |beam, step| self.parents[step * k + beam] as usize)
    }

    fn attention(&self, makers: &[usize], max_src_len: usize, k: usize) -> Vec<Vec<f32>> {
        let src_len = self.options.src_len as usize;
        let row = |(step, beam): (usize, &usize)| {
            let at = (step * k + beam) * max_src_len;
            self.attention[at..at + src_len].to_vec()
        };
        makers.iter().enumerate().map(row).collect()
    }
}

/// The finished hypotheses of a slot whose search has ended: best first, samples in their own order.
///
/// # Errors
/// A failed device operation.
pub(super) fn harvest<B: Backend>(backend: &B, search: &Search<B>, slot: usize) -> Result<Vec<Hypothesis>> {
    let history = History::read(backend, search, slot)?;
    let mut finished = history.finished.clone();
    if history.options.samples() {
        finished.sort_by_key(|finished| history.first_beam(finished, search.shape.beam_size));
    }
    Ok(finished.iter().map(|finished| history.resolve(finished, search)).collect())
}
