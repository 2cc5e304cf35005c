//! A checkpoint's bytes, read piece by piece into memory of our own.
//!
//! A memory map would be shorter, and would end the process, or change under its hands, when somebody truncates or overwrites the
//! file meanwhile. Here each read finds the file as it was when it was opened, or fails.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use crate::files::{Stamp, io, open_regular};

/// Bytes that can be read from any place.
pub(super) trait Source {
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
pub(super) struct Frozen {
    file: File,
    len: usize,
    stamp: Stamp,
}

impl Frozen {
    pub(super) fn open(path: &Path) -> crate::Result<Self> {
        let (file, metadata) = open_regular("open", path)?;
        let len = usize::try_from(metadata.len()).map_err(|_| io("open", path)(ErrorKind::FileTooLarge.into()))?;
        Ok(Frozen { file, len, stamp: Stamp::of(&metadata) })
    }

    /// Fails if anything has been written to the file.
    fn check(&self) -> Result<()> {
        match Stamp::of(&self.file.metadata()?) == self.stamp {
            true => Ok(()),
            false => Err(Error::other("the file has changed while it was read: load it again when it is at rest")),
        }
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
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(bytes)
}

/// A source from a place on, as archives are read.
pub(super) struct Cursor<'a, S: ?Sized> {
    source: &'a S,
    at: usize,
}

impl<'a, S: Source + ?Sized> Cursor<'a, S> {
    pub(super) fn new(source: &'a S) -> Self {
        Cursor { source, at: 0 }
    }
}

impl<S: Source + ?Sized> Read for Cursor<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize> {
        let count = bytes.len().min(self.source.len().saturating_sub(self.at));
        if count > 0 {
            self.source.fill(self.at, &mut bytes[..count])?;
        }
        self.at += count;
        Ok(count)
    }
}

impl<S: Source + ?Sized> Seek for Cursor<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(offset) => (self.source.len() as u64, offset),
            SeekFrom::Current(offset) => (self.at as u64, offset),
        };
        let at = base.checked_add_signed(offset).and_then(|at| usize::try_from(at).ok());
        self.at = at.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.at as u64)
    }
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

    #[test]
    fn a_cursor_goes_where_a_file_would() {
        let bytes: Vec<u8> = (0..10).collect();
        let mut cursor = Cursor::new(&bytes);
        let mut read = [0; 3];
        cursor.seek(SeekFrom::End(-2)).expect("inside");
        assert_eq!((cursor.read(&mut read).expect("there"), &read[..2]), (2, &[8, 9][..]));
        cursor.seek(SeekFrom::Current(-5)).expect("inside");
        cursor.read_exact(&mut read).expect("there");
        assert_eq!(read, [5, 6, 7]);
        assert!(cursor.seek(SeekFrom::Start(0)).and_then(|_| cursor.seek(SeekFrom::Current(-1))).is_err());
        cursor.seek(SeekFrom::Start(1 << 40)).expect("as with files");
        assert_eq!(cursor.read(&mut read).expect("nothing"), 0);
    }
}
