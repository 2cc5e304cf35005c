//! Matrix products, and bias, activation and residual after them.

use crate::Result;
use crate::backend::{Activation, Dtype};
use crate::check::Tolerance;
use crate::cpu::gemm;
use crate::cuda::linear::Epilogue;
use crate::cuda::testing::{Values, stored, tolerance};
use crate::cuda::{Context, Element, View, ViewMut};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 37], [5, 64], [7, 1000], [2, 2048]];
const LARGE: [[usize; 2]; 2] = [[4096, 2048], [1021, 1000]];
const BLOCKS: [u32; 5] = [32, 64, 96, 256, 1024];
/// Which of bias and residual there are.
const OPERANDS: [(bool, bool); 3] = [(false, true), (true, false), (true, true)];
/// Rows, outputs, inputs of matrix products.
const PRODUCTS: [[usize; 3]; 5] = [[1, 1, 1], [3, 37, 31], [8, 128, 64], [17, 61, 257], [33, 96, 512]];
const LARGE_PRODUCTS: [[usize; 3]; 3] = [[4, 58101, 512], [128, 2048, 512], [1024, 512, 2048]];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    let sizes = [shapes.len(), ACTIVATIONS.len(), OPERANDS.len(), BLOCKS.len(), Distribution::FINITE.len()];
    for [shape, activation, operands, block, distribution] in probe.grid().combine(sizes) {
        let epilogue = EpilogueCase {
            shape: shapes[shape],
            activation: ACTIVATIONS[activation],
            operands: OPERANDS[operands],
            distribution: Distribution::FINITE[distribution],
            threads: BLOCKS[block],
        };
        probe.case("epilogue", T::DTYPE, format!("{epilogue:?}"), |case| epilogue.run::<T>(case))?;
    }
    for activation in ACTIVATIONS {
        let what = format!("{activation:?} of extremes");
        probe.case("epilogue", T::DTYPE, what, |case| extremes::<T>(case, activation))?;
    }
    for shape in probe.grid().shapes(&PRODUCTS, &LARGE_PRODUCTS) {
        for distribution in Distribution::FINITE {
            let what = format!("[rows, n, k] {shape:?}, {distribution}");
            probe.case("product", T::DTYPE, what, |case| {
                product::<T, T>(case, shape, distribution, by_context)?;
                product::<T, f32>(case, shape, distribution, by_context)
            })?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct EpilogueCase {
    shape: [usize; 2],
    activation: Activation,
    operands: (bool, bool),
    distribution: Distribution,
    threads: u32,
}

impl EpilogueCase {
    fn run<T: Element>(&self, case: &mut Case<'_>) -> Result<()> {
        let &EpilogueCase { shape: [rows, n], activation, operands: (has_bias, has_residual), .. } = self;
        let mut values = Values::new(rows as u64 * 31 + n as u64);
        let x: Vec<T> = self.distribution.draw(&mut values, rows * n, 0.0, 3.0);
        let bias: Vec<f32> = values.elements(n, 0.5, 1.0);
        let residual: Vec<T> = values.elements(rows * n, 0.0, 10.0);
        // A product with a 1 leaves what comes after it.
        let mut expected = vec![f32::NAN; rows * n];
        for ((x, residual), out) in stored(&x).chunks(n).zip(stored(&residual).chunks(n)).zip(expected.chunks_mut(n)) {
            let (bias, residual) = (has_bias.then_some(&bias[..]), has_residual.then_some(residual));
            gemm::reference(&[1.0], 1, x, n, 1, &gemm::Epilogue { bias, activation, residual }, out);
        }
        let context = case.context;
        let mut x = context.upload(&x)?;
        let (bias, residual) = (context.upload(&bias)?, context.upload(&residual)?);
        let kernel = Epilogue {
            x: x.view_mut(),
            bias: has_bias.then(|| bias.view()),
            activation,
            residual: has_residual.then(|| residual.view()),
        };
        let bytes = (2 + usize::from(has_residual)) * rows * n * size_of::<T>();
        case.launch(bytes, |context| kernel.launch_with(context, rows, n, self.threads))?;
        case.close("x", &stored(&context.download(x.view())?), &expected, tolerance::<T>(1e-6));
        Ok(())
    }
}

/// NaN stays NaN, infinity infinity; what is far below 0 becomes 0; and zeros keep to the reference.
fn extremes<T: Element>(case: &mut Case<'_>, activation: Activation) -> Result<()> {
    let extremes = [f32::NAN, f32::INFINITY, -6e4, -100.0, 100.0, 0.0, -0.0, 1e-30];
    let numbers = extremes.map(T::from_f32);
    let mut x = case.context.upload(&numbers)?;
    let kernel = Epilogue { x: x.view_mut(), bias: None, activation, residual: None };
    case.launch(0, |context| kernel.launch(context, 2, 4))?;
    let out = stored(&case.context.download(x.view())?);
    let mut expected = [f32::NAN; 8];
    let epilogue = gemm::Epilogue { bias: None, activation, residual: None };
    gemm::reference(&[1.0], 1, &stored(&numbers), 8, 1, &epilogue, &mut expected);
    expected[1] = f32::INFINITY;
    case.close("x", &out, &expected, tolerance::<T>(0.0));
    Ok(())
}

/// The product as layers enqueue it.
fn by_context<I: Element, O: Element>(
    context: &Context,
    sizes: [usize; 3],
    x: View<'_, I>,
    weight: View<'_, I>,
    bias: Option<View<'_, f32>>,
    out: ViewMut<'_, O>,
) -> Result<()> {
    context.gemm(sizes, x, weight, bias, out, sizes[1])
}

/// Rows of a product that are held to the reference, whose sums in f64 take long.
const CHECKED_ROWS: usize = 8;

/// `x W^T` in f32 sums: each of k additions and products errs by at most a unit in the last place of the sum of magnitudes
/// (half a unit where it rounds; tensor cores cut off).
pub(super) fn product<I: Element, O: Element>(
    case: &mut Case<'_>,
    [rows, n, k]: [usize; 3],
    distribution: Distribution,
    enqueue: impl Fn(&Context, [usize; 3], View<'_, I>, View<'_, I>, Option<View<'_, f32>>, ViewMut<'_, O>) -> Result<()>,
) -> Result<()> {
    let mut values = Values::new((rows * 7 + n * 3 + k) as u64);
    let x: Vec<I> = distribution.draw(&mut values, rows * k, 0.0, 1.0);
    let weights: Vec<I> = values.elements(n * k, 0.0, 0.5);
    // Only logits, which are f32, take their bias here.
    let bias: Vec<f32> = values.elements(if O::DTYPE == Dtype::F32 { n } else { 0 }, 0.0, 1.0);
    let context = case.context;
    let (device_x, device_weights) = (context.upload(&x)?, context.upload(&weights)?);
    let device_bias = context.upload(&bias)?;
    let mut out = context.allocate::<O>(rows * n)?;
    let bytes = (rows * k + n * k) * size_of::<I>() + rows * n * size_of::<O>();
    case.launch(bytes, |context| {
        let (x, bias) = (device_x.view(), (!bias.is_empty()).then(|| device_bias.view()));
        enqueue(context, [rows, n, k], x, device_weights.view(), bias, out.view_mut())
    })?;
    let actual = stored(&context.download(out.view())?);
    let (x, weights) = (stored(&x), stored(&weights));
    let multiply = |x: &[f32], weights: &[f32], bias: &[f32]| {
        let mut out = vec![f32::NAN; n];
        let bias = (!bias.is_empty()).then_some(bias);
        let epilogue = gemm::Epilogue { bias, activation: Activation::None, residual: None };
        gemm::reference(x, 1, weights, n, k, &epilogue, &mut out);
        out
    };
    let magnitudes = |values: &[f32]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
    let (weight_magnitudes, bias_magnitudes) = (magnitudes(&weights), magnitudes(&bias));
    let name = if O::DTYPE == Dtype::F32 { "f32 out" } else { "out" };
    let apart = rows.div_ceil(CHECKED_ROWS);
    for row in (0..rows).rev().step_by(apart) {
        let x = &x[row * k..][..k];
        let sums = multiply(&magnitudes(x), &weight_magnitudes, &bias_magnitudes);
        let largest = sums.into_iter().fold(0.0, f32::max);
        let rounding = tolerance::<O>(0.0);
        let abs = f64::from(largest) * (k + 1) as f64 * 2f64.powi(-23) + rounding.abs;
        case.close(name, &actual[row * n..][..n], &multiply(x, &weights, &bias), Tolerance::new(abs, rounding.rel));
    }
    Ok(())
}
