//! The options of search: a preset, and what overrides it.

use std::sync::Arc;

use clap::ValueEnum;

use crate::cli::complain;
use crate::cli::control_options::ControlArguments;
use crate::cli::counts::{count, finite};
use crate::cli::sampling_options::SamplingArguments;
use crate::counts;
use crate::decode::options::DEFAULT_ALPHA;
use crate::{Bans, DecodeOptions, Error, LengthPenalty, MaxLength, Preset, Result, Stop, Translator};

/// How to search.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Search")]
pub(super) struct SearchArguments {
    /// Options to start from; those below override it [default: default].
    #[arg(long, value_enum)]
    preset: Option<PresetName>,
    /// Hypotheses kept alive per sentence; 1 is greedy search [default preset: 4].
    #[arg(long, value_name = "K", value_parser = count(counts::HYPOTHESES))]
    beam_size: Option<usize>,
    /// Hypotheses returned per sentence, at most beam-size [default: 1].
    #[arg(long, value_name = "N", value_parser = count(counts::HYPOTHESES))]
    n_best: Option<usize>,
    /// What divides a hypothesis' log-probability: gnmt ((5+len)/6)^alpha, power len^alpha, none 1, power-of-all len^alpha of the
    /// word reward too [default preset: gnmt].
    #[arg(long, value_enum, value_name = "KIND")]
    length_penalty: Option<LengthPenaltyName>,
    /// Exponent of the length penalty [default preset: 0.7].
    #[arg(long, value_name = "A", allow_negative_numbers = true, value_parser = finite::<f32>())]
    alpha: Option<f32>,
    /// Weight of the coverage penalty [default preset: 0; production: 0.2].
    #[arg(long, value_name = "B", allow_negative_numbers = true, value_parser = finite::<f32>())]
    coverage_penalty: Option<f32>,
    /// Added to the score per generated token [default: 0].
    #[arg(long, value_name = "G", allow_negative_numbers = true, value_parser = finite::<f32>())]
    word_reward: Option<f32>,
    /// When to stop, once beam-size hypotheses have finished: first at once, heuristic when no live one is ahead, exact when
    /// none can catch up; or top, once n-best have finished and an end of sentence has ranked first, for searches without penalties
    /// [default preset: heuristic].
    #[arg(long, value_enum, value_name = "RULE")]
    stop: Option<StopName>,
    /// Let this times beam-size hypotheses finish before the stop rule is asked [default: 1].
    #[arg(long, value_name = "F", allow_negative_numbers = true, value_parser = finite::<f32>())]
    patience: Option<f32>,
    /// A finished hypothesis leaves one beam less, as in Marian, where others take its place [presets but marian: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    shrink: Option<bool>,
    /// At the maximum length return hypotheses as they are, without end of sentence [presets but ctranslate2 and marian: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    cut: Option<bool>,
    /// Give the probability of tokens that may not come next to those that may, before ranking [presets ctranslate2 and marian: true].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    renormalize: Option<bool>,
    /// Generated tokens, end of sentence included, at which a sentence is ended: a number, or a*S+b with S the source's tokens
    /// [default preset: 1.5*S+10].
    #[arg(long, value_name = "N|a*S+b")]
    max_length: Option<String>,
    /// Generated tokens, end of sentence included, below which no sentence ends [default: 0].
    #[arg(long, value_name = "N", value_parser = count(counts::LENGTH))]
    min_length: Option<usize>,
    /// Cut a source that is longer than the model's position table, and flag it, instead of refusing it.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    truncate: Option<bool>,
    /// Add each hypothesis' attention and word alignment to JSON lines.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    attention: Option<bool>,
    /// Groups that the beams are split into, each kept apart from those before it: diverse beam search [default: 1].
    #[arg(long, value_name = "G", value_parser = count(counts::HYPOTHESES))]
    beam_groups: Option<usize>,
    /// What a token loses for each time that an earlier group goes on with it at the same step [default: 0.5].
    #[arg(long, value_name = "D", allow_negative_numbers = true, value_parser = finite::<f32>())]
    diversity: Option<f32>,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    pub control: ControlArguments,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PresetName {
    /// GNMT length penalty 0.7.
    #[default]
    Default,
    /// GNMT length penalty 0.7, coverage penalty 0.2.
    Production,
    /// What transformers' generate does with the model's generation_config.json.
    Hf,
    /// What CTranslate2's translate_batch does: 2 beams, length penalty len^1.
    #[value(name = "ctranslate2")]
    CTranslate2,
    /// What fairseq's generator does: 5 beams, length penalty len^1.
    Fairseq,
    /// What marian-decoder does: 12 beams that shrink, no length penalty; its word-penalty is a negative word-reward.
    Marian,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LengthPenaltyName {
    Gnmt,
    Power,
    PowerOfAll,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StopName {
    First,
    Heuristic,
    Exact,
    Top,
}

impl SearchArguments {
    /// The options for this model, checked.
    pub(super) fn resolve(&self, translator: &Translator) -> Result<DecodeOptions> {
        self.resolve_with(translator, self.control.bans(translator)?)
    }

    /// The same, with bans that have been read.
    pub(super) fn resolve_with(&self, translator: &Translator, bans: Option<Arc<Bans>>) -> Result<DecodeOptions> {
        let preset = self.preset.unwrap_or_default();
        let mut options = translator.preset(match preset {
            PresetName::Default => Preset::Default,
            PresetName::Production => Preset::Production,
            PresetName::Hf => Preset::Hf,
            PresetName::CTranslate2 => Preset::CTranslate2,
            PresetName::Fairseq => Preset::Fairseq,
            PresetName::Marian => Preset::Marian,
        })?;
        options.length_penalty = self.length_penalty(options.length_penalty);
        options.beam_size = self.beam_size.unwrap_or(options.beam_size);
        options.n_best = self.n_best.unwrap_or(options.n_best);
        options.coverage_penalty = self.coverage_penalty.unwrap_or(options.coverage_penalty);
        options.word_reward = self.word_reward.unwrap_or(options.word_reward);
        options.min_length = self.min_length.unwrap_or(options.min_length);
        options.patience = self.patience.unwrap_or(options.patience);
        options.shrink = self.shrink.unwrap_or(options.shrink);
        options.cut = self.cut.unwrap_or(options.cut);
        options.renormalize = self.renormalize.unwrap_or(options.renormalize);
        options.truncate_source = self.truncate.unwrap_or(options.truncate_source);
        options.attention = self.attention.unwrap_or(options.attention);
        options.groups = self.beam_groups.unwrap_or(options.groups);
        options.diversity = self.diversity.unwrap_or(options.diversity);
        if let (Some(diversity), 1) = (self.diversity, options.groups) {
            let expected = "beam-groups of 2 or more beside it".into();
            return Err(Error::Option { option: "diversity", expected, got: diversity.to_string() });
        }
        options.sampling = self.sampling.sampling()?;
        options.mbr = self.sampling.mbr();
        if matches!(preset, PresetName::Hf) {
            // With one beam transformers searches greedily, and ranks logits.
            options.penalize_logits = options.beam_size == 1;
        }
        options.stop = match (self.stop, preset) {
            (Some(StopName::First), _) => Stop::First,
            (Some(StopName::Heuristic), _) => Stop::Heuristic,
            (Some(StopName::Exact), _) => Stop::Exact,
            (Some(StopName::Top), _) => Stop::Top,
            // With one beam transformers searches greedily, whatever its configuration says.
            (None, PresetName::Hf) if options.beam_size == 1 => Stop::First,
            // It leaves early where the sums alone are the scores.
            (None, PresetName::CTranslate2) if options.beam_size > 1 && options.is_unpenalized() => Stop::Top,
            (None, _) => options.stop,
        };
        match &self.max_length {
            Some(max_length) => options.max_length = max_length.parse::<MaxLength>()?,
            None if matches!(preset, PresetName::Hf) && translator.generation().is_default_length => {
                complain(&format!(
                    "generation_config.json has no max_length: preset hf stops at {} tokens, as transformers does; --max-length says otherwise",
                    translator.generation().max_len
                ))
            }
            None => {}
        }
        self.control.apply(translator, &mut options)?;
        options.bans = bans.or(options.bans);
        options.validate()?;
        Ok(options)
    }

    /// The preset's penalty with the kind and the exponent that were given.
    fn length_penalty(&self, preset: LengthPenalty) -> LengthPenalty {
        let (kind, preset_alpha) = match preset {
            LengthPenalty::Gnmt { alpha } => (LengthPenaltyName::Gnmt, alpha),
            LengthPenalty::Power { alpha } => (LengthPenaltyName::Power, alpha),
            LengthPenalty::PowerOfAll { alpha } => (LengthPenaltyName::PowerOfAll, alpha),
            LengthPenalty::None => (LengthPenaltyName::None, DEFAULT_ALPHA),
        };
        let alpha = self.alpha.unwrap_or(preset_alpha);
        match self.length_penalty.unwrap_or(kind) {
            LengthPenaltyName::Gnmt => LengthPenalty::Gnmt { alpha },
            LengthPenaltyName::Power => LengthPenalty::Power { alpha },
            LengthPenaltyName::PowerOfAll => LengthPenalty::PowerOfAll { alpha },
            LengthPenaltyName::None => LengthPenalty::None,
        }
    }
}
