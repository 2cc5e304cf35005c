//! The device layer on a GPU, through the CUDA driver.
//!
//! It is loaded at run time, so that one binary serves machines with and without a GPU. cudarc panics when it is missing; `open`
//! asks first.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use bytemuck::Zeroable;

use super::device::{Device, Gemm, GraphId, Launch, PinnedId};
use super::gemm::{Product, Tile};
use super::linear_norm::GemmNorm;
use super::{gemm, layout};
use crate::{Error, Result};

#[cfg(all(test, fake_driver))]
mod fake_tests;
mod requirements;
mod staging;

use requirements::{Image, NO_DEVICE_CODE, check_device, check_library, describe_refusal, images};
use staging::Staging;

/// Dynamic shared memory that a kernel gets without being asked for.
const PLAIN_SHARED_BYTES: usize = 48 * 1024;

/// A GPU.
pub struct CudaDevice {
    name: String,
    ordinal: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    aside: Aside,
    modules: Vec<sys::CUmodule>,
    state: Mutex<State>,
}

/// The second stream.
struct Aside {
    stream: sys::CUstream,
    /// Recorded on the first stream: what the second starts behind.
    begun: sys::CUevent,
    /// Recorded on the second stream: what the first one waits for.
    ended: sys::CUevent,
    /// Whether work is sent there.
    is_open: AtomicBool,
    /// Whether the first stream has not waited for it yet.
    is_pending: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What has been multiplied, and how.
    products: HashMap<Product, Tile>,
    functions: HashMap<&'static str, Function>,
    capturing: bool,
    /// Memory to be freed once the capture has ended.
    freed_in_capture: Vec<u64>,
    /// Memory to be freed once the first stream waits for the second, which may still use it.
    freed_aside: Vec<u64>,
    staging: Staging,
    graphs: HashMap<GraphId, Executable>,
    pinned: HashMap<PinnedId, PinnedMemory>,
    next_id: u64,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Of its one parameter.
    argument_bytes: usize,
}

/// A graph that can be launched.
struct Executable {
    handle: sys::CUgraphExec,
    nodes: usize,
}

struct PinnedMemory {
    host: *mut c_void,
    bytes: usize,
    /// Recorded behind each copy.
    arrived: sys::CUevent,
    posted: bool,
}

// SAFETY: the driver's handles are bound to no thread; every call first makes the context current on its thread, and what
// changes lies behind the mutex.
unsafe impl Send for CudaDevice {}
// SAFETY: as above.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// Opens the GPU with this number and loads the kernels.
    ///
    /// # Errors
    /// [`Error::Device`] if this build holds no device code, or no driver or no such GPU is there, or the driver or
    /// the GPU is too old.
    pub fn open(ordinal: usize) -> Result<Self> {
        let name = format!("cuda:{ordinal}");
        Self::try_open(ordinal, &name).map_err(|reason| Error::Device { device: name, reason })
    }

    fn try_open(ordinal: usize, name: &str) -> Result<Self, String> {
        let images = images()?;
        check_library()?;
        let describe = |error: DriverError| format!("CUDA driver: {}", text(error));
        result::init().map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => format!(
                "expected a GPU, got none ({}); on a GPU that is split by MIG, at least one instance must be visible",
                text(error)
            ),
            _ => describe(error),
        })?;
        let count = result::device::get_count().map_err(describe)?;
        let number = c_int::try_from(ordinal).ok().filter(|&number| number < count);
        let number = number.ok_or_else(|| format!("expected a number below {count}, the GPUs of this machine"))?;
        let device = result::device::get(number).map_err(describe)?;
        check_device(device)?;
        // SAFETY: the device exists; `Drop` releases the context.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|error| describe_refusal(device, error))?;
        let mut opened = CudaDevice {
            name: name.to_owned(),
            ordinal: device,
            context,
            stream: std::ptr::null_mut(),
            aside: Aside {
                stream: std::ptr::null_mut(),
                begun: std::ptr::null_mut(),
                ended: std::ptr::null_mut(),
                is_open: AtomicBool::new(false),
                is_pending: AtomicBool::new(false),
            },
            modules: Vec::new(),
            state: Mutex::default(),
        };
        // From here on `Drop` gives back whatever was taken.
        opened.prepare(&images)?;
        Ok(opened)
    }

    fn prepare(&mut self, images: &[Image]) -> Result<(), String> {
        let describe = |error: DriverError| format!("CUDA driver: {}", text(error));
        self.bind().map_err(describe)?;
        for stream in [&mut self.stream, &mut self.aside.stream] {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(describe)?;
        }
        for event in [&mut self.aside.begun, &mut self.aside.ended] {
            *event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(describe)?;
        }
        for image in images {
            // SAFETY: the image is a complete fatbin, aligned, copied by the call.
            let module = unsafe { result::module::load_data(image.words.as_ptr().cast()) };
            self.modules.push(module.map_err(|error| match cfg!(device_code) {
                true => format!("load the {} kernels: {}", image.op, text(error)),
                false => NO_DEVICE_CODE.to_owned(),
            })?);
        }
        self.keep_freed_memory().map_err(describe)?;
        layout::check(&self.layout_entries()?)?;
        Ok(())
    }

    /// Lets the stream's allocator keep what is freed, instead of giving it back to the driver at every wait.
    fn keep_freed_memory(&self) -> Result<(), DriverError> {
        use sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let (mut pool, mut all) = (std::ptr::null_mut(), u64::MAX);
        // SAFETY: the device exists; writes one handle, and reads one 64-bit number.
        unsafe {
            sys::cuDeviceGetMemPool(&mut pool, self.ordinal).result()?;
            sys::cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut all).cast()).result()
        }
    }

    /// What the modules export of their layout. The context is current.
    fn layout_entries(&self) -> Result<Vec<layout::Entry>, String> {
        let describe = |error: DriverError| format!("read the kernels' layout: {}", text(error));
        let mut all = Vec::new();
        for &module in &self.modules {
            let (mut address, mut bytes) = (0, 0);
            // SAFETY: the module is loaded; writes an address and a size.
            unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, module, c"layout".as_ptr()) }
                .result()
                .map_err(describe)?;
            let mut entries = vec![layout::Entry::zeroed(); bytes / size_of::<layout::Entry>()];
            // SAFETY: the global is alive as long as its module, and no larger than what there is room for.
            unsafe { result::memcpy_dtoh_sync(&mut entries, address) }.map_err(describe)?;
            all.append(&mut entries);
        }
        Ok(all)
    }

    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is retained until `Drop`.
        unsafe { result::ctx::set_current(self.context) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, operation: &'static str, reason: String) -> Error {
        Error::DeviceOperation { operation, device: self.name.clone(), reason }
    }

    /// Runs driver calls with the context current.
    fn call<T>(&self, operation: &'static str, work: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        self.bind().and_then(|()| work()).map_err(|error| self.failure(operation, text(error)))
    }

    /// The stream that work is sent to.
    fn current_stream(&self) -> sys::CUstream {
        if self.aside.is_open.load(Ordering::Relaxed) { self.aside.stream } else { self.stream }
    }

    /// Lets the first stream wait for what the second has to do. The context is current.
    fn join(&self, state: &mut State) -> Result<(), DriverError> {
        if !self.aside.is_pending.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        // SAFETY: stream and event are alive; `free` was called for the memory, which both streams have done with.
        unsafe {
            result::stream::wait_event(self.stream, self.aside.ended, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)?;
            std::mem::take(&mut state.freed_aside)
                .into_iter()
                .try_for_each(|address| result::free_async(address, self.stream))
        }
    }

    /// The state, unless a graph is being captured or work is sent aside.
    fn in_order(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        if self.aside.is_open.load(Ordering::Relaxed) {
            return Err(self.failure(operation, "work aside may only be enqueued".to_owned()));
        }
        self.outside_capture(operation)
    }

    /// The state, unless a graph is being captured.
    fn outside_capture(&self, operation: &'static str) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if !state.capturing {
            return Ok(state);
        }
        Err(self.failure(operation, "a step that is captured may only enqueue work on the device".to_owned()))
    }

    /// Bytes that are free, those among them that the stream's allocator keeps for later. The context is current.
    fn free_bytes(&self) -> Result<u64, DriverError> {
        use sys::CUmemPool_attribute_enum::{CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, CU_MEMPOOL_ATTR_USED_MEM_CURRENT};
        let (free, _) = result::mem_get_info()?;
        let mut pool = std::ptr::null_mut();
        // SAFETY: the device exists; writes one handle.
        unsafe { sys::cuDeviceGetMemPool(&mut pool, self.ordinal) }.result()?;
        let read = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: both attributes are 64-bit numbers, and there is room for one.
            unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }.result().map(|()| bytes)
        };
        let kept = read(CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?.saturating_sub(read(CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?);
        Ok(free as u64 + kept)
    }

    fn function(&self, symbol: &'static str) -> Result<Function> {
        let mut state = self.state();
        if let Some(&function) = state.functions.get(symbol) {
            return Ok(function);
        }
        // Symbols are constants of this crate, without a NUL.
        let name = CString::new(symbol).unwrap_or_default();
        for &module in &self.modules {
            // SAFETY: the module is loaded until `Drop`.
            if let Ok(handle) = unsafe { result::module::get_function(module, name.clone()) } {
                let (mut offset, mut argument_bytes) = (0, 0);
                // SAFETY: the function is loaded; writes two sizes.
                unsafe { sys::cuFuncGetParamInfo(handle, 0, &mut offset, &mut argument_bytes) }
                    .result()
                    .map_err(|error| self.failure("launch", format!("{symbol}: {}", text(error))))?;
                let function = Function { handle, argument_bytes };
                state.functions.insert(symbol, function);
                return Ok(function);
            }
        }
        Err(self.failure("launch", format!("{symbol}: no such kernel")))
    }
}

/// How many GPUs the driver knows; 0 without a driver.
pub fn count() -> usize {
    if check_library().is_err() || result::init().is_err() {
        return 0;
    }
    result::device::get_count().ok().and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn text(error: DriverError) -> String {
    match error.error_string() {
        Ok(words) => format!("{} ({:?})", words.to_string_lossy(), error.0),
        Err(_) => format!("{:?}", error.0),
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        let mut state = std::mem::take(&mut *self.state());
        // Failures leave nothing to be done: the process lets go of the device in any case.
        let _ = self.bind();
        // SAFETY: everything was created on this context, is destroyed once, and nothing runs after the synchronisation.
        unsafe {
            let streams = [self.stream, self.aside.stream].into_iter().filter(|stream| !stream.is_null());
            for stream in streams.clone() {
                let _ = result::stream::synchronize(stream);
            }
            for address in std::mem::take(&mut state.freed_aside) {
                let _ = result::free_async(address, self.stream);
            }
            state.staging.release();
            for graph in state.graphs.into_values() {
                let _ = result::graph::exec_destroy(graph.handle);
            }
            for pinned in state.pinned.into_values() {
                let _ = result::event::destroy(pinned.arrived);
                let _ = result::free_host(pinned.host);
            }
            for event in [self.aside.begun, self.aside.ended].into_iter().filter(|event| !event.is_null()) {
                let _ = result::event::destroy(event);
            }
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
            for stream in streams {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.ordinal);
        }
    }
}

impl Device for CudaDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let _state = self.in_order("allocate")?;
        self.bind().map_err(|error| self.failure("allocate", text(error)))?;
        // SAFETY: any size above 0 will do; the memory is used on this stream only.
        unsafe { result::malloc_async(self.stream, bytes.max(1)) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory {
                operation: "allocate",
                device: self.name.clone(),
                needed: bytes as u64,
                available: self.free_bytes().ok(),
            },
            _ => self.failure("allocate", text(error)),
        })
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let mut state = self.in_order("measure free memory")?;
        self.call("measure free memory", || {
            self.join(&mut state)?;
            // SAFETY: the stream is alive.
            unsafe { result::stream::synchronize(self.stream)? };
            self.free_bytes().map(Some)
        })
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        if state.capturing {
            state.freed_in_capture.push(address);
            return;
        }
        if self.aside.is_open.load(Ordering::Relaxed) {
            state.freed_aside.push(address);
            return;
        }
        // SAFETY: allocated on this stream, and the caller uses it no more. A failure is reported by whatever comes next.
        let _ = self
            .call("free", || unsafe { self.join(&mut state).and_then(|()| result::free_async(address, self.stream)) });
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.outside_capture("copy to device")?;
        // SAFETY: the caller's promise.
        self.call("copy to device", || unsafe { state.staging.copy(to, bytes, self.current_stream()) })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.in_order("copy from device")?;
        // SAFETY: the caller's promise; `bytes` is borrowed until the stream has been waited for.
        self.call("copy from device", || unsafe {
            self.join(&mut state)?;
            let copied = result::memcpy_dtoh_async(bytes, from, self.stream);
            result::stream::synchronize(self.stream).and(copied)
        })
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.call("copy on device", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.current_stream()) })
    }

    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()> {
        // The driver refuses to set 0 bytes.
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        self.call("fill on device", || unsafe { result::memset_d8_async(at, byte, bytes, self.current_stream()) })
    }

    unsafe fn launch(&self, launch: &Launch, arguments: &[u8]) -> Result<()> {
        let function = self.function(launch.symbol)?;
        let refuse = || self.failure("launch", format!("{}: {} bytes of shared memory", launch.symbol, launch.shared));
        let shared = u32::try_from(launch.shared).map_err(|_| refuse())?;
        let [x, y, z] = launch.grid;
        if arguments.len() != function.argument_bytes {
            let (expected, got) = (function.argument_bytes, arguments.len());
            let reason = format!("{}: expected {expected} bytes of arguments, got {got}", launch.symbol);
            return Err(self.failure("launch", reason));
        }
        let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
        let mut enqueue = || {
            // SAFETY: the function is loaded; its one parameter is a struct, which the driver copies before it returns and
            // which fits by the caller's promise, as does what the kernel touches.
            unsafe {
                if launch.shared > PLAIN_SHARED_BYTES {
                    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                    result::function::set_function_attribute(function.handle, attribute, shared as c_int)?;
                }
                let stream = self.current_stream();
                result::launch_kernel(function.handle, (x, y, z), (launch.block, 1, 1), shared, stream, &mut parameters)
            }
        };
        self.bind()
            .and_then(|()| enqueue())
            .map_err(|error| self.failure("launch", format!("{}: {}", launch.symbol, text(error))))
    }

    unsafe fn gemm(&self, product: &Gemm) -> Result<()> {
        let tile = Tile::choose(product);
        self.state().products.insert(Product::of(product), tile);
        let (launch, arguments) = gemm::product(product, tile)?;
        // SAFETY: the caller's promise, which is that of the kernel, too.
        unsafe { self.launch(&launch, bytemuck::bytes_of(&arguments)) }
    }

    unsafe fn gemm_norm(&self, work: &GemmNorm) -> Result<()> {
        let tile = Tile::choose(&work.gemm);
        self.state().products.insert(Product::of(&work.gemm), tile);
        let (launch, arguments) = work.launch(tile)?;
        // SAFETY: the caller's promise, which is that of the kernel, too.
        unsafe { self.launch(&launch, bytemuck::bytes_of(&arguments)) }
    }

    fn gemm_plans(&self) -> Vec<String> {
        let mut lines: Vec<String> =
            self.state().products.iter().map(|(product, tile)| format!("{product}: {tile:?}")).collect();
        lines.sort();
        lines
    }

    fn begin_aside(&self) -> Result<()> {
        let _state = self.in_order("begin work aside")?;
        let Aside { stream, begun, .. } = self.aside;
        // SAFETY: streams and event are alive.
        self.call("begin work aside", || unsafe {
            result::event::record(begun, self.stream)?;
            result::stream::wait_event(stream, begun, sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT)
        })?;
        self.aside.is_open.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn end_aside(&self) -> Result<()> {
        self.aside.is_open.store(false, Ordering::Relaxed);
        self.aside.is_pending.store(true, Ordering::Relaxed);
        // SAFETY: stream and event are alive.
        self.call("end work aside", || unsafe { result::event::record(self.aside.ended, self.aside.stream) })
    }

    fn join_aside(&self) -> Result<()> {
        let mut state = self.in_order("join work aside")?;
        self.call("join work aside", || self.join(&mut state))
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.in_order("capture")?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive.
        self.call("capture", || unsafe { result::stream::begin_capture(self.stream, mode) })?;
        state.capturing = true;
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.state();
        if !state.capturing {
            return Err(self.failure("capture", "no graph is being captured".to_owned()));
        }
        state.capturing = false;
        // SAFETY: the stream is alive and capturing; the graph is destroyed once it has been instantiated.
        let recorded = self.call("capture", || unsafe {
            let graph = result::stream::end_capture(self.stream)?;
            let mut nodes = 0;
            // Without room for the nodes themselves this is their number.
            let counted = sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes).result();
            let executable = counted.and_then(|()| result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)));
            result::graph::destroy(graph).and(executable).map(|handle| Executable { handle, nodes })
        });
        for address in std::mem::take(&mut state.freed_in_capture) {
            // SAFETY: `free` was called for it.
            let _ = self.call("free", || unsafe { result::free_async(address, self.stream) });
        }
        state.next_id += 1;
        let id = GraphId(state.next_id);
        state.graphs.insert(id, recorded?);
        Ok(id)
    }

    unsafe fn replay(&self, graph: GraphId) -> Result<()> {
        let state = self.in_order("replay")?;
        let Some(executable) = state.graphs.get(&graph) else {
            return Err(self.failure("replay", "no such graph".to_owned()));
        };
        // SAFETY: the graph is alive; the memory it names is the caller's promise.
        self.call("replay", || unsafe { result::graph::launch(executable.handle, self.stream) })
    }

    fn graph_nodes(&self, graph: GraphId) -> usize {
        self.state().graphs.get(&graph).map_or(0, |executable| executable.nodes)
    }

    fn drop_graph(&self, graph: GraphId) {
        if let Some(executable) = self.state().graphs.remove(&graph) {
            // SAFETY: removed, so destroyed once; the driver waits for running replays. A failure leaves nothing to be done.
            let _ = self.call("drop graph", || unsafe { result::graph::exec_destroy(executable.handle) });
        }
    }

    fn synchronize(&self) -> Result<()> {
        let mut state = self.in_order("synchronize")?;
        // SAFETY: the stream is alive.
        self.call("synchronize", || unsafe {
            self.join(&mut state).and_then(|()| result::stream::synchronize(self.stream))
        })
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedId> {
        let mut state = self.in_order("allocate pinned memory")?;
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        // SAFETY: any size above 0 will do; `free_pinned` or `Drop` frees the memory.
        let (host, arrived) = self.call("allocate pinned memory", || unsafe {
            let host = result::malloc_host(bytes.max(1), 0)?;
            let event = result::event::create(flags);
            if event.is_err() {
                result::free_host(host)?;
            }
            Ok((host, event?))
        })?;
        state.next_id += 1;
        let id = PinnedId(state.next_id);
        state.pinned.insert(id, PinnedMemory { host, bytes, arrived, posted: false });
        Ok(id)
    }

    unsafe fn post(&self, from: u64, bytes: usize, pinned: PinnedId, offset: usize) -> Result<()> {
        let mut state = self.in_order("copy to pinned memory")?;
        let Some(memory) = state.pinned.get_mut(&pinned) else {
            return Err(self.failure("copy to pinned memory", "no such memory".to_owned()));
        };
        // SAFETY: both ranges are the caller's promise; the target is alive until its event has been waited for, and read
        // only behind that event.
        self.call("copy to pinned memory", || unsafe {
            let target = std::slice::from_raw_parts_mut(memory.host.cast::<u8>().add(offset), bytes);
            result::memcpy_dtoh_async(target, from, self.stream)?;
            result::event::record(memory.arrived, self.stream)
        })?;
        memory.posted = true;
        Ok(())
    }

    fn wait_readback(&self, pinned: PinnedId, bytes: &mut [u8]) -> Result<()> {
        let state = self.in_order("read pinned memory")?;
        let Some(memory) = state.pinned.get(&pinned).filter(|memory| memory.posted) else {
            return Err(self.failure("read pinned memory", "nothing was copied there".to_owned()));
        };
        // SAFETY: the event is alive.
        self.call("read pinned memory", || unsafe { result::event::synchronize(memory.arrived) })?;
        // SAFETY: the copy has arrived and nothing else writes: the next `post` needs the lock held here.
        let arrived = unsafe { std::slice::from_raw_parts(memory.host.cast::<u8>(), memory.bytes) };
        let Some(arrived) = arrived.get(..bytes.len()) else {
            return Err(self.failure("read pinned memory", format!("expected at most {} bytes", memory.bytes)));
        };
        bytes.copy_from_slice(arrived);
        Ok(())
    }

    fn free_pinned(&self, pinned: PinnedId) {
        if let Some(memory) = self.state().pinned.remove(&pinned) {
            // SAFETY: removed, so freed once, after the last copy has arrived. A failure leaves nothing to be done.
            let _ = self.call("free pinned memory", || unsafe {
                if memory.posted {
                    result::event::synchronize(memory.arrived)?;
                }
                result::event::destroy(memory.arrived)?;
                result::free_host(memory.host)
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_an_error_that_says_what_is_missing() {
        // Whatever this machine has, it does not have this many GPUs.
        let error = CudaDevice::open(usize::MAX).err().map(|error| error.to_string()).unwrap_or_default();
        let reasons = ["holds no device code", "no NVIDIA driver", "expected a number below", "CUDA driver: "];
        assert!(error.starts_with("open device cuda:"), "{error}");
        assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
    }
}
