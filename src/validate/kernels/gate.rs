//! The activation of one half of a row times its other half.

use crate::Result;
use crate::backend::Activation;
use crate::cpu::gate as cpu;
use crate::cuda::Element;
use crate::cuda::gate::Gate;
use crate::cuda::testing::{Values, stored, tolerance};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const ACTIVATIONS: [Activation; 4] = [Activation::Relu, Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
const SHAPES: [[usize; 2]; 5] = [[1, 1], [3, 37], [5, 64], [7, 1000], [2, 2048]];
const LARGE: [[usize; 2]; 2] = [[4096, 2048], [1021, 1000]];
const BLOCKS: [u32; 5] = [32, 64, 96, 256, 1024];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    for [shape, activation, block, distribution] in
        probe.grid().combine([shapes.len(), ACTIVATIONS.len(), BLOCKS.len(), Distribution::FINITE.len() + 1])
    {
        let distribution = Distribution::FINITE.get(distribution).copied().unwrap_or(Distribution::NotANumber);
        let (shape, activation, threads) = (shapes[shape], ACTIVATIONS[activation], BLOCKS[block]);
        let what = format!("{} rows of {}, {activation:?}, {distribution}, {threads} threads", shape[0], shape[1]);
        probe.case("", T::DTYPE, what, |case| run::<T>(case, shape, activation, distribution, threads))?;
    }
    Ok(())
}

fn run<T: Element>(
    case: &mut Case<'_>,
    [rows, width]: [usize; 2],
    activation: Activation,
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let mut values = Values::new(rows as u64 * 31 + width as u64);
    let both: Vec<T> = distribution.draw(&mut values, 2 * rows * width, 0.0, 3.0);
    let mut expected = vec![f32::NAN; rows * width];
    cpu::reference(activation, width, rows, &stored(&both), &mut expected);
    let context = case.context;
    let both = context.upload(&both)?;
    let mut out = context.allocate::<T>(rows * width)?;
    let kernel = Gate { both: both.view(), activation, out: out.view_mut() };
    let bytes = 3 * rows * width * size_of::<T>();
    case.launch(bytes, |context| kernel.launch_with(context, rows, width, threads))?;
    case.close("out", &stored(&context.download(out.view())?), &expected, tolerance::<T>(1e-5));
    Ok(())
}
