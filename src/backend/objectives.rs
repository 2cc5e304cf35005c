//! What the ops of training and diagnosis share as data.

use crate::{Error, Result};

/// How rows of logits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Tokens.
    pub vocab_size: usize,
    /// Elements from row to row, at least `vocab_size`.
    pub stride: usize,
}

/// A target distribution after label smoothing (Szegedy et al. 2016).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothedTarget {
    /// Probability of the target.
    pub on: f32,
    /// Probability of every other token.
    pub off: f32,
}

impl SmoothedTarget {
    /// 1 - smoothing for the target, the rest spread evenly over the other tokens; a vocabulary of one has none.
    ///
    /// # Errors
    /// [`Error::Option`] for a smoothing outside 0..1.
    pub fn new(smoothing: f32, vocab_size: usize) -> Result<Self> {
        if !(0.0..1.0).contains(&smoothing) {
            let (expected, got) = ("0 or more, below 1".into(), smoothing.to_string());
            return Err(Error::Option { option: "label-smoothing", expected, got });
        }
        if vocab_size <= 1 {
            return Ok(SmoothedTarget { on: 1.0, off: 0.0 });
        }
        let wide = f64::from(smoothing);
        Ok(SmoothedTarget { on: (1.0 - wide) as f32, off: (wide / (vocab_size - 1) as f64) as f32 })
    }
}

/// What one source's candidates come to in minimum risk training, as it lies in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct ExpectedRisk {
    /// sum(Q r).
    pub risk: f32,
    /// 1 / sum(Q^2): how many candidates count. 1 means that one has all the weight.
    pub effective_samples: f32,
}

/// Checks the sharpness of minimum risk training's distribution over candidates.
///
/// # Errors
/// [`Error::Option`] unless it is finite and 0 or more.
pub fn check_risk_alpha(alpha: f32) -> Result<()> {
    if alpha.is_finite() && alpha >= 0.0 {
        return Ok(());
    }
    let (expected, got) = ("a finite number, 0 or more".into(), alpha.to_string());
    Err(Error::Option { option: "alpha", expected, got })
}

/// How a student's distribution q is compared with a teacher's p, both softmax(logits / temperature).
///
/// The divergence is KL(p || q) for beta 0, KL(q || p) for beta 1, and in between the generalised Jensen-Shannon divergence
/// beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q (Agarwal et al. 2024, eq. 1).
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Divergence {
    /// Above 0. Losses are multiplied by its square, so that gradients keep their size (Hinton et al. 2015).
    pub temperature: f32,
    /// 0..=1.
    pub beta: f32,
}

impl Divergence {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, option: &'static str, expected: &str, got: f32| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected: expected.into(), got: got.to_string() }),
        };
        let Divergence { temperature, beta } = *self;
        check(temperature.is_finite() && temperature > 0.0, "temperature", "a finite number above 0", temperature)?;
        check((0.0..=1.0).contains(&beta), "beta", "0 to 1", beta)
    }
}

/// What a row of logits says about its gold token and on its own, as it lies in device memory.
///
/// A row that cannot be normalised has NaN for each logarithm, rank 0 and argmax 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TokenStats {
    /// The gold token's log-probability, natural logarithm; the bits that a search ranks.
    pub log_prob: f32,
    /// Entropy of the row's distribution, in nats.
    pub entropy: f32,
    /// The largest log-probability of the row.
    pub max_log_prob: f32,
    /// Tokens ranked before the gold one, plus 1; among equals the lower id comes first.
    pub rank: u32,
    /// The most probable token, ties to the lower id.
    pub argmax: u32,
}
