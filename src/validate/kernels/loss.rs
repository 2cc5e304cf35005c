//! What rows of logits cost in training, and the gradient in place of the logits.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Divergence, Dtype, RowShape};
use crate::check::Tolerance;
use crate::cpu::loss::{LossAndGradient, reference_divergence, reference_nll};
use crate::cuda::loss::{TemperedDivergence, WeightedNll};
use crate::cuda::testing::{Values, stored};
use crate::cuda::{Context, Element};
use crate::validate::probe::{Case, Probe};

/// Rows of a case; the last takes part.
pub const ROWS: usize = 7;
/// Row 1 is left out by its mask, row 3 by its weight.
pub const MASK: [u32; ROWS] = [1, 0, 1, 1, 1, 1, 1];
/// Their weights.
pub const WEIGHTS: [f32; ROWS] = [1.0, 1.0, -0.5, 0.0, 0.25, 3.0, 1.0];
/// Every kind of divergence.
pub const DIVERGENCES: [Divergence; 4] = [
    Divergence { temperature: 2.0, beta: 0.0 },
    Divergence { temperature: 1.0, beta: 1.0 },
    Divergence { temperature: 0.7, beta: 0.5 },
    Divergence { temperature: 2.0, beta: 0.1 },
];
/// Vocabulary, stride, threads.
pub const SHAPES: [(usize, usize, u32); 6] =
    [(1, 1, 32), (2, 8, 64), (31, 31, 32), (61, 64, 96), (997, 1000, 512), (1003, 1008, 128)];
const LARGE: [(usize, usize, u32); 1] = [(58101, 58104, 512)];
const SMOOTHINGS: [f32; 2] = [0.0, 0.1];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one type.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    for sizes in probe.grid().shapes(&SHAPES, &LARGE) {
        let (shape, threads) = (shape(sizes), sizes.2);
        let what = format!("{} tokens, {} apart, {threads} threads", shape.vocab_size, shape.stride);
        for smoothing in SMOOTHINGS {
            let what = format!("{what}, smoothing {smoothing}");
            probe.case("nll", T::DTYPE, what, |case| likelihood::<T>(case, shape, smoothing, threads))?;
        }
        for divergence in DIVERGENCES {
            let what = format!("{what}, {divergence:?}");
            probe.case("divergence", T::DTYPE, what, |case| diverge::<T>(case, shape, divergence, threads))?;
        }
    }
    for smoothing in SMOOTHINGS {
        let what = format!("tokens of probability 0, broken rows, smoothing {smoothing}");
        probe.case("nll", T::DTYPE, what, |case| extreme_likelihood::<T>(case, smoothing))?;
    }
    if T::DTYPE == Dtype::F32 {
        probe.case("nll", T::DTYPE, "the least number for every token".to_owned(), lowest_likelihood)?;
    }
    for divergence in DIVERGENCES {
        let what = format!("tokens of probability 0, broken rows, {divergence:?}");
        probe.case("divergence", T::DTYPE, what, |case| extreme_divergence::<T>(case, divergence))?;
    }
    Ok(())
}

fn likelihood<T: Element>(case: &mut Case<'_>, shape: RowShape, smoothing: f32, threads: u32) -> Result<()> {
    let (logits, _) = rows::<T>(shape);
    let targets = targets(shape.vocab_size);
    let (gradient, loss) = launch_nll(case.context, shape, &logits, &targets, smoothing, threads)?;
    let (smoothing, weights) = (f64::from(smoothing), WEIGHTS.map(f64::from));
    let expected = reference_nll(shape.vocab_size, smoothing, &used(&logits, shape), &targets, &MASK, &weights);
    compare(case, shape, &logits, (&gradient, &loss), expected);
    Ok(())
}

fn diverge<T: Element>(case: &mut Case<'_>, shape: RowShape, divergence: Divergence, threads: u32) -> Result<()> {
    let (student, teacher) = rows::<T>(shape);
    let (gradient, loss) = launch_divergence(case.context, shape, (&student, &teacher), divergence, threads)?;
    let (wide, wide_teacher) = (used(&student, shape), used(&teacher, shape));
    let weights = WEIGHTS.map(f64::from);
    let expected = reference_divergence(shape.vocab_size, divergence, &wide, &wide_teacher, &MASK, &weights);
    compare(case, shape, &student, (&gradient, &loss), expected);
    Ok(())
}

const EXTREMES: RowShape = RowShape { vocab_size: 61, stride: 64 };

/// A target of probability 0, another token of probability 0, a target that is not there, NaN, and nothing but -infinity.
fn extreme_likelihood<T: Element>(case: &mut Case<'_>, smoothing: f32) -> Result<()> {
    let RowShape { vocab_size, stride } = EXTREMES;
    let (mut logits, _) = rows::<T>(EXTREMES);
    let mut targets = targets(vocab_size);
    let never = T::from_f32(f32::NEG_INFINITY);
    logits[targets[0] as usize] = never;
    logits[2 * stride + vocab_size - 1] = never;
    targets[4] = vocab_size as u32;
    logits[5 * stride + 7] = T::from_f32(f32::NAN);
    logits[6 * stride..6 * stride + vocab_size].fill(never);
    let (gradient, loss) = launch_nll(case.context, EXTREMES, &logits, &targets, smoothing, 32)?;
    let (smoothing, weights) = (f64::from(smoothing), WEIGHTS.map(f64::from));
    let mut expected = reference_nll(vocab_size, smoothing, &used(&logits, EXTREMES), &targets, &MASK, &weights);
    expected.0[4] = f64::NAN;
    expected.1[4 * vocab_size..5 * vocab_size].fill(f64::NAN);
    compare(case, EXTREMES, &logits, (&gradient, &loss), expected);
    Ok(())
}

/// The least number for every token, beside which nothing is left of a logarithm.
fn lowest_likelihood(case: &mut Case<'_>) -> Result<()> {
    let logits = vec![f32::MIN; ROWS * EXTREMES.stride];
    let targets = targets(EXTREMES.vocab_size);
    let (gradient, loss) = launch_nll(case.context, EXTREMES, &logits, &targets, 0.0, 32)?;
    let weights = WEIGHTS.map(f64::from);
    let wide = used(&logits, EXTREMES);
    let expected = reference_nll(EXTREMES.vocab_size, 0.0, &wide, &targets, &MASK, &weights);
    compare(case, EXTREMES, &logits, (&gradient, &loss), expected);
    Ok(())
}

/// Tokens of probability 0 to both, to the teacher and to the student; NaN, and nothing but -infinity.
fn extreme_divergence<T: Element>(case: &mut Case<'_>, divergence: Divergence) -> Result<()> {
    let RowShape { vocab_size, stride } = EXTREMES;
    let (mut student, mut teacher) = rows::<T>(EXTREMES);
    let never = T::from_f32(f32::NEG_INFINITY);
    (student[1], teacher[1]) = (never, never);
    teacher[2 * stride + vocab_size - 1] = never;
    student[4 * stride] = never;
    teacher[5 * stride + 7] = T::from_f32(f32::NAN);
    student[6 * stride..6 * stride + vocab_size].fill(never);
    let (gradient, loss) = launch_divergence(case.context, EXTREMES, (&student, &teacher), divergence, 32)?;
    let (wide, wide_teacher) = (used(&student, EXTREMES), used(&teacher, EXTREMES));
    let weights = WEIGHTS.map(f64::from);
    let expected = reference_divergence(vocab_size, divergence, &wide, &wide_teacher, &MASK, &weights);
    compare(case, EXTREMES, &student, (&gradient, &loss), expected);
    Ok(())
}

/// Losses, and gradients within 1e-4 of the largest and the rounding to T; rows left out are 0, other columns as before.
fn compare<T: Element>(
    case: &mut Case<'_>,
    shape: RowShape,
    before: &[T],
    (gradient, loss): (&[T], &[f32]),
    (expected_loss, expected): LossAndGradient,
) {
    case.close("loss", loss, &narrow(&expected_loss), Tolerance::new(5e-5, 1e-5));
    let largest = expected.iter().fold(0.0, |max: f64, g| max.max(g.abs()));
    let (least, rounding) = match T::DTYPE {
        Dtype::F16 => (2f64.powi(-24), 2f64.powi(-11)),
        Dtype::Bf16 => (0.0, 2f64.powi(-8)),
        _ => (0.0, 0.0),
    };
    let tolerance = Tolerance::new(1e-4 * largest + least, rounding);
    case.close("gradient", &narrow(&used(gradient, shape)), &narrow(&expected), tolerance);
    let beyond = |values: &[T]| -> Vec<f32> {
        stored(values).chunks(shape.stride).flat_map(|row| row[shape.vocab_size..].to_vec()).collect()
    };
    case.close("beyond the vocabulary", &beyond(gradient), &beyond(before), Tolerance::EXACT);
    for row in [1, 3] {
        let out = &stored(gradient)[row * shape.stride..][..shape.vocab_size];
        if loss[row] != 0.0 || out.iter().any(|g| *g != 0.0) {
            case.wrong(format!("row {row}, which is left out, is not exactly 0"));
        }
    }
}

/// Of a vocabulary and a stride.
pub fn shape((vocab_size, stride, _): (usize, usize, u32)) -> RowShape {
    RowShape { vocab_size, stride }
}

/// Two rows of logits of much the same opinion. Columns beyond the vocabulary hold NaN, and so do the rows left out.
pub fn rows<T: Element>(shape: RowShape) -> (Vec<T>, Vec<T>) {
    let RowShape { vocab_size, stride } = shape;
    let mut values = Values::new(stride as u64);
    let mut student: Vec<f32> = (0..ROWS * stride).map(|_| 10.0 * values.uniform() - 5.0).collect();
    student.iter_mut().skip(3).step_by(89).for_each(|z| *z += 8.0);
    let mut teacher: Vec<f32> = student.iter().map(|z| 0.8 * z + 4.0 * values.uniform() - 9.0).collect();
    for (row, (student, teacher)) in student.chunks_mut(stride).zip(teacher.chunks_mut(stride)).enumerate() {
        let from = if MASK[row] == 0 || WEIGHTS[row] == 0.0 { 0 } else { vocab_size };
        student[from..].fill(f32::NAN);
        teacher[from..].fill(f32::NAN);
    }
    (student.into_iter().map(T::from_f32).collect(), teacher.into_iter().map(T::from_f32).collect())
}

/// A target for each row; that of a row left out is none.
pub fn targets(vocab_size: usize) -> Vec<u32> {
    let target = |r: usize| if MASK[r] == 0 { u32::MAX } else { (r * 13 % vocab_size) as u32 };
    (0..ROWS).map(target).collect()
}

fn used<T: Element>(values: &[T], shape: RowShape) -> Vec<f64> {
    let rows = stored(values);
    rows.chunks(shape.stride).flat_map(|row| row[..shape.vocab_size].to_vec()).map(f64::from).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|x| *x as f32).collect()
}

/// Gradient and losses.
///
/// # Errors
/// The device failed, or refused.
pub fn launch_nll<T: Element>(
    context: &Context,
    shape: RowShape,
    logits: &[T],
    targets: &[u32],
    smoothing: f32,
    threads: u32,
) -> Result<(Vec<T>, Vec<f32>)> {
    let mut logits = context.upload(logits)?;
    let (targets, mask, weights) = (context.upload(targets)?, context.upload(&MASK)?, context.upload(&WEIGHTS)?);
    let mut loss = context.upload(&[UNTOUCHED; ROWS])?;
    WeightedNll {
        logits: logits.view_mut(),
        targets: targets.view(),
        mask: mask.view(),
        weights: weights.view(),
        loss: loss.view_mut(),
    }
    .launch_with(context, shape, smoothing, threads)?;
    Ok((context.download(logits.view())?, context.download(loss.view())?))
}

/// Gradient and losses.
///
/// # Errors
/// The device failed, or refused.
pub fn launch_divergence<T: Element>(
    context: &Context,
    shape: RowShape,
    (student, teacher): (&[T], &[T]),
    divergence: Divergence,
    threads: u32,
) -> Result<(Vec<T>, Vec<f32>)> {
    let (mut student, teacher) = (context.upload(student)?, context.upload(teacher)?);
    let (mask, weights) = (context.upload(&MASK)?, context.upload(&WEIGHTS)?);
    let mut loss = context.upload(&[UNTOUCHED; ROWS])?;
    TemperedDivergence {
        student: student.view_mut(),
        teacher: teacher.view(),
        mask: mask.view(),
        weights: weights.view(),
        loss: loss.view_mut(),
    }
    .launch_with(context, shape, divergence, threads)?;
    Ok((context.download(student.view())?, context.download(loss.view())?))
}
