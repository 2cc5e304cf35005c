//! What a caller holds of work that has been accepted: it can be moved, waited for, awaited, watched and given up.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::queue::Queue;
use crate::{Error, Result};

/// Where a result goes: it is called once. Dropped before that, as when a worker panics, it reports the loss.
pub struct Reply<T>(Option<Box<dyn FnOnce(Result<T>) + Send>>);

impl<T> Reply<T> {
    pub(super) fn new(to: impl FnOnce(Result<T>) + Send + 'static) -> Self {
        Reply(Some(Box::new(to)))
    }

    pub(super) fn send(mut self, result: Result<T>) {
        if let Some(to) = self.0.take() {
            to(result);
        }
    }
}

impl<T> Reply<T> {
    /// Nobody need be told.
    pub(super) fn forget(mut self) {
        self.0 = None;
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(to) = self.0.take() {
            to(Err(Error::WorkerLost { reason: "it ended before it answered".into() }));
        }
    }
}

/// Gives up a piece of work, from any thread, as often as one likes. A sentence that is being decoded frees its slot after the step
/// under way.
#[derive(Clone, Debug)]
pub struct Canceller(Arc<Cancelled>);

#[derive(Debug)]
struct Cancelled {
    cancelled: AtomicBool,
    queue: Weak<Queue>,
}

impl Canceller {
    pub(super) fn new(queue: &Arc<Queue>) -> Self {
        Canceller(Arc::new(Cancelled { cancelled: AtomicBool::new(false), queue: Arc::downgrade(queue) }))
    }

    /// Gives the work up. Its reply is [`Error::Cancelled`], unless it had come already.
    pub fn cancel(&self) {
        if !self.0.cancelled.swap(true, Ordering::AcqRel)
            && let Some(queue) = self.0.queue.upgrade()
        {
            queue.note_cancellation();
        }
    }

    /// Whether it has been given up.
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Acquire)
    }
}

/// How far a search has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tokens per live hypothesis so far.
    pub step: usize,
    /// The number of steps at which the search ends at the latest.
    pub limit: usize,
    /// Tokens that are settled since the last progress was taken: all progress taken together begins the best hypothesis, and is
    /// the whole of it when the result is there. May be empty.
    pub tokens: Vec<u32>,
}

/// Work that has been accepted. It is a plain future, for any executor; [`Handle::wait`] is for those without one. Dropping it
/// gives the work up, as [`Handle::cancel`] does.
#[derive(Debug)]
pub struct Handle<T> {
    shared: Arc<Shared<T>>,
    /// None for work that was done before it was asked for.
    canceller: Option<Canceller>,
}

/// What a handle shares with the worker.
#[derive(Debug)]
pub(super) struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    result: Option<Result<T>>,
    has_ended: bool,
    progress: Option<Progress>,
    waker: Option<Waker>,
}

impl<T> Shared<T> {
    pub(super) fn new() -> Arc<Self> {
        let state = State { result: None, has_ended: false, progress: None, waker: None };
        Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        // No panic happens under the lock: what it holds is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the result; the first one counts.
    pub(super) fn end(&self, result: Result<T>) {
        self.update(|state| {
            if !state.has_ended {
                (state.result, state.has_ended) = (Some(result), true);
            }
        });
    }

    /// Adds to the progress that has not been taken yet.
    pub(super) fn report(&self, progress: Progress) {
        self.update(|state| match &mut state.progress {
            Some(waiting) => {
                (waiting.step, waiting.limit) = (progress.step, progress.limit);
                waiting.tokens.extend(progress.tokens);
            }
            none => *none = Some(progress),
        });
    }

    fn update(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = self.state();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Handle<T> {
    pub(super) fn new(shared: Arc<Shared<T>>, canceller: Canceller) -> Self {
        Handle { shared, canceller: Some(canceller) }
    }

    /// One whose result is there already.
    pub fn ready(result: Result<T>) -> Self {
        let shared = Shared::new();
        shared.end(result);
        Handle { shared, canceller: None }
    }

    /// Waits for the result.
    ///
    /// # Errors
    /// What became of the work instead: see [`Engine::ask`](super::Engine::ask).
    pub fn wait(self) -> Result<T> {
        let mut state = self.shared.state();
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            if state.has_ended {
                return Err(Error::Cancelled);
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the result, but not for longer than `limit`; none if it has not come by then, or was taken before.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Result<T>> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state();
        while !state.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (state, _) = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
        state.result.take()
    }

    /// Whether the result is there.
    pub fn has_ended(&self) -> bool {
        self.shared.state().has_ended
    }

    /// Waits for the next progress of work that was asked for with it; none once the result is there and all progress has been
    /// taken. What comes faster than it is taken is merged.
    pub fn next_progress(&mut self) -> Option<Progress> {
        let mut state = self.shared.state();
        loop {
            if state.progress.is_some() || state.has_ended {
                return state.progress.take();
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Handle::next_progress`], for executors.
    pub fn poll_progress(&mut self, context: &mut Context<'_>) -> Poll<Option<Progress>> {
        let mut state = self.shared.state();
        if state.progress.is_some() || state.has_ended {
            return Poll::Ready(state.progress.take());
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// All progress to come, in turn.
    pub fn progress(&mut self) -> impl Iterator<Item = Progress> + '_ {
        std::iter::from_fn(|| self.next_progress())
    }

    /// Gives the work up: unless it has come already, the result is [`Error::Cancelled`], at once.
    pub fn cancel(&self) {
        self.shared.end(Err(Error::Cancelled));
        if let Some(canceller) = &self.canceller {
            canceller.cancel();
        }
    }

    /// What gives the work up without the handle.
    pub fn canceller(&self) -> Option<Canceller> {
        self.canceller.clone()
    }
}

impl<T> Future for Handle<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        let mut state = self.shared.state();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None if state.has_ended => Poll::Ready(Err(Error::Cancelled)),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if !self.has_ended()
            && let Some(canceller) = &self.canceller
        {
            canceller.cancel();
        }
    }
}
