//! Comparing computed numbers with reference numbers.
//!
//! Every kernel test, and `validate` on a user's machine, goes through [`compare`]. It is strict where such helpers usually
//! are not: NaN matches only NaN, an infinity only itself, and an expected 0 gets the absolute tolerance, nothing more.

use std::fmt;

/// How far an actual value may lie from the expected one: `abs + rel * |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub abs: f64,
    /// Part relative to the expected value's magnitude.
    pub rel: f64,
}

impl Tolerance {
    /// Equality, with -0 equal to 0.
    pub const EXACT: Tolerance = Tolerance { abs: 0.0, rel: 0.0 };

    /// A tolerance of `abs + rel * |expected|`.
    pub const fn new(abs: f64, rel: f64) -> Self {
        Tolerance { abs, rel }
    }
}

/// What [`compare`] found wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Length of the actual and of the expected slice.
    pub lengths: (usize, usize),
    /// How many elements lie outside the tolerance.
    pub count: usize,
    /// The first few of them: index, actual, expected.
    pub first: Vec<(usize, f32, f32)>,
    /// The largest difference among pairs that are both finite.
    pub max_abs: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (actual, expected) = self.lengths;
        if actual != expected {
            return write!(f, "compare: expected {expected} values, got {actual}");
        }
        write!(
            f,
            "compare: {} of {expected} values differ, largest finite difference {:.3e}",
            self.count, self.max_abs
        )?;
        for (index, actual, expected) in &self.first {
            write!(f, "; [{index}] expected {expected:e}, got {actual:e}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mismatch {}

/// How many mismatches a [`Mismatch`] lists.
const LISTED: usize = 5;

/// Compares `actual` with `expected` element by element.
///
/// Returns the largest absolute difference of finite pairs.
///
/// # Errors
/// [`Mismatch`] if the lengths differ or any element lies outside `tolerance`.
pub fn compare(actual: &[f32], expected: &[f32], tolerance: Tolerance) -> Result<f64, Mismatch> {
    let mut found = Mismatch { lengths: (actual.len(), expected.len()), count: 0, first: Vec::new(), max_abs: 0.0 };
    if actual.len() != expected.len() {
        return Err(found);
    }
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let diff = (f64::from(a) - f64::from(e)).abs();
        if diff.is_finite() {
            found.max_abs = found.max_abs.max(diff);
        }
        // `!(diff <= bound)` and not `diff > bound`: a NaN must fail.
        let close = if e.is_finite() {
            diff <= tolerance.abs + tolerance.rel * f64::from(e).abs()
        } else {
            a == e || (a.is_nan() && e.is_nan())
        };
        if !close {
            found.count += 1;
            if found.first.len() < LISTED {
                found.first.push((index, a, e));
            }
        }
    }
    if found.count == 0 { Ok(found.max_abs) } else { Err(found) }
}

/// Panics with the list of differences unless `actual` is close to `expected`; for tests.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], tolerance: Tolerance) {
    if let Err(mismatch) = compare(actual, expected, tolerance) {
        panic!("{mismatch}");
    }
}

/// Panics unless both slices hold the same bits; for tests of batch invariance.
#[track_caller]
pub fn assert_same_bits(actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            a.to_bits() == e.to_bits(),
            "[{index}] expected {e:e} ({:08x}), got {a:e} ({:08x})",
            e.to_bits(),
            a.to_bits()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance::new(1e-3, 1e-2);

    #[test]
    fn within_the_sum_of_both_parts_is_close() {
        assert_eq!(compare(&[100.9, 0.0009], &[100.0, 0.0], TOLERANCE).map(|d| d > 0.89 && d < 0.91), Ok(true));
        assert!(compare(&[101.1], &[100.0], TOLERANCE).is_err());
    }

    #[test]
    fn an_expected_zero_gets_the_absolute_part_only() {
        assert!(compare(&[0.002], &[0.0], TOLERANCE).is_err());
        assert!(compare(&[f32::MIN_POSITIVE], &[0.0], Tolerance::EXACT).is_err());
    }

    #[test]
    fn nan_matches_only_nan() {
        assert!(compare(&[f32::NAN], &[1.0], Tolerance::new(f64::INFINITY, 0.0)).is_err());
        assert!(compare(&[1.0], &[f32::NAN], Tolerance::new(f64::INFINITY, 0.0)).is_err());
        assert!(compare(&[f32::NAN], &[f32::NAN], Tolerance::EXACT).is_ok());
    }

    #[test]
    fn an_infinity_matches_only_itself() {
        let inf = f32::INFINITY;
        assert!(compare(&[inf, -inf], &[inf, -inf], Tolerance::EXACT).is_ok());
        assert!(compare(&[inf], &[-inf], Tolerance::new(1.0, 1.0)).is_err());
        assert!(compare(&[f32::MAX], &[inf], Tolerance::new(1.0, 1.0)).is_err());
        assert!(compare(&[inf], &[f32::MAX], Tolerance::new(1.0, 1.0)).is_err());
    }

    #[test]
    fn reports_count_and_the_first_few() {
        let found = compare(&[1.0; 8], &[2.0; 8], TOLERANCE).unwrap_err();
        assert_eq!((found.count, found.first.len(), found.first[0], found.max_abs), (8, LISTED, (0, 1.0, 2.0), 1.0));
        assert!(found.to_string().contains("8 of 8 values differ"), "{found}");
    }

    #[test]
    fn lengths_must_agree() {
        let found = compare(&[1.0], &[1.0, 2.0], TOLERANCE).unwrap_err();
        assert_eq!(found.to_string(), "compare: expected 2 values, got 1");
        assert!(compare(&[], &[], Tolerance::EXACT).is_ok());
    }

    #[test]
    #[should_panic(expected = "expected -0e0 (80000000), got 0e0 (00000000)")]
    fn bits_tell_the_zeros_apart() {
        assert_same_bits(&[0.0], &[-0.0]);
    }
}
