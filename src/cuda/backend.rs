//! The CUDA backend: each method of [`Backend`](crate::backend::Backend) as a launch or a matrix product, on a GPU or emulated.
//!
//! Every grid is sized by [`Rows::bucket`]; how many of these rows are live lies on the device. Matrix products, their epilogues
//! and layer norms compute the whole bucket, the other kernels its live rows.

mod network;
mod search;

use std::collections::HashMap;
use std::ops::Range;

use super::buffer::{Buffer, Pinned, View, ViewMut};
use super::context::{Context, Recording};
use super::element::{Element, with_element};
use super::gather;
use super::rows::RowList;
use crate::Result;
use crate::backend::{Device, Dtype, Part, Rows, StepKey, Value};

/// A CUDA device, real or emulated.
///
/// Which type it computes in is no part of its own type: an engine, a search and a model are compiled once for all of them, and only the
/// launchers of kernels four times.
#[derive(Debug)]
pub struct Cuda {
    context: Context,
    dtype: Dtype,
}

impl Cuda {
    /// The backend over an open device. With [`Dtype::I8`] the weights of products are 8-bit integers, keys and values bf16, and all else
    /// f32; otherwise weights and activations are of the same type.
    pub fn new(context: Context, dtype: Dtype) -> Self {
        Cuda { context, dtype }
    }

    /// The device.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// What the weights of products are stored in.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// What keys and values are stored in.
    pub fn cache_dtype(&self) -> Dtype {
        with_element!(self.dtype, _T, C => C::DTYPE)
    }
}

/// Host memory that words are copied to, and where on the device they are brought together before.
#[derive(Debug)]
pub struct Report {
    pinned: Pinned<u32>,
    gathered: Buffer<u32>,
}

/// The first `len` elements, to read.
fn head<T>(buffer: &Buffer<T>, len: usize) -> Result<View<'_, T>> {
    buffer.view().slice(0..len)
}

/// The first `len` elements, to write.
fn head_mut<T>(buffer: &mut Buffer<T>, len: usize) -> Result<ViewMut<'_, T>> {
    buffer.view_mut().slice(0..len)
}

/// Elements between the starts of two rows of logits: all rows start at multiples of 16 bytes.
fn logits_stride(vocab_size: usize) -> usize {
    vocab_size.next_multiple_of(4)
}

fn list(rows: &Rows<Cuda>) -> RowList<'_> {
    RowList { entries: rows.entries.view(), count: rows.count.view(), bucket: rows.bucket }
}

impl Device for Cuda {
    type Buffer<V: Value> = Buffer<V>;
    type GraphCache = HashMap<StepKey, Recording>;
    type Readback = Report;

    // Two steps enqueued behind the one looked at: the device has work while the host answers and admits.
    const READBACK_DEPTH: usize = 2;

    fn replay_or_record(
        &self,
        graphs: &mut HashMap<StepKey, Recording>,
        key: StepKey,
        enqueue: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.context.step(graphs.entry(key).or_default(), enqueue)
    }

    fn aside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.context.aside(work)
    }

    fn join_aside(&self) -> Result<()> {
        self.context.join_aside()
    }

    fn name(&self) -> String {
        self.context.name().to_owned()
    }

    fn dry(&self) -> Option<Self> {
        Some(Cuda { context: super::open_dry(), dtype: self.dtype })
    }

    fn allocated(&self) -> u64 {
        self.context.counters().live_bytes
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        self.context.free_memory()
    }

    fn check(&self) -> Result<()> {
        self.context.synchronize()
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn zeros<V: Value>(&self, len: usize) -> Result<Buffer<V>> {
        self.context.zeros(len)
    }

    fn write<V: Value>(&self, to: &mut Buffer<V>, offset: usize, values: &[V]) -> Result<()> {
        self.context.write(to.view_mut().slice(offset..offset + values.len())?, values)
    }

    fn read<V: Value>(&self, from: &Buffer<V>, offset: usize, values: &mut [V]) -> Result<()> {
        values.copy_from_slice(&self.context.download(from.view().slice(offset..offset + values.len())?)?);
        Ok(())
    }

    fn enqueue_read<V: Value>(
        &self,
        from: &Buffer<V>,
        range: Range<usize>,
        to: &mut Report,
        offset: usize,
    ) -> Result<()> {
        self.context.post(from.view().slice(range)?.bits()?, &mut to.pinned, offset)
    }

    fn readback(&self, words: usize) -> Result<Report> {
        Ok(Report { pinned: self.context.pinned(words)?, gathered: self.context.allocate(words)? })
    }

    fn enqueue_read_parts(&self, parts: &[Part<'_, Self>], to: &mut Report) -> Result<()> {
        let mut views = Vec::with_capacity(parts.len());
        for part in parts {
            views.push(match part {
                Part::Ints(from, range) => from.view().slice(range.clone())?,
                Part::Floats(from, range) => from.view().slice(range.clone())?.bits()?,
            });
        }
        let total = parts.iter().map(Part::len).sum();
        let out = to.gathered.view_mut().slice(0..total)?;
        gather::Gather { parts: &views, out }.launch(&self.context)?;
        self.context.post(to.gathered.view().slice(0..total)?, &mut to.pinned, 0)
    }

    fn wait_readback(&self, readback: &Report, words: &mut [u32]) -> Result<()> {
        self.context.wait_readback(&readback.pinned, words)
    }
}
