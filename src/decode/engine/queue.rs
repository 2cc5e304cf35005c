//! Work that has been accepted and not begun, and who is next: the whole policy.
//!
//! * The queue is bounded: when it is full, callers wait for room or are refused with [`Error::Overloaded`].
//! * [`Priority::Interactive`] goes before [`Priority::Batch`], but every tenth turn is batch's where both wait, and batch work
//!   that has waited for 10 seconds waits no longer.
//! * Within a priority, owners take turns by cost (deficit round robin, Shreedhar & Varghese 1995): one with much to do does not
//!   delay another's first sentence by more than a turn. Within an owner, first come, first served.
//! * Where one owner has much to do, waiting or begun, the sentences of another that has little go by [`Kind::Light`]: neither
//!   another's queue nor its batch makes them slow.
//! * Work whose deadline has passed or that has been given up is removed, and its room is free.
//! * Kinds of work wait apart, so that one that has no room yet holds up nobody else; how they share a device is up to
//!   [`Kind::share`].

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::handle::Canceller;
use super::job::Job;
use super::owners::{MUCH, Owners};
use super::statistics::Recorder;
use super::{Load, repeated};
use crate::{Error, Result};

/// How urgent work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Someone waits for it.
    #[default]
    Interactive,
    /// It fills what the others leave.
    Batch,
}

/// On which terms work is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Terms {
    /// Whose it is: owners get equal shares. Default: an owner of its own.
    pub owner: u64,
    /// Default [`Priority::Interactive`].
    pub priority: Priority,
    /// When the result is of no more use: work that has not ended by then gets [`Error::DeadlineExceeded`]. Default: never.
    pub deadline: Option<Instant>,
}

impl Terms {
    /// The default, for an owner that no one else is.
    pub fn new() -> Self {
        // Owners that callers name are theirs to choose; the upper half is left to these.
        static OWNERS: AtomicU64 = AtomicU64::new(1 << 63);
        let owner = OWNERS.fetch_add(1, Ordering::Relaxed);
        Terms { owner, priority: Priority::default(), deadline: None }
    }

    /// For this owner: any number below 2^63.
    #[must_use]
    pub fn owner(self, owner: u64) -> Self {
        Terms { owner, ..self }
    }

    /// With this priority.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        Terms { priority, ..self }
    }

    /// Of no use after `limit` from now on.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Terms { deadline: Instant::now().checked_add(limit), ..self }
    }
}

impl Default for Terms {
    fn default() -> Self {
        Terms::new()
    }
}

/// Kinds of work that a worker keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Searches of up to [`WIDE_BEAM`] beams.
    Regular,
    /// Searches of more.
    Wide,
    /// Searches of which every step is kept, with attention.
    Explained,
    /// Searches of up to [`WIDE_BEAM`] beams of owners with little to do, beside one with much.
    Light,
    /// Scoring given targets.
    Scoring,
}

/// The most beams of a search that shares a session with all others. One with more runs in another, in turn with it.
pub(super) const WIDE_BEAM: usize = 16;

impl Kind {
    /// Those that are searches, in the order in which a worker lets them in.
    pub(super) const SEARCHES: [Kind; 4] = [Kind::Light, Kind::Regular, Kind::Wide, Kind::Explained];
    const COUNT: usize = 5;

    /// Of a device that several kinds want, the part that this one gets, as a weight: while regular searches run, all wide ones
    /// together take a quarter at most.
    pub(super) fn share(self) -> u64 {
        match self {
            Kind::Regular | Kind::Light => 3,
            Kind::Wide | Kind::Explained | Kind::Scoring => 1,
        }
    }
}

/// What batch work may count on: each of so many turns.
const BATCH_TURN: u64 = 10;
/// How long batch work waits before it counts as interactive.
const PROMOTION: Duration = Duration::from_secs(10);
/// Cost that an owner may add to its account at each of its turns: about that of a sentence at beam 4.
const QUANTUM: u64 = 256;
/// An owner has little to do while fewer of its sentences than this wait.
const LITTLE: usize = 4;

/// The queue that all workers of an engine take from.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is work, or there will be none.
    work: Condvar,
    /// There is room, or there will be none.
    room: Condvar,
    capacity: usize,
    /// How many times work has been given up.
    cancellations: AtomicU64,
    /// What has become of the work.
    pub(super) statistics: Recorder,
}

#[derive(Debug)]
struct State {
    /// By kind, then priority.
    lines: [[Line; 2]; Kind::COUNT],
    owners: Owners,
    waiting: usize,
    /// Those of them that are [`Priority::Batch`].
    batch: usize,
    cost: u64,
    /// Workers without work.
    idle: usize,
    /// No deadline is before this.
    soonest: Option<Instant>,
    /// Cancellations that have been looked into.
    swept: u64,
    turns: u64,
    end: Option<End>,
}

#[derive(Debug)]
enum End {
    /// What has been accepted is finished.
    Drain,
    /// Nothing can be done any more.
    Failed(Error),
}

/// Work of one kind and priority.
#[derive(Debug, Default)]
struct Line {
    owners: HashMap<u64, Account>,
    /// The owners, in the order of their turns.
    turns: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Account {
    jobs: VecDeque<Job>,
    credit: u64,
}

impl Line {
    fn push(&mut self, job: Job) {
        let account = self.owners.entry(job.terms.owner).or_insert_with_key(|owner| {
            self.turns.push_back(*owner);
            Account::default()
        });
        account.jobs.push_back(job);
    }

    /// How many jobs of an owner wait.
    fn waiting(&self, owner: u64) -> usize {
        self.owners.get(&owner).map_or(0, |account| account.jobs.len())
    }

    /// The owner whose turn it is.
    fn turn(&mut self) -> Option<&mut Account> {
        loop {
            let owner = *self.turns.front()?;
            let account = self.owners.get_mut(&owner)?;
            if account.jobs.front()?.cost <= account.credit {
                return self.owners.get_mut(&owner);
            }
            account.credit += QUANTUM;
            self.turns.rotate_left(1);
        }
    }

    fn peek(&mut self) -> Option<&Job> {
        self.turn()?.jobs.front()
    }

    fn pop(&mut self) -> Option<Job> {
        let account = self.turn()?;
        let job = account.jobs.pop_front()?;
        account.credit -= job.cost;
        if account.jobs.is_empty() {
            self.turns.pop_front();
            self.owners.remove(&job.terms.owner);
        }
        Some(job)
    }

    fn len(&self) -> usize {
        self.owners.values().map(|account| account.jobs.len()).sum()
    }

    /// Takes out the jobs for which `leaves` says so.
    fn remove(&mut self, leaves: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut removed = Vec::new();
        for account in self.owners.values_mut() {
            let (gone, stays): (VecDeque<Job>, _) = account.jobs.drain(..).partition(&leaves);
            account.jobs = stays;
            removed.extend(gone);
        }
        self.owners.retain(|_, account| !account.jobs.is_empty());
        self.turns.retain(|owner| self.owners.contains_key(owner));
        removed
    }
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            lines: Default::default(),
            owners: Owners::default(),
            waiting: 0,
            batch: 0,
            cost: 0,
            idle: 0,
            soonest: None,
            swept: 0,
            turns: 0,
            end: None,
        };
        Queue {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            capacity: capacity.max(1),
            cancellations: AtomicU64::new(0),
            statistics: Recorder::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic happens while the lock is held: what it holds is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a job; where there is no room, waits for it if `waits`.
    pub(super) fn push(&self, job: Job, waits: bool) -> Result<()> {
        let mut state = self.state();
        loop {
            match &state.end {
                Some(End::Failed(error)) => return refuse(job, repeated(error)),
                Some(End::Drain) => return refuse(job, Error::EngineStopped),
                None if state.waiting < self.capacity => break,
                None if waits => state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => return refuse(job, Error::Overloaded { waiting: state.waiting, limit: self.capacity }),
            }
        }
        state.accept(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Takes back what a worker could not begin.
    pub(super) fn put_back(&self, jobs: Vec<Job>) {
        let mut state = self.state();
        let refused = match &state.end {
            Some(End::Failed(error)) => Some(repeated(error)),
            _ => None,
        };
        if let Some(error) = refused {
            drop(state);
            return jobs.into_iter().for_each(|job| job.fail(repeated(&error)));
        }
        jobs.into_iter().for_each(|job| state.accept(job));
        drop(state);
        self.work.notify_all();
    }

    /// Waits for work. False when there is none and will be none.
    pub(super) fn wait(&self) -> bool {
        let mut state = self.state();
        loop {
            if state.waiting > 0 {
                return true;
            }
            if state.end.is_some() {
                return false;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// Takes the next jobs of a kind, up to `most`, for as long as `fits` takes the next one; of many no more than a share, so that
    /// workers without work find some.
    pub(super) fn take(&self, kind: Kind, most: usize, mut fits: impl FnMut(&Job) -> bool) -> Vec<Job> {
        let mut taken = Vec::new();
        if most == 0 {
            return taken;
        }
        let mut state = self.state();
        let waiting: usize = state.lines[kind as usize].iter().map(Line::len).sum();
        let share = waiting.div_ceil(1 + state.idle);
        while taken.len() < share.min(most) {
            let Some(line) = state.next_line(kind) else { break };
            if !line.peek().is_some_and(&mut fits) {
                break;
            }
            let Some(job) = line.pop() else { break };
            state.leave(&job);
            self.statistics.taken(job.accepted.elapsed());
            taken.push(job);
        }
        drop(state);
        if !taken.is_empty() {
            self.room.notify_all();
        }
        taken
    }

    /// Whether work of a kind waits.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.state().lines[kind as usize].iter().any(|line| !line.turns.is_empty())
    }

    /// What waits.
    pub(super) fn load(&self) -> Load {
        let state = self.state();
        Load { waiting: state.waiting, batch: state.batch, cost: state.cost }
    }

    /// Says that some work has been given up.
    pub(super) fn note_cancellation(&self) {
        self.cancellations.fetch_add(1, Ordering::AcqRel);
    }

    /// Answers the work that has been given up or has run out of time.
    pub(super) fn sweep(&self, now: Instant) {
        let cancellations = self.cancellations.load(Ordering::Acquire);
        let mut state = self.state();
        if state.swept == cancellations && state.soonest.is_none_or(|soonest| now < soonest) {
            return;
        }
        state.swept = cancellations;
        let removed = state.remove(|job| job.over(now).is_some());
        state.soonest = state.jobs().filter_map(|job| job.terms.deadline).min();
        drop(state);
        if !removed.is_empty() {
            self.room.notify_all();
        }
        for job in removed {
            let error = job.over(now).unwrap_or(Error::Cancelled);
            job.fail(error);
        }
    }

    /// Takes no more work; what has been accepted is finished.
    pub(super) fn drain(&self) {
        self.end(|end| *end = end.take().or(Some(End::Drain)));
    }

    /// Answers all that waits and all that will come with an error.
    pub(super) fn fail(&self, error: Error) {
        let again = repeated(&error);
        self.end(|end| *end = Some(End::Failed(error)));
        let removed = self.state().remove(|_| true);
        removed.into_iter().for_each(|job| job.fail(repeated(&again)));
    }

    fn end(&self, set: impl FnOnce(&mut Option<End>)) {
        set(&mut self.state().end);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Whether the engine has failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.state().end, Some(End::Failed(_)))
    }
}

/// Refuses a job: its caller has the error from the call itself.
fn refuse(job: Job, error: Error) -> Result<()> {
    job.forget();
    Err(error)
}

impl State {
    fn accept(&mut self, mut job: Job) {
        self.waiting += 1;
        self.batch += usize::from(job.terms.priority == Priority::Batch);
        self.cost += job.cost;
        if let Some(deadline) = job.terms.deadline {
            self.soonest = Some(self.soonest.map_or(deadline, |soonest| soonest.min(deadline)));
        }
        let kind = self.kind_of(&job);
        job.mark = Some(self.owners.mark(job.terms.owner));
        self.lines[kind as usize][job.terms.priority as usize].push(job);
    }

    /// Where a job waits. One owner's work stays in one line, and so in order, until none of it waits there.
    fn kind_of(&self, job: &Job) -> Kind {
        let kind = job.kind();
        if kind != Kind::Regular || job.terms.priority == Priority::Batch {
            return kind;
        }
        let [regular, light] = [Kind::Regular, Kind::Light].map(|kind| &self.lines[kind as usize]);
        let owner = job.terms.owner;
        let waiting = |lines: &[Line]| lines.iter().map(|line| line.waiting(owner)).sum::<usize>();
        let is_little = self.owners.unended(owner) < MUCH && waiting(regular) == 0 && waiting(light) < LITTLE;
        if is_little && self.owners.is_beside_much(owner) { Kind::Light } else { kind }
    }

    fn leave(&mut self, job: &Job) {
        self.waiting -= 1;
        self.batch -= usize::from(job.terms.priority == Priority::Batch);
        self.cost -= job.cost;
    }

    fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.lines.iter().flatten().flat_map(|line| line.owners.values()).flat_map(|account| &account.jobs)
    }

    fn remove(&mut self, leaves: impl Fn(&Job) -> bool) -> Vec<Job> {
        let removed: Vec<Job> = self.lines.iter_mut().flatten().flat_map(|line| line.remove(&leaves)).collect();
        removed.iter().for_each(|job| self.leave(job));
        removed
    }

    /// The line whose turn it is.
    fn next_line(&mut self, kind: Kind) -> Option<&mut Line> {
        let [interactive, batch] = &mut self.lines[kind as usize];
        let has_waited = |job: &Job| job.accepted.elapsed() >= PROMOTION;
        match (interactive.turns.is_empty(), batch.turns.is_empty()) {
            (true, true) => None,
            (false, true) => Some(interactive),
            (true, false) => Some(batch),
            (false, false) => {
                self.turns += 1;
                let is_batch = self.turns.is_multiple_of(BATCH_TURN) || batch.peek().is_some_and(has_waited);
                Some(if is_batch { batch } else { interactive })
            }
        }
    }
}

/// Whether work has been given up, or has run out of time.
pub(super) fn over(terms: &Terms, canceller: &Canceller, now: Instant) -> Option<Error> {
    if canceller.is_cancelled() {
        return Some(Error::Cancelled);
    }
    terms.deadline.filter(|deadline| *deadline <= now).map(|_| Error::DeadlineExceeded)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
