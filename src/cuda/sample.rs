//! Launcher of `kernels/sample.cu`: a token for every row of the slots that sample.

#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::contrastive::check_stride;
use super::layout::{Layout, layout};
use super::rows::RowList;
use super::{Launch, is_vectorizable};
use crate::Result;
use crate::backend::{SamplePick, SlotOptions, SpecialIds, words};

const OPERATION: &str = "sample";
/// As in beam_step, for the same log-probabilities.
const THREADS: u32 = 128;
/// Logits that a thread holds at a time; as in the kernel.
pub(super) const ELEMENTS: u32 = 32;

/// Draws a token for every live row of a slot that samples; the contract is [`crate::backend::SearchOps::sample`].
///
/// `S` slots, `K` beams, `T` tokens per beam. Rows of other slots are not read, nor are their picks written.
pub struct Sample<'a> {
    /// The rows.
    pub rows: RowList<'a>,
    /// [`SlotOptions`] `[S]`.
    pub options: View<'a, u32>,
    /// `[S, K, T]`.
    pub ancestry: View<'a, u32>,
    /// `[bucket, stride]`.
    pub logits: View<'a, f32>,
    /// `[bucket, stride]`, for slots that rank it; none if there are no such.
    pub ranked: Option<View<'a, f32>>,
    /// `[bucket, ceil(vocab_size / 32)]`, for slots with bans; none if there are no such.
    pub bans: Option<View<'a, u32>>,
    /// [`SamplePick`] `[S, K]`.
    pub picks: ViewMut<'a, u32>,
    /// K.
    pub beam_size: usize,
    /// The ids with a meaning of their own.
    pub ids: SpecialIds,
}

/// Mirrors `SampleArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    options: u64,
    rows: u64,
    count: u64,
    ancestry: u64,
    logits: u64,
    ranked: u64,
    bans: u64,
    picks: u64,
    bucket: u32,
    slots: u32,
    beams: u32,
    max_len: u32,
    vocab_size: u32,
    stride: u32,
    chunks: u32,
    vectorized: u32,
    eos_id: u32,
    pad_id: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "SampleArguments" {
    options, rows, count, ancestry, logits, ranked, bans, picks, bucket, slots, beams, max_len, vocab_size,
    stride, chunks, vectorized, eos_id, pad_id
})];

impl Sample<'_> {
    /// Enqueues the kernel for rows of `vocab_size` tokens, `stride` elements apart.
    ///
    /// # Errors
    /// A tensor of a size that does not fit; the device failed.
    pub fn launch(self, context: &Context, vocab_size: usize, stride: usize) -> Result<()> {
        self.launch_with(context, vocab_size, stride, THREADS)
    }

    /// As [`Sample::launch`], with blocks of `threads`, a multiple of 32 and at most 128.
    pub(crate) fn launch_with(self, context: &Context, vocab_size: usize, stride: usize, threads: u32) -> Result<()> {
        let bucket = self.rows.bucket;
        let slots = self.options.len() / words::<SlotOptions>();
        let beams = slots * self.beam_size;
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "options", slots * words::<SlotOptions>(), self.options.len())?;
        check_len(OPERATION, "logits", bucket * stride, self.logits.len())?;
        check_len(OPERATION, "picks", beams * words::<SamplePick>(), self.picks.len())?;
        if let Some(ranked) = &self.ranked {
            check_len(OPERATION, "ranked", bucket * stride, ranked.len())?;
        }
        if let Some(bans) = &self.bans {
            check_len(OPERATION, "bans", bucket * vocab_size.div_ceil(32), bans.len())?;
        }
        let max_len = self.ancestry.len() / beams.max(1);
        check_len(OPERATION, "ancestry", beams * max_len.max(1), self.ancestry.len())?;
        let rows = self.rows.arguments(OPERATION, context)?;
        if bucket == 0 {
            return Ok(());
        }
        let logits = context.address(&self.logits)?;
        let ranked = self.ranked.as_ref().map_or(Ok(0), |ranked| context.address(ranked))?;
        let chunks = vocab_size.div_ceil((threads * ELEMENTS) as usize);
        let arguments = Arguments {
            options: context.address(&self.options)?,
            rows: rows.entries,
            count: rows.count,
            ancestry: context.address(&self.ancestry)?,
            logits,
            ranked,
            bans: self.bans.as_ref().map_or(Ok(0), |bans| context.address(bans))?,
            picks: context.address_mut(&self.picks)?,
            bucket: rows.bucket,
            slots: to_u32(OPERATION, "slots", slots)?,
            beams: to_u32(OPERATION, "beam_size", self.beam_size)?,
            max_len: to_u32(OPERATION, "max_len", max_len)?,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            chunks: to_u32(OPERATION, "chunks", chunks)?,
            vectorized: is_vectorizable::<f32>(stride, &[logits, ranked]).into(),
            eos_id: self.ids.eos_id,
            pad_id: self.ids.pad_id,
        };
        // A maximum and a sum for each chunk.
        let shared = chunks * 2 * size_of::<f32>();
        let launch = Launch { symbol: "sample_f32", grid: [rows.bucket, 1, 1], block: threads, shared };
        // SAFETY: mirrors `sample_f32(SampleArguments)`. A block reads its own rows of `logits`, `ranked` and `bans`, below `bucket`,
        // and the options of a slot that it has compared with `slots`; where a slot ranks or bans, the search holds both
        // buffers. The row list holds beams below K, so that it writes its own pick and reads its own ancestry, of at least one
        // position. Lengths were checked above; `picks` is borrowed mutably.
        unsafe { context.launch(&launch, &arguments) }
    }
}
