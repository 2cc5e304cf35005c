//! `config.json` and `generation_config.json`, read as transformers reads them for Marian models.

use std::path::Path;

use serde_json::{Map, Value};

use crate::backend::{Activation, Heads, SpecialIds};
use crate::{Error, Result};

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
    let text = crate::files::read_bounded(path, crate::files::MAX_CONFIG)?;
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

/// The fields of one JSON object, with errors that name file and field.
struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        Ok(Fields { path, map: read_json(path)? })
    }

    /// The field's value; null counts as absent, as in transformers.
    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn error(&self, field: &str, expected: impl Into<String>) -> Error {
        let got = self.get(field).map_or_else(|| "nothing".into(), Value::to_string);
        Error::Config { path: self.path.to_path_buf(), field: field.into(), expected: expected.into(), got }
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
fn unsupported_settings(fields: &Fields<'_>, model: &ModelConfig) -> Vec<String> {
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
