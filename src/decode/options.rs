//! The options of search: every one is a field of [`DecodeOptions`], described once.
//!
//! JSON lines, the command line's flags and the page of `--explain` read the fields through serde; [`Overrides`] are the fields that
//! a caller sets over a preset. `CONTRIBUTING.md` tells how an option is added.

mod checks;
mod max_length;
mod overrides;
mod slot;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::backend::ContrastiveForm;
use crate::counts;
use crate::decode::bans::Bans;
use crate::decode::presets::Preset;
use crate::metrics::Utility;

pub use max_length::MaxLength;
pub use overrides::Overrides;
pub(super) use slot::Own;

/// The options of a search; `DecodeOptions::default()` is the `default` preset.
///
/// A hypothesis' score is `search_log_prob / length_penalty + coverage_penalty + word_reward * length`, where length counts the
/// generated tokens, end of sentence included and decoder start excluded.
///
/// ```
/// use beamfuse::DecodeOptions;
///
/// let options = DecodeOptions::default().with(|options| options.n_best = 2);
/// let the_same: DecodeOptions = serde_json::from_str(r#"{"n_best": 2}"#).unwrap();
/// assert_eq!(options, the_same);
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// The preset that `stop` and `penalize_logits` follow where they are not set; [`Translator::preset`](crate::Translator::preset)
    /// sets the others. Default [`Preset::Default`].
    pub preset: Preset,
    /// Hypotheses kept alive per sentence, 1..=64; 1 is greedy search. Default 4.
    pub beam_size: usize,
    /// Hypotheses returned per sentence, 1..=beam_size, best first. Default 1.
    pub n_best: usize,
    /// What divides the search score. Default [`LengthPenalty::Gnmt`].
    pub length_penalty: LengthPenalty,
    /// The length penalty's exponent, -10..=10. Default 0.7.
    pub alpha: f32,
    /// Weight of `sum_i log(clamp(sum_j a_ij, 1e-6, 1))` over source tokens i and steps j, a the last decoder layer's
    /// cross-attention, mean over heads (Wu et al. 2016, eq. 14), 0..=10. Default 0, which switches it off.
    pub coverage_penalty: f32,
    /// Added to the score per generated token (He et al. 2016), -10..=10. Default 0.
    pub word_reward: f32,
    /// When to stop, once [`DecodeOptions::finished_needed`] hypotheses have finished. Default: as the preset does, see
    /// [`DecodeOptions::stop_rule`].
    pub stop: Option<Stop>,
    /// How many times `beam_size` hypotheses must have finished before `stop` is asked, rounded; as many are kept, if they are
    /// more (Kasai et al. 2022). Default 1.
    pub patience: f32,
    /// Whether a finished hypothesis leaves the others one beam less, as in Marian, where the search ends without beams. Default
    /// false: others take its place.
    pub shrink: bool,
    /// Whether a hypothesis that has not ended at the maximum length is returned as it is, truncated and without end of
    /// sentence, instead of being ended there. Default false.
    pub cut: bool,
    /// Whether masked tokens give their probability to the others before ranking, as transformers' `renormalize_logits`.
    /// Default false.
    pub renormalize: bool,
    /// Generated tokens at which a hypothesis is ended. Default `1.5 * S + 10`, S the source's tokens; never beyond the model's
    /// position table.
    pub max_length: MaxLength,
    /// Generated tokens, end of sentence included, below which none ends; a sentence whose maximum length is shorter is an error.
    /// Default 0.
    pub min_length: usize,
    /// Whether a source longer than the position table is cut, and flagged, instead of refused. Default false.
    pub truncate: bool,
    /// Whether results carry the cross-attention and a word alignment. Default false.
    pub attention: bool,
    /// Groups that the beams are split into, each kept apart from those before it (Vijayakumar et al. 2018); divides
    /// `beam_size`. Default 1.
    pub beam_groups: usize,
    /// What a token loses of its score for each time that an earlier group goes on with it at the same step, 0..=10. Default 0.5.
    pub diversity: f32,
    /// Draws translations at random instead of searching for the best: `beam_size` and `stop` then mean nothing, and all
    /// samples are returned, unless `mbr` chooses among them. Default false.
    ///
    /// Token by token from the model's distribution, after `temperature` and the filters, which follow in the order of their fields
    /// and each keep the most probable token. A draw depends on the seed, the sample's number, the step and the distribution alone: a
    /// sentence's samples are the same in any batch and, but for rounding in the model itself, on any device.
    pub sample: bool,
    /// Samples per source, 1..=64; all are returned, in the order of their numbers. Default 1.
    pub samples: usize,
    /// Divides the log-probabilities that samples are drawn by, 0.01..=100; 0 takes the most probable token. Default 1.
    pub temperature: f32,
    /// Samples from the k most probable tokens, ties by id; 0 is all of them. Default 0.
    pub top_k: usize,
    /// Samples from the most probable tokens, as long as those before a token hold less than this mass (Holtzman et al. 2020), above
    /// 0 and up to 1. Default 1: all of them.
    pub top_p: f32,
    /// Samples from tokens that are at least this times as probable as the best (Nguyen et al. 2024), 0..=1. Default 0.
    pub min_p: f32,
    /// Samples from tokens of at least this probability (Hewitt et al. 2022), 0..1. Default 0.
    pub epsilon: f32,
    /// What a sentence's own seed is derived from, together with its source ids, unless it brings one. Default 0.
    pub seed: u64,
    /// Chooses by minimum Bayes risk: of all samples, or of the `beam_size` best of the search, the `n_best` that have most in
    /// common with the others (Kumar & Byrne 2004). Default none.
    pub mbr: Option<Utility>,
    /// Ranks by the contrast of the translator's model, the expert, with an amateur:
    /// [`EngineOptions::amateur`](crate::EngineOptions::amateur), or, for [`ContrastiveForm::Source`], the expert itself reading
    /// another source. Default none.
    pub contrastive: Option<ContrastiveForm>,
    /// How strongly the amateur counts, 0..=10. Default 0.5, for [`ContrastiveForm::Source`] 0.7.
    pub contrastive_weight: Option<f32>,
    /// Tokens below this share of the expert's best probability are not taken, 0..=1; not used by [`ContrastiveForm::Logits`].
    /// Default 0.1.
    pub contrastive_mask: Option<f32>,
    /// Divides the amateur's logits; above 0. Default 1.
    pub contrastive_temperature: Option<f32>,
    /// No sequence of so many tokens is generated twice. Default 0, which switches it off.
    pub no_repeat_ngram: usize,
    /// What the log-probability of a token is multiplied by that has been generated before, as transformers does in beam search
    /// (Keskar et al. 2019), above 0 and up to 10: above 1 repetition ranks lower. Default 1, which switches it off.
    pub repetition_penalty: f32,
    /// Whether `repetition_penalty` acts on logits, before a softmax over the tokens that masks leave, as in CTranslate2 and in
    /// transformers' greedy search; not where samples are drawn or several models ranked. Default: as the preset does, see
    /// [`DecodeOptions::penalizes_logits`].
    pub penalize_logits: Option<bool>,
    /// The token that every translation begins with, in front of a sentence's own prefix if that does not begin with it; as
    /// transformers' `forced_bos_token_id`. Default none.
    pub forced_bos: Option<u32>,
    /// Whether `forced_bos`, and the end of sentence at `max_length`, cost nothing in `search_log_prob`, as in transformers.
    /// Default false.
    pub forced_free: bool,
    /// Whether padding may be generated, like any other token, as transformers does unless `bad_words_ids` rules it out. Default
    /// false.
    pub allow_padding: bool,
    /// Whether the decoder start token counts as generated before for `repetition_penalty` and `no_repeat_ngram`, as in
    /// transformers. Default false.
    pub count_start: bool,
    /// Tokens and sequences that are never generated. Default none.
    #[serde(skip)]
    pub bans: Option<Arc<Bans>>,
    /// What the log-probability of each model counts for in what ranks: the translator's own, then those of
    /// [`EngineOptions::ensemble`](crate::EngineOptions::ensemble). Default empty: the translator's own alone.
    #[serde(skip)]
    pub ensemble: Vec<f32>,
    /// The stop rule of the preset, for where `stop` is not set. Default [`Stop::Heuristic`].
    #[serde(skip)]
    pub preset_stop: Stop,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions {
            preset: Preset::Default,
            beam_size: 4,
            n_best: 1,
            length_penalty: LengthPenalty::Gnmt,
            alpha: 0.7,
            coverage_penalty: 0.0,
            word_reward: 0.0,
            stop: None,
            patience: 1.0,
            shrink: false,
            cut: false,
            renormalize: false,
            max_length: MaxLength::default(),
            min_length: 0,
            truncate: false,
            attention: false,
            beam_groups: 1,
            diversity: 0.5,
            sample: false,
            samples: 1,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            epsilon: 0.0,
            seed: 0,
            mbr: None,
            contrastive: None,
            contrastive_weight: None,
            contrastive_mask: None,
            contrastive_temperature: None,
            no_repeat_ngram: 0,
            repetition_penalty: 1.0,
            penalize_logits: None,
            forced_bos: None,
            forced_free: false,
            allow_padding: false,
            count_start: false,
            bans: None,
            ensemble: Vec::new(),
            preset_stop: Stop::Heuristic,
        }
    }
}

/// The largest weight or exponent, either way: beyond it scores would overflow f32.
pub const MAX_WEIGHT: f32 = 10.0;

/// The most beams per sentence.
pub const MAX_BEAM_SIZE: usize = *counts::HYPOTHESES.end();

/// What divides a hypothesis' search score, with a = [`DecodeOptions::alpha`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LengthPenalty {
    /// 1.
    None,
    /// ((5 + length) / 6)^a (Wu et al. 2016, eq. 14).
    Gnmt,
    /// length^a; a = 1 is the mean log-probability.
    Power,
    /// length^a, which divides the word reward, too: `(search_log_prob + word_reward * length) / length^a`, as in Marian.
    PowerOfAll,
}

/// When a sentence's search ends, once enough hypotheses have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// At once.
    First,
    /// When the best live hypothesis, divided by its present length penalty, cannot beat the worst finished one.
    Heuristic,
    /// When no continuation can change the n-best list any more.
    Exact,
    /// Once `n_best` have finished and an end of sentence has been the best candidate of a step: without penalties nothing can
    /// beat that one. For scores that are sums of log-probabilities.
    Top,
}

impl DecodeOptions {
    /// These options after `change`, to be built in one expression.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Whether a hypothesis' score is what the search summed up, and nothing else.
    pub fn is_unpenalized(&self) -> bool {
        self.exponent() == 0.0 && self.coverage_penalty == 0.0 && self.word_reward == 0.0
    }

    /// The exponent of the length penalty; 0 without one, whatever `alpha` says.
    pub fn exponent(&self) -> f32 {
        if self.length_penalty == LengthPenalty::None { 0.0 } else { self.alpha }
    }

    /// Hypotheses that must have finished before the stop rule is asked.
    pub fn finished_needed(&self) -> usize {
        match self.stop_rule() {
            Stop::Top => self.n_best,
            // The cast saturates, and takes what is no number for 0.
            _ => (self.beam_size as f32 * self.patience).round() as usize,
        }
    }

    /// Hypotheses that the search is asked for: all that there are to choose from, where something chooses among them.
    pub fn candidates(&self) -> usize {
        match (self.sample, self.mbr) {
            (true, _) => self.samples,
            (false, Some(_)) => self.beam_size,
            (false, None) => self.n_best,
        }
    }
}
