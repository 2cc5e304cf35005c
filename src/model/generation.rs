//! `generation_config.json`, read as transformers 4.57 obeys it in `generate` for an encoder-decoder model.
//!
//! [`KEYS`] says of every key of its `GenerationConfig` what becomes of it here; `docs/models.md` is the same table with reasons.

use std::path::Path;

use serde_json::Value;

use super::config::{Fields, ModelConfig, token_id};
use crate::Result;

/// What `generation_config.json` says about search; the `hf` preset reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// `num_beams`.
    pub beam_size: usize,
    /// `length_penalty`.
    pub length_penalty: f32,
    /// `early_stopping`.
    pub early_stopping: EarlyStopping,
    /// Generated tokens, end of sentence included: `max_new_tokens`, else `max_length` less the start token.
    pub max_len: usize,
    /// Whether the file says nothing of a length, so that `max_len` is transformers' own 20.
    pub is_default_length: bool,
    /// The generated token, counted from 1, that may be the first end of sentence: `min_new_tokens` and one more, else
    /// `min_length`, which counts the start token.
    pub min_len: usize,
    /// `renormalize_logits`: masked tokens give their probability to the others before ranking.
    pub renormalize: bool,
    /// `repetition_penalty`; 1 switches it off.
    pub repetition_penalty: f32,
    /// `no_repeat_ngram_size`; 0 switches it off.
    pub no_repeat_ngram: usize,
    /// `forced_bos_token_id`.
    pub forced_bos: Option<u32>,
    /// Whether `forced_eos_token_id` ends a sentence at `max_len`; otherwise it is cut there.
    pub forces_eos: bool,
    /// Whether padding competes with the other tokens: neither `bad_words_ids` nor `suppress_tokens` rules it out.
    pub allows_padding: bool,
    /// `suppress_tokens` within the vocabulary, padding left out.
    pub suppressed: Vec<u32>,
    /// `bad_words_ids`, padding and end of sentence alone left out: the one has its own field, the other may not be banned.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that the ids above are of.
    pub vocab_size: usize,
    /// Settings that ask for a search this crate does not do, as `name = value (what to write)`.
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

/// What becomes of a key of a generation config.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The search does what it says.
    Obeyed,
    /// It cannot change a translation, so it is passed over.
    Harmless,
    /// Refused unless it has this number, or is null or empty.
    Only(f64),
    /// Refused unless it is false, null or empty.
    OnlyFalse,
    /// Refused unless it is null or empty.
    OnlyNull,
    /// Refused unless it is the id that `config.json` has.
    OnlyTheModels,
}

use Rule::{Harmless, Obeyed, Only, OnlyFalse, OnlyNull, OnlyTheModels};

/// Every key of `GenerationConfig` in transformers 4.57, in its order. Any other is passed over, as it is there.
pub const KEYS: [(&str, Rule); 69] = [
    ("max_length", Obeyed),
    ("max_new_tokens", Obeyed),
    ("min_length", Obeyed),
    ("min_new_tokens", Obeyed),
    ("early_stopping", Obeyed),
    ("max_time", OnlyNull),
    ("stop_strings", OnlyNull),
    ("do_sample", OnlyFalse),
    ("num_beams", Obeyed),
    ("use_cache", Harmless),
    ("cache_implementation", Harmless),
    ("cache_config", Harmless),
    ("return_legacy_cache", Harmless),
    ("prefill_chunk_size", Harmless),
    ("temperature", Harmless),
    ("top_k", Harmless),
    ("top_p", Harmless),
    ("min_p", Harmless),
    ("typical_p", Harmless),
    ("epsilon_cutoff", Harmless),
    ("eta_cutoff", Harmless),
    ("repetition_penalty", Obeyed),
    ("encoder_repetition_penalty", Only(1.0)),
    ("length_penalty", Obeyed),
    ("no_repeat_ngram_size", Obeyed),
    ("bad_words_ids", Obeyed),
    ("renormalize_logits", Obeyed),
    ("forced_bos_token_id", Obeyed),
    ("forced_eos_token_id", Obeyed),
    ("remove_invalid_values", Harmless),
    ("exponential_decay_length_penalty", OnlyNull),
    ("suppress_tokens", Obeyed),
    ("begin_suppress_tokens", OnlyNull),
    ("sequence_bias", OnlyNull),
    ("token_healing", OnlyFalse),
    ("guidance_scale", Only(1.0)),
    ("watermarking_config", OnlyNull),
    ("num_return_sequences", Only(1.0)),
    ("output_attentions", Harmless),
    ("output_hidden_states", Harmless),
    ("output_scores", Harmless),
    ("output_logits", Harmless),
    ("return_dict_in_generate", Harmless),
    ("pad_token_id", Harmless),
    ("bos_token_id", Harmless),
    ("eos_token_id", OnlyTheModels),
    ("encoder_no_repeat_ngram_size", Only(0.0)),
    ("decoder_start_token_id", OnlyTheModels),
    ("is_assistant", Harmless),
    ("num_assistant_tokens", Harmless),
    ("num_assistant_tokens_schedule", Harmless),
    ("assistant_confidence_threshold", Harmless),
    ("prompt_lookup_num_tokens", Harmless),
    ("max_matching_ngram_size", Harmless),
    ("assistant_early_exit", Harmless),
    ("assistant_lookbehind", Harmless),
    ("target_lookbehind", Harmless),
    ("compile_config", Harmless),
    ("disable_compile", Harmless),
    ("low_memory", Harmless),
    ("penalty_alpha", Only(0.0)),
    ("dola_layers", OnlyNull),
    ("diversity_penalty", Harmless),
    ("num_beam_groups", Only(1.0)),
    ("constraints", OnlyNull),
    ("force_words_ids", OnlyNull),
    ("_from_model_config", Harmless),
    ("_commit_hash", Harmless),
    ("transformers_version", Harmless),
];

/// Lengths end at the position table anyway.
const MAX_LENGTH: u64 = u32::MAX as u64;

/// The new tokens that `generate` makes where nothing is said of a length: `max_length` 20 means as many without the start token.
const DEFAULT_LENGTH: u64 = 20;

/// What transformers' configuration classes take for `forced_eos_token_id` in a `config.json` without it.
const CLASS_FORCED_EOS: [(&str, i64); 6] =
    [("marian", 0), ("bart", 2), ("mbart", 2), ("plbart", 2), ("fsmt", 2), ("pegasus", 1)];

impl GenerationConfig {
    /// Reads `generation_config.json`, or the same fields of `config.json` where there is none.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a malformed field.
    pub fn open(dir: &Path, model: &ModelConfig) -> Result<Self> {
        let own = dir.join("generation_config.json");
        let has_own = own.exists();
        let path = if has_own { own } else { dir.join("config.json") };
        let fields = Fields::read(&path)?;
        let number = |field: &str, default: f64| match fields.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| fields.error(field, "a number")),
        };
        let beam_size = fields.size("num_beams", 1, 1 << 10)?;
        let (mut suppressed, mut bad_words) = (fields.ids("suppress_tokens")?, fields.id_lists("bad_words_ids")?);
        let ids = &model.ids;
        let vocab_size = model.decoder_vocab_size;
        let inside = |id: &i64| (0..vocab_size as i64).contains(id);
        let forced_bos = forced_bos(&fields, has_own);
        let forced_eos = forced_eos(&fields, has_own)?;
        let forces_eos = forced_eos == Some(ids.eos_id.into());

        let mut unsupported = refused(&fields, model, has_own, beam_size);
        let mut refuse = |field: &str, advice: &str| {
            unsupported.push(format!("{field} = {} (write {advice})", fields.get(field).unwrap_or(&Value::Null)));
        };
        if forced_eos.is_some() && !forces_eos {
            refuse("forced_eos_token_id", &format!("{} or null", ids.eos_id));
        }
        if bad_words.iter().flatten().any(|id| !inside(id)) {
            refuse("bad_words_ids", &format!("ids below {vocab_size}"));
        }
        let first = forced_bos.and_then(|id| id.filter(inside)).map(|id| id as u32);
        if forced_bos.is_some() && first.is_none() {
            refuse("forced_bos_token_id", &format!("one id below {vocab_size}, or null"));
        }
        // What is forced is ruled out once more by this list, and no token is left.
        let forced = first.map(i64::from).into_iter().chain(forced_eos.filter(|_| forces_eos));
        if let Some(id) = forced.into_iter().find(|id| suppressed.contains(id)) {
            refuse("suppress_tokens", &format!("a list without {id}, which is forced"));
        }
        let pad = i64::from(ids.pad_id);
        let allows_padding = !suppressed.contains(&pad) && !bad_words.contains(&vec![pad]);
        suppressed.retain(|id| inside(id) && *id != pad);
        let (max_len, min_len) = (max_len(&fields, model)?, min_len(&fields)?);
        // Where nothing forces it, an end of sentence that comes too late for the length limit never comes.
        if min_len > max_len && !forces_eos {
            suppressed.push(ids.eos_id.into());
        }
        bad_words.retain(|words| *words != [pad] && *words != [i64::from(ids.eos_id)] && words.iter().all(inside));
        let narrow = |ids: Vec<i64>| ids.into_iter().map(|id| id as u32).collect::<Vec<u32>>();
        Ok(GenerationConfig {
            beam_size,
            length_penalty: number("length_penalty", 1.0)? as f32,
            early_stopping: early_stopping(&fields)?,
            max_len,
            is_default_length: fields.get("max_new_tokens").is_none() && fields.get("max_length").is_none(),
            min_len: min_len.min(max_len),
            renormalize: fields.flag("renormalize_logits", false)?,
            repetition_penalty: number("repetition_penalty", 1.0)? as f32,
            no_repeat_ngram: fields.integer("no_repeat_ngram_size", Some(0), 0..=MAX_LENGTH)? as usize,
            forced_bos: first,
            forces_eos,
            allows_padding,
            suppressed: narrow(suppressed),
            bad_words: bad_words.into_iter().map(narrow).collect(),
            vocab_size,
            unsupported,
        })
    }
}

impl Fields<'_> {
    /// A list of token ids; empty where there is none.
    fn ids(&self, field: &str) -> Result<Vec<i64>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        ids(value).ok_or_else(|| self.error(field, "a list of token ids"))
    }

    /// A list of lists of token ids, none of them empty.
    fn id_lists(&self, field: &str) -> Result<Vec<Vec<i64>>> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = |value: &Value| ids(value).filter(|ids| !ids.is_empty());
        let lists = value.as_array().and_then(|lists| lists.iter().map(list).collect());
        lists.ok_or_else(|| self.error(field, "lists of token ids, none of them empty"))
    }
}

/// The token ids of a JSON list.
fn ids(value: &Value) -> Option<Vec<i64>> {
    value.as_array()?.iter().map(|id| token_id(id).filter(|_| !id.is_array())).collect()
}

/// Whether a value says nothing: null, or an empty list or object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

fn early_stopping(fields: &Fields<'_>) -> Result<EarlyStopping> {
    match fields.get("early_stopping") {
        None | Some(Value::Bool(false)) => Ok(EarlyStopping::No),
        Some(Value::Bool(true)) => Ok(EarlyStopping::Yes),
        Some(Value::String(text)) if text == "never" => Ok(EarlyStopping::Never),
        Some(_) => Err(fields.error("early_stopping", "true, false or \"never\"")),
    }
}

fn max_len(fields: &Fields<'_>, model: &ModelConfig) -> Result<usize> {
    if fields.get("max_new_tokens").is_some() {
        return Ok(fields.integer("max_new_tokens", None, 1..=MAX_LENGTH)? as usize);
    }
    let max_length = fields.integer("max_length", Some(DEFAULT_LENGTH), 2..=MAX_LENGTH)? as usize;
    // The default counts new tokens, even where the file spells it out; with the start token it may not exceed the table.
    Ok(match max_length == DEFAULT_LENGTH as usize {
        true => max_length.min(model.longest().saturating_sub(1)).max(1),
        false => max_length - 1,
    })
}

fn min_len(fields: &Fields<'_>) -> Result<usize> {
    match fields.get("min_new_tokens") {
        Some(_) => Ok(fields.integer("min_new_tokens", None, 0..=MAX_LENGTH)? as usize + 1),
        None => Ok(fields.integer("min_length", Some(0), 0..=MAX_LENGTH)? as usize),
    }
}

/// `forced_bos_token_id`, if there is one; `Some(None)` if it is no token id.
fn forced_bos(fields: &Fields<'_>, has_own: bool) -> Option<Option<i64>> {
    if let Some(value) = fields.get("forced_bos_token_id").filter(|value| !is_empty(value)) {
        return Some(token_id(value));
    }
    // BART's first configurations said it so.
    let flag = fields.get("force_bos_token_to_be_generated").and_then(Value::as_bool).unwrap_or(false);
    (flag && !has_own).then(|| fields.get("bos_token_id").map_or(Some(0), token_id))
}

/// `forced_eos_token_id`, if there is one; in a `config.json` the class has a say, in a generation config of its own it has none.
fn forced_eos(fields: &Fields<'_>, has_own: bool) -> Result<Option<i64>> {
    match fields.get("forced_eos_token_id") {
        Some(value) if is_empty(value) => Ok(None),
        // Several tokens are no end of sentence; -1 is no token either.
        Some(value) => Ok(Some(token_id(value).unwrap_or(-1))),
        None if has_own || fields.contains("forced_eos_token_id") => Ok(None),
        None => {
            let class = fields.get("model_type").and_then(Value::as_str).unwrap_or_default();
            Ok(CLASS_FORCED_EOS.iter().find(|(name, _)| *name == class).map(|(_, id)| *id))
        }
    }
}

/// The settings that ask for more than this crate does, as `name = value (write what would do)`.
fn refused(fields: &Fields<'_>, model: &ModelConfig, has_own: bool, beam_size: usize) -> Vec<String> {
    let null = Value::Null;
    let (eos, start) = (i64::from(model.ids.eos_id), i64::from(model.ids.decoder_start_id));
    // Without a token to start from transformers does not begin at all; then the model's own ids hold.
    let starts = ["decoder_start_token_id", "bos_token_id"].into_iter().find(|field| fields.get(field).is_some());
    let mut refused = Vec::new();
    for (field, rule) in KEYS {
        let value = fields.get(field).unwrap_or(&null);
        let is_other = |neutral: bool| !is_empty(value) && !neutral;
        // Each of these has no effect in the other kind of search.
        let is_idle = match field {
            "penalty_alpha" | "dola_layers" => beam_size > 1,
            "num_beam_groups" => beam_size == 1,
            _ => false,
        };
        let advice = match rule {
            _ if is_idle => continue,
            Only(number) if is_other(value.as_f64() == Some(number)) => number.to_string(),
            OnlyFalse if is_other(*value == Value::Bool(false)) => "false".into(),
            OnlyNull if is_other(false) => "null".into(),
            OnlyTheModels => match field {
                // Without an end of sentence transformers goes on until the length limit.
                "eos_token_id" if is_eos(value, eos) || (value.is_null() && (!has_own || starts.is_none())) => continue,
                "eos_token_id" => eos.to_string(),
                _ if starts.is_none_or(|field| fields.get(field).and_then(token_id) == Some(start)) => continue,
                _ if !has_own && value.is_null() => continue,
                _ => start.to_string(),
            },
            _ => continue,
        };
        refused.push(format!("{field} = {value} (write {advice})"));
    }
    refused
}

/// Whether a value says that this token alone ends a sentence.
fn is_eos(value: &Value, eos: i64) -> bool {
    match value {
        Value::Array(ids) => !ids.is_empty() && ids.iter().all(|id| token_id(id) == Some(eos)),
        value => token_id(value) == Some(eos),
    }
}
