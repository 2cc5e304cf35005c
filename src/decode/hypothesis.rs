//! A finished hypothesis, resolved from the device's back-pointers.

use crate::backend::{Backend, Failure, Finished, Part, Search, SessionShape, SlotOptions, words};
use crate::error::room;
use crate::{Error, Result};

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

/// What is copied to the host of a slot whose search has ended, and where it lies there, in words.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    options: SlotOptions,
    shape: SessionShape,
    /// Steps that the slot has run, at most.
    steps: usize,
}

/// A record starts with the number of finished hypotheses; failure, finished and the histories follow.
const HEAD_WORDS: usize = 1;

impl Record {
    /// The record of a slot that ran with these options for at most so many steps.
    pub fn new(shape: SessionShape, options: SlotOptions, steps: usize) -> Self {
        Record { options, shape, steps: steps.min(shape.max_len) }
    }

    /// Words of the longest record of any slot.
    pub fn most_words(shape: SessionShape) -> usize {
        Record { options: bytemuck::Zeroable::zeroed(), shape, steps: shape.max_len }.words()
    }

    fn words(&self) -> usize {
        let finished = self.shape.beam_size * words::<Finished>();
        HEAD_WORDS + words::<Failure>() + finished + 3 * self.history_len() + self.attention_len()
    }

    fn history_len(&self) -> usize {
        self.steps * self.shape.beam_size
    }

    fn attention_len(&self) -> usize {
        if self.shape.keep_attention { self.history_len() * self.shape.max_src_len } else { 0 }
    }

    /// Enqueues the copies.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn post<B: Backend>(&self, backend: &B, search: &Search<B>, slot: usize, to: &mut B::Readback) -> Result<()> {
        let SessionShape { beam_size, max_len, max_src_len, .. } = self.shape;
        let part = |len: usize| slot * len..(slot + 1) * len;
        let (first, len) = (slot * max_len * beam_size, self.history_len());
        let history = first..first + len;
        let mut parts = vec![
            Part::Ints(&search.finished_count, part(1)),
            Part::Ints(&search.failures, part(words::<Failure>())),
            Part::Ints(&search.finished, part(beam_size * words::<Finished>())),
            Part::Ints(&search.tokens, history.clone()),
            Part::Ints(&search.parents, history.clone()),
            Part::Floats(&search.log_probs, history),
        ];
        if self.shape.keep_attention {
            let first = first * max_src_len;
            parts.push(Part::Floats(&search.attention, first..first + self.attention_len()));
        }
        backend.enqueue_read_parts(&parts, to)
    }

    /// The finished hypotheses, best first, samples in their own order, or what ended the sentence, from the words that were posted.
    ///
    /// # Errors
    /// A failed device operation. The inner result is the sentence's own.
    pub fn read<B: Backend>(
        &self,
        backend: &B,
        from: &B::Readback,
        search: &Search<B>,
        slot: usize,
    ) -> Result<Result<Vec<Hypothesis>>> {
        let mut posted = room::zeros::<u32>("read results", self.words())?;
        backend.wait_readback(from, &mut posted)?;
        let (head, rest) = posted.split_at(HEAD_WORDS);
        let (failure, rest) = rest.split_at(words::<Failure>());
        let &Failure { failed, step, beam, value } = &bytemuck::cast_slice::<u32, Failure>(failure)[0];
        if failed != 0 {
            let (step, row) = (step as usize, beam as usize);
            return Ok(Err(Error::NonFiniteLogits { step, slot, row, value }));
        }
        let (finished, rest) = rest.split_at(self.shape.beam_size * words::<Finished>());
        let (tokens, rest) = rest.split_at(self.history_len());
        let (parents, rest) = rest.split_at(self.history_len());
        let (log_probs, attention) = rest.split_at(self.history_len());
        let mut history = History {
            options: self.options,
            finished: bytemuck::cast_slice(finished)[..head[0] as usize].to_vec(),
            tokens: room::copy("read results", tokens)?,
            parents: room::copy("read results", parents)?,
            log_probs: room::copy("read results", bytemuck::cast_slice(log_probs))?,
            attention: room::copy("read results", bytemuck::cast_slice(attention))?,
        };
        if self.options.samples() {
            let mut finished = std::mem::take(&mut history.finished);
            finished.sort_by_key(|finished| history.origin(finished, self.shape.beam_size));
            history.finished = finished;
        }
        Ok(history.finished.iter().map(|finished| history.resolve(finished, search).check()).collect())
    }
}

/// The sum of the log-probabilities of these tokens.
///
/// # Errors
/// [`Error::NonFiniteScore`] if it is not finite.
pub fn finite_sum(operation: &'static str, token_ids: &[u32], log_probs: &[f32]) -> Result<f32> {
    let mut sum = 0.0;
    for (i, (token, log_prob)) in token_ids.iter().zip(log_probs).enumerate() {
        sum += log_prob;
        if !sum.is_finite() {
            return Err(Error::NonFiniteScore { operation, value: sum, position: i + 1, token: *token });
        }
    }
    Ok(sum)
}

impl Hypothesis {
    /// The hypothesis, if its scores are finite.
    fn check(self) -> Result<Self> {
        finite_sum("decode", &self.token_ids, &self.token_log_probs)?;
        if self.score.is_finite() && self.search_log_prob.is_finite() {
            return Ok(self);
        }
        let token = self.token_ids.last().copied().unwrap_or_default();
        Err(Error::NonFiniteScore { operation: "decode", value: self.score, position: self.length, token })
    }
}

/// The history of one slot.
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
    /// The beam that a hypothesis started in: the number of a sample.
    fn origin(&self, finished: &Finished, beam_size: usize) -> usize {
        let steps = finished.length - u32::from(finished.has_eos != 0);
        let parent = |beam: usize, step: usize| self.parents[step * beam_size + beam] as usize;
        (0..steps as usize).rev().fold(finished.beam as usize, parent)
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

    fn attention(&self, makers: &[usize], max_src_len: usize, k: usize) -> Vec<Vec<f32>> {
        let src_len = self.options.src_len as usize;
        let row = |(step, beam): (usize, &usize)| {
            let at = (step * k + beam) * max_src_len;
            self.attention[at..at + src_len].to_vec()
        };
        makers.iter().enumerate().map(row).collect()
    }
}
