//! `bench --kernels`: how fast kernels move their bytes on a GPU.

use std::path::Path;

use crate::cli::Ending;
use crate::cli::output::{Output, print};
use crate::jsonl::json;
use crate::validate::speed::{self, Effort, SpeedRow};
use crate::{Device, Result};

const HEAD: &str =
    "op                  variant   dtype  shape                                      us     GB/s  of ceiling";

fn line(row: &SpeedRow) -> String {
    let SpeedRow { op, variant, dtype, shape, microseconds, gb_per_second, of_ceiling, .. } = row;
    let share = of_ceiling * 100.0;
    format!("{op:<18}  {variant:<8}  {dtype:<5}  {shape:<36}  {microseconds:>8.1}  {gb_per_second:>7.0}  {share:>9.0}%")
}

pub(super) fn run(device: Device, json_file: Option<&Path>) -> Result<Ending> {
    let context = speed::open(device)?;
    let output = json_file.map(|path| Output::create(Some(path))).transpose()?;
    print(&format!("device  {}\n\n{HEAD}", context.name()))?;
    let found = speed::measure(&context, &Effort::default(), |row| print(&line(row)))?;
    print(&format!("\nceilings: read {:.0} GB/s, copy {:.0} GB/s", found.read_ceiling, found.copy_ceiling))?;
    if let Some(mut output) = output {
        output.line(&json(&found)?)?;
        output.finish()?;
    }
    Ok(Ending::Complete)
}
