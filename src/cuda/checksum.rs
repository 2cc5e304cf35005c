//! Launcher of `kernels/checksum.cu`: reads memory as fast as it can be read.

use bytemuck::{Pod, Zeroable};

use super::Launch;
use super::buffer::{View, ViewMut};
use super::context::{Context, to_u32};
use super::layout::{Layout, layout};
use crate::{Error, Result};

const OPERATION: &str = "checksum";
const THREADS: u32 = 512;
/// Words of 16 bytes.
const PACK: usize = 4;

/// The exclusive or of words, a part by each block.
pub struct Checksum<'a> {
    /// A multiple of 4, at an address that is a multiple of 16.
    pub words: View<'a, u32>,
    /// `[blocks]`, at least one: the grid.
    pub out: ViewMut<'a, u32>,
}

/// Mirrors `ChecksumArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    words: u64,
    out: u64,
    packs: u32,
    unused: u32,
}

/// What [`layout`](super::layout) compares with the kernel file.
pub(super) const LAYOUTS: &[Layout] = &[layout!(Arguments as "ChecksumArguments" { words, out, packs, unused })];

impl Checksum<'_> {
    /// Enqueues the kernel.
    ///
    /// # Errors
    /// Words that do not come in packs; no block; the device failed.
    pub fn launch(self, context: &Context) -> Result<()> {
        self.launch_with(context, THREADS)
    }

    /// As [`Checksum::launch`], with blocks of `threads`, a multiple of 32.
    pub(crate) fn launch_with(self, context: &Context, threads: u32) -> Result<()> {
        let (len, words) = (self.words.len(), context.address(&self.words)?);
        if !len.is_multiple_of(PACK) || !words.is_multiple_of(16) || self.out.is_empty() {
            let expected = "packs of 16 bytes, and at least one block".to_owned();
            let got = format!("{len} words at {words:#x}, {} blocks", self.out.len());
            return Err(Error::Shape { operation: OPERATION, tensor: "words", expected, got });
        }
        let packs = to_u32(OPERATION, "words", len / PACK)?;
        let arguments = Arguments { words, out: context.address_mut(&self.out)?, packs, unused: 0 };
        let grid = [to_u32(OPERATION, "blocks", self.out.len())?, 1, 1];
        let launch = Launch { symbol: "checksum_f32", grid, block: threads, shared: 0 };
        // SAFETY: mirrors `checksum_f32(ChecksumArguments)`. A thread reads packs below `packs`, which `words` holds; a block writes
        // its own word of `out`, which is borrowed mutably and as long as the grid.
        unsafe { context.launch(&launch, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::testing::device_tests;
    use crate::validate::kernels::checksum as cases;
    use crate::validate::probe::assert_all_pass;

    fn words_without_a_whole_pack_are_refused(context: &Context) -> Result<()> {
        let (words, mut out) = (context.upload(&[1u32; 8])?, context.upload(&[0u32])?);
        let kernel = Checksum { words: words.view().slice(0..7)?, out: out.view_mut() };
        let error = kernel.launch(context).unwrap_err().to_string();
        assert!(
            error.starts_with("checksum: words: expected packs of 16 bytes, and at least one block, got 7"),
            "{error}"
        );
        Ok(())
    }

    device_tests! {
        words: |context| assert_all_pass(context, OPERATION, cases::check);
        shapes: words_without_a_whole_pack_are_refused;
    }

    /// Counting reads takes the emulator.
    #[test]
    #[cfg_attr(not(emulated), ignore = "needs a C++ compiler")]
    fn each_word_is_read_once() {
        crate::cuda::testing::run_emulated(|context| {
            let (words, mut out) = (context.upload(&vec![3u32; 4 * 1237])?, context.zeros::<u32>(3)?);
            context.watch(words.view())?;
            Checksum { words: words.view(), out: out.view_mut() }.launch_with(context, 64)?;
            assert_eq!(context.watched_bytes()?, 16 * 1237);
            Ok(())
        });
    }
}
