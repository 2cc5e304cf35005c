//! The options of `train`.

use std::path::PathBuf;

use clap::ValueEnum;

use crate::backend::{Divergence, Pick};
use crate::cli::counts::{count, finite, seed};
use crate::cli::model_dir::{LanguageArguments, ModelName};
use crate::counts;
use crate::model::config::TrainingDefaults;
use crate::train::autograd::Rates;
use crate::train::objectives::{distill, mrt, scheduled_sampling};
use crate::train::optimizer::AdamOptions;
use crate::train::rollouts::Draw;
use crate::train::schedule::{Decay, GoldSchedule, Shape};
use crate::train::{Corpus, Keep, Metric, ObjectiveOptions, Places, TrainOptions};
use crate::{Error, Result};

/// Fine-tune a model on parallel text: by likelihood, or so that it holds on to the sentence after its own words, too.
///
/// Writes a model directory that this program and transformers load. Its folder `training` holds the run's state, a log of JSON
/// lines and curves. The same options, data and model give the same weights, bit for bit, whether or not the run was interrupted.
#[derive(Debug, clap::Args)]
#[command(
    group(clap::ArgGroup::new("corpus").args(["data", "source"]).required(true)),
    after_help = "Exit codes: 0 done; 2 wrong options, model or files, or a gradient that is not finite; 130 interrupted, with \
                  the state saved: the same command with --resume continues."
)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    pub model: ModelName,
    #[command(flatten)]
    pub languages: LanguageArguments,
    /// Directory to write the model to.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Continue the run that the output directory holds.
    #[arg(long)]
    resume: bool,
    /// Training text: lines of source TAB target.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Training sources, one sentence per line.
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "data")]
    source: Option<PathBuf>,
    /// Training targets, line by line those of the sources.
    #[arg(long, value_name = "FILE", requires = "source")]
    target: Option<PathBuf>,
    /// Validation text: lines of source TAB target.
    #[arg(long, value_name = "FILE")]
    validation: Option<PathBuf>,
    /// Validation sources.
    #[arg(long, value_name = "FILE", requires = "validation_target", conflicts_with = "validation")]
    validation_source: Option<PathBuf>,
    /// Validation targets.
    #[arg(long, value_name = "FILE", requires = "validation_source")]
    validation_target: Option<PathBuf>,
    /// Start from random weights: of the model only architecture and tokenizer are taken.
    #[arg(long)]
    from_scratch: bool,
    /// Leave out, and count, lines that are not a pair, have an empty side or are too long, instead of refusing them.
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    pub run: RunArguments,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    risk: RiskArguments,
    #[command(flatten)]
    distill: DistillArguments,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The run")]
pub struct RunArguments {
    /// What to minimise. The default is likelihood after gold prefixes for --ss-warmup updates, then scheduled sampling. On short
    /// sentences in their domain that scored as likelihood alone (mle) did, which is cheaper: docs/results.md.
    #[arg(long, value_enum, default_value_t = ObjectiveName::ScheduledSampling)]
    objective: ObjectiveName,
    /// Updates.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = count(counts::UPDATES))]
    updates: u32,
    /// Tokens of a batch, at most, on either side. Sentences lie side by side without padding.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = count(counts::BATCH_TOKENS))]
    batch_tokens: usize,
    /// Batches whose gradients make one update.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(counts::ACCUMULATE))]
    accumulate: usize,
    /// Largest learning rate [default: 1e-4; 1e-5 for mrt].
    #[arg(long, value_name = "X", value_parser = finite::<f64>())]
    learning_rate: Option<f64>,
    /// Updates in which the learning rate rises [default: a tenth of the updates, at most 1000].
    #[arg(long, value_name = "N", value_parser = count(counts::or_none(&counts::UPDATES, 0)))]
    warmup: Option<u32>,
    /// How the learning rate falls from there.
    #[arg(long, value_enum, default_value_t = DecayName::InverseSqrt)]
    decay: DecayName,
    /// AdamW: how slowly the mean of gradients follows.
    #[arg(long, value_name = "X", default_value_t = AdamOptions::default().beta1, value_parser = finite::<f64>())]
    beta1: f64,
    /// AdamW: how slowly the mean of squared gradients follows.
    #[arg(long, value_name = "X", default_value_t = AdamOptions::default().beta2, value_parser = finite::<f64>())]
    beta2: f64,
    /// AdamW: keeps the division finite.
    #[arg(long, value_name = "X", default_value_t = AdamOptions::default().eps, value_parser = finite::<f64>())]
    adam_eps: f64,
    /// AdamW: weight decay of matrices.
    #[arg(long, value_name = "X", default_value_t = AdamOptions::default().weight_decay, value_parser = finite::<f64>())]
    weight_decay: f64,
    /// Largest norm of the gradient; a larger one is scaled down to it.
    #[arg(long, value_name = "X", default_value_t = AdamOptions::default().clip, value_parser = finite::<f64>())]
    clip: f64,
    /// Share of elements of embeddings and sublayers dropped [default: the model's own, from config.json].
    #[arg(long, value_name = "X", value_parser = finite::<f32>())]
    dropout: Option<f32>,
    /// Share of the weights of attention dropped [default: the model's own].
    #[arg(long, value_name = "X", value_parser = finite::<f32>())]
    attention_dropout: Option<f32>,
    /// Share of the feed-forward layers' inner elements dropped [default: the model's own].
    #[arg(long, value_name = "X", value_parser = finite::<f32>())]
    activation_dropout: Option<f32>,
    /// Label smoothing.
    #[arg(long, value_name = "X", default_value_t = 0.1, value_parser = finite::<f32>())]
    label_smoothing: f32,
    /// Seed of order, dropout and samples.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = seed())]
    seed: u64,
    /// Updates between validations.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = count(counts::UPDATES))]
    validate_every: u32,
    /// End after this many validations without a better score; 0 never.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count(counts::or_none(&counts::UPDATES, 0)))]
    patience: u32,
    /// Score that validations are compared by.
    #[arg(long, value_enum, default_value_t = MetricName::Chrf)]
    metric: MetricName,
    /// Beams of the validation's search.
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = count(counts::HYPOTHESES))]
    validation_beam: usize,
    /// Which weights to write: those of the best validation, or the last.
    #[arg(long, value_enum, default_value_t = KeepName::Best)]
    keep: KeepName,
    /// Updates between saved states.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = count(counts::UPDATES))]
    checkpoint_every: u32,
    /// Updates between lines of progress where stderr is no terminal.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count(counts::UPDATES))]
    pub log_every: u32,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Scheduled sampling")]
struct SamplingArguments {
    /// How the probability of feeding gold falls from 1.
    #[arg(long, value_enum, default_value_t = ShapeName::InverseSigmoid)]
    ss_schedule: ShapeName,
    /// Where it ends.
    #[arg(long, value_name = "P", default_value_t = 0.5, value_parser = finite::<f64>())]
    ss_floor: f64,
    /// Updates that feed gold only [default: a tenth of the updates, at most 1000].
    #[arg(long, value_name = "N", value_parser = count(counts::or_none(&counts::UPDATES, 0)))]
    ss_warmup: Option<u32>,
    /// Update at which the floor is reached [default: 60% of the updates].
    #[arg(long, value_name = "N", value_parser = count(counts::or_none(&counts::UPDATES, 0)))]
    ss_end: Option<u32>,
    /// How much of the way to 1 the probability of feeding gold is raised along a sentence: 0 not at all, 1 up to 1 at its end.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite::<f64>())]
    ss_raise: f64,
    /// How a token is picked where gold is not fed.
    #[arg(long, value_enum, default_value_t = PickName::Sample)]
    ss_pick: PickName,
    /// Temperature of sampled picks.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = finite::<f32>())]
    ss_temperature: f32,
    /// Passes that choose inputs, each from the choices of the one before; as many as the longest target has tokens are exact.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count(counts::PASSES))]
    ss_passes: usize,
    /// Run even though the schedule hardly leaves gold.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Minimum risk training")]
struct RiskArguments {
    /// Translations of each source.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = count(counts::CANDIDATES))]
    mrt_samples: usize,
    /// Where they come from.
    #[arg(long, value_enum, default_value_t = DrawName::Samples)]
    mrt_candidates: DrawName,
    /// How sharply the distribution over candidates follows the model; at 1 it is one candidate's alone.
    #[arg(long, value_name = "X", default_value_t = 0.005, value_parser = finite::<f32>())]
    mrt_alpha: f32,
    /// What a translation is worth.
    #[arg(long, value_enum, default_value_t = RewardName::Both)]
    mrt_reward: RewardName,
    /// Share of the likelihood in the objective.
    #[arg(long, value_name = "X", default_value_t = 0.3, value_parser = finite::<f32>())]
    mrt_mix: f32,
    /// How risks become weights.
    #[arg(long, value_enum, default_value_t = EstimatorName::Risk)]
    mrt_estimator: EstimatorName,
    /// Leave the reference out of the candidates.
    #[arg(long)]
    mrt_no_reference: bool,
    /// Target tokens of one pass over candidates, which bounds the memory [default: those of a batch].
    #[arg(long, value_name = "N", value_parser = count(counts::BATCH_TOKENS))]
    mrt_chunk_tokens: Option<usize>,
}

impl RiskArguments {
    fn options(&self, batch_tokens: usize) -> mrt::Options {
        mrt::Options {
            samples: self.mrt_samples,
            draw: match self.mrt_candidates {
                DrawName::Samples => Draw::Samples { temperature: 1.0, top_p: 1.0 },
                DrawName::Beam => Draw::Beam,
            },
            reward: match self.mrt_reward {
                RewardName::Both => mrt::Reward::Both,
                RewardName::Chrf => mrt::Reward::Chrf,
                RewardName::Bleu => mrt::Reward::Bleu,
                RewardName::Constant => mrt::Reward::Constant,
            },
            estimator: match self.mrt_estimator {
                EstimatorName::Risk => {
                    mrt::Estimator::Risk { alpha: self.mrt_alpha, with_reference: !self.mrt_no_reference }
                }
                EstimatorName::Reinforce => mrt::Estimator::Reinforce,
            },
            mix: self.mrt_mix,
            chunk_tokens: self.mrt_chunk_tokens.unwrap_or(batch_tokens),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Distillation")]
struct DistillArguments {
    /// Who teaches: a model directory with the same pieces, or several, separated by commas, whose weights are averaged; frozen (the
    /// model as it is at first); or ema (a moving average of the student's weights).
    #[arg(long, value_name = "DIR,...|frozen|ema", default_value = "ema", value_delimiter = ',')]
    teacher: Vec<PathBuf>,
    /// Share of itself that a moving average keeps at each update.
    #[arg(long, value_name = "X", default_value_t = 0.999, value_parser = finite::<f64>())]
    ema_decay: f64,
    /// Whose sentences the two are compared on.
    #[arg(long, value_enum, default_value_t = PrefixesName::Mix)]
    prefixes: PrefixesName,
    /// Mass of the most probable tokens that the teacher's sentences are drawn from.
    #[arg(long, value_name = "P", default_value_t = 0.9, value_parser = finite::<f32>())]
    teacher_top_p: f32,
    /// Share of the student's sentences in a mix.
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = finite::<f32>())]
    student_share: f32,
    /// Temperature of both distributions.
    #[arg(long, value_name = "X", default_value_t = 2.0, value_parser = finite::<f32>())]
    distill_temperature: f32,
    /// The divergence: 0 is KL(teacher, student), 1 is KL(student, teacher), between them the generalised Jensen-Shannon divergence.
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = finite::<f32>())]
    distill_beta: f32,
    /// Weight of the reference's likelihood beside it.
    #[arg(long, value_name = "X", default_value_t = 0.5, value_parser = finite::<f32>())]
    distill_gold: f32,
}

impl DistillArguments {
    fn options(&self) -> distill::Options {
        distill::Options {
            teacher: match &self.teacher[..] {
                [name] if name.as_os_str() == "frozen" => distill::Teacher::Frozen,
                [name] if name.as_os_str() == "ema" => distill::Teacher::Ema(self.ema_decay),
                dirs => distill::Teacher::Models(dirs.to_vec()),
            },
            prefixes: match self.prefixes {
                PrefixesName::Gold => distill::Prefixes::Gold,
                PrefixesName::Teacher => distill::Prefixes::Teacher,
                PrefixesName::Student => distill::Prefixes::Student,
                PrefixesName::Mix => distill::Prefixes::Mix(self.student_share),
            },
            student_draw: Draw::Samples { temperature: 1.0, top_p: 1.0 },
            teacher_draw: Draw::Samples { temperature: 1.0, top_p: self.teacher_top_p },
            divergence: Divergence { temperature: self.distill_temperature, beta: self.distill_beta },
            gold: self.distill_gold,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RewardName {
    /// The mean of chrF2 and sentence BLEU.
    Both,
    Chrf,
    Bleu,
    /// The same for all: a control.
    Constant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DrawName {
    /// Samples of the model's distribution.
    Samples,
    /// The best of beam search.
    Beam,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EstimatorName {
    /// The expected risk over the candidates (Shen et al. 2016).
    Risk,
    /// REINFORCE with the mean of the other samples as baseline.
    Reinforce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PrefixesName {
    Gold,
    Teacher,
    Student,
    Mix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveName {
    /// Likelihood after gold prefixes.
    Mle,
    /// Likelihood after prefixes that mix gold with the model's own tokens, more and more.
    ScheduledSampling,
    /// Minimum risk: the model's own translations, weighted by how much worse than the others each is.
    Mrt,
    /// A teacher's distributions, after the student's own and the teacher's prefixes.
    Distill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DecayName {
    InverseSqrt,
    Linear,
    Constant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ShapeName {
    InverseSigmoid,
    Linear,
    Exponential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PickName {
    Argmax,
    Sample,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MetricName {
    Bleu,
    Chrf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeepName {
    Best,
    Last,
}

/// The share of a run that a warm-up takes where nothing is said, and the most updates.
const WARMUP: (u32, u32) = (10, 1000);

fn default_warmup(updates: u32) -> u32 {
    (updates / WARMUP.0).min(WARMUP.1)
}

/// The last probability of feeding gold above which a run is not scheduled sampling in anything but name.
const HARDLY_SAMPLES: f64 = 0.95;

impl SamplingArguments {
    fn options(&self, updates: u32) -> Result<scheduled_sampling::Options> {
        let warmup = self.ss_warmup.unwrap_or(default_warmup(updates));
        let end = self.ss_end.unwrap_or((u64::from(updates) * 6 / 10) as u32).max(u32::from(self.ss_end.is_none()));
        let shape = match self.ss_schedule {
            ShapeName::InverseSigmoid => Shape::InverseSigmoid,
            ShapeName::Linear => Shape::Linear,
            ShapeName::Exponential => Shape::Exponential,
        };
        let schedule = GoldSchedule::new(shape, warmup, end, self.ss_floor)?;
        let wrong = |option, expected: &str, got: String| Err(Error::Option { option, expected: expected.into(), got });
        let last = schedule.at(updates);
        if last > HARDLY_SAMPLES && !self.force {
            let expected = format!("to end at {HARDLY_SAMPLES} or less, or --force");
            return wrong("ss-schedule", &expected, format!("{last:.3} at the last update"));
        }
        if !(0.0..=1.0).contains(&self.ss_raise) {
            return wrong("ss-raise", "a number from 0 to 1", self.ss_raise.to_string());
        }
        let temperature = self.ss_temperature;
        if !(temperature > 0.0 && temperature <= 100.0) {
            return wrong("ss-temperature", "a number above 0, up to 100", temperature.to_string());
        }
        let pick = match self.ss_pick {
            PickName::Argmax => Pick::Argmax,
            PickName::Sample => Pick::Sample { temperature },
        };
        Ok(scheduled_sampling::Options { schedule, raise: self.ss_raise, pick, passes: self.ss_passes })
    }
}

impl Arguments {
    pub fn places(&self) -> Result<Places> {
        let corpus =
            |tsv: &Option<PathBuf>, source: &Option<PathBuf>, target: &Option<PathBuf>| match (tsv, source, target) {
                (Some(tsv), ..) => Some(Corpus::Tsv(tsv.clone())),
                (None, Some(source), Some(target)) => Some(Corpus::Files(source.clone(), target.clone())),
                _ => None,
            };
        let data = corpus(&self.data, &self.source, &self.target);
        let missing = || Error::Option { option: "data", expected: "training text".into(), got: "none".into() };
        Ok(Places {
            model: self.model.resolve()?,
            output: self.output.clone(),
            data: data.ok_or_else(missing)?,
            validation: corpus(&self.validation, &self.validation_source, &self.validation_target),
            defaults: self.languages.defaults(),
            skip_bad: self.skip_bad,
            resume: self.resume,
        })
    }

    pub fn options(&self, defaults: TrainingDefaults) -> Result<TrainOptions> {
        let run = &self.run;
        let objective = match run.objective {
            ObjectiveName::Mle => ObjectiveOptions::Mle,
            ObjectiveName::ScheduledSampling => {
                ObjectiveOptions::ScheduledSampling(self.sampling.options(run.updates)?)
            }
            ObjectiveName::Mrt => ObjectiveOptions::Mrt(self.risk.options(run.batch_tokens)),
            ObjectiveName::Distill => ObjectiveOptions::Distill(self.distill.options()),
        };
        Ok(TrainOptions {
            objective,
            updates: run.updates,
            batch_tokens: run.batch_tokens,
            accumulate: run.accumulate,
            learning_rate: run.learning_rate.unwrap_or(match run.objective {
                ObjectiveName::Mrt => 1e-5,
                _ => 1e-4,
            }),
            warmup: run.warmup.unwrap_or(default_warmup(run.updates)),
            decay: match run.decay {
                DecayName::InverseSqrt => Decay::InverseSqrt,
                DecayName::Linear => Decay::Linear,
                DecayName::Constant => Decay::Constant,
            },
            adam: AdamOptions {
                beta1: run.beta1,
                beta2: run.beta2,
                eps: run.adam_eps,
                weight_decay: run.weight_decay,
                clip: run.clip,
            },
            dropout: Rates {
                sublayers: run.dropout.unwrap_or(defaults.dropout),
                attention: run.attention_dropout.unwrap_or(defaults.attention_dropout),
                activation: run.activation_dropout.unwrap_or(defaults.activation_dropout),
            },
            label_smoothing: run.label_smoothing,
            seed: run.seed,
            validate_every: run.validate_every,
            patience: run.patience,
            metric: match run.metric {
                MetricName::Bleu => Metric::Bleu,
                MetricName::Chrf => Metric::Chrf,
            },
            validation_beam: run.validation_beam,
            keep: match run.keep {
                KeepName::Best => Keep::Best,
                KeepName::Last => Keep::Last,
            },
            checkpoint_every: run.checkpoint_every,
            from_scratch: self.from_scratch.then_some(defaults.init_std),
        })
    }
}
