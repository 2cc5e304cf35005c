//! Text to token ids and back.
//!
//! [`Tokenizer`] opens whichever tokenizer a Hugging Face model directory has, as `AutoTokenizer` would choose it: Marian's two
//! SentencePiece models with `vocab.json`; `tokenizer.json`; a SentencePiece model with the offset, the language codes and the
//! added tokens of its family; byte-level BPE from `vocab.json` and `merges.txt`; bytes. FSMT's is not read: there a text is token ids.

pub mod added;
mod bytes;
mod class;
mod codes;
mod config;
mod defaults;
#[cfg(feature = "tokenizers")]
mod fast;
mod ids;
pub mod iso;
mod languages;
mod marian;
mod open;
mod pieces;
pub mod sentencepiece;
mod summary;
mod tasks;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use crate::{Error, Result};
pub use defaults::SentenceDefaults;
pub(crate) use defaults::behind;
pub use languages::{Language, Languages, TargetPlace, named_pair};
pub use summary::{SideSummary, Summary};
pub use tasks::Tasks;
use vocabulary::{Marks, Vocabulary};

/// How a text becomes ids, without what stands around a sentence, and back.
trait Encoder: std::fmt::Debug + Send + Sync {
    /// The ids of a text.
    fn encode(&self, text: &str) -> Vec<u32>;
    /// As [`Encoder::encode`], of a text right behind another, where the two can be told apart.
    fn encode_attached(&self, text: &str) -> Vec<u32> {
        self.encode(text)
    }
    /// The tokenizer that it would take to read this text, if this one cannot.
    fn unread(&self, _text: &str) -> Option<&'static str> {
        None
    }
    /// The text of ids; special tokens are left out.
    fn decode(&self, ids: &[u32]) -> String;
    /// What it was made of, without the vocabulary's size.
    fn summary(&self) -> SideSummary;
}

/// The tokenizer of a translation model.
#[derive(Debug)]
pub struct Tokenizer {
    source: Side,
    target: Side,
    around_source: Layout,
    around_target: Layout,
    around_labels: Layout,
    languages: Option<Languages>,
    tasks: Tasks,
    defaults: SentenceDefaults,
}

/// The tokenizer of one language.
#[derive(Clone, Debug)]
struct Side {
    encoder: Arc<dyn Encoder>,
    vocabulary: Arc<Vocabulary>,
    marks: Marks,
}

/// What stands before and behind a sentence.
#[derive(Clone, Debug, Default)]
struct Layout {
    prefix: Vec<Slot>,
    suffix: Vec<Slot>,
    /// A token that the text may end with already, which is then not added.
    once: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Id(u32),
    /// The language's token, if one is said.
    Language,
}

impl Layout {
    fn around(&self, mut ids: Vec<u32>, language: Option<u32>) -> Vec<u32> {
        let fill = |slots: &[Slot]| -> Vec<u32> {
            let id = |slot: &Slot| if let Slot::Id(id) = slot { Some(*id) } else { language };
            slots.iter().filter_map(id).collect()
        };
        let mut suffix = fill(&self.suffix);
        if self.once.is_some() && ids.last() == self.once.as_ref() && suffix.first() == self.once.as_ref() {
            suffix.remove(0);
        }
        ids.splice(0..0, fill(&self.prefix));
        ids.extend(suffix);
        ids
    }
}

impl Tokenizer {
    /// Opens the tokenizer files of a model directory.
    ///
    /// `tokenizer_class` in `tokenizer_config.json` or `config.json`, else `model_type`, says which family's it is; Marian's where
    /// neither does. That needs `source.spm`, `target.spm`, and either one `vocab.json` for both languages, or, when
    /// `tokenizer_config.json` sets `separate_vocabs`, the target's in `target_vocab.json`. A directory with `source_vocab.json` and
    /// `target_vocab.json` but no `vocab.json` is read as separate, too. Added tokens and the names of special ones come from
    /// `tokenizer_config.json`, `added_tokens.json` and `special_tokens_map.json`, which need not exist.
    ///
    /// # Errors
    /// `Io` for a file that is missing or unreadable, `LfsPointer` for one that Git LFS has not fetched, `Json` for one that is not
    /// JSON, `Config` for a wrong setting, and `Tokenizer` for malformed contents.
    pub fn open(dir: &Path) -> Result<Self> {
        open::open(dir)
    }

    /// The ids of a source text with what stands around it, such as the end of sentence; a blank text gives just that. Prefix and
    /// languages are the tokenizer's defaults, see [`Tokenizer::set_defaults`].
    ///
    /// Added tokens are found in the text first; for Marian only those that are not special. A language token in front, as in
    /// `>>fra<<` for multilingual Marian models, is one token. As in the reference implementations pieces are looked up in the
    /// whole vocabulary: characters unknown to the SentencePiece model that happen to spell a special token become that token.
    pub fn encode_source(&self, text: &str) -> Vec<u32> {
        let languages = self.languages.as_ref();
        let text = behind(self.defaults.source_prefix.as_deref(), text);
        self.encode_source_as(&text, languages.and_then(|l| l.source), languages.and_then(|l| l.target))
    }

    /// Refuses a text that cannot be tokenized: one that is not token ids, where the model's own tokenizer is not read.
    ///
    /// # Errors
    /// `Input`, which names that tokenizer.
    pub fn check_text(&self, text: &str) -> Result<()> {
        match self.source.encoder.unread(text) {
            None => Ok(()),
            Some(tokenizer) => {
                let expected = format!("token ids, as source_ids or in decimal: {tokenizer}");
                Err(Error::Input { operation: "tokenize", expected, got: format!("{text:?}") })
            }
        }
    }

    /// As [`Tokenizer::encode_source`], from and to these languages, of [`Languages::all`], and without a prefix.
    pub fn encode_source_as(&self, text: &str, source: Option<u32>, target: Option<u32>) -> Vec<u32> {
        let ids = match self.source_token(target) {
            Some(token) => self.source.encoder.encode(&format!("{token} {text}")),
            None => self.source.encoder.encode(text),
        };
        self.around_source.around(ids, source)
    }

    /// The token that goes in front of a source to say its target language.
    fn source_token(&self, target: Option<u32>) -> Option<&str> {
        let languages = self.languages.as_ref().filter(|languages| languages.place == TargetPlace::Source)?;
        Some(&languages.with_id(target?)?.token)
    }

    /// Whether these ids are those of a blank source: what stands around a sentence, and nothing else.
    pub fn is_blank(&self, source_ids: &[u32]) -> bool {
        let Layout { prefix, suffix, .. } = &self.around_source;
        let fixed = prefix.iter().chain(suffix).filter(|slot| **slot != Slot::Language).count();
        // The language's token is there only if a language was said.
        let is_language = |slots: &[Slot], id: Option<&u32>| {
            let language = self.languages.as_ref().zip(id).and_then(|(languages, id)| languages.with_id(*id));
            slots.contains(&Slot::Language) && language.is_some()
        };
        let said = is_language(prefix, source_ids.first()) || is_language(suffix, source_ids.last());
        source_ids.len() <= fixed + usize::from(said)
    }

    /// How many ids stand behind a source's text.
    pub fn source_suffix_len(&self) -> usize {
        self.around_source.suffix.len()
    }

    /// The ids of a target text as the decoder generates them, end of sentence included, in the tokenizer's default target language.
    pub fn encode_target(&self, text: &str) -> Vec<u32> {
        self.encode_target_as(text, self.languages.as_ref().and_then(|languages| languages.target))
    }

    /// The ids of a text as it stands in a target, behind a space or, if `attached`, right behind other text: with nothing around it.
    pub fn encode_within_target(&self, text: &str, attached: bool) -> Vec<u32> {
        match attached {
            true => self.target.encoder.encode_attached(text),
            false => self.target.encoder.encode(text),
        }
    }

    /// As [`Tokenizer::encode_target`] in this language, whose token is the first where it is generated
    /// ([`TargetPlace::FirstToken`]).
    pub fn encode_target_as(&self, text: &str, language: Option<u32>) -> Vec<u32> {
        self.around_target.around(self.target.encoder.encode(text), language)
    }

    /// The ids of a target text as transformers has them for labels, which some families end with the language's token.
    pub fn labels(&self, text: &str, language: Option<u32>) -> Vec<u32> {
        self.around_labels.around(self.target.encoder.encode(text), language)
    }

    /// The text of target ids. Special tokens, such as end of sentence and padding, are dropped wherever they stand; for Marian an
    /// unknown id, or one without a piece, gives " ⁇ ", for the others nothing, as in transformers.
    pub fn detokenize(&self, ids: &[u32]) -> String {
        self.target.encoder.decode(ids)
    }

    /// The languages of a multilingual model.
    pub fn languages(&self) -> Option<&Languages> {
        self.languages.as_ref()
    }

    /// The tasks that a model is told in front of a text.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The piece of a source id; the unknown piece for an id without one.
    pub fn source_piece(&self, id: u32) -> &str {
        self.source.piece(id)
    }

    /// The piece of a target id; the unknown piece for an id without one.
    pub fn target_piece(&self, id: u32) -> &str {
        self.target.piece(id)
    }

    /// One more than the largest source id that has a piece. A model may have fewer rows, or more.
    pub fn source_vocab_size(&self) -> usize {
        self.source.vocabulary.pieces().len()
    }

    /// One more than the largest target id that has a piece. A model may have fewer rows, or more.
    pub fn target_vocab_size(&self) -> usize {
        self.target.vocabulary.pieces().len()
    }

    /// The target id that ends a sentence.
    pub fn eos_id(&self) -> u32 {
        self.target.marks.eos
    }

    /// The target id that fills up batches.
    pub fn pad_id(&self) -> u32 {
        self.target.marks.pad
    }

    /// The target id that stands for pieces outside the vocabulary.
    pub fn unk_id(&self) -> u32 {
        self.target.marks.unk
    }

    /// A hash over the target pieces in the order of their ids (64-bit FNV-1a, each piece ended by a 0xFF byte, an id without one
    /// being an empty piece). Two models can be combined if their ids mean the same; see [`Tokenizer::first_difference`].
    pub fn piece_table_hash(&self) -> u64 {
        let ended =
            |piece: &Option<String>| piece.iter().flat_map(|piece| piece.bytes()).chain([0xff]).collect::<Vec<_>>();
        let bytes = self.target.vocabulary.pieces().iter().flat_map(ended);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
    }

    /// The first target id that means different pieces in the two models, in words.
    pub fn first_difference(&self, other: &Tokenizer) -> Option<String> {
        let (ours, theirs) = (&self.target.vocabulary, &other.target.vocabulary);
        let size = ours.pieces().len().max(theirs.pieces().len()) as u32;
        let id = (0..size).find(|id| ours.get(*id) != theirs.get(*id))?;
        let describe = |vocabulary: &Vocabulary| {
            let piece = vocabulary.get(id).map_or("not in use".to_owned(), |piece| format!("{piece:?}"));
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
    fn piece(&self, id: u32) -> &str {
        self.vocabulary.get(id).or_else(|| self.vocabulary.get(self.marks.unk)).unwrap_or_default()
    }
}
