//! The weights of a checkpoint: named tensors in files, each one's name, shape, type and values checked when it is taken.
//!
//! A reader finds the tensors of one file: `safetensors` or `pytorch`. Both only say where in the file each tensor's bytes lie;
//! nothing is copied before [`Weights::get`] asks for it.

#[cfg(feature = "pytorch")]
mod cursor;
#[cfg(feature = "pytorch")]
mod pickle;
#[cfg(feature = "pytorch")]
mod pytorch;
#[cfg(not(feature = "pytorch"))]
mod pytorch {
    /// Says how to get a build that reads such files.
    pub(super) fn read<T>(_: &std::path::Path, _: &super::Bytes) -> crate::Result<T> {
        Err(crate::Error::NotBuilt { operation: "read pytorch_model.bin", feature: "pytorch" })
    }
}
mod safetensors;
pub(super) mod source;
#[cfg(all(test, feature = "pytorch"))]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::error::room;
use crate::files::io;
use crate::shares::in_shares;
use crate::{Error, Result, read};
use ::safetensors::Dtype;
use source::{Frozen, Source};

/// Tensors in memory: by name the shape and the values.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The tensors of a checkpoint, in one file or in shards.
#[derive(Debug)]
pub struct Weights {
    /// The file that was opened: the only one, or the index of the shards.
    source: PathBuf,
    shards: Vec<Shard>,
    /// Shard and place of each tensor.
    tensors: BTreeMap<String, (usize, Entry)>,
}

/// The bytes of a file, or of tensors that never were in one.
#[derive(Debug)]
enum Bytes {
    File(Frozen),
    Memory(Vec<u8>),
}

impl Source for Bytes {
    fn len(&self) -> usize {
        match self {
            Bytes::File(file) => file.len(),
            Bytes::Memory(bytes) => bytes.len(),
        }
    }

    fn fill(&self, at: usize, bytes: &mut [u8]) -> std::io::Result<()> {
        match self {
            Bytes::File(file) => file.fill(at, bytes),
            Bytes::Memory(own) => own.fill(at, bytes),
        }
    }
}

/// One of the files of a checkpoint.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

/// Where a tensor's values lie within its file, little-endian.
#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Elements from one index of each dimension to the next, where that is not row-major.
    strides: Option<Vec<usize>>,
    /// Bytes within the file, from the first value to the last.
    range: std::ops::Range<usize>,
}

/// Copies elements of `size` bytes into the order of their indices.
fn gathered(bytes: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let mut index = vec![0; shape.len()];
    let mut out = Vec::with_capacity(shape.iter().product::<usize>() * size);
    for _ in 0..shape.iter().product() {
        let at: usize = index.iter().zip(strides).map(|(i, stride)| i * stride).sum();
        out.extend_from_slice(&bytes[at * size..][..size]);
        for (i, n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    out
}

/// Finds the tensors of one file, given its path and its bytes.
type Reader = fn(&Path, &Bytes) -> Result<BTreeMap<String, Entry>>;

/// The names that a checkpoint may have, in the order in which they are looked for; each with `.index.json` behind it lists
/// shards.
const FORMATS: [(&str, Reader); 2] = [("model.safetensors", safetensors::read), ("pytorch_model.bin", pytorch::read)];

/// The part of an index file that says which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors` or `pytorch_model.bin`, the former where there are both, or the shards that either's index
    /// (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) lists.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Safetensors`], [`Error::PyTorch`] or [`Error::Json`] for a missing or malformed file,
    /// [`Error::Config`] for an index that names a file outside the directory or a tensor that its file does not hold.
    pub fn open(dir: &Path) -> Result<Self> {
        for (name, read) in FORMATS {
            let single = dir.join(name);
            if single.exists() {
                let mut weights = Weights { source: single.clone(), shards: Vec::new(), tensors: BTreeMap::new() };
                weights.add(&single, read, |_| true)?;
                return Ok(weights.under_model());
            }
            let index = dir.join(format!("{name}.index.json"));
            if index.exists() {
                return Weights::open_shards(dir, index, read);
            }
        }
        let [(first, _), (second, _)] = FORMATS;
        let missing = format!("no such file, and neither {second} nor an index of shards");
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, missing);
        Err(Error::Io { operation: "open", path: dir.join(first), source })
    }

    /// Weights in memory, as training has them.
    ///
    /// # Panics
    /// If a tensor has another number of values than its shape says.
    pub fn from_tensors(tensors: Tensors) -> Self {
        let mut bytes = Vec::with_capacity(tensors.values().map(|(_, values)| values.len() * 4).sum());
        let mut entries = BTreeMap::new();
        for (name, (shape, values)) in tensors {
            assert_eq!(values.len(), shape.iter().product::<usize>(), "tensor {name} of shape {shape:?}");
            let start = bytes.len();
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            entries.insert(name, (0, Entry { dtype: Dtype::F32, shape, strides: None, range: start..bytes.len() }));
        }
        Weights {
            source: "memory".into(),
            shards: vec![Shard { path: "memory".into(), bytes: Bytes::Memory(bytes) }],
            tensors: entries,
        }
    }

    fn open_shards(dir: &Path, index_path: PathBuf, read: Reader) -> Result<Self> {
        let index: Index = read::json(&index_path)?;
        let mut weights = Weights { source: index_path.clone(), shards: Vec::new(), tensors: BTreeMap::new() };
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        for file in files {
            // An index is data from outside: it may not point anywhere else.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(index_error(&index_path, "weight_map", "file names without directories", file));
            }
            // A tensor that the index places elsewhere, or does not list, is not this file's to give.
            weights.add(&dir.join(file), read, |name| index.weight_map.get(name) == Some(file))?;
        }
        for (name, file) in &index.weight_map {
            if !weights.tensors.contains_key(name) {
                return Err(index_error(&index_path, name, "a tensor in its file", &format!("none in {file}")));
            }
        }
        Ok(weights.under_model())
    }

    /// Gives the tensors of a model that was saved without its output layer (`MarianModel`, `BartModel`) the names that they have
    /// in a whole one, as transformers does.
    fn under_model(mut self) -> Self {
        let starts = |prefix: &str| self.tensors.keys().any(|name| name.starts_with(prefix));
        if !starts("model.") && (starts("encoder.layers.") || starts("decoder.layers.")) {
            let inner = |name: &str| ["shared.", "encoder.", "decoder."].iter().any(|part| name.starts_with(part));
            let renamed = |name: String| if inner(&name) { format!("model.{name}") } else { name };
            self.tensors = self.tensors.into_iter().map(|(name, place)| (renamed(name), place)).collect();
        }
        self
    }

    /// Opens a file and lists those of its tensors that are `wanted`.
    fn add(&mut self, path: &Path, read: Reader, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let bytes = Bytes::File(Frozen::open(path)?);
        let start = bytes.read(0..bytes.len().min(read::POINTER_BYTES)).map_err(io("read", path))?;
        read::refuse_pointer(path, &start)?;
        let shard = self.shards.len();
        let tensors = read(path, &bytes)?.into_iter().filter(|(name, _)| wanted(name));
        self.tensors.extend(tensors.map(|(name, entry)| (name, (shard, entry))));
        self.shards.push(Shard { path: path.to_path_buf(), bytes });
        Ok(())
    }

    /// Whether the tensors are in files, and not in memory.
    pub fn is_in_files(&self) -> bool {
        self.shards.iter().all(|shard| matches!(shard.bytes, Bytes::File(_)))
    }

    /// What tells the files, as they were when they were opened, from all others on this machine; none for tensors in memory.
    pub(super) fn identity(&self) -> Option<Vec<String>> {
        let identity = |shard: &Shard| match &shard.bytes {
            Bytes::File(file) => file.identity(),
            Bytes::Memory(_) => None,
        };
        self.shards.iter().map(identity).collect()
    }

    /// The file that was opened: the checkpoint itself, or the index of its shards.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Whether the checkpoint holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensors' names and shapes, in the order of the names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry.shape.as_slice()))
    }

    /// Element type of most of the checkpoint's values, as in `F16`.
    pub fn dtype(&self) -> String {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for (_, entry) in self.tensors.values() {
            *sizes.entry(format!("{:?}", entry.dtype)).or_default() += entry.range.len();
        }
        sizes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(|| "none".into(), |(dtype, _)| dtype)
    }

    /// Number of values in the checkpoint; tensors that share their bytes count once.
    pub fn parameters(&self) -> usize {
        let mut seen = BTreeSet::new();
        let distinct =
            self.tensors.values().filter(|(shard, entry)| seen.insert((*shard, entry.range.start, entry.range.end)));
        let sizes = distinct.map(|(_, entry)| entry.shape.iter().fold(1, |all: usize, n| all.saturating_mul(*n)));
        // A file may claim any shape.
        sizes.fold(0, usize::saturating_add)
    }

    /// The tensor `name` as f32, which must have the shape `shape`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing, has another shape, an element type other than f64, f32, f16 or bf16, or holds a value
    /// that is not finite in f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.entry(name, shape)?;
        let len = shape.iter().try_fold(1, |len: usize, n| len.checked_mul(*n)).unwrap_or(usize::MAX);
        let mut values = room::zeros("load weights", len)?;
        self.get_into(name, shape, &mut values)?;
        Ok(values)
    }

    /// As [`Weights::get`], into `values`, which has as many elements as the shape.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(super) fn get_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        self.get_part(name, shape, 0, values)
    }

    /// Whether parts of the tensor can be taken without reading all of it.
    fn has_parts(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|(_, entry)| entry.strides.is_none())
    }

    /// As [`Weights::get_into`], of the values from the index `first` on.
    ///
    /// # Errors
    /// As [`Weights::get`].
    ///
    /// # Panics
    /// If the tensor has no parts ([`Weights::has_parts`]), unless all of it is asked for.
    fn get_part(&self, name: &str, shape: &[usize], first: usize, values: &mut [f32]) -> Result<()> {
        let wrong = |expected: String, got: String| Error::Tensor { name: name.to_string(), expected, got };
        let (shard, entry) = self.entry(name, shape)?;
        let shard = &self.shards[*shard];
        let found = match entry.dtype {
            Dtype::F64 => shard.values(entry, first, values, |b| f64::from_le_bytes(b) as f32)?,
            Dtype::F32 => shard.values(entry, first, values, f32::from_le_bytes)?,
            Dtype::F16 => shard.values(entry, first, values, |b| half::f16::from_le_bytes(b).to_f32())?,
            Dtype::BF16 => shard.values(entry, first, values, |b| half::bf16::from_le_bytes(b).to_f32())?,
            other => return Err(wrong("element type F64, F32, F16 or BF16".into(), format!("{other:?}"))),
        };
        match found {
            None => Ok(()),
            Some((at, value)) => Err(wrong("finite values".into(), format!("{value} at index {at}"))),
        }
    }

    /// The matrix `[out_dim, in_dim]` whose rows are those of these tensors, one behind the other, and all of one shape; `bias` is asked
    /// for its bias once they are found to be there.
    ///
    /// # Errors
    /// As [`Weights::get`], and where there is no memory for it.
    pub(super) fn matrix<B: Backend>(
        &self,
        backend: &B,
        names: &[String],
        [out_dim, in_dim]: [usize; 2],
        bias: impl FnOnce() -> Result<Option<Vec<f32>>>,
    ) -> Result<B::Matrix> {
        let rows = out_dim / names.len().max(1);
        let shape = [rows, in_dim];
        names.iter().try_for_each(|name| self.check(name, &shape))?;
        let bias = bias()?;
        let bias = bias.as_deref();
        if !names.iter().all(|name| self.has_parts(name)) {
            let mut weights = room::zeros("load weights", out_dim * in_dim)?;
            for (name, part) in names.iter().zip(weights.chunks_mut((rows * in_dim).max(1))) {
                self.get_into(name, &shape, part)?;
            }
            return backend.matrix(&weights, bias, out_dim, in_dim);
        }
        let part = |mut first: usize, mut values: &mut [f32]| {
            while !values.is_empty() {
                let row = first % rows;
                let (these, rest) = values.split_at_mut(values.len().min((rows - row) * in_dim));
                self.get_part(&names[first / rows], &shape, row * in_dim, these)?;
                (first, values) = (first + these.len() / in_dim, rest);
            }
            Ok(())
        };
        backend.matrix_of_rows(&part, bias, out_dim, in_dim)
    }

    /// Checks that a tensor is there and has this shape.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.entry(name, shape).map(drop)
    }

    /// Where a tensor lies, which has this shape.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<&(usize, Entry)> {
        let wrong = |got: String| Error::Tensor { name: name.to_string(), expected: format!("shape {shape:?}"), got };
        match self.tensors.get(name) {
            None => Err(wrong("no such tensor".into())),
            Some((_, entry)) if entry.shape != shape => Err(wrong(format!("{:?}", entry.shape))),
            Some(found) => Ok(found),
        }
    }
}

/// Values that are read and checked at a time, while they are in the processor's cache.
const PIECE: usize = 1 << 16;
/// Values that a thread takes at a time.
const SHARE: usize = 1 << 20;

impl Shard {
    /// Takes values of a tensor whose elements have `N` bytes, from one on. Returns the first that is not finite, and its index.
    fn values<const N: usize>(
        &self,
        entry: &Entry,
        first: usize,
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32 + Sync,
    ) -> Result<Option<(usize, f32)>> {
        let take = |bytes: &[u8], out: &mut [f32]| {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *out = value(*bytes);
            }
            not_finite(out)
        };
        if let Some(strides) = &entry.strides {
            assert_eq!((first, out.len()), (0, entry.shape.iter().product()), "part of a tensor that is not in order");
            // The bytes as they are, in order, and as values.
            room::require("load weights", entry.range.len().saturating_mul(4))?;
            let bytes = self.bytes.read(entry.range.clone()).map_err(io("read", &self.path))?;
            return Ok(take(&gathered(&bytes, &entry.shape, strides, N), out));
        }
        // Bytes that are the values already.
        let are_values = entry.dtype == Dtype::F32 && cfg!(target_endian = "little");
        let share = |at: usize, out: &mut [f32]| {
            let mut piece: Vec<u8> =
                room::zeros("load weights", if are_values { 0 } else { PIECE.min(out.len()) * N })?;
            for (at, out) in (first + at..).step_by(PIECE).zip(out.chunks_mut(PIECE)) {
                let fill = |bytes| self.bytes.fill(entry.range.start + at * N, bytes).map_err(io("read", &self.path));
                let found = if are_values {
                    fill(bytemuck::cast_slice_mut(out))?;
                    not_finite(out)
                } else {
                    let bytes = &mut piece[..out.len() * N];
                    fill(bytes)?;
                    take(bytes, out)
                };
                if let Some((index, value)) = found {
                    return Ok(Some((at + index, value)));
                }
            }
            Ok(None)
        };
        let found: Result<Vec<_>> = in_shares(out, SHARE, share).into_iter().collect();
        Ok(found?.into_iter().flatten().next())
    }
}

/// The first value that is not finite.
fn not_finite(values: &[f32]) -> Option<(usize, f32)> {
    // The bits of numbers above zero are in the order of the numbers.
    let largest = values.iter().fold(0, |largest, value| largest.max(value.abs().to_bits()));
    let at = (largest >= f32::INFINITY.to_bits()).then(|| values.iter().position(|value| !value.is_finite()))??;
    Some((at, values[at]))
}

fn index_error(path: &Path, field: &str, expected: &str, got: &str) -> Error {
    Error::Config { path: PathBuf::from(path), field: field.into(), expected: expected.into(), got: got.into() }
}
