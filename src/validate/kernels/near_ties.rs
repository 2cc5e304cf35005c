//! Beam steps whose logits differ while the scores of many candidates are equal.

use super::beam_step::{Fixture, IDS, SHAPE, compare_states, on_cpu, options};
use crate::Result;
use crate::backend::{BANK_WORDS, Constraints, Dtype, Search, SessionShape, SlotOptions};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::validate::probe::Probe;

/// Logits that differ while the scores of many are equal: the lower index wins, not the larger logit.
#[derive(Clone, Copy, Debug)]
enum NearTies {
    Scattered,
    /// Where a search that starts at the front has found others.
    FarFromTheStart,
    /// The best lie one in each thread, and just as many as are kept.
    OnePerThread,
}

impl NearTies {
    /// Padding takes all of the probability, so that the normaliser is 30 exactly, whoever computes it; the scores are then near
    /// -29, where 16 neighbouring logits near 1 fall together, and later near -58 and -87.
    fn logit(self, i: usize, token: usize) -> f32 {
        let near_one = |steps: usize| 1.0 + steps as f32 * f32::EPSILON;
        match self {
            _ if token == IDS.pad_id as usize => 30.0,
            NearTies::Scattered => near_one(i * 7919 % 103),
            NearTies::FarFromTheStart if token < 2200 => -5.0,
            NearTies::FarFromTheStart => near_one(i * 7919 % 103),
            NearTies::OnePerThread if token < 128 && token % 4 < 2 => near_one(3 - token % 4),
            NearTies::OnePerThread => -5.0,
        }
    }
}

/// How the beams are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ranking {
    Together,
    InGroups,
    /// Two of the first tokens are constraints: they stand in a higher bank than all others.
    InBanks,
}

impl Ranking {
    fn options(self, own: SlotOptions) -> SlotOptions {
        match self {
            Ranking::Together => own,
            Ranking::InGroups => SlotOptions { groups: 2, diversity: 0.5, ..own },
            Ranking::InBanks => SlotOptions { constraints: 2, ..own },
        }
    }

    fn write_banks(self, search: &mut Search<Cpu>) {
        if self != Ranking::InBanks {
            return;
        }
        let phrases: [&[u32]; 2] = [&[5], &[9]];
        bytemuck::cast_slice_mut(&mut search.constraints)[0] = Constraints::new(phrases);
        search.banks.chunks_mut(BANK_WORDS).for_each(|banks| banks[..3].copy_from_slice(&[0, 1, 1]));
    }
}

/// Held to the fast path alone: which scores are equal follows from their rounding.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    for (vocab_size, beam_size, threads, kind, ranking) in [
        (1500, 5, 32, NearTies::Scattered, Ranking::Together),
        (2100, 2, 32, NearTies::Scattered, Ranking::Together),
        (4100, 64, 128, NearTies::Scattered, Ranking::Together),
        (1500, 64, 32, NearTies::Scattered, Ranking::Together),
        (9000, 4, 128, NearTies::Scattered, Ranking::Together),
        (3500, 4, 32, NearTies::FarFromTheStart, Ranking::Together),
        (1000, 16, 32, NearTies::OnePerThread, Ranking::Together),
        (1500, 4, 32, NearTies::Scattered, Ranking::InGroups),
        (3500, 4, 32, NearTies::FarFromTheStart, Ranking::InGroups),
        (1500, 5, 32, NearTies::Scattered, Ranking::InBanks),
        (4100, 16, 64, NearTies::Scattered, Ranking::InBanks),
    ] {
        let what = format!("{kind:?}, {ranking:?}, {vocab_size} tokens, {beam_size} beams, {threads} threads");
        probe.case("near ties", Dtype::F32, what, |case| {
            let shape = SessionShape { slots: 1, beam_size, rows: beam_size, max_len: 4, ..SHAPE };
            let own = SlotOptions { beam_size: beam_size as u32, max_len: 4, ..options() };
            let slots = [(0, ranking.options(own))];
            let mut device = Fixture::new(case.context, shape, vocab_size, threads)?;
            let mut fast = on_cpu(shape, vocab_size)?;
            device.start(&slots)?;
            cpu::start_slots(&slots, &mut fast);
            for step in 0..3 {
                let logit = |i: usize| kind.logit(i + step, i % vocab_size);
                let logits: Vec<f32> = (0..shape.rows * vocab_size).map(logit).collect();
                let attention = vec![0.1; shape.rows * shape.max_src_len];
                ranking.write_banks(&mut fast);
                device.write_extras(&fast)?;
                cpu::beam_step(&logits, &attention, &mut fast);
                device.write(&logits, &attention)?;
                case.launch(0, |_| device.step(1))?;
                case.keep(compare_states(&device.download()?, &fast).map_err(|what| format!("step {step}: {what}")));
            }
            Ok(())
        })?;
    }
    Ok(())
}
