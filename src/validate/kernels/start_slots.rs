//! Cases of `start_slots`, which `kernels/beam_step.cu` holds too: a slot that starts is as new, whatever was in it before, and the
//! others stay as they are.

use crate::Result;
use crate::backend::{Dtype, Failure, Finished, Search, SearchOps, SessionShape, SlotOptions, Stages, Strategy};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::cuda::Cuda;
use crate::validate::kernels::beam_step::{IDS, compare_states};
use crate::validate::lockstep::take_over;
use crate::validate::probe::{Case, Probe};

const SLOTS: usize = 4;
const VOCAB: usize = 9;

/// Which slots start, for slots of few and of many beams and positions.
///
/// # Errors
/// The device failed.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for starting in [&[1u32][..], &[3, 0], &[2, 1, 0, 3]] {
        for (beam_size, max_src_len) in [(3, 5), (16, 37)] {
            let what = format!("slots {starting:?} start, {beam_size} beams, {max_src_len} source positions");
            probe.case("start_slots", Dtype::F32, what, |case| run(case, starting, beam_size, max_src_len))?;
        }
    }
    Ok(())
}

fn run(case: &mut Case<'_>, starting: &[u32], beam_size: usize, max_src_len: usize) -> Result<()> {
    let (max_len, rows) = (7, SLOTS * beam_size);
    let shape = SessionShape { slots: SLOTS, beam_size, max_len, max_src_len, rows, keep_attention: false };
    let base = SlotOptions { beam_size: 3, max_len: 7, src_len: 5, ..SlotOptions::default() };
    let kinds = [
        base,
        SlotOptions { groups: 3, ..base },
        SlotOptions { strategy: Strategy::Sample as u32, ..base },
        SlotOptions { max_len: 3, src_len: 1, ..base },
    ];
    let slots: Vec<(u32, SlotOptions)> = starting.iter().map(|&slot| (slot, kinds[slot as usize])).collect();
    let backend = Cpu::new(1, Dtype::F32)?;
    let mut expected = Search::open(&backend, shape, VOCAB, IDS)?;
    leave_traces(&mut expected);
    let cuda = Cuda::new(case.context.clone(), Dtype::F32);
    let mut device = Search::open(&cuda, shape, VOCAB, IDS)?;
    let stages = Stages { samples: true, ..Stages::default() };
    expected.reserve(&backend, stages)?;
    device.reserve(&cuda, stages)?;
    macro_rules! copy {
        ($($field:ident),*) => { $(case.context.write(device.$field.view_mut(), &expected.$field)?;)* };
    }
    copy!(options, step, live, cum_log_probs, tokens, parents, log_probs, ancestry, coverage, finished, finished_count);
    copy!(failures);
    cuda.start_slots(&slots, &mut device)?;
    cpu::start_slots(&slots, &mut expected);
    let expected_options = expected.options.clone();
    // The device's state takes the place of the CPU's, whose own comes back.
    let own = take_over(case.context, &device, &mut expected)?;
    case.keep(compare_states(&expected, &own));
    case.same("options", &expected.options, &expected_options);
    Ok(())
}

/// Sentences in the middle of their decode, and what ended ones left.
fn leave_traces(search: &mut Search<Cpu>) {
    let old = SlotOptions { beam_size: 2, max_len: 6, src_len: 4, ..SlotOptions::default() };
    bytemuck::cast_slice_mut(&mut search.options).fill(old);
    search.step.fill(3);
    search.live.fill(2);
    search.finished_count.fill(1);
    for (i, token) in search.tokens.iter_mut().enumerate() {
        *token = (i * 7 % VOCAB) as u32;
    }
    search.parents.fill(1);
    search.ancestry.fill(1);
    search.cum_log_probs.fill(-7.5);
    search.log_probs.fill(-0.5);
    search.coverage.fill(0.75);
    let ended = Finished { score: -1.0, length: 2, ..bytemuck::Zeroable::zeroed() };
    bytemuck::cast_slice_mut(&mut search.finished).fill(ended);
    let failure = Failure { failed: 1, step: 2, beam: 1, value: f32::NAN };
    bytemuck::cast_slice_mut(&mut search.failures).fill(failure);
}
