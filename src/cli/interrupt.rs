//! Ctrl-C and requests to terminate: the first asks to end in good order, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cli::{complain, note};
use crate::translator::Batch;
use crate::{Result, Translation};

static ASKED: AtomicBool = AtomicBool::new(false);

/// How often a wait looks whether it has been interrupted.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The exit code of a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Starts to listen, in a command that works through lines.
pub(super) fn listen() {
    listen_for("giving up the lines that are not done");
}

/// Starts to listen; the first interrupt says what is done about it. SIGTERM and SIGHUP count as Ctrl-C.
pub(super) fn listen_for(what: &'static str) {
    let interrupted = move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        note(&format!("interrupted: {what}; interrupt again to quit at once"));
    };
    let room = crate::threads::room().map_err(ctrlc::Error::System);
    if let Err(error) = room.and_then(|()| ctrlc::set_handler(interrupted)) {
        complain(&format!("cannot listen for interrupts: {error}"));
    }
}

/// Whether to stop.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// A batch's next result, as [`Batch::next`] has it; none also once this process has been interrupted, which [`asked`] tells apart.
pub(super) fn next_of(batch: &mut Batch<'_>) -> Option<(u64, Result<Translation>)> {
    while batch.outstanding() > 0 && !asked() {
        if let Some(result) = batch.next_within(LOOK_EVERY) {
            return Some(result);
        }
    }
    None
}

/// Makes a write beyond the largest file size allowed an error, as a full disk is, instead of the end of the process.
pub(super) fn survive_limits() {
    #[cfg(unix)]
    {
        let unheard = std::sync::Arc::new(AtomicBool::new(false));
        if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, unheard) {
            complain(&format!("cannot outlive a limit on file sizes: {error}"));
        }
    }
}
