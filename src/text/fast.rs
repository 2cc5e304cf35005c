//! Tokenizers that the crate `tokenizers` reads: `tokenizer.json`, and byte-level BPE from `vocab.json` and `merges.txt`.

use std::path::Path;

use serde_json::{Value, json};
use tokenizers::{AddedToken, Tokenizer};

use super::added;
use super::config::TokenizerConfig;
use super::vocabulary::Vocabulary;
use super::{Encoder, SideSummary};
use crate::{Error, Result, read};

/// A tokenizer of the crate.
#[derive(Debug)]
pub(super) struct Fast {
    tokenizer: Tokenizer,
    /// Whether the file says itself what stands around a sentence.
    wraps: bool,
    kind: String,
    pieces: usize,
}

impl Fast {
    /// Reads `tokenizer.json`; `config` may add tokens and overrule how a text begins, as it does in transformers.
    ///
    /// # Errors
    /// `Io`, `LfsPointer`, `Json`, and `Tokenizer` for a file that the crate does not take.
    pub fn open(path: &Path, config: &TokenizerConfig, wraps: bool) -> Result<(Self, Vocabulary)> {
        let mut json: Value = read::json(path)?;
        if let Some(Value::Object(splits)) = json.get_mut("pre_tokenizer")
            && splits.get("type").is_some_and(|kind| kind == "ByteLevel")
        {
            splits.insert("add_prefix_space".into(), config.flag("add_prefix_space", false)?.into());
        }
        Self::new(path, &json, config, wraps)
    }

    /// Byte-level BPE from `vocab.json` and `merges.txt` of a directory.
    ///
    /// # Errors
    /// As [`Fast::open`].
    pub fn from_merges(dir: &Path, config: &TokenizerConfig) -> Result<(Self, Vocabulary)> {
        let (path, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
        let vocab: Value = read::json(&path)?;
        let error =
            |expected: &str, got: String| Error::Tokenizer { path: merges.clone(), expected: expected.into(), got };
        let text = String::from_utf8(read::bytes(&merges)?).map_err(|e| error("text in UTF-8", e.to_string()))?;
        // The first line is a version.
        let pairs = text.lines().skip(1).filter(|line| !line.is_empty()).map(|line| {
            match line.split(' ').collect::<Vec<_>>()[..] {
                [left, right] => Ok(json!([left, right])),
                _ => Err(error("two pieces a line", format!("{line:?}"))),
            }
        });
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": config.flag("add_prefix_space", false)?,
            "trim_offsets": true, "use_regex": true });
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                "merges": pairs.collect::<Result<Vec<Value>>>()? }
        });
        Self::new(&path, &json, config, false)
    }

    fn new(path: &Path, json: &Value, config: &TokenizerConfig, wraps: bool) -> Result<(Self, Vocabulary)> {
        let error = |got: String| Error::Tokenizer {
            path: path.into(),
            expected: "a tokenizer of the crate tokenizers".into(),
            got,
        };
        let kind = json["model"]["type"].as_str().unwrap_or("unknown type").to_lowercase();
        let mut tokenizer = Tokenizer::from_bytes(json.to_string()).map_err(|e| error(e.to_string()))?;
        // Files remember what their maker cut and filled.
        tokenizer.with_truncation(None).map_err(|e| error(e.to_string()))?.with_padding(None);
        let special = config.special_tokens()?;
        let is_named = |token: &added::AddedToken| special.iter().any(|special| special.content == token.content);
        for token in &config.added {
            let is_special = token.special || is_named(token);
            tokenizer.add_tokens([crate_token(token, is_special)]).map_err(|e| error(e.to_string()))?;
        }
        for token in special {
            if !tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content) {
                tokenizer.add_special_tokens([crate_token(&token, true)]).map_err(|e| error(e.to_string()))?;
            }
        }
        // What this cannot be cut into pieces, no text with strange characters can; better now than then.
        tokenizer.encode_fast("\u{10fffd}", wraps).map_err(|e| error(e.to_string()))?;
        let pieces = tokenizer.get_vocab_size(false);
        let vocabulary = tokenizer.get_vocab(true);
        let vocabulary = Vocabulary::new(path, vocabulary.iter().map(|(piece, id)| (piece.as_str(), *id)));
        Ok((Fast { tokenizer, wraps, kind, pieces }, vocabulary))
    }
}

fn crate_token(token: &added::AddedToken, special: bool) -> AddedToken {
    AddedToken {
        content: token.content.clone(),
        single_word: token.single_word,
        lstrip: token.lstrip,
        rstrip: token.rstrip,
        normalized: token.normalized,
        special,
    }
}

impl Encoder for Fast {
    fn encode(&self, text: &str) -> Vec<u32> {
        // It fails where a model lacks an unknown piece, which has been tried.
        self.tokenizer.encode_fast(text, self.wraps).map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    fn summary(&self) -> SideSummary {
        SideSummary { model_type: self.kind.clone(), model_pieces: self.pieces, ..SideSummary::default() }
    }
}
