//! How fast kernels move the bytes that they have to move, against how fast the device's memory can be read and copied.

mod activations;
mod integers;
mod search;
mod training;

use std::time::Instant;

use half::{bf16, f16};
use serde::Serialize;

use crate::backend::{Heads, Row};
use crate::cuda::checksum::Checksum;
use crate::cuda::testing::{DeviceRows, Values};
use crate::cuda::{Buffer, Context, Element, Recording};
use crate::{Device, Error, Result};

/// How much is run.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Of the buffers that are read and copied for the ceilings.
    pub ceiling_bytes: usize,
    /// The heads of a layer.
    pub heads: Heads,
    /// Its feed-forward width.
    pub ffn: usize,
    /// Rows of activations: live beams.
    pub rows: Vec<usize>,
    /// Rows of logits.
    pub logit_rows: Vec<usize>,
    /// Tokens.
    pub vocab_size: usize,
    /// Launches timed together.
    pub launches: usize,
    /// Times that this is timed; the median counts.
    pub repeats: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Effort {
            ceiling_bytes: 1 << 30,
            // Those of OPUS-MT base.
            heads: Heads::new(8, 64),
            ffn: 2048,
            rows: vec![128, 1024, 4096],
            logit_rows: vec![4, 128, 512],
            vocab_size: 58101,
            launches: 20,
            repeats: 9,
        }
    }
}

/// A kernel at a shape.
#[derive(Clone, Debug, Serialize)]
pub struct SpeedRow {
    /// The op.
    pub op: &'static str,
    /// Which kernel of it.
    pub variant: &'static str,
    /// Storage type.
    pub dtype: &'static str,
    /// What it ran on.
    pub shape: String,
    /// What any kernel for this has to read and write.
    pub bytes: usize,
    /// Time of a launch.
    pub microseconds: f64,
    /// Bytes over time, in units of 10^9.
    pub gb_per_second: f64,
    /// Share of the ceiling: that of reading for kernels that write next to nothing, else that of copying.
    pub of_ceiling: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// This crate's version.
    pub version: &'static str,
    /// The device's name.
    pub device: String,
    /// Bytes read per second at most, in units of 10^9.
    pub read_ceiling: f64,
    /// Bytes read and written per second by a copy, in units of 10^9.
    pub copy_ceiling: f64,
    /// By kernel and shape.
    pub kernels: Vec<SpeedRow>,
}

/// Opens the GPU that is to be measured.
///
/// # Errors
/// [`Error::Option`] for anything else: times on an emulated device say nothing about a GPU; [`Error::Device`] if it is not
/// there.
pub fn open(device: Device) -> Result<Context> {
    match device {
        Device::Cuda(ordinal) => crate::cuda::open(ordinal),
        _ => {
            let expected = "cuda or cuda:N, the only ones whose kernel times mean anything".to_owned();
            Err(Error::Option { option: "device", expected, got: device.to_string() })
        }
    }
}

/// Tokens of a source and of a prefix.
const LEN: usize = 32;
const BEAMS: usize = 4;
/// Turns until a recording is replayed, and one more.
const WARM_UPS: usize = 3;
/// Blocks that read for the ceiling: enough for any GPU's multiprocessors, several times over.
const READERS: usize = 2048;

/// Measures every kernel; `tell` gets each row as it is done.
///
/// # Errors
/// The device failed, or has too little memory.
pub fn measure(context: &Context, effort: &Effort, tell: impl FnMut(&SpeedRow) -> Result<()>) -> Result<Speed> {
    let mut bench = Bench { context, effort, read: 0.0, copy: 0.0, rows: Vec::new(), tell };
    bench.ceilings()?;
    bench.activations::<f32>()?;
    bench.activations::<f16>()?;
    bench.activations::<bf16>()?;
    bench.integers()?;
    bench.stats()?;
    bench.contrastive::<f32>()?;
    bench.ensemble()?;
    bench.processors()?;
    bench.beam_step()?;
    bench.losses::<f32>()?;
    bench.losses::<bf16>()?;
    bench.risk()?;
    bench.sample()?;
    bench.scheduled_sampling::<f32>()?;
    bench.scheduled_sampling::<bf16>()?;
    Ok(Speed {
        version: env!("CARGO_PKG_VERSION"),
        device: context.name().to_owned(),
        read_ceiling: bench.read,
        copy_ceiling: bench.copy,
        kernels: bench.rows,
    })
}

struct Bench<'a, F> {
    context: &'a Context,
    effort: &'a Effort,
    read: f64,
    copy: f64,
    rows: Vec<SpeedRow>,
    tell: F,
}

/// Which ceiling a kernel is held to.
#[derive(Clone, Copy)]
enum Moves {
    Reads,
    ReadsAndWrites,
}

impl<F: FnMut(&SpeedRow) -> Result<()>> Bench<'_, F> {
    /// Seconds of one call of `enqueue`: the median over repeats of many recorded calls, replayed together.
    fn time(&self, mut enqueue: impl FnMut() -> Result<()>) -> Result<f64> {
        let &Effort { launches, repeats, .. } = self.effort;
        let mut recording = Recording::default();
        let mut seconds = Vec::with_capacity(repeats);
        for turn in 0..repeats + WARM_UPS {
            self.context.synchronize()?;
            let start = Instant::now();
            self.context.step(&mut recording, || (0..launches).try_for_each(|_| enqueue()))?;
            self.context.synchronize()?;
            if turn >= WARM_UPS {
                seconds.push(start.elapsed().as_secs_f64() / launches as f64);
            }
        }
        Ok(median(seconds))
    }

    fn ceilings(&mut self) -> Result<()> {
        let words = self.effort.ceiling_bytes / 4;
        let from = self.context.zeros::<u32>(words)?;
        let mut to = self.context.zeros::<u32>(words)?;
        let mut out = self.context.zeros::<u32>(READERS)?;
        let context = self.context;
        let read = self.time(|| Checksum { words: from.view(), out: out.view_mut() }.launch(context))?;
        let copy = self.time(|| context.copy(from.view(), to.view_mut()))?;
        let rate = |bytes: usize, seconds: f64| bytes as f64 / seconds / 1e9;
        (self.read, self.copy) = (rate(4 * words, read), rate(8 * words, copy));
        Ok(())
    }

    fn add(
        &mut self,
        (op, variant, dtype): (&'static str, &'static str, &'static str),
        shape: String,
        (moves, bytes): (Moves, usize),
        seconds: f64,
    ) -> Result<()> {
        let gb_per_second = bytes as f64 / seconds / 1e9;
        let ceiling = match moves {
            Moves::Reads => self.read,
            Moves::ReadsAndWrites => self.copy,
        };
        let of_ceiling = gb_per_second / ceiling;
        let microseconds = seconds * 1e6;
        let row = SpeedRow { op, variant, dtype, shape, bytes, microseconds, gb_per_second, of_ceiling };
        (self.tell)(&row)?;
        self.rows.push(row);
        Ok(())
    }

    fn numbers<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        // Few of them, over and over: what they are does not matter, and drawing gigabytes would take long.
        let some: Vec<T> = Values::new(len as u64).elements(len.min(1 << 16), 0.0, 1.0);
        let all: Vec<T> = some.iter().copied().cycle().take(len).collect();
        self.context.upload(&all)
    }

    /// Numbers as logits: `[rows, stride]`, and a row list of one slot each.
    fn logits<T: Element>(&self, rows: usize) -> Result<(Buffer<T>, DeviceRows, usize)> {
        let stride = self.effort.vocab_size.next_multiple_of(8);
        let row = |r: usize| Row { slot: r as u32, position: 1, ..Row::default() };
        let list = DeviceRows::upload(self.context, &(0..rows).map(row).collect::<Vec<_>>(), rows)?;
        Ok((self.numbers(rows * stride)?, list, stride))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
