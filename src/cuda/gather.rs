//! Launcher of `kernels/gather.cu`: words of several places, brought together for one copy to the host.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, check_len, to_u32};
use super::layout::{Layout, layout};
use crate::{Error, Result};

const OPERATION: &str = "gather";
const THREADS: u32 = 128;
/// Blocks of a place, at most: histories are short.
const BLOCKS: u32 = 16;
/// Places of one launch, at most; as in the kernel.
pub const MAX_PARTS: usize = 8;

/// Mirrors `GatherArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    from: [u64; MAX_PARTS],
    out: u64,
    words: [u32; MAX_PARTS],
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "GatherArguments" { from, out, words })];

/// `out` = the words of `parts`, one behind the other.
pub struct Gather<'a> {
    /// [`MAX_PARTS`] at most.
    pub parts: &'a [View<'a, u32>],
    /// As long as all parts.
    pub out: ViewMut<'a, u32>,
}

impl Gather<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// Too many parts, or `out` of another length; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        self.launch_with(context, THREADS)
    }

    /// As [`Gather::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, threads: u32) -> Result<()> {
        if self.parts.len() > MAX_PARTS {
            let (expected, got) = (format!("at most {MAX_PARTS}"), self.parts.len().to_string());
            return Err(Error::Shape { operation: OPERATION, tensor: "parts", expected, got });
        }
        check_len(OPERATION, "out", self.parts.iter().map(View::len).sum(), self.out.len())?;
        if self.out.is_empty() {
            return Ok(());
        }
        let mut arguments = Arguments { out: context.address_mut(&self.out)?, ..Arguments::zeroed() };
        for (i, part) in self.parts.iter().enumerate() {
            (arguments.from[i], arguments.words[i]) = (context.address(part)?, to_u32(OPERATION, "words", part.len())?);
        }
        let longest = arguments.words.into_iter().max().unwrap_or(0);
        let grid = [longest.div_ceil(threads).min(BLOCKS), self.parts.len() as u32, 1];
        // SAFETY: mirrors `gather_f32(GatherArguments)`. A thread reads words of a part below its length and writes them to their
        // place in `out`, which is as long as all parts and borrowed mutably.
        unsafe { context.launch(&Launch { symbol: "gather_f32", grid, block: threads, shared: 0 }, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::gather as cases;
    use crate::validate::probe::assert_all_pass;

    fn wrong_shapes_are_refused(context: &Context) -> Result<()> {
        let (words, mut out) = (context.zeros::<u32>(4)?, context.zeros::<u32>(9)?);
        let parts = [words.view(), words.view()];
        let error = Gather { parts: &parts, out: out.view_mut() }.launch(context).expect_err("8 words, not 9");
        assert_eq!(error.to_string(), "gather: out: expected 8 elements, got 9 elements");
        let error = Gather { parts: &[words.view(); 9], out: out.view_mut() }.launch(context).expect_err("9 parts");
        assert_eq!(error.to_string(), "gather: parts: expected at most 8, got 9");
        Ok(())
    }

    device_tests! {
        all: |context| assert_all_pass(context, OPERATION, cases::check);
        shapes: wrong_shapes_are_refused;
    }
}
