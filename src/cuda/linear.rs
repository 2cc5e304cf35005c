//! Launcher of `kernels/linear.cu`: bias, activation and residual after a matrix product.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::{Launch, is_vectorizable, pack_size};
use crate::Result;
use crate::backend::Activation;

const OPERATION: &str = "linear";
const THREADS: u32 = 256;

/// `x = activation(x + bias) + residual`, in place.
pub struct Epilogue<'a, T> {
    /// `[rows, n]`, the product, replaced.
    pub x: ViewMut<'a, T>,
    /// `[n]`.
    pub bias: Option<View<'a, f32>>,
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
    use crate::cpu::gemm;
    use crate::cuda::testing::{Values, device_tests, stored, tolerance};

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
        let bias: Vec<f32> = values.elements(n, 0.5, 1.0);
        let residual: Vec<T> = values.elements(rows * n, 0.0, 10.0);
        // A product with a 1 leaves what comes after it.
        let mut expected = vec![f32::NAN; rows * n];
        for ((x, residual), out) in stored(&x).chunks(n).zip(stored(&residual).chunks(n)).zip(expected.chunks_mut(n)) {
            let (bias, residual) = (has_bias.then_some(&bias[..]), has_residual.then_some(residual));
            gemm::reference(&[1.0], 1, x, n, 1, &gemm::Epilogue { bias, activation, residual }, out);
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
            let mut expected = [f32::NAN; 4];
            let epilogue = gemm::Epilogue { bias: None, activation, residual: None };
            gemm::reference(&[1.0], 1, &extremes[4..], 4, 1, &epilogue, &mut expected);
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

    device_tests! {
        f32: check_shapes::<f32>;
        f16: check_shapes::<half::f16>;
        bf16: check_shapes::<half::bf16>;
        extremes: extremes;
        unaligned: an_unaligned_view_is_handled;
    }
}
