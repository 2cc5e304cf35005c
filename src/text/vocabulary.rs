//! The table between pieces and the ids of a translation model (`vocab.json`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::read_json;
use crate::{Error, Result};

/// The names of the special tokens, as `tokenizer_config.json` may change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    pub eos: String,
    pub pad: String,
    pub unk: String,
}

/// Pieces and their ids, which count from 0 without a gap.
#[derive(Debug)]
pub(super) struct Vocabulary {
    path: PathBuf,
    pieces: Vec<String>,
    ids: HashMap<String, u32>,
    pub eos: u32,
    pub pad: u32,
    pub unk: u32,
}

impl Vocabulary {
    /// Reads a JSON object from piece to id.
    ///
    /// # Errors
    /// `Io`, `Json`, or `Tokenizer` if it is not such an object, an id is not an integer, is out of range or given twice,
    /// or a special token is missing.
    pub fn open(path: &Path, special: &SpecialTokens) -> Result<Self> {
        let error = |expected: String, got: String| Error::Tokenizer { path: path.into(), expected, got };
        let Value::Object(object) = read_json(path)? else {
            return Err(error("a json object from piece to id".into(), "another json value".into()));
        };
        let size = object.len();
        let mut pieces = vec![None; size];
        let mut ids = HashMap::with_capacity(size);
        for (piece, value) in object {
            // Distinct ids below the number of pieces leave no gap.
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let Some((id, slot)) = id.and_then(|id| Some((id, pieces.get_mut(id as usize)?))) else {
                return Err(error(
                    format!("ids from 0 to {}, without a gap", size - 1),
                    format!("{value} for {piece:?}"),
                ));
            };
            if let Some(other) = slot.replace(piece.clone()) {
                return Err(error("distinct ids".into(), format!("{id} for both {other:?} and {piece:?}")));
            }
            ids.insert(piece, id);
        }
        let find = |piece: &str| {
            let id = ids.get(piece).copied();
            id.ok_or_else(|| error(format!("the piece {piece:?}"), format!("{size} pieces without it")))
        };
        let (eos, pad, unk) = (find(&special.eos)?, find(&special.pad)?, find(&special.unk)?);
        Ok(Vocabulary { path: path.into(), pieces: pieces.into_iter().flatten().collect(), ids, eos, pad, unk })
    }

    /// The id of a piece, or that of the unknown piece.
    pub fn id(&self, piece: &str) -> u32 {
        self.ids.get(piece).copied().unwrap_or(self.unk)
    }

    /// The piece of an id, or the unknown piece.
    pub fn piece(&self, id: u32) -> &str {
        &self.pieces[if (id as usize) < self.pieces.len() { id } else { self.unk } as usize]
    }

    /// All pieces in the order of their ids.
    pub fn pieces(&self) -> &[String] {
        &self.pieces
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
