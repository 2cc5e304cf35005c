//! Slots of sentences being decoded: admit, step, harvest, evict.

use std::collections::VecDeque;

use crate::backend::{Backend, Device, Search, SessionShape, SlotOptions, Stages, StepKey, words};
use crate::decode::hypothesis::{Hypothesis, Record};
use crate::decode::observation::{self, Observation};
use crate::decode::request::Request;
use crate::model::Seq2Seq;
use crate::{Error, Result};

/// A search over a fixed number of slots, each with its own sentence, options and step counter.
///
/// Sentences come and go independently: a slot's result does not depend on what the other slots hold.
///
/// What ranks may come from several *scorers*, each a model with its own caches, all reading the same prefixes. Scorer 0 is the
/// first model and gives every result its `log_prob`; scorer i is model i; the last scorer is the first model once more, reading
/// another source of the same sentence. Scorers other than the first are opened when a sentence first asks for them.
///
/// The host never waits for a step it has just enqueued. Behind each step goes a copy of which slots are live, a *report*,
/// which is looked at [`READBACK_DEPTH`](crate::backend::Device::READBACK_DEPTH) steps later. A slot that has ended is free at once: its results are copied to the host before anything
/// that the next sentence does there, and handed out when the copy is known to have arrived. That sentence is encoded
/// [aside](Device::aside), while the others take their next step.
#[derive(Debug)]
pub struct Session<B: Backend, M: Seq2Seq<B>> {
    /// Forgotten first: it names the buffers below.
    graphs: B::GraphCache,
    scorers: Vec<ScorerOf<M::State, B>>,
    search: Search<B>,
    slots: Vec<Option<Running>>,
    /// Sentences that are being encoded beside the next step, and start behind it.
    arriving: Vec<(u32, SlotOptions)>,
    /// Steps enqueued so far.
    steps: u64,
    reports: VecDeque<Report<B>>,
    leaving: VecDeque<Leaving<B>>,
    /// Host memory to be used again, by what it holds.
    spare_reports: Vec<B::Readback>,
    spare_records: Vec<B::Readback>,
    spare_observations: Vec<B::Readback>,
    /// Live beams per slot, as last read back.
    live: Vec<u32>,
}

/// A sentence to be taken into a session.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    /// A free slot.
    pub slot: usize,
    /// Comes back with the result.
    pub ticket: u64,
    /// Lengths and beams within the session's shape.
    pub request: &'a Request,
    /// Whether its steps are told to [`Receive::step`].
    pub watched: bool,
}

/// Who takes what comes out of a session, by ticket.
pub trait Receive {
    /// What a step left of a watched sentence, in the order of the steps.
    fn step(&mut self, _ticket: u64, _observation: Observation) {}
    /// A sentence's hypotheses, best first, or that its logits were not finite. Its last word.
    fn ended(&mut self, ticket: u64, result: Result<Vec<Hypothesis>>);
}

/// A model's memory of the sentences that are being decoded.
#[derive(Debug)]
struct Scorer<State, Ints> {
    /// Which of the models it is.
    model: usize,
    state: State,
    /// [`SlotOptions`] `[slots]` of which the source's length counts, where it reads a source of its own.
    options: Option<Ints>,
}

/// Room for a scorer of a backend's models.
type ScorerOf<State, B> = Option<Scorer<State, <B as Device>::Buffer<u32>>>;

impl<State, Ints> Scorer<State, Ints> {
    /// Its last step's logits.
    fn logits<B: Backend, M: Seq2Seq<B, State = State>>(&self, _: &B, models: &[M]) -> &B::Buffer<f32> {
        models[self.model].logits(&self.state)
    }
}

/// A sentence in its slot.
#[derive(Clone, Copy, Debug)]
struct Running {
    ticket: u64,
    options: SlotOptions,
    /// Steps enqueued before it started: reports of these are not about it. None while it is arriving.
    since: Option<u64>,
    watched: bool,
}

/// Which slots were live after a step, and what it left of those that are watched.
#[derive(Debug)]
struct Report<B: Backend> {
    step: u64,
    live: B::Readback,
    observed: Vec<Observed<B>>,
}

/// A step's copy of a watched slot, on its way.
#[derive(Debug)]
struct Observed<B: Backend> {
    ticket: u64,
    slot: usize,
    /// The slot's own count of its steps, from 1.
    step: usize,
    words: B::Readback,
}

/// A sentence that has ended, its results on the way.
#[derive(Debug)]
struct Leaving<B: Backend> {
    ticket: u64,
    slot: usize,
    record: Record,
    words: B::Readback,
    /// Steps enqueued before its results were copied: once a later one has reported, they are here.
    behind: u64,
}

/// The reports of steps, and the results of slots.
type Readbacks<B> = (Vec<<B as Device>::Readback>, Vec<<B as Device>::Readback>);

/// What a session of this shape reads back into: the reports of steps that are looked at later, and the results of slots.
///
/// Where results are on the way for a while, as many may be at once as there are slots, rarely more. With attention they are
/// large: then only as many are allocated as turn out to be needed.
///
/// # Errors
/// The device has no memory left.
pub fn readbacks<B: Backend>(backend: &B, shape: SessionShape) -> Result<Readbacks<B>> {
    let (reports, records) = match B::READBACK_DEPTH {
        0 => (0, 0),
        depth => (depth + 1, if shape.keep_attention { 0 } else { shape.slots }),
    };
    let of = |count: usize, words: usize| (0..count).map(|_| backend.readback(words)).collect::<Result<Vec<_>>>();
    Ok((of(reports, shape.slots)?, of(records, Record::most_words(shape))?))
}

impl<B: Backend, M: Seq2Seq<B>> Session<B, M> {
    /// Allocates a session with all slots free. `models` are those that every call is given, in the same order.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn open(backend: &B, models: &[M], shape: SessionShape) -> Result<Self> {
        let (spare_reports, spare_records) = readbacks(backend, shape)?;
        let model = &models[0];
        let first = Scorer { model: 0, state: model.open(backend, shape)?, options: None };
        Ok(Session {
            graphs: B::GraphCache::default(),
            scorers: std::iter::once(Some(first)).chain(models.iter().map(|_| None)).collect(),
            search: Search::open(backend, shape, model.vocab_size(), model.ids())?,
            slots: vec![None; shape.slots],
            arriving: Vec::new(),
            steps: 0,
            reports: VecDeque::new(),
            leaving: VecDeque::new(),
            spare_reports,
            spare_records,
            spare_observations: Vec::new(),
            live: vec![0; shape.slots],
        })
    }

    /// Bytes of device memory that a session of this shape takes with these stages; none where memory is not planned.
    ///
    /// # Errors
    /// A shape that no session can have.
    pub fn bytes(backend: &B, models: &[M], shape: SessionShape, stages: Stages) -> Result<Option<u64>> {
        let Some(dry) = backend.dry() else { return Ok(None) };
        let mut session = Self::open(&dry, models, shape)?;
        session.search.reserve(&dry, stages)?;
        for scorer in (1..session.scorers.len()).filter(|scorer| stages.scorers & 1 << scorer != 0) {
            session.open_scorer(&dry, models, scorer)?;
        }
        Ok(Some(dry.allocated()))
    }

    /// Allocates a session of this shape, with fewer slots where memory has no room for all, these stages counted.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if `least` slots, at least one, do not fit.
    pub fn open_within(backend: &B, models: &[M], shape: SessionShape, stages: Stages, least: usize) -> Result<Self> {
        let least = least.clamp(1, shape.slots);
        let mut slots = Self::slots_within(backend, models, shape, stages, least)?;
        // What is free need not be what can be had: others allocate, too, and memory is free in pieces.
        loop {
            match Self::open(backend, models, of(shape, slots)) {
                Err(Error::OutOfMemory { .. }) if slots > least => slots = (slots / 2).max(least),
                opened => return opened,
            }
        }
    }

    /// The most slots of this shape that fit what is known to be free.
    fn slots_within(backend: &B, models: &[M], shape: SessionShape, stages: Stages, least: usize) -> Result<usize> {
        let Some(available) = backend.free_memory()? else { return Ok(shape.slots) };
        let needed = |slots| Ok::<_, Error>(Self::bytes(backend, models, of(shape, slots), stages)?.unwrap_or(0));
        if needed(shape.slots)? <= available {
            return Ok(shape.slots);
        }
        // The most slots that fit lie in `fit..too_many`.
        let (mut fit, mut too_many) = (0, shape.slots);
        while too_many - fit > 1 {
            let middle = fit + (too_many - fit) / 2;
            if needed(middle)? <= available {
                fit = middle;
            } else {
                too_many = middle;
            }
        }
        if fit < least {
            let (operation, device) = ("open a session", backend.name());
            return Err(Error::OutOfMemory { operation, device, needed: needed(least)?, available: Some(available) });
        }
        Ok(fit)
    }

    /// The sizes it was opened with.
    pub fn shape(&self) -> SessionShape {
        self.search.shape
    }

    /// Slots without a sentence.
    pub fn free_slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots.iter().enumerate().filter(|(_, running)| running.is_none()).map(|(slot, _)| slot)
    }

    /// Whether every slot is free and every result has been handed out.
    pub fn is_empty(&self) -> bool {
        !self.is_running() && self.leaving.is_empty()
    }

    /// Decoder rows of the next step, as far as the host knows.
    pub fn rows(&self) -> usize {
        self.slots.iter().flatten().map(|running| running.options.beam_size as usize).sum()
    }

    fn is_running(&self) -> bool {
        self.slots.iter().any(Option::is_some)
    }

    fn has_started(&self) -> bool {
        self.slots.iter().flatten().any(|running| running.since.is_some())
    }

    /// Encodes sentences into free slots, beside the next step of those that are there, and opens what they ask for beyond plain
    /// beam search.
    ///
    /// # Errors
    /// A failed device operation; the device has no memory left.
    ///
    /// # Panics
    /// If a slot is taken, or a sentence does not fit the session's shape.
    pub fn admit(&mut self, backend: &B, models: &[M], sentences: &[Admission<'_>]) -> Result<()> {
        self.start_arrived(backend)?;
        let shape = self.shape();
        let asked = asked_by(sentences.iter().map(|sentence| sentence.request));
        self.make_room(backend, models, asked)?;
        for &Admission { slot, ticket, request, watched } in sentences {
            let before = self.slots[slot].replace(Running { ticket, options: request.options, since: None, watched });
            assert!(before.is_none(), "slot {slot} is taken");
            assert!(request.fits(shape), "{request:?} does not fit {shape:?}");
        }
        for &Admission { slot, request, .. } in sentences {
            if request.options.banned != 0 {
                request.write_controls(backend, slot, &mut self.search)?;
            }
        }
        let asked = |scorer: &usize| *scorer == 0 || asked.scorers & 1 << scorer != 0;
        let scorers: Vec<usize> = (0..self.scorers.len()).filter(asked).collect();
        backend.aside(|| scorers.iter().try_for_each(|scorer| self.encode(backend, models, *scorer, sentences)))?;
        self.arriving.extend(sentences.iter().map(|s| (s.slot as u32, s.request.options)));
        if B::READBACK_DEPTH == 0 || !self.has_started() { self.start_arrived(backend) } else { Ok(()) }
    }

    /// Allocates what these stages need beyond plain beam search, where it is not there yet.
    ///
    /// # Errors
    /// The device has no memory left; the sentences that run are none the worse for it.
    pub fn make_room(&mut self, backend: &B, models: &[M], stages: Stages) -> Result<()> {
        self.search.reserve(backend, stages)?;
        for scorer in (1..self.scorers.len()).filter(|scorer| stages.scorers & 1 << scorer != 0) {
            if self.scorers[scorer].is_none() {
                self.open_scorer(backend, models, scorer)?;
            }
        }
        Ok(())
    }

    /// Gives up sentences: their slots are free at once, and nothing more is heard of them. Tickets that do not run are passed
    /// over.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn evict(&mut self, backend: &B, tickets: &[u64]) -> Result<()> {
        let (gone, stays): (VecDeque<_>, _) = self.leaving.drain(..).partition(|one| tickets.contains(&one.ticket));
        self.leaving = stays;
        self.spare_records.extend(gone.into_iter().map(|leaving| leaving.words));
        let is_named = |running: &Option<Running>| running.is_some_and(|running| tickets.contains(&running.ticket));
        if !self.slots.iter().any(is_named) {
            return Ok(());
        }
        // One that is still arriving would start after it was gone.
        self.start_arrived(backend)?;
        for slot in 0..self.slots.len() {
            if is_named(&self.slots[slot]) {
                self.slots[slot] = None;
                backend.write(&mut self.search.live, slot, &[0])?;
            }
        }
        // The list of rows without theirs: the next step is sized for the beams of those that stay.
        backend.start_slots(&[], &mut self.search)
    }

    /// Starts the sentences that have been encoded meanwhile.
    fn start_arrived(&mut self, backend: &B) -> Result<()> {
        if self.arriving.is_empty() {
            return Ok(());
        }
        backend.join_aside()?;
        backend.start_slots(&self.arriving, &mut self.search)?;
        for (slot, _) in self.arriving.drain(..) {
            if let Some(running) = &mut self.slots[slot as usize] {
                running.since = Some(self.steps);
            }
        }
        Ok(())
    }

    fn open_scorer(&mut self, backend: &B, models: &[M], scorer: usize) -> Result<()> {
        let reads_another = scorer == models.len();
        let model = if reads_another { 0 } else { scorer };
        let state = models[model].open(backend, self.search.shape)?;
        let entries = self.search.shape.slots * words::<SlotOptions>();
        let options = reads_another.then(|| backend.zeros::<u32>(entries)).transpose()?;
        self.scorers[scorer] = Some(Scorer { model, state, options });
        Ok(())
    }

    /// Lets a scorer read the sources of the sentences that ask for it.
    fn encode(&mut self, backend: &B, models: &[M], scorer: usize, sentences: &[Admission<'_>]) -> Result<()> {
        let reads_another = scorer == models.len();
        let Some(Scorer { model, state, options }) = &mut self.scorers[scorer] else { return Ok(()) };
        let listening = |s: &&Admission<'_>| scorer == 0 || Stages::of(&s.request.options).scorers & 1 << scorer != 0;
        let mut sources: Vec<(u32, &[u32])> = Vec::with_capacity(sentences.len());
        for &Admission { slot, request, .. } in sentences.iter().filter(listening) {
            let source = if reads_another { &request.contrast_source } else { &request.source };
            sources.push((slot as u32, source));
            if let Some(options) = options {
                let own = SlotOptions { src_len: source.len() as u32, ..request.options };
                backend.write(options, slot * words::<SlotOptions>(), bytemuck::cast_slice(&[own]))?;
            }
        }
        models[*model].encode(backend, state, &sources)
    }

    /// Advances every live slot by one token.
    ///
    /// # Errors
    /// A failed device operation.
    pub fn step(&mut self, backend: &B, models: &[M]) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        if !self.has_started() {
            self.start_arrived(backend)?;
        }
        let (mut beams, mut stages) = (0, Stages::default());
        for Running { options, .. } in self.slots.iter().flatten().filter(|running| running.since.is_some()) {
            beams += options.beam_size as usize;
            stages = stages.union(Stages::of(options));
        }
        let Session { graphs, scorers, search, .. } = self;
        search.rows.bucket = bucket(beams, search.shape.rows);
        let key = StepKey { rows: search.rows.bucket, stages: stages.bits() };
        backend.replay_or_record(graphs, key, || Self::enqueue(backend, models, scorers, search, stages))?;
        self.steps += 1;
        self.report(backend)?;
        self.start_arrived(backend)
    }

    /// Everything that one step enqueues; it depends on the step's key alone.
    fn enqueue(
        backend: &B,
        models: &[M],
        scorers: &mut [ScorerOf<M::State, B>],
        search: &mut Search<B>,
        stages: Stages,
    ) -> Result<()> {
        for (number, scorer) in scorers.iter_mut().enumerate() {
            let Some(Scorer { model, state, options }) = scorer else { continue };
            if number == 0 || stages.scorers & 1 << number != 0 {
                let options = options.as_ref().unwrap_or(&search.options);
                models[*model].step(backend, state, &search.rows, &search.ancestry, options)?;
            }
        }
        let (model, Some(first)) = (&models[0], &scorers[0]) else { return Ok(()) };
        if stages.bans {
            backend.processors(search)?;
        }
        if stages.mixes {
            let all: Vec<_> = scorers.iter().map(|v| v.as_ref().map(|v| v.logits(backend, models))).collect();
            backend.ensemble(&all, search)?;
        }
        for (number, scorer) in scorers.iter().enumerate() {
            if let (Some(amateur), true) = (scorer, stages.contrast & 1 << number != 0) {
                let (expert, amateur) = (first.logits(backend, models), amateur.logits(backend, models));
                backend.contrastive(expert, amateur, number as u32, search)?;
            }
        }
        if stages.repetition {
            backend.repetition_penalty(first.logits(backend, models), search)?;
        }
        if stages.samples {
            backend.sample(model.logits(&first.state), search)?;
        }
        backend.beam_step(model.logits(&first.state), model.attention(&first.state), search)
    }

    fn report(&mut self, backend: &B) -> Result<()> {
        let slots = self.slots.len();
        let mut live = self.spare_reports.pop().map_or_else(|| backend.readback(slots), Ok)?;
        backend.enqueue_read::<u32>(&self.search.live, 0..slots, &mut live, 0)?;
        let mut observed = Vec::new();
        for (slot, running) in self.slots.iter().enumerate() {
            let Some(Running { ticket, options, since: Some(since), watched: true }) = *running else { continue };
            // Once it has ended, which the host is told later, there is nothing new to see.
            let step = (self.steps - since) as usize;
            if step == 0 || step > options.max_len as usize {
                continue;
            }
            let words = self.spare_observations.pop();
            let mut words = words.map_or_else(|| backend.readback(observation::words(self.search.shape)), Ok)?;
            observation::post(backend, &self.search, slot, step, &mut words)?;
            observed.push(Observed { ticket, slot, step, words });
        }
        self.reports.push_back(Report { step: self.steps, live, observed });
        Ok(())
    }

    /// Looks at the reports that are due, frees the slots whose search has ended, and hands over what has arrived.
    ///
    /// # Errors
    /// A failed device operation. A sentence whose logits were not finite is reported to `to` alone.
    pub fn harvest(&mut self, backend: &B, to: &mut impl Receive) -> Result<()> {
        let mut reported = 0;
        while self.reports.len() > B::READBACK_DEPTH {
            let Some(Report { step, live, observed }) = self.reports.pop_front() else { break };
            backend.wait_readback(&live, &mut self.live)?;
            self.spare_reports.push(live);
            for Observed { ticket, slot, step, words } in observed {
                if self.slots[slot].is_some_and(|running| running.ticket == ticket) {
                    let live = self.live[slot] as usize;
                    let observation = observation::read(backend, self.search.shape, live, step, &words)?;
                    to.step(ticket, observation);
                }
                self.spare_observations.push(words);
            }
            self.free_ended(backend, step)?;
            reported = step;
        }
        // Without steps to come no report would tell that results have arrived, and with no lag they are here.
        let all = B::READBACK_DEPTH == 0 || !self.is_running();
        while let Some(leaving) = self.leaving.pop_front_if(|leaving| all || leaving.behind < reported) {
            let Leaving { ticket, slot, record, words, .. } = leaving;
            let result = record.read(backend, &words, &self.search, slot)?;
            self.spare_records.push(words);
            to.ended(ticket, result);
        }
        Ok(())
    }

    /// Frees the slots that were no longer live after `step`, their results on the way to the host.
    fn free_ended(&mut self, backend: &B, step: u64) -> Result<()> {
        for slot in 0..self.slots.len() {
            let ended = |running: &mut Running| running.since.is_some_and(|since| since < step) && self.live[slot] == 0;
            let Some(Running { ticket, options, since: Some(since), .. }) = self.slots[slot].take_if(ended) else {
                continue;
            };
            let record = Record::new(self.search.shape, options, (step - since) as usize);
            let spare = self.spare_records.pop();
            let words = spare.map_or_else(|| backend.readback(Record::most_words(self.search.shape)), Ok)?;
            let mut leaving = Leaving { ticket, slot, record, words, behind: self.steps };
            leaving.record.post(backend, &self.search, slot, &mut leaving.words)?;
            self.leaving.push_back(leaving);
        }
        Ok(())
    }
}

/// What sentences ask for together.
pub fn asked_by<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Stages {
    requests.into_iter().fold(Stages::default(), |asked, request| asked.union(Stages::of(&request.options)))
}

/// The shape with so many slots.
fn of(shape: SessionShape, slots: usize) -> SessionShape {
    SessionShape { slots, rows: slots * shape.beam_size, ..shape }
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
