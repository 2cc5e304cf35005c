//! Weights from safetensors files: memory mapped, every tensor's name, shape, type and values checked when it is taken.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::{Error, Result};

/// The tensors of a checkpoint, in one file or in shards.
#[derive(Debug)]
pub struct Weights {
    shards: Vec<Shard>,
    /// Shard and place of each tensor.
    tensors: BTreeMap<String, (usize, Entry)>,
}

#[derive(Debug)]
struct Shard {
    map: Mmap,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes within the shard's file.
    range: std::ops::Range<usize>,
}

/// The part of `model.safetensors.index.json` that says which file holds which tensor.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Safetensors`] or [`Error::Json`] for a missing or malformed file, [`Error::Config`] for an index
    /// that names a file outside the directory or a tensor that its file does not hold.
    pub fn open(dir: &Path) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index_path = dir.join("model.safetensors.index.json");
        let mut weights = Weights { shards: Vec::new(), tensors: BTreeMap::new() };
        if single.exists() || !index_path.exists() {
            weights.add(&single, |_| true)?;
            return Ok(weights);
        }
        let index: Index = crate::model::config::read_json(&index_path)?;
        let mut files: Vec<&String> = index.weight_map.values().collect();
        files.sort();
        files.dedup();
        for file in files {
            // An index is data from outside: it may not point anywhere else.
            if Path::new(file).file_name() != Some(file.as_ref()) {
                return Err(index_error(&index_path, "weight_map", "file names without directories", file));
            }
            // A tensor that the index places elsewhere, or does not list, is not this file's to give.
            weights.add(&dir.join(file), |name| index.weight_map.get(name) == Some(file))?;
        }
        for (name, file) in &index.weight_map {
            if !weights.tensors.contains_key(name) {
                return Err(index_error(&index_path, name, "a tensor in its file", &format!("none in {file}")));
            }
        }
        Ok(weights)
    }

    /// Maps a file and lists those of its tensors that are `wanted`.
    fn add(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let io = |source| Error::Io { operation: "open", path: path.to_path_buf(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. Like every user of memory maps it relies on the file not
        // being truncated while it is open; the checkpoint belongs to the user who runs the program.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let invalid = |source| Error::Safetensors { path: path.to_path_buf(), source };
        let (header_len, _) = SafeTensors::read_metadata(&map).map_err(invalid)?;
        let view = SafeTensors::deserialize(&map).map_err(invalid)?;
        let data_start = header_len + std::mem::size_of::<u64>();
        let shard = self.shards.len();
        for (name, tensor) in view.iter().filter(|(name, _)| wanted(name)) {
            let offset = tensor.data().as_ptr() as usize - map.as_ptr() as usize;
            debug_assert!(offset >= data_start);
            let entry = Entry {
                dtype: tensor.dtype(),
                shape: tensor.shape().to_vec(),
                range: offset..offset + tensor.data().len(),
            };
            self.tensors.insert(name.to_string(), (shard, entry));
        }
        self.shards.push(Shard { map });
        Ok(())
    }

    /// Whether the checkpoint holds a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Element type of most of the checkpoint's values, as in `F16`.
    pub fn dtype(&self) -> String {
        let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
        for (_, entry) in self.tensors.values() {
            *sizes.entry(format!("{:?}", entry.dtype)).or_default() += entry.range.len();
        }
        sizes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(|| "none".into(), |(dtype, _)| dtype)
    }

    /// Number of values in the checkpoint.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|(_, entry)| entry.shape.iter().product::<usize>()).sum()
    }

    /// The tensor `name` as f32, which must have the shape `shape`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is missing, has another shape, an element type other than f32, f16 or bf16, or holds a value
    /// that is not finite.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |expected: String, got: String| Error::Tensor { name: name.to_string(), expected, got };
        let Some((shard, entry)) = self.tensors.get(name) else {
            return Err(wrong(format!("shape {shape:?}"), "no such tensor".into()));
        };
        if entry.shape != shape {
            return Err(wrong(format!("shape {shape:?}"), format!("{:?}", entry.shape)));
        }
        let bytes = &self.shards[*shard].map[entry.range.clone()];
        let values: Vec<f32> = match entry.dtype {
            Dtype::F32 => words(bytes).map(f32::from_le_bytes).collect(),
            Dtype::F16 => words(bytes).map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => words(bytes).map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            other => return Err(wrong("element type F32, F16 or BF16".into(), format!("{other:?}"))),
        };
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(at) => Err(wrong("finite values".into(), format!("{} at index {at}", values[at]))),
        }
    }
}

/// The bytes of one element after another; the file gives no alignment.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

fn index_error(path: &Path, field: &str, expected: &str, got: &str) -> Error {
    Error::Config { path: PathBuf::from(path), field: field.into(), expected: expected.into(), got: got.into() }
}
