//! Matrix products, and bias and activation after them.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Activation, Dtype, rows_of};
use crate::check::Tolerance;
use crate::cpu::gemm;
use crate::cuda::Element;
use crate::cuda::gemm::{Tile, launch, launch_int8};
use crate::cuda::quantize::QuantizedRows;
use crate::cuda::testing::{Values, stored, tolerance};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const ACTIVATIONS: [Activation; 5] =
    [Activation::None, Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
/// Rows, outputs, inputs: within a tile, a tile, one more, several; one slice along the inputs, one and a piece, several.
const SHAPES: [[usize; 3]; 7] =
    [[1, 1, 8], [3, 37, 24], [16, 32, 64], [17, 65, 520], [33, 66, 512], [5, 61, 1608], [130, 131, 72]];
/// What tensor cores do not take.
const ODD_SHAPES: [[usize; 3]; 4] = [[1, 1, 1], [3, 37, 31], [33, 65, 33], [5, 61, 257]];
const LARGE: [[usize; 3]; 4] = [[4, 58101, 512], [128, 2048, 512], [300, 512, 2048], [1024, 512, 4096]];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)?;
    check_int8(probe)
}

/// Of 8-bit integers: the CPU's own product, bit by bit as far as activations are.
pub fn check_int8(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&[SHAPES.as_slice(), &ODD_SHAPES].concat(), &LARGE);
    let tiles: Vec<Option<Tile>> = std::iter::once(None).chain(Tile::ON_TENSOR_CORES.map(Some)).collect();
    let sizes = [shapes.len(), tiles.len(), ACTIVATIONS.len(), Distribution::ALL.len(), 2];
    for [shape, tile, activation, distribution, has_bias] in probe.grid().combine(sizes) {
        let product = Product {
            shape: shapes[shape],
            tile: tiles[tile],
            activation: ACTIVATIONS[activation],
            distribution: Distribution::ALL[distribution],
            has_bias: has_bias == 1,
        };
        probe.case("product", Dtype::I8, format!("{product:?}"), |case| product.run_int8(case))?;
    }
    Ok(())
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    // The device's own choice, then each tile.
    let mut tiles = vec![None];
    if T::DTYPE != Dtype::F32 {
        tiles.extend(Tile::ON_TENSOR_CORES.map(Some));
    }
    check_tiles::<T>(probe, &tiles, &probe.grid().shapes(&SHAPES, &LARGE))?;
    tiles.truncate(1);
    tiles.extend(Tile::ON_ORDINARY_UNITS.map(Some));
    check_tiles::<T>(probe, &tiles, &ODD_SHAPES)?;
    for activation in ACTIVATIONS {
        let what = format!("{activation:?} of extremes");
        probe.case("extremes", T::DTYPE, what, |case| extremes::<T>(case, activation))?;
    }
    Ok(())
}

fn check_tiles<T: Element>(probe: &mut Probe<'_>, tiles: &[Option<Tile>], shapes: &[[usize; 3]]) -> Result<()> {
    let sizes = [shapes.len(), tiles.len(), ACTIVATIONS.len(), Distribution::FINITE.len(), 2];
    for [shape, tile, activation, distribution, has_bias] in probe.grid().combine(sizes) {
        let product = Product {
            shape: shapes[shape],
            tile: tiles[tile],
            activation: ACTIVATIONS[activation],
            distribution: Distribution::FINITE[distribution],
            has_bias: has_bias == 1,
        };
        probe.case("product", T::DTYPE, format!("{product:?}"), |case| {
            product.run::<T, T>(case)?;
            // In f32 that was the same.
            if T::DTYPE == Dtype::F32 { Ok(()) } else { product.run::<T, f32>(case) }
        })?;
    }
    Ok(())
}

/// Rows of a product that are held to the reference, whose sums in f64 take long.
const CHECKED_ROWS: usize = 8;

#[derive(Debug)]
struct Product {
    /// Rows, outputs, inputs.
    shape: [usize; 3],
    tile: Option<Tile>,
    activation: Activation,
    distribution: Distribution,
    has_bias: bool,
}

impl Product {
    /// `activation(x W^T + bias)` in f32 sums: each of k additions and products errs by at most a unit in the last place of the sum of
    /// magnitudes (half a unit where it rounds; tensor cores cut off).
    fn run<I: Element, O: Element>(&self, case: &mut Case<'_>) -> Result<()> {
        // No activation magnifies a difference by more than this.
        const STEEPEST: f64 = 1.2;
        let &Product { shape: [rows, n, k], activation, has_bias, .. } = self;
        let mut values = Values::new((rows * 7 + n * 3 + k) as u64);
        let x: Vec<I> = self.distribution.draw(&mut values, rows * k, 0.0, 1.0);
        let weights: Vec<I> = values.elements(n * k, 0.0, 0.5);
        let bias: Vec<f32> = values.elements(n, 0.0, 1.0);
        // What lies between the rows is not touched.
        let (stride, between) = (n + 3, -7.0);
        let context = case.context;
        let (device_x, device_weights) = (context.upload(&x)?, context.upload(&weights)?);
        let device_bias = context.upload(&bias)?;
        let mut out = context.upload(&vec![O::from_f32(between); rows * stride])?;
        let bytes = (rows * k + n * k) * size_of::<I>() + rows * n * size_of::<O>();
        case.launch(bytes, |context| {
            let finish = (has_bias.then(|| device_bias.view()), activation);
            let (x, weights, out) = (device_x.view(), device_weights.view(), out.view_mut());
            match self.tile {
                None => context.gemm([rows, n, k], x, weights, finish, out, stride),
                Some(tile) => launch(context, [rows, n, k], x, weights, finish, out, stride, tile),
            }
        })?;
        let actual = stored(&context.download(out.view())?);
        let (x, weights) = (stored(&x), stored(&weights));
        let multiply = |x: &[f32], weights: &[f32], bias: &[f32], activation| {
            let mut out = vec![f32::NAN; n];
            let epilogue = gemm::Epilogue { bias: has_bias.then_some(bias), activation, residual: None };
            gemm::reference(x, 1, weights, n, k, &epilogue, &mut out);
            out
        };
        let magnitudes = |values: &[f32]| values.iter().map(|value| value.abs()).collect::<Vec<_>>();
        let (weight_magnitudes, bias_magnitudes) = (magnitudes(&weights), magnitudes(&bias));
        let name = if O::DTYPE == Dtype::F32 { "f32 out" } else { "out" };
        let apart = rows.div_ceil(CHECKED_ROWS);
        for row in (0..rows).rev().step_by(apart) {
            let x = &x[row * k..][..k];
            let sums = multiply(&magnitudes(x), &weight_magnitudes, &bias_magnitudes, Activation::None);
            let largest = sums.into_iter().fold(0.0, f32::max);
            let rounding = tolerance::<O>(1e-6);
            let abs = STEEPEST * f64::from(largest) * (k + 1) as f64 * 2f64.powi(-23) + rounding.abs;
            let (actual, rest) = actual[row * stride..][..stride].split_at(n);
            case.close(name, actual, &multiply(x, &weights, &bias, activation), Tolerance::new(abs, rounding.rel));
            case.same_bits("between rows", rest, &[between; 3]);
        }
        Ok(())
    }
}

impl Product {
    fn run_int8(&self, case: &mut Case<'_>) -> Result<()> {
        let &Product { shape: [rows, n, k], activation, has_bias, .. } = self;
        let mut values = Values::new((rows * 7 + n * 3 + k) as u64);
        let x: Vec<f32> = self.distribution.draw(&mut values, rows * k, 0.0, 1.0);
        let weights: Vec<f32> = values.elements(n * k, 0.0, 0.5);
        let bias: Vec<f32> = values.elements(n, 0.0, 1.0);
        let (stride, between, context) = (n + 3, -7.0, case.context);
        let own_weights = QuantizedRows::of_matrix(context, rows_of(&weights, k), n, k)?;
        let mut own_x = QuantizedRows::with_capacity(context, rows, k)?;
        let device_x = context.upload(&x)?;
        own_x.fill(context, device_x.view(), rows, k)?;
        let own_bias = context.upload(&bias)?;
        let mut out = context.upload(&vec![between; rows * stride])?;
        case.launch(rows * k + n * k + rows * n * size_of::<f32>(), |context| {
            let finish = (has_bias.then(|| own_bias.view()), activation);
            let (x, weights, out) = (own_x.view(rows, k)?, own_weights.view(n, k)?, out.view_mut());
            match self.tile {
                None => context.gemm_int8([rows, n, k], x, weights, finish, out, stride),
                Some(tile) => launch_int8(context, [rows, n, k], x, weights, finish, out, stride, tile),
            }
        })?;
        let actual = context.download(out.view())?;
        let packed = gemm::PackedInt8::pack(&weights, n, k);
        let epilogue = gemm::Epilogue { bias: has_bias.then_some(&bias[..]), activation, residual: None };
        let mut expected = vec![0.0; rows * n];
        gemm::gemm_int8(&x, rows, &packed, &epilogue, &mut gemm::RowScratch::default(), &mut expected);
        // One NaN is as good as another.
        let one = |values: &[f32]| values.iter().map(|v| if v.is_nan() { f32::NAN } else { *v }).collect::<Vec<_>>();
        for (actual, expected) in actual.chunks(stride).zip(expected.chunks(n)) {
            let (actual, rest) = actual.split_at(n);
            match activation {
                Activation::None | Activation::Relu => case.same_bits("out", &one(actual), &one(expected)),
                _ => case.close("out", actual, expected, tolerance::<f32>(1e-6)),
            }
            case.same_bits("between rows", rest, &[between; 3]);
        }
        Ok(())
    }
}

/// NaN stays NaN, infinity infinity; what is far below 0 becomes 0; and zeros keep to the reference: of products with a 1.
fn extremes<T: Element>(case: &mut Case<'_>, activation: Activation) -> Result<()> {
    let extremes = [f32::NAN, f32::INFINITY, -6e4, -100.0, 100.0, 0.0, -0.0, 1e-30];
    let context = case.context;
    let x = context.upload(&extremes.map(T::from_f32))?;
    let one = context.upload(&[T::from_f32(1.0)])?;
    let mut out = context.upload(&[T::from_f32(UNTOUCHED); 8])?;
    case.launch(0, |context| context.gemm([8, 1, 1], x.view(), one.view(), (None, activation), out.view_mut(), 1))?;
    let out = stored(&context.download(out.view())?);
    let mut expected = [f32::NAN; 8];
    let epilogue = gemm::Epilogue { bias: None, activation, residual: None };
    for (x, expected) in extremes.map(T::from_f32).iter().zip(&mut expected) {
        gemm::reference(&[x.to_f32()], 1, &[1.0], 1, 1, &epilogue, std::slice::from_mut(expected));
    }
    expected[1] = f32::INFINITY;
    case.close("out", &out, &expected, tolerance::<T>(1e-6));
    Ok(())
}
