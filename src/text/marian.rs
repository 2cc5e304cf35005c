//! Marian's tokenizer: a SentencePiece model for each language, and the vocabulary's ids.

use std::sync::Arc;

use super::added::{AddedToken, AddedTokens, Part};
use super::sentencepiece::SentencePiece;
use super::vocabulary::{Marks, Vocabulary};
use super::{Encoder, SideSummary};

/// The tokenizer of one language.
#[derive(Debug)]
pub(super) struct Marian {
    pub model: SentencePiece,
    pub vocabulary: Arc<Vocabulary>,
    pub added: AddedTokens,
    pub marks: Marks,
}

impl Marian {
    /// Of the added tokens the special ones stay text, as everything does that the vocabulary has and SentencePiece does not make.
    pub fn new(model: SentencePiece, vocabulary: Arc<Vocabulary>, added: &[AddedToken], marks: Marks) -> Self {
        let added = AddedTokens::new(added.to_vec(), |token| !token.special);
        Marian { model, vocabulary, added, marks }
    }

    fn id(&self, piece: &str) -> u32 {
        self.vocabulary.id(piece).unwrap_or(self.marks.unk)
    }

    fn piece(&self, id: u32) -> &str {
        self.vocabulary.get(id).or_else(|| self.vocabulary.get(self.marks.unk)).unwrap_or_default()
    }
}

impl Encoder for Marian {
    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for part in self.added.split(text) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => {
                    let (language, text) = split_language_token(&text);
                    ids.extend(language.map(|token| self.id(token)));
                    ids.extend(self.model.encode(text).iter().map(|piece| self.id(piece)));
                }
            }
        }
        ids
    }

    fn encode_attached(&self, text: &str) -> Vec<u32> {
        self.model.encode_attached(text).iter().map(|piece| self.id(piece)).collect()
    }

    fn decode(&self, ids: &[u32]) -> String {
        let is_added = |id: u32| self.added.with_id(id).filter(|token| !is_mark(self.marks, token.id));
        let kept = ids.iter().copied().filter(|id| *id != self.marks.eos && *id != self.marks.pad);
        let kept: Vec<u32> = kept.filter(|id| is_added(*id).is_none_or(|token| !token.special)).collect();
        if !kept.iter().any(|id| is_added(*id).is_some()) {
            return self.model.decode(kept.iter().map(|id| self.piece(*id)));
        }
        let mut texts: Vec<String> = Vec::new();
        for run in kept.chunk_by(|a, b| is_added(*a).is_none() && is_added(*b).is_none()) {
            texts.push(match is_added(run[0]) {
                Some(token) => token.content.clone(),
                None => self.model.decode(run.iter().map(|id| self.piece(*id))).trim().to_owned(),
            });
        }
        texts.retain(|text| !text.is_empty());
        texts.join(" ")
    }

    fn summary(&self) -> SideSummary {
        SideSummary::of_model(&self.model)
    }
}

fn is_mark(marks: Marks, id: u32) -> bool {
    [marks.eos, marks.pad, marks.unk].contains(&id)
}

/// Takes a language token like `>>fra<<` off the start of a text. As in Hugging Face's Marian tokenizer it ends at the first
/// `<<`, whatever stands in between, and need not be in the vocabulary.
fn split_language_token(text: &str) -> (Option<&str>, &str) {
    match text.find("<<").and_then(|end| text.split_at_checked(end + 2)) {
        Some((token, rest)) if token.starts_with(">>") => (Some(token), rest),
        _ => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_token_ends_at_the_first_brackets() {
        assert_eq!(split_language_token(">>fra<< Hello"), (Some(">>fra<<"), " Hello"));
        assert_eq!(split_language_token(">>a b<<c<<"), (Some(">>a b<<"), "c<<"));
        assert_eq!(split_language_token(">><<"), (Some(">><<"), ""));
        for text in ["", ">>", ">>fra", " >>fra<< Hello", "<<>>fra<<", "a << b", ">", "ä>>fra<<"] {
            assert_eq!(split_language_token(text), (None, text));
        }
    }
}
