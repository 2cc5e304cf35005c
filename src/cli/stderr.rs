//! What a command says on stderr: errors always; notes and progress unless `--quiet`; details only with `--verbose`.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is said, for the whole process: set once, before a command runs.
static LEVEL: AtomicU8 = AtomicU8::new(NOTES);
const ERRORS: u8 = 0;
const NOTES: u8 = 1;
const DETAILS: u8 = 2;

/// How much is said on stderr.
#[derive(Debug, clap::Args)]
pub(super) struct Verbosity {
    /// Say nothing on stderr but errors: no progress, no warnings.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say on stderr what was chosen and how long it took.
    #[arg(short, long, global = true)]
    verbose: bool,
}

impl Verbosity {
    pub(super) fn set(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => ERRORS,
            (false, false) => NOTES,
            (false, true) => DETAILS,
        };
        LEVEL.store(level, Ordering::Relaxed);
    }
}

/// Says what went wrong.
pub(super) fn complain(line: &str) {
    // Nobody may be reading there any more, which is no reason to stop.
    let _ = writeln!(std::io::stderr(), "beamfuse: {line}");
}

/// Says what may matter although nothing went wrong: a warning, a choice, where to go on.
pub(super) fn note(line: &str) {
    if LEVEL.load(Ordering::Relaxed) >= NOTES {
        complain(line);
    }
}

/// Says what only those want to know who asked for details.
pub(super) fn detail(line: &str) {
    if LEVEL.load(Ordering::Relaxed) >= DETAILS {
        complain(line);
    }
}

/// Whether someone watches a display that moves.
pub(super) fn shows_progress() -> bool {
    LEVEL.load(Ordering::Relaxed) >= NOTES && std::io::stderr().is_terminal()
}
