//! Launcher of `kernels/gemm.cu`: matrix products without cuBLASLt, for shapes that it has no plan for.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, to_u32};
use super::device::Gemm;
use super::element::Element;
use super::layout::{Layout, layout};
use crate::backend::Dtype;
use crate::{Error, Result};

const OPERATION: &str = "gemm";
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
const THREADS: u32 = 256;
/// Rows and columns of `out` that a block computes; as in the kernel.
pub(super) const TILE: u32 = 32;

/// Mirrors `GemmArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Arguments {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    rows: u32,
    n: u32,
    k: u32,
    out_stride: u32,
}

/// Mirrors `GemmBiasArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct BiasArguments {
    out: u64,
    bias: u64,
    rows: u32,
    n: u32,
    out_stride: u32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(Arguments as "GemmF32" { x, weight, bias, out, rows, n, k, out_stride }),
    layout!(Arguments as "GemmF16" { x, weight, bias, out, rows, n, k, out_stride }),
    layout!(Arguments as "GemmBf16" { x, weight, bias, out, rows, n, k, out_stride }),
    layout!(Arguments as "GemmWideF16" { x, weight, bias, out, rows, n, k, out_stride }),
    layout!(Arguments as "GemmWideBf16" { x, weight, bias, out, rows, n, k, out_stride }),
    layout!(BiasArguments as "GemmBiasArguments" { out, bias, rows, n, out_stride, unused }),
];

/// The launch of a product, which may not be empty, and its arguments.
///
/// # Errors
/// Sizes beyond 32 bits; types that are not multiplied.
pub(super) fn product(gemm: &Gemm, threads: u32) -> Result<(Launch, Arguments)> {
    let symbol = match (gemm.input, gemm.output) {
        (Dtype::F32, Dtype::F32) => "gemm_f32",
        (Dtype::F16, Dtype::F16) => "gemm_f16",
        (Dtype::F16, Dtype::F32) => "gemm_wide_f16",
        (Dtype::Bf16, Dtype::Bf16) => "gemm_bf16",
        (Dtype::Bf16, Dtype::F32) => "gemm_wide_bf16",
        (input, output) => {
            let (expected, got) =
                ("f32, f16 or bf16, out as in or f32".to_owned(), format!("{input:?}, {output:?} out"));
            return Err(Error::Shape { operation: OPERATION, tensor: "types", expected, got });
        }
    };
    let size = |name, value| to_u32(OPERATION, name, value);
    let arguments = Arguments {
        x: gemm.x,
        weight: gemm.weight,
        bias: gemm.bias,
        out: gemm.out,
        rows: size("rows", gemm.rows)?,
        n: size("n", gemm.n)?,
        k: size("k", gemm.k)?,
        out_stride: size("stride", gemm.out_stride)?,
    };
    let grid = [arguments.n.div_ceil(TILE), arguments.rows.div_ceil(TILE), 1];
    Ok((Launch { symbol, grid, block: threads, shared: 0 }, arguments))
}

/// The launch that adds a product's bias to its f32 `out`, and its arguments.
///
/// # Errors
/// Sizes beyond 32 bits.
pub(super) fn bias(gemm: &Gemm) -> Result<(Launch, BiasArguments)> {
    let size = |name, value| to_u32(OPERATION, name, value);
    let arguments = BiasArguments {
        out: gemm.out,
        bias: gemm.bias,
        rows: size("rows", gemm.rows)?,
        n: size("n", gemm.n)?,
        out_stride: size("stride", gemm.out_stride)?,
        unused: 0,
    };
    let grid = [arguments.n.div_ceil(THREADS), arguments.rows, 1];
    Ok((Launch { symbol: "gemm_bias_f32", grid, block: THREADS, shared: 0 }, arguments))
}

#[cfg(feature = "cuda")]
/// As [`product`], with blocks of the usual size.
///
/// # Errors
/// As [`product`].
pub(super) fn plain_product(gemm: &Gemm) -> Result<(Launch, Arguments)> {
    product(gemm, THREADS)
}

/// How a product adds the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BiasIn {
    /// In the kernel of the product.
    Product,
    /// In a kernel of its own.
    Itself,
}

/// As [`Context::gemm`], by this kernel in blocks of `threads`, a multiple of 32.
///
/// # Errors
/// As [`Context::gemm`].
#[allow(clippy::too_many_arguments)]
pub(crate) fn launch<I: Element, O: Element>(
    context: &Context,
    sizes: [usize; 3],
    x: View<'_, I>,
    weight: View<'_, I>,
    bias_view: Option<View<'_, f32>>,
    out: ViewMut<'_, O>,
    out_stride: usize,
    (bias_in, threads): (BiasIn, u32),
) -> Result<()> {
    let mut gemm = context.check_gemm(sizes, &x, &weight, bias_view.as_ref(), &out, out_stride)?;
    if gemm.rows == 0 || gemm.n == 0 {
        return Ok(());
    }
    let own_bias = bias_in == BiasIn::Itself && gemm.bias != 0;
    let added = own_bias.then(|| bias(&gemm)).transpose()?;
    if own_bias {
        gemm.bias = 0;
    }
    let (launch, arguments) = product(&gemm, threads)?;
    // SAFETY: mirrors `GemmArguments` of these types. A thread reads rows below `rows` and `n` up to `k`, writes elements of `out`
    // below `rows` and `n`; the lengths were checked, and `out` is borrowed mutably.
    unsafe { context.launch(&launch, &arguments)? };
    if let Some((launch, arguments)) = added {
        // SAFETY: mirrors `GemmBiasArguments`; a thread changes one element of `out` below `rows` and `n`, and reads the bias at its
        // column.
        unsafe { context.launch(&launch, &arguments)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::assert_same_bits;
    use crate::cuda::testing::{Values, device_tests};
    use crate::validate::kernels::gemm as cases;
    use crate::validate::probe::assert_all_pass;

    fn a_row_does_not_depend_on_the_others(context: &Context) -> Result<()> {
        let (n, k, most) = (37, 129, 70);
        let mut values = Values::new(9);
        let (x, weight) = (values.elements::<f32>(most * k, 0.0, 1.0), values.elements::<f32>(n * k, 0.0, 1.0));
        let (x, weight) = (context.upload(&x)?, context.upload(&weight)?);
        let product = |rows: usize, threads: u32| -> Result<Vec<f32>> {
            let (mut out, x) = (context.allocate(rows * n)?, x.view().slice(0..rows * k)?);
            launch(context, [rows, n, k], x, weight.view(), None, out.view_mut(), n, (BiasIn::Product, threads))?;
            context.download(out.view())
        };
        let all = product(most, THREADS)?;
        for rows in 1..most {
            assert_same_bits(&product(rows, [32, 96, 256, 1024][rows % 4])?, &all[..rows * n]);
        }
        Ok(())
    }

    /// An infinity in one row or column, and what lies between the rows of `out`.
    fn bad_values_stay_in_their_row(context: &Context) -> Result<()> {
        let (mut x, weight) = ([1.0f32; 3 * 33], [0.5f32; 2 * 33]);
        x[33] = f32::INFINITY;
        let (x, weight) = (context.upload(&x)?, context.upload(&weight)?);
        let mut out = context.upload(&[-7.0f32; 3 * 5])?;
        let how = (BiasIn::Product, THREADS);
        launch(context, [3, 2, 33], x.view(), weight.view(), None, out.view_mut(), 5, how)?;
        let out = context.download(out.view())?;
        let (row, inf) = ([16.5, 16.5, -7.0, -7.0, -7.0], f32::INFINITY);
        assert_eq!(out, [row, [inf, inf, -7.0, -7.0, -7.0], row].concat());
        Ok(())
    }

    device_tests! {
        f32: |context| assert_all_pass(context, OPERATION, cases::check_as::<f32>);
        f16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::f16>);
        bf16: |context| assert_all_pass(context, OPERATION, cases::check_as::<half::bf16>);
        rows: a_row_does_not_depend_on_the_others;
        bad_values: bad_values_stay_in_their_row;
    }
}
