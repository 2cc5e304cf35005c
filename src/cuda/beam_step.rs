//! Launchers of `kernels/beam_step.cu`: a step of beam search, and taking sentences into the search.
//!
//! The contract is [`crate::backend::SearchOps::beam_step`]. Neither allocates or waits, and [`BeamStep`] takes nothing that changes
//! from step to step, so a recorded step can be replayed.

#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use super::buffer::{Buffer, View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::backend::{
    BANK_WORDS, Constraints, Failure, Finished, MAX_CONSTRAINT_TOKENS, Row, SamplePick, SessionShape, SlotOptions,
    SpecialIds, words,
};
use crate::{Error, Result};

const STEP: &str = "beam_step";
const START: &str = "start_slots";
/// Threads of a block; with [`ELEMENTS`] the part of a row that a block ranks, 4096 logits.
pub(super) const THREADS: u32 = 128;
/// Logits that a thread holds; as in the kernel.
pub(super) const ELEMENTS: u32 = 32;
/// The most beams a sentence can have; as in the kernel.
pub const MAX_BEAMS: usize = 64;

/// The buffers of a [`crate::backend::Search`], which says what each holds.
pub struct SearchViews<'a> {
    /// The sizes.
    pub shape: SessionShape,
    /// The target vocabulary's size.
    pub vocab_size: usize,
    /// The ids with a meaning of their own.
    pub ids: SpecialIds,
    /// [`SlotOptions`] `[S]`.
    pub options: ViewMut<'a, u32>,
    /// `[S]`.
    pub step: ViewMut<'a, u32>,
    /// `[S]`.
    pub live: ViewMut<'a, u32>,
    /// `[S, K]`.
    pub cum_log_probs: ViewMut<'a, f32>,
    /// `[S, T, K]`.
    pub tokens: ViewMut<'a, u32>,
    /// `[S, T, K]`.
    pub parents: ViewMut<'a, u32>,
    /// `[S, T, K]`.
    pub log_probs: ViewMut<'a, f32>,
    /// `[S, K, T]`.
    pub ancestry: ViewMut<'a, u32>,
    /// `[S, K, N]`.
    pub coverage: ViewMut<'a, f32>,
    /// `[S, T, K, N]`; empty unless kept.
    pub attention: ViewMut<'a, f32>,
    /// [`Finished`] `[S, K]`.
    pub finished: ViewMut<'a, u32>,
    /// `[S]`.
    pub finished_count: ViewMut<'a, u32>,
    /// [`Failure`] `[S]`.
    pub failures: ViewMut<'a, u32>,
    /// [`Row`] `[shape.rows]`: [`crate::backend::Rows::entries`].
    pub rows: ViewMut<'a, u32>,
    /// `[1]`: [`crate::backend::Rows::count`].
    pub row_count: ViewMut<'a, u32>,
    /// `[rows, logits_stride]`, or empty.
    pub ranked: ViewMut<'a, f32>,
    /// `[rows, ceil(vocab_size / 32)]`, or empty.
    pub bans: ViewMut<'a, u32>,
    /// [`Constraints`] `[S]`, or empty.
    pub constraints: ViewMut<'a, u32>,
    /// `[rows, BANK_WORDS]`, or empty.
    pub banks: ViewMut<'a, u32>,
    /// [`SamplePick`] `[S, K]`, or empty.
    pub picks: ViewMut<'a, u32>,
}

/// Working memory of both kernels, allocated once for a search; it also knows which slots are live, and where their rows start.
#[derive(Debug)]
pub struct BeamStepScratch {
    threads: u32,
    chunks: usize,
    shape: SessionShape,
    vocab_size: usize,
    /// Best candidates of each part of each row, one more than 2K `[S * K, chunks, 2K + 1]`.
    candidates: Buffer<u64>,
    /// Largest logit and sum of exponentials of each part of each row, of all tokens and of those left `[S * K, chunks, 4]`.
    stats: Buffer<f32>,
    live_slots: Buffer<u32>,
    first_row: Buffer<u32>,
    tickets: Buffer<u32>,
    /// Number of live slots, ticket of the step, ticket of the start.
    counters: Buffer<u32>,
    /// Slot and [`SlotOptions`] of each slot to start `[S, START_WORDS]`.
    starts: Buffer<u32>,
}

impl BeamStepScratch {
    /// Allocates it for the search of this shape.
    ///
    /// # Errors
    /// More than [`MAX_BEAMS`] beams, an empty shape, `beam_size * vocab_size` beyond 32 bits; out of memory.
    pub fn new(context: &Context, shape: SessionShape, vocab_size: usize) -> Result<Self> {
        Self::with_threads(context, shape, vocab_size, THREADS)
    }

    /// As [`BeamStepScratch::new`], for blocks of `threads`, a multiple of 32 and at most 128.
    pub(crate) fn with_threads(
        context: &Context,
        shape: SessionShape,
        vocab_size: usize,
        threads: u32,
    ) -> Result<Self> {
        let SessionShape { slots, beam_size, .. } = shape;
        in_range(STEP, "beam size", beam_size, 1, MAX_BEAMS)?;
        in_range(STEP, "vocabulary", vocab_size, 1, u32::MAX as usize / beam_size)?;
        in_range(STEP, "slots", slots, 1, (u32::MAX / 2) as usize)?;
        let chunks = vocab_size.div_ceil((threads * ELEMENTS) as usize);
        let parts = slots * beam_size * chunks;
        Ok(BeamStepScratch {
            threads,
            chunks,
            shape,
            vocab_size,
            candidates: context.allocate(parts * (2 * beam_size + 1))?,
            stats: context.allocate(parts * 4)?,
            live_slots: context.zeros(slots)?,
            first_row: context.zeros(slots)?,
            tickets: context.zeros(slots)?,
            counters: context.zeros(3)?,
            starts: context.zeros(slots * START_WORDS)?,
        })
    }
}

/// Words of an entry of [`BeamStepScratch::starts`].
const START_WORDS: usize = 1 + words::<SlotOptions>();

/// Mirrors `Search`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct SearchArguments {
    options: u64,
    step: u64,
    live: u64,
    cum_log_probs: u64,
    tokens: u64,
    parents: u64,
    log_probs: u64,
    ancestry: u64,
    coverage: u64,
    kept_attention: u64,
    finished: u64,
    finished_count: u64,
    failures: u64,
    rows: u64,
    row_count: u64,
    live_slots: u64,
    first_row: u64,
    num_live: u64,
    ranked: u64,
    bans: u64,
    picks: u64,
    constraints: u64,
    pub(super) banks: u64,
    slots: u32,
    beams: u32,
    max_len: u32,
    max_src_len: u32,
    vocab_size: u32,
    eos_id: u32,
    pad_id: u32,
    decoder_start_id: u32,
}

impl SearchViews<'_> {
    /// Checks all lengths, then takes the addresses.
    pub(super) fn arguments(
        &self,
        operation: &'static str,
        context: &Context,
        scratch: &mut BeamStepScratch,
    ) -> Result<SearchArguments> {
        let SessionShape { slots, beam_size, max_len, max_src_len, rows, keep_attention } = self.shape;
        if (self.shape, self.vocab_size) != (scratch.shape, scratch.vocab_size) {
            let describe = |shape: SessionShape, vocab_size| format!("{shape:?} with {vocab_size} tokens");
            let expected = describe(self.shape, self.vocab_size);
            let got = describe(scratch.shape, scratch.vocab_size);
            return Err(Error::Shape { operation, tensor: "scratch", expected, got });
        }
        at_least(operation, "shape.rows", slots * beam_size, rows)?;
        let history = slots * max_len * beam_size;
        let lens = [
            ("options", slots * words::<SlotOptions>(), self.options.len()),
            ("step", slots, self.step.len()),
            ("live", slots, self.live.len()),
            ("cum_log_probs", slots * beam_size, self.cum_log_probs.len()),
            ("tokens", history, self.tokens.len()),
            ("parents", history, self.parents.len()),
            ("log_probs", history, self.log_probs.len()),
            ("ancestry", history, self.ancestry.len()),
            ("coverage", slots * beam_size * max_src_len, self.coverage.len()),
            ("kept attention", if keep_attention { history * max_src_len } else { 0 }, self.attention.len()),
            ("finished", slots * beam_size * words::<Finished>(), self.finished.len()),
            ("finished_count", slots, self.finished_count.len()),
            ("failures", slots * words::<Failure>(), self.failures.len()),
            ("rows", rows * words::<Row>(), self.rows.len()),
            ("row_count", 1, self.row_count.len()),
            ("bans", if self.bans.is_empty() { 0 } else { rows * self.vocab_size.div_ceil(32) }, self.bans.len()),
            (
                "constraints",
                if self.constraints.is_empty() { 0 } else { slots * words::<Constraints>() },
                self.constraints.len(),
            ),
            ("banks", if self.constraints.is_empty() { 0 } else { rows * BANK_WORDS }, self.banks.len()),
            (
                "picks",
                if self.picks.is_empty() { 0 } else { slots * beam_size * words::<SamplePick>() },
                self.picks.len(),
            ),
        ];
        lens.into_iter().try_for_each(|(tensor, expected, got)| check_len(operation, tensor, expected, got))?;
        let size = |name, value| to_u32(operation, name, value);
        Ok(SearchArguments {
            options: context.address_mut(&self.options)?,
            step: context.address_mut(&self.step)?,
            live: context.address_mut(&self.live)?,
            cum_log_probs: context.address_mut(&self.cum_log_probs)?,
            tokens: context.address_mut(&self.tokens)?,
            parents: context.address_mut(&self.parents)?,
            log_probs: context.address_mut(&self.log_probs)?,
            ancestry: context.address_mut(&self.ancestry)?,
            coverage: context.address_mut(&self.coverage)?,
            kept_attention: if keep_attention { context.address_mut(&self.attention)? } else { 0 },
            finished: context.address_mut(&self.finished)?,
            finished_count: context.address_mut(&self.finished_count)?,
            failures: context.address_mut(&self.failures)?,
            rows: context.address_mut(&self.rows)?,
            row_count: context.address_mut(&self.row_count)?,
            live_slots: context.address_mut(&scratch.live_slots.view_mut())?,
            first_row: context.address_mut(&scratch.first_row.view_mut())?,
            num_live: context.address_mut(&scratch.counters.view_mut().slice(0..1)?)?,
            ranked: address_if_any(context, &self.ranked)?,
            bans: address_if_any(context, &self.bans)?,
            picks: address_if_any(context, &self.picks)?,
            constraints: address_if_any(context, &self.constraints)?,
            banks: address_if_any(context, &self.banks)?,
            slots: size("slots", slots)?,
            beams: size("beam size", beam_size)?,
            max_len: size("max_len", max_len)?,
            max_src_len: size("max_src_len", max_src_len)?,
            vocab_size: size("vocabulary", self.vocab_size)?,
            eos_id: self.ids.eos_id,
            pad_id: self.ids.pad_id,
            decoder_start_id: self.ids.decoder_start_id,
        })
    }
}

/// The address of a tensor, null if it is empty.
fn address_if_any<T: Pod>(context: &Context, view: &ViewMut<'_, T>) -> Result<u64> {
    if view.is_empty() { Ok(0) } else { context.address_mut(view) }
}

/// One step of the search in every live slot, in one launch that reads the logits once.
pub struct BeamStep<'a> {
    /// What is searched.
    pub search: SearchViews<'a>,
    /// As allocated for this search, and used by it alone.
    pub scratch: &'a mut BeamStepScratch,
    /// `[rows, logits_stride]`, of which the first `vocab_size` of a row count; room for every beam of every slot. Best read
    /// where rows start at multiples of 16 bytes.
    pub logits: View<'a, f32>,
    /// Elements between the starts of two rows of logits, at least `vocab_size`.
    pub logits_stride: usize,
    /// `[rows, max_src_len]`: the cross-attention of the step; room for every beam of every slot.
    pub attention: View<'a, f32>,
    /// No more slots than this are live: sizes the grid, so that an almost idle session costs little. Slots end on their
    /// own, so any earlier count holds until [`StartSlots`].
    pub bucket: usize,
}

/// Mirrors `BeamStepArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StepArguments {
    search: SearchArguments,
    logits: u64,
    attention: u64,
    candidates: u64,
    stats: u64,
    tickets: u64,
    ticket: u64,
    logits_stride: u32,
    chunks: u32,
    capacity: u32,
    vectorized: u32,
}

impl BeamStep<'_> {
    /// Enqueues the step.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        let search = self.search.arguments(STEP, context, self.scratch)?;
        let SessionShape { slots, beam_size, max_src_len, .. } = self.search.shape;
        let (scratch, vocab_size, stride) = (self.scratch, self.search.vocab_size, self.logits_stride);
        let rows = slots * beam_size;
        at_least(STEP, "logits_stride", vocab_size, stride)?;
        at_least(STEP, "logits", (rows - 1) * stride + vocab_size, self.logits.len())?;
        if search.ranked != 0 {
            at_least(STEP, "ranked", (rows - 1) * stride + vocab_size, self.search.ranked.len())?;
        }
        at_least(STEP, "attention", rows * max_src_len, self.attention.len())?;
        if self.bucket == 0 {
            return Ok(());
        }
        let logits = context.address(&self.logits)?;
        let blocks = self.bucket.min(slots) * beam_size * scratch.chunks;
        in_range(STEP, "grid", blocks, 1, (u32::MAX / 2) as usize)?;
        let arguments = StepArguments {
            search,
            logits,
            attention: context.address(&self.attention)?,
            candidates: context.address_mut(&scratch.candidates.view_mut())?,
            stats: context.address_mut(&scratch.stats.view_mut())?,
            tickets: context.address_mut(&scratch.tickets.view_mut())?,
            ticket: context.address_mut(&scratch.counters.view_mut().slice(1..2)?)?,
            logits_stride: to_u32(STEP, "logits_stride", stride)?,
            chunks: to_u32(STEP, "chunks", scratch.chunks)?,
            capacity: capacity(beam_size, scratch.threads),
            vectorized: is_vectorizable::<f32>(stride, &[logits, search.ranked]).into(),
        };
        let launch = Launch {
            symbol: "beam_step_f32",
            grid: [to_u32(STEP, "grid", blocks)?, 1, 1],
            block: scratch.threads,
            shared: arguments.capacity as usize * size_of::<u64>(),
        };
        // SAFETY: mirrors `beam_step_f32(BeamStepArguments)`. Every tensor has the length checked above or was allocated with the
        // scratch. Slots, rows, beams and steps come from what the kernels themselves wrote, within the options that
        // `StartSlots` checked; tokens are below `vocab_size`, those of constraints too, and banks no more than there are
        // constraint tokens: both were checked where they came from. All that is written is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// Room for the keys that a block gathers: more than the best 2K cannot lie in more threads' elements than that, and merging
/// takes them in turns of a key per thread.
fn capacity(beam_size: usize, threads: u32) -> u32 {
    let kept = 2 * beam_size as u32;
    ((kept + 1).min(threads) * ELEMENTS).max(kept + threads)
}

/// Takes slots into the search: one live beam that reads the decoder start token, nothing finished. Rebuilds the row list.
pub struct StartSlots<'a> {
    /// What is searched.
    pub search: SearchViews<'a>,
    /// As allocated for this search, and used by it alone.
    pub scratch: &'a mut BeamStepScratch,
    /// Each slot with its options, no slot twice; may be empty.
    pub slots: &'a [(u32, SlotOptions)],
}

/// Mirrors `StartSlotsArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StartArguments {
    search: SearchArguments,
    starts: u64,
    ticket: u64,
    count: u32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(SearchArguments as "Search" {
        options, step, live, cum_log_probs, tokens, parents, log_probs, ancestry, coverage, kept_attention,
        finished, finished_count, failures, rows, row_count, live_slots, first_row, num_live, ranked, bans, picks,
        constraints, banks, slots, beams, max_len, max_src_len, vocab_size, eos_id, pad_id, decoder_start_id
    }),
    layout!(StepArguments as "BeamStepArguments" {
        search, logits, attention, candidates, stats, tickets, ticket, logits_stride, chunks, capacity, vectorized
    }),
    layout!(StartArguments as "StartSlotsArguments" { search, starts, ticket, count, unused }),
];

impl StartSlots<'_> {
    /// Copies the options to the device and enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of another size; a slot or an option beyond the search's shape; a graph is being captured; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        let search = self.search.arguments(START, context, self.scratch)?;
        let (shape, scratch) = (self.search.shape, self.scratch);
        in_range(START, "slots to start", self.slots.len(), 0, shape.slots)?;
        let mut starts = Vec::with_capacity(self.slots.len() * START_WORDS);
        for (slot, options) in self.slots {
            in_range(START, "slot", *slot as usize, 0, shape.slots - 1)?;
            in_range(START, "beam size", options.beam_size as usize, 1, shape.beam_size)?;
            in_range(START, "max_len", options.max_len as usize, 1, shape.max_len)?;
            in_range(START, "src_len", options.src_len as usize, 0, shape.max_src_len)?;
            in_range(START, "constraint tokens", options.constraints as usize, 0, MAX_CONSTRAINT_TOKENS)?;
            for (name, asked, view) in [
                ("constraints", options.constraints != 0, search.constraints),
                ("ranked", options.ranked != 0, search.ranked),
                ("bans", options.banned != 0, search.bans),
                ("picks", options.samples(), search.picks),
            ] {
                in_range(START, name, usize::from(asked), 0, usize::from(view != 0))?;
            }
            starts.push(*slot);
            starts.extend_from_slice(bytemuck::cast_slice(std::slice::from_ref(options)));
        }
        if !starts.is_empty() {
            context.write(scratch.starts.view_mut().slice(0..starts.len())?, &starts)?;
        }
        let arguments = StartArguments {
            search,
            starts: context.address(&scratch.starts.view())?,
            ticket: context.address_mut(&scratch.counters.view_mut().slice(2..3)?)?,
            count: to_u32(START, "slots to start", self.slots.len())?,
            unused: 0,
        };
        let launch = Launch {
            symbol: "start_slots_f32",
            grid: [arguments.count.max(1), 1, 1],
            block: scratch.threads,
            shared: 0,
        };
        // SAFETY: mirrors `start_slots_f32(StartSlotsArguments)`. Every tensor has the length checked there, and slots and
        // options lie within the shape. All that is written is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// Whether a size is at least what an operation asks for.
pub(super) fn at_least(operation: &'static str, tensor: &'static str, least: usize, got: usize) -> Result<()> {
    if got >= least {
        return Ok(());
    }
    Err(Error::Shape { operation, tensor, expected: format!("at least {least}"), got: got.to_string() })
}

/// Whether a number lies within what an operation takes.
fn in_range(operation: &'static str, tensor: &'static str, got: usize, least: usize, most: usize) -> Result<()> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(Error::Shape { operation, tensor, expected: format!("{least} to {most}"), got: got.to_string() })
}
