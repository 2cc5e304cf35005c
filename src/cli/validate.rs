//! `validate`: holds a device to the CPU.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::cli::counts::count;
use crate::cli::model_dir::ModelName;
use crate::cli::output::print;
use crate::cli::{Ending, complain, interrupt};
use crate::counts;
use crate::jsonl::json;
use crate::translator::ModelInfo;
use crate::validate::kernels::Op;
use crate::validate::lockstep::{MIXTURE, Requests};
use crate::validate::probe::Shard;
use crate::validate::report::CheckRow;
use crate::validate::watch::{Beat, Stuck, Watchdog};
use crate::validate::{self, Options, Report, report, translations};
use crate::{Device, Dtype, Error, Result};

/// Hold a device to the CPU: every kernel over many shapes, types and kinds of numbers, then the model's matrix products and whole
/// decodes.
///
/// Exits with 1 if anything fails or does not end, and names it.
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
    #[arg(long = "kernel", value_name = "OP")]
    ops: Vec<String>,
    /// Check the model's matrix products and decodes alone, without the kernels' cases.
    #[arg(long, conflicts_with = "ops")]
    model_only: bool,
    /// Lines to translate whole on both devices, of a built-in list [default: none, with --full 100].
    #[arg(long, value_name = "N", conflicts_with = "ops", value_parser = count(counts::or_none(&counts::LINES, 0)))]
    lines: Option<usize>,
    /// Give up on a kernel's case, an operation of a decode or a line that has been running for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = count(counts::SECONDS))]
    timeout: u32,
    #[command(flatten)]
    model: ModelName,
    /// Run this part of the cases and checks alone, the I-th of N: for machines with many cores, one process per part.
    #[arg(long, value_name = "I/N", default_value_t = Shard::default())]
    shard: Shard,
    /// Write the results to this file as JSON; it is kept up to date while checks run, and says whether they came to their end.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<Ending> {
    let Arguments { device, full, timeout, shard, ref ops, ref json, .. } = *arguments;
    let options = Options { device, full, ops: ops.clone(), shard, beat: Beat::until(interrupt::asked) };
    let ops = validate::ops(&options.ops)?;
    let name = validate::open(device)?.name().to_owned();
    interrupt::listen_for("keeping what has been found");
    let mut report = Report::new(name, validate::is_real(device), full);
    report.shard = (shard != Shard::default()).then(|| shard.to_string());
    print(&format!("device  {}\n\n{}", report.device, report::HEAD))?;
    let found = Found { report, file: json.clone() };
    found.save()?;
    let found = Arc::new(Mutex::new(found));
    let own = Arc::clone(&found);
    let give_up = move |stuck| {
        // What has been found so far is lost if it cannot be written: the process ends in any case.
        if let Err(error) = lock(&own).give_up(stuck) {
            complain(&error.to_string());
        }
        std::process::exit(1)
    };
    let watchdog = Watchdog::start(&options.beat, Duration::from_secs(timeout.into()), give_up);
    let ended = arguments.check(&options, &ops, &found)?;
    drop(watchdog);
    if !ended {
        lock(&found).save()?;
        return Ok(Ending::Interrupted);
    }
    lock(&found).finish()
}

/// What the checks have come to so far, and the JSON file.
struct Found {
    report: Report,
    file: Option<PathBuf>,
}

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Short English sentences.
const SENTENCES: &str = include_str!("bench/sentences.txt");

type Check<'a> = Box<dyn FnOnce() -> Result<CheckRow> + 'a>;

impl Arguments {
    /// Runs all checks; whether it got to the end.
    fn check(&self, options: &Options, ops: &[&Op], found: &Mutex<Found>) -> Result<bool> {
        for op in ops.iter().filter(|_| !self.model_only) {
            if interrupt::asked() {
                return Ok(false);
            }
            let (rows, algorithms) = validate::check_op(options, op)?;
            options.beat.rest();
            rows.iter().try_for_each(|row| print(&report::line(row)))?;
            let mut found = lock(found);
            found.report.kernels.extend(rows);
            found.report.algorithms.extend(algorithms);
            found.save()?;
        }
        if interrupt::asked() {
            return Ok(false);
        }
        if !options.ops.is_empty() {
            return Ok(true);
        }
        let dir = self.model.open(|dir| ModelInfo::open(dir))?.dir;
        print("")?;
        for (number, check) in self.model_checks(options, &dir).into_iter().enumerate() {
            if !self.shard.has(number) {
                continue;
            }
            if interrupt::asked() {
                return Ok(false);
            }
            let check = check()?;
            options.beat.rest();
            report::check_lines(&check).iter().try_for_each(|line| print(line))?;
            let mut found = lock(found);
            found.report.checks.push(check);
            found.save()?;
        }
        Ok(!interrupt::asked())
    }

    /// The checks of the whole model, to be run in this order.
    fn model_checks<'a>(&self, options: &'a Options, dir: &'a Path) -> Vec<Check<'a>> {
        let lines = |count: usize| SENTENCES.lines().take(count).collect::<Vec<_>>();
        let (f32_lines, half_lines) = if options.full { (20, 10) } else { (4, 1) };
        let whole = self.lines.unwrap_or(if options.full { 100 } else { 0 });
        let dtypes =
            [(Dtype::F32, f32_lines), (Dtype::F16, half_lines), (Dtype::Bf16, half_lines), (Dtype::I8, half_lines)];
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
            checks
                .push(Box::new(move || translations::check(options.device, dir, &lines(whole), dtype, &options.beat)));
        }
        checks
    }
}

/// Failures of a kernel that are told on stderr; the JSON file has a few more.
const TOLD: usize = 2;

impl Found {
    /// Brings the JSON file up to date, as a whole.
    fn save(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let failed = |source| Error::Io { operation: "write", path: file.clone(), source };
        let text = json(&self.report)? + "\n";
        // What is no regular file, as a pipe, gets it once.
        if file.exists() && !file.is_file() {
            return if self.report.complete { std::fs::write(file, text).map_err(failed) } else { Ok(()) };
        }
        let mut beside = file.clone().into_os_string();
        beside.push(".partial");
        let beside = PathBuf::from(beside);
        std::fs::write(&beside, text).and_then(|()| std::fs::rename(&beside, file)).map_err(failed)
    }

    /// Says what failed, writes the JSON file.
    fn finish(&mut self) -> Result<Ending> {
        self.report.complete = true;
        self.save()?;
        let report = &self.report;
        for row in report.kernels.iter().filter(|row| row.failed > 0) {
            let name = format!("{} {} {}", row.op, row.variant, row.dtype);
            row.failures.iter().take(TOLD).for_each(|failure| complain(&format!("{name}: {failure}")));
        }
        let failed = report.failed();
        if failed.is_empty() {
            print("\nall checks passed")?;
            return Ok(Ending::Complete);
        }
        complain(&format!("failed: {}", failed.join(", ")));
        Ok(Ending::Failed)
    }

    /// As above, with what has been found so far and a check that did not end.
    fn give_up(&mut self, stuck: Stuck) -> Result<Ending> {
        complain(&format!("{}: {}", stuck.check, stuck.what));
        self.report.checks.push(stuck.row());
        let ending = self.finish()?;
        self.report.complete = false;
        self.save()?;
        Ok(ending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_a_failure_in_the_whole_report() -> Result<()> {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("validate.json");
        let report = Report::new("emulated".to_owned(), false, false);
        let mut found = Found { report, file: Some(file.clone()) };
        let (check, what) = ("beam_step".to_owned(), "sizes f32: 1 token: still running after 600 s".to_owned());
        assert_eq!(found.give_up(Stuck { check, what })?, Ending::Failed);
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).expect("the file")).expect("JSON");
        assert_eq!(written["checks"][0]["name"], "beam_step");
        assert_eq!(written["checks"][0]["failures"][0], "sizes f32: 1 token: still running after 600 s");
        Ok(())
    }
}
