//! Token and position rows.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::Row;
use crate::cpu::embedding as cpu;
use crate::cuda::Element;
use crate::cuda::embedding::Embedding;
use crate::cuda::testing::{DeviceRows, Values, stored, tolerance};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const VOCAB: usize = 11;
const POSITIONS: usize = 7;
const SCALE: f32 = 5.5;
const WIDTHS: [usize; 5] = [1, 37, 64, 512, 1048];
const BLOCKS: [u32; 3] = [32, 128, 1024];
/// Rows of the largest case.
const MANY: usize = 8192;

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let counts = probe.grid().shapes(&[7], &[MANY]);
    for [count, width, block, distribution] in
        probe.grid().combine([counts.len(), WIDTHS.len(), BLOCKS.len(), Distribution::ALL.len()])
    {
        let (rows, width, threads) = (counts[count], WIDTHS[width], BLOCKS[block]);
        let distribution = Distribution::ALL[distribution];
        let what = format!("{rows} rows of {width}, {distribution}, {threads} threads");
        probe.case("", T::DTYPE, what, |case| run::<T>(case, [rows, width], distribution, threads))?;
    }
    Ok(())
}

fn run<T: Element>(
    case: &mut Case<'_>,
    [count, width]: [usize; 2],
    distribution: Distribution,
    threads: u32,
) -> Result<()> {
    let mut values = Values::new(width as u64);
    let tokens: Vec<T> = distribution.draw(&mut values, VOCAB * width, 0.0, 1.0);
    let positions: Vec<T> = values.elements(POSITIONS * width, 0.0, 1.0);
    // Every position and every token, the last ones first.
    let place = |r: usize| Row {
        slot: 3,
        beam: 2,
        position: (6 + 2 * r) as u32 % POSITIONS as u32,
        token: (10 + 7 * r) as u32 % VOCAB as u32,
    };
    let mut rows: Vec<Row> = (0..count).map(place).collect();
    let live = if distribution == Distribution::Equal { count } else { count - 1 };
    let mut expected = vec![UNTOUCHED; count * width];
    let table = cpu::Embedding { tokens: stored(&tokens), scale: SCALE, positions: stored(&positions), width };
    cpu::reference(&table, &rows[..live], &mut expected);
    // Rows that name a position and a token that are not there.
    rows[3].position = POSITIONS as u32;
    rows[4].token = VOCAB as u32;
    expected[3 * width..5 * width].fill(f32::NAN);

    let context = case.context;
    let rows = DeviceRows::upload(context, &rows, live)?;
    let (tokens, positions) = (context.upload(&tokens)?, context.upload(&positions)?);
    let mut out = context.upload(&vec![T::from_f32(UNTOUCHED); expected.len()])?;
    let (table, positions) = (tokens.view(), positions.view());
    let kernel = Embedding { table, positions, scale: SCALE, rows: rows.list(), out: out.view_mut() };
    case.launch(3 * count * width * size_of::<T>(), |context| kernel.launch_with(context, width, threads))?;
    case.close("out", &stored(&context.download(out.view())?), &expected, tolerance::<T>(1e-6));
    Ok(())
}
