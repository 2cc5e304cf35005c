//! Slots of sentences being decoded: admit, step, harvest.

use crate::backend::{Backend, Failure, Search, SessionShape, SlotOptions, Stages, words};
use crate::decode::hypothesis::{Hypothesis, harvest};
use crate::decode::request::Request;
use crate::model::Seq2Seq;
use crate::{Error, Result};

/// A search over a fixed number of slots, each with its own sentence, options and step counter.
///
/// Sentences come and go independently: a slot's result does not depend on what the other slots hold.
///
/// What ranks may come from several *voices*, each a model with its own caches, all reading the same prefixes. Voice 0 is the
/// first model and gives every result its `log_prob`; voice i is model i; the last voice is the first model once more, reading
/// another source of the same sentence. Voices other than the first are opened when a sentence first asks for them.
#[derive(Debug)]
pub struct Session<B: Backend, M: Seq2Seq<B>> {
    voices: Vec<Option<Voice<M::State, B::Ints>>>,
    search: Search<B>,
    /// Live beams per slot, as last read back.
    live: Vec<u32>,
    /// Beams that each slot's sentence may have; 0 when the slot is free.
    beams: Vec<usize>,
    /// What each slot's sentence asks of a step.
    stages: Vec<Stages>,
}

/// A model's memory of the sentences that are being decoded.
#[derive(Debug)]
struct Voice<State, Ints> {
    /// Which of the models it is.
    model: usize,
    state: State,
    /// [`SlotOptions`] `[slots]` of which the source's length counts, where it reads a source of its own.
    options: Option<Ints>,
}

/// A sentence to be taken into a session.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// A free slot.
    pub slot: usize,
    /// Lengths and beams within the session's shape.
    pub request: &'a Request,
}

impl<B: Backend, M: Seq2Seq<B>> Session<B, M> {
    /// Allocates a session with all slots free. `models` are those that every call is given, in the same order.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, models: &[M], shape: SessionShape) -> Result<Self> {
        let model = &models[0];
        let first = Voice { model: 0, state: model.open(backend, shape)?, options: None };
        Ok(Session {
            voices: std::iter::once(Some(first)).chain(models.iter().map(|_| None)).collect(),
            search: Search::open(backend, shape, model.vocab_size(), model.ids())?,
            live: vec![0; shape.slots],
            beams: vec![0; shape.slots],
            stages: vec![Stages::default(); shape.slots],
        })
    }

    /// The sizes it was opened with.
    pub fn shape(&self) -> SessionShape {
        self.search.shape
    }

    /// Slots without a sentence.
    pub fn free_slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.beams.iter().enumerate().filter(|(_, beams)| **beams == 0).map(|(slot, _)| slot)
    }

    /// Whether every slot is free.
    pub fn is_empty(&self) -> bool {
        self.beams.iter().all(|beams| *beams == 0)
    }

    /// Encodes sentences into free slots, and opens what they ask for beyond plain beam search.
    ///
    /// # Errors
    /// A failed device operation; the device has no memory left.
    ///
    /// # Panics
    /// If a slot is taken, or a sentence does not fit the session's shape.
    pub fn admit(&mut self, backend: &B, models: &[M], sentences: &[Admission<'_>]) -> Result<()> {
        let shape = self.shape();
        for &Admission { slot, request } in sentences {
            let before = std::mem::replace(&mut self.beams[slot], request.options.beam_size as usize);
            assert!(before == 0, "slot {slot} is taken");
            assert!(request.fits(shape), "{request:?} does not fit {shape:?}");
            self.stages[slot] = Stages::of(&request.options);
        }
        let asked = sentences.iter().fold(Stages::default(), |asked, s| asked.union(self.stages[s.slot]));
        self.search.equip(backend, asked)?;
        for voice in 0..self.voices.len() {
            if voice == 0 || asked.voices & 1 << voice != 0 {
                self.encode(backend, models, voice, sentences)?;
            }
        }
        let slots: Vec<(u32, SlotOptions)> = sentences.iter().map(|s| (s.slot as u32, s.request.options)).collect();
        backend.start_slots(&slots, &mut self.search)
    }

    /// Lets a voice read the sources of the sentences that ask for it.
    fn encode(&mut self, backend: &B, models: &[M], voice: usize, sentences: &[Admission<'_>]) -> Result<()> {
        let reads_another = voice == models.len();
        let Voice { model, state, options } = match &mut self.voices[voice] {
            Some(voice) => voice,
            closed => {
                let model = if reads_another { 0 } else { voice };
                let state = models[model].open(backend, self.search.shape)?;
                let entries = self.search.shape.slots * words::<SlotOptions>();
                let options = reads_another.then(|| backend.ints(entries)).transpose()?;
                closed.insert(Voice { model, state, options })
            }
        };
        let listening = |s: &&Admission<'_>| voice == 0 || self.stages[s.slot].voices & 1 << voice != 0;
        let mut sources: Vec<(u32, &[u32])> = Vec::with_capacity(sentences.len());
        for &Admission { slot, request } in sentences.iter().filter(listening) {
            let source = if reads_another { &request.contrast_source } else { &request.source };
            sources.push((slot as u32, source));
            if let Some(options) = options {
                let own = SlotOptions { src_len: source.len() as u32, ..request.options };
                backend.write_ints(options, slot * words::<SlotOptions>(), bytemuck::cast_slice(&[own]))?;
            }
        }
        models[*model].encode(backend, state, &sources)
    }

    /// Advances every live slot by one token.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn step(&mut self, backend: &B, models: &[M]) -> Result<()> {
        let taken = self.beams.iter().zip(&self.stages).filter(|(beams, _)| **beams > 0);
        let stages = taken.fold(Stages::default(), |all, (_, stages)| all.union(*stages));
        self.search.rows.bucket = bucket(&self.beams, self.search.shape.rows);
        self.enqueue(backend, models, stages)
    }

    /// Enqueues one step; what it does depends on the bucket and the stages alone.
    fn enqueue(&mut self, backend: &B, models: &[M], stages: Stages) -> Result<()> {
        let search = &mut self.search;
        for (number, voice) in self.voices.iter_mut().enumerate() {
            let Some(Voice { model, state, options }) = voice else { continue };
            if number == 0 || stages.voices & 1 << number != 0 {
                let options = options.as_ref().unwrap_or(&search.options);
                models[*model].step(backend, state, &search.rows, &search.ancestry, options)?;
            }
        }
        let (model, Some(first)) = (&models[0], &self.voices[0]) else { return Ok(()) };
        if stages.samples {
            backend.sample(model.logits(&first.state), search)?;
        }
        backend.beam_step(model.logits(&first.state), model.attention(&first.state), search)
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
        let mut failure = [Failure::default()];
        backend.read_ints(&self.search.failures, slot * words::<Failure>(), bytemuck::cast_slice_mut(&mut failure))?;
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
