//! Threads that compute, which several engines may share: their turns on them follow one another.
//!
//! One at a time: a thread that waited for its own part of one engine's step would otherwise begin another's, and the first would
//! go on only when that is through.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::{Result, threads};

/// A set of threads, and the line of those who wait for them.
#[derive(Debug)]
pub(super) struct Pool {
    threads: rayon::ThreadPool,
    line: Mutex<Line>,
    moved: Condvar,
    waiting: AtomicUsize,
}

/// First come, first served.
#[derive(Debug, Default)]
struct Line {
    /// The number that the next one to come gets.
    next: u64,
    /// The number whose turn it is.
    served: u64,
}

/// Someone's turn; ends when it is dropped.
struct Turn<'a>(&'a Pool);

impl Pool {
    /// Starts `threads` threads; 0: one per core.
    ///
    /// # Errors
    /// [`Error::Device`] if one cannot be started.
    pub(super) fn start(threads: usize) -> Result<Arc<Self>> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .spawn_handler(threads::start_worker)
            .build()
            .map_err(threads::not_started)?;
        Ok(Arc::new(Pool { threads, line: Mutex::default(), moved: Condvar::new(), waiting: AtomicUsize::new(0) }))
    }

    /// The threads at a place that the whole process shares, started if nobody uses them yet.
    ///
    /// # Errors
    /// As [`Pool::start`].
    pub(super) fn shared(place: usize, threads: usize) -> Result<Arc<Self>> {
        type Places = Vec<((usize, usize), Weak<Pool>)>;
        static PLACES: Mutex<Places> = Mutex::new(Vec::new());
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|(_, pool)| pool.strong_count() > 0);
        let known = places.iter().find(|(key, _)| *key == (place, threads));
        if let Some(pool) = known.and_then(|(_, pool)| pool.upgrade()) {
            return Ok(pool);
        }
        let pool = Self::start(threads)?;
        places.push(((place, threads), Arc::downgrade(&pool)));
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` on the threads when its turn comes.
    pub(super) fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.threads.current_thread_index().is_some() {
            // It is part of a turn.
            return work();
        }
        let _turn = self.take_turn();
        self.threads.install(work)
    }

    /// Whether someone waits for a turn.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // No panic happens under the lock: what it holds is sound.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_turn(&self) -> Turn<'_> {
        let mut line = self.line();
        let own = line.next;
        line.next += 1;
        if line.served != own {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            while line.served != own {
                line = self.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
            }
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.line().served += 1;
        self.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_shared_while_someone_uses_them() {
        let (one, same, other) = (Pool::shared(900, 1), Pool::shared(900, 1), Pool::shared(901, 1));
        let (one, same, other) = (one.expect("starts"), same.expect("starts"), other.expect("starts"));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert!(!Arc::ptr_eq(&one, &Pool::shared(900, 2).expect("starts")));
        let weak = Arc::downgrade(&one);
        drop((one, same));
        assert!(weak.upgrade().is_none());
    }

    /// Returns once `count` callers wait for a turn.
    fn until_waiting(pool: &Pool, count: usize) {
        while pool.waiting.load(Ordering::Relaxed) < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn turns_are_taken_in_the_order_of_asking_and_who_has_the_threads_knows_who_waits() {
        let pool = Pool::start(2).expect("starts");
        let (inside, order) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let turn = |own: usize, wait_for: usize| {
            pool.run(|| {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                until_waiting(&pool, wait_for);
                assert_eq!(pool.is_wanted(), wait_for > 0);
                // Work within work is part of the turn.
                pool.run(|| order.lock().expect("no panic").push(own));
                inside.fetch_sub(1, Ordering::SeqCst);
            });
        };
        std::thread::scope(|scope| {
            let (pool, turn) = (&pool, &turn);
            // The first one keeps the threads until two others wait, then asks again, behind them.
            scope.spawn(move || {
                turn(0, 2);
                turn(0, 0);
            });
            while pool.line().next == 0 {
                std::thread::yield_now();
            }
            scope.spawn(move || turn(1, 2));
            until_waiting(pool, 1);
            scope.spawn(move || turn(2, 1));
        });
        assert_eq!(order.into_inner().expect("no panic"), [0, 1, 2, 0]);
    }

    #[test]
    fn a_panic_ends_a_turn() {
        let pool = Pool::start(1).expect("starts");
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.run(|| panic!("on purpose"))));
        assert!(panic.is_err());
        assert_eq!(pool.run(|| 7), 7);
    }
}
