//! Launcher of `kernels/linear.cu`: bias, activation and residual after a matrix product.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
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

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] =
    &[layout!(Arguments as "LinearArguments" { x, bias, residual, rows, n, activation, vectorized })];

impl<T: Element> Epilogue<'_, T> {
    /// Enqueues the kernel for `rows` rows of `n` elements.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, rows: usize, n: usize) -> Result<()> {
        self.launch_with(context, rows, n, THREADS)
    }

    /// As [`Epilogue::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, rows: usize, n: usize, threads: u32) -> Result<()> {
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
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::linear as cases;
    use crate::validate::probe::assert_all_pass;

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
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        unaligned: an_unaligned_view_is_handled;
    }
}
