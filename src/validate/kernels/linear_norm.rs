//! A matrix product and the norm of the rows it is added to, in one launch: the bits of two.

use crate::Result;
use crate::backend::{Activation, Dtype, NetworkOps, NormKind, rows_of};
use crate::cuda::gemm::{self, Tile};
use crate::cuda::layer_norm::LayerNorm;
use crate::cuda::matrix::{Matrix, ProductScratch};
use crate::cuda::quantize::QuantizedRows;
use crate::cuda::testing::{Values, stored};
use crate::cuda::{Buffer, Context, Cuda, Element};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const EPS: f32 = 1e-5;
/// Rows, width, inputs: within a tile, a tile, one more, several; rows of the norm that are read at once, piece by piece, and again for
/// each pass.
const SHAPES: [[usize; 3]; 8] =
    [[1, 1, 8], [3, 37, 24], [16, 32, 64], [17, 512, 40], [33, 66, 520], [5, 64, 1608], [130, 128, 72], [7, 1032, 16]];
/// What tensor cores do not take.
const ODD_SHAPES: [[usize; 3]; 3] = [[1, 3, 1], [3, 37, 31], [33, 66, 33]];
const LARGE: [[usize; 3]; 4] = [[4, 512, 512], [128, 512, 2048], [300, 1024, 1024], [511, 512, 512]];
/// The norm's kind, whether there are a sum and a bias of the product.
const FORMS: [(NormKind, bool, bool); 4] = [
    (NormKind::Layer, false, true),
    (NormKind::Layer, true, true),
    (NormKind::Rms, true, false),
    (NormKind::Rms, false, false),
];
/// A product that is normalised at once by one block of each row of tiles, and then by another: tickets start anew.
const TURNS: usize = 2;

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)?;
    check_int8(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    check_backend::<T>(probe, &Cuda::new(probe.context().clone(), T::DTYPE))
}

/// With weights of 8 bits.
pub fn check_int8(probe: &mut Probe<'_>) -> Result<()> {
    check_backend::<f32>(probe, &Cuda::new(probe.context().clone(), Dtype::I8))
}

fn check_backend<T: Element>(probe: &mut Probe<'_>, backend: &Cuda) -> Result<()> {
    let (on_tensor_cores, on_ordinary_units) = (&Tile::ON_TENSOR_CORES[..], &Tile::ON_ORDINARY_UNITS[..]);
    let (small, large) = (&SHAPES[..], &LARGE[..]);
    match backend.dtype() {
        // Rows of integers are filled up to what tensor cores take.
        Dtype::I8 => check_tiles::<T>(probe, backend, on_tensor_cores, [&[small, &ODD_SHAPES].concat(), large]),
        Dtype::F32 => check_tiles::<T>(probe, backend, on_ordinary_units, [&[small, &ODD_SHAPES].concat(), large]),
        Dtype::F16 | Dtype::Bf16 => {
            check_tiles::<T>(probe, backend, on_tensor_cores, [small, large])?;
            check_tiles::<T>(probe, backend, on_ordinary_units, [&ODD_SHAPES, &[]])
        }
    }
}

/// The device's own choice, then each of the tiles that go on with a norm.
fn check_tiles<T: Element>(
    probe: &mut Probe<'_>,
    backend: &Cuda,
    tiles: &[Tile],
    [small, large]: [&[[usize; 3]]; 2],
) -> Result<()> {
    let normalizing = tiles.iter().copied().filter(|tile| tile.normalizes());
    let tiles: Vec<_> = std::iter::once(None).chain(normalizing.map(Some)).collect();
    let shapes = probe.grid().shapes(small, large);
    let sizes = [shapes.len(), tiles.len(), Distribution::FINITE.len(), FORMS.len()];
    for [shape, tile, distribution, form] in probe.grid().combine(sizes) {
        let (shape, tile, distribution) = (shapes[shape], tiles[tile], Distribution::FINITE[distribution]);
        let (kind, has_sum, has_bias) = FORMS[form];
        let work = Sublayer { shape, tile, distribution, kind, has_sum, has_bias };
        probe.case("", backend.dtype(), format!("{work:?}"), |case| work.run::<T>(case, backend))?;
    }
    Ok(())
}

/// What ends a sublayer.
#[derive(Debug)]
struct Sublayer {
    /// Rows, width, inputs.
    shape: [usize; 3],
    tile: Option<Tile>,
    distribution: Distribution,
    kind: NormKind,
    has_sum: bool,
    has_bias: bool,
}

/// What it reads, and the tensors that it writes.
struct Tensors<T> {
    from: Buffer<T>,
    gain: Buffer<T>,
    bias: Option<Buffer<T>>,
    delta: Buffer<T>,
    sum: Option<Buffer<f32>>,
    x: Buffer<T>,
}

impl Sublayer {
    fn run<T: Element>(&self, case: &mut Case<'_>, backend: &Cuda) -> Result<()> {
        let ([rows, width, inputs], context) = (self.shape, case.context);
        let mut values = Values::new((rows * 7 + width * 3 + inputs) as u64);
        let from: Vec<T> = self.distribution.draw(&mut values, rows * inputs, 0.0, 1.0);
        let weights: Vec<f32> = values.elements(width * inputs, 0.0, 0.5);
        let bias: Vec<f32> = values.elements(width, 0.0, 1.0);
        let matrix = backend.matrix(&weights, self.has_bias.then_some(&bias), width, inputs)?;
        let mut scratch = backend.product_scratch(rows, inputs)?;
        let tensors = || -> Result<Tensors<T>> {
            let mut values = Values::new(rows as u64 + 11);
            let (x, sum) =
                (values.elements::<T>(rows * width, 10.0, 3.0), values.elements::<f32>(rows * width, -10.0, 3.0));
            let (gain, bias) = (values.elements::<T>(width, 1.0, 0.5), values.elements::<T>(width, 0.0, 1.0));
            Ok(Tensors {
                from: context.upload(&from)?,
                gain: context.upload(&gain)?,
                bias: (self.kind == NormKind::Layer).then(|| context.upload(&bias)).transpose()?,
                delta: context.allocate(rows * width)?,
                sum: self.has_sum.then(|| context.upload(&sum)).transpose()?,
                x: context.upload(&x)?,
            })
        };
        let mut expected = tensors()?;
        self.multiply(context, backend.dtype(), &weights, &mut expected)?;
        let delta_bias = self.has_bias.then(|| context.upload(&bias)).transpose()?;
        let norm = LayerNorm {
            delta: Some(expected.delta.view()),
            delta_bias: delta_bias.as_ref().map(Buffer::view),
            ..self.norm(&expected.gain, expected.bias.as_ref(), expected.sum.as_mut(), &mut expected.x)
        };
        norm.launch(context, rows, width)?;
        for _ in 0..TURNS {
            let mut actual = tensors()?;
            let bytes = (width * inputs + rows * (inputs + 3 * width)) * size_of::<T>();
            case.launch(bytes, |context| self.normalize(context, &matrix, &mut scratch, &mut actual))?;
            let sums =
                |tensors: &Tensors<T>| tensors.sum.as_ref().map_or(Ok(vec![]), |sum| context.download(sum.view()));
            let read = |buffer: &Buffer<T>| Ok::<_, crate::Error>(stored(&context.download(buffer.view())?));
            case.same_bits("delta", &read(&actual.delta)?, &read(&expected.delta)?);
            case.same_bits("sum", &sums(&actual)?, &sums(&expected)?);
            case.same_bits("x", &read(&actual.x)?, &read(&expected.x)?);
        }
        Ok(())
    }

    /// In one launch.
    fn normalize<T: Element>(
        &self,
        context: &Context,
        matrix: &Matrix,
        scratch: &mut ProductScratch,
        tensors: &mut Tensors<T>,
    ) -> Result<()> {
        let Tensors { from, gain, bias, delta, sum, x } = tensors;
        let norm = self.norm(gain, bias.as_ref(), sum.as_mut(), x);
        matrix.multiply_norm(context, (self.shape[0], from.view()), scratch, norm, &delta.view_mut(), self.tile)
    }

    /// The product alone, in the same tiles.
    fn multiply<T: Element>(
        &self,
        context: &Context,
        dtype: Dtype,
        weights: &[f32],
        tensors: &mut Tensors<T>,
    ) -> Result<()> {
        let ([rows, width, inputs], nothing) = (self.shape, (None, Activation::None));
        let (from, out) = (tensors.from.view(), tensors.delta.view_mut());
        if dtype != Dtype::I8 {
            let weights: Vec<T> = weights.iter().map(|&weight| T::from_f32(weight)).collect();
            let weights = context.upload(&weights)?;
            return match self.tile {
                None => context.gemm(self.shape, from, weights.view(), nothing, out, width),
                Some(tile) => gemm::launch(context, self.shape, from, weights.view(), nothing, out, width, tile),
            };
        }
        let weights = QuantizedRows::of_matrix(context, rows_of(weights, inputs), width, inputs)?;
        let mut from_rows = QuantizedRows::with_capacity(context, rows, inputs)?;
        let from = from_rows.fill(context, from.floats()?, rows, inputs)?;
        let weights = weights.view(width, inputs)?;
        match self.tile {
            None => context.gemm_int8(self.shape, from, weights, nothing, out, width),
            Some(tile) => gemm::launch_int8(context, self.shape, from, weights, nothing, out, width, tile),
        }
    }

    fn norm<'a, T>(
        &self,
        gain: &'a Buffer<T>,
        bias: Option<&'a Buffer<T>>,
        sum: Option<&'a mut Buffer<f32>>,
        x: &'a mut Buffer<T>,
    ) -> LayerNorm<'a, T> {
        LayerNorm {
            x: x.view_mut(),
            sum: sum.map(Buffer::view_mut),
            delta: None,
            delta_bias: None,
            gain: gain.view(),
            bias: bias.map(Buffer::view),
            kind: self.kind,
            eps: EPS,
        }
    }
}
