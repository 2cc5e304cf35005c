//! Opening the tokenizer of a model directory.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::added::{AddedToken, AddedTokens};
use super::bytes::{self, Bytes};
use super::class::{Class, Mark, Source};
use super::config::TokenizerConfig;
use super::defaults::SentenceDefaults;
use super::ids::{self, Ids};
use super::languages::{Language, Languages, TargetPlace};
use super::marian::Marian;
use super::pieces::{Continues, Joining, Pieces};
use super::sentencepiece::SentencePiece;
use super::tasks::Tasks;
use super::vocabulary::{Marks, Vocabulary};
use super::{Layout, Side, Slot, Tokenizer};
use crate::{Error, Result, read};

/// Opens the tokenizer files of a directory.
pub(super) fn open(dir: &Path) -> Result<Tokenizer> {
    let mut config = TokenizerConfig::open(dir)?;
    let class = Class::of(dir, &config)?;
    class.complete(&mut config);
    let opener = Opener { dir, class, config };
    match class.source(dir)? {
        Source::Marian => opener.marian(),
        Source::Pieces(path) => opener.pieces(&path),
        Source::Bytes => opener.bytes(),
        Source::Ids => opener.ids(),
        #[cfg(feature = "tokenizers")]
        Source::File(path) => opener.fast(super::fast::Fast::open(&path, &opener.config, class == Class::File)?),
        #[cfg(feature = "tokenizers")]
        Source::Merges => opener.fast(super::fast::Fast::from_merges(dir, &opener.config)?),
        #[cfg(not(feature = "tokenizers"))]
        Source::File(_) | Source::Merges => unreachable!("they are not chosen without the feature"),
    }
}

struct Opener<'a> {
    dir: &'a Path,
    class: Class,
    config: TokenizerConfig,
}

impl Opener<'_> {
    /// The name of a special token.
    fn name(&self, field: &str) -> Result<String> {
        self.config.token(field)?.ok_or_else(|| Error::Config {
            path: self.dir.join("tokenizer_config.json"),
            field: field.into(),
            expected: "a token".into(),
            got: "nothing".into(),
        })
    }

    fn marks(&self, vocabulary: &Vocabulary) -> Result<Marks> {
        vocabulary.marks(&self.name("eos_token")?, &self.name("pad_token")?, &self.name("unk_token")?)
    }

    /// The added tokens: those of the class, of the files, which win, and the special ones that are not among them, which get the
    /// ids that they have as pieces, or new ones. The vocabulary takes them in.
    fn added(&self, vocabulary: &mut Vocabulary, pieces: usize) -> Result<Vec<AddedToken>> {
        let mut added = self.class.added(&self.config, pieces)?;
        let own = self.config.added.iter();
        match self.class {
            // The class has its way.
            Class::Pegasus => {
                added.extend(own.filter(|token| token.id as usize >= added.len()).cloned().collect::<Vec<_>>())
            }
            // With a vocabulary for each language the files have the ids of one of them: each keeps its own.
            Class::Marian => added.extend(own.map(|token| {
                let id = vocabulary.id(&token.content).unwrap_or(token.id);
                AddedToken { id, ..token.clone() }
            })),
            _ => {
                added.retain(|token| self.config.added.iter().all(|own| own.id != token.id));
                added.extend(own.cloned());
            }
        }
        vocabulary.extend(&added);
        let mut next = vocabulary.count() as u32;
        for token in self.config.special_tokens()? {
            if added.iter().any(|other| other.content == token.content) {
                continue;
            }
            let id = vocabulary.id(&token.content).unwrap_or(next);
            next += u32::from(id == next);
            added.push(AddedToken { id, ..token });
        }
        vocabulary.extend(&added);
        Ok(added)
    }

    /// Ids that are left out of a text.
    fn special(&self, added: &[AddedToken]) -> Result<HashSet<u32>> {
        let named = self.config.special_tokens()?;
        let is_special =
            |token: &&AddedToken| token.special || named.iter().any(|other| other.content == token.content);
        Ok(added.iter().filter(is_special).map(|token| token.id).collect())
    }

    fn marian(&self) -> Result<Tokenizer> {
        let exists = |name: &str| self.dir.join(name).exists();
        let separate = self.config.flag("separate_vocabs", false)?;
        let open = |name: &str| -> Result<(Arc<Vocabulary>, Vec<AddedToken>, Marks)> {
            let mut vocabulary = Vocabulary::open(&self.dir.join(name))?;
            // In transformers a missing end of sentence is made up; none of these models is right without one.
            let marks = self.marks(&vocabulary)?;
            let added = self.added(&mut vocabulary, 0)?;
            Ok((Arc::new(vocabulary), added, marks))
        };
        let (source, target) = if !exists("vocab.json") && exists("source_vocab.json") {
            (open("source_vocab.json")?, open("target_vocab.json")?)
        } else if separate {
            (open("vocab.json")?, open("target_vocab.json")?)
        } else {
            let shared = open("vocab.json")?;
            (shared.clone(), shared)
        };
        let side =
            |name: &str, (vocabulary, added, marks): (Arc<Vocabulary>, Vec<AddedToken>, Marks)| -> Result<Side> {
                let model = SentencePiece::open(&self.dir.join(name))?;
                let encoder = Arc::new(Marian::new(model, Arc::clone(&vocabulary), &added, marks));
                Ok(Side { encoder, vocabulary, marks })
            };
        self.tokenizer(side("source.spm", source)?, side("target.spm", target)?, None)
    }

    fn pieces(&self, path: &Path) -> Result<Tokenizer> {
        let mut model = SentencePiece::open(path)?;
        let (count, offset) = (model.piece_count(), self.class.offset(&self.config));
        let mut vocabulary = match self.class {
            Class::M2m100 => Vocabulary::open(&self.dir.join("vocab.json"))?,
            _ => {
                let pieces = model.pieces().zip(0u32..);
                // Where fairseq's four tokens stand in front, the model's own unknown piece has no id.
                let known = pieces.filter(|(piece, id)| offset != 1 || (*id != 0 && !piece.is_empty()));
                Vocabulary::new(path, known.map(|(piece, id)| (piece, id + offset)))
            }
        };
        if offset == 1 {
            for (piece, id) in ["<s>", "<pad>", "</s>", "<unk>"].into_iter().zip(0..) {
                vocabulary.insert(piece, id);
            }
        }
        // NLLB's codes are ordinary added tokens, the others' have fixed places.
        let mut place = if self.class == Class::M2m100 { vocabulary.count() } else { count + offset as usize } as u32;
        if ![Class::Nllb, Class::T5, Class::Pegasus].contains(&self.class) {
            for (_, token) in self.class.codes(&self.config) {
                vocabulary.insert(&token, place);
                place += 1;
            }
            let is_multi = self.config.get("language_codes").is_some_and(|codes| codes == "multi");
            if self.class != Class::M2m100 && !(self.class == Class::Plbart && is_multi) {
                vocabulary.insert("<mask>", place);
            }
        }
        let added = self.added(&mut vocabulary, count)?;
        let marks = self.marks(&vocabulary)?;
        let special = self.special(&added)?;
        let prefix_space = self.config.flag("add_prefix_space", true)?;
        let continues = match self.class {
            Class::T5 if !self.config.flag("legacy", true)? => {
                model = model.without_dummy_prefix();
                Some(Continues { prefix_space, guard: self.name("unk_token")? })
            }
            _ => None,
        };
        let joining = match self.class {
            Class::Nllb | Class::Mbart | Class::Plbart => Joining::Plain,
            Class::T5 if prefix_space => Joining::ModelWithPrefix,
            _ => Joining::Model,
        };
        let vocabulary = Arc::new(vocabulary);
        let encoder = Arc::new(Pieces {
            model,
            vocabulary: Arc::clone(&vocabulary),
            added: AddedTokens::new(self.with_codes(added, &vocabulary), |_| true),
            unk: marks.unk,
            special: self.with_code_ids(special, &vocabulary),
            joining,
            continues,
        });
        let side = Side { encoder, vocabulary, marks };
        let once = (self.class == Class::T5).then_some(marks.eos);
        self.tokenizer(side.clone(), side, once)
    }

    /// The language tokens are special tokens of classes that give them fixed places, listed or not.
    fn with_codes(&self, mut added: Vec<AddedToken>, vocabulary: &Vocabulary) -> Vec<AddedToken> {
        for (_, token) in self.class.codes(&self.config) {
            if added.iter().all(|other| other.content != token) {
                added.extend(vocabulary.id(&token).map(|id| AddedToken::new(&token, id, true)));
            }
        }
        added
    }

    fn with_code_ids(&self, mut special: HashSet<u32>, vocabulary: &Vocabulary) -> HashSet<u32> {
        special.extend(self.class.codes(&self.config).iter().filter_map(|(_, token)| vocabulary.id(token)));
        special
    }

    fn bytes(&self) -> Result<Tokenizer> {
        let path = self.dir.join("tokenizer_config.json");
        let letters: Vec<String> = (0..=u8::MAX).map(|byte| char::from(byte).to_string()).collect();
        let mut vocabulary =
            Vocabulary::new(&path, letters.iter().zip(bytes::OFFSET..).map(|(letter, id)| (letter.as_str(), id)));
        let added = self.added(&mut vocabulary, 0)?;
        let marks = self.marks(&vocabulary)?;
        let encoder = Bytes { special: self.special(&added)?, added: AddedTokens::new(added, |_| true) };
        let side = Side { encoder: Arc::new(encoder), vocabulary: Arc::new(vocabulary), marks };
        self.tokenizer(side.clone(), side, Some(marks.eos))
    }

    /// Pieces are ids in decimal, as many as the model has rows.
    fn ids(&self) -> Result<Tokenizer> {
        let path = self.dir.join("config.json");
        let config: Value = read::json(&path)?;
        let encoder = Arc::new(Ids { instead_of: "FSMT's tokenizer, Moses and BPE, is not read" });
        let side = |field: &str| -> Result<Side> {
            let rows = config[field].as_u64().unwrap_or_default().min(1 << 24) as u32;
            let pieces: Vec<(String, u32)> = (0..rows).map(|id| (id.to_string(), id)).collect();
            let mut vocabulary = Vocabulary::new(&path, pieces.iter().map(|(piece, id)| (piece.as_str(), *id)));
            (0..).zip(ids::SPECIAL).for_each(|(id, piece)| vocabulary.insert(piece, id));
            let marks = vocabulary.marks("</s>", "<pad>", "<unk>")?;
            Ok(Side { encoder: encoder.clone(), vocabulary: Arc::new(vocabulary), marks })
        };
        let (source, target) = (side("src_vocab_size")?, side("tgt_vocab_size")?);
        let once = Some(source.marks.eos);
        self.tokenizer(source, target, once)
    }

    #[cfg(feature = "tokenizers")]
    fn fast(&self, (encoder, vocabulary): (super::fast::Fast, Vocabulary)) -> Result<Tokenizer> {
        let marks = self.marks(&vocabulary)?;
        let side =
            Side { encoder: Arc::new(encoder) as Arc<dyn super::Encoder>, vocabulary: Arc::new(vocabulary), marks };
        self.tokenizer(side.clone(), side, (self.class == Class::File).then_some(marks.eos))
    }

    /// Puts the parts together. `once`: the end of sentence, where a text that ends with it gets no other.
    fn tokenizer(&self, source: Side, target: Side, once: Option<u32>) -> Result<Tokenizer> {
        let languages = self.languages(&source.vocabulary)?;
        let legacy = self.config.flag("legacy_behaviour", false)?;
        let (prefix, suffix) = self.class.layout(legacy);
        let slots = |side: &Side, marks: &[Mark]| -> Result<Vec<Slot>> {
            let slot = |mark: &Mark| match mark {
                Mark::Language => Ok(Slot::Language),
                Mark::Token("eos_token") => Ok(Slot::Id(side.marks.eos)),
                Mark::Token(field) => {
                    let name = self.name(field)?;
                    let (expected, got) = (format!("the piece {name:?}"), "none".to_owned());
                    let path = side.vocabulary.path().to_path_buf();
                    side.vocabulary.id(&name).map(Slot::Id).ok_or(Error::Tokenizer { path, expected, got })
                }
            };
            marks.iter().map(slot).collect()
        };
        let layout = |side: &Side| -> Result<Layout> {
            let mut suffix = slots(side, suffix)?;
            if self.class == Class::File {
                suffix.push(Slot::Id(side.marks.eos));
            }
            Ok(Layout { prefix: slots(side, prefix)?, suffix, once })
        };
        let around_labels = layout(&target)?;
        let place = languages.as_ref().map(|languages| languages.place);
        let mut generated = around_labels.prefix.clone();
        if place == Some(TargetPlace::FirstToken) {
            generated = vec![Slot::Language];
        }
        let around_target = Layout { prefix: generated, suffix: vec![Slot::Id(target.marks.eos)], once };
        let (around_source, tasks) = (layout(&source)?, Tasks::open(self.dir)?);
        let defaults = SentenceDefaults::default();
        Ok(Tokenizer { around_source, around_target, around_labels, languages, tasks, defaults, source, target })
    }

    fn languages(&self, vocabulary: &Vocabulary) -> Result<Option<Languages>> {
        let language = |(code, token): (String, String)| Some(Language { id: vocabulary.id(&token)?, code, token });
        let Some(place) = self.class.place() else {
            let framed = |piece: &String| {
                let code = piece.strip_prefix(">>").and_then(|rest| rest.strip_suffix("<<"));
                let code = code.filter(|_| self.class == Class::Marian).or_else(|| {
                    let code = piece.strip_prefix("<2").and_then(|rest| rest.strip_suffix('>'))?;
                    (self.class == Class::T5 && !code.is_empty() && !code.starts_with(|c: char| c.is_ascii_digit()))
                        .then_some(code)
                })?;
                Some((code.to_owned(), piece.clone()))
            };
            let all: Vec<Language> =
                vocabulary.pieces().iter().flatten().filter_map(framed).filter_map(language).collect();
            return Ok((!all.is_empty()).then(|| Languages::new(all, TargetPlace::Source)));
        };
        let mut codes = self.class.codes(&self.config);
        // Fine-tuned models bring languages of their own.
        for token in self.config.special_tokens()?.into_iter().map(|token| token.content) {
            let code = token.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"));
            let is_code = match self.class {
                Class::M2m100 | Class::Plbart => code.is_some(),
                _ => !token.starts_with('<'),
            };
            if is_code && codes.iter().all(|(_, other)| *other != token) {
                codes.push((code.unwrap_or(&token).to_owned(), token));
            }
        }
        let mut languages = Languages::new(codes.into_iter().filter_map(language).collect(), place);
        let find = |field: &str, default: Option<&str>| -> Result<Option<u32>> {
            let Some(code) = self.config.get(field).and_then(Value::as_str).or(default) else { return Ok(None) };
            let found = languages.get(code).map(|language| language.id);
            // A default that a small tokenizer lacks is no mistake of the directory's.
            match found.is_some() || self.config.get(field).is_none() {
                true => Ok(found),
                false => Err(Error::Config {
                    path: self.dir.join("tokenizer_config.json"),
                    field: field.into(),
                    expected: "a language of the tokenizer".into(),
                    got: format!("{code:?}"),
                }),
            }
        };
        let source = find("src_lang", self.class.default_language(&self.config))?;
        let target = find("tgt_lang", None)?;
        (languages.source, languages.target) = (source, target);
        Ok(Some(languages))
    }
}
