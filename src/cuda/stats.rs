//! Launcher of `kernels/stats.cu`: what a row of logits says about its gold token, and on its own.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::contrastive::check_stride;
use super::layout::{Layout, layout};
use super::rows::RowList;
use super::{Launch, is_vectorizable};
use crate::Result;
use crate::backend::TokenStats;

const OPERATION: &str = "token_stats";
/// As in beam_step, for the same bits.
const THREADS: u32 = 128;
/// Logits that a thread holds at a time; as in the kernel.
pub(super) const ELEMENTS: u32 = 32;

/// [`TokenStats`] of the live rows.
///
/// A gold token outside the vocabulary has log-probability NaN and rank 0.
pub struct TokenStatistics<'a> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, stride]`, of which the first `vocab_size` columns are read.
    pub logits: View<'a, f32>,
    /// `[bucket]`.
    pub gold: View<'a, u32>,
    /// The words of [`TokenStats`] `[bucket]`.
    pub out: ViewMut<'a, u32>,
}

/// Mirrors `StatsArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    logits: u64,
    gold: u64,
    count: u64,
    out: u64,
    bucket: u32,
    vocab_size: u32,
    stride: u32,
    chunks: u32,
    vectorized: u32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "StatsArguments" {
    logits, gold, count, out, bucket, vocab_size, stride, chunks, vectorized, unused
})];

impl TokenStatistics<'_> {
    /// Enqueues the kernel for rows `stride` elements apart.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, vocab_size: usize, stride: usize) -> Result<()> {
        self.launch_with(context, vocab_size, stride, THREADS)
    }

    /// As [`TokenStatistics::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, vocab_size: usize, stride: usize, threads: u32) -> Result<()> {
        let bucket = self.rows.bucket;
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "logits", bucket * stride, self.logits.len())?;
        check_len(OPERATION, "gold", bucket, self.gold.len())?;
        check_len(OPERATION, "out", bucket * size_of::<TokenStats>() / size_of::<u32>(), self.out.len())?;
        let rows = self.rows.arguments(OPERATION, context)?;
        if bucket == 0 {
            return Ok(());
        }
        let logits = context.address(&self.logits)?;
        let chunks = vocab_size.div_ceil((threads * ELEMENTS) as usize);
        let arguments = Arguments {
            logits,
            gold: context.address(&self.gold)?,
            count: rows.count,
            out: context.address_mut(&self.out)?,
            bucket: rows.bucket,
            vocab_size: to_u32(OPERATION, "vocab_size", vocab_size)?,
            stride: to_u32(OPERATION, "stride", stride)?,
            chunks: to_u32(OPERATION, "chunks", chunks)?,
            vectorized: is_vectorizable::<f32>(stride, &[logits]).into(),
            unused: 0,
        };
        // A maximum and two sums for each chunk.
        let shared = chunks * 3 * size_of::<f32>();
        let launch = Launch { symbol: "stats_tokens_f32", grid: [rows.bucket, 1, 1], block: threads, shared };
        // SAFETY: mirrors `stats_tokens_f32(StatsArguments)`. A block reads its own row of `logits` and `gold`, below `bucket`, and
        // compares the gold token with `vocab_size`; the lengths were checked above; `out` is borrowed mutably and holds a
        // `TokenStats`, five words, for each row.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Row;
    use crate::cuda::testing::{DeviceRows, device_tests};
    use crate::validate::kernels::stats as cases;
    use crate::validate::probe::assert_all_pass;

    fn a_logit_is_read_once(context: &Context) -> Result<()> {
        let (vocab_size, rows) = (8192, 3);
        let logits = context.upload(&vec![0.5f32; rows * vocab_size])?;
        let gold = context.upload(&vec![7u32; rows])?;
        let list = DeviceRows::upload(context, &vec![Row::default(); rows], rows)?;
        let mut out = context.upload(&vec![0u32; rows * 5])?;
        context.watch(logits.view())?;
        TokenStatistics { rows: list.list(), logits: logits.view(), gold: gold.view(), out: out.view_mut() }
            .launch(context, vocab_size, vocab_size)?;
        assert_eq!(context.watched_bytes()?, (rows * vocab_size * 4) as u64);
        Ok(())
    }

    device_tests! {
        shapes: |context| assert_all_pass(context, "stats", cases::check);
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn reads() {
        crate::cuda::testing::run_emulated(a_logit_is_read_once);
    }
}
