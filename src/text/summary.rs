//! A tokenizer in numbers, for display.

use std::fmt;

use serde::Serialize;

use super::{Side, Tokenizer};

/// What a tokenizer was loaded from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The source language's files.
    pub source: SideSummary,
    /// The target language's files.
    pub target: SideSummary,
    /// Whether both languages use one vocabulary.
    pub shared_vocabulary: bool,
    /// The target ids of the special tokens, by piece.
    pub special_tokens: Vec<(String, u32)>,
    /// The source vocabulary's language tokens, as in `>>fra<<`.
    pub language_tokens: Vec<String>,
}

/// What one language's tokenizer was loaded from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SideSummary {
    /// `unigram` or `bpe`.
    pub model_type: String,
    /// The name of the SentencePiece model's normalisation rules.
    pub normalization: String,
    /// Whether characters outside the piece table are spelt in bytes.
    pub byte_fallback: bool,
    /// Pieces of the SentencePiece model.
    pub model_pieces: usize,
    /// Pieces of the vocabulary: one more than the largest id.
    pub vocab_size: usize,
}

impl Summary {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let special = [tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.unk_id()];
        let source_pieces = tokenizer.source.vocabulary.pieces();
        let is_language = |piece: &&String| piece.starts_with(">>") && piece.ends_with("<<");
        Summary {
            source: SideSummary::new(&tokenizer.source),
            target: SideSummary::new(&tokenizer.target),
            shared_vocabulary: tokenizer.source.vocabulary.path() == tokenizer.target.vocabulary.path(),
            special_tokens: special.map(|id| (tokenizer.target_piece(id).to_owned(), id)).to_vec(),
            language_tokens: source_pieces.iter().filter(is_language).cloned().collect(),
        }
    }
}

impl SideSummary {
    fn new(side: &Side) -> Self {
        SideSummary {
            model_type: side.model.model_type().to_string(),
            normalization: side.model.normalization().to_owned(),
            byte_fallback: side.model.byte_fallback(),
            model_pieces: side.model.piece_count(),
            vocab_size: side.vocabulary.pieces().len(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "source tokenizer: {}", self.source)?;
        writeln!(f, "target tokenizer: {}", self.target)?;
        let shared = if self.shared_vocabulary { "shared" } else { "separate" };
        let (source, target) = (self.source.vocab_size, self.target.vocab_size);
        writeln!(f, "vocabulary: {shared}, {source} source pieces, {target} target pieces")?;
        let special: Vec<_> = self.special_tokens.iter().map(|(piece, id)| format!("{piece} {id}")).collect();
        write!(f, "special tokens: {}", special.join(", "))?;
        if !self.language_tokens.is_empty() {
            write!(f, "\nlanguage tokens: {}", self.language_tokens.join(" "))?;
        }
        Ok(())
    }
}

impl fmt::Display for SideSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fallback = if self.byte_fallback { ", byte fallback" } else { "" };
        write!(f, "{}, {} pieces, normalisation {}{fallback}", self.model_type, self.model_pieces, self.normalization)
    }
}
