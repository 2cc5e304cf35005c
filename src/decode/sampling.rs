//! Drawing translations at random instead of searching for the best one.

use crate::backend::SampleOptions;
use crate::counts;
use crate::{Error, Result};

/// How translations are drawn: token by token from the model's distribution, after temperature and filters.
///
/// Filters follow in the order of the fields and each keeps the most probable token. A draw depends on the seed, the sample's
/// number, the step and the distribution alone: a sentence's samples are the same in any batch and, but for rounding in the
/// model itself, on any device.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Samples per source, 1..=64; all are returned, in the order of their numbers. Default 1.
    pub samples: usize,
    /// Divides the log-probabilities, 0.01..=100; 0 takes the most probable token. Default 1.
    pub temperature: f32,
    /// Only the k most probable tokens, ties by id; 0 is all of them. Default 0.
    pub top_k: usize,
    /// Only the most probable tokens, as long as those before a token hold less than this mass (Holtzman et al. 2020), above 0
    /// and up to 1. Default 1: all of them.
    pub top_p: f32,
    /// Only tokens that are at least this times as probable as the best (Nguyen et al. 2024), 0..=1. Default 0.
    pub min_p: f32,
    /// Only tokens of at least this probability (Hewitt et al. 2022), 0..1. Default 0.
    pub epsilon: f32,
    /// What a sentence's own seed is derived from, together with its source ids, unless it brings one. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { samples: 1, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, epsilon: 0.0, seed: 0 }
    }
}

/// The temperatures that a draw can be made at; beyond them f32 does not tell tokens apart.
const TEMPERATURES: std::ops::RangeInclusive<f32> = 0.01..=100.0;

impl Sampling {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::Option`] names the option.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, option: &'static str, expected: &str, got: String| match ok {
            true => Ok(()),
            false => Err(Error::Option { option, expected: expected.to_owned(), got }),
        };
        let Sampling { samples, temperature, top_k, top_p, min_p, epsilon, .. } = *self;
        counts::check("samples", samples, &counts::HYPOTHESES)?;
        let is_fair = temperature == 0.0 || TEMPERATURES.contains(&temperature);
        check(is_fair, "temperature", "0, or 0.01 to 100", temperature.to_string())?;
        counts::check("top-k", top_k, &counts::TOP_K)?;
        check(top_p > 0.0 && top_p <= 1.0, "top-p", "above 0, up to 1", top_p.to_string())?;
        check((0.0..=1.0).contains(&min_p), "min-p", "0 to 1", min_p.to_string())?;
        check((0.0..1.0).contains(&epsilon), "epsilon", "0 or more, below 1", epsilon.to_string())
    }

    /// The options as the device reads them, under a sentence's own seed.
    pub fn for_slot(&self, seed: u64) -> SampleOptions {
        SampleOptions {
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            temperature: self.temperature,
            top_k: self.top_k as u32,
            top_p: self.top_p,
            min_p: self.min_p,
            epsilon: self.epsilon,
        }
    }

    /// The seed of a sentence that brings none: a hash of [`Sampling::seed`] and its source ids, so that neither its line nor its
    /// batch matter.
    pub fn seed_of(&self, source: &[u32]) -> u64 {
        source.iter().fold(mix(self.seed), |hash, id| mix(hash ^ u64::from(*id)))
    }
}

/// A step of splitmix64 (Steele et al. 2014): one to one, and every bit depends on every other.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_names_the_option() {
        let base = Sampling::default;
        for (sampling, name) in [
            (Sampling { samples: 0, ..base() }, "samples"),
            (Sampling { samples: 65, ..base() }, "samples"),
            (Sampling { temperature: -1.0, ..base() }, "temperature"),
            (Sampling { temperature: 0.001, ..base() }, "temperature"),
            (Sampling { temperature: f32::NAN, ..base() }, "temperature"),
            (Sampling { top_k: usize::MAX, ..base() }, "top-k"),
            (Sampling { top_p: 0.0, ..base() }, "top-p"),
            (Sampling { top_p: 1.5, ..base() }, "top-p"),
            (Sampling { min_p: -0.1, ..base() }, "min-p"),
            (Sampling { epsilon: 1.0, ..base() }, "epsilon"),
        ] {
            match sampling.validate() {
                Err(Error::Option { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert!(base().validate().is_ok() && Sampling { temperature: 0.0, ..base() }.validate().is_ok());
    }

    #[test]
    fn seeds_tell_runs_sources_and_their_order_apart() {
        let seed = |seed: u64, source: &[u32]| Sampling { seed, ..Sampling::default() }.seed_of(source);
        let seeds =
            [seed(0, &[5, 6, 0]), seed(1, &[5, 6, 0]), seed(0, &[6, 5, 0]), seed(0, &[5, 0]), seed(0, &[0, 5, 6, 0])];
        for (i, a) in seeds.iter().enumerate() {
            assert!(seeds[i + 1..].iter().all(|b| (a ^ b).count_ones() > 10), "{seeds:x?}");
        }
        assert_eq!(seed(7, &[5, 6, 0]), seed(7, &[5, 6, 0]));
    }
}
