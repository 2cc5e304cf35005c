//! Threads that are started only where memory is left for them: where the standard library cannot have what a thread needs before it runs,
//! it ends the process, or waits for ever.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use rayon::{ThreadBuilder, ThreadPoolBuilder};

use crate::{Error, Result};

/// The stack that the standard library gives a thread, and as much again for what else a thread begins with.
const BYTES: usize = 2 * (2 << 20);

/// Makes sure that there is memory for one more thread, as far as this can be told beforehand.
///
/// # Errors
/// That there is none.
pub(crate) fn room() -> io::Result<()> {
    memmap2::MmapMut::map_anon(BYTES).map(drop)
}

/// Starts a thread, and returns once it runs: threads that begin at the same time would count on the same memory.
///
/// # Errors
/// Those of the system; among them, that there is no memory for it.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    room()?;
    let (runs, is_running) = sync_channel(1);
    let thread = Builder::new().name(name.into()).spawn(move || {
        // Who waits for it cannot have gone.
        let _ = runs.send(());
        work();
    })?;
    // Nothing comes only where the thread has ended already.
    let _ = is_running.recv();
    Ok(thread)
}

/// Starts a pool's thread, to be given to [`ThreadPoolBuilder::spawn_handler`].
pub(crate) fn start_worker(thread: ThreadBuilder) -> io::Result<()> {
    let name = format!("beamfuse-cpu-{}", thread.index());
    start(&name, move || thread.run()).map(drop)
}

/// Threads that could not be started.
pub(crate) fn not_started(error: impl std::fmt::Display) -> Error {
    Error::Device { device: "cpu".into(), reason: format!("starting threads: {error}") }
}

/// Starts rayon's global threads, on which everything but decoding computes, unless they run. Their first use would start them, too, but
/// panics where they cannot be started.
///
/// # Errors
/// [`Error::Device`]; from then on every time, since rayon tries once.
pub(crate) fn start_global() -> Result<()> {
    static FAILED: OnceLock<Option<String>> = OnceLock::new();
    let failed = FAILED.get_or_init(|| {
        let started = ThreadPoolBuilder::new().spawn_handler(start_worker).build_global();
        // Without a source: someone else has started them.
        started.err().filter(|error| error.source().is_some()).map(|error| error.to_string())
    });
    failed.as_ref().map_or(Ok(()), |error| Err(not_started(error)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::start;

    #[test]
    fn a_thread_does_its_work_under_its_name() {
        let done = Arc::new(AtomicBool::new(false));
        let by_thread = done.clone();
        let thread = start("beamfuse-one", move || {
            let name = std::thread::current().name().map(str::to_owned);
            by_thread.store(name.as_deref() == Some("beamfuse-one"), Ordering::Release);
        });
        thread.expect("starts").join().expect("ends");
        assert!(done.load(Ordering::Acquire));
    }
}
