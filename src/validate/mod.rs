//! Holds a device to the CPU, on the user's own machine: each kernel to its `reference`, then the model's matrix products and
//! whole decodes.
//!
//! | file | what |
//! |---|---|
//! | `kernels` | each stem's cases, which the kernel tests run too |
//! | `probe`, `cases` | what runs a case and keeps what it came to; the numbers that cases are made of |
//! | `report` | the table, and what goes into JSON |

pub mod cases;
pub mod kernels;
pub mod probe;
pub mod report;

pub use report::Report;

use crate::cuda::{self, Context};
use crate::{Device, Error, Result};
use kernels::{STEMS, Stem};
use probe::{Grid, Probe, unknown_stem};
use report::KernelRow;

/// What to hold to what.
#[derive(Clone, Debug)]
pub struct Options {
    /// A GPU or the emulated device.
    pub device: Device,
    /// Every combination instead of every pair, and large shapes.
    pub full: bool,
    /// The stems to check; empty for all.
    pub stems: Vec<String>,
}

/// Opens the device that is to be checked.
///
/// # Errors
/// [`Error::Option`] for the CPU, which is what devices are held to; [`Error::Device`] if it is not there.
pub fn open(device: Device) -> Result<Context> {
    match device {
        Device::Cuda(ordinal) => cuda::open(ordinal),
        Device::Emulated => cuda::open_emulated(),
        Device::Cpu | Device::Auto => {
            let expected = "cuda, cuda:N or emulated, which are held to the CPU".to_owned();
            Err(Error::Option { option: "device", expected, got: device.to_string() })
        }
    }
}

/// The stems of these names, or all.
///
/// # Errors
/// [`Error::Option`] for a name that there is none of.
pub fn stems(names: &[String]) -> Result<Vec<&'static Stem>> {
    let known: Vec<&str> = STEMS.iter().map(|stem| stem.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown_stem(unknown, &known));
    }
    let is_asked = |stem: &&Stem| names.is_empty() || names.iter().any(|name| name == stem.name);
    Ok(STEMS.iter().filter(is_asked).collect())
}

/// Runs a stem's cases on a device of their own, so that a kernel that breaks it spoils no other's.
///
/// # Errors
/// The device cannot be opened.
pub fn check_stem(options: &Options, stem: &Stem) -> Result<Vec<KernelRow>> {
    let context = open(options.device)?;
    let grid = if options.full { Grid::Full } else { Grid::Pairwise };
    let mut probe = Probe::new(&context, grid, stem.name);
    let ended = (stem.check)(&mut probe);
    let mut rows = probe.finish(ended);
    if is_real(options.device) {
        rows.iter_mut().for_each(|row| row.gb_per_second = (row.best_rate > 0.0).then_some(row.best_rate));
    }
    Ok(rows)
}

/// Whether times mean anything.
pub fn is_real(device: Device) -> bool {
    matches!(device, Device::Cuda(_))
}
