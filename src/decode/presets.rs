//! Named sets of options: what the peers do, in the terms of this search.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bans::Bans;
use super::options::{DecodeOptions, LengthPenalty, MaxLength, Stop};
use crate::model::generation::{EarlyStopping, GenerationConfig};
use crate::{Error, Result};

/// A named set of options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// GNMT length penalty 0.7, no coverage penalty.
    #[default]
    Default,
    /// GNMT length penalty 0.7, coverage penalty 0.2.
    Production,
    /// What transformers' `generate` does with the model's `generation_config.json`.
    Hf,
    /// What CTranslate2's `translate_batch` does.
    CTranslate2,
    /// What fairseq's `SequenceGenerator` does.
    Fairseq,
    /// What marian-decoder does.
    Marian,
}

/// What a generation config bans, if anything.
fn bans(generation: &GenerationConfig) -> Result<Option<Arc<Bans>>> {
    let GenerationConfig { suppressed, bad_words, vocab_size, .. } = generation;
    if suppressed.is_empty() && bad_words.is_empty() {
        return Ok(None);
    }
    Bans::new(*vocab_size, suppressed, None, bad_words).map(|bans| Some(Arc::new(bans)))
}

impl DecodeOptions {
    /// The options of a preset; `generation` is the model's own generation config, which `hf` follows.
    ///
    /// # Errors
    /// [`Error::Option`] if `hf` is asked for and the generation config wants a search that this crate does not do.
    pub fn preset(preset: Preset, generation: &GenerationConfig) -> Result<Self> {
        let default = DecodeOptions { preset, ..DecodeOptions::default() };
        match preset {
            Preset::Default => Ok(default),
            Preset::Production => Ok(DecodeOptions { coverage_penalty: 0.2, ..default }),
            Preset::Hf if generation.unsupported.is_empty() => Ok(DecodeOptions {
                beam_size: generation.beam_size,
                length_penalty: LengthPenalty::Power,
                alpha: generation.length_penalty,
                preset_stop: match generation.early_stopping {
                    EarlyStopping::Yes => Stop::First,
                    EarlyStopping::No => Stop::Heuristic,
                    EarlyStopping::Never => Stop::Exact,
                },
                max_length: MaxLength::Absolute(generation.max_len),
                min_length: generation.min_len,
                forced_bos: generation.forced_bos,
                forced_free: true,
                allow_padding: generation.allows_padding,
                count_start: true,
                cut: !generation.forces_eos,
                renormalize: generation.renormalize,
                repetition_penalty: generation.repetition_penalty,
                no_repeat_ngram: generation.no_repeat_ngram,
                bans: bans(generation)?,
                ..default
            }),
            Preset::CTranslate2 => Ok(DecodeOptions {
                beam_size: 2,
                length_penalty: LengthPenalty::Power,
                alpha: 1.0,
                preset_stop: Stop::First,
                max_length: MaxLength::Absolute(256),
                // It asks for one token before the end of sentence, and leaves what is masked out of the softmax.
                min_length: 2,
                renormalize: true,
                cut: true,
                ..default
            }),
            Preset::Fairseq => Ok(DecodeOptions {
                beam_size: 5,
                length_penalty: LengthPenalty::Power,
                alpha: 1.0,
                preset_stop: Stop::First,
                // 200 tokens and the end of sentence; and one token before that at least.
                max_length: MaxLength::Absolute(201),
                min_length: 2,
                ..default
            }),
            Preset::Marian => Ok(DecodeOptions {
                beam_size: 12,
                length_penalty: LengthPenalty::PowerOfAll,
                alpha: 0.0,
                preset_stop: Stop::First,
                shrink: true,
                max_length: MaxLength::Relative { factor: 3.0, offset: 0 },
                // Its models have no padding token that could take part in the softmax.
                renormalize: true,
                cut: true,
                ..default
            }),
            Preset::Hf => Err(Error::Option {
                option: "preset",
                expected: "a generation config whose search is one of those here".into(),
                got: generation.unsupported.join(", "),
            }),
        }
    }

    /// The stop rule: `stop`, else the preset's own.
    ///
    /// With one beam transformers searches greedily, whatever its configuration says: [`Stop::First`]. CTranslate2 leaves early
    /// where the sums alone are the scores: [`Stop::Top`]. So what a preset does follows the other options.
    pub fn stop_rule(&self) -> Stop {
        match (self.stop, self.preset) {
            (Some(stop), _) => stop,
            (None, Preset::Hf) if self.beam_size == 1 => Stop::First,
            (None, Preset::CTranslate2) if self.beam_size > 1 && self.is_unpenalized() => Stop::Top,
            (None, _) => self.preset_stop,
        }
    }

    /// Whether the repetition penalty acts on logits: `penalize_logits`, else as the preset's own engine does, which is always in
    /// CTranslate2, and in transformers with one beam.
    pub fn penalizes_logits(&self) -> bool {
        self.penalize_logits.unwrap_or(match self.preset {
            Preset::Hf => self.beam_size == 1,
            Preset::CTranslate2 => true,
            Preset::Default | Preset::Production | Preset::Fairseq | Preset::Marian => false,
        })
    }
}
