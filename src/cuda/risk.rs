//! Launcher of `kernels/risk.cu`: minimum risk training's weights of a source's candidates.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use crate::backend::{ExpectedRisk, check_risk_alpha};
use crate::{Error, Result};

const OPERATION: &str = "expected_risk";

/// Expected risks and coefficients; as [`crate::cpu::risk::expected_risk`].
pub struct Risk<'a> {
    /// `[candidates]`.
    pub log_probs: View<'a, f32>,
    /// `[candidates]`.
    pub risks: View<'a, f32>,
    /// `[sources + 1]`, increasing from 0. Candidates beyond the tensors' end do not count.
    pub starts: View<'a, u32>,
    /// `[candidates]`.
    pub coefficients: ViewMut<'a, f32>,
    /// `[sources]`.
    pub outcomes: ViewMut<'a, ExpectedRisk>,
}

/// Mirrors `RiskArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    log_probs: u64,
    risks: u64,
    starts: u64,
    coefficients: u64,
    outcomes: u64,
    candidates: u32,
    alpha: f32,
}

impl Risk<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; an alpha that is negative or not finite; the device failed.
    pub fn launch(self, context: &Context, alpha: f32) -> Result<()> {
        let candidates = self.log_probs.len();
        check_risk_alpha(alpha)?;
        check_len(OPERATION, "risks", candidates, self.risks.len())?;
        check_len(OPERATION, "coefficients", candidates, self.coefficients.len())?;
        let Some(sources) = self.starts.len().checked_sub(1) else {
            let (expected, got) = ("at least one number".to_owned(), "none".to_owned());
            return Err(Error::Shape { operation: OPERATION, tensor: "starts", expected, got });
        };
        check_len(OPERATION, "outcomes", sources, self.outcomes.len())?;
        if sources == 0 {
            return Ok(());
        }
        let arguments = Arguments {
            log_probs: context.address(&self.log_probs)?,
            risks: context.address(&self.risks)?,
            starts: context.address(&self.starts)?,
            coefficients: context.address_mut(&self.coefficients)?,
            outcomes: context.address_mut(&self.outcomes)?,
            candidates: to_u32(OPERATION, "candidates", candidates)?,
            alpha,
        };
        let grid = [to_u32(OPERATION, "sources", sources)?, 1, 1];
        let launch = Launch { symbol: "risk_f32", grid, block: 32, shared: 0 };
        // SAFETY: mirrors `risk_f32(RiskArguments)`. There is a block for each source; it touches candidates below `candidates` only,
        // two of `starts` and its own outcome; the lengths were checked above; what is written is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};
    use crate::cpu::risk::reference;
    use crate::cuda::testing::device_tests;

    fn launch(
        context: &Context,
        alpha: f32,
        log_probs: &[f32],
        risks: &[f32],
        starts: &[u32],
    ) -> Result<(Vec<f32>, Vec<ExpectedRisk>)> {
        let (log_probs, risks, starts) = (context.upload(log_probs)?, context.upload(risks)?, context.upload(starts)?);
        let mut coefficients = context.upload(&vec![-77.0f32; log_probs.len()])?;
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

    fn it_equals_the_reference(context: &Context) -> Result<()> {
        let mut starts = vec![0u32];
        let (mut log_probs, mut risks): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
        for (count, spread) in [(2usize, 1.0f32), (17, 1.0), (0, 1.0), (17, 1e-5), (33, 1.0), (100, 1.0), (1000, 0.01)]
        {
            log_probs.extend((0..count).map(|i| -((i * 7919 % 101) as f32) - 3.0));
            risks.extend((0..count).map(|i| 0.5 + spread * ((i * 31 % 17) as f32 / 17.0 - 0.4)));
            starts.push(log_probs.len() as u32);
        }
        log_probs[4] = f32::NEG_INFINITY;
        for alpha in [0.005, 1.0] {
            let (coefficients, outcomes) = launch(context, alpha, &log_probs, &risks, &starts)?;
            for (outcome, part) in outcomes.iter().zip(starts.windows(2)) {
                let part = part[0] as usize..part[1] as usize;
                if part.is_empty() {
                    assert_eq!(*outcome, ExpectedRisk::default());
                    continue;
                }
                let wide = |values: &[f32]| values[part.clone()].iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let (_, expected, risk, effective) = reference(f64::from(alpha), &wide(&log_probs), &wide(&risks));
                let found = &coefficients[part.clone()];
                let largest = f64::from(found.iter().fold(0.0, |max: f32, c| max.max(c.abs())));
                let close = Tolerance::new(0.0, 1e-6);
                assert_close(&[outcome.risk, outcome.effective_samples], &[risk as f32, effective as f32], close);
                let expected: Vec<f32> = expected.iter().map(|c| *c as f32).collect();
                // Below 1e-15 a risk cannot be told from its mean, in f64.
                assert_close(found, &expected, Tolerance::new(1e-6 * largest + 1e-15, 1e-6));
                let sum: f64 = found.iter().map(|c| f64::from(*c)).sum();
                assert!(sum.abs() <= 1e-6 * largest, "sum {sum}, largest {largest}");
            }
        }
        Ok(())
    }

    fn special_cases_are_the_cpus(context: &Context) -> Result<()> {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        // Equal risks; one candidate; then what cannot be weighted.
        let log_probs = [-1.0, -2.0, -7.5, -3.0, nan, 0.0, inf, 0.0, -inf, -inf, 0.0, 0.0];
        let risks = [0.3, 0.3, 0.3, 0.7, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, nan, 1.0];
        let starts = [0, 3, 4, 6, 8, 10, 12];
        let (coefficients, outcomes) = launch(context, 0.5, &log_probs, &risks, &starts)?;
        assert_eq!(coefficients[..4], [0.0; 4]);
        assert_eq!((outcomes[0].risk, outcomes[1].risk, outcomes[1].effective_samples), (0.3, 0.7, 1.0));
        assert!(coefficients[4..].iter().all(|c| c.is_nan()), "{coefficients:?}");
        assert!(outcomes[2..].iter().all(|o| o.risk.is_nan() && o.effective_samples.is_nan()));
        let refused = launch(context, -1.0, &[0.0], &[0.0], &[0, 1]);
        assert!(refused.is_err_and(|error| error.to_string().starts_with("option alpha: ")));
        Ok(())
    }

    device_tests! {
        values: it_equals_the_reference;
        special: special_cases_are_the_cpus;
    }
}
