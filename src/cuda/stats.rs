//! Launcher of `kernels/stats.cu`: what a row of logits says about its gold token.

use bytemuck::{Pod, Zeroable};

use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::contrastive::check_stride;
use super::rows::RowList;
use super::{Launch, is_vectorizable};
use crate::Result;

const OPERATION: &str = "gold_log_probs";
/// As in beam_step, for the same bits.
const THREADS: u32 = 128;
/// Logits that a thread holds at a time; as in the kernel.
const ELEMENTS: u32 = 32;

/// `out[i] = log_softmax(logits[i])[gold[i]]` for the live rows.
///
/// NaN or +infinity in a row, and a gold token outside the vocabulary, give NaN.
pub struct GoldLogProbs<'a> {
    /// The rows.
    pub rows: RowList<'a>,
    /// `[bucket, vocab_size]`, rows a stride apart.
    pub logits: View<'a, f32>,
    /// `[bucket]`.
    pub gold: View<'a, u32>,
    /// `[bucket]`.
    pub out: ViewMut<'a, f32>,
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

impl GoldLogProbs<'_> {
    /// Enqueues the kernel for rows of `vocab_size` tokens, `stride` elements apart.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context, vocab_size: usize, stride: usize) -> Result<()> {
        self.launch_with(context, vocab_size, stride, THREADS)
    }

    /// As [`GoldLogProbs::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, vocab_size: usize, stride: usize, threads: u32) -> Result<()> {
        let bucket = self.rows.bucket;
        check_stride(OPERATION, vocab_size, stride)?;
        check_len(OPERATION, "logits", bucket * stride, self.logits.len())?;
        check_len(OPERATION, "gold", bucket, self.gold.len())?;
        check_len(OPERATION, "out", bucket, self.out.len())?;
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
        // A maximum and a sum for each chunk.
        let shared = chunks * 2 * size_of::<f32>();
        let launch = Launch { symbol: "stats_gold_f32", grid: [rows.bucket, 1, 1], block: threads, shared };
        // SAFETY: mirrors `stats_gold_f32(StatsArguments)`. A block reads its own row of `logits` and `gold`, below `bucket`, and
        // compares the gold token with `vocab_size`; the lengths were checked above; `out` is borrowed mutably.
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

    device_tests! {
        shapes: |context| assert_all_pass(context, "stats", cases::check);
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn each_logit_of_a_live_row_is_read_once() {
        crate::cuda::testing::run_emulated(|context| {
            let (vocab_size, bucket, live) = (8001, 3, 2);
            for stride in [8001, 8004] {
                let rows = DeviceRows::upload(context, &[Row::default(); 3], live)?;
                let logits = context.upload(&vec![1.0f32; bucket * stride])?;
                let (gold, mut out) = (context.upload(&[7u32; 3])?, context.zeros(bucket)?);
                context.watch(logits.view())?;
                let (logits, gold) = (logits.view(), gold.view());
                GoldLogProbs { rows: rows.list(), logits, gold, out: out.view_mut() }
                    .launch(context, vocab_size, stride)?;
                assert_eq!(context.watched_bytes()?, (live * vocab_size * size_of::<f32>()) as u64);
            }
            Ok(())
        });
    }
}
