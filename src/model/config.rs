//! `config.json` and `generation_config.json`, read as transformers reads them.

mod family;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{Error, Result};

pub use family::{FAMILIES, ModelConfig, NormConfig, NormPlacement, PositionConfig, RelativeConfig, StackConfig};

/// What `generation_config.json` says about search; the `hf` preset reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// `num_beams`.
    pub beam_size: usize,
    /// `length_penalty`.
    pub length_penalty: f32,
    /// `early_stopping`.
    pub early_stopping: EarlyStopping,
    /// `max_length` less the start token: generated tokens, end of sentence included.
    pub max_len: usize,
    /// `min_length`: end of sentence may be generated token number `min_length`, since that counts the start token.
    pub min_len: usize,
    /// `renormalize_logits`: masked tokens give their probability to the others before ranking.
    pub renormalize: bool,
    /// `repetition_penalty`; 1 switches it off.
    pub repetition_penalty: f32,
    /// `no_repeat_ngram_size`; 0 switches it off.
    pub no_repeat_ngram: usize,
    /// `forced_bos_token_id`.
    pub forced_bos: Option<u32>,
    /// `suppress_tokens`.
    pub suppressed: Vec<u32>,
    /// `bad_words_ids`, padding and end of sentence alone left out: the one is never generated, the other may not be banned.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that the ids above are of.
    pub vocab_size: usize,
    /// Settings that ask for a search this crate does not do, as `name = value`.
    pub unsupported: Vec<String>,
}

/// `early_stopping` of transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `true`
    Yes,
    /// `false`
    No,
    /// `"never"`
    Never,
}

/// Reads and parses a JSON file.
///
/// # Errors
/// [`Error::Io`] or [`Error::Json`].
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let io = |source| Error::Io { operation: "read", path: path.to_path_buf(), source };
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// The fields of one JSON object, with errors that name file and field.
struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    fn read(path: &Path) -> Result<Self> {
        Ok(Fields { path: path.to_path_buf(), map: read_json(path)? })
    }

    /// The fields of a file that need not be there.
    fn read_if_there(path: &Path) -> Result<Option<Self>> {
        path.exists().then(|| Fields::read(path)).transpose()
    }

    /// The field's value; null counts as absent, as in transformers.
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let got = self.get(field).map_or_else(|| "nothing".into(), Value::to_string);
        Error::Config { path: self.path.clone(), field: field.into(), expected: expected.into(), got }
    }

    fn integer(&self, field: &str, default: Option<u64>, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
        let value = match (self.get(field), default) {
            (None, Some(default)) => Some(default),
            (value, _) => value.and_then(Value::as_u64),
        };
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        value.filter(|v| range.contains(v)).ok_or_else(|| self.error(field, expected()))
    }

    fn size(&self, field: &str, default: u64, most: u64) -> Result<usize> {
        Ok(self.integer(field, Some(default), 1..=most)? as usize)
    }

    /// A list of token ids; empty where there is none.
    fn ids(&self, field: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        ids(value).ok_or_else(|| self.error(field, "a list of token ids"))
    }

    /// A list of lists of token ids, none of them empty.
    fn id_lists(&self, field: &str) -> Result<Vec<Vec<u32>>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = |value: &Value| ids(value).filter(|ids| !ids.is_empty());
        let lists = value.as_array().and_then(|lists| lists.iter().map(list).collect());
        lists.ok_or_else(|| self.error(field, "lists of token ids, none of them empty"))
    }

    /// A number above 0.
    fn positive(&self, field: &str, default: f64) -> Result<f32> {
        let value = self.get(field).map_or(Some(default), Value::as_f64).map(|value| value as f32);
        let value = value.filter(|value| *value > 0.0 && value.is_finite());
        value.ok_or_else(|| self.error(field, "a number above 0"))
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(field, "true or false")),
        }
    }

    /// A token id; lists, as newer files have them, may hold one id.
    fn id(&self, field: &str, default: u64, vocab_size: usize) -> Result<u32> {
        let expected = || format!("one token id below {vocab_size}");
        let value = match self.get(field) {
            None => Some(default),
            Some(Value::Array(ids)) if ids.len() == 1 => ids[0].as_u64(),
            Some(value) => value.as_u64(),
        };
        value.filter(|id| *id < vocab_size as u64).map(|id| id as u32).ok_or_else(|| self.error(field, expected()))
    }
}

/// Bounds that keep sizes computed from a file within a machine's arithmetic; real models stay far below.
const MAX_WIDTH: u64 = 1 << 16;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 10;
/// Lengths end at the position table anyway.
const MAX_LENGTH: u64 = u32::MAX as u64;

/// The most values of a position table, which is computed where the checkpoint has none: 1 GiB.
const MAX_POSITION_VALUES: usize = 1 << 28;

/// What `config.json` says about training and no other part reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingDefaults {
    /// Share of elements that embeddings and sublayers drop; transformers' default is 0.1.
    pub dropout: f32,
    /// Standard deviation of a new model's weights; transformers' default is 0.02.
    pub init_std: f32,
    /// Share of attention weights dropped.
    pub attention_dropout: f32,
    /// Share of the feed-forward layers' inner elements dropped.
    pub activation_dropout: f32,
}

impl TrainingDefaults {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not a number from 0 to below 1.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let fields = Fields::read(&path)?;
        let rate = |field: &str, default: f64| {
            let value = fields.get(field).map_or(Some(default), Value::as_f64).filter(|rate| (0.0..1.0).contains(rate));
            value.map(|rate| rate as f32).ok_or_else(|| fields.error(field, "a number from 0 to below 1"))
        };
        Ok(TrainingDefaults {
            dropout: rate("dropout", 0.1)?,
            init_std: rate("init_std", 0.02)?,
            attention_dropout: rate("attention_dropout", 0.0)?,
            activation_dropout: rate("activation_dropout", 0.0)?,
        })
    }
}

impl GenerationConfig {
    /// Reads `generation_config.json`, or the same fields of `config.json` where there is none.
    ///
    /// # Errors
    /// [`Error::Config`] for a malformed field.
    pub fn open(dir: &Path, model: &ModelConfig) -> Result<Self> {
        let own = dir.join("generation_config.json");
        let has_own = own.exists();
        let path = if has_own { own } else { dir.join("config.json") };
        let fields = Fields::read(&path)?;
        let number = |field: &str, default: f64| match fields.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| fields.error(field, "a number")),
        };
        let early_stopping = match fields.get("early_stopping") {
            None | Some(Value::Bool(false)) => EarlyStopping::No,
            Some(Value::Bool(true)) => EarlyStopping::Yes,
            Some(Value::String(text)) if text == "never" => EarlyStopping::Never,
            Some(_) => return Err(fields.error("early_stopping", "true, false or \"never\"")),
        };
        let forced_eos = match (fields.get("forced_eos_token_id"), has_own) {
            // Marian's configuration class fills this in; a generation config of its own does not.
            (None, false) => Some(Value::from(0)),
            (value, _) => value.cloned(),
        };
        let mut unsupported = unsupported_settings(&fields, model);
        // Without it transformers cuts at max_length; with it, it closes the sentence.
        if forced_eos.as_ref().and_then(Value::as_u64) != Some(model.ids.eos_id.into()) {
            unsupported.push(format!("forced_eos_token_id = {}", forced_eos.unwrap_or(Value::Null)));
        }
        let vocab_size = model.decoder_vocab_size;
        let (suppressed, mut bad_words) = (fields.ids("suppress_tokens")?, fields.id_lists("bad_words_ids")?);
        let unknown = |id: &u32| *id as usize >= vocab_size;
        let forced_bos = fields.get("forced_bos_token_id").filter(|value| !value.is_null());
        let first = forced_bos.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()).filter(|id| !unknown(id));
        for (field, wrong) in [
            // Transformers generates padding unless it is told not to; the search here never does.
            ("bad_words_ids", !bad_words.contains(&vec![model.ids.pad_id]) || bad_words.iter().flatten().any(unknown)),
            ("suppress_tokens", suppressed.iter().any(unknown)),
            ("forced_bos_token_id", forced_bos.is_some() && first.is_none()),
        ] {
            if wrong {
                unsupported.push(format!("{field} = {}", fields.get(field).unwrap_or(&Value::Null)));
            }
        }
        bad_words.retain(|ids| ![[model.ids.pad_id], [model.ids.eos_id]].iter().any(|alone| ids == alone));
        Ok(GenerationConfig {
            beam_size: fields.size("num_beams", 1, 1 << 10)?,
            length_penalty: number("length_penalty", 1.0)? as f32,
            early_stopping,
            // max_length counts the start token; 20 is transformers' own default.
            max_len: fields.integer("max_length", Some(20), 2..=MAX_LENGTH)? as usize - 1,
            min_len: fields.integer("min_length", Some(0), 0..=MAX_LENGTH)? as usize,
            renormalize: fields.flag("renormalize_logits", false)?,
            repetition_penalty: number("repetition_penalty", 1.0)? as f32,
            no_repeat_ngram: fields.integer("no_repeat_ngram_size", Some(0), 0..=MAX_LENGTH)? as usize,
            forced_bos: first,
            suppressed,
            bad_words,
            vocab_size,
            unsupported,
        })
    }
}

/// The token ids of a JSON list.
fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

/// What each other setting of generation must be, if it is there.
const NEUTRAL: [(&str, &[f64]); 16] = [
    ("num_return_sequences", &[1.0]),
    ("num_beam_groups", &[1.0]),
    ("diversity_penalty", &[0.0]),
    ("penalty_alpha", &[]),
    ("encoder_repetition_penalty", &[1.0]),
    ("encoder_no_repeat_ngram_size", &[0.0]),
    ("guidance_scale", &[1.0]),
    ("begin_suppress_tokens", &[]),
    ("force_words_ids", &[]),
    ("constraints", &[]),
    ("sequence_bias", &[]),
    ("exponential_decay_length_penalty", &[]),
    ("max_new_tokens", &[]),
    ("min_new_tokens", &[]),
    ("max_time", &[]),
    ("stop_strings", &[]),
];

/// The settings that ask for more than this crate does, as `name = value`.
fn unsupported_settings(fields: &Fields, model: &ModelConfig) -> Vec<String> {
    let null = Value::Null;
    let value = |field: &str| fields.get(field).unwrap_or(&null);
    let is_id = |value: &Value, id: u32| match value {
        Value::Array(ids) if ids.len() == 1 => ids[0].as_u64() == Some(id.into()),
        value => value.is_null() || value.as_u64() == Some(id.into()),
    };
    let mut wrong: Vec<&str> = Vec::new();
    for (field, neutral) in NEUTRAL {
        let value = value(field);
        if !value.is_null() && !value.as_f64().is_some_and(|v| neutral.contains(&v)) {
            wrong.push(field);
        }
    }
    for field in ["do_sample", "remove_invalid_values", "token_healing"] {
        if ![Value::Null, Value::Bool(false)].contains(value(field)) {
            wrong.push(field);
        }
    }
    let ids = &model.ids;
    for (field, id) in
        [("eos_token_id", ids.eos_id), ("pad_token_id", ids.pad_id), ("decoder_start_token_id", ids.decoder_start_id)]
    {
        if !is_id(value(field), id) {
            wrong.push(field);
        }
    }
    wrong.into_iter().map(|field| format!("{field} = {}", value(field))).collect()
}
