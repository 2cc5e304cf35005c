//! Holds a device to the CPU, on the user's own machine: each kernel to its `reference`, then the model's matrix products and
//! whole decodes.
//!
//! | file | what |
//! |---|---|
//! | `kernels` | each op's cases, which the kernel tests run too |
//! | `probe`, `cases` | what runs a case and keeps what it came to; the numbers that cases are made of |
//! | `row_bits` | the model's matrix products: a row's bits must not depend on how many others there are |
//! | `lockstep` | decoding on both at once, compared operation by operation |
//! | `translations` | whole translations, each device on its own |
//! | `speed` | how fast kernels are on a GPU, against its memory |
//! | `report` | the table, and what goes into JSON |
//! | `watch` | what runs, and noticing that it does not end |

pub mod cases;
pub mod kernels;
pub mod lockstep;
pub mod probe;
pub mod report;
pub mod row_bits;
pub mod speed;
pub mod translations;
pub mod watch;

#[cfg(test)]
mod tests;

pub use report::Report;

use std::path::Path;

use crate::backend::Dtype;
use crate::cuda::{self, Context, Cuda};
use crate::text::Tokenizer;
use crate::{Device, Error, Result};
use kernels::{OPS, Op};
use lockstep::{Decode, Requests};
use probe::{Grid, Probe, Shard, unknown_op};
use report::{CheckRow, KernelRow};
use watch::Beat;

/// What to hold to what.
#[derive(Clone, Debug)]
pub struct Options {
    /// A GPU or the emulated device.
    pub device: Device,
    /// Every combination instead of every pair, and large shapes.
    pub full: bool,
    /// The ops to check; empty for all.
    pub ops: Vec<String>,
    /// The part of the cases that is run.
    pub shard: Shard,
    /// Where checks say what they are at.
    pub beat: Beat,
}

/// Opens the device that is to be checked.
///
/// # Errors
/// [`Error::Option`] for the CPU, which is what devices are held to; [`Error::Device`] if it is not there.
pub fn open(device: Device) -> Result<Context> {
    match device {
        Device::Cuda(ordinal) => cuda::open(ordinal),
        Device::Emulated => cuda::open_emulated(),
        Device::Cpu | Device::Auto | Device::Cudas(_) | Device::EmulatedReplicas(_) => {
            let expected = "cuda, cuda:N or emulated, which are held to the CPU".to_owned();
            Err(Error::Option { option: "device", expected, got: device.to_string() })
        }
    }
}

/// The ops of these names, or all.
///
/// # Errors
/// [`Error::Option`] for a name that there is none of.
pub fn ops(names: &[String]) -> Result<Vec<&'static Op>> {
    let known: Vec<&str> = OPS.iter().map(|op| op.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown_op(unknown, &known));
    }
    let is_asked = |op: &&Op| names.is_empty() || names.iter().any(|name| name == op.name);
    Ok(OPS.iter().filter(is_asked).collect())
}

/// Runs an op's cases on a device of their own, so that a kernel that breaks it spoils no other's; also how that device computed
/// their matrix products.
///
/// # Errors
/// The device cannot be opened.
pub fn check_op(options: &Options, op: &Op) -> Result<(Vec<KernelRow>, Vec<String>)> {
    let grid = if options.full { Grid::Full } else { Grid::Pairwise };
    let context = open(options.device)?;
    let mut rows = check_op_on(&context, grid, options.shard, op, &options.beat);
    if is_real(options.device) {
        rows.iter_mut().for_each(|row| row.gb_per_second = (row.best_rate > 0.0).then_some(row.best_rate));
    }
    Ok((rows, context.gemm_plans()))
}

fn check_op_on(context: &Context, grid: Grid, shard: Shard, op: &Op, beat: &Beat) -> Vec<KernelRow> {
    let mut probe = Probe::new(context, grid, op.name, beat).of(shard);
    let ended = (op.check)(&mut probe);
    probe.finish(ended)
}

/// The most rows whose bits are compared: those of a few sentences, or on the full grid those of many.
fn most_rows(options: &Options) -> usize {
    match (is_real(options.device), options.full) {
        (true, true) => 512,
        (true, false) => 64,
        (false, _) => 20,
    }
}

/// The bits of rows of the model's matrix products, in a storage type.
///
/// # Errors
/// The model cannot be read; the device failed.
pub fn check_rows(options: &Options, dir: &Path, dtype: Dtype) -> Result<CheckRow> {
    let (context, most, beat) = (open(options.device)?, most_rows(options), &options.beat);
    row_bits::check(&Cuda::new(context, dtype), dir, most, beat)
}

/// A decode in lockstep, in a storage type.
///
/// # Errors
/// The model cannot be read; the device failed.
pub fn check_decode(
    options: &Options,
    dir: &Path,
    lines: &[&str],
    requests: Requests,
    dtype: Dtype,
) -> Result<CheckRow> {
    let context = open(options.device)?;
    let tokenizer = Tokenizer::open(dir)?;
    let sources: Vec<Vec<u32>> = lines.iter().map(|line| tokenizer.encode_source(line)).collect();
    let decode = Decode { dir, sources: &sources, requests, beat: &options.beat };
    lockstep::check(Cuda::new(context, dtype), decode)
}

/// Whether times mean anything.
pub fn is_real(device: Device) -> bool {
    matches!(device, Device::Cuda(_))
}
