//! What a device is: memory, streams, and steps that are recorded and replayed.

use std::fmt::Debug;
use std::ops::Range;

use bytemuck::Pod;

use super::StepKey;
use crate::Result;

/// What buffers hold: numbers and structures of them, copied between host and device byte by byte.
pub trait Value: Pod + Send + Sync + Debug {}

impl<T: Pod + Send + Sync + Debug> Value for T {}

/// Part of what lies in a device's memory, to be read late.
#[derive(Debug)]
pub enum Part<'a, D: Device> {
    /// A range of words.
    Ints(&'a D::Buffer<u32>, Range<usize>),
    /// The bits of a range of values.
    Floats(&'a D::Buffer<f32>, Range<usize>),
}

impl<D: Device> Part<'_, D> {
    /// Words.
    pub fn len(&self) -> usize {
        match self {
            Part::Ints(_, range) | Part::Floats(_, range) => range.len(),
        }
    }

    /// Whether it has no word.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory, streams and recorded steps of a device.
pub trait Device: Send + Sync + Sized + Debug + 'static {
    /// Values in the device's memory, contiguous.
    type Buffer<T: Value>: Send + Debug;
    /// The recorded steps of one session.
    type GraphCache: Default + Send + Debug;
    /// Host memory for words that are read late.
    type Readback: Send + Debug;

    /// How many steps are enqueued behind a step before the host looks at what came of it; 0 where a call returns with its work
    /// done.
    const READBACK_DEPTH: usize;

    /// Runs a decoding step: what `enqueue` enqueues, called, or replayed as recorded under the same key.
    ///
    /// Two steps with the same key enqueue the same work on the same buffers with the same numbers. `enqueue` neither allocates,
    /// nor waits, nor copies from or to the host.
    ///
    /// # Errors
    /// Those of `enqueue`; the device failed.
    fn replay_or_record(
        &self,
        graphs: &mut Self::GraphCache,
        key: StepKey,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<()>;

    /// Enqueues `work` behind all that has been enqueued so far and beside what comes before the next [`Device::join_aside`]: until
    /// then nothing touches what it writes, nor writes what it reads. Where a call returns with its work done: now.
    ///
    /// # Errors
    /// Those of `work`, which neither allocates nor waits; the device failed.
    fn aside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    /// Lets what is enqueued from here on wait for the work aside.
    ///
    /// # Errors
    /// The device failed.
    fn join_aside(&self) -> Result<()> {
        Ok(())
    }

    /// The device's name, as on the command line.
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    /// A backend of the same kind on which nothing is computed or kept: [`Device::allocated`] says what was allocated on it. None
    /// where memory is not planned.
    fn dry(&self) -> Option<Self> {
        None
    }

    /// Bytes allocated on the device and not freed, as far as they are counted.
    fn allocated(&self) -> u64 {
        0
    }

    /// Bytes that can be allocated after all that is enqueued has run; none if nobody knows, and nobody set a limit.
    ///
    /// # Errors
    /// The device failed.
    fn free_memory(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Waits for all that is enqueued.
    ///
    /// # Errors
    /// The device has failed and can do no more.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Runs `work` where the backend's threads are; a caller wraps a whole step or more, not each operation.
    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// Whether someone else waits for the backend's threads: work that goes on for long ends then, and comes back.
    fn is_wanted(&self) -> bool {
        false
    }

    /// Allocates zeros.
    ///
    /// # Errors
    /// The device has no memory left; so for every allocation.
    fn zeros<T: Value>(&self, len: usize) -> Result<Self::Buffer<T>>;

    /// Copies values to the device, starting at element `offset`.
    ///
    /// # Errors
    /// The device failed; so for every copy.
    fn write<T: Value>(&self, to: &mut Self::Buffer<T>, offset: usize, values: &[T]) -> Result<()>;

    /// Waits, then copies values back, starting at element `offset`.
    ///
    /// # Errors
    /// The device failed.
    fn read<T: Value>(&self, from: &Self::Buffer<T>, offset: usize, values: &mut [T]) -> Result<()>;

    /// Allocates host memory for `words` words of 4 bytes that are read late.
    ///
    /// # Errors
    /// There is no memory left.
    fn readback(&self, words: usize) -> Result<Self::Readback>;

    /// Enqueues a copy of the bits of a range of values, each a whole number of words, to the host, to word `offset` there.
    ///
    /// # Errors
    /// The device failed.
    fn enqueue_read<T: Value>(
        &self,
        from: &Self::Buffer<T>,
        range: Range<usize>,
        to: &mut Self::Readback,
        offset: usize,
    ) -> Result<()>;

    /// Enqueues a copy of several parts to the host, one behind the other from word 0 there.
    ///
    /// # Errors
    /// The device failed.
    fn enqueue_read_parts(&self, parts: &[Part<'_, Self>], to: &mut Self::Readback) -> Result<()> {
        let mut offset = 0;
        for part in parts {
            match part {
                Part::Ints(from, range) => self.enqueue_read::<u32>(from, range.clone(), to, offset)?,
                Part::Floats(from, range) => self.enqueue_read::<f32>(from, range.clone(), to, offset)?,
            }
            offset += part.len();
        }
        Ok(())
    }

    /// Waits for the last copy enqueued into `readback`, but for nothing enqueued after it, then reads its first words.
    ///
    /// # Errors
    /// The device failed.
    fn wait_readback(&self, readback: &Self::Readback, words: &mut [u32]) -> Result<()>;
}
