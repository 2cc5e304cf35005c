//! The kinds of work, each with its own reply.

use std::sync::Arc;
use std::time::Instant;

use super::handle::{Canceller, Progress, Reply, Shared};
use super::owners::Mark;
use super::queue::{Kind, Terms, WIDE_BEAM, over};
use crate::backend::TokenStats;
use crate::decode::hypothesis::Hypothesis;
use crate::decode::observation::Observation;
use crate::decode::request::Request;
use crate::decode::score::Pair;
use crate::decode::settled::Settled;
use crate::decode::trace::{Trace, Tracer};
use crate::{Error, Result};

/// A piece of work for the engine.
pub trait Work: Sized {
    /// What it comes to.
    type Output: Send + 'static;

    #[doc(hidden)]
    fn task(self, reply: Reply<Self::Output>) -> Task;
}

/// The engine's own side of [`Work`].
pub enum Task {
    /// A search.
    Search(Box<SearchTask>),
    /// Scoring a target.
    Score(Box<ScoreTask>),
}

/// Searches for translations: the hypotheses, best first.
#[derive(Clone, Debug, PartialEq)]
pub struct Search(pub Request);

/// Searches for translations and records every step.
#[derive(Clone, Debug, PartialEq)]
pub struct Explain(pub Request);

/// Scores a given target: what the model says of each of its tokens. Ids include the end of sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Source ids.
    pub source: Vec<u32>,
    /// Target ids.
    pub target: Vec<u32>,
    /// What the decoder reads at each position, as many ids as the target has; `None`: the start token, then the target.
    pub inputs: Option<Vec<u32>>,
}

impl Work for Search {
    type Output = Vec<Hypothesis>;

    fn task(self, reply: Reply<Vec<Hypothesis>>) -> Task {
        Task::Search(Box::new(SearchTask { request: self.0, is_explained: false, sink: Box::new(reply) }))
    }
}

impl Work for Explain {
    type Output = Trace;

    fn task(self, reply: Reply<Trace>) -> Task {
        // All that finishes is shown, with the attention.
        let request = Request { attention: true, n_best: usize::MAX, ..self.0 };
        let sink = Box::new(Explaining { tracer: Tracer::default(), reply });
        Task::Search(Box::new(SearchTask { request, is_explained: true, sink }))
    }
}

impl Work for Scoring {
    type Output = Vec<TokenStats>;

    fn task(self, reply: Reply<Vec<TokenStats>>) -> Task {
        Task::Score(Box::new(ScoreTask { scoring: self, reply }))
    }
}

/// What becomes of a search.
pub(super) trait Sink: Send {
    /// Whether it asks for the steps.
    fn is_watching(&self) -> bool {
        false
    }
    fn step(&mut self, _: Observation) {}
    fn end(self: Box<Self>, result: Result<Vec<Hypothesis>>);
    /// The work was refused; who asked knows.
    fn forget(self: Box<Self>);
}

impl Sink for Reply<Vec<Hypothesis>> {
    fn end(self: Box<Self>, result: Result<Vec<Hypothesis>>) {
        self.send(result);
    }

    fn forget(self: Box<Self>) {
        Reply::forget(*self);
    }
}

struct Explaining {
    tracer: Tracer,
    reply: Reply<Trace>,
}

impl Sink for Explaining {
    fn is_watching(&self) -> bool {
        true
    }

    fn step(&mut self, observation: Observation) {
        self.tracer.step(observation);
    }

    fn end(self: Box<Self>, result: Result<Vec<Hypothesis>>) {
        let Explaining { tracer, reply } = *self;
        reply.send(result.map(|hypotheses| tracer.trace(hypotheses)));
    }

    fn forget(self: Box<Self>) {
        self.reply.forget();
    }
}

/// Tells a handle how a search goes on.
struct Watching {
    shared: Arc<Shared<Vec<Hypothesis>>>,
    settled: Settled,
    eos_id: u32,
    /// Steps so far, and the most there can be.
    step: usize,
    limit: usize,
    reply: Reply<Vec<Hypothesis>>,
}

impl Sink for Watching {
    fn is_watching(&self) -> bool {
        true
    }

    fn step(&mut self, observation: Observation) {
        let tokens = self.settled.step(self.eos_id, &observation);
        self.step = observation.step;
        self.shared.report(Progress { step: self.step, limit: self.limit, tokens });
    }

    fn end(self: Box<Self>, result: Result<Vec<Hypothesis>>) {
        let best = result.as_ref().ok().and_then(|hypotheses| hypotheses.first());
        if let Some(best) = best {
            let tokens = self.settled.rest(&best.token_ids);
            self.shared.report(Progress { step: self.step, limit: self.limit, tokens });
        }
        self.reply.send(result);
    }

    fn forget(self: Box<Self>) {
        self.reply.forget();
    }
}

/// A search that tells its steps to a handle.
pub(super) fn watched(request: Request, eos_id: u32, shared: Arc<Shared<Vec<Hypothesis>>>) -> Task {
    let (to, limit) = (shared.clone(), request.options.max_len as usize);
    let reply = Reply::new(move |result| to.end(result));
    let sink = Box::new(Watching { shared, settled: Settled::default(), eos_id, step: 0, limit, reply });
    Task::Search(Box::new(SearchTask { request, is_explained: false, sink }))
}

/// A search and what becomes of it.
pub struct SearchTask {
    pub(super) request: Request,
    pub(super) is_explained: bool,
    pub(super) sink: Box<dyn Sink>,
}

impl SearchTask {
    /// Hands over the result, as much of it as was asked for.
    pub(super) fn end(self, result: Result<Vec<Hypothesis>>) {
        let SearchTask { request, sink, .. } = self;
        let found = result.and_then(|hypotheses| request.keep_met(hypotheses));
        sink.end(found.map(|mut hypotheses| {
            hypotheses.truncate(request.n_best);
            if !request.attention {
                hypotheses.iter_mut().for_each(|hypothesis| hypothesis.attention = None);
            }
            hypotheses
        }));
    }
}

/// A target to score and where that goes.
pub struct ScoreTask {
    pub(super) scoring: Scoring,
    pub(super) reply: Reply<Vec<TokenStats>>,
}

impl ScoreTask {
    pub(super) fn pair(&self) -> Pair<'_> {
        let Scoring { source, target, inputs } = &self.scoring;
        Pair { source, target, inputs: inputs.as_deref() }
    }
}

/// Accepted work.
pub(super) struct Job {
    pub(super) terms: Terms,
    pub(super) canceller: Canceller,
    pub(super) accepted: Instant,
    /// Rows that it will take, roughly.
    pub(super) cost: u64,
    pub(super) task: Task,
    /// Counts it among its owner's, once it has been accepted.
    pub(super) mark: Option<Mark>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("terms", &self.terms).field("cost", &self.cost).finish_non_exhaustive()
    }
}

impl Job {
    pub(super) fn new(task: Task, terms: Terms, canceller: Canceller) -> Self {
        let cost = match &task {
            // A translation is about as long as its source.
            Task::Search(search) => {
                let Request { source, options, .. } = &search.request;
                source.len() + options.finished_room() as usize * source.len().min(options.max_len as usize)
            }
            Task::Score(score) => score.scoring.source.len() + score.scoring.target.len(),
        };
        Job { terms, canceller, accepted: Instant::now(), cost: cost as u64, task, mark: None }
    }

    pub(super) fn kind(&self) -> Kind {
        match &self.task {
            Task::Score(_) => Kind::Scoring,
            Task::Search(search) if search.is_explained => Kind::Explained,
            Task::Search(search) if search.request.options.finished_room() as usize > WIDE_BEAM => Kind::Wide,
            Task::Search(_) => Kind::Regular,
        }
    }

    /// Why it need not be done any more.
    pub(super) fn over(&self, now: Instant) -> Option<Error> {
        over(&self.terms, &self.canceller, now)
    }

    /// It was refused; who asked knows.
    pub(super) fn forget(self) {
        match self.task {
            Task::Search(search) => search.sink.forget(),
            Task::Score(score) => score.reply.forget(),
        }
    }

    pub(super) fn fail(self, error: Error) {
        match self.task {
            Task::Search(search) => search.sink.end(Err(error)),
            Task::Score(score) => score.reply.send(Err(error)),
        }
    }
}
