//! The table between pieces and the ids of a translation model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::added::AddedToken;
use crate::{Error, Result, read};

/// Ids from here on have no piece of their own in the table: no model has so many rows.
const MAX_ID: u32 = 1 << 24;

/// Pieces and their ids. There may be ids without a piece between them, and pieces beyond the rows that a model has.
#[derive(Clone, Debug)]
pub(super) struct Vocabulary {
    path: PathBuf,
    /// By id.
    pieces: Vec<Option<String>>,
    ids: HashMap<String, u32>,
}

/// The ids that every tokenizer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marks {
    pub eos: u32,
    pub pad: u32,
    pub unk: u32,
}

impl Vocabulary {
    /// Reads a JSON object from piece to id.
    ///
    /// # Errors
    /// `Io`, `LfsPointer`, `Json`, or `Tokenizer` if it is not such an object, or an id is not an integer or given twice.
    pub fn open(path: &Path) -> Result<Self> {
        let error = |expected: String, got: String| Error::Tokenizer { path: path.into(), expected, got };
        let Value::Object(object) = read::json(path)? else {
            return Err(error("a json object from piece to id".into(), "another json value".into()));
        };
        let mut vocabulary = Vocabulary::new(path, []);
        for (piece, value) in object {
            let Some(id) = value.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                return Err(error("ids from 0 on".into(), format!("{value} for {piece:?}")));
            };
            if let Some(other) = vocabulary.get(id) {
                return Err(error("distinct ids".into(), format!("{id} for both {other:?} and {piece:?}")));
            }
            vocabulary.insert(&piece, id);
        }
        Ok(vocabulary)
    }

    /// These pieces, read from `path`; later ones win.
    pub fn new<'a>(path: &Path, pieces: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut vocabulary = Vocabulary { path: path.into(), pieces: Vec::new(), ids: HashMap::new() };
        pieces.into_iter().for_each(|(piece, id)| vocabulary.insert(piece, id));
        vocabulary
    }

    /// Gives a piece an id, whichever either had before.
    pub fn insert(&mut self, piece: &str, id: u32) {
        if id < MAX_ID {
            let len = self.pieces.len().max(id as usize + 1);
            self.pieces.resize(len, None);
            self.pieces[id as usize] = Some(piece.to_owned());
        }
        self.ids.insert(piece.to_owned(), id);
    }

    /// Adds tokens that have ids.
    pub fn extend(&mut self, tokens: &[AddedToken]) {
        tokens.iter().for_each(|token| self.insert(&token.content, token.id));
    }

    /// The id of a piece.
    pub fn id(&self, piece: &str) -> Option<u32> {
        self.ids.get(piece).copied()
    }

    /// The piece of an id.
    pub fn get(&self, id: u32) -> Option<&str> {
        self.pieces.get(id as usize)?.as_deref()
    }

    /// Different pieces.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// All pieces in the order of their ids.
    pub fn pieces(&self) -> &[Option<String>] {
        &self.pieces
    }

    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of end of sentence, padding and unknown pieces.
    ///
    /// # Errors
    /// `Tokenizer` if one is missing.
    pub fn marks(&self, eos: &str, pad: &str, unk: &str) -> Result<Marks> {
        let find = |piece: &str| {
            let (expected, got) = (format!("the piece {piece:?}"), format!("{} pieces without it", self.count()));
            self.id(piece).ok_or_else(|| Error::Tokenizer { path: self.path.clone(), expected, got })
        };
        Ok(Marks { eos: find(eos)?, pad: find(pad)?, unk: find(unk)? })
    }
}
