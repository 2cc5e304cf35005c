//! `config.json`, read as transformers reads it.

mod family;

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result, read};

pub use family::{FAMILIES, ModelConfig, NormConfig, NormPlacement, PositionConfig, RelativeConfig, StackConfig};

/// The fields of one JSON object, with errors that name file and field.
pub(super) struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn read(path: &'a Path) -> Result<Self> {
        Ok(Fields { path, map: read::json(path)? })
    }

    /// Whether the field is there, be it null.
    pub(super) fn contains(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// The field's value; null counts as absent, as in transformers.
    pub(super) fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    pub(super) fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let got = self.get(field).map_or_else(|| "nothing".into(), Value::to_string);
        Error::Config { path: self.path.to_path_buf(), field: field.into(), expected: expected.into(), got }
    }

    pub(super) fn integer(
        &self,
        field: &str,
        default: Option<u64>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64> {
        let value = match (self.get(field), default) {
            (None, Some(default)) => Some(default),
            (value, _) => value.and_then(Value::as_u64),
        };
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        value.filter(|v| range.contains(v)).ok_or_else(|| self.error(field, expected()))
    }

    pub(super) fn size(&self, field: &str, default: u64, most: u64) -> Result<usize> {
        Ok(self.integer(field, Some(default), 1..=most)? as usize)
    }

    /// A number above 0.
    fn positive(&self, field: &str, default: f64) -> Result<f32> {
        let value = self.get(field).map_or(Some(default), Value::as_f64).map(|value| value as f32);
        let value = value.filter(|value| *value > 0.0 && value.is_finite());
        value.ok_or_else(|| self.error(field, "a number above 0"))
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(field, "true or false")),
        }
    }

    /// A token id.
    fn id(&self, field: &str, default: u64, vocab_size: usize) -> Result<u32> {
        let value = match self.get(field) {
            None => Some(default as i64),
            Some(value) => token_id(value),
        };
        let id = value.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < vocab_size);
        id.ok_or_else(|| self.error(field, format!("one token id below {vocab_size}")))
    }
}

/// A token id as files have it: a number, the same as text, or a list of one of these.
pub(super) fn token_id(value: &Value) -> Option<i64> {
    match value {
        Value::String(text) => text.trim().parse().ok(),
        Value::Array(ids) if ids.len() == 1 && !ids[0].is_array() => token_id(&ids[0]),
        value => value.as_i64(),
    }
}

/// Bounds that keep sizes computed from a file within a machine's arithmetic; real models stay far below.
const MAX_WIDTH: u64 = 1 << 16;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 10;
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
            // T5's name for it.
            dropout: rate(if fields.contains("dropout") { "dropout" } else { "dropout_rate" }, 0.1)?,
            init_std: rate("init_std", 0.02)?,
            attention_dropout: rate("attention_dropout", 0.0)?,
            activation_dropout: rate("activation_dropout", 0.0)?,
        })
    }
}
