//! Op `layer_norm`: residual add and layer norm (Ba et al. 2016).

use crate::cpu::for_each_row;
use crate::cpu::simd::lanes::{Simd, dispatch};
use crate::cpu::simd::{Isa, add_body, normalize_body, sum_body, sum_sq_diff_body};

/// A layer norm's parameters.
#[derive(Debug)]
pub struct Norm {
    /// Multiplies the normalised row, `[width]`.
    pub gain: Vec<f32>,
    /// Added to it, `[width]`.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(norm: &Norm, rows: usize, delta: &[f32], x: &mut [f32]) {
    let width = norm.gain.len();
    for r in 0..rows {
        let row = r * width..(r + 1) * width;
        let h: Vec<f64> =
            x[row.clone()].iter().zip(&delta[row.clone()]).map(|(x, d)| f64::from(*x) + f64::from(*d)).collect();
        let mean = h.iter().sum::<f64>() / width as f64;
        let variance = h.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        for (i, out) in x[row].iter_mut().enumerate() {
            let normalized = (h[i] - mean) / (variance + f64::from(norm.eps)).sqrt();
            *out = (normalized * f64::from(norm.gain[i]) + f64::from(norm.bias[i])) as f32;
        }
    }
}

/// `x = gain * (h - mean(h)) / sqrt(var(h) + eps) + bias` per row, `h = x + delta`; both `[rows, width]`.
pub fn layer_norm(norm: &Norm, rows: usize, delta: &[f32], x: &mut [f32]) {
    let width = norm.gain.len();
    for_each_row(x, width, rows, |r, x| row_on(Isa::best(), norm, &delta[r * width..][..width], x));
}

fn row_on(isa: Isa, norm: &Norm, delta: &[f32], x: &mut [f32]) {
    dispatch!(isa, row_body, (norm: &Norm, delta: &[f32], x: &mut [f32]))
}

#[inline(always)]
fn row_body<S: Simd>(s: S, norm: &Norm, delta: &[f32], x: &mut [f32]) {
    add_body(s, x, delta);
    let mean = sum_body(s, x) / x.len() as f32;
    let variance = sum_sq_diff_body(s, x, mean) / x.len() as f32;
    normalize_body(s, x, mean, 1.0 / (variance + norm.eps).sqrt(), &norm.gain, &norm.bias);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close};

    #[test]
    fn fast_path_equals_reference() {
        for width in [1, 3, 16, 17, 61, 256, 263] {
            for rows in [0, 1, 7, 9, 23] {
                let value = |i: usize| ((i * 7919 % 1009) as f32 - 500.0) * 0.004;
                let mut delta: Vec<f32> = (0..rows * width).map(value).collect();
                // An outlier and a large common offset: where a one-pass variance would cancel.
                delta.iter_mut().step_by(41).for_each(|d| *d += 300.0);
                let x: Vec<f32> = (0..rows * width).map(|i| value(i + 3) + 100.0).collect();
                let norm = Norm {
                    gain: (0..width).map(|i| 1.0 + value(i) * 0.1).collect(),
                    bias: (0..width).map(|i| value(i + 9)).collect(),
                    eps: 1e-5,
                };
                let (mut expected, mut actual) = (x.clone(), x);
                reference(&norm, rows, &delta, &mut expected);
                layer_norm(&norm, rows, &delta, &mut actual);
                assert_close(&actual, &expected, Tolerance::new(1e-4, 1e-5));
            }
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        let norm = Norm { gain: vec![1.0; 3], bias: vec![0.0; 3], eps: 1e-5 };
        let mut x = vec![1.0, f32::NAN, 2.0, 1.0, 2.0, 3.0];
        layer_norm(&norm, 2, &[0.0; 6], &mut x);
        assert!(x[..3].iter().all(|v| v.is_nan()) && x[3..].iter().all(|v| v.is_finite()));
    }
}
