//! The tests, and what those of other devices share with them.

use super::*;
use crate::backend::{Dtype, FinishKind, Finished, LengthPenaltyKind, SamplePick, SpecialIds, StopKind, Strategy};
use crate::validate::kernels::beam_step::{compare_states, draw_extras, reserved};

const SHAPE: SessionShape =
    SessionShape { slots: 3, beam_size: 5, max_len: 11, max_src_len: 7, rows: 15, keep_attention: true };
const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 0, decoder_start_id: 1 };

/// Options that switch on what can be.
pub fn options() -> SlotOptions {
    SlotOptions {
        beam_size: 5,
        length_penalty: LengthPenaltyKind::Gnmt as u32,
        alpha: 0.7,
        coverage_penalty: 0.2,
        word_reward: 0.0,
        stop: StopKind::Heuristic as u32,
        min_len: 0,
        max_len: 9,
        forced_eos: 0,
        renormalize: 0,
        src_len: 6,
        ..SlotOptions::default()
    }
}

fn search(vocab_size: usize) -> Search<Cpu> {
    let cpu = Cpu::new(2, Dtype::F32).expect("two threads start");
    reserved(&cpu, Search::open(&cpu, SHAPE, vocab_size, IDS)).expect("memory is there")
}

/// Pseudo-random values in [0, 1), the same on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Logits with outliers, -inf and a likely end of sentence.
    fn logits(&mut self, vocab_size: usize) -> Vec<f32> {
        let mut logits: Vec<f32> = (0..SHAPE.rows * vocab_size).map(|_| self.next() * 9.0 - 3.0).collect();
        for (i, z) in logits.iter_mut().enumerate() {
            match i % 29 {
                3 => *z = f32::NEG_INFINITY,
                17 => *z += 4.0,
                _ => {}
            }
            if i % vocab_size == 2 && self.next() < 0.4 {
                *z = 8.0;
            }
        }
        logits
    }

    fn attention(&mut self) -> Vec<f32> {
        (0..SHAPE.rows * SHAPE.max_src_len).map(|_| self.next() * 0.3).collect()
    }
}

/// Holds two states to each other: decisions equal, numbers close.
#[track_caller]
pub fn assert_same_state(actual: &Search<Cpu>, expected: &Search<Cpu>) {
    let found = compare_states(actual, expected);
    assert!(found.is_ok(), "{found:?}");
}

/// Runs both to the end on the same logits; returns the number of steps.
fn run_both(vocab_size: usize, slots: &[(u32, SlotOptions)], mut logits: impl FnMut(usize) -> Vec<f32>) -> usize {
    let (mut fast, mut naive) = (search(vocab_size), search(vocab_size));
    start_slots(slots, &mut fast);
    start_slots(slots, &mut naive);
    let mut noise = Noise(77);
    let mut steps = 0;
    while !fast.rows.live().is_empty() {
        let (logits, attention) = (logits(steps), noise.attention());
        draw_extras(&mut fast, steps as u64);
        draw_extras(&mut naive, steps as u64);
        beam_step(&logits, &attention, &mut fast);
        reference(&logits, &attention, &mut naive);
        assert_same_state(&fast, &naive);
        steps += 1;
        assert!(steps <= SHAPE.max_len, "the search does not end");
    }
    steps
}

/// Every kind of option in many combinations, for sessions of 5 beams and 11 tokens or more.
pub fn option_cases() -> Vec<SlotOptions> {
    let mut cases = Vec::new();
    for length_penalty in 0..3 {
        for stop in 0..3 {
            for beam_size in [1, 2, 5] {
                for (min_len, max_len) in [(0, 9), (4, 11), (0, 1), (3, 3)] {
                    let alpha = [0.7, 1.3, -0.4][stop as usize];
                    let base = options();
                    cases.push(SlotOptions { length_penalty, alpha, stop, beam_size, min_len, max_len, ..base });
                }
            }
        }
    }
    for (flags, options) in cases.iter().enumerate().step_by(7).map(|(i, o)| (i / 7 % 8, *o)).collect::<Vec<_>>() {
        cases.push(SlotOptions {
            forced_eos: u32::from(flags & 1 != 0),
            renormalize: u32::from(flags & 2 != 0),
            free_first: u32::from(flags & 5 == 4),
            word_reward: [0.0, 0.3, -0.2][flags % 3],
            coverage_penalty: if flags & 4 != 0 { 0.0 } else { 0.7 },
            ..options
        });
    }
    for (i, options) in cases.iter().enumerate().step_by(3).map(|(i, o)| (i / 3, *o)).collect::<Vec<_>>() {
        cases.push(SlotOptions {
            length_penalty: if i % 2 == 0 { LengthPenaltyKind::PowerOfAll as u32 } else { options.length_penalty },
            word_reward: [0.2, -0.3, 0.0][i % 3],
            stop: if i % 4 < 2 { StopKind::Top as u32 } else { options.stop },
            finish: if i % 5 < 2 { FinishKind::Shrink as u32 } else { FinishKind::Replace as u32 },
            prefix_len: [0, 2, 0, 1][i % 4],
            patience: [0, 1, 4, 5][i / 2 % 4],
            cut: (i / 3 % 2) as u32,
            ..options
        });
    }
    for (i, options) in cases.iter().enumerate().step_by(5).map(|(i, o)| (i / 5, *o)).collect::<Vec<_>>() {
        let flag = |bit: usize| u32::from((i >> bit) & 1 != 0);
        cases.push(SlotOptions { cut: flag(0), ranked: flag(1), banned: flag(2), ..options });
        cases.push(SlotOptions { cut: flag(0), strategy: Strategy::Sample as u32, finish: 0, ..options });
        let (groups, diversity) = [(2, 0.37), (4, 1.21), (4, 30.0)][i % 3];
        cases.push(SlotOptions {
            beam_size: 4,
            groups,
            diversity,
            ranked: flag(1),
            banned: flag(2),
            finish: 0,
            ..options
        });
    }
    cases
}

#[test]
fn fast_path_equals_reference_under_all_options() {
    let cases = option_cases();
    let mut steps = 0;
    for (seed, options) in cases.iter().enumerate() {
        for vocab_size in [4, 7, 331] {
            let mut noise = Noise(seed as u64);
            let short = SlotOptions { src_len: 1, ..*options };
            let slots = [(0, *options), (2, short)];
            steps += run_both(vocab_size, &slots, |_| noise.logits(vocab_size));
        }
    }
    assert!(steps > 3 * cases.len(), "searches end after {steps} steps: too early to test anything");
}

#[test]
fn slots_enter_and_leave_independently() {
    let vocab_size = 23;
    let (mut fast, mut naive) = (search(vocab_size), search(vocab_size));
    let mut noise = Noise(5);
    for step in 0..40 {
        let free: Vec<(u32, SlotOptions)> = (0..3u32)
            .filter(|slot| fast.live[*slot as usize] == 0 && (step + slot) % 3 == 0)
            .map(|slot| (slot, SlotOptions { beam_size: 1 + (step + slot) % 5, ..options() }))
            .collect();
        start_slots(&free, &mut fast);
        start_slots(&free, &mut naive);
        let (logits, attention) = (noise.logits(vocab_size), noise.attention());
        beam_step(&logits, &attention, &mut fast);
        reference(&logits, &attention, &mut naive);
        assert_same_state(&fast, &naive);
    }
}

#[test]
fn equal_logits_rank_by_flat_index() {
    let vocab_size = 40;
    let mut state = search(vocab_size);
    start_slots(&[(1, options())], &mut state);
    let attention = vec![0.1; SHAPE.rows * SHAPE.max_src_len];
    beam_step(&vec![1.5; SHAPE.rows * vocab_size], &attention, &mut state);
    // Padding (0) is masked; end of sentence (2) finishes; of the others the lowest ids stay live.
    assert_eq!(state.tokens[SHAPE.max_len * SHAPE.beam_size..][..5], [1, 3, 4, 5, 6]);
    assert_eq!((state.live[1], state.finished_count[1]), (5, 1));
    run_both(vocab_size, &[(0, options()), (1, options())], |_| vec![1.5; SHAPE.rows * vocab_size]);
}

#[test]
fn a_vocabulary_smaller_than_the_candidate_list_works() {
    for vocab_size in [3, 4] {
        let mut noise = Noise(9);
        let exact = SlotOptions { stop: StopKind::Exact as u32, ..options() };
        run_both(vocab_size, &[(0, options()), (2, exact)], |_| noise.logits(vocab_size));
    }
}

#[test]
fn logits_that_are_not_finite_end_their_slot_only() {
    let vocab_size = 31;
    for value in [f32::NAN, f32::INFINITY] {
        let mut noise = Noise(3);
        let (mut fast, mut naive) = (search(vocab_size), search(vocab_size));
        let slots = [(0, options()), (1, options()), (2, options())];
        start_slots(&slots, &mut fast);
        start_slots(&slots, &mut naive);
        for step in 0..2 {
            let (mut logits, attention) = (noise.logits(vocab_size), noise.attention());
            // Keep all alive in the first step, then spoil one token of slot 1's fourth beam.
            logits.iter_mut().skip(2).step_by(vocab_size).for_each(|eos| *eos = -5.0);
            if step == 1 {
                logits[8 * vocab_size + 19] = value;
            }
            beam_step(&logits, &attention, &mut fast);
            reference(&logits, &attention, &mut naive);
            assert_same_state(&fast, &naive);
        }
        let failure = bytemuck::cast_slice::<_, Failure>(&fast.failures)[1];
        assert_eq!((failure.failed, failure.step, failure.beam), (1, 2, 3));
        assert_eq!(failure.value.is_nan(), value.is_nan());
        assert_eq!((fast.live[0] > 0, fast.live[1], fast.live[2] > 0), (true, 0, true));
    }
}

#[test]
fn a_distribution_that_cannot_be_ranked_ends_its_slot_only() {
    let mut state = search(31);
    let ranked = SlotOptions { ranked: 1, ..options() };
    let sampled = SlotOptions { strategy: Strategy::Sample as u32, ..options() };
    start_slots(&[(0, ranked), (1, ranked), (2, sampled)], &mut state);
    draw_extras(&mut state, 3);
    state.ranked[31..62].fill(f32::NAN);
    bytemuck::cast_slice_mut::<_, SamplePick>(&mut state.picks)[2 * SHAPE.beam_size + 3] =
        SamplePick { token: SamplePick::NONE, log_prob: f32::INFINITY, ranked_log_prob: 0.0 };
    beam_step(&Noise(1).logits(31), &Noise(2).attention(), &mut state);
    let failures = bytemuck::cast_slice::<_, Failure>(&state.failures);
    assert_eq!((failures[0].failed, failures[1].failed, failures[2].failed), (0, 1, 1));
    assert!(failures[1].value.is_nan() && failures[2].value == f32::INFINITY && failures[2].beam == 3);
    assert_eq!((state.live[0], state.live[1], state.live[2]), (5, 0, 0));
}

/// Samples finish, end as they are, or go on with the number they started with.
#[test]
fn samples_keep_their_number_and_take_nothing_but_their_picks() {
    let mut state = search(31);
    start_slots(&[(0, SlotOptions { strategy: Strategy::Sample as u32, max_len: 3, ..options() })], &mut state);
    assert_eq!(state.rows.live().len(), 5);
    let pick = |token, log_prob| SamplePick { token, log_prob, ranked_log_prob: log_prob };
    let nothing = pick(SamplePick::NONE, f32::NEG_INFINITY);
    for picks in [
        [pick(7, -1.0), pick(2, -2.0), pick(8, -3.0), pick(9, -4.0), pick(9, -4.5)],
        [nothing, pick(5, -0.5), pick(2, -0.25), pick(6, -0.125), nothing],
        [pick(2, -1.0), pick(4, -1.0), nothing, nothing, nothing],
    ] {
        bytemuck::cast_slice_mut::<_, SamplePick>(&mut state.picks)[..5].copy_from_slice(&picks);
        beam_step(&Noise(1).logits(31), &Noise(2).attention(), &mut state);
    }
    assert_eq!((state.live[0], state.finished_count[0]), (0, 5));
    let finished = &bytemuck::cast_slice::<_, Finished>(&state.finished)[..5];
    let mut ends: Vec<(f32, u32, u32, u32)> =
        finished.iter().map(|f| (f.search_log_prob, f.length, f.has_eos.min(1), f.truncated)).collect();
    ends.sort_by(|a, b| b.0.total_cmp(&a.0));
    // By sample: 0 ends without a token, 1 at once, 2 goes on and ends at the limit, 3 in the second step, 4 at the limit
    // without end of sentence.
    let expected = [(-1.0, 1, 0, 1), (-2.0, 1, 1, 0), (-4.25, 2, 1, 0), (-4.5, 3, 1, 1), (-5.625, 3, 0, 1)];
    assert_eq!(ends, expected);
}

/// Tokens and scores of a slot's live beams after a step.
fn live_beams(state: &Search<Cpu>, slot: usize, beams: std::ops::Range<usize>) -> (Vec<u32>, Vec<f32>) {
    let step = state.step[slot] as usize;
    let tokens = &state.tokens[(slot * SHAPE.max_len + step - 1) * SHAPE.beam_size..][beams.clone()];
    (tokens.to_vec(), state.cum_log_probs[slot * SHAPE.beam_size..][beams].to_vec())
}

#[test]
fn the_first_group_searches_as_if_it_were_alone_and_later_ones_avoid_its_picks() {
    let vocab_size = 61;
    let mut noise = Noise(12);
    let alone = SlotOptions { beam_size: 2, ..options() };
    let grouped = SlotOptions { beam_size: 4, groups: 2, ..options() };
    let slots =
        [(0, alone), (1, SlotOptions { diversity: 50.0, ..grouped }), (2, SlotOptions { diversity: 0.0, ..grouped })];
    let mut state = search(vocab_size);
    start_slots(&slots, &mut state);
    assert_eq!(state.live, [1, 2, 2]);
    for _ in 0..5 {
        // Every live row of a step has the same logits, without end of sentence.
        let mut row: Vec<f32> = (0..vocab_size).map(|_| noise.next() * 9.0).collect();
        row[IDS.eos_id as usize] = -50.0;
        beam_step(&row.repeat(SHAPE.rows), &vec![0.1; SHAPE.rows * SHAPE.max_src_len], &mut state);
        let first = live_beams(&state, 0, 0..2);
        assert_eq!(state.live, [2, 4, 4]);
        assert_eq!(live_beams(&state, 1, 0..2), first);
        let (avoiding, _) = live_beams(&state, 1, 2..4);
        assert!(avoiding.iter().all(|token| !first.0.contains(token)), "{avoiding:?} beside {first:?}");
        // Without a penalty the groups search the same.
        assert_eq!(live_beams(&state, 2, 0..2), first);
        assert_eq!(live_beams(&state, 2, 2..4), first);
    }
}

#[test]
fn a_penalty_counts_what_earlier_groups_go_on_with() {
    // Tokens 3, 4, 5 by one apart; three groups of one beam, 0.75 for each earlier pick.
    let mut row = [-30.0; 8];
    (row[3], row[4], row[5]) = (0.0, -1.0, -2.0);
    let grouped = SlotOptions { beam_size: 3, groups: 3, diversity: 0.75, ..options() };
    let mut state = search(8);
    start_slots(&[(0, grouped)], &mut state);
    beam_step(&row.repeat(SHAPE.rows), &vec![0.1; SHAPE.rows * SHAPE.max_src_len], &mut state);
    // -0.75 still beats -1, -1.5 does not.
    let (tokens, scores) = live_beams(&state, 0, 0..3);
    assert_eq!(tokens, [3, 3, 4]);
    let best = scores[0];
    assert!((scores[1] - (best - 0.75)).abs() < 1e-6 && (scores[2] - (best - 1.0)).abs() < 1e-6, "{scores:?}");
    // The model's own log-probabilities know nothing of it.
    assert_eq!(state.log_probs[0], state.log_probs[1]);
}

#[test]
fn a_slot_that_cuts_ends_what_lives_as_it_is() {
    let mut state = search(31);
    let cut = SlotOptions { cut: 1, max_len: 2, coverage_penalty: 0.0, ..options() };
    start_slots(&[(0, cut)], &mut state);
    for _ in 0..2 {
        let mut logits = vec![0.0; SHAPE.rows * 31];
        logits.chunks_mut(31).for_each(|row| row[2] = -2.0);
        beam_step(&logits, &Noise(2).attention(), &mut state);
    }
    assert_eq!((state.live[0], state.finished_count[0]), (0, 5));
    let finished = &bytemuck::cast_slice::<_, Finished>(&state.finished)[..5];
    for (beam, f) in finished.iter().enumerate() {
        assert_eq!((f.length, f.has_eos, f.truncated, f.beam), (2, 0, 1, beam as u32));
    }
}

#[test]
fn without_any_candidate_the_best_prefix_is_returned() {
    let vocab_size = 13;
    let mut noise = Noise(3);
    run_both(vocab_size, &[(0, options())], |step| {
        let mut logits = noise.logits(vocab_size);
        logits.iter_mut().skip(2).step_by(vocab_size).for_each(|eos| *eos = f32::NEG_INFINITY);
        if step == 2 { vec![f32::NEG_INFINITY; logits.len()] } else { logits }
    });
    let mut state = search(vocab_size);
    start_slots(&[(0, options())], &mut state);
    beam_step(
        &vec![f32::NEG_INFINITY; SHAPE.rows * vocab_size],
        &vec![0.0; SHAPE.rows * SHAPE.max_src_len],
        &mut state,
    );
    let finished = bytemuck::cast_slice::<_, Finished>(&state.finished)[0];
    assert_eq!((state.live[0], state.finished_count[0]), (0, 1));
    assert_eq!((finished.length, finished.has_eos, finished.truncated), (0, 0, 1));
}
