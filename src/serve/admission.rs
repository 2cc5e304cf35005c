//! Who may come in: a request that would have to wait for too long is refused before anything is done for it.
//!
//! The wait is the cost that stands before it divided by the rate at which cost has lately been worked off. An owner gets an equal
//! share of the engine, so before its request stands no more than its own unfinished cost, times the owners that have some. What
//! sentences have lately taken beyond that is added, the batch that they are decoded in, and a margin for what was foretold too short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Priority;

/// Bytes of text that may wait altogether.
const MOST_BYTES: usize = 64 << 20;

/// How long the rate is measured: for so many sentences and so long at least, and for no longer than this once some have ended.
const WINDOW: Duration = Duration::from_millis(250);
const WINDOW_SENTENCES: usize = 16;
const LONG_WINDOW: Duration = Duration::from_secs(2);

/// Part of a new measurement in the rate.
const NEW: f64 = 0.2;
/// What sentences took beyond their wait counts at once where it is more than before; where it is less, the old is forgotten within so many
/// times the longest wait: what comes of letting a sentence in is seen only after its wait.
const MEMORY: f64 = 6.0;
/// The most that it counts, as a part of the longest wait, or of a caller's patience: one long sentence keeps nobody out.
const MOST_BEYOND: f64 = 0.25;

/// How much longer than foretold a wait may become.
const MARGIN: f64 = 1.1;

/// Keeps account of what has been admitted and has not ended.
#[derive(Debug)]
pub(super) struct Admission {
    max_wait: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Unfinished cost of interactive and of batch work, by owner.
    owners: [HashMap<u64, u64>; 2],
    bytes: usize,
    sentences: usize,
    /// Cost worked off per second; none before the engine has been full for the first time.
    rate: Option<f64>,
    /// Seconds that a sentence takes beyond its wait, such as few exceed.
    beyond: f64,
    /// When that was looked at last.
    noted: Instant,
    window: Window,
}

/// A measurement under way.
#[derive(Debug)]
struct Window {
    start: Instant,
    done: u64,
    sentences: usize,
    /// Whether there was more to do than the engine could take at once, all the time.
    is_full: bool,
}

/// A request that has been admitted; dropped, it gives back its room.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    owner: u64,
    priority: Priority,
    /// Not yet finished.
    cost: u64,
    bytes: usize,
    sentences: usize,
    /// When it was, and how long it was expected to wait; not for several sentences, which stand before each other.
    expected: Option<(Instant, Duration)>,
}

/// What a request would come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub owner: u64,
    pub priority: Priority,
    pub cost: u64,
    pub bytes: usize,
    pub sentences: usize,
}

/// The cost of a sentence: rows, about as many tokens as a third of its characters, and what each has around it.
pub(super) fn cost(beams: usize, characters: usize) -> u64 {
    (beams.max(1) * (characters / 3 + 8)) as u64
}

impl Admission {
    pub fn new(max_wait: Duration) -> Self {
        let window = Window { start: Instant::now(), done: 0, sentences: 0, is_full: false };
        let (owners, noted) = (Default::default(), window.start);
        let state = State { owners, bytes: 0, sentences: 0, rate: None, beyond: 0.0, noted, window };
        Admission { max_wait, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No panic happens while the lock is held: what it holds is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request in whose first sentence would end within `patience`, and within the most that any may wait; else how long to stay
    /// away.
    pub fn admit(self: &Arc<Self>, asked: Asked, patience: Duration) -> Result<Admitted, Duration> {
        let Asked { owner, priority, cost, bytes, sentences } = asked;
        let mut state = self.state();
        let (wait, most) = (state.wait(owner, priority), patience.min(self.max_wait).as_secs_f64());
        let end = MARGIN * (wait.as_secs_f64() + state.beyond.min(MOST_BEYOND * most));
        // Where nothing is to be waited for, nobody is better off for being refused.
        if (!wait.is_zero() && end > most) || state.bytes + bytes > MOST_BYTES {
            return Err(Duration::try_from_secs_f64((end - most).max(1.0)).unwrap_or(Duration::MAX));
        }
        *state.owners[priority as usize].entry(owner).or_default() += cost;
        (state.bytes, state.sentences) = (state.bytes + bytes, state.sentences + sentences);
        drop(state);
        let expected = (sentences == 1).then(|| (Instant::now(), wait));
        Ok(Admitted { admission: self.clone(), owner, priority, cost, bytes, sentences, expected })
    }

    /// Sentences admitted that have not ended.
    pub fn sentences(&self) -> usize {
        self.state().sentences
    }

    /// Looks at the rate; `waiting` sentences wait for a slot.
    pub fn measure(&self, waiting: usize) {
        self.state().measure(Instant::now(), waiting > 0);
    }
}

impl State {
    /// How long work of this owner would wait.
    fn wait(&self, owner: u64, priority: Priority) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        // Batch work lets all interactive work pass.
        let before = &self.owners[..=priority as usize];
        let total: u64 = before.iter().flat_map(HashMap::values).sum();
        let own: u64 = before.iter().filter_map(|owners| owners.get(&owner)).sum();
        let owners = before.iter().map(HashMap::len).sum::<usize>().max(1) as u64;
        Duration::try_from_secs_f64(total.min(own * owners) as f64 / rate).unwrap_or(Duration::MAX)
    }

    fn measure(&mut self, now: Instant, is_full: bool) {
        let time = now.duration_since(self.window.start);
        self.window.is_full &= is_full;
        let Window { done, sentences, is_full: was_full, .. } = self.window;
        let shows_little = was_full && (done == 0 || (sentences < WINDOW_SENTENCES && time < LONG_WINDOW));
        if time < WINDOW || shows_little {
            return;
        }
        let seen = done as f64 / time.as_secs_f64();
        self.rate = match self.rate {
            Some(rate) if was_full => Some(rate + NEW * (seen - rate)),
            // With slots to spare it shows only that the engine can do so much.
            Some(rate) => Some(rate.max(seen)),
            None => was_full.then_some(seen),
        };
        self.window = Window { start: now, done: 0, sentences: 0, is_full };
    }

    /// A sentence has taken so much longer than it was expected to wait.
    fn note(&mut self, now: Instant, beyond: f64, max_wait: Duration) {
        let since = now.saturating_duration_since(self.noted).as_secs_f64();
        let part = if beyond > self.beyond { 1.0 } else { (since / (MEMORY * max_wait.as_secs_f64())).min(1.0) };
        self.beyond = (self.beyond + part * (beyond - self.beyond)).max(0.0);
        self.noted = now;
    }

    fn release(&mut self, owner: u64, priority: Priority, cost: u64) {
        let owners = &mut self.owners[priority as usize];
        if let Some(left) = owners.get_mut(&owner) {
            *left = left.saturating_sub(cost);
            if *left == 0 {
                owners.remove(&owner);
            }
        }
    }
}

impl Admitted {
    /// A sentence of this cost has been decoded.
    pub fn finish(&mut self, cost: u64) {
        let cost = cost.min(self.cost);
        self.cost -= cost;
        self.sentences = self.sentences.saturating_sub(1);
        let mut state = self.admission.state();
        if let Some((since, wait)) = self.expected.take() {
            let (now, max_wait) = (Instant::now(), self.admission.max_wait);
            let beyond = now.duration_since(since).as_secs_f64() - wait.as_secs_f64();
            state.note(now, beyond.min(MOST_BEYOND * max_wait.as_secs_f64()), max_wait);
        }
        state.sentences = state.sentences.saturating_sub(1);
        state.window.done += cost;
        state.window.sentences += 1;
        state.release(self.owner, self.priority, cost);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.release(self.owner, self.priority, self.cost);
        state.bytes -= self.bytes;
        state.sentences = state.sentences.saturating_sub(self.sentences);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(owner: u64, priority: Priority, cost: u64) -> Asked {
        Asked { owner, priority, cost, bytes: 1, sentences: 1 }
    }

    fn at_rate_100() -> Arc<Admission> {
        let admission = Arc::new(Admission::new(Duration::from_secs(5)));
        admission.state().rate = Some(100.0);
        admission
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_would_wait_too_long_is_told_when_to_come_again() {
        let admission = at_rate_100();
        let first = admission.admit(asked(1, Priority::Interactive, 800), LONG).expect("nobody is before it");
        let refused = admission.admit(asked(1, Priority::Interactive, 1), LONG).expect_err("8 seconds");
        assert!((refused.as_secs_f64() - (8.0 * MARGIN - 5.0)).abs() < 1e-6, "{refused:?}");
        drop(first);
        let first = admission.admit(asked(1, Priority::Interactive, 400), LONG).expect("all is free again");
        assert!(admission.admit(asked(1, Priority::Interactive, 1), Duration::from_secs(3)).is_err());
        assert!(admission.admit(asked(1, Priority::Interactive, 1), LONG).is_ok());
        drop(first);
        assert_eq!(admission.sentences(), 0);
    }

    #[test]
    fn an_owner_with_much_to_do_keeps_no_other_out_and_batch_work_no_interactive() {
        let admission = at_rate_100();
        let _much = admission.admit(asked(1, Priority::Interactive, 10_000), LONG).expect("nobody is before it");
        let _other = admission.admit(asked(2, Priority::Interactive, 200), LONG).expect("it has its share");
        assert!(admission.admit(asked(2, Priority::Interactive, 200), LONG).is_ok(), "4 seconds");
        assert!(admission.admit(asked(1, Priority::Interactive, 1), LONG).is_err());
        let admission = at_rate_100();
        let _batch = admission.admit(asked(1, Priority::Batch, 10_000), LONG).expect("nobody is before it");
        assert!(admission.admit(asked(1, Priority::Interactive, 1), LONG).is_ok());
        assert!(admission.admit(asked(1, Priority::Batch, 1), LONG).is_err());
    }

    #[test]
    fn what_sentences_take_beyond_their_wait_counts() {
        let admission = at_rate_100();
        let mut now = admission.state().noted;
        admission.state().note(now, 0.6, admission.max_wait);
        let before = admission.admit(asked(1, Priority::Interactive, 410), LONG).expect("nobody is before it");
        assert!(admission.admit(asked(1, Priority::Interactive, 1), LONG).is_err(), "4.1 seconds and 0.6");
        // It is forgotten in time, however many sentences end meanwhile.
        for sentences in [10, 1000] {
            for _ in 0..sentences {
                now += Duration::from_secs(15) / sentences;
                admission.state().note(now, 0.1, admission.max_wait);
            }
        }
        let (beyond, expected) = (admission.state().beyond, 0.1 + 0.5 * 0.95f64.powi(10) * (-0.5f64).exp());
        assert!((beyond - expected).abs() < 1e-3, "{beyond}, expected {expected}");
        let next = admission.admit(asked(1, Priority::Interactive, 1), LONG).expect("4.1 seconds and 0.28");
        assert!(next.expected.is_some_and(|(_, wait)| wait == Duration::from_millis(4100)));
        // Who has little patience is not kept out by what long sentences take.
        admission.state().note(now, 60.0, admission.max_wait);
        let own = admission.admit(asked(2, Priority::Interactive, 10), LONG).expect("nothing of its own is before it");
        let patience = |seconds| admission.admit(asked(2, Priority::Interactive, 1), Duration::from_secs_f64(seconds));
        assert!(patience(0.3).is_err(), "0.2 seconds, a quarter of 0.3, and the margin");
        assert!(patience(0.5).is_ok(), "0.2 seconds and a quarter of 0.5");
        drop(own);
        // Where nobody is before it, it comes in however long its like take.
        drop((before, next));
        assert!(admission.admit(asked(1, Priority::Interactive, 1), LONG).is_ok());
        // One that took for ever counts as a quarter of the longest wait.
        let admission = at_rate_100();
        let mut slow = admission.admit(asked(1, Priority::Interactive, 1), LONG).expect("nobody is before it");
        slow.expected = Instant::now().checked_sub(Duration::from_secs(60)).map(|since| (since, Duration::ZERO));
        assert!(slow.expected.is_some());
        slow.finish(1);
        assert!((admission.state().beyond - 1.25).abs() < 1e-9);
    }

    #[test]
    fn bytes_that_wait_are_bounded() {
        let admission = at_rate_100();
        let large = Asked { bytes: MOST_BYTES, ..asked(1, Priority::Interactive, 1) };
        let held = admission.admit(large, LONG).expect("that many may wait");
        assert!(admission.admit(asked(2, Priority::Interactive, 1), LONG).is_err());
        drop(held);
        assert!(admission.admit(asked(2, Priority::Interactive, 1), LONG).is_ok());
    }

    #[test]
    fn the_rate_follows_a_full_engine_and_only_grows_by_an_idle_one() {
        let mut state = Admission::new(LONG).state.into_inner().expect("no panic");
        let mut now = state.window.start;
        let mut after = |state: &mut State, done, sentences, is_full| {
            now += Duration::from_millis(500);
            (state.window.done, state.window.sentences, state.window.is_full) = (done, sentences, is_full);
            state.measure(now, is_full);
            state.rate
        };
        assert_eq!(after(&mut state, 50, 20, false), None);
        assert_eq!(after(&mut state, 0, 0, true), None, "nothing has ended yet");
        assert_eq!(after(&mut state, 50, 20, false), None);
        assert_eq!(after(&mut state, 50, 20, true), Some(100.0));
        assert_eq!(after(&mut state, 10, 20, false), Some(100.0));
        assert_eq!(after(&mut state, 25, 20, true), Some(90.0));
        assert_eq!(after(&mut state, 1, 1, true), Some(90.0), "too few to go by");
        assert_eq!(after(&mut state, 200, 20, false), Some(200.0));
    }
}
