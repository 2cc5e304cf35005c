//! Threads that are started only where memory is left for them. What the system and the standard library take for a thread before it
//! runs, they end the process without.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

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
