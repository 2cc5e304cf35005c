//! How to train, as a user says it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::counts;
use crate::train::autograd::Rates;
use crate::train::objectives::{distill, mrt, scheduled_sampling};
use crate::train::optimizer::AdamOptions;
use crate::train::schedule::{Decay, LearningRate};
use crate::{Error, Result};

/// What is minimised.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveOptions {
    /// Likelihood after gold prefixes.
    Mle,
    /// Likelihood after prefixes of which some tokens are the model's own.
    ScheduledSampling(scheduled_sampling::Options),
    /// The risk of the model's own translations.
    Mrt(mrt::Options),
    /// A teacher's distributions.
    Distill(distill::Options),
}

impl ObjectiveOptions {
    /// The objective's name.
    pub fn name(&self) -> &'static str {
        match self {
            ObjectiveOptions::Mle => "mle",
            ObjectiveOptions::ScheduledSampling(_) => "scheduled-sampling",
            ObjectiveOptions::Mrt(_) => "mrt",
            ObjectiveOptions::Distill(_) => "distill",
        }
    }

    fn validate(&self) -> Result<()> {
        match self {
            ObjectiveOptions::Mle | ObjectiveOptions::ScheduledSampling(_) => Ok(()),
            ObjectiveOptions::Mrt(options) => options.validate(),
            ObjectiveOptions::Distill(options) => options.validate(),
        }
    }
}

/// The score by which models are compared on the validation set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Corpus BLEU.
    Bleu,
    /// Corpus chrF2.
    Chrf,
}

/// Which weights the model directory gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// Those with the best validation score.
    Best,
    /// Those after the last update.
    Last,
}

/// The options of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// What is minimised.
    pub objective: ObjectiveOptions,
    /// Updates of the run.
    pub updates: u32,
    /// Tokens of a batch, on either side.
    pub batch_tokens: usize,
    /// Batches whose gradients make one update.
    pub accumulate: usize,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// Updates in which it rises.
    pub warmup: u32,
    /// How it falls.
    pub decay: Decay,
    /// The optimiser.
    pub adam: AdamOptions,
    /// Shares of elements dropped.
    pub dropout: Rates,
    /// Label smoothing.
    pub label_smoothing: f32,
    /// Seed of everything random.
    pub seed: u64,
    /// Updates between validations.
    pub validate_every: u32,
    /// Validations without a better score after which the run ends; 0 never.
    pub patience: u32,
    /// The validation's score.
    pub metric: Metric,
    /// Beams of the validation's search.
    pub validation_beam: usize,
    /// Which weights are kept.
    pub keep: Keep,
    /// Updates between checkpoints.
    pub checkpoint_every: u32,
    /// Starts from random weights of this standard deviation instead of the model's.
    pub from_scratch: Option<f32>,
}

impl TrainOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Option`] names the first that is out of range.
    pub fn validate(&self) -> Result<()> {
        self.objective.validate()?;
        let check = |ok: bool, option: &'static str, expected: &str, got: String| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected: expected.into(), got }),
        };
        let or_none = counts::or_none(&counts::UPDATES, 0);
        counts::check("updates", self.updates, &counts::UPDATES)?;
        counts::check("batch-tokens", self.batch_tokens, &counts::BATCH_TOKENS)?;
        counts::check("accumulate", self.accumulate, &counts::ACCUMULATE)?;
        counts::check("warmup", self.warmup, &or_none)?;
        counts::check("validate-every", self.validate_every, &counts::UPDATES)?;
        counts::check("patience", self.patience, &or_none)?;
        counts::check("validation-beam", self.validation_beam, &counts::HYPOTHESES)?;
        counts::check("checkpoint-every", self.checkpoint_every, &counts::UPDATES)?;
        let rate = self.learning_rate;
        check(rate > 0.0 && rate <= 1.0, "learning-rate", "a number above 0, up to 1", rate.to_string())?;
        let AdamOptions { beta1, beta2, eps, weight_decay, clip } = self.adam;
        for (option, value) in [
            ("beta1", beta1),
            ("beta2", beta2),
            ("dropout", f64::from(self.dropout.sublayers)),
            ("attention-dropout", f64::from(self.dropout.attention)),
            ("activation-dropout", f64::from(self.dropout.activation)),
            ("label-smoothing", f64::from(self.label_smoothing)),
        ] {
            check((0.0..1.0).contains(&value), option, "a number from 0 to below 1", value.to_string())?;
        }
        check(eps > 0.0 && eps < 1.0, "adam-eps", "a number above 0, below 1", eps.to_string())?;
        check((0.0..=1.0).contains(&weight_decay), "weight-decay", "a number from 0 to 1", weight_decay.to_string())?;
        check(clip > 0.0, "clip", "a number above 0", clip.to_string())?;
        if let Some(deviation) = self.from_scratch {
            check(
                deviation > 0.0 && deviation <= 1.0,
                "from-scratch",
                "a deviation above 0, up to 1",
                deviation.to_string(),
            )?;
        }
        Ok(())
    }

    /// The learning rate of each update.
    pub fn learning_rate(&self) -> LearningRate {
        let TrainOptions { learning_rate: peak, warmup, decay, updates, .. } = *self;
        LearningRate { peak, warmup, decay, updates }
    }

    /// The options that decide what a run computes, by name: its continuation must have the same.
    pub fn fingerprint(&self) -> BTreeMap<String, String> {
        let TrainOptions { objective, updates, batch_tokens, accumulate, adam, dropout, label_smoothing, seed, .. } =
            self;
        let values: [(&str, &dyn Describe); 14] = [
            (objective.name(), objective),
            ("updates", updates),
            ("batch-tokens", batch_tokens),
            ("accumulate", accumulate),
            ("learning-rate", &self.learning_rate()),
            ("optimizer", adam),
            ("dropout", dropout),
            ("label-smoothing", label_smoothing),
            ("seed", seed),
            ("validate-every", &self.validate_every),
            ("patience", &self.patience),
            ("metric", &self.metric),
            ("validation-beam", &self.validation_beam),
            ("keep", &self.keep),
        ];
        let mut named = BTreeMap::from([("objective".to_owned(), objective.name().to_owned())]);
        values.into_iter().for_each(|(name, value)| flatten(name, value.as_json(), &mut named));
        named
    }
}

/// A value that can be written down.
trait Describe {
    fn as_json(&self) -> Value;
}

impl<T: Serialize> Describe for T {
    fn as_json(&self) -> Value {
        // Through text, which has each number as short as it was given.
        let text = serde_json::to_string(self).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// Lists the parts of a value under its name.
fn flatten(name: &str, value: Value, named: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(parts) => parts.into_iter().for_each(|(part, value)| {
            // The variant of an objective has its name already.
            let name = if part == name { part } else { format!("{name} {part}") };
            flatten(&name, value, named);
        }),
        Value::String(text) => drop(named.insert(name.to_owned(), text)),
        other => drop(named.insert(name.to_owned(), other.to_string())),
    }
}
