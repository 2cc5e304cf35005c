//! Launcher of `kernels/ensemble.cu`: the log-linear mixture of several models.

use bytemuck::{Pod, Zeroable};

use super::beam_step::{BeamStepScratch, SearchArguments, SearchViews, at_least};
use super::buffer::View;
use super::context::{Context, to_u32};
use super::layout::{Layout, layout};
use super::{Launch, is_vectorizable};
use crate::Result;
use crate::backend::MAX_SCORERS;

const OPERATION: &str = "ensemble";
const THREADS: u32 = 512;

/// Mixes the rows that ask for it into `search.ranked`; see [`crate::backend::SearchOps::ensemble`].
pub struct Ensemble<'a> {
    /// What is searched; its ranked log-probabilities are written.
    pub search: SearchViews<'a>,
    /// As allocated for this search.
    pub scratch: &'a mut BeamStepScratch,
    /// Each scorer's logits `[bucket, stride]`.
    pub scorers: [Option<View<'a, f32>>; MAX_SCORERS],
    /// Elements between the starts of two rows.
    pub stride: usize,
    /// No more rows than this are live.
    pub bucket: usize,
}

/// Mirrors `EnsembleArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    search: SearchArguments,
    scorers: [u64; MAX_SCORERS],
    ranked: u64,
    bucket: u32,
    stride: u32,
    vectorized: u32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] =
    &[layout!(Arguments as "EnsembleArguments" { search, scorers, ranked, bucket, stride, vectorized, unused })];

impl Ensemble<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// A tensor of another size; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        self.launch_with(context, THREADS)
    }

    /// As [`Ensemble::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, threads: u32) -> Result<()> {
        let search = self.search.arguments(OPERATION, context, self.scratch)?;
        let len = self.bucket * self.stride;
        at_least(OPERATION, "stride", self.search.vocab_size, self.stride)?;
        at_least(OPERATION, "ranked", len, self.search.ranked.len())?;
        let mut scorers = [0; MAX_SCORERS];
        for (address, scorer) in scorers.iter_mut().zip(&self.scorers) {
            at_least(OPERATION, "scorer", len, scorer.map_or(len, |scorer| scorer.len()))?;
            *address = context.address_or_null(scorer.as_ref())?;
        }
        if self.bucket == 0 {
            return Ok(());
        }
        let arguments = Arguments {
            search,
            scorers,
            ranked: context.address_mut(&self.search.ranked)?,
            bucket: to_u32(OPERATION, "rows", self.bucket)?,
            stride: to_u32(OPERATION, "stride", self.stride)?,
            vectorized: is_vectorizable::<f32>(self.stride, &scorers).into(),
            unused: 0,
        };
        let launch = Launch { symbol: "ensemble_f32", grid: [arguments.bucket, 1, 1], block: threads, shared: 0 };
        // SAFETY: mirrors `ensemble_f32(EnsembleArguments)`. A block reads its own row of each scorer that has a weight and writes its
        // own row of `ranked`, below `bucket`; the lengths were checked above, and a scorer with a weight is there.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::ensemble as cases;
    use crate::validate::probe::assert_all_pass;

    device_tests! {
        all: |context| assert_all_pass(context, "ensemble", cases::check);
    }
}
