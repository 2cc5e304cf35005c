//! Launcher of `kernels/linear.cu`: bias, activation and residual after a matrix product.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::{Launch, is_vectorizable, pack_size};
use crate::Result;

const OPERATION: &str = "linear";
const THREADS: u32 = 256;

/// What is applied to each element; mirrors `Activation` in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `x / (1 + exp(-x))`, also known as swish.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    GeluErf,
}

/// `x = activation(x + bias) + residual`, in place.
pub struct Epilogue<'a, T> {
    /// `[rows, n]`, the product, replaced.
    pub x: ViewMut<'a, T>,
    /// `[n]`.
    pub bias: Option<View<'a, T>>,
    /// Applied after the bias.
    pub activation: Activation,
    /// `[rows, n]`, added last.
    pub residual: Option<View<'a, T>>,
}

/// Mirrors `LinearArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    x: u64,
    bias: u64,
    residual: u64,
    rows: u32,
    n: u32,
    activation: u32,
    vectorized: u32,
}

impl<T: Element> Epilogue<'_, T> {
    /// Enqueues the kernel for `rows` rows of `n` elements.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, rows: usize, n: usize) -> Result<()> {
        self.launch_with(context, rows, n, THREADS)
    }

    /// As [`Epilogue::launch`], with blocks of `threads`, a multiple of 32.
    fn launch_with(self, context: &Context, rows: usize, n: usize, threads: u32) -> Result<()> {
        let total = rows * n;
        check_len(OPERATION, "x", total, self.x.len())?;
        check_len(OPERATION, "bias", n, self.bias.map_or(n, |bias| bias.len()))?;
        check_len(OPERATION, "residual", total, self.residual.map_or(total, |residual| residual.len()))?;
        if total == 0 {
            return Ok(());
        }
        let mut arguments = Arguments {
            x: context.address_mut(&self.x)?,
            bias: context.address_or_null(self.bias.as_ref())?,
            residual: context.address_or_null(self.residual.as_ref())?,
            rows: to_u32(OPERATION, "rows", rows)?,
            n: to_u32(OPERATION, "n", n)?,
            activation: self.activation as u32,
            vectorized: 0,
        };
        let vectorized = is_vectorizable::<T>(n, &[arguments.x, arguments.bias, arguments.residual]);
        arguments.vectorized = vectorized.into();
        let needed = if vectorized { total / pack_size::<T>() } else { total };
        let grid = [to_u32(OPERATION, "blocks", needed.div_ceil(threads as usize))?, 1, 1];
        // SAFETY: mirrors `linear_<dtype>(LinearArguments)`. A thread touches its own pack below `rows * n` and the bias at its
        // column; each tensor has the length checked above or is null; `x` is borrowed mutably.
        unsafe { context.launch(&Launch { symbol: symbol!("linear", T), grid, block: threads, shared: 0 }, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::cuda::testing::{Values, device_tests, stored, tolerance};

    /// erf by its Maclaurin series, and by its continued fraction where the series cancels: obvious, slow, in f64.
    fn erf(x: f64) -> f64 {
        if x.abs() < 2.5 {
            let (mut term, mut sum) = (x, x);
            for k in 1..100 {
                term *= -x * x / f64::from(k);
                sum += term / f64::from(2 * k + 1);
            }
            return 2.0 / std::f64::consts::PI.sqrt() * sum;
        }
        let mut fraction = 0.0;
        for k in (1..200).rev() {
            fraction = f64::from(k) / 2.0 / (x.abs() + fraction);
        }
        let tail = (-x * x).exp() / (x.abs() + fraction) / std::f64::consts::PI.sqrt();
        (1.0 - tail).copysign(x)
    }

    fn activate(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::None => x,
            Activation::Relu if x < 0.0 => 0.0,
            Activation::Relu => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::GeluErf => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        }
    }

    const ACTIVATIONS: [Activation; 5] =
        [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];

    fn check_case<T: Element>(
        context: &Context,
        [rows, n]: [usize; 2],
        activation: Activation,
        (has_bias, has_residual): (bool, bool),
        threads: u32,
    ) -> Result<()> {
        let mut values = Values::new(rows as u64 * 31 + n as u64);
        let x: Vec<T> = values.elements(rows * n, 0.0, 3.0);
        let bias: Vec<T> = values.elements(n, 0.5, 1.0);
        let residual: Vec<T> = values.elements(rows * n, 0.0, 10.0);
        let mut expected = Vec::new();
        for (i, x) in x.iter().enumerate() {
            let shifted = f64::from(x.to_f32()) + if has_bias { f64::from(bias[i % n].to_f32()) } else { 0.0 };
            let added = if has_residual { f64::from(residual[i].to_f32()) } else { 0.0 };
            expected.push((activate(activation, shifted) + added) as f32);
        }
        let mut x = context.upload(&x)?;
        let (bias, residual) = (context.upload(&bias)?, context.upload(&residual)?);
        Epilogue {
            x: x.view_mut(),
            bias: has_bias.then(|| bias.view()),
            activation,
            residual: has_residual.then(|| residual.view()),
        }
        .launch_with(context, rows, n, threads)?;
        check::assert_close(&stored(&context.download(x.view())?), &expected, tolerance::<T>(1e-6));
        Ok(())
    }

    fn check_shapes<T: Element>(context: &Context) -> Result<()> {
        for shape in [[1, 1], [3, 37], [5, 64], [7, 1000], [2, 2048]] {
            for (index, activation) in ACTIVATIONS.into_iter().enumerate() {
                let threads = [32, 64, 256, 1024, 96][index];
                for tensors in [(false, true), (true, false), (true, true)] {
                    check_case::<T>(context, shape, activation, tensors, threads)?;
                }
            }
        }
        Ok(())
    }

    fn extremes(context: &Context) -> Result<()> {
        let extremes = [f32::NAN, f32::INFINITY, -1e30, -100.0, 100.0, 0.0, -0.0, 1e-30];
        for activation in ACTIVATIONS {
            let mut x = context.upload(&extremes)?;
            Epilogue { x: x.view_mut(), bias: None, activation, residual: None }.launch(context, 2, 4)?;
            let out = context.download(x.view())?;
            assert!(out[0].is_nan(), "{activation:?}");
            assert_eq!(out[1], f32::INFINITY, "{activation:?}");
            let expected: Vec<f32> = extremes[4..].iter().map(|&x| activate(activation, f64::from(x)) as f32).collect();
            check::assert_close(&out[4..], &expected, tolerance::<f32>(0.0));
            if activation != Activation::None {
                check::assert_close(&out[2..4], &[0.0, 0.0], tolerance::<f32>(0.0));
            }
        }
        Ok(())
    }

    fn an_unaligned_view_is_handled(context: &Context) -> Result<()> {
        let mut x = context.upload(&[1.0f32; 17])?;
        let bias = context.upload(&[2.0f32; 16])?;
        let part = x.view_mut().slice(1..17)?;
        Epilogue { x: part, bias: Some(bias.view()), activation: Activation::None, residual: None }
            .launch(context, 1, 16)?;
        let mut expected = [3.0; 17];
        expected[0] = 1.0;
        assert_eq!(context.download(x.view())?, expected);
        Ok(())
    }

    #[test]
    fn the_reference_erf_is_right() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [(0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (-1.5, -0.9661051465)] {
            assert!((erf(x) - expected).abs() < 1e-10, "erf({x}) = {}", erf(x));
        }
        assert!((erf(2.5 - 1e-9) - erf(2.5)).abs() < 1e-11);
    }

    device_tests! {
        f32: check_shapes::<f32>;
        f16: check_shapes::<half::f16>;
        bf16: check_shapes::<half::bf16>;
        extremes: extremes;
        unaligned: an_unaligned_view_is_handled;
    }
}
