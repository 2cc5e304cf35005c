//! Op `layer_norm`: residual add, and layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019).

use crate::backend::NormKind;
use crate::cpu::simd::lanes::{Simd, dispatch};
use crate::cpu::simd::{Isa, add_body, normalize_body, sum_body, sum_sq_diff_body};
use crate::cpu::{for_each_row, for_each_task_pair};

/// A norm's parameters.
#[derive(Debug, Default)]
pub struct Norm {
    /// What it divides by.
    pub kind: NormKind,
    /// Multiplies the normalised row, `[width]`.
    pub gain: Vec<f32>,
    /// Added to it, `[width]`.
    pub bias: Vec<f32>,
    /// Added to the variance, or to the mean square.
    pub eps: f32,
}

/// The naive computation, in f64: what the fast path is held to. All `[rows, width]`; see
/// [`crate::backend::NetworkOps::layer_norm`].
pub fn reference(norm: &Norm, rows: usize, delta: Option<&[f32]>, sum: Option<&mut [f32]>, x: &mut [f32]) {
    let width = norm.gain.len();
    let from_sum = sum.is_some() && delta.is_some();
    let mut no_sum = Vec::new();
    let sum = sum.unwrap_or(&mut no_sum);
    for r in 0..rows {
        let row = r * width..(r + 1) * width;
        let base = if from_sum { &sum[row.clone()] } else { &x[row.clone()] };
        let mut h: Vec<f64> = base.iter().map(|base| f64::from(*base)).collect();
        if let Some(delta) = delta {
            h.iter_mut().zip(&delta[row.clone()]).for_each(|(h, delta)| *h += f64::from(*delta));
        }
        if !sum.is_empty() {
            sum[row.clone()].iter_mut().zip(&h).for_each(|(sum, h)| *sum = *h as f32);
        }
        let mean = match norm.kind {
            NormKind::Layer => h.iter().sum::<f64>() / width as f64,
            NormKind::Rms => 0.0,
        };
        let variance = h.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / width as f64;
        for (i, out) in x[row].iter_mut().enumerate() {
            let normalized = (h[i] - mean) / (variance + f64::from(norm.eps)).sqrt();
            *out = (normalized * f64::from(norm.gain[i]) + f64::from(norm.bias[i])) as f32;
        }
    }
}

/// The norm of each row, in place; see [`crate::backend::NetworkOps::layer_norm`].
pub fn layer_norm(norm: &Norm, rows: usize, delta: Option<&[f32]>, sum: Option<&mut [f32]>, x: &mut [f32]) {
    let width = norm.gain.len();
    let delta_of = |r: usize| delta.map(|delta| &delta[r * width..][..width]);
    match sum {
        None => for_each_row(x, width, rows, |r, x| row_on(Isa::best(), norm, delta_of(r), x)),
        Some(sum) => for_each_task_pair(x, width, sum, width, rows, |first, x, sum| {
            for (i, (x, sum)) in x.chunks_exact_mut(width).zip(sum.chunks_exact_mut(width)).enumerate() {
                match delta_of(first + i) {
                    Some(delta) => Isa::best().add_in_place(sum, delta),
                    None => sum.copy_from_slice(x),
                }
                x.copy_from_slice(sum);
                row_on(Isa::best(), norm, None, x);
            }
        }),
    }
}

fn row_on(isa: Isa, norm: &Norm, delta: Option<&[f32]>, x: &mut [f32]) {
    dispatch!(isa, row_body, (norm: &Norm, delta: Option<&[f32]>, x: &mut [f32]))
}

#[inline(always)]
fn row_body<S: Simd>(s: S, norm: &Norm, delta: Option<&[f32]>, x: &mut [f32]) {
    if let Some(delta) = delta {
        add_body(s, x, delta);
    }
    let mean = match norm.kind {
        NormKind::Layer => sum_body(s, x) / x.len() as f32,
        NormKind::Rms => 0.0,
    };
    let variance = sum_sq_diff_body(s, x, mean) / x.len() as f32;
    normalize_body(s, x, mean, 1.0 / (variance + norm.eps).sqrt(), &norm.gain, &norm.bias);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close, assert_same_bits};

    fn value(i: usize) -> f32 {
        ((i * 7919 % 1009) as f32 - 500.0) * 0.004
    }

    #[test]
    fn fast_path_equals_reference_and_a_row_is_the_same_alone() {
        for kind in [NormKind::Layer, NormKind::Rms] {
            for [has_delta, has_sum] in [[true, false], [false, false], [true, true], [false, true]] {
                for width in [1, 3, 16, 17, 61, 256, 263] {
                    let norm = Norm {
                        kind,
                        gain: (0..width).map(|i| 1.0 + value(i) * 0.1).collect(),
                        bias: (0..width).map(|i| value(i + 9)).collect(),
                        eps: 1e-5,
                    };
                    for rows in [0, 1, 7, 9, 23] {
                        check(&norm, rows, width, has_delta, has_sum);
                    }
                }
            }
        }
    }

    fn check(norm: &Norm, rows: usize, width: usize, has_delta: bool, has_sum: bool) {
        let mut delta: Vec<f32> = (0..rows * width).map(value).collect();
        // An outlier and a large common offset: where a one-pass variance would cancel.
        delta.iter_mut().step_by(41).for_each(|d| *d += 300.0);
        let x: Vec<f32> = (0..rows * width).map(|i| value(i + 3) + 100.0).collect();
        let sum: Vec<f32> = (0..rows * width).map(|i| value(i + 5) - 50.0).collect();
        let delta = has_delta.then_some(&delta[..]);
        let (mut expected, mut actual) = (x.clone(), x.clone());
        let (mut expected_sum, mut actual_sum) = (sum.clone(), sum.clone());
        reference(norm, rows, delta, has_sum.then_some(&mut expected_sum[..]), &mut expected);
        layer_norm(norm, rows, delta, has_sum.then_some(&mut actual_sum[..]), &mut actual);
        assert_close(&actual, &expected, Tolerance::new(1e-4, 1e-5));
        assert_close(&actual_sum, &expected_sum, Tolerance::new(0.0, 1e-6));
        for r in 0..rows {
            let row = r * width..(r + 1) * width;
            let (mut alone, mut alone_sum) = (x[row.clone()].to_vec(), sum[row.clone()].to_vec());
            let delta = delta.map(|delta| &delta[row.clone()]);
            layer_norm(norm, 1, delta, has_sum.then_some(&mut alone_sum[..]), &mut alone);
            assert_same_bits(&alone, &actual[row]);
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        for kind in [NormKind::Layer, NormKind::Rms] {
            let norm = Norm { kind, gain: vec![1.0; 3], bias: vec![0.0; 3], eps: 1e-5 };
            let mut x = vec![1.0, f32::NAN, 2.0, 1.0, 2.0, 3.0];
            layer_norm(&norm, 2, Some(&[0.0; 6]), None, &mut x);
            assert!(x[..3].iter().all(|v| v.is_nan()) && x[3..].iter().all(|v| v.is_finite()));
        }
    }
}
