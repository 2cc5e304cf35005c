//! Launcher of `kernels/quantize.cu`, and rows of 8-bit integers on the device.

use bytemuck::{Pod, Zeroable};

use super::buffer::{Buffer, View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::{Error, Result};

const OPERATION: &str = "quantize";
const THREADS: u32 = 128;
/// Bytes that rows are padded to, as in the kernel: tensor cores read 16 at a time.
pub(super) const ALIGNMENT: usize = 16;
/// The longest sum that cannot overflow: 127 * 127 * k < 2^31.
const MAX_K: usize = 133_000;
/// Elements of a matrix that lie on the device in f32 at once while it is quantised there.
const CHUNK: usize = 1 << 20;

/// Rows of 8-bit integers, `[rows, k]`, and what one of them is worth in each row, `[rows]`.
#[derive(Clone, Copy)]
pub struct QuantizedView<'a> {
    /// Rows lie [`padded`] elements apart, with zeros from k on.
    pub values: View<'a, i8>,
    /// One for each row.
    pub scales: View<'a, f32>,
}

/// Elements from one row of k integers to the next.
pub fn padded(k: usize) -> usize {
    k.next_multiple_of(ALIGNMENT)
}

/// Quantised rows on the device.
#[derive(Debug)]
pub struct QuantizedRows {
    values: Buffer<i8>,
    scales: Buffer<f32>,
}

impl QuantizedRows {
    /// Room for `rows` rows of at most `widest` values; undefined.
    ///
    /// # Errors
    /// The device has no memory left.
    pub fn with_capacity(context: &Context, rows: usize, widest: usize) -> Result<Self> {
        Ok(QuantizedRows { values: context.allocate(rows * padded(widest))?, scales: context.allocate(rows)? })
    }

    /// Quantises the rows of a matrix `[n, k]`, some at a time; `weights` gives those from one on.
    ///
    /// # Errors
    /// No memory left; sums over k that may overflow; those of `weights`.
    pub fn of_matrix(
        context: &Context,
        weights: impl Fn(usize, &mut [f32]) -> Result<()>,
        n: usize,
        k: usize,
    ) -> Result<Self> {
        let mut quantized = Self::with_capacity(context, n, k)?;
        let at_once = (CHUNK / k.max(1)).clamp(1, n.max(1));
        let mut wide = vec![0.0; at_once * k];
        let mut chunk = context.allocate(wide.len())?;
        for first in (0..n).step_by(at_once) {
            let rows = at_once.min(n - first);
            weights(first, &mut wide[..rows * k])?;
            context.write(chunk.view_mut().slice(0..rows * k)?, &wide[..rows * k])?;
            let values = quantized.values.view_mut().slice(first * padded(k)..(first + rows) * padded(k))?;
            let scales = quantized.scales.view_mut().slice(first..first + rows)?;
            Quantize { x: chunk.view().slice(0..rows * k)?, out: values, scales }.launch(context, rows, k)?;
        }
        Ok(quantized)
    }

    /// The first `rows` rows, of k values each.
    ///
    /// # Errors
    /// There is no room for so many.
    pub fn view(&self, rows: usize, k: usize) -> Result<QuantizedView<'_>> {
        let values = self.values.view().slice(0..rows * padded(k))?;
        Ok(QuantizedView { values, scales: self.scales.view().slice(0..rows)? })
    }

    /// All rows, of k values each.
    ///
    /// # Errors
    /// They have another width.
    pub fn all(&self, k: usize) -> Result<QuantizedView<'_>> {
        check_len(OPERATION, "values", self.scales.len() * padded(k), self.values.len())?;
        self.view(self.scales.len(), k)
    }

    /// Enqueues the quantisation of `x`, `[rows, k]`, and returns the rows.
    ///
    /// # Errors
    /// A tensor of another size; sums over k that may overflow; the device failed.
    pub fn fill(&mut self, context: &Context, x: View<'_, f32>, rows: usize, k: usize) -> Result<QuantizedView<'_>> {
        let out = self.values.view_mut().slice(0..rows * padded(k))?;
        Quantize { x, out, scales: self.scales.view_mut().slice(0..rows)? }.launch(context, rows, k)?;
        self.view(rows, k)
    }
}

/// Fails if a sum of k products may overflow.
fn check_k(k: usize) -> Result<()> {
    if k <= MAX_K {
        return Ok(());
    }
    let (expected, got) = (format!("at most {} inputs of 8 bits", MAX_K), k.to_string());
    Err(Error::Shape { operation: OPERATION, tensor: "k", expected, got })
}

/// `scales[row] = max |x[row]| / 127`, `out[row] = round(x[row] * (127 / max |x[row]|))`.
pub struct Quantize<'a> {
    /// `[rows, k]`.
    pub x: View<'a, f32>,
    /// `[rows, padded(k)]`.
    pub out: ViewMut<'a, i8>,
    /// `[rows]`.
    pub scales: ViewMut<'a, f32>,
}

/// Mirrors `QuantizeArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    x: u64,
    out: u64,
    scales: u64,
    k: u32,
    vectorized: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "QuantizeArguments" { x, out, scales, k, vectorized })];

impl Quantize<'_> {
    /// Enqueues the kernel for `rows` rows of `k` values.
    ///
    /// # Errors
    /// A tensor of another size; sums over k that may overflow; the device failed.
    pub fn launch(self, context: &Context, rows: usize, k: usize) -> Result<()> {
        self.launch_with(context, rows, k, THREADS)
    }

    /// As [`Quantize::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, rows: usize, k: usize, threads: u32) -> Result<()> {
        check_k(k)?;
        check_len(OPERATION, "x", rows * k, self.x.len())?;
        check_len(OPERATION, "out", rows * padded(k), self.out.len())?;
        check_len(OPERATION, "scales", rows, self.scales.len())?;
        if rows == 0 {
            return Ok(());
        }
        let x = context.address(&self.x)?;
        let arguments = Arguments {
            x,
            out: context.address_mut(&self.out)?,
            scales: context.address_mut(&self.scales)?,
            k: to_u32(OPERATION, "k", k)?,
            vectorized: is_vectorizable::<f32>(k, &[x]).into(),
        };
        let grid = [to_u32(OPERATION, "rows", rows)?, 1, 1];
        let launch = Launch { symbol: "quantize_f32", grid, block: threads, shared: 0 };
        // SAFETY: mirrors `quantize_f32(QuantizeArguments)`. A block reads its own row of `x`, writes its own of `out` and `scales`; the
        // lengths were checked, rows of `out` start at multiples of 4 bytes; both are borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::quantize as cases;
    use crate::validate::probe::assert_all_pass;

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let mut rows = QuantizedRows::with_capacity(context, 2, 5)?;
        let x = context.upload(&[1.0f32; 10])?;
        let short = rows.fill(context, x.view().slice(0..9)?, 2, 5).err().map(|error| error.to_string());
        assert_eq!(short.as_deref(), Some("quantize: x: expected 10 elements, got 9 elements"));
        let many = rows.fill(context, x.view(), 3, 5).err().map(|error| error.kind());
        assert_eq!(many, Some("shape"));
        let long = QuantizedRows::of_matrix(context, |_, _| Ok(()), 1, 133_001).err().map(|error| error.to_string());
        assert_eq!(long.as_deref(), Some("quantize: k: expected at most 133000 inputs of 8 bits, got 133001"));
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check);
        shapes: wrong_shapes_are_refused;
    }
}
