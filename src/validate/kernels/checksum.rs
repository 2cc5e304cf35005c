//! The exclusive or of words.

use crate::Result;
use crate::backend::Dtype;
use crate::cpu::checksum::reference;
use crate::cuda::checksum::Checksum;
use crate::cuda::testing::Values;
use crate::validate::probe::{Case, Probe};

/// Packs of four words: none, one, fewer than threads, more than all threads read at once.
const PACKS: [usize; 5] = [0, 1, 63, 1237, 20_011];
const LARGE: [usize; 1] = [1 << 24];
const GRIDS: [usize; 3] = [1, 3, 16];
const BLOCKS: [u32; 4] = [32, 96, 512, 1024];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    let packs = probe.grid().shapes(&PACKS, &LARGE);
    for [count, grid, block] in probe.grid().combine([packs.len(), GRIDS.len(), BLOCKS.len()]) {
        let (packs, grid, threads) = (packs[count], GRIDS[grid], BLOCKS[block]);
        let what = format!("{packs} packs, {grid} blocks of {threads} threads");
        probe.case("", Dtype::F32, what, |case| run(case, packs, grid, threads))?;
    }
    Ok(())
}

fn run(case: &mut Case<'_>, packs: usize, grid: usize, threads: u32) -> Result<()> {
    let mut values = Values::new(packs as u64);
    let words: Vec<u32> = (0..4 * packs).map(|_| values.uniform().to_bits()).collect();
    let (device_words, mut out) = (case.context.upload(&words)?, case.context.upload(&vec![u32::MAX; grid])?);
    let kernel = Checksum { words: device_words.view(), out: out.view_mut() };
    case.launch(16 * packs, |context| kernel.launch_with(context, threads))?;
    let sums = case.context.download(out.view())?;
    case.same("checksum", &[reference(&sums)], &[reference(&words)]);
    Ok(())
}
