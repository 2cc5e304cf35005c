//! How to search, as a user says it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::sampling::Sampling;
use crate::backend::{
    ContrastiveForm, ContrastiveOptions, FinishKind, LengthPenaltyKind, MAX_SCORERS, SlotOptions, StopKind, Strategy,
};
use crate::counts;
use crate::decode::bans::Bans;
use crate::metrics::Utility;
use crate::{Error, Result};

/// The options of beam search; `DecodeOptions::default()` is the `default` preset.
///
/// A hypothesis' score is `search_log_prob / length_penalty + coverage_penalty + word_reward * length`, where length counts the
/// generated tokens, end of sentence included and decoder start excluded.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// Hypotheses kept alive per sentence, 1..=64; 1 is greedy search. Default 4.
    pub beam_size: usize,
    /// Hypotheses returned per sentence, 1..=beam_size, best first. Default 1.
    pub n_best: usize,
    /// What divides the search score. Default GNMT with alpha 0.7.
    pub length_penalty: LengthPenalty,
    /// Weight of `sum_i log(clamp(sum_j a_ij, 1e-6, 1))` over source tokens i and steps j, a the last decoder layer's
    /// cross-attention, mean over heads (Wu et al. 2016, eq. 14). Default 0, which switches it off.
    pub coverage_penalty: f32,
    /// Added to the score per generated token (He et al. 2016). Default 0.
    pub word_reward: f32,
    /// When to stop, once [`DecodeOptions::finished_needed`] hypotheses have finished. Default [`Stop::Heuristic`].
    pub stop: Stop,
    /// How many times `beam_size` hypotheses must have finished before `stop` is asked, rounded; as many are kept, if they are
    /// more (Kasai et al. 2022). Default 1.
    pub patience: f32,
    /// Whether a finished hypothesis leaves the others one beam less, as in Marian, where the search ends without beams. Default
    /// false: others take its place.
    pub shrink: bool,
    /// Generated tokens at which a hypothesis is ended. Default `1.5 * S + 10`, S the source's tokens; never beyond the model's
    /// position table.
    pub max_length: MaxLength,
    /// Generated tokens, end of sentence included, below which none ends. Default 0.
    pub min_length: usize,
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
    /// Whether masked tokens give their probability to the others before ranking, as transformers' `renormalize_logits`.
    /// Default false.
    pub renormalize: bool,
    /// Whether what ranks is the contrast with an amateur. Default none.
    pub contrastive: Option<Contrastive>,
    /// What the log-probability of a token is multiplied by that has been generated before, as transformers does in beam search
    /// (Keskar et al. 2019): above 1 repetition ranks lower. Default 1, which switches it off.
    pub repetition_penalty: f32,
    /// Whether `repetition_penalty` acts on logits, before a softmax over the tokens that masks leave, as in CTranslate2 and in
    /// transformers' greedy search; not where samples are drawn or several models ranked. Default false.
    pub penalize_logits: bool,
    /// No sequence of so many tokens is generated twice. Default 0, which switches it off.
    pub no_repeat_ngram: usize,
    /// Tokens and sequences that are never generated. Default none.
    pub bans: Option<Arc<Bans>>,
    /// What the log-probability of each model counts for in what ranks: the translator's own, then those of
    /// [`EngineOptions::ensemble`](crate::EngineOptions::ensemble). Default empty: the translator's own alone.
    pub ensemble: Vec<f32>,
    /// Whether results carry the cross-attention and a word alignment. Default false.
    pub attention: bool,
    /// Whether a hypothesis that has not ended at the maximum length is returned as it is, truncated and without end of
    /// sentence, instead of being ended there. Default false.
    pub cut: bool,
    /// Groups that the beams are split into, each kept apart from those before it (Vijayakumar et al. 2018); divides
    /// `beam_size`. Default 1.
    pub groups: usize,
    /// What a token loses of its score for each time that an earlier group goes on with it at the same step; with groups.
    /// Default 0.5.
    pub diversity: f32,
    /// Draws translations at random instead of searching for the best: `beam_size` and `stop` then mean nothing, and all
    /// samples are returned, unless [`DecodeOptions::mbr`] chooses among them. Default none.
    pub sampling: Option<Sampling>,
    /// Chooses by minimum Bayes risk: of all samples, or of the `beam_size` best of the search, the `n_best` that have most in
    /// common with the others (Kumar & Byrne 2004). Default none.
    pub mbr: Option<Utility>,
    /// Whether a source longer than the position table is cut, and flagged, instead of refused. Default false.
    pub truncate_source: bool,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions {
            beam_size: 4,
            n_best: 1,
            length_penalty: LengthPenalty::Gnmt { alpha: DEFAULT_ALPHA },
            coverage_penalty: 0.0,
            word_reward: 0.0,
            stop: Stop::Heuristic,
            patience: 1.0,
            shrink: false,
            max_length: MaxLength::default(),
            min_length: 0,
            forced_bos: None,
            forced_free: false,
            allow_padding: false,
            count_start: false,
            renormalize: false,
            contrastive: None,
            repetition_penalty: 1.0,
            penalize_logits: false,
            no_repeat_ngram: 0,
            bans: None,
            ensemble: Vec::new(),
            attention: false,
            cut: false,
            groups: 1,
            diversity: 0.5,
            sampling: None,
            mbr: None,
            truncate_source: false,
        }
    }
}

/// Contrastive decoding: what ranks is an expert's distribution against an amateur's.
///
/// The expert is the translator's model. The amateur is [`EngineOptions::amateur`](crate::EngineOptions::amateur), or, for
/// [`ContrastiveForm::Source`], the expert itself reading another source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrastive {
    /// How the two become one distribution.
    pub form: ContrastiveForm,
    /// How strongly the amateur counts, 0..=10.
    pub weight: f32,
    /// Tokens below this share of the expert's best probability are not taken, 0..=1; not used by [`ContrastiveForm::Logits`].
    pub mask: f32,
    /// Divides the amateur's logits; above 0.
    pub temperature: f32,
}

impl Contrastive {
    /// The form's defaults: weight 0.5, for [`ContrastiveForm::Source`] 0.7; mask 0.1; temperature 1.
    pub fn new(form: ContrastiveForm) -> Self {
        let weight = if form == ContrastiveForm::Source { 0.7 } else { 0.5 };
        Contrastive { form, weight, mask: 0.1, temperature: 1.0 }
    }

    /// As a slot has it, its amateur being the scorer of that number.
    pub(crate) fn for_scorer(&self, scorer: usize) -> ContrastiveOptions {
        let options = ContrastiveOptions::new(self.form, self.weight, self.mask, self.temperature);
        ContrastiveOptions { scorer: scorer as u32, ..options }
    }
}

/// The length penalty's exponent where none is given.
pub const DEFAULT_ALPHA: f32 = 0.7;

/// The largest weight or exponent, either way: beyond it scores would overflow f32.
pub const MAX_WEIGHT: f32 = 10.0;

/// The most beams per sentence.
pub const MAX_BEAM_SIZE: usize = *counts::HYPOTHESES.end();

/// What divides a hypothesis' search score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LengthPenalty {
    /// 1.
    None,
    /// ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14).
    Gnmt {
        /// The exponent.
        alpha: f32,
    },
    /// length^alpha; alpha 1 is the mean log-probability.
    Power {
        /// The exponent.
        alpha: f32,
    },
    /// length^alpha, which divides the word reward, too: `(search_log_prob + word_reward * length) / length^alpha`, as in Marian.
    PowerOfAll {
        /// The exponent.
        alpha: f32,
    },
}

/// When a sentence's search ends, once enough hypotheses have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The length at which a hypothesis is ended, in generated tokens, end of sentence included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MaxLength {
    /// A number of tokens.
    Absolute(usize),
    /// `floor(factor * S) + offset`, S the source's tokens, end of sentence included.
    Relative {
        /// The factor.
        factor: f32,
        /// The offset.
        offset: usize,
    },
}

impl Default for MaxLength {
    fn default() -> Self {
        MaxLength::Relative { factor: 1.5, offset: 10 }
    }
}

impl MaxLength {
    /// The limit for a source of `src_len` tokens, within a position table of `table` rows.
    pub fn resolve(self, src_len: usize, table: usize) -> usize {
        let wanted = match self {
            MaxLength::Absolute(tokens) => tokens,
            // The cast saturates: a huge factor ends at the table.
            MaxLength::Relative { factor, offset } => {
                ((f64::from(factor) * src_len as f64).floor() as usize).saturating_add(offset)
            }
        };
        wanted.clamp(1, table)
    }
}

impl fmt::Display for MaxLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxLength::Absolute(tokens) => write!(f, "{tokens}"),
            MaxLength::Relative { factor, offset } => write!(f, "{factor}*S+{offset}"),
        }
    }
}

impl FromStr for MaxLength {
    type Err = Error;

    /// Parses `96`, `2*S` or `1.5*S+10`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Option {
            option: "max-length",
            expected: "a number of tokens, or a*S+b as in 1.5*S+10".into(),
            got: format!("{text:?}"),
        };
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((factor, rest)) = compact.split_once("*S") else {
            return compact.parse().map(MaxLength::Absolute).map_err(|_| wrong());
        };
        let offset = match rest {
            "" => Some(0),
            _ => rest.strip_prefix('+').and_then(|offset| offset.parse().ok()),
        };
        match (factor.parse::<f32>(), offset) {
            (Ok(factor), Some(offset)) if factor.is_finite() && factor >= 0.0 => {
                Ok(MaxLength::Relative { factor, offset })
            }
            _ => Err(wrong()),
        }
    }
}

impl DecodeOptions {
    /// Checks that every value, and their combination, makes sense.
    ///
    /// # Errors
    /// [`Error::Option`] names the option, what was expected and what came.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, option: &'static str, expected: String, got: String| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected, got }),
        };
        let (beams, n_best) = (self.beam_size, self.n_best);
        counts::check("beam-size", beams, &counts::HYPOTHESES)?;
        let groups = self.groups;
        if let Some(sampling) = &self.sampling {
            sampling.validate()?;
            check(groups == 1, "beam-groups", "1 with sampling".into(), groups.to_string())?;
        }
        let divides = groups >= 1 && beams.is_multiple_of(groups);
        check(divides, "beam-groups", format!("a divisor of beam-size {beams}"), groups.to_string())?;
        let (candidates, of) = match (&self.sampling, self.mbr) {
            (None, _) => (beams, format!("1 to beam-size {beams}")),
            (Some(Sampling { samples, .. }), Some(_)) => (*samples, format!("1 to samples {samples}")),
            (Some(_), None) => (1, "1 with sampling, which returns all samples".to_owned()),
        };
        check((1..=candidates).contains(&n_best), "n-best", of, n_best.to_string())?;
        for (option, value) in
            [("alpha", self.alpha()), ("coverage-penalty", self.coverage_penalty), ("word-reward", self.word_reward)]
        {
            check(value.abs() <= MAX_WEIGHT, option, format!("a number within {MAX_WEIGHT}"), value.to_string())?;
        }
        let diversity = self.diversity;
        let is_fair = (0.0..=MAX_WEIGHT).contains(&diversity);
        check(is_fair, "diversity", format!("0 to {MAX_WEIGHT}"), diversity.to_string())?;
        let coverage = self.coverage_penalty;
        check(coverage >= 0.0, "coverage-penalty", "0 or more".into(), coverage.to_string())?;
        if let Some(Contrastive { weight, mask, temperature, .. }) = self.contrastive {
            let named = "contrastive-weight";
            check((0.0..=MAX_WEIGHT).contains(&weight), named, format!("0 to {MAX_WEIGHT}"), weight.to_string())?;
            check((0.0..=1.0).contains(&mask), "contrastive-mask", "0 to 1".into(), mask.to_string())?;
            let ok = temperature > 0.0 && temperature.is_finite();
            check(ok, "contrastive-temperature", "a number above 0".into(), temperature.to_string())?;
            let got = format!("{} models in an ensemble as well", self.ensemble.len());
            check(self.ensemble.is_empty(), "contrastive", "one expert".into(), got)?;
        }
        let penalty = self.repetition_penalty;
        let ok = penalty > 0.0 && penalty <= MAX_WEIGHT;
        check(ok, "repetition-penalty", format!("above 0, at most {MAX_WEIGHT}"), penalty.to_string())?;
        let members = self.ensemble.len();
        check(members < MAX_SCORERS, "ensemble", format!("at most {} models", MAX_SCORERS - 1), members.to_string())?;
        for weight in &self.ensemble {
            let ok = *weight >= 0.0 && *weight <= MAX_WEIGHT;
            check(ok, "ensemble", format!("weights of 0 to {MAX_WEIGHT}"), weight.to_string())?;
        }
        let some = self.ensemble.is_empty() || self.ensemble.iter().any(|weight| *weight > 0.0);
        check(some, "ensemble", "a weight above 0".into(), "none".into())?;
        if let MaxLength::Absolute(most) = self.max_length {
            check(most >= 1, "max-length", "1 or more".into(), most.to_string())?;
            let least = self.min_length;
            check(least <= most, "min-length", format!("at most max-length {most}"), least.to_string())?;
        }
        self.validate_finishing()
    }

    /// Checks what decides how hypotheses finish and when the search stops.
    fn validate_finishing(&self) -> Result<()> {
        let refuse = |option: &'static str, expected: String, got: String| Err(Error::Option { option, expected, got });
        let (needed, n_best) = (self.finished_needed(), self.n_best);
        if !(1..=MAX_BEAM_SIZE).contains(&needed) {
            let expected = format!("1 to {MAX_BEAM_SIZE} hypotheses as patience x beam-size {}", self.beam_size);
            return refuse("patience", expected, self.patience.to_string());
        }
        if n_best > needed && self.sampling.is_none() {
            return refuse("n-best", format!("at most patience x beam-size, {needed}"), n_best.to_string());
        }
        if self.shrink && self.groups > 1 {
            return refuse("shrink", "one of beam-groups".into(), self.groups.to_string());
        }
        if self.shrink && self.sampling.is_some() {
            return refuse("shrink", "beam search".into(), "sample".into());
        }
        let of_all = matches!(self.length_penalty, LengthPenalty::PowerOfAll { .. });
        let penalties =
            [("alpha", self.alpha()), ("coverage-penalty", self.coverage_penalty), ("word-reward", self.word_reward)];
        match (self.stop, penalties.iter().find(|(_, value)| *value != 0.0)) {
            (Stop::Exact, _) if of_all => {
                refuse("stop", "another rule than exact with length-penalty power-of-all".into(), "exact".into())
            }
            (Stop::Top, Some((option, value))) => {
                refuse("stop", format!("another rule than top with {option} {value}"), "top".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether a hypothesis' score is what the search summed up, and nothing else.
    pub fn is_unpenalized(&self) -> bool {
        self.alpha() == 0.0 && self.coverage_penalty == 0.0 && self.word_reward == 0.0
    }

    /// Hypotheses that must have finished before the stop rule is asked.
    pub fn finished_needed(&self) -> usize {
        match self.stop {
            Stop::Top => self.n_best,
            // The cast saturates, and takes what is no number for 0.
            _ => (self.beam_size as f32 * self.patience).round() as usize,
        }
    }

    /// The length penalty's exponent; 0 without one.
    pub fn alpha(&self) -> f32 {
        match self.length_penalty {
            LengthPenalty::None => 0.0,
            LengthPenalty::Gnmt { alpha } | LengthPenalty::Power { alpha } | LengthPenalty::PowerOfAll { alpha } => {
                alpha
            }
        }
    }

    /// Hypotheses that the search is asked for: all that there are to choose from, where something chooses among them.
    pub fn candidates(&self) -> usize {
        match (&self.sampling, self.mbr) {
            (Some(sampling), _) => sampling.samples,
            (None, Some(_)) => self.beam_size,
            (None, None) => self.n_best,
        }
    }

    /// The options as the device reads them, for a source of `src_len` tokens and a position table of `table` rows.
    pub fn for_slot(&self, src_len: usize, table: usize) -> SlotOptions {
        let kind = match self.length_penalty {
            LengthPenalty::None => LengthPenaltyKind::None,
            LengthPenalty::Gnmt { .. } => LengthPenaltyKind::Gnmt,
            LengthPenalty::Power { .. } => LengthPenaltyKind::Power,
            LengthPenalty::PowerOfAll { .. } => LengthPenaltyKind::PowerOfAll,
        };
        let stop = match self.stop {
            Stop::First => StopKind::First,
            Stop::Heuristic => StopKind::Heuristic,
            Stop::Exact => StopKind::Exact,
            Stop::Top => StopKind::Top,
        };
        let max_len = self.max_length.resolve(src_len, table);
        let is_alone = self.contrastive.is_none() && self.ensemble.is_empty() && self.sampling.is_none();
        let penalizes_logits = self.penalize_logits && self.repetition_penalty != 1.0 && is_alone;
        SlotOptions {
            beam_size: self.sampling.as_ref().map_or(self.beam_size, |sampling| sampling.samples) as u32,
            length_penalty: kind as u32,
            alpha: self.alpha(),
            coverage_penalty: self.coverage_penalty,
            word_reward: self.word_reward,
            stop: stop as u32,
            patience: if self.sampling.is_some() { 0 } else { self.finished_needed() as u32 },
            finish: if self.shrink { FinishKind::Shrink } else { FinishKind::Replace } as u32,
            min_len: self.min_length.min(max_len) as u32,
            max_len: max_len as u32,
            forced_eos: u32::from(self.forced_free),
            free_first: u32::from(self.forced_free && self.forced_bos.is_some()),
            renormalize: u32::from(self.renormalize || penalizes_logits),
            takes_pad: u32::from(self.allow_padding),
            counts_start: u32::from(self.count_start),
            src_len: src_len as u32,
            banned: u32::from(self.bans.is_some() || self.no_repeat_ngram > 0),
            no_repeat_ngram: u32::try_from(self.no_repeat_ngram).unwrap_or(u32::MAX),
            ranked: u32::from(
                self.contrastive.is_some() || !self.ensemble.is_empty() || self.repetition_penalty != 1.0,
            ),
            repetition_penalty: self.repetition_penalty,
            penalizes_logits: u32::from(penalizes_logits),
            ensemble: std::array::from_fn(|scorer| self.ensemble.get(scorer).copied().unwrap_or(0.0)),
            cut: u32::from(self.cut),
            groups: if self.groups > 1 { self.groups as u32 } else { 0 },
            diversity: if self.groups > 1 { self.diversity } else { 0.0 },
            strategy: self.sampling.as_ref().map_or(Strategy::Beam, |_| Strategy::Sample) as u32,
            ..SlotOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_length_reads_what_it_prints() {
        for (text, value) in [
            ("96", MaxLength::Absolute(96)),
            ("1.5*S+10", MaxLength::Relative { factor: 1.5, offset: 10 }),
            ("2*S+0", MaxLength::Relative { factor: 2.0, offset: 0 }),
        ] {
            assert_eq!(text.parse::<MaxLength>().ok(), Some(value));
            assert_eq!(value.to_string(), text);
        }
        assert_eq!("2*S".parse::<MaxLength>().ok(), Some(MaxLength::Relative { factor: 2.0, offset: 0 }));
        for bad in ["", "S", "*S", "1.5*S-3", "-1*S", "nan*S", "1.5*S+", "1e99", "-4", "4.5"] {
            assert!(bad.parse::<MaxLength>().is_err(), "{bad}");
        }
    }

    #[test]
    fn max_length_stays_within_the_table() {
        assert_eq!(MaxLength::default().resolve(7, 256), 20);
        assert_eq!(MaxLength::default().resolve(250, 256), 256);
        assert_eq!(MaxLength::Relative { factor: f32::MAX, offset: usize::MAX }.resolve(9, 256), 256);
        assert_eq!(MaxLength::Relative { factor: 0.0, offset: 0 }.resolve(9, 256), 1);
    }

    #[test]
    fn validate_names_the_option() {
        let base = DecodeOptions::default;
        for (options, name) in [
            (DecodeOptions { beam_size: 0, ..base() }, "beam-size"),
            (DecodeOptions { beam_size: 65, ..base() }, "beam-size"),
            (DecodeOptions { n_best: 5, ..base() }, "n-best"),
            (DecodeOptions { n_best: 0, ..base() }, "n-best"),
            (
                DecodeOptions { n_best: 2, sampling: Some(Sampling { samples: 3, ..Sampling::default() }), ..base() },
                "n-best",
            ),
            (
                DecodeOptions { n_best: 2, mbr: Some(Utility::Chrf), sampling: Some(Sampling::default()), ..base() },
                "n-best",
            ),
            (DecodeOptions { groups: 3, ..base() }, "beam-groups"),
            (DecodeOptions { groups: 2, sampling: Some(Sampling::default()), ..base() }, "beam-groups"),
            (DecodeOptions { groups: 2, diversity: f32::NAN, ..base() }, "diversity"),
            (DecodeOptions { sampling: Some(Sampling { top_p: 2.0, ..Sampling::default() }), ..base() }, "top-p"),
            (DecodeOptions { length_penalty: LengthPenalty::Power { alpha: f32::NAN }, ..base() }, "alpha"),
            (DecodeOptions { coverage_penalty: -1.0, ..base() }, "coverage-penalty"),
            (DecodeOptions { word_reward: f32::INFINITY, ..base() }, "word-reward"),
            (DecodeOptions { max_length: MaxLength::Absolute(0), ..base() }, "max-length"),
            (DecodeOptions { max_length: MaxLength::Absolute(3), min_length: 4, ..base() }, "min-length"),
            (DecodeOptions { patience: 0.1, ..base() }, "patience"),
            (DecodeOptions { patience: f32::NAN, ..base() }, "patience"),
            (DecodeOptions { patience: 17.0, ..base() }, "patience"),
            (DecodeOptions { patience: 0.5, n_best: 3, ..base() }, "n-best"),
            (DecodeOptions { shrink: true, groups: 2, ..base() }, "shrink"),
            (DecodeOptions { shrink: true, sampling: Some(Sampling::default()), ..base() }, "shrink"),
            (DecodeOptions { stop: Stop::Top, ..base() }, "stop"),
            (
                DecodeOptions { stop: Stop::Top, length_penalty: LengthPenalty::None, word_reward: 0.5, ..base() },
                "stop",
            ),
            (
                DecodeOptions { stop: Stop::Exact, length_penalty: LengthPenalty::PowerOfAll { alpha: 1.0 }, ..base() },
                "stop",
            ),
        ] {
            match options.validate() {
                Err(Error::Option { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(base().validate().is_ok());
    }
}
