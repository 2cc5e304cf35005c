//! Residual add, and layer norm or RMS norm.

use crate::Result;
use crate::backend::NormKind;
use crate::cpu::layer_norm as cpu;
use crate::cuda::Element;
use crate::cuda::layer_norm::LayerNorm;
use crate::cuda::testing::{Values, stored, tolerance};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const EPS: f32 = 1e-5;
const SHAPES: [[usize; 2]; 8] = [[1, 1], [3, 31], [2, 257], [13, 512], [5, 520], [2, 1024], [3, 1032], [2, 1117]];
const LARGE: [[usize; 2]; 2] = [[4096, 512], [4099, 1024]];
const BLOCKS: [u32; 4] = [32, 96, 256, 512];

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    for [shape, block, distribution, form] in
        probe.grid().combine([shapes.len(), BLOCKS.len(), Distribution::FINITE.len() + 1, FORMS.len()])
    {
        let form = FORMS[form];
        let distribution = Distribution::FINITE.get(distribution).copied().unwrap_or(Distribution::NotANumber);
        let ([rows, d_model], threads) = (shapes[shape], BLOCKS[block]);
        let what = format!("{rows} rows of {d_model}, {distribution}, {form}, {threads} threads");
        probe.case("", T::DTYPE, what, |case| run::<T>(case, [rows, d_model], distribution, form, threads))?;
    }
    Ok(())
}

/// Which operands there are.
#[derive(Clone, Copy)]
struct Form {
    kind: NormKind,
    has_sum: bool,
    has_delta: bool,
    has_delta_bias: bool,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = [(self.has_sum, "sum"), (self.has_delta, "delta"), (self.has_delta_bias, "biased delta")];
        write!(f, "{:?}", self.kind)?;
        named.iter().filter(|(is_there, _)| *is_there).try_for_each(|(_, name)| write!(f, " with {name}"))
    }
}

const fn form(kind: NormKind, [has_sum, has_delta, has_delta_bias]: [bool; 3]) -> Form {
    Form { kind, has_sum, has_delta, has_delta_bias }
}

const FORMS: [Form; 9] = [
    form(NormKind::Layer, [false, true, false]),
    form(NormKind::Layer, [false, true, true]),
    form(NormKind::Layer, [false, false, false]),
    form(NormKind::Layer, [true, false, false]),
    form(NormKind::Layer, [true, true, true]),
    form(NormKind::Rms, [false, true, false]),
    form(NormKind::Rms, [false, false, false]),
    form(NormKind::Rms, [true, false, false]),
    form(NormKind::Rms, [true, true, false]),
];

fn run<T: Element>(
    case: &mut Case<'_>,
    [rows, d_model]: [usize; 2],
    distribution: Distribution,
    form: Form,
    threads: u32,
) -> Result<()> {
    let Form { kind, has_sum, has_delta, has_delta_bias } = form;
    let mut values = Values::new(rows as u64 * 7919 + d_model as u64);
    // A mean far from 0: a one-pass variance would fail here.
    let mean = if distribution == Distribution::Equal { 1.0 } else { 100.0 };
    let x: Vec<T> = distribution.draw(&mut values, rows * d_model, mean, 1.0);
    // With equal numbers a variance of the size of eps: where it is added matters.
    let spread = if distribution == Distribution::Equal { 0.004 } else { 2.0 };
    let delta: Vec<T> = Distribution::Outliers.draw(&mut values, rows * d_model, 0.0, spread);
    let gain: Vec<T> = values.elements(d_model, 1.0, 0.5);
    let bias: Vec<T> = values.elements(d_model, 0.0, 1.0);
    let has_bias = kind == NormKind::Layer;
    let plain_bias = if has_bias { stored(&bias) } else { vec![0.0; d_model] };
    let norm = cpu::Norm { kind, gain: stored(&gain), bias: plain_bias, eps: EPS };
    let mut expected = stored(&x);
    let sum: Vec<f32> = values.elements(rows * d_model, -mean, 1.0);
    let mut expected_sum = sum.clone();
    let delta_bias: Vec<f32> = values.elements(if has_delta_bias { d_model } else { 0 }, 0.0, 2.0);
    let mut moved = stored(&delta);
    moved.iter_mut().zip(delta_bias.iter().cycle()).for_each(|(delta, bias)| *delta += bias);
    let moved = has_delta.then_some(&moved[..]);
    cpu::reference(&norm, rows, moved, has_sum.then_some(&mut expected_sum[..]), &mut expected);

    let context = case.context;
    let (mut x, delta) = (context.upload(&x)?, context.upload(&delta)?);
    let (gain, bias) = (context.upload(&gain)?, context.upload(&bias)?);
    let (delta_bias, mut sum) = (context.upload(&delta_bias)?, context.upload(&sum)?);
    let kernel = LayerNorm {
        x: x.view_mut(),
        sum: has_sum.then(|| sum.view_mut()),
        delta: has_delta.then(|| delta.view()),
        delta_bias: has_delta_bias.then(|| delta_bias.view()),
        gain: gain.view(),
        bias: has_bias.then(|| bias.view()),
        kind,
        eps: EPS,
    };
    let bytes = 3 * rows * d_model * size_of::<T>();
    case.launch(bytes, |context| kernel.launch_with(context, rows, d_model, threads))?;
    // What the sums err by is multiplied by the gain, which is 6 here and there: held to each other before that.
    let own = stored(&context.download(x.view())?);
    let ungained =
        |x: &[f32]| x.iter().zip(norm.gain.iter().cycle()).map(|(x, gain)| x / gain.abs().max(1.0)).collect::<Vec<_>>();
    case.close("x", &ungained(&own), &ungained(&expected), tolerance::<T>(2e-4));
    case.close("sum", &context.download(sum.view())?, &expected_sum, tolerance::<f32>(2e-5));
    Ok(())
}
