//! The kernel against the CPU's fast path and its reference, step by step.

use super::*;
use crate::backend::{Search, StopKind};
use crate::cpu::beam_step::tests::{assert_same_state, option_cases, options};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::cuda::testing::device_tests;
use crate::validate::kernels::beam_step::{self as cases, Data, Fixture, SHAPE, on_cpu};
use crate::validate::probe::assert_all_pass;

/// Runs a search to its end on the device, on the CPU and by its reference; returns the number of steps.
fn run_all(
    device: Fixture,
    slots: &[(u32, SlotOptions)],
    seed: u64,
    change: impl Fn(usize, &mut [f32]),
) -> Result<usize> {
    let outcome = cases::run_all(device, slots, seed, change)?;
    assert!(outcome.found.is_ok(), "{:?}", outcome.found);
    Ok(outcome.steps)
}

/// The cases that `validate` runs too.
fn shared_cases(context: &Context) -> Result<()> {
    assert_all_pass(context, STEP, cases::check)
}

fn all_options(context: &Context) -> Result<()> {
    let cases = option_cases();
    let mut steps = 0;
    for (seed, options) in cases.iter().enumerate() {
        let vocab_size = [4, 7, 331][seed % 3];
        let short = SlotOptions { src_len: 1, ..*options };
        let fixture = Fixture::new(context, SHAPE, vocab_size, [32, 64, 96, 128][seed % 4])?;
        steps += run_all(fixture, &[(0, *options), (2, short)], seed as u64, |_, _| ())?;
    }
    assert!(steps > 2 * cases.len(), "searches end after {steps} steps: too early to test anything");
    Ok(())
}

fn slots_enter_and_leave(context: &Context) -> Result<()> {
    let mut device = Fixture::new(context, SHAPE, 1100, 32)?;
    let (mut fast, mut data) = (on_cpu(SHAPE, 1100)?, Data::new(5));
    for step in 0..40 {
        let free: Vec<(u32, SlotOptions)> = (0..3u32)
            .filter(|slot| fast.live[*slot as usize] == 0 && (step + slot) % 3 == 0)
            .map(|slot| (slot, SlotOptions { beam_size: 1 + (step + slot) % 5, ..options() }))
            .collect();
        cpu::start_slots(&free, &mut fast);
        device.start(&free)?;
        let (logits, attention) = data.draw(SHAPE, 1100);
        cpu::beam_step(&logits, &attention, &mut fast);
        // Of three slots never more than those that live now: the tightest grid that may be asked for.
        let bucket = device.live_slots()?;
        device.write(&logits, &attention)?;
        device.step(bucket)?;
        assert_same_state(&device.download()?, &fast);
    }
    Ok(())
}

fn equal_logits(context: &Context) -> Result<()> {
    for (vocab_size, threads) in [(40, 128), (1500, 32)] {
        let mut device = Fixture::new(context, SHAPE, vocab_size, threads)?;
        device.start(&[(1, options())])?;
        device.write(&vec![1.5; SHAPE.rows * vocab_size], &vec![0.1; SHAPE.rows * SHAPE.max_src_len])?;
        device.step(SHAPE.slots)?;
        let state = device.download()?;
        // Padding (0) is masked; end of sentence (2) finishes; of the others the lowest ids stay live.
        assert_eq!(state.tokens[SHAPE.max_len * SHAPE.beam_size..][..5], [1, 3, 4, 5, 6]);
        assert_eq!((state.live[1], state.finished_count[1]), (5, 1));
        let fixture = Fixture::new(context, SHAPE, vocab_size, threads)?;
        run_all(fixture, &[(0, options()), (1, options())], 1, |_, logits| logits.fill(1.5))?;
        // All beams finish at once, with the same score: the order of the finished set is that of the beams.
        let fixture = Fixture::new(context, SHAPE, vocab_size, threads)?;
        let uncovered = SlotOptions { coverage_penalty: 0.0, ..options() };
        let steps = run_all(fixture, &[(0, uncovered)], 1, |step, logits| {
            logits.fill(1.5);
            logits.iter_mut().skip(2).step_by(vocab_size).for_each(|eos| *eos = if step == 0 { -9.0 } else { 2.5 });
        })?;
        assert_eq!(steps, 2);
    }
    Ok(())
}

fn a_vocabulary_smaller_than_the_candidate_list(context: &Context) -> Result<()> {
    for vocab_size in [3, 4, 9] {
        let exact = SlotOptions { stop: StopKind::Exact as u32, ..options() };
        run_all(Fixture::new(context, SHAPE, vocab_size, 128)?, &[(0, options()), (2, exact)], 9, |_, _| ())?;
    }
    Ok(())
}

fn logits_that_are_not_finite_end_their_slot_only(context: &Context) -> Result<()> {
    let vocab_size = 1031;
    let slots = [(0, options()), (1, options()), (2, options())];
    for (value, token) in [(f32::NAN, 19), (f32::INFINITY, 1030), (f32::NAN, 0)] {
        let mut device = Fixture::new(context, SHAPE, vocab_size, 32)?;
        let (mut fast, mut data) = (on_cpu(SHAPE, vocab_size)?, Data::new(3));
        cpu::start_slots(&slots, &mut fast);
        device.start(&slots)?;
        for step in 0..3 {
            let (mut logits, attention) = data.draw(SHAPE, vocab_size);
            // Keep all alive in the first step, then spoil one token of slot 1's fourth beam, and another's later.
            logits.iter_mut().skip(2).step_by(vocab_size).for_each(|eos| *eos = -5.0);
            if step == 1 {
                logits[8 * vocab_size + token] = value;
                logits[9 * vocab_size + 7] = f32::INFINITY;
            }
            cpu::beam_step(&logits, &attention, &mut fast);
            device.write(&logits, &attention)?;
            device.step(SHAPE.slots)?;
            assert_same_state(&device.download()?, &fast);
        }
        let failure = bytemuck::cast_slice::<_, Failure>(&device.download()?.failures)[1];
        assert_eq!((failure.failed, failure.step, failure.beam, failure.value.is_nan()), (1, 2, 3, value.is_nan()));
    }
    Ok(())
}

fn without_any_candidate(context: &Context) -> Result<()> {
    for all_gone in [0, 2] {
        let slots = [(0, options()), (1, SlotOptions { renormalize: 1, ..options() })];
        let steps = run_all(Fixture::new(context, SHAPE, 1025, 32)?, &slots, 3, |step, logits| {
            logits.iter_mut().skip(2).step_by(1025).for_each(|eos| *eos = f32::NEG_INFINITY);
            if step == all_gone {
                logits.fill(f32::NEG_INFINITY);
            }
        })?;
        assert_eq!(steps, all_gone + 1);
    }
    Ok(())
}

/// At the length limit, end of sentence with probability 0: forced, it is a candidate all the same; renormalised, it is none.
fn an_impossible_end_of_sentence_at_the_limit(context: &Context) -> Result<()> {
    for (forced_eos, renormalize) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let own = SlotOptions { max_len: 3, forced_eos, renormalize, ..options() };
        let device = Fixture::new(context, SHAPE, 1030, 32)?;
        run_all(device, &[(0, own), (2, SlotOptions { beam_size: 2, ..own })], 12, |step, logits| {
            for (row, logits) in logits.chunks_mut(1030).enumerate() {
                if step < 2 || row % 3 != 1 {
                    logits[2] = f32::NEG_INFINITY;
                }
                if step == 2 && row == 2 {
                    logits.fill(f32::NEG_INFINITY);
                }
            }
        })?;
    }
    Ok(())
}

/// A step recorded once serves all steps, with slots that come and go.
fn a_recorded_step_replays(context: &Context) -> Result<()> {
    let vocab_size = 1500;
    let mut device = Fixture::new(context, SHAPE, vocab_size, 32)?;
    let (mut fast, mut data) = (on_cpu(SHAPE, vocab_size)?, Data::new(21));
    let recorder = context.clone();
    let before = context.counters();
    let graph = recorder.capture(|| device.step(SHAPE.slots))?;
    let recorded = context.counters();
    assert_eq!(recorded.launches - before.launches, 1, "a step is one launch");
    assert_eq!((recorded.allocations, recorded.copies), (before.allocations, before.copies));
    for step in 0..30 {
        let free: Vec<(u32, SlotOptions)> =
            (0..3u32).filter(|slot| fast.live[*slot as usize] == 0).map(|slot| (slot, options())).collect();
        if step % 4 == 0 {
            cpu::start_slots(&free, &mut fast);
            device.start(&free)?;
        }
        let (logits, attention) = data.draw(SHAPE, vocab_size);
        cpu::beam_step(&logits, &attention, &mut fast);
        device.write(&logits, &attention)?;
        // SAFETY: the fixture, which lives on, owns all that the step names.
        unsafe { context.replay(&graph)? };
        assert_same_state(&device.download()?, &fast);
    }
    Ok(())
}

/// What one slot's search leaves, to the bit.
fn bits(state: &Search<Cpu>, slot: usize) -> Vec<u32> {
    let shape = state.shape;
    let history = shape.max_len * shape.beam_size;
    let floats = |values: &[f32], len: usize| bytemuck::cast_slice::<_, u32>(&values[slot * len..][..len]).to_vec();
    let mut bits = state.tokens[slot * history..][..history].to_vec();
    bits.extend(floats(&state.log_probs, history));
    bits.extend(floats(&state.cum_log_probs, shape.beam_size));
    bits.extend(floats(&state.coverage, shape.beam_size * shape.max_src_len));
    bits.extend(
        &state.finished[slot * shape.beam_size * words::<Finished>()..][..shape.beam_size * words::<Finished>()],
    );
    bits
}

fn a_slot_alone_gets_the_bits_it_gets_in_company(context: &Context) -> Result<()> {
    let vocab_size = 2500;
    let one = SessionShape { slots: 1, rows: 5, ..SHAPE };
    let mut alone = Fixture::new(context, one, vocab_size, 32)?;
    let mut company = Fixture::new(context, SHAPE, vocab_size, 32)?;
    alone.start(&[(0, options())])?;
    company.start(&[(0, SlotOptions { beam_size: 3, ..options() }), (1, options())])?;
    company.start(&[(2, options())])?;
    let mut data = Data::new(8);
    for _ in 0..4 {
        let (logits, attention) = data.draw(SHAPE, vocab_size);
        let first = company.download()?.rows.live().iter().position(|row| row.slot == 2);
        let Some(first) = first else { break };
        company.write(&logits, &attention)?;
        company.step(SHAPE.slots)?;
        let (mut own, mut own_attention) = (logits[first * vocab_size..].to_vec(), attention[first * 7..].to_vec());
        own.resize(one.rows * vocab_size, f32::NAN);
        own_attention.resize(one.rows * 7, f32::NAN);
        alone.write(&own, &own_attention)?;
        alone.step(1)?;
        assert_eq!(bits(&alone.download()?, 0), bits(&company.download()?, 2));
    }
    Ok(())
}

fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
    let refuse = |outcome: Result<()>, message: &str| assert_eq!(outcome.unwrap_err().to_string(), message);
    let mut device = Fixture::new(context, SHAPE, 50, 128)?;
    let long = SlotOptions { max_len: 12, ..options() };
    refuse(device.start(&[(0, long)]), "start_slots: max_len: expected 1 to 11, got 12");
    let wide = SlotOptions { beam_size: 6, ..options() };
    refuse(device.start(&[(0, wide)]), "start_slots: beam size: expected 1 to 5, got 6");
    let source = SlotOptions { src_len: 8, ..options() };
    refuse(device.start(&[(0, source)]), "start_slots: src_len: expected 0 to 7, got 8");
    refuse(device.start(&[(3, options())]), "start_slots: slot: expected 0 to 2, got 3");
    device.stride = 49;
    refuse(device.step(3), "beam_step: logits_stride: expected at least 50, got 49");
    device.stride = 51;
    refuse(device.step(3), "beam_step: logits: expected at least 764, got 750");
    let too_wide = SessionShape { beam_size: 65, rows: 195, ..SHAPE };
    let refused = BeamStepScratch::new(context, too_wide, 50).map(|_| ());
    refuse(refused, "beam_step: beam size: expected 1 to 64, got 65");
    Ok(())
}

device_tests! {
    options: all_options;
    entering: slots_enter_and_leave;
    equal: equal_logits;
    small: a_vocabulary_smaller_than_the_candidate_list;
    not_finite: logits_that_are_not_finite_end_their_slot_only;
    no_candidate: without_any_candidate;
    no_end: an_impossible_end_of_sentence_at_the_limit;
    shared: shared_cases;
    replay: a_recorded_step_replays;
    batch: a_slot_alone_gets_the_bits_it_gets_in_company;
    refused: wrong_shapes_are_refused;
}

#[cfg(emulated)]
#[test]
fn every_logit_of_a_live_row_is_read_once() -> Result<()> {
    for (stride, threads) in [(8001, 128), (8004, 128), (8001, 32)] {
        let context = crate::cuda::open_emulated()?;
        let mut device = Fixture::with_stride(&context, SHAPE, 8001, stride, threads)?;
        device.start(&[(0, options()), (2, options())])?;
        let mut data = Data::new(4);
        for _ in 0..3 {
            let rows = device.download()?.rows.live().len();
            let (logits, attention) = data.draw(SHAPE, 8001);
            device.write(&logits, &attention)?;
            context.watch(device.logits.view())?;
            device.step(SHAPE.slots)?;
            assert_eq!(context.watched_bytes()?, (rows * 8001 * 4) as u64, "{rows} rows, stride {stride}");
        }
    }
    Ok(())
}

#[cfg(emulated)]
#[test]
fn the_order_of_blocks_does_not_matter() -> Result<()> {
    let mut seen: Option<Vec<u32>> = None;
    for seed in 0..6 {
        let context = Context::new(Box::new(crate::cuda::emulated::EmulatedDevice::new(seed)?));
        let mut device = Fixture::new(&context, SHAPE, 3000, 32)?;
        device.start(&[(0, options()), (1, options()), (2, SlotOptions { beam_size: 2, ..options() })])?;
        let mut data = Data::new(6);
        for _ in 0..4 {
            let (logits, attention) = data.draw(SHAPE, 3000);
            device.write(&logits, &attention)?;
            device.step(SHAPE.slots)?;
        }
        let state = device.download()?;
        let all = (0..SHAPE.slots).flat_map(|slot| bits(&state, slot)).collect();
        match &seen {
            None => seen = Some(all),
            Some(first) => assert_eq!(&all, first, "seed {seed}"),
        }
    }
    Ok(())
}
