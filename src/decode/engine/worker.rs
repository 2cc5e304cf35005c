//! One of the engine's threads: it takes work, gives each kind of search a session, and lets the sessions take turns.
//!
//! A session's shape never changes. What does not fit the one of its kind gets a larger one beside it, which all that come later
//! go to, while the old one's sentences end: nobody waits for slots to run dry. Only where memory has no room for both does the
//! larger one wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::job::{Job, SearchTask, Task};
use super::queue::{Kind, Queue, WIDE_BEAM, over};
use super::repeated;
use super::scorer::Scorer;
use crate::backend::{Backend, SessionShape};
use crate::decode::hypothesis::Hypothesis;
use crate::decode::observation::Observation;
use crate::decode::request::Request;
use crate::decode::session::{Admission, Receive, Session, asked_by};
use crate::model::Seq2Seq;
use crate::{Error, Result};

pub(super) struct Worker<B: Backend, M: Seq2Seq<B>> {
    backend: Arc<B>,
    /// At least one.
    models: Arc<[M]>,
    slots: usize,
    queue: Arc<Queue>,
    lanes: Vec<Lane<B, M>>,
    scorer: Scorer<B, M>,
    running: Running,
    last_ticket: u64,
    last_lane: u64,
    /// Taken from the queue, and without a slot yet; by kind.
    held: [Vec<Job>; Kind::SEARCHES.len()],
    /// Nothing is begun until all sessions have run dry and been dropped: something else needs their memory.
    clears_memory: bool,
    /// Time on the device, shares counted, that the one whose turn it was last had had before.
    clock: u64,
    /// The same of light sentences, when one of them last had its turn.
    light_clock: u64,
}

/// A session, and its turns.
struct Lane<B: Backend, M: Seq2Seq<B>> {
    id: u64,
    kind: Kind,
    session: Session<B, M>,
    /// A larger one has taken its place.
    is_retiring: bool,
    /// Time on the device that it has had, divided by its share.
    clock: u64,
}

/// Sentences in sessions, by ticket, and where their ends are counted.
struct Running(HashMap<u64, Placed>, Arc<Queue>);

struct Placed {
    kind: Kind,
    /// The lane that decodes it.
    lane: u64,
    begun: Instant,
    job: Job,
}

impl Receive for Running {
    fn step(&mut self, ticket: u64, observation: Observation) {
        if let Some(Placed { job: Job { task: Task::Search(search), .. }, .. }) = self.0.get_mut(&ticket) {
            search.sink.step(observation);
        }
    }

    fn ended(&mut self, ticket: u64, result: Result<Vec<Hypothesis>>) {
        if let Some(Placed { job: Job { task: Task::Search(search), .. }, begun, .. }) = self.0.remove(&ticket) {
            self.1.statistics.ended(begun.elapsed());
            search.end(result);
        }
    }
}

/// What has become of a session for sentences that had none.
enum Opened {
    Yes,
    /// Not before others have ended.
    Later,
    /// The first of the sentences cannot be decoded.
    Never(Error),
}

/// Light sentences decoded at once: of the regular ones, one in so many.
const LIGHT_PART: usize = 8;

/// Steps of a light sentence that others let pass: about as many as a few have.
const HEAD_START: u64 = 64;

/// Rows whose time a step takes beside that for its own, on the host and on a device: what does not depend on them.
const HOST_STEP_ROWS: usize = 8;
const DEVICE_STEP_ROWS: usize = 256;

impl<B: Backend, M: Seq2Seq<B>> Worker<B, M> {
    pub(super) fn new(backend: Arc<B>, models: Arc<[M]>, slots: usize, queue: Arc<Queue>) -> Self {
        Worker {
            backend,
            models,
            slots,
            running: Running(HashMap::new(), queue.clone()),
            queue,
            lanes: Vec::new(),
            scorer: Scorer::default(),
            last_ticket: 0,
            last_lane: 0,
            held: Default::default(),
            clears_memory: false,
            clock: 0,
            light_clock: 0,
        }
    }

    /// Works for as long as there is anything to do; an error is the loss of the device.
    pub(super) fn serve(&mut self) -> Result<()> {
        while self.queue.wait() {
            let backend = self.backend.clone();
            while !backend.run(|| self.work_for_a_while())? {}
        }
        Ok(())
    }

    /// Works until nothing is left to do, which it returns, or until someone else waits for the backend's threads.
    fn work_for_a_while(&mut self) -> Result<bool> {
        loop {
            self.give_up()?;
            self.admit()?;
            if self.is_idle() {
                return Ok(true);
            }
            self.take_turn()?;
            if self.backend.is_wanted() {
                return Ok(false);
            }
        }
    }

    fn is_idle(&self) -> bool {
        let is_scoring = self.scorer.is_busy() || self.queue.has(Kind::Scoring);
        !is_scoring && self.running.0.is_empty() && self.held.iter().all(Vec::is_empty)
    }

    /// Hands the rest of its work to the other workers; what has begun gets the error.
    pub(super) fn leave(&mut self, error: &Error) {
        self.lanes.clear();
        self.running.0.drain().for_each(|(_, placed)| placed.job.fail(repeated(error)));
        self.scorer.fail(error);
        self.queue.put_back(self.held.iter_mut().flat_map(std::mem::take).collect());
    }

    /// Frees the slots of sentences that nobody waits for any more.
    fn give_up(&mut self) -> Result<()> {
        let now = Instant::now();
        self.queue.sweep(now);
        let is_over = |_: &u64, placed: &mut Placed| over(&placed.job.terms, &placed.job.canceller, now).is_some();
        let gone: Vec<(u64, Placed)> = self.running.0.extract_if(is_over).collect();
        for held in &mut self.held {
            for job in held.extract_if(.., |job| job.over(now).is_some()) {
                let error = job.over(now).unwrap_or(Error::Cancelled);
                job.fail(error);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        let tickets: Vec<u64> = gone.iter().map(|(ticket, _)| *ticket).collect();
        for (_, Placed { job, .. }) in gone {
            let error = job.over(now).unwrap_or(Error::Cancelled);
            job.fail(error);
        }
        for at in (0..self.lanes.len()).rev() {
            if let Err(error) = self.lanes[at].session.evict(&self.backend, &tickets) {
                self.fail_lane(at, &error)?;
            }
        }
        Ok(())
    }

    /// Drops a session that failed: what it holds is unknown. Its sentences get the error.
    fn fail_lane(&mut self, at: usize, error: &Error) -> Result<()> {
        let lane = self.lanes.remove(at).id;
        let lost: Vec<Placed> =
            self.running.0.extract_if(|_, placed| placed.lane == lane).map(|(_, placed)| placed).collect();
        lost.into_iter().for_each(|placed| placed.job.fail(repeated(error)));
        self.check()
    }

    /// Whether the device goes on.
    fn check(&self) -> Result<()> {
        let lost = |error: Error| Error::DeviceLost { device: self.backend.name(), reason: error.to_string() };
        self.backend.check().map_err(lost)
    }

    /// Gives sentences that wait free slots.
    fn admit(&mut self) -> Result<()> {
        if self.clears_memory {
            if self.lanes.iter().any(|lane| !lane.session.is_empty()) {
                return Ok(());
            }
            self.lanes.clear();
            if self.scorer.is_waiting_for_memory() {
                return Ok(());
            }
            self.clears_memory = false;
        }
        // What stands empty goes, but for the session that most sentences share, and one that is about to be used.
        let (queue, held) = (&self.queue, &self.held);
        let is_wanted = |kind: Kind| kind == Kind::Regular || !held[kind as usize].is_empty() || queue.has(kind);
        self.lanes.retain(|lane| !lane.session.is_empty() || (!lane.is_retiring && is_wanted(lane.kind)));
        // Those that wait for memory have waited longest.
        let mut kinds = Kind::SEARCHES;
        kinds.sort_by_key(|kind| self.held[*kind as usize].is_empty());
        for kind in kinds {
            if kind == Kind::Regular && self.is_light_next() {
                continue;
            }
            let mut jobs = std::mem::take(&mut self.held[kind as usize]);
            if jobs.is_empty() {
                jobs = self.take(kind);
            }
            if !jobs.is_empty() {
                self.place(kind, jobs)?;
            }
            if self.clears_memory {
                break;
            }
        }
        Ok(())
    }

    /// Takes what there is room for from the queue.
    fn take(&self, kind: Kind) -> Vec<Job> {
        let room = self.room(kind);
        // Light ones beyond their own session's slots have a share of the others'.
        let is_full = kind == Kind::Regular && self.current(Kind::Light).is_some() && self.room(Kind::Light) == 0;
        let mut jobs = if is_full { self.queue.take(Kind::Light, room.div_ceil(2), |_| true) } else { Vec::new() };
        jobs.extend(self.queue.take(kind, room - jobs.len(), |_| true));
        jobs
    }

    /// Whether light sentences take the next step before regular ones: what is let in beside those is encoded first, and would
    /// keep the light ones waiting for as long as several of their steps take. It waits for the regular sentences' own turn.
    fn is_light_next(&self) -> bool {
        let Some(at) = self.current(Kind::Regular) else { return false };
        let Lane { session, clock, .. } = &self.lanes[at];
        let regular = if session.is_empty() { self.clock.max(*clock) } else { *clock };
        self.lanes.iter().any(|lane| lane.kind == Kind::Light && !lane.session.is_empty() && lane.clock <= regular)
    }

    /// How many more sentences of a kind can be taken.
    fn room(&self, kind: Kind) -> usize {
        let running = self.running.0.values().filter(|placed| placed.kind == kind).count();
        match (self.current(kind), kind) {
            (Some(at), _) => {
                let session = &self.lanes[at].session;
                session.free_slots().count().min(session.shape().slots.saturating_sub(running))
            }
            (None, Kind::Regular) => self.slots.saturating_sub(running),
            // How many have room is known once the first one's beams are.
            (None, _) => 1,
        }
    }

    /// The session that sentences of a kind go to.
    fn current(&self, kind: Kind) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.kind == kind && !lane.is_retiring)
    }

    /// Lets sentences into the session of their kind, opening it where need be; those without room are held.
    fn place(&mut self, kind: Kind, mut jobs: Vec<Job>) -> Result<()> {
        let fits = |lane: &Lane<B, M>| requests(&jobs).all(|request| request.fits(lane.session.shape()));
        if !self.current(kind).is_some_and(|at| fits(&self.lanes[at])) {
            match self.open(kind, &jobs) {
                Opened::Yes => {}
                Opened::Later => {
                    // Where memory has no room for a session of their own, light ones go with the others.
                    let kind = if kind == Kind::Light { Kind::Regular } else { kind };
                    self.held[kind as usize].extend(jobs);
                    return Ok(());
                }
                Opened::Never(error) => {
                    let first = jobs.remove(0);
                    first.fail(error);
                    self.held[kind as usize] = jobs;
                    return self.check();
                }
            }
        }
        let Some(at) = self.current(kind) else { return Ok(()) };
        let start = self.start(kind, self.lanes[at].session.shape().beam_size);
        let stages = asked_by(requests(&jobs));
        let lane = &mut self.lanes[at];
        match lane.session.make_room(&self.backend, &self.models, stages) {
            Ok(()) => {}
            Err(Error::OutOfMemory { .. }) if self.lanes.iter().any(|lane| !lane.session.is_empty()) => {
                self.held[kind as usize] = jobs;
                self.clears_memory = true;
                return Ok(());
            }
            Err(error) => {
                // In a session of its own, opened with these stages counted, the next one may have better luck.
                let first = jobs.remove(0);
                first.fail(repeated(&error));
                self.held[kind as usize] = jobs;
                return self.fail_lane(at, &error);
            }
        }
        let free: Vec<usize> = lane.session.free_slots().take(jobs.len()).collect();
        self.held[kind as usize] = jobs.split_off(free.len());
        if free.is_empty() {
            return Ok(());
        }
        if lane.session.is_empty() {
            lane.clock = lane.clock.max(start);
        }
        let (first, begun) = (self.last_ticket + 1, Instant::now());
        for job in jobs {
            self.last_ticket += 1;
            self.running.0.insert(self.last_ticket, Placed { kind, lane: lane.id, begun, job });
        }
        let admissions: Vec<Admission<'_>> = free
            .into_iter()
            .zip(first..)
            .filter_map(|(slot, ticket)| {
                let search = search(&self.running.0.get(&ticket)?.job)?;
                Some(Admission { slot, ticket, request: &search.request, watched: search.sink.is_watching() })
            })
            .collect();
        let admitted = lane.session.admit(&self.backend, &self.models, &admissions);
        admitted.or_else(|error| self.fail_lane(at, &error))
    }

    /// Opens a session for sentences that the current one of their kind does not hold.
    fn open(&mut self, kind: Kind, jobs: &[Job]) -> Opened {
        let current = self.current(kind);
        let old = current.map(|at| self.lanes[at].session.shape());
        if let Some(at) = current {
            if self.lanes[at].session.is_empty() {
                self.lanes.remove(at);
            } else if self.lanes.iter().any(|lane| lane.kind == kind && lane.is_retiring) {
                // Two at once are enough.
                return Opened::Later;
            } else {
                self.lanes[at].is_retiring = true;
            }
        }
        let stages = asked_by(requests(jobs));
        let shape = |old: Option<SessionShape>| {
            let grown = requests(jobs).fold(old, |old, request| Some(request.grown(old, 1)));
            grown.map(|shape| {
                let slots = self.slots_for(kind, shape.beam_size);
                SessionShape { slots, rows: slots * shape.beam_size, ..shape }
            })
        };
        // Where memory is short, room for what came before is given up.
        let (grown, own) = (shape(old), shape(None));
        let shapes: Vec<SessionShape> = grown.into_iter().chain(own.filter(|_| own != grown)).collect();
        loop {
            let is_alone = self.lanes.is_empty();
            let mut failed = Error::EngineStopped;
            for &shape in &shapes {
                // Beside others half of the slots must fit: with a few it would be slow for as long as it lives.
                let least = if is_alone || kind != Kind::Regular { 1 } else { shape.slots.div_ceil(2) };
                match Session::open_within(&*self.backend, &self.models, shape, stages, least) {
                    Ok(session) => {
                        self.last_lane += 1;
                        let (id, clock) = (self.last_lane, self.start(kind, shape.beam_size));
                        self.lanes.push(Lane { id, kind, session, is_retiring: false, clock });
                        return Opened::Yes;
                    }
                    Err(error @ Error::OutOfMemory { .. }) => failed = error,
                    Err(error) => return Opened::Never(error),
                }
            }
            if is_alone {
                return Opened::Never(failed);
            }
            // Sessions that stand empty hold memory.
            let before = self.lanes.len();
            self.lanes.retain(|lane| !lane.session.is_empty());
            if self.lanes.len() == before {
                self.clears_memory = kind != Kind::Light;
                return Opened::Later;
            }
        }
    }

    /// Sentences of a kind that are decoded at once: of wide ones so many that they take no more memory than the others may.
    fn slots_for(&self, kind: Kind, beam_size: usize) -> usize {
        match kind {
            Kind::Regular => self.slots,
            Kind::Wide => (self.slots * WIDE_BEAM / beam_size.max(1)).clamp(1, self.slots),
            Kind::Light => self.slots.div_ceil(LIGHT_PART),
            Kind::Explained | Kind::Scoring => 1,
        }
    }

    /// A step of the session, or of the scoring pass, that has had the least of its share.
    fn take_turn(&mut self) -> Result<()> {
        let busy = self.lanes.iter().enumerate().filter(|(_, lane)| !lane.session.is_empty());
        let next = busy.min_by_key(|(_, lane)| (lane.clock, lane.kind != Kind::Light));
        let next = next.map(|(at, lane)| (at, lane.clock));
        let waits_for_memory = self.scorer.is_waiting_for_memory() && next.is_some();
        if !waits_for_memory && (self.scorer.is_busy() || self.queue.has(Kind::Scoring)) {
            let clock = self.scorer.clock.max(self.clock);
            if next.is_none_or(|(_, other)| clock <= other) {
                self.clock = clock;
                return self.score(clock);
            }
        }
        let Some((at, clock)) = next else { return Ok(()) };
        self.clock = clock;
        let (kind, rows) = (self.lanes[at].kind, self.lanes[at].session.rows());
        let charge = self.charge(kind, rows);
        let lane = &mut self.lanes[at];
        lane.clock += charge;
        if kind == Kind::Light {
            self.light_clock = lane.clock;
        }
        let session = &mut lane.session;
        let started = Instant::now();
        let stepped = session.step(&self.backend, &self.models);
        let stepped = stepped.and_then(|()| session.harvest(&self.backend, &mut self.running));
        self.queue.statistics.stepped(rows, started.elapsed());
        stepped.or_else(|error| self.fail_lane(at, &error))
    }

    /// The clock of a session that begins: what it did not use before is no credit. Light sentences, of which there are few at a time, may
    /// use up to [`HEAD_START`] steps of one of them before the others have as much again.
    fn start(&self, kind: Kind, beam_size: usize) -> u64 {
        if kind != Kind::Light {
            return self.clock;
        }
        let others = self.lanes.iter().filter(|lane| lane.kind != Kind::Light && !lane.session.is_empty());
        let others = others.map(|lane| lane.clock).min().unwrap_or(self.clock);
        self.light_clock.max(others.saturating_sub(HEAD_START * self.charge(kind, beam_size)))
    }

    /// What a turn of so many rows counts.
    fn charge(&self, kind: Kind, rows: usize) -> u64 {
        // Another's step counts as no less than that of the regular sentences: so they have their share of steps as well as of rows.
        // Light ones have the regular ones' share of rows, which is many more steps.
        let least = if matches!(kind, Kind::Regular | Kind::Light) { 0 } else { self.regular_rows() };
        let fixed = if B::READBACK_DEPTH == 0 { HOST_STEP_ROWS } else { DEVICE_STEP_ROWS };
        (6 * (fixed + rows.max(least))) as u64 / kind.share()
    }

    fn regular_rows(&self) -> usize {
        let regular = self.lanes.iter().filter(|lane| lane.kind == Kind::Regular);
        regular.map(|lane| lane.session.rows()).max().unwrap_or(0)
    }

    fn score(&mut self, clock: u64) -> Result<()> {
        let is_alone = self.lanes.iter().all(|lane| lane.session.is_empty());
        let others = (!is_alone).then(|| self.regular_rows());
        let (backend, model, queue) = (&*self.backend, &self.models[0], &*self.queue);
        let (rows, outcome) = self.scorer.advance(backend, model, queue, others, !self.lanes.is_empty());
        self.scorer.clock = clock + self.charge(Kind::Scoring, rows);
        self.clears_memory |= self.scorer.is_waiting_for_memory();
        if outcome { Ok(()) } else { self.check() }
    }
}

fn search(job: &Job) -> Option<&SearchTask> {
    match &job.task {
        Task::Search(search) => Some(search),
        Task::Score(_) => None,
    }
}

fn requests(jobs: &[Job]) -> impl Iterator<Item = &Request> {
    jobs.iter().filter_map(|job| Some(&search(job)?.request))
}
