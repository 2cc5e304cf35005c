//! Distillation: at each position of a prefix the student's distribution is drawn to the teacher's. After the student's own
//! prefixes that teaches it to go on from what it says itself (GKD, Agarwal et al. 2024).

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::mle::likelihood;
use super::{Example, Objective, Sum, Update};
use crate::backend::Divergence;
use crate::cpu::philox::{Purpose, philox, uniform};
use crate::model::weights::Tensors;
use crate::text::Tokenizer;
use crate::train::autograd::{AutogradModel, Batch};
use crate::train::ops::tempered_divergence;
use crate::train::rollouts::{Draw, Rollout, Rollouts};
use crate::{Error, Result};

/// Whose sentences the two are compared on.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefixes {
    /// The reference's.
    Gold,
    /// The teacher's.
    Teacher,
    /// The student's.
    Student,
    /// The student's for this share of the pairs, else the teacher's.
    Mix(f32),
}

/// Who teaches.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Teacher {
    /// Another model; of several of one architecture, such as checkpoints of a run, the mean of their weights.
    Models(Vec<PathBuf>),
    /// The model as it is at first.
    Frozen,
    /// A moving average of the student's weights, which keeps this share of itself at each update.
    Ema(f64),
}

/// The options of distillation.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Options {
    /// Who teaches.
    pub teacher: Teacher,
    /// Whose sentences.
    pub prefixes: Prefixes,
    /// How the student's sentences are made.
    pub student_draw: Draw,
    /// How the teacher's sentences are made.
    pub teacher_draw: Draw,
    /// What is compared.
    pub divergence: Divergence,
    /// Weight of the likelihood of the reference beside it.
    pub gold: f32,
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
        self.divergence.validate()?;
        check((0.0..=10.0).contains(&self.gold), "distill-gold", "a number from 0 to 10", self.gold.to_string())?;
        if let Prefixes::Mix(share) = self.prefixes {
            check((0.0..=1.0).contains(&share), "student-share", "a number from 0 to 1", share.to_string())?;
        }
        for draw in [self.student_draw, self.teacher_draw] {
            draw.validate()?;
        }
        match self.teacher {
            Teacher::Ema(keep) => check((0.0..1.0).contains(&keep), "ema-decay", "0 to below 1", keep.to_string()),
            Teacher::Models(_) | Teacher::Frozen => Ok(()),
        }
    }
}

/// Distillation from a teacher.
#[derive(Debug)]
pub struct Distill {
    options: Options,
    teacher: AutogradModel,
    student_rollouts: Rollouts,
    teacher_rollouts: Rollouts,
    /// Changes of the teacher so far: its rollouts follow it.
    teacher_changes: u32,
    /// Whether the two have been seen to differ.
    differ: bool,
}

/// Checks that ids mean the same to both models, on either side.
///
/// # Errors
/// [`Error::Input`] with the first difference.
pub fn check_pieces(student: &Tokenizer, teacher: &Tokenizer) -> Result<()> {
    let refuse = |got| {
        let expected = "a teacher with the student's pieces".to_owned();
        Err(Error::Input { operation: "distill", expected, got })
    };
    if let Some(difference) = student.first_difference(teacher) {
        return refuse(difference);
    }
    let (ours, theirs) = (student.source_vocab_size(), teacher.source_vocab_size());
    if ours != theirs {
        return refuse(format!("{theirs} source pieces in place of {ours}"));
    }
    match (0..ours as u32).find(|id| student.source_piece(*id) != teacher.source_piece(*id)) {
        None => Ok(()),
        Some(id) => {
            let (ours, theirs) = (student.source_piece(id), teacher.source_piece(id));
            refuse(format!("source id {id} is {theirs:?} in place of {ours:?}"))
        }
    }
}

/// The model whose weights are the mean of those in these directories, each of which has the pieces of `tokenizer`.
///
/// # Errors
/// As [`AutogradModel::open`] and [`check_pieces`]; [`Error::Input`] for models of different architectures, or none.
pub fn average(dirs: &[PathBuf], tokenizer: &Tokenizer) -> Result<AutogradModel> {
    let refuse = |expected: String, got| Err(Error::Input { operation: "average teachers", expected, got });
    let Some((first, others)) = dirs.split_first() else {
        return refuse("at least one model".into(), "none".into());
    };
    check_pieces(tokenizer, &Tokenizer::open(first)?)?;
    let mut mean = AutogradModel::open(first)?;
    if others.is_empty() {
        return Ok(mean);
    }
    let f64s = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    let mut sums: Vec<Vec<f64>> = mean.parameters().values()?.into_iter().map(f64s).collect();
    for dir in others {
        check_pieces(tokenizer, &Tokenizer::open(dir)?)?;
        let other = AutogradModel::open(dir)?;
        if other.config() != mean.config() {
            let expected = format!("models of the architecture of {}", first.display());
            return refuse(expected, format!("another one in {}", dir.display()));
        }
        for (sums, values) in sums.iter_mut().zip(other.parameters().values()?) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
        }
    }
    let count = dirs.len() as f64;
    let means = sums.into_iter().map(|sums| sums.into_iter().map(|sum| (sum / count) as f32).collect());
    mean.parameters_mut().set_values(means.collect())?;
    Ok(mean)
}

impl Distill {
    /// Distillation from this teacher; each model comes with a decode session of its own.
    pub fn new(
        options: Options,
        teacher: AutogradModel,
        student_rollouts: Rollouts,
        teacher_rollouts: Rollouts,
    ) -> Self {
        Distill { options, teacher, student_rollouts, teacher_rollouts, teacher_changes: 0, differ: false }
    }

    /// The share of pairs whose sentences are the student's.
    fn student_share(&self) -> f32 {
        match self.options.prefixes {
            Prefixes::Student => 1.0,
            Prefixes::Mix(share) => share,
            Prefixes::Gold | Prefixes::Teacher => 0.0,
        }
    }

    /// The sentences on which the two are compared, in the order of the examples.
    fn sentences(&mut self, update: &Update<'_>, examples: &[Example<'_>]) -> Result<Vec<Vec<u32>>> {
        if self.options.prefixes == Prefixes::Gold {
            return Ok(examples.iter().map(|example| example.pair.target.clone()).collect());
        }
        let coin = |example: &Example<'_>| {
            let counter = [update.number, example.number, 0, (Purpose::Prefix as u32) << 28];
            uniform(philox(update.seed, counter)[0]) < self.student_share()
        };
        let (own, theirs): (Vec<usize>, Vec<usize>) = (0..examples.len()).partition(|i| coin(&examples[*i]));
        let mut sentences: Vec<Vec<u32>> = vec![Vec::new(); examples.len()];
        self.student_rollouts.follow(update.model, update.number)?;
        self.teacher_rollouts.follow(&self.teacher, self.teacher_changes)?;
        let seed = update.seed ^ u64::from(update.number) << 32;
        for (chosen, rollouts, draw) in [
            (own, &self.student_rollouts, self.options.student_draw),
            (theirs, &self.teacher_rollouts, self.options.teacher_draw),
        ] {
            let some: Vec<Example<'_>> = chosen.iter().map(|&i| examples[i]).collect();
            for (i, mut drawn) in chosen.into_iter().zip(rollouts.draw(&some, 1, draw, seed)?) {
                sentences[i] = drawn.pop().map_or_else(Vec::new, |Rollout { ids, .. }| ids);
            }
        }
        // The model may say nothing at all; there is nothing to compare then but the end.
        for (sentence, example) in sentences.iter_mut().zip(examples).filter(|(sentence, _)| sentence.is_empty()) {
            sentence.extend(example.pair.target.last());
        }
        Ok(sentences)
    }
}

impl Objective for Distill {
    fn gradients(&mut self, update: &Update<'_>, examples: &[Example<'_>], sum: &mut Sum) -> Result<()> {
        let sentences = self.sentences(update, examples)?;
        let groups = examples
            .iter()
            .zip(&sentences)
            .map(|(e, sentence)| (e.number, e.pair.source.as_slice(), std::slice::from_ref(sentence)));
        let batch = Batch::new(groups, update.model.config().ids.decoder_start_id);
        let teacher = self.teacher.logits_only(&batch)?;
        let student = update.model.logits(&batch, update.dropout())?;
        let rows = batch.targets.len();
        // The mean over the tokens of this part, which counts by its sentences.
        let share = examples.len() as f32 / update.sentences as f32;
        let weights = vec![share / rows as f32; rows];
        let loss = tempered_divergence(&student, &teacher, &vec![1; rows], &weights, self.options.divergence);
        let before = sum.loss;
        sum.add_loss(update.model, loss.map_err(Error::autograd)?)?;
        let divergence = sum.loss - before;
        sum.figure("divergence", divergence / f64::from(share), 1.0);
        if !self.differ && divergence <= 0.0 {
            let expected = "a teacher that differs from the student, or dropout".to_owned();
            let got = "a divergence of 0, which has no gradient".to_owned();
            return Err(Error::Input { operation: "distill", expected, got });
        }
        self.differ = true;
        match self.options.gold > 0.0 {
            true => likelihood(update, &update.batch(examples), self.options.gold, sum),
            false => Ok(()),
        }
    }

    fn updated(&mut self, model: &AutogradModel) -> Result<()> {
        let Teacher::Ema(keep) = self.options.teacher else { return Ok(()) };
        let mut values = self.teacher.parameters().values()?;
        for (mean, now) in values.iter_mut().zip(model.parameters().values()?) {
            for (mean, now) in mean.iter_mut().zip(now) {
                *mean += ((1.0 - keep) * (f64::from(now) - f64::from(*mean))) as f32;
            }
        }
        self.teacher_changes += 1;
        self.teacher.parameters_mut().set_values(values)
    }

    fn save(&self, tensors: &mut Tensors) -> Result<()> {
        if matches!(self.options.teacher, Teacher::Ema(_)) {
            let own = self.teacher.parameters().tensors()?.into_iter();
            tensors.extend(own.map(|(name, tensor)| (format!("teacher.{name}"), tensor)));
        }
        Ok(())
    }

    fn restore(&mut self, tensors: &Tensors) -> Result<()> {
        if !matches!(self.options.teacher, Teacher::Ema(_)) {
            return Ok(());
        }
        let own = tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix("teacher.")?.to_owned(), t.clone())));
        self.teacher_changes += 1;
        self.teacher.parameters_mut().set_tensors(&own.collect())
    }
}
