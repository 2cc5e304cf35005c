//! Launcher of `kernels/gate.cu`: the activation of one half of a row times its other half.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::element::{Element, symbol};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable, pack_size};
use crate::Result;
use crate::backend::Activation;

const OPERATION: &str = "gate";
const THREADS: u32 = 256;

/// `out = activation(a) * b`.
pub struct Gate<'a, T> {
    /// `[rows, 2 * width]`: a and b side by side.
    pub both: View<'a, T>,
    /// The activation of a.
    pub activation: Activation,
    /// `[rows, width]`.
    pub out: ViewMut<'a, T>,
}

/// Mirrors `GateArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    both: u64,
    out: u64,
    rows: u32,
    width: u32,
    activation: u32,
    vectorized: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] =
    &[layout!(Arguments as "GateArguments" { both, out, rows, width, activation, vectorized })];

impl<T: Element> Gate<'_, T> {
    /// Enqueues the kernel for `rows` rows of `width` outputs.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, rows: usize, width: usize) -> Result<()> {
        self.launch_with(context, rows, width, THREADS)
    }

    /// As [`Gate::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, rows: usize, width: usize, threads: u32) -> Result<()> {
        let total = rows * width;
        check_len(OPERATION, "both", 2 * total, self.both.len())?;
        check_len(OPERATION, "out", total, self.out.len())?;
        if total == 0 {
            return Ok(());
        }
        let (both, out) = (context.address(&self.both)?, context.address_mut(&self.out)?);
        let vectorized = is_vectorizable::<T>(width, &[both, out]);
        let arguments = Arguments {
            both,
            out,
            rows: to_u32(OPERATION, "rows", rows)?,
            width: to_u32(OPERATION, "width", width)?,
            activation: self.activation as u32,
            vectorized: vectorized.into(),
        };
        let needed = if vectorized { total / pack_size::<T>() } else { total };
        let grid = [to_u32(OPERATION, "blocks", needed.div_ceil(threads as usize))?, 1, 1];
        // SAFETY: mirrors `gate_<dtype>(GateArguments)`. A thread writes its own pack below `rows * width` and reads the two of its
        // row and column; both tensors have the length checked above; `out` is borrowed mutably.
        unsafe { context.launch(&Launch { symbol: symbol!("gate", T), grid, block: threads, shared: 0 }, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::gate as cases;
    use crate::validate::probe::assert_all_pass;

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let (both, mut out) = (context.upload(&[1.0f32; 12])?, context.upload(&[1.0f32; 7])?);
        let gate = Gate { both: both.view(), activation: Activation::Relu, out: out.view_mut() };
        let error = gate.launch(context, 2, 3).unwrap_err();
        assert_eq!(error.to_string(), "gate: out: expected 6 elements, got 7 elements");
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        shapes: wrong_shapes_are_refused;
    }
}
