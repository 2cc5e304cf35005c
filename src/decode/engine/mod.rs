//! The engine: threads that decode for everyone who asks.
//!
//! Callers on any thread [`ask`](Engine::ask) for a piece of [`Work`] on [`Terms`] of their own (whose it is, how urgent, until
//! when) and hold a [`Handle`] of its result: a future that needs no executor, which can be waited for, awaited, watched step by
//! step, and given up. What is given up, by [`Handle::cancel`], by dropping the handle or by its deadline, leaves the queue, or
//! frees its slot after the step under way.
//!
//! Work waits in one bounded queue, in the order that `queue.rs` says. Each worker takes from it what it has room for. Many sentences share a
//! [`Session`](crate::decode::Session), and thereby a batch; wide searches, explained ones and scoring run beside them, in turns, so
//! that none of them holds the others up for longer than a step. The result of a piece of work depends neither on what else is
//! running, nor on the worker, nor on when others come and go.
//!
//! A worker that panics loses the sentences that it was decoding, which get [`Error::WorkerLost`], and starts anew. If workers
//! panic three times in ten minutes, the engine fails: all that waits and all that comes gets [`Error::EngineFailed`].

mod handle;
mod job;
mod owners;
mod queue;
mod scorer;
mod statistics;
mod worker;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::backend::{Backend, MAX_SCORERS, Stages};
use crate::decode::hypothesis::Hypothesis;
use crate::decode::request::Request;
use crate::model::{Seq2Seq, check_ids};
use crate::{Error, Result};

use handle::{Reply, Shared};
use job::{Job, Task};
use queue::Queue;
use worker::Worker;

pub use handle::{Canceller, Handle, Progress};
pub use job::{Explain, Scoring, Search, Work};
pub use queue::{Priority, Terms};
pub use statistics::{Distribution, Statistics};

/// A handle to the engine's threads; dropping it lets accepted work finish, then ends the threads.
#[derive(Debug)]
pub struct Engine {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Workers>,
    vocab_size: usize,
    eos_id: u32,
    source_vocab_size: usize,
    max_len: usize,
    models: usize,
}

/// What the workers know of each other.
#[derive(Debug)]
struct Workers {
    /// Those whose device is not lost.
    alive: AtomicUsize,
    /// When workers have panicked.
    deaths: Mutex<VecDeque<Instant>>,
}

/// Sentences that may wait, unless an engine is told otherwise.
pub const DEFAULT_QUEUE: usize = 4096;

/// So many panics of workers within this time end the engine.
const MOST_DEATHS: usize = 3;
const DEATHS_COUNT_FOR: Duration = Duration::from_secs(600);

/// Work that waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Pieces of work.
    pub waiting: usize,
    /// Those of them that are [`Priority::Batch`].
    pub batch: usize,
    /// Decoder rows that they will take, roughly.
    pub cost: u64,
}

impl Engine {
    /// Starts the engine over `models`: a worker per backend, which share them and divide `slots`, the sentences decoded at once.
    /// The first model translates; what a sentence ranks by may come from the others too, whose vocabulary is the same. Up to
    /// `queue` pieces of work may wait.
    ///
    /// # Errors
    /// As [`Engine::start_replicas`].
    pub fn start<B: Backend, M: Seq2Seq<B> + 'static>(
        backends: Vec<B>,
        models: Vec<M>,
        source_vocab_size: usize,
        slots: usize,
        queue: usize,
    ) -> Result<Self> {
        let (models, slots) = (Arc::<[M]>::from(models), slots.div_ceil(backends.len().max(1)));
        let replicas = backends.into_iter().map(|backend| (backend, models.clone())).collect();
        Self::start_replicas(replicas, source_vocab_size, slots, queue)
    }

    /// Starts the engine over models that several devices hold, each its own copy: a worker per backend, decoding `slots`
    /// sentences at once. They take work from one queue.
    ///
    /// # Errors
    /// [`Error::Option`] for no backend, no model, or more than a step can read; [`Error::Io`] if a thread cannot be started.
    pub fn start_replicas<B: Backend, M: Seq2Seq<B> + 'static>(
        replicas: Vec<(B, Arc<[M]>)>,
        source_vocab_size: usize,
        slots: usize,
        queue: usize,
    ) -> Result<Self> {
        let models = replicas.first().map_or(&[][..], |(_, models)| models);
        // One scorer more than models: the first one can read another source.
        let Some(first) = models.first().filter(|_| models.len() < MAX_SCORERS) else {
            let (expected, got) = (format!("1 to {}", MAX_SCORERS - 1), models.len().to_string());
            return Err(Error::Option { option: "models", expected, got });
        };
        let shared = Workers { alive: AtomicUsize::new(replicas.len()), deaths: Mutex::default() };
        let mut engine = Engine {
            queue: Arc::new(Queue::new(queue)),
            threads: Vec::new(),
            shared: Arc::new(shared),
            vocab_size: first.vocab_size(),
            eos_id: first.ids().eos_id,
            source_vocab_size,
            max_len: models.iter().map(Seq2Seq::max_len).min().unwrap_or(0),
            models: models.len(),
        };
        for (backend, models) in replicas {
            let (backend, queue, shared) = (Arc::new(backend), engine.queue.clone(), engine.shared.clone());
            let work = move || {
                run_worker(|| Worker::new(backend.clone(), models.clone(), slots, queue.clone()), &queue, &shared)
            };
            let thread = crate::threads::start("beamfuse-engine", work);
            let thread =
                thread.map_err(|source| Error::Io { operation: "start thread", path: "engine".into(), source })?;
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
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Whether it takes work: false once its workers have failed too often, or all devices are lost.
    pub fn is_running(&self) -> bool {
        !self.queue.has_failed()
    }

    /// What waits.
    pub fn load(&self) -> Load {
        self.queue.load()
    }

    /// What has been done since it was started.
    pub fn statistics(&self) -> Statistics {
        self.queue.statistics.read()
    }

    /// Asks for a piece of work.
    ///
    /// # Errors
    /// [`Error::InputTooLong`] or [`Error::Input`] for ids that do not fit the model; [`Error::Overloaded`] if the queue is full;
    /// [`Error::EngineFailed`] or [`Error::DeviceLost`] if the engine can do no more. The handle's result may be these two,
    /// [`Error::NonFiniteLogits`], [`Error::UnmetConstraint`], [`Error::DeadlineExceeded`], [`Error::Cancelled`],
    /// [`Error::OutOfMemory`], a device's failure, or [`Error::WorkerLost`].
    pub fn ask<W: Work>(&self, work: W, terms: Terms) -> Result<Handle<W::Output>> {
        let shared = Shared::new();
        let to = shared.clone();
        let canceller = self.accept(work.task(Reply::new(move |result| to.end(result))), terms, false)?;
        Ok(Handle::new(shared, canceller))
    }

    /// As [`Engine::ask`], for a search whose handle tells its [`Progress`].
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub fn ask_watched(&self, request: Request, terms: Terms) -> Result<Handle<Vec<Hypothesis>>> {
        let shared = Shared::new();
        let canceller = self.accept(job::watched(request, self.eos_id, shared.clone()), terms, false)?;
        Ok(Handle::new(shared, canceller))
    }

    /// Asks for a piece of work whose result goes to `reply`, once, on a worker's thread: it should return soon. Where the queue is
    /// full, waits for room.
    ///
    /// # Errors
    /// As [`Engine::ask`], but for [`Error::Overloaded`]; `reply` is not called then.
    pub fn submit<W: Work>(
        &self,
        work: W,
        terms: Terms,
        reply: impl FnOnce(Result<W::Output>) + Send + 'static,
    ) -> Result<Canceller> {
        self.accept(work.task(Reply::new(reply)), terms, true)
    }

    fn accept(&self, task: Task, terms: Terms, waits: bool) -> Result<Canceller> {
        let canceller = Canceller::new(&self.queue);
        let job = Job::new(task, terms, canceller.clone());
        let checked = match &job.task {
            Task::Search(search) => self.check_request(&search.request),
            Task::Score(score) => self.check_scoring(&score.scoring),
        };
        if let Err(error) = checked {
            job.forget();
            return Err(error);
        }
        self.queue.push(job, waits)?;
        Ok(canceller)
    }

    /// The scorer that is the first model reading another source.
    pub fn other_source_scorer(&self) -> usize {
        self.models
    }

    fn check_scoring(&self, Scoring { source, target, inputs }: &Scoring) -> Result<()> {
        self.check("source", source, self.source_vocab_size)?;
        self.check("target", target, self.vocab_size)?;
        let Some(inputs) = inputs else { return Ok(()) };
        self.check("target", inputs, self.vocab_size)?;
        if inputs.len() != target.len() {
            let (expected, got) = (format!("{} decoder inputs", target.len()), inputs.len().to_string());
            return Err(Error::Input { operation: "submit ids", expected, got });
        }
        Ok(())
    }

    fn check_request(&self, request: &Request) -> Result<()> {
        self.check("source", &request.source, self.source_vocab_size)?;
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
        self.queue.drain();
        for thread in self.threads.drain(..) {
            // It catches its panics.
            let _ = thread.join();
        }
    }
}

/// Runs workers, each in the place of the one before, until there is no more work.
fn run_worker<B: Backend, M: Seq2Seq<B>>(start: impl Fn() -> Worker<B, M>, queue: &Queue, shared: &Workers) {
    let mut worker = start();
    loop {
        let reason = match catch_unwind(AssertUnwindSafe(|| worker.serve())) {
            Ok(Ok(())) => return,
            Ok(Err(lost)) => {
                // The last one answers whatever no other is left to take.
                if shared.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
                    queue.fail(repeated(&lost));
                }
                return worker.leave(&lost);
            }
            Err(panic) => panic_message(&*panic),
        };
        let lost = Error::WorkerLost { reason: reason.clone() };
        let deaths = shared.count_death();
        if deaths >= MOST_DEATHS {
            queue.fail(Error::EngineFailed { deaths, minutes: DEATHS_COUNT_FOR.as_secs() / 60, reason });
        }
        // What its sessions hold is unknown; even to drop them may fail.
        let left = catch_unwind(AssertUnwindSafe(|| worker.leave(&lost)));
        let broken = std::mem::replace(&mut worker, start());
        if left.is_err() || catch_unwind(AssertUnwindSafe(|| drop(broken))).is_err() {
            shared.count_death();
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

impl Workers {
    /// Counts a panic; returns how many there have been lately.
    fn count_death(&self) -> usize {
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        deaths.push_back(now);
        deaths.retain(|death| now.duration_since(*death) < DEATHS_COUNT_FOR);
        deaths.len()
    }
}

/// A failure, for one more of those whom it concerns.
fn repeated(error: &Error) -> Error {
    match error {
        Error::OutOfMemory { operation, device, needed, available } => {
            Error::OutOfMemory { operation, device: device.clone(), needed: *needed, available: *available }
        }
        Error::DeviceOperation { operation, device, reason } => {
            Error::DeviceOperation { operation, device: device.clone(), reason: reason.clone() }
        }
        Error::DeviceLost { device, reason } => Error::DeviceLost { device: device.clone(), reason: reason.clone() },
        Error::WorkerLost { reason } => Error::WorkerLost { reason: reason.clone() },
        Error::EngineFailed { deaths, minutes, reason } => {
            Error::EngineFailed { deaths: *deaths, minutes: *minutes, reason: reason.clone() }
        }
        other => Error::Device { device: "of the engine".into(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
