//! The options of sampling and of choosing among candidates.

use clap::ValueEnum;

use crate::cli::counts::{count, finite, seed};
use crate::counts;
use crate::decode::Sampling;
use crate::metrics::Utility;
use crate::{Error, Result};

/// How to draw translations, and how to choose among several.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub(super) struct SamplingArguments {
    /// Draw translations at random instead of searching for the best one.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sample: Option<bool>,
    /// Translations drawn per sentence; text output shows the first, or what --mbr chooses [default: 1].
    #[arg(long, value_name = "N", value_parser = count(counts::HYPOTHESES))]
    samples: Option<usize>,
    /// Divides the log-probabilities: below 1 sharpens, above 1 flattens, 0 takes the most probable token [default: 1].
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = finite::<f32>())]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens [default: all].
    #[arg(long, value_name = "K", value_parser = count(counts::TOP_K))]
    top_k: Option<usize>,
    /// Draw from the most probable tokens that hold this mass together [default: 1].
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite::<f32>())]
    top_p: Option<f32>,
    /// Draw from tokens at least this times as probable as the best [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite::<f32>())]
    min_p: Option<f32>,
    /// Draw from tokens of at least this probability [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite::<f32>())]
    epsilon: Option<f32>,
    /// Seed of all draws, together with each sentence's ids; a JSON field "seed" is a line's own [default: 0].
    #[arg(long, value_name = "S", value_parser = seed())]
    seed: Option<u64>,
    /// Choose by minimum Bayes risk: of all samples, or of the beam-size best, those closest to the others.
    #[arg(long, value_enum, value_name = "UTILITY")]
    mbr: Option<UtilityName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UtilityName {
    /// Sentence chrF2.
    Chrf,
    /// Sentence BLEU.
    Bleu,
}

impl SamplingArguments {
    /// How to draw; none without `--sample`, which the others stand beside.
    pub(super) fn sampling(&self) -> Result<Option<Sampling>> {
        if self.sample != Some(true) {
            return self.refuse_lonely();
        }
        let default = Sampling::default();
        Ok(Some(Sampling {
            samples: self.samples.unwrap_or(default.samples),
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            epsilon: self.epsilon.unwrap_or(default.epsilon),
            seed: self.seed.unwrap_or(default.seed),
        }))
    }

    /// Nothing is drawn: options about it would be without effect, unless drawing has been switched off for one line.
    fn refuse_lonely(&self) -> Result<Option<Sampling>> {
        let given = [
            ("samples", self.samples.map(|value| value.to_string())),
            ("temperature", self.temperature.map(|value| value.to_string())),
            ("top-k", self.top_k.map(|value| value.to_string())),
            ("top-p", self.top_p.map(|value| value.to_string())),
            ("min-p", self.min_p.map(|value| value.to_string())),
            ("epsilon", self.epsilon.map(|value| value.to_string())),
            ("seed", self.seed.map(|value| value.to_string())),
        ];
        match given.into_iter().find_map(|(option, value)| Some((option, value?))) {
            Some((option, got)) if self.sample.is_none() => {
                Err(Error::Option { option, expected: "--sample beside it".into(), got })
            }
            _ => Ok(None),
        }
    }

    pub(super) fn mbr(&self) -> Option<Utility> {
        self.mbr.map(|name| match name {
            UtilityName::Chrf => Utility::Chrf,
            UtilityName::Bleu => Utility::Bleu,
        })
    }
}
