//! Launchers of `kernels/processors.cu`: bans and penalties that follow from what a row has generated.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::beam_step::{BeamStepScratch, SearchArguments, SearchViews, at_least};
use super::buffer::View;
use super::context::{Context, check_len, to_u32};
use super::layout::{Layout, layout};
use crate::Result;
use crate::backend::{BANK_WORDS, MAX_SEQUENCE_WORDS, SessionShape};

const BANS: &str = "processors";
const REPETITION: &str = "repetition_penalty";
const THREADS: u32 = 128;

/// Writes `search.bans`, and `search.banks`, for the live rows of slots that ban; see [`crate::backend::SearchOps::processors`].
pub struct Processors<'a> {
    /// What is searched; its bans are written.
    pub search: SearchViews<'a>,
    /// As allocated for this search.
    pub scratch: &'a mut BeamStepScratch,
    /// `[S, ceil(vocab_size / 32)]`.
    pub always: View<'a, u32>,
    /// `[S, T]`.
    pub prefixes: View<'a, u32>,
    /// `[S, MAX_SEQUENCE_WORDS]`.
    pub sequences: View<'a, u32>,
    /// No more rows than this are live.
    pub bucket: usize,
}

/// Mirrors `ProcessorsArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProcessorsArguments {
    search: SearchArguments,
    bans: u64,
    banks: u64,
    always: u64,
    prefixes: u64,
    sequences: u64,
    bucket: u32,
    sequence_words: u32,
}

impl Processors<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        self.launch_with(context, THREADS)
    }

    /// As [`Processors::launch`], with blocks of `threads`, a multiple of 32 and at most 256.
    pub(crate) fn launch_with(self, context: &Context, threads: u32) -> Result<()> {
        let search = self.search.arguments(BANS, context, self.scratch)?;
        let SessionShape { slots, max_len, .. } = self.search.shape;
        let words = self.search.vocab_size.div_ceil(32);
        at_least(BANS, "banks", self.bucket * BANK_WORDS, self.search.banks.len())?;
        at_least(BANS, "bans", self.bucket * words, self.search.bans.len())?;
        check_len(BANS, "always", slots * words, self.always.len())?;
        check_len(BANS, "prefixes", slots * max_len, self.prefixes.len())?;
        check_len(BANS, "sequences", slots * MAX_SEQUENCE_WORDS, self.sequences.len())?;
        if self.bucket == 0 {
            return Ok(());
        }
        let arguments = ProcessorsArguments {
            search,
            bans: context.address_mut(&self.search.bans)?,
            banks: search.banks,
            always: context.address(&self.always)?,
            prefixes: context.address(&self.prefixes)?,
            sequences: context.address(&self.sequences)?,
            bucket: to_u32(BANS, "rows", self.bucket)?,
            sequence_words: MAX_SEQUENCE_WORDS as u32,
        };
        let shared = max_len * size_of::<u32>();
        let launch = Launch { symbol: "processors_u32", grid: [arguments.bucket, 1, 1], block: threads, shared };
        // SAFETY: mirrors `processors_u32(ProcessorsArguments)`. A block writes the bans and banks of its own row, below `bucket`; its
        // history is at most `max_len` tokens below `vocab_size`, and so are prefixes, sequences and constraints, checked where
        // they came from; each tensor has the length checked above.
        unsafe { context.launch(&launch, &arguments) }
    }
}

/// Penalises what rows have generated before, in `search.ranked`; see [`crate::backend::SearchOps::repetition_penalty`].
pub struct RepetitionPenalty<'a> {
    /// What is searched; its ranked log-probabilities are changed.
    pub search: SearchViews<'a>,
    /// As allocated for this search.
    pub scratch: &'a mut BeamStepScratch,
    /// `[rows, vocab_size]`.
    pub logits: View<'a, f32>,
    /// Elements between the starts of two rows of logits, and of what ranks.
    pub stride: usize,
    /// No more rows than this are live.
    pub bucket: usize,
}

/// Mirrors `RepetitionArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RepetitionArguments {
    search: SearchArguments,
    ranked: u64,
    logits: u64,
    bucket: u32,
    stride: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[
    layout!(ProcessorsArguments as "ProcessorsArguments" {
        search, bans, banks, always, prefixes, sequences, bucket, sequence_words
    }),
    layout!(RepetitionArguments as "RepetitionArguments" { search, ranked, logits, bucket, stride }),
];

impl RepetitionPenalty<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        let search = self.search.arguments(REPETITION, context, self.scratch)?;
        at_least(REPETITION, "stride", self.search.vocab_size, self.stride)?;
        at_least(REPETITION, "ranked", self.bucket * self.stride, self.search.ranked.len())?;
        at_least(REPETITION, "logits", self.bucket * self.stride, self.logits.len())?;
        if self.bucket == 0 {
            return Ok(());
        }
        let arguments = RepetitionArguments {
            search,
            ranked: context.address_mut(&self.search.ranked)?,
            logits: context.address(&self.logits)?,
            bucket: to_u32(REPETITION, "rows", self.bucket)?,
            stride: to_u32(REPETITION, "stride", self.stride)?,
        };
        let shared = self.search.shape.max_len * size_of::<u32>();
        let launch =
            Launch { symbol: "processors_repetition_f32", grid: [arguments.bucket, 1, 1], block: THREADS, shared };
        // SAFETY: mirrors `processors_repetition_f32(RepetitionArguments)`. A block changes its own row of `ranked`, below `bucket`,
        // at tokens of its history, which are below `vocab_size`, and reads its logits there; the lengths were checked above.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::processors as cases;
    use crate::validate::probe::assert_all_pass;

    device_tests! {
        all: |context| assert_all_pass(context, "processors", cases::check);
    }
}
