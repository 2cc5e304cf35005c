//! SentencePiece models (`.spm`), read natively: text to pieces and back.
//!
//! Follows the SentencePiece library piece for piece: the compiled normalisation rules of the file are applied, not a Unicode
//! library's idea of them, and ties fall the same way.

mod bpe;
mod charsmap;
mod normalizer;
mod pieces;
mod plain;
mod proto;
mod trie;
mod unigram;

use std::fmt;
use std::ops::Range;
use std::path::Path;

use prost::Message;

use crate::{Error, Result, read};
use normalizer::Normalizer;
pub(super) use normalizer::SPACE;
use pieces::{PieceTable, byte_of};
use proto::{ModelProto, PieceKind};
pub(super) use trie::Trie;
use unigram::Unigram;

/// How a model segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelType {
    /// The most probable split under a unigram language model.
    Unigram,
    /// Byte pair encoding.
    Bpe,
    /// Every character is a piece.
    Char,
    /// Every word is a piece.
    Word,
}

impl fmt::Display for ModelType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ModelType::Unigram => "unigram",
            ModelType::Bpe => "bpe",
            ModelType::Char => "char",
            ModelType::Word => "word",
        })
    }
}

/// A stretch of normalised text, in bytes, and its piece; without one it is unknown.
#[derive(Debug)]
struct Segment {
    range: Range<usize>,
    id: Option<u32>,
}

#[derive(Debug)]
enum Segmenter {
    Unigram(Unigram),
    Bpe,
    Char,
    Word,
}

/// A SentencePiece model.
#[derive(Debug)]
pub struct SentencePiece {
    table: PieceTable,
    segmenter: Segmenter,
    /// User-defined symbols: never normalised, never merged.
    verbatim: Trie,
    normalizer: Normalizer,
    denormalizer: Option<Normalizer>,
    byte_fallback: bool,
    unknown_surface: String,
}

impl SentencePiece {
    /// Reads a `.spm` file.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Tokenizer` if it is truncated, malformed, or of a type other than unigram, BPE, word or character.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(&read::bytes(path)?, path)
    }

    /// Reads the contents of a `.spm` file; errors name `path`.
    ///
    /// # Errors
    /// As for [`SentencePiece::open`].
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let error =
            |expected: &str, got: String| Error::Tokenizer { path: path.into(), expected: expected.into(), got };
        let malformed = |(expected, got)| Error::Tokenizer { path: path.into(), expected, got };
        let model = ModelProto::decode(bytes).map_err(|cause| error("a SentencePiece model", cause.to_string()))?;
        // Both are optional in the format, but every trainer writes them, and behind the pieces: a file without them has
        // been cut between two pieces.
        let (Some(trainer), Some(spec)) = (&model.trainer, &model.normalizer) else {
            return Err(error("trainer and normalizer settings", "a model that ends before them".into()));
        };
        let table = PieceTable::new(&model, trainer.byte_fallback()).map_err(malformed)?;
        let segmenter = match trainer.model_type() {
            1 => Segmenter::Unigram(Unigram::new(&table)),
            2 => Segmenter::Bpe,
            3 => Segmenter::Word,
            4 => Segmenter::Char,
            other => return Err(error("a unigram, BPE, word or character model", format!("model type {other}"))),
        };
        let verbatim = table.entries.iter().filter(|entry| entry.kind == PieceKind::UserDefined);
        let verbatim = Trie::new(verbatim.map(|entry| (entry.text.as_bytes(), 0)).collect());
        let normalizer = Normalizer::new(spec, trainer.treat_whitespace_as_suffix()).map_err(malformed)?;
        let denormalizer = model.denormalizer.as_ref().filter(|spec| !spec.charsmap().is_empty());
        let denormalizer = denormalizer.map(|spec| Normalizer::new(spec, false)).transpose().map_err(malformed)?;
        Ok(SentencePiece {
            byte_fallback: trainer.byte_fallback(),
            unknown_surface: trainer.unk_surface().to_owned(),
            table,
            segmenter,
            verbatim,
            normalizer,
            denormalizer,
        })
    }

    /// Splits text into pieces. A run of characters outside the piece table is one piece with that text, or, with byte
    /// fallback, pieces like `<0x0A>`.
    pub fn encode(&self, text: &str) -> Vec<String> {
        self.split(&self.normalizer.normalize(text, &self.verbatim))
    }

    /// The same for text that stands right behind other text: without the space that the model puts in front of a sentence, or behind it.
    pub fn encode_attached(&self, text: &str) -> Vec<String> {
        self.split(&self.normalizer.normalize_attached(text, &self.verbatim))
    }

    /// The pieces of normalised text.
    fn split(&self, text: &str) -> Vec<String> {
        let segments = match &self.segmenter {
            Segmenter::Unigram(unigram) => unigram.segment(&self.table, text),
            Segmenter::Bpe => bpe::segment(&self.table, &self.verbatim, text),
            Segmenter::Char => plain::characters(&self.table, &self.verbatim, text),
            Segmenter::Word => plain::words(&self.table, text),
        };
        let mut pieces: Vec<String> = Vec::with_capacity(segments.len());
        let mut after_unknown = false;
        for Segment { range, id } in segments {
            let part = &text[range];
            match pieces.last_mut() {
                _ if id.is_none() && self.byte_fallback => {
                    pieces.extend(part.bytes().map(|byte| format!("<0x{byte:02X}>")));
                }
                Some(last) if id.is_none() && after_unknown => last.push_str(part),
                _ => pieces.push(part.to_owned()),
            }
            after_unknown = id.is_none();
        }
        pieces
    }

    /// Joins pieces to text. `<unk>` gives the model's surface for it (usually " ⁇ "), control pieces nothing; a piece
    /// that the model does not know is copied as it is.
    pub fn decode<'a>(&self, pieces: impl IntoIterator<Item = &'a str>) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        // Whether a leading space would still be the dummy prefix or, if spaces are trimmed, at the start of the text.
        let mut at_start = self.normalizer.add_dummy_prefix || self.normalizer.remove_extra_whitespaces;
        for piece in pieces {
            let kind = self.table.get(piece).map(|entry| entry.kind);
            if let (Some(PieceKind::Byte), Some(byte)) = (kind, byte_of(piece)) {
                bytes.push(byte);
                continue;
            }
            flush(&mut bytes, &mut text);
            at_start &= text.is_empty();
            let stripped = piece.strip_prefix(SPACE).filter(|_| at_start);
            match kind {
                Some(PieceKind::Control) => continue,
                Some(PieceKind::Unknown) => text.push_str(&self.unknown_surface),
                None => text.push_str(piece),
                Some(_) => text.push_str(&stripped.unwrap_or(piece).replace(SPACE, " ")),
            }
            let prefix_taken = stripped.is_some() && !self.normalizer.remove_extra_whitespaces;
            at_start &= !prefix_taken && text.is_empty();
        }
        flush(&mut bytes, &mut text);
        match &self.denormalizer {
            Some(denormalizer) => denormalizer.normalize(&text, &Trie::new(Vec::new())),
            None => text,
        }
    }

    /// The same model without the space that it puts in front of a text.
    pub(super) fn without_dummy_prefix(mut self) -> Self {
        self.normalizer.add_dummy_prefix = false;
        self
    }

    /// The texts of the pieces, by id.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &str> {
        self.table.entries.iter().map(|entry| entry.text.as_str())
    }

    /// How the model segments.
    pub fn model_type(&self) -> ModelType {
        match self.segmenter {
            Segmenter::Unigram(_) => ModelType::Unigram,
            Segmenter::Bpe => ModelType::Bpe,
            Segmenter::Char => ModelType::Char,
            Segmenter::Word => ModelType::Word,
        }
    }

    /// Pieces in the model's own table, which is not the vocabulary of the translation model.
    pub fn piece_count(&self) -> usize {
        self.table.entries.len()
    }

    /// The name of the normalisation rules, as in `nmt_nfkc`.
    pub fn normalization(&self) -> &str {
        &self.normalizer.name
    }

    /// Whether characters outside the piece table are spelt in bytes.
    pub fn byte_fallback(&self) -> bool {
        self.byte_fallback
    }
}

/// Appends the characters that `bytes` spell, U+FFFD for each byte that spells none.
fn flush(bytes: &mut Vec<u8>, text: &mut String) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
    }
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use super::proto::{NormalizerProto, PieceProto, TrainerProto};
    use super::*;

    /// Expected and got of the error for a model with these settings.
    fn error(model_type: i32, charsmap: &[u8]) -> (String, String) {
        let piece =
            |text: &str, kind| PieceProto { piece: Some(text.into()), score: Some(0.0), kind: Some(kind as i32) };
        let model = ModelProto {
            pieces: vec![piece("<unk>", PieceKind::Unknown), piece("a", PieceKind::Normal)],
            trainer: Some(TrainerProto { model_type: Some(model_type), ..Default::default() }),
            normalizer: Some(NormalizerProto { charsmap: Some(charsmap.to_vec()), ..Default::default() }),
            denormalizer: None,
        };
        match SentencePiece::from_bytes(&model.encode_to_vec(), Path::new("made.spm")) {
            Err(Error::Tokenizer { expected, got, .. }) => (expected, got),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn other_model_types_are_refused() {
        for (model_type, got) in [(5, "model type 5"), (0, "model type 0"), (-1, "model type -1")] {
            assert_eq!(error(model_type, &[]), ("a unigram, BPE, word or character model".into(), got.into()));
        }
    }

    #[test]
    fn a_malformed_character_map_is_refused() {
        let refused = |charsmap: &[u8], expected: &str, got: &str| {
            assert_eq!(error(1, charsmap), (format!("a character map {expected}"), got.into()));
        };
        refused(&[1], "of at least 4 bytes", "1");
        refused(&[3, 0, 0, 0, 1], "whose trie has whole 4-byte units", "3 bytes");
        refused(&[0xff; 4], "whose trie has whole 4-byte units", "4294967295 bytes");
        refused(&[0xfc, 0xff, 0xff, 0xff, 1], "with a trie of 4294967292 bytes", "1");
        refused(&[4, 0, 0, 0, 1, 1, 1, 1], "that ends with a zero byte", "nothing");
        refused(&[4, 0, 0, 0, 1, 1, 1, 1, b'a'], "that ends with a zero byte", "'a'");
    }
}
