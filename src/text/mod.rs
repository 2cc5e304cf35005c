//! Text to token ids and back.
//!
//! [`Tokenizer`] reads the tokenizer files of a Hugging Face Marian directory: two SentencePiece models split text into
//! pieces, and `vocab.json` gives the pieces the ids that the translation model knows.

pub mod sentencepiece;
mod summary;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::{Error, Result};
use sentencepiece::SentencePiece;
pub use summary::{SideSummary, Summary};
use vocabulary::{SpecialTokens, Vocabulary};

const CONFIG_FILE: &str = "tokenizer_config.json";

/// The tokenizer of a translation model.
#[derive(Debug)]
pub struct Tokenizer {
    source: Side,
    target: Side,
}

/// The tokenizer of one language.
#[derive(Debug)]
struct Side {
    model: SentencePiece,
    vocabulary: Arc<Vocabulary>,
}

impl Tokenizer {
    /// Opens the tokenizer files of a model directory: `source.spm`, `target.spm`, and either one `vocab.json` for both
    /// languages, or, when `tokenizer_config.json` sets `separate_vocabs`, the target's in `target_vocab.json`. A directory
    /// with `source_vocab.json` and `target_vocab.json` but no `vocab.json` is read as separate, too. The names of
    /// `</s>`, `<pad>` and `<unk>` can be changed in `tokenizer_config.json`, which need not exist.
    ///
    /// # Errors
    /// `Io` for a file that is missing or unreadable, `Json` for one that is not JSON, `Config` for a wrong setting, and
    /// `Tokenizer` for malformed contents.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = Config::open(&dir.join(CONFIG_FILE))?;
        let vocabulary = |name: &str| Vocabulary::open(&dir.join(name), &config.special).map(Arc::new);
        let exists = |name: &str| dir.join(name).exists();
        let (source, target) = if !exists("vocab.json") && exists("source_vocab.json") {
            (vocabulary("source_vocab.json")?, vocabulary("target_vocab.json")?)
        } else if config.separate_vocabularies {
            (vocabulary("vocab.json")?, vocabulary("target_vocab.json")?)
        } else {
            let shared = vocabulary("vocab.json")?;
            (Arc::clone(&shared), shared)
        };
        let side = |name: &str, vocabulary| Ok(Side { model: SentencePiece::open(&dir.join(name))?, vocabulary });
        Ok(Tokenizer { source: side("source.spm", source)?, target: side("target.spm", target)? })
    }

    /// The ids of a source text, end of sentence included; a blank text gives just that.
    ///
    /// A language token in front, as in `>>fra<<` for multilingual models, is one token. As in the reference implementations
    /// pieces are looked up in the whole vocabulary: characters unknown to the SentencePiece model that happen to
    /// spell a special token become that token.
    pub fn encode_source(&self, text: &str) -> Vec<u32> {
        self.source.encode(text)
    }

    /// The ids of a target text, end of sentence included; as [`Tokenizer::encode_source`], with the target's files.
    pub fn encode_target(&self, text: &str) -> Vec<u32> {
        self.target.encode(text)
    }

    /// The ids of a target text that stands right behind another one, without the space that sentences are begun with; end of sentence
    /// included.
    pub fn encode_attached_target(&self, text: &str) -> Vec<u32> {
        let Side { model, vocabulary } = &self.target;
        let pieces = model.encode_attached(text);
        pieces.iter().map(|piece| vocabulary.id(piece)).chain([vocabulary.eos]).collect()
    }

    /// The text of target ids. End of sentence and padding are dropped wherever they stand; an unknown id gives " ⁇ ".
    pub fn detokenize(&self, ids: &[u32]) -> String {
        let Side { model, vocabulary } = &self.target;
        let text_ids = ids.iter().filter(|id| **id != vocabulary.eos && **id != vocabulary.pad);
        model.decode(text_ids.map(|id| vocabulary.piece(*id)))
    }

    /// The piece of a source id; the unknown piece for an id outside the vocabulary.
    pub fn source_piece(&self, id: u32) -> &str {
        self.source.vocabulary.piece(id)
    }

    /// The piece of a target id; the unknown piece for an id outside the vocabulary.
    pub fn target_piece(&self, id: u32) -> &str {
        self.target.vocabulary.piece(id)
    }

    /// Source ids are below this.
    pub fn source_vocab_size(&self) -> usize {
        self.source.vocabulary.pieces().len()
    }

    /// Target ids are below this.
    pub fn target_vocab_size(&self) -> usize {
        self.target.vocabulary.pieces().len()
    }

    /// The target id that ends a sentence.
    pub fn eos_id(&self) -> u32 {
        self.target.vocabulary.eos
    }

    /// The target id that fills up batches.
    pub fn pad_id(&self) -> u32 {
        self.target.vocabulary.pad
    }

    /// The target id that stands for pieces outside the vocabulary.
    pub fn unk_id(&self) -> u32 {
        self.target.vocabulary.unk
    }

    /// A hash over the target pieces in the order of their ids (64-bit FNV-1a, each piece ended by a 0xFF byte). Two models
    /// can be combined if their ids mean the same; see [`Tokenizer::first_difference`].
    pub fn piece_table_hash(&self) -> u64 {
        let ended = |piece: &'_ String| piece.bytes().chain([0xff]).collect::<Vec<_>>();
        let bytes = self.target.vocabulary.pieces().iter().flat_map(ended);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// The first target id that means different pieces in the two models, in words.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<String> {
        let (ours, theirs) = (&self.target.vocabulary, &other.target.vocabulary);
        let size = ours.pieces().len().max(theirs.pieces().len());
        let id = (0..size).find(|id| ours.pieces().get(*id) != theirs.pieces().get(*id))?;
        let describe = |vocabulary: &Vocabulary| {
            let piece = vocabulary.pieces().get(id).map_or("not in use".to_owned(), |piece| format!("{piece:?}"));
            format!("{piece} in {}", vocabulary.path().display())
        };
        Some(format!("id {id} is {}, {}", describe(ours), describe(theirs)))
    }

    /// What was loaded, for display.
    pub fn summary(&self) -> Summary {
        Summary::new(self)
    }
}

impl Side {
    fn encode(&self, text: &str) -> Vec<u32> {
        let (language, text) = split_language_token(text);
        let mut ids: Vec<u32> = language.map(|token| self.vocabulary.id(token)).into_iter().collect();
        ids.extend(self.model.encode(text).iter().map(|piece| self.vocabulary.id(piece)));
        ids.push(self.vocabulary.eos);
        ids
    }
}

/// Takes a language token like `>>fra<<` off the start of a text. As in Hugging Face's Marian tokenizer it ends at the first
/// `<<`, whatever stands in between, and need not be in the vocabulary.
fn split_language_token(text: &str) -> (Option<&str>, &str) {
    match text.find("<<").and_then(|end| text.split_at_checked(end + 2)) {
        Some((token, rest)) if token.starts_with(">>") => (Some(token), rest),
        _ => (None, text),
    }
}

/// What `tokenizer_config.json` says.
struct Config {
    separate_vocabularies: bool,
    special: SpecialTokens,
}

impl Config {
    /// Reads the file; where there is none all settings have their defaults.
    fn open(path: &Path) -> Result<Self> {
        let json = if path.exists() { read_json(path)? } else { Value::Object(Default::default()) };
        let error = |field: &str, expected: &str, got: &Value| Error::Config {
            path: path.into(),
            field: field.into(),
            expected: expected.into(),
            got: got.to_string(),
        };
        if !json.is_object() {
            return Err(error("settings", "a json object", &json));
        }
        let separate_vocabularies = match &json["separate_vocabs"] {
            Value::Null => false,
            Value::Bool(separate) => *separate,
            other => return Err(error("separate_vocabs", "true or false", other)),
        };
        // A token is a string, or an object with its text and how to strip spaces around it.
        let token = |field: &str, default: &str| match &json[field] {
            Value::Null => Ok(default.to_owned()),
            Value::String(token) => Ok(token.clone()),
            other => match &other["content"] {
                Value::String(token) => Ok(token.clone()),
                _ => Err(error(field, "a token", other)),
            },
        };
        let (eos, pad, unk) = (token("eos_token", "</s>")?, token("pad_token", "<pad>")?, token("unk_token", "<unk>")?);
        Ok(Config { separate_vocabularies, special: SpecialTokens { eos, pad, unk } })
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { operation: "read", path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.into(), source })
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
