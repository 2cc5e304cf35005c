//! A SentencePiece model wrapped for the other families: an offset, language codes, added tokens.
//!
//! Follows transformers' tokenizers without a `Fast` in their names, which read the same file.

use std::collections::HashSet;
use std::sync::Arc;

use super::added::{AddedTokens, Part};
use super::sentencepiece::{SPACE, SentencePiece};
use super::vocabulary::Vocabulary;
use super::{Encoder, SideSummary};

/// How pieces become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joining {
    /// One after the other, U+2581 as a space.
    Plain,
    /// As SentencePiece does.
    Model,
    /// The same, without the space in front that stands for a word's beginning.
    ModelWithPrefix,
}

/// A SentencePiece model and the ids that a family gives its pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    pub model: SentencePiece,
    pub vocabulary: Arc<Vocabulary>,
    pub added: AddedTokens,
    pub unk: u32,
    /// Ids that are left out of a text.
    pub special: HashSet<u32>,
    pub joining: Joining,
    /// What stands for T5's `legacy: false`: text behind an added token is not taken for a word's beginning.
    pub continues: Option<Continues>,
}

/// How text goes on behind an added token, with a model that puts no space in front.
#[derive(Debug)]
pub(super) struct Continues {
    /// Whether the whole text begins with a word.
    pub prefix_space: bool,
    /// A text in front of which spaces survive.
    pub guard: String,
}

impl Pieces {
    fn pieces(&self, text: &str) -> Vec<String> {
        match &self.continues {
            Some(Continues { guard, .. }) if text.starts_with([' ', '\u{2581}']) => {
                let guarded = self.model.encode(guard).len();
                let mut pieces = self.model.encode(&format!("{guard}{text}"));
                if pieces.len() >= guarded {
                    pieces.drain(..guarded);
                }
                pieces
            }
            _ => self.model.encode(text),
        }
    }

    fn id(&self, piece: &str) -> u32 {
        let added = self.added.named(piece).map(|token| token.id);
        added.or_else(|| self.vocabulary.id(piece)).unwrap_or(self.unk)
    }

    fn join(&self, pieces: &[&str]) -> String {
        let text = match (self.joining, pieces) {
            (Joining::Plain, _) => pieces.concat().replace(SPACE, " "),
            (Joining::ModelWithPrefix, [first, rest @ ..]) if first.starts_with(SPACE) => {
                let first = &first[SPACE.len()..];
                let first = (!first.is_empty()).then_some(first);
                self.model.decode(first.into_iter().chain(rest.iter().copied()))
            }
            _ => self.model.decode(pieces.iter().copied()),
        };
        text.trim().to_owned()
    }
}

impl Encoder for Pieces {
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut prepared = None;
        if let Some(continues) = self.continues.as_ref().filter(|_| !text.is_empty()) {
            let plain = text.replace(SPACE, " ");
            prepared = Some(if continues.prefix_space { format!("{SPACE}{plain}") } else { plain });
        }
        let mut ids = Vec::new();
        for (i, part) in self.added.split(prepared.as_deref().unwrap_or(text)).into_iter().enumerate() {
            match part {
                Part::Token(id) => {
                    // In front of a special token the space that begins a text is none.
                    let begins = i == 1 && prepared.is_some() && self.special.contains(&id);
                    if begins && ids.len() == 1 && self.vocabulary.id(SPACE) == Some(ids[0]) {
                        ids.clear();
                    }
                    ids.push(id);
                }
                Part::Text(text) => ids.extend(self.pieces(&text).iter().map(|piece| self.id(piece))),
            }
        }
        ids
    }

    fn decode(&self, ids: &[u32]) -> String {
        let unknown = self.vocabulary.get(self.unk).unwrap_or_default();
        let (mut texts, mut run): (Vec<String>, Vec<&str>) = (Vec::new(), Vec::new());
        let flush = |run: &mut Vec<&str>, texts: &mut Vec<String>| {
            let text = if run.is_empty() { String::new() } else { self.join(run) };
            texts.extend((!text.is_empty()).then_some(text));
            run.clear();
        };
        for id in ids.iter().filter(|id| !self.special.contains(id)) {
            match self.added.with_id(*id) {
                Some(token) => {
                    flush(&mut run, &mut texts);
                    texts.push(token.content.clone());
                }
                // An id without a piece is as good as an unknown one, which is left out.
                None => run.extend(self.vocabulary.get(*id).filter(|piece| *piece != unknown)),
            }
        }
        flush(&mut run, &mut texts);
        texts.join(" ")
    }

    fn summary(&self) -> SideSummary {
        SideSummary::of_model(&self.model)
    }
}
