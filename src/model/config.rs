//! `config.json`, read as transformers reads it for Marian models.

use std::path::Path;

use serde_json::{Map, Value};

use crate::backend::{Activation, Heads, SpecialIds};
use crate::{Error, Result, read};

/// The architecture of a Marian model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of a row.
    pub d_model: usize,
    /// Source vocabulary size.
    pub vocab_size: usize,
    /// Target vocabulary size.
    pub decoder_vocab_size: usize,
    /// Rows of the position table: the longest sequence, end of sentence included.
    pub max_position_embeddings: usize,
    /// The encoder.
    pub encoder: StackConfig,
    /// The decoder.
    pub decoder: StackConfig,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// Whether token embeddings are multiplied by sqrt(d_model).
    pub scale_embedding: bool,
    /// Whether source and target share one embedding table.
    pub share_embeddings: bool,
    /// Whether the output projection is the target embedding table.
    pub tie_word_embeddings: bool,
    /// Ids with a meaning of their own.
    pub ids: SpecialIds,
    /// Flags that stand in the file and that transformers ignores for Marian models, as `name = value`.
    pub ignored: Vec<String>,
}

/// The size of the encoder or of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackConfig {
    /// Number of layers.
    pub layers: usize,
    /// Shape of its attentions.
    pub heads: Heads,
    /// Width of the feed-forward layer.
    pub ffn_dim: usize,
}

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

/// Flags that would change the computation in Marian itself, but that transformers' Marian model never reads, with the value that
/// goes without saying.
const IGNORED: [(&str, bool); 5] = [
    ("normalize_before", false),
    ("normalize_embedding", false),
    ("add_final_layer_norm", false),
    ("add_bias_logits", false),
    ("static_position_embeddings", true),
];

impl ModelConfig {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// [`Error::Config`] for a missing or malformed field, and for a value that asks for a computation this crate does not do.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let fields = Fields::read(&path)?;
        if fields.get("model_type").and_then(Value::as_str) != Some("marian") {
            return Err(fields.error("model_type", "\"marian\""));
        }
        refuse_unknown_computations(&fields)?;
        let d_model = fields.size("d_model", 1024, MAX_WIDTH)?;
        let vocab_size = fields.size("vocab_size", 58101, MAX_VOCAB)?;
        let decoder_vocab_size = fields.size("decoder_vocab_size", vocab_size as u64, MAX_VOCAB)?;
        let share_embeddings = fields.flag("share_encoder_decoder_embeddings", true)?;
        if share_embeddings && decoder_vocab_size != vocab_size {
            return Err(fields.error("decoder_vocab_size", format!("{vocab_size}, as embeddings are shared")));
        }
        let max_position_embeddings = fields.size("max_position_embeddings", 1024, MAX_WIDTH)?;
        if max_position_embeddings * d_model > MAX_POSITION_VALUES {
            let expected = format!("at most {} for d_model {d_model}", MAX_POSITION_VALUES / d_model);
            return Err(fields.error("max_position_embeddings", expected));
        }
        // The defaults are transformers', where they are the sizes of the first OPUS-MT model.
        let pad_id = fields.id("pad_token_id", 58100, decoder_vocab_size)?;
        let ids = SpecialIds {
            eos_id: fields.id("eos_token_id", 0, decoder_vocab_size.min(vocab_size))?,
            pad_id,
            decoder_start_id: fields.id("decoder_start_token_id", 58100, decoder_vocab_size)?,
        };
        Ok(ModelConfig {
            d_model,
            vocab_size,
            decoder_vocab_size,
            max_position_embeddings,
            encoder: StackConfig::read(&fields, "encoder", d_model)?,
            decoder: StackConfig::read(&fields, "decoder", d_model)?,
            activation: activation(&fields)?,
            scale_embedding: fields.flag("scale_embedding", false)?,
            share_embeddings,
            tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
            ids,
            ignored: ignored_flags(&fields)?,
        })
    }

    /// What token embeddings are multiplied by.
    pub fn embedding_scale(&self) -> f32 {
        if self.scale_embedding { (self.d_model as f32).sqrt() } else { 1.0 }
    }
}

impl StackConfig {
    fn read(fields: &Fields<'_>, side: &str, d_model: usize) -> Result<Self> {
        let heads_field = format!("{side}_attention_heads");
        let num_heads = fields.size(&heads_field, 16, MAX_WIDTH)?;
        if !d_model.is_multiple_of(num_heads) {
            return Err(fields.error(&heads_field, format!("a divisor of d_model {d_model}")));
        }
        Ok(StackConfig {
            layers: fields.size(&format!("{side}_layers"), 12, MAX_LAYERS)?,
            heads: Heads { num_heads, head_dim: d_model / num_heads },
            ffn_dim: fields.size(&format!("{side}_ffn_dim"), 4096, MAX_WIDTH)?,
        })
    }
}

fn activation(fields: &Fields<'_>) -> Result<Activation> {
    match fields.get("activation_function").map(|v| v.as_str().unwrap_or_default()) {
        None | Some("gelu") => Ok(Activation::GeluErf),
        Some("swish" | "silu") => Ok(Activation::Silu),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(_) => Err(fields.error("activation_function", "swish, silu, relu, gelu, gelu_new or gelu_pytorch_tanh")),
    }
}

fn refuse_unknown_computations(fields: &Fields<'_>) -> Result<()> {
    if fields.get("quantization_config").is_some() {
        return Err(fields.error("quantization_config", "none: weights in f32, f16 or bf16"));
    }
    for (field, needed) in [("is_encoder_decoder", true), ("tie_encoder_decoder", false)] {
        if fields.flag(field, needed)? != needed {
            return Err(fields.error(field, needed.to_string()));
        }
    }
    Ok(())
}

fn ignored_flags(fields: &Fields<'_>) -> Result<Vec<String>> {
    let mut ignored = Vec::new();
    for (field, expected) in IGNORED {
        if fields.flag(field, expected)? != expected {
            ignored.push(format!("{field} = {}", !expected));
        }
    }
    Ok(ignored)
}

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
