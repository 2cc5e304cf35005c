//! Words of several places, one behind the other.

use super::UNTOUCHED;
use crate::Result;
use crate::backend::Dtype;
use crate::cuda::View;
use crate::cuda::gather::Gather;
use crate::cuda::testing::Values;
use crate::validate::probe::{Case, Probe};

/// Words of the parts of a launch.
const PARTS: [&[usize]; 6] =
    [&[1], &[0, 5, 0], &[1, 4, 40, 120, 120, 120, 3000], &[31, 32, 33], &[4097, 1], &[3, 1, 4, 1, 5, 9, 2, 6]];
const BLOCKS: [u32; 4] = [32, 96, 128, 1024];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for [parts, block] in probe.grid().combine([PARTS.len(), BLOCKS.len()]) {
        let (parts, threads) = (PARTS[parts], BLOCKS[block]);
        probe.case("", Dtype::F32, format!("{parts:?} words, {threads} threads"), |case| run(case, parts, threads))?;
    }
    Ok(())
}

fn run(case: &mut Case<'_>, parts: &[usize], threads: u32) -> Result<()> {
    let total: usize = parts.iter().sum();
    let mut values = Values::new(total as u64);
    let words: Vec<u32> = (0..2 * total).map(|_| values.uniform().to_bits()).collect();
    let from = case.context.upload(&words)?;
    // Every part from elsewhere, the last one first.
    let mut starts = Vec::new();
    let mut end = 2 * total;
    for part in parts {
        end -= part;
        starts.push(end);
    }
    let views: Vec<View<'_, u32>> =
        parts.iter().zip(&starts).map(|(len, start)| from.view().slice(*start..start + len)).collect::<Result<_>>()?;
    let expected: Vec<u32> =
        parts.iter().zip(&starts).flat_map(|(len, start)| words[*start..start + len].iter().copied()).collect();
    let untouched = UNTOUCHED.to_bits();
    let mut out = case.context.upload(&vec![untouched; total + 2])?;
    let kernel = Gather { parts: &views, out: out.view_mut().slice(1..total + 1)? };
    case.launch(8 * total, |context| kernel.launch_with(context, threads))?;
    let found = case.context.download(out.view())?;
    case.same("words", &found, &[&[untouched][..], &expected, &[untouched]].concat());
    Ok(())
}
