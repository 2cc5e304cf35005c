//! A device made safe: typed buffers, checked lengths, counters, injected faults.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(test)]
use std::sync::{Mutex, PoisonError};

use bytemuck::Pod;

use super::buffer::{Buffer, Graph, Pinned, View, ViewMut};
use super::counters::{
    ALLOCATIONS, COPIES, Counters, FREES, HOST_BYTES, LATE_READS, LAUNCHES, LIVE_BYTES, PINNED_BYTES, Tally, WAITS,
};
use super::device::{Device, GraphId, Launch, PinnedId};
use crate::{Error, Result};

mod products;
mod recording;

pub use recording::Recording;

/// A device and its stream; a handle, cheap to clone.
///
/// Calls enqueue and return, except [`download`](Context::download), [`synchronize`](Context::synchronize) and
/// [`wait_readback`](Context::wait_readback), which wait. Memory is freed behind what is enqueued, so a buffer may be dropped as soon as
/// the last call that names it has returned. A graph is the exception: it must not be replayed after memory it names is freed.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    device: Box<dyn Device>,
    counts: Tally,
    /// Bytes of device memory that may be allocated at once.
    limit: AtomicU64,
    /// Whether a test has taken the device away.
    lost: AtomicBool,
    /// Whose kernels lose blocks.
    #[cfg(test)]
    lossy: Mutex<Option<&'static str>>,
    /// Calls of each kind that still succeed; `NEVER` when no fault is planned.
    faults: [AtomicU64; FAULTS],
}

/// A kind of call that can be made to fail, for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An allocation.
    Allocation,
    /// A copy or a fill.
    Copy,
    /// A kernel launch, a matrix product, or the replay of a graph.
    Launch,
    /// A launch that takes the device with it: nothing works from there on.
    Loss,
}

const FAULTS: usize = 4;
const NEVER: u64 = u64::MAX;

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("device", &self.name()).field("counters", &self.counters()).finish()
    }
}

impl Context {
    pub(super) fn new(device: Box<dyn Device>) -> Self {
        let faults = [const { AtomicU64::new(NEVER) }; FAULTS];
        Context(Arc::new(Inner {
            device,
            counts: Tally::default(),
            limit: AtomicU64::new(u64::MAX),
            lost: AtomicBool::new(false),
            #[cfg(test)]
            lossy: Mutex::default(),
            faults,
        }))
    }

    /// The device's name, as on the command line.
    pub fn name(&self) -> &str {
        self.0.device.name()
    }

    /// What has been done so far.
    pub fn counters(&self) -> Counters {
        self.0.counts.read()
    }

    /// Makes the call of this kind after the next `successes` fail, once.
    pub fn fail_after(&self, fault: Fault, successes: u64) {
        self.0.faults[fault as usize].store(successes, Ordering::Relaxed);
    }

    /// Takes a planned fault back; whether its turn had not come.
    pub fn take_fault(&self, fault: Fault) -> bool {
        self.0.faults[fault as usize].swap(NEVER, Ordering::Relaxed) != NEVER
    }

    /// The error of a device that a test has taken away.
    fn check_loss(&self, operation: &'static str) -> Result<()> {
        if self.0.lost.load(Ordering::Relaxed) {
            return Err(self.failure(operation, "a loss injected by a test".to_owned()));
        }
        Ok(())
    }

    fn count(&self, index: usize, by: usize) {
        self.0.counts.add(index, by);
    }

    /// The planned fault if its turn has come.
    fn check_fault(&self, fault: Fault, operation: &'static str) -> Result<()> {
        if fault == Fault::Launch && self.check_fault(Fault::Loss, operation).is_err() {
            self.0.lost.store(true, Ordering::Relaxed);
        }
        self.check_loss(operation)?;
        let left = &self.0.faults[fault as usize];
        match left.load(Ordering::Relaxed) {
            NEVER => Ok(()),
            0 => {
                left.store(NEVER, Ordering::Relaxed);
                Err(self.failure(operation, "a fault injected by a test".to_owned()))
            }
            more => {
                left.store(more - 1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn failure(&self, operation: &'static str, reason: String) -> Error {
        Error::DeviceOperation { operation, device: self.name().to_owned(), reason }
    }

    // ---- Memory ----

    /// Allocates `len` elements with unspecified contents.
    ///
    /// # Errors
    /// Out of memory; a graph is being captured.
    pub fn allocate<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or_else(|| self.failure("allocate", format!("{len} elements of {} bytes", size_of::<T>())))?;
        // A planned fault is what a device without memory would say.
        self.check_loss("allocate")?;
        let planned = self.check_fault(Fault::Allocation, "allocate").is_err();
        let left = if planned { 0 } else { self.left() };
        if planned || bytes as u64 > left {
            let device = self.name().to_owned();
            return Err(Error::OutOfMemory {
                operation: "allocate",
                device,
                needed: bytes as u64,
                available: Some(left),
            });
        }
        let address = self.0.device.allocate(bytes)?;
        self.count(ALLOCATIONS, 1);
        self.count(LIVE_BYTES, bytes);
        Ok(Buffer { context: self.clone(), address, len, element: PhantomData })
    }

    /// Lets no more than `bytes` of device memory be taken at once.
    pub fn limit_memory(&self, bytes: u64) {
        self.0.limit.store(bytes, Ordering::Relaxed);
    }

    /// What the limit leaves.
    fn left(&self) -> u64 {
        self.0.limit.load(Ordering::Relaxed).saturating_sub(self.0.counts.get(LIVE_BYTES))
    }

    /// Bytes of device memory that can be allocated once all that is enqueued has run; none if neither the device nor a limit
    /// says.
    ///
    /// # Errors
    /// As [`Context::synchronize`].
    pub fn free_memory(&self) -> Result<Option<u64>> {
        self.synchronize()?;
        let limited = Some(self.left()).filter(|_| self.0.limit.load(Ordering::Relaxed) != u64::MAX);
        let free = self.0.device.free_memory()?;
        Ok(free.into_iter().chain(limited).min())
    }

    /// Whether the device keeps and computes nothing, and only counts.
    pub fn is_dry(&self) -> bool {
        self.0.device.is_dry()
    }

    /// Allocates a copy of `values`.
    ///
    /// # Errors
    /// As [`Context::allocate`] and [`Context::write`].
    pub fn upload<T: Pod>(&self, values: &[T]) -> Result<Buffer<T>> {
        let mut buffer = self.allocate(values.len())?;
        self.write(buffer.view_mut(), values)?;
        Ok(buffer)
    }

    /// Allocates `len` elements whose bytes are all zero.
    ///
    /// # Errors
    /// As [`Context::allocate`] and [`Context::fill`].
    pub fn zeros<T: Pod>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.allocate(len)?;
        self.fill(buffer.view_mut(), 0)?;
        Ok(buffer)
    }

    /// Copies from the host; the values are taken before the call returns.
    ///
    /// # Errors
    /// The lengths differ; a graph is being captured; the device failed.
    pub fn write<T: Pod>(&self, to: ViewMut<'_, T>, values: &[T]) -> Result<()> {
        let address = self.address_mut(&to)?;
        check_len("copy to device", "source", to.len, values.len())?;
        self.check_fault(Fault::Copy, "copy to device")?;
        self.count(COPIES, 1);
        self.count(HOST_BYTES, size_of_val(values));
        // SAFETY: a view lies inside its buffer, and this context owns it.
        unsafe { self.0.device.upload(address, bytemuck::cast_slice(values)) }
    }

    /// Waits for all that is enqueued, then copies to the host.
    ///
    /// # Errors
    /// A graph is being captured; the device failed, now or at anything that was enqueued.
    pub fn download<T: Pod>(&self, from: View<'_, T>) -> Result<Vec<T>> {
        let address = self.address(&from)?;
        self.check_fault(Fault::Copy, "copy from device")?;
        self.count(COPIES, 1);
        self.count(WAITS, 1);
        self.count(HOST_BYTES, from.len * size_of::<T>());
        let mut values = vec![T::zeroed(); from.len];
        // SAFETY: a view lies inside its buffer, and this context owns it.
        unsafe { self.0.device.download(address, bytemuck::cast_slice_mut(&mut values))? };
        Ok(values)
    }

    /// Copies on the device.
    ///
    /// # Errors
    /// The lengths differ; the device failed.
    pub fn copy<T: Pod>(&self, from: View<'_, T>, to: ViewMut<'_, T>) -> Result<()> {
        let (source, target) = (self.address(&from)?, self.address_mut(&to)?);
        check_len("copy on device", "source", to.len, from.len)?;
        self.check_fault(Fault::Copy, "copy on device")?;
        self.count(COPIES, 1);
        // SAFETY: views lie inside their buffers, this context owns both, and a mutable view overlaps no other.
        unsafe { self.0.device.copy(source, target, from.len * size_of::<T>()) }
    }

    /// Sets every byte to `byte`.
    ///
    /// # Errors
    /// The device failed.
    pub fn fill<T: Pod>(&self, to: ViewMut<'_, T>, byte: u8) -> Result<()> {
        let address = self.address_mut(&to)?;
        self.check_fault(Fault::Copy, "fill on device")?;
        self.count(COPIES, 1);
        // SAFETY: a view lies inside its buffer, and this context owns it.
        unsafe { self.0.device.fill(address, byte, to.len * size_of::<T>()) }
    }

    /// Enqueues `work` behind all that has been enqueued so far, and beside what comes before the next [`Context::join_aside`]:
    /// until then nothing may touch what it writes, nor write what it reads.
    ///
    /// # Errors
    /// Those of `work`, which may neither allocate nor wait; a graph is being captured; the device failed.
    pub fn aside(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check_loss("begin work aside")?;
        self.0.device.begin_aside()?;
        let outcome = work();
        self.0.device.end_aside().and(outcome)
    }

    /// Lets what is enqueued from here on wait for the work aside.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    pub fn join_aside(&self) -> Result<()> {
        self.check_loss("join work aside")?;
        self.0.device.join_aside()
    }

    /// Waits for all that is enqueued.
    ///
    /// # Errors
    /// A graph is being captured; the device failed, now or at anything that was enqueued.
    pub fn synchronize(&self) -> Result<()> {
        self.check_loss("synchronize")?;
        self.count(WAITS, 1);
        self.0.device.synchronize()
    }

    /// A view's address, for a kernel's arguments.
    pub(super) fn address<T>(&self, view: &View<'_, T>) -> Result<u64> {
        self.check_owner(view.owner)?;
        Ok(view.address)
    }

    /// A mutable view's address, for a kernel's arguments.
    pub(super) fn address_mut<T>(&self, view: &ViewMut<'_, T>) -> Result<u64> {
        self.check_owner(view.owner)?;
        Ok(view.address)
    }

    /// The address of a view that a kernel can do without: 0 if there is none.
    pub(super) fn address_or_null<T>(&self, view: Option<&View<'_, T>>) -> Result<u64> {
        view.map_or(Ok(0), |view| self.address(view))
    }

    fn check_owner(&self, owner: usize) -> Result<()> {
        if owner == self.id() {
            return Ok(());
        }
        Err(self.failure("use a buffer", "the buffer belongs to another device".to_owned()))
    }

    /// Frees a buffer of `bytes` once all that is enqueued has run.
    ///
    /// # Safety
    /// The address came from this context's `allocate` and is used no more.
    pub(super) unsafe fn free(&self, address: u64, bytes: usize) {
        self.count(FREES, 1);
        self.0.counts.subtract(LIVE_BYTES, bytes);
        // SAFETY: the caller's promise.
        unsafe { self.0.device.free(address) };
    }

    pub(super) fn drop_graph(&self, graph: GraphId) {
        self.0.device.drop_graph(graph);
    }

    /// How often memory has been freed.
    pub(super) fn frees(&self) -> u64 {
        self.0.counts.get(FREES)
    }

    pub(super) fn free_pinned(&self, pinned: PinnedId, bytes: usize) {
        self.0.counts.subtract(PINNED_BYTES, bytes);
        self.0.device.free_pinned(pinned);
    }

    /// Tells contexts apart: the address of what they share.
    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    // ---- Work ----

    /// Launches a kernel with `arguments` passed by value.
    ///
    /// # Errors
    /// As [`Device::launch`].
    ///
    /// # Safety
    /// `arguments` mirrors the struct that the kernel takes; with it and this many threads the kernel stays inside buffers of
    /// this context, and writes to none that anyone holds a shared view of.
    pub(super) unsafe fn launch<A: Pod>(&self, launch: &Launch, arguments: &A) -> Result<()> {
        self.check_fault(Fault::Launch, "launch")?;
        self.count(LAUNCHES, 1);
        #[cfg(test)]
        let launch = &match self.without_last_block(*launch) {
            Some(launch) => launch,
            None => return Ok(()),
        };
        // SAFETY: the caller's promise.
        unsafe { self.0.device.launch(launch, bytemuck::bytes_of(arguments)) }
    }

    // ---- Late reads ----

    /// Page-locked host memory for `len` elements, for reads that do not stall the device.
    ///
    /// # Errors
    /// Out of memory; a graph is being captured.
    pub fn pinned<T: Pod>(&self, len: usize) -> Result<Pinned<T>> {
        self.check_fault(Fault::Allocation, "allocate pinned memory")?;
        let id = self.0.device.allocate_pinned(len * size_of::<T>())?;
        self.count(ALLOCATIONS, 1);
        self.count(PINNED_BYTES, len * size_of::<T>());
        Ok(Pinned { context: self.clone(), id, len, element: PhantomData })
    }

    /// Enqueues a copy of `from` into page-locked memory, from element `offset` of it on, which [`wait_readback`](Context::wait_readback) reads
    /// later.
    ///
    /// # Errors
    /// There is no room; a graph is being captured; the device failed.
    pub fn post<T: Pod>(&self, from: View<'_, T>, pinned: &mut Pinned<T>, offset: usize) -> Result<()> {
        let address = self.address(&from)?;
        self.check_owner(pinned.context.id())?;
        if offset > pinned.len || from.len > pinned.len - offset {
            let expected = format!("room for {} elements from {offset} on", from.len);
            return Err(shape_error("copy to pinned memory", "target", expected, pinned.len));
        }
        self.check_fault(Fault::Copy, "copy to pinned memory")?;
        self.count(COPIES, 1);
        self.count(HOST_BYTES, from.len * size_of::<T>());
        let (bytes, offset) = (from.len * size_of::<T>(), offset * size_of::<T>());
        // SAFETY: a view lies inside its buffer, and this context owns it; the page-locked memory has the room.
        unsafe { self.0.device.post(address, bytes, pinned.id, offset) }
    }

    /// Waits until the last [`post`](Context::post) into `pinned` has run, but for nothing enqueued after it, and reads its
    /// first elements.
    ///
    /// # Errors
    /// Nothing was posted; `pinned` has fewer elements; a graph is being captured; the device failed.
    pub fn wait_readback<T: Pod>(&self, pinned: &Pinned<T>, values: &mut [T]) -> Result<()> {
        self.check_owner(pinned.context.id())?;
        if values.len() > pinned.len {
            let expected = format!("at least {} elements", values.len());
            return Err(shape_error("read pinned memory", "source", expected, pinned.len));
        }
        self.check_loss("read pinned memory")?;
        self.count(LATE_READS, 1);
        self.0.device.wait_readback(pinned.id, bytemuck::cast_slice_mut(values))
    }
}

/// For tests that a wrong kernel is found.
#[cfg(test)]
impl Context {
    /// From here on the launches of kernels whose names begin with `op` lack their last block.
    pub fn lose_blocks_of(&self, op: &'static str) {
        *self.0.lossy.lock().unwrap_or_else(PoisonError::into_inner) = Some(op);
    }

    fn without_last_block(&self, mut launch: Launch) -> Option<Launch> {
        let lossy = *self.0.lossy.lock().unwrap_or_else(PoisonError::into_inner);
        if !lossy.is_some_and(|op| launch.symbol.starts_with(op)) {
            return Some(launch);
        }
        launch.grid[0] -= 1;
        (launch.grid[0] > 0).then_some(launch)
    }
}

/// For tests that say what a kernel must not read.
impl Context {
    /// Counts the bytes of `view` that kernels read from here on through `__ldg`, `__ldcs` and the like.
    ///
    /// # Errors
    /// The device is not the emulated one; what was enqueued before fails.
    pub fn watch<T>(&self, view: View<'_, T>) -> Result<()> {
        self.0.device.watch(self.address(&view)?, view.len * size_of::<T>())
    }

    /// The bytes counted since [`Context::watch`], after all that is enqueued has run.
    ///
    /// # Errors
    /// As [`Context::watch`].
    pub fn watched_bytes(&self) -> Result<u64> {
        self.0.device.watched_bytes()
    }
}

fn shape_error(operation: &'static str, tensor: &'static str, expected: String, got: usize) -> Error {
    Error::Shape { operation, tensor, expected, got: format!("{got} elements") }
}

/// Whether a tensor has the number of elements that an operation asks for.
pub(super) fn check_len(operation: &'static str, tensor: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(shape_error(operation, tensor, format!("{expected} elements"), got))
}

/// A size as a kernel takes it.
pub(super) fn to_u32(operation: &'static str, number: &'static str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::Shape {
        operation,
        tensor: number,
        expected: format!("at most {}", u32::MAX),
        got: value.to_string(),
    })
}
