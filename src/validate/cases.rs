//! The numbers that cases are made of.

use std::fmt;

use crate::cuda::Element;
use crate::cuda::testing::Values;

/// How numbers are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// As a normal distribution has them.
    Normal,
    /// Uniform, one in 50 ten times as far out.
    Outliers,
    /// A few values, over and over.
    Ties,
    /// One value.
    Equal,
    /// Outliers, every fifth minus infinity.
    Infinite,
    /// Outliers, one NaN among them.
    NotANumber,
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Distribution::Normal => "normal",
            Distribution::Outliers => "outliers",
            Distribution::Ties => "ties",
            Distribution::Equal => "equal",
            Distribution::Infinite => "-inf",
            Distribution::NotANumber => "NaN",
        })
    }
}

impl Distribution {
    /// Those whose numbers are all finite.
    pub const FINITE: [Distribution; 4] =
        [Distribution::Normal, Distribution::Outliers, Distribution::Ties, Distribution::Equal];
    /// All of them.
    pub const ALL: [Distribution; 6] = [
        Distribution::Normal,
        Distribution::Outliers,
        Distribution::Ties,
        Distribution::Equal,
        Distribution::Infinite,
        Distribution::NotANumber,
    ];

    /// `len` numbers around `center`, most of them within `spread` of it, rounded to the type.
    pub fn draw<T: Element>(self, values: &mut Values, len: usize, center: f32, spread: f32) -> Vec<T> {
        match self {
            Distribution::Normal => {
                // Twelve uniform numbers have variance 1.
                let mut normal = || (0..12).map(|_| values.uniform()).sum::<f32>() - 6.0;
                (0..len).map(|_| T::from_f32(center + 0.5 * spread * normal())).collect()
            }
            Distribution::Outliers => values.elements(len, center, spread),
            Distribution::Ties => {
                let mut step = || (values.uniform() * 9.0).floor() - 4.0;
                (0..len).map(|_| T::from_f32(center + 0.25 * spread * step())).collect()
            }
            Distribution::Equal => vec![T::from_f32(center + 0.5 * spread); len],
            Distribution::Infinite => {
                let mut numbers = values.elements(len, center, spread);
                numbers.iter_mut().skip(1).step_by(5).for_each(|x| *x = T::from_f32(f32::NEG_INFINITY));
                numbers
            }
            Distribution::NotANumber => {
                let mut numbers: Vec<T> = values.elements(len, center, spread);
                // The last: where a loop that stops too early does not see it.
                if let Some(last) = numbers.last_mut() {
                    *last = T::from_f32(f32::NAN);
                }
                numbers
            }
        }
    }
}
