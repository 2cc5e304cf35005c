//! A checkpoint's bytes, read piece by piece into memory of our own.
//!
//! A memory map would be shorter, and would end the process, or change under its hands, when somebody truncates or overwrites the
//! file meanwhile. Here each read finds the file as it was when it was opened, or fails.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::ops::Range;
use std::path::Path;

use crate::files::{Stamp, io, open_regular};

/// Bytes that can be read from any place.
pub(in crate::model) trait Source {
    /// How many there are.
    fn len(&self) -> usize;

    /// Fills `bytes` with those from `at` on.
    fn fill(&self, at: usize, bytes: &mut [u8]) -> Result<()>;

    /// Those of a range.
    fn read(&self, range: Range<usize>) -> Result<Vec<u8>> {
        if range.start > range.end || range.end > self.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; range.len()];
        self.fill(range.start, &mut bytes)?;
        Ok(bytes)
    }
}

impl Source for [u8] {
    fn len(&self) -> usize {
        self.len()
    }

    fn fill(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        let own = at.checked_add(bytes.len()).and_then(|end| self.get(at..end)).ok_or(ErrorKind::UnexpectedEof)?;
        bytes.copy_from_slice(own);
        Ok(())
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn fill(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.as_slice().fill(at, bytes)
    }
}

/// A file as it was when it was opened.
#[derive(Debug)]
pub(in crate::model) struct Frozen {
    file: File,
    len: usize,
    stamp: Stamp,
}

impl Frozen {
    pub(in crate::model) fn open(path: &Path) -> crate::Result<Self> {
        let (file, metadata) = open_regular("open", path)?;
        let len = usize::try_from(metadata.len()).map_err(|_| io("open", path)(ErrorKind::FileTooLarge.into()))?;
        Ok(Frozen { file, len, stamp: Stamp::of(&metadata) })
    }

    /// What tells this file, as it was when it was opened, from all others on this machine: place, size, times. None where the system
    /// does not say when anything of a file was last changed.
    #[cfg(unix)]
    pub(in crate::model) fn identity(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt;
        let m = self.file.metadata().ok().filter(|metadata| Stamp::of(metadata) == self.stamp)?;
        let (modified, changed) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
        wait_for_a_tick(changed);
        Some(format!(
            "{}:{} {} {}.{:09} {}.{:09}",
            m.dev(),
            m.ino(),
            m.len(),
            modified.0,
            modified.1,
            changed.0,
            changed.1
        ))
    }

    #[cfg(not(unix))]
    pub(in crate::model) fn identity(&self) -> Option<String> {
        None
    }

    /// Fails if anything has been written to the file.
    fn check(&self) -> Result<()> {
        match Stamp::of(&self.file.metadata()?) == self.stamp {
            true => Ok(()),
            false => Err(Error::other("the file has changed while it was read: load it again when it is at rest")),
        }
    }
}

/// Waits where a file was changed just now, until another change would have another time: those are counted in ticks of the system's
/// clock, of at most 10 ms.
#[cfg(unix)]
fn wait_for_a_tick((seconds, nanoseconds): (i64, i64)) {
    use std::time::{Duration, SystemTime};
    let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(seconds), u32::try_from(nanoseconds)) else { return };
    let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    let tick = Duration::from_millis(20);
    if SystemTime::now().duration_since(changed).is_ok_and(|age| age < tick) {
        std::thread::sleep(tick);
    }
}

impl Source for Frozen {
    fn len(&self) -> usize {
        self.len
    }

    fn fill(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        let read = read_at(&self.file, at as u64, bytes);
        // Behind each read, so that all that has been read so far is of one state. A file cut short has changed, above all.
        self.check()?;
        read
    }
}

#[cfg(unix)]
fn read_at(file: &File, at: u64, bytes: &mut [u8]) -> Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, at: u64, bytes: &mut [u8]) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_to_meanwhile_is_an_error_and_no_crash() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x");
        std::fs::write(&path, [7; 1 << 16]).expect("written");
        let open = || Frozen::open(&path).expect("a file");
        let write =
            |len: u64| File::options().write(true).open(&path).and_then(|file| file.set_len(len)).expect("ours");
        let source = open();
        assert_eq!(source.read(9..12).expect("there"), [7; 3]);
        assert_eq!(source.read(0..1 << 17).expect_err("too far").kind(), ErrorKind::UnexpectedEof);
        // Times are counted in ticks of the system's clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        write(100);
        assert!(source.read(9..12).expect_err("cut short").to_string().starts_with("the file has changed"));
        assert!(source.read(200..300).expect_err("cut short").to_string().starts_with("the file has changed"));
        let source = open();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(&path, [8; 100]).expect("written");
        assert!(source.read(9..12).expect_err("overwritten").to_string().starts_with("the file has changed"));
    }
}
