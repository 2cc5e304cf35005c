//! Lines in, results out: in order, one per line, with bounded memory, stopping at once on Ctrl-C.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use crate::cli::input::Line;
use crate::cli::interrupt;
use crate::{Error, Result};

/// Bytes of input lines that one window holds at most, one line more aside.
const WINDOW_BYTES: u64 = 4 << 20;

/// How long a window waits for its next line before it starts with those it has: lines from a file come much faster, those from
/// a person or a program that waits for each answer slower.
const PATIENCE: Duration = Duration::from_millis(2);

/// Lines read ahead of the window being filled: each may have up to a megabyte.
const READ_AHEAD: usize = 64;

/// Reads lines ahead on a thread of their own and hands them out in windows.
pub(super) struct Windows {
    lines: Receiver<Result<Line>>,
    /// Lines per window.
    size: usize,
    ended: bool,
}

impl Windows {
    /// Starts to read lines, one by one, until `next` has no more.
    pub(super) fn start(mut next: impl FnMut() -> Result<Option<Line>> + Send + 'static, size: usize) -> Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(READ_AHEAD);
        let read = move || {
            loop {
                let sent = match next() {
                    Ok(None) => return,
                    Ok(Some(line)) => sender.send(Ok(line)),
                    Err(error) => return drop(sender.send(Err(error))),
                };
                if sent.is_err() {
                    return;
                }
            }
        };
        let thread = crate::threads::start("beamfuse-input", read);
        thread.map_err(|source| Error::Io { operation: "start thread", path: "input".into(), source })?;
        Ok(Windows { lines: receiver, size, ended: false })
    }

    /// The next lines; none when the input has ended, or has none ready and `wait` is false.
    fn next(&mut self, wait: bool) -> Result<Vec<Line>> {
        let mut window = Vec::new();
        let mut bytes = 0;
        while !self.ended && !interrupt::asked() && window.len() < self.size && bytes < WINDOW_BYTES {
            let line = match (window.is_empty(), wait) {
                (true, false) => self.lines.try_recv().map_err(|e| e == TryRecvError::Disconnected),
                (true, true) => self.lines.recv_timeout(100 * PATIENCE).map_err(is_disconnected),
                (false, _) => self.lines.recv_timeout(PATIENCE).map_err(is_disconnected),
            };
            match line {
                Ok(line) => {
                    let line = line?;
                    bytes += line.bytes;
                    window.push(line);
                }
                Err(true) => self.ended = true,
                // Nothing for a while: waiting for the first line goes on, so that an interrupt is seen.
                Err(false) if window.is_empty() && wait => {}
                Err(false) => break,
            }
        }
        Ok(window)
    }

    /// Whether there is nothing more to come.
    fn are_over(&self) -> bool {
        self.ended || interrupt::asked()
    }
}

fn is_disconnected(error: RecvTimeoutError) -> bool {
    error == RecvTimeoutError::Disconnected
}

/// Sentences queued per slot of the engine: enough to keep it busy.
pub(super) const QUEUED_PER_SLOT: usize = 16;

/// What a stream does with its lines.
pub(super) trait Work {
    /// What a line comes to.
    type Done;

    /// Starts on a window of lines, in any order; tags count lines from 0.
    fn start(&mut self, window: Vec<(u64, Line)>);
    /// Waits for the next line that is done, so long; `None` if none is by then.
    fn finish_one(&mut self, limit: Duration) -> Option<(u64, Self::Done)>;
    /// Whether no line is under way.
    fn is_idle(&self) -> bool;
    /// Writes a line's result; called in the order of the input.
    fn write(&mut self, done: Self::Done) -> Result<()>;
    /// Called when everything that can be written so far has been.
    fn flush(&mut self) -> Result<()>;
}

/// Runs `work` over all windows, or until it is interrupted: then lines that are done and whose earlier lines are done are written, and
/// the others are given up.
///
/// At most two windows are under way or waiting for an earlier line: memory does not grow with the input.
pub(super) fn run(mut windows: Windows, work: &mut impl Work) -> Result<()> {
    let limit = 2 * windows.size as u64;
    let (mut next_tag, mut next_written) = (0, 0);
    let mut done = BTreeMap::new();
    loop {
        let idle = next_tag == next_written;
        if next_tag - next_written + windows.size as u64 <= limit && !windows.are_over() {
            let tagged: Vec<(u64, Line)> = (next_tag..).zip(windows.next(idle)?).collect();
            next_tag += tagged.len() as u64;
            if !tagged.is_empty() {
                work.start(tagged);
            }
        }
        let given_up = interrupt::asked();
        if let Some((tag, result)) = work.finish_one(if given_up { Duration::ZERO } else { interrupt::LOOK_EVERY }) {
            done.insert(tag, result);
        } else if given_up || (windows.are_over() && work.is_idle()) {
            return work.flush();
        }
        let first = next_written;
        while let Some(result) = done.remove(&next_written) {
            work.write(result)?;
            next_written += 1;
        }
        // At once: someone may be waiting for this answer before asking on.
        if next_written > first {
            work.flush()?;
        }
    }
}
