//! Op `loss`: what a row of logits costs in training, and the gradient by the logits, which takes their place.
//!
//! Two gradients carry every objective; w is the row's weight:
//! * weighted negative log-likelihood, `w * -sum(t * log p)`, t = 1 - s at the target and s / (vocab_size - 1) elsewhere, s the label smoothing
//!   (Szegedy et al. 2016): gradient `w * (p - t)`. Cross-entropy, REINFORCE and minimum risk training differ in w only.
//! * divergence of a student from a teacher, `w * temperature^2 * D` as [`Divergence`] says: gradient by the student's logits.
//!
//! Rows are `[rows, stride]`, of which the first `vocab_size` columns are read and written; p itself is never stored. A row whose
//! mask is 0, or whose weight is, gives exactly 0 throughout, whatever its logits. A row that cannot be normalised (NaN, +infinity,
//! nothing but -infinity) gives NaN; a target of probability 0 costs infinity.

use rayon::prelude::*;

use crate::backend::{Divergence, RowShape, SmoothedTarget};
use crate::cpu::simd;
use crate::cpu::stats::Normalizer;
use crate::{Error, Result};

/// Losses and gradients of a reference.
pub type LossAndGradient = (Vec<f64>, Vec<f64>);

fn log_softmax(logits: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let max = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.clone().map(|z| (z - max).exp()).sum::<f64>().ln();
    logits.map(|z| if log_sum.is_finite() { (z - max) - log_sum } else { f64::NAN }).collect()
}

/// The naive weighted negative log-likelihood, in f64: losses `[rows]` and gradient `[rows, vocab_size]`.
pub fn reference_nll(
    vocab_size: usize,
    smoothing: f64,
    logits: &[f64],
    targets: &[u32],
    mask: &[u32],
    weights: &[f64],
) -> LossAndGradient {
    let (mut loss, mut gradient) = (vec![0.0; mask.len()], vec![0.0; logits.len()]);
    let (off, on) = if vocab_size == 1 { (0.0, 1.0) } else { (smoothing / (vocab_size - 1) as f64, 1.0 - smoothing) };
    for r in (0..mask.len()).filter(|&r| mask[r] != 0 && weights[r] != 0.0) {
        let log_p = log_softmax(logits[r * vocab_size..][..vocab_size].iter().copied());
        for (v, log_p) in log_p.into_iter().enumerate() {
            let target = if v == targets[r] as usize { on } else { off };
            if target > 0.0 || log_p.is_nan() {
                loss[r] -= weights[r] * target * log_p;
            }
            gradient[r * vocab_size + v] = weights[r] * (log_p.exp() - target);
        }
    }
    (loss, gradient)
}

/// The naive divergence, in f64: losses `[rows]` and gradient by the student `[rows, vocab_size]`.
pub fn reference_divergence(
    vocab_size: usize,
    divergence: Divergence,
    student: &[f64],
    teacher: &[f64],
    mask: &[u32],
    weights: &[f64],
) -> LossAndGradient {
    let (mut loss, mut gradient) = (vec![0.0; mask.len()], vec![0.0; student.len()]);
    let (temperature, beta) = (f64::from(divergence.temperature), f64::from(divergence.beta));
    for r in (0..mask.len()).filter(|&r| mask[r] != 0 && weights[r] != 0.0) {
        let row = r * vocab_size..(r + 1) * vocab_size;
        let log_q = log_softmax(student[row.clone()].iter().map(|z| z / temperature));
        let log_p = log_softmax(teacher[row.clone()].iter().map(|z| z / temperature));
        // p log(p / m), with 0 log 0 = 0.
        let term = |p: f64, log: f64| if p == 0.0 { 0.0 } else { p * log };
        let pairs = || log_p.iter().zip(&log_q).map(|(log_p, log_q)| (log_p.exp(), log_q.exp(), *log_p, *log_q));
        let log_m = |p: f64, q: f64| (beta * p + (1.0 - beta) * q).ln();
        let forward: f64 = pairs().map(|(p, _, log_p, log_q)| term(p, log_p - log_q)).sum();
        let reverse: f64 = pairs().map(|(_, q, log_p, log_q)| term(q, log_q - log_p)).sum();
        let teacher_part: f64 = pairs().map(|(p, q, log_p, _)| term(p, log_p - log_m(p, q))).sum();
        let student_part: f64 = pairs().map(|(p, q, _, log_q)| term(q, log_q - log_m(p, q))).sum();
        loss[r] = weights[r]
            * temperature.powi(2)
            * match beta {
                0.0 => forward,
                1.0 => reverse,
                _ => beta * teacher_part + (1.0 - beta) * student_part,
            };
        for (g, (p, q, log_p, log_q)) in gradient[row].iter_mut().zip(pairs()) {
            *g = weights[r]
                * temperature
                * match beta {
                    0.0 => q - p,
                    1.0 => term(q, log_q - log_p - reverse),
                    _ => (1.0 - beta) * term(q, log_q - log_m(p, q) - student_part),
                };
        }
    }
    (loss, gradient)
}

/// Checks the lengths of what belongs to the rows of one call.
fn check(
    operation: &'static str,
    shape: RowShape,
    rows: usize,
    lengths: &[(&'static str, usize, usize)],
) -> Result<()> {
    let RowShape { vocab_size, stride } = shape;
    let refuse = |tensor, expected: String, got: String| Err(Error::Shape { operation, tensor, expected, got });
    if vocab_size == 0 || stride < vocab_size {
        let expected = "a stride of at least vocab_size, which is at least 1".into();
        return refuse("logits", expected, format!("{vocab_size} tokens, {stride} apart"));
    }
    for &(tensor, width, len) in lengths {
        if len != rows * width {
            return refuse(tensor, format!("{} elements", rows * width), format!("{len} elements"));
        }
    }
    Ok(())
}

/// Checks what [`weighted_nll`] takes; the target distribution.
fn check_nll(
    shape: RowShape,
    smoothing: f32,
    logits: usize,
    targets: &[u32],
    mask: &[u32],
    weights: usize,
    loss: usize,
) -> Result<SmoothedTarget> {
    let lengths =
        [("logits", shape.stride, logits), ("targets", 1, targets.len()), ("weights", 1, weights), ("loss", 1, loss)];
    check("weighted_nll", shape, mask.len(), &lengths)?;
    let smoothed = SmoothedTarget::new(smoothing, shape.vocab_size)?;
    match targets.iter().zip(mask).find(|(target, mask)| **mask != 0 && **target as usize >= shape.vocab_size) {
        None => Ok(smoothed),
        Some((target, _)) => Err(Error::Input {
            operation: "weighted_nll",
            expected: format!("targets below {}", shape.vocab_size),
            got: target.to_string(),
        }),
    }
}

/// The weighted negative log-likelihood of each row into `loss` `[rows]`, and its gradient in place of `logits`
/// `[rows, stride]`.
///
/// `targets`, `mask` (0 leaves a row out) and `weights` are `[rows]`; a target that is left out may be any number.
///
/// # Errors
/// [`Error::Shape`] for lengths that do not fit, [`Error::Option`] for a smoothing outside 0..1, [`Error::Input`] for a target outside
/// the vocabulary.
pub fn weighted_nll(
    shape: RowShape,
    smoothing: f32,
    logits: &mut [f32],
    targets: &[u32],
    mask: &[u32],
    weights: &[f32],
    loss: &mut [f32],
) -> Result<()> {
    let SmoothedTarget { on, off } =
        check_nll(shape, smoothing, logits.len(), targets, mask, weights.len(), loss.len())?;
    logits.par_chunks_exact_mut(shape.stride).zip(loss).enumerate().for_each(|(r, (row, loss))| {
        let row = &mut row[..shape.vocab_size];
        let (weight, target) = (if mask[r] == 0 { 0.0 } else { weights[r] }, targets[r] as usize);
        if weight == 0.0 {
            row.fill(0.0);
            *loss = 0.0;
            return;
        }
        let (normalizer, nll) = nll_of(row, target, off);
        *loss = weight * nll;
        if normalizer.max.is_nan() {
            row.fill(f32::NAN);
            return;
        }
        row.iter_mut().for_each(|x| *x -= normalizer.max);
        simd::exp_shift_in_place(row, normalizer.log_sum);
        simd::scale(row, weight);
        if off > 0.0 {
            row.iter_mut().for_each(|x| *x -= weight * off);
        }
        row[target] -= weight * (on - off);
    });
    Ok(())
}

/// The losses of [`weighted_nll`] without the gradient.
///
/// # Errors
/// As [`weighted_nll`].
pub fn weighted_nll_loss(
    shape: RowShape,
    smoothing: f32,
    logits: &[f32],
    targets: &[u32],
    mask: &[u32],
    weights: &[f32],
    loss: &mut [f32],
) -> Result<()> {
    let SmoothedTarget { off, .. } =
        check_nll(shape, smoothing, logits.len(), targets, mask, weights.len(), loss.len())?;
    logits.par_chunks_exact(shape.stride).zip(loss).enumerate().for_each(|(r, (row, loss))| {
        let weight = if mask[r] == 0 { 0.0 } else { weights[r] };
        let nll = |row: &[f32]| nll_of(row, targets[r] as usize, off).1;
        *loss = if weight == 0.0 { 0.0 } else { weight * nll(&row[..shape.vocab_size]) };
    });
    Ok(())
}

/// A row's normaliser, its max NaN if it has none, and its negative log-likelihood.
///
/// With t summing to 1, `-sum(t * log_prob(z))` is `-log_prob(z_target) - off * sum(z - z_target)`.
fn nll_of(row: &[f32], target: usize, off: f32) -> (Normalizer, f32) {
    let normalizer = Normalizer::of(row);
    if !normalizer.max.is_finite() {
        return (Normalizer { max: f32::NAN, log_sum: 0.0 }, f32::NAN);
    }
    let mut nll = -normalizer.log_prob(row[target]);
    if off > 0.0 && nll.is_finite() {
        nll -= off * (simd::sum(row) - row.len() as f32 * row[target]);
    }
    (normalizer, nll)
}

/// The divergence of each student row from the teacher's into `loss` `[rows]`, and its gradient in place of `student`
/// `[rows, stride]`.
///
/// `teacher` `[rows, stride]`, `mask` and `weights` `[rows]`. Rows with equal logits have loss 0 exactly.
///
/// # Errors
/// [`Error::Shape`] for lengths that do not fit, [`Error::Option`] for a temperature or beta out of range.
pub fn tempered_divergence(
    shape: RowShape,
    divergence: Divergence,
    student: &mut [f32],
    teacher: &[f32],
    mask: &[u32],
    weights: &[f32],
    loss: &mut [f32],
) -> Result<()> {
    check_divergence(shape, divergence, student.len(), teacher, mask, weights.len(), loss.len())?;
    let rows = student.par_chunks_exact_mut(shape.stride).zip(teacher.par_chunks_exact(shape.stride)).zip(loss);
    rows.enumerate().for_each_init(Scratch::default, |scratch, (r, ((student, teacher), loss))| {
        let weight = if mask[r] == 0 { 0.0 } else { weights[r] };
        let (student, teacher) = (&mut student[..shape.vocab_size], &teacher[..shape.vocab_size]);
        *loss = divergence_row(divergence, weight, student, teacher, scratch);
    });
    Ok(())
}

/// The losses of [`tempered_divergence`] without the gradient.
///
/// # Errors
/// As [`tempered_divergence`].
pub fn tempered_divergence_loss(
    shape: RowShape,
    divergence: Divergence,
    student: &[f32],
    teacher: &[f32],
    mask: &[u32],
    weights: &[f32],
    loss: &mut [f32],
) -> Result<()> {
    check_divergence(shape, divergence, student.len(), teacher, mask, weights.len(), loss.len())?;
    let rows = student.par_chunks_exact(shape.stride).zip(teacher.par_chunks_exact(shape.stride)).zip(loss);
    let scratch = || (Vec::new(), Scratch::default());
    rows.enumerate().for_each_init(scratch, |(copy, scratch), (r, ((student, teacher), loss))| {
        let weight = if mask[r] == 0 { 0.0 } else { weights[r] };
        copy.clear();
        copy.extend_from_slice(&student[..shape.vocab_size]);
        *loss = divergence_row(divergence, weight, copy, &teacher[..shape.vocab_size], scratch);
    });
    Ok(())
}

fn check_divergence(
    shape: RowShape,
    divergence: Divergence,
    student: usize,
    teacher: &[f32],
    mask: &[u32],
    weights: usize,
    loss: usize,
) -> Result<()> {
    let lengths = [
        ("student", shape.stride, student),
        ("teacher", shape.stride, teacher.len()),
        ("weights", 1, weights),
        ("loss", 1, loss),
    ];
    check("tempered_divergence", shape, mask.len(), &lengths)?;
    divergence.validate()
}

/// Two rows of a thread's own: the teacher's side, and differences of logarithms.
#[derive(Default)]
struct Scratch {
    teacher: Vec<f32>,
    log_ratio: Vec<f32>,
}

/// One row: the gradient in place of the student's logits; returns the loss.
fn divergence_row(
    Divergence { temperature, beta }: Divergence,
    weight: f32,
    student: &mut [f32],
    teacher: &[f32],
    scratch: &mut Scratch,
) -> f32 {
    if weight == 0.0 {
        student.fill(0.0);
        return 0.0;
    }
    let Scratch { teacher: p, log_ratio } = scratch;
    p.clear();
    p.extend_from_slice(teacher);
    let (student_normalizer, teacher_normalizer) = (temper(student, temperature), temper(p, temperature));
    if !student_normalizer.is_finite() || !teacher_normalizer.is_finite() {
        student.fill(f32::NAN);
        return f32::NAN;
    }
    let shift = teacher_normalizer - student_normalizer;
    log_ratio.clear();
    // log(p / q); where both are 0 there is nothing to compare.
    log_ratio.extend(p.iter().zip(&*student).map(|(t, s)| if t == s { -shift } else { t - s - shift }));
    simd::exp_shift_in_place(p, teacher_normalizer);
    simd::exp_shift_in_place(student, student_normalizer);
    let q = student;
    let scale = weight * temperature;
    let loss = match beta {
        0.0 => {
            let forward = weighted_sum(p, log_ratio);
            q.iter_mut().zip(&*p).for_each(|(q, p)| *q = scale * (*q - p));
            forward
        }
        1.0 => {
            log_ratio.iter_mut().for_each(|d| *d = -*d);
            let reverse = weighted_sum(q, log_ratio);
            finish(q, log_ratio, reverse, scale);
            reverse
        }
        _ => {
            // log(p / m) takes the place of p's logarithms in the sum, then log(q / m) of the ratios.
            let teacher_part: f32 = weighted_sum_by(p, log_ratio, |d| mixture_ratios(d, beta).0);
            log_ratio.iter_mut().for_each(|d| *d = mixture_ratios(*d, beta).1);
            let student_part = weighted_sum(q, log_ratio);
            finish(q, log_ratio, student_part, (1.0 - beta) * scale);
            beta * teacher_part + (1.0 - beta) * student_part
        }
    };
    weight * temperature * temperature * loss
}

/// Replaces logits by `(z - max z) / temperature` and returns the `log(sum(exp))` of that, not finite if the row has none.
///
/// Where a row's probability lies, these numbers are small, and so is the rounding of their differences.
fn temper(row: &mut [f32], temperature: f32) -> f32 {
    let max = simd::max(row);
    row.iter_mut().for_each(|z| *z = (*z - max) / temperature);
    let normalizer = Normalizer::of(row);
    if max.is_finite() { normalizer.max + normalizer.log_sum } else { f32::NAN }
}

/// `q = scale * q * (w - mean)`, 0 where q is.
fn finish(q: &mut [f32], w: &[f32], mean: f32, scale: f32) {
    q.iter_mut().zip(w).for_each(|(q, w)| *q = if *q == 0.0 { 0.0 } else { scale * *q * (w - mean) });
}

/// The sum of `p * x`, where 0 times anything is 0.
fn weighted_sum(p: &[f32], x: &mut [f32]) -> f32 {
    x.iter_mut().zip(p).for_each(|(x, p)| *x = if *p == 0.0 { 0.0 } else { *x });
    simd::dot(p, x)
}

/// The sum of `p * f(x)`, where 0 times anything is 0.
fn weighted_sum_by(p: &[f32], x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let term = |(p, x): (&f32, &f32)| if *p == 0.0 { 0.0 } else { f64::from(*p) * f64::from(f(*x)) };
    p.iter().zip(x).map(term).sum::<f64>() as f32
}

/// log(p / m) and log(q / m) for m = beta p + (1 - beta) q, from d = log(p / q): exact near 0, and exactly 0 there.
fn mixture_ratios(d: f32, beta: f32) -> (f32, f32) {
    if d <= 0.0 {
        let m_to_q = (beta * d.exp_m1()).ln_1p();
        (d - m_to_q, -m_to_q)
    } else {
        let m_to_p = ((1.0 - beta) * (-d).exp_m1()).ln_1p();
        (-m_to_p, -d - m_to_p)
    }
}

#[cfg(test)]
mod tests;
