//! What values options may have, and which may not stand together.

use std::fmt::Display;

use super::{DecodeOptions, LengthPenalty, MAX_BEAM_SIZE, MAX_WEIGHT, MaxLength, Stop};
use crate::backend::MAX_SCORERS;
use crate::counts;
use crate::{Error, Result};

/// The temperatures that a draw can be made at; beyond them f32 does not tell tokens apart.
const TEMPERATURES: std::ops::RangeInclusive<f32> = 0.01..=100.0;

/// Refuses a value unless `ok`.
fn check(ok: bool, option: &'static str, expected: impl Display, got: impl Display) -> Result<()> {
    let wrong = || Error::Option { option, expected: expected.to_string(), got: got.to_string() };
    ok.then_some(()).ok_or_else(wrong)
}

impl DecodeOptions {
    /// Checks that every value, and their combination, makes sense.
    ///
    /// # Errors
    /// [`Error::Option`] names the option, what was expected and what came; [`Error::Conflict`] two that exclude each other.
    pub fn validate(&self) -> Result<()> {
        self.check_beams()?;
        self.check_scores()?;
        self.check_sampling()?;
        self.check_contrast()?;
        self.check_ensemble()?;
        if let MaxLength::Absolute(most) = self.max_length {
            check(most >= 1, "max-length", "1 or more", most)?;
            check(self.min_length <= most, "min-length", format!("at most max-length {most}"), self.min_length)?;
        }
        self.check_finishing()
    }

    fn check_beams(&self) -> Result<()> {
        let DecodeOptions { beam_size, beam_groups, n_best, samples, .. } = *self;
        counts::check("beam-size", beam_size, &counts::HYPOTHESES)?;
        if self.sample && beam_groups != 1 {
            return Err(Error::conflict("beam-groups", beam_groups, "sample"));
        }
        let divides = beam_groups >= 1 && beam_size.is_multiple_of(beam_groups);
        check(divides, "beam-groups", format!("a divisor of beam-size {beam_size}"), beam_groups)?;
        let is_default = self.diversity == DecodeOptions::default().diversity;
        check(beam_groups > 1 || is_default, "diversity", "beam-groups of 2 or more beside it", self.diversity)?;
        let (candidates, of) = match (self.sample, self.mbr) {
            (false, _) => (beam_size, format!("1 to beam-size {beam_size}")),
            (true, Some(_)) => (samples, format!("1 to samples {samples}")),
            (true, None) if n_best > 1 => {
                return Err(Error::conflict("n-best", n_best, "sample, which returns all samples"));
            }
            (true, None) => (1, "1".to_owned()),
        };
        check((1..=candidates).contains(&n_best), "n-best", of, n_best)
    }

    fn check_scores(&self) -> Result<()> {
        for (option, value) in
            [("alpha", self.alpha), ("coverage-penalty", self.coverage_penalty), ("word-reward", self.word_reward)]
        {
            check(value.abs() <= MAX_WEIGHT, option, format!("a number within {MAX_WEIGHT}"), value)?;
        }
        check(self.coverage_penalty >= 0.0, "coverage-penalty", "0 or more", self.coverage_penalty)?;
        let (diversity, penalty) = (self.diversity, self.repetition_penalty);
        check((0.0..=MAX_WEIGHT).contains(&diversity), "diversity", format!("0 to {MAX_WEIGHT}"), diversity)?;
        let ok = penalty > 0.0 && penalty <= MAX_WEIGHT;
        check(ok, "repetition-penalty", format!("above 0, at most {MAX_WEIGHT}"), penalty)
    }

    /// Checks how translations are drawn; without `sample` these options would be without effect.
    fn check_sampling(&self) -> Result<()> {
        let DecodeOptions { samples, temperature, top_k, top_p, min_p, epsilon, seed, .. } = *self;
        counts::check("samples", samples, &counts::HYPOTHESES)?;
        let is_fair = temperature == 0.0 || TEMPERATURES.contains(&temperature);
        check(is_fair, "temperature", "0, or 0.01 to 100", temperature)?;
        counts::check("top-k", top_k, &counts::TOP_K)?;
        check(top_p > 0.0 && top_p <= 1.0, "top-p", "above 0, up to 1", top_p)?;
        check((0.0..=1.0).contains(&min_p), "min-p", "0 to 1", min_p)?;
        check((0.0..1.0).contains(&epsilon), "epsilon", "0 or more, below 1", epsilon)?;
        let none = DecodeOptions::default();
        for (option, is_default, got) in [
            ("samples", samples == none.samples, samples.to_string()),
            ("temperature", temperature == none.temperature, temperature.to_string()),
            ("top-k", top_k == none.top_k, top_k.to_string()),
            ("top-p", top_p == none.top_p, top_p.to_string()),
            ("min-p", min_p == none.min_p, min_p.to_string()),
            ("epsilon", epsilon == none.epsilon, epsilon.to_string()),
            ("seed", seed == none.seed, seed.to_string()),
        ] {
            check(self.sample || is_default, option, "sample beside it", got)?;
        }
        Ok(())
    }

    fn check_contrast(&self) -> Result<()> {
        for (option, value) in [
            ("contrastive-weight", self.contrastive_weight),
            ("contrastive-mask", self.contrastive_mask),
            ("contrastive-temperature", self.contrastive_temperature),
        ] {
            let got = value.unwrap_or_default();
            check(value.is_none() || self.contrastive.is_some(), option, "contrastive or amateur beside it", got)?;
        }
        if let Some(weight) = self.contrastive_weight {
            let ok = (0.0..=MAX_WEIGHT).contains(&weight);
            check(ok, "contrastive-weight", format!("0 to {MAX_WEIGHT}"), weight)?;
        }
        if let Some(mask) = self.contrastive_mask {
            check((0.0..=1.0).contains(&mask), "contrastive-mask", "0 to 1", mask)?;
        }
        if let Some(temperature) = self.contrastive_temperature {
            let ok = temperature > 0.0 && temperature.is_finite();
            check(ok, "contrastive-temperature", "a number above 0", temperature)?;
        }
        match self.contrastive.is_some() && !self.ensemble.is_empty() {
            true => Err(Error::conflict("contrastive", "", "ensemble")),
            false => Ok(()),
        }
    }

    fn check_ensemble(&self) -> Result<()> {
        let members = self.ensemble.len();
        check(members < MAX_SCORERS, "ensemble", format!("at most {} models", MAX_SCORERS - 1), members)?;
        for weight in &self.ensemble {
            let ok = (0.0..=MAX_WEIGHT).contains(weight);
            check(ok, "ensemble", format!("weights of 0 to {MAX_WEIGHT}"), weight)?;
        }
        let some = self.ensemble.is_empty() || self.ensemble.iter().any(|weight| *weight > 0.0);
        check(some, "ensemble", "a weight above 0", "none")
    }

    /// Checks what decides how hypotheses finish and when the search stops.
    fn check_finishing(&self) -> Result<()> {
        let (needed, n_best) = (self.finished_needed(), self.n_best);
        let few = format!("1 to {MAX_BEAM_SIZE} hypotheses as patience x beam-size {}", self.beam_size);
        check((1..=MAX_BEAM_SIZE).contains(&needed), "patience", few, self.patience)?;
        let enough = n_best <= needed || self.sample;
        check(enough, "n-best", format!("at most patience x beam-size, {needed}"), n_best)?;
        if self.shrink && self.beam_groups > 1 {
            return Err(Error::conflict("shrink", "", format!("beam-groups {}", self.beam_groups)));
        }
        if self.shrink && self.sample {
            return Err(Error::conflict("shrink", "", "sample"));
        }
        let penalties = [
            ("alpha", self.exponent()),
            ("coverage-penalty", self.coverage_penalty),
            ("word-reward", self.word_reward),
        ];
        match (self.stop_rule(), penalties.iter().find(|(_, value)| *value != 0.0)) {
            (Stop::Exact, _) if self.length_penalty == LengthPenalty::PowerOfAll => {
                Err(Error::conflict("stop", "exact", "length-penalty power-of-all"))
            }
            (Stop::Top, Some((option, value))) => Err(Error::conflict("stop", "top", format!("{option} {value}"))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::ContrastiveForm;
    use crate::metrics::Utility;

    #[test]
    fn validate_names_the_option() {
        type Change = fn(&mut DecodeOptions);
        let cases: [(&str, Change); 37] = [
            ("beam-size", |o| o.beam_size = 0),
            ("beam-size", |o| o.beam_size = 65),
            ("n-best", |o| o.n_best = 5),
            ("n-best", |o| o.n_best = 0),
            ("n-best", |o| (o.n_best, o.sample, o.samples) = (2, true, 3)),
            ("n-best", |o| (o.n_best, o.sample, o.mbr) = (2, true, Some(Utility::Chrf))),
            ("beam-groups", |o| o.beam_groups = 3),
            ("beam-groups", |o| (o.beam_groups, o.sample) = (2, true)),
            ("diversity", |o| (o.beam_groups, o.diversity) = (2, f32::NAN)),
            ("diversity", |o| o.diversity = 0.25),
            ("samples", |o| (o.sample, o.samples) = (true, 0)),
            ("samples", |o| (o.sample, o.samples) = (true, 65)),
            ("samples", |o| o.samples = 2),
            ("temperature", |o| (o.sample, o.temperature) = (true, -1.0)),
            ("temperature", |o| (o.sample, o.temperature) = (true, 0.001)),
            ("temperature", |o| (o.sample, o.temperature) = (true, f32::NAN)),
            ("top-k", |o| (o.sample, o.top_k) = (true, usize::MAX)),
            ("top-k", |o| o.top_k = 4),
            ("top-p", |o| (o.sample, o.top_p) = (true, 0.0)),
            ("top-p", |o| (o.sample, o.top_p) = (true, 1.5)),
            ("min-p", |o| (o.sample, o.min_p) = (true, -0.1)),
            ("epsilon", |o| (o.sample, o.epsilon) = (true, 1.0)),
            ("seed", |o| o.seed = 1),
            ("contrastive-weight", |o| o.contrastive_weight = Some(0.5)),
            ("contrastive-mask", |o| {
                (o.contrastive, o.contrastive_mask) = (Some(ContrastiveForm::Li), Some(f32::NAN));
            }),
            ("contrastive", |o| (o.contrastive, o.ensemble) = (Some(ContrastiveForm::Li), vec![1.0])),
            ("alpha", |o| o.alpha = f32::NAN),
            ("coverage-penalty", |o| o.coverage_penalty = -1.0),
            ("word-reward", |o| o.word_reward = f32::INFINITY),
            ("max-length", |o| o.max_length = MaxLength::Absolute(0)),
            ("min-length", |o| (o.max_length, o.min_length) = (MaxLength::Absolute(3), 4)),
            ("patience", |o| o.patience = 0.1),
            ("patience", |o| o.patience = f32::NAN),
            ("patience", |o| o.patience = 17.0),
            ("n-best", |o| (o.patience, o.n_best) = (0.5, 3)),
            ("stop", |o| o.stop = Some(Stop::Top)),
            ("stop", |o| (o.stop, o.length_penalty) = (Some(Stop::Exact), LengthPenalty::PowerOfAll)),
        ];
        for (name, change) in cases {
            match DecodeOptions::default().with(change).validate() {
                Err(Error::Option { option, .. } | Error::Conflict { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let fine: [Change; 3] = [|_| (), |o| (o.sample, o.temperature) = (true, 0.0), |o| o.alpha = 0.0];
        assert!(fine.into_iter().all(|change| DecodeOptions::default().with(change).validate().is_ok()));
    }

    #[test]
    fn two_that_exclude_each_other_are_both_named() {
        let told = |change: fn(&mut DecodeOptions)| {
            DecodeOptions::default().with(change).validate().map_err(|error| error.to_string()).err()
        };
        for (change, message) in [
            (
                (|o| (o.shrink, o.beam_groups) = (true, 2)) as fn(&mut DecodeOptions),
                "option shrink cannot be combined with beam-groups 2",
            ),
            (|o| (o.shrink, o.sample) = (true, true), "option shrink cannot be combined with sample"),
            (
                |o| (o.stop, o.length_penalty, o.word_reward) = (Some(Stop::Top), LengthPenalty::None, 0.5),
                "option stop top cannot be combined with word-reward 0.5",
            ),
        ] {
            assert_eq!(told(change).as_deref(), Some(message));
        }
    }
}
