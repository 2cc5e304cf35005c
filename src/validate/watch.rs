//! What runs right now, and a thread that notices when it runs far too long: a kernel in an endless loop never comes back to say so.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::report::CheckRow;

/// Something that runs: a kernel's case, an operation of a decode.
#[derive(Clone, Debug)]
struct Running {
    check: String,
    place: String,
    since: Instant,
}

/// Where a check says what it is at. All clones say it to the same watchdog.
#[derive(Clone, Debug)]
pub struct Beat {
    running: Arc<Mutex<Option<Running>>>,
    is_over: fn() -> bool,
}

impl Default for Beat {
    fn default() -> Self {
        Beat::until(|| false)
    }
}

impl Beat {
    /// A beat whose checks skip what is left of them as soon as `is_over` says so.
    pub fn until(is_over: fn() -> bool) -> Self {
        Beat { running: Arc::default(), is_over }
    }

    /// Whether checks are to come to an end.
    pub fn is_over(&self) -> bool {
        (self.is_over)()
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this runs: a place within the check of this name.
    pub fn now(&self, check: &str, place: impl fmt::Display) {
        let (check, place, since) = (check.to_owned(), place.to_string(), Instant::now());
        *self.running() = Some(Running { check, place, since });
    }

    /// Nothing runs until the next beat.
    pub fn rest(&self) {
        *self.running() = None;
    }
}

/// What did not end in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The check.
    pub check: String,
    /// Where in it, and for how long.
    pub what: String,
}

impl Stuck {
    /// As a check that failed.
    pub fn row(self) -> CheckRow {
        let (notes, failures) = (Vec::new(), vec![self.what]);
        CheckRow {
            name: self.check,
            compared: 0,
            unit: "operations",
            seconds: 0.0,
            notes,
            failures,
            algorithms: Vec::new(),
        }
    }
}

/// A thread that listens to a beat, until it is dropped.
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Calls `end`, once, with the first thing that runs for longer than `limit`.
    pub fn start(beat: &Beat, limit: Duration, end: impl FnOnce(Stuck) + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let beat = beat.clone();
        let thread = thread::spawn(move || {
            let mut wait = Duration::ZERO;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let running = beat.running().clone();
                wait = limit.saturating_sub(running.as_ref().map_or(Duration::ZERO, |running| running.since.elapsed()));
                if let Some(Running { check, place, .. }) = running.filter(|_| wait.is_zero()) {
                    let what = format!("{place}: still running after {} s", limit.as_secs_f64());
                    return end(Stuck { check, what });
                }
            }
        });
        Watchdog { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    /// Waits for the thread: afterwards `end` is not being called, and will not be.
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn watched(beat: &Beat) -> (Watchdog, mpsc::Receiver<Stuck>) {
        let (send, stuck) = mpsc::channel();
        (Watchdog::start(beat, LIMIT, move |what| send.send(what).expect("the test listens")), stuck)
    }

    #[test]
    fn what_never_ends_is_named_once_and_in_time() {
        let beat = Beat::default();
        let (watchdog, stuck) = watched(&beat);
        beat.now("embedding", "first case");
        beat.now("beam_step", "options f32: 4 tokens");
        // The case that never ends, on a thread that nobody can stop.
        let start = Instant::now();
        thread::spawn(|| {
            loop {
                thread::sleep(LIMIT);
            }
        });
        let found = stuck.recv_timeout(50 * LIMIT).expect("it is noticed");
        assert!(start.elapsed() >= LIMIT);
        let what = "options f32: 4 tokens: still running after 0.2 s".to_owned();
        assert_eq!(found, Stuck { check: "beam_step".to_owned(), what });
        assert_eq!(stuck.recv_timeout(50 * LIMIT), Err(RecvTimeoutError::Disconnected));
        drop(watchdog);
    }

    #[test]
    fn what_ends_in_time_may_be_many_and_resting_takes_as_long_as_it_likes() {
        let beat = Beat::default();
        let (watchdog, stuck) = watched(&beat);
        for case in 0..40 {
            beat.now("linear", case);
            thread::sleep(LIMIT / 20);
        }
        beat.rest();
        assert_eq!(stuck.recv_timeout(3 * LIMIT), Err(RecvTimeoutError::Timeout));
        // Dropped while something runs, before its time is up.
        beat.now("linear", "the last case");
        drop(watchdog);
        assert_eq!(stuck.recv_timeout(3 * LIMIT), Err(RecvTimeoutError::Disconnected));
    }
}
