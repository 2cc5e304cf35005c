//! The engine: threads that each own a session and decode for everyone who asks.
//!
//! Callers submit jobs from any thread; they share the sessions, so that many small requests fill the same batch. A job's
//! result does not depend on what else is running, or on which worker takes it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::thread::JoinHandle;

use crate::backend::{Backend, MAX_SCORERS, Stages, TokenStats};
use crate::decode::hypothesis::Hypothesis;
use crate::decode::request::Request;
use crate::decode::score::{self, Pair};
use crate::decode::session::{Admission, Session};
use crate::decode::trace::{Trace, trace};
use crate::model::{Seq2Seq, check_ids};
use crate::{Error, Result};

/// A piece of work for the engine.
#[derive(Debug)]
pub struct Job {
    /// Comes back with the reply.
    pub tag: u64,
    /// What to do.
    pub work: Work,
    /// Where the reply goes.
    pub reply: Sender<Reply>,
    /// Whoever waits for the reply holds the other end; a sentence that nobody waits for any more is not begun.
    pub caller: Weak<()>,
}

/// What a job asks for. Ids include the end of sentence.
#[derive(Debug)]
pub enum Work {
    /// Translate.
    Search(Box<Request>),
    /// Translate, and record every step; for one sentence at a time.
    Explain(Box<Request>),
    /// Score a given target.
    Score {
        /// Source ids.
        source: Vec<u32>,
        /// Target ids.
        target: Vec<u32>,
        /// What the decoder reads at each position, as many ids as the target has; `None`: the start token, then the target.
        inputs: Option<Vec<u32>>,
    },
}

/// The engine's answer to a job.
#[derive(Debug)]
pub struct Reply {
    /// The job's tag.
    pub tag: u64,
    /// Its outcome.
    pub outcome: Result<Outcome>,
}

/// What a job came to.
#[derive(Debug)]
pub enum Outcome {
    /// The translations, best first.
    Hypotheses(Vec<Hypothesis>),
    /// The search's steps and its translations.
    Explained(Trace),
    /// What the model says of each target token.
    TokenStats(Vec<TokenStats>),
}

/// A handle to the engine's threads; dropping it lets accepted jobs finish, then ends the threads.
#[derive(Debug)]
pub struct Engine {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Workers whose device is not lost.
    alive: Arc<AtomicUsize>,
    vocab_size: usize,
    eos_id: u32,
    source_vocab_size: usize,
    max_len: usize,
    models: usize,
}

impl Engine {
    /// Starts the engine over `models`: a worker per backend, which share them and divide `slots`, the sentences decoded at once.
    /// The first model translates; what a sentence ranks by may come from the others too, whose vocabulary is the same.
    ///
    /// # Errors
    /// As [`Engine::start_replicas`].
    pub fn start<B: Backend, M: Seq2Seq<B> + 'static>(
        backends: Vec<B>,
        models: Vec<M>,
        source_vocab_size: usize,
        slots: usize,
    ) -> Result<Self> {
        let (models, slots) = (Arc::<[M]>::from(models), slots.div_ceil(backends.len().max(1)));
        let replicas = backends.into_iter().map(|backend| (backend, models.clone())).collect();
        Self::start_replicas(replicas, source_vocab_size, slots)
    }

    /// Starts the engine over models that several devices hold, each its own copy: a worker per backend, decoding `slots`
    /// sentences at once. They take jobs from one queue.
    ///
    /// # Errors
    /// [`Error::Option`] for no backend, no model, or more than a step can read; [`Error::Io`] if a thread cannot be started.
    pub fn start_replicas<B: Backend, M: Seq2Seq<B> + 'static>(
        replicas: Vec<(B, Arc<[M]>)>,
        source_vocab_size: usize,
        slots: usize,
    ) -> Result<Self> {
        let models = replicas.first().map_or(&[][..], |(_, models)| models);
        // One scorer more than models: the first one can read another source.
        let Some(first) = models.first().filter(|_| models.len() < MAX_SCORERS) else {
            let (expected, got) = (format!("1 to {}", MAX_SCORERS - 1), models.len().to_string());
            return Err(Error::Option { option: "models", expected, got });
        };
        let (jobs, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let (vocab_size, eos_id) = (first.vocab_size(), first.ids().eos_id);
        let max_len = models.iter().map(Seq2Seq::max_len).min().unwrap_or(0);
        let (jobs, alive) = (Some(jobs), Arc::new(AtomicUsize::new(replicas.len())));
        let (threads, count) = (Vec::new(), models.len());
        let mut engine = Engine {
            jobs,
            threads,
            alive: alive.clone(),
            vocab_size,
            eos_id,
            source_vocab_size,
            max_len,
            models: count,
        };
        for (backend, models) in replicas {
            let (backend, receiver, alive) = (Arc::new(backend), receiver.clone(), alive.clone());
            let (session, jobs) = (None, Queues::default());
            let mut worker = Worker { backend, models, slots, session, session_must_go: false, jobs, alive };
            let thread = std::thread::Builder::new()
                .name("beamfuse-engine".into())
                // For good where the backend's threads are: no step waits for one of them to wake.
                .spawn(move || worker.backend.clone().run(|| worker.serve(&receiver)))
                .map_err(|source| Error::Io { operation: "start thread", path: "engine".into(), source })?;
            engine.threads.push(thread);
        }
        Ok(engine)
    }

    /// The longest source and the longest target that the model takes, end of sentence included.
    pub fn max_len(&self) -> usize {
        self.max_len
    }

    /// Workers it was started with.
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Workers whose device is not lost.
    pub fn running_workers(&self) -> usize {
        self.alive.load(Ordering::Acquire)
    }

    /// Whether no thread has died; one ends early by a panic, or when its device is lost and others go on.
    pub fn is_running(&self) -> bool {
        let ended = self.threads.iter().filter(|thread| thread.is_finished()).count();
        ended <= self.threads.len() - self.alive.load(Ordering::Acquire)
    }

    /// Accepts a job; its reply comes through the job's channel.
    ///
    /// # Errors
    /// [`Error::InputTooLong`] or [`Error::Input`] for ids that do not fit the model, [`Error::EngineStopped`].
    pub fn submit(&self, job: Job) -> Result<()> {
        match &job.work {
            Work::Search(request) | Work::Explain(request) => {
                self.check("source", &request.source, self.source_vocab_size)?;
                self.check_request(request)?;
            }
            Work::Score { source, target, inputs } => {
                self.check("source", source, self.source_vocab_size)?;
                self.check("target", target, self.vocab_size)?;
                if let Some(inputs) = inputs {
                    self.check("target", inputs, self.vocab_size)?;
                    if inputs.len() != target.len() {
                        let (expected, got) = (format!("{} decoder inputs", target.len()), inputs.len().to_string());
                        return Err(Error::Input { operation: "submit ids", expected, got });
                    }
                }
            }
        }
        self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok()).ok_or(Error::EngineStopped)
    }

    /// The scorer that is the first model reading another source.
    pub fn other_source_scorer(&self) -> usize {
        self.models
    }

    fn check_request(&self, request: &Request) -> Result<()> {
        let Request { options, contrast_source, prefix, bans, constraints, .. } = request;
        let wrong = |expected: String, got: String| Err(Error::Input { operation: "submit a search", expected, got });
        let stages = Stages::of(options);
        let reads_another = stages.scorers & 1 << self.models != 0;
        if stages.scorers >> (self.models + usize::from(reads_another)) != 0 {
            return wrong(format!("scorers below {}", self.models + 1), format!("{:b} in bits", stages.scorers));
        }
        if stages.contrast & 1 != 0 {
            return wrong("an amateur beside the first scorer".into(), "scorer 0".into());
        }
        if reads_another {
            self.check("contrast source", contrast_source, self.source_vocab_size)?;
        }
        check_ids("submit a prefix", prefix, self.vocab_size)?;
        if prefix.len() != options.prefix_len as usize || options.prefix_len >= options.max_len.max(1) {
            let got = format!("{} of {}", prefix.len(), options.prefix_len);
            return wrong(format!("a prefix of fewer tokens than the {} of the limit", options.max_len), got);
        }
        for constraint in constraints {
            check_ids("submit a constraint", &constraint.ids, self.vocab_size)?;
            if constraint.ids.contains(&self.eos_id) {
                return wrong("constraints without end of sentence".into(), constraint.text.clone());
            }
        }
        let tokens: usize = constraints.iter().map(|constraint| constraint.ids.len()).sum();
        if tokens != options.constraints as usize || (tokens != 0 && options.banned == 0) {
            return wrong("constraints that Request::constrain has taken".into(), format!("{tokens} tokens"));
        }
        if bans.as_ref().is_some_and(|bans| bans.words() != self.vocab_size.div_ceil(32)) {
            return wrong(format!("bans for {} tokens", self.vocab_size), "some for another vocabulary".into());
        }
        Ok(())
    }

    fn check(&self, side: &'static str, ids: &[u32], vocab_size: usize) -> Result<()> {
        if ids.len() > self.max_len {
            return Err(Error::InputTooLong { side, length: ids.len(), limit: self.max_len });
        }
        if ids.is_empty() {
            return Err(Error::Input { operation: "submit ids", expected: "at least one".into(), got: "none".into() });
        }
        check_ids("submit ids", ids, vocab_size)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // A panic over there has been reported to its callers already.
            let _ = thread.join();
        }
    }
}

/// Jobs accepted and not yet answered.
#[derive(Debug, Default)]
struct Queues {
    waiting: VecDeque<SearchJob>,
    to_score: VecDeque<ScoreJob>,
    to_explain: VecDeque<ExplainJob>,
    /// In the session, by ticket.
    running: HashMap<u64, SearchJob>,
    last_ticket: u64,
}

#[derive(Debug)]
struct SearchJob {
    tag: u64,
    reply: Sender<Reply>,
    caller: Weak<()>,
    request: Box<Request>,
}

#[derive(Debug)]
struct ExplainJob {
    tag: u64,
    reply: Sender<Reply>,
    request: Box<Request>,
}

#[derive(Debug)]
struct ScoreJob {
    tag: u64,
    reply: Sender<Reply>,
    source: Vec<u32>,
    target: Vec<u32>,
    inputs: Option<Vec<u32>>,
}

impl ScoreJob {
    fn pair(&self) -> Pair<'_> {
        Pair { source: &self.source, target: &self.target, inputs: self.inputs.as_deref() }
    }
}

impl Queues {
    fn accept(&mut self, Job { tag, work, reply, caller }: Job) {
        match work {
            Work::Search(request) => self.waiting.push_back(SearchJob { tag, reply, caller, request }),
            Work::Explain(request) => self.to_explain.push_back(ExplainJob { tag, reply, request }),
            Work::Score { source, target, inputs } => {
                self.to_score.push_back(ScoreJob { tag, reply, source, target, inputs });
            }
        }
    }

    /// Jobs taken and not begun.
    fn ahead(&self) -> usize {
        self.waiting.len() + self.to_score.len() + self.to_explain.len()
    }

    fn are_empty(&self) -> bool {
        let (searches, others) = (&self.waiting, (&self.to_score, &self.to_explain));
        searches.is_empty() && others.0.is_empty() && others.1.is_empty() && self.running.is_empty()
    }

    /// Answers the sentences in the session with the failure that ended it.
    fn fail_running(&mut self, error: &Error) {
        for (_, job) in self.running.drain() {
            answer(&job.reply, job.tag, Err(repeated(error)));
        }
    }

    /// Answers every job with the failure that ended them all.
    fn fail_all(&mut self, error: &Error) {
        self.fail_running(error);
        let searches = self.waiting.drain(..).map(|job| (job.tag, job.reply));
        let others = self.to_score.drain(..).map(|job| (job.tag, job.reply));
        let others = others.chain(self.to_explain.drain(..).map(|job| (job.tag, job.reply)));
        for (tag, reply) in searches.chain(others) {
            answer(&reply, tag, Err(repeated(error)));
        }
    }
}

/// A device's failure, for one more of the jobs that it ended.
fn repeated(error: &Error) -> Error {
    match error {
        Error::OutOfMemory { operation, device, needed, available } => {
            Error::OutOfMemory { operation, device: device.clone(), needed: *needed, available: *available }
        }
        Error::DeviceOperation { operation, device, reason } => {
            Error::DeviceOperation { operation, device: device.clone(), reason: reason.clone() }
        }
        Error::DeviceLost { device, reason } => Error::DeviceLost { device: device.clone(), reason: reason.clone() },
        other => Error::Device { device: "of the engine".into(), reason: other.to_string() },
    }
}

/// Sends a reply; a caller that no longer listens has given up on it.
fn answer(reply: &Sender<Reply>, tag: u64, outcome: Result<Outcome>) {
    let _ = reply.send(Reply { tag, outcome });
}

/// One of the engine's threads.
struct Worker<B: Backend, M: Seq2Seq<B>> {
    backend: Arc<B>,
    /// At least one.
    models: Arc<[M]>,
    slots: usize,
    session: Option<Session<B, M>>,
    /// No sentence is begun until it has run dry and been dropped: something else needs its memory.
    session_must_go: bool,
    jobs: Queues,
    /// Workers whose device is not lost.
    alive: Arc<AtomicUsize>,
}

impl<B: Backend, M: Seq2Seq<B>> Worker<B, M> {
    fn serve(&mut self, incoming: &Mutex<Receiver<Job>>) {
        while self.take_jobs(incoming) {
            if let Err(error) = self.advance() {
                // What the session holds is unknown: its sentences are lost, those that wait get a new one.
                self.session = None;
                self.jobs.fail_running(&error);
                if let Err(error) = self.backend.check() {
                    return self.refuse_all(&error, incoming);
                }
            }
        }
    }

    /// On a device that can do no more: answers with its loss whatever no other worker is left to take.
    fn refuse_all(&mut self, error: &Error, incoming: &Mutex<Receiver<Job>>) {
        let lost = Error::DeviceLost { device: self.backend.name(), reason: error.to_string() };
        self.jobs.fail_all(&lost);
        if self.alive.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        while self.take_jobs(incoming) {
            self.jobs.fail_all(&lost);
        }
    }

    /// Takes no more jobs than can soon be begun, so that the other workers find some; waits for one if there is nothing else to
    /// do. False when there will be no more.
    fn take_jobs(&mut self, incoming: &Mutex<Receiver<Job>>) -> bool {
        let idle = self.jobs.are_empty();
        let incoming = match incoming.try_lock() {
            Ok(incoming) => incoming,
            // Jobs do not change while a worker takes some, so that what a panic leaves is sound.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // An idle worker holds the lock while it waits: there is nothing to take.
            Err(TryLockError::WouldBlock) if !idle => return true,
            Err(TryLockError::WouldBlock) => incoming.lock().unwrap_or_else(PoisonError::into_inner),
        };
        if idle {
            match incoming.recv() {
                Ok(job) => self.jobs.accept(job),
                Err(_) => return false,
            }
        }
        while self.jobs.ahead() < self.slots {
            let Ok(job) = incoming.try_recv() else { break };
            self.jobs.accept(job);
        }
        true
    }

    /// One scoring pass and one explained search, if any is asked for, and one step of the search.
    fn advance(&mut self) -> Result<()> {
        self.score_some()?;
        self.explain_one()?;
        self.admit_waiting()?;
        let Worker { backend, models, session: Some(session), jobs, .. } = self else { return Ok(()) };
        if session.is_empty() {
            return Ok(());
        }
        let (backend, models) = (&**backend, &**models);
        session.step(backend, models)?;
        session.harvest(backend, |ticket, result| {
            if let Some(job) = jobs.running.remove(&ticket) {
                let result = result.and_then(|hypotheses| job.request.keep_met(hypotheses));
                answer(&job.reply, job.tag, result.map(|h| Outcome::Hypotheses(job.trim(h))));
            }
        })
    }

    fn score_some(&mut self) -> Result<()> {
        if self.session_must_go {
            if self.session.as_ref().is_some_and(|session| !session.is_empty()) {
                return Ok(());
            }
            self.session = None;
            self.session_must_go = false;
        }
        let mut rows = 0;
        let fits = |job: &&ScoreJob| {
            rows += job.target.len();
            rows <= score::ROWS
        };
        let count = self.jobs.to_score.iter().take_while(fits).count().max(1).min(self.jobs.to_score.len());
        if count == 0 {
            return Ok(());
        }
        let batch: Vec<ScoreJob> = self.jobs.to_score.drain(..count).collect();
        let pairs: Vec<Pair<'_>> = batch.iter().map(ScoreJob::pair).collect();
        let (backend, model) = (&*self.backend, &self.models[0]);
        match score::score(backend, model, &pairs) {
            Ok(scores) => {
                for (job, scores) in batch.iter().zip(scores) {
                    answer(&job.reply, job.tag, Ok(Outcome::TokenStats(scores)));
                }
            }
            Err(Error::OutOfMemory { .. }) if self.session.is_some() => {
                // Once the session has run dry, its memory serves.
                self.session_must_go = true;
                batch.into_iter().rev().for_each(|job| self.jobs.to_score.push_front(job));
            }
            Err(error) => {
                // Alone, each pair gets its own verdict.
                let mut first = Some(error).filter(|_| batch.len() == 1);
                for (job, pair) in batch.iter().zip(pairs) {
                    let scores = first.take().map_or_else(|| score::score(backend, model, &[pair]), Err);
                    answer(&job.reply, job.tag, scores.map(|scores| Outcome::TokenStats(scores.concat())));
                }
                self.backend.check()?;
            }
        }
        Ok(())
    }

    fn explain_one(&mut self) -> Result<()> {
        let Some(ExplainJob { tag, reply, request }) = self.jobs.to_explain.pop_front() else { return Ok(()) };
        let (backend, models) = (&*self.backend, &*self.models);
        let traced = backend.run(|| trace(backend, models, &request));
        let failed = traced.is_err();
        answer(&reply, tag, traced.map(Outcome::Explained));
        if failed { self.backend.check() } else { Ok(()) }
    }

    /// Takes waiting sentences into free slots, in order.
    fn admit_waiting(&mut self) -> Result<()> {
        self.jobs.waiting.retain(|job| job.caller.strong_count() > 0);
        if self.session_must_go {
            return Ok(());
        }
        let Some(first) = self.jobs.waiting.front() else { return Ok(()) };
        let fits = self.session.as_ref().is_some_and(|s| first.request.fits(s.shape()));
        if !fits {
            // A sentence too large for the session waits until that has run dry and can be opened anew, larger.
            if self.session.as_ref().is_some_and(|s| !s.is_empty()) {
                return Ok(());
            }
            let old = self.session.take().map(|session| session.shape());
            let stages = Stages::of(&first.request.options);
            let shape = |old| first.request.grown(old, self.slots);
            let open = |old| Session::open_within(&*self.backend, &self.models, shape(old), stages);
            // Where memory is short, room for what came before is given up.
            let opened = match open(old) {
                Err(Error::OutOfMemory { .. }) if old.is_some() => open(None),
                opened => opened,
            };
            match opened {
                Ok(session) => self.session = Some(session),
                Err(error) => {
                    if let Some(job) = self.jobs.waiting.pop_front() {
                        answer(&job.reply, job.tag, Err(repeated(&error)));
                    }
                    return Err(error);
                }
            }
        }
        let Some(session) = &mut self.session else { return Ok(()) };
        let mut admitted = Vec::new();
        for slot in session.free_slots() {
            let Some(job) = self.jobs.waiting.pop_front_if(|job| job.request.fits(session.shape())) else { break };
            self.jobs.last_ticket += 1;
            self.jobs.running.insert(self.jobs.last_ticket, job);
            admitted.push((slot, self.jobs.last_ticket));
        }
        let admissions: Vec<Admission<'_>> = admitted
            .iter()
            .filter_map(|&(slot, ticket)| {
                let job = self.jobs.running.get(&ticket)?;
                Some(Admission { slot, ticket, request: &job.request })
            })
            .collect();
        if admissions.is_empty() {
            return Ok(());
        }
        session.admit(&*self.backend, &self.models, &admissions)
    }
}

impl SearchJob {
    /// What the caller asked to see.
    fn trim(&self, mut hypotheses: Vec<Hypothesis>) -> Vec<Hypothesis> {
        hypotheses.truncate(self.request.n_best);
        if !self.request.attention {
            hypotheses.iter_mut().for_each(|h| h.attention = None);
        }
        hypotheses
    }
}
