//! Token and position rows.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::{Dtype, Row, rows_of};
use crate::cpu::embedding as cpu;
use crate::cpu::gemm::quantize_row;
use crate::cuda::Element;
use crate::cuda::embedding::{Embedding, Table};
use crate::cuda::quantize::QuantizedRows;
use crate::cuda::testing::{DeviceRows, Values, stored, tolerance};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const VOCAB: usize = 11;
const POSITIONS: usize = 7;
const SCALE: f32 = 5.5;
const WIDTHS: [usize; 5] = [1, 37, 64, 512, 1048];
const BLOCKS: [u32; 3] = [32, 128, 1024];
/// Whether there are positions, and which token has none.
const KINDS: [Option<Option<u32>>; 3] = [Some(None), Some(Some(6)), None];
/// Rows of the largest case.
const MANY: usize = 8192;

/// In every storage type.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_as::<f32>(probe)?;
    check_as::<half::f16>(probe)?;
    check_as::<half::bf16>(probe)?;
    check_quantized(probe)
}

/// In one.
pub fn check_as<T: Element>(probe: &mut Probe<'_>) -> Result<()> {
    let counts = probe.grid().shapes(&[7], &[MANY]);
    for [count, width, block, distribution, kind] in
        probe.grid().combine([counts.len(), WIDTHS.len(), BLOCKS.len(), Distribution::ALL.len(), KINDS.len()])
    {
        let (rows, width, threads) = (counts[count], WIDTHS[width], BLOCKS[block]);
        let distribution = Distribution::ALL[distribution];
        let kind = KINDS[kind];
        let what = format!("{rows} rows of {width}, {distribution}, {threads} threads, positions {kind:?}");
        probe.case("", T::DTYPE, what, |case| {
            let tokens: Vec<T> = distribution.draw(&mut Values::new(width as u64), VOCAB * width, 0.0, 1.0);
            let table = case.context.upload(&tokens)?;
            run::<T>(case, &stored(&tokens), Table::Plain(table.view()), [rows, width], distribution, threads, kind)
        })?;
    }
    Ok(())
}

/// Of a table of 8-bit integers.
pub fn check_quantized(probe: &mut Probe<'_>) -> Result<()> {
    for [width, block, distribution, kind] in
        probe.grid().combine([WIDTHS.len(), BLOCKS.len(), Distribution::FINITE.len(), KINDS.len()])
    {
        let (width, threads, kind) = (WIDTHS[width], BLOCKS[block], KINDS[kind]);
        let distribution = Distribution::FINITE[distribution];
        let what = format!("7 rows of {width}, {distribution}, {threads} threads, positions {kind:?}");
        probe.case("", Dtype::I8, what, |case| {
            let tokens: Vec<f32> = distribution.draw(&mut Values::new(width as u64), VOCAB * width, 0.0, 1.0);
            let table = QuantizedRows::of_matrix(case.context, rows_of(&tokens, width), VOCAB, width)?;
            let mut integers = vec![0; width];
            let worth = |row: &[f32]| -> Vec<f32> {
                let scale = quantize_row(row, &mut integers);
                integers.iter().map(|&value| f32::from(value) * scale).collect()
            };
            let tokens: Vec<f32> = tokens.chunks(width).flat_map(worth).collect();
            let table = Table::<f32>::Quantized(table.all(width)?);
            run(case, &tokens, table, [7, width], distribution, threads, kind)
        })?;
    }
    Ok(())
}

fn run<T: Element>(
    case: &mut Case<'_>,
    tokens: &[f32],
    table: Table<'_, T>,
    [count, width]: [usize; 2],
    distribution: Distribution,
    threads: u32,
    kind: Option<Option<u32>>,
) -> Result<()> {
    let mut values = Values::new(width as u64 + 1);
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
    let plain = kind.map(|pad_id| cpu::Positions { table: stored(&positions), pad_id });
    // A row that names a position that is not there, which shows where it is read.
    if kind.is_some() {
        rows[3].token = 0;
    }
    cpu::reference(tokens, SCALE, width, plain.as_ref(), &rows[..live], &mut expected);
    // And a token that is not there.
    rows[3].position = POSITIONS as u32;
    rows[4].token = VOCAB as u32;
    expected[if kind.is_some() { 3 } else { 4 } * width..5 * width].fill(f32::NAN);

    let context = case.context;
    let rows = DeviceRows::upload(context, &rows, live)?;
    let positions = context.upload(&positions)?;
    let mut out = context.upload(&vec![T::from_f32(UNTOUCHED); expected.len()])?;
    let positions = kind.map(|_| positions.view());
    let (scale, pad_id) = (SCALE, kind.flatten());
    let kernel = Embedding { table, positions, pad_id, scale, rows: rows.list(), out: out.view_mut() };
    case.launch(3 * count * width * size_of::<T>(), |context| kernel.launch_with(context, width, threads))?;
    case.close("out", &stored(&context.download(out.view())?), &expected, tolerance::<T>(1e-6));
    Ok(())
}
