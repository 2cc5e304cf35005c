//! Cases of the op `ensemble`.

use crate::Result;
use crate::backend::{
    ContrastiveForm, ContrastiveOptions, Dtype, NetworkOps, Search, SearchOps, SessionShape, SlotOptions, Stages,
};
use crate::check::Tolerance;
use crate::cpu::{Cpu, beam_step, ensemble};
use crate::cuda::Cuda;
use crate::cuda::testing::Values;
use crate::validate::kernels::beam_step::IDS;
use crate::validate::probe::{Case, Probe};

const SLOTS: usize = 9;
const SHAPE: SessionShape =
    SessionShape { slots: SLOTS, beam_size: 1, max_len: 3, max_src_len: 2, rows: SLOTS, keep_attention: false };

/// Vocabularies around a pack's and a block's size; mixtures of one, two and three scorers, and rows that are left alone.
///
/// # Errors
/// The device failed.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for vocab_size in probe.grid().shapes(&[3, 31, 64, 1003, 2050], &[58101]) {
        probe.case("", Dtype::F32, format!("{vocab_size} tokens"), |case| run(case, vocab_size))?;
    }
    Ok(())
}

fn run(case: &mut Case<'_>, vocab_size: usize) -> Result<()> {
    let weights = |some: &[f32]| std::array::from_fn(|scorer| some.get(scorer).copied().unwrap_or(0.0));
    let base = SlotOptions { beam_size: 1, max_len: 3, src_len: 1, ranked: 1, ..SlotOptions::default() };
    let options = [
        SlotOptions { ensemble: weights(&[0.5, 0.25, 0.25]), ..base },
        // Ranked for another reason: the first scorer as it is.
        base,
        SlotOptions { ranked: 0, ..base },
        // The second scorer alone is not finite: the third row does not know.
        SlotOptions { ensemble: weights(&[0.5, 0.0, 0.75]), ..base },
        SlotOptions { ensemble: weights(&[1.0, 1.0]), ..base },
        // The op `contrastive` ranks.
        SlotOptions { contrast: ContrastiveOptions::new(ContrastiveForm::Li, 0.5, 0.1, 1.0), ..base },
        // +infinity in one scorer; then nothing but -infinity in another.
        SlotOptions { ensemble: weights(&[0.5, 0.5]), ..base },
        SlotOptions { ensemble: weights(&[0.5, 0.0, 0.5]), ..base },
        // The least number for every token.
        base,
    ];
    let mut values = Values::new(vocab_size as u64);
    let mut scorers: Vec<Vec<f32>> = (0..3).map(|_| values.elements(SLOTS * vocab_size, 1.0, 3.0)).collect();
    scorers.iter_mut().for_each(|z| z.iter_mut().skip(1).step_by(7).for_each(|z| *z = f32::NEG_INFINITY));
    scorers[1][3 * vocab_size + 2] = f32::NAN;
    scorers[1][7 * vocab_size - 1] = f32::INFINITY;
    scorers[2][7 * vocab_size..].fill(f32::NEG_INFINITY);
    scorers[0][8 * vocab_size..].fill(f32::MIN);
    let slots: Vec<(u32, SlotOptions)> = (0..).zip(options).collect();
    let stages = Stages { ranked: true, ..Stages::default() };

    let cpu = Cpu::new(1, Dtype::F32)?;
    let mut fast = Search::open(&cpu, SHAPE, vocab_size, IDS)?;
    fast.reserve(&cpu, stages)?;
    beam_step::start_slots(&slots, &mut fast);
    ensemble::ensemble(&scorers.iter().map(Some).collect::<Vec<_>>(), &mut fast);

    let cuda = Cuda::new(case.context.clone(), Dtype::F32);
    let stride = cuda.logits_stride(vocab_size);
    let mut device = Search::open(&cuda, SHAPE, vocab_size, IDS)?;
    device.reserve(&cuda, stages)?;
    cuda.start_slots(&slots, &mut device)?;
    let mut buffers = Vec::new();
    for scorer in &scorers {
        let mut apart = vec![f32::NAN; SLOTS * stride];
        for (to, from) in apart.chunks_mut(stride).zip(scorer.chunks(vocab_size)) {
            to[..vocab_size].copy_from_slice(from);
        }
        buffers.push(case.context.upload(&apart)?);
    }
    cuda.ensemble(&buffers.iter().map(Some).collect::<Vec<_>>(), &mut device)?;
    let found = case.context.download(device.ranked.view())?;

    for (r, options) in options.iter().enumerate() {
        let row = |scorer: usize| &scorers[scorer][r * vocab_size..][..vocab_size];
        let own = if options.is_ensemble() { options.ensemble } else { weights(&[1.0]) };
        let mixed: Vec<(&[f32], f32)> =
            (0..3).filter(|scorer| own[*scorer] != 0.0).map(|scorer| (row(scorer), own[scorer])).collect();
        let is_left_alone = options.ranked == 0 || options.contrast.form != 0;
        let expected = if is_left_alone { vec![0.0; vocab_size] } else { ensemble::reference(&mixed) };
        case.close(&format!("row {r}"), &found[r * stride..][..vocab_size], &expected, Tolerance::new(2e-6, 1e-6));
        let fast = &fast.ranked[r * vocab_size..][..vocab_size];
        case.close(&format!("row {r} on the CPU"), fast, &expected, Tolerance::new(2e-6, 1e-6));
    }
    Ok(())
}
