//! Rows of 8-bit integers: bit by bit those of the CPU.

use crate::Result;
use crate::backend::Dtype;
use crate::cpu::gemm::quantize_row;
use crate::cuda::quantize::{Quantize, padded};
use crate::cuda::testing::Values;
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const SHAPES: [[usize; 2]; 6] = [[1, 1], [3, 37], [5, 64], [7, 1000], [2, 2048], [4, 515]];
const LARGE: [[usize; 2]; 2] = [[4096, 2048], [1021, 1000]];
const BLOCKS: [u32; 4] = [32, 96, 128, 1024];
/// What stands where the kernel is to write.
const UNTOUCHED: i8 = -99;

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    let shapes = probe.grid().shapes(&SHAPES, &LARGE);
    for [shape, block, distribution] in probe.grid().combine([shapes.len(), BLOCKS.len(), Distribution::ALL.len()]) {
        let ([rows, k], threads, distribution) = (shapes[shape], BLOCKS[block], Distribution::ALL[distribution]);
        let what = format!("{rows} rows of {k}, {distribution}, {threads} threads");
        probe.case("", Dtype::F32, what, |case| {
            let x = distribution.draw(&mut Values::new(rows as u64 * 31 + k as u64), rows * k, 0.0, 3.0);
            run(case, &x, [rows, k], threads)
        })?;
    }
    probe.case("extremes", Dtype::F32, "rows that have no scale, ties".to_owned(), extremes)
}

/// NaN, infinities, nothing but zeros, too small to be scaled, the largest number; what lies between two integers.
fn extremes(case: &mut Case<'_>) -> Result<()> {
    let rows = [
        [f32::NAN, 1.0, -2.0, 3.0, 0.0],
        [f32::INFINITY, 1.0, f32::NAN, 3.0, 0.0],
        [1.0, f32::NEG_INFINITY, 2.0, 3.0, 0.0],
        [0.0, -0.0, 0.0, 0.0, 0.0],
        [1e-36, -1e-38, 0.0, 1e-45, 0.0],
        [1e-35, -1e-36, 5e-36, 0.0, -1e-35],
        [f32::MAX, f32::MIN, 1.0, -1e38, 2e38],
        [127.0, 0.5, 1.5, -2.5, -126.5],
    ];
    run(case, rows.as_flattened(), [rows.len(), rows[0].len()], 32)
}

fn run(case: &mut Case<'_>, x: &[f32], [rows, k]: [usize; 2], threads: u32) -> Result<()> {
    let mut expected = vec![0i8; rows * padded(k)];
    let scales: Vec<f32> =
        x.chunks(k).zip(expected.chunks_mut(padded(k))).map(|(row, out)| quantize_row(row, &mut out[..k])).collect();
    let context = case.context;
    let device_x = context.upload(x)?;
    let mut out = context.upload(&vec![UNTOUCHED; expected.len()])?;
    let mut own_scales = context.allocate::<f32>(rows)?;
    let kernel = Quantize { x: device_x.view(), out: out.view_mut(), scales: own_scales.view_mut() };
    case.launch(5 * rows * k, |context| kernel.launch_with(context, rows, k, threads))?;
    // One NaN is as good as another.
    let one = |scales: &[f32]| scales.iter().map(|s| if s.is_nan() { f32::NAN } else { *s }).collect::<Vec<_>>();
    case.same_bits("scales", &one(&context.download(own_scales.view())?), &one(&scales));
    case.same("integers", &context.download(out.view())?, &expected);
    Ok(())
}
