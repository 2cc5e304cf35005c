//! A backend that runs each operation on the CPU and on a device, holds one to the other, and goes on with the device's result on
//! both: so every operation is compared on equal inputs, and the first difference is where the error is.

mod network;
mod search;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::both::Both;
use super::log::Log;
use crate::Result;
use crate::backend::{Device, Dtype, StepKey, Value};
use crate::check::Tolerance;
use crate::cpu::Cpu;
use crate::cpu::simd::Isa;
use crate::cuda::{Buffer, Context, Cuda};

/// The CPU and a device.
#[derive(Debug)]
pub struct Lockstep {
    cpu: Cpu,
    device: Cuda,
    /// Whether a network's operations have the same bits on both: of f32 all sums are in one order, of integers they are exact.
    has_same_bits: bool,
    context: Context,
    log: Mutex<Log>,
}

type Floats = Both<Vec<f32>, Buffer<f32>>;

impl Lockstep {
    /// Over a device, and the CPU with the same weights: 8-bit integers where the device has those, else what its are in f32.
    ///
    /// # Errors
    /// The CPU's threads do not start.
    pub fn new(device: Cuda, log: Log) -> Result<Self> {
        let (context, dtype) = (device.context().clone(), device.dtype());
        let cpu = Cpu::new(0, if dtype == Dtype::I8 { Dtype::I8 } else { Dtype::F32 })?;
        let has_same_bits = matches!(dtype, Dtype::F32 | Dtype::I8) && Isa::best().fuses_multiply_add();
        Ok(Lockstep { cpu, device, has_same_bits, context, log: Mutex::new(log) })
    }

    /// Where the decode is, and what has been found.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether products are of 8-bit integers.
    fn is_quantized(&self) -> bool {
        self.device.dtype() == Dtype::I8
    }

    /// Holds what a device computed to what the CPU did, and takes it over.
    fn take(&self, operation: &str, cpu: &mut [f32], actual: &[f32], tolerance: Tolerance) {
        let tolerance = if self.has_same_bits { Tolerance::EXACT } else { tolerance };
        self.log().compare(operation, actual, cpu, tolerance);
        cpu.copy_from_slice(actual);
    }
}

impl Device for Lockstep {
    type Buffer<V: Value> = Both<Vec<V>, Buffer<V>>;
    type GraphCache = ();
    type Readback = Vec<u32>;

    const READBACK_DEPTH: usize = 0;

    // Compared as it goes, so never recorded.
    fn replay_or_record(&self, (): &mut (), _: StepKey, enqueue: impl FnOnce() -> Result<()>) -> Result<()> {
        enqueue()
    }

    fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.cpu.run(work)
    }

    fn zeros<V: Value>(&self, len: usize) -> Result<Both<Vec<V>, Buffer<V>>> {
        Ok(Both::new(self.cpu.zeros(len)?, self.device.zeros(len)?))
    }

    fn write<V: Value>(&self, to: &mut Both<Vec<V>, Buffer<V>>, offset: usize, values: &[V]) -> Result<()> {
        let (cpu, device) = &mut *to.get_mut();
        self.cpu.write(cpu, offset, values)?;
        self.device.write(device, offset, values)
    }

    fn read<V: Value>(&self, from: &Both<Vec<V>, Buffer<V>>, offset: usize, values: &mut [V]) -> Result<()> {
        self.device.read(&from.get().1, offset, values)
    }

    fn enqueue_read<V: Value>(
        &self,
        from: &Both<Vec<V>, Buffer<V>>,
        range: Range<usize>,
        to: &mut Vec<u32>,
        offset: usize,
    ) -> Result<()> {
        let mut values = vec![V::zeroed(); range.len()];
        self.read(from, range.start, &mut values)?;
        let bits: &[u32] = bytemuck::cast_slice(&values);
        to[offset..offset + bits.len()].copy_from_slice(bits);
        Ok(())
    }

    fn readback(&self, words: usize) -> Result<Vec<u32>> {
        self.cpu.readback(words)
    }

    fn wait_readback(&self, readback: &Vec<u32>, words: &mut [u32]) -> Result<()> {
        self.cpu.wait_readback(readback, words)
    }
}
