//! Op `gate`: the activation of one half of a row times its other half (Shazeer 2020).

use crate::backend::Activation;
use crate::cpu::for_each_row;
use crate::cpu::simd::lanes::{Simd, dispatch};
use crate::cpu::simd::{Isa, activate_body, multiply_body, reference_activation};

/// The naive computation, in f64: what the fast path is held to.
pub fn reference(activation: Activation, width: usize, rows: usize, both: &[f32], out: &mut [f32]) {
    for r in 0..rows {
        let (a, b) = both[2 * r * width..][..2 * width].split_at(width);
        for i in 0..width {
            out[r * width + i] = (reference_activation(activation, f64::from(a[i])) * f64::from(b[i])) as f32;
        }
    }
}

/// `out = activation(a) * b` per row, `both` `[rows, 2 * width]` holding a and b side by side, `out` `[rows, width]`.
pub fn gate(activation: Activation, width: usize, rows: usize, both: &[f32], out: &mut [f32]) {
    for_each_row(out, width, rows, |r, out| {
        row_on(Isa::best(), activation, &both[2 * r * width..][..2 * width], out);
    });
}

fn row_on(isa: Isa, activation: Activation, both: &[f32], out: &mut [f32]) {
    dispatch!(isa, row_body, (activation: Activation, both: &[f32], out: &mut [f32]))
}

#[inline(always)]
fn row_body<S: Simd>(s: S, activation: Activation, both: &[f32], out: &mut [f32]) {
    let (a, b) = both.split_at(out.len());
    out.copy_from_slice(a);
    activate_body(s, activation, out);
    multiply_body(s, out, b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Tolerance, assert_close, assert_same_bits};

    const ACTIVATIONS: [Activation; 4] =
        [Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

    #[test]
    fn fast_path_equals_reference_and_a_row_is_the_same_alone() {
        for activation in ACTIVATIONS {
            for width in [1, 5, 16, 63, 130] {
                for rows in [0, 1, 9, 23] {
                    let value = |i: usize| ((i * 7919 % 1009) as f32 - 500.0) * 0.01;
                    let both: Vec<f32> = (0..2 * rows * width).map(value).collect();
                    let (mut expected, mut actual) = (vec![f32::NAN; rows * width], vec![f32::NAN; rows * width]);
                    reference(activation, width, rows, &both, &mut expected);
                    gate(activation, width, rows, &both, &mut actual);
                    assert_close(&actual, &expected, Tolerance::new(2e-5, 1e-5));
                    for r in 0..rows {
                        let mut alone = vec![f32::NAN; width];
                        gate(activation, width, 1, &both[2 * r * width..], &mut alone);
                        assert_same_bits(&alone, &actual[r * width..][..width]);
                    }
                }
            }
        }
    }

    #[test]
    fn nan_stays_at_its_place() {
        let both = [1.0, f32::NAN, 2.0, 3.0, 4.0, f32::NAN];
        let mut out = [0.0; 3];
        gate(Activation::Relu, 3, 1, &both, &mut out);
        assert!(out[0] == 3.0 && out[1].is_nan() && out[2].is_nan(), "{out:?}");
    }
}
