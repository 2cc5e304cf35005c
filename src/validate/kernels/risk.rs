//! Minimum risk training's weights of a source's candidates.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Dtype, ExpectedRisk};
use crate::check::Tolerance;
use crate::cpu::risk::reference;
use crate::cuda::Context;
use crate::cuda::risk::Risk;
use crate::validate::probe::{Case, Probe};

/// Candidates of each source and the spread of their risks; the last source has some.
const SOURCES: [(usize, f32); 7] = [(2, 1.0), (17, 1.0), (0, 1.0), (17, 1e-5), (33, 1.0), (1000, 0.01), (100, 1.0)];
const ALPHAS: [f32; 2] = [0.005, 1.0];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for alpha in ALPHAS {
        probe.case("", Dtype::F32, format!("alpha {alpha}"), |case| run(case, alpha))?;
        probe.case("", Dtype::F32, format!("broken sources, alpha {alpha}"), |case| broken(case, alpha))?;
    }
    probe.case("", Dtype::F32, "two largest coefficients", two_largest)
}

/// NaN among the log-probabilities or the risks, +infinity, and nothing but -infinity: each breaks its source, and no other.
fn broken(case: &mut Case<'_>, alpha: f32) -> Result<()> {
    const COUNT: usize = 40;
    let mut log_probs: Vec<f32> = (0..5 * COUNT).map(|i| -((i * 7919 % 101) as f32)).collect();
    let mut risks: Vec<f32> = (0..5 * COUNT).map(|i| (i * 31 % 17) as f32 / 17.0).collect();
    log_probs[COUNT - 1] = f32::NAN;
    risks[2 * COUNT - 1] = f32::NAN;
    log_probs[2 * COUNT] = f32::INFINITY;
    log_probs[3 * COUNT..4 * COUNT].fill(f32::NEG_INFINITY);
    let starts: Vec<u32> = (0..6).map(|source| source * COUNT as u32).collect();
    let (coefficients, outcomes) = launch(case.context, alpha, &log_probs, &risks, &starts)?;
    for (source, (outcome, coefficients)) in outcomes.iter().zip(coefficients.chunks(COUNT)).enumerate() {
        let is_nan: Vec<bool> =
            coefficients.iter().chain([&outcome.risk, &outcome.effective_samples]).map(|x| x.is_nan()).collect();
        case.same(&format!("NaN of source {source}"), &is_nan, &[source < 4; COUNT + 2]);
    }
    Ok(())
}

/// What rounding leaves goes to the first of two coefficients that are the largest alike.
fn two_largest(case: &mut Case<'_>) -> Result<()> {
    let risks = [0.9f32, 0.9, 0.11, 0.23, 0.37, 0.41, 0.53];
    let log_probs = [-1.0f32; 7];
    let (found, _) = launch(case.context, 1.0, &log_probs, &risks, &[0, 7])?;
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let (_, exact, ..) = reference(1.0, &wide(&log_probs), &wide(&risks));
    let mut expected: Vec<f32> = exact.iter().map(|c| *c as f32).collect();
    let left: f64 = wide(&expected).iter().sum();
    expected[0] = (f64::from(expected[0]) - left) as f32;
    case.same_bits("coefficients", &found, &expected);
    if expected[0] == expected[1] {
        case.wrong("rounding leaves nothing".to_owned());
    }
    Ok(())
}

fn run(case: &mut Case<'_>, alpha: f32) -> Result<()> {
    let mut starts = vec![0u32];
    let (mut log_probs, mut risks): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for (count, spread) in SOURCES {
        log_probs.extend((0..count).map(|i| -((i * 7919 % 101) as f32) - 3.0));
        risks.extend((0..count).map(|i| 0.5 + spread * ((i * 31 % 17) as f32 / 17.0 - 0.4)));
        starts.push(log_probs.len() as u32);
    }
    log_probs[4] = f32::NEG_INFINITY;
    let (coefficients, outcomes) = launch(case.context, alpha, &log_probs, &risks, &starts)?;
    for (source, (outcome, part)) in outcomes.iter().zip(starts.windows(2)).enumerate() {
        let part = part[0] as usize..part[1] as usize;
        if part.is_empty() {
            case.same("without candidates", &[*outcome], &[ExpectedRisk::default()]);
            continue;
        }
        let wide = |values: &[f32]| values[part.clone()].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (_, expected, risk, effective) = reference(f64::from(alpha), &wide(&log_probs), &wide(&risks));
        let found = &coefficients[part.clone()];
        let largest = f64::from(found.iter().fold(0.0, |max: f32, c| max.max(c.abs())));
        let numbers = [outcome.risk, outcome.effective_samples];
        case.close("outcome", &numbers, &[risk as f32, effective as f32], Tolerance::new(0.0, 1e-6));
        let expected: Vec<f32> = expected.iter().map(|c| *c as f32).collect();
        // Below 1e-15 a risk cannot be told from its mean, in f64.
        case.close("coefficients", found, &expected, Tolerance::new(1e-6 * largest + 1e-15, 1e-6));
        let sum: f64 = found.iter().map(|c| f64::from(*c)).sum();
        if sum.abs() > 1e-6 * largest {
            case.wrong(format!("source {source}: coefficients of up to {largest:e} sum to {sum:e}"));
        }
    }
    Ok(())
}

/// Coefficients and outcomes.
///
/// # Errors
/// The device failed, or refused.
pub fn launch(
    context: &Context,
    alpha: f32,
    log_probs: &[f32],
    risks: &[f32],
    starts: &[u32],
) -> Result<(Vec<f32>, Vec<ExpectedRisk>)> {
    let (log_probs, risks, starts) = (context.upload(log_probs)?, context.upload(risks)?, context.upload(starts)?);
    let mut coefficients = context.upload(&vec![UNTOUCHED; log_probs.len()])?;
    let mut outcomes = context.allocate::<ExpectedRisk>(starts.len() - 1)?;
    Risk {
        log_probs: log_probs.view(),
        risks: risks.view(),
        starts: starts.view(),
        coefficients: coefficients.view_mut(),
        outcomes: outcomes.view_mut(),
    }
    .launch(context, alpha)?;
    Ok((context.download(coefficients.view())?, context.download(outcomes.view())?))
}
