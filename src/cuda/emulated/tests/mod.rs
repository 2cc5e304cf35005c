//! Tests of the emulator: that sound kernels run right, and that each planted fault is caught.

mod faults;
mod layer;
mod sound;
mod stream;

use bytemuck::{Pod, Zeroable};

use super::EmulatedDevice;
use crate::cuda::{Buffer, Context, Launch};
use crate::{Error, Result};

/// Mirrors `PlantedArguments`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: u64,
    out: u64,
    counts: u64,
    n: u32,
    fault: u32,
}

/// A device and the three tensors of the planted kernels.
struct Planted {
    context: Context,
    input: Buffer<f32>,
    out: Buffer<f32>,
    counts: Buffer<u32>,
}

impl Planted {
    fn new(seed: u64, input: &[f32], out: usize, counts: usize) -> Result<Self> {
        let context = Context::new(Box::new(EmulatedDevice::new(seed)?));
        let (input, out, counts) = (context.upload(input)?, context.allocate(out)?, context.zeros(counts)?);
        Ok(Planted { context, input, out, counts })
    }

    fn launch(&mut self, symbol: &'static str, grid: [u32; 3], block: u32, n: usize, fault: u32) -> Result<()> {
        let arguments = Arguments {
            input: self.context.address(&self.input.view())?,
            out: self.context.address_mut(&self.out.view_mut())?,
            counts: self.context.address_mut(&self.counts.view_mut())?,
            n: n as u32,
            fault,
        };
        // SAFETY: mirrors `PlantedArguments`; where a fault leaves its tensor, it is by a guard's width at most.
        unsafe { self.context.launch(&Launch { symbol, grid, block, shared: 128 }, &arguments) }
    }

    fn out(&self) -> Result<Vec<f32>> {
        self.context.download(self.out.view())
    }

    fn counts(&self) -> Result<Vec<u32>> {
        self.context.download(self.counts.view())
    }
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

/// What a failed launch says.
fn message(outcome: Result<Vec<f32>>) -> String {
    match outcome {
        Err(Error::DeviceOperation { operation: "launch", reason, .. }) => reason,
        other => panic!("expected a failed launch, got {other:?}"),
    }
}
