//! Whole translations on a device against those of the CPU, each on its own.

use std::path::Path;
use std::time::Instant;

use super::report::CheckRow;
use super::watch::Beat;
use crate::backend::Dtype;
use crate::{DecodeOptions, Device, EngineOptions, Result, Translation, Translator};

/// Of lines that must have the CPU's tokens. In i8 all would, but for a CPU without fused multiply-add, whose sums now and then round to
/// another integer.
fn least_agreement(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 1.0,
        Dtype::F16 | Dtype::I8 => 0.98,
        Dtype::Bf16 => 0.9,
    }
}

/// What the CPU computes in.
fn reference_dtype(dtype: Dtype) -> Dtype {
    if dtype == Dtype::I8 { Dtype::I8 } else { Dtype::F32 }
}

/// How far the CPU's scores of both outputs of a line that has other tokens may lie apart in the median, either way.
const MOST_APART: f32 = 0.05;

fn tokens(translation: &Translation) -> &[u32] {
    translation.hypotheses.first().map_or(&[], |best| &best.token_ids)
}

/// Translates lines, saying how many are done as they come.
fn translate(
    by: &Translator,
    lines: &[&str],
    options: &DecodeOptions,
    tell: impl Fn(usize),
) -> Result<Vec<Translation>> {
    let mut batch = by.batch(options)?;
    for (tag, &line) in lines.iter().enumerate() {
        batch.push(tag as u64, line);
    }
    let mut results = Vec::with_capacity(lines.len());
    tell(0);
    while let Some((tag, result)) = batch.next() {
        results.push((tag, result?));
        tell(results.len());
    }
    results.sort_by_key(|(tag, _)| *tag);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// Translates lines with the default search, on the device in `dtype` and on the CPU in f32, or i8 where that is asked for.
///
/// # Errors
/// The model or the device cannot be opened; a line cannot be translated.
pub fn check(device: Device, dir: &Path, lines: &[&str], dtype: Dtype, beat: &Beat) -> Result<CheckRow> {
    let start = Instant::now();
    let open = |device, dtype| Translator::open_with(dir, &EngineOptions { device, dtype, ..EngineOptions::default() });
    let (own, cpu) = (open(device, dtype)?, open(Device::Cpu, reference_dtype(dtype))?);
    let options = DecodeOptions { beam_size: 4, ..DecodeOptions::default() };
    let name = format!("translations {}", dtype.name());
    let all = |by: &Translator, who: &str| {
        translate(by, lines, &options, |done| {
            beat.now(&name, format_args!("after {done} of {} lines on {who}", lines.len()));
        })
    };
    let (actual, expected) = (all(&own, &device.to_string())?, all(&cpu, "the CPU")?);
    let differing: Vec<usize> =
        (0..lines.len()).filter(|&line| tokens(&actual[line]) != tokens(&expected[line])).collect();
    let (mut notes, mut apart) = (Vec::new(), Vec::new());
    for &line in &differing {
        let score = |translation: &Translation| -> Result<f32> {
            let pair = (expected[line].source_ids.clone(), tokens(translation).to_vec());
            let penalty = translation.hypotheses.first().map_or(1.0, |best| best.length_penalty);
            cpu.score_ids(&[pair]).into_iter().next().map_or(Ok(f32::NAN), |score| Ok(score?.log_prob / penalty))
        };
        let difference = score(&expected[line])? - score(&actual[line])?;
        apart.push(difference.abs());
        notes.push(format!("line {}: other tokens, whose score on the CPU is {difference:.4} less", line + 1));
    }
    let mut failures = Vec::new();
    let agreement = 1.0 - differing.len() as f64 / lines.len().max(1) as f64;
    if agreement < least_agreement(dtype) {
        failures.push(format!("{} of {} lines have other tokens than on the CPU", differing.len(), lines.len()));
    }
    apart.sort_unstable_by(f32::total_cmp);
    if let Some(median) = apart.get(apart.len() / 2).filter(|median| **median >= MOST_APART || median.is_nan()) {
        failures.push(format!("the scores of lines that differ are {median:.4} apart in the median"));
    }
    Ok(CheckRow {
        name,
        compared: lines.len(),
        unit: "lines",
        seconds: start.elapsed().as_secs_f64(),
        notes,
        failures,
        algorithms: Vec::new(),
    })
}
