//! Ctrl-C: the first asks to end in good order, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cli::complain;

static ASKED: AtomicBool = AtomicBool::new(false);

/// The exit code of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Starts to listen for Ctrl-C, in a command that works through lines.
pub(super) fn listen() {
    listen_for("giving up the lines that are not done");
}

/// Starts to listen for Ctrl-C; the first says what is done about it.
pub(super) fn listen_for(what: &'static str) {
    let set = ctrlc::set_handler(move || {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(INTERRUPTED);
        }
        complain(&format!("interrupted: {what}; interrupt again to quit at once"));
    });
    if let Err(error) = set {
        complain(&format!("cannot listen for interrupts: {error}"));
    }
}

/// Whether Ctrl-C has been pressed.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
