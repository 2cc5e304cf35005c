//! Op `risk`: minimum risk training's weights of a source's candidates (Shen et al. 2016).
//!
//! With l the log-probabilities of a source's candidates and r their risks: Q = softmax(alpha * l), the expected risk is
//! R = sum(Q r), and its gradient by the logits of candidate i's tokens is that of a negative log-likelihood
//! weighted by `-alpha * Q_i * (r_i - R)`, which is what a coefficient is: see [`crate::cpu::loss::weighted_nll`].
//!
//! All is computed in f64 and rounded once; then the largest coefficient takes up what rounding leaves, so that the
//! coefficients of a source sum to 0 within the largest one's last place. Equal risks, or a single candidate, have coefficients of
//! exactly 0. A candidate of log-probability -infinity has no part; NaN, +infinity, or nothing but -infinity among a source's
//! log-probabilities, or NaN among its risks, makes its results NaN.

use crate::backend::{ExpectedRisk, check_risk_alpha};
use crate::{Error, Result};

/// The naive computation for one source, in f64: Q, the coefficients, and what they come to.
pub fn reference(alpha: f64, log_probs: &[f64], risks: &[f64]) -> (Vec<f64>, Vec<f64>, f64, f64) {
    let max = log_probs.iter().map(|l| alpha * l).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_probs.iter().map(|l| (alpha * l - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let q: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    let risk: f64 = q.iter().zip(risks).map(|(q, r)| q * r).sum();
    let coefficients = q.iter().zip(risks).map(|(q, r)| -alpha * q * (r - risk)).collect();
    let effective = 1.0 / q.iter().map(|q| q * q).sum::<f64>();
    (q, coefficients, risk, effective)
}

/// Expected risks of sources: source i's candidates are `starts[i]..starts[i + 1]`.
///
/// `log_probs`, `risks`, `coefficients` `[candidates]`; `starts` `[sources + 1]`, of which the last is the number of candidates; the
/// result `[sources]`. A source without candidates has risk 0 and no effective sample.
///
/// # Errors
/// [`Error::Shape`] for lengths or starts that do not fit, [`Error::Option`] for an alpha that is negative or not finite.
pub fn expected_risk(
    alpha: f32,
    log_probs: &[f32],
    risks: &[f32],
    starts: &[u32],
    coefficients: &mut [f32],
) -> Result<Vec<ExpectedRisk>> {
    let refuse =
        |tensor, expected: String, got: String| Err(Error::Shape { operation: "expected_risk", tensor, expected, got });
    check_risk_alpha(alpha)?;
    for (tensor, len) in [("risks", risks.len()), ("coefficients", coefficients.len())] {
        if len != log_probs.len() {
            return refuse(tensor, format!("{} elements", log_probs.len()), format!("{len} elements"));
        }
    }
    let in_order = starts.first() == Some(&0) && starts.is_sorted();
    if !in_order || starts.last().is_none_or(|last| *last as usize != log_probs.len()) {
        let expected = format!("increasing numbers from 0 to {}", log_probs.len());
        return refuse("starts", expected, format!("{starts:?}"));
    }
    let sources = starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    Ok(sources
        .map(|part| one_source(alpha, &log_probs[part.clone()], &risks[part.clone()], &mut coefficients[part]))
        .collect())
}

fn one_source(alpha: f32, log_probs: &[f32], risks: &[f32], coefficients: &mut [f32]) -> ExpectedRisk {
    let Some(first) = risks.first() else { return ExpectedRisk::default() };
    let alpha = f64::from(alpha);
    // -infinity times an alpha of 0 is no NaN: the candidate has no part.
    let scaled = |l: f32| if l == f32::NEG_INFINITY { f64::NEG_INFINITY } else { alpha * f64::from(l) };
    let max = log_probs.iter().map(|l| scaled(*l)).fold(f64::NEG_INFINITY, f64::max);
    let broken = log_probs.iter().any(|l| l.is_nan()) || risks.iter().any(|r| r.is_nan()) || !max.is_finite();
    if broken {
        coefficients.fill(f32::NAN);
        return ExpectedRisk { risk: f32::NAN, effective_samples: f32::NAN };
    }
    let (mut sum, mut squares, mut risk) = (0.0, 0.0, 0.0);
    for (l, r) in log_probs.iter().zip(risks) {
        let weight = (scaled(*l) - max).exp();
        sum += weight;
        squares += weight * weight;
        risk += weight * f64::from(*r);
    }
    risk /= sum;
    let outcome = ExpectedRisk { risk: risk as f32, effective_samples: (sum * sum / squares) as f32 };
    if risks.iter().all(|r| r == first) {
        coefficients.fill(0.0);
        return ExpectedRisk { risk: *first, ..outcome };
    }
    for ((c, l), r) in coefficients.iter_mut().zip(log_probs).zip(risks) {
        *c = (-alpha * (scaled(*l) - max).exp() / sum * (f64::from(*r) - risk)) as f32;
    }
    let left: f64 = coefficients.iter().map(|c| f64::from(*c)).sum();
    if let Some(largest) = coefficients.iter_mut().reduce(|a, b| if b.abs() > a.abs() { b } else { a }) {
        *largest = (f64::from(*largest) - left) as f32;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|x| f64::from(*x)).collect()
    }

    fn narrow(values: &[f64]) -> Vec<f32> {
        values.iter().map(|x| *x as f32).collect()
    }

    #[test]
    fn by_hand() {
        // Q = (1/4, 3/4), R = 3/4 * 0.2 + 1/4 * 0.6 = 0.3.
        let (q, coefficients, risk, effective) = reference(1.0, &[-3f64.ln(), 0.0], &[0.6, 0.2]);
        assert!((q[0] - 0.25).abs() < 1e-12 && (risk - 0.3).abs() < 1e-12 && (effective - 1.6).abs() < 1e-12);
        assert!((coefficients[0] + 0.075).abs() < 1e-12 && (coefficients[1] - 0.075).abs() < 1e-12);
    }

    /// R as a function of the log-probabilities: its derivative by l_i is the coefficient with the other sign.
    #[test]
    fn coefficients_are_the_derivative() {
        let (log_probs, risks, alpha) = ([-1.0, -2.5, -0.3, -7.0], [0.9, 0.1, 0.4, 0.0], 0.8);
        let (_, coefficients, ..) = reference(alpha, &log_probs, &risks);
        for i in 0..4 {
            let at = |offset: f64| {
                let mut moved = log_probs;
                moved[i] += offset;
                reference(alpha, &moved, &risks).2
            };
            assert!(((at(1e-5) - at(-1e-5)) / 2e-5 + coefficients[i]).abs() < 1e-9);
        }
    }

    fn candidates(count: usize, spread: f32) -> (Vec<f32>, Vec<f32>) {
        let log_probs = (0..count).map(|i| -((i * 7919 % 101) as f32) - 3.0).collect();
        (log_probs, (0..count).map(|i| 0.5 + spread * ((i * 31 % 17) as f32 / 17.0 - 0.4)).collect())
    }

    #[test]
    fn it_equals_the_reference_and_coefficients_sum_to_nothing() {
        let mut starts = vec![0];
        let (mut log_probs, mut risks) = (Vec::new(), Vec::new());
        for (count, spread) in [(2, 1.0), (17, 1.0), (0, 1.0), (17, 1e-5), (100, 1.0), (1000, 0.01)] {
            let (l, r) = candidates(count, spread);
            log_probs.extend(l);
            risks.extend(r);
            starts.push(log_probs.len() as u32);
        }
        log_probs[4] = f32::NEG_INFINITY;
        for alpha in [0.0, 0.005, 1.0] {
            let mut coefficients = vec![7.0; log_probs.len()];
            let outcomes = expected_risk(alpha, &log_probs, &risks, &starts, &mut coefficients).expect("it fits");
            for (outcome, part) in outcomes.iter().zip(starts.windows(2)) {
                let part = part[0] as usize..part[1] as usize;
                let (own, found) = (part.clone(), &coefficients[part.clone()]);
                if own.is_empty() {
                    assert_eq!(*outcome, ExpectedRisk::default());
                    continue;
                }
                // At alpha 0 the definition has 0 times infinity; a very small one stands for it.
                let tiny = f64::from(alpha).max(1e-12);
                let (_, expected, risk, effective) =
                    reference(tiny, &wide(&log_probs[own.clone()]), &wide(&risks[own]));
                let largest = found.iter().fold(0.0, |max: f32, c| max.max(c.abs()));
                assert_close(
                    &[outcome.risk, outcome.effective_samples],
                    &narrow(&[risk, effective]),
                    Tolerance::new(0.0, 1e-6),
                );
                assert_close(found, &narrow(&expected), Tolerance::new(f64::from(largest) * 1e-6 + 1e-11, 1e-6));
                let sum: f64 = found.iter().map(|c| f64::from(*c)).sum();
                assert!(sum.abs() <= 1e-6 * f64::from(largest), "sum {sum}, largest {largest}");
            }
        }
    }

    #[test]
    fn equal_risks_and_single_candidates_have_no_gradient() {
        let risks = [0.3, 0.3, 0.3, 0.7];
        let mut coefficients = [7.0; 4];
        let outcomes =
            expected_risk(1.0, &[-1.0, -2.0, -7.5, -3.0], &risks, &[0, 3, 4], &mut coefficients).expect("it fits");
        assert_eq!(coefficients, [0.0; 4]);
        assert_eq!((outcomes[0].risk, outcomes[1].risk, outcomes[1].effective_samples), (0.3, 0.7, 1.0));
    }

    #[test]
    fn what_cannot_be_weighted_shows() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (log_probs, risks) in
            [([nan, 0.0], [0.0, 1.0]), ([inf, 0.0], [0.0, 1.0]), ([-inf; 2], [0.0, 1.0]), ([0.0; 2], [nan, 1.0])]
        {
            let mut coefficients = [0.0; 2];
            let outcome = expected_risk(0.5, &log_probs, &risks, &[0, 2], &mut coefficients).expect("it fits")[0];
            assert!(outcome.risk.is_nan() && outcome.effective_samples.is_nan(), "{log_probs:?} {risks:?}");
            assert!(coefficients.iter().all(|c| c.is_nan()));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |alpha, risks: usize, starts: &[u32]| {
            let outcome = expected_risk(alpha, &[0.0; 3], &vec![0.0; risks], starts, &mut [0.0; 3]);
            outcome.err().map_or_else(String::new, |error| error.to_string())
        };
        assert_eq!(refused(1.0, 3, &[0, 2, 3]), "");
        assert_eq!(refused(1.0, 2, &[0, 3]), "expected_risk: risks: expected 3 elements, got 2 elements");
        assert_eq!(refused(f32::NAN, 3, &[0, 3]), "option alpha: expected a finite number, 0 or more, got NaN");
        for starts in [&[0, 2][..], &[1, 3], &[0, 2, 1, 3], &[]] {
            assert!(
                refused(1.0, 3, starts).starts_with("expected_risk: starts: expected increasing numbers from 0 to 3")
            );
        }
    }
}
