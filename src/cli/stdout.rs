//! Standard output as a file, and whether there is one.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;
use crate::files::io;

/// Whether the process was started without a standard output. The standard library then puts something in its place that takes
/// everything, so that all would seem well.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Notes whether there is a standard output; to be called before `main`, which would find its replacement.
pub fn look() {
    // Where there is no such directory nothing is known.
    let open_files = Path::new("/proc/self/fd");
    CLOSED.store(open_files.is_dir() && open_files.join("1").symlink_metadata().is_err(), Ordering::Relaxed);
}

/// Refuses to write to a standard output that is not there.
pub(super) fn check() -> Result<()> {
    match CLOSED.load(Ordering::Relaxed) {
        false => Ok(()),
        true => {
            let closed = std::io::Error::new(std::io::ErrorKind::BrokenPipe, "standard output is closed");
            Err(io("write", Path::new("-"))(closed))
        }
    }
}

/// Whether a path is another name of a file that this process has open already.
pub(super) fn is_open_file(path: &Path) -> bool {
    ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|name| path.starts_with(name))
}

/// Standard output, without a buffer between.
pub(super) fn open() -> Result<File> {
    check()?;
    #[cfg(unix)]
    let own = std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned();
    #[cfg(windows)]
    let own = std::os::windows::io::AsHandle::as_handle(&std::io::stdout()).try_clone_to_owned();
    own.map(File::from).map_err(io("open", Path::new("-")))
}
