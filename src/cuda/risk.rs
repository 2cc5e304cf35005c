//! Launcher of `kernels/risk.cu`: minimum risk training's weights of a source's candidates.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::layout::{Layout, layout};
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

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] =
    &[layout!(Arguments as "RiskArguments" { log_probs, risks, starts, coefficients, outcomes, candidates, alpha })];

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
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::risk::{self as cases, launch};
    use crate::validate::probe::assert_all_pass;

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
        values: |context| assert_all_pass(context, "risk", cases::check);
        special: special_cases_are_the_cpus;
    }
}
