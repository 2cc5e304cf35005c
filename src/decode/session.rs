//! Slots of sentences being decoded: admit, step, harvest.

use std::collections::VecDeque;

use crate::Result;
use crate::backend::{Backend, Search, SessionShape, SlotOptions, StepKey};
use crate::decode::hypothesis::{Hypothesis, Record};
use crate::model::Seq2Seq;

/// A search over a fixed number of slots, each with its own sentence, options and step counter.
///
/// Sentences come and go independently: a slot's result does not depend on what the other slots hold.
///
/// The host never waits for a step it has just enqueued. Behind each step goes a copy of which slots are live, a *report*,
/// which is looked at [`Backend::LAG`] steps later. A slot that has ended is free at once: its results are copied to the host before anything
/// that the next sentence does there, and handed out when the copy is known to have arrived.
#[derive(Debug)]
pub struct Session<B: Backend, M: Seq2Seq<B>> {
    /// Forgotten first: it names the buffers below.
    recordings: B::Recordings,
    state: M::State,
    search: Search<B>,
    slots: Vec<Option<Running>>,
    /// Steps enqueued so far.
    steps: u64,
    reports: VecDeque<Report<B>>,
    leaving: VecDeque<Leaving<B>>,
    /// Host memory to be used again, by what it holds.
    spare_reports: Vec<B::Late>,
    spare_records: Vec<B::Late>,
    /// Live beams per slot, as last read back.
    live: Vec<u32>,
}

/// A sentence to be taken into a session.
#[derive(Clone, Debug)]
pub struct Admission<'a> {
    /// A free slot.
    pub slot: usize,
    /// Comes back with the result.
    pub ticket: u64,
    /// Source ids, end of sentence included.
    pub source: &'a [u32],
    /// Its options; lengths and beams within the session's shape.
    pub options: SlotOptions,
}

/// A sentence in its slot.
#[derive(Clone, Copy, Debug)]
struct Running {
    ticket: u64,
    options: SlotOptions,
    /// Steps enqueued before it came: reports of these are not about it.
    since: u64,
}

/// Which slots were live after a step.
#[derive(Debug)]
struct Report<B: Backend> {
    step: u64,
    live: B::Late,
}

/// A sentence that has ended, its results on the way.
#[derive(Debug)]
struct Leaving<B: Backend> {
    ticket: u64,
    slot: usize,
    record: Record,
    words: B::Late,
    /// Steps enqueued before its results were copied: once a later one has reported, they are here.
    behind: u64,
}

impl<B: Backend, M: Seq2Seq<B>> Session<B, M> {
    /// Allocates a session with all slots free.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, model: &M, shape: SessionShape) -> Result<Self> {
        // Where results are on the way for a while, as many may be at once as there are slots, rarely more. With attention they
        // are large: then only as many are allocated as turn out to be needed.
        let records = if B::LAG == 0 || shape.keep_attention { 0 } else { shape.slots };
        let record = |_| backend.late(Record::most_words(shape));
        Ok(Session {
            recordings: B::Recordings::default(),
            state: model.open(backend, shape)?,
            search: Search::open(backend, shape, model.vocab_size(), model.ids())?,
            slots: vec![None; shape.slots],
            steps: 0,
            reports: VecDeque::new(),
            leaving: VecDeque::new(),
            spare_reports: Vec::new(),
            spare_records: (0..records).map(record).collect::<Result<_>>()?,
            live: vec![0; shape.slots],
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
        self.slots.iter().enumerate().filter(|(_, running)| running.is_none()).map(|(slot, _)| slot)
    }

    /// Whether every slot is free and every result has been handed out.
    pub fn is_empty(&self) -> bool {
        !self.is_running() && self.leaving.is_empty()
    }

    fn is_running(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    /// Encodes sentences into free slots.
    ///
    /// # Errors
    /// A failed device operation.
    ///
    /// # Panics
    /// If a slot is taken, or a sentence does not fit the session's shape.
    pub fn admit(&mut self, backend: &B, model: &M, sentences: &[Admission<'_>]) -> Result<()> {
        let (shape, since) = (self.shape(), self.steps);
        for &Admission { slot, ticket, source, options } in sentences {
            let before = self.slots[slot].replace(Running { ticket, options, since });
            assert!(before.is_none(), "slot {slot} is taken");
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
        if !self.is_running() {
            return Ok(());
        }
        let beams = self.slots.iter().flatten().map(|running| running.options.beam_size as usize).sum();
        let Session { recordings, state, search, .. } = self;
        search.rows.bucket = bucket(beams, search.shape.rows);
        let key = StepKey { rows: search.rows.bucket, stages: 0 };
        backend.replayable(recordings, key, || Self::enqueue(backend, model, state, search))?;
        self.steps += 1;
        self.report(backend)
    }

    /// Everything that one step enqueues; it depends on the step's key alone.
    fn enqueue(backend: &B, model: &M, state: &mut M::State, search: &mut Search<B>) -> Result<()> {
        model.step(backend, state, &search.rows, &search.ancestry, &search.options)?;
        backend.beam_step(model.logits(state), model.attention(state), search)
    }

    fn report(&mut self, backend: &B) -> Result<()> {
        let slots = self.slots.len();
        let mut live = self.spare_reports.pop().map_or_else(|| backend.late(slots), Ok)?;
        backend.post_ints(&self.search.live, 0..slots, &mut live, 0)?;
        self.reports.push_back(Report { step: self.steps, live });
        Ok(())
    }

    /// Looks at the reports that are due, frees the slots whose search has ended, and hands the results that have arrived to
    /// `receive`, by ticket, best hypothesis first.
    ///
    /// # Errors
    /// A failed device operation. A sentence whose logits were not finite is reported to `receive` alone.
    pub fn harvest(&mut self, backend: &B, mut receive: impl FnMut(u64, Result<Vec<Hypothesis>>)) -> Result<()> {
        let mut reported = 0;
        while self.reports.len() > B::LAG {
            let Some(Report { step, live }) = self.reports.pop_front() else { break };
            backend.collect(&live, &mut self.live)?;
            self.spare_reports.push(live);
            self.free_ended(backend, step)?;
            reported = step;
        }
        // Without steps to come no report would tell that results have arrived, and with no lag they are here.
        let all = B::LAG == 0 || !self.is_running();
        while let Some(leaving) = self.leaving.pop_front_if(|leaving| all || leaving.behind < reported) {
            let Leaving { ticket, slot, record, words, .. } = leaving;
            let result = record.read(backend, &words, &self.search, slot)?;
            self.spare_records.push(words);
            receive(ticket, result);
        }
        Ok(())
    }

    /// Frees the slots that were no longer live after `step`, their results on the way to the host.
    fn free_ended(&mut self, backend: &B, step: u64) -> Result<()> {
        for slot in 0..self.slots.len() {
            let ended = |running: &mut Running| running.since < step && self.live[slot] == 0;
            let Some(Running { ticket, options, since }) = self.slots[slot].take_if(ended) else { continue };
            let record = Record::new(self.search.shape, options, (step - since) as usize);
            let spare = self.spare_records.pop();
            let words = spare.map_or_else(|| backend.late(Record::most_words(self.search.shape)), Ok)?;
            let mut leaving = Leaving { ticket, slot, record, words, behind: self.steps };
            leaving.record.post(backend, &self.search, slot, &mut leaving.words)?;
            self.leaving.push_back(leaving);
        }
        Ok(())
    }
}

/// Rows that grids are sized for when the taken slots have so many beams: few different numbers, so that what a device
/// prepares for a number of rows is used again.
fn bucket(beams: usize, capacity: usize) -> usize {
    beams.next_power_of_two().min(capacity)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn the_bucket_holds_every_beam_and_no_more_than_there_is_room_for() {
        assert_eq!(bucket(9, 96), 16);
        assert_eq!(bucket(64, 96), 64);
        assert_eq!(bucket(96, 96), 96);
        assert_eq!(bucket(4, 8), 4);
    }
}
