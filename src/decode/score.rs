//! Teacher-forced scoring: what the model says of given targets, every position a row of one decoder pass.

use crate::backend::{Backend, Row, Rows, SessionShape, SlotOptions, TokenStats};
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

/// Rows that one pass takes, unless one target alone has more: bounds the memory for logits.
pub(super) const ROWS: usize = 256;

/// Scores pairs in one pass: per pair the statistics of each target token.
///
/// The log-probabilities' bits are those of a search that took the same tokens.
///
/// # Errors
/// [`Error::NonFiniteLogits`] names the pair (as slot) and the position; a failed device operation.
pub(super) fn score<B: Backend, M: Seq2Seq<B>>(
    backend: &B,
    model: &M,
    pairs: &[Pair<'_>],
) -> Result<Vec<Vec<TokenStats>>> {
    let ids = model.ids();
    let longest = |len: fn(&Pair<'_>) -> usize| pairs.iter().map(len).max().unwrap_or(0);
    let total: usize = pairs.iter().map(|p| p.target.len()).sum();
    let shape = SessionShape {
        slots: pairs.len(),
        beam_size: 1,
        max_len: longest(|p| p.target.len()),
        max_src_len: longest(|p| p.source.len()),
        rows: total,
        keep_attention: false,
    };
    let mut state = model.open(backend, shape)?;
    let sources: Vec<(u32, &[u32])> = pairs.iter().enumerate().map(|(i, p)| (i as u32, p.source)).collect();
    model.encode(backend, &mut state, &sources)?;

    let slot_options = |p: &Pair<'_>| SlotOptions { src_len: p.source.len() as u32, ..bytemuck::Zeroable::zeroed() };
    let options: Vec<SlotOptions> = pairs.iter().map(slot_options).collect();
    let mut device_options = backend.zeros::<u32>(options.len() * std::mem::size_of::<SlotOptions>() / 4)?;
    backend.write(&mut device_options, 0, bytemuck::cast_slice(&options))?;
    let ancestry = backend.zeros::<u32>(shape.slots * shape.max_len)?;

    let mut list = Vec::with_capacity(total);
    for (slot, pair) in pairs.iter().enumerate() {
        let own = [&[ids.decoder_start_id], pair.target].concat();
        let inputs = pair.inputs.unwrap_or(&own);
        for (position, (&token, _)) in inputs.iter().zip(pair.target).enumerate() {
            list.push(Row { slot: slot as u32, beam: 0, position: position as u32, token });
        }
    }
    let mut rows = Rows::with_capacity(backend, total)?;
    rows.set(backend, &list)?;
    model.step(backend, &mut state, &rows, &ancestry, &device_options)?;

    let targets: Vec<u32> = pairs.iter().flat_map(|p| p.target).copied().collect();
    let mut gold = backend.zeros::<u32>(total)?;
    backend.write(&mut gold, 0, &targets)?;
    let words = std::mem::size_of::<TokenStats>() / std::mem::size_of::<u32>();
    let mut device_stats = backend.zeros::<u32>(total * words)?;
    backend.token_stats(&rows, model.logits(&state), model.vocab_size(), &gold, &mut device_stats)?;
    let mut stats = vec![TokenStats::default(); total];
    backend.read(&device_stats, 0, bytemuck::cast_slice_mut(&mut stats))?;
    if let Some(at) = stats.iter().position(|s| s.log_prob.is_nan()) {
        let Row { slot, position, .. } = list[at];
        return Err(Error::NonFiniteLogits {
            step: position as usize + 1,
            slot: slot as usize,
            row: 0,
            value: stats[at].log_prob,
        });
    }
    let mut rest = stats.into_iter();
    Ok(pairs.iter().map(|p| rest.by_ref().take(p.target.len()).collect()).collect())
}
