//! Searches on a device, step by step beside the CPU's fast path and its reference.

use std::time::{Duration, Instant};

use crate::Result;
use crate::backend::{
    BANK_WORDS, Constraints, Dtype, Failure, Finished, LengthPenaltyKind, SamplePick, Search, SessionShape,
    SlotOptions, SpecialIds, Stages, StopKind, Strategy,
};
use crate::check::{Tolerance, compare};
use crate::cpu::{Cpu, beam_step as cpu};
use crate::cuda::beam_step::{BeamStep, BeamStepScratch, SearchViews, StartSlots};
use crate::cuda::testing::Values;
use crate::cuda::{Buffer, Context};
use crate::validate::kernels::near_ties;
use crate::validate::probe::{Case, Closeness, Probe};

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
    equipped(&cpu, Search::open(&cpu, shape, vocab_size, IDS))
}

/// With room for whatever a step may read beside the logits.
///
/// # Errors
/// Memory is short.
pub fn equipped(cpu: &Cpu, search: Result<Search<Cpu>>) -> Result<Search<Cpu>> {
    let mut search = search?;
    search.equip(cpu, Stages { bans: true, ranked: true, samples: true, ..Stages::default() })?;
    Ok(search)
}

/// Draws what a step may read beside the logits: another distribution, bans, picks. Padding is never picked.
pub fn draw_extras(search: &mut Search<Cpu>, seed: u64) {
    let mut noise = Values::new(seed);
    let (vocab_size, eos_id) = (search.vocab_size, search.ids.eos_id);
    for z in &mut search.ranked {
        *z = if noise.uniform() < 0.1 { f32::NEG_INFINITY } else { -9.0 * noise.uniform() };
    }
    for word in search.bans.iter_mut() {
        let density = if noise.uniform() < 0.05 { 1.0 } else { 0.3 };
        *word = (0..32).fold(0, |word, bit| word | u32::from(noise.uniform() < density) << bit);
    }
    draw_banks(search, &mut noise);
    for pick in bytemuck::cast_slice_mut::<_, SamplePick>(&mut search.picks) {
        let log_prob = -4.0 * noise.uniform();
        let any = (1.0 + noise.uniform() * (vocab_size - 1) as f32) as u32;
        *pick = match noise.uniform() {
            u if u < 0.05 => SamplePick { token: SamplePick::NONE, log_prob: f32::NEG_INFINITY, ranked_log_prob: 0.0 },
            u if u < 0.2 => SamplePick { token: eos_id, log_prob, ranked_log_prob: 2.0 * log_prob },
            _ => SamplePick { token: any, log_prob, ranked_log_prob: log_prob - 0.25 },
        };
    }
}

/// Draws the tokens of constraints, of one phrase, and any banks.
fn draw_banks(search: &mut Search<Cpu>, noise: &mut Values) {
    let vocab_size = search.vocab_size;
    let options: &[SlotOptions] = bytemuck::cast_slice(&search.options);
    let mut below = |limit: usize| (noise.uniform() * limit as f32) as usize % limit;
    let constraints: &mut [Constraints] = bytemuck::cast_slice_mut(&mut search.constraints);
    for (constraints, options) in constraints.iter_mut().zip(options) {
        // Now and then padding, which is never a candidate.
        let token = |id: usize| if id == IDS.eos_id as usize { 3 } else { id as u32 };
        let ids: Vec<u32> = (0..options.constraints).map(|_| token(below(vocab_size))).collect();
        *constraints = Constraints::new((!ids.is_empty()).then_some(ids.as_slice()));
    }
    for (row, banks) in search.rows.live().iter().zip(search.banks.chunks_mut(BANK_WORDS)) {
        let all = options[row.slot as usize].constraints;
        banks.iter_mut().for_each(|bank| *bank = below(all as usize + 1) as u32);
        match below(3) {
            0 => banks[0] = all,
            1 => banks[0] = 0,
            _ => {}
        }
    }
}

/// Declares the buffers of a search under the names that `Search` and `SearchViews` both give them.
macro_rules! state {
    ($($field:ident: $element:ty),*) => {
        struct State {
            $($field: Buffer<$element>,)*
            rows: Buffer<u32>,
            row_count: Buffer<u32>,
            ranked: Buffer<f32>,
            bans: Buffer<u32>,
            constraints: Buffer<u32>,
            banks: Buffer<u32>,
            picks: Buffer<u32>,
        }

        impl State {
            fn upload(context: &Context, search: &Search<Cpu>, stride: usize) -> Result<Self> {
                Ok(State {
                    $($field: context.upload(&search.$field)?,)*
                    rows: context.upload(&search.rows.entries)?,
                    row_count: context.upload(&search.rows.count)?,
                    ranked: context.zeros(search.shape.rows * stride)?,
                    bans: context.upload(&search.bans)?,
                    constraints: context.upload(&search.constraints)?,
                    banks: context.upload(&search.banks)?,
                    picks: context.upload(&search.picks)?,
                })
            }

            fn download(&self, context: &Context, search: &mut Search<Cpu>) -> Result<()> {
                $(search.$field = context.download(self.$field.view())?;)*
                search.rows.entries = context.download(self.rows.view())?;
                search.rows.count = context.download(self.row_count.view())?;
                Ok(())
            }

            fn views(&mut self, shape: SessionShape, vocab_size: usize) -> SearchViews<'_> {
                SearchViews {
                    shape,
                    vocab_size,
                    ids: IDS,
                    $($field: self.$field.view_mut(),)*
                    rows: self.rows.view_mut(),
                    row_count: self.row_count.view_mut(),
                    ranked: self.ranked.view_mut(),
                    bans: self.bans.view_mut(),
                    constraints: self.constraints.view_mut(),
                    banks: self.banks.view_mut(),
                    picks: self.picks.view_mut(),
                }
            }
        }
    };
}

state! {
    options: u32, step: u32, live: u32, cum_log_probs: f32, tokens: u32, parents: u32, log_probs: f32, ancestry: u32,
    coverage: f32, attention: f32, finished: u32, finished_count: u32, failures: u32
}

/// A search on a device, with what its next step reads.
pub struct Fixture {
    /// The device.
    pub context: Context,
    /// The search's sizes.
    pub shape: SessionShape,
    /// Tokens.
    pub vocab_size: usize,
    /// Elements between two rows of logits.
    pub stride: usize,
    /// What the next step reads.
    pub logits: Buffer<f32>,
    attention: Buffer<f32>,
    state: State,
    scratch: BeamStepScratch,
}

impl Fixture {
    /// An empty search whose logits lie without gaps.
    ///
    /// # Errors
    /// The device failed; so for all methods.
    pub fn new(context: &Context, shape: SessionShape, vocab_size: usize, threads: u32) -> Result<Self> {
        Self::with_stride(context, shape, vocab_size, vocab_size, threads)
    }

    /// An empty search.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn with_stride(
        context: &Context,
        shape: SessionShape,
        vocab_size: usize,
        stride: usize,
        threads: u32,
    ) -> Result<Self> {
        Ok(Fixture {
            context: context.clone(),
            shape,
            vocab_size,
            stride,
            logits: context.allocate(shape.rows * stride)?,
            attention: context.allocate(shape.rows * shape.max_src_len)?,
            state: State::upload(context, &on_cpu(shape, vocab_size)?, stride)?,
            scratch: BeamStepScratch::with_threads(context, shape, vocab_size, threads)?,
        })
    }

    /// Takes slots into the search.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn start(&mut self, slots: &[(u32, SlotOptions)]) -> Result<()> {
        let search = self.state.views(self.shape, self.vocab_size);
        StartSlots { search, scratch: &mut self.scratch, slots }.launch(&self.context)
    }

    /// Sets what the next step reads, with NaN between the rows.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn write(&mut self, logits: &[f32], attention: &[f32]) -> Result<()> {
        let logits = self.apart(logits);
        self.context.write(self.logits.view_mut(), &logits)?;
        self.context.write(self.attention.view_mut(), attention)
    }

    /// Rows a stride apart, with NaN between them.
    fn apart(&self, rows: &[f32]) -> Vec<f32> {
        let mut apart = vec![f32::NAN; self.shape.rows * self.stride];
        for (to, from) in apart.chunks_mut(self.stride).zip(rows.chunks(self.vocab_size)) {
            to[..self.vocab_size].copy_from_slice(from);
        }
        apart
    }

    /// Sets what the next step may read beside the logits.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn write_extras(&mut self, from: &Search<Cpu>) -> Result<()> {
        let ranked = self.apart(&from.ranked);
        self.context.write(self.state.ranked.view_mut(), &ranked)?;
        self.context.write(self.state.bans.view_mut(), &from.bans)?;
        self.context.write(self.state.constraints.view_mut(), &from.constraints)?;
        self.context.write(self.state.banks.view_mut(), &from.banks)?;
        self.context.write(self.state.picks.view_mut(), &from.picks)
    }

    /// One step, of at most `bucket` live slots.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn step(&mut self, bucket: usize) -> Result<()> {
        BeamStep {
            search: self.state.views(self.shape, self.vocab_size),
            scratch: &mut self.scratch,
            logits: self.logits.view(),
            logits_stride: self.stride,
            attention: self.attention.view(),
            bucket,
        }
        .launch(&self.context)
    }

    /// Slots that live.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn live_slots(&self) -> Result<usize> {
        Ok(self.context.download(self.state.live.view())?.into_iter().filter(|live| *live > 0).count())
    }

    /// The state, as the CPU holds one.
    ///
    /// # Errors
    /// As [`Fixture::new`].
    pub fn download(&self) -> Result<Search<Cpu>> {
        let mut search = on_cpu(self.shape, self.vocab_size)?;
        self.state.download(&self.context, &mut search)?;
        Ok(search)
    }
}

/// What a model might say.
pub struct Data(Values);

impl Data {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Data(Values::new(seed))
    }

    /// Logits with outliers, -inf and an end of sentence that is likely at times; attention.
    pub fn draw(&mut self, shape: SessionShape, vocab_size: usize) -> (Vec<f32>, Vec<f32>) {
        let mut logits: Vec<f32> = self.0.elements(shape.rows * vocab_size, 1.0, 1.5);
        for (i, z) in logits.iter_mut().enumerate() {
            if i % 29 == 3 {
                *z = f32::NEG_INFINITY;
            }
            if i % vocab_size == IDS.eos_id as usize && self.0.uniform() < 0.4 {
                *z = 16.0;
            }
        }
        let attention = (0..shape.rows * shape.max_src_len).map(|_| self.0.uniform() * 0.3).collect();
        (logits, attention)
    }
}

/// What a search that was run beside the CPU's came to.
pub struct Outcome {
    /// Steps until it ended, or until it parted.
    pub steps: usize,
    /// Of all steps on the device, each waited for.
    pub time: Duration,
    /// How close its numbers were, or where its state parted from the CPU's.
    pub found: Result<Closeness, String>,
}

/// Runs a search to its end on the device, on the CPU and by its reference. `change` may change what was drawn for a step.
///
/// # Errors
/// The device failed.
pub fn run_all(
    mut device: Fixture,
    slots: &[(u32, SlotOptions)],
    seed: u64,
    change: impl Fn(usize, &mut [f32]),
) -> Result<Outcome> {
    let (shape, vocab_size) = (device.shape, device.vocab_size);
    let (mut fast, mut naive) = (on_cpu(shape, vocab_size)?, on_cpu(shape, vocab_size)?);
    cpu::start_slots(slots, &mut fast);
    cpu::start_slots(slots, &mut naive);
    device.start(slots)?;
    let (mut data, mut steps, mut time) = (Data::new(seed), 0, Duration::ZERO);
    let mut found = compare_states(&device.download()?, &naive);
    while !fast.rows.live().is_empty() {
        let (mut logits, attention) = data.draw(shape, vocab_size);
        if slots.iter().any(|(_, options)| options.groups > 1) {
            // Ends that are all but certain would be worth the same in every group, but for their rounding.
            for (i, z) in logits.iter_mut().enumerate().filter(|(_, z)| **z == 16.0) {
                *z = 5.0 + 0.37 * (i / vocab_size) as f32;
            }
        }
        change(steps, &mut logits);
        draw_extras(&mut fast, steps as u64);
        draw_extras(&mut naive, steps as u64);
        device.write_extras(&fast)?;
        cpu::beam_step(&logits, &attention, &mut fast);
        cpu::reference(&logits, &attention, &mut naive);
        device.write(&logits, &attention)?;
        device.context.synchronize()?;
        let start = Instant::now();
        device.step(shape.slots)?;
        device.context.synchronize()?;
        time += start.elapsed();
        let state = device.download()?;
        steps += 1;
        let close = found.and_then(|before| {
            let close = compare_states(&state, &naive)?.and(before);
            compare_states(&state, &fast).map(|_| close).map_err(|what| format!("to the fast path: {what}"))
        });
        found = close.map_err(|what| format!("step {steps}: {what}"));
        if found.is_err() || steps > shape.max_len {
            let endless = || Err(format!("the search does not end in {} steps", shape.max_len));
            return Ok(Outcome { steps, time, found: found.and_then(|_| endless()) });
        }
    }
    Ok(Outcome { steps, time, found })
}

/// Holds a state to an expected one: decisions equal, numbers close.
///
/// # Errors
/// The first part that differs, in words.
pub fn compare_states(actual: &Search<Cpu>, expected: &Search<Cpu>) -> Result<Closeness, String> {
    const CLOSE: Tolerance = Tolerance::new(2e-5, 2e-6);
    let same =
        |name: &str, actual: &[u32], expected: &[u32]| match actual.iter().zip(expected).position(|(a, e)| a != e) {
            None if actual.len() == expected.len() => Ok(()),
            None => Err(format!("{name}: expected {} values, got {}", expected.len(), actual.len())),
            Some(at) => Err(format!("{name}[{at}]: expected {}, got {}", expected[at], actual[at])),
        };
    let mut most = Closeness::default();
    let mut close = |name: &str, actual: &[f32], expected: &[f32]| {
        most = most.and(Closeness::of(actual, expected, Dtype::F32));
        compare(actual, expected, CLOSE).map(drop).map_err(|mismatch| format!("{name}: {mismatch}"))
    };
    same("step", &actual.step, &expected.step)?;
    same("live", &actual.live, &expected.live)?;
    same("tokens", &actual.tokens, &expected.tokens)?;
    same("parents", &actual.parents, &expected.parents)?;
    same("ancestry", &actual.ancestry, &expected.ancestry)?;
    same("finished count", &actual.finished_count, &expected.finished_count)?;
    same("rows", bytemuck::cast_slice(actual.rows.live()), bytemuck::cast_slice(expected.rows.live()))?;
    close("cum_log_probs", &actual.cum_log_probs, &expected.cum_log_probs)?;
    close("log_probs", &actual.log_probs, &expected.log_probs)?;
    close("coverage", &actual.coverage, &expected.coverage)?;
    close("attention", &actual.attention, &expected.attention)?;
    let finished = |search: &Search<Cpu>| bytemuck::cast_slice::<_, Finished>(&search.finished).to_vec();
    let facts = |search: &Search<Cpu>| -> Vec<u32> {
        finished(search).iter().flat_map(|f| [f.length, f.beam, f.has_eos, f.truncated]).collect()
    };
    let numbers = |search: &Search<Cpu>| -> Vec<f32> {
        let numbers = |f: &Finished| [f.score, f.search_log_prob, f.coverage_penalty, f.eos_log_prob];
        finished(search).iter().flat_map(numbers).collect()
    };
    same("finished", &facts(actual), &facts(expected))?;
    close("finished", &numbers(actual), &numbers(expected))?;
    // Where it failed, and on which kind of value: the bits of NaN are nobody's business.
    let failures = |search: &Search<Cpu>| -> Vec<u32> {
        let words = |f: &Failure| [f.failed, f.step, f.beam, u32::from(f.value.is_nan())];
        bytemuck::cast_slice::<_, Failure>(&search.failures).iter().flat_map(words).collect()
    };
    same("failures", &failures(actual), &failures(expected))?;
    Ok(most)
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
const PENALTIES: [(LengthPenaltyKind, f32); 4] = [
    (LengthPenaltyKind::None, 0.7),
    (LengthPenaltyKind::Gnmt, 0.7),
    (LengthPenaltyKind::Gnmt, -0.4),
    (LengthPenaltyKind::Power, 1.3),
];
const STOPS: [StopKind; 3] = [StopKind::First, StopKind::Heuristic, StopKind::Exact];
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
}

const SAYS: [Say; 5] = [Say::Usual, Say::Equal, Say::Ties, Say::Nothing, Say::NotANumber];

impl Say {
    fn change(self, step: usize, logits: &mut [f32]) {
        match self {
            Say::Usual => {}
            Say::Equal => logits.fill(1.5),
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
            Say::Nothing | Say::NotANumber => {}
        }
    }
}

/// All cases.
pub fn check(probe: &mut Probe<'_>) -> Result<()> {
    check_options(probe)?;
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
        4,
        SAYS.len(),
        4,
        KINDS.len(),
    ];
    // All combinations would be a hundred thousand searches: in pairs on every grid.
    for (seed, chosen) in crate::validate::probe::Grid::Pairwise.combine(sizes).into_iter().enumerate() {
        let [penalty, stop, beams, lengths, coverage, reward, flags, say, size, kind_of] = chosen;
        let (strategy, ranked, banned, cut, groups, constraints) = KINDS[kind_of];
        let ((kind, alpha), (min_len, max_len)) = (PENALTIES[penalty], LENGTHS[lengths]);
        let own = SlotOptions {
            length_penalty: kind as u32,
            alpha,
            stop: STOPS[stop] as u32,
            beam_size: if groups == 0 { BEAMS[beams] } else { 4 },
            groups,
            diversity: 0.7777,
            min_len,
            max_len,
            coverage_penalty: COVERAGE[coverage],
            word_reward: REWARDS[reward],
            forced_eos: flags as u32 & 1,
            renormalize: flags as u32 >> 1,
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
