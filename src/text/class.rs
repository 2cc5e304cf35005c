//! Which tokenizer a model directory has, and what each family's is made of.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::added::AddedToken;
use super::codes;
use super::config::TokenizerConfig;
use super::languages::TargetPlace;
use crate::{Error, Result, read};

/// The tokenizers that transformers has for the families that are known here, without `Fast`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Marian,
    M2m100,
    Nllb,
    Mbart,
    Mbart50,
    Plbart,
    T5,
    Pegasus,
    /// BART and RoBERTa, whose tokenizer CodeT5 has.
    Bart,
    Byt5,
    /// FSMT's, Moses and BPE, which is not read.
    Fsmt,
    /// Whatever `tokenizer.json` says.
    File,
}

/// Names of transformers' classes.
const NAMES: [(&str, Class); 15] = [
    ("MarianTokenizer", Class::Marian),
    ("M2M100Tokenizer", Class::M2m100),
    ("NllbTokenizer", Class::Nllb),
    ("MBartTokenizer", Class::Mbart),
    ("MBart50Tokenizer", Class::Mbart50),
    ("PLBartTokenizer", Class::Plbart),
    ("T5Tokenizer", Class::T5),
    ("MT5Tokenizer", Class::T5),
    ("PegasusTokenizer", Class::Pegasus),
    ("BartTokenizer", Class::Bart),
    ("RobertaTokenizer", Class::Bart),
    ("ByT5Tokenizer", Class::Byt5),
    ("FSMTTokenizer", Class::Fsmt),
    ("PreTrainedTokenizer", Class::File),
    ("TokenizersBackend", Class::File),
];

/// The tokenizer of a `model_type` where no class is named.
const OF_MODEL: [(&str, Class); 11] = [
    ("marian", Class::Marian),
    ("m2m_100", Class::M2m100),
    ("mbart", Class::Mbart),
    ("plbart", Class::Plbart),
    ("t5", Class::T5),
    ("mt5", Class::T5),
    ("umt5", Class::T5),
    ("pegasus", Class::Pegasus),
    ("bart", Class::Bart),
    ("nllb", Class::Nllb),
    ("fsmt", Class::Fsmt),
];

/// Where the pieces come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `source.spm`, `target.spm` and a vocabulary.
    Marian,
    /// A SentencePiece model.
    Pieces(PathBuf),
    /// `tokenizer.json`.
    File(PathBuf),
    /// `vocab.json` and `merges.txt`.
    Merges,
    /// None: bytes.
    Bytes,
    /// None: token ids.
    Ids,
}

/// What stands around a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A token that the configuration names, as in `eos_token`.
    Token(&'static str),
    /// The language's token.
    Language,
}

impl Class {
    /// The class that `tokenizer_config.json` or `config.json` names, else that of the `model_type`.
    ///
    /// # Errors
    /// [`Error::Config`] for a class that is not known, if there is no `tokenizer.json`, and those of reading `config.json`.
    pub fn of(dir: &Path, config: &TokenizerConfig) -> Result<Self> {
        let path = dir.join("config.json");
        let model: Value = if path.exists() { read::json(&path)? } else { Value::Null };
        let named = config.get("tokenizer_class").or_else(|| model.get("tokenizer_class")).and_then(Value::as_str);
        let has_file = dir.join("tokenizer.json").exists();
        if let Some(name) = named {
            let bare = name.strip_suffix("Fast").unwrap_or(name);
            let found = NAMES.iter().find(|(other, _)| *other == bare).map(|(_, class)| *class);
            let known = NAMES.map(|(name, _)| name).join(", ");
            return found.or(has_file.then_some(Class::File)).ok_or_else(|| Error::Config {
                path: dir.join("tokenizer_config.json"),
                field: "tokenizer_class".into(),
                expected: format!("one of {known}, or a tokenizer.json"),
                got: name.into(),
            });
        }
        let kind = model["model_type"].as_str().unwrap_or("marian");
        let found = OF_MODEL.iter().find(|(other, _)| *other == kind).map(|(_, class)| *class);
        found.or(has_file.then_some(Class::File)).ok_or_else(|| Error::Config {
            path,
            field: "model_type".into(),
            expected: format!("one of {}, or a tokenizer.json", OF_MODEL.map(|(name, _)| name).join(", ")),
            got: kind.into(),
        })
    }

    /// Where the pieces come from, as AutoTokenizer would choose: `tokenizer.json` where the class can read it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the directory has none of the files.
    pub fn source(self, dir: &Path) -> Result<Source> {
        let existing = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        let reads_file = !matches!(self, Class::Marian | Class::M2m100 | Class::Plbart | Class::Byt5 | Class::Fsmt);
        let file = existing("tokenizer.json").filter(|_| reads_file && cfg!(feature = "tokenizers"));
        match (self, file) {
            (Class::Marian, _) => return Ok(Source::Marian),
            (Class::Byt5, _) => return Ok(Source::Bytes),
            (Class::Fsmt, _) => return Ok(Source::Ids),
            (_, Some(file)) => return Ok(Source::File(file)),
            _ => {}
        }
        let model = self.model_file().and_then(existing);
        let merges = ["vocab.json", "merges.txt"].iter().all(|name| existing(name).is_some());
        let is_built = if cfg!(feature = "tokenizers") {
            ""
        } else {
            "; tokenizer.json needs a build with the feature tokenizers"
        };
        match (self, model) {
            (_, Some(model)) => Ok(Source::Pieces(model)),
            (Class::Bart, None) if merges && cfg!(feature = "tokenizers") => Ok(Source::Merges),
            _ => {
                let model = self.model_file().unwrap_or(if self == Class::Bart {
                    "vocab.json and merges.txt"
                } else {
                    "another"
                });
                let expected =
                    if reads_file { format!("tokenizer.json or {model}{is_built}") } else { model.to_owned() };
                Err(Error::Tokenizer { path: dir.into(), expected, got: "neither".into() })
            }
        }
    }

    fn model_file(self) -> Option<&'static str> {
        match self {
            Class::T5 | Class::Pegasus => Some("spiece.model"),
            Class::M2m100 | Class::Nllb | Class::Mbart | Class::Mbart50 | Class::Plbart => {
                Some("sentencepiece.bpe.model")
            }
            Class::Marian | Class::Bart | Class::Byt5 | Class::Fsmt | Class::File => None,
        }
    }

    /// What stands before and behind a source, and a target as transformers has it for labels.
    pub fn layout(self, legacy_nllb: bool) -> (&'static [Mark], &'static [Mark]) {
        const EOS: Mark = Mark::Token("eos_token");
        match self {
            Class::Nllb if legacy_nllb => (&[], &[EOS, Mark::Language]),
            Class::Mbart | Class::Plbart => (&[], &[EOS, Mark::Language]),
            Class::M2m100 | Class::Nllb | Class::Mbart50 => (&[Mark::Language], &[EOS]),
            Class::Bart => (&[Mark::Token("cls_token")], &[Mark::Token("sep_token")]),
            Class::File => (&[], &[]),
            Class::Marian | Class::T5 | Class::Pegasus | Class::Byt5 | Class::Fsmt => (&[], &[EOS]),
        }
    }

    /// How the decoder learns the target language, if the class has language tokens of its own.
    pub fn place(self) -> Option<TargetPlace> {
        match self {
            Class::M2m100 | Class::Nllb | Class::Mbart50 => Some(TargetPlace::FirstToken),
            Class::Mbart | Class::Plbart => Some(TargetPlace::DecoderStart),
            _ => None,
        }
    }

    /// The codes of the languages and their tokens, in the order of their ids.
    pub fn codes(self, config: &TokenizerConfig) -> Vec<(String, String)> {
        let variant = config.get("language_codes").and_then(Value::as_str).unwrap_or_default();
        let plain = |codes: &[&str]| -> Vec<(String, String)> {
            codes.iter().flat_map(|codes| codes.split_whitespace()).map(|code| (code.into(), code.into())).collect()
        };
        let framed = |codes: &str, count: usize| -> Vec<(String, String)> {
            codes.split_whitespace().take(count).map(|code| (code.into(), format!("__{code}__"))).collect()
        };
        match self {
            Class::M2m100 if variant == "wmt21" => framed(codes::WMT21, usize::MAX),
            Class::M2m100 => framed(codes::M2M100, usize::MAX),
            Class::Nllb => plain(&[codes::NLLB]),
            Class::Mbart => plain(&[codes::MBART]),
            Class::Mbart50 => plain(&[codes::MBART, codes::MBART50_MORE]),
            Class::Plbart if variant == "multi" => framed(codes::PLBART, usize::MAX),
            Class::Plbart => framed(codes::PLBART, 3),
            _ => Vec::new(),
        }
    }

    /// The source language where nothing names one.
    pub fn default_language(self, config: &TokenizerConfig) -> Option<&'static str> {
        match self {
            Class::M2m100 => Some("en"),
            Class::Nllb => Some("eng_Latn"),
            Class::Mbart | Class::Mbart50 => Some("en_XX"),
            Class::Plbart => (config.get("language_codes")? == "multi").then_some("en_XX"),
            _ => None,
        }
    }

    /// Fills in the special tokens that the class has where the files are silent.
    pub fn complete(self, config: &mut TokenizerConfig) {
        let mask = json!({ "content": "<mask>", "lstrip": true });
        let fields: &[&str] = match self {
            Class::Marian | Class::T5 | Class::Byt5 | Class::Pegasus => &["eos_token", "unk_token", "pad_token"],
            Class::M2m100 => &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token"],
            Class::File => &[],
            _ => &["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"],
        };
        for field in fields {
            let token = match *field {
                "bos_token" | "cls_token" => json!("<s>"),
                "eos_token" | "sep_token" => json!("</s>"),
                "pad_token" => json!("<pad>"),
                "unk_token" => json!("<unk>"),
                _ => mask.clone(),
            };
            config.default(field, token);
        }
        match self {
            Class::Pegasus => config.default("mask_token", json!("<mask_2>")),
            Class::Nllb => {
                let codes: Vec<String> = self.codes(config).into_iter().map(|(code, _)| code).collect();
                config.default("additional_special_tokens", json!(codes));
            }
            Class::Byt5 => config.default("additional_special_tokens", json!(extra_ids(config, 125))),
            _ => {}
        }
    }

    /// The added tokens that the class has, files or not; `pieces` of a SentencePiece model.
    pub fn added(self, config: &TokenizerConfig, pieces: usize) -> Result<Vec<AddedToken>> {
        let token = |content: String, id: usize| AddedToken::new(&content, id as u32, true);
        let named = |field: &str| config.token(field).map(Option::unwrap_or_default);
        Ok(match self {
            Class::T5 => {
                let extra = extra_ids(config, 100);
                let last = pieces + extra.len();
                let wide = |(i, content)| AddedToken { lstrip: true, rstrip: true, ..token(content, last - 1 - i) };
                extra.into_iter().enumerate().map(wide).collect()
            }
            Class::Nllb => (0..)
                .zip(["bos_token", "pad_token", "eos_token", "unk_token"])
                .map(|(id, field)| Ok(token(named(field)?, id)))
                .collect::<Result<_>>()?,
            Class::Pegasus => {
                let offset = self.offset(config) as usize;
                let mut tokens = vec![named("pad_token")?, named("eos_token")?];
                match config.get("mask_token_sent") {
                    None if config.has("mask_token_sent") => {}
                    sentence => tokens.extend([
                        sentence.and_then(Value::as_str).unwrap_or("<mask_1>").to_owned(),
                        named("mask_token")?,
                    ]),
                }
                tokens.extend((2..offset).map(|i| format!("<unk_{i}>")));
                tokens.into_iter().enumerate().map(|(id, content)| token(content, id)).collect()
            }
            Class::Byt5 => (0..)
                .zip(["pad_token", "eos_token", "unk_token"])
                .map(|(id, field)| Ok(AddedToken { lstrip: true, rstrip: true, ..token(named(field)?, id) }))
                .collect::<Result<_>>()?,
            _ => Vec::new(),
        })
    }

    /// What is added to the ids of a SentencePiece model's pieces.
    pub fn offset(self, config: &TokenizerConfig) -> u32 {
        match self {
            Class::Nllb | Class::Mbart | Class::Mbart50 | Class::Plbart => 1,
            Class::Pegasus => {
                config.get("offset").and_then(Value::as_u64).map_or(103, |offset| offset.min(1 << 20) as u32)
            }
            _ => 0,
        }
    }
}

/// `<extra_id_0>` and on, as many as `extra_ids` says.
fn extra_ids(config: &TokenizerConfig, default: u64) -> Vec<String> {
    let count = config.get("extra_ids").and_then(Value::as_u64).unwrap_or(default).min(1 << 16);
    (0..count).map(|i| format!("<extra_id_{i}>")).collect()
}
