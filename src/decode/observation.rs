//! What a step left of one sentence's search, as those who watch it are told.

use crate::Result;
use crate::backend::{Backend, Finished, Search, SessionShape, words as words_of};
use crate::error::room;

/// What a step left of one sentence's search.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// Generated tokens per live hypothesis: the number of the step, from 1.
    pub step: usize,
    /// The live hypotheses after the step, best first, samples in the order of their beams; none after the last one.
    pub live: Vec<LiveBeam>,
    /// The finished hypotheses that are kept, best first.
    pub finished: Vec<Finished>,
}

/// A live hypothesis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveBeam {
    /// Its latest token.
    pub token: u32,
    /// Its place among the live ones of the step before; 0 at the first step.
    pub parent: usize,
    /// The model's own log-probability of the token.
    pub log_prob: f32,
    /// Sum of what the search ranked.
    pub search_log_prob: f32,
}

/// Words of a slot's copy: how many have finished, these, and of each beam token, parent, log-probability and sum.
pub(super) fn words(shape: SessionShape) -> usize {
    1 + shape.beam_size * (words_of::<Finished>() + 4)
}

/// Enqueues the copy of a slot behind its step number `step`.
///
/// # Errors
/// A failed device operation.
pub(super) fn post<B: Backend>(
    backend: &B,
    search: &Search<B>,
    slot: usize,
    step: usize,
    to: &mut B::Readback,
) -> Result<()> {
    let SessionShape { beam_size, max_len, .. } = search.shape;
    let kept = beam_size * words_of::<Finished>();
    backend.enqueue_read::<u32>(&search.finished_count, slot..slot + 1, to, 0)?;
    backend.enqueue_read::<u32>(&search.finished, slot * kept..(slot + 1) * kept, to, 1)?;
    let (first, at) = ((slot * max_len + step - 1) * beam_size, |part: usize| 1 + kept + part * beam_size);
    backend.enqueue_read::<u32>(&search.tokens, first..first + beam_size, to, at(0))?;
    backend.enqueue_read::<u32>(&search.parents, first..first + beam_size, to, at(1))?;
    backend.enqueue_read::<f32>(&search.log_probs, first..first + beam_size, to, at(2))?;
    let beams = slot * beam_size..(slot + 1) * beam_size;
    backend.enqueue_read::<f32>(&search.cum_log_probs, beams, to, at(3))
}

/// What has been copied, `live` hypotheses living.
///
/// # Errors
/// A failed device operation.
pub(super) fn read<B: Backend>(
    backend: &B,
    shape: SessionShape,
    live: usize,
    step: usize,
    from: &B::Readback,
) -> Result<Observation> {
    let mut copied = room::zeros::<u32>("read a step", words(shape))?;
    backend.wait_readback(from, &mut copied)?;
    let (count, rest) = copied.split_at(1);
    let (finished, beams) = rest.split_at(shape.beam_size * words_of::<Finished>());
    let part = |part: usize, beam: usize| beams[part * shape.beam_size + beam];
    let beam = |beam: usize| LiveBeam {
        token: part(0, beam),
        parent: part(1, beam) as usize,
        log_prob: f32::from_bits(part(2, beam)),
        search_log_prob: f32::from_bits(part(3, beam)),
    };
    Ok(Observation {
        step,
        live: (0..live).map(beam).collect(),
        finished: bytemuck::cast_slice(finished)[..count[0] as usize].to_vec(),
    })
}
