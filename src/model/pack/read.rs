//! Reading a pack.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Entry, Index, MAGIC, MAX_INDEX, TRAILER, invalid, part_name};
use crate::backend::Backend;
use crate::error::room;
use crate::files::io;
use crate::model::weights::source::{Frozen, Source};
use crate::shares::in_shares;
use crate::{Error, Result};

/// A pack that fits and whose index is whole; each value is checked when it is read.
pub(super) struct Reader {
    path: PathBuf,
    file: Frozen,
    index: Index,
}

/// Bytes that are read and checked at a time, while they are in the processor's cache.
const PIECE: usize = 1 << 18;
/// Bytes that a thread takes at a time.
const SHARE: usize = 4 << 20;

impl Reader {
    /// The pack of this name; none if there is none, or it was made from other files or in another layout.
    pub fn open(path: &Path, layout: &str, weights: &[String]) -> Result<Option<Self>> {
        let file = match Frozen::open(path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let read = |range: Range<usize>| file.read(range).map_err(io("read", path));
        let least = MAGIC.len() + TRAILER;
        if file.len() < least {
            return Err(invalid(path, &format!("at least {least} bytes"), &file.len().to_string()));
        }
        let end = file.len() - TRAILER;
        let (start, trailer) = (read(0..MAGIC.len())?, read(end..file.len())?);
        if start != MAGIC || !trailer.starts_with(MAGIC) {
            return Err(invalid(path, "the marks of a whole pack of this version", "others"));
        }
        let number = |range: Range<usize>| trailer[range].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (at, crc) = (number(16..24), number(24..28));
        let at = usize::try_from(at).ok().filter(|at| (MAGIC.len()..=end).contains(at) && end - at <= MAX_INDEX);
        let at = at.ok_or_else(|| invalid(path, "an index within the file", "another place"))?;
        let index = read(at..end)?;
        if u64::from(crc32fast::hash(&index)) != crc {
            return Err(invalid(path, "an index of its checksum", "another"));
        }
        let index: Index =
            serde_json::from_slice(&index).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
        let outside = |entry: &Entry| entry.start.checked_add(entry.len).is_none_or(|end| end > at);
        if let Some((name, _)) = index.entries.iter().find(|(_, entry)| outside(entry)) {
            return Err(invalid(path, "values within the file", name));
        }
        let fits = index.layout == layout && index.weights == weights;
        Ok(fits.then(|| Reader { path: path.to_path_buf(), file, index }))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry> {
        let found = self.index.entries.get(name);
        let missing = || invalid(&self.path, &format!("{name} of shape {shape:?}"), "none");
        found.filter(|entry| entry.shape == shape).ok_or_else(missing)
    }

    /// The values of a tensor.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.entry(name, shape)?;
        // The length is within the file's; the shape may claim anything.
        let mut values: Vec<f32> = room::zeros("load weights", entry.len / size_of::<f32>())?;
        if shape.iter().try_fold(1, |all: usize, n| all.checked_mul(*n)) != Some(values.len()) {
            return Err(invalid(&self.path, &format!("{name} of shape {shape:?}"), "another number of values"));
        }
        self.fill(entry, name, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// A matrix.
    pub fn matrix<B: Backend>(
        &self,
        backend: &B,
        (name, biased): (&str, bool),
        [out_dim, in_dim]: [usize; 2],
    ) -> Result<B::Matrix> {
        let shape = [out_dim, in_dim, usize::from(biased)];
        let entry = |part: usize| self.entry(&part_name(name, part), &shape);
        entry(0)?;
        let mut part = 0;
        let matrix = backend.matrix_of_parts(out_dim, in_dim, biased, &mut |bytes| {
            let filled = entry(part).and_then(|entry| self.fill(entry, name, bytes));
            part += 1;
            filled
        })?;
        matrix.ok_or_else(|| invalid(&self.path, "a backend that reads packs", "another"))
    }

    /// Reads an entry, by several threads where it is large, and checks it.
    fn fill(&self, entry: &Entry, name: &str, bytes: &mut [u8]) -> Result<()> {
        if entry.len != bytes.len() {
            return Err(invalid(&self.path, &format!("{} bytes of {name}", bytes.len()), &entry.len.to_string()));
        }
        let read = |at: usize, bytes: &mut [u8]| self.read(entry.start + at, bytes);
        let sums: std::io::Result<Vec<crc32fast::Hasher>> = in_shares(bytes, SHARE, read).into_iter().collect();
        let mut sum = crc32fast::Hasher::new();
        sums.map_err(io("read", &self.path))?.iter().for_each(|part| sum.combine(part));
        match sum.finalize() == entry.crc {
            true => Ok(()),
            false => Err(invalid(&self.path, &format!("{name} of its checksum"), "another")),
        }
    }

    fn read(&self, start: usize, bytes: &mut [u8]) -> std::io::Result<crc32fast::Hasher> {
        let mut sum = crc32fast::Hasher::new();
        for (place, piece) in (start..).step_by(PIECE).zip(bytes.chunks_mut(PIECE)) {
            self.file.fill(place, piece)?;
            sum.update(piece);
        }
        Ok(sum)
    }
}
