//! The options of search as flags: each sets the field of its name in [`DecodeOptions`], which says what it means.

use clap::builder::PossibleValue;
use serde::Serialize;

use crate::cli::control_options::ControlArguments;
use crate::cli::counts::{count, finite, seed};
use crate::cli::note;
use crate::cli::values::reader;
use crate::counts;
use crate::{DecodeOptions, MaxLength, Overrides, Preset, Result, Translator};

/// How to search.
#[derive(Clone, Debug, Serialize, clap::Args)]
#[command(next_help_heading = "Search")]
pub(super) struct SearchArguments {
    #[serde(flatten)]
    #[command(flatten)]
    beams: BeamArguments,
    #[serde(flatten)]
    #[command(flatten)]
    sampling: SamplingArguments,
    #[serde(flatten)]
    #[command(flatten)]
    pub control: ControlArguments,
}

#[derive(Clone, Debug, Serialize, clap::Args)]
struct BeamArguments {
    /// Options to start from; those below override it [default: default].
    #[arg(long, value_parser = presets())]
    preset: Option<String>,
    /// Hypotheses kept alive per sentence; 1 is greedy search [default preset: 4].
    #[arg(long, value_name = "K", value_parser = count(counts::HYPOTHESES))]
    beam_size: Option<usize>,
    /// Hypotheses returned per sentence, at most beam-size [default: 1].
    #[arg(long, value_name = "N", value_parser = count(counts::HYPOTHESES))]
    n_best: Option<usize>,
    /// What divides a hypothesis' log-probability: gnmt ((5+len)/6)^alpha, power len^alpha, none 1, power-of-all len^alpha of the
    /// word reward too [default preset: gnmt].
    #[arg(long, value_name = "KIND", value_parser = ["gnmt", "power", "power-of-all", "none"])]
    length_penalty: Option<String>,
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
    #[arg(long, value_name = "RULE", value_parser = ["first", "heuristic", "exact", "top"])]
    stop: Option<String>,
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
    #[arg(long, value_name = "N|a*S+b", value_parser = reader(str::parse::<MaxLength>))]
    max_length: Option<MaxLength>,
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
}

/// How to draw translations, and how to choose among several.
#[derive(Clone, Debug, Serialize, clap::Args)]
#[command(next_help_heading = "Sampling")]
struct SamplingArguments {
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
    /// Draw from tokens with probability at least P times the maximum [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite::<f32>())]
    min_p: Option<f32>,
    /// Draw from tokens of at least this probability [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = finite::<f32>())]
    epsilon: Option<f32>,
    /// Seed of all draws, together with each sentence's ids; a JSON field "seed" is a line's own [default: 0].
    #[arg(long, value_name = "S", value_parser = seed())]
    seed: Option<u64>,
    /// Choose by minimum Bayes risk: of all samples, or of the beam-size best, those closest to the others.
    #[arg(long, value_name = "UTILITY", value_parser = utilities())]
    mbr: Option<String>,
}

fn presets() -> [PossibleValue; 6] {
    [
        ("default", "GNMT length penalty 0.7"),
        ("production", "GNMT length penalty 0.7, coverage penalty 0.2"),
        ("hf", "What transformers' generate does with the model's generation_config.json"),
        ("ctranslate2", "What CTranslate2's translate_batch does: 2 beams, length penalty len^1"),
        ("fairseq", "What fairseq's generator does: 5 beams, length penalty len^1"),
        (
            "marian",
            "What marian-decoder does: 12 beams that shrink, no length penalty; its word-penalty is a negative word-reward",
        ),
    ]
    .map(|(name, help)| PossibleValue::new(name).help(help))
}

fn utilities() -> [PossibleValue; 2] {
    [("chrf", "Sentence chrF2"), ("bleu", "Sentence BLEU")].map(|(name, help)| PossibleValue::new(name).help(help))
}

impl SearchArguments {
    /// What the flags set.
    pub(super) fn overrides(&self) -> Result<Overrides> {
        let mut set = Overrides::set_in(self)?;
        if let (Some(form), None) = (self.control.implied_form(), set.get("contrastive")) {
            set.set("contrastive", form);
        }
        Ok(set)
    }

    /// The options for this model, checked.
    pub(super) fn resolve(&self, translator: &Translator) -> Result<DecodeOptions> {
        let set = self.overrides()?;
        let mut options = translator.options(&set)?;
        let generation = translator.generation();
        if options.preset == Preset::Hf && generation.is_default_length && set.get("max_length").is_none() {
            note(&format!(
                "generation_config.json has no max_length: preset hf stops at {} tokens, as transformers does; --max-length says \
                 otherwise",
                generation.max_len
            ));
        }
        options.bans = self.control.bans(translator)?.or(options.bans);
        options.ensemble = self.control.weights();
        self.control.check(&options)?;
        options.validate()?;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::{Args, Command, FromArgMatches};

    use super::*;

    fn command() -> Command {
        SearchArguments::augment_args(Command::new("test"))
    }

    fn set(flags: &[String]) -> Overrides {
        let matches = command().no_binary_name(true).try_get_matches_from(flags).expect("they are flags");
        SearchArguments::from_arg_matches(&matches).map(|a| a.overrides().expect("an object")).expect("flags")
    }

    /// Options that only a preset, a sentence or a program sets.
    const WITHOUT_FLAG: [&str; 3] = ["forced_free", "allow_padding", "count_start"];

    /// Flags that open models and read files.
    const NO_OPTIONS: [&str; 6] = ["amateur", "bad_texts", "ensemble", "ensemble_weights", "shortlist", "suppress"];

    #[test]
    fn every_option_has_its_flag_and_every_flag_sets_its_option() {
        let all = Overrides::new(DecodeOptions::default()).expect("an object");
        let options: BTreeSet<&str> = all.names().filter(|name| !WITHOUT_FLAG.contains(name)).collect();
        let command = command();
        let flags: Vec<_> = command.get_arguments().filter(|a| !NO_OPTIONS.contains(&a.get_id().as_str())).collect();
        assert_eq!(flags.iter().map(|flag| flag.get_id().as_str()).collect::<BTreeSet<_>>(), options);
        for flag in flags {
            let (name, long) = (flag.get_id().as_str(), flag.get_long().expect("a long flag"));
            let values = flag.get_possible_values();
            let names: Vec<String> = values.iter().map(|value| value.get_name().to_owned()).collect();
            // A single one is the range of a count.
            for value in if names.len() < 2 { vec!["1".to_owned()] } else { names } {
                let set = set(&[format!("--{long}={value}")]);
                assert_eq!(set.names().collect::<Vec<_>>(), [name], "{long}");
                let text = name == "forced_bos";
                let read = DecodeOptions::default().overridden(&set);
                assert!(text || read.is_ok(), "--{long}={value}: {read:?}");
            }
        }
        assert_eq!(set(&[]), Overrides::default());
    }

    #[test]
    fn numbers_arrive_as_they_were_written() {
        let set =
            set(&["--alpha=0.1", "--seed=18446744073709551615", "--max-length=2*S", "--shrink"].map(String::from));
        let read = DecodeOptions::default().overridden(&set).expect("options");
        assert_eq!((read.alpha, read.seed, read.shrink), (0.1, u64::MAX, true));
        assert_eq!(read.max_length.to_string(), "2*S+0");
    }
}
