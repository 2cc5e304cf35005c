//! What a model directory says of its tokenizer beside pieces and ids.
//!
//! Added tokens come from `added_tokens_decoder` in `tokenizer_config.json`, or, in older directories, from `added_tokens.json` with
//! the names of the special ones in `special_tokens_map.json`, as transformers' `PreTrainedTokenizer` reads them.

use std::path::Path;

use serde_json::{Map, Value};

use super::added::AddedToken;
use crate::{Error, Result, read};

/// The names that transformers has for special tokens, in the order in which it gives them ids.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the tokenizer's configuration files say.
#[derive(Debug)]
pub struct TokenizerConfig {
    path: std::path::PathBuf,
    settings: Map<String, Value>,
    /// The added tokens that have ids.
    pub added: Vec<AddedToken>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` of a model directory, none of which need exist.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`] and [`Error::LfsPointer`] for a file that cannot be read, [`Error::Config`] for malformed settings.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer_config.json");
        let settings = object(&path)?.unwrap_or_default();
        let mut config = TokenizerConfig { path, settings, added: Vec::new() };
        if let Some(added) = config.settings.remove("added_tokens_decoder").filter(|added| !added.is_null()) {
            config.added = config.decoder(&added)?;
            return Ok(config);
        }
        config.merge(object(&dir.join("special_tokens_map.json"))?.unwrap_or_default());
        let path = dir.join("added_tokens.json");
        if let Some(ids) = object(&path)? {
            let special: Vec<String> = config.special_tokens()?.into_iter().map(|token| token.content).collect();
            for (content, id) in ids {
                let id_number = id.as_u64().and_then(|id| u32::try_from(id).ok());
                let id = id_number.ok_or_else(|| error(&path, &content, "a token id", &id))?;
                config.added.push(AddedToken::new(&content, id, special.contains(&content)));
            }
        }
        Ok(config)
    }

    /// A setting; null counts as absent.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.settings.get(field).filter(|value| !value.is_null())
    }

    /// Whether a setting is there, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.settings.contains_key(field)
    }

    /// Sets what is not set.
    pub fn default(&mut self, field: &str, value: Value) {
        if self.get(field).is_none() {
            self.settings.insert(field.to_owned(), value);
        }
    }

    /// A setting that is true or false.
    ///
    /// # Errors
    /// [`Error::Config`] if it is neither.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| error(&self.path, field, "true or false", value))
    }

    /// The text of the token of that name: a string, or an object with its text.
    ///
    /// # Errors
    /// [`Error::Config`] if it is neither.
    pub fn token(&self, field: &str) -> Result<Option<String>> {
        let token = self.get(field).map(|value| self.read_token(field, value, 0)).transpose()?;
        Ok(token.map(|token| token.content))
    }

    /// The special tokens that the settings name, without ids (all 0), none twice.
    ///
    /// # Errors
    /// [`Error::Config`] for one that is malformed.
    pub fn special_tokens(&self) -> Result<Vec<AddedToken>> {
        let mut values: Vec<(&str, &Value)> =
            SPECIAL.iter().filter_map(|field| Some((*field, self.get(field)?))).collect();
        let additional = "additional_special_tokens";
        match self.get(additional) {
            None => {}
            Some(Value::Array(tokens)) => values.extend(tokens.iter().map(|token| (additional, token))),
            Some(other) => return Err(error(&self.path, additional, "a list of tokens", other)),
        }
        let mut tokens: Vec<AddedToken> = Vec::new();
        for (field, value) in values {
            let token = AddedToken { special: true, ..self.read_token(field, value, 0)? };
            if tokens.iter().all(|other| other.content != token.content) {
                tokens.push(token);
            }
        }
        Ok(tokens)
    }

    fn read_token(&self, field: &str, value: &Value, id: u32) -> Result<AddedToken> {
        let flag = |name: &str| value[name].as_bool().unwrap_or(false);
        let wrong = || error(&self.path, field, "a token", value);
        let content = value.as_str().or_else(|| value["content"].as_str()).ok_or_else(wrong)?;
        Ok(AddedToken {
            content: content.to_owned(),
            id,
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            single_word: flag("single_word"),
            normalized: value["normalized"].as_bool().unwrap_or(!flag("special")),
            special: flag("special"),
        })
    }

    /// `added_tokens_decoder`: tokens by id, which is text.
    fn decoder(&self, added: &Value) -> Result<Vec<AddedToken>> {
        let field = "added_tokens_decoder";
        let Value::Object(added) = added else { return Err(error(&self.path, field, "tokens by id", added)) };
        let mut tokens = Vec::new();
        for (id, value) in added {
            let number = id.parse().map_err(|_| error(&self.path, field, "token ids", &Value::from(id.as_str())))?;
            tokens.push(self.read_token(field, value, number)?);
        }
        tokens.sort_by_key(|token| token.id);
        Ok(tokens)
    }

    /// `special_tokens_map.json` wins where there is no `added_tokens_decoder`; of additional tokens both have a say.
    fn merge(&mut self, map: Map<String, Value>) {
        for (field, value) in map {
            match (self.settings.get_mut(&field), value) {
                (Some(Value::Array(own)), Value::Array(more)) if field == "additional_special_tokens" => {
                    let more: Vec<Value> = more.into_iter().filter(|token| !own.contains(token)).collect();
                    own.extend(more);
                }
                (_, value) => _ = self.settings.insert(field, value),
            }
        }
    }
}

/// The object in a JSON file; none where there is no file.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    match read::json(path)? {
        Value::Object(object) => Ok(Some(object)),
        other => Err(error(path, "settings", "a json object", &other)),
    }
}

fn error(path: &Path, field: &str, expected: &str, got: &Value) -> Error {
    Error::Config { path: path.into(), field: field.into(), expected: expected.into(), got: got.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_files_are_read_with_the_names_of_the_special_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("added_tokens.json", r#"{"<x>": 7, "<y>": 8}"#);
        write("special_tokens_map.json", r#"{"additional_special_tokens": ["<y>"], "eos_token": {"content": "</e>"}}"#);
        let config = TokenizerConfig::open(dir.path()).expect("well formed");
        assert_eq!(config.added, [AddedToken::new("<x>", 7, false), AddedToken::new("<y>", 8, true)]);
        assert_eq!(config.token("eos_token").expect("a token").as_deref(), Some("</e>"));
        // What a later version writes counts alone.
        write(
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"10": {"content": "<z>", "rstrip": true}, "9": {"content": "a"}}}"#,
        );
        let config = TokenizerConfig::open(dir.path()).expect("well formed");
        let z = AddedToken { rstrip: true, ..AddedToken::new("<z>", 10, false) };
        assert_eq!(config.added, [AddedToken::new("a", 9, false), z]);
        assert_eq!(config.token("eos_token").expect("a token"), None);
        for (name, text) in [
            ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#),
            ("tokenizer_config.json", r#"{"added_tokens_decoder": [1]}"#),
            ("tokenizer_config.json", r#"{"added_tokens_decoder": {"1": {}}}"#),
            ("tokenizer_config.json", "[]"),
        ] {
            write(name, text);
            assert_eq!(TokenizerConfig::open(dir.path()).expect_err(text).kind(), "config");
        }
        write("tokenizer_config.json", "{}");
        write("added_tokens.json", r#"{"<x>": -1}"#);
        assert_eq!(TokenizerConfig::open(dir.path()).expect_err("a wrong id").kind(), "config");
    }
}
