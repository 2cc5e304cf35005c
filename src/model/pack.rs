//! A pack: weights as a backend holds them, in a file, so that opening a model again only reads them.
//!
//! A pack is never needed. It counts for the very files that it was made from, in one layout of matrices, and whole: whatever is wrong with
//! it, the model loads from its weights, and the pack is written anew.
//!
//! The file: [`MAGIC`]; the values, one behind the other; an [`Index`] in JSON, which says where each lies, and has a CRC-32 of it; the
//! trailer, [`MAGIC`] again, where the index begins (64 bits) and its CRC-32. All numbers are little-endian. So each byte is compared or
//! covered by a checksum, which is computed while the bytes are copied. They are copied into memory of our own, as a checkpoint's are:
//! a map would end the process when somebody cuts the file short, could change after it was checked, and would lie on small pages, which
//! each step of the search pays for.

mod read;
mod write;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::weights::Weights;
use super::{Transformer, load};
use crate::backend::Backend;
use crate::files::io;
use crate::{Error, Result};
use read::Reader;
use write::Writer;

/// What a pack begins and ends with; the number counts changes of the form.
const MAGIC: &[u8; 16] = b"beamfuse pack 1\n";
/// The trailer's length.
const TRAILER: usize = MAGIC.len() + 8 + 4;
/// The longest index.
const MAX_INDEX: usize = 64 << 20;

/// What a pack holds.
#[derive(Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
struct Index {
    /// [`NetworkOps::layout`](crate::backend::NetworkOps::layout).
    layout: String,
    /// [`Weights::identity`].
    weights: Vec<String>,
    entries: BTreeMap<String, Entry>,
}

/// Where values lie.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
struct Entry {
    shape: Vec<usize>,
    start: usize,
    len: usize,
    crc: u32,
}

/// An error of a pack's contents.
fn invalid(path: &Path, expected: &str, got: &str) -> Error {
    let reason = format!("not a valid pack of weights: expected {expected}, got {got}");
    io("read", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, reason))
}

/// What became of the pack that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackUse {
    /// The pack that the weights were read from.
    pub read: Option<PathBuf>,
    /// The pack that was written.
    pub written: Option<PathBuf>,
    /// What went wrong: with a pack that was there, or with writing one.
    pub warning: Option<String>,
}

/// The name of a pack within its directory: the model's, a hash of its path, and the layout.
fn file_name(source: &Path, layout: &str) -> String {
    let path = source.canonicalize().unwrap_or_else(|_| source.to_path_buf());
    // FNV-1a. Two paths of one hash would write over each other's packs, and never read them: the index tells.
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = path.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    let model = source.parent().and_then(|dir| dir.canonicalize().ok());
    let model = model.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let mut name = model.unwrap_or_else(|| "model".into());
    _ = write!(name, "-{hash:016x}-{layout}.pack");
    name
}

/// Where a loader takes values from: the checkpoint's files, which may be written into a pack meanwhile, or a pack.
pub(super) struct Tensors<'a> {
    weights: &'a Weights,
    pack: Pack,
}

enum Pack {
    None,
    Read(Reader),
    Write(RefCell<Writer>),
}

impl<'a> Tensors<'a> {
    pub(super) fn plain(weights: &'a Weights) -> Self {
        Tensors { weights, pack: Pack::None }
    }

    /// The checkpoint, whose header is read in any case.
    pub(super) fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// As [`Weights::get`].
    pub(super) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match &self.pack {
            Pack::None => self.weights.get(name, shape),
            Pack::Read(reader) => reader.get(name, shape),
            Pack::Write(writer) => {
                let values = self.weights.get(name, shape)?;
                writer.borrow_mut().add(name.to_owned(), shape, bytemuck::cast_slice(&values));
                Ok(values)
            }
        }
    }

    /// A matrix `[out_dim, in_dim]` by this name, with a bias or without: prepared from the rows of the tensors `names` and what `bias`
    /// gives, or as a pack has it.
    pub(super) fn matrix<B: Backend>(
        &self,
        backend: &B,
        (name, biased): (&str, bool),
        names: &[String],
        [out_dim, in_dim]: [usize; 2],
        bias: impl FnOnce() -> Result<Option<Vec<f32>>>,
    ) -> Result<B::Matrix> {
        if let Pack::Read(reader) = &self.pack {
            return reader.matrix(backend, (name, biased), [out_dim, in_dim]);
        }
        let matrix = self.weights.matrix(backend, names, [out_dim, in_dim], bias)?;
        if let Pack::Write(writer) = &self.pack {
            for (i, part) in backend.matrix_parts(&matrix).into_iter().enumerate() {
                writer.borrow_mut().add(part_name(name, i), &[out_dim, in_dim, usize::from(biased)], part);
            }
        }
        Ok(matrix)
    }
}

/// The name of a matrix's part. A tensor has no such name.
fn part_name(name: &str, part: usize) -> String {
    format!("{name}/{part}")
}

impl<B: Backend> Transformer<B> {
    /// As [`Transformer::new`], from a pack in the directory `packs` if there is one that fits, which is written there otherwise.
    ///
    /// # Errors
    /// Those of [`Transformer::new`]. Nothing about the pack is one: [`PackUse::warning`] says it.
    pub fn packed(backend: &B, config: &ModelConfig, weights: &Weights, packs: &Path) -> Result<(Self, PackUse)> {
        let plain = |reason: &str| {
            let warning = Some(format!("no pack of weights was used: {reason}"));
            Ok((Self::new(backend, config, weights)?, PackUse { warning, ..PackUse::default() }))
        };
        let Some(layout) = backend.layout() else {
            return plain("expected weights in i8 or bf16 on the CPU, got others");
        };
        let Some(identity) = weights.identity() else {
            return plain("this system does not say whether a file has changed");
        };
        let path = packs.join(file_name(weights.source(), layout));
        let read = Reader::open(&path, layout, &identity).and_then(|reader| {
            let Some(reader) = reader else { return Ok(None) };
            let tensors = Tensors { weights, pack: Pack::Read(reader) };
            load::Loader::new(backend, &tensors, config).model().map(Some)
        });
        let damage = match read {
            Ok(Some(model)) => return Ok((model, PackUse { read: Some(path), ..PackUse::default() })),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let writer =
            Writer::create(path.clone(), Index { layout: layout.to_owned(), weights: identity, ..Index::default() });
        let tensors = Tensors { weights, pack: Pack::Write(RefCell::new(writer)) };
        let model = load::Loader::new(backend, &tensors, config).model()?;
        let written = match tensors.pack {
            Pack::Write(writer) => writer.into_inner().finish(),
            Pack::None | Pack::Read(_) => Ok(()),
        };
        let damage = damage.map(|error| format!("the pack of weights was not used: {}", error));
        let failure = written.as_ref().err().map(|error| format!("no pack of weights was written: {}", error));
        let warning = damage.into_iter().chain(failure).reduce(|first, second| format!("{first}; {second}"));
        Ok((model, PackUse { read: None, written: written.is_ok().then_some(path), warning }))
    }
}
