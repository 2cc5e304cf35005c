//! A source with a place in it.

use std::io::{ErrorKind, Read, Result, Seek, SeekFrom};

use super::source::Source;

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
