//! A tokenizer in numbers, for display.

use std::fmt;

use serde::Serialize;

use super::sentencepiece::SentencePiece;
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
    /// The tokens of the languages that a multilingual model knows, as in `>>fra<<`.
    pub language_tokens: Vec<String>,
    /// The names of the tasks that a model is told in front of a text, and what it is told.
    pub tasks: Vec<(String, String)>,
}

/// What one language's tokenizer was loaded from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SideSummary {
    /// `unigram`, `bpe`, another kind that a `tokenizer.json` has, or `bytes`.
    pub model_type: String,
    /// The name of the SentencePiece model's normalisation rules; empty for others.
    pub normalization: String,
    /// Whether characters outside the piece table are spelt in bytes.
    pub byte_fallback: bool,
    /// Pieces of that model, without added tokens.
    pub model_pieces: usize,
    /// Pieces of the vocabulary: one more than the largest id.
    pub vocab_size: usize,
}

impl Summary {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let special = [tokenizer.eos_id(), tokenizer.pad_id(), tokenizer.unk_id()];
        let languages = tokenizer.languages.iter().flat_map(|languages| languages.all());
        let side = |side: &Side| SideSummary { vocab_size: side.vocabulary.pieces().len(), ..side.encoder.summary() };
        Summary {
            source: side(&tokenizer.source),
            target: side(&tokenizer.target),
            shared_vocabulary: tokenizer.source.vocabulary.path() == tokenizer.target.vocabulary.path(),
            special_tokens: special.map(|id| (tokenizer.target_piece(id).to_owned(), id)).to_vec(),
            tasks: tokenizer.tasks.all().map(|(name, prefix)| (name.to_owned(), prefix.to_owned())).collect(),
            language_tokens: languages.map(|language| language.token.clone()).collect(),
        }
    }
}

impl SideSummary {
    /// Of a SentencePiece model.
    pub(super) fn of_model(model: &SentencePiece) -> Self {
        SideSummary {
            model_type: model.model_type().to_string(),
            normalization: model.normalization().to_owned(),
            byte_fallback: model.byte_fallback(),
            model_pieces: model.piece_count(),
            vocab_size: 0,
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
        for (name, prefix) in &self.tasks {
            write!(f, "\ntask: {name}, prefix {prefix:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for SideSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fallback = if self.byte_fallback { ", byte fallback" } else { "" };
        write!(f, "{}, {} pieces", self.model_type, self.model_pieces)?;
        match self.normalization.as_str() {
            "" => Ok(()),
            rules => write!(f, ", normalisation {rules}{fallback}"),
        }
    }
}
