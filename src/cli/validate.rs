//! `validate`: holds a device to the CPU.

use std::path::{Path, PathBuf};

use crate::cli::model_dir::ModelName;
use crate::cli::output::{Output, json, print};
use crate::cli::{Ending, complain, interrupt};
use crate::validate::lockstep::{MIXTURE, Requests};
use crate::validate::report::CheckRow;
use crate::validate::{self, Options, Report, report, translations};
use crate::{Device, Dtype, Result};

/// Hold a device to the CPU: every kernel over many shapes, types and kinds of numbers, then the model's matrix products and whole
/// decodes.
///
/// Exits with 1 if anything fails, and names it.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Differences are to the CPU's plain computation in f64. max ulp counts in units of the storage type's last place. \
                        GB/s is the fastest launch's necessary bytes over its time, waiting included; bench --kernels measures it properly. \
                        Row bits: a row of a matrix product must have the same bits alone and among others. Lockstep: each operation of a \
                        decode is run on both, on equal inputs; the first that differs is named with its step and layer."
)]
pub(super) struct Arguments {
    /// What to check: cuda or cuda:N for a GPU, or emulated, which runs the GPU's code on the CPU.
    #[arg(long, value_name = "DEVICE", default_value_t = Device::Emulated)]
    device: Device,
    /// Every combination instead of every pair, and large shapes: for a GPU.
    #[arg(long)]
    full: bool,
    /// Check this kernel alone, without the model; may be given several times.
    #[arg(long = "kernel", value_name = "STEM")]
    stems: Vec<String>,
    /// Lines to translate whole on both devices, of a built-in list [default: none, with --full 100].
    #[arg(long, value_name = "N", conflicts_with = "stems")]
    lines: Option<usize>,
    #[command(flatten)]
    model: ModelName,
    /// Write the results to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let Arguments { device, full, ref stems, ref json, .. } = *arguments;
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
    if options.stems.is_empty() {
        let dir = arguments.model.resolve()?;
        print("")?;
        for check in arguments.model_checks(&options, &dir) {
            if interrupt::asked() {
                return Ok(Ending::Interrupted);
            }
            let check = check()?;
            report::check_lines(&check).iter().try_for_each(|line| print(line))?;
            found.checks.push(check);
        }
    }
    finish(&found, output)
}

/// Short English sentences.
const SENTENCES: &str = include_str!("bench/sentences.txt");

type Check<'a> = Box<dyn FnOnce() -> Result<CheckRow> + 'a>;

impl Arguments {
    /// The checks of the whole model, to be run in this order.
    fn model_checks<'a>(&self, options: &'a Options, dir: &'a Path) -> Vec<Check<'a>> {
        let lines = |count: usize| SENTENCES.lines().take(count).collect::<Vec<_>>();
        let (f32_lines, half_lines) = if options.full { (20, 10) } else { (4, 1) };
        let whole = self.lines.unwrap_or(if options.full { 100 } else { 0 });
        let dtypes = [(Dtype::F32, f32_lines), (Dtype::F16, half_lines), (Dtype::Bf16, half_lines)];
        let mut checks: Vec<Check<'a>> = Vec::new();
        for (dtype, _) in dtypes {
            checks.push(Box::new(move || validate::check_rows(options, dir, dtype)));
        }
        for (dtype, count) in dtypes {
            checks.push(Box::new(move || validate::check_decode(options, dir, &lines(count), Requests::Plain, dtype)));
        }
        // Each kind of request once; on the emulated device in f32 alone.
        for &(dtype, _) in &dtypes[..if options.full { dtypes.len() } else { 1 }] {
            checks
                .push(Box::new(move || validate::check_decode(options, dir, &lines(MIXTURE), Requests::Mixed, dtype)));
        }
        // On the emulated device the narrower types take as long again: the kernels have been held to the CPU in each already.
        let whole_dtypes = if validate::is_real(options.device) { &dtypes[..] } else { &dtypes[..1] };
        for &(dtype, _) in whole_dtypes.iter().filter(|_| whole > 0) {
            checks.push(Box::new(move || translations::check(options.device, dir, &lines(whole), dtype)));
        }
        checks
    }
}

/// Failures of a kernel that are told on stderr; the JSON file has a few more.
const TOLD: usize = 2;

/// Says what failed, writes the JSON file.
fn finish(found: &Report, output: Option<Output>) -> Result<Ending> {
    if let Some(mut output) = output {
        output.line(json(found)?)?;
        output.flush()?;
    }
    let failed = found.failed();
    for row in found.kernels.iter().filter(|row| row.failed > 0) {
        let name = format!("{} {} {}", row.stem, row.variant, row.dtype);
        row.failures.iter().take(TOLD).for_each(|failure| complain(&format!("{name}: {failure}")));
    }
    if failed.is_empty() {
        print("\nall checks passed")?;
        return Ok(Ending::Complete);
    }
    complain(&format!("failed: {}", failed.join(", ")));
    Ok(Ending::Failed)
}
