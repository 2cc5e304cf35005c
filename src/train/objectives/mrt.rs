//! Minimum risk training (Shen et al. 2016): the model's own translations, each weighted by how much worse than the others it is.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use super::mle::likelihood;
use super::{Example, Objective, Sum, Update};
use crate::backend::TokenStats;
use crate::counts;
use crate::cpu::risk::expected_risk;
use crate::cpu::stats::token_stats;
use crate::metrics::{sentence_bleu, sentence_chrf};
use crate::train::autograd::{AutogradModel, Batch};
use crate::train::ops::weighted_nll;
use crate::train::rollouts::{Draw, Rollout, Rollouts};
use crate::{Error, Result};

/// What a translation is worth, 0..=1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reward {
    /// The mean of chrF2 and sentence BLEU.
    Both,
    /// chrF2.
    Chrf,
    /// Sentence BLEU.
    Bleu,
    /// The same for all: a control that shows what the rest of the recipe does (Choshen et al. 2020).
    Constant,
}

impl Reward {
    fn of(self, text: &str, reference: &str) -> f64 {
        let score = match self {
            Reward::Both => (sentence_chrf(text, &[reference]) + sentence_bleu(text, &[reference])) / 2.0,
            Reward::Chrf => sentence_chrf(text, &[reference]),
            Reward::Bleu => sentence_bleu(text, &[reference]),
            Reward::Constant => 100.0,
        };
        score / 100.0
    }
}

/// How candidates' risks become weights.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    /// The expected risk under `Q = softmax(alpha * log p)` over the candidates, divided by alpha: alpha sets how sharply Q tells
    /// candidates apart, and not how much the risk counts beside the likelihood.
    Risk {
        /// How sharply Q follows the model's probabilities; at 1 it is one candidate's alone.
        alpha: f32,
        /// Whether the reference is a candidate.
        with_reference: bool,
    },
    /// REINFORCE with the mean of the other samples' risks as baseline (Williams 1992; Kool et al. 2019).
    Reinforce,
}

/// The options of minimum risk training.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    /// Translations per source.
    pub samples: usize,
    /// Where they come from.
    pub draw: Draw,
    /// What they are worth.
    pub reward: Reward,
    /// How their risks become weights.
    pub estimator: Estimator,
    /// Share of the likelihood in the objective; the risk gets the rest.
    pub mix: f32,
    /// Target tokens of one pass over candidates: what bounds the memory.
    pub chunk_tokens: usize,
}

impl Options {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Option`] names the first that is out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, option: &'static str, expected: &str, got: String| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected: expected.into(), got }),
        };
        counts::check("mrt-samples", self.samples, &counts::CANDIDATES)?;
        counts::check("mrt-chunk-tokens", self.chunk_tokens, &counts::BATCH_TOKENS)?;
        check((0.0..1.0).contains(&self.mix), "mrt-mix", "a number from 0 to below 1", self.mix.to_string())?;
        self.draw.validate()?;
        match self.estimator {
            Estimator::Reinforce => Ok(()),
            Estimator::Risk { alpha, .. } => {
                check(alpha > 0.0 && alpha <= 10.0, "mrt-alpha", "a number above 0, up to 10", alpha.to_string())
            }
        }
    }
}

/// The risk of the model's own translations.
#[derive(Debug)]
pub struct MinimumRisk {
    options: Options,
    rollouts: Rollouts,
}

/// A distinct translation of a source, and how often it was drawn.
#[derive(Clone, Debug, PartialEq)]
struct Candidate {
    ids: Vec<u32>,
    risk: f32,
    count: usize,
}

/// A candidate's place: its source's, and its own among that source's.
type Place = (usize, usize);

impl MinimumRisk {
    /// The objective over a decode session of the model's.
    pub fn new(options: Options, rollouts: Rollouts) -> Self {
        MinimumRisk { options, rollouts }
    }

    /// The distinct translations of each source with their risks, equal ones together.
    fn candidates(&self, examples: &[Example<'_>], drawn: Vec<Vec<Rollout>>) -> Vec<Vec<Candidate>> {
        let with_reference = matches!(self.options.estimator, Estimator::Risk { with_reference: true, .. });
        let of_source = |(example, drawn): (&Example<'_>, Vec<Rollout>)| {
            let reference = Rollout { ids: example.pair.target.clone(), text: example.pair.text.clone() };
            let mut distinct: Vec<Candidate> = Vec::new();
            for Rollout { ids, text } in with_reference.then_some(reference).into_iter().chain(drawn) {
                match distinct.iter_mut().find(|candidate| candidate.ids == ids) {
                    Some(known) => known.count += 1,
                    None if ids.is_empty() => {}
                    None => {
                        let risk = 1.0 - self.options.reward.of(&text, &example.pair.text);
                        distinct.push(Candidate { ids, risk: risk as f32, count: 1 });
                    }
                }
            }
            distinct
        };
        examples.par_iter().zip(drawn).map(of_source).collect()
    }

    /// The weights with which the candidates' negative log-likelihoods are summed, one vector per source.
    fn weights(&self, update: &Update<'_>, groups: &Groups<'_>, sum: &mut Sum) -> Result<Vec<Vec<f32>>> {
        let share = (1.0 - self.options.mix) / update.sentences as f32;
        let mut weights: Vec<Vec<f32>> = Vec::new();
        match self.options.estimator {
            Estimator::Reinforce => {
                for candidates in &groups.candidates {
                    weights.push(leave_one_out(candidates).into_iter().map(|w| w * share).collect());
                }
            }
            Estimator::Risk { alpha, .. } => {
                let log_probs = groups.log_probs(update.model, self.options.chunk_tokens, sum)?;
                for (candidates, log_probs) in groups.candidates.iter().zip(&log_probs) {
                    let risks: Vec<f32> = candidates.iter().map(|c| c.risk).collect();
                    let mut coefficients = vec![0.0; risks.len()];
                    let starts = [0, risks.len() as u32];
                    let expected = expected_risk(alpha, log_probs, &risks, &starts, &mut coefficients)?;
                    for found in expected {
                        sum.figure("effective_samples", f64::from(found.effective_samples), 1.0);
                        sum.figure("risk", f64::from(found.risk), 1.0);
                        sum.loss += f64::from(found.risk) * f64::from(share) / f64::from(alpha);
                    }
                    weights.push(coefficients.into_iter().map(|c| c / alpha * share).collect());
                }
            }
        }
        for candidates in &groups.candidates {
            let risks = || candidates.iter().map(|c| c.risk);
            let (low, high) = (risks().fold(f32::INFINITY, f32::min), risks().fold(f32::NEG_INFINITY, f32::max));
            sum.figure("candidates", candidates.len() as f64, 1.0);
            sum.figure("risk_spread", f64::from((high - low).max(0.0)), 1.0);
            // Nothing to choose between: their gradient is zero.
            sum.figure("skipped", f64::from(u8::from(high <= low || candidates.len() < 2)), 1.0);
        }
        Ok(weights)
    }
}

/// `-(r - b) n / N` for a candidate of risk r that was drawn n times among N, b the mean risk of the other draws.
fn leave_one_out(candidates: &[Candidate]) -> Vec<f32> {
    let draws: usize = candidates.iter().map(|c| c.count).sum();
    let total: f64 = candidates.iter().map(|c| f64::from(c.risk) * c.count as f64).sum();
    let weight = |candidate: &Candidate| {
        let others = draws.saturating_sub(1).max(1) as f64;
        let baseline = (total - f64::from(candidate.risk)) / others;
        let advantage = if draws < 2 { 0.0 } else { f64::from(candidate.risk) - baseline };
        (-advantage * candidate.count as f64 / draws.max(1) as f64) as f32
    };
    candidates.iter().map(weight).collect()
}

impl Objective for MinimumRisk {
    fn gradients(&mut self, update: &Update<'_>, examples: &[Example<'_>], sum: &mut Sum) -> Result<()> {
        self.rollouts.follow(update.model, update.number)?;
        let seed = update.seed ^ u64::from(update.number) << 32;
        let drawn = self.rollouts.draw(examples, self.options.samples, self.options.draw, seed)?;
        let groups = Groups { examples, candidates: self.candidates(examples, drawn) };
        let weights = self.weights(update, &groups, sum)?;
        // A weight of zero has no gradient.
        let counts = |&(source, candidate): &Place| weights[source][candidate] != 0.0;
        for chunk in groups.chunks(self.options.chunk_tokens, counts) {
            let batch = groups.batch(update.model, &chunk);
            // Without dropout: what the weights were computed for is what is differentiated.
            let logits = update.model.logits(&batch, None)?;
            let rows = batch.targets.sentences().zip(&chunk);
            let row_weights: Vec<f32> =
                rows.flat_map(|(rows, &(s, c))| std::iter::repeat_n(weights[s][c], rows.len())).collect();
            let loss = weighted_nll(&logits, &batch.targets.ids, &vec![1; row_weights.len()], &row_weights, 0.0);
            let before = sum.loss;
            sum.add_loss(update.model, loss.map_err(Error::autograd)?)?;
            // The weighted likelihoods have the risk's gradient, not its value.
            sum.loss = before;
        }
        match self.options.mix > 0.0 {
            true => likelihood(update, &update.batch(examples), self.options.mix, sum),
            false => Ok(()),
        }
    }
}

/// Sources and their candidates.
struct Groups<'a> {
    examples: &'a [Example<'a>],
    candidates: Vec<Vec<Candidate>>,
}

impl Groups<'_> {
    /// The candidates that `wanted` takes, in order, cut into parts of up to `tokens` target tokens, one candidate at least.
    fn chunks(&self, tokens: usize, wanted: impl Fn(&Place) -> bool) -> Vec<Vec<Place>> {
        let all = self.candidates.iter().enumerate().flat_map(|(s, group)| (0..group.len()).map(move |c| (s, c)));
        let mut chunks: Vec<Vec<Place>> = Vec::new();
        let mut used = usize::MAX;
        for place in all.filter(wanted) {
            let length = self.candidates[place.0][place.1].ids.len();
            used = used.saturating_add(length);
            match chunks.last_mut() {
                Some(chunk) if used <= tokens => chunk.push(place),
                _ => {
                    chunks.push(vec![place]);
                    used = length;
                }
            }
        }
        chunks
    }

    /// Candidates as a batch; those of one source share its encoding.
    fn batch(&self, model: &AutogradModel, chunk: &[Place]) -> Batch {
        let targets: Vec<(usize, Vec<&[u32]>)> = chunk
            .chunk_by(|a, b| a.0 == b.0)
            .map(|group| (group[0].0, group.iter().map(|&(s, c)| self.candidates[s][c].ids.as_slice()).collect()))
            .collect();
        let groups = targets.iter().map(|(source, targets)| {
            let Example { number, pair } = self.examples[*source];
            (number, pair.source.as_slice(), targets.as_slice())
        });
        Batch::new(groups, model.config().ids.decoder_start_id)
    }

    /// The log-probability of each candidate, its end of sentence included if it has one.
    fn log_probs(&self, model: &AutogradModel, tokens: usize, figures: &mut Sum) -> Result<Vec<Vec<f32>>> {
        let mut sums: Vec<Vec<f32>> = self.candidates.iter().map(|group| vec![0.0; group.len()]).collect();
        let vocab_size = model.config().decoder_vocab_size;
        for chunk in self.chunks(tokens, |_| true) {
            let batch = self.batch(model, &chunk);
            let logits = model.logits_only(&batch)?;
            let logits: Vec<f32> = logits.flatten_all().and_then(|l| l.to_vec1()).map_err(Error::autograd)?;
            let mut stats = vec![TokenStats::default(); batch.targets.len()];
            token_stats(&logits, vocab_size, &batch.targets.ids, &mut stats);
            // What shows training that only sharpens the distribution (Choshen et al. 2020).
            let (count, best) = (stats.len() as f64, |s: &TokenStats| f64::from(s.max_log_prob.exp()));
            figures.figure("entropy", stats.iter().map(|s| f64::from(s.entropy)).sum(), count);
            figures.figure("top1_mass", stats.iter().map(best).sum(), count);
            for (rows, (source, candidate)) in batch.targets.sentences().zip(chunk) {
                sums[source][candidate] = stats[rows].iter().map(|s| f64::from(s.log_prob)).sum::<f64>() as f32;
            }
        }
        match sums.iter().flatten().find(|sum| !sum.is_finite()) {
            None => Ok(sums),
            Some(bad) => {
                let (expected, got) = ("finite log-probabilities".to_owned(), bad.to_string());
                Err(Error::Input { operation: "score candidates", expected, got })
            }
        }
    }
}
