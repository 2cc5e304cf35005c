//! Numbers with their 95% bootstrap intervals, all from the same draws of lines.

use serde::Serialize;

use crate::Result;
use crate::metrics::{BootstrapOptions, Interval, resamples};

/// A number and its 95% interval; not finite (null in JSON) where there is nothing to compute it from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Over all lines.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Estimate {
    /// Nothing to compute it from.
    pub const NONE: Estimate = Estimate { value: f64::NAN, low: f64::NAN, high: f64::NAN };

    /// A value, with the interval of what resamples gave.
    pub fn of(value: f64, resampled: Vec<f64>) -> Self {
        if !value.is_finite() || resampled.is_empty() {
            return Estimate { value, ..Estimate::NONE };
        }
        let Interval { low, high, .. } = Interval::of(resampled);
        Estimate { value, low, high }
    }
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Where it lies.
    pub x: f64,
    /// Its number.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// How much it is a mean of.
    pub count: f64,
}

/// A sum and what it is divided by, of one line.
pub type Share = (f64, f64);

/// Draws of lines, the same for each number.
#[derive(Debug)]
pub struct Resampler {
    options: BootstrapOptions,
    all: Vec<usize>,
}

impl Resampler {
    /// The draws of `lines` lines.
    ///
    /// # Errors
    /// No lines, no resamples.
    pub fn new(lines: usize, options: &BootstrapOptions) -> Result<Self> {
        let _draws = resamples(lines, options)?;
        Ok(Resampler { options: *options, all: (0..lines).collect() })
    }

    /// A statistic of drawn lines. Resamples that have none do not count.
    pub fn estimate(&self, statistic: impl Fn(&[usize]) -> f64) -> Estimate {
        // Drawn anew each time: all draws of a large set at once are a lot of memory, and the same seed gives the same.
        let draws = resamples(self.all.len(), &self.options).into_iter().flatten();
        let values: Vec<f64> = draws.map(|draw| statistic(&draw)).filter(|v| v.is_finite()).collect();
        Estimate::of(statistic(&self.all), values)
    }

    /// The lines' sums over their divisors.
    pub fn ratio(&self, lines: &[Share]) -> Estimate {
        self.estimate(|draw| quotient(draw.iter().map(|&i| lines[i])))
    }

    /// A ratio for each bin; `lines[line][bin]`.
    pub fn curve(&self, xs: &[f64], lines: &[Vec<Share>]) -> Vec<Point> {
        let point = |(bin, x): (usize, &f64)| {
            let estimate = self.estimate(|draw| quotient(draw.iter().map(|&i| lines[i][bin])));
            Point { x: *x, estimate, count: lines.iter().map(|line| line[bin].1).sum() }
        };
        xs.iter().enumerate().map(point).collect()
    }
}

/// The sum of the first numbers over that of the second; NaN without any.
pub fn quotient(shares: impl Iterator<Item = Share>) -> f64 {
    let (sum, count) = shares.fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    sum / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_that_of_the_sums_and_lies_in_its_interval() {
        let resampler = Resampler::new(40, &BootstrapOptions::default()).expect("lines");
        let lines: Vec<Share> = (0..40).map(|i| (f64::from(i % 4), 2.0)).collect();
        let Estimate { value, low, high } = resampler.ratio(&lines);
        assert_eq!(value, 0.75);
        // The standard error is sqrt(1.25 / 40) / 2 = 0.088.
        assert!((0.50..0.65).contains(&low) && (0.85..1.0).contains(&high), "{low} {high}");
        assert_eq!(resampler.ratio(&lines), resampler.ratio(&lines));
        let constant = resampler.ratio(&[(3.0, 2.0); 40]);
        assert_eq!((constant.low, constant.high), (1.5, 1.5));
    }

    #[test]
    fn a_bin_without_anything_has_no_number() {
        let resampler = Resampler::new(2, &BootstrapOptions::default()).expect("lines");
        let curve = resampler.curve(&[0.0, 1.0], &[vec![(1.0, 1.0), (0.0, 0.0)], vec![(3.0, 1.0), (0.0, 0.0)]]);
        assert_eq!((curve[0].estimate.value, curve[0].count), (2.0, 2.0));
        assert!(curve[1].estimate.value.is_nan() && curve[1].count == 0.0);
    }
}
