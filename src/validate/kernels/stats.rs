//! What a row of logits says about its gold token, and on its own.

use crate::Result;
use crate::backend::{Dtype, Row, TokenStats};
use crate::check::Tolerance;
use crate::cpu::stats as cpu;
use crate::cuda::stats::TokenStatistics;
use crate::cuda::testing::{DeviceRows, Values};
use crate::validate::cases::Distribution;
use crate::validate::probe::{Case, Probe};

const ROWS: usize = 9;
const VOCABULARIES: [usize; 6] = [1, 2, 31, 997, 8001, 8192];
const LARGE: [usize; 1] = [58101];
const BLOCKS: [u32; 3] = [32, 96, 128];
/// What the stride is beyond the vocabulary.
const GAPS: [usize; 3] = [0, 3, 8];

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    let vocabularies = probe.grid().shapes(&VOCABULARIES, &LARGE);
    let sizes = [vocabularies.len(), BLOCKS.len(), GAPS.len(), Distribution::ALL.len()];
    for [vocabulary, block, gap, distribution] in probe.grid().combine(sizes) {
        let (vocab_size, threads) = (vocabularies[vocabulary], BLOCKS[block]);
        let (stride, distribution) = (vocab_size + GAPS[gap], Distribution::ALL[distribution]);
        let what = format!("{vocab_size} tokens, {stride} apart, {distribution}, {threads} threads");
        probe.case("tokens", Dtype::F32, what, |case| run(case, [vocab_size, stride], distribution, threads))?;
    }
    for vocab_size in [2, 31, 997] {
        let what = format!("{vocab_size} tokens near the least number");
        probe.case("tokens", Dtype::F32, what, |case| run_lowest(case, vocab_size))?;
    }
    Ok(())
}

/// Logits of which many are the least number, and none is much above it: what the sum of exponentials adds to such a maximum is
/// lost in its rounding.
fn run_lowest(case: &mut Case<'_>, vocab_size: usize) -> Result<()> {
    let neighbour = |i: usize| f32::from_bits(f32::MIN.to_bits() - (i % 3 / 2) as u32);
    let logits: Vec<f32> = (0..2 * vocab_size).map(|i| if i < vocab_size { f32::MIN } else { neighbour(i) }).collect();
    let gold = [vocab_size as u32 - 1; 2];
    let mut expected = [TokenStats::default(); 2];
    cpu::reference(&logits, vocab_size, &gold, &mut expected);
    let mut fast = expected;
    cpu::token_stats(&logits, vocab_size, &gold, &mut fast);
    let context = case.context;
    let rows = DeviceRows::upload(context, &[Row::default(); 2], 2)?;
    let (logits, gold) = (context.upload(&logits)?, context.upload(&gold)?);
    let mut out = context.zeros::<u32>(2 * size_of::<TokenStats>() / size_of::<u32>())?;
    let kernel = TokenStatistics { rows: rows.list(), logits: logits.view(), gold: gold.view(), out: out.view_mut() };
    case.launch(2 * vocab_size * size_of::<f32>(), |context| kernel.launch_with(context, vocab_size, vocab_size, 32))?;
    let out = context.download(out.view())?;
    let expected = expected.map(|stats| stats.log_prob);
    for (side, stats) in [("device", bytemuck::cast_slice(&out)), ("CPU", &fast[..])] {
        let log_probs: Vec<f32> = stats.iter().map(|stats: &TokenStats| stats.log_prob).collect();
        case.close(&format!("log-probabilities on the {side}"), &log_probs, &expected, Tolerance::new(2e-5, 1e-6));
    }
    Ok(())
}

fn run(case: &mut Case<'_>, [vocab_size, stride]: [usize; 2], distribution: Distribution, threads: u32) -> Result<()> {
    let live = if distribution == Distribution::Equal { ROWS } else { ROWS - 1 };
    let mut values = Values::new(vocab_size as u64);
    let mut logits: Vec<f32> = distribution.draw(&mut values, ROWS * vocab_size, 3.0, 9.0);
    logits.iter_mut().step_by(97).for_each(|z| *z = 80.0);
    let mut gold: Vec<u32> = (0..ROWS).map(|r| (r * 13 % vocab_size) as u32).collect();
    // The last token of the last row, where a loop that stops too early does not come.
    gold[live - 1] = vocab_size as u32 - 1;
    let nothing = TokenStats { log_prob: -77.0, entropy: -77.0, max_log_prob: -77.0, rank: 77, argmax: 77 };
    let mut expected = vec![nothing; ROWS];
    cpu::reference(&logits[..live * vocab_size], vocab_size, &gold[..live], &mut expected[..live]);
    // A NaN, a +infinity, a token that is not there.
    logits[vocab_size / 2] = f32::NAN;
    logits[2 * vocab_size - 1] = f32::INFINITY;
    gold[2] = vocab_size as u32;
    let nan = f32::NAN;
    expected[..2].fill(TokenStats { log_prob: nan, entropy: nan, max_log_prob: nan, rank: 0, argmax: 0 });
    (expected[2].log_prob, expected[2].rank) = (nan, 0);
    let mut apart = vec![f32::NAN; ROWS * stride];
    for (to, from) in apart.chunks_mut(stride).zip(logits.chunks(vocab_size)) {
        to[..vocab_size].copy_from_slice(from);
    }
    let context = case.context;
    let rows = DeviceRows::upload(context, &[Row::default(); ROWS], live)?;
    let (logits, gold) = (context.upload(&apart)?, context.upload(&gold)?);
    let mut out = context.upload::<u32>(bytemuck::cast_slice(&[nothing; ROWS]))?;
    let kernel = TokenStatistics { rows: rows.list(), logits: logits.view(), gold: gold.view(), out: out.view_mut() };
    let bytes = live * vocab_size * size_of::<f32>();
    case.launch(bytes, |context| kernel.launch_with(context, vocab_size, stride, threads))?;
    let out = context.download(out.view())?;
    let actual: &[TokenStats] = bytemuck::cast_slice(&out);
    let numbers = |stats: &[TokenStats]| -> Vec<f32> {
        stats.iter().flat_map(|s| [s.log_prob, s.entropy, s.max_log_prob]).collect()
    };
    let places = |stats: &[TokenStats]| stats.iter().map(|s| (s.rank, s.argmax)).collect::<Vec<_>>();
    case.close("numbers", &numbers(actual), &numbers(&expected), Tolerance::new(2e-5, 1e-6));
    case.same("rank and best token", &places(actual), &places(&expected));
    Ok(())
}
