//! The narrow layer that everything else in `cuda/` stands on: memory, copies, launches, matrix products, graphs.
//!
//! Two implementations: [`driver`](super::driver), a GPU through the CUDA driver, and
//! [`emulated`](super::emulated), the same kernels on the host. [`Context`](super::Context) makes the layer safe, counts what
//! it does and injects faults; nothing else calls it.

use super::linear_norm::GemmNorm;
use crate::backend::{Activation, Dtype};
use crate::{Error, Result};

/// A launch of a kernel: which one, and on how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The kernel's symbol, `<op>[_<variant>]_<dtype>`.
    pub symbol: &'static str,
    /// Blocks per dimension, each at least 1.
    pub grid: [u32; 3],
    /// Threads per block, a multiple of 32; blocks are one-dimensional.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
}

/// A matrix product `out[rows, n] = activation(x[rows, k] * weight[n, k]^T + bias[n])`, row-major, accumulated in f32; of 8-bit
/// integers exact, and multiplied by `x_scales[rows] * weight_scales[n]` before the bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Rows of `x` and `out`.
    pub rows: usize,
    /// Rows of `weight`.
    pub n: usize,
    /// Columns of `x` and `weight`; of 8-bit integers a multiple of 16.
    pub k: usize,
    /// Elements between the starts of two rows of `out`, at least `n`.
    pub out_stride: usize,
    /// Type of `x` and `weight`.
    pub input: Dtype,
    /// Type of `out`: f32, or that of the inputs; of 8-bit integers f32.
    pub output: Dtype,
    /// Address of `x`.
    pub x: u64,
    /// Address of `weight`.
    pub weight: u64,
    /// Address of what integers of `x` are worth in each row, f32; 0 of other types, and so for `weight`.
    pub x_scales: u64,
    /// Address of what integers of `weight` are worth in each row.
    pub weight_scales: u64,
    /// Address of the bias, f32; 0 without one.
    pub bias: u64,
    /// Applied last.
    pub activation: Activation,
    /// Address of `out`.
    pub out: u64,
}

impl Gemm {
    /// Elements of `out`, from its first to its last.
    pub fn out_len(&self) -> usize {
        if self.rows == 0 { 0 } else { (self.rows - 1) * self.out_stride + self.n }
    }
}

/// A graph recorded by a device, valid on that device until dropped there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GraphId(pub(super) u64);

/// Page-locked host memory that a device copies into while the host goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinnedId(pub(super) u64);

/// One device with one in-order stream, and a second one for what may run beside it.
///
/// All calls but those that say otherwise only enqueue; an error that arises while the device works is returned by the next
/// call that waits for it, and by every call after that. While a graph is captured nothing may wait, allocate or copy from or to the host:
/// such calls are errors, as a step must be a pure enqueue.
pub trait Device: Send + Sync {
    /// As on the command line: `cuda:0`, `emulated`.
    fn name(&self) -> &str;

    /// Allocates memory, 256-byte aligned, with unspecified contents (NaN on the emulated device). At once.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; a graph is being captured.
    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Whether nothing is kept or computed.
    fn is_dry(&self) -> bool {
        false
    }

    /// Bytes that can be allocated after all that is enqueued has run; none if the device does not know.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    fn free_memory(&self) -> Result<Option<u64>>;

    /// Frees memory once all that is enqueued has run.
    ///
    /// # Safety
    /// The address came from `allocate` and is used no more.
    unsafe fn free(&self, address: u64);

    /// Copies from the host. The bytes are taken before the call returns.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    ///
    /// # Safety
    /// The range lies inside one allocation.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for all that is enqueued, then copies to the host.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    ///
    /// # Safety
    /// The range lies inside one allocation.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies between allocations.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// Both ranges lie inside allocations and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets every byte.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Safety
    /// The range lies inside one allocation.
    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Launches a kernel with one argument, a struct, passed by value.
    ///
    /// # Errors
    /// No such kernel; a launch that no device can run; the device failed.
    ///
    /// # Safety
    /// `arguments` are the bytes of the struct that the kernel takes; with them and this many threads it stays inside its
    /// allocations.
    unsafe fn launch(&self, launch: &Launch, arguments: &[u8]) -> Result<()>;

    /// Multiplies matrices. A row's bits do not depend on the other rows or on their number.
    ///
    /// # Errors
    /// The types cannot be combined; the device failed.
    ///
    /// # Safety
    /// The three matrices lie inside allocations, `out` overlaps neither of the others.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// Multiplies matrices, in a tile that [normalises](super::gemm::Tile::normalizes), and normalises the rows that the product is added
    /// to: one node of a graph.
    ///
    /// # Errors
    /// As [`Device::gemm`].
    ///
    /// # Safety
    /// As [`Device::gemm`], and the norm's tensors lie inside allocations; what it writes overlaps nothing else.
    unsafe fn gemm_norm(&self, work: &GemmNorm) -> Result<()>;

    /// How each product so far is computed; nothing from a device with one way for all.
    fn gemm_plans(&self) -> Vec<String> {
        Vec::new()
    }

    /// Sends what is enqueued from here on, up to [`Device::end_aside`], to the second stream: behind all that has been enqueued
    /// so far, beside what the first stream gets before [`Device::join_aside`]. Until the end only launches, products, fills and
    /// copies to and on the device may come. A device with one stream does everything in order.
    ///
    /// # Errors
    /// A graph is being captured; the device failed; so for the next two.
    fn begin_aside(&self) -> Result<()> {
        Ok(())
    }

    /// Goes on with the first stream.
    fn end_aside(&self) -> Result<()> {
        Ok(())
    }

    /// Lets the first stream wait for the second. So does whatever waits or frees.
    fn join_aside(&self) -> Result<()> {
        Ok(())
    }

    /// Records what is enqueued from here on instead of running it.
    ///
    /// # Errors
    /// A graph is being captured already.
    fn begin_capture(&self) -> Result<()>;

    /// Ends the recording.
    ///
    /// # Errors
    /// No graph is being captured; something that was enqueued cannot be recorded.
    fn end_capture(&self) -> Result<GraphId>;

    /// Enqueues everything that a graph recorded, with the arguments of then.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    ///
    /// # Safety
    /// The memory that the graph names is still allocated.
    unsafe fn replay(&self, graph: GraphId) -> Result<()>;

    /// What a graph holds: kernel launches, matrix products (each one node), copies and fills; 0 for one that is not there.
    fn graph_nodes(&self, graph: GraphId) -> usize;

    /// Forgets a graph once its replays have run.
    fn drop_graph(&self, graph: GraphId);

    /// Waits for all that is enqueued.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    fn synchronize(&self) -> Result<()>;

    /// Allocates page-locked host memory.
    ///
    /// # Errors
    /// Out of memory; a graph is being captured.
    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedId>;

    /// Enqueues a copy of `bytes` bytes into page-locked memory, from byte `offset` of it on.
    ///
    /// # Errors
    /// The device failed; a graph is being captured.
    ///
    /// # Safety
    /// The range read lies inside one allocation, the range written inside the page-locked memory.
    unsafe fn post(&self, from: u64, bytes: usize, pinned: PinnedId, offset: usize) -> Result<()>;

    /// Waits for the last copy posted into page-locked memory, and for nothing after it, then reads its first bytes, as many as
    /// there is room for.
    ///
    /// # Errors
    /// Nothing was posted; the device failed; a graph is being captured.
    fn wait_readback(&self, pinned: PinnedId, bytes: &mut [u8]) -> Result<()>;

    /// Frees page-locked memory once the copies into it have run.
    fn free_pinned(&self, pinned: PinnedId);

    /// Counts the bytes that kernels read from here on through `__ldg`, `__ldcs` and the like in a range of addresses; for
    /// tests.
    ///
    /// # Errors
    /// This device cannot count; what was enqueued before fails.
    fn watch(&self, _address: u64, _bytes: usize) -> Result<()> {
        Err(self.cannot_count())
    }

    /// The bytes read in the watched range, after all that is enqueued has run.
    ///
    /// # Errors
    /// As [`Device::watch`].
    fn watched_bytes(&self) -> Result<u64> {
        Err(self.cannot_count())
    }

    /// The error of a device that does not count reads.
    fn cannot_count(&self) -> Error {
        let reason = "only the emulated device counts reads".to_owned();
        Error::DeviceOperation { operation: "watch", device: self.name().to_owned(), reason }
    }
}
