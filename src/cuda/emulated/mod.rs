//! The device layer on the host: the same launchers and the same kernel source as on a GPU, without one.
//!
//! It is made to fail where a GPU would, or would only sometimes: its stream is lazy (nothing runs before someone waits), its
//! graphs hold launches with their arguments by value, memory starts as NaN between guards, and threads run in shuffled order
//! (see `kernels/host/emulator.h`). An error is found when the queue runs, and sticks.

mod ffi;
mod gemm;
mod memory;
#[cfg(all(test, feature = "planted-kernels"))]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use ffi::Kernel;
use ffi::{Emulator, KernelRef};
#[cfg(test)]
pub(super) use ffi::{argument_types, layout_entries};
use memory::Memory;

use super::device::{Device, Gemm, GraphId, Launch, PinnedId};
use super::linear_norm::GemmNorm;
use crate::{Error, Result};

const NAME: &str = "emulated";

/// The emulated device.
pub struct EmulatedDevice {
    kernels: HashMap<&'static str, KernelRef>,
    state: Mutex<State>,
}

struct State {
    emulator: Emulator,
    memory: Memory,
    queue: VecDeque<Work>,
    /// What the second stream has yet to do, where it comes as late as it may.
    aside: VecDeque<Work>,
    is_aside: bool,
    /// Times that work was sent aside: every other time it runs at once, else as late as may be. A GPU may do both.
    asides: u64,
    /// What is being captured.
    recording: Option<Vec<Work>>,
    /// Memory to be freed once the capture has ended.
    freed_in_capture: Vec<u64>,
    graphs: BTreeMap<GraphId, Arc<[Work]>>,
    pinned: BTreeMap<PinnedId, PinnedMemory>,
    next_id: u64,
    /// The first failure of anything enqueued.
    failure: Option<(&'static str, String)>,
}

#[derive(Default)]
struct PinnedMemory {
    bytes: Vec<u8>,
    /// Copies enqueued and copies that have run.
    posted: u64,
    arrived: u64,
}

/// What the stream does.
#[derive(Clone)]
enum Work {
    Launch(KernelLaunch),
    Upload { to: u64, bytes: Box<[u8]> },
    Copy { from: u64, to: u64, bytes: usize },
    Fill { at: u64, byte: u8, bytes: usize },
    Gemm(Gemm),
    GemmNorm(Gemm, KernelLaunch),
    Free { address: u64 },
    Post { from: u64, bytes: usize, pinned: PinnedId, offset: usize },
    Replay(Arc<[Work]>),
}

#[derive(Clone)]
struct KernelLaunch {
    kernel: KernelRef,
    launch: Launch,
    /// The argument struct, in words so that it is aligned.
    arguments: Box<[u64]>,
    /// Words of the arguments that were addresses when the launch was enqueued, each with its allocation.
    addresses: Box<[(u64, u64)]>,
}

impl EmulatedDevice {
    /// A new device. Threads run in an order that the seed decides.
    ///
    /// # Errors
    /// [`Error::Device`] if memory is short.
    pub fn new(seed: u64) -> Result<Self> {
        let emulator = Emulator::new(seed)
            .ok_or_else(|| Error::Device { device: NAME.to_owned(), reason: "not enough memory".to_owned() })?;
        let state = State {
            emulator,
            memory: Memory::default(),
            queue: VecDeque::new(),
            aside: VecDeque::new(),
            is_aside: false,
            asides: 0,
            recording: None,
            freed_in_capture: Vec::new(),
            graphs: BTreeMap::new(),
            pinned: BTreeMap::new(),
            next_id: 0,
            failure: None,
        };
        Ok(EmulatedDevice { kernels: ffi::kernels(), state: Mutex::new(state) })
    }

    /// The device with so many bytes of memory, if a number is given.
    #[must_use]
    pub fn with_memory(self, bytes: Option<u64>) -> Self {
        self.state().memory.capacity = bytes;
        self
    }

    /// A launch with what it needs when it runs, if a device would take it.
    fn kernel_launch(&self, launch: &Launch, arguments: &[u8]) -> Result<KernelLaunch> {
        let symbol = launch.symbol;
        let refuse = |reason: String| Err(failure("launch", format!("{symbol}: {reason}")));
        let Some(&kernel) = self.kernels.get(symbol) else { return refuse("no such kernel".to_owned()) };
        if arguments.len() != kernel.argument_bytes() {
            return refuse(format!("expected {} bytes of arguments, got {}", kernel.argument_bytes(), arguments.len()));
        }
        if launch.block == 0 || launch.block > kernel.max_threads() || !launch.block.is_multiple_of(32) {
            return refuse(format!(
                "expected a multiple of 32 threads up to {}, got {}",
                kernel.max_threads(),
                launch.block
            ));
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return refuse(format!("no device takes a grid of {x} x {y} x {z} blocks"));
        }
        let mut words = vec![0u64; arguments.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..arguments.len()].copy_from_slice(arguments);
        let state = self.state();
        let addresses = words.iter().filter_map(|&word| Some((word, state.memory.id_of(word)?))).collect();
        Ok(KernelLaunch { kernel, launch: *launch, arguments: words.into(), addresses })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held can only have come from a failed allocation of the host: the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Refuses what a capture cannot hold, nor work aside.
    fn in_order(&self, operation: &'static str) -> Result<()> {
        if self.is_aside {
            return Err(failure(operation, "work aside may only be enqueued".to_owned()));
        }
        self.outside_capture(operation)
    }

    /// Refuses what a capture cannot hold.
    fn outside_capture(&self, operation: &'static str) -> Result<()> {
        if self.recording.is_none() {
            return Ok(());
        }
        Err(failure(operation, "a step that is captured may only enqueue work on the device".to_owned()))
    }

    /// Lets the stream wait for the second one.
    fn join(&mut self) {
        self.queue.append(&mut self.aside);
    }

    /// Queues or records; `free` alone cannot fail.
    fn enqueue(&mut self, work: Work) -> Result<()> {
        self.check_failure()?;
        match &mut self.recording {
            Some(recording) => recording.push(work),
            None if self.is_aside && self.asides.is_multiple_of(2) => self.aside.push_back(work),
            None => self.queue.push_back(work),
        }
        Ok(())
    }

    fn check_failure(&self) -> Result<()> {
        self.failure.as_ref().map_or(Ok(()), |(operation, reason)| Err(failure(operation, reason.clone())))
    }

    fn run_all(&mut self) -> Result<()> {
        self.join();
        self.run_until(|_| false)
    }

    /// Runs the queue until it is empty or the condition holds.
    fn run_until(&mut self, done: impl Fn(&State) -> bool) -> Result<()> {
        while !done(self) {
            let Some(work) = self.queue.pop_front() else { break };
            // After a failure nothing runs, but memory is still given back.
            if self.failure.is_none() || matches!(work, Work::Free { .. }) {
                self.run(&work);
            }
        }
        self.check_failure()
    }

    fn run(&mut self, work: &Work) {
        if let Err((operation, reason)) = self.try_run(work)
            && self.failure.is_none()
        {
            self.failure = Some((operation, reason));
        }
    }

    fn try_run(&mut self, work: &Work) -> Result<(), (&'static str, String)> {
        match work {
            Work::Launch(launch) => self.run_launch(launch).map_err(|reason| ("launch", reason)),
            Work::Upload { to, bytes } => {
                let to = self.memory.range(*to, bytes.len()).map_err(|reason| ("copy to device", reason))?;
                // SAFETY: `range` checked that the target holds as many bytes; the source is ours.
                unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                Ok(())
            }
            &Work::Copy { from, to, bytes } => {
                let ranges = self.memory.range(from, bytes).and_then(|from| Ok((from, self.memory.range(to, bytes)?)));
                let (from, to) = ranges.map_err(|reason| ("copy on device", reason))?;
                // SAFETY: `range` checked both; `copy` allows overlap.
                unsafe { to.copy_from(from, bytes) };
                Ok(())
            }
            &Work::Fill { at, byte, bytes } => {
                let at = self.memory.range(at, bytes).map_err(|reason| ("fill on device", reason))?;
                // SAFETY: `range` checked the target.
                unsafe { at.write_bytes(byte, bytes) };
                Ok(())
            }
            Work::Gemm(gemm) => self.run_gemm(gemm).map_err(|reason| ("gemm", reason)),
            Work::GemmNorm(gemm, norm) => {
                self.run_gemm(gemm).and_then(|()| self.run_launch(norm)).map_err(|reason| ("linear_norm", reason))
            }
            Work::Free { address } => {
                self.memory.free(*address);
                Ok(())
            }
            &Work::Post { from, bytes, pinned, offset } => {
                self.run_post(from, bytes, pinned, offset).map_err(|reason| ("copy to pinned memory", reason))
            }
            Work::Replay(recorded) => recorded.iter().try_for_each(|work| self.try_run(work)),
        }
    }

    fn run_launch(&mut self, launch: &KernelLaunch) -> Result<(), String> {
        let Launch { symbol, grid, block, shared } = launch.launch;
        for &(address, id) in &launch.addresses {
            if self.memory.id_of(address) != Some(id) {
                return Err(format!("{symbol}: the memory at {address:#x} was freed after the launch was recorded"));
            }
        }
        // SAFETY: `Device::launch`'s caller promised that the arguments fit and that the kernel stays inside; the allocations
        // that they name are live.
        unsafe { self.emulator.launch(launch.kernel, grid, block, shared, &launch.arguments)? };
        self.memory.check_guards().map_err(|reason| format!("{symbol}: {reason}"))
    }

    fn run_gemm(&mut self, gemm: &Gemm) -> Result<(), String> {
        let x = self.memory.range(gemm.x, gemm.rows * gemm.k * gemm.input.size())?;
        let weight = self.memory.range(gemm.weight, gemm.n * gemm.k * gemm.input.size())?;
        let out = self.memory.range(gemm.out, gemm.out_len() * gemm.output.size())?;
        let floats = |at: u64, len: usize| -> Result<&[f32], String> {
            match at {
                0 => Ok(&[]),
                // SAFETY: `range` checks the length; buffers of f32 are aligned; nothing writes to it meanwhile.
                at => Ok(unsafe { std::slice::from_raw_parts(self.memory.range(at, len * 4)?.cast(), len) }),
            }
        };
        let factors = gemm::Factors {
            bias: floats(gemm.bias, gemm.n)?,
            x_scales: floats(gemm.x_scales, gemm.rows)?,
            weight_scales: floats(gemm.weight_scales, gemm.n)?,
        };
        // SAFETY: `range` checked the others; `Device::gemm`'s caller promised that `out` overlaps none of them.
        unsafe { gemm::run(gemm, x, weight, &factors, out) };
        Ok(())
    }

    fn run_post(&mut self, from: u64, bytes: usize, pinned: PinnedId, offset: usize) -> Result<(), String> {
        // Page-locked memory that was freed meanwhile: nobody can read the copy.
        let Some(memory) = self.pinned.get_mut(&pinned) else { return Ok(()) };
        let from = self.memory.range(from, bytes)?;
        let room = memory.bytes.len();
        let target = memory.bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..bytes));
        let target = target.ok_or_else(|| format!("{bytes} bytes at {offset} lie outside {room} bytes"))?;
        // SAFETY: `range` checked the source; the target is a slice of that length.
        unsafe { target.as_mut_ptr().copy_from_nonoverlapping(from, bytes) };
        memory.arrived += 1;
        Ok(())
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn failure(operation: &'static str, reason: String) -> Error {
    Error::DeviceOperation { operation, device: NAME.to_owned(), reason }
}

impl Device for EmulatedDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut state = self.state();
        state.in_order("allocate")?;
        state.check_failure()?;
        if state.memory.free_bytes().is_some_and(|free| (bytes as u64) > free) {
            // Memory whose free is enqueued can be had for waiting.
            state.run_all()?;
        }
        let available = state.memory.free_bytes();
        state.memory.allocate(bytes).ok_or_else(|| Error::OutOfMemory {
            operation: "allocate",
            device: NAME.to_owned(),
            needed: bytes as u64,
            available,
        })
    }

    fn free_memory(&self) -> Result<Option<u64>> {
        let mut state = self.state();
        state.in_order("measure free memory")?;
        state.run_all()?;
        Ok(state.memory.free_bytes())
    }

    unsafe fn free(&self, address: u64) {
        let mut state = self.state();
        match state.recording {
            Some(_) => state.freed_in_capture.push(address),
            None => {
                state.join();
                state.queue.push_back(Work::Free { address });
            }
        }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.outside_capture("copy to device")?;
        state.enqueue(Work::Upload { to, bytes: bytes.into() })
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        state.in_order("copy from device")?;
        state.run_all()?;
        let from = state.memory.range(from, bytes.len()).map_err(|reason| failure("copy from device", reason))?;
        // SAFETY: `range` checked the source; the target is a slice of that length.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(from, bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.state().enqueue(Work::Copy { from, to, bytes })
    }

    unsafe fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()> {
        self.state().enqueue(Work::Fill { at, byte, bytes })
    }

    unsafe fn launch(&self, launch: &Launch, arguments: &[u8]) -> Result<()> {
        let work = self.kernel_launch(launch, arguments)?;
        self.state().enqueue(Work::Launch(work))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        self.state().enqueue(Work::Gemm(*gemm))
    }

    // With a norm's own kernel behind the plain loop: the bits of both in one.
    unsafe fn gemm_norm(&self, work: &GemmNorm) -> Result<()> {
        let norm = self.kernel_launch(&work.norm_launch(), bytemuck::bytes_of(&work.norm))?;
        self.state().enqueue(Work::GemmNorm(work.gemm, norm))
    }

    fn begin_aside(&self) -> Result<()> {
        let mut state = self.state();
        state.in_order("begin work aside")?;
        state.check_failure()?;
        // Behind what went aside before.
        if !state.aside.is_empty() && (state.asides + 1) % 2 == 1 {
            state.join();
        }
        state.is_aside = true;
        state.asides += 1;
        Ok(())
    }

    fn end_aside(&self) -> Result<()> {
        let mut state = self.state();
        state.is_aside = false;
        state.check_failure()
    }

    fn join_aside(&self) -> Result<()> {
        let mut state = self.state();
        state.in_order("join work aside")?;
        state.join();
        state.check_failure()
    }

    fn begin_capture(&self) -> Result<()> {
        let mut state = self.state();
        state.in_order("capture")?;
        state.check_failure()?;
        state.recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.state();
        let Some(recorded) = state.recording.take() else {
            return Err(failure("capture", "no graph is being captured".to_owned()));
        };
        for address in std::mem::take(&mut state.freed_in_capture) {
            state.queue.push_back(Work::Free { address });
        }
        let id = GraphId(state.new_id());
        state.graphs.insert(id, recorded.into());
        Ok(id)
    }

    unsafe fn replay(&self, graph: GraphId) -> Result<()> {
        let mut state = self.state();
        state.in_order("replay")?;
        let Some(recorded) = state.graphs.get(&graph).cloned() else {
            return Err(failure("replay", "no such graph".to_owned()));
        };
        state.enqueue(Work::Replay(recorded))
    }

    fn graph_nodes(&self, graph: GraphId) -> usize {
        self.state().graphs.get(&graph).map_or(0, |recorded| recorded.len())
    }

    fn drop_graph(&self, graph: GraphId) {
        self.state().graphs.remove(&graph);
    }

    fn synchronize(&self) -> Result<()> {
        let mut state = self.state();
        state.in_order("synchronize")?;
        state.run_all()
    }

    fn allocate_pinned(&self, bytes: usize) -> Result<PinnedId> {
        let mut state = self.state();
        state.in_order("allocate pinned memory")?;
        let id = PinnedId(state.new_id());
        state.pinned.insert(id, PinnedMemory { bytes: vec![memory::FILL; bytes], posted: 0, arrived: 0 });
        Ok(id)
    }

    unsafe fn post(&self, from: u64, bytes: usize, pinned: PinnedId, offset: usize) -> Result<()> {
        let mut state = self.state();
        state.in_order("copy to pinned memory")?;
        if let Some(memory) = state.pinned.get_mut(&pinned) {
            memory.posted += 1;
        }
        state.enqueue(Work::Post { from, bytes, pinned, offset })
    }

    fn wait_readback(&self, pinned: PinnedId, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.state();
        state.in_order("read pinned memory")?;
        let posted = state.pinned.get(&pinned).map_or(0, |memory| memory.posted);
        if posted == 0 {
            return Err(failure("read pinned memory", "nothing was copied there".to_owned()));
        }
        let arrived = |state: &State| state.pinned.get(&pinned).is_some_and(|memory| memory.arrived == posted);
        state.run_until(arrived)?;
        let arrived = state.pinned.get(&pinned).and_then(|memory| memory.bytes.get(..bytes.len()));
        let Some(arrived) = arrived else {
            return Err(failure("read pinned memory", format!("expected less than {} bytes", bytes.len())));
        };
        bytes.copy_from_slice(arrived);
        Ok(())
    }

    fn free_pinned(&self, pinned: PinnedId) {
        self.state().pinned.remove(&pinned);
    }

    fn watch(&self, address: u64, bytes: usize) -> Result<()> {
        let mut state = self.state();
        state.in_order("watch")?;
        state.run_all()?;
        state.emulator.watch(address as usize, address as usize + bytes);
        Ok(())
    }

    fn watched_bytes(&self) -> Result<u64> {
        let mut state = self.state();
        state.in_order("watch")?;
        state.run_all()?;
        Ok(state.emulator.watched_bytes())
    }
}
