//! Slots of sentences being decoded: admit, step, harvest.

use crate::backend::{Backend, Failure, Search, SessionShape, SlotOptions};
use crate::decode::hypothesis::{Hypothesis, harvest};
use crate::model::Seq2Seq;
use crate::{Error, Result};

/// A search over a fixed number of slots, each with its own sentence, options and step counter.
///
/// Sentences come and go independently: a slot's result does not depend on what the other slots hold.
#[derive(Debug)]
pub struct Session<B: Backend, M: Seq2Seq<B>> {
    state: M::State,
    search: Search<B>,
    /// Live beams per slot, as last read back.
    live: Vec<u32>,
    /// Beams that each slot's sentence may have; 0 when the slot is free.
    beams: Vec<usize>,
}

/// A sentence to be taken into a session.
#[derive(Clone, Debug)]
pub struct Admission<'a> {
    /// A free slot.
    pub slot: usize,
    /// Source ids, end of sentence included.
    pub source: &'a [u32],
    /// Its options; lengths and beams within the session's shape.
    pub options: SlotOptions,
}

impl<B: Backend, M: Seq2Seq<B>> Session<B, M> {
    /// Allocates a session with all slots free.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, model: &M, shape: SessionShape) -> Result<Self> {
        Ok(Session {
            state: model.open(backend, shape)?,
            search: Search::open(backend, shape, model.vocab_size(), model.ids())?,
            live: vec![0; shape.slots],
            beams: vec![0; shape.slots],
        })
    }

    /// The sizes it was opened with.
    pub fn shape(&self) -> SessionShape {
        self.search.shape
    }

    /// The state of the search.
    pub(super) fn search(&self) -> &Search<B> {
        &self.search
    }

    /// Slots without a sentence.
    pub fn free_slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.beams.iter().enumerate().filter(|(_, beams)| **beams == 0).map(|(slot, _)| slot)
    }

    /// Whether every slot is free.
    pub fn is_empty(&self) -> bool {
        self.beams.iter().all(|beams| *beams == 0)
    }

    /// Encodes sentences into free slots.
    ///
    /// # Errors
    /// A failed device operation.
    ///
    /// # Panics
    /// If a slot is taken, or a sentence does not fit the session's shape.
    pub fn admit(&mut self, backend: &B, model: &M, sentences: &[Admission<'_>]) -> Result<()> {
        let shape = self.shape();
        for Admission { slot, source, options } in sentences {
            let before = std::mem::replace(&mut self.beams[*slot], options.beam_size as usize);
            assert!(before == 0, "slot {slot} is taken");
            let fits = source.len() <= shape.max_src_len
                && options.max_len as usize <= shape.max_len
                && options.beam_size as usize <= shape.beam_size;
            assert!(fits, "a sentence of {} tokens with {options:?} does not fit {shape:?}", source.len());
        }
        let sources: Vec<(u32, &[u32])> = sentences.iter().map(|s| (s.slot as u32, s.source)).collect();
        model.encode(backend, &mut self.state, &sources)?;
        let slots: Vec<(u32, SlotOptions)> = sentences.iter().map(|s| (s.slot as u32, s.options)).collect();
        backend.start_slots(&slots, &mut self.search)
    }

    /// Advances every live slot by one token.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn step(&mut self, backend: &B, model: &M) -> Result<()> {
        let Session { state, search, beams, .. } = self;
        search.rows.bucket = bucket(beams, search.shape.rows);
        model.step(backend, state, &search.rows, &search.ancestry, &search.options)?;
        backend.beam_step(model.logits(state), model.attention(state), search)
    }

    /// Hands every sentence whose search has ended to `receive`, best hypothesis first, and frees its slot.
    ///
    /// # Errors
    /// A failed device operation. A sentence whose logits were not finite is reported to `receive` alone.
    pub fn harvest(&mut self, backend: &B, mut receive: impl FnMut(usize, Result<Vec<Hypothesis>>)) -> Result<()> {
        backend.read_ints(&self.search.live, 0, &mut self.live)?;
        for slot in 0..self.beams.len() {
            if self.beams[slot] > 0 && self.live[slot] == 0 {
                let result = match self.failure(backend, slot)? {
                    Some(error) => Err(error),
                    None => Ok(harvest(backend, &self.search, slot)?),
                };
                self.beams[slot] = 0;
                receive(slot, result);
            }
        }
        Ok(())
    }

    fn failure(&self, backend: &B, slot: usize) -> Result<Option<Error>> {
        let words = std::mem::size_of::<Failure>() / std::mem::size_of::<u32>();
        let mut failure = [Failure::default()];
        backend.read_ints(&self.search.failures, slot * words, bytemuck::cast_slice_mut(&mut failure))?;
        let Failure { failed, step, beam, value } = failure[0];
        let error = Error::NonFiniteLogits { step: step as usize, slot, row: beam as usize, value };
        Ok((failed != 0).then_some(error))
    }
}

/// Rows that grids are sized for when the taken slots have these beams: few different numbers, so that what a device prepares
/// for a number of rows is used again.
fn bucket(beams: &[usize], capacity: usize) -> usize {
    beams.iter().sum::<usize>().next_power_of_two().min(capacity)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn the_bucket_holds_every_beam_and_no_more_than_there_is_room_for() {
        assert_eq!(bucket(&[0, 5, 0, 4], 96), 16);
        assert_eq!(bucket(&[4; 16], 96), 64);
        assert_eq!(bucket(&[4; 24], 96), 96);
        assert_eq!(bucket(&[4, 0], 8), 4);
    }
}
