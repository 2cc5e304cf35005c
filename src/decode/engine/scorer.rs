//! A worker's scoring of given targets, a part of a pass at a time.

use std::collections::VecDeque;
use std::time::Instant;

use super::job::{Job, ScoreTask, Task};
use super::queue::{Kind, Queue};
use super::repeated;
use crate::Error;
use crate::backend::Backend;
use crate::decode::score::{Pass, ROWS};
use crate::model::Seq2Seq;

/// Fewest rows of a part: below, a pass costs about the same.
const FEWEST_ROWS: usize = 32;

pub(super) struct Scorer<B: Backend, M: Seq2Seq<B>> {
    current: Option<(Vec<Job>, Pass<B, M>)>,
    /// Taken and not begun, or begun in vain.
    held: VecDeque<Job>,
    /// Those of `held` that go alone, first ones first: a pass that they shared has failed, and each shall have its own verdict.
    alone: usize,
    waits_for_memory: bool,
    /// Time on the device that it has had, divided by its share.
    pub(super) clock: u64,
}

impl<B: Backend, M: Seq2Seq<B>> Default for Scorer<B, M> {
    fn default() -> Self {
        Scorer { current: None, held: VecDeque::new(), alone: 0, waits_for_memory: false, clock: 0 }
    }
}

impl<B: Backend, M: Seq2Seq<B>> Scorer<B, M> {
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some() || !self.held.is_empty()
    }

    /// Whether sessions must go before it can go on.
    pub(super) fn is_waiting_for_memory(&self) -> bool {
        self.waits_for_memory
    }

    /// Takes a turn: begins a pass, or computes the next part of one, with no more rows than a step of `others` has, if they wait.
    /// Returns the rows that it computed, and whether all went well; what did not has been answered. While there are sessions, whose
    /// memory will be free one day, a lack of memory is waited out.
    pub(super) fn advance(
        &mut self,
        backend: &B,
        model: &M,
        queue: &Queue,
        others: Option<usize>,
        are_sessions: bool,
    ) -> (usize, bool) {
        let most = others.map_or(ROWS, |rows| rows.clamp(FEWEST_ROWS, ROWS));
        let Some((jobs, mut pass)) = self.current.take() else {
            return self.begin(backend, model, queue, most, are_sessions);
        };
        let rows = pass.next_rows();
        match pass.advance(backend, model) {
            Ok(None) => self.current = Some((jobs, pass)),
            Ok(Some(stats)) => {
                for (job, stats) in jobs.into_iter().zip(stats) {
                    if let Task::Score(task) = job.task {
                        task.reply.send(Ok(stats));
                    }
                }
            }
            Err(error) => {
                drop(pass);
                return (rows, self.failed(jobs, error, are_sessions));
            }
        }
        (rows, true)
    }

    fn begin(&mut self, backend: &B, model: &M, queue: &Queue, most: usize, are_sessions: bool) -> (usize, bool) {
        let now = Instant::now();
        let mut rows = 0;
        let mut fits = |job: &Job| {
            let more = score(job).map_or(0, |task| task.scoring.target.len().max(task.scoring.source.len()));
            rows += more;
            rows == more || rows <= most
        };
        let mut jobs = Vec::new();
        if self.held.is_empty() {
            jobs = queue.take(Kind::Scoring, usize::MAX, fits);
        } else if self.alone > 0 {
            self.alone -= 1;
            jobs.extend(self.held.pop_front());
        } else {
            while let Some(job) = self.held.pop_front_if(|job| fits(job)) {
                jobs.push(job);
            }
        }
        for job in jobs.extract_if(.., |job| job.over(now).is_some()) {
            let error = job.over(now).unwrap_or(Error::Cancelled);
            job.fail(error);
        }
        if jobs.is_empty() {
            return (0, true);
        }
        self.waits_for_memory = false;
        let pairs: Vec<_> = jobs.iter().filter_map(score).map(ScoreTask::pair).collect();
        let rows = pairs.iter().map(|pair| pair.source.len()).sum();
        match Pass::open(backend, model, &pairs, most) {
            Ok(pass) => {
                self.current = Some((jobs, pass));
                (rows, true)
            }
            Err(error) => (rows, self.failed(jobs, error, are_sessions)),
        }
    }

    /// Answers what has failed, or keeps it for another try; whether the device is beyond doubt.
    fn failed(&mut self, mut jobs: Vec<Job>, error: Error, are_sessions: bool) -> bool {
        if matches!(error, Error::OutOfMemory { .. }) && are_sessions {
            self.waits_for_memory = true;
            jobs.into_iter().rev().for_each(|job| self.held.push_front(job));
            return true;
        }
        if jobs.len() == 1 {
            jobs.remove(0).fail(error);
        } else {
            self.alone += jobs.len();
            jobs.into_iter().rev().for_each(|job| self.held.push_front(job));
        }
        false
    }

    /// Answers all with an error.
    pub(super) fn fail(&mut self, error: &Error) {
        let current = self.current.take().into_iter().flat_map(|(jobs, _)| jobs);
        current.chain(self.held.drain(..)).for_each(|job| job.fail(repeated(error)));
        (self.alone, self.waits_for_memory) = (0, false);
    }
}

fn score(job: &Job) -> Option<&ScoreTask> {
    match &job.task {
        Task::Score(score) => Some(score),
        Task::Search(_) => None,
    }
}
