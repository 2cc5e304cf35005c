//! Cases of the op `beam_step`: searches on a device, step by step beside the CPU's fast path and its reference.

mod draws;
mod fixture;
mod run;

pub use draws::{Data, draw_extras};
pub use fixture::Fixture;
pub use run::{Outcome, compare_states, run_all};

use crate::Result;
use crate::backend::{
    Dtype, FinishKind, LengthPenaltyKind, Search, SessionShape, SlotOptions, SpecialIds, Stages, StopKind, Strategy,
};
use crate::cpu::Cpu;
use crate::validate::kernels::near_ties;
use crate::validate::probe::{Case, Probe};

/// What most cases search in.
pub const SHAPE: SessionShape =
    SessionShape { slots: 3, beam_size: 5, max_len: 11, max_src_len: 7, rows: 15, keep_attention: true };
/// Its ids.
pub const IDS: SpecialIds = SpecialIds { eos_id: 2, pad_id: 0, decoder_start_id: 1 };

/// An empty search on the CPU.
///
/// # Errors
/// Memory is short.
pub fn on_cpu(shape: SessionShape, vocab_size: usize) -> Result<Search<Cpu>> {
    let cpu = Cpu::new(1, Dtype::F32)?;
    reserved(&cpu, Search::open(&cpu, shape, vocab_size, IDS))
}

/// With room for whatever a step may read beside the logits.
///
/// # Errors
/// Memory is short.
pub fn reserved(cpu: &Cpu, search: Result<Search<Cpu>>) -> Result<Search<Cpu>> {
    let mut search = search?;
    search.reserve(cpu, Stages { bans: true, ranked: true, samples: true, ..Stages::default() })?;
    Ok(search)
}

/// Options that switch on what can be, for sessions of 5 beams and 11 tokens or more.
pub fn options() -> SlotOptions {
    SlotOptions {
        beam_size: 5,
        length_penalty: LengthPenaltyKind::Gnmt as u32,
        alpha: 0.7,
        coverage_penalty: 0.2,
        stop: StopKind::Heuristic as u32,
        max_len: 9,
        src_len: 6,
        ..bytemuck::Zeroable::zeroed()
    }
}

/// A length penalty with its exponent.
const PENALTIES: [(LengthPenaltyKind, f32); 5] = [
    (LengthPenaltyKind::None, 0.7),
    (LengthPenaltyKind::Gnmt, 0.7),
    (LengthPenaltyKind::Gnmt, -0.4),
    (LengthPenaltyKind::Power, 1.3),
    (LengthPenaltyKind::PowerOfAll, 0.8),
];
const STOPS: [StopKind; 4] = [StopKind::First, StopKind::Heuristic, StopKind::Exact, StopKind::Top];
/// Which candidates count, and how many must have finished; 0: as many as there are beams.
const FINISHES: [(FinishKind, u32); 4] =
    [(FinishKind::Replace, 0), (FinishKind::Shrink, 0), (FinishKind::Replace, 3), (FinishKind::Shrink, 5)];
const BEAMS: [u32; 3] = [1, 2, 5];
const LENGTHS: [(u32, u32); 4] = [(0, 9), (4, 11), (0, 1), (3, 3)];
const COVERAGE: [f32; 3] = [0.2, 0.0, 0.7];
const REWARDS: [f32; 3] = [0.0, 0.3, -0.2];
/// Strategy, whether another distribution ranks, bans hold, the limit cuts; groups, of one or two beams; tokens of constraints.
const KINDS: [(Strategy, u32, u32, u32, u32, u32); 11] = [
    (Strategy::Beam, 0, 0, 0, 0, 0),
    (Strategy::Beam, 1, 0, 1, 0, 0),
    (Strategy::Beam, 0, 1, 0, 0, 0),
    (Strategy::Beam, 1, 1, 1, 0, 0),
    (Strategy::Sample, 0, 0, 0, 0, 0),
    (Strategy::Beam, 0, 0, 0, 2, 0),
    (Strategy::Beam, 1, 1, 0, 4, 0),
    (Strategy::Beam, 0, 0, 0, 0, 1),
    (Strategy::Beam, 0, 1, 0, 0, 3),
    (Strategy::Beam, 1, 0, 1, 0, 2),
    (Strategy::Beam, 0, 0, 1, 0, 40),
];
/// Fewer tokens than candidates, few tokens, and more than one chunk of the smallest block.
const VOCABULARIES: [usize; 4] = [4, 7, 331, 1100];
const BLOCKS: [u32; 4] = [32, 64, 96, 128];

/// What a model says that is hard on a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Say {
    /// Outliers, -inf, and an end of sentence that is likely at times.
    Usual,
    /// The same for every token.
    Equal,
    /// A few values in a row, over and over.
    Ties,
    /// Nothing but -inf in the third step.
    Nothing,
    /// NaN at the last token of the first row in the second step.
    NotANumber,
    /// +infinity there.
    Infinity,
    /// The least number for every token, beside which nothing is left of a logarithm.
    Lowest,
}

const SAYS: [Say; 7] = [Say::Usual, Say::Equal, Say::Ties, Say::Nothing, Say::NotANumber, Say::Infinity, Say::Lowest];

impl Say {
    fn change(self, step: usize, logits: &mut [f32]) {
        match self {
            Say::Usual => {}
            Say::Equal => logits.fill(1.5),
            Say::Lowest => logits.fill(f32::MIN),
            // In steps of another size in every row: scores of different histories that are equal but for their rounding are
            // not in question.
            Say::Ties => {
                let vocab_size = logits.len() / SHAPE.rows;
                for (row, logits) in logits.chunks_mut(vocab_size).enumerate() {
                    let size = 0.5 + 0.0137 * step as f32 + 0.00311 * row as f32;
                    logits.iter_mut().for_each(|z| *z = (*z / size).round() * size);
                }
            }
            Say::Nothing if step == 2 => logits.fill(f32::NEG_INFINITY),
            Say::NotANumber if step == 1 => logits[logits.len() / SHAPE.rows - 1] = f32::NAN,
            Say::Infinity if step == 1 => logits[logits.len() / SHAPE.rows - 1] = f32::INFINITY,
            Say::Nothing | Say::NotANumber | Say::Infinity => {}
        }
    }
}

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_options(probe)?;
    check_banks(probe)?;
    check_groups(probe)?;
    check_stops(probe)?;
    check_sizes(probe)?;
    check_many_slots(probe)?;
    near_ties::check(probe)
}

/// Every kind of option in many combinations, and every kind of thing that a model may say.
pub fn check_options(probe: &mut Probe<'_>) -> Result<()> {
    let sizes = [
        PENALTIES.len(),
        STOPS.len(),
        BEAMS.len(),
        LENGTHS.len(),
        COVERAGE.len(),
        REWARDS.len(),
        6,
        SAYS.len(),
        4,
        KINDS.len(),
        FINISHES.len(),
    ];
    // All combinations would be a hundred thousand searches: in pairs on every grid.
    for (seed, chosen) in crate::validate::probe::Grid::Pairwise.combine(sizes).into_iter().enumerate() {
        let [penalty, stop, beams, lengths, coverage, reward, flags, say, size, kind_of, finish] = chosen;
        let (strategy, ranked, banned, cut, groups, constraints) = KINDS[kind_of];
        // A search in groups does not shrink, and samples all go on.
        let is_plain = strategy == Strategy::Beam && groups == 0;
        let (finish, patience) = if is_plain { FINISHES[finish] } else { FINISHES[0] };
        let ((kind, alpha), (min_len, max_len)) = (PENALTIES[penalty], LENGTHS[lengths]);
        let own = SlotOptions {
            length_penalty: kind as u32,
            alpha,
            stop: STOPS[stop] as u32,
            finish: finish as u32,
            patience,
            beam_size: if groups == 0 { BEAMS[beams] } else { 4 },
            groups,
            diversity: 0.7777,
            min_len,
            max_len,
            coverage_penalty: COVERAGE[coverage],
            word_reward: REWARDS[reward],
            forced_eos: flags as u32 & 1,
            renormalize: flags as u32 >> 1 & 1,
            free_first: flags as u32 >> 2,
            takes_pad: u32::from(seed.is_multiple_of(3)),
            strategy: strategy as u32,
            ranked,
            banned,
            cut,
            constraints,
            ..options()
        };
        let (say, vocab_size, threads) = (SAYS[say], VOCABULARIES[size], BLOCKS[seed % BLOCKS.len()]);
        let what = format!("{say:?} logits, {vocab_size} tokens, {threads} threads, {own:?}");
        probe.case("options", Dtype::F32, what, |case| {
            let short = SlotOptions { src_len: 1, ..own };
            search(case, SHAPE, [vocab_size, vocab_size], threads, &[(0, own), (2, short)], seed as u64, say)
        })?;
    }
    Ok(())
}

/// Tokens of constraints: with 5 beams, more of them than banks, as many, and fewer.
const CONSTRAINTS: [u32; 4] = [1, 2, 4, 7];

/// Constraints in a search whose beams all live on, over banks that are full, short or empty.
pub fn check_banks(probe: &mut Probe<'_>) -> Result<()> {
    for (i, constraints) in CONSTRAINTS.into_iter().enumerate() {
        for (seed, vocab_size) in [12, 331, 1100].into_iter().enumerate() {
            let own = SlotOptions { constraints, min_len: 4, stop: StopKind::Exact as u32, ..options() };
            let other =
                SlotOptions { constraints: constraints % 3 + 1, banned: 1, cut: 1, ranked: 1, takes_pad: 1, ..own };
            let what = format!("{constraints} tokens of constraints, {vocab_size} tokens");
            probe.case("banks", Dtype::F32, what, |case| {
                let slots = [(0, own), (1, other), (2, SlotOptions { renormalize: 1, ..own })];
                let (sizes, threads) = ([vocab_size, vocab_size], BLOCKS[(i + seed) % BLOCKS.len()]);
                search(case, SHAPE, sizes, threads, &slots, (10 * i + seed) as u64, Say::Usual)
            })?;
        }
    }
    Ok(())
}

/// Groups of several beams, over so many steps that the beams of a group come from different ones of the step before.
pub fn check_groups(probe: &mut Probe<'_>) -> Result<()> {
    let shape = SessionShape { beam_size: 6, rows: 3 * 6, ..SHAPE };
    for (seed, (vocab_size, groups)) in
        [(12, 2), (12, 3), (331, 2), (331, 3), (1100, 2), (1100, 3)].into_iter().enumerate()
    {
        let own = SlotOptions { beam_size: 6, groups, diversity: 0.31, min_len: 6, coverage_penalty: 0.0, ..options() };
        let ranked = SlotOptions { ranked: 1, banned: 1, groups: 5 - groups, ..own };
        probe.case("groups", Dtype::F32, format!("{groups} of 6 beams, {vocab_size} tokens"), |case| {
            let slots = [(0, own), (1, ranked), (2, SlotOptions { cut: 1, renormalize: 1, ..own })];
            let (sizes, threads) = ([vocab_size, vocab_size], BLOCKS[seed % BLOCKS.len()]);
            search(case, shape, sizes, threads, &slots, 70 + seed as u64, Say::Usual)
        })?;
    }
    Ok(())
}

/// Each rule of stopping with each of what counts as finished, in searches that end by it: plain, in groups, with constraints.
pub fn check_stops(probe: &mut Probe<'_>) -> Result<()> {
    let rules = STOPS.into_iter().flat_map(|stop| FINISHES.map(|finish| (stop, finish)));
    for (seed, (stop, (finish, patience))) in rules.enumerate() {
        let own = SlotOptions { stop: stop as u32, patience, max_len: 11, ..options() };
        let plain = SlotOptions { finish: finish as u32, ..own };
        // Little diversity, so that at times a later group is ahead.
        let groups = SlotOptions { beam_size: 4, groups: 2, diversity: 0.0531, ..own };
        let constrained = SlotOptions { constraints: 1, ..own };
        let turns = [(9, 0.7, 0.3), (40, -0.4, 0.0), (331, 0.7, -0.2), (12, 0.7, -1.1)];
        for (turn, (vocab_size, alpha, word_reward)) in turns.into_iter().enumerate() {
            let [plain, groups, constrained] =
                [plain, groups, constrained].map(|own| SlotOptions { alpha, word_reward, ..own });
            let what = format!("{stop:?}, {finish:?}, patience {patience}, {vocab_size} tokens");
            probe.case("stops", Dtype::F32, what, |case| {
                let slots = [(0, plain), (1, groups), (2, constrained)];
                search(case, SHAPE, [vocab_size, vocab_size], 32, &slots, (100 + 3 * seed + turn) as u64, Say::Usual)
            })?;
        }
    }
    Ok(())
}

/// Vocabulary, beams, threads: around a chunk's size, up to the most beams.
const SIZES: [(usize, usize, u32); 8] = [
    (1023, 3, 32),
    (1024, 1, 32),
    (1025, 16, 32),
    (2049, 33, 64),
    (4097, 8, 128),
    (8001, 4, 128),
    (1301, 64, 32),
    (100, 64, 128),
];
const LARGE_SIZES: [(usize, usize, u32); 2] = [(58101, 4, 128), (58101, 64, 128)];

/// Vocabularies around a chunk's size, beams from 1 to 64, rows that start anywhere or at multiples of 16 bytes.
pub fn check_sizes(probe: &mut Probe<'_>) -> Result<()> {
    for (seed, (vocab_size, beam_size, threads)) in probe.grid().shapes(&SIZES, &LARGE_SIZES).into_iter().enumerate() {
        let shape = SessionShape { slots: 3, beam_size, rows: 3 * beam_size, max_len: 5, ..SHAPE };
        let own = SlotOptions { beam_size: beam_size as u32, max_len: 5, ..options() };
        let fewer = SlotOptions { beam_size: 1 + beam_size as u32 / 2, max_len: 3, renormalize: 1, min_len: 2, ..own };
        let constrained = SlotOptions { constraints: 1 + 11 * seed as u32 % 64, ..own };
        for stride in [vocab_size, vocab_size.next_multiple_of(4) + 4] {
            let what = format!("{vocab_size} tokens, {stride} apart, {beam_size} beams, {threads} threads");
            probe.case("sizes", Dtype::F32, what, |case| {
                let slots = [(0, own), (1, fewer), (2, constrained)];
                search(case, shape, [vocab_size, stride], threads, &slots, seed as u64, Say::Usual)
            })?;
        }
    }
    Ok(())
}

fn search(
    case: &mut Case<'_>,
    shape: SessionShape,
    [vocab_size, stride]: [usize; 2],
    threads: u32,
    slots: &[(u32, SlotOptions)],
    seed: u64,
    say: Say,
) -> Result<()> {
    let device = Fixture::with_stride(case.context, shape, vocab_size, stride, threads)?;
    let outcome = run_all(device, slots, seed, |step, logits| say.change(step, logits))?;
    case.add_time(0, outcome.time);
    case.keep(outcome.found);
    Ok(())
}

/// More slots than a block has threads, most of them idle, and the list of rows across them.
pub fn check_many_slots(probe: &mut Probe<'_>) -> Result<()> {
    let shape =
        SessionShape { slots: 77, beam_size: 3, rows: 77 * 3, max_len: 5, max_src_len: 2, keep_attention: false };
    let own = SlotOptions { max_len: 5, beam_size: 3, src_len: 2, ..options() };
    let slots: Vec<(u32, SlotOptions)> = [76, 3, 0, 31, 32, 63, 64, 75, 40]
        .into_iter()
        .map(|slot| (slot, SlotOptions { beam_size: 1 + slot % 3, max_len: 1 + slot % 5, ..own }))
        .collect();
    for threads in [32, 64] {
        probe.case("slots", Dtype::F32, format!("77 slots, {threads} threads"), |case| {
            search(case, shape, [40, 40], threads, &slots, 2, Say::Usual)
        })?;
    }
    Ok(())
}
