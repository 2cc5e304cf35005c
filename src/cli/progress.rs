//! Progress on stderr, when it is a terminal.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::cli::{complain, detail, note, shows_progress};
#[cfg(feature = "hub")]
use crate::hub;

#[cfg(feature = "hub")]
/// The download of a model's files.
#[derive(Debug)]
pub(super) struct Download {
    bar: ProgressBar,
}

#[cfg(feature = "hub")]
impl Download {
    /// A display that shows itself with the first file, and only if stderr is a terminal.
    pub(super) fn new() -> Self {
        Download { bar: ProgressBar::hidden() }
    }
}

#[cfg(feature = "hub")]
impl hub::Progress for Download {
    fn start(&mut self, file: &str, size: u64, done: u64) {
        self.bar.finish_and_clear();
        if shows_progress() {
            self.bar = ProgressBar::new(size);
        }
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        {
            self.bar.set_style(style);
        }
        self.bar.set_message(file.to_string());
        // What was there before tells nothing about the speed.
        self.bar.set_position(done);
        self.bar.reset_eta();
    }

    fn advance(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn note(&mut self, message: &str) {
        self.bar.suspend(|| note(message));
    }
}

#[cfg(feature = "hub")]
impl Drop for Download {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Sentences and tokens done, with their rates and, where the input's size is known, the time left.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
    sentences: u64,
    tokens: u64,
}

impl Progress {
    /// A display for input of `bytes` bytes, where that is known; hidden unless stderr is a terminal.
    pub(super) fn new(bytes: Option<u64>) -> Self {
        let bar = if shows_progress() {
            bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new)
        } else {
            ProgressBar::hidden()
        };
        let template = match bytes {
            Some(_) => "{bar:12} {percent:>3}%  {msg}",
            None => "{spinner} {msg}  {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        // It ticks on a thread of its own.
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Progress { bar, started: Instant::now(), sentences: 0, tokens: 0 }
    }

    /// Counts one sentence: bytes of its input line, tokens of its best translation.
    pub(super) fn add(&mut self, bytes: u64, tokens: u64) {
        self.sentences += 1;
        self.tokens += tokens;
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let (sentences, tokens) = (self.sentences as f64 / seconds, self.tokens as f64 / seconds);
        self.bar.inc(bytes);
        let left = self.bar.length().and_then(|all| time_left(all, self.bar.position(), self.started.elapsed()));
        let left = left.map_or(String::new(), |left| format!("  {:#} left", HumanDuration(left)));
        self.bar
            .set_message(format!("{} done  {sentences:.1} sentences/s  {tokens:.0} tokens/s{left}", self.sentences));
    }

    /// Moves on by a line of input whose sentences have been counted.
    pub(super) fn pass(&mut self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Says what went wrong without tearing the display.
    pub(super) fn complain(&self, line: &str) {
        self.bar.suspend(|| complain(line));
    }

    /// Says what may matter without tearing the display.
    pub(super) fn note(&self, line: &str) {
        self.bar.suspend(|| note(line));
    }
}

/// How long a display runs before it tells the time left: what is known sooner is chance.
const FIRST_ESTIMATE: Duration = Duration::from_secs(2);

/// The time that the rest takes at the mean speed so far; none while that says nothing.
fn time_left(all: u64, done: u64, elapsed: Duration) -> Option<Duration> {
    let rest = all.saturating_sub(done) as f64 / done as f64;
    (done > 0 && elapsed >= FIRST_ESTIMATE).then(|| elapsed.mul_f64(rest))
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        let (seconds, Progress { sentences, tokens, .. }) = (self.started.elapsed().as_secs_f64(), self);
        let rate = *tokens as f64 / seconds.max(1e-9);
        detail(&format!("{sentences} sentences, {tokens} tokens in {seconds:.2} s: {rate:.0} tokens/s"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_what_is_done() {
        let seconds = Duration::from_secs;
        assert_eq!(time_left(1000, 250, seconds(10)), Some(seconds(30)));
        assert_eq!(time_left(1000, 1000, seconds(10)), Some(Duration::ZERO));
        assert_eq!(time_left(1000, 2000, seconds(10)), Some(Duration::ZERO));
        assert_eq!([time_left(1000, 0, seconds(10)), time_left(1000, 10, Duration::from_millis(100))], [None, None]);
    }
}
