//! `validate`: holds a device to the CPU.

use std::path::PathBuf;

use crate::cli::output::{Output, json, print};
use crate::cli::{Ending, complain, interrupt};
use crate::validate::{self, Options, Report, report};
use crate::{Device, Result};

/// Hold a device to the CPU: every kernel over many shapes, types and kinds of numbers.
///
/// Exits with 1 if anything fails, and names it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Differences are to the CPU's plain computation in f64. max ulp counts in units of the storage type's last place. \
                        GB/s is the fastest launch's necessary bytes over its time, waiting included; bench --kernels measures it properly."
)]
pub(super) struct Arguments {
    /// What to check: cuda or cuda:N for a GPU, or emulated, which runs the GPU's code on the CPU.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Emulated)]
    device: Device,
    /// Every combination instead of every pair, and large shapes: for a GPU.
    #[arg(long)]
    full: bool,
    /// Check this kernel alone; may be given several times.
    #[arg(long = "kernel", value_name = "STEM")]
    stems: Vec<String>,
    /// Write the results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let Arguments { device, full, ref stems, ref json } = *arguments;
    let options = Options { device, full, stems: stems.clone() };
    let stems = validate::stems(&options.stems)?;
    let name = validate::open(device)?.name().to_owned();
    let output = json.as_deref().map(|path| Output::create(Some(path), None)).transpose()?;
    interrupt::listen();
    let mut found = Report::new(name, validate::is_real(device), full);
    print(&format!("device  {}\n\n{}", found.device, report::HEAD))?;
    for stem in stems {
        if interrupt::asked() {
            return Ok(Ending::Interrupted);
        }
        let rows = validate::check_stem(&options, stem)?;
        rows.iter().try_for_each(|row| print(&report::line(row)))?;
        found.kernels.extend(rows);
    }
    finish(&found, output)
}

/// Says what failed, writes the JSON file.
fn finish(found: &Report, output: Option<Output>) -> Result<Ending> {
    if let Some(mut output) = output {
        output.line(json(found)?)?;
        output.flush()?;
    }
    let failed = found.failed();
    for row in found.kernels.iter().filter(|row| row.failed > 0) {
        let name = format!("{} {} {}", row.stem, row.variant, row.dtype);
        row.failures.iter().for_each(|failure| complain(&format!("{name}: {failure}")));
    }
    if failed.is_empty() {
        print("\nall checks passed")?;
        return Ok(Ending::Complete);
    }
    complain(&format!("failed: {}", failed.join(", ")));
    Ok(Ending::Failed)
}
