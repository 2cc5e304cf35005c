//! Teacher-forced scoring: what the model says of given targets, every position a row of a decoder pass.

use crate::backend::{Backend, Row, Rows, SessionShape, SlotOptions, TokenStats, words};
use crate::model::Seq2Seq;
use crate::{Error, Result};

/// A source and the target to score, in ids, end of sentence included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub source: &'a [u32],
    pub target: &'a [u32],
    /// What the decoder reads at each position of the target, instead of the start token and the target itself.
    pub inputs: Option<&'a [u32]>,
}

/// Rows that one pass takes where nobody waits for a step: bounds the memory for logits.
pub(super) const ROWS: usize = 256;

/// Pairs on their way through the decoder, some rows at a time.
///
/// The log-probabilities' bits are those of a search that took the same tokens: a row reads the keys and values of those before
/// it, whether these were computed beside it or earlier.
#[derive(Debug)]
pub(super) struct Pass<B: Backend, M: Seq2Seq<B>> {
    state: M::State,
    options: B::Buffer<u32>,
    ancestry: B::Buffer<u32>,
    rows: Rows<B>,
    gold: B::Buffer<u32>,
    device_stats: B::Buffer<u32>,
    /// Every position of every target.
    list: Vec<Row>,
    targets: Vec<u32>,
    /// As far as the rows have been computed.
    stats: Vec<TokenStats>,
    lengths: Vec<usize>,
    /// Rows of a part, at most.
    part: usize,
}

impl<B: Backend, M: Seq2Seq<B>> Pass<B, M> {
    /// Encodes the sources of at least one pair; targets will be computed `part` rows at a time.
    ///
    /// # Errors
    /// A failed device operation.
    pub(super) fn open(backend: &B, model: &M, pairs: &[Pair<'_>], part: usize) -> Result<Self> {
        let ids = model.ids();
        let longest = |len: fn(&Pair<'_>) -> usize| pairs.iter().map(len).max().unwrap_or(0);
        let total: usize = pairs.iter().map(|p| p.target.len()).sum();
        let part = part.min(total);
        let shape = SessionShape {
            slots: pairs.len(),
            beam_size: 1,
            max_len: longest(|p| p.target.len()),
            max_src_len: longest(|p| p.source.len()),
            rows: part,
            keep_attention: false,
        };
        let mut state = model.open(backend, shape)?;
        let sources: Vec<(u32, &[u32])> = pairs.iter().enumerate().map(|(i, p)| (i as u32, p.source)).collect();
        model.encode(backend, &mut state, &sources)?;

        let slot_options = |p: &Pair<'_>| SlotOptions { src_len: p.source.len() as u32, ..SlotOptions::default() };
        let slot_options: Vec<SlotOptions> = pairs.iter().map(slot_options).collect();
        let mut options = backend.zeros::<u32>(slot_options.len() * words::<SlotOptions>())?;
        backend.write(&mut options, 0, bytemuck::cast_slice(&slot_options))?;
        let mut list = Vec::with_capacity(total);
        for (slot, pair) in pairs.iter().enumerate() {
            let own = [&[ids.decoder_start_id], pair.target].concat();
            let inputs = pair.inputs.unwrap_or(&own);
            for (position, (&token, _)) in inputs.iter().zip(pair.target).enumerate() {
                list.push(Row { slot: slot as u32, beam: 0, position: position as u32, token });
            }
        }
        Ok(Pass {
            state,
            options,
            ancestry: backend.zeros::<u32>(shape.slots * shape.max_len)?,
            rows: Rows::with_capacity(backend, part)?,
            gold: backend.zeros::<u32>(part)?,
            device_stats: backend.zeros::<u32>(part * words::<TokenStats>())?,
            list,
            targets: pairs.iter().flat_map(|p| p.target).copied().collect(),
            stats: Vec::with_capacity(total),
            lengths: pairs.iter().map(|p| p.target.len()).collect(),
            part,
        })
    }

    /// Rows that the next turn computes.
    pub(super) fn next_rows(&self) -> usize {
        (self.list.len() - self.stats.len()).min(self.part)
    }

    /// Computes the next rows. Once all have been, per pair the statistics of each target token.
    ///
    /// # Errors
    /// [`Error::NonFiniteLogits`] names the pair (as slot) and the position; a failed device operation.
    pub(super) fn advance(&mut self, backend: &B, model: &M) -> Result<Option<Vec<Vec<TokenStats>>>> {
        let done = self.stats.len();
        let part = done..done + self.next_rows();
        self.rows.set(backend, &self.list[part.clone()])?;
        model.step(backend, &mut self.state, &self.rows, &self.ancestry, &self.options)?;
        backend.write(&mut self.gold, 0, &self.targets[part.clone()])?;
        let (logits, vocab_size) = (model.logits(&self.state), model.vocab_size());
        backend.token_stats(&self.rows, logits, vocab_size, &self.gold, &mut self.device_stats)?;
        self.stats.resize(part.end, TokenStats::default());
        let stats = &mut self.stats[part.clone()];
        backend.read(&self.device_stats, 0, bytemuck::cast_slice_mut(stats))?;
        if let Some(at) = stats.iter().position(|s| s.log_prob.is_nan()) {
            let (Row { slot, position, .. }, value) = (self.list[done + at], stats[at].log_prob);
            return Err(Error::NonFiniteLogits { step: position as usize + 1, slot: slot as usize, row: 0, value });
        }
        if part.end < self.list.len() {
            return Ok(None);
        }
        let mut rest = std::mem::take(&mut self.stats).into_iter();
        Ok(Some(self.lengths.iter().map(|&length| rest.by_ref().take(length).collect()).collect()))
    }
}
